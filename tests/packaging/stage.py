"""An isolated environment for a proxy: namespaces with only the files and the apiserver that it needs."""

import os
import pathlib
import ssl
import subprocess
import sys
import time
import urllib.request

import rendered

TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", rendered.ROOT / "target"))
BINARY = pathlib.Path(os.environ.get("PROXY_BIN", TARGET / "debug/kube-tls-proxy"))

# The directory for the files of the environment. Not /tmp, because a checkout may be there.
SCRATCH = pathlib.Path("/mnt")

LIMIT = 30


def run_isolated(script, *arguments):
    """Runs `script inside ARGUMENTS` in new mount, process, network and IPC namespaces, which end with it."""
    unshare = ["unshare", "--mount", "--pid", "--net", "--ipc", "--fork", "--mount-proc", "--kill-child"]
    command = [*unshare, sys.executable, script, "inside", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=6 * LIMIT)


def set_up():
    """Starts the loopback interface of the namespaces, and mounts a directory that no other process sees."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "scratch", SCRATCH], check=True)


def certificates():
    """Makes two CAs, one for the cluster and one public, and a certificate of each. Returns the directory."""
    folder = SCRATCH / "certificates"
    folder.mkdir()
    for name, host in [("cluster", "kubernetes.default.svc"), ("public", "localhost")]:
        make_certificates(folder, name, host)
    return folder


def make_certificates(folder, name, host):
    """Makes a CA, and a certificate for `host` signed by it."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    (folder / "leaf.cnf").write_text(f"basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=DNS:{host}\n")
    for command in (
        ["req", "-x509", *key, "-days", "30", "-subj", f"/CN={name} CA", "-keyout", f"{name}-ca.key", "-out", f"{name}-ca.crt"],
        ["req", "-new", *key, "-subj", f"/CN={host}", "-keyout", f"{name}.key", "-out", f"{name}.csr"],
        ["x509", "-req", "-in", f"{name}.csr", "-CA", f"{name}-ca.crt", "-CAkey", f"{name}-ca.key", "-CAcreateserial"]
        + ["-days", "30", "-extfile", "leaf.cnf", "-out", f"{name}.crt"],
    ):
        subprocess.run(["openssl", *command], check=True, capture_output=True, cwd=folder)


def make_revocation_list(folder, name):
    """Makes an empty revocation list of the CA `name`."""
    (folder / "index.txt").write_text("")
    (folder / "ca.cnf").write_text("[ca]\ndefault_ca=own\n[own]\ndatabase=index.txt\ndefault_md=sha256\ncrl_extensions=list\n[list]\nauthorityKeyIdentifier=keyid\n")
    signer = ["-cert", f"{name}-ca.crt", "-keyfile", f"{name}-ca.key"]
    command = ["openssl", "ca", "-config", "ca.cnf", "-gencrl", "-crldays", "30", *signer, "-out", f"{name}.crl"]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)


class Apiserver:
    """A stand-in for kubernetes.default.svc: `openssl s_server`, which responds to every request with a page."""

    def __init__(self, folder):
        self.port = 6443
        self.ca = folder / "cluster-ca.crt"
        self.public = folder / "public-ca.crt"
        certificate, key = folder / "cluster.crt", folder / "cluster.key"
        self.process = subprocess.Popen(
            ["openssl", "s_server", "-quiet", "-accept", str(self.port), "-cert", certificate, "-key", key, "-www", "-alpn", "http/1.1"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def fetch(url, ca=None):
    """The text of a page. Raises `OSError` if the request fails."""
    trust = ssl.create_default_context(cafile=ca) if url.startswith("https") else None
    with urllib.request.urlopen(url, timeout=5, context=trust) as response:
        return response.read().decode()


def wait_until_ok(url, pid, ca=None):
    """Waits until `url` responds with 200. Fails if the process ends first."""
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            fetch(url, ca)
            return
        except OSError as error:
            ended, status = os.waitpid(pid, os.WNOHANG)
            assert not ended, f"the proxy exited with {os.waitstatus_to_exitcode(status)} before {url} responded"
            assert time.monotonic() < deadline, f"{url}: {error}"
            time.sleep(0.05)


def wait_for_exit(pid, limit):
    """Waits until a process ends, and returns its exit code."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    raise AssertionError(f"the process did not end within {limit} s")
