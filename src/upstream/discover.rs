//! Finds all apiservers of the pod's cluster: lists the `EndpointSlice` of the Service `kubernetes`, and watches it.
//!
//! Each round lists, then watches from that state until the watch ends, for whatever reason. No round resumes the watch
//! of another one: the list is one small object, and so no watch is too old, and no event can be missed in between.
//!
//! The token of the pod is read for each request, because the kubelet replaces it about every hour. Nothing else uses
//! it, above all no request of a client.

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};

use super::{
    Cluster, H1Error, UpstreamContext, UpstreamError,
    endpoint::with_jitter,
    h1::{H1Connection, H1Response},
    own_get::own_get,
};
use crate::{
    hosts::UpstreamAddr,
    pki::pod_authorization,
    text::{error_chain, escape},
};

/// Why the cluster named no apiserver.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiscoveryError {
    /// The token file cannot be used.
    #[error("{0}")]
    Token(String),
    /// The name of the Service has no address.
    #[error("cannot look up the Service `kubernetes`")]
    Lookup(#[source] io::Error),
    /// No apiserver answered.
    #[error(transparent)]
    Request(#[from] UpstreamError),
    /// The response, or its body, did not arrive in time.
    #[error("no response within {} s", RESPONSE_TIMEOUT.as_secs())]
    Silent,
    /// The body ended early.
    #[error("the response is incomplete")]
    Body(#[from] H1Error),
    /// The body is longer than that of any `EndpointSlice`.
    #[error("the response is longer than {MAX_BODY} bytes")]
    TooLong,
    /// The apiserver does not know the token.
    #[error(
        "the apiserver rejects the token of the pod ({status}); mount a token of its ServiceAccount for the audience of the apiserver"
    )]
    Unauthorized {
        /// Status and message.
        status: String,
    },
    /// The Role is missing.
    #[error(
        "the apiserver does not let the pod {verb} the EndpointSlice `kubernetes` ({status}); create the Role and RoleBinding of config/kubernetes/components/discovery in the namespace `default`"
    )]
    Forbidden {
        /// The verb that is missing.
        verb: &'static str,
        /// Status and message.
        status: String,
    },
    /// Another status than 200.
    #[error("the apiserver answered {status}")]
    Status {
        /// Status and message.
        status: String,
    },
    /// The body is not what an apiserver sends.
    #[error("the response is not that of an apiserver")]
    Json(#[from] serde_json::Error),
    /// There is no `EndpointSlice`, or no apiserver in it is ready.
    #[error(
        "the EndpointSlice `kubernetes` in the namespace `default` names no apiserver; look at it with `kubectl --namespace default get endpointslice kubernetes`"
    )]
    Empty,
}

impl Cluster {
    /// Uses the endpoints that the cluster names, until the future is dropped. Returns at once if it is not to be
    /// asked. `asked` learns when it was asked for the first time, with whatever result.
    pub async fn keep_discovered(
        self: Arc<Self>,
        context: Arc<UpstreamContext>,
        asked: oneshot::Sender<()>,
    ) {
        let Some(token) = self.endpoints.discovery_token() else {
            return;
        };
        let mut asked = Some(asked);
        let mut delay = MIN_RETRY;
        loop {
            let began = Instant::now();
            let round = Round {
                cluster: &self,
                context: &context,
                token,
            };
            if let Err(error) = round.run(&mut asked).await {
                let why = error_chain(&error).to_string();
                self.endpoints.discovery_failed(why);
            }
            drop(asked.take());
            if began.elapsed() > MAX_RETRY {
                delay = MIN_RETRY;
            }
            tokio::time::sleep(with_jitter(delay)).await;
            delay = (delay * 2).min(MAX_RETRY);
        }
    }
}

/// One list, and the watch after it.
struct Round<'a> {
    cluster: &'a Cluster,
    context: &'a UpstreamContext,
    token: &'a Path,
}

impl Round<'_> {
    /// Returns when the watch has ended, which is no error: an apiserver ends each watch some time.
    async fn run(&self, asked: &mut Option<oneshot::Sender<()>>) -> Result<(), DiscoveryError> {
        let listed = timeout(RESPONSE_TIMEOUT, self.list()).await;
        let listed = listed.unwrap_or(Err(DiscoveryError::Silent))?;
        let found = listed.addresses()?;
        self.cluster.endpoints.named_by_cluster(&found);
        drop(asked.take());
        let watched = with_jitter(WATCH_TIME);
        let watch = ReadSlice::watch(&listed.metadata.resource_version, watched);
        let response = timeout(RESPONSE_TIMEOUT, self.ask(watch)).await;
        let mut lines = Lines::new(response.unwrap_or(Err(DiscoveryError::Silent))?);
        self.cluster.endpoints.discovery_works();
        // The apiserver ends the watch before that, unless it is gone.
        let deadline = Instant::now() + watched + RESPONSE_TIMEOUT;
        while let Ok(Some(line)) = timeout_at(deadline, lines.next()).await.unwrap_or(Ok(None)) {
            let event: WatchEvent = serde_json::from_slice(&line)?;
            match &*event.kind {
                "ADDED" | "MODIFIED" => {
                    let slice: EndpointSlice = serde_json::from_value(event.object)?;
                    let found = checked(slice.addresses())?;
                    self.cluster.endpoints.named_by_cluster(&found);
                }
                "DELETED" => return Err(DiscoveryError::Empty),
                // `ERROR`, for example because the apiserver has forgotten the state of the list.
                _ => break,
            }
        }
        Ok(())
    }

    async fn list(&self) -> Result<SliceList, DiscoveryError> {
        let response = self.ask(ReadSlice::list()).await?;
        let body = read(response.into_body()).await?;
        Ok(serde_json::from_slice(&body)?)
    }

    /// Sends the request. The address of the Service comes first: it leads to an apiserver even if all those that are
    /// known are gone.
    async fn ask(
        &self,
        request: ReadSlice,
    ) -> Result<Response<H1Response<H1Connection>>, DiscoveryError> {
        let headers = request.headers(self.token)?;
        let endpoints = self.cluster.endpoints();
        let (of_host, mut last) = match endpoints.of_host().await {
            Ok(found) => (found, DiscoveryError::Empty),
            Err(error) => (Vec::new(), DiscoveryError::Lookup(error)),
        };
        for endpoint in of_host.into_iter().chain(endpoints.pick()) {
            let sent = own_get(
                self.context,
                self.cluster,
                &endpoint,
                &request.target,
                headers.clone(),
            );
            match timeout(TRY_TIMEOUT, sent).await {
                Ok(Ok(response)) if response.status() == StatusCode::OK => return Ok(response),
                Ok(Ok(response)) => {
                    let (head, body) = response.into_parts();
                    let body = read(body).await.unwrap_or_default();
                    let refused = request.refused(head.status, &body);
                    // Another apiserver may be ready, or may not be overloaded.
                    let others_may_work = head.status.is_server_error()
                        || head.status == StatusCode::TOO_MANY_REQUESTS;
                    if !others_may_work {
                        return Err(refused);
                    }
                    last = refused;
                }
                Ok(Err(error)) => last = error.into(),
                Err(_elapsed) => last = DiscoveryError::Silent,
            }
        }
        Err(last)
    }
}

/// A request for the `EndpointSlice` with the addresses of the apiservers. No other request carries the pod's token.
#[derive(Debug)]
pub(crate) struct ReadSlice {
    /// Path and query.
    pub(crate) target: String,
    verb: &'static str,
}

impl ReadSlice {
    /// All of it, as it is now.
    pub(crate) fn list() -> Self {
        Self {
            target: SLICE.to_owned(),
            verb: "list",
        }
    }

    /// Its changes from this state on, for this time.
    pub(crate) fn watch(from: &str, time: Duration) -> Self {
        let safe = from.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let from = if safe { from } else { "" };
        let seconds = time.as_secs();
        Self {
            target: format!("{SLICE}&watch=1&resourceVersion={from}&timeoutSeconds={seconds}"),
            verb: "watch",
        }
    }

    /// Its header fields, with the token that the file has now.
    ///
    /// # Errors
    ///
    /// When the file has no token.
    pub(crate) fn headers(&self, token: &Path) -> Result<HeaderMap, DiscoveryError> {
        let authorization = pod_authorization(token).map_err(DiscoveryError::Token)?;
        Ok(HeaderMap::from_iter([
            (header::ACCEPT, HeaderValue::from_static("application/json")),
            (header::USER_AGENT, HeaderValue::from_static(USER_AGENT)),
            (header::AUTHORIZATION, authorization),
        ]))
    }

    /// The addresses in the body of the response to a list.
    ///
    /// # Errors
    ///
    /// When it is not what an apiserver sends, or names no apiserver.
    pub(crate) fn addresses(body: &[u8]) -> Result<Vec<SocketAddr>, DiscoveryError> {
        let list: SliceList = serde_json::from_slice(body)?;
        let found = list.addresses()?;
        Ok(found.into_iter().map(|address| address.0).collect())
    }

    /// Why an apiserver that answers with this status does not tell.
    pub(crate) fn refused(&self, status: StatusCode, body: &[u8]) -> DiscoveryError {
        let message = serde_json::from_slice::<Value>(body).ok();
        let message = message
            .as_ref()
            .and_then(|body| body.get("message")?.as_str());
        let text = message.map_or_else(
            || status.to_string(),
            |message| format!("{status}: {}", escape(message, MAX_MESSAGE)),
        );
        let (status, verb) = (status, self.verb);
        match status {
            StatusCode::UNAUTHORIZED => DiscoveryError::Unauthorized { status: text },
            StatusCode::FORBIDDEN => DiscoveryError::Forbidden { verb, status: text },
            _ => DiscoveryError::Status { status: text },
        }
    }
}

/// An `EndpointSliceList`.
#[derive(Debug, Deserialize)]
struct SliceList {
    metadata: ListMetadata,
    /// Go writes an empty list as `null`.
    items: Option<Vec<EndpointSlice>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    resource_version: String,
}

#[derive(Debug, Deserialize)]
struct WatchEvent {
    #[serde(rename = "type")]
    kind: String,
    object: Value,
}

/// Those fields of an `EndpointSlice` that name addresses.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndpointSlice {
    address_type: String,
    endpoints: Option<Vec<SliceEndpoint>>,
    ports: Option<Vec<SlicePort>>,
}

#[derive(Debug, Deserialize)]
struct SliceEndpoint {
    addresses: Vec<String>,
    #[serde(default)]
    conditions: SliceConditions,
}

#[derive(Debug, Default, Deserialize)]
struct SliceConditions {
    ready: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct SlicePort {
    name: Option<String>,
    port: Option<u16>,
}

impl SliceList {
    fn addresses(&self) -> Result<Vec<UpstreamAddr>, DiscoveryError> {
        let slices = self.items.iter().flatten();
        checked(slices.flat_map(EndpointSlice::addresses).collect())
    }
}

impl EndpointSlice {
    /// The address of each apiserver. All addresses of one endpoint lead to the same server, so the first counts.
    fn addresses(&self) -> Vec<SocketAddr> {
        let ports = self.ports.as_deref().unwrap_or_default();
        let https = ports
            .iter()
            .find(|port| port.name.as_deref() == Some("https"));
        let port = https.or_else(|| ports.first()).and_then(|port| port.port);
        let Some(port) = port.filter(|port| *port != 0) else {
            return Vec::new();
        };
        // The third type has names, which nothing checks.
        let has_addresses = matches!(&*self.address_type, "IPv4" | "IPv6");
        let endpoints = self.endpoints.iter().flatten().filter(|_| has_addresses);
        let ready = endpoints.filter(|endpoint| endpoint.conditions.ready != Some(false));
        let addresses = ready.filter_map(|endpoint| {
            let ip: IpAddr = endpoint.addresses.first()?.parse().ok()?;
            Some(SocketAddr::new(ip, port))
        });
        addresses.collect()
    }
}

/// The addresses in order, each once, at most [`MAX_ENDPOINTS`].
fn checked(mut found: Vec<SocketAddr>) -> Result<Vec<UpstreamAddr>, DiscoveryError> {
    found.sort_unstable();
    found.dedup();
    found.truncate(MAX_ENDPOINTS);
    if found.is_empty() {
        return Err(DiscoveryError::Empty);
    }
    Ok(found.into_iter().map(UpstreamAddr).collect())
}

/// Reads a body to its end.
async fn read(body: H1Response<H1Connection>) -> Result<Bytes, DiscoveryError> {
    let mut lines = Lines {
        body,
        unread: BytesMut::new(),
    };
    while lines.read_more().await? {}
    Ok(lines.unread.freeze())
}

/// The body of a watch, line by line.
struct Lines {
    body: H1Response<H1Connection>,
    unread: BytesMut,
}

impl Lines {
    fn new(response: Response<H1Response<H1Connection>>) -> Self {
        Self {
            body: response.into_body(),
            unread: BytesMut::new(),
        }
    }

    /// The next line; `None` at the end of the body.
    async fn next(&mut self) -> Result<Option<Bytes>, DiscoveryError> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.unread) {
                return Ok(Some(self.unread.split_to(end + 1).freeze()));
            }
            if !self.read_more().await? {
                return Ok(None);
            }
        }
    }

    /// Returns `false` at the end of the body.
    async fn read_more(&mut self) -> Result<bool, DiscoveryError> {
        let Some(frame) = poll_fn(|cx| self.body.poll_frame(cx)).await else {
            return Ok(false);
        };
        let data = frame?.into_data().unwrap_or_default();
        if self.unread.len() + data.len() > MAX_BODY {
            return Err(DiscoveryError::TooLong);
        }
        self.unread.extend_from_slice(&data);
        Ok(true)
    }
}

/// The fuzz body of this module: the response to a list, and events of a watch.
pub(super) fn fuzz(input: &[u8]) {
    if let Ok(found) = ReadSlice::addresses(input) {
        assert!((1..=MAX_ENDPOINTS).contains(&found.len()));
        assert!(found.iter().all(|address| address.port() != 0));
    }
    for line in input.split(|byte| *byte == b'\n') {
        if let Ok(event) = serde_json::from_slice::<WatchEvent>(line) {
            serde_json::from_value::<EndpointSlice>(event.object).ok();
        }
    }
}

/// The `EndpointSlice` that the apiservers write, by its name: the smallest Role names it, too.
const SLICE: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?fieldSelector=metadata.name%3Dkubernetes";
/// How these requests appear in an audit log.
const USER_AGENT: &str = concat!("kube-tls-proxy/", env!("CARGO_PKG_VERSION"), " discovery");
/// How long a list may take, and the head of a watch.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one apiserver may take, before the next one is asked.
const TRY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a watch lasts. Others use as much: an apiserver that is gone without a trace is noticed then at the latest.
const WATCH_TIME: Duration = Duration::from_secs(420);
/// The time between two rounds, which doubles while they are short.
const MIN_RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(30);
/// Far more than an `EndpointSlice` has, which is 100 endpoints at most by default.
const MAX_BODY: usize = 1024 * 1024;
/// No cluster has more apiservers.
const MAX_ENDPOINTS: usize = 100;
const MAX_MESSAGE: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    fn found(slice: &str) -> Result<Vec<String>, DiscoveryError> {
        let list = format!(r#"{{"metadata": {{"resourceVersion": "1"}}, "items": [{slice}]}}"#);
        let found = ReadSlice::addresses(list.as_bytes())?;
        Ok(found.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn ready_addresses_are_read_from_the_slice() {
        let ports = r#""ports": [{"name": "other", "port": 1}, {"name": "https", "port": 6443}]"#;
        for (endpoints, expected) in [
            (r#"{"addresses": ["192.0.2.2"]}"#, &["192.0.2.2:6443"][..]),
            (
                r#"{"addresses": ["192.0.2.2"], "conditions": {}}"#,
                &["192.0.2.2:6443"],
            ),
            (
                r#"{"addresses": ["192.0.2.9"], "conditions": {"ready": false}}, {"addresses": ["192.0.2.2"]}"#,
                &["192.0.2.2:6443"],
            ),
            (
                r#"{"addresses": ["192.0.2.3"]}, {"addresses": ["192.0.2.2"]}, {"addresses": ["192.0.2.3"]}"#,
                &["192.0.2.2:6443", "192.0.2.3:6443"],
            ),
            (
                r#"{"addresses": ["apiserver.example", "192.0.2.2"]}, {"addresses": ["2001:db8::1"]}"#,
                &["[2001:db8::1]:6443"],
            ),
        ] {
            let slice =
                format!(r#"{{"addressType": "IPv4", "endpoints": [{endpoints}], {ports}}}"#);
            assert_eq!(found(&slice).unwrap(), expected, "{slice}");
        }
    }

    #[test]
    fn slice_without_a_usable_address_is_empty() {
        let endpoints = r#""endpoints": [{"addresses": ["192.0.2.2"]}]"#;
        for slice in [
            String::new(),
            r#"{"addressType": "IPv4", "endpoints": null, "ports": null}"#.to_owned(),
            format!(r#"{{"addressType": "IPv4", {endpoints}, "ports": []}}"#),
            format!(r#"{{"addressType": "IPv4", {endpoints}, "ports": [{{"port": 0}}]}}"#),
            format!(r#"{{"addressType": "IPv4", {endpoints}, "ports": [{{"name": "https"}}]}}"#),
            format!(r#"{{"addressType": "FQDN", {endpoints}, "ports": [{{"port": 443}}]}}"#),
        ] {
            let result = found(&slice);
            assert!(
                matches!(result, Err(DiscoveryError::Empty)),
                "{slice}: {result:?}"
            );
        }
        for list in ["", "{}", "[]", r#"{"kind": "Status"}"#] {
            let result = ReadSlice::addresses(list.as_bytes());
            assert!(
                matches!(result, Err(DiscoveryError::Json(_))),
                "{list}: {result:?}"
            );
        }
    }

    #[test]
    fn endless_slice_is_bounded() {
        let many = (0..300)
            .map(|host| format!(r#"{{"addresses": ["10.0.{}.{}"]}}"#, host / 250, host % 250));
        let many: Vec<_> = many.collect();
        let slice = format!(
            r#"{{"addressType": "IPv4", "endpoints": [{}], "ports": [{{"port": 443}}]}}"#,
            many.join(",")
        );
        assert_eq!(found(&slice).unwrap().len(), MAX_ENDPOINTS);
    }

    #[test]
    fn state_of_the_list_cannot_change_the_request() {
        let watch = |from| ReadSlice::watch(from, Duration::from_secs(9)).target;
        assert!(watch("712").ends_with("kubernetes&watch=1&resourceVersion=712&timeoutSeconds=9"));
        assert!(watch("7&watch=0").contains("&resourceVersion=&timeoutSeconds"));
    }

    #[test]
    fn refusal_says_which_right_is_missing() {
        let body = br#"{"kind": "Status", "message": "endpointslices is \u001b forbidden"}"#;
        let list = ReadSlice::list();
        let text = |status| list.refused(status, body).to_string();
        let forbidden = text(StatusCode::FORBIDDEN);
        assert!(
            forbidden.contains("list the EndpointSlice") && !forbidden.contains('\u{1b}'),
            "{forbidden}"
        );
        assert!(text(StatusCode::UNAUTHORIZED).contains("rejects the token of the pod"));
        assert_eq!(
            list.refused(StatusCode::BAD_GATEWAY, b"<html>").to_string(),
            "the apiserver answered 502 Bad Gateway"
        );
    }
}
