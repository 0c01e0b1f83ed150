"""The Debian package has everything that a bastion needs, and its configuration serves on a socket from systemd."""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
import unittest

import rendered
import stage

SERVICE = rendered.ROOT / "config/systemd/kube-tls-proxy.service"
CONFIGURATION = rendered.ROOT / "config/debian/kube-tls-proxy.yaml"


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        # Uses the debug build, which exists already: these tests check the package, not the binary.
        command = ["cargo", "deb", "--no-build", "--fast", "--quiet", "--profile", "dev", "--output", folder.name]
        done = subprocess.run(command, cwd=rendered.ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        (cls.package,) = pathlib.Path(folder.name).glob("*.deb")
        listed = subprocess.run(["dpkg-deb", "--contents", cls.package], check=True, capture_output=True, text=True).stdout
        cls.files = {line.split()[5].removeprefix("."): line.split()[0] for line in listed.splitlines()}
        control = pathlib.Path(folder.name) / "control"
        subprocess.run(["dpkg-deb", "--control", cls.package, control], check=True)
        cls.control = {file.name: file.read_text() for file in control.iterdir()}

    def test_files_are_at_the_paths_that_debian_expects(self):
        for path in (
            "/usr/bin/kube-tls-proxy",
            "/usr/lib/systemd/system/kube-tls-proxy.service",
            "/usr/lib/systemd/system/kube-tls-proxy.socket",
            "/usr/lib/sysusers.d/kube-tls-proxy.conf",
            "/etc/kube-tls-proxy/kube-tls-proxy.yaml",
            "/usr/share/bash-completion/completions/kube-tls-proxy",
            "/usr/share/zsh/vendor-completions/_kube-tls-proxy",
            "/usr/share/fish/vendor_completions.d/kube-tls-proxy.fish",
            "/usr/share/doc/kube-tls-proxy/copyright",
        ):
            self.assertIn(path, self.files)
        self.assertEqual(self.files["/usr/bin/kube-tls-proxy"], "-rwxr-xr-x")
        self.assertTrue([path for path in self.files if re.fullmatch(r"/usr/share/man/man1/kube-tls-proxy\.1(\.gz)?", path)])

    def test_changelogs_are_installed_and_match_the_version(self):
        for path in ("changelog.gz", "changelog.Debian.gz"):
            self.assertIn(f"/usr/share/doc/kube-tls-proxy/{path}", self.files)
        version = re.search(r"^Version: (.*)$", self.control["control"], re.MULTILINE).group(1)
        maintainer = re.search(r"^Maintainer: (.*)$", self.control["control"], re.MULTILINE).group(1)
        changelog = (rendered.ROOT / "config/debian/changelog").read_text()
        self.assertEqual(re.match(r"kube-tls-proxy \((.*?)\) ", changelog).group(1), version)
        # dpkg-parsechangelog requires two spaces, and lintian requires the maintainer of the package.
        self.assertEqual(re.search(r"^ -- (.*?)  \S", changelog, re.MULTILINE).group(1), maintainer)

    def test_every_relative_link_of_a_page_leads_to_an_installed_file(self):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["dpkg-deb", "--extract", self.package, folder], check=True)
            pages = list(pathlib.Path(folder).rglob("*.md"))
            self.assertGreater(len(pages), 10)
            links = 0
            for page in pages:
                text = re.sub(r"(?m)^    .*$", "", page.read_text())
                for target in re.findall(r"\]\(([^)#\s]+)", text):
                    if not re.match(r"[a-z]+:", target):
                        links += 1
                        self.assertTrue((page.parent / target).exists(), f"{page.name} links to {target}")
            self.assertGreater(links, 30)

    def test_alerts_and_dashboard_are_installed(self):
        for path in ("prometheus/rules.yaml", "grafana/kube-tls-proxy.json"):
            self.assertIn(f"/usr/share/doc/kube-tls-proxy/config/{path}", self.files)

    def test_symbols_are_a_package_of_their_own(self):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["dpkg-deb", "--extract", self.package, folder], check=True)
            done = subprocess.run(["nm", f"{folder}/usr/bin/kube-tls-proxy"], capture_output=True, text=True)
            self.assertEqual(done.stdout, "")
            self.assertIn("no symbols", done.stderr)
        (symbols,) = pathlib.Path(self.package).parent.glob("kube-tls-proxy-dbgsym_*.ddeb")
        listed = subprocess.run(["dpkg-deb", "--contents", symbols], check=True, capture_output=True, text=True).stdout
        self.assertIn("/usr/lib/debug/", listed)

    def test_public_address_is_the_same_everywhere(self):
        package = tomllib.loads((rendered.ROOT / "Cargo.toml").read_text())["package"]
        chart = rendered.read("config/helm/kube-tls-proxy/Chart.yaml")
        homepage, repository = package.get("homepage"), package.get("repository")
        self.assertEqual(chart.get("home"), homepage)
        self.assertEqual(chart.get("sources", [None]), [repository])
        found = re.search(r"^Homepage: (.*)$", self.control["control"], re.MULTILINE)
        self.assertEqual(found and found.group(1), homepage or repository)

    def test_lintian_reports_no_error_and_no_warning(self):
        if not shutil.which("lintian"):
            self.skipTest("lintian is not installed")
        command = ["lintian", "--fail-on", "error,warning", self.package]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_unit_uses_the_installed_program_and_configuration(self):
        program, *rest = re.search(r"^ExecStart=(.*)$", SERVICE.read_text(), re.MULTILINE).group(1).split()
        self.assertIn(program, self.files)
        self.assertIn(rest[rest.index("--config") + 1], self.files)

    def test_upgrade_keeps_an_edited_configuration(self):
        self.assertEqual(self.control["conffiles"].split(), ["/etc/kube-tls-proxy/kube-tls-proxy.yaml"])

    def test_installation_does_not_start_the_service(self):
        scripts = "".join(self.control[name] for name in ("postinst", "prerm", "postrm"))
        self.assertNotIn("deb-systemd-invoke start", scripts)
        for line in self.control["postinst"].splitlines():
            if "deb-systemd-helper enable" in line:
                self.assertTrue(line.startswith("\t\t\t"), "the script enables only a unit that was enabled before")

    def test_upgrade_restarts_service_and_keeps_socket_open(self):
        self.assertIn("try-restart kube-tls-proxy.service || true", self.control["postinst"])
        for name in ("postinst", "prerm"):
            for line in self.control[name].splitlines():
                if "deb-systemd-invoke" in line and "kube-tls-proxy.socket" in line:
                    self.assertEqual(name, "prerm")
                    before = self.control[name][: self.control[name].index(line)]
                    self.assertIn('[ "$1" = remove ]', before.splitlines()[-1])

    def test_maintainer_scripts_are_valid_shell(self):
        for name in ("postinst", "prerm", "postrm"):
            subprocess.run(["sh", "-n"], input=self.control[name], text=True, check=True)


class Bastion(unittest.TestCase):
    def test_configuration_serves_on_the_socket_of_systemd(self):
        if os.geteuid() != 0:
            self.skipTest("needs root for port 443 in a separate network namespace")
        done = stage.run_isolated(__file__)
        self.assertEqual(done.returncode, 0, f"{done.stdout}\n{done.stderr}")
        self.assertIn("exited with 0", done.stdout)


def inside():
    """Runs the command of the service unit twice on the socket of the socket unit, in separate namespaces."""
    stage.set_up()
    files = stage.certificates()
    apiserver = stage.Apiserver(files)
    etc = stage.SCRATCH / "etc"
    etc.mkdir()
    shutil.copy(CONFIGURATION, etc)
    shutil.copy(files / "public.crt", etc / "tls.crt")
    shutil.copy(files / "public.key", etc / "tls.key")
    (etc / "cluster.conf").write_text(
        f"""{{apiVersion: v1, kind: Config, current-context: c,
        contexts: [{{name: c, context: {{cluster: c, user: c}}}}],
        clusters: [{{name: c, cluster: {{server: "https://127.0.0.1:{apiserver.port}", certificate-authority: {apiserver.ca},
          tls-server-name: kubernetes.default.svc}}}}]}}"""
    )
    address = re.search(r"^ListenStream=\[::\]:([0-9]+)$", SERVICE.with_suffix(".socket").read_text(), re.MULTILINE)
    port = int(address.group(1))
    arguments = re.search(r"^ExecStart=\S+ (.*)$", SERVICE.read_text(), re.MULTILINE).group(1)
    command = [stage.BINARY, *arguments.replace("/etc/kube-tls-proxy", str(etc)).split()]

    listening = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notifications.bind(str(stage.SCRATCH / "notify"))
    notifications.settimeout(stage.LIMIT)
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            os.dup2(listening.fileno(), 3)
            os.set_inheritable(3, True)
            environment = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid()), "NOTIFY_SOCKET": str(stage.SCRATCH / "notify")}
            os.execve(command[0], command, environment)
        wait_for_notification(notifications, "READY=1")
        stage.wait_until_ok(f"https://localhost:{port}/", pid, apiserver.public)
        stage.wait_until_ok("http://127.0.0.1:9090/readyz", pid)
        os.kill(pid, signal.SIGHUP)
        wait_for_notification(notifications, "RELOADING=1")
        wait_for_notification(notifications, "READY=1")
        # SIGINT skips the drain delay, which is for load balancers.
        os.kill(pid, signal.SIGINT)
        wait_for_notification(notifications, "STOPPING=1")
        code = stage.wait_for_exit(pid, 60)
        assert code == 0, f"the proxy exited with {code}"
        # The socket stays open, so that no client is refused. The next process serves the clients that connect now.
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    apiserver.process.kill()
    print("exited with 0")


def wait_for_notification(notifications, word):
    """Waits until the proxy sends `word` to systemd."""
    while word not in notifications.recv(4096).decode().splitlines():
        pass


if __name__ == "__main__":
    if sys.argv[1:2] == ["inside"]:
        inside()
    else:
        unittest.main()
