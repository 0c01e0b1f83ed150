//! The environment of the process: its pod, the CPUs and the memory that it may use, the files that it may open.
//!
//! Read once, before anything else. Tests make their own.

mod variables;

use std::{
    env, fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    thread,
};

use crate::{memory::MemoryLimit, process};

/// The environment that some defaults depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// `KUBERNETES_SERVICE_HOST`: the address of the apiserver inside the cluster.
    pub service_host: Option<String>,
    /// `KUBERNETES_SERVICE_PORT`.
    pub service_port: Option<String>,
    /// The directory with the pod's service account, of which only `ca.crt` is read; and `token`, if the configuration
    /// says that apiservers are looked for.
    pub service_account: PathBuf,
    /// CPUs that this process may use: affinity and cgroup quota, the quota rounded up.
    pub cpus: NonZeroUsize,
    /// Files, sockets included, that this process may have open: the soft `RLIMIT_NOFILE`.
    pub open_files: usize,
    /// Memory that this process may use: the limit of its cgroup, else the memory of the machine.
    pub memory: MemoryLimit,
    /// Whether `KUBECONFIG` is set, which only clients read.
    pub has_kubeconfig: bool,
    /// `STATE_DIRECTORY`: the folder that systemd made for the service.
    pub state_directory: Option<PathBuf>,
    /// A warning for each variable that looks like one of a flag and is none.
    pub unknown_variables: Vec<String>,
}

impl Environment {
    /// The environment of this process.
    #[must_use]
    pub fn from_process() -> Self {
        let (proc, cgroup) = (Path::new("/proc/self"), Path::new("/sys/fs/cgroup"));
        Self {
            service_host: variable("KUBERNETES_SERVICE_HOST"),
            service_port: variable("KUBERNETES_SERVICE_PORT"),
            service_account: PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount"),
            cpus: cpus(proc, cgroup),
            open_files: process::open_files(),
            memory: memory(proc, cgroup),
            has_kubeconfig: variable("KUBECONFIG").is_some(),
            state_directory: variable("STATE_DIRECTORY").and_then(|folders| {
                let first = folders.split(':').next()?;
                Some(PathBuf::from(first))
            }),
            unknown_variables: variables::unknown(env::vars_os().map(|(name, _)| name)),
        }
    }
}

/// Whether the user wants text without colours (<https://no-color.org>), or the terminal has none.
#[must_use]
pub fn has_no_colours() -> bool {
    variable("NO_COLOR").is_some() || variable("TERM").is_none_or(|terminal| terminal == "dumb")
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// The smaller of affinity and quota. The standard library rounds the quota down, which would leave
/// half a CPU of a limit of 1.5 unused.
fn cpus(proc: &Path, cgroup: &Path) -> NonZeroUsize {
    let machine = text(&proc.join("status"))
        .and_then(|status| allowed_cpus(&status))
        .or_else(|| thread::available_parallelism().ok())
        .unwrap_or(NonZeroUsize::MIN);
    let quotas = cgroups(proc, cgroup, "cpu").filter_map(|directory| quota(&directory));
    quotas.fold(machine, NonZeroUsize::min)
}

/// The smallest limit of the cgroups. The machine is asked with a system call, because a unit of systemd may hide
/// `/proc/meminfo`.
fn memory(proc: &Path, cgroup: &Path) -> MemoryLimit {
    MemoryLimit::smallest(process::machine_memory(), cgroups(proc, cgroup, "memory"))
}

/// Counts `Cpus_allowed_list: 0-3,8`.
fn allowed_cpus(status: &str) -> Option<NonZeroUsize> {
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut count = 0_usize;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let first: usize = first.parse().ok()?;
        let last: usize = last.parse().ok()?;
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    NonZeroUsize::new(count)
}

/// The directories of the process's cgroups that have this controller, and of their parents.
///
/// `/proc/self/cgroup` has `0::/path` for version 2, `4:cpu,cpuacct:/path` for version 1. Inside a container the
/// path is often `/` or does not exist here; the root then has the limits.
fn cgroups(proc: &Path, cgroup: &Path, controller: &str) -> impl Iterator<Item = PathBuf> {
    let own = text(&proc.join("cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let root = match controllers {
            "" => cgroup.to_path_buf(),
            _ if controllers.split(',').any(|name| name == controller) => cgroup.join(controllers),
            _ => continue,
        };
        for above in Path::new(path.trim_start_matches('/')).ancestors() {
            found.push(root.join(above));
        }
    }
    found.into_iter()
}

/// The CPU quota of one cgroup, rounded up.
fn quota(directory: &Path) -> Option<NonZeroUsize> {
    let (quota, period): (u64, u64) = if let Some(max) = text(&directory.join("cpu.max")) {
        let mut fields = max.split_ascii_whitespace();
        // `max 100000` means no quota, and does not parse.
        (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?)
    } else {
        // `-1` means no quota, and does not parse.
        let quota = text(&directory.join("cpu.cfs_quota_us"))?;
        let period = text(&directory.join("cpu.cfs_period_us"))?;
        (quota.trim().parse().ok()?, period.trim().parse().ok()?)
    };
    if period == 0 {
        return None;
    }
    NonZeroUsize::new(usize::try_from(quota.div_ceil(period)).ok()?)
}

fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests;
