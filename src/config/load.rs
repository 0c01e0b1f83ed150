//! Flags, file, kubeconfig and pod become one [`Config`].
//!
//! A flag replaces what the file says for the same key, whole. Only which apiserver serves whom
//! cannot be mixed: there a flag and a file that both speak are an error.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::NonZeroUsize,
    path::{Path, PathBuf, absolute},
    str::FromStr,
};

use serde_saphyr::Spanned;

use super::{
    Config, ConfigError, Environment, FileKind, IdentityFiles, Limits, LogConfig, LogFormat,
    ServeArgs, SettingError, Timeouts, clusters,
    config_file::{
        AdminEntry, ConfigFile, LimitsEntry, ListenAddr, LogEntry, LogFilter, TimeoutsEntry,
        check_path,
    },
    units, yaml,
};

/// Reads every source and completes what none of them says from `env`.
///
/// # Errors
///
/// [`ConfigError`] says where, what is wrong, and the mend.
pub fn load(args: &ServeArgs, env: &Environment) -> Result<Config, ConfigError> {
    load_given(&args.without_empty(), env)
        .map_err(|error| error.naming_variables(&args.from_environment))
}

fn load_given(args: &ServeArgs, env: &Environment) -> Result<Config, ConfigError> {
    check_paths(args)?;
    let path = args.config.as_deref().map(complete_path);
    let mut file = match &path {
        Some(path) => yaml::load(FileKind::Config, path)?,
        None => ConfigFile::default(),
    };
    let base = ConfigSource {
        file: path.unwrap_or_default(),
    };
    let workers = workers(args, &file, env)?;
    let identities = identities(args, &mut file, &base)?;
    let entries = file.clusters.take().unwrap_or_default();
    let mut sources: Vec<_> = args.config.iter().map(|file| complete_path(file)).collect();
    sources.extend(args.kubeconfig.iter().map(|file| complete_path(file)));
    let of_entries = entries
        .iter()
        .filter_map(|entry| entry.value.kubeconfig.as_ref());
    sources.extend(of_entries.map(|file| base.path(&file.0.0)));
    let clusters = clusters::load(args, entries, &base, env)?;
    let (listen, admin) = (
        listen(args, &file, &base)?,
        admin(args, file.admin.as_ref())?,
    );
    // Without an address of its own it may be systemd that passes on the sockets.
    if !args.listen.is_empty() || file.listen.is_some() {
        each_its_own(listen.iter().chain(&admin))?;
    }
    Ok(Config {
        sources,
        listen,
        reuse_port: args.reuse_port || file.reuse_port.unwrap_or(false),
        workers,
        identities,
        clusters,
        limits: limits(&file.limits.unwrap_or_default(), &base, workers, env)?,
        timeouts: timeouts(args, &file.timeouts.unwrap_or_default())?,
        log: log(args, file.log.unwrap_or_default())?,
        admin,
    })
}

/// Refuses flags that hold the content of a file in place of its path.
fn check_paths(args: &ServeArgs) -> Result<(), ConfigError> {
    let lists = [("--cert", &args.certificates), ("--key", &args.keys)];
    let single = [
        ("--upstream-ca", &args.upstream_ca),
        ("--kubeconfig", &args.kubeconfig),
        ("--config", &args.config),
    ];
    let of_lists = lists
        .into_iter()
        .flat_map(|(flag, paths)| paths.iter().map(move |path| (flag, path)));
    let of_single = single
        .into_iter()
        .filter_map(|(flag, path)| path.as_ref().map(|path| (flag, path)));
    of_lists
        .chain(of_single)
        .try_for_each(|(flag, path)| path_flag(flag, path))
}

/// Checks a flag whose value must be a path.
///
/// # Errors
///
/// When it is the content of a file, such as PEM text.
pub(crate) fn path_flag(flag: &'static str, path: &Path) -> Result<(), ConfigError> {
    check_path(path).map_err(|source| ConfigError::Flag { flag, source })
}

/// The configuration file that values come from, to name it and to complete its relative paths.
pub(super) struct ConfigSource {
    pub(super) file: PathBuf,
}

impl ConfigSource {
    pub(super) fn path(&self, path: &Path) -> PathBuf {
        self.file
            .parent()
            .unwrap_or_else(|| Path::new(""))
            .join(path)
    }

    pub(super) fn error_at<T>(&self, at: &Spanned<T>, source: SettingError) -> ConfigError {
        ConfigError::File {
            kind: FileKind::Config,
            file: self.file.clone(),
            at: yaml::position(at.referenced),
            source: Box::new(source),
        }
    }
}

/// A path of the command line, made independent of the working directory.
pub(super) fn complete_path(path: &Path) -> PathBuf {
    absolute(path).unwrap_or_else(|_no_working_directory| path.to_owned())
}

pub(super) fn flag<T: FromStr<Err = SettingError>>(
    flag: &'static str,
    text: &str,
) -> Result<T, ConfigError> {
    text.parse()
        .map_err(|source| ConfigError::Flag { flag, source })
}

fn listen(
    args: &ServeArgs,
    file: &ConfigFile,
    base: &ConfigSource,
) -> Result<Vec<SocketAddr>, ConfigError> {
    if !args.listen.is_empty() {
        return args
            .listen
            .iter()
            .map(|text| flag::<ListenAddr>("--listen", text).map(|listen| listen.0))
            .collect();
    }
    match &file.listen {
        Some(listen) if listen.value.is_empty() => {
            Err(base.error_at(listen, SettingError::EmptyListen))
        }
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
    base: &ConfigSource,
) -> Result<Vec<IdentityFiles>, ConfigError> {
    if args.certificates.len() != args.keys.len() {
        return Err(ConfigError::Whole(SettingError::UnevenPairs {
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
                certificate: base.path(&entry.certificate.0.0),
                key: base.path(&entry.key.0.0),
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
        return Err(ConfigError::Whole(SettingError::NoCertificate));
    }
    Ok(identities)
}

fn limits(
    entry: &LimitsEntry,
    base: &ConfigSource,
    workers: NonZeroUsize,
    env: &Environment,
) -> Result<Limits, ConfigError> {
    let default = Limits::for_machine(workers, env.open_files);
    if let Some(given) = &entry.connections {
        let connections = given.value.get();
        let needed = connections.saturating_mul(2);
        if needed > env.open_files {
            return Err(base.error_at(
                given,
                SettingError::TooManyConnections {
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
    let grace = |name, given: &Option<String>, entry: Option<units::MaybeZeroDuration>, default| {
        match given {
            Some(text) => {
                units::duration(text).map_err(|source| ConfigError::Flag { flag: name, source })
            }
            None => Ok(entry.map_or(default, |grace| grace.0)),
        }
    };
    let drain = grace(
        "--drain-timeout",
        &args.drain_timeout,
        entry.drain,
        default.drain,
    )?;
    let drain_delay = grace(
        "--drain-delay",
        &args.drain_delay,
        entry.drain_delay,
        default.drain_delay,
    )?;
    let drain_tunnels = grace(
        "--drain-tunnels",
        &args.drain_tunnels,
        entry.drain_tunnels,
        default.drain_tunnels,
    )?;
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
        half_close_timeout: entry
            .half_close_timeout
            .map_or(default.half_close_timeout, |grace| grace.0),
        probe_interval: entry
            .probe_interval
            .map_or(default.probe_interval, |grace| grace.0),
        probe_timeout: or(entry.probe_timeout, default.probe_timeout),
        drain_delay,
        drain,
        drain_tunnels,
        resolve: or(entry.resolve, default.resolve),
        reload: or(entry.reload, default.reload),
    })
}

fn log(args: &ServeArgs, entry: LogEntry) -> Result<LogConfig, ConfigError> {
    let format = match &args.log_format {
        Some(text) => flag("--log-format", text)?,
        None => entry.format.map_or(LogFormat::Text, |format| format.0),
    };
    let filter = match &args.log_level {
        Some(text) => flag::<LogFilter>("--log-level", text)?.0,
        None => entry
            .filter
            .map_or_else(|| "info".to_owned(), |filter| filter.0.0),
    };
    Ok(LogConfig {
        format,
        filter,
        access: !args.no_access_log && entry.access.unwrap_or(true),
    })
}

fn admin(args: &ServeArgs, entry: Option<&AdminEntry>) -> Result<Option<SocketAddr>, ConfigError> {
    let given = match &args.admin_listen {
        Some(text) => Some(flag::<ListenAddr>("--admin-listen", text)?),
        None => entry
            .and_then(|entry| entry.listen.as_ref())
            .map(|listen| listen.0),
    };
    Ok(given.map(|listen| listen.0))
}

/// The second of two that overlap would find its port in use, and take this process for another one.
fn each_its_own<'a>(addresses: impl Iterator<Item = &'a SocketAddr>) -> Result<(), ConfigError> {
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

/// Whether the kernel gives only one of the two: `[::]` takes IPv4 too.
fn overlap(a: &SocketAddr, b: &SocketAddr) -> bool {
    let takes = |a: &SocketAddr, b: &SocketAddr| {
        a.ip() == b.ip() || a.ip().is_unspecified() && (a.is_ipv6() || b.is_ipv4())
    };
    a.port() == b.port() && a.port() != 0 && (takes(a, b) || takes(b, a))
}

const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 8443);
