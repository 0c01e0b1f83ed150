"""Renders the kustomization and the chart as objects."""

import pathlib
import re
import subprocess

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "config/kubernetes"
CHART = ROOT / "config/helm/kube-tls-proxy"


def read(path):
    """The one YAML document of a file below the root of the repository."""
    return yaml.safe_load((ROOT / path).read_text())


def kustomize(folder):
    """The objects that `kubectl apply -k` would apply, by kind and name."""
    return parse_objects(run("kubectl", "kustomize", str(KUBERNETES / folder)))


def chart(*settings, release="kube-tls-proxy", namespace="kube-tls-proxy"):
    """The objects that `helm install` would apply with `settings` as --set-json, by kind and name."""
    return parse_objects(template(*settings, release=release, namespace=namespace))


def template(*settings, release="kube-tls-proxy", namespace="kube-tls-proxy"):
    flags = [part for setting in settings for part in ("--set-json", setting)]
    return run("helm", "template", release, str(CHART), "--namespace", namespace, *flags)


def values_error(*settings):
    """The error of helm for invalid values, or `None` if helm accepts them."""
    try:
        template(*settings)
    except subprocess.CalledProcessError as failed:
        return failed.stderr
    return None


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def parse_objects(text):
    found = {}
    for each in yaml.safe_load_all(text):
        if each:
            key = (each["kind"], each["metadata"]["name"])
            assert key not in found, f"{key} occurs twice"
            found[key] = each
    return found


def environment(container):
    """The variables of a container, by name."""
    names = [each["name"] for each in container.get("env", [])]
    assert len(names) == len(set(names)), f"a variable occurs twice: {names}"
    return {each["name"]: each.get("value") for each in container.get("env", [])}


def seconds(text):
    """A duration of the configuration file, such as `1m30s`."""
    unit = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
    parts = re.findall(r"([0-9]+)(ms|s|m|h)", text)
    assert parts and "".join(number + name for number, name in parts) == text, text
    return sum(int(number) * unit[name] for number, name in parts)


def default_seconds(key):
    """The default of a duration, from the example file that shows every key."""
    text = (ROOT / "config/kube-tls-proxy.yaml").read_text()
    found = re.search(rf"^ +(?:# )?{key}: ([0-9]\w*)", text, re.MULTILINE)
    assert found, f"no {key} in config/kube-tls-proxy.yaml"
    return seconds(found.group(1))
