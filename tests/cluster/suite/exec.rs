//! exec and attach, each over WebSocket and SPDY.

use std::time::Duration;

use crate::kubectl::{Kubectl, STREAMINGS, Streaming, assert_same};
use crate::process::Outcome;
use crate::suite::{Suite, on_both, shared};

#[test]
fn exec_passes_exit_code_and_keeps_stdout_and_stderr_separate() {
    let Some(suite) = shared() else { return };
    for streaming in STREAMINGS {
        let script = "echo to stdout; echo to stderr >&2; exit 3";
        let outcome = exec(&suite, streaming, &["shell", "--", "sh", "-c", script], b"");
        assert_eq!(outcome.code, Some(3), "{streaming:?}");
        assert_eq!(outcome.text(), "to stdout\n");
        assert!(
            outcome.stderr.starts_with("to stderr\n"),
            "{}",
            outcome.stderr
        );
    }
}

#[test]
fn exec_passes_stdin_and_the_end_of_stdin() {
    let Some(suite) = shared() else { return };
    for streaming in STREAMINGS {
        let outcome = exec(&suite, streaming, &["-i", "shell", "--", "cat"], b"x\n");
        assert_eq!(outcome.ok(), "x\n", "{streaming:?}");
    }
}

#[test]
fn exec_passes_many_bytes_in_both_directions() {
    let Some(suite) = shared() else { return };
    let bytes: Vec<u8> = (0..8_u32 << 20).map(|i| (i % 251) as u8).collect();
    for streaming in STREAMINGS {
        let outcome = exec(&suite, streaming, &["-i", "shell", "--", "cat"], &bytes);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        // Not assert_eq: it would print all bytes.
        assert!(
            outcome.stdout == bytes,
            "{streaming:?}: {} bytes",
            outcome.stdout.len()
        );
    }
}

#[test]
fn exec_passes_arguments_unchanged() {
    let Some(suite) = shared() else { return };
    let odd = ["a b", "c&d=e", "%2F", "é", "", "*"];
    for streaming in STREAMINGS {
        let args = [&["shell", "--", "printf", "<%s>\\n"], &odd[..]].concat();
        let printed = exec(&suite, streaming, &args, b"").ok();
        assert_eq!(printed, "<a b>\n<c&d=e>\n<%2F>\n<é>\n<>\n<*>\n");
    }
}

#[test]
fn exec_of_unknown_command_gives_the_same_error() {
    let Some(suite) = shared() else { return };
    for streaming in STREAMINGS {
        let outcome = exec(&suite, streaming, &["shell", "--", "no-such-command"], b"");
        assert_ne!(outcome.code, Some(0));
        assert!(
            outcome.stderr.contains("no-such-command"),
            "{}",
            outcome.stderr
        );
    }
}

#[test]
fn exec_shows_output_while_the_command_runs() {
    let Some(suite) = shared() else { return };
    for streaming in STREAMINGS {
        on_both(|route| {
            let kubectl = Kubectl::new(&suite, route).streaming(streaming);
            // The command waits for a reply to its output, so output that is held back causes a deadlock.
            let script = "echo question; read answer; echo got $answer";
            let mut running = kubectl.start(&["exec", "-i", "shell", "--", "sh", "-c", script]);
            assert_eq!(running.line(STEP).text, "question");
            running.write("yes\n");
            assert_eq!(running.line(STEP).text, "got yes");
            let (rest, code) = running.finish(STEP);
            assert_eq!((rest, code), (Vec::new(), Some(0)));
        });
    }
}

#[test]
fn attach_reaches_the_running_process() {
    let Some(suite) = shared() else { return };
    for streaming in STREAMINGS {
        let [direct, proxied] = on_both(|route| {
            let kubectl = Kubectl::new(&suite, route).streaming(streaming);
            kubectl.run_with_input(&["attach", "-i", "shell"], b"hello\n".to_vec())
        });
        assert_eq!(
            assert_same(direct, proxied).ok(),
            "attached\nhello\n",
            "{streaming:?}"
        );
    }
}

/// Runs `kubectl exec` on both routes and asserts the same result.
#[track_caller]
fn exec(suite: &Suite, streaming: Streaming, args: &[&str], input: &[u8]) -> Outcome {
    let args = [&["exec"], args].concat();
    let [direct, proxied] = on_both(|route| {
        let kubectl = Kubectl::new(suite, route).streaming(streaming);
        kubectl.run_with_input(&args, input.to_vec())
    });
    assert_same(direct, proxied)
}

const STEP: Duration = Duration::from_secs(30);
