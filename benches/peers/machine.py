"""Describes this machine, and assigns its CPUs to the proxy and its load."""

import os
import platform
import re
import resource
from dataclasses import dataclass

from problem import Problem

# 2,000 watches over HTTP/1.1 take a descriptor on each side of the proxy; a thousand clients take more.
DESCRIPTORS = 8192


@dataclass(frozen=True)
class Pins:
    proxy: frozenset
    load: frozenset

    def __str__(self):
        if not self.proxy:
            return "none"
        return ":".join(",".join(map(str, sorted(cpus))) for cpus in (self.proxy, self.load))


def parse_pins(text):
    """`0:1`, `0,1:2-3`, or `none`."""
    if text == "none":
        return Pins(frozenset(), frozenset())
    sides = text.split(":")
    try:
        proxy, load = (_parse_cpus(side) for side in sides)
    except ValueError:
        raise Problem(f"--pin {text}: write PROXY:LOAD with numbers of CPUs, such as 0:1 or 0,1:2-3, or none.") from None
    missing = (proxy | load) - os.sched_getaffinity(0)
    if missing:
        raise Problem(f"--pin {text}: this process may not use CPU {', '.join(map(str, sorted(missing)))}.")
    return Pins(proxy, load)


def _parse_cpus(text):
    cpus = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        cpus |= set(range(int(first), int(last or first) + 1))
    if not cpus:
        raise ValueError(text)
    return frozenset(cpus)


def default_pins(cpus, workers):
    """One CPU per worker and another one for the load; no pinning on a machine with one CPU."""
    cpus = sorted(cpus)
    if len(cpus) < 2:
        return Pins(frozenset(), frozenset())
    return Pins(frozenset(cpus[:workers]), frozenset([cpus[min(workers, len(cpus) - 1)]]))


def warnings(pins, workers, cpus):
    """Warnings about everything that makes figures here differ from those of two CPUs and one worker."""
    if not pins.proxy:
        yield "Nothing is pinned: proxy and load take CPU time from each other, and figures will vary."
        return
    if pins.proxy & pins.load:
        yield "Proxy and load share a CPU: rates and latencies mean little; CPU time is more reliable."
    if len(pins.proxy) < workers:
        yield f"{workers} workers share {len(pins.proxy)} CPU{'s' * (len(pins.proxy) > 1)}."
    if len(cpus) != 2:
        yield f"This machine has {len(cpus)} CPUs and the comparison is meant for 2; it uses {pins}. --pin chooses others."
    for cpu in sorted(pins.proxy):
        if (siblings(cpu) - {cpu}) & pins.load:
            yield f"CPU {cpu} of the proxy is a hyper-thread of a core that the load uses; choose another with --pin."


def siblings(cpu):
    try:
        with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", encoding="ascii") as file:
            return _parse_cpus(file.read().strip())
    except (OSError, ValueError):
        return frozenset([cpu])


def raise_descriptors():
    """Raises the limit of open files as far as possible; returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if limit < DESCRIPTORS:
        raise Problem(f"Only {limit} files may be open at a time and {DESCRIPTORS} are needed; see ulimit -Hn.")
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def describe():
    """The machine in one line: runs are compared only when it is the same."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = cpu_name(file.read())
    except OSError:
        name = None
    return f"{name or platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}"


def cpu_name(cpuinfo):
    """Name and numbers of the CPU: a virtual machine often hides which model of a series it is, but not the numbers."""
    fields = dict(re.findall(r"^([^\t:]+?)\s*: (.*)$", cpuinfo.split("\n\n")[0], re.MULTILINE))
    if "model name" not in fields:
        return None
    numbers = [f"{key.removeprefix('cpu ')} {fields[key]}" for key in ("cpu family", "model", "stepping") if key in fields]
    return fields["model name"].strip() + (f" ({', '.join(numbers)})" if numbers else "")
