//! The client of one request, if a trusted HTTP proxy in front names it in `X-Forwarded-For`.
//!
//! Each proxy adds the address that it has seen at the end. So the list is read from its end, and only while the
//! address that has added an entry is trusted: a client can write anything before that.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use http::{HeaderMap, HeaderValue};

use super::{ClientConnection, headers::X_FORWARDED_FOR};
use crate::{cidr::AddressList, clients::Client, hosts::PeerAddr, metrics::Connected};

/// A client that is not the peer of its connection.
#[derive(Debug)]
pub(super) struct RequestClient {
    /// Its address, as the proxy in front has seen it.
    pub(super) address: PeerAddr,
    /// The value of `X-Forwarded-For` for the apiserver.
    pub(super) forwarded_for: HeaderValue,
    /// Its budgets.
    pub(super) client: Arc<Client>,
}

/// The addresses of a request, for the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoggedPeers {
    pub(super) client: PeerAddr,
    /// The peer of the connection, if it is not the client.
    pub(super) network_peer: Option<PeerAddr>,
}

impl LoggedPeers {
    pub(super) fn new(connected: &Connected, named: Option<&RequestClient>) -> Self {
        let (client, network_peer) = (connected.client(), connected.network_peer());
        match named {
            None => Self {
                client,
                network_peer,
            },
            Some(named) => Self {
                client: named.address,
                network_peer: network_peer.or(Some(client)),
            },
        }
    }
}

impl RequestClient {
    /// The client of a request; `None` if it is the peer of the connection.
    pub(super) fn new(
        trusted: &AddressList,
        downstream: &ClientConnection,
        headers: &HeaderMap,
    ) -> Option<Box<Self>> {
        let peer = downstream.peer;
        let address = find(trusted, peer, headers);
        if address == peer {
            return None;
        }
        let client = downstream.connected.place().other_client(address.ip());
        client.count_forwarded();
        Some(Box::new(Self {
            address,
            forwarded_for: ClientConnection::forwarded_for(address),
            client,
        }))
    }
}

/// The last address of `X-Forwarded-For` that is not trusted, if `peer` is trusted. At an entry that is no address, the
/// one after it is the client: what the proxy has written there is unknown, and what comes before it is not trusted.
fn find(trusted: &AddressList, peer: PeerAddr, headers: &HeaderMap) -> PeerAddr {
    let lines = headers.get_all(X_FORWARDED_FOR).into_iter().rev();
    let entries = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    let mut client = peer;
    for entry in entries.take(MAX_ENTRIES) {
        if !trusted.contains(client.ip()) {
            break;
        }
        let Some(address) = parse(entry) else {
            break;
        };
        client = address;
    }
    client
}

/// An address, with or without a port. An IPv6 address may be in brackets.
fn parse(entry: &[u8]) -> Option<PeerAddr> {
    let text = std::str::from_utf8(entry.trim_ascii()).ok()?;
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(PeerAddr::new(address));
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let address: IpAddr = match bare {
        Some(bare) => IpAddr::V6(bare.parse().ok()?),
        None => text.parse().ok()?,
    };
    Some(PeerAddr::new((address, 0).into()))
}

/// Fuzz target: `bytes` are lines. Whatever they say, a peer that is not trusted is the client itself, and the client
/// of a trusted one is either an entry or the peer.
pub(super) fn fuzz(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(X_FORWARDED_FOR, value);
        }
    }
    let peer = PeerAddr(SocketAddr::from(([10, 0, 0, 1], 1)));
    let nothing = AddressList::default();
    assert_eq!(find(&nothing, peer, &headers), peer);
    let trusted: AddressList = "10.0.0.0/8".parse().into_iter().collect();
    let client = find(&trusted, peer, &headers);
    let is_entry = |entry: &[u8]| parse(entry) == Some(client);
    assert!(
        client == peer
            || bytes
                .split(|byte| matches!(byte, b',' | b'\n'))
                .any(is_entry)
    );
}

/// Entries that are read: more proxies in a row are a loop, or a client that repeats a trusted address.
const MAX_ENTRIES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn client(trusted: &[&str], peer: &str, lines: &[&str]) -> String {
        let trusted = trusted.iter().map(|range| range.parse().unwrap()).collect();
        let peer = PeerAddr::new(peer.parse().unwrap());
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(
                X_FORWARDED_FOR,
                HeaderValue::from_bytes(line.as_bytes()).unwrap(),
            );
        }
        find(&trusted, peer, &headers).to_string()
    }

    const PEER: &str = "10.0.0.1:5000";

    #[test]
    fn last_entry_that_is_not_trusted_is_the_client() {
        let long = vec!["10.0.0.9"; 100].join(",");
        for (lines, expected) in [
            (&["192.0.2.7"][..], "192.0.2.7"),
            (&["6.6.6.6, 192.0.2.7"], "192.0.2.7"),
            (&["6.6.6.6", "192.0.2.7"], "192.0.2.7"),
            (&["6.6.6.6, 192.0.2.7, 10.0.0.2"], "192.0.2.7"),
            (&["192.0.2.7", "10.0.0.2,10.9.9.9"], "192.0.2.7"),
            (&["6.6.6.6,\t192.0.2.7 "], "192.0.2.7"),
            (&["192.0.2.7:4711"], "192.0.2.7:4711"),
            (&["[2001:db8::7]:4711"], "[2001:db8::7]:4711"),
            (&["[2001:db8::7]"], "2001:db8::7"),
            (&["2001:db8::7"], "2001:db8::7"),
            (&["::ffff:192.0.2.7"], "192.0.2.7"),
            (&["192.0.2.7, ::ffff:10.0.0.2"], "192.0.2.7"),
            // All are trusted: the first one is the client.
            (&["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            (&[&long], "10.0.0.9"),
            // No entry, or none that can be read.
            (&[], PEER),
            (&[""], PEER),
            (&["unknown"], PEER),
            (&["6.6.6.6, unknown"], PEER),
            (&["6.6.6.6, unknown, 10.0.0.2"], "10.0.0.2"),
            (&["6.6.6.6,"], PEER),
            (&["6.6.6.6", ""], PEER),
            (&["6.6.6.6, \u{e4}"], PEER),
            (&["6.6.6.6, 192.0.2.7 x"], PEER),
            (&["6.6.6.6, \"192.0.2.7\""], PEER),
            (&["6.6.6.6, 192.0.2.256"], PEER),
            (&["6.6.6.6, [192.0.2.7]"], PEER),
            (&["6.6.6.6, 2001:db8::7%eth0"], PEER),
            (&["6.6.6.6, _hidden"], PEER),
        ] {
            assert_eq!(client(&["10.0.0.0/8"], PEER, lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn peer_that_is_not_trusted_names_no_client() {
        for trusted in [&[][..], &["192.0.2.0/24"], &["10.0.0.2"], &["::/0"]] {
            assert_eq!(client(trusted, PEER, &["6.6.6.6"]), PEER);
        }
        let mapped = "[::ffff:10.0.0.1]:5000";
        assert_eq!(client(&["10.0.0.0/8"], mapped, &["6.6.6.6"]), "6.6.6.6");
    }
}
