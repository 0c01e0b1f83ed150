//! The few commands that a container of the stand-in can run.

use std::{pin::Pin, time::Duration, time::SystemTime};

use tokio::sync::{mpsc, watch};

use super::{
    clock::rfc3339,
    exec::{STDERR, STDOUT},
};

/// The input and output of a command.
#[derive(Debug)]
pub(super) struct Stdio {
    pub(super) stdin: mpsc::Receiver<Vec<u8>>,
    pub(super) output: mpsc::Sender<(u8, Vec<u8>)>,
    pub(super) tty: bool,
    pub(super) pod: String,
    /// Width and height of the terminal.
    pub(super) size: watch::Receiver<(u64, u64)>,
}

impl Stdio {
    async fn write(&self, channel: u8, text: impl AsRef<[u8]>) {
        let mut bytes = text.as_ref().to_vec();
        if self.tty {
            // A terminal needs carriage returns and has only one stream.
            bytes = bytes
                .into_iter()
                .flat_map(|byte| {
                    if byte == b'\n' {
                        vec![b'\r', b'\n']
                    } else {
                        vec![byte]
                    }
                })
                .collect();
        }
        // Fails only if the client is gone, and then the session ends.
        drop(
            self.output
                .send((if self.tty { STDOUT } else { channel }, bytes))
                .await,
        );
    }
}

/// Runs a command and returns its exit code.
pub(super) async fn run(command: Vec<String>, mut stdio: Stdio) -> u8 {
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    match builtin(&words, &mut stdio).await {
        Flow::Continue(code) | Flow::Exit(code) => code,
    }
}

/// The commands of [`builtin`].
const COMMANDS: &str = "cat, date, echo, env, exit, false, help, hostname, id, ls, pwd, sh, sleep, stty size, true, uname, whoami";

/// The one file of a container.
const HOSTNAME: &str = "/etc/hostname";

async fn missing(stdio: &Stdio, program: &str, path: &str) -> Flow {
    let text = format!("{program}: {path}: No such file or directory\n");
    stdio.write(STDERR, text).await;
    Flow::Continue(1)
}

enum Flow {
    Continue(u8),
    Exit(u8),
}

fn builtin<'a>(
    words: &'a [&'a str],
    stdio: &'a mut Stdio,
) -> Pin<Box<dyn Future<Output = Flow> + Send + 'a>> {
    Box::pin(async move {
        let (out, words) = match words {
            [words @ .., ">&2"] => (STDERR, words),
            words => (STDOUT, words),
        };
        let text = match words {
            ["echo", words @ ..] => words.join(" ") + "\n",
            ["date", ..] => rfc3339(SystemTime::now()) + "\n",
            ["help"] => format!("The stand-in has these commands: {COMMANDS}.\n"),
            ["id"] => "uid=0(root) gid=0(root) groups=0(root)\n".to_owned(),
            ["whoami"] => "root\n".to_owned(),
            ["pwd"] => "/\n".to_owned(),
            ["uname", ..] => "Linux\n".to_owned(),
            ["ls", rest @ ..] => {
                let path = rest
                    .iter()
                    .find(|word| !word.starts_with('-'))
                    .unwrap_or(&"/");
                match *path {
                    "/" | "." => "bin\netc\n".to_owned(),
                    "/bin" | "bin" => COMMANDS.replace(", ", "\n") + "\n",
                    "/etc" | "etc" => "hostname\n".to_owned(),
                    HOSTNAME => format!("{HOSTNAME}\n"),
                    path => return missing(stdio, "ls", path).await,
                }
            }
            ["cat", HOSTNAME] => format!("{}\n", stdio.pod),
            ["cat", path, ..] if *path != "-" => return missing(stdio, "cat", path).await,
            ["tar", ..] => {
                let text =
                    "tar: the stand-in has no files to copy; kubectl cp needs a real apiserver\n";
                stdio.write(STDERR, text).await;
                return Flow::Continue(127);
            }
            ["hostname"] => format!("{}\n", stdio.pod),
            ["env"] => format!("HOSTNAME={}\nPATH=/bin\n", stdio.pod),
            ["stty", "size"] => {
                let (width, height) = *stdio.size.borrow();
                format!("{height} {width}\n")
            }
            ["cat", ..] => {
                while let Some(data) = stdio.stdin.recv().await {
                    stdio.write(out, data).await;
                }
                return Flow::Continue(0);
            }
            ["sleep", seconds] => {
                let seconds = seconds
                    .parse()
                    .ok()
                    .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                tokio::time::sleep(seconds.unwrap_or_default()).await;
                return Flow::Continue(0);
            }
            ["true"] => return Flow::Continue(0),
            ["false"] => return Flow::Continue(1),
            ["exit"] => return Flow::Exit(0),
            ["exit", code] => return Flow::Exit(code.parse().unwrap_or(2)),
            ["sh", "-c", script] => return Flow::Continue(lines(script, stdio).await),
            ["sh" | "bash"] => return Flow::Continue(interactive(stdio).await),
            [] => return Flow::Continue(0),
            [name, ..] => {
                let text = format!("sh: {name}: not found; the stand-in has: {COMMANDS}\n");
                stdio.write(STDERR, text).await;
                return Flow::Continue(127);
            }
        };
        stdio.write(out, text).await;
        Flow::Continue(0)
    })
}

/// Runs commands that are separated by `;` or line ends, until one of them is `exit`.
async fn lines(script: &str, stdio: &mut Stdio) -> u8 {
    let mut code = 0;
    for line in script.split([';', '\n']) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match builtin(&words, stdio).await {
            Flow::Continue(new) => code = new,
            Flow::Exit(code) => return code,
        }
    }
    code
}

/// Reads commands line by line from stdin. With a terminal it also prompts and echoes.
async fn interactive(stdio: &mut Stdio) -> u8 {
    const CTRL_C: u8 = 3;
    const CTRL_D: u8 = 4;
    const BACKSPACE: u8 = 127;
    let prompt = format!("{}:/# ", stdio.pod);
    let (mut line, mut code) = (Vec::new(), 0);
    if stdio.tty {
        stdio.write(STDOUT, &prompt).await;
    }
    while let Some(data) = stdio.stdin.recv().await {
        for byte in data {
            match byte {
                b'\r' | b'\n' => {
                    if stdio.tty {
                        stdio.write(STDOUT, "\n").await;
                    }
                    let text = String::from_utf8_lossy(&std::mem::take(&mut line)).into_owned();
                    let words: Vec<&str> = text.split_whitespace().collect();
                    match builtin(&words, stdio).await {
                        Flow::Continue(new) => code = new,
                        Flow::Exit(code) => return code,
                    }
                    if stdio.tty {
                        stdio.write(STDOUT, &prompt).await;
                    }
                }
                CTRL_C if stdio.tty => {
                    line.clear();
                    stdio.write(STDOUT, format!("^C\n{prompt}")).await;
                }
                CTRL_D if stdio.tty => return code,
                BACKSPACE if stdio.tty => {
                    if line.pop().is_some() {
                        stdio.write(STDOUT, "\u{8} \u{8}").await;
                    }
                }
                byte => {
                    line.push(byte);
                    if stdio.tty {
                        stdio.write(STDOUT, [byte]).await;
                    }
                }
            }
        }
    }
    code
}
