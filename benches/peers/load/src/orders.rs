//! The protocol with the script: its lines on standard input, JSON lines on standard output.

use std::{
    io::{self, BufRead as _, Write as _},
    thread,
    time::Duration,
};

use serde_json::Value;
use tokio::{sync::mpsc, time::timeout};

use crate::Error;

/// How long a load waits for its next line. Longer than memory takes to settle, and short enough that a load
/// ends if its script hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The lines of standard input.
#[derive(Debug)]
pub(crate) struct Orders(mpsc::UnboundedReceiver<String>);

impl Orders {
    /// Starts to read.
    pub(crate) fn listen() -> Self {
        let (lines, received) = mpsc::unbounded_channel();
        // A thread and not tokio's stdin: at its end the runtime would wait for a read in progress.
        thread::spawn(move || {
            for line in io::stdin().lock().lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    return;
                }
            }
        });
        Self(received)
    }

    /// The next line, or `None` if the script has ended.
    pub(crate) async fn next(&mut self) -> Option<String> {
        self.0.recv().await
    }

    /// The next line, or `None` if it does not arrive in time.
    pub(crate) async fn next_soon(&mut self) -> Option<String> {
        timeout(PATIENCE, self.next()).await.ok().flatten()
    }
}

/// Writes one object.
///
/// # Errors
///
/// When no process reads it.
pub(crate) fn say(value: &Value) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()?;
    Ok(())
}
