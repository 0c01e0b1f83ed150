//! A configuration that cannot work is refused with one sentence, before the proxy opens a socket.

use standin::{pki::Identity, within};
use tokio::net::TcpListener;

use super::{Binary, Ended, command, good_flags, run};
use crate::proxy::World;

/// Asserts exit code 2 and a single sentence that contains no `Debug` output of Rust. A line of the configuration file
/// may follow.
fn assert_one_sentence(ended: &Ended, parts: &[&str]) {
    let text = &ended.stderr;
    assert_eq!(ended.code, Some(2), "{text}");
    assert_eq!(ended.stdout, "");
    let sentence = text
        .strip_prefix("kube-tls-proxy: ")
        .unwrap_or_else(|| panic!("{text}"));
    let (sentence, excerpt) = sentence.split_once('\n').unwrap();
    let is_excerpt = excerpt.contains(" | ") && excerpt.ends_with("^\n");
    assert!(excerpt.is_empty() || is_excerpt, "one line: {text}");
    for part in parts {
        assert!(sentence.contains(part), "no {part:?} in {text}");
    }
    for word in [
        "Error {",
        "Error(",
        "Some(",
        "panicked",
        "RUST_BACKTRACE",
        "Os {",
        "kind:",
    ] {
        assert!(!sentence.contains(word), "{word:?} in {text}");
    }
}

/// Runs `serve` with the good flags. Each of `changes` replaces its flag, or is added.
async fn serve(world: &World, changes: &[(&str, &str)]) -> Ended {
    let mut flags = good_flags(world, "127.0.0.1:1".parse().unwrap());
    for (flag, value) in changes {
        match flags.iter().position(|known| known == flag) {
            Some(at) => flags[at + 1] = (*value).to_owned(),
            None => flags.extend([(*flag).to_owned(), (*value).to_owned()]),
        }
    }
    let args: Vec<&str> = ["serve"]
        .into_iter()
        .chain(flags.iter().map(String::as_str))
        .collect();
    run(&args).await
}

#[tokio::test]
async fn bad_flags_are_refused() {
    let world = World::new();
    for (flag, value, parts) in [
        (
            "--listen",
            "8443",
            &["--listen", "`8443` is not an address"][..],
        ),
        (
            "--upstream",
            "http://10.0.0.1",
            &["--upstream", "not an https URL"],
        ),
        ("--workers", "0", &["--workers", "out of range"]),
        (
            "--drain-timeout",
            "soon",
            &["--drain-timeout", "the value is not a duration"],
        ),
        (
            "--log-format",
            "xml",
            &["--log-format", "write text or json"],
        ),
        (
            "--log-level",
            "info,=",
            &["--log-level", "`info,=` is not a log filter"],
        ),
        ("--context", "prod", &["--context", "--kubeconfig"]),
        ("--config", "/no/such/file", &["config file /no/such/file"]),
    ] {
        assert_one_sentence(&serve(&world, &[(flag, value)]).await, parts);
    }
}

#[tokio::test]
async fn message_names_the_environment_variable_of_a_flag() {
    let flags = "--cert a --key a --upstream https://10.0.0.1 --upstream-ca a";
    for subcommand in ["serve", "check"] {
        let args: Vec<&str> = [subcommand].into_iter().chain(flags.split(' ')).collect();
        let output = command(&args)
            .env("KUBE_TLS_PROXY_LISTEN", "8443")
            .env("KUBE_TLS_PROXY_WORKERS", "")
            .output();
        let output = within("the process to exit", output).await.unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        let named = "environment variable KUBE_TLS_PROXY_LISTEN: --listen: `8443` is not";
        assert!(text.contains(named), "{text}");
    }
}

#[tokio::test]
async fn bad_files_are_refused() {
    let world = World::new();
    let write = |name: &str, text: &str| world.dir.write(name, text).to_str().unwrap().to_owned();
    let wrong_key = write("wrong.key", Identity::self_signed(&["kube.test"]).key_pem());
    let expired = world.public_ca.leaf(&["kube.test"]).expired().build();
    let empty = write("empty.pem", "");
    let no_pem = write("no.pem", "hello\n");
    let config = write("config.yaml", "listen: [\"[::]:8443\"]\nlimts: {}\n");
    let (expired, expired_key) = expired.write(&world.dir, "expired");
    let (expired, expired_key) = (expired.to_str().unwrap(), expired_key.to_str().unwrap());
    for (changes, parts) in [
        (
            &[("--cert", "/no/such/tls.crt")][..],
            &["certificate /no/such/tls.crt"][..],
        ),
        (&[("--cert", &empty)], &["certificate", "is empty"]),
        (&[("--cert", &no_pem)], &["no PEM block"]),
        (&[("--key", &wrong_key)], &["key"]),
        (
            &[("--cert", expired), ("--key", expired_key)],
            &["certificate", "expired on 2021-01-01"],
        ),
        (&[("--upstream-ca", &empty)], &["CA", "is empty"]),
        (&[("--upstream-ca", &wrong_key)], &["CA"]),
        (
            &[("--config", &config)],
            &["line 2, column 1", "did you mean `limits`?"],
        ),
    ] {
        assert_one_sentence(&serve(&world, changes).await, parts);
    }
}

#[tokio::test]
async fn missing_certificate_or_upstream_is_refused() {
    assert_one_sentence(&run(&["serve"]).await, &["--cert"]);
    let world = World::new();
    let flags = good_flags(&world, "127.0.0.1:1".parse().unwrap());
    let args: Vec<&str> = ["serve"]
        .into_iter()
        .chain(flags[..8].iter().map(String::as_str))
        .collect();
    assert_one_sentence(&run(&args).await, &["--upstream", "--kubeconfig"]);
}

#[tokio::test]
async fn port_in_use_is_refused() {
    let world = World::new();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = serve(&world, &[("--listen", &address)]).await;
    assert_one_sentence(
        &ended,
        &[
            &format!("cannot listen on {address}"),
            "another process uses this port",
        ],
    );
}

/// No interface of this machine has this address (RFC 5737).
#[tokio::test]
async fn listen_address_of_another_machine_is_refused() {
    let world = World::new();
    let ended = serve(&world, &[("--listen", "192.0.2.1:8443")]).await;
    assert_one_sentence(&ended, &["this machine does not have this address"]);
}

/// clap writes these messages, in its own format.
#[tokio::test]
async fn unknown_flags_and_commands_are_refused() {
    for args in [&["serve", "--certs", "x"][..], &["sreve"], &[]] {
        let ended = run(args).await;
        assert_eq!(ended.code, Some(2), "{args:?}");
        assert_eq!(ended.stdout, "");
        assert!(
            ended.stderr.contains("Usage: kube-tls-proxy"),
            "{}",
            ended.stderr
        );
    }
}

/// As compilers do. The line of a log has no room for it.
#[tokio::test]
async fn error_in_the_configuration_file_shows_its_line() {
    let world = World::new();
    let text = "limits:\n  conections: 5\n";
    let file = world.dir.write("config.yaml", text);
    let ended = run(&["serve", "--config", file.to_str().unwrap()]).await;
    let expected = format!(
        "kube-tls-proxy: config file {}, line 2, column 3: unknown key `conections`; did you mean `connections`?\n\
         \x20 2 |   conections: 5\n    |   ^\n",
        file.display()
    );
    assert_eq!((ended.code, ended.stderr), (Some(2), expected));
    // A value can turn out to be wrong after the file was parsed.
    let text = "limits: {connections: 1000000}\n";
    world.dir.write("config.yaml", text);
    let ended = serve(&world, &[("--config", file.to_str().unwrap())]).await;
    let excerpt = "\n  1 | limits: {connections: 1000000}\n    |                       ^\n";
    assert!(ended.stderr.ends_with(excerpt), "{ended:?}");
    world
        .dir
        .write("config.yaml", "timeouts: {password: hunter2}\n");
    let ended = run(&["serve", "--config", file.to_str().unwrap()]).await;
    assert!(
        !ended.stderr.contains("hunter2") && ended.stderr.lines().count() == 1,
        "{ended:?}"
    );
}

/// The names that other programs have for a flag.
#[tokio::test]
async fn other_name_of_a_flag_gets_a_tip() {
    for (args, tip) in [
        (&["serve", "-l", ":8443"][..], "--listen ADDRESS:PORT"),
        (&["serve", "--port=8443"], "--listen ADDRESS:PORT"),
        (&["check", "--port", "8443"], "--listen ADDRESS:PORT"),
        (&["serve", "--tls-cert-file", "x"], "--cert FILE"),
        (&["serve", "-v"], "--log-level debug"),
        // The parser knows this one itself.
        (&["serve", "--listn", "x"], "--listen"),
    ] {
        let ended = run(args).await;
        assert_eq!(ended.code, Some(2), "{args:?}");
        let (_, text) = ended
            .stderr
            .split_once("tip: ")
            .unwrap_or_else(|| panic!("{ended:?}"));
        assert!(text.contains(tip), "{args:?} {text}");
    }
}

#[tokio::test]
async fn help_and_version_are_subcommands_too() {
    let flag = run(&["--version"]).await;
    assert!(
        flag.stdout
            .starts_with(&format!("kube-tls-proxy {}", env!("CARGO_PKG_VERSION")))
    );
    assert_eq!(
        flag.stdout.trim_end(),
        format!("kube-tls-proxy {}", kube_tls_proxy::cli::version())
    );
    let word = run(&["version"]).await;
    assert_eq!((word.code, word.stdout), (Some(0), flag.stdout));
    let (flag, word) = (
        run(&["serve", "--help"]).await,
        run(&["help", "serve"]).await,
    );
    assert_eq!(word.code, Some(0));
    assert_eq!(flag.stdout.lines().next(), word.stdout.lines().next());
    assert!(
        run(&["help"])
            .await
            .stdout
            .contains("Usage: kube-tls-proxy")
    );
}

/// A misspelt variable would leave the default in place without a word.
#[tokio::test]
async fn unknown_variables_and_few_files_are_warnings_at_start() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let environment = [
        ("KUBE_TLS_PROXY_LISTN", ":1"),
        ("KUBE_TLS_PROXY_SERVICE_HOST", "10.0.0.1"),
        ("KUBE_TLS_PROXY_PORT_443_TCP", "tcp://10.0.0.1:443"),
    ];
    let flags = ["--drain-timeout", "8s", "--drain-tunnels", "1s"];
    let binary = Binary::start_with(&world, upstream.address(), &flags, &environment).await;
    binary
        .wait_for_line("did you mean KUBE_TLS_PROXY_LISTEN?")
        .await;
    binary
        .wait_for_line("tunnels get 8s in a drain and not 1s")
        .await;
    assert!(
        binary
            .stderr()
            .iter()
            .all(|line| !line.contains("_SERVICE_HOST") && !line.contains("443_TCP"))
    );
    let binary = Binary::start_limited(&world, upstream.address(), "ulimit -n 256").await;
    binary
        .wait_for_line("this process may open only 256 files")
        .await;
}

#[tokio::test]
async fn variable_that_is_no_boolean_is_refused() {
    for (name, value, named) in [
        ("KUBE_TLS_PROXY_NO_ACCESS_LOG", "maybe", true),
        ("KUBE_TLS_PROXY_REUSE_PORT", "nein", true),
        ("KUBE_TLS_PROXY_REUSE_PORT", "off", false),
        ("KUBE_TLS_PROXY_NO_ACCESS_LOG", "", false),
    ] {
        let flags = "serve --cert a --key a --upstream https://10.0.0.1 --upstream-ca a";
        let args: Vec<_> = flags.split(' ').collect();
        let output = command(&args).env(name, value).output();
        let output = within("the process to exit", output).await.unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            text.contains(&format!("environment variable {name}: ")),
            named,
            "{text}"
        );
        assert_eq!(
            text.contains("this must be a boolean; write true or false"),
            named,
            "{text}"
        );
    }
}
