"""systemd takes the units, finds them well locked in, and knows no word in them that it ignores."""

import json
import pathlib
import re
import subprocess
import tempfile
import unittest

import rendered

UNITS = rendered.ROOT / "config/systemd"
SERVICE = UNITS / "kube-tls-proxy.service"

# systemd's own measure, from 0 to 10, as version 252 takes it.
EXPOSURE = "1.1"

# What it still finds: the service speaks to the Internet in the host's network, tells systemd how it is, and may read a clock.
LEFT = {
    "DeviceAllow",
    "IPAddressDeny",
    "PrivateNetwork",
    "RestrictAddressFamilies_AF_INET_INET6",
    "RestrictAddressFamilies_AF_UNIX",
    "RootDirectoryOrRootImage",
}


def settings(unit):
    """The settings of a unit; those that are given twice hold all their values."""
    found = {}
    for line in unit.read_text().splitlines():
        if not line.startswith(("#", "[")) and "=" in line:
            key, value = line.split("=", 1)
            found.setdefault(key, []).append(value)
    return found


def version():
    said = subprocess.run(["systemd-analyze", "--version"], check=True, capture_output=True, text=True, timeout=60).stdout
    return int(re.match(r"systemd ([0-9]+)", said).group(1))


class Units(unittest.TestCase):
    def test_systemd_understands_every_line(self):
        with tempfile.TemporaryDirectory() as folder:
            # Verification wants a program that is there, which /usr/bin has only where the package is installed.
            for unit in UNITS.iterdir():
                text = unit.read_text().replace("/usr/bin/kube-tls-proxy", "/bin/true")
                (pathlib.Path(folder) / unit.name).write_text(text)
            units = [f"{folder}/kube-tls-proxy.{kind}" for kind in ("service", "socket")]
            done = subprocess.run(
                ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=60
            )
        said = [line for line in done.stderr.splitlines() if "kube-tls-proxy" in line]
        if version() < 253:
            # The line before it holds there, as the unit explains.
            said = [line for line in said if not line.endswith("Failed to parse service type, ignoring: notify-reload")]
        self.assertEqual(said, [])

    def test_it_is_locked_in(self):
        command = ["systemd-analyze", "security", "--offline=true", "--json=short", str(SERVICE)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        found = [each for each in json.loads(done.stdout) if each["exposure"] not in (None, "0") and not each["set"]]
        self.assertEqual({each["json_field"] for each in found}, LEFT)
        documented = (rendered.ROOT / "docs/running.md").read_text()
        self.assertIn(f"`systemd-analyze security` gives it {EXPOSURE} of 10", documented)

    @unittest.skipUnless(version() == 252, "every version of systemd measures differently")
    def test_its_exposure_is_as_documented(self):
        command = ["systemd-analyze", "security", "--offline=true", str(SERVICE)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        self.assertIn(f"Overall exposure level for kube-tls-proxy.service: {EXPOSURE} ", done.stdout)

    def test_an_old_systemd_waits_for_readiness_too(self):
        self.assertEqual(settings(SERVICE)["Type"], ["notify", "notify-reload"])

    def test_the_stop_is_longer_than_the_drain(self):
        delay = rendered.default_seconds("drainDelay")
        drain = max(rendered.default_seconds("drain"), rendered.default_seconds("drainTunnels"))
        (stop,) = settings(SERVICE)["TimeoutStopSec"]
        self.assertGreaterEqual(rendered.seconds(stop), delay + drain + 5)

    def test_the_service_runs_as_the_user_that_is_made(self):
        made = re.findall(r"^u (\S+) ", (UNITS / "kube-tls-proxy.sysusers").read_text(), re.MULTILINE)
        self.assertEqual(settings(SERVICE)["User"], made)
        self.assertEqual(settings(SERVICE)["Group"], made)

    def test_it_needs_no_capability_since_the_socket_has_the_port(self):
        service = settings(SERVICE)
        self.assertEqual((service["CapabilityBoundingSet"], service["AmbientCapabilities"]), ([""], [""]))
        self.assertEqual(service["Requires"], ["kube-tls-proxy.socket"])
        self.assertEqual(settings(UNITS / "kube-tls-proxy.socket")["ListenStream"], ["[::]:443"])


if __name__ == "__main__":
    unittest.main()
