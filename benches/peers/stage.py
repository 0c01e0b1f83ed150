"""One proxy in front of a stand-in apiserver: starts both, sends requests, and tests bad apiservers."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from dataclasses import dataclass

from contenders import fill, render
from loads import FRONT_NAME
from problem import FAILED, Problem
from processes import Child

START_SECONDS = 15
# HAProxy tries a bad apiserver several times, one second apart, before it responds.
REFUSAL_SECONDS = 8
POLL_SECONDS = 0.002
# nginx and HAProxy need this setting; below the usual hard limit of descriptors.
CONNECTIONS = 9000

# Apiservers that must not receive a request; the keys are the certificate names of peers-load.
BAD = {
    "wrong-ca": "a certificate from another CA",
    "wrong-name": "a certificate for another name",
    "name-in-cn": "a certificate with the name only in its common name",
}


@dataclass(frozen=True)
class Setting:
    """The settings that all stages of a run share."""

    load: str
    programs: dict
    pki: str
    workers: int
    proxy_cpus: frozenset
    load_cpus: frozenset
    port: int = 0
    descriptors: int = 20000


def write_pki(load, folder):
    made = subprocess.run([load, "pki", folder], stderr=subprocess.PIPE, check=False)
    if made.returncode:
        said = made.stderr.decode(errors="replace").strip() or f"{load} ended with exit code {made.returncode}"
        raise Problem(f"The certificates could not be created: {said}.", FAILED)


class Stage:
    """A context manager: it stops everything that it started."""

    def __init__(self, setting, contender, identity="good"):
        self.setting, self.contender, self.identity = setting, contender, identity
        self.proxy = self.upstream = None
        self.folder = tempfile.mkdtemp(prefix="run-", dir=setting.pki)
        self.port = 0
        # Created before the time of the cold start begins.
        self._tls = ssl.create_default_context(cafile=os.path.join(setting.pki, "front-ca.crt"))
        # From Python 3.13 on, it is strict about extensions of the CA that no contender checks.
        self._tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
        self.cold_start_ms = None

    def __enter__(self):
        try:
            self.upstream = Child(
                [self.setting.load, "upstream", "--pki", self.setting.pki, "--identity", self.identity],
                self.setting.load_cpus,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            upstream_port = self.upstream.hear(START_SECONDS)["port"]
            self.port = free_port(self.setting.port)
            self._start_proxy(upstream_port)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for child in (self.proxy, self.upstream):
            if child:
                child.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start_proxy(self, upstream_port):
        values = {
            "PROGRAM": self.setting.programs[self.contender.program],
            "RUN": self.folder,
            "PKI": self.setting.pki,
            "PORT": self.port,
            "UPSTREAM_PORT": upstream_port,
            "WORKERS": self.setting.workers,
            "CONNECTIONS": min(CONNECTIONS, self.setting.descriptors // 2 - 100),
            "DESCRIPTORS": self.setting.descriptors,
            # With its own suffix: Envoy chooses the format by it.
            "CONFIG": os.path.join(self.folder, self.contender.template or "none"),
        }
        text = render(self.contender, values)
        if text is not None:
            with open(values["CONFIG"], "w", encoding="utf-8") as file:
                file.write(text)
        environment = {name: fill(value, values) for name, value in self.contender.environment.items()}
        with open(os.path.join(self.folder, "output"), "wb") as output:
            self._begun = time.monotonic()
            self.proxy = Child(
                [fill(word, values) for word in self.contender.command],
                self.setting.proxy_cpus,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def wait_until_ready(self):
        """Waits for the first 200; the time from the start to it is the cold start."""
        status = self.first_answer(START_SECONDS, wanted=200)
        if status != 200:
            said = self.last_words()
            if self.proxy.ended():
                what = f"ended with exit code {self.proxy.process.returncode} before it responded"
            elif status:
                what = f"responded {status} for {START_SECONDS} s"
            else:
                what = f"did not respond within {START_SECONDS} s"
            raise Problem(f"{self.contender.name} {what}{said and ': ' + said}.", FAILED)
        self.cold_start_ms = (time.monotonic() - self._begun) * 1e3

    def first_answer(self, seconds, wanted=None):
        """The status of the first response, or of the last one that is not `wanted`; None without a response."""
        status = None
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.proxy.ended():
            status = self._get(max(0.1, end - time.monotonic())) or status
            if status and wanted in (None, status):
                return status
            time.sleep(POLL_SECONDS)
        return status

    def requests_seen(self):
        self.upstream.say("requests")
        return self.upstream.hear(START_SECONDS)["requests"]

    def last_words(self):
        """The last line that the proxy wrote."""
        for name in ("output", "nginx.log"):
            try:
                with open(os.path.join(self.folder, name), encoding="utf-8", errors="replace") as file:
                    lines = file.read().strip().splitlines()
            except OSError:
                continue
            if lines:
                return lines[-1][:300].rstrip(".")
        return ""

    def _get(self, seconds):
        request = f"GET /small HTTP/1.1\r\nHost: {FRONT_NAME}\r\nConnection: close\r\n\r\n"
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as tcp:
                tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._tls.wrap_socket(tcp, server_hostname=FRONT_NAME) as tls:
                    tls.sendall(request.encode())
                    return parse_status(tls.recv(4096))
        except OSError:
            return None  # Not started yet, or it closes the connection without a response.


def parse_status(answer):
    found = re.match(rb"HTTP/1\.[01] (\d{3})", answer)
    return int(found[1]) if found else None


def free_port(wanted):
    """`wanted`, or any free port if that is 0; an error if another process listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as err:
            raise Problem(f"Port {wanted} of 127.0.0.1 cannot be used ({err.strerror}); choose another with --port.") from err
        return probe.getsockname()[1]


def verify(setting, contender):
    """Sentences about forbidden behaviour of the contender, and sentences about its known behaviour."""
    with Stage(setting, contender) as stage:
        stage.wait_until_ready()
    wrong, known = [], []
    for identity, meaning in BAD.items():
        with Stage(setting, contender, identity) as stage:
            status = stage.first_answer(REFUSAL_SECONDS)
            requests = stage.requests_seen()
            if status is None and stage.proxy.ended():
                wrong.append(f"it ended in front of an apiserver with {meaning}: {stage.last_words()}")
        if status == 200 or requests:
            if identity in contender.known:
                known.append(contender.known[identity])
            else:
                wrong.append(f"it sent a request to an apiserver with {meaning}")
    return wrong, known
