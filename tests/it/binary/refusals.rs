//! A configuration that cannot work is refused with one sentence, before the proxy opens a socket.

use standin::{pki::Identity, within};
use tokio::net::TcpListener;

use super::{Ended, command, good_flags, run};
use crate::proxy::World;

/// Asserts exit code 2 and a single sentence that contains no `Debug` output of Rust.
fn assert_one_sentence(ended: &Ended, parts: &[&str]) {
    let text = &ended.stderr;
    assert_eq!(ended.code, Some(2), "{text}");
    assert_eq!(ended.stdout, "");
    let sentence = text
        .strip_prefix("kube-tls-proxy: ")
        .unwrap_or_else(|| panic!("{text}"));
    assert_eq!(sentence.matches('\n').count(), 1, "one line: {text}");
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
