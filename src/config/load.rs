//! Flags, file, kubeconfig and pod become one [`Config`].
//!
//! A flag replaces what the file says for the same key, whole. Only which apiserver serves whom
//! cannot be mixed: there a flag and a file that both speak are an error.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    path::{Path, PathBuf, absolute},
    str::FromStr,
};

use super::{
    ClusterConfig, Config, ConfigError, Environment, Fault, FileKind, HostPattern, IdentityFiles,
    Limits, LogConfig, LogFormat, ServeArgs, TrustSource,
    config_file::{
        ClusterEntry, ConfigFile, ExpectedName, LimitsEntry, ListenAddr, TimeoutsEntry,
        UpstreamEntry,
    },
    file, kubeconfig,
    limits::Timeouts,
    units,
    url::UpstreamUrl,
    yaml,
};

/// Reads every source and completes what none of them says from `env`.
///
/// # Errors
///
/// [`ConfigError`] says where, what is wrong, and the mend.
pub fn load(args: &ServeArgs, env: &Environment) -> Result<Config, ConfigError> {
    let path = args.config.as_deref().map(complete_path);
    let mut file = match &path {
        Some(path) => yaml::load(FileKind::Config, path)?,
        None => ConfigFile::default(),
    };
    let base = Base {
        file: path.unwrap_or_default(),
    };
    let workers = workers(args, &file, env)?;
    let identities = identities(args, &mut file, &base)?;
    let clusters = clusters(args, &mut file, &base, env)?;
    Ok(Config {
        listen: listen(args, &file, &base)?,
        workers,
        identities,
        clusters,
        limits: limits(&file.limits, &base, workers, env)?,
        timeouts: timeouts(args, &file.timeouts)?,
        log: log(args, file)?,
    })
}

/// The configuration file that values come from, to name it and to complete its relative paths.
struct Base {
    file: PathBuf,
}

impl Base {
    fn path(&self, path: &Path) -> PathBuf {
        self.file
            .parent()
            .unwrap_or_else(|| Path::new(""))
            .join(path)
    }

    fn fault<T>(&self, at: &serde_saphyr::Spanned<T>, source: Fault) -> ConfigError {
        ConfigError::File {
            kind: FileKind::Config,
            file: self.file.clone(),
            at: yaml::position(at.referenced),
            source: Box::new(source),
        }
    }
}

/// A path of the command line, made independent of the working directory.
fn complete_path(path: &Path) -> PathBuf {
    absolute(path).unwrap_or_else(|_no_working_directory| path.to_owned())
}

fn flag<T: FromStr<Err = Fault>>(flag: &'static str, text: &str) -> Result<T, ConfigError> {
    text.parse()
        .map_err(|source| ConfigError::Flag { flag, source })
}

fn listen(
    args: &ServeArgs,
    file: &ConfigFile,
    base: &Base,
) -> Result<Vec<std::net::SocketAddr>, ConfigError> {
    if !args.listen.is_empty() {
        return args
            .listen
            .iter()
            .map(|text| flag::<ListenAddr>("--listen", text).map(|listen| listen.0))
            .collect();
    }
    match &file.listen {
        Some(listen) if listen.value.is_empty() => Err(base.fault(listen, Fault::EmptyListen)),
        Some(listen) => Ok(listen.value.iter().map(|listen| listen.0.0).collect()),
        None => Ok(vec![DEFAULT_LISTEN]),
    }
}

fn workers(
    args: &ServeArgs,
    file: &ConfigFile,
    env: &Environment,
) -> Result<NonZeroUsize, ConfigError> {
    let given = match &args.workers {
        Some(text) => Some(flag::<units::Count<1, 1024>>("--workers", text)?),
        None => file.workers,
    };
    Ok(given
        .and_then(|count| NonZeroUsize::new(count.get()))
        .unwrap_or(env.cpus))
}

fn identities(
    args: &ServeArgs,
    file: &mut ConfigFile,
    base: &Base,
) -> Result<Vec<IdentityFiles>, ConfigError> {
    if args.certificates.len() != args.keys.len() {
        return Err(ConfigError::Whole(Fault::UnevenPairs {
            certificates: args.certificates.len(),
            keys: args.keys.len(),
        }));
    }
    let identities: Vec<_> = if args.certificates.is_empty() {
        file.certificates
            .take()
            .unwrap_or_default()
            .iter()
            .map(|entry| IdentityFiles {
                certificate: base.path(&entry.certificate),
                key: base.path(&entry.key),
            })
            .collect()
    } else {
        args.certificates
            .iter()
            .zip(&args.keys)
            .map(|(certificate, key)| IdentityFiles {
                certificate: complete_path(certificate),
                key: complete_path(key),
            })
            .collect()
    };
    if identities.is_empty() {
        return Err(ConfigError::Whole(Fault::NoCertificate));
    }
    Ok(identities)
}

fn clusters(
    args: &ServeArgs,
    file: &mut ConfigFile,
    base: &Base,
    env: &Environment,
) -> Result<Vec<ClusterConfig>, ConfigError> {
    check_exclusive(args)?;
    let entries = file.clusters.take().unwrap_or_default();
    if entries.is_empty() {
        return Ok(vec![cluster_of_flags(args, env)?]);
    }
    if let Some(flag) = upstream_flag(args) {
        return Err(ConfigError::Whole(Fault::FlagAgainstFile {
            flag,
            key: "clusters",
            file: base.file.clone(),
        }));
    }
    let several = entries.len() > 1;
    let mut hosts = HashMap::new();
    let mut clusters: Vec<ClusterConfig> = Vec::with_capacity(entries.len());
    for entry in entries {
        let name = entry.value.name.clone();
        if name.is_empty() {
            return Err(base.fault(&entry, Fault::EmptyName));
        }
        if clusters.iter().any(|cluster| cluster.name == name) {
            return Err(base.fault(&entry, Fault::DuplicateCluster { name }));
        }
        if several && entry.value.hosts.is_empty() {
            return Err(base.fault(&entry, Fault::NoHosts { name }));
        }
        for host in &entry.value.hosts {
            let text = host.value.0.to_string();
            if let Some(first) = hosts.insert(text.clone(), name.clone()) {
                return Err(base.fault(host, Fault::DuplicateHost { host: text, first }));
            }
        }
        clusters.push(cluster_of_entry(entry, base, env)?);
    }
    Ok(clusters)
}

fn cluster_of_entry(
    entry: serde_saphyr::Spanned<ClusterEntry>,
    base: &Base,
    env: &Environment,
) -> Result<ClusterConfig, ConfigError> {
    let name = entry.value.name.clone();
    let hosts = entry
        .value
        .hosts
        .iter()
        .map(|host| host.value.0.to_string())
        .collect();
    if entry.value.context.is_some() && entry.value.kubeconfig.is_none() {
        return Err(base.fault(&entry, Fault::ClusterContext { name }));
    }
    let one = match (
        &entry.value.upstream,
        &entry.value.kubeconfig,
        entry.value.in_cluster,
    ) {
        (Some(upstream), None, false) => cluster_of_upstream(upstream, base),
        (None, Some(file), false) => {
            kubeconfig::load(&base.path(file), entry.value.context.as_deref())?
        }
        (None, None, true) => in_cluster(env)?.ok_or(ConfigError::Whole(Fault::NoUpstream))?,
        (None, None, false) | (Some(_), Some(_), _) | (Some(_), _, true) | (_, Some(_), true) => {
            return Err(base.fault(&entry, Fault::ClusterSource { name }));
        }
    };
    Ok(ClusterConfig { name, hosts, ..one })
}

fn cluster_of_upstream(upstream: &UpstreamEntry, base: &Base) -> ClusterConfig {
    let url = upstream.url.0.clone();
    ClusterConfig {
        name: String::new(),
        hosts: Vec::new(),
        upstream_host: url.host,
        upstream_port: url.port,
        path_prefix: url.prefix,
        expected_name: upstream
            .name
            .as_ref()
            .map_or(url.name, |name| name.0.0.clone()),
        trust: TrustSource::File(base.path(&upstream.ca)),
    }
}

/// The first flag that says which apiserver serves whom.
fn upstream_flag(args: &ServeArgs) -> Option<&'static str> {
    [
        ("--upstream", args.upstream.is_some()),
        ("--upstream-ca", args.upstream_ca.is_some()),
        ("--upstream-name", args.upstream_name.is_some()),
        ("--kubeconfig", args.kubeconfig.is_some()),
        ("--context", args.context.is_some()),
        ("--host", !args.hosts.is_empty()),
    ]
    .into_iter()
    .find_map(|(flag, given)| given.then_some(flag))
}

fn check_exclusive(args: &ServeArgs) -> Result<(), ConfigError> {
    let fault = if args.upstream.is_some() && args.kubeconfig.is_some() {
        Fault::Exclusive {
            first: "--upstream",
            second: "--kubeconfig",
        }
    } else if args.upstream.is_some() && args.upstream_ca.is_none() {
        Fault::Needs {
            flag: "--upstream",
            needed: "--upstream-ca",
        }
    } else if args.upstream_ca.is_some() && args.upstream.is_none() {
        Fault::Needs {
            flag: "--upstream-ca",
            needed: "--upstream",
        }
    } else if args.context.is_some() && args.kubeconfig.is_none() {
        Fault::Needs {
            flag: "--context",
            needed: "--kubeconfig",
        }
    } else {
        return Ok(());
    };
    Err(ConfigError::Whole(fault))
}

fn cluster_of_flags(args: &ServeArgs, env: &Environment) -> Result<ClusterConfig, ConfigError> {
    let mut cluster = match (&args.upstream, &args.upstream_ca, &args.kubeconfig) {
        (Some(url), Some(ca), _) => {
            let url: UpstreamUrl = flag("--upstream", url)?;
            ClusterConfig {
                name: "default".to_owned(),
                hosts: Vec::new(),
                upstream_host: url.host,
                upstream_port: url.port,
                path_prefix: url.prefix,
                expected_name: url.name,
                trust: TrustSource::File(complete_path(ca)),
            }
        }
        (_, _, Some(file)) => kubeconfig::load(&complete_path(file), args.context.as_deref())?,
        (_, _, None) => in_cluster(env)?.ok_or(ConfigError::Whole(Fault::NoUpstream))?,
    };
    if let Some(name) = &args.upstream_name {
        cluster.expected_name = flag::<ExpectedName>("--upstream-name", name)?.0;
    }
    for host in &args.hosts {
        let host = flag::<HostPattern>("--host", host)?.to_string();
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
    let half = |variable, other| ConfigError::Pod(Fault::HalfPod { variable, other });
    let (host, port) = match (&env.service_host, &env.service_port) {
        (Some(host), Some(port)) => (host, port),
        (None, None) => return Ok(None),
        (Some(_), None) => return Err(half(PORT, HOST)),
        (None, Some(_)) => return Err(half(HOST, PORT)),
    };
    let bad = |variable, value: &str, wanted| {
        ConfigError::Pod(Fault::BadPodVariable {
            variable,
            value: super::host::shown(value),
            wanted,
        })
    };
    let upstream_host =
        super::url::host(host).ok_or_else(|| bad(HOST, host, "an IP address or host name"))?;
    let upstream_port = match port.parse() {
        Ok(0) | Err(_) => return Err(bad(PORT, port, "a port from 1 to 65535")),
        Ok(port) => port,
    };
    let ca = env.service_account.join("ca.crt");
    // Looked at here, because only here it is known that a missing file means a missing mount.
    file::read(&ca).map_err(|source| {
        ConfigError::Pod(Fault::PodCa {
            file: ca.clone(),
            source,
        })
    })?;
    Ok(Some(ClusterConfig {
        name: "in-cluster".to_owned(),
        hosts: Vec::new(),
        upstream_host,
        upstream_port,
        path_prefix: String::new(),
        expected_name: "kubernetes.default.svc"
            .parse::<ExpectedName>()
            .map_err(ConfigError::Pod)?
            .0,
        trust: TrustSource::File(ca),
    }))
}

fn limits(
    entry: &LimitsEntry,
    base: &Base,
    workers: NonZeroUsize,
    env: &Environment,
) -> Result<Limits, ConfigError> {
    let default = Limits::for_machine(workers, env.open_files);
    if let Some(given) = &entry.connections {
        let connections = given.value.get();
        let needed = connections.saturating_mul(2);
        if needed > env.open_files {
            return Err(base.fault(
                given,
                Fault::TooManyConnections {
                    connections,
                    needed,
                    open_files: env.open_files,
                },
            ));
        }
    }
    Ok(Limits {
        connections: entry
            .connections
            .as_ref()
            .map_or(default.connections, |count| count.value.get()),
        handshakes: entry
            .handshakes
            .map_or(default.handshakes, units::Count::get),
        streams_per_connection: entry
            .streams_per_connection
            .map_or(default.streams_per_connection, |count| {
                u32::try_from(count.get()).unwrap_or(u32::MAX)
            }),
        header_bytes: entry
            .header_bytes
            .map_or(default.header_bytes, units::Size::get),
        header_fields: entry
            .header_fields
            .map_or(default.header_fields, units::Count::get),
        uri_bytes: entry.uri_bytes.map_or(default.uri_bytes, units::Size::get),
        replay_bytes: entry
            .replay_bytes
            .map_or(default.replay_bytes, units::Size::get),
        idle_upstream_connections: entry
            .idle_upstream_connections
            .map_or(default.idle_upstream_connections, units::Count::get),
    })
}

fn timeouts(args: &ServeArgs, entry: &TimeoutsEntry) -> Result<Timeouts, ConfigError> {
    let default = Timeouts::default();
    let or = |given: Option<units::Timeout>, default| given.map_or(default, |timeout| timeout.0);
    let drain = match &args.drain_timeout {
        Some(text) => units::duration(text).map_err(|source| ConfigError::Flag {
            flag: "--drain-timeout",
            source,
        })?,
        None => entry.drain.map_or(default.drain, |grace| grace.0),
    };
    Ok(Timeouts {
        handshake: or(entry.handshake, default.handshake),
        request_head: or(entry.request_head, default.request_head),
        client_idle: or(entry.client_idle, default.client_idle),
        client_ping_interval: or(entry.client_ping_interval, default.client_ping_interval),
        client_ping_timeout: or(entry.client_ping_timeout, default.client_ping_timeout),
        upstream_connect: or(entry.upstream_connect, default.upstream_connect),
        upstream_idle: or(entry.upstream_idle, default.upstream_idle),
        upstream_ping_interval: or(entry.upstream_ping_interval, default.upstream_ping_interval),
        upstream_ping_timeout: or(entry.upstream_ping_timeout, default.upstream_ping_timeout),
        tcp_keepalive: or(entry.tcp_keepalive, default.tcp_keepalive),
        tcp_user_timeout: or(entry.tcp_user_timeout, default.tcp_user_timeout),
        tunnel_rest: entry
            .tunnel_rest
            .map_or(default.tunnel_rest, |grace| grace.0),
        drain,
        resolve: or(entry.resolve, default.resolve),
        reload: or(entry.reload, default.reload),
    })
}

fn log(args: &ServeArgs, file: ConfigFile) -> Result<LogConfig, ConfigError> {
    let format = match &args.log_format {
        Some(text) => flag("--log-format", text)?,
        None => file.log.format.map_or(LogFormat::Text, |format| format.0),
    };
    Ok(LogConfig {
        format,
        filter: args
            .log_level
            .clone()
            .or(file.log.filter)
            .unwrap_or_else(|| "info".to_owned()),
        access: !args.no_access_log && file.log.access.unwrap_or(true),
    })
}

const DEFAULT_LISTEN: std::net::SocketAddr =
    std::net::SocketAddr::new(std::net::IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), 8443);
