//! All metric families: name, kind, labels and help.
//!
//! `docs/metrics.md` is generated from this list, and only families of this list can be exposed.

use std::fmt::Write as _;

/// One metric family.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// The exposed name.
    pub name: &'static str,
    /// The kind of its values.
    pub kind: MetricKind,
    /// Each label and a description of its values.
    pub labels: &'static [(&'static str, &'static str)],
    /// The help text.
    pub help: &'static str,
}

/// The kind of the values of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows while the process runs.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations in buckets.
    Histogram,
    /// Always 1; the information is in the labels.
    Info,
}

impl MetricKind {
    /// The name of the kind in `OpenMetrics`. The Prometheus format has no `info`; there it is a gauge.
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

/// Declares a static for each family, and the list of all.
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

        /// All families, in the order of the exposition.
        pub static FAMILIES: &[&Family] = &[$(&$name),+];
    };
}

const VERBS: &str = "`get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `connect` \
    (exec, attach, port-forward), `proxy`, `other`";
const RESOURCES: &str = "a resource of kube-apiserver such as `pods` or `pods/exec`; `custom` for other API groups, \
    `nonresource` for paths such as `/version`, `other`";
const CODES: &str = "three digits, or `no_response` if the client left before there was a response; a code without a \
    name counts as the first of its class, such as `500`";
const PROTOCOLS: &str = "`http/1.1`, `h2`";
const CONNECTION_PROTOCOLS: &str =
    "`http/1.1`, `h2`, `passthrough` (passed on to an apiserver as it is)";
const CLUSTERS: &str = "the name of the cluster in the configuration";
const CLUSTERS_OR_NONE: &str = "the name of the cluster in the configuration; empty if the proxy refused the request \
    before it chose a cluster";

families! {
    BUILD = Info "kube_tls_proxy_build_info" ["version": "the version of kube-tls-proxy"]
        "The running version.";
    CONNECTIONS = Gauge "kube_tls_proxy_connections" []
        "Open client connections, tunnels included.";
    CONNECTIONS_LIMIT = Gauge "kube_tls_proxy_connections_limit" []
        "Limit of open client connections. Further ones wait, or are refused.";
    MEMORY_LIMIT = Gauge "kube_tls_proxy_memory_limit_bytes" []
        "Memory that the process may use: the limit of its cgroup, else the memory of the machine.";
    MEMORY_SHORT = Gauge "kube_tls_proxy_memory_short" []
        "1 while memory is short, else 0: from 85 % in use until less than 80 % is. The proxy then accepts clients slowly.";
    CONNECTIONS_TOTAL = Counter "kube_tls_proxy_connections_total" ["protocol": CONNECTION_PROTOCOLS]
        "Client connections after a successful TLS handshake, or after the `ClientHello` for a passthrough host.";
    HANDSHAKES = Counter "kube_tls_proxy_handshakes_total" ["result": "`ok`, `passed` (the apiserver continues the handshake), `timeout`, `failed`, `closed` (another client needed the place), `plain_http` (the client sent HTTP without TLS), `proxy_header` (no valid PROXY header from a load balancer, or one from another peer), `denied` (`allow` or `deny` of the listener keeps the client out; closed before the handshake), `challenge` (a CA has validated a name by ACME), `no_certificate` (a CA has yet to issue the certificate)"]
        "TLS handshakes with clients.";
    REQUESTS = Counter "kube_tls_proxy_requests_total"
        ["cluster": CLUSTERS_OR_NONE, "verb": VERBS, "resource": RESOURCES, "code": CODES, "protocol": PROTOCOLS]
        "Completed requests. A watch or tunnel counts when it closes.";
    REQUESTS_IN_FLIGHT = Gauge "kube_tls_proxy_requests_in_flight" ["cluster": CLUSTERS]
        "Requests that have begun and not ended. Watches, followed logs and tunnels are left out once they are open.";
    REQUEST_TIME_TO_HEADERS = Histogram "kube_tls_proxy_request_time_to_headers_seconds"
        ["cluster": CLUSTERS_OR_NONE, "verb": VERBS]
        "Time from the head of the request to the head of the response. Responses of the proxy itself are left out: `errors_total` counts them.";
    REQUEST_DURATION = Histogram "kube_tls_proxy_request_duration_seconds" ["cluster": CLUSTERS_OR_NONE, "verb": VERBS]
        "Time from the head of the request to the end of the response. Watches, followed logs and tunnels are left out.";
    RECEIVED = Counter "kube_tls_proxy_received_bytes_total" []
        "Bytes from clients in request bodies and tunnels. They count when the request or tunnel ends.";
    SENT = Counter "kube_tls_proxy_sent_bytes_total" []
        "Bytes to clients in response bodies and tunnels. Those of a tunnel count when it ends.";
    WATCHES = Gauge "kube_tls_proxy_watches" ["cluster": CLUSTERS]
        "Open watches and followed logs.";
    TUNNELS = Gauge "kube_tls_proxy_tunnels" ["cluster": CLUSTERS]
        "Open upgraded connections (exec, attach, cp, port-forward) and open passthrough connections.";
    TUNNELS_ENDED = Counter "kube_tls_proxy_tunnels_ended_total"
        ["cluster": CLUSTERS, "end": "`complete` (in order), `client` or `apiserver` (that side broke off), `proxy` (one half stayed open, or \
            another client needed the place), `drained` (the proxy stopped)"]
        "Tunnels that have ended, by who ended them. The log has the reason.";
    LEASES_TAKEN = Counter "kube_tls_proxy_leases_taken_total" ["from": "`dial`, `idle`"]
        "Upstream connections leased to a client connection: newly dialled, or from the idle pool.";
    LEASES_RETIRED = Counter "kube_tls_proxy_leases_retired_total"
        ["reason": "`goaway`, `unauthorized` (a response was 401), `reset` (a request was aborted), `closed`, \
            `generation` (a reload replaced CA or settings), `age` (idle for too long), `upgrade`, `full` (the idle pool was full), \
            `balance` (another apiserver had far fewer)"]
        "Upstream connections that are no longer used, by reason.";
    DIALS = Counter "kube_tls_proxy_upstream_dials_total"
        ["cluster": CLUSTERS, "result": "`ok`, `refused`, `outbound_proxy` (it has opened no connection), `timeout`, `verify` (certificate not accepted), `tls`, `protocol`, `other`"]
        "Attempts to connect to an apiserver.";
    ENDPOINT_HEALTHY = Gauge "kube_tls_proxy_endpoint_healthy"
        ["cluster": CLUSTERS, "endpoint": "address and port"]
        "1 if the endpoint is verified and healthy, 0 if it is unhealthy or was not probed yet.";
    DISCOVERED_ENDPOINTS = Gauge "kube_tls_proxy_discovered_endpoints"
        ["cluster": "each cluster with `discover: endpoints`"]
        "Apiservers that the cluster has named last; 0 before it has named any, while the address of the Service is used.";
    DISCOVERY_CHANGED = Gauge "kube_tls_proxy_discovery_last_change_timestamp_seconds"
        ["cluster": "each cluster with `discover: endpoints` that has named apiservers"]
        "When their addresses last changed, in Unix time.";
    DISCOVERY_SUCCESSFUL = Gauge "kube_tls_proxy_discovery_successful"
        ["cluster": "each cluster with `discover: endpoints`"]
        "1 if the last attempt to learn the addresses of the apiservers succeeded, 0 if it failed and the known ones stay in use.";
    DISCOVERY_FAILURES = Counter "kube_tls_proxy_discovery_failures_total"
        ["cluster": "each cluster with `discover: endpoints`"]
        "Failed attempts to learn the addresses of the apiservers.";
    ENDPOINT_TIME_TO_HEADERS = Histogram "kube_tls_proxy_endpoint_time_to_headers_seconds"
        ["cluster": CLUSTERS, "endpoint": "address and port"]
        "Time from the head of the request to the head of the response, by the endpoint that sent it. Tunnels are left out.";
    ENDPOINT_CONNECT = Histogram "kube_tls_proxy_endpoint_connect_seconds"
        ["cluster": CLUSTERS, "endpoint": "address and port", "step": "`tcp`, or the handshake after it: `tls`"]
        "How long connections to the endpoint took to open, also those of health checks. One that failed is left out.";
    CERTIFICATE_NOT_AFTER = Gauge "kube_tls_proxy_certificate_not_after_timestamp_seconds"
        ["name": "the first name of the certificate"]
        "Expiry of the certificate that clients see, in Unix time.";
    CERTIFICATE_NOT_BEFORE = Gauge "kube_tls_proxy_certificate_not_before_timestamp_seconds"
        ["name": "the first name of the certificate"]
        "Start of its validity, in Unix time: with its expiry the lifetime, on which it depends how much is left too late.";
    ACME_ORDERS = Counter "kube_tls_proxy_acme_orders_total"
        ["name": "the first name of the certificate", "result": "`ok`, `failed`"]
        "Orders of a certificate by ACME, the first one included. Only for certificates with `acme`.";
    ACME_NEXT_ORDER = Gauge "kube_tls_proxy_acme_next_order_timestamp_seconds"
        ["name": "the first name of the certificate"]
        "When the proxy orders the certificate next, in Unix time. Only for certificates with `acme`.";
    CA_NOT_AFTER = Gauge "kube_tls_proxy_ca_not_after_timestamp_seconds" ["cluster": CLUSTERS]
        "Earliest expiry of the trusted CAs of the cluster, in Unix time.";
    CA_NOT_BEFORE = Gauge "kube_tls_proxy_ca_not_before_timestamp_seconds" ["cluster": CLUSTERS]
        "Start of validity of the trusted CA that expires first, in Unix time.";
    FRONT_PROXY_NOT_AFTER = Gauge "kube_tls_proxy_front_proxy_certificate_not_after_timestamp_seconds" ["cluster": CLUSTERS]
        "Expiry of the front-proxy certificate of the cluster, in Unix time. Only for clusters with `clientCertificates`.";
    CLIENT_CA_NOT_AFTER = Gauge "kube_tls_proxy_client_ca_not_after_timestamp_seconds" ["cluster": CLUSTERS]
        "Earliest expiry of the CAs of client certificates of the cluster, in Unix time. Only for clusters with `clientCertificates`.";
    REVOCATION_LIST_NEXT_UPDATE = Gauge "kube_tls_proxy_revocation_list_next_update_timestamp_seconds" ["cluster": CLUSTERS]
        "When the first revocation list of client certificates is out of date, so that they are refused, in Unix time. Only for clusters with `crl`.";
    RELOADS = Counter "kube_tls_proxy_reloads_total" ["result": "`ok`, `failed`, `unchanged`"]
        "Reloads of configuration, certificates, keys and CAs.";
    LAST_RELOAD_SUCCESSFUL = Gauge "kube_tls_proxy_last_reload_successful" []
        "1 if the last reload succeeded, 0 if it failed and the previous configuration stays in use.";
    UNUSABLE_CLUSTER_FILES = Gauge "kube_tls_proxy_unusable_cluster_files" []
        "Files of the directory of clusters that cannot be used: their clusters keep the last good state, or are left out.";
    LAST_RELOAD = Gauge "kube_tls_proxy_last_reload_timestamp_seconds" []
        "Time of the last reload that found a change, valid or not, in Unix time.";
    LIMITS_HIT = Counter "kube_tls_proxy_limits_hit_total"
        ["limit": "`connections` (all places are taken: a new connection waits or is refused), \
            `client_places` (a connection was closed because its client has the most and others need places), \
            `client_unauthorized` (the proxy refused a request because the apiserver refuses the credentials of its client), \
            `client_requests` (a client is over `limits.requestsPerClient`; answered with 429), \
            `client_connections` (a new connection was refused: its client has `limits.connectionsPerClient`), \
            `handshakes` (a handshake waits), `header_fields`, `header_bytes`, \
            `uri_bytes` (answered with 431 or 414), `streams` (a client has the maximum open), \
            `client_stall` (a client did not read a response for 60 s, so the response was aborted), \
            `upstream_connections` (a client connection uses the maximum; answered with 503), \
            `upstream_sockets` (no socket was free for a connection to the apiserver; answered with 503), \
            `upload_rate` (a request body came too slowly; answered with 408), \
            `memory` (memory was short; a client waited, or lost responses that it did not read), \
            `replay_copies` (a request was sent without a copy, so the proxy cannot send it again), \
            `frames` (a client sent too many control frames or cancelled too many requests, and its connection ended)"]
        "How often a limit was reached.";
    ERRORS = Counter "kube_tls_proxy_errors_total"
        ["cluster": CLUSTERS_OR_NONE, "reason": "`rejected`, `denied`, `no_endpoint`, `upstream_connections`, `connect`, \
            `outbound_proxy` (it has opened no connection), `connect_timeout`, `handshake`, `verify`, \
            `unprocessed`, `lost`, `upload`, `protocol`, `front_proxy` (its certificate has expired), \
            `impersonation_token` (it cannot be used)"]
        "Error responses of the proxy itself, in place of a response of the apiserver. A passthrough connection that no apiserver accepts counts too; it is closed.";
    ACCESS_DENIED = Counter "kube_tls_proxy_access_denied_total"
        ["cluster": CLUSTERS, "rule": "the number of the rule in the configuration, or `none` if no rule allows the request"]
        "Requests that the access rules of a cluster have denied.";
    LOG_LINES_DROPPED = Counter "kube_tls_proxy_log_lines_dropped_total" []
        "Log lines that were lost because the reader of the log was too slow or refused them, as a full disk does.";
    DRAINING = Gauge "kube_tls_proxy_draining" []
        "1 after the proxy received a stop signal, else 0.";
    PROCESS_START_TIME = Gauge "process_start_time_seconds" []
        "Start of the process, in Unix time.";
    PROCESS_CPU = Counter "process_cpu_seconds_total" []
        "CPU time of the process, in user space and in the kernel.";
    PROCESS_RESIDENT_MEMORY = Gauge "process_resident_memory_bytes" []
        "Resident memory of the process.";
    PROCESS_OPEN_FDS = Gauge "process_open_fds" []
        "Open file descriptors.";
    PROCESS_MAX_FDS = Gauge "process_max_fds" []
        "Limit of open file descriptors.";
}

/// The content of `docs/metrics.md`.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from(REFERENCE_HEAD);
    for family in FAMILIES {
        let Family {
            name, kind, help, ..
        } = family;
        // Writing to a `String` cannot fail.
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

<!-- Generated by `UPDATE=1 cargo test metrics_reference`. Edit src/metrics/families.rs instead. -->

`/metrics` on the [admin port](configuration.md#the-admin-port) serves these metrics in the Prometheus text format, or as
OpenMetrics text if the `Accept` field asks for it, as Prometheus does. Each worker has its own counters; `/metrics` shows
the sums.

A counter whose labels have fixed values, or the clusters of the configuration as values, starts at 0, so that `increase()`
sees the first event. Requests and durations appear with the first event, because they would be thousands of lines.

Labels never contain client input; unknown values count as `other` or `custom`, so cardinality is bounded. A cluster that
a reload removes keeps its series until the process ends. After 999 different names, new ones share the name `other`. A request whose
head cannot be read counts in `errors_total` and `limits_hit_total`, but not in `requests_total`.

## Reference
";

#[cfg(test)]
mod tests {
    use std::{env, fs, path::Path};

    use super::*;
    use crate::metrics::{
        Dialled, ErrorReason, Handshake, Issued, LeaseEnd, LeaseFrom, Limit, Protocol, Reloaded,
        TunnelEnd, Verb,
    };

    #[test]
    fn metrics_reference_is_current() {
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
    fn metrics_reference_lists_every_label_value() {
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
                &CONNECTIONS_TOTAL,
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
            (
                &TUNNELS_ENDED,
                "end",
                labels(TunnelEnd::ALL, TunnelEnd::label),
            ),
            (&DIALS, "result", labels(Dialled::ALL, Dialled::label)),
            (&ACME_ORDERS, "result", labels(Issued::ALL, Issued::label)),
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
    fn metric_names_follow_prometheus_rules() {
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
