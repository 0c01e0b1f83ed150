//! Makes one [`Config`] from flags, file, kubeconfig and pod.
//!
//! A flag replaces the whole value of its key in the file. The apiserver is the exception: if flags and file
//! both name one, that is an error.

use std::{net::SocketAddr, num::NonZeroUsize};

use super::{
    Capacity, ClusterDirectory, Config, ConfigError, Environment, FileKind, Limits, LogConfig,
    LogFormat, LoggedUser, ServeArgs, SettingError, Timeouts, access, acme, clusters,
    config_file::{AdminSection, ConfigFile, LogFilter, LogSection},
    limits::{LimitsSection, TimeoutsSection},
    listen::{self, ListenAddr},
    source::{ConfigSource, absolute_path, check_path_flags, parse_flag},
    units::{Count, MaybeZeroDuration, Switch},
    yaml,
};

/// Reads every source. Defaults that depend on the machine come from `env`.
///
/// # Errors
///
/// [`ConfigError`] says where the error is, what is wrong and how to fix it.
pub fn load(args: &ServeArgs, env: &Environment) -> Result<Config, ConfigError> {
    let mut text = String::new();
    load_given(&args.without_empty(), env, &mut text)
        .map_err(|error| error.with_excerpt(&text))
        .map_err(|error| error.naming_variables(&args.from_environment))
}

/// `text` becomes that of the configuration file.
fn load_given(
    args: &ServeArgs,
    env: &Environment,
    text: &mut String,
) -> Result<Config, ConfigError> {
    check_path_flags(args)?;
    let path = args.config.as_deref().map(absolute_path);
    let mut file = match &path {
        Some(path) => {
            *text = yaml::read_text(FileKind::Config, path)?;
            yaml::parse(FileKind::Config, path, text)?
        }
        None => ConfigFile::default(),
    };
    let source = ConfigSource {
        file: path.unwrap_or_default(),
    };
    let workers = workers(args, &file, env)?;
    let identities = acme::load(args, file.certificates.take(), &source, env)?;
    // If neither flag nor file gives an address, systemd may pass on the sockets instead.
    let has_address = !args.listen.is_empty() || file.listen.is_some();
    // A CA validates on this port, whatever the proxy listens on.
    let is_acme = identities.iter().any(|source| source.acme().is_some());
    let default_listen = if is_acme {
        listen::HTTPS
    } else {
        listen::DEFAULT_LISTEN
    };
    let (listen, admin) = (
        listen::load(args, &mut file, &source, default_listen)?,
        admin(args, file.admin.as_ref())?,
    );
    let clients = has_address.then_some(&listen).into_iter().flatten();
    let http01 = acme::http01_ports(&identities);
    let ports = clients.map(|entry| &entry.address).chain(&admin);
    listen::check_ports(ports.chain(&http01))?;
    let trusted_proxies = listen::trusted_proxies(args, &mut file)?;
    let entries = file.clusters.take().unwrap_or_default();
    let mut sources: Vec<_> = args.config.iter().map(|file| absolute_path(file)).collect();
    sources.extend(args.kubeconfig.iter().map(|file| absolute_path(file)));
    let kubeconfigs = entries
        .iter()
        .filter_map(|entry| entry.value.kubeconfig.as_ref());
    sources.extend(kubeconfigs.map(|file| source.path(&file.0.0)));
    let from = file.clusters_from.take();
    let publish = file.publish.as_ref();
    let (clusters, directory) =
        clusters::load(args, entries, from.as_ref(), publish, &source, env)?;
    sources.extend(directory.iter().flat_map(ClusterDirectory::sources));
    let (limits, capacity) = limits(file.limits.unwrap_or_default(), &source, workers, env)?;
    let section = file.timeouts.unwrap_or_default();
    let sets_tunnels = args.drain_tunnels.is_some() || section.drain_tunnels.is_some();
    let timeouts = timeouts(args, section)?;
    let mut warnings = env.unknown_variables.clone();
    warnings.extend(capacity.few_open_files(limits.connections));
    warnings.extend(listen::trusts_everyone(&listen, &trusted_proxies));
    warnings.extend(clusters::passed_by(&clusters));
    warnings.extend(acme::passed_names(&identities, &clusters));
    let written = clusters.iter().filter(|cluster| cluster.file.is_none());
    for cluster in written.filter(|cluster| !cluster.access.is_empty()) {
        warnings.extend(access::warnings(&cluster.name, &cluster.access));
    }
    if let Some(directory) = &directory {
        warnings.extend(directory.warnings());
    }
    warnings.extend(sets_tunnels.then(|| short_tunnels(&timeouts)).flatten());
    Ok(Config {
        sources,
        listen,
        trusted_proxies,
        reuse_port: switch("--reuse-port", args.reuse_port.as_deref())?
            .or(file.reuse_port)
            .unwrap_or(false),
        workers,
        identities,
        clusters,
        directory,
        limits,
        capacity,
        timeouts,
        log: log(args, file.log.unwrap_or_default())?,
        warnings,
        admin,
        hints: file.hints.unwrap_or(true),
    })
}

fn workers(
    args: &ServeArgs,
    file: &ConfigFile,
    env: &Environment,
) -> Result<NonZeroUsize, ConfigError> {
    let given = match &args.workers {
        Some(text) => Some(parse_flag::<Count<1, 1024>>("--workers", text)?),
        None => file.workers,
    };
    Ok(given
        .and_then(|count| NonZeroUsize::new(count.get()))
        .unwrap_or(env.cpus))
}

fn limits(
    section: LimitsSection,
    source: &ConfigSource,
    workers: NonZeroUsize,
    env: &Environment,
) -> Result<(Limits, Capacity), ConfigError> {
    let (connections, mut capacity) = Capacity::default_connections(workers, env);
    if let Some(given) = &section.connections {
        let connections = given.value.get();
        capacity = Capacity::configured(connections, workers, env).map_err(|needed| {
            let error = SettingError::TooManyConnections {
                connections,
                needed,
                open_files: env.open_files,
            };
            source.error_at(given, error)
        })?;
    }
    let limits = section.or(Limits {
        connections,
        // Twice as many as 64 per worker: a handshake waits for its client half of the time.
        handshakes: workers.get().saturating_mul(2 * 64),
        ..Limits::default()
    });
    Ok((limits, capacity))
}

fn timeouts(args: &ServeArgs, section: TimeoutsSection) -> Result<Timeouts, ConfigError> {
    let mut timeouts = section.or(Timeouts::default());
    for (flag, given, timeout) in [
        (
            "--drain-delay",
            &args.drain_delay,
            &mut timeouts.drain_delay,
        ),
        ("--drain-timeout", &args.drain_timeout, &mut timeouts.drain),
        (
            "--drain-tunnels",
            &args.drain_tunnels,
            &mut timeouts.drain_tunnels,
        ),
    ] {
        if let Some(text) = given {
            *timeout = parse_flag::<MaybeZeroDuration>(flag, text)?.0;
        }
    }
    Ok(timeouts)
}

/// The warning about tunnels that would end before requests.
fn short_tunnels(timeouts: &Timeouts) -> Option<String> {
    let (drain, tunnels) = (timeouts.drain, timeouts.drain_tunnels);
    (tunnels < drain).then(|| {
        format!(
            "tunnels get {drain:?} in a drain and not {tunnels:?}, because they never get less than requests; \
             raise timeouts.drainTunnels (--drain-tunnels), or lower timeouts.drain (--drain-timeout)"
        )
    })
}

fn log(args: &ServeArgs, section: LogSection) -> Result<LogConfig, ConfigError> {
    let format = match &args.log_format {
        Some(text) => parse_flag("--log-format", text)?,
        None => section.format.map_or(LogFormat::Text, |format| format.0),
    };
    let filter = match &args.log_level {
        Some(text) => parse_flag::<LogFilter>("--log-level", text)?.0,
        None => section
            .filter
            .map_or_else(|| "info".to_owned(), |filter| filter.0.0),
    };
    Ok(LogConfig {
        format,
        filter,
        access: switch("--no-access-log", args.no_access_log.as_deref())?
            .map(|is_off| !is_off)
            .or(section.access)
            .unwrap_or(true),
        user: match &args.log_user {
            Some(text) => parse_flag("--log-user", text)?,
            None => section.user.map_or_else(LoggedUser::default, |user| user.0),
        },
    })
}

fn switch(flag: &'static str, given: Option<&str>) -> Result<Option<bool>, ConfigError> {
    let switch = given.map(|text| parse_flag::<Switch>(flag, text));
    Ok(switch.transpose()?.map(|switch| switch.0))
}

fn admin(
    args: &ServeArgs,
    section: Option<&AdminSection>,
) -> Result<Option<SocketAddr>, ConfigError> {
    let given = match &args.admin_listen {
        Some(text) => Some(parse_flag::<ListenAddr>("--admin-listen", text)?),
        None => section
            .and_then(|section| section.listen.as_ref())
            .map(|listen| listen.0),
    };
    Ok(given.map(|listen| listen.0))
}
