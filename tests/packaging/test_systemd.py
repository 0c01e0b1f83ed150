"""systemd accepts every line of the units, and rates them as well sandboxed."""

import json
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

import rendered
import stage

UNITS = rendered.ROOT / "config/systemd"
SERVICE = UNITS / "kube-tls-proxy.service"
DROP_IN = UNITS / "http01.conf"

# The exposure that systemd 252 calculates, from 0 to 10.
EXPOSURE = "1.1"

# The remaining findings: the service uses the network of the host, notifies systemd, and may read a clock.
ACCEPTED_FINDINGS = {
    "DeviceAllow",
    "IPAddressDeny",
    "PrivateNetwork",
    "RestrictAddressFamilies_AF_INET_INET6",
    "RestrictAddressFamilies_AF_UNIX",
    "RootDirectoryOrRootImage",
}


def settings(unit):
    """The settings of a unit. A setting that occurs more than once has all its values."""
    found = {}
    for line in unit.read_text().splitlines():
        if not line.startswith(("#", "[")) and "=" in line:
            key, value = line.split("=", 1)
            found.setdefault(key, []).append(value)
    return found


def version():
    output = subprocess.run(["systemd-analyze", "--version"], check=True, capture_output=True, text=True, timeout=60).stdout
    return int(re.match(r"systemd ([0-9]+)", output).group(1))


class Units(unittest.TestCase):
    def test_systemd_accepts_every_line(self):
        with tempfile.TemporaryDirectory() as folder:
            drop_ins = pathlib.Path(folder) / f"{SERVICE.name}.d"
            drop_ins.mkdir()
            (drop_ins / DROP_IN.name).write_text(DROP_IN.read_text())
            # The verification needs an existing program, and /usr/bin has the proxy only where the package is installed.
            for unit in UNITS.iterdir():
                text = unit.read_text().replace("/usr/bin/kube-tls-proxy", "/bin/true")
                (pathlib.Path(folder) / unit.name).write_text(text)
            units = [f"{folder}/kube-tls-proxy.{kind}" for kind in ("service", "socket")]
            done = subprocess.run(
                ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=60
            )
        output = [line for line in done.stderr.splitlines() if "kube-tls-proxy" in line or DROP_IN.name in line]
        if version() < 253:
            # Older versions use the line before it, as the unit explains.
            output = [line for line in output if not line.endswith("Failed to parse service type, ignoring: notify-reload")]
        self.assertEqual(output, [])

    def test_service_has_only_accepted_sandbox_findings(self):
        command = ["systemd-analyze", "security", "--offline=true", "--json=short", str(SERVICE)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        found = [each for each in json.loads(done.stdout) if each["exposure"] not in (None, "0") and not each["set"]]
        self.assertEqual({each["json_field"] for each in found}, ACCEPTED_FINDINGS)
        documented = (rendered.ROOT / "docs/running.md").read_text()
        self.assertIn(f"`systemd-analyze security` gives it {EXPOSURE} of 10", documented)

    @unittest.skipUnless(version() == 252, "every version of systemd calculates the exposure differently")
    def test_exposure_is_as_documented(self):
        command = ["systemd-analyze", "security", "--offline=true", str(SERVICE)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        self.assertIn(f"Overall exposure level for kube-tls-proxy.service: {EXPOSURE} ", done.stdout)

    def test_old_systemd_also_waits_for_readiness(self):
        self.assertEqual(settings(SERVICE)["Type"], ["notify", "notify-reload"])

    def test_stop_timeout_is_longer_than_the_drain(self):
        delay = rendered.default_seconds("drainDelay")
        drain = max(rendered.default_seconds("drain"), rendered.default_seconds("drainTunnels"))
        (stop,) = settings(SERVICE)["TimeoutStopSec"]
        self.assertGreaterEqual(rendered.seconds(stop), delay + drain + 5)

    def test_service_runs_as_the_user_of_sysusers(self):
        made = re.findall(r"^u (\S+) ", (UNITS / "kube-tls-proxy.sysusers").read_text(), re.MULTILINE)
        self.assertEqual(settings(SERVICE)["User"], made)
        self.assertEqual(settings(SERVICE)["Group"], made)

    def test_service_needs_no_capability_for_the_port(self):
        service = settings(SERVICE)
        self.assertEqual((service["CapabilityBoundingSet"], service["AmbientCapabilities"]), ([""], [""]))
        self.assertEqual(service["Requires"], ["kube-tls-proxy.socket"])
        self.assertEqual(settings(UNITS / "kube-tls-proxy.socket")["ListenStream"], ["[::]:443"])

    def test_drop_in_gives_one_capability(self):
        one = ["CAP_NET_BIND_SERVICE"]
        self.assertEqual(
            settings(DROP_IN), {"CapabilityBoundingSet": one, "AmbientCapabilities": one, "PrivateUsers": ["no"]}
        )

    @unittest.skipUnless(os.geteuid() == 0, "needs root to run as another user in a network namespace")
    def test_port_80_opens_with_the_capability_of_the_drop_in(self):
        opened = "[::]:80 can be opened for the challenge http-01"
        self.assertIn(opened, check_port_80(settings(DROP_IN)["AmbientCapabilities"]))
        refused = check_port_80([])
        self.assertIn("cannot open [::]:80 for the challenge http-01: permission denied", refused)
        self.assertNotIn(opened, refused)


def check_port_80(capabilities):
    """What `check` says of port 80, as a user with these capabilities and no others."""
    names = ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in capabilities)])
    user = ["--reuid=65532", "--regid=65532", "--clear-groups", "--no-new-privs"]
    limit = [f"--{kind}={names}" for kind in ("bounding-set", "inh-caps", "ambient-caps")]
    acme = ["--acme", "127.0.0.1", "--acme-http01-listen", ":80", "--acme-directory", "https://127.0.0.1:1/dir"]
    upstream = ["--upstream", "https://127.0.0.1:1", "--upstream-ca", "/none"]
    with tempfile.TemporaryDirectory() as folder:
        # Other users may not enter the folder of the build.
        binary = pathlib.Path(folder) / "kube-tls-proxy"
        binary.write_bytes(stage.BINARY.read_bytes())
        for path, mode in ((binary, 0o755), (pathlib.Path(folder), 0o755)):
            path.chmod(mode)
        command = ["unshare", "--net", "setpriv", *user, *limit, binary, "check", *acme, *upstream]
        done = subprocess.run(command, capture_output=True, text=True, timeout=stage.LIMIT)
    return done.stdout + done.stderr


if __name__ == "__main__":
    unittest.main()
