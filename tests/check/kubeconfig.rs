//! `kube-tls-proxy kubeconfig`: kubectl can read the result, and other users of the machine cannot.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command as Blocking};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use standin::{
    kubernetes::{Kubernetes, Pod},
    within,
};
use tokio::process::Command;

use crate::world::{RunResult, World, command, path, run};

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
            .starts_with("The client certificate of user `jane` was left out"),
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
        "--force",
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
            "Wrote {0}. Only its owner can read it. The previous file is {0}.bak.\n",
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
    assert_eq!(beside, 2, "no temporary file is left");

    let nowhere = world.dir.path().join("nowhere/jane.conf");
    let result = run(command("kubeconfig").args([&args[..6], &[path(&nowhere)]].concat())).await;
    assert_eq!(result.code, 1);
    assert!(
        result.stderr.starts_with(&format!(
            "kube-tls-proxy: cannot write {}: its directory does not exist; create it",
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
    let output = Command::new("kubectl")
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

const SERVER: &str = "https://kube.example.com";

/// Runs the command for [`SERVER`] with a token.
async fn make(world: &World, more: &[&str]) -> RunResult {
    let token = world.dir.write("token", "s3cret");
    let args = ["--server", SERVER, "--token-file", path(&token)];
    run(command("kubeconfig").args(args).args(more)).await
}

#[tokio::test]
async fn existing_file_is_not_overwritten_without_force() {
    let world = World::new();
    let file = world.dir.write("config", FROM);
    let result = make(&world, &["--output", path(&file)]).await;
    assert_eq!(result.code, 2, "{}", result.stderr);
    assert_eq!(
        result.stderr,
        format!(
            "kube-tls-proxy: {} exists already; name another file with --output, add to this one with --merge, or overwrite it with --force\n",
            file.display()
        )
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), FROM);
    let result = make(&world, &["--output", path(&file), "--force"]).await;
    assert_eq!(result.code, 0, "{}", result.stderr);
    assert!(fs::read_to_string(&file).unwrap().contains("s3cret"));
    let backup = world.dir.path().join("config.bak");
    assert_eq!(fs::read_to_string(backup).unwrap(), FROM, "the backup");
}

#[tokio::test]
async fn merge_keeps_everything_else_in_the_file() {
    const OTHERS: &str = "\
apiVersion: v1
kind: Config
unknown: { b: 1, a: [x, null, \"yes\", no, 1.5] }
preferences: {}
users:
- name: z
  user:
    token: \"0123\"
- name: a
  user: { as: a, exec: { command: login, env: null } }
contexts:
- { name: z, context: { user: z, cluster: z } }
- { name: a, context: { user: a, cluster: z, namespace: \"n\" } }
clusters:
- name: z
  cluster: { server: \"https://10.0.0.1\", insecure-skip-tls-verify: true, extensions: [{ name: x, extension: { k: v } }] }
current-context: z
";
    let world = World::new();
    let file = world.dir.write("config", OTHERS);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let link = world.dir.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    for _ in 0..2 {
        let result = make(&world, &["--output", path(&link), "--merge"]).await;
        assert_eq!(result.code, 0, "{}", result.stderr);
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(
            text,
            "\
apiVersion: v1
kind: Config
unknown:
  b: 1
  a:
  - x
  - null
  - \"yes\"
  - false
  - 1.5
preferences: {}
users:
- name: z
  user:
    token: \"0123\"
- name: a
  user:
    as: a
    exec:
      command: login
      env: null
- name: kube.example.com
  user:
    token: s3cret
contexts:
- name: z
  context:
    user: z
    cluster: z
- name: a
  context:
    user: a
    cluster: z
    namespace: \"n\"
- context:
    cluster: kube.example.com
    user: kube.example.com
  name: kube.example.com
clusters:
- name: z
  cluster:
    server: https://10.0.0.1
    insecure-skip-tls-verify: true
    extensions:
    - name: x
      extension:
        k: v
- cluster:
    server: https://kube.example.com
    tls-server-name: kube.example.com
  name: kube.example.com
current-context: z
"
        );
        assert!(
            result
                .stderr
                .contains("kubectl config use-context kube.example.com"),
            "{}",
            result.stderr
        );
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }
    let backup = fs::read_to_string(world.dir.path().join("config.bak")).unwrap();
    assert_eq!(backup, OTHERS);
    assert!(
        !world.dir.path().join("config.bak.1").exists(),
        "the second run changes nothing"
    );
}

#[tokio::test]
async fn merge_without_a_change_does_not_write() {
    let world = World::new();
    let file = world.dir.path().join("config");
    make(&world, &["--output", path(&file), "--merge"]).await;
    let text = format!("# a comment\n{}", fs::read_to_string(&file).unwrap());
    fs::write(&file, &text).unwrap();
    let result = make(&world, &["--output", path(&file), "--merge"]).await;
    assert_eq!(
        result.stderr,
        format!(
            "{} is up to date. Only its owner can read it.\n",
            path(&file)
        )
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
    assert!(!world.dir.path().join("config.bak").exists());
}

#[tokio::test]
async fn merge_never_overwrites_the_first_backups() {
    let world = World::new();
    let file = world.dir.path().join("config");
    let original = format!("# a comment\n{FROM}");
    fs::write(&file, &original).unwrap();
    let names: Vec<_> = (1..12).map(|number| format!("name-{number}")).collect();
    for name in &names {
        let args = ["--output", path(&file), "--merge", "--name", name];
        let result = make(&world, &args).await;
        assert_eq!(result.code, 0, "{}", result.stderr);
        assert!(result.stderr.contains("config.bak"), "{}", result.stderr);
    }
    let backup = |suffix: &str| {
        let name = format!("config.bak{suffix}");
        fs::read_to_string(world.dir.path().join(name))
    };
    assert_eq!(backup("").unwrap(), original);
    assert!(!backup(".1").unwrap().contains("name-2"));
    assert!(backup(".9").unwrap().contains("name-10"), "the last one");
    assert!(backup(".10").is_err());
}

#[tokio::test]
async fn merge_respects_the_lock_of_kubectl() {
    let world = World::new();
    let file = world.dir.write("config", FROM);
    let lock = world.dir.write("config.lock", "");
    let args = ["--output", path(&file), "--merge"];
    let result = make(&world, &args).await;
    assert_eq!(result.code, 1);
    assert_eq!(
        result.stderr,
        format!(
            "kube-tls-proxy: cannot write {}: another program is changing it; try again, or remove {} if no such program runs\n",
            path(&file),
            path(&lock)
        )
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), FROM);
    fs::remove_file(&lock).unwrap();
    let result = make(&world, &args).await;
    assert_eq!(result.code, 0, "{}", result.stderr);
    assert!(!lock.exists());
}

#[tokio::test]
async fn file_at_the_end_of_symbolic_links_is_created() {
    let world = World::new();
    let at = |name: &str| world.dir.path().join(name);
    std::os::unix::fs::symlink("b", at("a")).unwrap();
    std::os::unix::fs::symlink("c", at("b")).unwrap();
    let result = make(&world, &["--output", path(&at("a"))]).await;
    assert_eq!(result.code, 0, "{}", result.stderr);
    assert!(fs::symlink_metadata(at("b")).unwrap().is_symlink());
    assert!(fs::symlink_metadata(at("c")).unwrap().is_file());
}

#[tokio::test]
async fn merge_explains_a_user_that_no_context_uses() {
    let world = World::new();
    let text = "kind: Config\nusers: [{name: mine, user: {token: old}}]\n";
    let file = world.dir.write("config", text);
    let args = ["--output", path(&file), "--merge", "--name", "mine"];
    let result = make(&world, &args).await;
    assert_eq!(result.code, 2);
    let sentence = "config: user `mine` exists already and no context uses it; choose another name with --name, or use this user with --force\n";
    assert!(result.stderr.ends_with(sentence), "{}", result.stderr);
    let args = ["kubeconfig", "--server", SERVER, "--force"];
    let merge = ["--output", path(&file), "--merge", "--name", "mine"];
    let result = run(command(args[0]).args(&args[1..]).args(merge)).await;
    assert_eq!(result.code, 0, "{}", result.stderr);
    assert!(fs::read_to_string(&file).unwrap().contains("token: old"));
}

/// A private CA is added with kubectl, and a second run gives a new token.
#[tokio::test]
async fn second_merge_keeps_keys_that_were_added_to_its_entries() {
    let world = World::new();
    let file = world.dir.path().join("config");
    make(&world, &["--output", path(&file), "--merge"]).await;
    let text = fs::read_to_string(&file).unwrap();
    let with_ca = text
        .replace(
            "    server:",
            "    certificate-authority: own.crt\n    server:",
        )
        .replace("    user: kube", "    namespace: apps\n    user: kube")
        .replace("s3cret", "expired");
    fs::write(&file, &with_ca).unwrap();
    let result = make(&world, &["--output", path(&file), "--merge"]).await;
    assert_eq!(result.code, 0, "{}", result.stderr);
    let merged = fs::read_to_string(&file).unwrap();
    assert_eq!(merged, with_ca.replace("expired", "s3cret"));
}

#[tokio::test]
async fn merge_creates_a_new_file_readable_by_owner_only() {
    let world = World::new();
    for (name, text) in [("new", None), ("empty", Some("\n"))] {
        let file = world.dir.path().join(name);
        if let Some(text) = text {
            world.dir.write(name, text);
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let result = make(&world, &["--output", path(&file), "--merge"]).await;
        assert_eq!(result.code, 0, "{}", result.stderr);
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains("current-context: kube.example.com"), "{text}");
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[tokio::test]
async fn merge_refuses_to_replace_foreign_entries() {
    let world = World::new();
    let other = |cluster: &str, user: &str, context: &str, server: &str| {
        format!(
            "clusters: [{{name: {cluster}, cluster: {{server: {server}}}}}]\nusers: [{{name: {user}, user: {{}}}}]\ncontexts: [{{name: {context}, context: {{cluster: {cluster}, user: {user}}}}}]\n"
        )
    };
    let (mine, theirs) = ("mine", "theirs");
    for (text, what) in [
        (
            other(mine, theirs, theirs, "https://10.0.0.1"),
            "cluster `mine`",
        ),
        (other(theirs, mine, theirs, SERVER), "user `mine`"),
        (other(theirs, theirs, mine, SERVER), "context `mine`"),
    ] {
        let file = world.dir.write("config", &text);
        let args = ["--output", path(&file), "--merge", "--name", mine];
        let result = make(&world, &args).await;
        assert_eq!(result.code, 2, "{}", result.stderr);
        let sentence = format!(
            "config: {what} exists already and belongs to another cluster; choose another name with --name, or replace it with --force"
        );
        assert!(result.stderr.contains(&sentence), "{}", result.stderr);
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        let result = make(&world, &[args.as_slice(), &["--force"]].concat()).await;
        assert_eq!(result.code, 0, "{}", result.stderr);
        let merged = fs::read_to_string(&file).unwrap();
        assert!(merged.contains("name: theirs"), "{merged}");
    }
    for (text, what) in [
        ("- a", "is not a kubeconfig"),
        ("kind: Pod\n", "is not a kubeconfig"),
        ("a: b\n", "is not a kubeconfig"),
        ("kind: Config\nusers: a\n", "`users` must be a list"),
    ] {
        let file = world.dir.write("config", text);
        let args = ["--output", path(&file), "--merge", "--force"];
        let result = make(&world, &args).await;
        assert_eq!(result.code, 2, "{}", result.stderr);
        assert!(result.stderr.contains(what), "{}", result.stderr);
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
    }
}

/// `--ca <(command)`: the second read of a pipe would find nothing, and the kubeconfig would trust the public CAs.
#[tokio::test]
async fn ca_from_a_pipe_is_written() {
    let world = World::new();
    let script = r#"cat "$1" | "$0" kubeconfig --server https://kube.test --ca /dev/stdin"#;
    let mut shell = Command::new("sh");
    shell
        .args(["-c", script, env!("CARGO_BIN_EXE_kube-tls-proxy")])
        .arg(world.public_ca_file());
    let result = run(&mut shell).await;
    assert_eq!(result.code, 0, "{}", result.stderr);
    let ca = BASE64_STANDARD.encode(world.public_ca.pem());
    assert!(result.stdout.contains(&ca), "{}", result.stdout);
}
