//! Pipes instead of files. A pipe may have no writer.

use std::{fs::OpenOptions, io::Write as _, process::Command, sync::mpsc, thread, time::Duration};

use standin::TempDir;

use crate::config::read_file;

/// A named pipe.
fn pipe() -> (TempDir, std::path::PathBuf) {
    let dir = TempDir::new();
    let path = dir.path().join("pipe");
    let made = Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    (dir, path)
}

fn read_in_time(path: std::path::PathBuf) -> Vec<u8> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(read_file(&path).unwrap()));
    let read = told.recv_timeout(standin::WAIT);
    read.expect("the read ends in time")
}

/// `--cert <(command)` is such a pipe when it is read again. The process cannot be stopped while it waits.
#[test]
fn pipe_without_writer_is_empty() {
    let (_dir, path) = pipe();
    assert_eq!(read_in_time(path), b"");
}

/// `--token-file <(command)` is such a pipe.
#[test]
#[expect(clippy::disallowed_methods, reason = "the test needs a slow writer")]
fn pipe_is_read_until_slow_writer_ends() {
    let (_dir, path) = pipe();
    // Opened for both, because that does not wait for a reader.
    let mut writer = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let writing = thread::spawn(move || {
        for part in ["first ", "second"] {
            thread::sleep(Duration::from_millis(100));
            writer.write_all(part.as_bytes()).unwrap();
        }
        thread::sleep(Duration::from_millis(100));
    });
    assert_eq!(read_in_time(path), b"first second");
    writing.join().unwrap();
}
