//! Flags, URLs and addresses that are refused.

use super::*;

#[test]
fn bad_flags() {
    let fixture = Fixture::new();
    let mut differences = Differences::default();
    // BOTH is replaced by a valid certificate and a valid upstream.
    for (line, expected) in [
        (
            "UPSTREAM",
            "no certificate is given; add --cert FILE and --key FILE, or --acme NAME to get one from a CA, or `certificates` in a --config file",
        ),
        (
            "CERT",
            "no apiserver is given; add --upstream URL with --upstream-ca FILE, or --kubeconfig FILE (or `clusters` in a --config file), or run in a pod with its service account mounted",
        ),
        (
            "--cert DIR/tls.crt UPSTREAM",
            "--cert and --key come in pairs, but there are 1 and 0 of them; give one --key per --cert, in the same order",
        ),
        (
            "--key DIR/tls.key UPSTREAM",
            "--cert and --key come in pairs, but there are 0 and 1 of them; give one --key per --cert, in the same order",
        ),
        (
            "BOTH --listen localhost:8443",
            "--listen: `localhost:8443` is not an address to listen on; write ADDRESS:PORT with an IP address, such as [::]:8443 or 127.0.0.1:8443",
        ),
        (
            "BOTH --admin-listen 9090",
            "--admin-listen: `9090` is not an address to listen on; write ADDRESS:PORT with an IP address, such as [::]:8443 or 127.0.0.1:8443",
        ),
        (
            "BOTH --listen 127.0.0.1:8443 --admin-listen 127.0.0.1:8443",
            "127.0.0.1:8443 and 127.0.0.1:8443 overlap; give each of --listen, --admin-listen and --acme-http01-listen (`listen`, `admin` and `http01Listen` in the file) its own port",
        ),
        (
            "BOTH --listen 127.0.0.1:8443,:8443",
            "127.0.0.1:8443 and [::]:8443 overlap; give each of --listen, --admin-listen and --acme-http01-listen (`listen`, `admin` and `http01Listen` in the file) its own port",
        ),
        (
            "BOTH --listen 0.0.0.0:8443 --listen [::1]:8443 --admin-listen 127.0.0.1:8443",
            "0.0.0.0:8443 and 127.0.0.1:8443 overlap; give each of --listen, --admin-listen and --acme-http01-listen (`listen`, `admin` and `http01Listen` in the file) its own port",
        ),
        (
            "BOTH --listen 127.0.0.1:8443,[::1]:8443,127.0.0.2:8443,127.0.0.1:0,127.0.0.1:0 --admin-listen 127.0.0.1:0",
            "it starts",
        ),
        // The sockets for clients may be those of systemd.
        ("BOTH --admin-listen 127.0.0.1:8443", "it starts"),
        (
            "BOTH --host https://kube.example.com",
            "--host: `https://kube.example.com` is not a host name; write it without scheme, port and path, such as kube.example.com or *.example.com",
        ),
        (
            "BOTH --workers many",
            "--workers: the value is not a whole number; write one without sign, unit or quotes",
        ),
        (
            "BOTH --workers 0",
            "--workers: 0 is out of range; write a value from 1 to 1024",
        ),
        (
            "BOTH --drain-timeout 25",
            "--drain-timeout: the value is not a duration; write numbers with units, such as 500ms, 5s, 10m or 1h30m",
        ),
        (
            "BOTH --drain-timeout 9000h",
            "--drain-timeout: `9000h` is longer than a year; write a shorter duration",
        ),
        (
            "BOTH --log-format xml",
            "--log-format: the value is not a log format; write text or json",
        ),
        (
            "BOTH --log-level info,a=loud",
            "--log-level: `info,a=loud` is not a log filter; write a level (error, warn, info, debug, trace), or levels for modules, such as info,kube_tls_proxy=debug",
        ),
        (
            "BOTH --log-level inof",
            "--log-level: `inof` is not a log filter; write a level (error, warn, info, debug, trace), or levels for modules, such as info,kube_tls_proxy=debug",
        ),
        (
            "BOTH --no-access-log=maybe",
            "--no-access-log: this must be a boolean; write true or false",
        ),
        (
            "BOTH --reuse-port=nein",
            "--reuse-port: this must be a boolean; write true or false",
        ),
        ("BOTH --no-access-log=true --reuse-port=False", "it starts"),
        (
            "CERT --acme *.example.com UPSTREAM",
            "--acme: a certificate by ACME has no wildcard here, because that needs a record in DNS; name each host, or let cert-manager or certbot write `certificate` and `key`",
        ),
        (
            "--acme a.test --acme-email ops UPSTREAM",
            "--acme-email: the value is not one email address; write it as name@example.com",
        ),
        (
            "--acme a.test --acme-directory ca.test UPSTREAM",
            "--acme-directory: the value is not the URL of an ACME directory; write https://HOST[:PORT]/PATH, without user name and password",
        ),
        (
            "--acme a.test --acme-http01-listen 80 UPSTREAM",
            "--acme-http01-listen: `80` is not an address to listen on; write ADDRESS:PORT with an IP address, such as [::]:8443 or 127.0.0.1:8443",
        ),
        (
            "--acme a.test --acme-http01-listen :0 UPSTREAM",
            "--acme-http01-listen: the port is 0, so the CA cannot reach it; write :80, or the port that port 80 is forwarded to",
        ),
        (
            "--acme a.test --acme-http01-listen :80 --listen :80 UPSTREAM",
            "[::]:80 and [::]:80 overlap; give each of --listen, --admin-listen and --acme-http01-listen (`listen`, `admin` and `http01Listen` in the file) its own port",
        ),
        (
            "--acme a.test --acme-http01-listen :9090 --admin-listen 127.0.0.1:9090 UPSTREAM",
            "127.0.0.1:9090 and [::]:9090 overlap; give each of --listen, --admin-listen and --acme-http01-listen (`listen`, `admin` and `http01Listen` in the file) its own port",
        ),
        (
            "CERT --acme-http01-listen :80 UPSTREAM",
            "--acme-http01-listen needs --acme; add it, or remove --acme-http01-listen",
        ),
        (
            "CERT --acme-store /a UPSTREAM",
            "--acme-store needs --acme; add it, or remove --acme-store",
        ),
        (
            "BOTH --upstream-host server",
            "--upstream-host: `server` is not a choice; write client, for the host that clients ask for, or upstream, for the host of the apiserver's URL",
        ),
        (
            "BOTH --upstream-proxy-url u:hidden@bastion",
            "--upstream-proxy-url: the value is not the URL of a proxy; write http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT, with USER:PASSWORD@ before the host if the proxy wants them",
        ),
        (
            "BOTH --upstream-name not_a/name",
            "--upstream-name: `not_a/name` is neither a DNS name nor an IP address; write one such as kubernetes.default.svc",
        ),
        (
            "BOTH --kubeconfig DIR/kubeconfig",
            "--upstream and --kubeconfig exclude each other; remove one of them",
        ),
        (
            "BOTH --context prod",
            "--context needs --kubeconfig; add it, or remove --context",
        ),
        (
            "CERT --upstream https://10.0.0.1",
            "--upstream needs --upstream-ca; add it, or remove --upstream",
        ),
        (
            "CERT --upstream-ca DIR/ca.crt",
            "--upstream-ca needs --upstream; add it, or remove --upstream-ca",
        ),
        (
            "BOTH --config DIR/missing.yaml",
            "config file DIR/missing.yaml: no such file; check the path",
        ),
        (
            "CERT --kubeconfig DIR",
            "kubeconfig DIR: is a directory; give the path of a file in it",
        ),
        (
            "--cert DIR/missing.crt --key DIR/tls.key UPSTREAM",
            "certificate DIR/missing.crt: no such file; check the path",
        ),
        (
            "--cert DIR/~/tls.crt --key DIR/tls.key UPSTREAM",
            "certificate DIR/~/tls.crt: no such file: only a shell expands `~`; write the full path",
        ),
        (
            "--cert DIR/tls.crt --key DIR/missing.key UPSTREAM",
            "key DIR/missing.key: no such file; check the path",
        ),
        (
            "CERT --upstream https://10.0.0.1 --upstream-ca DIR/missing.crt",
            "CA DIR/missing.crt: no such file; check the path",
        ),
    ] {
        let line = line
            .replace("BOTH", "CERT UPSTREAM")
            .replace("CERT", CERT)
            .replace("UPSTREAM", UPSTREAM);
        differences.compare(
            &line,
            fixture.sentence(&line, &outside_of_a_pod()),
            expected,
        );
    }
    differences.assert_none();
}

#[test]
fn bad_upstream_urls() {
    let fixture = Fixture::new();
    let mut differences = Differences::default();
    for (url, expected) in [
        (
            "http://10.0.0.1:6443",
            "--upstream: `http://10.0.0.1:6443` is not an https URL; tokens go over verified TLS only, so write https://HOST:PORT",
        ),
        (
            "10.0.0.1:6443",
            "--upstream: `10.0.0.1:6443` is not an https URL; tokens go over verified TLS only, so write https://HOST:PORT",
        ),
        (
            "https://me:secret@10.0.0.1",
            "--upstream: the URL contains a user name or password; remove `USER:PASSWORD@`, because each client sends its own credentials",
        ),
        (
            "me:secret@10.0.0.1",
            "--upstream: the URL contains a user name or password; remove `USER:PASSWORD@`, because each client sends its own credentials",
        ),
        (
            "https://me:sec/ret@10.0.0.1",
            "--upstream: the URL contains a user name or password; remove `USER:PASSWORD@`, because each client sends its own credentials",
        ),
        (
            "https://me:secret?x@10.0.0.1",
            "--upstream: the URL contains a user name or password; remove `USER:PASSWORD@`, because each client sends its own credentials",
        ),
        (
            "https://me:secret#x@10.0.0.1",
            "--upstream: the URL contains a user name or password; remove `USER:PASSWORD@`, because each client sends its own credentials",
        ),
        (
            "https:/me:secret@10.0.0.1",
            "--upstream: the URL contains a user name or password; remove `USER:PASSWORD@`, because each client sends its own credentials",
        ),
        (
            "https://10.0.0.1/?a=b",
            "--upstream: `https://10.0.0.1/` has a query or fragment; remove the `?` or `#` and everything after it",
        ),
        (
            "https://10.0.0.1/#top",
            "--upstream: `https://10.0.0.1/` has a query or fragment; remove the `?` or `#` and everything after it",
        ),
        (
            "https://",
            "--upstream: `https://` has no valid host; write https://HOST:PORT, with an IPv6 address in brackets",
        ),
        (
            "https://10.0.0.256",
            "--upstream: `https://10.0.0.256` has no valid host; write https://HOST:PORT, with an IPv6 address in brackets",
        ),
        (
            "https://fd00::1:6443",
            "--upstream: `https://fd00::1:6443` has no valid host; write https://HOST:PORT, with an IPv6 address in brackets",
        ),
        (
            "https://10.0.0.1:0",
            "--upstream: `https://10.0.0.1:0` has no valid port; write a number from 1 to 65535 after the colon",
        ),
        (
            "https://10.0.0.1:65536",
            "--upstream: `https://10.0.0.1:65536` has no valid port; write a number from 1 to 65535 after the colon",
        ),
        (
            "https://10.0.0.1:+1",
            "--upstream: `https://10.0.0.1:+1` has no valid port; write a number from 1 to 65535 after the colon",
        ),
        (
            "https://JQc8vR2mXpT7nLw4KsYb9ZfGh3DjA6uEoVqC1iNt5rM:6443",
            "--upstream: `(hidden: may be a secret)` has a host that looks like a key or a token; write the name or address of the apiserver there",
        ),
        (
            "https://10.0.0.1/a/../b",
            "--upstream: `https://10.0.0.1/a/../b` has a path that cannot be a prefix; write /PREFIX with plain segments, without `..`, `//` or spaces",
        ),
        (
            "https://10.0.0.1/a//b",
            "--upstream: `https://10.0.0.1/a//b` has a path that cannot be a prefix; write /PREFIX with plain segments, without `..`, `//` or spaces",
        ),
    ] {
        let line = format!("{CERT} --upstream-ca DIR/ca.crt --upstream {url}");
        differences.compare(url, fixture.sentence(&line, &outside_of_a_pod()), expected);
    }
    differences.assert_none();
}

#[test]
fn bad_addresses() {
    let mut differences = Differences::default();
    for (kind, expected) in [
        (
            io::Error::from_raw_os_error(97),
            "cannot listen on 127.0.0.1:443: this machine has no IPv6; listen on IPv4 with --listen 0.0.0.0:8443",
        ),
        (
            io::ErrorKind::AddrInUse.into(),
            "cannot listen on 127.0.0.1:443: another process uses this port; stop it or choose another with --listen",
        ),
        (
            io::ErrorKind::PermissionDenied.into(),
            "cannot listen on 127.0.0.1:443: permission denied; choose a port above 1023 with --listen, or grant CAP_NET_BIND_SERVICE",
        ),
        (
            io::ErrorKind::AddrNotAvailable.into(),
            "cannot listen on 127.0.0.1:443: this machine does not have this address; choose one that it has with --listen",
        ),
        (
            io::ErrorKind::OutOfMemory.into(),
            "cannot listen on 127.0.0.1:443: the operating system refused it: out of memory",
        ),
    ] {
        let case = kind.to_string();
        let error = AppError::Listen {
            address: "127.0.0.1:443".parse().unwrap(),
            source: ListenError::new(ListenFlag::Clients, kind),
        };
        differences.compare(&case, sentence(&error), expected);
    }
    differences.assert_none();
}

/// kubectl reads the variable, so it is easily taken for granted.
#[test]
fn kubeconfig_variable_is_named_when_no_apiserver_is_given() {
    let fixture = Fixture::new();
    let environment = Environment {
        has_kubeconfig: true,
        ..outside_of_a_pod()
    };
    assert_eq!(
        fixture.sentence(CERT, &environment),
        "no apiserver is given, and the variable KUBECONFIG is for clients only; name the file with --kubeconfig FILE, or give --upstream URL with --upstream-ca FILE"
    );
}

/// A user who set only variables would not find the flags that an error names.
#[test]
fn error_names_the_environment_variable_of_a_flag() {
    let environment = outside_of_a_pod();
    let sentence = |args: ServeArgs| {
        let error = config::load(&args, &environment).unwrap_err();
        sentence(&error)
    };
    let listen = ServeArgs {
        listen: vec!["8443".to_owned()],
        certificates: vec!["a".into()],
        keys: vec!["a".into()],
        upstream: Some("https://10.0.0.1".to_owned()),
        upstream_ca: Some("a".into()),
        from_environment: vec!["--listen".to_owned(), "--upstream".to_owned()],
        ..ServeArgs::default()
    };
    let both = ServeArgs {
        listen: Vec::new(),
        kubeconfig: Some("a".into()),
        ..listen.clone()
    };
    let pairs = ServeArgs {
        keys: Vec::new(),
        from_environment: vec!["--cert".to_owned()],
        ..listen.clone()
    };
    let typed = ServeArgs {
        from_environment: vec!["--drain-delay".to_owned()],
        ..listen.clone()
    };
    let bad = "--listen: `8443` is not an address to listen on; write ADDRESS:PORT with an IP address, such as [::]:8443 or 127.0.0.1:8443";
    for (args, expected) in [
        (
            listen,
            format!("environment variable KUBE_TLS_PROXY_LISTEN: {bad}"),
        ),
        (
            both,
            "environment variable KUBE_TLS_PROXY_UPSTREAM: --upstream and --kubeconfig exclude each other; remove one of them".to_owned(),
        ),
        (
            pairs,
            "environment variable KUBE_TLS_PROXY_CERT: --cert and --key come in pairs, but there are 1 and 0 of them; give one --key per --cert, in the same order".to_owned(),
        ),
        (typed, bad.to_owned()),
    ] {
        assert_eq!(sentence(args), expected);
    }
}

/// A sentence that refers to the one before it must follow it.
#[test]
fn help_lists_related_flags_in_order() {
    let mut command = Cli::command();
    let serve = command.find_subcommand_mut("serve").unwrap();
    let help = serve.render_long_help().to_string();
    let flags: Vec<_> = help
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("--")?.split(' ').next())
        .collect();
    let drain = ["drain-delay", "drain-timeout", "drain-tunnels"];
    assert!(flags.windows(3).any(|three| three == drain), "{flags:?}");
}
