"""The dashboard and the alerts use only existing metrics and labels, and promtool accepts them."""

import json
import pathlib
import re
import subprocess
import tempfile
import unittest

import yaml

import rendered
import stage

RULES = rendered.ROOT / "config/prometheus/rules.yaml"
DASHBOARD = rendered.ROOT / "config/grafana/kube-tls-proxy.json"

# Labels that Prometheus adds, and the label of histogram buckets.
EVERYWHERE = {"job", "instance", "le"}

# Labels whose values are all listed in docs/metrics.md.
FIXED = {"from", "limit", "protocol", "reason", "result", "verb"}


def documented():
    """Every metric of docs/metrics.md with its labels and their listed values."""
    text = (rendered.ROOT / "docs/metrics.md").read_text()
    found = {}
    for line in text.splitlines():
        name = re.fullmatch(r"### `([a-z_]+)`", line)
        label = re.fullmatch(r"\| `([a-z_]+)` \| (.*) \|", line)
        if name:
            labels = found[name.group(1)] = {}
        elif label:
            labels[label.group(1)] = set(re.findall(r"`([^`]+)`", label.group(2)))
    return found


def alerts():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def dashboard_expressions():
    dashboard = json.loads(DASHBOARD.read_text())
    found = {f"{panel['title']} {each['refId']}": each["expr"] for panel in panels(dashboard) for each in panel["targets"]}
    found |= {each["name"]: each["expr"] for each in dashboard["annotations"]["list"]}
    found |= {each["name"]: each["definition"] for each in dashboard["templating"]["list"] if each["type"] == "query"}
    return found


def series(expression):
    """The metrics in an expression, each with its selectors: label and value, which may be a pattern."""
    found = re.findall(r"\b((?:kube_tls_proxy|process)_[a-z_]+)(?:\{([^}]*)\})?", expression)
    return [(name, re.findall(r'([a-z_]+)\s*[=!]~?\s*"([^"]*)"', selector)) for name, selector in found]


def family(name):
    return re.sub(r"_(bucket|sum|count)$", "", name)


class Names(unittest.TestCase):
    def expressions(self):
        found = {rule["alert"]: rule["expr"] for rule in alerts()} | dashboard_expressions()
        self.assertGreater(len(found), 40)
        return found

    def test_every_metric_exists(self):
        known = documented()
        self.assertGreater(len(known), 20, "docs/metrics.md has no table of metrics")
        for where, expression in self.expressions().items():
            used = series(expression)
            self.assertTrue(used, f"{where} uses no metric: {expression}")
            for name, _ in used:
                self.assertIn(family(name), known, where)

    def test_every_label_and_every_value_exists(self):
        known = documented()
        checked = 0
        for where, expression in self.expressions().items():
            used = series(expression)
            for name, selectors in used:
                labels = known.get(family(name), {})
                for label, value in selectors:
                    self.assertIn(label, labels.keys() | EVERYWHERE, f"{where}: {name}")
                    # A code can have any digits, a cluster any name.
                    if label in FIXED:
                        checked += 1
                        self.assertLessEqual(set(value.split("|")), labels[label], f"{where}: {name}")
            # The labels of `by` and `on` must exist on one of the metrics in the expression.
            beside = EVERYWHERE.union(*(known.get(family(name), {}) for name, _ in used))
            for names in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
                self.assertLessEqual(set(re.split(r",\s*", names)), beside, where)
        self.assertGreater(checked, 5)

    def test_troubleshooting_names_only_what_exists(self):
        page = (rendered.ROOT / "docs/troubleshooting.md").read_text()
        metrics = set(re.findall(r"\b(?:kube_tls_proxy|process)_[a-z_]+", page))
        self.assertGreater(len(metrics), 8)
        self.assertEqual({name for name in metrics if family(name) not in documented()}, set())
        alerts_named = set(re.findall(r"\bKubeTlsProxy\w+", page))
        self.assertGreater(len(alerts_named), 1)
        self.assertLessEqual(alerts_named, {rule["alert"] for rule in alerts()})
        source = "".join(file.read_text() for file in (rendered.ROOT / "src").rglob("*.rs"))
        lines = set(re.findall(r"(?:[Ll]og:|[Ll]og line|log says) `([a-z ]+)`", page))
        self.assertGreater(len(lines), 5)
        for line in lines:
            self.assertIn(line, source)
        keys = set(re.findall(r"`([a-z_]+\.[a-z_.]+|ended_by|reason|outcome|time_to_headers_seconds|suppressed_lines)`", page))
        documented_keys = (rendered.ROOT / "docs/configuration.md").read_text()
        for key in keys - {"image.digest"}:
            self.assertIn(key, documented_keys)

    def test_metrics_that_need_action_have_an_alert(self):
        used = {family(name) for rule in alerts() for name, _ in series(rule["expr"])}
        for metric in (
            "certificate_not_after_timestamp_seconds",
            "ca_not_after_timestamp_seconds",
            "ca_not_before_timestamp_seconds",
            "certificate_not_before_timestamp_seconds",
            "front_proxy_certificate_not_after_timestamp_seconds",
            "client_ca_not_after_timestamp_seconds",
            "revocation_list_next_update_timestamp_seconds",
            "last_reload_successful",
            "endpoint_healthy",
            "errors_total",
            "handshakes_total",
            "requests_in_flight",
            "request_time_to_headers_seconds",
            "connections_limit",
            "limits_hit_total",
            "log_lines_dropped_total",
            "upstream_dials_total",
        ):
            self.assertIn(f"kube_tls_proxy_{metric}", used)

    def test_every_metric_is_on_the_dashboard(self):
        used = {family(name) for expression in dashboard_expressions().values() for name, _ in series(expression)}
        self.assertEqual(set(documented()) - used, set())

    def test_every_alert_has_a_runbook(self):
        for rule in alerts():
            self.assertIn(rule["labels"]["severity"], ("critical", "warning"), rule["alert"])
            for text in ("summary", "description", "runbook"):
                self.assertRegex(rule["annotations"][text], r"^\S.*[.]$", rule["alert"])
            self.assertGreater(len(rule["annotations"]["runbook"]), 100, rule["alert"])

    def test_every_alert_is_tested(self):
        tests = (rendered.ROOT / "config/prometheus/rules.test.yaml").read_text()
        for rule in alerts():
            self.assertIn(f'alertname="{rule["alert"]}"', tests)


class Dashboard(unittest.TestCase):
    def test_panels_do_not_overlap(self):
        dashboard = json.loads(DASHBOARD.read_text())
        occupied = {}
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            self.assertLessEqual(place["x"] + place["w"], 24, panel["title"])
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    self.assertNotIn((x, y), occupied, f"{panel['title']} and {occupied.get((x, y))}")
                    occupied[x, y] = panel["title"]
        ids = [panel["id"] for panel in dashboard["panels"]]
        self.assertEqual(len(ids), len(set(ids)))

    def test_queries_use_the_chosen_prometheus_proxies_and_clusters(self):
        known = documented()
        for panel in panels(json.loads(DASHBOARD.read_text())):
            self.assertEqual(panel["datasource"]["uid"], "${datasource}", panel["title"])
            for target in panel["targets"]:
                for name, selectors in series(target["expr"]):
                    chosen = {("job", "$job"), ("instance", "$instance")}
                    if "cluster" in known.get(family(name), {}):
                        chosen.add(("cluster", "$cluster"))
                    self.assertLessEqual(chosen, set(selectors), f"{panel['title']}: {name}")

    def test_promtool_accepts_every_expression(self):
        rules = [
            {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m")}
            for number, (_, expression) in enumerate(dashboard_expressions().items())
            if not expression.startswith("label_values(")
        ]
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "dashboard.yaml"
            file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
            promtool("check", "rules", file)


class Exposition(unittest.TestCase):
    def test_promtool_accepts_the_metrics_of_a_running_proxy(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            for name, host in [("cluster", "kubernetes"), ("public", "localhost")]:
                stage.make_certificates(folder, name, host)
            text = metrics_of_proxy(folder)
        self.assertIn("# TYPE kube_tls_proxy_build_info gauge", text)
        self.assertIn('kube_tls_proxy_errors_total{cluster="', text)
        promtool("check", "metrics", stdin=text)


def metrics_of_proxy(folder):
    """What a proxy exposes to a collector without an `Accept` field."""
    # No apiserver listens on port 1.
    command = [stage.BINARY, "serve", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--upstream=https://127.0.0.1:1"]
    files = [f"--cert={folder}/public.crt", f"--key={folder}/public.key", f"--upstream-ca={folder}/cluster-ca.crt"]
    with subprocess.Popen([*command, *files], stderr=subprocess.PIPE, text=True) as proxy:
        try:
            lines = []
            for line in proxy.stderr:
                lines.append(line)
                if found := re.search(r"http://(127\.0\.0\.1:[0-9]+)", line):
                    return stage.fetch(f"http://{found.group(1)}/metrics")
            raise AssertionError("".join(lines))
        finally:
            proxy.kill()


class Rules(unittest.TestCase):
    def test_promtool_accepts_the_rules(self):
        promtool("check", "rules", RULES)

    def test_alerts_fire_only_under_their_conditions(self):
        promtool("test", "rules", RULES.with_name("rules.test.yaml"))


def promtool(*arguments, stdin=None):
    done = subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


if __name__ == "__main__":
    unittest.main()
