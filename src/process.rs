//! What the kernel allows this process, and what other processes may not learn from it.
//!
//! Nothing here fails a start: a sandbox may forbid each of these calls, and the proxy works without them.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one, as Go and nginx do. The soft limit, usually 1,024, exists
/// for programs that use `select`, and this one does not.
pub(crate) fn raise_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        let raised = Rlimit {
            current: maximum,
            maximum,
        };
        // A sandbox that forbids it leaves the soft limit, which `limits.connections` then follows.
        setrlimit(Resource::Nofile, raised).ok();
    }
}

/// The files, sockets included, that this process may have open.
pub(crate) fn open_files() -> usize {
    let soft = getrlimit(Resource::Nofile).current;
    soft.map_or(usize::MAX, |soft| {
        usize::try_from(soft).unwrap_or(usize::MAX)
    })
}

/// The CPU time that this process has used, in user space and in the kernel.
pub(crate) fn cpu_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(used).unwrap_or_default()
}

/// The memory of the machine in bytes. No bound where the kernel does not say.
pub(crate) fn machine_memory() -> u64 {
    #[cfg(target_os = "linux")]
    {
        let machine = rustix::system::sysinfo();
        machine.totalram.saturating_mul(u64::from(machine.mem_unit))
    }
    #[cfg(not(target_os = "linux"))]
    u64::MAX
}

/// Keeps private keys, tokens and request bodies out of core dumps, and other processes of the same user out of
/// this memory: only root can still attach a debugger.
///
/// The limit alone is not enough: a kernel that pipes core dumps to a program ignores a limit of 0. The process still
/// reads its own `/proc/self`, so the metrics of memory and files keep working.
pub(crate) fn protect_secrets() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).ok();
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        set_dumpable_behavior(DumpableBehavior::NotDumpable).ok();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn process_may_open_all_files_that_it_is_allowed() {
        raise_open_files();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!(current, maximum);
        assert!(open_files() > 16);
    }

    #[test]
    fn cpu_time_grows_with_work() {
        let (before, started) = (cpu_time(), Instant::now());
        let mut number = 0_u64;
        while cpu_time() == before && started.elapsed() < Duration::from_secs(10) {
            number = std::hint::black_box(number.wrapping_add(1));
        }
        assert!(cpu_time() > before);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn process_leaves_no_core_dump() {
        use rustix::process::{DumpableBehavior, dumpable_behavior};
        protect_secrets();
        assert_eq!(getrlimit(Resource::Core).current, Some(0));
        assert_eq!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable));
    }
}
