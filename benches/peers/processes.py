"""Child processes: pinned when they start, measured while they run, and always stopped with the script.

Each child leads a session of its own. So a Ctrl-C reaches only this script, which then ends exactly what it
started, and a child that does not go is killed with the processes that it made itself and no others.
"""

import ctypes
import glob
import json
import os
import re
import select
import signal
import subprocess
import time
from dataclasses import dataclass

from problem import FAILED, Problem

STOP_SECONDS = 3
PR_SET_PDEATHSIG = 1

_running = []


@dataclass(frozen=True)
class Memory:
    """KiB of a whole process tree. PSS divides shared memory between processes; RSS counts it for each."""

    pss: int
    rss: int
    peak_rss: int


class Child:
    def __init__(self, command, cpus, **options):
        self.name = os.path.basename(command[0])
        try:
            self.process = subprocess.Popen(
                command,
                preexec_fn=_before_exec(cpus),
                start_new_session=True,
                **options,
            )
        except OSError as err:
            raise Problem(f"{command[0]} cannot be started: {err.strerror}.") from err
        self._unread = b""
        _running.append(self)

    def cpu_ns(self):
        """CPU time so far, of every live thread of the tree."""
        total = 0
        for pid in tree(self.process.pid):
            for path in glob.glob(f"/proc/{pid}/task/*/schedstat"):
                total += int((_read(path) or "0").split()[0])
        return total

    def memory(self):
        pss = rss = peak = 0
        for pid in tree(self.process.pid):
            pss += _field("Pss", _read(f"/proc/{pid}/smaps_rollup"))
            status = _read(f"/proc/{pid}/status")
            rss += _field("VmRSS", status)
            peak += _field("VmHWM", status)
        return Memory(pss, rss, peak)

    def say(self, line):
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except OSError as err:
            raise Problem(f"{self.name} ended too early.", FAILED) from err

    def hear(self, seconds):
        """The next line of its standard output, which is JSON."""
        end = time.monotonic() + seconds
        pipe = self.process.stdout.fileno()
        while b"\n" not in self._unread:
            ready, _, _ = select.select([pipe], [], [], max(0, end - time.monotonic()))
            part = os.read(pipe, 65536) if ready else None
            if part is None:
                raise Problem(f"{self.name} printed nothing for {seconds:.0f} s.", FAILED)
            if not part:
                raise Problem(f"{self.name} ended too early.", FAILED)
            self._unread += part
        line, self._unread = self._unread.split(b"\n", 1)
        return json.loads(line)

    def ended(self):
        return self.process.poll() is not None

    def stop(self):
        if not self.ended():
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                # Not reaped yet, so the number of its group cannot belong to another process.
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                try:
                    pipe.close()
                except OSError:
                    pass  # It ended before it read everything.
        if self in _running:
            _running.remove(self)


def stop_all():
    """Stops all running processes. A second Ctrl-C must not leave some of them running."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for child in list(reversed(_running)):
            child.stop()
    finally:
        signal.signal(signal.SIGINT, before)


def tree(pid):
    """The process and all its live descendants."""
    found, waiting = [], [pid]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        for path in glob.glob(f"/proc/{pid}/task/*/children"):
            waiting += [int(child) for child in (_read(path) or "").split()]
    return found


def _before_exec(cpus):
    libc = ctypes.CDLL(None)

    def prepare():
        # Also when this script is killed and cannot clean up.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if cpus:
            os.sched_setaffinity(0, cpus)

    return prepare


def _read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except PermissionError as err:
        raise Problem(
            f"{path} cannot be read: kube-tls-proxy keeps other processes of its user out of its memory. Run this as root."
        ) from err
    except OSError:
        return ""  # The thread or process has ended meanwhile.


def _field(name, text):
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else 0
