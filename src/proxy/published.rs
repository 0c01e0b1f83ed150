//! The kubeconfig that a host publishes at `/.well-known/kubeconfig`, for people who have no credential yet.
//!
//! The proxy itself responds, so no request for it reaches an apiserver, whatever its method. The access rules are for
//! requests to the apiserver, so they do not judge it. The lists of the listener and the budgets of the client do.

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header, request::Parts};
use serde_json::{Map, Value, json};

use super::{
    Body, ClientConnection, Error, Rejection, access_log::AccessLog, policy::Admitted,
    request_id::X_REQUEST_ID,
};
use crate::{
    config::{self, PublishConfig},
    hosts::HostName,
    kubeconfig_document::{KubeconfigDocument, exec_user, to_yaml},
    text::list_items,
};

/// The parts of a cluster's published kubeconfig that are the same for every host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedKubeconfig {
    user: Value,
    ca: Option<String>,
    /// The path of the cluster below its hosts; usually empty.
    prefix: String,
}

impl PublishedKubeconfig {
    /// A kubeconfig with the program of `config`. `ca` is PEM; `None` if clients accept the proxy's certificate without
    /// it.
    #[must_use]
    pub fn new(config: &PublishConfig, ca: Option<String>) -> Self {
        let exec = config.exec.as_ref();
        let user = exec.map(|(command, args)| exec_user(command, args));
        Self {
            user: user.unwrap_or_else(|| json!({})),
            ca,
            prefix: String::new(),
        }
    }

    /// The same, for a cluster that its hosts serve below a path prefix.
    #[must_use]
    pub fn below(self, prefix: &str) -> Self {
        let prefix = prefix.to_owned();
        Self { prefix, ..self }
    }

    /// The document for clients that reach the proxy as `host` on `port`. `verified` is the name that they have
    /// verified.
    fn document(&self, host: &str, port: u16, verified: &str) -> String {
        let prefix = &self.prefix;
        // Several clusters of one host need several names.
        let name = format!("{host}{prefix}");
        let document = KubeconfigDocument {
            server: format!("https://{}{prefix}", config::authority(host, port)),
            tls_server_name: verified.to_owned(),
            cluster: name.clone(),
            user_name: name.clone(),
            context: name,
            namespace: None,
            ca: self.ca.clone(),
            user: self.user.clone(),
            cluster_settings: Map::new(),
        };
        to_yaml(&document.alone())
    }
}

/// Whether a request asks for the published kubeconfig.
pub(super) fn is_asked_for(head: &Parts) -> bool {
    head.uri.path() == PATH
}

/// Responds to a request for `kubeconfig`.
pub(super) fn respond(
    kubeconfig: &PublishedKubeconfig,
    head: &Parts,
    admitted: &Admitted,
    downstream: &ClientConnection,
    log: &AccessLog,
) -> Result<Response<Body>, Error> {
    let place = downstream.connected.place();
    let client = log.named().map(|named| &*named.client);
    let cluster = admitted.route.cluster.name();
    let check = place.check_budget(client, cluster, head, None);
    let check = check.map_err(Rejection::Throttled)?;
    // A status that neither accepts nor refuses the credential, because no apiserver has seen it.
    place.answered(client, check, StatusCode::BAD_GATEWAY);
    let is_head = head.method == Method::HEAD;
    // After an upgrade the next bytes could be meant for a tunnel.
    if !is_head && head.method != Method::GET || head.headers.contains_key(header::UPGRADE) {
        return Err(Rejection::PublishedMethod.into());
    }
    let host = HostName::new(admitted.authority.host());
    let verified = downstream.sni.as_deref();
    let verified = verified.filter(|_| host.is_address());
    let text = kubeconfig.document(
        host.as_str(),
        admitted.authority.port_u16().unwrap_or(443),
        verified.unwrap_or(host.as_str()),
    );
    let hash = BASE64_STANDARD.encode(digest(&SHA256, text.as_bytes()));
    let tag = HeaderValue::try_from(format!("\"{hash}\"")).map_err(|_| Rejection::BadHost)?;
    let is_known = is_known(&head.headers, tag.as_bytes());
    let mut response = Response::new(if is_head || is_known {
        Body::full("")
    } else {
        Body::full(text)
    });
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    let fields = [
        (header::CONTENT_TYPE, "application/yaml"),
        // A browser saves it and does not guess another type.
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (
            header::CONTENT_DISPOSITION,
            "attachment; filename=kubeconfig",
        ),
        // A cache asks each time, so that a change is seen at once.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    for (name, value) in fields {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(header::ETAG, tag);
    headers.insert(X_REQUEST_ID, log.id().header_value());
    Ok(response)
}

/// Whether the client has this version already (RFC 9110 §13.1.2: the comparison is weak).
fn is_known(headers: &HeaderMap, tag: &[u8]) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter();
    let mut tags = values.flat_map(|value| list_items(value.as_bytes()));
    tags.any(|known| known == b"*" || known.strip_prefix(b"W/").unwrap_or(known) == tag)
}

const PATH: &str = "/.well-known/kubeconfig";
