//! One request per connection: TCP, TLS, a small GET, close; with full or resumed handshakes.

use std::{sync::Arc, time::Duration};

use http_body_util::BodyExt as _;
use rustls::HandshakeKind;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    Error,
    dial::{Dialer, Protocol, Sessions, Target, expect_ok, over_http1},
    orders::{Orders, say},
    tally::{Budget, Tally},
};

/// Time limit for one connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How many connections in all, and how many at a time.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// How many at a time
    #[arg(long)]
    parallel: usize,
    /// How many in all
    #[arg(long)]
    count: u64,
    /// Resume the session of the previous connection; one that is not resumed counts as an error
    #[arg(long)]
    resume: bool,
    /// Start no connection after this many seconds
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

/// Opens one connection for each of the parallel slots, then all others when told to.
///
/// # Errors
///
/// When the CA cannot be read. Faults of the proxy are counted and are no errors here.
pub(crate) async fn run(args: Args) -> Result<(), Error> {
    let mut orders = Orders::listen();
    let (sessions, wanted) = if args.resume {
        (Sessions::Resumed, HandshakeKind::Resumed)
    } else {
        (Sessions::Fresh, HandshakeKind::Full)
    };
    let warming = Tally::default();
    let mut dialers = Vec::with_capacity(args.parallel);
    for _ in 0..args.parallel {
        // One dialer per slot: a ticket is used once, and a slot must not use the ticket of another.
        let dialer = Dialer::new(&args.target, Protocol::H1, sessions)?;
        if let Err(err) = once(&dialer, HandshakeKind::Full).await {
            warming.failed(err);
        }
        dialers.push(dialer);
    }
    say(&warming.ready(args.parallel))?;
    if orders.next_soon().await.is_none() {
        return Ok(());
    }

    let tally = Arc::new(Tally::default());
    let budget = Arc::new(Budget::new(args.count, Duration::from_secs(args.seconds)));
    let begun = Instant::now();
    let mut places = JoinSet::new();
    for dialer in dialers {
        let (tally, budget) = (Arc::clone(&tally), Arc::clone(&budget));
        places.spawn(async move {
            while budget.take() {
                let begun = Instant::now();
                match once(&dialer, wanted).await {
                    Ok(bytes) => tally.done(begun.elapsed(), bytes),
                    Err(err) => tally.failed(err),
                }
            }
        });
    }
    places.join_all().await;
    say(&tally.result(begun.elapsed()))?;
    orders.next_soon().await;
    Ok(())
}

async fn once(dialer: &Dialer, wanted: HandshakeKind) -> Result<u64, Error> {
    let exchange = async {
        let tls = dialer.tls().await?;
        if tls.get_ref().1.handshake_kind() != Some(wanted) {
            return Err(format!("the handshake was not {wanted:?}").into());
        }
        let mut connection = over_http1(tls).await?;
        let answer = connection
            .send_request(dialer.get(Protocol::H1, "/small")?)
            .await?;
        expect_ok(answer.status())?;
        Ok(answer.into_body().collect().await?.to_bytes().len() as u64)
    };
    timeout(CONNECTION_TIMEOUT, exchange)
        .await
        .map_err(|_| format!("no answer within {CONNECTION_TIMEOUT:?}"))?
}
