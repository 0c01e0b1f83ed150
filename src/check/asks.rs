//! What is asked of a server that was verified: is it an apiserver, is it ready, does an upgrade come
//! through, does a watch stay open.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::{
    Check, Leg, Notes, Plan, Words,
    answer::{Speaker, text},
    ask::{self, Answer, End, NoAnswer, Question},
    dial::{self, Side, Target},
    notes::{seconds, shown},
};
use crate::{addr::UpstreamAddr, pki::UtcDate, telemetry::causes, upstream::Offer};

/// Everything about one server, from its name to a watch.
pub(super) async fn all(plan: &Plan, target: &Target, notes: &mut Notes<'_>) {
    let Some(at) = Box::pin(dial::check(target, notes)).await else {
        notes.skipped(&ASKS, "there is no verified connection");
        return;
    };
    let run = Run { plan, target, at };
    if !Box::pin(run.version(notes)).await {
        notes.skipped(&REST, "no apiserver answers");
        return;
    }
    Box::pin(run.readyz(notes)).await;
    Box::pin(run.upgrade(notes)).await;
    Box::pin(run.watch(notes)).await;
}

struct Run<'a> {
    plan: &'a Plan,
    target: &'a Target,
    at: UpstreamAddr,
}

impl Run<'_> {
    fn question<'a>(&'a self, path: &'a str, offer: Offer) -> Question<'a> {
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
        clock(&answer, notes);
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
        } else if answer.status == StatusCode::INTERNAL_SERVER_ERROR {
            let text = String::from_utf8_lossy(&answer.body);
            let bad: Vec<_> = text
                .lines()
                .filter(|line| line.starts_with("[-]"))
                .take(3)
                .map(shown)
                .collect();
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

    /// Whether an upgrade, as exec and port-forward need it, reaches the apiserver.
    async fn upgrade(&self, notes: &mut Notes<'_>) {
        notes.waiting(Check::Upgrade, "an answer to a WebSocket upgrade");
        let mut headers = HeaderMap::new();
        for (name, value) in [
            (header::CONNECTION, "Upgrade"),
            (header::UPGRADE, "websocket"),
            (header::SEC_WEBSOCKET_VERSION, "13"),
            // Any sixteen bytes will do: nothing is sent in the WebSocket.
            (header::SEC_WEBSOCKET_KEY, "a3ViZS10bHMtcHJveHkhIQ=="),
            (header::SEC_WEBSOCKET_PROTOCOL, "v5.channel.k8s.io"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let question = self.question(EXEC, Offer::Http1);
        let answer = match Box::pin(ask::ask(self.target, self.at, question, headers)).await {
            Ok(answer) => answer,
            Err(error) => {
                let words = Words::new(
                    format!(
                        "an upgrade gets no answer, though plain requests do ({}): something on the way blocks WebSocket, and with it exec, attach, cp and port-forward",
                        causes(&error)
                    ),
                    self.mend_upgrade(),
                );
                return notes.failed(Check::Upgrade, words);
            }
        };
        let was_asked = answer.status == StatusCode::SWITCHING_PROTOCOLS;
        let stripped = answer.status == StatusCode::BAD_REQUEST
            && matches!(answer.speaker(), Speaker::Apiserver(Some(words)) if words.contains("pgrade request required"));
        // The WebSocket library of the apiserver refuses without a header or a word.
        let bare = answer.status == StatusCode::FORBIDDEN && answer.body.is_empty();
        match answer.speaker() {
            _ if stripped => {
                let words = Words::new(
                    "the apiserver gets the request without its Upgrade header: something on the way removes it, and with it exec, attach, cp and port-forward",
                    self.mend_upgrade(),
                );
                notes.failed(Check::Upgrade, words);
            }
            _ if was_asked => notes.ok(Check::Upgrade, "an upgrade reaches the apiserver"),
            Speaker::Apiserver(_) => notes.ok(
                Check::Upgrade,
                format!(
                    "an upgrade reaches the apiserver (it answers {})",
                    answer.status
                ),
            ),
            Speaker::Stranger if bare => notes.ok(
                Check::Upgrade,
                format!(
                    "an upgrade reaches the apiserver (it answers {})",
                    answer.status
                ),
            ),
            Speaker::Proxy(_) => self.not_as_hoped(Check::Upgrade, "an upgrade", &answer, notes),
            Speaker::Stranger => {
                let words = Words::new(
                    format!(
                        "an upgrade is answered by something on the way and not by the apiserver ({}): WebSocket is blocked, and with it exec, attach, cp and port-forward",
                        answer.words()
                    ),
                    self.mend_upgrade(),
                );
                notes.failed(Check::Upgrade, words);
            }
        }
    }

    async fn watch(&self, notes: &mut Notes<'_>) {
        let Some(time) = self.plan.watch else {
            return;
        };
        if self.plan.token.is_none() {
            let why = "a watch needs a user; give the token of one with --token-file";
            return notes.skipped(&[Check::Watch], why);
        }
        let words = format!("whether a watch stays open for {}", seconds(time));
        notes.waiting(Check::Watch, &words);
        // The apiserver ends the watch itself should this process be gone.
        let tail = format!(
            "watch=true&fieldSelector=metadata.name%3Dkube-tls-proxy-check&timeoutSeconds={}",
            time.as_secs().saturating_add(30)
        );
        for what in WATCHED {
            let path = format!("{what}?{tail}");
            let question = self.question(&path, Offer::Http2);
            let head = match Box::pin(ask::begin(self.target, self.at, question, json())).await {
                Ok(head) => head,
                Err(error) => return self.unanswered(Check::Watch, "a watch", &error, notes),
            };
            if matches!(
                head.status,
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND
            ) {
                continue;
            }
            if head.status != StatusCode::OK {
                let words = Words::new(
                    format!("a watch is answered with {}", head.status),
                    format!(
                        "look for that answer in the log of {}",
                        self.target.server()
                    ),
                );
                return notes.failed(Check::Watch, words);
            }
            return match Box::pin(head.stays_open(time)).await {
                End::Open => notes.ok(
                    Check::Watch,
                    format!("a watch is still open after {}", seconds(time)),
                ),
                End::Ended(after) => notes.failed(Check::Watch, self.cut(after, "ended")),
                End::Cut(after) => notes.failed(Check::Watch, self.cut(after, "cut")),
            };
        }
        let why = "the token may watch no pods; give with --token-file one that may (the ClusterRole `view` is enough)";
        notes.skipped(&[Check::Watch], why);
    }

    fn cut(&self, after: Duration, how: &str) -> Words {
        Words::new(
            format!(
                "a watch is {how} after {:.1} s, so that `kubectl get -w` and `logs -f` break off",
                after.as_secs_f64()
            ),
            match self.target.side {
                Side::Apiserver => {
                    "raise the timeout of what stands between proxy and apiserver, such as a load balancer; the apiserver itself keeps a watch open for minutes"
                }
                Side::Proxy => {
                    "raise the timeout of what stands before the proxy, such as a load balancer or an ingress; the proxy itself sets none"
                }
            },
        )
    }

    /// No answer on a connection that was verified a moment ago.
    fn unanswered(&self, check: Check, what: &str, error: &NoAnswer, notes: &mut Notes<'_>) {
        let server = self.target.server();
        let found = match error {
            NoAnswer::Silent => format!(
                "{server} takes the request for {what} and does not answer within {}",
                seconds(self.plan.answer_within)
            ),
            NoAnswer::Dial(_) | NoAnswer::Cut(_) => {
                format!("no answer to {what}: {}", causes(error))
            }
        };
        let mend = match self.target.side {
            Side::Apiserver => "look at the apiserver's load and log, and at what stands before it",
            Side::Proxy => "look at the proxy's log, and at what stands before it",
        };
        notes.failed(check, Words::new(found, mend));
    }

    /// An answer that should have been another.
    fn not_as_hoped(&self, check: Check, what: &str, answer: &Answer, notes: &mut Notes<'_>) {
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

    fn mend_upgrade(&self) -> &'static str {
        match self.target.side {
            Side::Apiserver => {
                "let what stands between proxy and apiserver pass connections on as they are (TCP), or allow WebSocket in it"
            }
            Side::Proxy => {
                "let what stands before the proxy pass connections on as they are (TCP), or allow WebSocket in it"
            }
        }
    }
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

fn json() -> HeaderMap {
    let json = HeaderValue::from_static("application/json");
    HeaderMap::from_iter([(header::ACCEPT, json)])
}

/// Compares the clock of an answer with ours.
fn clock(answer: &Answer, notes: &mut Notes<'_>) {
    let date = answer
        .headers
        .get(header::DATE)
        .and_then(|date| date.to_str().ok())
        .and_then(|date| httpdate::parse_http_date(date).ok());
    let Some(theirs) = date else {
        return notes.skipped(&[Check::Clock], "the answer has no date");
    };
    let (apart, which) = apart(answer.at, theirs);
    // A date has whole seconds.
    if apart < NOTICEABLE {
        return notes.ok(
            Check::Clock,
            "the clocks of this machine and of the apiserver agree",
        );
    }
    let words = Words::new(
        format!(
            "the clock of this machine is {} {which} the apiserver's ({} here, {} there); certificates and tokens are then taken for expired, or for not valid yet",
            seconds(Duration::from_secs(apart.as_secs())),
            UtcDate(answer.at),
            UtcDate(theirs)
        ),
        "set both clocks by NTP (`timedatectl set-ntp true`)",
    );
    if apart < HARMFUL {
        notes.warning(Check::Clock, words);
    } else {
        notes.failed(Check::Clock, words);
    }
}

fn apart(ours: SystemTime, theirs: SystemTime) -> (Duration, &'static str) {
    match ours.duration_since(theirs) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    }
}

/// A pod that nobody has: the apiserver answers all the same.
const EXEC: &str =
    "/api/v1/namespaces/default/pods/kube-tls-proxy-check/exec?command=true&stdout=true";
/// What a token may be allowed to watch, tried in this order.
const WATCHED: [&str; 4] = [
    "/api/v1/pods",
    "/api/v1/namespaces/default/pods",
    "/api/v1/namespaces",
    "/api/v1/nodes",
];
const ASKS: [Check; 4] = [Check::Version, Check::Clock, Check::Readyz, Check::Upgrade];
const REST: [Check; 3] = [Check::Clock, Check::Readyz, Check::Upgrade];
/// Below this nobody is hurt: tokens and certificates are made with some minutes to spare.
const NOTICEABLE: Duration = Duration::from_secs(30);
/// The leeway that validators of tokens commonly allow is one minute; two clocks may each use some of it.
const HARMFUL: Duration = Duration::from_secs(60);
