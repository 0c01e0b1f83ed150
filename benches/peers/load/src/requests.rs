//! Requests over connections that stay open: HTTP/1.1, each request after the response to the previous one.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::SendRequest;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    Error,
    dial::{Dialer, Protocol, Sessions, Target, expect_ok},
    orders::{Orders, say},
    tally::{Budget, Tally},
};

/// Time limit for one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How many requests, over how many connections.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// How many connections
    #[arg(long)]
    connections: usize,
    /// How many requests in all
    #[arg(long)]
    count: u64,
    /// How many requests before the measured ones, to fill the proxy's pool
    #[arg(long, default_value_t = 0)]
    warm: u64,
    /// Start no request after this many seconds
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

/// Opens the connections, then sends when told to.
///
/// # Errors
///
/// When the CA cannot be read. Faults of the proxy are counted and are no errors here.
pub(crate) async fn run(args: Args) -> Result<(), Error> {
    let mut orders = Orders::listen();
    let dialer = Dialer::new(&args.target, Protocol::H1, Sessions::Fresh)?;
    let time = Duration::from_secs(args.seconds);

    let warming = Arc::new(Tally::default());
    let mut dials = JoinSet::new();
    for _ in 0..args.connections {
        let dialer = dialer.clone();
        dials.spawn(async move { dialer.http1().await });
    }
    let mut open = Vec::with_capacity(args.connections);
    for dial in dials.join_all().await {
        match dial {
            Ok(connection) => open.push(connection),
            Err(err) => warming.failed(err),
        }
    }
    let open = drive(open, &dialer, Budget::new(args.warm, time), &warming).await;
    say(&warming.ready(open.len()))?;
    if orders.next_soon().await.is_none() {
        return Ok(());
    }

    let tally = Arc::new(Tally::default());
    let begun = Instant::now();
    let open = drive(open, &dialer, Budget::new(args.count, time), &tally).await;
    say(&tally.result(begun.elapsed()))?;
    orders.next_soon().await;
    drop(open);
    Ok(())
}

type Connection = SendRequest<Empty<Bytes>>;

/// Uses up the budget over all connections at once, and returns the connections that are still open.
async fn drive(
    connections: Vec<Connection>,
    dialer: &Dialer,
    budget: Budget,
    tally: &Arc<Tally>,
) -> Vec<Connection> {
    let budget = Arc::new(budget);
    let mut tasks = JoinSet::new();
    for mut connection in connections {
        let (dialer, budget, tally) = (dialer.clone(), Arc::clone(&budget), Arc::clone(tally));
        tasks.spawn(async move {
            while budget.take() {
                let begun = Instant::now();
                match get(&dialer, &mut connection).await {
                    Ok(bytes) => tally.done(begun.elapsed(), bytes),
                    Err(err) => {
                        tally.failed(err);
                        connection = dialer.http1().await.ok()?;
                    }
                }
            }
            Some(connection)
        });
    }
    tasks.join_all().await.into_iter().flatten().collect()
}

async fn get(dialer: &Dialer, connection: &mut Connection) -> Result<u64, Error> {
    let exchange = async {
        connection.ready().await?;
        let request = dialer.get(Protocol::H1, "/small")?;
        let answer = connection.send_request(request).await?;
        expect_ok(answer.status())?;
        let body = answer.into_body().collect().await?.to_bytes();
        Ok(body.len() as u64)
    };
    timeout(REQUEST_TIMEOUT, exchange)
        .await
        .map_err(|_| format!("no answer within {REQUEST_TIMEOUT:?}"))?
}
