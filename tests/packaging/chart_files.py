"""The files of the chart that are copies, or are made from others: a chart can only contain what is in its folder."""

import copy
import json
import re

import rendered

FOLDER = rendered.CHART

# Keys of the configuration file that the chart sets. The schema lets them pass, so that the templates can say what to use.
SET_BY_THE_CHART = ("admin", "certificates", "listen", "reusePort", "workers")

HEAD = "<!-- made from values.yaml and values.schema.json: UPDATE=1 python3 tests/packaging/test_chart.py -->\n"


def current():
    """What each of these files must contain, by path."""
    config = rendered.ROOT / "config"
    schema = embed((FOLDER / "values.schema.json").read_text(), (config / "kube-tls-proxy.schema.json").read_text())
    readme = (FOLDER / "README.md").read_text()
    before, _, _ = readme.partition(HEAD)
    values = rendered.read("config/helm/kube-tls-proxy/values.yaml")
    return {
        FOLDER / "files/rules.yaml": (config / "prometheus/rules.yaml").read_text(),
        FOLDER / "files/dashboard.json": (config / "grafana/kube-tls-proxy.json").read_text(),
        FOLDER / "values.schema.json": schema,
        FOLDER / "README.md": before + HEAD + "\n" + table(values, json.loads(schema)),
    }


def embed(values_schema, file_schema):
    """The schema of the values, with that of the configuration file as the schema of `config`."""
    values, file = json.loads(values_schema), json.loads(file_schema)
    definitions = copy.deepcopy(file["$defs"])
    properties = copy.deepcopy(file["properties"])
    for key in SET_BY_THE_CHART:
        properties[key] = {"description": "The chart sets it; helm names the value to use."}
    definitions["LogSection"]["properties"]["format"] = {"description": "The chart sets it: logFormat."}
    values["properties"]["config"] = {
        "type": "object",
        "description": values["properties"]["config"]["description"],
        "additionalProperties": False,
        "properties": properties,
    }
    values["$defs"] = {name: definitions[name] for name in reachable(properties, definitions)}
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def reachable(value, definitions):
    """The names of the definitions that a schema refers to, also through others."""
    found, look = set(), [json.dumps(value)]
    while look:
        for name in set(re.findall(r'"#/\$defs/(\w+)"', look.pop())) - found:
            found.add(name)
            look.append(json.dumps(definitions[name]))
    return sorted(found)


def table(values, schema):
    """One line per value: its default and what it does."""
    rows = ["| value | default | what it does |", "| --- | --- | --- |"]
    for path, default, description in leaves(values, schema):
        rows.append(f"| `{path}` | `{json.dumps(default, ensure_ascii=False)}` | {description} |")
    return "\n".join(rows) + "\n"


def leaves(values, schema, above=""):
    """Each value that a user sets as a whole, with its default and description."""
    for key, value in values.items():
        path, about = f"{above}{key}", schema["properties"][key]
        if about.get("additionalProperties") is False and key != "config":
            yield from leaves(value, about, f"{path}.")
        else:
            yield path, value, about["description"]


def write():
    for path, text in current().items():
        path.write_text(text)
