"""The chart renders the same objects as the kustomization, and rejects values that cannot work."""

import copy
import subprocess
import unittest

import rendered

# The labels that helm expects on every object, and the label that distinguishes two releases.
ONLY_IN_CHART = {"app.kubernetes.io/instance", "app.kubernetes.io/version", "app.kubernetes.io/managed-by", "helm.sh/chart"}


def comparable(objects):
    """The objects without the parts that may differ: the image, and the labels that only helm sets."""
    objects = copy.deepcopy(objects)
    for (kind, _), each in objects.items():
        if kind == "Deployment":
            for container in each["spec"]["template"]["spec"]["containers"]:
                del container["image"]
                container.pop("imagePullPolicy", None)
        drop_labels(each)
    return objects


def drop_labels(value):
    if isinstance(value, dict):
        for label in ONLY_IN_CHART & value.keys():
            del value[label]
        for each in value.values():
            drop_labels(each)
    elif isinstance(value, list):
        for each in value:
            drop_labels(each)


class Chart(unittest.TestCase):
    maxDiff = None

    def test_defaults_render_the_base(self):
        base = comparable(rendered.kustomize("base"))
        # The chart does not contain the namespace, and helm cannot set its labels.
        del base["Namespace", "kube-tls-proxy"]
        self.assertEqual(comparable(rendered.chart()), base)

    def test_both_options_render_the_overlays(self):
        wanted = comparable(rendered.kustomize("overlays/servicemonitor"))
        wanted |= comparable(rendered.kustomize("overlays/cert-manager"))
        del wanted["Namespace", "kube-tls-proxy"]
        settings = ["serviceMonitor.enabled=true", "certificate.enabled=true", 'certificate.dnsNames=["kube.example.com"]']
        self.assertEqual(comparable(rendered.chart(*settings)), wanted)

    def test_helm_lint_reports_nothing(self):
        subprocess.run(["helm", "lint", "--strict", "--quiet", rendered.CHART], check=True, capture_output=True, timeout=120)

    def test_each_of_two_releases_selects_only_its_own_pods(self):
        one, two = (rendered.chart(release=name) for name in ("one", "two"))
        for name, objects, other in [("one", one, two), ("two", two, one)]:
            pods = objects["Deployment", f"{name}-kube-tls-proxy"]["spec"]["template"]["metadata"]["labels"].items()
            for (kind, _), each in objects.items():
                if kind == "Service":
                    self.assertLessEqual(each["spec"]["selector"].items(), pods)
            for (kind, _), each in other.items():
                if kind == "Service":
                    self.assertFalse(each["spec"]["selector"].items() <= pods)

    def test_replicas_are_set_when_autoscaling_is_disabled(self):
        objects = rendered.chart("autoscaling.enabled=false", "replicas=3")
        self.assertEqual(objects["Deployment", "kube-tls-proxy"]["spec"]["replicas"], 3)
        self.assertNotIn(("HorizontalPodAutoscaler", "kube-tls-proxy"), objects)

    def test_configuration_is_mounted_at_the_path_of_the_flag(self):
        objects = rendered.chart('config={"limits": {"headerFields": 256}}')
        self.assertEqual(
            objects["ConfigMap", "kube-tls-proxy"]["data"], {"kube-tls-proxy.yaml": "limits:\n  headerFields: 256\n"}
        )
        pod = objects["Deployment", "kube-tls-proxy"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "config"]
        self.assertIn(f"--config={mount['mountPath']}/kube-tls-proxy.yaml", container["args"])
        self.assertIn({"name": "config", "configMap": {"name": "kube-tls-proxy"}}, pod["volumes"])

    def test_ipv6_false_changes_only_the_listen_addresses(self):
        def args(*settings):
            pod = rendered.chart(*settings)["Deployment", "kube-tls-proxy"]["spec"]["template"]["spec"]
            return pod["containers"][0]["args"]

        with_ipv6, without = args(), args("ipv6=false")
        listen = [flag for flag in without if "listen=" in flag]
        self.assertEqual(listen, ["--listen=0.0.0.0:8443", "--admin-listen=0.0.0.0:9090"])
        rest = [flag for flag in without if flag not in listen]
        self.assertEqual(rest, [flag for flag in with_ipv6 if flag != "--admin-listen=[::]:9090"])

    def test_pods_restart_only_for_settings_that_need_a_restart(self):
        def checksum(config):
            objects = rendered.chart(f"config={config}")
            return objects["Deployment", "kube-tls-proxy"]["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

        before = checksum('{"timeouts": {"drain": "25s"}, "clusters": [{"name": "a"}]}')
        self.assertEqual(checksum('{"timeouts": {"drain": "25s"}, "clusters": [{"name": "b"}]}'), before)
        self.assertNotEqual(checksum('{"timeouts": {"drain": "26s"}, "clusters": [{"name": "a"}]}'), before)

    def test_digest_overrides_tag(self):
        digest = "sha256:" + "0" * 64
        for settings, image in [
            ([], "kube-tls-proxy:" + rendered.read("config/helm/kube-tls-proxy/Chart.yaml")["appVersion"]),
            (['image.tag="2"'], "kube-tls-proxy:2"),
            (['image.tag="2"', f'image.digest="{digest}"'], f"kube-tls-proxy@{digest}"),
        ]:
            pod = rendered.chart(*settings)["Deployment", "kube-tls-proxy"]["spec"]["template"]["spec"]
            self.assertEqual(pod["containers"][0]["image"], image)

    def test_invalid_values_are_rejected(self):
        for setting, where in [
            ("workers=0", "/workers"),
            ('workers="2"', "/workers"),
            ("worker=2", "worker"),
            ('image={"name": "x"}', "/image"),
            ('image.repository="registry.example.com/kube-tls-proxy:1"', "/image/repository"),
            ('image.digest="sha256:12"', "/image/digest"),
            ('logFormat="xml"', "/logFormat"),
            ('config={"listen": [":1"]}', "/config/listen"),
            ('config={"log": {"format": "text"}}', "/config/log/format"),
            ("certificate.enabled=true", "/certificate/dnsNames"),
            ('service.type="ExternalName"', "/service/type"),
            ("admin.port=8443", "/admin/port"),
            ("networkPolicy.monitoringNamespace=null", "/networkPolicy"),
            ('podDisruptionBudget.maxUnavailable="0%"', "/podDisruptionBudget/maxUnavailable"),
            ('serviceMonitor.interval="often"', "/serviceMonitor/interval"),
        ]:
            error = rendered.values_error(setting)
            self.assertIsNotNone(error, f"helm accepted {setting}")
            self.assertIn(where, error, setting)

    def test_values_and_schema_have_the_same_keys(self):
        values = rendered.read("config/helm/kube-tls-proxy/values.yaml")
        schema = rendered.read("config/helm/kube-tls-proxy/values.schema.json")

        def compare(value, schema, path):
            if schema.get("additionalProperties") is False:
                self.assertEqual(set(value) | ({"global"} if not path else set()), set(schema["properties"]), path)
                for key in value:
                    compare(value[key], schema["properties"][key], f"{path}/{key}")

        compare(values, schema, "")

    def test_chart_version_equals_proxy_version(self):
        manifest = (rendered.ROOT / "Cargo.toml").read_text()
        chart = rendered.read("config/helm/kube-tls-proxy/Chart.yaml")
        self.assertIn(f'\nversion = "{chart["appVersion"]}"\n', manifest)
        self.assertEqual(chart["version"], chart["appVersion"])


if __name__ == "__main__":
    unittest.main()
