//! The bounds and deadlines of a running proxy, each with its unit in the type and its reason here.
//!
//! What is not bounded, by design: how long a response, an upload or a tunnel takes as a whole.

use std::{num::NonZeroUsize, time::Duration};

/// How much of everything one process, connection or request may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Downstream connections open at once; the next one waits in the kernel's accept queue.
    pub connections: usize,
    /// TLS handshakes under way at once, over all workers.
    pub handshakes: usize,
    /// Streams that one downstream HTTP/2 connection may have open (the apiserver allows 100).
    pub streams_per_connection: u32,
    /// Bytes of all header fields of one request, names and values; over it the answer is 431.
    pub header_bytes: usize,
    /// Header fields of one request; over it the answer is 431.
    pub header_fields: usize,
    /// Bytes of the request target; over it the answer is 414. The URI parser stops at 65,534.
    pub uri_bytes: usize,
    /// Bytes of a request body that are kept so that an unprocessed request can be sent again.
    pub replay_bytes: usize,
    /// Spotless upstream connections that one worker keeps for the next client.
    pub idle_upstream_connections: usize,
}

/// How long the proxy waits for a peer, and how often it looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// The whole downstream TLS handshake.
    pub handshake: Duration,
    /// From the first byte of a request (or from the handshake, for the first one) to its full head.
    pub request_head: Duration,
    /// How long a client may keep a connection without a request on it (the apiserver: 90 s).
    pub client_idle: Duration,
    /// Silence on a downstream HTTP/2 connection after which it is pinged.
    pub client_ping_interval: Duration,
    /// How long a downstream ping may stay unanswered.
    pub client_ping_timeout: Duration,
    /// TCP connect, TLS handshake and HTTP preface with one endpoint.
    pub upstream_connect: Duration,
    /// How long a spotless upstream connection is kept; the apiserver closes idle ones at 90 s.
    pub upstream_idle: Duration,
    /// Silence on an upstream HTTP/2 connection after which it is pinged (client-go: 30 s).
    pub upstream_ping_interval: Duration,
    /// How long an upstream ping may stay unanswered (client-go: 15 s).
    pub upstream_ping_timeout: Duration,
    /// Idle time after which TCP itself probes a peer, on both legs.
    pub tcp_keepalive: Duration,
    /// How long a peer may leave sent bytes unacknowledged, or take none at all (Linux counts a window
    /// that stays closed, even one that is acknowledged), before the kernel gives it up. Not for tunnels.
    pub tcp_user_timeout: Duration,
    /// How long one half of a tunnel may stay open after the other half closed.
    pub half_close_timeout: Duration,
    /// How often each endpoint is probed; nought is never.
    pub probe_interval: Duration,
    /// How long a probe may take, from TCP to the head of the answer.
    pub probe_timeout: Duration,
    /// How long new connections are still served after SIGTERM, until others know of it.
    pub drain_delay: Duration,
    /// How long running requests may take to finish once the sockets are closed.
    pub drain: Duration,
    /// How long tunnels may go on after that moment.
    pub drain_tunnels: Duration,
    /// How often the upstream name is resolved again.
    pub resolve: Duration,
    /// How often certificates, keys, CAs and the configuration file are read again.
    pub reload: Duration,
}

impl Limits {
    /// The defaults for this many workers and open files.
    #[must_use]
    pub fn for_machine(workers: NonZeroUsize, open_files: usize) -> Self {
        Self {
            // Three quarters of the files for connections, which have two sockets each.
            connections: (open_files / 8).saturating_mul(3).clamp(1, MAX_CONNECTIONS),
            // Twice as many as 64 for each worker: a handshake waits for its client half the time.
            handshakes: workers.get().saturating_mul(2 * 64),
            ..Self::default()
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            handshakes: 256,
            streams_per_connection: 100,
            header_bytes: 64 * 1024,
            header_fields: 128,
            uri_bytes: 65_534,
            replay_bytes: 1024 * 1024,
            idle_upstream_connections: 64,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            request_head: Duration::from_secs(10),
            client_idle: Duration::from_secs(75),
            client_ping_interval: Duration::from_secs(30),
            client_ping_timeout: Duration::from_secs(20),
            upstream_connect: Duration::from_secs(5),
            upstream_idle: Duration::from_secs(60),
            upstream_ping_interval: Duration::from_secs(30),
            upstream_ping_timeout: Duration::from_secs(15),
            tcp_keepalive: Duration::from_secs(30),
            tcp_user_timeout: Duration::from_secs(45),
            half_close_timeout: Duration::from_secs(30),
            probe_interval: Duration::from_secs(5),
            probe_timeout: Duration::from_secs(2),
            drain_delay: Duration::from_secs(5),
            // With the delay 5 s less than the 30 s after which Kubernetes kills a pod.
            drain: Duration::from_secs(20),
            // A command and a copy end by themselves in this time; nothing finite suits a shell.
            drain_tunnels: Duration::from_secs(60),
            resolve: Duration::from_secs(30),
            reload: Duration::from_secs(10),
        }
    }
}

/// Beyond this one process is the wrong unit; run more of them.
const MAX_CONNECTIONS: usize = 100_000;
