//! Quotas, affinity and limits as the kernel prints them.

use std::num::NonZeroUsize;

use super::{Environment, allowed_cpus, cpus, memory};
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

/// The memory limit of a process with these cgroup files, in MiB, and the cgroup that has it.
fn memory_with_cgroup(own: &str, files: &[(&str, u64)]) -> Option<(u64, String)> {
    let scratch = TempDir::new();
    scratch.write("proc/cgroup", own);
    for (file, mib) in files {
        scratch.write(&format!("cgroup/{file}"), format!("{}\n", mib << 20));
    }
    scratch.write("cgroup/none/memory.max", "max\n");
    let (proc, root) = (scratch.path().join("proc"), scratch.path().join("cgroup"));
    let limit = memory(&proc, &root);
    let cgroup = limit.cgroup?;
    let below = cgroup.strip_prefix(root).unwrap();
    Some((limit.bytes >> 20, below.to_str().unwrap().to_owned()))
}

#[test]
fn smallest_memory_limit_of_cgroups_counts() {
    let files = [
        ("memory.max", 8),
        ("pod/memory.max", 5),
        ("pod/app/memory.max", 6),
        ("memory/pod/memory.limit_in_bytes", 7),
        ("other/memory.max", 1),
        ("vast/memory.max", 1 << 40),
    ];
    for (own, files, expected) in [
        ("0::/pod/app\n", &files[..], Some((5, "pod"))),
        ("0::/none\n", &files[..], Some((8, ""))),
        ("0::/gone/from/here\n", &files[..], Some((8, ""))),
        ("5:memory:/pod\n", &files[..], Some((7, "memory/pod"))),
        ("5:cpu:/pod\n", &files[..], None),
        ("0::/none\n", &files[1..], None),
        ("0::/vast\n", &files[1..], None),
    ] {
        let expected = expected.map(|(mib, cgroup)| (mib, cgroup.to_owned()));
        assert_eq!(memory_with_cgroup(own, files), expected, "{own}");
    }
}

#[test]
fn finds_environment_of_this_process() {
    let env = Environment::from_process();
    assert!(env.cpus.get() >= 1);
    assert!(env.open_files > 16);
    assert!(env.memory.bytes > 16 << 20);
    assert!(env.service_account.is_absolute());
}
