#!/usr/bin/env python3
"""Leaves in an SBOM only the crates of the binary: sbom.py SBOM < the output of cargo tree.

cargo-cyclonedx reads `cargo metadata`, which also has crates of the tests and of optional features. cargo tree has exactly what
is linked.
"""

import json
import re
import sys


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        sbom = json.load(file)
    linked = set(re.findall(r"^(\S+) v(\S+)", sys.stdin.read(), re.MULTILINE))
    root = sbom["metadata"]["component"]
    linked.discard((root["name"], root["version"]))
    components = {(each["name"], each["version"]): each for each in sbom["components"]}
    missing = linked - components.keys()
    if missing or not linked:
        sys.exit(f"sbom: not in the output of cargo-cyclonedx: {sorted(missing) or 'anything'}")
    sbom["components"] = [components[crate] for crate in sorted(linked)]
    kept = {root["bom-ref"]} | {each["bom-ref"] for each in sbom["components"]}
    sbom["dependencies"] = [
        {**each, "dependsOn": [ref for ref in each.get("dependsOn", []) if ref in kept]}
        for each in sbom["dependencies"]
        if each["ref"] in kept
    ]
    json.dump(sbom, sys.stdout, indent=2)
    print(f"sbom: {len(linked)} crates", file=sys.stderr)


main()
