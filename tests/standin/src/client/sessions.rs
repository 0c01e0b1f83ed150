//! A store of TLS sessions that keeps no names apart.

use rustls::{
    NamedGroup,
    client::{
        ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue,
        Tls13ClientSessionValue,
    },
};
use rustls_pki_types::ServerName;

/// Gives the session of any name to a handshake with any other.
#[derive(Debug)]
pub(super) struct SessionsOfAnyName {
    sessions: ClientSessionMemoryCache,
    name: ServerName<'static>,
}

impl SessionsOfAnyName {
    pub(super) fn new() -> Self {
        Self {
            sessions: ClientSessionMemoryCache::new(8),
            name: ServerName::from(std::net::IpAddr::from([0, 0, 0, 0])),
        }
    }

    fn name(&self) -> ServerName<'static> {
        self.name.clone()
    }
}

impl ClientSessionStore for SessionsOfAnyName {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.sessions.set_kx_hint(self.name(), group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.sessions.kx_hint(&self.name)
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.sessions.set_tls12_session(self.name(), value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.sessions.tls12_session(&self.name)
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.sessions.remove_tls12_session(&self.name);
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.sessions.insert_tls13_ticket(self.name(), value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.sessions.take_tls13_ticket(&self.name)
    }
}
