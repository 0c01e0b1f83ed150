//! Runs the commands that the demo prints, and checks their output and exit code.

use std::{io, path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::Command,
    time::timeout,
};

/// One kubectl command and its expected result.
struct Line {
    arguments: &'static str,
    input: &'static str,
    /// Each text must occur in a line of the output, in this order.
    output: &'static [&'static str],
    end: End,
}

#[derive(Debug, Clone, Copy)]
enum End {
    /// The command ends by itself with this exit code.
    Exits(i32),
    /// The command does not end. It is killed after its output has arrived.
    Runs,
}

const LINES: &[Line] = &[
    Line {
        arguments: "version",
        input: "",
        output: &["Server Version: v1.32.4"],
        end: End::Exits(0),
    },
    Line {
        arguments: "auth whoami",
        input: "",
        output: &["jane", "developers"],
        end: End::Exits(0),
    },
    Line {
        arguments: "get pods",
        input: "",
        output: &["RESTARTS", "web-0", "web-1"],
        end: End::Exits(0),
    },
    Line {
        arguments: "get pods -w",
        input: "",
        output: &["web-1", "Pending", "Running", "Completed"],
        end: End::Runs,
    },
    Line {
        arguments: "logs web-0",
        input: "",
        output: &["line 1", "line 5"],
        end: End::Exits(0),
    },
    Line {
        arguments: "logs -f web-0",
        input: "",
        output: &["line 1", "line 5", "line 7"],
        end: End::Runs,
    },
    Line {
        arguments: "exec web-0 -- echo hello",
        input: "",
        output: &["hello"],
        end: End::Exits(0),
    },
    Line {
        arguments: "exec -i web-0 -- cat",
        input: "there and back\n",
        output: &["there and back"],
        end: End::Exits(0),
    },
    Line {
        arguments: "exec web-0 -- sh -c exit\t3",
        input: "",
        output: &[],
        end: End::Exits(3),
    },
    Line {
        arguments: "get pod absent",
        input: "",
        output: &[],
        end: End::Exits(1),
    },
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
    // A tab stands for a space within one argument.
    let arguments = line
        .arguments
        .split(' ')
        .map(|argument| argument.replace('\t', " "));
    let mut child = Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(arguments)
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
    let ended = child.wait_with_output().await?;
    let exits = matches!(line.end, End::Exits(code) if ended.status.code() == Some(code));
    match seen {
        Ok(()) if exits => Ok(()),
        Ok(()) => Err(failure(format!("{}", ended.status), &ended.stderr)),
        Err(error) => Err(failure(error.to_string(), &ended.stderr)),
    }
}

/// An error with the error output of kubectl.
fn failure(what: String, stderr: &[u8]) -> io::Error {
    io::Error::other(format!(
        "{what}; {}",
        String::from_utf8_lossy(stderr).trim()
    ))
}
