#!/usr/bin/env python3
"""Compares kube-tls-proxy with other proxies; README.md says how to read the figures.

This file is the command line: what is asked for, whether it can be had, and the exit code.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import contenders as peers
import figures
import machine
import picture
from cells import CELLS, H2load
from loads import Clients
from measure import cells_named, measure, verified
from problem import FAILED, Problem
from processes import stop_all
from stage import Setting, free_port, write_pki

ROOT = os.path.dirname(os.path.dirname(peers.HERE))
PAGE = os.path.join(ROOT, "docs/performance.md")
ROWS = os.path.join(ROOT, "benches/peers/rows")
PROGRAMS = ("nginx", "haproxy", "caddy", "envoy")


def parser():
    parse = argparse.ArgumentParser(
        description="Measures the CPU time that kube-tls-proxy and other proxies need for the same work.",
        epilog="Exit codes: 0 done, 1 something failed while measuring, 2 unusable command line or files.",
    )
    what = parse.add_argument_group("what to do (without any of these: verify, measure, print tables)")
    what.add_argument("--verify", action="store_true", help="only test that bad apiservers are refused")
    what.add_argument("--list", action="store_true", help="only list contenders and cells")
    what.add_argument("--table", nargs="+", metavar="ROWS", help="only print the tables of earlier rows")
    what.add_argument("--draw", nargs="+", metavar="ROWS", help="only draw earlier rows, into --picture")
    what.add_argument("--page", nargs="+", metavar="ROWS", help="only write the tables of rows in benches/peers/rows into docs/performance.md")
    what.add_argument("--picture", metavar="FILE.svg", help="draw the figures into this file")
    how = parse.add_argument_group("how to measure")
    how.add_argument("--quick", action="store_true", help="about two minutes; shows that everything works, not which proxy is better")
    how.add_argument("--rounds", type=_positive, metavar="N", help="default 5, with --quick 1")
    how.add_argument("--contenders", type=_names, metavar="A,B", help="default: all that are installed")
    how.add_argument("--cells", type=_names, metavar="A,B", help="default: all")
    how.add_argument("--workers", type=_positive, default=1, metavar="N", help="of each proxy, default 1")
    how.add_argument("--pin", metavar="PROXY:LOAD", help="CPUs of the proxy and of its load, such as 0:1, or none")
    how.add_argument("--port", type=_port, default=0, metavar="N", help="of the proxies; default: a free one")
    how.add_argument("--out", metavar="FILE", help="where rows go; default: a new file in benches/peers/out")
    where = parse.add_argument_group("where programs are")
    where.add_argument("--proxy", metavar="PATH", help="kube-tls-proxy; without it, it is built")
    where.add_argument("--load", metavar="PATH", help="peers-load; without it, it is built")
    for program in (*PROGRAMS, "h2load"):
        where.add_argument(f"--{program}", metavar="PATH")
    return parse


def _positive(text):
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _port(text):
    value = int(text)
    if not 0 <= value < 65536:
        raise ValueError
    return value


def _names(text):
    return [name.strip() for name in text.split(",") if name.strip()]


# argparse puts these into its sentence: "invalid port number value".
_positive.__name__, _port.__name__ = "positive number", "port number"


def main(arguments=None):
    options = parser().parse_args(arguments)
    # Ends as on Ctrl-C, with everything cleaned up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return run(options)
    except Problem as err:
        print(f"compare.py: {err}", file=sys.stderr)
        return err.code
    except KeyboardInterrupt:
        say("Ended. The rows so far are kept.")
        return 128 + signal.SIGINT
    finally:
        stop_all()


def run(options):
    if options.draw and not options.picture:
        raise Problem("--draw needs --picture FILE.svg to draw into.")
    if options.page:
        return write_page(options.page, PAGE)
    if options.draw or options.table:
        runs, rows = figures.read([*(options.draw or []), *(options.table or [])])
        if options.table:
            print(figures.tables(runs, rows))
        draw(options.picture, runs, rows)
        return 0
    if not sys.platform.startswith("linux"):
        raise Problem("This script needs Linux: it reads CPU time from /proc.")

    programs = {program: peers.find(program, getattr(options, program)) for program in PROGRAMS}
    # Our binary can always be built; a path from the command line must exist.
    programs[peers.OURS] = peers.find(peers.OURS, options.proxy) if options.proxy else "built when needed"
    chosen, left_out = peers.choose(options.contenders, programs)
    cells = cells_named(options.cells)
    if options.list:
        print("contenders:", *(c.name for c in chosen), "\ncells:", *(cell.name for cell in cells))
        print("\n".join(left_out))
        return 0
    h2load = peers.find("h2load", options.h2load)
    if not h2load and not options.verify and any(isinstance(cell.work, H2load) for cell in cells):
        raise Problem(f"h2load was not found: install {peers.PACKAGES['h2load']}, or choose other cells with --cells.")
    pins = machine.parse_pins(options.pin) if options.pin else None
    cpus = os.sched_getaffinity(0)
    pins = pins or machine.default_pins(cpus, options.workers)
    descriptors = machine.raise_descriptors()
    free_port(options.port)
    for sentence in (*left_out, *machine.warnings(pins, options.workers, cpus)):
        say(sentence)
    if not options.proxy and any(c.name == peers.OURS for c in chosen):
        programs[peers.OURS] = build("kube-tls-proxy")
    load = peers.find("peers-load", options.load) if options.load else build("peers-load")

    if pins.load:
        os.sched_setaffinity(0, pins.load)  # The work of this script between the cells must not disturb the proxy either.
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        write_pki(load, folder)
        setting = Setting(load, programs, folder, options.workers, pins.proxy, pins.load, options.port, descriptors)
        try:
            passed = verified(setting, chosen, say)
            if options.verify:
                return 0 if len(passed) == len(chosen) else FAILED
            if not passed:
                raise Problem("No contender may be measured.", FAILED)
            clients = Clients(h2load, load, folder, pins.load, options.quick)
            rounds = options.rounds or (1 if options.quick else 5)
            about = describe(options, passed, programs, pins, rounds)
            path, out = open_rows(options.out)
            with out:
                out.write(json.dumps({"run": about}) + "\n")
                rows = measure(setting, clients, passed, cells, rounds, out)
        finally:
            stop_all()  # Before the folder is removed that they write to.
    print(figures.tables([about], rows))
    say(f"The rows are in {path}.")
    draw(options.picture, [about], rows)
    failed_to_start = any(row["cell"] == "start" and row.get("errors") for row in rows)
    return FAILED if len(passed) < len(chosen) or failed_to_start else 0


def write_page(paths, page):
    """Writes the tables of committed rows into the page, which links to them."""
    for path in paths:
        if os.path.dirname(os.path.realpath(path)) != ROWS:
            raise Problem(f"{path} is not in {os.path.relpath(ROWS, ROOT)}: put rows there that the page shows, and commit them.")
    runs, rows = figures.read(paths)
    with open(page, encoding="utf-8") as file:
        text = file.read()
    text = figures.page(text, runs, rows, [os.path.basename(path) for path in paths])
    with open(page, "w", encoding="utf-8") as file:
        file.write(text)
    return 0


def describe(options, chosen, programs, pins, rounds):
    used = dict.fromkeys(contender.program for contender in chosen)
    return {
        "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": options.quick,
        "rounds": rounds,
        "workers": options.workers,
        "pin": str(pins),
        "machine": machine.describe(),
        "left_out": left_out(chosen, programs),
        "versions": {program: peers.version(program, programs[program]) for program in used},
    }


def left_out(measured, programs):
    """Each program that could be measured and was not, with the reason."""
    used = {contender.program for contender in measured}
    rest = dict.fromkeys(c.program for c in peers.CONTENDERS.values() if c.program not in used)
    return {program: "not chosen, or failed the verification" if programs.get(program) else "not installed" for program in rest}


def open_rows(path):
    """A new file for the rows: figures that took half an hour are never overwritten."""
    if not path:
        folder = os.path.join(peers.HERE, "out")
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, time.strftime("%Y%m%d-%H%M%S.jsonl", time.gmtime()))
    try:
        return path, open(path, "x", encoding="utf-8")
    except FileExistsError:
        raise Problem(f"{path} exists already; choose another name for --out.") from None
    except OSError as err:
        raise Problem(f"{path} cannot be written: {err.strerror}.") from err


def draw(path, runs, rows):
    if not path:
        return
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(picture.svg(runs, rows))
    except OSError as err:
        raise Problem(f"{path} cannot be written: {err.strerror}.") from err
    say(f"The picture is in {path}.")


def build(package):
    """The path of the release binary of a package of this workspace, from cargo's output."""
    say(f"Building {package}; the first time takes some minutes.")
    command = ["cargo", "build", "--release", "--package", package, "--message-format", "json-render-diagnostics"]
    try:
        built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False)
    except OSError as err:
        raise Problem(f"cargo cannot be run: {err.strerror}; see https://rustup.rs.") from err
    if built.returncode:
        raise Problem(f"{package} does not build; the output of cargo above says why.", FAILED)
    messages = (json.loads(line) for line in built.stdout.splitlines() if line.startswith(b"{"))
    found = [m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == package]
    if not found:
        raise Problem(f"cargo built {package} without a program.", FAILED)
    return found[-1]


def say(text):
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
