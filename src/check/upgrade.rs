//! Whether an upgrade, as exec, attach, cp and port-forward need it, reaches the apiserver.

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::{
    Check, Message, Recorder, answer::Responder, apiserver::Run, dial::TargetRole, http::send,
};
use crate::{text::error_chain, upstream::Offer};

impl Run<'_> {
    /// Asks for a WebSocket; any answer of the apiserver will do.
    pub(super) async fn upgrade(&self, recorder: &mut Recorder<'_>) {
        recorder.waiting(Check::Upgrade, "an answer to a WebSocket upgrade");
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
        let answer = match Box::pin(send(self.target, self.at, question, headers)).await {
            Ok(answer) => answer,
            Err(error) => {
                let words = Message::new(
                    format!(
                        "an upgrade gets no answer, though plain requests do ({}): something on the way blocks WebSocket, and with it exec, attach, cp and port-forward",
                        error_chain(&error)
                    ),
                    self.upgrade_fix(),
                );
                return recorder.failed(Check::Upgrade, words);
            }
        };
        let was_asked = answer.status == StatusCode::SWITCHING_PROTOCOLS;
        let stripped = answer.status == StatusCode::BAD_REQUEST
            && matches!(answer.responder(), Responder::Apiserver(Some(words)) if words.contains("pgrade request required"));
        // The WebSocket library of the apiserver refuses without a header or a word.
        let bare = answer.status == StatusCode::FORBIDDEN && answer.body.is_empty();
        match answer.responder() {
            _ if stripped => {
                let words = Message::new(
                    "the apiserver gets the request without its Upgrade header: something on the way removes it, and with it exec, attach, cp and port-forward",
                    self.upgrade_fix(),
                );
                recorder.failed(Check::Upgrade, words);
            }
            _ if was_asked => recorder.ok(Check::Upgrade, "an upgrade reaches the apiserver"),
            Responder::Apiserver(_) => recorder.ok(
                Check::Upgrade,
                format!(
                    "an upgrade reaches the apiserver (it answers {})",
                    answer.status
                ),
            ),
            Responder::Unknown if bare => recorder.ok(
                Check::Upgrade,
                format!(
                    "an upgrade reaches the apiserver (it answers {})",
                    answer.status
                ),
            ),
            Responder::Proxy(_) => {
                self.not_as_hoped(Check::Upgrade, "an upgrade", &answer, recorder)
            }
            Responder::Unknown => {
                let words = Message::new(
                    format!(
                        "an upgrade is answered by something on the way and not by the apiserver ({}): WebSocket is blocked, and with it exec, attach, cp and port-forward",
                        answer.words()
                    ),
                    self.upgrade_fix(),
                );
                recorder.failed(Check::Upgrade, words);
            }
        }
    }

    fn upgrade_fix(&self) -> &'static str {
        match self.target.role {
            TargetRole::Apiserver => {
                "let what stands between proxy and apiserver pass connections on as they are (TCP), or allow WebSocket in it"
            }
            TargetRole::Proxy => {
                "let what stands before the proxy pass connections on as they are (TCP), or allow WebSocket in it"
            }
        }
    }
}

/// A pod that nobody has: the apiserver answers all the same.
const EXEC: &str =
    "/api/v1/namespaces/default/pods/kube-tls-proxy-check/exec?command=true&stdout=true";
