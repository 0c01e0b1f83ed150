//! Whether an upgrade, as exec, attach, cp and port-forward need it, reaches the apiserver.

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::{Check, Notes, Words, answer::Speaker, ask, asks::Run, dial::Side};
use crate::{text::error_chain, upstream::Offer};

impl Run<'_> {
    /// Asks for a WebSocket; any answer of the apiserver will do.
    pub(super) async fn upgrade(&self, notes: &mut Notes<'_>) {
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
                        error_chain(&error)
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

/// A pod that nobody has: the apiserver answers all the same.
const EXEC: &str =
    "/api/v1/namespaces/default/pods/kube-tls-proxy-check/exec?command=true&stdout=true";
