"""systemd accepts every line of the units, and rates them as well sandboxed."""

import json
import pathlib
import re
import subprocess
import tempfile
import unittest

import rendered

UNITS = rendered.ROOT / "config/systemd"
SERVICE = UNITS / "kube-tls-proxy.service"

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
            # The verification needs an existing program, and /usr/bin has the proxy only where the package is installed.
            for unit in UNITS.iterdir():
                text = unit.read_text().replace("/usr/bin/kube-tls-proxy", "/bin/true")
                (pathlib.Path(folder) / unit.name).write_text(text)
            units = [f"{folder}/kube-tls-proxy.{kind}" for kind in ("service", "socket")]
            done = subprocess.run(
                ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=60
            )
        output = [line for line in done.stderr.splitlines() if "kube-tls-proxy" in line]
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


if __name__ == "__main__":
    unittest.main()
