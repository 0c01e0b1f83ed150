//! The talk with the script: its lines on standard input, our JSON lines on standard output.

use std::{
    io::{self, BufRead as _, Write as _},
    thread,
    time::Duration,
};

use serde_json::Value;
use tokio::{sync::mpsc, time::timeout};

use crate::Error;

/// How long a load waits for its next order. Longer than memory takes to settle, and short enough that a load
/// whose script hangs goes away.
const PATIENCE: Duration = Duration::from_secs(60);

/// The lines of standard input.
#[derive(Debug)]
pub(crate) struct Orders(mpsc::UnboundedReceiver<String>);

impl Orders {
    /// Begins to read.
    pub(crate) fn listen() -> Self {
        let (lines, received) = mpsc::unbounded_channel();
        // A thread and not tokio's stdin: the runtime would wait for a read that is under way when it ends.
        thread::spawn(move || {
            for line in io::stdin().lock().lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    return;
                }
            }
        });
        Self(received)
    }

    /// The next line, or nothing when the script is gone.
    pub(crate) async fn next(&mut self) -> Option<String> {
        self.0.recv().await
    }

    /// The next line, if it comes while a load may wait for it.
    pub(crate) async fn next_soon(&mut self) -> Option<String> {
        timeout(PATIENCE, self.next()).await.ok().flatten()
    }
}

/// Says one thing.
///
/// # Errors
///
/// When nobody reads it.
pub(crate) fn say(value: &Value) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()?;
    Ok(())
}
