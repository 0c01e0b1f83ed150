//! The two ends of a comparison: a stand-in apiserver, and clients that put load on a proxy.
//!
//! Every command ends by itself: a load is bounded by a count and by a time, and all commands end when their
//! standard input ends, so that no process outlives the script that started it.
//!
//! The output of a command is one JSON object per line on standard output. A load reports that it is ready, waits
//! for a line, works, reports its results, and keeps its connections until the next line, so that memory can be
//! read meanwhile.

mod answer;
mod connections;
mod dial;
mod event;
mod orders;
mod pki;
mod requests;
mod tally;
mod tunnel;
mod upstream;
mod watch;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

/// A person reads the error as one sentence, so the kinds of errors need no types.
type Error = Box<dyn std::error::Error + Send + Sync>;

/// The apiserver and the clients of benches/peers.
#[derive(Debug, Parser)]
enum Command {
    /// Write the keys and certificates of one run into a folder
    Pki {
        /// An existing folder
        folder: PathBuf,
    },
    /// Serve as the apiserver, on 127.0.0.1 and a free port, until standard input ends
    Upstream(upstream::Args),
    /// Requests over connections that stay open, HTTP/1.1, one at a time on each
    Requests(requests::Args),
    /// One request per connection, each with a separate handshake
    Connections(connections::Args),
    /// Bytes through one upgraded connection
    Tunnel(tunnel::Args),
    /// Watches that wait for events
    Watch(watch::Args),
}

fn main() -> ExitCode {
    let command = Command::parse();
    // One thread: the load must cost the same with every contender, and it has one CPU.
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(err) => return fail(&err.into()),
    };
    let done = runtime.block_on(async {
        match command {
            Command::Pki { folder } => pki::write(&folder),
            Command::Upstream(args) => upstream::run(args).await,
            Command::Requests(args) => requests::run(args).await,
            Command::Connections(args) => connections::run(args).await,
            Command::Tunnel(args) => tunnel::run(args).await,
            Command::Watch(args) => watch::run(args).await,
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => fail(&err),
    }
}

fn fail(err: &Error) -> ExitCode {
    eprintln!("peers-load: {err}");
    ExitCode::FAILURE
}
