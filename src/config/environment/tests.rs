//! Quotas, affinity and limits as the kernel prints them.

use std::num::NonZeroUsize;

use super::{Environment, allowed_cpus, cpus, open_files, soft_limit};
use standin::TempDir;

/// CPUs of a process with four of them in its affinity mask, and these cgroup files.
fn with_cgroup(own: &str, files: &[(&str, &str)]) -> usize {
    let scratch = TempDir::new();
    scratch.write(
        "proc/status",
        "Name:\tx\nCpus_allowed_list:\t0-2,5\nMems_allowed:\t1\n",
    );
    scratch.write("proc/cgroup", own);
    for (file, text) in files {
        scratch.write(&format!("cgroup/{file}"), text);
    }
    let (proc, cgroup) = (scratch.path().join("proc"), scratch.path().join("cgroup"));
    cpus(&proc, &cgroup).get()
}

#[test]
fn affinity_counts_without_quota() {
    assert_eq!(with_cgroup("", &[]), 4);
    assert_eq!(with_cgroup("0::/a\n", &[("a/cpu.max", "max 100000\n")]), 4);
}

#[test]
fn quota_is_rounded_up() {
    for (max, expected) in [
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("150000 100000", 2),
        ("200000 100000", 2),
        ("900000 100000", 4),
        ("0 100000", 4),
        ("100000 0", 4),
        ("", 4),
        ("many 100000", 4),
    ] {
        assert_eq!(
            with_cgroup("0::/\n", &[("cpu.max", max)]),
            expected,
            "{max}"
        );
    }
}

#[test]
fn smallest_quota_of_parents_counts() {
    let files = [
        ("kube/cpu.max", "200000 100000"),
        ("kube/pod/cpu.max", "300000 100000"),
        ("kube/pod/app/cpu.max", "max 100000"),
        ("kube/other/cpu.max", "100000 100000"),
    ];
    assert_eq!(with_cgroup("0::/kube/pod/app\n", &files), 2);
}

#[test]
fn reads_quota_of_cgroup_version_1() {
    let own = "5:memory:/pod\n4:cpu,cpuacct:/pod\n1:name=systemd:/pod\n";
    let files = [
        ("cpu,cpuacct/cpu.cfs_quota_us", "250000\n"),
        ("cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ("memory/cpu.cfs_quota_us", "100000\n"),
        ("memory/cpu.cfs_period_us", "100000\n"),
    ];
    assert_eq!(with_cgroup(own, &files), 3);
    let unlimited = [
        ("cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
        ("cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
    ];
    assert_eq!(with_cgroup(own, &unlimited), 4);
}

#[test]
fn reads_affinity_lists() {
    let count = |list: &str| allowed_cpus(&format!("Cpus_allowed_list:\t{list}\n"));
    assert_eq!(count("0").map(NonZeroUsize::get), Some(1));
    assert_eq!(count("0-63").map(NonZeroUsize::get), Some(64));
    assert_eq!(count("1,3,8-9").map(NonZeroUsize::get), Some(4));
    assert_eq!(count("3-1"), None);
    assert_eq!(count("x"), None);
    assert_eq!(count(""), None);
}

#[test]
fn reads_soft_limit() {
    let limits = |soft: &str| {
        soft_limit(&format!(
            "Limit  Soft Limit  Hard Limit  Units\nMax processes 7 7 processes\n\
             Max open files            {soft}                 524288               files\n"
        ))
    };
    assert_eq!(limits("1024"), Some(1024));
    assert_eq!(limits("unlimited"), Some(usize::MAX));
    assert_eq!(limits("?"), None);
    assert_eq!(open_files(TempDir::new().path()), 1024);
}

#[test]
fn finds_environment_of_this_process() {
    let env = Environment::from_process();
    assert!(env.cpus.get() >= 1);
    assert!(env.open_files > 16);
    assert!(env.service_account.is_absolute());
}
