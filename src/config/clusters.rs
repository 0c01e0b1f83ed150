//! The apiservers, and the public host names of each.
//!
//! A host name belongs to one cluster, and one source names an apiserver. A second one is an error, because
//! a silent choice between two could send tokens to the wrong apiserver.

use std::{collections::HashMap, net::IpAddr};

use rustls_pki_types::ServerName;

use serde_saphyr::Spanned;

use super::{
    ClientCertificatesConfig, ClusterConfig, ClusterDirectory, ConfigError, Environment,
    IdentityFiles, NamingConfig, PublishConfig, ReadError, RequestHost, ServeArgs, SettingError,
    TrustSource, access,
    config_file::{
        ClientCertificatesEntry, ClusterEntry, ClustersFromEntry, ExpectedName, FilePath, Parsed,
        PublicHost, PublishSection, UpstreamEntry,
    },
    directory, file,
    in_cluster::InCluster,
    kubeconfig,
    source::{ConfigSource, absolute_path, parse_flag},
    url::{self, PublicPrefix, UpstreamUrl},
};
use crate::quote;

/// The clusters of the file and of its directory, or the one of flags, kubeconfig or pod. Empty only if the directory
/// is. `publish` is for those without one.
pub(super) fn load(
    args: &ServeArgs,
    entries: Vec<Spanned<ClusterEntry>>,
    from: Option<&ClustersFromEntry>,
    publish: Option<&PublishSection>,
    source: &ConfigSource,
    env: &Environment,
) -> Result<(Vec<ClusterConfig>, Option<ClusterDirectory>), ConfigError> {
    check_exclusive(args)?;
    if entries.is_empty() && from.is_none() {
        let cluster = ClusterConfig {
            publish: publish.and_then(|section| publish_config(section, source)),
            ..cluster_of_flags(args, env)?
        };
        return Ok((vec![cluster], None));
    }
    if let Some(flag) = upstream_flag(args) {
        return Err(ConfigError::Whole(SettingError::FlagAgainstFile {
            flag,
            key: if entries.is_empty() {
                "clustersFrom"
            } else {
                "clusters"
            },
            file: source.file.clone(),
        }));
    }
    let from = from
        .map(|section| {
            let publish = publish.and_then(|publish| publish_config(publish, source));
            directory::load(section, publish, &entries, source)
        })
        .transpose()?;
    let (in_directory, directory) = from.unzip();
    let several = directory.is_some()
        || entries
            .iter()
            .filter(|entry| !entry.value.passthrough)
            .count()
            > 1;
    check_prefixes(&entries, source)?;
    let mut hosts = HashMap::new();
    let mut clusters: Vec<ClusterConfig> = Vec::with_capacity(entries.len());
    for entry in entries {
        let name = quote::name(&entry.value.name);
        if name.is_empty() {
            return Err(source.error_at(&entry, SettingError::EmptyName));
        }
        if quote::pasted(&entry.value.name).is_some() {
            return Err(source.error_at(&entry, SettingError::SecretName));
        }
        if clusters.iter().any(|cluster| cluster.name == name) {
            return Err(source.error_at(&entry, SettingError::cluster(&name, DUPLICATE)));
        }
        let prefix = entry.value.path_prefix.as_ref();
        if several && entry.value.hosts.is_empty() && prefix.is_none() {
            return Err(source.error_at(&entry, SettingError::cluster(&name, NO_HOSTS)));
        }
        if entry.value.passthrough {
            check_passthrough(&entry, source)?;
        }
        for host in &entry.value.hosts {
            let text = host.value.0.0.to_string();
            let owner = (name.clone(), prefix.is_some());
            if let Some((first, may_share)) = hosts.insert(text.clone(), owner)
                && (!may_share || prefix.is_none() || first == name)
            {
                let error = SettingError::DuplicateHost { host: text, first };
                return Err(source.error_at(host, error));
            }
        }
        if let (Some(prefix), Some(_)) = (prefix, &entry.value.client_certificates) {
            let error = SettingError::cluster(&name, PREFIX_CERTIFICATES);
            return Err(source.error_at(prefix, error));
        }
        clusters.push(cluster_of_entry(entry, publish, source, env)?);
    }
    clusters.extend(in_directory.into_iter().flatten());
    Ok((clusters, directory))
}

fn cluster_of_entry(
    entry: Spanned<ClusterEntry>,
    publish: Option<&PublishSection>,
    source: &ConfigSource,
    env: &Environment,
) -> Result<ClusterConfig, ConfigError> {
    let name = quote::name(&entry.value.name);
    let hosts = entry
        .value
        .hosts
        .iter()
        .map(|host| host.value.0.0.to_string())
        .collect();
    if entry.value.context.is_some() && entry.value.kubeconfig.is_none() {
        return Err(source.error_at(&entry, SettingError::cluster(&name, CONTEXT_ALONE)));
    }
    let one = match (
        &entry.value.upstream,
        &entry.value.kubeconfig,
        entry.value.in_cluster,
    ) {
        (Some(upstream), None, InCluster::No) => {
            cluster_of_upstream(upstream, entry.value.passthrough, source)?
        }
        (None, Some(file), InCluster::No) => {
            kubeconfig::load(&source.path(&file.0.0), entry.value.context.as_deref())?
        }
        (None, None, how @ (InCluster::Service | InCluster::Endpoints)) => {
            let cluster = in_cluster(env)?;
            let cluster = cluster.ok_or_else(|| source.error_at(&entry, SettingError::NotInPod))?;
            let token = || env.service_account.join("token");
            ClusterConfig {
                discovery: (how == InCluster::Endpoints).then(token),
                ..cluster
            }
        }
        (None, None, InCluster::No) | (Some(_), _, _) | (_, Some(_), _) => {
            return Err(source.error_at(&entry, SettingError::cluster(&name, NOT_ONE_SOURCE)));
        }
    };
    let rules = entry.value.access.as_ref();
    let access = rules.map_or(Ok(Vec::new()), |rules| access::rules(rules, source))?;
    let certificates = entry.value.client_certificates.as_ref();
    let client_certificates = certificates
        .map(|section| client_certificates(section, &name, source))
        .transpose()?;
    let prefix = entry.value.path_prefix.as_ref();
    let of_all = publish.filter(|_| !entry.value.passthrough);
    let own = entry.value.publish.as_ref().map(|section| &section.value);
    let publish = own.or(of_all);
    let publish = publish.and_then(|section| publish_config(section, source));
    let mut cluster = ClusterConfig {
        name,
        hosts,
        public_prefix: prefix.map(|prefix| prefix.value.0.0.clone()),
        client_certificates,
        access,
        publish,
        ..one
    };
    if entry.value.passthrough {
        if !cluster.path_prefix.is_empty() {
            let error = SettingError::cluster(&cluster.name, PASSTHROUGH_PREFIX);
            return Err(source.error_at(&entry, error));
        }
        cluster.passthrough = true;
        cluster.request_host = RequestHost::Client;
        // Probes verify the apiserver as its clients do, under the name that they ask for.
        let mut names = cluster.hosts.iter().filter(|host| !host.starts_with('*'));
        if let Some(Ok(name)) = names.next().map(|host| ServerName::try_from(host.clone())) {
            cluster.expected_name = name;
        }
    }
    Ok(cluster)
}

/// Refuses two clusters with one prefix, or with one below that of the other.
fn check_prefixes(
    entries: &[Spanned<ClusterEntry>],
    source: &ConfigSource,
) -> Result<(), ConfigError> {
    let mut prefixes = entries.iter().enumerate();
    prefixes.try_for_each(|(at, entry)| {
        let Some(prefix) = &entry.value.path_prefix else {
            return Ok(());
        };
        let before = entries.iter().take(at);
        match prefix_conflict(&prefix.value.0, before, source) {
            Some(error) => Err(source.error_at(prefix, error)),
            None => Ok(()),
        }
    })
}

/// Why a cluster with this prefix cannot exist beside `others`.
pub(super) fn prefix_conflict<'a>(
    prefix: &PublicPrefix,
    others: impl IntoIterator<Item = &'a Spanned<ClusterEntry>>,
    source: &ConfigSource,
) -> Option<SettingError> {
    others.into_iter().find_map(|entry| {
        let other = entry.value.path_prefix.as_ref()?;
        prefix
            .overlaps(&other.value.0)
            .then(|| SettingError::PrefixTaken {
                prefix: prefix.0.clone(),
                other: other.value.0.0.clone(),
                cluster: quote::name(&entry.value.name),
                place: source.place(other),
            })
    })
}

/// A warning for each cluster with access rules whose apiserver clients also reach through a passthrough host, where
/// no rule applies.
pub(super) fn passed_by(clusters: &[ClusterConfig]) -> Vec<String> {
    let ruled = clusters.iter().filter(|cluster| !cluster.access.is_empty());
    let pairs = ruled.flat_map(|ruled| {
        let passed = clusters.iter().filter(|cluster| cluster.passthrough);
        passed.map(move |passed| (ruled, passed))
    });
    pairs
        .filter(|(ruled, passed)| has_same_apiserver(ruled, passed))
        .map(|(ruled, passed)| {
            format!(
                "the access rules of cluster `{}` do not apply to the passthrough hosts of cluster `{}`, which lead to the same apiserver; \
                 remove one of the two, or let only clients that the rules admit reach that host",
                ruled.name, passed.name
            )
        })
        .collect()
}

/// Whether the configuration gives both the same apiserver.
fn has_same_apiserver(one: &ClusterConfig, other: &ClusterConfig) -> bool {
    let is_same_url = one.upstream_port == other.upstream_port
        && one.upstream_host.eq_ignore_ascii_case(&other.upstream_host);
    let mut addresses = one.addresses.iter();
    is_same_url || addresses.any(|address| other.addresses.contains(address))
}

fn client_certificates(
    section: &Spanned<ClientCertificatesEntry>,
    name: &str,
    source: &ConfigSource,
) -> Result<ClientCertificatesConfig, ConfigError> {
    let entry = &section.value;
    let path = |file: &Parsed<FilePath>| source.path(&file.0.0);
    let refused = |problem| source.error_at(section, SettingError::cluster(name, problem));
    let ca = path(&entry.ca);
    let naming = match (&entry.front_proxy, &entry.impersonate) {
        (Some(files), None) => NamingConfig::FrontProxy(IdentityFiles {
            certificate: path(&files.certificate),
            key: path(&files.key),
        }),
        (None, Some(impersonate)) => NamingConfig::Impersonate(path(&impersonate.token_file)),
        (None, None) | (Some(_), Some(_)) => return Err(refused(NOT_ONE_NAMING)),
    };
    // The front-proxy CA would then issue users, and their keys could name any user to the apiserver.
    if matches!(&naming, NamingConfig::FrontProxy(files) if files.certificate == ca) {
        return Err(refused(SAME_CERTIFICATE));
    }
    Ok(ClientCertificatesConfig {
        ca,
        crl: entry.crl.as_ref().map(path),
        naming,
        allow_system: entry.allow_system,
    })
}

/// What the section publishes; `None` if that is nothing.
fn publish_config(section: &PublishSection, source: &ConfigSource) -> Option<PublishConfig> {
    let kubeconfig = section.kubeconfig.as_ref()?;
    let exec = kubeconfig.exec.as_ref().map(|exec| {
        let args = exec.args.iter().map(|arg| arg.0.0.clone()).collect();
        (exec.command.0.0.clone(), args)
    });
    let ca = kubeconfig.ca.as_ref().map(|file| source.path(&file.0.0));
    Some(PublishConfig { exec, ca })
}

/// Refuses what a passthrough cluster cannot have: the proxy sees neither a request nor the apiserver's certificate.
fn check_passthrough(
    entry: &Spanned<ClusterEntry>,
    source: &ConfigSource,
) -> Result<(), ConfigError> {
    let refused = |problem| SettingError::cluster(&entry.value.name, problem);
    if entry.value.hosts.is_empty() {
        return Err(source.error_at(entry, refused(PASSTHROUGH_WITHOUT_HOSTS)));
    }
    if let Some(rules) = &entry.value.access {
        return Err(source.error_at(rules, refused(PASSTHROUGH_ACCESS)));
    }
    for host in &entry.value.hosts {
        if host.value.0.0.to_string().parse::<IpAddr>().is_ok() {
            return Err(source.error_at(host, refused(PASSTHROUGH_ADDRESS)));
        }
    }
    if let Some(section) = &entry.value.client_certificates {
        return Err(source.error_at(section, refused(PASSTHROUGH_CERTIFICATES)));
    }
    if let Some(prefix) = &entry.value.path_prefix {
        return Err(source.error_at(prefix, refused(PASSTHROUGH_PATH)));
    }
    if let Some(section) = &entry.value.publish {
        return Err(source.error_at(section, refused(PASSTHROUGH_PUBLISH)));
    }
    let upstream = entry
        .value
        .upstream
        .as_ref()
        .map(|upstream| &upstream.value);
    if let Some(name) = upstream.and_then(|upstream| upstream.name.as_ref()) {
        return Err(source.error_at(name, refused(PASSTHROUGH_NAME)));
    }
    if let Some(host) = upstream.and_then(|upstream| upstream.host.as_ref()) {
        return Err(source.error_at(host, refused(PASSTHROUGH_HOST)));
    }
    Ok(())
}

fn cluster_of_upstream(
    entry: &Spanned<UpstreamEntry>,
    passthrough: bool,
    source: &ConfigSource,
) -> Result<ClusterConfig, ConfigError> {
    let upstream = &entry.value;
    let trust = match &upstream.ca {
        Some(ca) => TrustSource::File(source.path(&ca.0.0)),
        None if passthrough => TrustSource::Clients,
        None => return Err(source.error_at(entry, SettingError::MissingKey { key: "ca" })),
    };
    let (url, place) = (upstream.url.0.clone(), url::place_in(&source.file));
    let mut cluster = url.into_cluster(String::new(), trust, place);
    cluster.addresses = upstream.addresses.iter().map(|one| one.0.0).collect();
    if let Some(proxy) = &upstream.proxy_url {
        if !cluster.addresses.is_empty() {
            let problem = PROXY_AND_ADDRESSES;
            return Err(source.error_at(proxy, SettingError::Malformed { problem }));
        }
        cluster.outbound = Some(proxy.value.0.clone());
    }
    if let Some(name) = &upstream.name {
        cluster.expected_name = name.value.0.0.clone();
    }
    if let Some(host) = &upstream.host {
        cluster.request_host = host.value.0;
    }
    Ok(cluster)
}

/// The first given flag that selects the apiserver or its hosts.
fn upstream_flag(args: &ServeArgs) -> Option<&'static str> {
    [
        ("--upstream", args.upstream.is_some()),
        ("--upstream-ca", args.upstream_ca.is_some()),
        ("--upstream-name", args.upstream_name.is_some()),
        ("--upstream-host", args.upstream_host.is_some()),
        ("--upstream-proxy-url", args.upstream_proxy_url.is_some()),
        ("--kubeconfig", args.kubeconfig.is_some()),
        ("--context", args.context.is_some()),
        ("--host", !args.hosts.is_empty()),
    ]
    .into_iter()
    .find_map(|(flag, given)| given.then_some(flag))
}

fn check_exclusive(args: &ServeArgs) -> Result<(), ConfigError> {
    let upstream = ("--upstream", args.upstream.is_some());
    let upstream_ca = ("--upstream-ca", args.upstream_ca.is_some());
    let kubeconfig = ("--kubeconfig", args.kubeconfig.is_some());
    let context = ("--context", args.context.is_some());
    if upstream.1 && kubeconfig.1 {
        return Err(ConfigError::Whole(SettingError::Exclusive {
            first: upstream.0,
            second: kubeconfig.0,
        }));
    }
    for ((flag, is_given), (needed, is_there)) in [
        (upstream, upstream_ca),
        (upstream_ca, upstream),
        (context, kubeconfig),
    ] {
        if is_given && !is_there {
            return Err(ConfigError::Whole(SettingError::Needs { flag, needed }));
        }
    }
    Ok(())
}

fn cluster_of_flags(args: &ServeArgs, env: &Environment) -> Result<ClusterConfig, ConfigError> {
    let mut cluster = match (&args.upstream, &args.upstream_ca, &args.kubeconfig) {
        (Some(url), Some(ca), _) => {
            let url: UpstreamUrl = parse_flag("--upstream", url)?;
            let trust = TrustSource::File(absolute_path(ca));
            let place = "the URL of --upstream".to_owned();
            url.into_cluster("default".to_owned(), trust, place)
        }
        (_, _, Some(file)) => kubeconfig::load(&absolute_path(file), args.context.as_deref())?,
        (_, _, None) => in_cluster(env)?.ok_or(ConfigError::Whole(if env.has_kubeconfig {
            SettingError::OnlyKubeconfigVariable
        } else {
            SettingError::NoUpstream
        }))?,
    };
    if let Some(name) = &args.upstream_name {
        cluster.expected_name = parse_flag::<ExpectedName>("--upstream-name", name)?.0;
    }
    if let Some(host) = &args.upstream_host {
        cluster.request_host = parse_flag("--upstream-host", host)?;
    }
    if let Some(url) = &args.upstream_proxy_url {
        cluster.outbound = Some(parse_flag("--upstream-proxy-url", url)?);
    }
    for host in &args.hosts {
        let host = parse_flag::<PublicHost>("--host", host)?.0.to_string();
        if !cluster.hosts.contains(&host) {
            cluster.hosts.push(host);
        }
    }
    Ok(cluster)
}

/// The cluster of the pod that this process runs in; `None` outside of a pod.
fn in_cluster(env: &Environment) -> Result<Option<ClusterConfig>, ConfigError> {
    const HOST: &str = "KUBERNETES_SERVICE_HOST";
    const PORT: &str = "KUBERNETES_SERVICE_PORT";
    let half = |variable, other| ConfigError::Pod(SettingError::HalfPod { variable, other });
    let (host, port) = match (&env.service_host, &env.service_port) {
        (Some(host), Some(port)) => (host, port),
        (None, None) => return Ok(None),
        (Some(_), None) => return Err(half(PORT, HOST)),
        (None, Some(_)) => return Err(half(HOST, PORT)),
    };
    let bad = |variable, value: &str, expected| {
        ConfigError::Pod(SettingError::BadPodVariable {
            variable,
            value: quote::value(value),
            expected,
        })
    };
    let upstream_host =
        url::host(host).ok_or_else(|| bad(HOST, host, "an IP address or host name"))?;
    let upstream_port = match port.parse() {
        Ok(0) | Err(_) => return Err(bad(PORT, port, "a port from 1 to 65535")),
        Ok(port) => port,
    };
    let ca = env.service_account.join("ca.crt");
    // The file is read here, because only here a missing file means a missing mount.
    if let Err(source) = file::read(&ca) {
        let file = ca;
        return Err(ConfigError::Pod(match source {
            ReadError::Missing => SettingError::NoPodCa { file },
            ReadError::Tilde
            | ReadError::Denied
            | ReadError::Directory
            | ReadError::TooLarge
            | ReadError::NotAPath { .. }
            | ReadError::Other(_) => SettingError::PodCa { file, source },
        }));
    }
    // client-go expects this host in the certificate, and sends it as SNI if it is a name. An address is replaced by
    // the name that every apiserver has, because some certificates lack the address.
    let name = match upstream_host.parse::<IpAddr>() {
        Ok(_) => "kubernetes.default.svc",
        Err(_) => upstream_host.as_str(),
    };
    let url = UpstreamUrl {
        port: upstream_port,
        prefix: String::new(),
        name: url::expected_name(name).map_err(ConfigError::Pod)?,
        host: upstream_host,
    };
    let trust = TrustSource::File(ca);
    let name = "in-cluster".to_owned();
    let place = format!("{HOST} and {PORT} of the pod");
    Ok(Some(url.into_cluster(name, trust, place)))
}

const NOT_ONE_NAMING: &str = "must name the owners of client certificates in exactly one way; give one of `frontProxy` and `impersonate` in `clientCertificates`";
const SAME_CERTIFICATE: &str = "has one file as `ca` and as `frontProxy.certificate`; give the CA that issues the certificates of users as `ca`";
const NO_HOSTS: &str = "has no `hosts`, and there are several clusters; add its public host names";
const CONTEXT_ALONE: &str =
    "has a `context` without a `kubeconfig`; add `kubeconfig`, or remove `context`";
const DUPLICATE: &str = "has the name of another cluster; give each its own name";
const PASSTHROUGH_WITHOUT_HOSTS: &str = "has `passthrough` and no `hosts`; add the names that its clients ask for, such as `kubernetes`";
const PASSTHROUGH_ADDRESS: &str = "has `passthrough` for an IP address, which no client asks for in TLS; write a name, such as `kubernetes`, and give it to clients as tls-server-name";
const PASSTHROUGH_NAME: &str = "has `passthrough` and `upstream.name`; remove `name`, because each client verifies the apiserver under the name that it asks for";
const PASSTHROUGH_CERTIFICATES: &str = "has `passthrough` and `clientCertificates`; remove the section, because each client presents its certificate to the apiserver itself";
const PROXY_AND_ADDRESSES: &str =
    "is given beside `addresses`, but the proxy resolves the host of `url`; remove one of the two";
const PASSTHROUGH_PUBLISH: &str = "has `passthrough` and `publish`; remove `publish`, because the proxy cannot answer a request that it does not see";
const PASSTHROUGH_ACCESS: &str =
    "has `passthrough`, so the proxy sees no request that `access` could judge; remove one of them";
const PASSTHROUGH_HOST: &str = "has `passthrough` and `upstream.host`; remove `host`, because the proxy cannot change a request that it does not see";
const PASSTHROUGH_PATH: &str = "has `passthrough` and `pathPrefix`; remove one of them, because the proxy sees no path of a connection that it passes on";
const PREFIX_CERTIFICATES: &str = "has `pathPrefix` and `clientCertificates`; give it a host of its own, because a certificate is asked for before a path is known";
const PASSTHROUGH_PREFIX: &str = "has `passthrough` and a URL with a path; remove the path, because the proxy cannot change a request that it does not see";
const NOT_ONE_SOURCE: &str = "must name its apiserver in exactly one way; give one of `upstream`, `kubeconfig` and `inCluster: true`";
