//! How many client connections this machine allows, and how many sockets the connections to apiservers may use.
//!
//! Both legs share the open files of the process. Each client connection may always have one connection to an
//! apiserver, so neither leg can take the last socket of the other. More of them, and those of idle pools, come from
//! the spare sockets.

use std::{fmt, num::NonZeroUsize};

use super::Environment;
use crate::memory::MemoryLimit;

/// What the open files and the memory of the process allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// What decided `limits.connections`.
    pub decided_by: ConnectionsBound,
    /// Sockets for connections to apiservers beyond one per client connection.
    pub spare_sockets: usize,
    /// The memory of the process.
    pub memory: MemoryLimit,
}

/// What decided how many client connections may be open. `Display` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionsBound {
    /// The configuration file.
    Configured,
    /// The open files that the process may have.
    OpenFiles(usize),
    /// The memory that the process may use, in bytes.
    Memory(u64),
    /// The largest default.
    Largest,
}

impl Default for Capacity {
    /// A machine without limits.
    fn default() -> Self {
        Self {
            decided_by: ConnectionsBound::Configured,
            spare_sockets: usize::MAX,
            memory: MemoryLimit {
                bytes: u64::MAX,
                cgroup: None,
                own_cgroup: None,
            },
        }
    }
}

impl Capacity {
    /// The default of `limits.connections`, and what it leaves.
    pub(super) fn default_connections(workers: NonZeroUsize, env: &Environment) -> (usize, Self) {
        let by_files = sockets(workers, env) / 8 * 3;
        let by_memory = connections_in(env.memory.bytes);
        let (decided_by, connections) = [
            (ConnectionsBound::Memory(env.memory.bytes), by_memory),
            (ConnectionsBound::Largest, MAX_CONNECTIONS),
        ]
        .into_iter()
        .fold(
            (ConnectionsBound::OpenFiles(env.open_files), by_files),
            |smallest, next| if next.1 < smallest.1 { next } else { smallest },
        );
        let connections = connections.max(1);
        (
            connections,
            Self::with(decided_by, connections, workers, env),
        )
    }

    /// The warning that this process may open few files, if they decide how many clients there may be.
    pub(super) fn few_open_files(&self, connections: usize) -> Option<String> {
        match self.decided_by {
            ConnectionsBound::OpenFiles(files) if files < FEW_OPEN_FILES => Some(format!(
                "this process may open only {files} files, which is enough for {connections} client connections; \
                 raise the limit (`ulimit -n`, LimitNOFILE= in a systemd unit)"
            )),
            ConnectionsBound::OpenFiles(_)
            | ConnectionsBound::Configured
            | ConnectionsBound::Memory(_)
            | ConnectionsBound::Largest => None,
        }
    }

    /// What this configured number of client connections leaves. `Err` with the open files that it needs, if that is
    /// more than there are.
    pub(super) fn configured(
        connections: usize,
        workers: NonZeroUsize,
        env: &Environment,
    ) -> Result<Self, usize> {
        let sockets = sockets(workers, env);
        let both_legs = connections.saturating_mul(2);
        if both_legs > sockets {
            return Err(both_legs.saturating_add(env.open_files - sockets));
        }
        Ok(Self::with(
            ConnectionsBound::Configured,
            connections,
            workers,
            env,
        ))
    }

    fn with(
        decided_by: ConnectionsBound,
        connections: usize,
        workers: NonZeroUsize,
        env: &Environment,
    ) -> Self {
        let both_legs = connections.saturating_mul(2);
        Self {
            decided_by,
            spare_sockets: sockets(workers, env).saturating_sub(both_legs),
            memory: env.memory.clone(),
        }
    }

    /// The client connections for which the memory is enough.
    #[must_use]
    pub fn connections_by_memory(&self) -> usize {
        connections_in(self.memory.bytes)
    }
}

impl fmt::Display for ConnectionsBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configured => write!(f, "limits.connections"),
            Self::OpenFiles(files) => write!(f, "{files} open files"),
            Self::Memory(bytes) => write!(f, "{} MiB of memory", bytes >> 20),
            Self::Largest => write!(f, "the largest default"),
        }
    }
}

/// The open files that connections may use.
fn sockets(workers: NonZeroUsize, env: &Environment) -> usize {
    let without_place = (env.open_files / 16).min(MAX_WITHOUT_PLACE);
    let of_workers = FILES_PER_WORKER.saturating_mul(workers.get());
    let reserved = RESERVED_FILES + without_place + of_workers;
    env.open_files
        .saturating_sub(reserved)
        .max(env.open_files / 2)
}

/// The client connections for which this many bytes are enough. A quarter stays free, because memory is short from 85 %
/// on (`memory`).
fn connections_in(bytes: u64) -> usize {
    let for_connections = (bytes / 4 * 3).saturating_sub(BASE_BYTES);
    let connections = usize::try_from(for_connections / BYTES_PER_CONNECTION);
    connections.unwrap_or(usize::MAX).max(MIN_CONNECTIONS)
}

/// The largest default. A process with more connections is too large a unit: run several.
const MAX_CONNECTIONS: usize = 100_000;
/// The smallest default that follows from memory. With less the proxy would be of no use, and it sheds load when
/// memory is short.
const MIN_CONNECTIONS: usize = 64;
/// Files that are neither a client connection nor a connection to an apiserver for a client: 32 connections of the
/// admin port, 16 of the port for `http-01`, probes, lookups, files that a reload reads, and the runtime of the main
/// thread.
const RESERVED_FILES: usize = 64;
/// Client connections that were accepted and have no place: `clients::table` lets at most 32 wait, and as many may be
/// about to close, because they were refused or lost their room to wait.
const MAX_WITHOUT_PLACE: usize = 64;
/// The runtime of a worker, and its listening sockets.
const FILES_PER_WORKER: usize = 8;
/// A client connection with one watch over HTTP/2, both legs, and 3 KiB of the kernel for each of the two sockets, as
/// docs/performance.md publishes it. Proof: tests/it `memory`.
const BYTES_PER_CONNECTION: u64 = 74 * 1024;
/// A process without connections.
const BASE_BYTES: u64 = 24 * 1024 * 1024;

/// kubectl and controllers keep several connections each; the usual limit is 1,024.
const FEW_OPEN_FILES: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn env(open_files: usize, mib: u64) -> Environment {
        Environment {
            open_files,
            memory: MemoryLimit {
                bytes: mib << 20,
                cgroup: None,
                own_cgroup: None,
            },
            ..Environment::from_process()
        }
    }

    #[test]
    fn default_connections_follow_files_and_memory() {
        const MANY: usize = 1 << 30;
        for (open_files, mib, expected, decided_by) in [
            (256, 1 << 20, 63, ConnectionsBound::OpenFiles(256)),
            (1024, 1 << 20, 333, ConnectionsBound::OpenFiles(1024)),
            (0, 1 << 20, 1, ConnectionsBound::OpenFiles(0)),
            (MANY, 256, 2_324, ConnectionsBound::Memory(256 << 20)),
            (MANY, 512, 4_981, ConnectionsBound::Memory(512 << 20)),
            (MANY, 16, 64, ConnectionsBound::Memory(16 << 20)),
            (
                usize::MAX,
                u64::MAX >> 20,
                100_000,
                ConnectionsBound::Largest,
            ),
        ] {
            let env = env(open_files, mib);
            let (connections, capacity) = Capacity::default_connections(NonZeroUsize::MIN, &env);
            assert_eq!((connections, capacity.decided_by), (expected, decided_by));
        }
    }

    #[test]
    fn both_legs_and_the_reserve_fit_into_the_open_files() {
        for (open_files, workers) in [(256, 1), (256, 4), (1024, 16), (100, 64)] {
            let (env, workers) = (
                env(open_files, 1 << 20),
                NonZeroUsize::new(workers).unwrap(),
            );
            let (connections, capacity) = Capacity::default_connections(workers, &env);
            let used = 2 * connections + capacity.spare_sockets;
            assert!(used <= open_files && used >= open_files / 2 - 1, "{used}");
            assert!(capacity.spare_sockets >= connections / 2, "{capacity:?}");
        }
    }

    #[test]
    fn configured_connections_need_two_sockets_each() {
        let env = env(1024, 16);
        let leaves = |connections| Capacity::configured(connections, NonZeroUsize::MIN, &env);
        assert_eq!(leaves(444).unwrap().spare_sockets, 0);
        assert_eq!(leaves(400).unwrap().spare_sockets, 88);
        assert_eq!(leaves(445), Err(1026));
    }
}
