"""The chart renders the same objects as the kustomization, and rejects values that cannot work."""

import copy
import json
import math
import os
import re
import subprocess
import textwrap
import unittest

import yaml

import chart_files
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
        if kind == "ConfigMap":
            each["data"] = {name: yaml.safe_load(text) for name, text in each["data"].items()}
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


def permissions(rules):
    """Each single permission of a role, in whatever rules it is written."""
    found = set()
    for rule in rules:
        places = [(group, name) for group in rule.get("apiGroups", []) for name in rule.get("resources", [])]
        places += [("url", url) for url in rule.get("nonResourceURLs", [])]
        names = tuple(rule.get("resourceNames", []))
        found |= {(place, names, verb) for place in places for verb in rule["verbs"]}
    return found


def pod_of(objects):
    return objects["Deployment", "kube-tls-proxy"]["spec"]["template"]["spec"]


DISCOVERY = ["discovery.enabled=true", "serviceAccount.create=true"]
# Settings that let the proxy impersonate users with client certificates.
IMPERSONATION = [
    'clientCertificates.ca.configMap="client-ca"',
    "clientCertificates.impersonate.enabled=true",
    'clientCertificates.impersonate.groups=["developers"]',
    "serviceAccount.create=true",
]

# Settings that create every object that the chart can create.
EVERYTHING = [
    "serviceMonitor.enabled=true",
    "prometheusRule.enabled=true",
    "dashboard.enabled=true",
    "certificate.enabled=true",
    'certificate.dnsNames=["kube.example.com"]',
    "tlsRoute.enabled=true",
    'tlsRoute.parentRefs=[{"name": "public"}]',
    "serviceAccount.create=true",
    'config={"limits": {"headerFields": 256}}',
    'extraObjects=[{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine"}}]',
]


OWN_SECTION = '{"ca": "/a", "frontProxy": {"certificate": "/b", "key": "/c"}}'
CLIENT_CERTIFICATES = [
    'clientCertificates.ca.configMap="client-ca"',
    'clientCertificates.frontProxy.secret="front-proxy"',
]


def config_of(objects):
    """The configuration file in the ConfigMap of the release."""
    return yaml.safe_load(objects["ConfigMap", "kube-tls-proxy"]["data"]["kube-tls-proxy.yaml"])


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

    def test_client_certificates_render_their_overlay(self):
        wanted = comparable(rendered.kustomize("overlays/client-certificates"))
        del wanted["Namespace", "kube-tls-proxy"]
        self.assertEqual(comparable(rendered.chart(*CLIENT_CERTIFICATES)), wanted)

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

    def test_configuration_is_mounted_at_the_path_of_the_variable(self):
        objects = rendered.chart('config={"limits": {"headerFields": 256}}')
        self.assertEqual(
            objects["ConfigMap", "kube-tls-proxy"]["data"], {"kube-tls-proxy.yaml": "limits:\n  headerFields: 256\n"}
        )
        pod = pod_of(objects)
        (container,) = pod["containers"]
        (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == "config"]
        self.assertEqual(rendered.environment(container)["KUBE_TLS_PROXY_CONFIG"], f"{mount['mountPath']}/kube-tls-proxy.yaml")
        self.assertIn({"name": "config", "configMap": {"name": "kube-tls-proxy"}}, pod["volumes"])

    def test_ipv6_false_changes_only_the_listen_addresses(self):
        def environment(*settings):
            return rendered.environment(pod_of(rendered.chart(*settings))["containers"][0])

        with_ipv6, without = environment(), environment("ipv6=false")
        changed = {name: value for name, value in without.items() if with_ipv6.get(name) != value}
        wanted = {"KUBE_TLS_PROXY_LISTEN": "0.0.0.0:8443", "KUBE_TLS_PROXY_ADMIN_LISTEN": "0.0.0.0:9090"}
        self.assertEqual(changed, wanted)

    def test_load_balancers_and_proxies_in_front_are_variables(self):
        def environment(*settings):
            return rendered.environment(pod_of(rendered.chart(*settings))["containers"][0])

        balancers, proxies = '["10.0.0.0/24", "fd00::/64"]', '["10.1.0.0/24"]'
        plain, changed = environment(), environment(f"proxyProtocol.from={balancers}", f"trustedProxies={proxies}")
        more = {name: value for name, value in changed.items() if plain.get(name) != value}
        wanted = {
            "KUBE_TLS_PROXY_PROXY_PROTOCOL_FROM": "10.0.0.0/24,fd00::/64",
            "KUBE_TLS_PROXY_TRUSTED_PROXIES": "10.1.0.0/24",
        }
        self.assertEqual(more, wanted)

    def test_address_lists_are_an_entry_of_listen(self):
        lists = {"allow": ["203.0.113.0/24", "2001:db8::/32"], "deny": ["203.0.113.66"]}
        for ipv6, address in [("true", "[::]:8443"), ("false", "0.0.0.0:8443")]:
            objects = rendered.chart(f"listen={json.dumps(lists)}", f"ipv6={ipv6}")
            self.assertEqual(config_of(objects), {"listen": [{"address": address} | lists]})
            # The proxy refuses a flag or variable that would open the port beside the lists.
            environment = rendered.environment(pod_of(objects)["containers"][0])
            self.assertNotIn("KUBE_TLS_PROXY_LISTEN", environment)
            self.assertIn("KUBE_TLS_PROXY_CONFIG", environment)

    def test_pods_do_not_restart_for_a_change_of_the_address_lists(self):
        def template(deny):
            objects = rendered.chart(f"listen.deny={json.dumps(deny)}", 'config={"limits": {"headerFields": 256}}')
            return objects["Deployment", "kube-tls-proxy"]["spec"]["template"]

        self.assertEqual(template(["192.0.2.1"]), template(["192.0.2.2", "192.0.2.3"]))

    def test_client_certificates_have_their_files_mounted(self):
        objects = rendered.chart(
            'clientCertificates.ca={"secret": "users", "key": "tls.crt"}',
            'clientCertificates.crl={"configMap": "123", "key": "users.crl"}',
            'clientCertificates.frontProxy.secret="front-proxy"',
            "clientCertificates.allowSystem=true",
        )
        pod = pod_of(objects)
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        (cluster,) = config_of(objects)["clusters"]
        ca, crl, own = (mounts[f"client-certificates-{name}"] for name in ("ca", "crl", "front-proxy"))
        self.assertEqual(
            cluster["clientCertificates"],
            {
                "ca": f"{ca}/tls.crt",
                "crl": f"{crl}/users.crl",
                "frontProxy": {"certificate": f"{own}/tls.crt", "key": f"{own}/tls.key"},
                "allowSystem": True,
            },
        )
        # A path below a volume (`subPath`) would never change, and a Secret of a CA may have its private key.
        self.assertFalse([mount for mount in pod["containers"][0]["volumeMounts"] if "subPath" in mount])
        volumes = {volume["name"].removeprefix("client-certificates-"): volume for volume in pod["volumes"]}
        items = {"items": [{"key": "tls.crt", "path": "tls.crt"}]}
        self.assertEqual(volumes["ca"]["secret"], {"secretName": "users", "defaultMode": 0o440} | items)
        items = {"items": [{"key": "users.crl", "path": "users.crl"}]}
        self.assertEqual(volumes["crl"]["configMap"], {"name": "123"} | items)
        self.assertEqual(volumes["front-proxy"]["secret"], {"secretName": "front-proxy", "defaultMode": 0o440})

    def test_client_certificates_are_for_the_cluster_of_the_pod_alone(self):
        clusters = [
            {"name": "here", "inCluster": True, "hosts": ["a.example.com"], "access": [{"allow": {}}]},
            {"name": "direct", "inCluster": True, "passthrough": True, "hosts": ["kubernetes"]},
            {"name": "other", "hosts": ["b.example.com"], "kubeconfig": "/other/config"},
        ]
        objects = rendered.chart(f'config={{"clusters": {json.dumps(clusters)}}}', *CLIENT_CERTIFICATES)
        here, *others = config_of(objects)["clusters"]
        self.assertIn("frontProxy", here.pop("clientCertificates"))
        self.assertEqual([here, *others], clusters)

    def test_values_of_the_guides_install_what_they_translate(self):
        for guide in ["from-contour", "from-ingress-nginx"]:
            page = (rendered.ROOT / f"docs/{guide}.md").read_text()
            result, values = [
                yaml.safe_load(textwrap.dedent(re.search(rf"^    {key}:\n(?:    .+\n)+", page, re.MULTILINE).group()))
                for key in ["certificates", "config"]
            ]
            objects = rendered.chart(*[f"{key}={json.dumps(value)}" for key, value in values.items()])
            clusters = config_of(objects)["clusters"]
            self.assertEqual(clusters, values["config"]["clusters"])
            (container,) = pod_of(objects)["containers"]
            folders = [mount["mountPath"] for mount in container["volumeMounts"]]
            for cluster in clusters:
                if "upstream" in cluster:
                    self.assertIn(os.path.dirname(cluster["upstream"]["ca"]), folders, guide)
                else:
                    self.assertEqual(clusters, result["clusters"], guide)

    def test_pods_do_not_restart_for_a_change_of_the_configuration(self):
        def template(config):
            return rendered.chart(f"config={config}")["Deployment", "kube-tls-proxy"]["spec"]["template"]

        before = template('{"limits": {"headerFields": 100}, "clusters": [{"name": "a"}]}')
        self.assertEqual(template('{"limits": {"headerFields": 200}, "clusters": [{"name": "b"}]}'), before)
        self.assertEqual(template('{"timeouts": {"clientIdle": "80s"}, "log": {"filter": "debug"}}'), before)

    def test_cluster_files_are_mounted_as_their_directory(self):
        section = 'config={"clustersFrom": {"directory": "/etc/kube-tls-proxy/clusters.d", "hostTemplate": "{name}.example"}}'
        for setting, volume in [
            ('clusterFiles.secretName="clusters"', {"name": "clusters", "secret": {"secretName": "clusters", "defaultMode": 0o440}}),
            ('clusterFiles.configMapName="clusters"', {"name": "clusters", "configMap": {"name": "clusters"}}),
        ]:
            pod = rendered.chart(section, setting)["Deployment", "kube-tls-proxy"]["spec"]["template"]["spec"]
            self.assertIn(volume, pod["volumes"])
            mount = {"name": "clusters", "mountPath": "/etc/kube-tls-proxy/clusters.d", "readOnly": True}
            self.assertIn(mount, pod["containers"][0]["volumeMounts"])

    def test_digest_overrides_tag(self):
        digest = "sha256:" + "0" * 64
        for settings, image in [
            ([], "kube-tls-proxy:" + rendered.read("config/helm/kube-tls-proxy/Chart.yaml")["appVersion"]),
            (['image.tag="2"'], "kube-tls-proxy:2"),
            (['image.tag="2"', f'image.digest="{digest}"'], f"kube-tls-proxy@{digest}"),
        ]:
            pod = rendered.chart(*settings)["Deployment", "kube-tls-proxy"]["spec"]["template"]["spec"]
            self.assertEqual(pod["containers"][0]["image"], image)

    def test_values_reach_the_pod(self):
        pod = pod_of(
            rendered.chart(
                'initContainers=[{"name": "first"}]',
                'extraContainers=[{"name": "beside"}]',
                'extraEnv=[{"name": "KUBE_TLS_PROXY_HOST", "value": "kube.example.com"}]',
                'extraArgs=["--no-access-log"]',
                "podSecurityContext.runAsUser=null",
                "securityContext.readOnlyRootFilesystem=false",
                'dnsConfig={"options": [{"name": "ndots", "value": "1"}]}',
            )
        )
        self.assertEqual(pod["initContainers"], [{"name": "first"}])
        self.assertEqual([container["name"] for container in pod["containers"]], ["kube-tls-proxy", "beside"])
        container = pod["containers"][0]
        self.assertEqual(rendered.environment(container)["KUBE_TLS_PROXY_HOST"], "kube.example.com")
        self.assertEqual(container["args"], ["serve", "--no-access-log"])
        self.assertNotIn("runAsUser", pod["securityContext"])
        self.assertIs(pod["securityContext"]["runAsNonRoot"], True)
        self.assertIs(container["securityContext"]["readOnlyRootFilesystem"], False)
        self.assertEqual(container["securityContext"]["capabilities"], {"drop": ["ALL"]})
        self.assertEqual(pod["dnsConfig"], {"options": [{"name": "ndots", "value": "1"}]})

    def test_host_network_keeps_names_of_the_cluster(self):
        for settings, policy in [([], "ClusterFirstWithHostNet"), (['dnsPolicy="Default"'], "Default")]:
            pod = pod_of(rendered.chart("hostNetwork=true", *settings))
            self.assertEqual((pod["hostNetwork"], pod["dnsPolicy"]), (True, policy))
        self.assertFalse({"hostNetwork", "dnsPolicy"} & pod_of(rendered.chart()).keys())

    def test_update_strategy_can_be_replaced(self):
        def strategy(*settings):
            return rendered.chart(*settings)["Deployment", "kube-tls-proxy"]["spec"]["strategy"]

        recreate = strategy('updateStrategy={"type": "Recreate", "rollingUpdate": null}')
        self.assertEqual(recreate, {"type": "Recreate"})
        self.assertEqual(strategy("updateStrategy.rollingUpdate.maxSurge=3")["rollingUpdate"], {"maxUnavailable": 0, "maxSurge": 3})

    def test_spread_constraint_selects_the_pods_unless_it_says_otherwise(self):
        own = {"matchLabels": {"app": "other"}}
        constraints = [{"maxSkew": 2, "topologyKey": "rack"}, {"maxSkew": 1, "topologyKey": "row", "labelSelector": own}]
        objects = rendered.chart(f"topologySpreadConstraints={json.dumps(constraints)}")
        first, second = pod_of(objects)["topologySpreadConstraints"]
        labels = objects["Deployment", "kube-tls-proxy"]["spec"]["selector"]
        self.assertEqual(first, {"maxSkew": 2, "topologyKey": "rack", "labelSelector": labels})
        self.assertEqual(second["labelSelector"], own)
        self.assertNotIn("topologySpreadConstraints", pod_of(rendered.chart("topologySpreadConstraints=[]")))

    def test_service_values_reach_the_service(self):
        objects = rendered.chart(
            "service.nodePort=30443",
            'service.loadBalancerIP="192.0.2.7"',
            'service.labels={"team": "platform"}',
            'service.ipFamilyPolicy="PreferDualStack"',
            'service.ipFamilies=["IPv6", "IPv4"]',
        )
        service = objects["Service", "kube-tls-proxy"]
        self.assertEqual(service["metadata"]["labels"]["team"], "platform")
        self.assertNotIn("team", objects["Service", "kube-tls-proxy-metrics"]["metadata"]["labels"])
        spec = service["spec"]
        self.assertEqual(spec["ports"], [{"name": "https", "port": 443, "targetPort": "https", "nodePort": 30443}])
        self.assertEqual(spec["loadBalancerIP"], "192.0.2.7")
        self.assertEqual((spec["ipFamilyPolicy"], spec["ipFamilies"]), ("PreferDualStack", ["IPv6", "IPv4"]))

    def test_service_account_has_no_token(self):
        objects = rendered.chart("serviceAccount.create=true", 'serviceAccount.annotations={"a": "b"}')
        account = objects["ServiceAccount", "kube-tls-proxy"]
        self.assertIs(account["automountServiceAccountToken"], False)
        self.assertEqual(account["metadata"]["annotations"], {"a": "b"})
        self.assertEqual(pod_of(objects)["serviceAccountName"], "kube-tls-proxy")
        self.assertEqual(pod_of(rendered.chart('serviceAccount.name="mine"'))["serviceAccountName"], "mine")

    def test_impersonation_renders_the_overlay(self):
        wanted = comparable(rendered.kustomize("overlays/impersonation"))
        del wanted["Namespace", "kube-tls-proxy"]
        objects = comparable(rendered.chart(*IMPERSONATION))
        # The names are of one release in one namespace, because roles have no namespace.
        name = "kube-tls-proxy-kube-tls-proxy-impersonation"
        for kind in ("ClusterRole", "ClusterRoleBinding"):
            wanted[kind, name] = wanted.pop((kind, "kube-tls-proxy-impersonation"))
            wanted[kind, name]["metadata"]["name"] = name
        wanted["ClusterRoleBinding", name]["roleRef"]["name"] = name
        roles = [objects.pop(("ClusterRole", name)), wanted.pop(("ClusterRole", name))]
        self.assertEqual(*[permissions(role["rules"]) for role in roles])
        self.assertEqual(objects, wanted)

    def test_discovery_renders_the_overlay(self):
        wanted = comparable(rendered.kustomize("overlays/discovery"))
        del wanted["Namespace", "kube-tls-proxy"]
        objects = comparable(rendered.chart(*DISCOVERY))
        name = "kube-tls-proxy-kube-tls-proxy-discovery"
        for kind in ("Role", "RoleBinding"):
            wanted[kind, name] = wanted.pop((kind, "kube-tls-proxy-discovery"))
            wanted[kind, name]["metadata"]["name"] = name
        wanted["RoleBinding", name]["roleRef"]["name"] = name
        self.assertEqual(objects, wanted)

    def test_discovery_is_for_the_cluster_of_the_pods(self):
        clusters = [{"name": "a", "inCluster": True, "hosts": ["a.test"]}, {"name": "b", "kubeconfig": "/b", "hosts": ["b.test"]}]
        objects = rendered.chart(*DISCOVERY, f'config={{"clusters": {json.dumps(clusters)}}}')
        first, second = config_of(objects)["clusters"]
        self.assertEqual(first["inCluster"], {"discover": "endpoints"})
        self.assertEqual(second, clusters[1])

    def test_older_impersonation_is_the_older_role(self):
        (document, _) = yaml.safe_load_all((rendered.KUBERNETES / "components/impersonation/older-role.yaml").read_text())
        settings = [*IMPERSONATION, "clientCertificates.impersonate.older=true"]
        name = "kube-tls-proxy-kube-tls-proxy-impersonation"
        role = rendered.chart(*settings)["ClusterRole", name]
        self.assertEqual(permissions(role["rules"]), permissions(document["rules"]))
        role = rendered.chart(*settings, 'clientCertificates.impersonate.groups=["*"]')["ClusterRole", name]
        groups = [rule for rule in role["rules"] if rule.get("resources") == ["groups"]]
        self.assertEqual(groups, [{"apiGroups": [""], "resources": ["groups"], "verbs": ["impersonate"]}])

    def test_common_labels_are_everywhere_but_in_selectors(self):
        settings = ["commonLabels.team=\"platform\"", *EVERYTHING]
        objects = rendered.chart(*settings)
        for key, each in objects.items():
            if key != ("ConfigMap", "mine"):
                self.assertEqual(each["metadata"]["labels"].get("team"), "platform", key)
        deployment = objects["Deployment", "kube-tls-proxy"]["spec"]
        self.assertEqual(deployment["template"]["metadata"]["labels"]["team"], "platform")
        self.assertNotIn("team", json.dumps(deployment["selector"]))
        self.assertNotIn("team", json.dumps(objects["Service", "kube-tls-proxy"]["spec"]))

    def test_certificate_has_its_duration(self):
        objects = rendered.chart(
            "certificate.enabled=true",
            'certificate.dnsNames=["kube.example.com"]',
            'certificate.duration="2160h"',
            'certificate.renewBefore="720h"',
        )
        spec = objects["Certificate", "kube-tls-proxy"]["spec"]
        self.assertEqual((spec["duration"], spec["renewBefore"]), ("2160h", "720h"))

    def test_network_policy_has_the_extra_rules(self):
        rule = {"ports": [{"protocol": "UDP", "port": 5353}]}
        default = rendered.chart()["NetworkPolicy", "kube-tls-proxy"]["spec"]
        for direction in ("ingress", "egress"):
            setting = f"networkPolicy.extra{direction.capitalize()}={json.dumps([rule])}"
            policy = rendered.chart(setting)["NetworkPolicy", "kube-tls-proxy"]["spec"]
            self.assertEqual(policy[direction], [*default[direction], rule])

    def test_operator_gets_scrape_settings_alerts_and_dashboard(self):
        rules = yaml.safe_load((rendered.ROOT / "config/prometheus/rules.yaml").read_text())
        board = (rendered.ROOT / "config/grafana/kube-tls-proxy.json").read_text()
        relabeling = {"targetLabel": "cluster", "replacement": "prod"}
        objects = rendered.chart(
            "serviceMonitor.enabled=true",
            'serviceMonitor.scrapeTimeout="5s"',
            f"serviceMonitor.relabelings={json.dumps([relabeling])}",
            "prometheusRule.enabled=true",
            'prometheusRule.labels={"release": "prometheus"}',
            "dashboard.enabled=true",
        )
        (endpoint,) = objects["ServiceMonitor", "kube-tls-proxy"]["spec"]["endpoints"]
        self.assertEqual((endpoint["scrapeTimeout"], endpoint["relabelings"]), ("5s", [relabeling]))
        rule = objects["PrometheusRule", "kube-tls-proxy"]
        self.assertEqual(rule["spec"], rules)
        self.assertEqual(rule["metadata"]["labels"]["release"], "prometheus")
        dashboard = objects["ConfigMap", "kube-tls-proxy-dashboard"]
        self.assertEqual(dashboard["data"], {"kube-tls-proxy.json": board})
        self.assertEqual(dashboard["metadata"]["labels"]["grafana_dashboard"], "1")

    def test_tls_route_leads_to_the_public_service(self):
        parents = [{"name": "public", "namespace": "gateways", "sectionName": "tls"}]
        settings = ["tlsRoute.enabled=true", f"tlsRoute.parentRefs={json.dumps(parents)}", 'service.type="ClusterIP"']
        for names in ('tlsRoute.hostnames=["kube.example.com"]', 'certificate.dnsNames=["kube.example.com"]'):
            objects = rendered.chart(*settings, names)
            route = objects["TLSRoute", "kube-tls-proxy"]
            self.assertEqual(route["apiVersion"], "gateway.networking.k8s.io/v1")
            spec = route["spec"]
            self.assertEqual((spec["parentRefs"], spec["hostnames"]), (parents, ["kube.example.com"]))
            self.assertEqual(spec["rules"], [{"backendRefs": [{"name": "kube-tls-proxy", "port": 443}]}])

    def test_extra_objects_are_objects_or_templates(self):
        plain = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "plain"}}
        text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: '{{ .Release.Name }}-made'}"
        objects = rendered.chart(f"extraObjects={json.dumps([plain, text])}", release="one")
        self.assertEqual(objects["ConfigMap", "plain"], plain)
        self.assertIn(("ConfigMap", "one-made"), objects)

    def test_grace_period_follows_the_drain(self):
        defaults = {key: rendered.default_seconds(key) for key in ("drainDelay", "drain", "drainTunnels")}
        for timeouts in ({}, {"drainTunnels": "1h30m"}, {"drain": "2m"}, {"drainDelay": "1500ms", "drainTunnels": "0s"}):
            spec = pod_of(rendered.chart(f'config={{"timeouts": {json.dumps(timeouts)}}}'))
            times = defaults | {key: rendered.seconds(value) for key, value in timeouts.items()}
            takes = math.ceil(times["drainDelay"] + max(times["drain"], times["drainTunnels"]))
            self.assertEqual(spec["terminationGracePeriodSeconds"], takes + 10, timeouts)
        self.assertEqual(pod_of(rendered.chart("terminationGracePeriodSeconds=90"))["terminationGracePeriodSeconds"], 90)
        given = ["terminationGracePeriodSeconds=90", 'extraArgs=["--drain-delay=9s"]']
        self.assertEqual(pod_of(rendered.chart(*given))["terminationGracePeriodSeconds"], 90)

    def test_invalid_values_are_rejected(self):
        for setting, where in [
            ("workers=0", "/workers"),
            ('workers="2"', "/workers"),
            ("worker=2", "worker"),
            ('image={"name": "x"}', "/image"),
            ('image.repository="registry.example.com/kube-tls-proxy:1"', "/image/repository"),
            ('image.digest="sha256:12"', "/image/digest"),
            ('logFormat="xml"', "/logFormat"),
            ("certificate.enabled=true", "/certificate/dnsNames"),
            ('certificate.duration="90d"', "/certificate/duration"),
            ('service.type="ExternalName"', "/service/type"),
            ("admin.port=8443", "/admin/port"),
            ("networkPolicy.monitoringNamespace=null", "/networkPolicy"),
            ('podDisruptionBudget.maxUnavailable="0%"', "/podDisruptionBudget/maxUnavailable"),
            ('serviceMonitor.interval="often"', "/serviceMonitor/interval"),
            ('dnsPolicy="Cluster"', "/dnsPolicy"),
            ('commonLabels={"app.kubernetes.io/name": "x"}', "app.kubernetes.io/name"),
            # The schema of the configuration file.
            ('config={"limits": {"conections": 5}}', "conections"),
            ('config={"limits": {"connections": "many"}}', "/config/limits"),
            ('config={"timeouts": {"drain": 5}}', "/config/timeouts"),
            ('config={"timeouts": {"drain": "5"}}', "/config/timeouts"),
            ('config={"clusters": [{"name": "a", "upstream": {"url": "http://a"}}]}', "/config/clusters/0"),
            ('config={"log": {"acces": false}}', "acces"),
            ('listen.allow=["everyone"]', "/listen/allow/0"),
            ('clientCertificates.ca.key="a/b"', "/clientCertificates/ca/key"),
            ('clientCertificates.frontProxy.secret="Front"', "/clientCertificates/frontProxy/secret"),
        ]:
            error = rendered.values_error(setting)
            self.assertIsNotNone(error, f"helm accepted {setting}")
            self.assertIn(where, error, setting)

    def test_contradictions_are_rejected_with_the_fix(self):
        for settings, sentence in [
            (["replicaCount=3"], "replicaCount: this chart calls it `replicas`"),
            (['existingSecret="x"'], "existingSecret: this chart calls it `tls.secretName`"),
            (['tls.existingSecret="x"'], "tls.existingSecret: this chart calls it `tls.secretName`"),
            (['image.registry="r"'], "image.registry: write the registry into `image.repository`"),
            (["ingress.enabled=true"], "docs/from-contour.md"),
            (['config={"listen": [":1"]}'], "config.listen: the chart sets it"),
            (['config={"log": {"format": "text"}}'], "config.log.format: the chart sets it: use `logFormat`"),
            (["autoscaling.minReplicas=11"], "autoscaling.minReplicas: 11 is more than autoscaling.maxReplicas, which is 10"),
            (["terminationGracePeriodSeconds=30"], "30 is too short, because the drain takes 65 seconds"),
            (['config={"timeouts": {"drainDelay": "30s"}}', "terminationGracePeriodSeconds=75"], "set it to 95 or more"),
            (['extraArgs=["--drain-tunnels=5m"]'], "extraArgs: write --drain-tunnels as a key of config.timeouts"),
            (['extraEnv=[{"name": "KUBE_TLS_PROXY_DRAIN_DELAY", "value": "9s"}]'], "extraEnv: write KUBE_TLS_PROXY_DRAIN_DELAY"),
            (["service.nodePort=30443", 'service.type="ClusterIP"'], "service.nodePort: "),
            (['service.loadBalancerIP="192.0.2.7"', 'service.type="NodePort"'], "service.loadBalancerIP: "),
            (['clusterFiles.secretName="a"'], "clusterFiles: the proxy reads these files only with config.clustersFrom"),
            (['clusterFiles={"secretName": "a", "configMapName": "b"}'], "clusterFiles: secretName and configMapName exclude"),
            (["tlsRoute.enabled=true"], "tlsRoute.parentRefs: name the Gateway"),
            (["listen.allow=[]"], "listen.allow: the list is empty, so no client would be served"),
            (['clientCertificates.frontProxy.secret="f"'], "clientCertificates.ca: name the ConfigMap or Secret"),
            (["clientCertificates.allowSystem=true"], "clientCertificates.ca: name the ConfigMap or Secret"),
            (['clientCertificates.ca.configMap="c"'], "clientCertificates.frontProxy.secret: name the Secret"),
            (['clientCertificates.ca={"configMap": "c", "secret": "s"}'], "clientCertificates.ca: give one of"),
            (['clientCertificates.ca.secret="f"', 'clientCertificates.frontProxy.secret="f"'], "a ConfigMap or Secret of its own"),
            ([*CLIENT_CERTIFICATES, 'config={"clusters": [{"name": "a"}]}'], "no cluster in config.clusters has `inCluster: true`"),
            (
                [*CLIENT_CERTIFICATES, 'config={"clusters": [{"name": "a", "inCluster": true, "clientCertificates": %s}]}' % OWN_SECTION],
                "the cluster a in config.clusters has this section too",
            ),
            (
                [*CLIENT_CERTIFICATES, 'extraEnv=[{"name": "KUBE_TLS_PROXY_UPSTREAM_NAME", "value": "x"}]'],
                "clientCertificates: --upstream-name does not go together with it",
            ),
            ([*CLIENT_CERTIFICATES, 'extraArgs=["--host=a.example.com"]'], "clientCertificates: --host does not go together"),
            ([*IMPERSONATION[1:]], "clientCertificates.ca: name the ConfigMap or Secret"),
            ([*IMPERSONATION, 'clientCertificates.frontProxy.secret="f"'], "give one of `frontProxy.secret` and `impersonate.enabled`"),
            ([*IMPERSONATION, "serviceAccount.create=false"], "set serviceAccount.create"),
            ([*IMPERSONATION, "clientCertificates.impersonate.groups=[]"], "impersonate.groups: name the groups"),
            (["discovery.enabled=true"], "discovery: the service account `default` is for every pod"),
            ([*DISCOVERY, 'config={"clusters": [{"name": "a", "kubeconfig": "/a"}]}'], "discovery: no cluster in config.clusters"),
            ([*DISCOVERY, 'extraArgs=["--upstream=https://a"]'], "discovery: --upstream does not go together"),
            (
                ['config={"clusters": [{"name": "a", "inCluster": {"discover": "endpoints"}}]}'],
                "the cluster a has keys in `inCluster`; write `inCluster: true`, and set discovery.enabled",
            ),
            (["tlsRoute.enabled=true", 'tlsRoute.parentRefs=[{"name": "g"}]'], "tlsRoute.hostnames: "),
        ]:
            error = rendered.values_error(*settings)
            self.assertIsNotNone(error, f"helm accepted {settings}")
            self.assertIn(sentence, error, settings)

    def test_values_and_schema_have_the_same_keys(self):
        values = rendered.read("config/helm/kube-tls-proxy/values.yaml")
        schema = rendered.read("config/helm/kube-tls-proxy/values.schema.json")

        def compare(value, schema, path):
            if schema.get("additionalProperties") is False and path != "/config":
                hints = {key for key, about in schema["properties"].items() if about.get("description", "").startswith("Not a value")}
                self.assertEqual(set(value) | ({"global"} if not path else set()), set(schema["properties"]) - hints, path)
                for key in value:
                    compare(value[key], schema["properties"][key], f"{path}/{key}")

        compare(values, schema, "")

    def test_copies_and_table_of_values_are_current(self):
        for path, text in chart_files.current().items():
            self.assertEqual(path.read_text(), text, f"{path.name} is stale: UPDATE=1 python3 tests/packaging/test_chart.py")

    def test_chart_version_equals_proxy_version(self):
        manifest = (rendered.ROOT / "Cargo.toml").read_text()
        chart = rendered.read("config/helm/kube-tls-proxy/Chart.yaml")
        self.assertIn(f'\nversion = "{chart["appVersion"]}"\n', manifest)
        self.assertEqual(chart["version"], chart["appVersion"])


if __name__ == "__main__":
    if os.environ.get("UPDATE") == "1":
        chart_files.write()
    else:
        unittest.main()
