//! Files that are none: a pipe may have nobody at its other end.

use std::{fs::OpenOptions, io::Write as _, process::Command, sync::mpsc, thread, time::Duration};

use standin::TempDir;

use crate::config::read_file;

/// A named pipe, and what reading it comes to in time.
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
    read.expect("whoever reads does not wait for ever")
}

/// As `--cert <(command)` is when it is read again: nobody could stop the process while it waits.
#[test]
fn a_pipe_that_nobody_writes_to_is_empty() {
    let (_dir, path) = pipe();
    assert_eq!(read_in_time(path), b"");
}

/// As `--token-file <(command)` is.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "a slow writer is what this is about"
)]
fn a_pipe_is_read_to_the_end_of_a_slow_writer() {
    let (_dir, path) = pipe();
    // Opened for both, which waits for no reader.
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
