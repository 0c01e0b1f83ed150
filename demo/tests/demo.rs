//! The demo as a user starts it: its files, its status page, its end.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use standin::TempDir;

/// A running demo. Drop kills it.
struct Demo {
    child: Child,
    /// What it has printed.
    printed: String,
}

impl Demo {
    /// Starts a demo in `folder` and waits until it has printed everything.
    fn start(folder: &Path, temporary: &Path) -> Self {
        let mut child = command()
            .current_dir(folder)
            .env("TMPDIR", temporary)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut printed = String::new();
        while !printed.contains("\nCtrl-C stops everything") {
            let length = output.read_line(&mut printed).unwrap();
            assert_ne!(length, 0, "the demo has ended: {printed}");
        }
        // The rest of the output, which is an empty line, needs a reader for as long as the demo runs.
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        Self { child, printed }
    }

    /// The text after `label` on the line that begins with it.
    fn line(&self, label: &str) -> &str {
        let line = self
            .printed
            .lines()
            .find_map(|line| line.trim().strip_prefix(label));
        line.unwrap_or_else(|| panic!("no {label:?} in {}", self.printed))
            .trim()
    }

    fn kubeconfig(&self) -> &str {
        self.line("export KUBECONFIG=$PWD/")
    }

    fn stop(mut self, signal: Signal) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Fails if it has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_demo"))
}

fn run(arguments: &[&str]) -> Output {
    command().args(arguments).output().unwrap()
}

fn count(folder: &TempDir) -> usize {
    fs::read_dir(folder.path()).unwrap().count()
}

#[test]
fn two_demos_in_one_directory_serve_side_by_side() {
    let (folder, temporary) = (TempDir::new(), TempDir::new());
    let demos = [(); 2].map(|()| Demo::start(folder.path(), temporary.path()));
    assert_ne!(demos[0].kubeconfig(), demos[1].kubeconfig());
    for demo in &demos {
        let kubeconfig = fs::read_to_string(folder.path().join(demo.kubeconfig())).unwrap();
        let (proxy, _) = demo.line("kube-tls-proxy").split_once(',').unwrap();
        assert!(
            kubeconfig.contains(&format!("server: {proxy}\n")),
            "{kubeconfig}"
        );
        let page = demo.line("status page").strip_prefix("http://").unwrap();
        let address = page.strip_suffix('/').unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        write!(
            stream,
            "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        assert!(response.contains("<title>"), "{response}");
    }
}

#[test]
fn signal_ends_the_demo_and_removes_its_files() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let (folder, temporary) = (TempDir::new(), TempDir::new());
        let demo = Demo::start(folder.path(), temporary.path());
        assert_eq!((count(&folder), count(&temporary)), (1, 1));
        assert_eq!(demo.stop(signal), Some(0), "{signal:?}");
        assert_eq!((count(&folder), count(&temporary)), (0, 0), "{signal:?}");
    }
}

#[test]
fn help_lists_the_options() {
    for flag in ["-h", "--help"] {
        let output = run(&[flag]);
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.contains("--check") && text.contains("--help"),
            "{text}"
        );
    }
}

#[test]
fn unknown_argument_is_refused_by_name() {
    for arguments in [&["--chek"][..], &["--check", "--chek"]] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("--chek") && text.contains("--help"), "{text}");
    }
}
