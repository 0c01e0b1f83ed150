//! Runs the commands that the demo prints, and checks their output and exit code.

use std::{io, path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::Command,
    time::timeout,
};

/// One kubectl command and its expected result.
#[derive(Debug, Clone, Copy)]
struct Line {
    /// A tab is a space within one argument.
    arguments: &'static str,
    input: &'static str,
    /// Each text must occur in a line of the output, in this order.
    output: &'static [&'static str],
    /// No line of the output may contain this.
    absent: &'static str,
    /// Must occur in the error output.
    errors: &'static str,
    end: End,
}

#[derive(Debug, Clone, Copy)]
enum End {
    /// The command ends by itself with this exit code.
    Exits(i32),
    /// The command does not end. It is killed after its output has arrived.
    Runs,
}

/// A command that succeeds if it prints `output`.
const fn prints(arguments: &'static str, output: &'static [&'static str]) -> Line {
    Line {
        arguments,
        input: "",
        output,
        absent: "\n",
        errors: "",
        end: End::Exits(0),
    }
}

/// A command that fails with `errors`.
const fn fails(arguments: &'static str, errors: &'static str) -> Line {
    Line {
        errors,
        end: End::Exits(1),
        ..prints(arguments, &[])
    }
}

/// What `edit` runs as its editor.
const EDITOR: &str = "sed -i 's/tier: front/tier: back/'";

const MANIFEST: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "mine", "labels": {"app": "mine"}},
    "spec": {"containers": [{"name": "main", "image": "one"}]}}"#;
const CHANGED: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "mine", "labels": {"app": "mine"}},
    "spec": {"containers": [{"name": "main", "image": "two"}]}}"#;
const IMPOSSIBLE: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "mine"},
    "spec": {"hostNetwork": true, "containers": [{"name": "main", "image": "two"}]}}"#;
const CREATED: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "new"},
    "spec": {"containers": [{"name": "main", "image": "one"}]}}"#;

const LINES: &[Line] = &[
    prints("version", &["Server Version: v1.32.4"]),
    prints("auth whoami", &["jane", "developers"]),
    prints("api-resources", &["namespaces", "pods"]),
    prints("get pods", &["RESTARTS", "web-0", "web-1"]),
    prints("get all", &["web-0"]),
    Line {
        end: End::Runs,
        ..prints("get pods -w", &["web-1", "Pending", "Running", "Completed"])
    },
    prints("describe pod web-0", &["web-0", "Ready"]),
    prints(
        "wait --for=condition=Ready pod/web-0 --timeout=10s",
        &["condition met"],
    ),
    // Logs.
    prints("logs web-0", &["line 1", "line 5"]),
    Line {
        absent: "line 4",
        ..prints("logs web-0 --tail=1", &["line 5"])
    },
    prints("logs web-0 --timestamps", &["Z web-0: line 1"]),
    Line {
        end: End::Runs,
        ..prints("logs -f web-0", &["line 1", "line 5", "line 7"])
    },
    fails("logs web-0 --previous", "previous terminated container"),
    fails("logs web-0 --limit-bytes=5", "limitBytes"),
    fails("logs web-0 -c absent", "absent"),
    // Exec.
    prints("exec web-0 -- echo hello", &["hello"]),
    prints("exec web-0 -- ls", &["bin", "etc"]),
    prints("exec web-0 -- ls -l /etc", &["hostname"]),
    prints("exec web-0 -- cat /etc/hostname", &["web-0"]),
    Line {
        input: "help\nid\n",
        ..prints("exec -i web-0 -- sh", &["hostname", "root"])
    },
    Line {
        input: "there and back\n",
        ..prints("exec -i web-0 -- cat", &["there and back"])
    },
    Line {
        end: End::Exits(3),
        ..prints("exec web-0 -- sh -c exit\t3", &[])
    },
    // Selectors.
    prints("label pod web-0 tier=front", &["labeled"]),
    Line {
        absent: "web-1",
        ..prints("get pods -l tier=front", &["web-0"])
    },
    Line {
        absent: "web-0",
        ..prints("get pods -l tier!=front,app\tin\t(web)", &["web-1"])
    },
    Line {
        absent: "Completed",
        ..prints("get pods --field-selector status.phase=Running", &["web-0"])
    },
    fails(
        "get pods --field-selector spec.restartPolicy=Always",
        "spec.restartPolicy",
    ),
    prints("explain pod", &["does not describe the fields"]),
    // Changes.
    prints("annotate pod web-0 note=hello", &["annotated"]),
    prints("edit pod web-0", &["edited"]),
    prints("get pods -l tier=back", &["web-0"]),
    prints(
        "patch pod web-0 -p {\"metadata\":{\"labels\":{\"patched\":\"yes\"}}}",
        &["patched"],
    ),
    prints("get pods -l patched", &["web-0"]),
    fails("patch pod web-0 --type=json -p []", "JSON patch"),
    Line {
        input: MANIFEST,
        ..prints("apply -f -", &["pod/mine created"])
    },
    Line {
        input: CHANGED,
        end: End::Exits(1),
        ..prints("diff -f -", &["two"])
    },
    Line {
        input: CHANGED,
        ..prints("apply -f -", &["pod/mine configured"])
    },
    prints(
        "get pod mine -o jsonpath={.spec.containers[0].image}",
        &["two"],
    ),
    Line {
        input: IMPOSSIBLE,
        ..fails("apply -f -", "pod updates may not change fields")
    },
    Line {
        input: MANIFEST,
        ..prints("replace -f -", &["pod/mine replaced"])
    },
    Line {
        input: CREATED,
        ..prints("create -f - --dry-run=server", &["pod/new created"])
    },
    Line {
        input: CREATED,
        ..prints("create -f -", &["pod/new created"])
    },
    prints("run other --image=one", &["pod/other created"]),
    prints("delete pod --all", &["web-0", "web-1"]),
    Line {
        absent: "mine",
        ..prints("get pods", &["web-0", "web-1"])
    },
    // Errors that name the reason.
    fails("get pod absent", "pods \"absent\" not found"),
    fails("attach web-0", "does not support"),
    fails("debug web-0 --image=one", "does not support"),
    fails("create deployment web --image=one", "does not support"),
];

/// How long one command may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Runs every command and prints its result. Returns whether all of them worked.
pub(crate) async fn run(kubeconfig: &Path) -> bool {
    let mut worked = true;
    for line in LINES {
        let verdict = match timeout(LIMIT, run_line(kubeconfig, line)).await {
            Ok(Ok(())) => "ok".to_owned(),
            Ok(Err(error)) => format!("FAILED: {error}"),
            Err(_) => format!("FAILED: not finished within {LIMIT:?}"),
        };
        worked &= verdict == "ok";
        println!("kubectl {}: {verdict}", line.arguments.replace('\t', " "));
    }
    worked
}

async fn run_line(kubeconfig: &Path, line: &Line) -> io::Result<()> {
    let arguments = line
        .arguments
        .split(' ')
        .map(|argument| argument.replace('\t', " "));
    let mut child = Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(arguments)
        .env("KUBE_EDITOR", EDITOR)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut input = child
        .stdin
        .take()
        .ok_or_else(|| io::Error::other("no stdin"))?;
    input.write_all(line.input.as_bytes()).await?;
    drop(input);
    let output = child
        .stdout
        .take()
        .ok_or_else(|| io::Error::other("no stdout"))?;
    let mut output = BufReader::new(output).lines();
    let seen = async {
        for wanted in line.output {
            loop {
                match output.next_line().await? {
                    Some(text) if text.contains(line.absent) => return Err(unexpected(&text)),
                    Some(text) if text.contains(wanted) => break,
                    Some(_) => {}
                    None => {
                        return Err(io::Error::other(format!(
                            "{wanted:?} is missing in the output"
                        )));
                    }
                }
            }
        }
        Ok(())
    };
    let seen = seen.await;
    if let (Ok(()), End::Runs) = (&seen, line.end) {
        return child.kill().await;
    }
    while let Some(text) = output.next_line().await? {
        if text.contains(line.absent) {
            return Err(unexpected(&text));
        }
    }
    let ended = child.wait_with_output().await?;
    let exits = matches!(line.end, End::Exits(code) if ended.status.code() == Some(code));
    let explains = String::from_utf8_lossy(&ended.stderr).contains(line.errors);
    match seen {
        Ok(()) if exits && explains => Ok(()),
        Ok(()) => Err(failure(format!("{}", ended.status), &ended.stderr)),
        Err(error) => Err(failure(error.to_string(), &ended.stderr)),
    }
}

fn unexpected(line: &str) -> io::Error {
    io::Error::other(format!("unexpected output {line:?}"))
}

/// An error with the error output of kubectl.
fn failure(what: String, stderr: &[u8]) -> io::Error {
    io::Error::other(format!(
        "{what}; {}",
        String::from_utf8_lossy(stderr).trim()
    ))
}
