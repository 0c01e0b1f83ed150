//! Handlers that behave like a small kube-apiserver, enough for a real kubectl.
//!
//! They support discovery, namespaces, pods (get, list, watch, create, update, patch, delete; as tables too),
//! selectors, logs, exec over WebSocket and `kubectl auth whoami`; they refuse all else and name [`COMMANDS`]. As in
//! kube-apiserver, a 401 or an anonymous request over HTTP/2 causes a GOAWAY for its whole connection.
//!
//! ```no_run
//! # async fn example() {
//! use standin::{kubernetes::{Kubernetes, Pod}, pki::Ca, upstream::Upstream};
//!
//! let cluster = Kubernetes::new().token("secret", "jane", &["dev"]);
//! cluster.apply(Pod::running("web-0"));
//! let apiserver = Upstream::builder(Ca::new("cluster").server(&["127.0.0.1"])).kubernetes(&cluster).start().await;
//! # }
//! ```

mod clock;
mod discovery;
mod exec;
mod patch;
mod pods;
mod query;
mod response;
mod selector;
mod shell;
mod store;
mod watch;
mod websocket;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version, header};
use serde_json::json;

pub use store::Pod;

use crate::upstream::{Builder, RequestBody, full};
use query::Query;
use response::{ApiResponse, Refusal, failure, ok};
use store::Store;

/// What kubectl can do with its pods.
pub const COMMANDS: &str = "get, describe, logs, exec, apply, create -f, edit, patch, label, annotate, replace, diff, run, delete, \
     wait, auth whoami, api-resources and version";

/// The user of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
struct User {
    name: String,
    groups: Vec<String>,
}

/// A small cluster. Clones share it.
#[derive(Debug, Clone)]
pub struct Kubernetes(Arc<Cluster>);

#[derive(Debug, Clone)]
struct Cluster {
    version: String,
    tokens: BTreeMap<String, User>,
    goaway: Goaway,
    log_interval: Duration,
    bookmark_interval: Duration,
    store: Arc<Store>,
    audit: Arc<AtomicU64>,
}

/// Whether 401 and anonymous requests over HTTP/2 cause a GOAWAY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goaway {
    /// As in kube-apiserver 1.29 and newer.
    WhenUnauthenticated,
    /// As in older versions.
    Never,
}

impl Kubernetes {
    /// A cluster without pods and tokens. Until a token is added, every client may do everything.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Cluster {
            version: "v1.32.4".to_owned(),
            tokens: BTreeMap::new(),
            goaway: Goaway::WhenUnauthenticated,
            log_interval: Duration::from_secs(1),
            bookmark_interval: Duration::from_secs(60),
            store: Arc::new(Store::new()),
            audit: Arc::default(),
        }))
    }

    /// Adds a bearer token. With at least one token, requests without a token are anonymous, and requests
    /// with an unknown token receive 401.
    #[must_use]
    pub fn token(self, token: &str, user: &str, groups: &[&str]) -> Self {
        let groups = groups.iter().map(ToString::to_string).collect();
        let user = User {
            name: user.to_owned(),
            groups,
        };
        self.with(|cluster| drop(cluster.tokens.insert(token.to_owned(), user)))
    }

    /// Sets whether 401 and anonymous requests over HTTP/2 cause a GOAWAY.
    #[must_use]
    pub fn goaway(self, goaway: Goaway) -> Self {
        self.with(|cluster| cluster.goaway = goaway)
    }

    /// The time between two lines of a followed log. Default: one second.
    #[must_use]
    pub fn log_interval(self, interval: Duration) -> Self {
        self.with(|cluster| cluster.log_interval = interval)
    }

    /// The time between two bookmarks of a watch that allows them. Default: one minute.
    #[must_use]
    pub fn bookmark_interval(self, interval: Duration) -> Self {
        self.with(|cluster| cluster.bookmark_interval = interval)
    }

    /// The version that it reports, such as `v1.32.4`.
    #[must_use]
    pub fn version(self, version: &str) -> Self {
        self.with(|cluster| version.clone_into(&mut cluster.version))
    }

    /// Adds or changes a pod and sends an event to the watchers.
    pub fn apply(&self, pod: Pod) {
        self.0.store.apply(pod);
    }

    /// Adds a pod that is created again when it is deleted, as a pod of a `StatefulSet` is.
    pub fn keep(&self, pod: Pod) {
        self.0.store.keep(pod);
    }

    /// Removes a pod and sends an event to the watchers.
    pub fn delete(&self, namespace: &str, name: &str) {
        self.0.store.delete(namespace, name);
    }

    /// Handles one request.
    pub async fn respond(&self, request: Request<RequestBody>) -> ApiResponse {
        self.0.respond(request).await
    }

    fn with(self, change: impl FnOnce(&mut Cluster)) -> Self {
        let mut cluster = Arc::unwrap_or_clone(self.0);
        change(&mut cluster);
        Self(Arc::new(cluster))
    }
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    /// Uses this cluster as the handler of all requests.
    #[must_use]
    pub fn kubernetes(self, cluster: &Kubernetes) -> Self {
        let cluster = cluster.clone();
        self.http(move |request| {
            let cluster = cluster.clone();
            async move { cluster.respond(request).await }
        })
    }
}

/// The outcome of authentication.
enum Identity {
    Known(User),
    Anonymous,
    Unauthorized,
}

impl Cluster {
    async fn respond(&self, request: Request<RequestBody>) -> ApiResponse {
        let is_http2 = request.version() == Version::HTTP_2;
        let asked_audit = request.headers().get("audit-id").cloned();
        let identity = self.authenticate(request.headers());
        let unauthenticated = !matches!(identity, Identity::Known(_));
        let mut response = match identity {
            Identity::Known(user) => {
                let user = impersonated(request.headers(), user);
                self.serve(request, &user)
                    .await
                    .unwrap_or_else(|refusal| refusal.response())
            }
            Identity::Anonymous => self.anonymous(request.uri().path()),
            Identity::Unauthorized => {
                failure(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
            }
        };
        let headers = response.headers_mut();
        if unauthenticated && is_http2 && self.goaway == Goaway::WhenUnauthenticated {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        headers.insert("audit-id", asked_audit.unwrap_or_else(|| self.audit_id()));
        response
    }

    fn audit_id(&self) -> HeaderValue {
        let number = self.audit.fetch_add(1, Ordering::Relaxed);
        HeaderValue::from_str(&format!("00000000-0000-4000-8000-{number:012x}"))
            .expect("hexadecimal digits are valid")
    }

    fn authenticate(&self, headers: &HeaderMap) -> Identity {
        if self.tokens.is_empty() {
            return Identity::Known(User {
                name: "anyone".to_owned(),
                groups: Vec::new(),
            });
        }
        let known = |token: &str| match self.tokens.get(token) {
            Some(user) => Identity::Known(user.clone()),
            None => Identity::Unauthorized,
        };
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        if let Some(token) =
            text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "))
        {
            return known(token);
        }
        let protocols = text(header::SEC_WEBSOCKET_PROTOCOL)
            .unwrap_or_default()
            .split(',')
            .map(str::trim);
        let mut tokens = protocols
            .filter_map(|name| name.strip_prefix("base64url.bearer.authorization.k8s.io."));
        match tokens.next().map(|token| URL_SAFE_NO_PAD.decode(token)) {
            None => Identity::Anonymous,
            Some(token) => known(&String::from_utf8_lossy(&token.unwrap_or_default())),
        }
    }

    /// Handles the paths that the role `system:public-info-viewer` allows for every client.
    fn anonymous(&self, path: &str) -> ApiResponse {
        match path {
            "/livez" | "/readyz" | "/healthz" => response::text(full("ok")),
            "/version" | "/version/" => self.discover(path),
            _ => {
                let message =
                    format!("forbidden: User \"system:anonymous\" cannot get path \"{path}\"");
                failure(StatusCode::FORBIDDEN, "Forbidden", &message)
            }
        }
    }

    fn discover(&self, path: &str) -> ApiResponse {
        match discovery::document(path, &self.version) {
            Some(document) => ok(&document),
            None => failure(
                StatusCode::NOT_FOUND,
                "NotFound",
                "the server could not find the requested resource",
            ),
        }
    }

    async fn serve(
        &self,
        request: Request<RequestBody>,
        user: &User,
    ) -> Result<ApiResponse, Refusal> {
        let path = request.uri().path().to_owned();
        let query = Query::from_uri(request.uri());
        let accept = request
            .headers()
            .get(header::ACCEPT)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let as_table = watch::wants_table(accept);
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let store = &self.store;
        let pods =
            |namespace| watch::pods(store, namespace, &query, as_table, self.bookmark_interval);
        let upgrades = request.headers().contains_key(header::UPGRADE);
        Ok(match (request.method(), &parts[..]) {
            (&Method::GET, ["api", "v1", .., "pods"]) if upgrades && query.is_set("watch") => {
                watch::over_websocket(request)
            }
            (&Method::GET, ["livez" | "readyz" | "healthz"]) => response::text(full("ok")),
            (&Method::GET, ["api", "v1", "pods"]) => pods(None)?,
            (&Method::GET, ["api", "v1", "namespaces", namespace, "pods"]) => {
                pods(Some(namespace))?
            }
            (&Method::POST, ["api", "v1", "namespaces", namespace, "pods"]) => {
                pods::create(store, namespace, request, &query).await?
            }
            (&Method::GET, ["api", "v1", "namespaces", rest @ ..]) if rest.len() < 2 => {
                namespaces(rest.first().copied(), &query, as_table)?
            }
            (
                _,
                [
                    "api",
                    "v1",
                    "namespaces",
                    namespace,
                    "pods",
                    name,
                    below @ ..,
                ],
            ) => {
                let pod = (*namespace, *name);
                pods::respond(
                    store,
                    pod,
                    below,
                    request,
                    &query,
                    as_table,
                    self.log_interval,
                )
                .await?
            }
            (&Method::POST, ["apis", "authentication.k8s.io", "v1", "selfsubjectreviews"]) => {
                review(user)
            }
            (&Method::GET, _) => self.discover(&path),
            (method, _) => return Err(Refusal::unsupported(method, &path)),
        })
    }
}

/// The user after impersonation (`--as` and `--as-group`).
fn impersonated(headers: &HeaderMap, user: User) -> User {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    match headers.get("impersonate-user") {
        None => user,
        Some(name) => User {
            name: text(name),
            groups: headers
                .get_all("impersonate-group")
                .iter()
                .map(text)
                .collect(),
        },
    }
}

fn review(user: &User) -> ApiResponse {
    let groups: Vec<&str> = user
        .groups
        .iter()
        .map(String::as_str)
        .chain(["system:authenticated"])
        .collect();
    let review = json!({
        "kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1",
        "metadata": { "creationTimestamp": clock::rfc3339(SystemTime::now()) },
        "status": { "userInfo": { "username": user.name, "groups": groups } },
    });
    response::json(StatusCode::CREATED, &review)
}

/// The namespaces, or the one with this name.
fn namespaces(name: Option<&str>, query: &Query, as_table: bool) -> Result<ApiResponse, Refusal> {
    if let Some(name) = name.filter(|name| *name != "default") {
        return Err(Refusal::not_found("namespaces", name));
    }
    for key in ["watch", "labelSelector", "fieldSelector"] {
        if name.is_none() && query.first(key).is_some() {
            let message = format!("the stand-in does not support {key} for namespaces");
            return Err(Refusal::bad_request(message));
        }
    }
    let created = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600);
    let metadata = json!({
        "name": "default", "uid": "00000000-0000-4000-a000-000000000000", "resourceVersion": "1",
        "creationTimestamp": clock::rfc3339(created),
    });
    if as_table {
        let row = json!({
            "cells": ["default", "Active", clock::age(created)],
            "object": { "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata },
        });
        return Ok(ok(&store::table(
            1,
            &[("Name", 0), ("Status", 0), ("Age", 0)],
            &[row],
        )));
    }
    let namespace = json!({
        "kind": "Namespace", "apiVersion": "v1", "metadata": metadata, "spec": {}, "status": { "phase": "Active" },
    });
    Ok(ok(&if name.is_some() {
        namespace
    } else {
        json!({ "kind": "NamespaceList", "apiVersion": "v1", "metadata": {}, "items": [namespace] })
    }))
}
