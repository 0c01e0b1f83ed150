//! Every metric there is: its name, what kind it is, its labels and what it means.
//!
//! `docs/metrics.md` is written from this list; a name that is not in it cannot be exposed.

use std::fmt::Write as _;

/// One metric, with all its label values.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// As it is exposed.
    pub name: &'static str,
    /// What its numbers do.
    pub kind: MetricKind,
    /// Each label and the values it may have.
    pub labels: &'static [(&'static str, &'static str)],
    /// What it means, as a sentence.
    pub help: &'static str,
}

/// What the numbers of a metric do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// They only grow, until the process ends.
    Counter,
    /// They go up and down.
    Gauge,
    /// Durations in buckets.
    Histogram,
    /// Always 1; the labels say it.
    Info,
}

impl MetricKind {
    /// As `OpenMetrics` calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

/// The statics and the list of them.
macro_rules! families {
    ($($name:ident = $kind:ident $text:literal [$($label:literal: $values:expr),*] $help:literal;)+) => {
        $(
            #[doc = $help]
            pub static $name: Family = Family {
                name: $text,
                kind: MetricKind::$kind,
                labels: &[$(($label, $values)),*],
                help: $help,
            };
        )+

        /// All of them, in the order of the exposition.
        pub static FAMILIES: &[&Family] = &[$(&$name),+];
    };
}

const VERBS: &str = "`get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `connect` \
    (exec, attach, port-forward), `proxy`, `other`";
const RESOURCES: &str = "a kind of kube-apiserver such as `pods` or `pods/exec`; `custom` for every other API group, \
    `nonresource` for paths such as `/version`, `other`";
const CODES: &str = "three digits; `000` when the client left before there was an answer; a code without a name is \
    its class's first, such as `500`";
const PROTOCOLS: &str = "`http/1.1`, `h2`";
const CLUSTERS: &str = "the name of the cluster in the configuration";

families! {
    BUILD = Info "kube_tls_proxy_build_info" ["version": "the version of kube-tls-proxy"]
        "Which version runs.";
    CONNECTIONS = Gauge "kube_tls_proxy_connections" []
        "Client connections that are open, tunnels included.";
    CONNECTIONS_LIMIT = Gauge "kube_tls_proxy_connections_limit" []
        "Client connections that may be open at once; the next client waits.";
    CONNECTIONS_TOTAL = Counter "kube_tls_proxy_connections_total" ["protocol": PROTOCOLS]
        "Client connections whose TLS handshake succeeded.";
    HANDSHAKES = Counter "kube_tls_proxy_handshakes_total" ["result": "`ok`, `timeout`, `failed`"]
        "TLS handshakes with clients.";
    REQUESTS = Counter "kube_tls_proxy_requests_total"
        ["verb": VERBS, "resource": RESOURCES, "code": CODES, "protocol": PROTOCOLS]
        "Requests that have come to their end, a watch or tunnel when it is closed.";
    REQUEST_TIME_TO_HEADERS = Histogram "kube_tls_proxy_request_time_to_headers_seconds" ["verb": VERBS]
        "From a request's head to the head of its answer.";
    REQUEST_DURATION = Histogram "kube_tls_proxy_request_duration_seconds" ["verb": VERBS]
        "From a request's head to the end of its answer, without watches, followed logs and tunnels.";
    RECEIVED = Counter "kube_tls_proxy_received_bytes_total" []
        "Bytes of request bodies and tunnels from clients, added when the request or tunnel ends.";
    SENT = Counter "kube_tls_proxy_sent_bytes_total" []
        "Bytes of response bodies and tunnels to clients; a tunnel's are added when it ends.";
    WATCHES = Gauge "kube_tls_proxy_watches" []
        "Watches and followed logs that are open.";
    TUNNELS = Gauge "kube_tls_proxy_tunnels" []
        "Upgraded connections that are open: exec, attach, cp, port-forward.";
    LEASES_TAKEN = Counter "kube_tls_proxy_leases_taken_total" ["from": "`dial`, `idle`"]
        "Upstream connections that a client connection took for itself, new or used before.";
    LEASES_RETIRED = Counter "kube_tls_proxy_leases_retired_total"
        ["reason": "`goaway`, `unauthorized` (an answer was 401), `reset` (a request did not end well), `closed`, \
            `generation` (CA or settings were replaced), `age` (idle for too long), `upgrade`, `full` (enough idle ones)"]
        "Upstream connections that are used no more, by why.";
    DIALS = Counter "kube_tls_proxy_upstream_dials_total"
        ["cluster": CLUSTERS, "result": "`ok`, `refused`, `timeout`, `verify` (its certificate), `tls`, `protocol`, `other`"]
        "Attempts to connect to an apiserver.";
    ENDPOINT_HEALTHY = Gauge "kube_tls_proxy_endpoint_healthy"
        ["cluster": CLUSTERS, "endpoint": "address and port"]
        "1 if the endpoint was verified and works, 0 if it is ill or was never tried.";
    CERTIFICATE_NOT_AFTER = Gauge "kube_tls_proxy_certificate_not_after_seconds"
        ["name": "the first name of the certificate"]
        "When the certificate that clients see expires, in Unix time.";
    CA_NOT_AFTER = Gauge "kube_tls_proxy_ca_not_after_seconds" ["cluster": CLUSTERS]
        "When the first of the trusted CAs of the cluster expires, in Unix time.";
    RELOADS = Counter "kube_tls_proxy_reloads_total" ["result": "`ok`, `failed`, `unchanged`"]
        "How often configuration, certificates, keys and CAs were read again.";
    LAST_RELOAD_SUCCESSFUL = Gauge "kube_tls_proxy_last_reload_successful" []
        "1 if what was read last is in use, 0 if it is wrong and the state before it stays.";
    LAST_RELOAD = Gauge "kube_tls_proxy_last_reload_seconds" []
        "When something new was last found in configuration and files, usable or not, in Unix time.";
    LIMITS_HIT = Counter "kube_tls_proxy_limits_hit_total"
        ["limit": "`connections` (a client waits), `handshakes` (one waits for another), `header_fields`, `header_bytes`, \
            `uri_bytes` (answered with 431 or 414), `streams` (a client has as many open as it may)"]
        "How often a limit of the configuration was reached.";
    ERRORS = Counter "kube_tls_proxy_errors_total"
        ["reason": "`rejected`, `no_endpoint`, `connect`, `connect_timeout`, `handshake`, `verify`, `unprocessed`, \
            `lost`, `upload`, `protocol`"]
        "Answers that the proxy made itself, in place of the apiserver.";
    LOG_LINES_DROPPED = Counter "kube_tls_proxy_log_lines_dropped_total" []
        "Log lines that were dropped because they were not read fast enough.";
    DRAINING = Gauge "kube_tls_proxy_draining" []
        "1 from the signal to stop on.";
    PROCESS_START_TIME = Gauge "process_start_time_seconds" []
        "When the process started, in Unix time.";
    PROCESS_RESIDENT_MEMORY = Gauge "process_resident_memory_bytes" []
        "Memory of the process in RAM.";
    PROCESS_OPEN_FDS = Gauge "process_open_fds" []
        "Open file descriptors.";
}

/// The text of `docs/metrics.md`.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from(REFERENCE_HEAD);
    for family in FAMILIES {
        let Family {
            name, kind, help, ..
        } = family;
        // Writing to a String cannot fail.
        write!(text, "\n### `{name}`\n\n{help} ({})\n", kind.name()).ok();
        if !family.labels.is_empty() {
            text.push_str("\n| label | values |\n| --- | --- |\n");
        }
        for (label, values) in family.labels {
            writeln!(text, "| `{label}` | {values} |").ok();
        }
    }
    text
}

const REFERENCE_HEAD: &str = "\
# Metrics

<!-- Written by `UPDATE=1 cargo test metrics_reference`; change src/metrics/families.rs instead. -->

`/metrics` on the [admin port](configuration.md#the-admin-port) has these, as OpenMetrics text. Each worker counts for
itself, and what is shown is the sum.

Where the values of a label are a closed set, or the clusters of the configuration, each counter is there from the start,
at 0, so that the first event is an increase; requests and durations are not, since they would be thousands of lines.

No label is text of a client: what is in none of the sets below is counted under `other` or `custom`, so that no client
can make series. A request whose head could not even be read is in `errors_total` and `limits_hit_total`, and not in
`requests_total`.

## All of them
";

#[cfg(test)]
mod tests {
    use std::{env, fs, path::Path};

    use super::*;
    use crate::metrics::{
        Dialled, ErrorReason, Handshake, LeaseEnd, LeaseFrom, Limit, Protocol, Reloaded, Verb,
    };

    #[test]
    fn the_metrics_reference_is_current() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
        if env::var_os("UPDATE").is_some() {
            fs::write(&file, reference()).unwrap();
        }
        assert!(
            fs::read_to_string(&file).unwrap_or_default() == reference(),
            "docs/metrics.md is stale: UPDATE=1 cargo test metrics_reference"
        );
    }

    #[test]
    fn the_reference_names_every_value_of_a_closed_set() {
        fn labels<L: Copy>(all: &[L], label: impl Fn(L) -> &'static str) -> Vec<&'static str> {
            all.iter().map(|value| label(*value)).collect()
        }
        for (family, label, values) in [
            (&REQUESTS, "verb", labels(Verb::ALL, Verb::label)),
            (
                &REQUEST_TIME_TO_HEADERS,
                "verb",
                labels(Verb::ALL, Verb::label),
            ),
            (
                &REQUESTS,
                "protocol",
                labels(Protocol::ALL, Protocol::label),
            ),
            (
                &HANDSHAKES,
                "result",
                labels(Handshake::ALL, Handshake::label),
            ),
            (
                &LEASES_TAKEN,
                "from",
                labels(LeaseFrom::ALL, LeaseFrom::label),
            ),
            (
                &LEASES_RETIRED,
                "reason",
                labels(LeaseEnd::ALL, LeaseEnd::label),
            ),
            (&DIALS, "result", labels(Dialled::ALL, Dialled::label)),
            (&RELOADS, "result", labels(Reloaded::ALL, Reloaded::label)),
            (&LIMITS_HIT, "limit", labels(Limit::ALL, Limit::label)),
            (
                &ERRORS,
                "reason",
                labels(ErrorReason::ALL, ErrorReason::label),
            ),
        ] {
            let (_, text) = family
                .labels
                .iter()
                .find(|(name, _)| *name == label)
                .unwrap();
            for value in values {
                assert!(
                    text.contains(&format!("`{value}`")),
                    "{}: {value}",
                    family.name
                );
            }
        }
    }

    #[test]
    fn names_are_as_prometheus_wants_them() {
        for family in FAMILIES {
            let name = family.name;
            assert!(
                name.starts_with("kube_tls_proxy_") || name.starts_with("process_"),
                "{name}"
            );
            assert_eq!(
                name.ends_with("_total"),
                family.kind == MetricKind::Counter,
                "{name}"
            );
            assert_eq!(
                name.ends_with("_info"),
                family.kind == MetricKind::Info,
                "{name}"
            );
            assert!(family.help.ends_with('.'), "{name}: {}", family.help);
        }
    }
}
