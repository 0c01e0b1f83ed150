//! Checks what plain requests do not show: upgrades pass, and a watch stays open.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::{
    Check, Leg, Message, Recorder,
    apiserver::{accept_json, no_response, unexpected_response},
    http::{CheckClient, RequestError, Responder, StreamEnd},
    recorder::format_duration,
    target::{CheckTarget, TargetRole},
};
use crate::{proxy::UPGRADE_CHECK, text::error_chain, upstream::Offer};

/// Checks that upgrades pass, as exec, attach, cp and port-forward need them.
///
/// The proxy refuses an upgrade that is for it, in its own words and without a token. So no other server's response
/// can look like an upgrade that arrived. An apiserver has no such response: it looks at the user and at the pod first,
/// and its 401, 403 and 404 are the same with and without the `Upgrade` field. Only an upgrade that succeeds is proof,
/// and a watch can be upgraded.
pub(super) async fn upgrade(client: CheckClient<'_>, recorder: &mut Recorder<'_>) {
    recorder.waiting(Check::Upgrade, "waiting for the response to an upgrade");
    if client.target.role == TargetRole::Proxy && !upgrade_to_proxy(client, recorder).await {
        return;
    }
    upgrade_to_apiserver(client, recorder).await;
}

/// Returns whether a WebSocket upgrade reaches the proxy. A warning if SPDY does not.
async fn upgrade_to_proxy(client: CheckClient<'_>, recorder: &mut Recorder<'_>) -> bool {
    let fix = "configure the load balancer or proxy in front of the proxy to forward TCP unchanged, or to allow WebSocket";
    for (protocol, field) in [
        ("websocket", "sec-websocket-protocol"),
        ("SPDY/3.1", "x-stream-protocol-version"),
    ] {
        let mut headers = upgrade_to(protocol);
        headers.insert(field, HeaderValue::from_static(UPGRADE_CHECK));
        let failure = match client.get(EXEC, Offer::Http1, headers).await {
            Err(error) => no_upgrade_response(&error),
            Ok(response) => match response.responder() {
                Responder::Proxy(_) if response.is_refused_upgrade_check() => continue,
                Responder::Proxy(_) if response.status.is_client_error() => {
                    unexpected_response(
                        client,
                        Check::Upgrade,
                        "an upgrade request",
                        &response,
                        recorder,
                    );
                    return false;
                }
                Responder::Apiserver(_) if client.is_passed_on(EXEC).await => {
                    let text =
                        "the proxy passes connections for this host on, with every upgrade in them";
                    recorder.ok(Check::Upgrade, text);
                    return true;
                }
                // Without the field it is a plain request, which the proxy has forwarded.
                Responder::Proxy(_) | Responder::Apiserver(_) => {
                    WITHOUT_UPGRADE.replace("NAME", "proxy")
                }
                Responder::Unknown => format!(
                    "the response to an upgrade request is not from the proxy ({})",
                    response.describe()
                ),
            },
        };
        if protocol == "websocket" {
            let message = Message::new(format!("{failure}, {NO_EXEC}"), fix);
            recorder.failed(Check::Upgrade, message);
            return false;
        }
        let text = format!(
            "WebSocket works, but SPDY does not: {failure}. kubectl before 1.31 needs SPDY for exec, attach, cp and port-forward"
        );
        recorder.warning(Check::Upgrade, Message::new(text, fix));
    }
    let text = "upgrades to WebSocket reach the proxy";
    recorder.ok(Check::Upgrade, text);
    true
}

/// Checks that an apiserver upgrades a watch to WebSocket.
async fn upgrade_to_apiserver(client: CheckClient<'_>, recorder: &mut Recorder<'_>) {
    let mut headers = upgrade_to("websocket");
    // The apiserver refuses a WebSocket watch without it.
    if let Ok(origin) = HeaderValue::try_from(format!("https://{}", client.target.authority)) {
        headers.insert(header::ORIGIN, origin);
    }
    // Without a token, each of them gets the same response.
    let tries = if client.plan.token.is_some() {
        WATCHED.len()
    } else {
        1
    };
    for collection in WATCHED.iter().take(tries) {
        let path = watch_path(collection, client.plan.response_timeout);
        let failure = match client.open(&path, Offer::Http1, headers.clone()).await {
            Err(error) => no_upgrade_response(&error),
            Ok(response) => match response.status {
                StatusCode::SWITCHING_PROTOCOLS => {
                    let text = "the apiserver upgrades a watch to WebSocket";
                    return recorder.ok(Check::Upgrade, text);
                }
                // A watch, whose body does not end.
                StatusCode::OK => WITHOUT_UPGRADE.replace("NAME", "apiserver"),
                _ => match response.buffer(client.plan.response_timeout).await {
                    Err(error) => no_upgrade_response(&error),
                    Ok(response) if response.is_denied_by_apiserver() => continue,
                    Ok(response) if response.responder() == Responder::Unknown => format!(
                        "the response to an upgrade request is not from the apiserver ({})",
                        response.describe()
                    ),
                    Ok(response) => {
                        let request = "an upgrade request";
                        return unexpected_response(
                            client,
                            Check::Upgrade,
                            request,
                            &response,
                            recorder,
                        );
                    }
                },
            },
        };
        let message = Message::new(
            format!("{failure}, {NO_EXEC}"),
            "configure the load balancer or proxy between the proxy and the apiserver to forward TCP unchanged, or to allow WebSocket",
        );
        return recorder.failed_on(Leg::ProxyApiserver, Check::Upgrade, message);
    }
    let reason = if client.plan.token.is_some() {
        "the apiserver upgrades nothing for this token; pass one that may watch pods with --token-file (the ClusterRole `view` is enough)"
    } else {
        "the apiserver upgrades nothing without a user; pass a token with --token-file"
    };
    recorder.skipped(&[Check::Upgrade], reason);
}

/// The header fields of an upgrade.
fn upgrade_to(protocol: &'static str) -> HeaderMap {
    [
        (header::CONNECTION, "Upgrade"),
        (header::UPGRADE, protocol),
        (header::SEC_WEBSOCKET_VERSION, "13"),
        // Any 16 bytes are valid: nothing is sent over the WebSocket.
        (header::SEC_WEBSOCKET_KEY, "a3ViZS10bHMtcHJveHkhIQ=="),
    ]
    .into_iter()
    .map(|(name, value)| (name, HeaderValue::from_static(value)))
    .collect()
}

fn no_upgrade_response(error: &RequestError) -> String {
    format!(
        "an upgrade request gets no response, although plain requests do ({}): something on the way blocks WebSocket",
        error_chain(error)
    )
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
    for collection in WATCHED {
        let path = watch_path(collection, time);
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

/// A watch of `collection` that may stay open for `time`, without an object to report. With `timeoutSeconds` the
/// apiserver closes it even if this process is killed.
fn watch_path(collection: &str, time: Duration) -> String {
    let seconds = time.as_secs().saturating_add(30);
    format!(
        "{collection}?watch=true&fieldSelector=metadata.name%3Dkube-tls-proxy-check&timeoutSeconds={seconds}"
    )
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

const WITHOUT_UPGRADE: &str =
    "the request reaches the NAME without its Upgrade header: something on the way removes it";
const NO_EXEC: &str = "so exec, attach, cp and port-forward do not work";

/// The path of an exec, for what looks at paths on the way. The pod does not exist, in case that the request gets
/// through without its `Upgrade` field.
const EXEC: &str =
    "/api/v1/namespaces/default/pods/kube-tls-proxy-check/exec?command=true&stdout=true";

/// Tried in this order, because a token may be allowed to watch only some of them.
const WATCHED: [&str; 4] = [
    "/api/v1/pods",
    "/api/v1/namespaces/default/pods",
    "/api/v1/namespaces",
    "/api/v1/nodes",
];
