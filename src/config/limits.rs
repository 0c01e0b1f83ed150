//! The bounds and timeouts of a running proxy, one row per setting.
//!
//! A row has everything about a setting: what it bounds and why, how the file writes it, its type and its default. To
//! derive `Deserialize` for the running structs would not be enough: a key without a value means the default, some
//! defaults depend on the machine, and the file keeps positions for its errors.
//!
//! By design, nothing bounds how long a response, an upload or a tunnel takes as a whole.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::units::{Count, MaybeZeroDuration, RefusalCount, RequestRate, Size, Timeout, Written};
use crate::token_bucket::TokenBucketSize;

/// Defines the settings that the proxy runs with, and the section of the file that they come from. Each row is
/// `name: type in the file => type of the running proxy = default;`. The docs of a row are also the description in
/// the JSON Schema.
macro_rules! settings {
    (
        $(#[doc = $doc:literal])*
        pub struct $settings:ident, $section:ident {
            $(
                $(#[doc = $row_doc:literal])*
                $name:ident: $(#[$attribute:meta])* $written:ty => $type:ty = $default:expr;
            )*
        }
    ) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $settings {
            $($(#[doc = $row_doc])* pub $name: $type,)*
        }

        impl Default for $settings {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        $(#[doc = $doc])*
        #[derive(Debug, Default, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        pub(super) struct $section {
            $($(#[doc = $row_doc])* $(#[$attribute])* pub(super) $name: Option<$written>,)*
        }

        impl $section {
            /// The settings of the file; those of `default` for the keys that it does not have.
            pub(super) fn or(self, default: $settings) -> $settings {
                $settings { $($name: self.$name.map_or(default.$name, Written::value),)* }
            }
        }
    };
}

settings! {
    /// How much one process, connection or request may use.
    pub struct Limits, LimitsSection {
        /// Client connections open at once; the client with the most makes room for others. By default as many as open
        /// files and memory allow.
        connections: #[schemars(with = "Option<Count<1, 1_000_000>>")] Spanned<Count<1, 1_000_000>> => usize = 10_000;
        /// Connections that one client (an IPv4 address or an IPv6 /64) may have open; by default as many as there are.
        connections_per_client: Count<1, 1_000_000> => Option<usize> = None;
        /// Requests that one client may send; by default any number. Over it the response is 429.
        requests_per_client: RequestRate => Option<TokenBucketSize> = None;
        /// How often the apiserver may refuse one credential of a client; then the proxy refuses it.
        unauthorized_per_client: RefusalCount => TokenBucketSize = TokenBucketSize::new(60, Duration::from_secs(60));
        /// TLS handshakes in progress at once, over all workers; by default 128 per worker. One client has half at
        /// most.
        handshakes: Count<1, 1_000_000> => usize = 256;
        /// Streams that one HTTP/2 client connection may have open (the apiserver allows 100).
        streams_per_connection: Count<1, 10_000> => u32 = 100;
        /// Bytes of all header fields of one request, names and values; over it the response is 431.
        header_bytes: Size<8_192, 1_048_576> => usize = 64 * 1024;
        /// Header fields of one request; over it the response is 431.
        header_fields: Count<16, 10_000> => usize = 128;
        /// Bytes of path and query of one request; over it the response is 414. The URI parser stops at 65,534.
        uri_bytes: Size<1_024, 65_534> => usize = 65_534;
        /// Bytes of a request body that are kept so that an unprocessed request can be sent again.
        replay_bytes: Size<0, 67_108_864> => usize = 1024 * 1024;
        /// Reusable apiserver connections that one worker keeps for its next clients.
        idle_upstream_connections: Count<0, 10_000> => usize = 64;
    }
}

settings! {
    /// How long the proxy waits for a peer, and how often it checks.
    pub struct Timeouts, TimeoutsSection {
        /// The whole TLS handshake with a client.
        handshake: Timeout => Duration = Duration::from_secs(5);
        /// From the first byte of a request (from the handshake, for the first request) to the end of its head.
        request_head: Timeout => Duration = Duration::from_secs(10);
        /// How long a client may keep a connection without a request (the apiserver: 90 s).
        client_idle: Timeout => Duration = Duration::from_secs(75);
        /// Silence on an HTTP/2 client connection before the proxy sends a ping.
        client_ping_interval: Timeout => Duration = Duration::from_secs(30);
        /// How long the client may take to acknowledge that ping.
        client_ping_timeout: Timeout => Duration = Duration::from_secs(20);
        /// TCP, TLS and HTTP set-up with one apiserver address.
        upstream_connect: Timeout => Duration = Duration::from_secs(5);
        /// How long an unused apiserver connection is kept; the apiserver closes it at 90 s.
        upstream_idle: Timeout => Duration = Duration::from_secs(60);
        /// Silence on an HTTP/2 apiserver connection before the proxy sends a ping (client-go: 30 s).
        upstream_ping_interval: Timeout => Duration = Duration::from_secs(30);
        /// How long the apiserver may take to acknowledge that ping (client-go: 15 s).
        upstream_ping_timeout: Timeout => Duration = Duration::from_secs(15);
        /// Idle time before TCP probes a peer, client or apiserver.
        tcp_keepalive: Timeout => Duration = Duration::from_secs(30);
        /// How long a peer may leave sent bytes unacknowledged, or read nothing. Does not apply to tunnels.
        // Linux also counts a window that stays closed, even one that the peer acknowledges.
        tcp_user_timeout: Timeout => Duration = Duration::from_secs(45);
        /// How long one half of a tunnel may stay open after the other half closed.
        half_close_timeout: MaybeZeroDuration => Duration = Duration::from_secs(30);
        /// How often each apiserver address is probed; 0s turns probes off.
        probe_interval: MaybeZeroDuration => Duration = Duration::from_secs(5);
        /// How long one probe may take, from TCP to the head of the response.
        probe_timeout: Timeout => Duration = Duration::from_secs(2);
        /// How long the proxy still serves new clients after SIGTERM; 0s refuses them at once.
        // Load balancers need this time to stop sending new clients.
        drain_delay: MaybeZeroDuration => Duration = Duration::from_secs(5);
        /// How long running requests may take to finish after `drainDelay`; 0s ends them at once.
        // With the delay 5 s less than the 30 s after which Kubernetes kills a pod.
        drain: MaybeZeroDuration => Duration = Duration::from_secs(20);
        /// How long tunnels (exec, port-forward) may stay open after `drainDelay`; never less than `drain`.
        // Most commands and copies end by themselves in this time. No finite time is enough for a shell.
        drain_tunnels: MaybeZeroDuration => Duration = Duration::from_secs(60);
        /// How often the name of the apiserver is resolved again.
        resolve: Timeout => Duration = Duration::from_secs(30);
        /// How often certificates, keys, CAs and the configuration file are read again.
        reload: Timeout => Duration = Duration::from_secs(10);
    }
}

/// The settings that connections and workers use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How much may be used.
    pub limits: Limits,
    /// Timeouts and intervals.
    pub timeouts: Timeouts,
    /// Whether a response that refuses a credential says why that may be.
    pub hints: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            hints: true,
        }
    }
}

/// The current settings of the process, which a reload replaces. A connection keeps those of its beginning.
pub type LiveSettings = Arc<ArcSwap<Settings>>;
