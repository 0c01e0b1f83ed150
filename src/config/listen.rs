//! The addresses to listen on, and which peers may connect to each of them.
//!
//! An entry is an address, or keys with an address and lists. A list that would be empty by mistake is refused: an
//! empty `allow` would serve no client, and an empty `from` would trust no load balancer.

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, value::MapAccessDeserializer},
};
use serde_saphyr::Spanned;

use super::{
    ConfigError, ServeArgs, SettingError,
    config_file::{ConfigFile, Parsed},
    source::{ConfigSource, parse_flag},
};
use crate::cidr::{AddressList, Cidr};

/// One address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenConfig {
    /// The address; port 0 means any free port.
    pub address: SocketAddr,
    /// Which peers may connect to it.
    pub peers: PeerPolicy,
}

/// Which peers may connect to one address, and which of them are load balancers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerPolicy {
    /// The peers that must begin each connection with a PROXY header, which names the client.
    pub balancers: AddressList,
    /// The only clients that are served; `None` if all are.
    pub allow: Option<AddressList>,
    /// The clients that are not served.
    pub deny: AddressList,
}

/// What a [`PeerPolicy`] says of a peer that has just connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It is a client.
    Client,
    /// It is a load balancer, whose PROXY header names the client.
    Balancer,
    /// Its connection is closed.
    Denied,
}

impl PeerPolicy {
    /// Decides about a peer by its address alone. `allow` is for clients, so a load balancer need not be in it.
    #[must_use]
    pub fn judge(&self, peer: IpAddr) -> Admission {
        if self.deny.contains(peer) {
            Admission::Denied
        } else if self.balancers.contains(peer) {
            Admission::Balancer
        } else if self.serves(peer) {
            Admission::Client
        } else {
            Admission::Denied
        }
    }

    /// Whether a client with this address is served.
    #[must_use]
    pub fn serves(&self, client: IpAddr) -> bool {
        let is_allowed = |allow: &AddressList| allow.contains(client);
        self.allow.as_ref().is_none_or(is_allowed) && !self.deny.contains(client)
    }

    fn has_lists(&self) -> bool {
        *self != Self::default()
    }
}

impl From<SocketAddr> for ListenConfig {
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            peers: PeerPolicy::default(),
        }
    }
}

impl FromStr for ListenConfig {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        text.parse().map(|ListenAddr(address)| address.into())
    }
}

impl fmt::Display for ListenConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

/// The lists for a socket on this address, which is the one at `number`. A socket of systemd may have another spelling
/// of the address: then the port decides, or the only entry applies. `None` if it is unknown which entry is meant.
pub(crate) fn peers_of(
    listen: &[ListenConfig],
    number: usize,
    address: SocketAddr,
) -> Option<&PeerPolicy> {
    let same = |entry: &&ListenConfig| entry.address == address;
    let mut all = listen.iter();
    let found = listen.get(number).filter(same);
    let found = found.or_else(|| all.clone().find(same));
    let found = found.or_else(|| {
        all.clone()
            .find(|entry| entry.address.port() == address.port())
    });
    if let Some(entry) = found {
        return Some(&entry.peers);
    }
    let first = all.next()?;
    all.all(|entry| entry.peers == first.peers)
        .then_some(&first.peers)
}

/// ADDRESS:PORT, or :PORT for all addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ListenAddr(pub(super) SocketAddr);

impl FromStr for ListenAddr {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let address = if text.starts_with(':') {
            format!("[::]{text}").parse()
        } else {
            text.parse()
        };
        address
            .map(Self)
            .map_err(|_not_an_address| SettingError::invalid(text, NOT_A_LISTEN_ADDRESS))
    }
}

/// An address to listen on, and which peers may connect to it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline)]
struct ListenSection {
    /// ADDRESS:PORT
    #[schemars(with = "String")]
    address: Parsed<ListenAddr>,
    /// Load balancers that name the client in a PROXY header.
    proxy_protocol: Option<ProxyProtocolSection>,
    /// The only clients that are served, as ranges of addresses.
    #[schemars(with = "Option<AddressList>")]
    allow: Option<Spanned<AddressList>>,
    /// Clients that are not served, as ranges of addresses; also those in `allow`.
    deny: Option<AddressList>,
}

/// Load balancers that name the client in a PROXY header.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline)]
struct ProxyProtocolSection {
    /// The addresses of the load balancers. They must send the header; no other peer may.
    #[schemars(with = "AddressList")]
    from: Spanned<AddressList>,
}

/// An entry of `listen`: an address, or keys.
#[derive(Debug)]
pub(super) struct ListenEntry(ListenSection);

impl<'de> Deserialize<'de> for ListenEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AddressOrKeys)
    }
}

struct AddressOrKeys;

impl<'de> de::Visitor<'de> for AddressOrKeys {
    type Value = ListenEntry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address such as [::]:8443, or keys with `address`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ListenEntry, E> {
        Ok(ListenEntry(ListenSection {
            address: text.parse().map(Parsed).map_err(E::custom)?,
            proxy_protocol: None,
            allow: None,
            deny: None,
        }))
    }

    /// A port alone.
    fn visit_u64<E: de::Error>(self, number: u64) -> Result<ListenEntry, E> {
        self.visit_str(&number.to_string())
    }

    /// A port alone.
    fn visit_i64<E: de::Error>(self, number: i64) -> Result<ListenEntry, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_map<A: MapAccess<'de>>(self, keys: A) -> Result<ListenEntry, A::Error> {
        ListenSection::deserialize(MapAccessDeserializer::new(keys)).map(ListenEntry)
    }
}

impl JsonSchema for ListenEntry {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ListenEntry".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let keys = ListenSection::json_schema(generator);
        json_schema!({ "anyOf": [{ "type": "string" }, keys] })
    }
}

/// The addresses of the flags, or of the file, or the default one.
pub(super) fn load(
    args: &ServeArgs,
    file: &mut ConfigFile,
    source: &ConfigSource,
    default: SocketAddr,
) -> Result<Vec<ListenConfig>, ConfigError> {
    let mut listen = match file.listen.take() {
        Some(listen) if listen.value.is_empty() => {
            return Err(source.error_at(&listen, SettingError::EmptyListen));
        }
        Some(listen) => {
            let entries = listen.value.into_iter();
            entries
                .map(|ListenEntry(section)| from_section(section, source))
                .collect::<Result<_, _>>()?
        }
        None => vec![default.into()],
    };
    if !args.listen.is_empty() {
        // Else a flag would open a port to clients that the file keeps out.
        if listen.iter().any(|entry| entry.peers.has_lists()) {
            let file = source.file.clone();
            return Err(ConfigError::Whole(SettingError::ListsDropped { file }));
        }
        let given = args.listen.iter();
        let given = given.map(|text| parse_flag("--listen", text));
        listen = given.collect::<Result<_, _>>()?;
    }
    if !args.proxy_protocol_from.is_empty() {
        let balancers = addresses("--proxy-protocol-from", &args.proxy_protocol_from)?;
        for entry in &mut listen {
            entry.peers.balancers = balancers.clone();
        }
    }
    Ok(listen)
}

fn from_section(
    section: ListenSection,
    source: &ConfigSource,
) -> Result<ListenConfig, ConfigError> {
    let not_empty = |key, list: Spanned<AddressList>| {
        if list.value.is_empty() {
            return Err(source.error_at(&list, SettingError::EmptyAddresses { key }));
        }
        Ok(list.value)
    };
    let balancers = section.proxy_protocol;
    let balancers = balancers.map(|section| not_empty("from", section.from));
    let allow = section.allow.map(|list| not_empty("allow", list));
    Ok(ListenConfig {
        address: section.address.0.0,
        peers: PeerPolicy {
            balancers: balancers.transpose()?.unwrap_or_default(),
            allow: allow.transpose()?,
            deny: section.deny.unwrap_or_default(),
        },
    })
}

/// The proxies whose `X-Forwarded-For` names the client: those of the flag, or of the file.
pub(super) fn trusted_proxies(
    args: &ServeArgs,
    file: &mut ConfigFile,
) -> Result<AddressList, ConfigError> {
    if args.trusted_proxies.is_empty() {
        return Ok(file.trusted_proxies.take().unwrap_or_default());
    }
    addresses("--trusted-proxies", &args.trusted_proxies)
}

fn addresses(flag: &'static str, ranges: &[String]) -> Result<AddressList, ConfigError> {
    let ranges = ranges.iter().map(|text| parse_flag::<Cidr>(flag, text));
    ranges.collect()
}

/// The warning that any address is trusted.
pub(super) fn trusts_everyone(listen: &[ListenConfig], proxies: &AddressList) -> Vec<String> {
    let mut warnings = Vec::new();
    if listen
        .iter()
        .any(|entry| entry.peers.balancers.has_everything())
    {
        warnings.push(
            "every client is trusted to name another address in a PROXY header; \
             write the addresses of the load balancers into proxyProtocol.from (--proxy-protocol-from)"
                .to_owned(),
        );
    }
    if proxies.has_everything() {
        warnings.push(
            "every client is trusted to name another address in X-Forwarded-For; \
             write the addresses of the proxies into trustedProxies (--trusted-proxies)"
                .to_owned(),
        );
    }
    warnings
}

/// Refuses addresses that overlap. Otherwise the second one would find its port in use and report that
/// another process has it.
pub(super) fn check_ports<'a>(
    addresses: impl Iterator<Item = &'a SocketAddr>,
) -> Result<(), ConfigError> {
    let mut seen: Vec<&SocketAddr> = Vec::new();
    for second in addresses {
        if let Some(first) = seen.iter().find(|first| overlap(first, second)) {
            let (first, second) = (**first, *second);
            return Err(ConfigError::Whole(SettingError::SamePort { first, second }));
        }
        seen.push(second);
    }
    Ok(())
}

/// Whether the kernel gives only one of the two addresses: `[::]` includes IPv4.
pub(crate) fn overlap(a: &SocketAddr, b: &SocketAddr) -> bool {
    let includes = |a: &SocketAddr, b: &SocketAddr| {
        a.ip() == b.ip() || a.ip().is_unspecified() && (a.is_ipv6() || b.is_ipv4())
    };
    a.port() == b.port() && a.port() != 0 && (includes(a, b) || includes(b, a))
}

/// The address of a proxy that gets none.
pub(super) const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 8443);
/// The address that a CA connects to for `tls-alpn-01`.
pub(super) const HTTPS: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 443);
const NOT_A_LISTEN_ADDRESS: &str = "is not an address to listen on; write ADDRESS:PORT with an IP address, such as [::]:8443 or 127.0.0.1:8443";
