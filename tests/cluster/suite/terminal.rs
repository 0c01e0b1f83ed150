//! exec with a terminal: its size, interrupts and the exit code.

use std::time::Duration;

use crate::kubectl::{Kubectl, STREAMINGS};
use crate::suite::{on_both, shared};

#[test]
fn terminal_size_change_reaches_the_command() {
    let Some(suite) = shared() else { return };
    // The terminal is resized after it shows RESIZE. The command may start before the initial size arrives,
    // so the script waits for that size too.
    let terminal = ["-size", "24x80", "-resize", "40x120", "-after", "RESIZE"];
    let script = "wait_for() { until [ \"$(stty size)\" = \"$1\" ]; do sleep 0.02; done; }; \
        wait_for '24 80'; echo RESIZE; wait_for '40 120'; echo resized; exit 4";
    for streaming in STREAMINGS {
        on_both(|route| {
            let kubectl = Kubectl::new(&suite, route).streaming(streaming);
            let args = ["exec", "-it", "shell", "--", "sh", "-c", script];
            let (lines, code) = kubectl.start_in_terminal(&terminal, &args).finish(STEP);
            assert_eq!(code, Some(4), "{lines:?}");
            // Where a kubectl before 1.34 reads the WebSocket too early, it says so in between; see `run_with_input`.
            let lines = lines
                .iter()
                .filter(|line| !line.contains("discarding message"));
            let shown: Vec<_> = lines.map(|line| line.trim()).collect();
            assert_eq!(shown[..2], ["RESIZE", "resized"]);
        });
    }
}

#[test]
fn terminal_interrupt_reaches_the_command() {
    let Some(suite) = shared() else { return };
    let script = "trap 'echo interrupted; exit 7' INT; echo ready; while :; do sleep 0.02; done";
    for streaming in STREAMINGS {
        on_both(|route| {
            let kubectl = Kubectl::new(&suite, route).streaming(streaming);
            let args = ["exec", "-it", "shell", "--", "sh", "-c", script];
            let mut running = kubectl.start_in_terminal(&[], &args);
            running.wait_for("ready", STEP);
            running.write("\u{3}");
            running.wait_for("interrupted", STEP);
            let (_, code) = running.finish(STEP);
            assert_eq!(code, Some(7));
        });
    }
}

const STEP: Duration = Duration::from_secs(60);
