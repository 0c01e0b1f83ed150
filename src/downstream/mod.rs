//! Stages 2 and 3: takes one accepted connection through its TLS handshake, and serves HTTP/1.1 or HTTP/2 on
//! it. ALPN alone chooses the protocol.

mod http1;
mod http2;
#[cfg(test)]
mod tests;
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

use crate::{
    config::{Limits, Timeouts},
    drain::Drain,
    hosts::PeerAddr,
    metrics::{Connected, Handshake, Protocol},
    proxy::{Downstream, Routes},
    socket,
    text::error_chain,
    upstream::{ClientLeases, UpstreamContext},
};

/// The fuzz bodies of this stage: the framing of HTTP/1.1 requests, and the targets of HTTP/2 requests.
pub(crate) const FUZZ: [fn(&[u8]); 2] = [http1::fuzz, http2::fuzz];

/// What the benches measure of this stage.
pub(crate) mod bench {
    pub use super::http1::scan_requests;
}

/// Everything that a reload replaces, as one value.
#[derive(Debug)]
pub struct Snapshot {
    /// Read once per handshake.
    pub tls: Arc<ServerConfig>,
    /// Read once per request.
    pub routes: Arc<Routes>,
}

/// The state that all workers share. Nothing writes to it on the path of a request.
#[derive(Debug)]
pub struct Shared {
    /// The current state of everything that can be reloaded.
    pub snapshot: ArcSwap<Snapshot>,
    /// Slots for handshakes in progress.
    pub handshakes: Semaphore,
    /// Limits of the configuration.
    pub limits: Limits,
    /// Timeouts of the configuration.
    pub timeouts: Timeouts,
}

/// Everything that the requests of one connection need.
#[derive(Debug)]
struct Service {
    shared: Arc<Shared>,
    downstream: Arc<Downstream>,
}

/// Serves one accepted connection to its end. It returns no error, because every error here is the client's.
/// `permit` counts the connection against `limits.connections`.
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
        worker.counters(),
    );
    // On the heap: the handshake needs much memory for a moment, the connection little for hours.
    let stream = match Box::pin(accepted).await {
        Ok(stream) => stream,
        Err(error) => {
            worker.counters().handshakes.count(error.as_ended());
            debug!(client.address = %peer, error = %error_chain(&error), "downstream handshake failed");
            return;
        }
    };
    // It fails only for a dead socket, which the next read reports.
    socket::set_user_timeout(stream.get_ref().0.tcp(), &shared.timeouts).ok();
    let session = stream.get_ref().1;
    // No ALPN means HTTP/1.1: kubectl offers none when it dials for an upgrade.
    let protocol = if session.alpn_protocol() == Some(b"h2") {
        Protocol::Http2
    } else {
        Protocol::Http1
    };
    let sni = session
        .server_name()
        .map(|name| name.trim_end_matches('.').to_ascii_lowercase());
    let counters = Arc::clone(worker.counters());
    counters.handshakes.count(Handshake::Ok);
    let connected = Connected::new(counters, peer.0, protocol, permit);
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
    let served = match protocol {
        Protocol::Http1 => http1::serve(stream, service).await,
        // On the heap, so that an HTTP/1.1 connection does not need as much memory.
        Protocol::Http2 => Box::pin(http2::serve(stream, service)).await,
    };
    if let Err(error) = served {
        debug!(client.address = %peer, error = %error_chain(&error), "downstream connection ended early");
    }
}
