//! Many watches: opened first, then counted as events arrive.

use std::{sync::Arc, time::Duration};

use http_body_util::BodyExt as _;
use hyper::{Response, body::Incoming};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use crate::{
    Error,
    dial::{Dialer, Protocol, Sessions, Target, expect_ok},
    event::{self, Lines},
    orders::{Orders, say},
    tally::Tally,
};

/// Time limit for opening all watches.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the load checks whether every event has arrived.
const LOOK: Duration = Duration::from_millis(5);

/// How many watches, and the events that they wait for.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Which protocol
    #[arg(long)]
    protocol: Protocol,
    /// How many watches
    #[arg(long)]
    watches: usize,
    /// Over how many connections; HTTP/1.1 always takes one per watch
    #[arg(long, default_value_t = 100)]
    connections: usize,
    /// How many events each receives
    #[arg(long)]
    events: usize,
    /// Wait no longer than this many seconds for them
    #[arg(long, default_value_t = 30)]
    seconds: u64,
}

/// The state that all watches share.
struct Load {
    dialer: Dialer,
    protocol: Protocol,
    tally: Tally,
    /// One message per watch: whether it is open.
    opened: mpsc::UnboundedSender<bool>,
}

/// Opens the watches, then counts events when told to.
///
/// # Errors
///
/// When the CA cannot be read. Faults of the proxy are counted and are no errors here.
pub(crate) async fn run(args: Args) -> Result<(), Error> {
    let mut orders = Orders::listen();
    let (opened, mut openings) = mpsc::unbounded_channel();
    let load = Arc::new(Load {
        dialer: Dialer::new(&args.target, args.protocol, Sessions::Fresh)?,
        protocol: args.protocol,
        tally: Tally::default(),
        opened,
    });
    let connections = match args.protocol {
        Protocol::H1 => args.watches,
        Protocol::H2 => args.connections,
    };
    for watches in shares(args.watches, connections) {
        tokio::spawn(connection(Arc::clone(&load), watches));
    }
    let mut open = 0;
    let all = async {
        for _ in 0..args.watches {
            open += usize::from(openings.recv().await == Some(true));
        }
    };
    // A watch that did not open in time is missing in the count that the script reads.
    drop(timeout(OPEN_TIMEOUT, all).await);
    say(&load.tally.ready(open))?;
    if orders.next_soon().await.is_none() {
        return Ok(());
    }

    let begun = Instant::now();
    let limit = Duration::from_secs(args.seconds);
    let wanted = open * args.events;
    while load.tally.units() < wanted && begun.elapsed() < limit {
        sleep(LOOK).await;
    }
    let wall = begun.elapsed();
    for _ in load.tally.units()..wanted {
        load.tally.failed("an event did not come");
    }
    say(&load.tally.result(wall))?;
    orders.next_soon().await;
    Ok(())
}

/// How many watches each connection carries; the sum is the number of watches.
fn shares(watches: usize, connections: usize) -> impl Iterator<Item = usize> {
    let connections = connections.clamp(1, watches.max(1));
    (0..connections)
        .map(move |nth| watches / connections + usize::from(nth < watches % connections))
}

/// Opens one connection and its watches.
async fn connection(load: Arc<Load>, watches: usize) {
    let opened = match load.protocol {
        Protocol::H1 => one(&load).await,
        Protocol::H2 => several(&load, watches).await,
    };
    if let Err(err) = opened {
        for _ in 0..watches {
            load.refused(&err);
        }
    }
}

async fn one(load: &Load) -> Result<(), Error> {
    let mut sender = load.dialer.http1().await?;
    let request = load.dialer.get(Protocol::H1, "/watch")?;
    watch(load, sender.send_request(request)).await;
    Ok(())
}

async fn several(load: &Arc<Load>, watches: usize) -> Result<(), Error> {
    let sender = load.dialer.http2().await?;
    for _ in 0..watches {
        let (load, mut sender) = (Arc::clone(load), sender.clone());
        let request = load.dialer.get(Protocol::H2, "/watch")?;
        tokio::spawn(async move {
            // A stream beyond the proxy's limit waits here.
            match sender.ready().await {
                Ok(()) => watch(&load, sender.send_request(request)).await,
                Err(err) => load.refused(&err.into()),
            }
        });
    }
    Ok(())
}

/// Reads one watch until it ends; an end is a fault.
async fn watch(load: &Load, answer: impl Future<Output = hyper::Result<Response<Incoming>>>) {
    let mut body = match answer.await {
        Ok(answer) => match expect_ok(answer.status()) {
            Ok(()) => answer.into_body(),
            Err(err) => return load.refused(&err),
        },
        Err(err) => return load.refused(&err.into()),
    };
    let mut lines = Lines::default();
    let mut open = false;
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let now = event::now();
        lines.feed(&data, |line| {
            if !open {
                // The first event shows that the watch is open, and has no time.
                open = true;
                let _ = load.opened.send(true);
            } else if let Some(sent) = event::sent(line) {
                load.tally.done(now.saturating_sub(sent), line.len() as u64);
            } else {
                load.tally.failed("an event arrived damaged");
            }
        });
    }
    if open {
        load.tally.failed("a watch ended");
    } else {
        load.refused(&"a watch ended before its first event".into());
    }
}

impl Load {
    /// A watch that did not open.
    fn refused(&self, why: &Error) {
        self.tally.failed(why);
        let _ = self.opened.send(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_carry_every_watch_once() {
        let of = |watches, connections| shares(watches, connections).collect::<Vec<_>>();
        assert_eq!(of(7, 3), [3, 2, 2]);
        assert_eq!(of(2, 5), [1, 1], "no connection without a watch");
        assert_eq!(of(3, 0), [3]);
        assert_eq!(of(2000, 100), [20; 100]);
    }
}
