//! How much memory this process may use, how much it uses, and whether memory is short.
//!
//! The kernel kills a process that exceeds the limit of its cgroup, with all its connections. So the proxy gives up
//! memory that it can do without before it reaches the limit.

use std::{
    convert::Infallible,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::time::sleep;
use tracing::{info, warn};

/// The memory that this process may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryLimit {
    /// The limit.
    pub bytes: u64,
    /// The directory of the cgroup whose limit this is. `None`: the memory of the machine.
    pub cgroup: Option<PathBuf>,
    /// The directory of the process's own cgroup, if the limit is that of one above it, which others share.
    pub own_cgroup: Option<PathBuf>,
}

impl MemoryLimit {
    /// The smallest limit of these cgroups, else the memory of the machine.
    pub(crate) fn smallest(machine: u64, cgroups: impl Iterator<Item = PathBuf>) -> Self {
        let of_machine = Self {
            bytes: machine,
            cgroup: None,
            own_cgroup: None,
        };
        let mut own = None;
        let limited = cgroups.filter_map(|directory| {
            // The first one that has files is the process's own.
            let own = match &own {
                None if usage(&directory).is_some() => {
                    own = Some(directory.clone());
                    None
                }
                own => own.clone(),
            };
            // `max` means no limit, and does not parse. Version 1 writes a limit beyond any machine instead.
            let bytes = number(&directory.join("memory.max"))
                .or_else(|| number(&directory.join("memory.limit_in_bytes")))?;
            Some(Self {
                bytes,
                cgroup: Some(directory),
                own_cgroup: own,
            })
        });
        limited.fold(of_machine, |smallest, next| {
            if next.bytes < smallest.bytes {
                next
            } else {
                smallest
            }
        })
    }

    /// The bytes that count against the limit now. `None` if the kernel does not say.
    fn used(&self) -> Option<u64> {
        let Some(cgroup) = &self.cgroup else {
            return resident_bytes();
        };
        let used = usage(cgroup)?;
        // The kernel frees this part by itself before it kills a process. Reading it costs more, so it is read only
        // when it decides.
        if used < self.share(SHORT_PERCENT) {
            return Some(used);
        }
        // This process cannot help if others fill a cgroup that it shares with them.
        let own = self.own_cgroup.as_deref().and_then(usage);
        if let Some(own) = own.filter(|own| *own < self.bytes / 2) {
            return Some(own);
        }
        let stat = fs::read_to_string(cgroup.join("memory.stat")).unwrap_or_default();
        let inactive = ["total_inactive_file ", "inactive_file "]
            .iter()
            .find_map(|key| stat.lines().find_map(|line| line.strip_prefix(key)));
        let inactive = inactive.and_then(|bytes| bytes.trim().parse().ok());
        Some(used.saturating_sub(inactive.unwrap_or(0)))
    }

    fn share(&self, percent: u64) -> u64 {
        self.bytes / 100 * percent
    }
}

/// Whether the process is short of memory. One task compares the memory in use with the limit; connections only read
/// the result.
///
/// While memory is short, the proxy accepts clients slowly, and the largest client loses idle connections. The proxy
/// keeps no idle upstream connection and makes no new copy of a request body. If a client leaves many responses unread,
/// the proxy resets most of them.
#[derive(Debug, Default)]
pub struct MemoryPressure {
    is_short: AtomicBool,
    /// Nearly all is in use.
    is_exhausted: AtomicBool,
}

impl MemoryPressure {
    /// Whether the process uses so much memory that it must give up what it can do without.
    pub fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }

    /// Returns when a client may be accepted: slowly while memory is short, so that each one may take the place of an
    /// idle connection, and not at all while nearly all is in use.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing is lost when the future is dropped.
    pub async fn may_accept(&self) {
        while self.is_short() {
            sleep(ACCEPT_PAUSE).await;
            if !self.is_exhausted.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    /// Compares the memory in use with `limit` again and again, and calls `give_up` whenever it is short. Never
    /// returns.
    pub async fn watch(&self, limit: &MemoryLimit, give_up: impl Fn()) -> Infallible {
        loop {
            sleep(INTERVAL).await;
            self.compare(limit);
            if self.is_short() {
                give_up();
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn set_short(&self, is_short: bool) {
        self.is_short.store(is_short, Ordering::Relaxed);
    }

    fn compare(&self, limit: &MemoryLimit) {
        let Some(used) = limit.used() else { return };
        let was_short = self.is_short();
        // Two thresholds, so that the state does not change with every connection.
        let percent = if was_short {
            ENOUGH_PERCENT
        } else {
            SHORT_PERCENT
        };
        let is_short = used >= limit.share(percent);
        self.is_short.store(is_short, Ordering::Relaxed);
        let is_exhausted = used >= limit.share(EXHAUSTED_PERCENT);
        self.is_exhausted.store(is_exhausted, Ordering::Relaxed);
        let mebibytes = |bytes: u64| bytes >> 20;
        let (used_mib, limit_mib) = (mebibytes(used), mebibytes(limit.bytes));
        match (was_short, is_short) {
            (false, true) => warn!(used_mib, limit_mib, "memory is short"),
            (true, false) => info!(used_mib, limit_mib, "memory is sufficient again"),
            _ => {}
        }
    }
}

/// Memory of this process in RAM: the `VmRSS` line, which counts in KiB whatever the page size is. `None`
/// without `/proc`.
pub(crate) fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The bytes that a cgroup uses.
fn usage(cgroup: &Path) -> Option<u64> {
    number(&cgroup.join("memory.current")).or_else(|| number(&cgroup.join("memory.usage_in_bytes")))
}

/// The number in a file of the kernel.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// In percent of the limit: above the first value memory is short, until less than the second value is in use.
const SHORT_PERCENT: u64 = 85;
const ENOUGH_PERCENT: u64 = 80;
/// From here on no client is accepted.
const EXHAUSTED_PERCENT: u64 = 95;
/// The pause between two clients of one listening socket while memory is short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
/// How often the memory is compared. A gigabit link fills 12 MiB in this time.
const INTERVAL: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use standin::TempDir;

    use super::*;

    const LIMIT: u64 = 512 << 20;

    /// A cgroup that uses this share of its limit, of which `inactive` is page cache.
    fn cgroup(scratch: &TempDir, percent: u64, inactive: u64) -> MemoryLimit {
        let bytes = |percent: u64| (LIMIT / 100 * percent).to_string();
        scratch.write("memory.max", LIMIT.to_string());
        scratch.write("memory.current", bytes(percent));
        let stat = format!("anon 1\ninactive_file {}\nactive_file 7\n", bytes(inactive));
        scratch.write("memory.stat", stat);
        MemoryLimit::smallest(u64::MAX, [scratch.path().to_owned()].into_iter())
    }

    #[test]
    fn memory_is_short_from_85_until_below_80_percent() {
        let (scratch, pressure) = (TempDir::new(), MemoryPressure::default());
        for (percent, inactive, is_short) in [
            (84, 0, false),
            (99, 20, false),
            (85, 0, true),
            (80, 0, true),
            (90, 11, false),
            (84, 0, false),
            (97, 0, true),
            (79, 0, false),
        ] {
            pressure.compare(&cgroup(&scratch, percent, inactive));
            assert_eq!(
                pressure.is_short(),
                is_short,
                "{percent} % with {inactive} % of cache"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn clients_are_accepted_slowly_then_not_at_all() {
        let (scratch, pressure) = (TempDir::new(), MemoryPressure::default());
        let limit = cgroup(&scratch, 96, 0);
        let given_up = std::cell::Cell::new(0);
        let watching = pressure.watch(&limit, || given_up.set(given_up.get() + 1));
        let waiting = async {
            sleep(INTERVAL * 2).await;
            tokio::time::timeout(INTERVAL * 10, pressure.may_accept())
                .await
                .unwrap_err();
            assert!(given_up.get() > 5);
            cgroup(&scratch, 90, 0);
            sleep(INTERVAL * 2).await;
            for (percent, pause) in [(90, ACCEPT_PAUSE), (50, Duration::ZERO)] {
                cgroup(&scratch, percent, 0);
                sleep(INTERVAL * 2).await;
                let begun = tokio::time::Instant::now();
                pressure.may_accept().await;
                assert_eq!(begun.elapsed(), pause, "{percent} %");
            }
        };
        tokio::select! {
            never = watching => match never {},
            () = waiting => {}
        }
    }

    #[test]
    fn memory_of_others_in_a_shared_cgroup_is_not_short() {
        let (shared, pressure) = (TempDir::new(), MemoryPressure::default());
        cgroup(&shared, 90, 0);
        for (own_percent, is_short) in [(49, false), (51, true)] {
            let own = shared.path().join("own");
            let bytes = LIMIT / 100 * own_percent;
            shared.write("own/memory.current", bytes.to_string());
            let cgroups = [own, shared.path().to_owned()];
            pressure.compare(&MemoryLimit::smallest(u64::MAX, cgroups.into_iter()));
            assert_eq!(pressure.is_short(), is_short, "{own_percent} %");
        }
    }

    #[test]
    fn process_on_a_machine_counts_its_own_memory() {
        let limit = MemoryLimit::smallest(1 << 40, std::iter::empty());
        assert!(limit.used().unwrap() > 1 << 20);
        assert!(limit.used().unwrap() < 1 << 36);
    }
}
