//! Whether a watch stays open, longer than the timeouts that cut it by mistake.

use std::time::Duration;

use http::StatusCode;

use super::{
    Check, Message, Recorder,
    apiserver::{Run, json},
    dial::TargetRole,
    http::{StreamEnd, open},
    recorder::seconds,
};
use crate::upstream::Offer;

impl Run<'_> {
    /// Opens a watch and waits, if that is wanted.
    pub(super) async fn watch(&self, recorder: &mut Recorder<'_>) {
        let Some(time) = self.plan.watch else {
            return;
        };
        if self.plan.token.is_none() {
            let why = "a watch needs a user; give the token of one with --token-file";
            return recorder.skipped(&[Check::Watch], why);
        }
        let words = format!("whether a watch stays open for {}", seconds(time));
        recorder.waiting(Check::Watch, &words);
        // The apiserver ends the watch itself should this process be gone.
        let tail = format!(
            "watch=true&fieldSelector=metadata.name%3Dkube-tls-proxy-check&timeoutSeconds={}",
            time.as_secs().saturating_add(30)
        );
        for what in WATCHED {
            let path = format!("{what}?{tail}");
            let question = self.question(&path, Offer::Http2);
            let head = match Box::pin(open(self.target, self.at, question, json())).await {
                Ok(head) => head,
                Err(error) => return self.unanswered(Check::Watch, "a watch", &error, recorder),
            };
            if matches!(
                head.status,
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND
            ) {
                continue;
            }
            if head.status != StatusCode::OK {
                let words = Message::new(
                    format!("a watch is answered with {}", head.status),
                    format!(
                        "look for that answer in the log of {}",
                        self.target.server()
                    ),
                );
                return recorder.failed(Check::Watch, words);
            }
            return match Box::pin(head.stays_open(time)).await {
                StreamEnd::Open => recorder.ok(
                    Check::Watch,
                    format!("a watch is still open after {}", seconds(time)),
                ),
                StreamEnd::Ended(after) => recorder.failed(Check::Watch, self.cut(after, "ended")),
                StreamEnd::Aborted(after) => recorder.failed(Check::Watch, self.cut(after, "cut")),
            };
        }
        let why = "the token may watch no pods; give with --token-file one that may (the ClusterRole `view` is enough)";
        recorder.skipped(&[Check::Watch], why);
    }

    fn cut(&self, after: Duration, how: &str) -> Message {
        Message::new(
            format!(
                "a watch is {how} after {:.1} s, so that `kubectl get -w` and `logs -f` break off",
                after.as_secs_f64()
            ),
            match self.target.role {
                TargetRole::Apiserver => {
                    "raise the timeout of what stands between proxy and apiserver, such as a load balancer; the apiserver itself keeps a watch open for minutes"
                }
                TargetRole::Proxy => {
                    "raise the timeout of what stands before the proxy, such as a load balancer or an ingress; the proxy itself sets none"
                }
            },
        )
    }
}

/// What a token may be allowed to watch, tried in this order.
const WATCHED: [&str; 4] = [
    "/api/v1/pods",
    "/api/v1/namespaces/default/pods",
    "/api/v1/namespaces",
    "/api/v1/nodes",
];
