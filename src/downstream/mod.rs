//! Stages 2 and 3: takes one accepted connection through its TLS handshake and its HTTP.

pub(crate) mod bench;
mod heads;
mod http;
mod preface;
mod scanner;
mod sending;
#[cfg(test)]
mod sizes;
mod tls;

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tracing::debug;

pub use tls::{HandshakeError, server_config};

use self::http::Protocol;
use crate::{
    config::{Limits, Timeouts},
    drain::Drain,
    hosts::PeerAddr,
    metrics::{Connected, Handshake},
    proxy::{Downstream, Routes},
    socket,
    text::error_chain,
    upstream::{ClientLeases, UpstreamContext},
};

/// The fuzz body of this stage: the framing of requests.
pub(crate) const FUZZ: fn(&[u8]) = scanner::fuzz;

/// What a reload replaces, as a whole.
#[derive(Debug)]
pub struct Snapshot {
    /// Read once per handshake.
    pub tls: Arc<ServerConfig>,
    /// Read once per request.
    pub routes: Arc<Routes>,
}

/// What all workers share; none of it is written to on the request path.
#[derive(Debug)]
pub struct Shared {
    /// The current state of everything that can be reloaded.
    pub snapshot: ArcSwap<Snapshot>,
    /// Handshakes that may be under way at once.
    pub handshakes: Semaphore,
    /// Bounds.
    pub limits: Limits,
    /// Deadlines.
    pub timeouts: Timeouts,
}

/// What answers the requests of one connection.
#[derive(Debug)]
struct Service {
    shared: Arc<Shared>,
    downstream: Arc<Downstream>,
}

/// Serves one accepted connection to its end. It never fails: what goes wrong is the client's.
/// `permit` is its place among those that may be open.
pub async fn serve(
    stream: TcpStream,
    peer: PeerAddr,
    permit: OwnedSemaphorePermit,
    shared: Arc<Shared>,
    worker: Arc<UpstreamContext>,
    drain: Drain,
) {
    let snapshot = shared.snapshot.load_full();
    let config = Arc::clone(&snapshot.tls);
    let accepted = tls::accept(
        stream,
        config,
        &shared.handshakes,
        shared.timeouts.handshake,
        worker.counts(),
    );
    // On the heap: the handshake needs much room for a moment, the connection little for hours.
    let stream = match Box::pin(accepted).await {
        Ok(stream) => stream,
        Err(error) => {
            worker.counts().handshake(error.as_ended());
            debug!(client.address = %peer, error = %error_chain(&error), "downstream handshake failed");
            return;
        }
    };
    // Fails only for a socket that is dead, which the next read says better.
    socket::set_user_timeout(stream.get_ref().0.tcp(), &shared.timeouts).ok();
    let session = stream.get_ref().1;
    let protocol = if session.alpn_protocol() == Some(b"h2") {
        Protocol::Http2
    } else {
        Protocol::Http1
    };
    let sni = session
        .server_name()
        .map(|name| name.trim_end_matches('.').to_ascii_lowercase());
    let counts = Arc::clone(worker.counts());
    counts.handshake(Handshake::Ok);
    let connected = Connected::new(counts, peer.0, protocol.label(), permit);
    let downstream = Downstream {
        peer,
        sni: sni.filter(|name| snapshot.routes.serves(name)),
        forwarded_for: Downstream::forwarded_for(peer),
        leases: ClientLeases::new(worker),
        limits: shared.limits.clone(),
        half_close_timeout: shared.timeouts.half_close_timeout,
        connected: Arc::new(connected),
        drain,
    };
    drop(snapshot);
    let service = Arc::new(Service {
        shared,
        downstream: Arc::new(downstream),
    });
    if let Err(error) = http::serve_connection(stream, protocol, service).await {
        debug!(client.address = %peer, error = %error_chain(&error), "downstream connection ended early");
    }
}
