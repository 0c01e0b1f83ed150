//! Requests that create, read, change or delete one pod.

use std::time::Duration;

use http::{HeaderMap, Method, Request, StatusCode, header};
use serde_json::{Value, json};

use super::{
    exec,
    patch::{self, Lists},
    query::Query,
    response::{ApiResponse, Refusal, json as json_response, ok},
    store::{self, POD_COLUMNS, Pod, Store},
    watch,
};
use crate::upstream::RequestBody;

/// The response to POST for a collection of pods.
pub(super) async fn create(
    store: &Store,
    namespace: &str,
    request: Request<RequestBody>,
    query: &Query,
) -> Result<ApiResponse, Refusal> {
    let object = read_json(request).await?;
    if !store.has_namespace(namespace) {
        return Err(Refusal::not_found("namespaces", namespace));
    }
    let pod = Pod::from_object(namespace, &object)?;
    let pod = store.create(pod, query.is_dry_run())?;
    Ok(json_response(StatusCode::CREATED, &pod.object()))
}

/// The response to a request for one pod, or for `below` it.
pub(super) async fn respond(
    store: &Store,
    (namespace, name): (&str, &str),
    below: &[&str],
    request: Request<RequestBody>,
    query: &Query,
    as_table: bool,
    log_interval: Duration,
) -> Result<ApiResponse, Refusal> {
    let pod = || {
        let pod = store.pod(namespace, name);
        pod.ok_or_else(|| Refusal::not_found("pods", name))
    };
    Ok(match (request.method(), below) {
        (&Method::GET, []) if as_table => ok(&store::table(0, POD_COLUMNS, &[pod()?.row()])),
        (&Method::GET, []) => ok(&pod()?.object()),
        (&Method::DELETE, []) => {
            let pod = pod()?;
            if !query.is_dry_run() {
                store.delete(namespace, name);
            }
            // kubectl waits until the pod with this uid is gone, so that a successor does not count.
            let details = json!({ "name": name, "kind": "pods", "uid": pod.uid() });
            ok(
                &json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details }),
            )
        }
        (&Method::PUT | &Method::PATCH, []) => {
            let change = Change::from_headers(request.method(), request.headers())?;
            let given = read_json(request).await?;
            let changed = |pod: &Pod| {
                let mut object = pod.object();
                match change {
                    Change::Replace => object = given,
                    Change::Merge(lists) => {
                        patch::merge(&mut object, &given, lists).map_err(Refusal::bad_request)?
                    }
                }
                pod.changed_to(&object)
            };
            ok(&store
                .update((namespace, name), changed, query.is_dry_run())?
                .object())
        }
        (&Method::GET, ["log"]) => watch::log(&pod()?, query, log_interval)?,
        (&Method::GET | &Method::POST, ["exec"]) => {
            let pod = pod()?;
            pod.check_container(query)?;
            if !pod.is_ready() {
                return Err(Refusal::bad_request(format!(
                    "cannot exec into a container of a pod that is not running; current phase is {}",
                    pod.phase
                )));
            }
            exec::exec(request, &pod, query)
        }
        _ => {
            pod()?;
            return Err(Refusal::unsupported(request.method(), request.uri().path()));
        }
    })
}

/// How the body of a request changes an object.
#[derive(Debug, Clone, Copy)]
enum Change {
    Replace,
    Merge(Lists),
}

impl Change {
    fn from_headers(method: &Method, headers: &HeaderMap) -> Result<Self, Refusal> {
        if method == Method::PUT {
            return Ok(Self::Replace);
        }
        let kind = headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        match kind.split(';').next().unwrap_or_default() {
            "application/merge-patch+json" => Ok(Self::Merge(Lists::Replaced)),
            "application/strategic-merge-patch+json" => Ok(Self::Merge(Lists::MergedByName)),
            other => Err(Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "UnsupportedMediaType",
                format!(
                    "the stand-in supports merge patches and strategic merge patches, not {other:?}; \
                     a JSON patch and --server-side need a real apiserver"
                ),
            )),
        }
    }
}

async fn read_json(request: Request<RequestBody>) -> Result<Value, Refusal> {
    let body = request.into_body().read().await;
    let body =
        body.map_err(|error| Refusal::bad_request(format!("the body is incomplete: {error}")))?;
    serde_json::from_slice(&body)
        .map_err(|error| Refusal::bad_request(format!("the body is not JSON: {error}")))
}
