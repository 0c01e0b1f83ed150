//! `kube-tls-proxy kubeconfig`: kubectl can read the result, and other users of the machine cannot.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command as Blocking};

use standin::{
    kubernetes::{Kubernetes, Pod},
    within,
};
use tokio::process::Command as Kubectl;

use crate::world::{World, command, path, run};

const FROM: &str = r#"
apiVersion: v1
kind: Config
current-context: prod
contexts:
- { name: prod, context: { cluster: "c: 1", user: jane, namespace: apps } }
clusters:
- { name: "c: 1", cluster: { server: "https://10.0.0.1:6443" } }
users:
- name: jane
  user:
    client-certificate-data: U0VDUkVU
    exec: { apiVersion: client.authentication.k8s.io/v1, command: login, args: ["--a=b c", "no"], interactiveMode: Never, env: null }
"#;

#[tokio::test]
async fn kubectl_parses_printed_kubeconfig() {
    let world = World::new();
    let from = world.dir.write("from", FROM);
    let result = run(command("kubeconfig").args([
        "--server",
        "https://kube.example.com",
        "--from",
        path(&from),
    ]))
    .await;
    assert_eq!(result.code, 0, "{}", result.stderr);
    assert!(
        result
            .stderr
            .starts_with("User `jane` has a client certificate, which cannot pass"),
        "{}",
        result.stderr
    );
    let file = world.dir.write("made", &result.stdout);
    let kubectl = |template: &str| {
        let output = Blocking::new("kubectl")
            .args([
                "config",
                "view",
                "--raw",
                "--minify",
                "--kubeconfig",
                path(&file),
            ])
            .args(["--output", &format!("jsonpath={template}")])
            .output();
        // Without kubectl this test passes; the unit tests of the command compare the text.
        let output = output.ok()?;
        assert!(output.status.success(), "{output:?}\n{}", result.stdout);
        Some(String::from_utf8(output.stdout).unwrap())
    };
    for (template, expected) in [
        ("{.clusters[0].name}", "c: 1"),
        ("{.clusters[0].cluster.server}", "https://kube.example.com"),
        ("{.clusters[0].cluster.tls-server-name}", "kube.example.com"),
        ("{.clusters[0].cluster.certificate-authority-data}", ""),
        ("{.contexts[0].context.namespace}", "apps"),
        ("{.users[0].user.exec.args}", r#"["--a=b c","no"]"#),
        ("{.users[0].user.client-certificate-data}", ""),
        ("{.current-context}", "prod"),
    ] {
        if let Some(found) = kubectl(template) {
            assert_eq!(found, expected, "{template}");
        }
    }
}

#[tokio::test]
async fn file_is_readable_by_owner_only_and_written_atomically() {
    let world = World::new();
    let token = world.dir.write("token", "s3cret");
    let file = world.dir.write("out/jane.conf", "older and open to all");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let args = [
        "--server",
        "https://kube.example.com",
        "--token-file",
        path(&token),
        "--output",
        path(&file),
    ];
    let result = run(command("kubeconfig").args(args)).await;
    assert_eq!(
        (result.code, result.stdout.as_str()),
        (0, ""),
        "{}",
        result.stderr
    );
    assert_eq!(
        result.stderr,
        format!(
            "{} is written, readable for its owner alone.\n",
            path(&file)
        )
    );
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert!(
        fs::read_to_string(&file)
            .unwrap()
            .contains("token: s3cret\n")
    );
    let beside = fs::read_dir(file.parent().unwrap()).unwrap().count();
    assert_eq!(beside, 1, "no temporary file is left");

    let nowhere = world.dir.path().join("nowhere/jane.conf");
    let result = run(command("kubeconfig").args([&args[..5], &[path(&nowhere)]].concat())).await;
    assert_eq!(result.code, 1);
    assert!(
        result.stderr.starts_with(&format!(
            "kube-tls-proxy: cannot write {}: its directory does not exist; make it",
            path(&nowhere)
        )),
        "{}",
        result.stderr
    );
}

#[tokio::test]
async fn conflicting_flags_are_refused() {
    let world = World::new();
    let token = world.dir.write("token", "s3cret");
    let server = ["--server", "https://kube.example.com"];
    for (more, sentence) in [
        (
            &["--token-file", path(&token), "--exec-command", "b"][..],
            "cannot be used with",
        ),
        (&["--context", "a"], "not provided"),
        (&["--exec-arg", "a"], "not provided"),
    ] {
        let result = run(command("kubeconfig").args(server).args(more)).await;
        assert_eq!(result.code, 2, "{more:?}");
        assert!(result.stderr.contains(sentence), "{more:?} {result:?}");
    }
}

/// `SSL_CERT_FILE` makes kubectl trust the CA of the test as a public one.
#[tokio::test]
async fn kubectl_works_with_printed_kubeconfig() {
    let world = World::new();
    let cluster = Kubernetes::new().token("s3cret", "jane", &[]);
    cluster.apply(Pod::running("web-0"));
    let upstream = world.apiserver().kubernetes(&cluster).start().await;
    let serving = world.serve(&world.flags(upstream.address())).await;
    let token = world.dir.write("token", "s3cret");
    let url = format!("https://localhost:{}", serving.address.port());
    let result =
        run(command("kubeconfig").args(["--server", &url, "--token-file", path(&token)])).await;
    assert_eq!(result.code, 0, "{}", result.stderr);
    let file = world.dir.write("made", &result.stdout);
    let output = Kubectl::new("kubectl")
        .args([
            "--kubeconfig",
            path(&file),
            "get",
            "pods",
            "--output",
            "name",
        ])
        .env("SSL_CERT_FILE", world.public_ca_file())
        .env("HOME", world.dir.path())
        .kill_on_drop(true)
        .output();
    // Without kubectl this test passes.
    let Ok(output) = within("the end of kubectl", output).await else {
        return;
    };
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "pod/web-0\n");
}

/// A truncated file that looks complete is worse than no file.
#[tokio::test]
async fn failed_write_to_stdout_fails_the_command() {
    for args in [
        ["kubeconfig", "--server", "https://kube.example.com"].as_slice(),
        &["completions", "bash"],
    ] {
        let full = fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let child = command(args[0]).args(&args[1..]).stdout(full).spawn();
        let result = within("the end", child.unwrap().wait_with_output())
            .await
            .unwrap();
        assert_eq!(result.status.code(), Some(1), "{args:?} {result:?}");
        assert_eq!(
            String::from_utf8(result.stderr).unwrap(),
            "kube-tls-proxy: cannot write to stdout: No space left on device (os error 28)\n"
        );
    }
}
