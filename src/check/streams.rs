//! Checks what plain requests do not show: an upgrade reaches the apiserver, and a watch stays open.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::{
    Check, Message, Recorder,
    apiserver::{accept_json, no_response, unexpected_response},
    http::{CheckClient, Responder, StreamEnd},
    recorder::format_duration,
    target::CheckTarget,
};
use crate::{text::error_chain, upstream::Offer};

/// Checks that an upgrade reaches the apiserver, as exec, attach, cp and port-forward need it.
///
/// Any response of the apiserver is good enough.
pub(super) async fn upgrade(client: CheckClient<'_>, recorder: &mut Recorder<'_>) {
    recorder.waiting(
        Check::Upgrade,
        "waiting for the response to a WebSocket upgrade",
    );
    let mut headers = HeaderMap::new();
    for (name, value) in [
        (header::CONNECTION, "Upgrade"),
        (header::UPGRADE, "websocket"),
        (header::SEC_WEBSOCKET_VERSION, "13"),
        // Any 16 bytes are valid: nothing is sent over the WebSocket.
        (header::SEC_WEBSOCKET_KEY, "a3ViZS10bHMtcHJveHkhIQ=="),
        (header::SEC_WEBSOCKET_PROTOCOL, "v5.channel.k8s.io"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let failure = match client.get(EXEC, Offer::Http1, headers).await {
        Err(error) => format!(
            "an upgrade request gets no response, although plain requests do ({}): something on the way blocks WebSocket",
            error_chain(&error)
        ),
        Ok(response) => {
            let reaches = "an upgrade request reaches the apiserver";
            let status = response.status;
            match response.responder() {
                _ if status == StatusCode::SWITCHING_PROTOCOLS => {
                    return recorder.ok(Check::Upgrade, reaches);
                }
                Responder::Apiserver(Some(message))
                    if status == StatusCode::BAD_REQUEST
                        && message.contains("pgrade request required") =>
                {
                    "the request reaches the apiserver without its Upgrade header: something on the way removes it".to_owned()
                }
                // The WebSocket library of the apiserver rejects without headers or a body.
                Responder::Unknown
                    if status != StatusCode::FORBIDDEN || !response.body.is_empty() =>
                {
                    format!(
                        "the response to an upgrade request is not from the apiserver ({}): WebSocket is blocked",
                        response.describe()
                    )
                }
                Responder::Apiserver(_) | Responder::Unknown => {
                    let text = format!("{reaches} (it responds {status})");
                    return recorder.ok(Check::Upgrade, text);
                }
                Responder::Proxy(_) => {
                    let request = "an upgrade request";
                    return unexpected_response(
                        client,
                        Check::Upgrade,
                        request,
                        &response,
                        recorder,
                    );
                }
            }
        }
    };
    let message = Message::new(
        format!("{failure}, so exec, attach, cp and port-forward do not work"),
        client.target.by_role(
            "configure the load balancer or proxy between the proxy and the apiserver to forward TCP unchanged, or to allow WebSocket",
            "configure the load balancer or proxy in front of the proxy to forward TCP unchanged, or to allow WebSocket",
        ),
    );
    recorder.failed(Check::Upgrade, message);
}

/// Checks that a watch stays open for longer than common idle timeouts, if the plan wants it.
pub(super) async fn watch(client: CheckClient<'_>, recorder: &mut Recorder<'_>) {
    let Some(time) = client.plan.watch else {
        return;
    };
    if client.plan.token.is_none() {
        let reason = "a watch needs a user; pass a token with --token-file";
        return recorder.skipped(&[Check::Watch], reason);
    }
    let shown_time = format_duration(time);
    recorder.waiting(
        Check::Watch,
        &format!("keeping a watch open for {shown_time}"),
    );
    // With `timeoutSeconds` the apiserver closes the watch even if this process is killed.
    let query = format!(
        "watch=true&fieldSelector=metadata.name%3Dkube-tls-proxy-check&timeoutSeconds={}",
        time.as_secs().saturating_add(30)
    );
    for collection in WATCHED {
        let path = format!("{collection}?{query}");
        let response = match client.open(&path, Offer::Http2, accept_json()).await {
            Ok(response) => response,
            Err(error) => return no_response(client, Check::Watch, "a watch", &error, recorder),
        };
        match response.status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => continue,
            status => {
                let message = Message::new(
                    format!("the response to a watch is {status}"),
                    format!(
                        "look for this response in the log of {}",
                        client.target.server()
                    ),
                );
                return recorder.failed(Check::Watch, message);
            }
        }
        let message = match response.stays_open(time).await {
            StreamEnd::Open => {
                let text = format!("a watch is still open after {shown_time}");
                return recorder.ok(Check::Watch, text);
            }
            StreamEnd::Ended(after) => closed_early(client.target, "ended", after),
            StreamEnd::Aborted(after) => closed_early(client.target, "was aborted", after),
        };
        return recorder.failed(Check::Watch, message);
    }
    let reason = "the token may not watch pods; pass one that may with --token-file (the ClusterRole `view` is enough)";
    recorder.skipped(&[Check::Watch], reason);
}

fn closed_early(target: &CheckTarget, how: &str, after: Duration) -> Message {
    Message::new(
        format!(
            "a watch {how} after {:.1} s, so `kubectl get -w` and `logs -f` stop",
            after.as_secs_f64()
        ),
        target.by_role(
            "raise the timeout of the load balancer between the proxy and the apiserver; the apiserver itself keeps a watch open for minutes",
            "raise the timeout of the load balancer or ingress in front of the proxy; the proxy itself has no such timeout",
        ),
    )
}

/// A pod that does not exist: the apiserver responds all the same.
const EXEC: &str =
    "/api/v1/namespaces/default/pods/kube-tls-proxy-check/exec?command=true&stdout=true";

/// Tried in this order, because a token may be allowed to watch only some of them.
const WATCHED: [&str; 4] = [
    "/api/v1/pods",
    "/api/v1/namespaces/default/pods",
    "/api/v1/namespaces",
    "/api/v1/nodes",
];
