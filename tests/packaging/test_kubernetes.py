"""The manifests guarantee restricted pods, probes, and a grace period that is long enough."""

import json
import os
import pathlib
import re
import tempfile
import textwrap
import unittest

import yaml

import rendered

NAMESPACE = "kube-tls-proxy"


def yaml_blocks(page):
    """The objects in the indented blocks of a page."""
    text = page.read_text()
    blocks = re.findall(r"^((?:    (?:apiVersion: ).*\n)(?:(?:    .*)?\n)*?)(?=\S)", text, re.MULTILINE)
    return [each for block in blocks for each in yaml.safe_load_all(textwrap.dedent(block))]


def backends(value):
    """The names and ports of the Services that the spec of a route names."""
    if isinstance(value, dict):
        if "port" in value and "name" in value:
            port = value["port"]
            yield value["name"], port["number"] if isinstance(port, dict) else port
        for each in value.values():
            yield from backends(each)
    elif isinstance(value, list):
        for each in value:
            yield from backends(each)


class Base(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.objects = rendered.kustomize("base")
        cls.deployment = cls.objects["Deployment", "kube-tls-proxy"]
        cls.pod = cls.deployment["spec"]["template"]["spec"]
        (cls.container,) = cls.pod["containers"]

    def test_base_has_all_objects_in_its_namespace(self):
        kinds = sorted(kind for kind, _ in self.objects)
        self.assertEqual(
            kinds,
            ["Deployment", "HorizontalPodAutoscaler", "Namespace", "NetworkPolicy", "PodDisruptionBudget", "Service", "Service"],
        )
        for (kind, name), each in self.objects.items():
            if kind == "Namespace":
                self.assertEqual(name, NAMESPACE)
            else:
                self.assertEqual(each["metadata"]["namespace"], NAMESPACE, (kind, name))

    def test_pod_has_no_privileges_and_no_token(self):
        pod = self.pod["securityContext"]
        self.assertIs(pod["runAsNonRoot"], True)
        self.assertEqual((pod["runAsUser"], pod["runAsGroup"]), (65532, 65532))
        self.assertEqual(pod["seccompProfile"], {"type": "RuntimeDefault"})
        container = self.container["securityContext"]
        self.assertIs(container["allowPrivilegeEscalation"], False)
        self.assertIs(container["readOnlyRootFilesystem"], True)
        self.assertEqual(container["capabilities"], {"drop": ["ALL"]})
        self.assertIs(self.pod["automountServiceAccountToken"], False)
        namespace = self.objects["Namespace", NAMESPACE]["metadata"]["labels"]
        self.assertEqual(namespace["pod-security.kubernetes.io/enforce"], "restricted")

    def test_only_the_group_of_the_pod_can_read_the_key(self):
        volumes = {volume["name"]: volume for volume in self.pod["volumes"]}
        self.assertEqual(volumes["tls"]["secret"]["defaultMode"], 0o440)
        self.assertEqual(self.pod["securityContext"]["fsGroup"], self.pod["securityContext"]["runAsGroup"])

    def test_probes_use_the_admin_port(self):
        ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        self.assertEqual(rendered.environment(self.container)["KUBE_TLS_PROXY_ADMIN_LISTEN"], f"[::]:{ports['admin']}")
        for probe, path in [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]:
            self.assertEqual(self.container[probe]["httpGet"], {"path": path, "port": "admin"}, probe)

    def test_every_setting_is_a_variable_that_check_reads_too(self):
        self.assertEqual(self.container["args"], ["serve"])
        documented = (rendered.ROOT / "docs/configuration.md").read_text()
        for name in rendered.environment(self.container):
            self.assertIn(f"| `{name}` |", documented)

    def test_draining_pod_stays_ready_until_it_stops_accepting(self):
        probe = self.container["readinessProbe"]
        noted = (probe["failureThreshold"] - 1) * probe["periodSeconds"]
        self.assertGreaterEqual(noted, rendered.default_seconds("drainDelay"))

    def test_grace_period_is_longer_than_the_drain(self):
        delay = rendered.default_seconds("drainDelay")
        drain = max(rendered.default_seconds("drain"), rendered.default_seconds("drainTunnels"))
        grace = self.pod["terminationGracePeriodSeconds"]
        self.assertGreaterEqual(grace, delay + drain + 5)
        self.assertNotIn("lifecycle", self.container)

    def test_pods_stay_available_during_updates_and_node_drains(self):
        autoscaler = self.objects["HorizontalPodAutoscaler", "kube-tls-proxy"]["spec"]
        self.assertEqual(autoscaler["minReplicas"], 2)
        self.assertEqual(autoscaler["scaleTargetRef"]["name"], self.deployment["metadata"]["name"])
        self.assertNotIn("replicas", self.deployment["spec"], "an apply would override the autoscaler")
        self.assertEqual(self.deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"], 0)
        self.assertEqual(self.objects["PodDisruptionBudget", "kube-tls-proxy"]["spec"]["maxUnavailable"], 1)
        for spread in self.pod["topologySpreadConstraints"]:
            self.assertEqual(spread["whenUnsatisfiable"], "ScheduleAnyway")

    def test_every_selector_matches_the_pods(self):
        labels = self.deployment["spec"]["template"]["metadata"]["labels"].items()
        selectors = [self.deployment["spec"]["selector"]["matchLabels"]]
        selectors += [spread["labelSelector"]["matchLabels"] for spread in self.pod["topologySpreadConstraints"]]
        selectors.append(self.objects["PodDisruptionBudget", "kube-tls-proxy"]["spec"]["selector"]["matchLabels"])
        selectors.append(self.objects["NetworkPolicy", "kube-tls-proxy"]["spec"]["podSelector"]["matchLabels"])
        selectors += [each["spec"]["selector"] for (kind, _), each in self.objects.items() if kind == "Service"]
        self.assertEqual(len(selectors), 7)
        for selector in selectors:
            self.assertLessEqual(selector.items(), labels)

    def test_services_target_ports_of_the_container(self):
        names = {port["name"] for port in self.container["ports"]}
        public = self.objects["Service", "kube-tls-proxy"]["spec"]
        self.assertEqual((public["type"], public["externalTrafficPolicy"]), ("LoadBalancer", "Local"))
        self.assertEqual([(port["port"], port["targetPort"]) for port in public["ports"]], [(443, "https")])
        inside = self.objects["Service", "kube-tls-proxy-metrics"]["spec"]
        self.assertEqual(inside["type"], "ClusterIP")
        self.assertEqual([port["targetPort"] for port in inside["ports"]], ["admin"])
        self.assertLessEqual({"https", "admin"}, names)

    def test_only_the_monitoring_namespace_reaches_the_admin_port(self):
        ingress = self.objects["NetworkPolicy", "kube-tls-proxy"]["spec"]["ingress"]
        sources = {port["port"]: rule.get("from") for rule in ingress for port in rule["ports"]}
        monitoring = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
        self.assertEqual(sources, {"https": None, "admin": monitoring})

    def test_egress_allows_only_the_apiserver_and_dns(self):
        policy = self.objects["NetworkPolicy", "kube-tls-proxy"]["spec"]
        self.assertEqual(policy["policyTypes"], ["Ingress", "Egress"])
        ports = {(port["protocol"], port["port"]) for rule in policy["egress"] for port in rule["ports"]}
        self.assertEqual(ports, {("TCP", 443), ("TCP", 6443), ("UDP", 53), ("TCP", 53)})


class Overlays(unittest.TestCase):
    def test_service_monitor_selects_only_the_metrics_port(self):
        objects = rendered.kustomize("overlays/servicemonitor")
        monitor = objects["ServiceMonitor", "kube-tls-proxy"]["spec"]
        service = objects["Service", "kube-tls-proxy-metrics"]
        self.assertLessEqual(monitor["selector"]["matchLabels"].items(), service["metadata"]["labels"].items())
        self.assertIn(monitor["jobLabel"], service["metadata"]["labels"])
        (endpoint,) = monitor["endpoints"]
        self.assertIn(endpoint["port"], [port["name"] for port in service["spec"]["ports"]])
        public = objects["Service", "kube-tls-proxy"]["metadata"]["labels"]
        self.assertFalse(monitor["selector"]["matchLabels"].items() <= public.items(), "the monitor would scrape the public port")

    def test_certificate_uses_the_secret_that_the_pod_mounts(self):
        objects = rendered.kustomize("overlays/cert-manager")
        certificate = objects["Certificate", "kube-tls-proxy"]["spec"]
        volumes = objects["Deployment", "kube-tls-proxy"]["spec"]["template"]["spec"]["volumes"]
        secrets = [volume["secret"]["secretName"] for volume in volumes if "secret" in volume]
        self.assertEqual([certificate["secretName"]], secrets)

    def test_impersonation_mounts_a_token_that_its_role_is_for(self):
        objects = rendered.kustomize("overlays/impersonation")
        pod = objects["Deployment", "kube-tls-proxy"]["spec"]["template"]["spec"]
        account = objects["ServiceAccount", pod["serviceAccountName"]]
        subject = {"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": NAMESPACE}
        binding = objects["ClusterRoleBinding", "kube-tls-proxy-impersonation"]
        self.assertEqual(binding["subjects"], [subject])
        self.assertIn(("ClusterRole", binding["roleRef"]["name"]), objects)
        self.assertIs(pod["automountServiceAccountToken"], False, "only the projected token is there")
        page = (rendered.ROOT / "docs/client-certificates.md").read_text()
        (mount,) = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "impersonation"]
        self.assertIn(f"tokenFile: {mount['mountPath']}/token }}", page)

    def test_discovery_mounts_a_token_that_its_role_is_for(self):
        objects = rendered.kustomize("overlays/discovery")
        pod = objects["Deployment", "kube-tls-proxy"]["spec"]["template"]["spec"]
        account = objects["ServiceAccount", pod["serviceAccountName"]]
        subject = {"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": NAMESPACE}
        binding = objects["RoleBinding", "kube-tls-proxy-discovery"]
        self.assertEqual(binding["subjects"], [subject])
        role = objects["Role", binding["roleRef"]["name"]]
        self.assertEqual([each["metadata"]["namespace"] for each in (role, binding)], ["default", "default"])
        (rule,) = role["rules"]
        self.assertEqual(rule["resourceNames"], ["kubernetes"], "nothing else may be read")
        self.assertEqual(rule["verbs"], ["list", "watch"])
        self.assertIs(pod["automountServiceAccountToken"], False, "only the projected token is there")
        (volume,) = [each for each in pod["volumes"] if each["name"] == "cluster-ca"]
        certificates, token = volume["projected"]["sources"]
        self.assertEqual(certificates["configMap"]["name"], "kube-root-ca.crt")
        self.assertEqual(token["serviceAccountToken"]["path"], "token")
        base = rendered.kustomize("base")["Deployment", "kube-tls-proxy"]["spec"]["template"]["spec"]
        self.assertEqual({each["name"] for each in pod["volumes"]}, {each["name"] for each in base["volumes"]} | {"config"})

    def test_older_role_replaces_the_role(self):
        folder = rendered.KUBERNETES / "components/impersonation"
        new, older = ([*yaml.safe_load_all((folder / name).read_text())] for name in ("role.yaml", "older-role.yaml"))
        self.assertEqual(new[1], older[1])
        self.assertEqual(new[0]["metadata"], older[0]["metadata"])
        verbs = {verb for rule in older[0]["rules"] for verb in rule["verbs"]}
        self.assertEqual(verbs, {"impersonate"})

    def test_overlay_of_the_docs_can_be_rendered(self):
        documented = (rendered.ROOT / "docs/running.md").read_text()
        (block,) = re.findall(r"^    # kustomization.yaml\n((?:    .*\n)+)", documented, re.MULTILINE)
        with tempfile.TemporaryDirectory() as folder:
            here = os.path.relpath(rendered.ROOT, os.path.realpath(folder))
            text = textwrap.dedent(block).replace("../kube-tls-proxy/", f"{here}/")
            pathlib.Path(folder, "kustomization.yaml").write_text(text)
            objects = rendered.parse_objects(rendered.run("kubectl", "kustomize", folder))
        self.assertIn(("ServiceMonitor", "kube-tls-proxy"), objects)
        self.assertEqual(objects["Certificate", "kube-tls-proxy"]["spec"]["dnsNames"], ["kube.example.com"])
        (container,) = objects["Deployment", "kube-tls-proxy"]["spec"]["template"]["spec"]["containers"]
        self.assertTrue(container["image"].startswith("registry.example.com/kube-tls-proxy@sha256:"), container["image"])

    def test_passthrough_recipes_lead_to_the_service(self):
        services = rendered.kustomize("base")
        recipes = yaml_blocks(rendered.ROOT / "docs/from-contour.md")
        kinds = [recipe["kind"] for recipe in recipes]
        self.assertEqual(kinds, ["HTTPProxy", "HTTPProxy", "HTTPProxy", "Ingress", "IngressRouteTCP", "TLSRoute"])
        found = 0
        for recipe in recipes[1:]:
            for name, port in backends(recipe["spec"]):
                found += 1
                self.assertEqual(recipe["metadata"]["namespace"], NAMESPACE)
                ports = [each["port"] for each in services["Service", name]["spec"]["ports"]]
                self.assertIn(port, ports, recipe["kind"])
        self.assertEqual(found, 4)
        root, included = recipes[1]["spec"]["tcpproxy"]["include"], recipes[2]["metadata"]
        self.assertEqual(root, included, "Contour includes an HTTPProxy by name and namespace")

    def test_tls_route_of_the_docs_is_that_of_the_chart(self):
        *_, documented = yaml_blocks(rendered.ROOT / "docs/from-contour.md")
        parents = json.dumps(documented["spec"]["parentRefs"])
        settings = ["tlsRoute.enabled=true", f"tlsRoute.parentRefs={parents}", 'tlsRoute.hostnames=["kube.example.com"]']
        route = rendered.chart(*settings)["TLSRoute", "kube-tls-proxy"]
        self.assertEqual((route["apiVersion"], route["spec"]), (documented["apiVersion"], documented["spec"]))

    def test_overlays_only_add_objects(self):
        base = rendered.kustomize("base")
        for overlay, kind in [("servicemonitor", "ServiceMonitor"), ("cert-manager", "Certificate")]:
            objects = rendered.kustomize(f"overlays/{overlay}")
            del objects[kind, "kube-tls-proxy"]
            self.assertEqual(objects, base, overlay)


if __name__ == "__main__":
    unittest.main()
