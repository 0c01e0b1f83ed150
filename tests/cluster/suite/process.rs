//! Runs programs, either to their end or in the background of a test.
//!
//! Every wait has a limit. Dropping the owner of a running program kills it.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

/// The output and the exit code of a program.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// `None` if a signal ended the program.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Outcome {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The output of a program that succeeded. Panics if the program failed.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}\n{}", self.text(), self.stderr);
        self.text()
    }
}

/// Runs `command` with `input`. Kills it and panics if it does not end within `limit`.
#[track_caller]
pub(crate) fn run(mut command: Command, input: Vec<u8>, limit: Duration) -> Outcome {
    let what = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|err| panic!("{what}: {err}"));
    let mut stdin = child.stdin.take().unwrap();
    // A program may end before it reads everything, so a failed write does not fail the test.
    thread::spawn(move || stdin.write_all(&input));
    let (ended, end) = channel();
    let stdout = collect(child.stdout.take().unwrap(), ended.clone());
    let stderr = collect(child.stderr.take().unwrap(), ended);
    let deadline = Instant::now() + limit;
    // The channel disconnects when both streams have ended.
    let in_time = matches!(
        end.recv_timeout(deadline - Instant::now()),
        Err(RecvTimeoutError::Disconnected)
    );
    if !in_time {
        let _ = child.kill();
    }
    let code = child.wait().unwrap().code();
    let outcome = Outcome {
        code,
        stdout: stdout.join().unwrap(),
        stderr: String::from_utf8_lossy(&stderr.join().unwrap()).into_owned(),
    };
    assert!(
        in_time,
        "still running after {limit:?}: {what}\n{}\n{}",
        outcome.text(),
        outcome.stderr
    );
    outcome
}

/// Reads a stream to its end, and then drops `ended`.
fn collect(
    mut stream: impl Read + Send + 'static,
    ended: Sender<()>,
) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        drop(ended);
        bytes
    })
}

/// A line of output, and the time when it was read.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) text: String,
    pub(crate) at: SystemTime,
}

/// A program in the background of a test. Dropping this value kills it.
#[derive(Debug)]
pub(crate) struct Running {
    what: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Line>,
    stderr: Arc<Mutex<String>>,
}

impl Running {
    #[track_caller]
    pub(crate) fn start(mut command: Command) -> Self {
        let what = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|err| panic!("{what}: {err}"));
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = channel();
        thread::spawn(move || {
            for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                let line = Line {
                    text,
                    at: SystemTime::now(),
                };
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let stderr = Arc::new(Mutex::new(String::new()));
        let read = BufReader::new(child.stderr.take().unwrap());
        let written = Arc::clone(&stderr);
        thread::spawn(move || {
            for line in read.lines().map_while(Result::ok) {
                let mut text = written.lock().unwrap();
                text.push_str(&line);
                text.push('\n');
            }
        });
        Self {
            what,
            stdin: child.stdin.take(),
            child,
            lines,
            stderr,
        }
    }

    /// The next line of output, if one arrives within `limit`.
    pub(crate) fn try_line(&self, limit: Duration) -> Option<Line> {
        self.lines.recv_timeout(limit).ok()
    }

    /// The next line of output.
    #[track_caller]
    pub(crate) fn line(&self, limit: Duration) -> Line {
        match self.lines.recv_timeout(limit) {
            Ok(line) => line,
            Err(err) => panic!("no line ({err}): {}\n{}", self.what, self.stderr()),
        }
    }

    /// The next line of output, parsed as JSON.
    #[track_caller]
    pub(crate) fn json(&self, limit: Duration) -> Value {
        let line = self.line(limit).text;
        serde_json::from_str(&line).unwrap_or_else(|err| panic!("{line}: {err}"))
    }

    /// Waits for a line of output that contains `text`.
    #[track_caller]
    pub(crate) fn wait_for(&self, text: &str, limit: Duration) {
        let deadline = Instant::now() + limit;
        while !self
            .line(deadline.saturating_duration_since(Instant::now()))
            .text
            .contains(text)
        {}
    }

    #[track_caller]
    pub(crate) fn write(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    pub(crate) fn end_input(&mut self) {
        self.stdin = None;
    }

    /// The standard error of the program so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// Whether the program has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for the end of the program. Returns the unread lines and the exit code.
    #[track_caller]
    pub(crate) fn finish(mut self, limit: Duration) -> (Vec<String>, Option<i32>) {
        let deadline = Instant::now() + limit;
        let mut rest = Vec::new();
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => rest.push(line.text),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("still running: {}\n{}", self.what, self.stderr())
                }
            }
        }
        (rest, self.child.wait().unwrap().code())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both calls fail only if the program has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
