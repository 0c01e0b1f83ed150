//! What the kernel knows about this process, read when somebody scrapes.

use std::{
    fs,
    time::{Duration, SystemTime},
};

/// Memory and open files at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Process {
    /// Bytes in RAM; `None` where there is no `/proc`.
    pub resident_bytes: Option<u64>,
    /// Open file descriptors.
    pub open_files: Option<u64>,
}

impl Process {
    /// This process now.
    #[must_use]
    pub fn now() -> Self {
        Self {
            resident_bytes: fs::read_to_string("/proc/self/status")
                .ok()
                .and_then(|status| resident(&status)),
            // Reading the directory opens it, which is one more.
            open_files: fs::read_dir("/proc/self/fd")
                .ok()
                .map(|files| (files.count() as u64).saturating_sub(1)),
        }
    }
}

/// Seconds since 1970; 0 for a clock that stands before that.
#[must_use]
pub fn unix_seconds(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since: Duration| since.as_secs_f64())
}

/// The `VmRSS` line, which counts in KiB whatever the size of a page is.
fn resident(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_files() {
        let process = Process::now();
        assert!(process.resident_bytes.unwrap() > 1024 * 1024, "{process:?}");
        assert!(process.open_files.unwrap() > 2, "{process:?}");
    }
}
