//! What is wrong before anything is dialled: files, YAML, flags, the port.

use std::net::TcpListener;

use standin::tcp::refused;

use crate::world::{World, check, command, flags, path, run};

#[tokio::test]
async fn bad_yaml() {
    let world = World::new();
    let file = world
        .dir
        .write("config.yaml", "listen: [\n  \"127.0.0.1:0\"\nworkers: 1\n");
    let ended = check(&flags(&[("--config", path(&file))]), &[]).await;
    ended.names(
        2,
        '✗',
        "configuration",
        "config.yaml, line ",
        "mend the YAML there",
    );
    assert_eq!(ended.marked('–'), ["certificate", "listen", "ca", "tcp"]);

    let file = world.dir.write("config.yaml", "lisen: [\"127.0.0.1:0\"]\n");
    let ended = check(&flags(&[("--config", path(&file))]), &[]).await;
    ended.names(
        2,
        '✗',
        "configuration",
        "line 1, column 1: unknown key `lisen`",
        "did you mean `listen`?",
    );
}

#[tokio::test]
async fn unreadable_file() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let good = world.flags(upstream.address());
    let folder = world.dir.path().to_owned();
    for (flag, file, check_of, code, what, fix) in [
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
            "name a file in it",
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
        let ended = check(&bad, &[]).await;
        ended.names(code, '✗', check_of, what, fix);
        let skipped = ended.marked('–');
        assert!(!skipped.is_empty(), "{}", ended.stdout);
    }
    let ended = check(
        &flags(&[("--config", path(&folder.join("nowhere.yaml")))]),
        &[],
    )
    .await;
    ended.names(
        2,
        '✗',
        "configuration",
        "nowhere.yaml: no such file",
        "check the path",
    );
}

#[tokio::test]
async fn port_in_use() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    // It hangs up on whoever connects, so that nobody waits for it.
    std::thread::spawn(move || taken.incoming().for_each(drop));
    let mut flags = [world.flags(upstream.address()), world.clients_trust()].concat();
    flags[1].clone_from(&address);
    let ended = check(&flags, &[]).await;
    ended.names(
        1,
        '✗',
        "listen",
        &format!("cannot listen on {address}: another process uses this port"),
        "stop it or choose another with --listen",
    );
    assert_eq!(
        ended.marked('✗'),
        ["listen"],
        "the rest is checked and works"
    );
}

/// serve would not start without it either.
#[tokio::test]
async fn admin_port_in_use() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    std::thread::spawn(move || taken.incoming().for_each(drop));
    let ended = world
        .check(upstream.address(), &["--admin-listen", &address])
        .await;
    ended.names(
        1,
        '✗',
        "listen",
        &format!("cannot open the admin port on {address}: another process uses this port"),
        "stop it or choose another with --admin-listen",
    );
    assert_eq!(ended.marked('✗'), ["listen"]);
}

/// As on a host whose public port belongs to a socket unit, which says nothing about who runs.
#[tokio::test]
async fn the_admin_port_of_the_proxy_that_runs_is_no_fault() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let admin = |address: &str| vec!["--admin-listen".to_owned(), address.to_owned()];
    let flags = world.flags(upstream.address());
    let serving = world
        .serve(&[flags.clone(), admin("127.0.0.1:0")].concat())
        .await;
    let address = serving.admin.unwrap().to_string();
    let flags = [flags, admin(&address)].concat();
    let ended = check(&[flags.clone(), world.clients_trust()].concat(), &[]).await;
    let lines = ended.of("listen");
    assert_eq!(
        lines[1].what,
        format!("{address} is the admin port of a proxy that runs already")
    );
    assert_eq!(ended.code, 0, "{}", ended.stdout);
    // Which a second process cannot share, unlike the ports for clients.
    let flags = [
        flags,
        world.clients_trust(),
        vec!["--reuse-port".to_owned()],
    ]
    .concat();
    check(&flags, &[]).await.names(
        1,
        '✗',
        "listen",
        &format!("cannot open the admin port on {address}"),
        "choose another with --admin-listen",
    );
}

#[tokio::test]
async fn an_unusable_command_line_is_one_sentence_and_exit_code_2() {
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
            "is empty; write the token into it, and nothing else\n",
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
        let ended = run(command("check").args(&args)).await;
        assert_eq!(ended.code, 2, "{args:?} {ended:?}");
        assert!(ended.stderr.ends_with(sentence), "{args:?} {ended:?}");
        assert_eq!(ended.stdout, "", "{args:?}");
    }
    // What serve would refuse is a finding, in the same words.
    let ended = run(command("check").args(["--upstream", &upstream])).await;
    ended.names(
        2,
        '✗',
        "configuration",
        "there is no certificate to present",
        "give --cert FILE",
    );
}
