"""Runs one cell against a running proxy, and reads the output of the clients.

CPU is read right before the work and right after it; opening connections and warming up lie outside.
"""

import os
import re
import subprocess
import time
from dataclasses import dataclass

from cells import BODY_BYTES, BULK, MIB, H2load, Mixed, Watch
from problem import FAILED, Problem
from processes import Child

FRONT_NAME = "kube.example.com"
READY_SECONDS = 60
WORK_SECONDS = 40
H2LOAD_SECONDS = 60
# The wait until memory is read: allocators and buffers of new watches have to settle.
SETTLE_SECONDS, QUICK_SETTLE_SECONDS = 1.5, 0.6


@dataclass(frozen=True)
class Clients:
    """The paths of the client programs and their settings."""

    h2load: str
    load: str
    pki: str
    cpus: frozenset
    quick: bool


def run(cell, clients, stage):
    """The figures of one row; errors are part of it and are not raised."""
    if isinstance(cell.work, H2load):
        row = _h2load(cell.work, clients, stage)
    elif isinstance(cell.work, Watch):
        row = _watch(cell.work, clients, stage)
    elif isinstance(cell.work, Mixed):
        row = _mixed(cell.work, clients, stage)
    else:
        row = _load(cell.work, clients, stage)
    return derive(cell, row)


def derive(cell, row):
    """Adds units and quotients; without units there are no quotients."""
    if cell.unit is BULK:
        units = row.get("bytes", 0) / (100 * MIB)
    else:
        units = row.get("done", 0)
    row["units"] = units
    if units:
        row["cpu_per_unit"] = row["proxy_cpu_ns"] / cell.unit.ns / units
        row["upstream_cpu_per_unit"] = row["upstream_cpu_ns"] / cell.unit.ns / units
        if row.get("wall_s"):
            row["rate"] = units / row["wall_s"]
            row["utilisation"] = row["proxy_cpu_ns"] / 1e9 / row["wall_s"]
    return row


def _metered(stage, work):
    proxy, upstream = stage.proxy.cpu_ns(), stage.upstream.cpu_ns()
    row = work()
    row["proxy_cpu_ns"] = stage.proxy.cpu_ns() - proxy
    row["upstream_cpu_ns"] = stage.upstream.cpu_ns() - upstream
    return row


def _talk(clients, words):
    return Child(
        [clients.load, *words],
        clients.cpus,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def _target(clients, stage):
    return ("--to", f"127.0.0.1:{stage.port}", "--ca", os.path.join(clients.pki, "front-ca.crt"))


def _with_setup(ready, row):
    """Failures while the load got ready are errors, like later ones."""
    row["errors"] += ready["errors"]
    row["first_error"] = ready["first_error"] or row["first_error"]
    return row


def _load(work, clients, stage):
    words = (work.command, *_target(clients, stage), *work.flags)
    client = _talk(clients, (*words, *(work.quick if clients.quick else work.full)))
    try:
        ready = client.hear(READY_SECONDS)

        def go():
            client.say("go")
            return client.hear(WORK_SECONDS)

        return _with_setup(ready, _metered(stage, go))
    finally:
        client.stop()


def _watch(work, clients, stage):
    watches, connections, events = work.size(clients.quick)
    before = stage.proxy.memory()
    words = ("watch", *_target(clients, stage), "--protocol", work.protocol)
    amounts = ("--watches", watches, "--connections", connections, "--events", events)
    client = _talk(clients, (*words, *map(str, amounts)))
    try:
        ready = client.hear(READY_SECONDS)
        time.sleep(QUICK_SETTLE_SECONDS if clients.quick else SETTLE_SECONDS)
        after = stage.proxy.memory()

        def go():
            client.say("go")
            stage.upstream.say(f"events {events} {work.every_ms}")
            return client.hear(WORK_SECONDS)

        row = _metered(stage, go)
        # The client counts failures from its start; its result includes those of opening.
        if ready["ready"]:
            row["kib_per_watch"] = (after.pss - before.pss) / ready["ready"]
        row["peak_rss_mib"] = stage.proxy.memory().peak_rss / 1024
        missing = watches - ready["ready"]
        row["errors"] = max(row["errors"], missing)
        row["first_error"] = row["first_error"] or (f"{missing} watches did not open" if missing else "")
        return row
    finally:
        client.stop()


def _h2load(work, clients, stage):
    log = os.path.join(stage.folder, "h2load.log")
    _h2load_once(work, clients, stage, work.warm, None)
    count = work.quick if clients.quick else work.count
    row = _metered(stage, lambda: _h2load_once(work, clients, stage, count, log))
    with open(log, encoding="utf-8") as file:
        row.update(percentiles(h2load_latencies(file)))
    row["bytes"] = row["done"] * BODY_BYTES[work.path]
    return row


def _h2load_once(work, clients, stage, count, log):
    flags = ("-n", str(count), "-c", str(min(work.clients, count)), "-m", str(work.streams))
    if work.http1:
        flags += ("--h1",)
    said = _h2load_output(_h2load_command(clients, stage, work.path, flags, log), clients)
    return parse_h2load(said, count, BODY_BYTES[work.path])


def _h2load_command(clients, stage, path, flags, log=None):
    command = [
        *(clients.h2load, "-t", "1", "--tls13-ciphers=TLS_AES_128_GCM_SHA256", "--groups=X25519"),
        # 4 MiB per stream and 1 GiB per connection, like Go's client.
        *("-w", "22", "-W", "30"),
        *("-H", "user-agent: kubectl/v1.33.0 (linux/amd64)", "-H", "accept: application/json"),
        *("-H", "authorization: Bearer 0123456789abcdef0123456789abcdef"),
        f"--connect-to=127.0.0.1:{stage.port}",
        *flags,
    ]
    if log:
        if os.path.exists(log):
            os.unlink(log)  # h2load appends to an existing file.
        command.append(f"--log-file={log}")
    return [*command, f"https://{FRONT_NAME}:{stage.port}{path}"]


def _h2load_output(command, clients):
    client = Child(command, clients.cpus, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        said, _ = client.process.communicate(timeout=H2LOAD_SECONDS)
    except subprocess.TimeoutExpired:
        raise Problem(f"h2load did not finish within {H2LOAD_SECONDS} s.", FAILED) from None
    finally:
        client.stop()
    return said.decode(errors="replace")


def _mixed(work, clients, stage):
    seconds = work.quick_seconds if clients.quick else work.seconds
    events = 10 * (seconds + 5)  # More than the GETs take, one each 100 ms.
    watch_flags = ("--protocol", "h2", "--watches", work.watches, "--connections", work.watch_connections)
    watches = _talk(clients, ("watch", *_target(clients, stage), *map(str, (*watch_flags, "--events", events))))
    # Both send more than there is time for; they are stopped with the GETs.
    lists = ("-n", str(100 * work.lists), "-c", "2", "-m", "1", f"--rps={work.lists // 2}")
    connections = ("--h1", "-n", "100000", "-c", "4000", "-r", str(work.connections), "-m", "1")
    others = [watches]
    try:
        ready = watches.hear(READY_SECONDS)
        watches.say("go")
        stage.upstream.say(f"events {events} 100")
        for path, flags in (("/list", lists), ("/small", connections)):
            command = _h2load_command(clients, stage, path, flags)
            others.append(Child(command, clients.cpus, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        time.sleep(QUICK_SETTLE_SECONDS)
        count = work.clients * work.requests_per_client * seconds
        flags = ("-n", str(count), "-c", str(work.clients), "-m", "1", f"--rps={work.requests_per_client}")
        log = os.path.join(stage.folder, "h2load.log")
        command = _h2load_command(clients, stage, "/small", flags, log)
        row = _metered(stage, lambda: parse_h2load(_h2load_output(command, clients), count, BODY_BYTES["/small"]))
        with open(log, encoding="utf-8") as file:
            row.update(percentiles(h2load_latencies(file)))
        missing = work.watches - ready["ready"]
        row["errors"] += missing
        row["first_error"] = row["first_error"] or (f"{missing} watches did not open" if missing else "")
        return row
    finally:
        for other in others:
            other.stop()


def parse_h2load(said, count, body_bytes):
    """The summary of h2load. A response counts if it has the right status and its whole body.

    Its own count of successes is not used: it takes an answer with an empty reason phrase for a failure, and
    HAProxy sends those. So bytes decide about answers whose status it did not read.
    """
    took = re.search(r"^finished in ([\d.]+)(us|ms|s|min|h), ", said, re.MULTILINE)
    ended = re.search(r"(\d+) done, .*?(\d+) errored, (\d+) timeout", said)
    others = re.search(r"^status codes: \d+ 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", said, re.MULTILINE)
    data = re.search(r"^traffic: .* \((\d+)\) data", said, re.MULTILINE)
    if not took or not ended or not others or not data:
        last = (said.strip().splitlines() or ["nothing"])[-1]
        raise Problem(f"h2load failed: {last}", FAILED)
    broken = int(ended[2]) + int(ended[3])
    answered = [int(number) for number in others.groups()]
    done = min(int(ended[1]) - broken - sum(answered), int(data[1]) // body_bytes)
    reasons = [f"{number} answered {kind}" for number, kind in zip(answered, ("3xx", "4xx", "5xx")) if number]
    unanswered = count - done - sum(answered)
    if unanswered:
        reasons.append(f"{unanswered} without a whole answer")
    scale = {"us": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600}[took[2]]
    return {
        "done": done,
        "errors": count - done,
        "first_error": ", ".join(reasons),
        "wall_s": float(took[1]) * scale,
    }


def h2load_latencies(lines):
    """Milliseconds of each request of a log: start, status and duration, with tabs between."""
    fields = (line.rstrip("\n").split("\t") for line in lines)
    return sorted(int(parts[2]) / 1e3 for parts in fields if len(parts) == 3)


def percentiles(latencies):
    """By the nearest rank, like the Rust client."""
    if not latencies:
        return {"p50_ms": None, "p99_ms": None}
    rank = lambda percent: max(1, -(-len(latencies) * percent // 100)) - 1
    return {"p50_ms": latencies[rank(50)], "p99_ms": latencies[rank(99)]}
