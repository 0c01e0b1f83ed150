//! Which protocol a request asks to switch to. Every module decides it here: if one took a request for an upgrade
//! and another one did not, they would see different credentials in it.

use http::{HeaderMap, HeaderName, HeaderValue, Version, header, request::Parts};

use crate::text::list_contains;

/// A protocol that kube-apiserver speaks after a 101.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UpgradeToken {
    WebSocket,
    Spdy,
}

impl UpgradeToken {
    /// The protocol that a request asks for. Only a single, known token counts. Anything else is no
    /// upgrade: its fields are then removed as hop-by-hop, and the request is an ordinary one.
    pub(crate) fn requested_by(head: &Parts) -> Option<Self> {
        let mut connection = head.headers.get_all(header::CONNECTION).iter();
        if head.version == Version::HTTP_11
            && connection.any(|line| list_contains(line.as_bytes(), "upgrade"))
        {
            Self::single(&head.headers)
        } else {
            None
        }
    }

    /// Whether a response with this header switches to this protocol and no other.
    pub(crate) fn is_granted_by(self, headers: &HeaderMap) -> bool {
        Self::single(headers) == Some(self)
    }

    /// The value of the `Upgrade` field.
    pub(crate) fn value(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::WebSocket => "websocket",
            Self::Spdy => "SPDY/3.1",
        })
    }

    /// The field with the subprotocols that the client offers.
    pub(crate) fn subprotocol_field(self) -> HeaderName {
        match self {
            Self::WebSocket => header::SEC_WEBSOCKET_PROTOCOL,
            Self::Spdy => HeaderName::from_static("x-stream-protocol-version"),
        }
    }

    /// The token of the only `Upgrade` line.
    fn single(headers: &HeaderMap) -> Option<Self> {
        let mut lines = headers.get_all(header::UPGRADE).iter();
        let (Some(line), None) = (lines.next(), lines.next()) else {
            return None;
        };
        let known = [Self::WebSocket, Self::Spdy];
        known.into_iter().find(|token| {
            token
                .value()
                .as_bytes()
                .eq_ignore_ascii_case(line.as_bytes())
        })
    }
}
