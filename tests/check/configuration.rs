//! Problems before the first dial: files, YAML, flags and ports.

use std::net::TcpListener;

use standin::tcp::refused;

use crate::world::{PrintedFinding, World, check, command, flags, path, run};

#[tokio::test]
async fn invalid_yaml_fails_with_exit_code_2() {
    let world = World::new();
    let file = world
        .dir
        .write("config.yaml", "listen: [\n  \"127.0.0.1:0\"\nworkers: 1\n");
    let result = check(&flags(&[("--config", path(&file))]), &[]).await;
    result.assert_finding(
        2,
        '✗',
        "configuration",
        "config.yaml, line ",
        "fix the YAML there",
    );
    assert_eq!(result.marked('–'), ["certificate", "listen", "ca", "tcp"]);

    let file = world.dir.write("config.yaml", "lisen: [\"127.0.0.1:0\"]\n");
    let result = check(&flags(&[("--config", path(&file))]), &[]).await;
    result.assert_finding(
        2,
        '✗',
        "configuration",
        "line 1, column 1: unknown key `lisen`",
        "did you mean `listen`?",
    );
}

#[tokio::test]
async fn unreadable_file_fails() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let good = world.flags(upstream.address());
    let folder = world.dir.path().to_owned();
    for (flag, file, check_of, code, message, fix) in [
        (
            "--cert",
            "nowhere.crt",
            "certificate",
            1,
            "nowhere.crt: no such file",
            "check the path",
        ),
        (
            "--key",
            "",
            "certificate",
            1,
            "is a directory",
            "give the path of a file in it",
        ),
        (
            "--upstream-ca",
            "nowhere.crt",
            "ca",
            1,
            "nowhere.crt: no such file",
            "check the path",
        ),
    ] {
        let mut bad = good.clone();
        let at = bad.iter().position(|word| word == flag).unwrap();
        bad[at + 1] = path(&folder.join(file)).to_owned();
        let result = check(&bad, &[]).await;
        result.assert_finding(code, '✗', check_of, message, fix);
        let skipped = result.marked('–');
        assert!(!skipped.is_empty(), "{}", result.stdout);
    }
    let result = check(
        &flags(&[("--config", path(&folder.join("nowhere.yaml")))]),
        &[],
    )
    .await;
    result.assert_finding(
        2,
        '✗',
        "configuration",
        "nowhere.yaml: no such file",
        "check the path",
    );
}

#[tokio::test]
async fn port_in_use_fails() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    // It closes every connection at once, so that the check does not wait.
    std::thread::spawn(move || taken.incoming().for_each(drop));
    let mut flags = [world.flags(upstream.address()), world.clients_trust()].concat();
    flags[1].clone_from(&address);
    let result = check(&flags, &[]).await;
    result.assert_finding(
        1,
        '✗',
        "listen",
        &format!("cannot listen on {address}: another process uses this port"),
        "stop it or choose another with --listen",
    );
    assert_eq!(
        result.marked('✗'),
        ["listen"],
        "the other checks run and pass"
    );
}

/// `serve` does not start without its admin port either.
#[tokio::test]
async fn admin_port_in_use_fails() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    std::thread::spawn(move || taken.incoming().for_each(drop));
    let result = world
        .check(upstream.address(), &["--admin-listen", &address])
        .await;
    result.assert_finding(
        1,
        '✗',
        "listen",
        &format!("cannot open the admin port on {address}: another process uses this port"),
        "stop it or choose another with --admin-listen",
    );
    assert_eq!(result.marked('✗'), ["listen"]);
}

/// On a host where a systemd socket unit has the public port, only the admin port shows that the proxy runs.
#[tokio::test]
async fn admin_port_of_running_proxy_passes() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let admin = |address: &str| vec!["--admin-listen".to_owned(), address.to_owned()];
    let flags = world.flags(upstream.address());
    let serving = world
        .serve(&[flags.clone(), admin("127.0.0.1:0")].concat())
        .await;
    let address = serving.admin.unwrap().to_string();
    let flags = [flags, admin(&address)].concat();
    let result = check(&[flags.clone(), world.clients_trust()].concat(), &[]).await;
    let lines = result.of("listen");
    assert_eq!(
        lines[1].message,
        format!("{address} is the admin port of the running proxy")
    );
    assert_eq!(result.code, 0, "{}", result.stdout);
    // Unlike the client ports, two processes cannot share it.
    let flags = [
        flags,
        world.clients_trust(),
        vec!["--reuse-port".to_owned()],
    ]
    .concat();
    check(&flags, &[]).await.assert_finding(
        1,
        '✗',
        "listen",
        &format!("cannot open the admin port on {address}"),
        "choose another with --admin-listen",
    );
}

#[tokio::test]
async fn invalid_command_line_is_one_sentence_with_exit_code_2() {
    let world = World::new();
    let empty = world.dir.write("empty", "");
    let upstream = refused().await.to_string();
    for (args, sentence) in [
        (
            vec!["--through", "http://kube.test"],
            "kube-tls-proxy: --through: `http://kube.test` is not an https URL; tokens go over verified TLS only, so write https://HOST:PORT\n",
        ),
        (
            vec![
                "--through",
                "https://kube.test",
                "--token-file",
                path(&empty),
            ],
            ": the file is empty; write the token into it and nothing else\n",
        ),
        (
            vec![
                "--through",
                "https://kube.test",
                "--through-ca",
                "/nowhere.crt",
            ],
            "kube-tls-proxy: CA /nowhere.crt: no such file; check the path\n",
        ),
    ] {
        let result = run(command("check").args(&args)).await;
        assert_eq!(result.code, 2, "{args:?} {result:?}");
        assert!(result.stderr.ends_with(sentence), "{args:?} {result:?}");
        assert_eq!(result.stdout, "", "{args:?}");
    }
    // `check` reports what `serve` would refuse in the same words.
    let result = run(command("check").args(["--upstream", &upstream])).await;
    result.assert_finding(
        2,
        '✗',
        "configuration",
        "no certificate is given",
        "add --cert FILE",
    );
}

/// For CI: no socket is opened, so that neither a port in use nor an apiserver without a network is a fault.
#[tokio::test]
async fn offline_checks_files_and_nothing_else() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let mut flags = world.flags(upstream.address());
    flags[1].clone_from(&taken);
    let flags = [flags, world.clients_trust()].concat();
    let result = check(
        &flags,
        &[
            "--offline",
            "--admin-listen",
            &taken.replace("127.0.0.1", "127.0.0.2"),
        ],
    )
    .await;
    assert_eq!(result.code, 0, "{}", result.stdout);
    let checked: Vec<_> = result.lines().into_iter().map(|line| line.check).collect();
    let expected = [
        "configuration",
        "configuration",
        "certificate",
        "trust",
        "hosts",
        "ca",
    ];
    assert_eq!(checked, expected, "{}", result.stdout);
    assert_eq!(upstream.connections().len(), 0);
    // Faults in files are found.
    world.dir.write("cluster-ca.crt", "nothing");
    let result = check(&flags, &["--offline", "-o", "json"]).await;
    assert_eq!(
        (result.code, &result.json()["result"]),
        (1, &"failed".into())
    );
    for more in [["--through", "https://kube.test"].as_slice(), &["--long"]] {
        let result = check(&flags, &[&["--offline"], more].concat()).await;
        assert_eq!(result.code, 2, "{more:?}");
    }
}

/// What `serve` logs as a warning at its start.
#[tokio::test]
async fn warnings_of_the_configuration_are_findings() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let flags = [world.flags(upstream.address()), world.clients_trust()].concat();
    let more = [
        "--offline",
        "--drain-timeout",
        "8s",
        "--drain-tunnels",
        "1s",
    ];
    let run_with = |name: &'static str| {
        let mut command = command("check");
        command.args(&flags).args(more).env(name, "x");
        command
    };
    let result = run(&mut run_with("KUBE_TLS_PROXY_UPSTREAN")).await;
    result.assert_finding(
        0,
        '!',
        "configuration",
        "KUBE_TLS_PROXY_UPSTREAN is unknown",
        "did you mean KUBE_TLS_PROXY_UPSTREAM?",
    );
    result.assert_finding(
        0,
        '!',
        "configuration",
        "tunnels get 8s",
        "raise timeouts.drainTunnels",
    );
}

#[tokio::test]
async fn published_kubeconfig_is_checked_as_its_users_see_it() {
    let world = World::new();
    let flags = [world.flags(refused().await), world.clients_trust()].concat();
    for (ca, mark, text) in [
        ("", '!', "whose CA is not a public one"),
        (
            "ca: cluster-ca.crt",
            '!',
            "which no CA in publish.kubeconfig.ca has issued",
        ),
        ("ca: public-ca.crt", '✓', "serve /.well-known/kubeconfig"),
    ] {
        let config = format!("publish: {{kubeconfig: {{{ca}}}}}\n");
        let file = world.dir.write("publish.yaml", config);
        let result = check(&flags, &["--offline", "-c", path(&file)]).await;
        let mut found = result.of("configuration").into_iter();
        let is_meant = |finding: &PrintedFinding| finding.message.contains(text);
        let finding = found.find(is_meant).expect(&result.stdout);
        assert_eq!(finding.mark, mark, "{finding:?}");
    }
}

/// The line and the mark come between the message and its fix.
#[tokio::test]
async fn error_in_the_configuration_file_shows_its_line() {
    let world = World::new();
    let file = world.dir.write("config.yaml", "log:\n  format: xml\n");
    let result = check(&[], &["-c", path(&file)]).await;
    let expected = "the value is not a log format\n      2 |   format: xml\n        |           ^\n                   → write text or json\n";
    assert!(result.stdout.contains(expected), "{}", result.stdout);
    let result = check(&[], &["-c", path(&file), "-o", "json"]).await;
    let excerpt = &result.json()["checks"][0]["excerpt"];
    assert_eq!(*excerpt, "  2 |   format: xml\n    |           ^\n");
}

#[tokio::test]
async fn other_word_for_a_key_names_the_key() {
    let world = World::new();
    for (text, key) in [
        ("log: { level: debug }", "filter"),
        ("timeouts: { drainTimeout: 5s }", "drain"),
        ("port: 8443", "listen"),
    ] {
        let file = world.dir.write("config.yaml", text);
        let result = check(&[], &["-c", path(&file)]).await;
        assert_eq!(result.code, 2, "{}", result.stdout);
        assert!(
            result.stdout.contains(&format!("did you mean `{key}`?")),
            "{}",
            result.stdout
        );
    }
}
