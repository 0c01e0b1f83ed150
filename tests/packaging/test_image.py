"""The image: its stages fit together, and its last stage is run as a pod runs it.

The tests have no registry for the base image. A directory replaces it: it has those libraries of the base that the binary needs,
and nothing else. The binary runs in it with the arguments and variables of the Deployment, as its user, without capabilities, on a read-only
file system, in a separate network.
"""

import ctypes
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

import rendered
import stage

DOCKERFILE = rendered.ROOT / "Dockerfile"

# The files of the C library and of libgcc in the base image.
IN_THE_BASE = re.compile(r"^(libc|libm|libgcc_s|libdl|libpthread|librt|ld-linux-[a-z0-9_-]+)\.so\.[0-9]+$")

LIMIT = 30

# The stages: the build, the symbols, and the image that runs.
BUILD, SYMBOLS, RUN = 0, 1, 2


def instructions():
    """The instructions of the Dockerfile as (stage, word, rest)."""
    stage = -1
    found = []
    text = re.sub(r"(?m)^#.*\n", "", DOCKERFILE.read_text())
    defaults = dict(re.findall(r"(?m)^ARG (\w+_IMAGE)=(\S+)$", text))
    text = re.sub(r"(?m)^FROM \$\{(\w+)\}", lambda found: f"FROM {defaults[found.group(1)]}", text)
    for line in re.sub(r"\\\n", "", text).splitlines():
        if line.strip():
            word, rest = line.split(None, 1)
            stage += word == "FROM"
            found.append((stage, word, rest))
    return found


def all_of(stage, word):
    return [rest for number, found, rest in instructions() if (number, found) == (stage, word)]


class Dockerfile(unittest.TestCase):
    def test_both_stages_use_the_same_debian_release(self):
        (build,), (run,) = all_of(0, "FROM"), all_of(RUN, "FROM")
        self.assertRegex(build, r"-bookworm AS build$")
        self.assertRegex(run, r"/cc-debian12:nonroot$")

    def test_compiler_is_not_older_than_rust_version(self):
        (build,) = all_of(0, "FROM")
        image = re.match(r"rust:([0-9]+)\.([0-9]+)-", build).groups()
        wanted = re.search(r'^rust-version = "([0-9]+)\.([0-9]+)"', (rendered.ROOT / "Cargo.toml").read_text(), re.MULTILINE).groups()
        self.assertGreaterEqual(tuple(map(int, image)), tuple(map(int, wanted)))

    def test_user_and_ports_match_the_pod(self):
        pod = rendered.kustomize("base")["Deployment", "kube-tls-proxy"]["spec"]["template"]["spec"]
        user = pod["securityContext"]
        self.assertEqual(all_of(RUN, "USER"), [f"{user['runAsUser']}:{user['runAsGroup']}"])
        (entry,), (command,) = all_of(RUN, "ENTRYPOINT"), all_of(RUN, "CMD")
        # The entrypoint is a list, so that SIGTERM reaches the proxy and not a shell.
        self.assertEqual(json.loads(entry), ["/usr/bin/kube-tls-proxy"])
        self.assertEqual(json.loads(command), ["serve"])
        (ports,) = all_of(RUN, "EXPOSE")
        self.assertEqual(sorted(map(int, ports.split())), sorted(port["containerPort"] for port in pod["containers"][0]["ports"]))

    def test_labels_describe_the_image(self):
        (labels,) = all_of(RUN, "LABEL")
        for label in ("title", "description", "licenses", "version", "revision", "source", "url", "base.name", "base.digest"):
            self.assertIn(f"org.opencontainers.image.{label}=", labels)

    def test_symbols_leave_the_binary_and_keep_their_name(self):
        (commands,) = [rest for rest in all_of(BUILD, "RUN") if "objcopy" in rest]
        with tempfile.TemporaryDirectory() as folder:
            release = pathlib.Path(folder, "target/release")
            release.mkdir(parents=True)
            shutil.copy(stage.BINARY, release)
            subprocess.run(["sh", "-ec", commands], cwd=folder, check=True, timeout=120)
            binary, symbols = release / "kube-tls-proxy", release / "kube-tls-proxy.debug"
            self.assertEqual(names_in(binary), set())
            self.assertTrue(any("tokio" in name for name in names_in(symbols)))
            link = subprocess.run(["readelf", "--string-dump=.gnu_debuglink", binary], check=True, capture_output=True)
            self.assertIn(symbols.name.encode(), link.stdout)
            self.assertEqual(subprocess.run([binary, "--version"], capture_output=True).returncode, 0)
        self.assertEqual(all_of(SYMBOLS, "FROM"), ["scratch AS symbols"])
        self.assertEqual(all_of(SYMBOLS, "COPY"), ["--from=build /src/target/release/kube-tls-proxy.debug /"])

    def test_release_workflow_fills_every_argument(self):
        workflow = (rendered.ROOT / ".github/workflows/release.yaml").read_text()
        arguments = set(re.findall(r"(?m)^ARG (\w+)", DOCKERFILE.read_text()))
        self.assertGreater(len(arguments), 4)
        self.assertEqual(set(re.findall(r"--build-arg (\w+)=", workflow)), arguments)

    def test_copied_files_are_enough_for_cargo(self):
        # Runs the build stage, but reads the manifests instead of building.
        ignored = [line for line in (rendered.ROOT / ".dockerignore").read_text().split() if line]
        looked = 0
        with tempfile.TemporaryDirectory() as folder:
            for stage, word, rest in instructions():
                if stage == 0 and word == "COPY":
                    *sources, target = rest.split()
                    for source in sources:
                        self.assertNotIn(source.split("/")[0], ignored)
                        copy(rendered.ROOT / source, pathlib.Path(folder) / target)
                elif stage == 0 and word == "RUN":
                    command = rest.replace("cargo build --release", "cargo metadata --quiet --offline --format-version 1")
                    command = re.sub(r"--(package|bin) kube-tls-proxy", "", command)
                    self.assertNotIn("cargo build", command)
                    if "objcopy" in command:
                        continue
                    done = subprocess.run(["sh", "-ec", command], cwd=folder, capture_output=True, text=True, timeout=120)
                    self.assertEqual(done.returncode, 0, done.stderr)
                    looked += 1
            self.assertEqual(looked, 2)
            copied = {str(file.relative_to(folder)) for file in pathlib.Path(folder, "src").rglob("*.rs")}
            self.assertIn("src/downstream/mod.rs", copied)
            self.assertGreater(pathlib.Path(folder, "src/main.rs").stat().st_size, 100, "the source is not the placeholder")


def names_in(binary):
    """The names in the symbol table of a binary."""
    done = subprocess.run(["nm", binary], capture_output=True, text=True, check=True)
    return {line.split()[-1] for line in done.stdout.splitlines()}


def copy(source, target):
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        target = target / source.name if str(target).endswith("/") or target.is_dir() or not target.suffix else target
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


# Values of the chart that write the configuration file, for a pod with every file that they mount.
VALUES = [
    'listen={"allow": ["127.0.0.0/8"], "deny": ["192.0.2.0/24"]}',
    'clientCertificates.ca={"configMap": "client-ca"}',
    'clientCertificates.frontProxy={"secret": "front-proxy"}',
    'clientCertificates.crl={"secret": "revoked"}',
    """config={"clusters": [
        {"name": "here", "inCluster": true, "hosts": ["localhost"], "access": [{"allow": {}}]},
        {"name": "direct", "inCluster": true, "passthrough": true, "hosts": ["kubernetes.default.svc"]}]}""",
]


class Running(unittest.TestCase):
    def test_image_serves_as_in_a_pod_and_stops_on_sigterm(self):
        self.assert_runs("base")

    def test_pod_of_the_chart_reads_every_file_that_it_mounts(self):
        self.assert_runs("chart")

    def assert_runs(self, source):
        if os.geteuid() != 0:
            self.skipTest("needs root for a root file system of another user")
        done = stage.run_isolated(__file__, source)
        self.assertEqual(done.returncode, 0, f"{done.stdout}\n{done.stderr}")
        self.assertIn("exited with 0", done.stdout)


def inside(source):
    """Runs the last stage of the image in separate namespaces, as their root user, as a pod of the base or of the chart."""
    stage.set_up()
    root = stage.SCRATCH / "root"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "rootfs", root], check=True)
    objects = rendered.kustomize("base") if source == "base" else rendered.chart(*VALUES)
    pod = objects["Deployment", "kube-tls-proxy"]["spec"]["template"]["spec"]
    user = pod["securityContext"]["runAsUser"]

    (entry,) = map(json.loads, all_of(RUN, "ENTRYPOINT"))
    install(stage.BINARY, root / entry[0].lstrip("/"))
    for name, path in libraries(stage.BINARY).items():
        assert IN_THE_BASE.match(name), f"{name} is not in the base image"
        install(path, root / path.lstrip("/"))
    for name in ("proc", "dev", "tmp", "etc"):
        (root / name).mkdir(exist_ok=True)
    (root / "etc/passwd").write_text(f"nonroot:x:{user}:{user}:nonroot:/home/nonroot:/sbin/nologin\n")
    apiserver = mount_files(root, pod, user, objects)
    subprocess.run(["mount", "-t", "proc", "proc", str(root / "proc")], check=True)
    subprocess.run(["mount", "-o", "remount,ro", root], check=True)

    environment = rendered.environment(pod["containers"][0])
    environment |= {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(apiserver.port)}
    arguments = [*entry, *pod["containers"][0]["args"]]
    pid = os.fork()
    if pid == 0:
        confine(root, user)
        os.execve(arguments[0], arguments, environment)
    try:
        check_running_proxy(pid, user, apiserver)
        run_check(root, user, entry[0], environment, ["clients"] if source == "chart" else [])
        os.kill(pid, signal.SIGTERM)
        code = stage.wait_for_exit(pid, pod["terminationGracePeriodSeconds"])
    finally:
        apiserver.process.kill()
    assert code == 0, f"the proxy exited with {code}"
    print("exited with 0")


def install(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    target.chmod(0o755)


def libraries(binary):
    """The libraries that the loader maps, by name. No other file of the system is in the root file system."""
    output = subprocess.run(["ldd", binary], check=True, capture_output=True, text=True).stdout
    found = {}
    for line in output.splitlines():
        path = re.search(r"(/\S+) \(0x", line)
        if path:
            found[os.path.basename(line.split()[0])] = path.group(1)
    return found


def mount_files(root, pod, user, objects):
    """Creates the mounted files of the pod at their paths, and starts the stand-in for the apiserver."""
    mounts = {mount["name"]: root / mount["mountPath"].lstrip("/") for mount in pod["containers"][0]["volumeMounts"]}
    for path in mounts.values():
        path.mkdir(parents=True)
    outside = stage.certificates()
    shutil.copy(outside / "cluster-ca.crt", mounts["cluster-ca"] / "ca.crt")
    keys = [("tls", "public.crt", "tls.crt"), ("tls", "public.key", "tls.key")]
    if "config" in mounts:
        for name, text in objects["ConfigMap", "kube-tls-proxy"]["data"].items():
            (mounts["config"] / name).write_text(text)
        stage.make_revocation_list(outside, "public")
        shutil.copy(outside / "public-ca.crt", mounts["client-certificates-ca"] / "ca.crt")
        keys += [("client-certificates-front-proxy", f"cluster.{kind}", f"tls.{kind}") for kind in ("crt", "key")]
        keys.append(("client-certificates-crl", "public.crl", "ca.crl"))
    for mount, source, name in keys:
        target = mounts[mount] / name
        shutil.copy(outside / source, target)
        # The owner and the mode that fsGroup and defaultMode set.
        os.chown(target, 0, user)
        target.chmod(0o440)
    apiserver = stage.Apiserver(outside)
    return apiserver


def confine(root, user):
    """Applies the security context of the pod, except seccomp."""
    os.chroot(root)
    os.chdir("/")
    libc = ctypes.CDLL(None, use_errno=True)
    drop_bounding, no_new_privileges, last_capability = 24, 38, 63
    for capability in range(last_capability + 1):
        libc.prctl(drop_bounding, capability, 0, 0, 0)
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    assert libc.prctl(no_new_privileges, 1, 0, 0, 0) == 0


def run_check(root, user, program, environment, more):
    """Runs `check` without flags beside the running proxy, as `kubectl exec` does."""
    done = subprocess.run(
        [program, "check"],
        env=environment,
        preexec_fn=lambda: confine(root, user),
        capture_output=True,
        text=True,
        timeout=2 * LIMIT,
    )
    # The stand-in is no apiserver, so not every check passes. The files, the port and the name of the apiserver must.
    for line in ("certificate", "listen", "ca", "verify", *more):
        found = re.search(rf"^ +✓ {line} .*$", done.stdout, re.MULTILINE)
        assert found, f"check has no ✓ {line}: {done.stdout}{done.stderr}"


def check_running_proxy(pid, user, apiserver):
    """Sends the requests of a kubelet, a Prometheus and a client to the running proxy, and checks its process."""
    for url in ("http://localhost:9090/livez", "http://localhost:9090/readyz", "https://localhost:8443/"):
        stage.wait_until_ok(url, pid, apiserver.public)
    body = stage.fetch("https://localhost:8443/", apiserver.public)
    assert "s_server" in body, body
    metrics = stage.fetch("http://localhost:9090/metrics")
    assert "kube_tls_proxy_build_info" in metrics, metrics

    status = dict(re.findall(r"(?m)^(\w+):\t(.*)$", pathlib.Path(f"/proc/{pid}/status").read_text()))
    assert set(status["Uid"].split()) == {str(user)}, status["Uid"]
    for kind in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, f"{kind} {status[kind]}"
    assert status["NoNewPrivs"] == "1"
    # The root file system is read-only, except proc, so the proxy cannot have a file open for writing.
    mounts = [line.split() for line in pathlib.Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    root = os.readlink(f"/proc/{pid}/root")
    options = {mount[4]: mount[5].split(",") for mount in mounts}
    assert "ro" in (options.get(root) or options["/"]), options
    mapped = set(re.findall(r"(?m) (/\S+)$", pathlib.Path(f"/proc/{pid}/maps").read_text()))
    assert all(IN_THE_BASE.match(os.path.basename(path)) or path.endswith("/kube-tls-proxy") for path in mapped), mapped


if __name__ == "__main__":
    if sys.argv[1:2] == ["inside"]:
        inside(sys.argv[2])
    else:
        unittest.main()
