//! Passes one connection through to an apiserver: the `ClientHello`, then the bytes of both sides.
//!
//! Client and apiserver speak TLS with each other, and the proxy sees no plaintext. After the `ClientHello` was sent
//! upstream, the client gets no byte that is not the apiserver's: no alert and no HTTP response. If no apiserver could
//! get it, the proxy sends an alert, which kubectl prints at once. After a plain close client-go would repeat each GET
//! for ten seconds, and kubectl would print `EOF` after up to a minute.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::{
    Error,
    access_log::{DRAINED, TARGET, seconds},
    error,
    tunnel::{self, Carried, TunnelError},
};
use crate::{
    activity::{LongLived, StreamInfo},
    drain::{ConnectionKind, Drain},
    ending::{EndReason, Ending},
    hosts::UpstreamAddr,
    metrics::{ClusterSlot, Connected, Limit, OpenStream, TunnelEnd},
    quote,
    text::{error_chain, escape},
    transport::{LINGER, ReadAhead, send_last},
    upstream::{Cluster, NoAnswer, PassedHello, UpstreamContext},
};

/// A client whose `ClientHello` asks for a passthrough host.
#[derive(Debug)]
pub(crate) struct PassedClient {
    /// The connection. Its next bytes are those that follow the `ClientHello`.
    pub(crate) stream: ReadAhead,
    /// The `ClientHello`, as it came.
    pub(crate) hello: Vec<u8>,
    /// The name in it.
    pub(crate) server_name: String,
    /// The cluster of that name. The connection keeps it when a reload removes it.
    pub(crate) cluster: Arc<Cluster>,
}

/// Sends the `ClientHello` to an apiserver and starts the tunnel in a task of its own. Returns when the tunnel has
/// started, or when no apiserver has answered.
pub(crate) async fn pass(
    client: PassedClient,
    connected: Connected,
    context: &UpstreamContext,
    half_close_timeout: Duration,
    drain: &Drain,
) {
    let PassedClient {
        stream,
        hello,
        server_name,
        cluster,
    } = client;
    let mut log = PassthroughLog::new(connected, &cluster, &server_name);
    let answered = tokio::select! {
        answered = cluster.pass_hello(context, &hello) => answered,
        () = log.connected.place().closing() => {
            log.connected.counters().limits_hit.count(Limit::ClientPlaces);
            return log.end(PassthroughEnd::Aborted, Ending::by_proxy(EndReason::Place));
        }
    };
    let apiserver = match answered {
        Ok(PassedHello { stream, endpoint }) => {
            log.begin_tunnel(endpoint);
            stream
        }
        Err(NoAnswer { error, was_sent }) => {
            if !was_sent {
                // A client that does not read it is gone.
                timeout(LINGER, send_last(stream, &INTERNAL_ERROR))
                    .await
                    .ok();
            }
            return log.failed(&error.into());
        }
    };
    // The tunnel needs neither for hours.
    log.carried.up = hello.len() as u64;
    drop((hello, server_name));
    let counted = drain.count(ConnectionKind::Tunnel);
    drain.spawn(async move {
        let _counted = counted;
        let joined = tunnel::join_in_place(
            stream,
            apiserver,
            half_close_timeout,
            &log.connected,
            &mut log.carried,
        );
        match joined.await {
            Ok(ended) => log.end(PassthroughEnd::Complete, ended),
            Err(TunnelError { ending, error }) => {
                let client = log.connected.client();
                debug!(client.address = %client, error = %error_chain(&error), "passthrough aborted");
                log.end(PassthroughEnd::Aborted, ending);
            }
        }
    });
}

/// Records one connection that is passed through. Dropping it counts and logs the connection.
#[derive(Debug)]
struct PassthroughLog {
    connected: Connected,
    started: Instant,
    cluster: ClusterSlot,
    /// The name that the client asked for, safe for a log.
    server_name: Box<str>,
    endpoint: Option<UpstreamAddr>,
    carried: Carried,
    /// How it ended, and who ended it. `None` if it was dropped before its end, at the end of the drain.
    end: Option<(PassthroughEnd, Ending)>,
    open: Option<OpenStream>,
    /// Whether the line is written, and how many lines about this client were left out before it.
    suppressed: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
enum PassthroughEnd {
    Complete,
    Aborted,
    Failed(&'static str),
}

impl PassthroughLog {
    fn new(connected: Connected, cluster: &Cluster, server_name: &str) -> Self {
        let server_name = escape(&quote::name(server_name), MAX_NAME_CHARS).to_string();
        let (slot, _) = connected.counters().clusters().begin(cluster.label());
        Self {
            started: Instant::now(),
            cluster: slot,
            server_name: server_name.into(),
            endpoint: None,
            carried: Carried::default(),
            end: None,
            open: None,
            suppressed: Some(0),
            connected,
        }
    }

    /// Counts and lists the connection as a tunnel.
    fn begin_tunnel(&mut self, endpoint: UpstreamAddr) {
        self.endpoint = Some(endpoint);
        self.connected.place().become_tunnel();
        let counters = self.connected.counters();
        let info = StreamInfo {
            kind: LongLived::Tunnel,
            cluster: counters.clusters().name(self.cluster),
            client: self.connected.client().0,
            user_agent: Box::default(),
            user: None,
            resource: "passthrough".into(),
            namespace: Box::default(),
            name: StreamInfo::text(&self.server_name),
        };
        self.open = Some(counters.open_connection(self.cluster, info, self.started));
    }

    /// Notes how the connection ended, and writes its line.
    fn end(mut self, outcome: PassthroughEnd, ending: Ending) {
        self.end = Some((outcome, ending));
    }

    /// Counts and logs why no apiserver answered.
    fn failed(mut self, error: &Error) {
        self.suppressed = error::count(
            error,
            self.cluster,
            &self.connected,
            self.connected.client(),
        );
        if let Some(lines) = self.suppressed {
            warn!(
                cluster = self.connected.cluster_name(self.cluster),
                client.address = %self.connected.client(),
                network.peer.address = self.connected.network_peer().map(display),
                tls.client.server_name = &*self.server_name,
                upstream.address = error.endpoint().map(display),
                "error.type" = error.label(),
                error = error::cause(error),
                suppressed_lines = Some(lines).filter(|lines| *lines > 0),
                "passthrough failed"
            );
        }
        self.end(PassthroughEnd::Failed(error.label()), error.ending());
    }
}

impl Drop for PassthroughLog {
    fn drop(&mut self) {
        let counters = self.connected.counters();
        counters.received.add(self.carried.up);
        counters.sent.add(self.carried.down);
        let (outcome, ending) = self.end.unwrap_or_else(|| {
            let drained = Ending::by_proxy(EndReason::Drain);
            (
                PassthroughEnd::Aborted,
                self.connected.end().unwrap_or(drained),
            )
        });
        let is_drained = ending.reason.is_of_drain();
        if self.open.is_some() {
            let tunnels_ended = &counters.clusters().get(self.cluster).tunnels_ended;
            tunnels_ended.count(match outcome {
                _ if is_drained => TunnelEnd::Drained,
                PassthroughEnd::Complete => TunnelEnd::Complete,
                PassthroughEnd::Aborted | PassthroughEnd::Failed(_) => TunnelEnd::by(ending.by),
            });
        }
        let Some(suppressed) = self.suppressed else {
            return;
        };
        info!(
            target: TARGET,
            cluster = self.connected.cluster_name(self.cluster),
            client.address = %self.connected.client(),
            network.peer.address = self.connected.network_peer().map(display),
            tls.client.server_name = &*self.server_name,
            upstream.address = self.endpoint.map(display),
            received_bytes = self.carried.up,
            sent_bytes = self.carried.down,
            duration_seconds = seconds(self.started.elapsed()),
            outcome = match outcome {
                _ if is_drained => DRAINED,
                PassthroughEnd::Complete => "complete",
                PassthroughEnd::Aborted => "aborted",
                PassthroughEnd::Failed(label) => label,
            },
            ended_by = ending.by.label(),
            reason = ending.reason.label(),
            suppressed_lines = Some(suppressed).filter(|lines| *lines > 0),
            "passthrough",
        );
    }
}

/// The record of a fatal alert `internal_error` (RFC 8446 §6.2).
const INTERNAL_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];
/// A DNS name has no more.
const MAX_NAME_CHARS: usize = 253;
