//! What is asked of a server that was verified: is it an apiserver, is it ready, and what the answers mean.

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::{
    Check, Leg, Notes, Plan, Words,
    answer::{Speaker, text},
    ask::{self, Answer, NoAnswer, Question},
    clock,
    dial::{self, Side, Target},
    notes::{seconds, shown},
};
use crate::{hosts::UpstreamAddr, text::error_chain, upstream::Offer};

/// Everything about one server, from its name to a watch.
pub(super) async fn all(plan: &Plan, target: &Target, notes: &mut Notes<'_>) {
    let Some(at) = Box::pin(dial::check(target, notes)).await else {
        return skip(plan, &ASKS, "there is no verified connection", notes);
    };
    let run = Run { plan, target, at };
    if !Box::pin(run.version(notes)).await {
        return skip(plan, &REST, "no apiserver answers", notes);
    }
    Box::pin(run.readyz(notes)).await;
    Box::pin(run.upgrade(notes)).await;
    Box::pin(run.watch(notes)).await;
}

/// Skips these, and the watch if one is wanted.
fn skip(plan: &Plan, checks: &[Check], why: &str, notes: &mut Notes<'_>) {
    notes.skipped(checks, why);
    if plan.watch.is_some() {
        notes.skipped(&[Check::Watch], why);
    }
}

/// A server that was verified, and what is wanted of it.
pub(super) struct Run<'a> {
    pub(super) plan: &'a Plan,
    pub(super) target: &'a Target,
    pub(super) at: UpstreamAddr,
}

impl Run<'_> {
    pub(super) fn question<'a>(&'a self, path: &'a str, offer: Offer) -> Question<'a> {
        Question {
            path,
            offer,
            token: self.plan.token.as_ref(),
            within: self.plan.answer_within,
        }
    }

    /// Whether an apiserver answers at all; its clock comes along.
    async fn version(&self, notes: &mut Notes<'_>) -> bool {
        notes.waiting(Check::Version, "an answer to GET /version");
        let question = self.question("/version", Offer::Http2);
        let answer = match Box::pin(ask::ask(self.target, self.at, question, json())).await {
            Ok(answer) => answer,
            Err(error) => {
                self.unanswered(Check::Version, "/version", &error, notes);
                return false;
            }
        };
        let version = answer
            .json()
            .and_then(|json| text(&json, "gitVersion").map(shown));
        match (version, self.plan.token.as_ref()) {
            (Some(version), _) if answer.status == StatusCode::OK => {
                notes.ok(Check::Version, format!("Kubernetes {version} answers"));
            }
            (_, Some(token))
                if answer.status == StatusCode::UNAUTHORIZED
                    && answer.speaker() != Speaker::Stranger =>
            {
                let words = Words::new(
                    format!(
                        "the apiserver answers, but it does not accept the token in {} ({})",
                        token.file.display(),
                        answer.words()
                    ),
                    "get a fresh one, for instance with `kubectl create token NAME`",
                );
                notes.warning(Check::Version, words);
            }
            _ if answer.is_denial() && is_apiserver(&answer) => {
                notes.ok(
                    Check::Version,
                    format!(
                        "an apiserver answers, though not with its version ({})",
                        answer.status
                    ),
                );
            }
            _ => {
                self.not_as_hoped(Check::Version, "/version", &answer, notes);
                return false;
            }
        }
        clock::compare(&answer, notes);
        true
    }

    async fn readyz(&self, notes: &mut Notes<'_>) {
        notes.waiting(Check::Readyz, "an answer to GET /readyz");
        let question = self.question("/readyz", Offer::Http2);
        let answer =
            match Box::pin(ask::ask(self.target, self.at, question, HeaderMap::new())).await {
                Ok(answer) => answer,
                Err(error) => return self.unanswered(Check::Readyz, "/readyz", &error, notes),
            };
        let is_ready = answer.status == StatusCode::OK;
        if is_ready {
            notes.ok(Check::Readyz, "the apiserver is ready");
        } else if answer.is_denial() && is_apiserver(&answer) {
            notes.ok(
                Check::Readyz,
                format!(
                    "the apiserver is alive; whether it is ready it tells only those it knows ({})",
                    answer.status
                ),
            );
        } else if let bad = failing(&answer)
            && !bad.is_empty()
        {
            notes.failed_on(
                Leg::ProxyApiserver,
                Check::Readyz,
                Words::new(
                    format!(
                        "the apiserver says that it is not ready: {}",
                        bad.join(", ")
                    ),
                    "look at the apiserver's log, and at etcd; it may be starting or stopping",
                ),
            );
        } else {
            self.not_as_hoped(Check::Readyz, "/readyz", &answer, notes);
        }
    }

    /// No answer on a connection that was verified a moment ago.
    pub(super) fn unanswered(
        &self,
        check: Check,
        what: &str,
        error: &NoAnswer,
        notes: &mut Notes<'_>,
    ) {
        let server = self.target.server();
        let found = match error {
            NoAnswer::Silent => format!(
                "{server} takes the request for {what} and does not answer within {}",
                seconds(self.plan.answer_within)
            ),
            NoAnswer::Dial(_) | NoAnswer::Cut(_) => {
                format!("no answer to {what}: {}", error_chain(error))
            }
        };
        let mend = match self.target.side {
            Side::Apiserver => "look at the apiserver's load and log, and at what stands before it",
            Side::Proxy => "look at the proxy's log, and at what stands before it",
        };
        notes.failed(check, Words::new(found, mend));
    }

    /// An answer that should have been another.
    pub(super) fn not_as_hoped(
        &self,
        check: Check,
        what: &str,
        answer: &Answer,
        notes: &mut Notes<'_>,
    ) {
        let said = answer.words();
        match (self.target.side, answer.speaker()) {
            // What the proxy says itself of a request that it did send on, or would have.
            (Side::Proxy, Speaker::Proxy(_)) if is_about_apiserver(answer.status) => notes.failed_on(
                Leg::ProxyApiserver,
                check,
                Words::new(
                    format!("the proxy answers {what} itself, with {said}"),
                    "run `kube-tls-proxy check` where the proxy runs, with the flags of its `serve`: it says what is wrong there",
                ),
            ),
            (Side::Proxy, Speaker::Proxy(_)) if answer.status == StatusCode::MISDIRECTED_REQUEST => {
                notes.failed(
                    check,
                    Words::new(
                        format!("the proxy serves no cluster under {}", self.target.authority),
                        "use a name of its certificate, or add this one with --host or `hosts` where the proxy runs",
                    ),
                );
            }
            (_, Speaker::Proxy(_)) => notes.failed(
                check,
                Words::new(
                    format!("the proxy refuses {what}: {said}"),
                    "look at the proxy's log, and at what changes requests on the way to it",
                ),
            ),
            // The proxy passes on what the apiserver says.
            (_, Speaker::Apiserver(_)) => notes.failed_on(
                Leg::ProxyApiserver,
                check,
                Words::new(
                    format!("the apiserver answers {what} with {said}"),
                    "look at the apiserver's log",
                ),
            ),
            (side, Speaker::Stranger) => notes.failed(
                check,
                Words::new(
                    format!("{what} is answered by something that is no apiserver: {said}"),
                    match side {
                        Side::Apiserver => "check the URL of the apiserver, its port and its path",
                        Side::Proxy => "check the URL after --through, and what stands before the proxy",
                    },
                ),
            ),
        }
    }
}

/// The first few checks that an apiserver says it fails.
fn failing(answer: &Answer) -> Vec<String> {
    if answer.status != StatusCode::INTERNAL_SERVER_ERROR {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&answer.body);
    let failing = text.lines().filter(|line| line.starts_with("[-]"));
    failing.take(3).map(shown).collect()
}

/// Whether the proxy says this because of the apiserver.
fn is_about_apiserver(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    )
}

fn is_apiserver(answer: &Answer) -> bool {
    matches!(answer.speaker(), Speaker::Apiserver(_))
}

pub(super) fn json() -> HeaderMap {
    let json = HeaderValue::from_static("application/json");
    HeaderMap::from_iter([(header::ACCEPT, json)])
}

const ASKS: [Check; 4] = [Check::Version, Check::Clock, Check::Readyz, Check::Upgrade];
const REST: [Check; 3] = [Check::Clock, Check::Readyz, Check::Upgrade];
