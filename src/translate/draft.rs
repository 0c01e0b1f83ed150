//! The configuration under construction: clusters, certificates and limits, each with the field that it comes from.
//!
//! A field that restricts clients is never dropped: without a translation it is an error, not a remark.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{
    Manifests,
    object::{ManifestField, is_object_name},
};
use crate::{
    cidr::{Cidr, CidrError},
    config::ConfigError,
    hosts::HostPattern,
    kubeconfig_document::to_yaml,
    quote,
};

/// Where an apiserver is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ApiserverPlace {
    /// The cluster of the pod that the proxy will run in.
    Own,
    /// Another one.
    Host { host: String, port: u64 },
}

/// A file that the configuration names, and the key of a Secret or `ConfigMap` that it comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PemSource {
    pub(super) kind: &'static str,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) key: &'static str,
}

/// Which files the configuration names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilePlacement {
    /// Those that Secrets and `ConfigMaps` become when they are mounted into the pod.
    Mounted,
    /// CA files beside the configuration, if their content is in the manifests; the others as mounted.
    Beside,
}

/// A file that the configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFileSource {
    /// Its path in the configuration.
    pub path: String,
    /// The object and the key that it comes from.
    pub source: String,
    /// Its content, for [`FilePlacement::Beside`]: certificates of a CA, never a key.
    pub content: Option<String>,
}

/// One cluster of the configuration.
#[derive(Debug)]
pub(super) struct DraftCluster<'a> {
    /// The field that made it, for errors about all of it.
    pub(super) field: ManifestField<'a>,
    pub(super) hosts: Vec<(String, ManifestField<'a>)>,
    /// The first backend that led to the apiserver.
    backend: Option<ManifestField<'a>>,
    pub(super) place: Option<ApiserverPlace>,
    pub(super) ca: Option<PemSource>,
    pub(super) expected_name: Option<String>,
    pub(super) passthrough: bool,
    pub(super) allow: Vec<Cidr>,
    pub(super) deny: Vec<Cidr>,
    pub(super) client_ca: Option<PemSource>,
    pub(super) client_crl: Option<PemSource>,
}

/// The configuration while it is made.
#[derive(Debug, Default)]
pub(super) struct Draft<'a> {
    pub(super) clusters: Vec<DraftCluster<'a>>,
    pub(super) certificates: Vec<PemSource>,
    /// Rate and burst.
    pub(super) requests: Option<(u64, u64)>,
    pub(super) connections: Option<u64>,
}

impl PemSource {
    /// The key of the object that `field` names as NAME or NAMESPACE/NAME.
    pub(super) fn named(
        kind: &'static str,
        field: &ManifestField<'_>,
        key: &'static str,
    ) -> Result<Self, ConfigError> {
        let text = field.text()?;
        // HAProxy's controller writes `secret://NAMESPACE/NAME` too.
        let text = text.strip_prefix("secret://").unwrap_or(text);
        let (namespace, name) = text
            .split_once('/')
            .unwrap_or((field.object.namespace.as_str(), text));
        if !is_object_name(namespace) || !is_object_name(name) {
            let text = quote::value(text);
            return Err(field.error(format!(
                "`{text}` names no {kind}; write NAME, or NAMESPACE/NAME"
            )));
        }
        Ok(Self::new(kind, namespace, name, key))
    }

    pub(super) fn new(kind: &'static str, namespace: &str, name: &str, key: &'static str) -> Self {
        Self {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            key,
        }
    }

    /// Another key of the same object.
    pub(super) fn with_key(&self, key: &'static str) -> Self {
        Self {
            key,
            ..self.clone()
        }
    }

    /// Whether it is the CA of the cluster that the pod runs in, which every namespace has.
    pub(super) fn is_own_ca(&self) -> bool {
        self.kind == "ConfigMap" && self.name == "kube-root-ca.crt"
    }

    /// Its path, and its content if it is in the manifests and shall be a file beside the configuration.
    fn placed(
        &self,
        placement: FilePlacement,
        manifests: &Manifests,
    ) -> Result<ConfigFileSource, ConfigError> {
        let found = manifests.pem(self)?;
        let content = found.filter(|_| placement == FilePlacement::Beside);
        let path = if content.is_some() {
            format!("{}-{}-{}", self.namespace, self.name, self.key)
        } else {
            format!(
                "{MOUNTS}/{}s/{}/{}/{}",
                self.kind.to_lowercase(),
                self.namespace,
                self.name,
                self.key
            )
        };
        let source = self.to_string();
        Ok(ConfigFileSource {
            path,
            source,
            content,
        })
    }
}

impl std::fmt::Display for PemSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            kind,
            namespace,
            name,
            key,
        } = self;
        write!(f, "{kind} {namespace}/{name}, key {key}")
    }
}

impl<'a> DraftCluster<'a> {
    pub(super) fn new(field: ManifestField<'a>) -> Self {
        Self {
            field,
            hosts: Vec::new(),
            backend: None,
            place: None,
            ca: None,
            expected_name: None,
            passthrough: false,
            allow: Vec::new(),
            deny: Vec::new(),
            client_ca: None,
            client_crl: None,
        }
    }

    /// Adds the host in this field.
    pub(super) fn add_host(&mut self, field: &ManifestField<'a>) -> Result<(), ConfigError> {
        self.add_host_text(field, field.text()?)
    }

    /// Adds this host, which is in the field.
    pub(super) fn add_host_text(
        &mut self,
        field: &ManifestField<'a>,
        text: &str,
    ) -> Result<(), ConfigError> {
        let host: HostPattern = text.parse().map_err(|_not_a_host| {
            let text = quote::value(text);
            field.error(format!(
                "`{text}` is not a host name; write one such as kube.example.com"
            ))
        })?;
        let host = host.to_string();
        if self.hosts.iter().all(|(old, _)| *old != host) {
            self.hosts.push((host, field.clone()));
        }
        field.used(if text.starts_with("*.") {
            "`hosts`; `*` is one label here"
        } else {
            "`hosts`"
        });
        Ok(())
    }

    /// Says at its hosts that no Secret with a certificate for them is named.
    pub(super) fn lacks_certificate(&self) {
        for (_, host) in &self.hosts {
            host.used("`hosts`; no object in the files names a Secret for it, so put a certificate for it into the Secret kube-tls-proxy-tls");
        }
    }

    /// Sets the apiserver. All fields of one host must lead to the same one.
    pub(super) fn lead_to(
        &mut self,
        place: ApiserverPlace,
        field: &ManifestField<'a>,
    ) -> Result<(), ConfigError> {
        if self.place.as_ref().is_some_and(|old| *old != place) {
            return Err(field.error("this leads to another apiserver than the backend before it; give each apiserver a host of its own"));
        }
        self.place = Some(place);
        self.backend.get_or_insert_with(|| field.clone());
        Ok(())
    }

    /// Sets the CA of the apiserver.
    pub(super) fn verify_with(
        &mut self,
        ca: PemSource,
        field: &ManifestField<'_>,
    ) -> Result<(), ConfigError> {
        if self.ca.as_ref().is_some_and(|old| *old != ca) {
            return Err(
                field.error("this is another CA than the one before it; put both into one Secret")
            );
        }
        field.used(format!("`ca`, from {ca}"));
        self.ca = Some(ca);
        Ok(())
    }

    /// Sets the name that the certificate of the apiserver must have.
    pub(super) fn expect_name(&mut self, field: &ManifestField<'_>) -> Result<(), ConfigError> {
        let name = field.text()?;
        if rustls_pki_types::ServerName::try_from(name).is_err() {
            let name = quote::value(name);
            return Err(field.error(format!("`{name}` is neither a DNS name nor an IP address; write the name in the certificate of the apiserver, such as kubernetes.default.svc")));
        }
        let old = self.expected_name.as_deref();
        if old.is_some_and(|old| APISERVER_NAMES.contains(&old) || !APISERVER_NAMES.contains(&name))
        {
            field.mark(
                super::FieldVerdict::NotNeeded,
                "one name is enough, and another field gives it",
            );
            return Ok(());
        }
        self.expected_name = Some(name.to_owned());
        field.used("`name`");
        Ok(())
    }

    fn same_but_for_hosts(&self, other: &Self) -> bool {
        self.place == other.place
            && self.ca == other.ca
            && self.expected_name == other.expected_name
            && self.passthrough == other.passthrough
            && self.allow == other.allow
            && self.deny == other.deny
            && self.client_ca == other.client_ca
            && self.client_crl == other.client_crl
    }

    fn restricts_addresses(&self) -> bool {
        !self.allow.is_empty() || !self.deny.is_empty()
    }

    /// The rules for its addresses.
    fn access(&self) -> Option<Value> {
        let mut rules = Vec::new();
        if !self.deny.is_empty() {
            rules.push(json!({"deny": {"from": texts(&self.deny)}}));
        }
        if !self.allow.is_empty() {
            rules.push(json!({"allow": {"from": texts(&self.allow)}}));
        } else if !self.deny.is_empty() {
            rules.push(json!({"allow": {}}));
        }
        (!rules.is_empty()).then_some(Value::Array(rules))
    }
}

/// The ranges of addresses in `text`, with commas between them. Other proxies accept any address of a range in place of
/// the first, so this does too.
pub(super) fn ranges(field: &ManifestField<'_>, text: &str) -> Result<Vec<Cidr>, ConfigError> {
    let parts = text
        .split([',', ' '])
        .map(str::trim)
        .filter(|part| !part.is_empty());
    let found: Result<Vec<_>, _> = parts
        .map(|part| match part.parse::<Cidr>() {
            Ok(range) | Err(CidrError::NotFirst { range, .. }) => Ok(range),
            Err(error) => Err(field.error(error.to_string())),
        })
        .collect();
    match found {
        Ok(found) if found.is_empty() => Err(field.error(
            "the list of addresses is empty, which could mean all or none; write a range, or remove the field",
        )),
        found => found,
    }
}

impl<'a> Draft<'a> {
    /// Adds a cluster that is complete.
    pub(super) fn add(&mut self, cluster: DraftCluster<'a>) -> Result<(), ConfigError> {
        let Some(place) = &cluster.place else {
            return Err(cluster.field.error("no backend leads to an apiserver; add one, such as the Service `kubernetes` in `default`"));
        };
        // The CA shows that another Service is an apiserver. With passthrough the client verifies, so only the port
        // can.
        if let ApiserverPlace::Host { port, .. } = place {
            let field = cluster.backend.as_ref().unwrap_or(&cluster.field);
            if cluster.passthrough && *port != 6443 {
                return Err(field.error(format!("this Service may not be an apiserver: it is not the one of this cluster, and its port is {port}, not 6443; if it is an apiserver, write a cluster with `passthrough` by hand as docs/configuration.md says, else leave the object with its ingress")));
            }
            if !cluster.passthrough && cluster.ca.as_ref().is_none_or(PemSource::is_own_ca) {
                return Err(field.error("this Service is not the apiserver of this cluster, and no CA verifies it; if it is another apiserver, name the Secret or ConfigMap with its CA as docs/configuration.md says, else leave the object with its ingress"));
            }
        }
        let mut hosts = cluster.hosts.iter();
        let taken = hosts.find(|(host, _)| {
            let mut others = self.clusters.iter().flat_map(|other| &other.hosts);
            others.any(|(other, _)| other == host)
        });
        if let Some((host, field)) = taken {
            return Err(field.error(format!("another object has the host `{host}` too; a host leads to one apiserver, remove one of the two")));
        }
        let mut old = self.clusters.iter_mut();
        match old.find(|old| {
            old.same_but_for_hosts(&cluster) && !old.hosts.is_empty() && !cluster.hosts.is_empty()
        }) {
            Some(old) => old.hosts.extend(cluster.hosts),
            None => self.clusters.push(cluster),
        }
        Ok(())
    }

    /// Adds the certificate in a Secret, once.
    pub(super) fn add_certificate(&mut self, secret: PemSource) {
        if !self.certificates.contains(&secret) {
            self.certificates.push(secret);
        }
    }

    /// Checks the whole, and writes it as YAML with a comment about its files.
    pub(super) fn render(
        &self,
        placement: FilePlacement,
        manifests: &Manifests,
    ) -> Result<(String, Vec<ConfigFileSource>), ConfigError> {
        let lists = self.lists_of_listener()?;
        let mut files = Vec::new();
        let mut place = |source: &PemSource| {
            let placed = source.placed(placement, manifests)?;
            let path = placed.path.clone();
            if !files.contains(&placed) {
                files.push(placed);
            }
            Ok::<_, ConfigError>(path)
        };
        let mut clusters = Vec::new();
        let mut names: BTreeMap<String, u32> = BTreeMap::new();
        let terminated = self.clusters.iter().filter(|cluster| !cluster.passthrough);
        let is_only = terminated.count() <= 1;
        for cluster in &self.clusters {
            if cluster.hosts.is_empty() && (cluster.passthrough || !is_only) {
                return Err(cluster.field.error("it has no host, and it is not the only way to an apiserver; add the host that clients ask for"));
            }
            let object = cluster.field.object;
            let mut name = format!("{}/{}", object.namespace, object.name);
            let count = names.entry(name.clone()).or_default();
            *count = count.saturating_add(1);
            if *count > 1 {
                name = format!("{name}-{count}");
            }
            let mut entry = Map::new();
            entry.insert("name".into(), name.into());
            let hosts: Vec<_> = cluster.hosts.iter().map(|(host, _)| host.clone()).collect();
            if !hosts.is_empty() {
                entry.insert("hosts".into(), hosts.into());
            }
            if cluster.passthrough {
                entry.insert("passthrough".into(), true.into());
            }
            match upstream(cluster, &mut place)? {
                Some(upstream) => entry.insert("upstream".into(), upstream),
                None => entry.insert("inCluster".into(), true.into()),
            };
            if let Some(ca) = &cluster.client_ca {
                let mut section = Map::new();
                section.insert("ca".into(), place(ca)?.into());
                if let Some(crl) = &cluster.client_crl {
                    section.insert("crl".into(), place(crl)?.into());
                }
                let front_proxy = json!({
                    "certificate": format!("{FRONT_PROXY}/tls.crt"),
                    "key": format!("{FRONT_PROXY}/tls.key"),
                });
                section.insert("frontProxy".into(), front_proxy);
                let section = Value::Object(section);
                entry.insert("clientCertificates".into(), section);
            }
            if let Some(access) = cluster.access().filter(|_| lists.is_none()) {
                entry.insert("access".into(), access);
            }
            clusters.push(Value::Object(entry));
        }
        let mut config = Map::new();
        if let Some(lists) = lists {
            config.insert("listen".into(), json!([lists]));
        }
        config.insert("certificates".into(), self.certificates(&mut files).into());
        config.insert("clusters".into(), clusters.into());
        let mut limits = Map::new();
        if let Some((rate, burst)) = self.requests {
            limits.insert(
                "requestsPerClient".into(),
                json!({"rate": rate, "burst": burst}),
            );
        }
        if let Some(connections) = self.connections {
            limits.insert("connectionsPerClient".into(), connections.into());
        }
        if !limits.is_empty() {
            config.insert("limits".into(), limits.into());
        }
        if self
            .clusters
            .iter()
            .any(|cluster| cluster.client_ca.is_some())
        {
            for key in ["tls.crt", "tls.key"] {
                files.push(ConfigFileSource {
                    path: format!("{FRONT_PROXY}/{key}"),
                    source: "the front-proxy certificate, see docs/client-certificates.md".into(),
                    content: None,
                });
            }
        }
        Ok((
            format!("{}{}", heading(&files), to_yaml(&Value::Object(config))),
            files,
        ))
    }

    /// The entries of `certificates`. The first one is where chart and Deployment mount it.
    fn certificates(&self, files: &mut Vec<ConfigFileSource>) -> Vec<Value> {
        let default = [PemSource::new(
            "Secret",
            "kube-tls-proxy",
            "kube-tls-proxy-tls",
            "tls.crt",
        )];
        let (sources, origin) = if self.certificates.is_empty() {
            (&default[..], ", a certificate of yours")
        } else {
            (self.certificates.as_slice(), "")
        };
        let entries = sources.iter().enumerate().map(|(index, secret)| {
            let folder = match index {
                0 => format!("{MOUNTS}/tls"),
                _ => format!("{MOUNTS}/secrets/{}/{}", secret.namespace, secret.name),
            };
            let mut add = |key| {
                let path = format!("{folder}/{key}");
                files.push(ConfigFileSource {
                    path: path.clone(),
                    source: format!("{}{origin}", secret.with_key(key)),
                    content: None,
                });
                path
            };
            json!({"certificate": add("tls.crt"), "key": add("tls.key")})
        });
        entries.collect()
    }

    /// The lists of the listener, if a passthrough cluster restricts addresses: the proxy sees no request there, so
    /// only the listener can refuse a client. All clusters must then have the same lists.
    fn lists_of_listener(&self) -> Result<Option<Value>, ConfigError> {
        let mut passed = self.clusters.iter().filter(|cluster| cluster.passthrough);
        let Some(first) = passed.find(|cluster| cluster.restricts_addresses()) else {
            return Ok(None);
        };
        let other = self
            .clusters
            .iter()
            .find(|other| (&other.allow, &other.deny) != (&first.allow, &first.deny));
        if let Some(other) = other {
            return Err(first.field.error(format!(
                "its addresses can only be restricted for the whole listener, because TLS is passed through, but {} has other addresses; translate the two one by one, for two proxies",
                other.field.object.title()
            )));
        }
        let mut entry = json!({"address": "[::]:8443"});
        for (key, list) in [("allow", &first.allow), ("deny", &first.deny)] {
            if let (false, Some(entry)) = (list.is_empty(), entry.as_object_mut()) {
                entry.insert(key.into(), texts(list).into());
            }
        }
        Ok(Some(entry))
    }
}

/// The section `upstream`; `None` for the cluster of the pod, which needs none.
fn upstream(
    cluster: &DraftCluster<'_>,
    place: &mut dyn FnMut(&PemSource) -> Result<String, ConfigError>,
) -> Result<Option<Value>, ConfigError> {
    let ca = cluster.ca.as_ref().filter(|ca| !ca.is_own_ca());
    let name = cluster.expected_name.as_deref();
    let url = match &cluster.place {
        Some(ApiserverPlace::Host { host, port }) => format!("https://{host}:{port}"),
        Some(ApiserverPlace::Own) | None => {
            let is_usual = name.is_none_or(|name| APISERVER_NAMES.contains(&name));
            if cluster.passthrough || (ca.is_none() && is_usual) {
                return Ok(None);
            }
            "https://kubernetes.default.svc".to_owned()
        }
    };
    let mut upstream = Map::new();
    upstream.insert("url".into(), url.into());
    if !cluster.passthrough {
        let ca = ca.map_or_else(|| Ok(POD_CA.to_owned()), place)?;
        upstream.insert("ca".into(), ca.into());
        if let Some(name) = name {
            upstream.insert("name".into(), name.into());
        }
    }
    Ok(Some(Value::Object(upstream)))
}

fn texts(ranges: &[Cidr]) -> Vec<String> {
    ranges.iter().map(Cidr::to_string).collect()
}

/// The comment above the configuration.
fn heading(files: &[ConfigFileSource]) -> String {
    let mut text =
        "# Translated by `kube-tls-proxy translate`. The files, and what they come from:\n"
            .to_owned();
    for file in files {
        text.push_str(&format!("#   {}: {}\n", file.path, file.source));
    }
    text.push_str("# A pod can mount only Secrets and ConfigMaps of its own namespace.\n");
    text
}

/// Names that the certificate of every apiserver has, and with which the proxy verifies the one of its own cluster.
pub(super) const APISERVER_NAMES: [&str; 4] = [
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "kubernetes.default",
    "kubernetes",
];
/// Where the chart and the Deployment mount the certificate, below `tls`.
const MOUNTS: &str = "/etc/kube-tls-proxy";
const FRONT_PROXY: &str = "/etc/kube-tls-proxy/front-proxy";
/// Where the chart and the Deployment mount the CA of the cluster.
const POD_CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
