//! What is asked of a server that was verified: is it an apiserver, is it ready, and what the answers mean.

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::{
    Check, Leg, Message, Plan, Recorder,
    answer::{Responder, text},
    clock,
    dial::{self, CheckTarget, TargetRole},
    http::{BufferedResponse, CheckRequest, RequestError, send},
    recorder::{escape, seconds},
};
use crate::{hosts::UpstreamAddr, quote, text::error_chain, upstream::Offer};

/// Everything about one server, from its name to a watch.
pub(super) async fn check(plan: &Plan, target: &CheckTarget, recorder: &mut Recorder<'_>) {
    let Some(at) = Box::pin(dial::check(target, recorder)).await else {
        return skip(plan, &ASKS, "there is no verified connection", recorder);
    };
    let run = Run { plan, target, at };
    if !Box::pin(run.version(recorder)).await {
        return skip(plan, &REST, "no apiserver answers", recorder);
    }
    Box::pin(run.readyz(recorder)).await;
    Box::pin(run.upgrade(recorder)).await;
    Box::pin(run.watch(recorder)).await;
}

/// Skips these, and the watch if one is wanted.
fn skip(plan: &Plan, checks: &[Check], why: &str, recorder: &mut Recorder<'_>) {
    recorder.skipped(checks, why);
    if plan.watch.is_some() {
        recorder.skipped(&[Check::Watch], why);
    }
}

/// A server that was verified, and what is wanted of it.
pub(super) struct Run<'a> {
    pub(super) plan: &'a Plan,
    pub(super) target: &'a CheckTarget,
    pub(super) at: UpstreamAddr,
}

impl Run<'_> {
    pub(super) fn question<'a>(&'a self, path: &'a str, offer: Offer) -> CheckRequest<'a> {
        CheckRequest {
            path,
            offer,
            token: self.plan.token.as_ref(),
            within: self.plan.answer_within,
        }
    }

    /// Whether an apiserver answers at all; its clock comes along.
    async fn version(&self, recorder: &mut Recorder<'_>) -> bool {
        recorder.waiting(Check::Version, "an answer to GET /version");
        let question = self.question("/version", Offer::Http2);
        let answer = match Box::pin(send(self.target, self.at, question, json())).await {
            Ok(answer) => answer,
            Err(error) => {
                self.unanswered(Check::Version, "/version", &error, recorder);
                return false;
            }
        };
        let version = answer
            .json()
            .and_then(|json| text(&json, "gitVersion").map(escape));
        match (version, self.plan.token.as_ref()) {
            (Some(version), _) if answer.status == StatusCode::OK => {
                recorder.ok(Check::Version, format!("Kubernetes {version} answers"));
            }
            (_, Some(token))
                if answer.status == StatusCode::UNAUTHORIZED
                    && answer.responder() != Responder::Unknown =>
            {
                let words = Message::new(
                    format!(
                        "the apiserver answers, but it does not accept the token in {} ({})",
                        quote::path(&token.file),
                        answer.words()
                    ),
                    "get a fresh one, for instance with `kubectl create token NAME`",
                );
                recorder.warning(Check::Version, words);
            }
            _ if answer.is_denial() && is_apiserver(&answer) => {
                recorder.ok(
                    Check::Version,
                    format!(
                        "an apiserver answers, though not with its version ({})",
                        answer.status
                    ),
                );
            }
            _ => {
                self.not_as_hoped(Check::Version, "/version", &answer, recorder);
                return false;
            }
        }
        clock::compare(&answer, recorder);
        true
    }

    async fn readyz(&self, recorder: &mut Recorder<'_>) {
        recorder.waiting(Check::Readyz, "an answer to GET /readyz");
        let question = self.question("/readyz", Offer::Http2);
        let answer = match Box::pin(send(self.target, self.at, question, HeaderMap::new())).await {
            Ok(answer) => answer,
            Err(error) => return self.unanswered(Check::Readyz, "/readyz", &error, recorder),
        };
        let is_ready = answer.status == StatusCode::OK;
        if is_ready {
            recorder.ok(Check::Readyz, "the apiserver is ready");
        } else if answer.is_denial() && is_apiserver(&answer) {
            recorder.ok(
                Check::Readyz,
                format!(
                    "the apiserver is alive; whether it is ready it tells only those it knows ({})",
                    answer.status
                ),
            );
        } else if let bad = failing(&answer)
            && !bad.is_empty()
        {
            recorder.failed_on(
                Leg::ProxyApiserver,
                Check::Readyz,
                Message::new(
                    format!(
                        "the apiserver says that it is not ready: {}",
                        bad.join(", ")
                    ),
                    "look at the apiserver's log, and at etcd; it may be starting or stopping",
                ),
            );
        } else {
            self.not_as_hoped(Check::Readyz, "/readyz", &answer, recorder);
        }
    }

    /// No answer on a connection that was verified a moment ago.
    pub(super) fn unanswered(
        &self,
        check: Check,
        what: &str,
        error: &RequestError,
        recorder: &mut Recorder<'_>,
    ) {
        let server = self.target.server();
        let found = match error {
            RequestError::Timeout => format!(
                "{server} takes the request for {what} and does not answer within {}",
                seconds(self.plan.answer_within)
            ),
            RequestError::Dial(_) | RequestError::Closed(_) => {
                format!("no answer to {what}: {}", error_chain(error))
            }
        };
        let fix = match self.target.role {
            TargetRole::Apiserver => {
                "look at the apiserver's load and log, and at what stands before it"
            }
            TargetRole::Proxy => "look at the proxy's log, and at what stands before it",
        };
        recorder.failed(check, Message::new(found, fix));
    }

    /// An answer that should have been another.
    pub(super) fn not_as_hoped(
        &self,
        check: Check,
        what: &str,
        answer: &BufferedResponse,
        recorder: &mut Recorder<'_>,
    ) {
        let said = answer.words();
        match (self.target.role, answer.responder()) {
            // What the proxy says itself of a request that it did send on, or would have.
            (TargetRole::Proxy, Responder::Proxy(_)) if is_about_apiserver(answer.status) => recorder.failed_on(
                Leg::ProxyApiserver,
                check,
                Message::new(
                    format!("the proxy answers {what} itself, with {said}"),
                    "run `kube-tls-proxy check` where the proxy runs, with the flags of its `serve`: it says what is wrong there",
                ),
            ),
            (TargetRole::Proxy, Responder::Proxy(_)) if answer.status == StatusCode::MISDIRECTED_REQUEST => {
                recorder.failed(
                    check,
                    Message::new(
                        format!("the proxy serves no cluster under {}", self.target.authority),
                        "use a name of its certificate, or add this one with --host or `hosts` where the proxy runs",
                    ),
                );
            }
            (_, Responder::Proxy(_)) => recorder.failed(
                check,
                Message::new(
                    format!("the proxy refuses {what}: {said}"),
                    "look at the proxy's log, and at what changes requests on the way to it",
                ),
            ),
            // The proxy passes on what the apiserver says.
            (_, Responder::Apiserver(_)) => recorder.failed_on(
                Leg::ProxyApiserver,
                check,
                Message::new(
                    format!("the apiserver answers {what} with {said}"),
                    "look at the apiserver's log",
                ),
            ),
            (role, Responder::Unknown) => recorder.failed(
                check,
                Message::new(
                    format!("{what} is answered by something that is no apiserver: {said}"),
                    match role {
                        TargetRole::Apiserver => "check the URL of the apiserver, its port and its path",
                        TargetRole::Proxy => "check the URL after --through, and what stands before the proxy",
                    },
                ),
            ),
        }
    }
}

/// The first few checks that an apiserver says it fails.
fn failing(answer: &BufferedResponse) -> Vec<String> {
    if answer.status != StatusCode::INTERNAL_SERVER_ERROR {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&answer.body);
    let failing = text.lines().filter(|line| line.starts_with("[-]"));
    failing.take(3).map(escape).collect()
}

/// Whether the proxy says this because of the apiserver.
fn is_about_apiserver(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    )
}

fn is_apiserver(answer: &BufferedResponse) -> bool {
    matches!(answer.responder(), Responder::Apiserver(_))
}

pub(super) fn json() -> HeaderMap {
    let json = HeaderValue::from_static("application/json");
    HeaderMap::from_iter([(header::ACCEPT, json)])
}

const ASKS: [Check; 4] = [Check::Version, Check::Clock, Check::Readyz, Check::Upgrade];
const REST: [Check; 3] = [Check::Clock, Check::Readyz, Check::Upgrade];
