#!/usr/bin/env python3
"""Tests of the comparison that need no proxy: python3 benches/peers/test_peers.py."""

import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import xml.etree.ElementTree as xml
from unittest import mock

import compare
import contenders
import figures
import loads
import machine
import measure
import picture
import stage
from cells import BULK, CELLS, Watch
from problem import FAILED, UNUSABLE, Problem
from processes import Child, stop_all, tree

RUN = {"quick": False, "workers": 1, "pin": "0:1", "machine": "m", "versions": {"nginx": "1.22.1"}}
H2LOAD = """finished in 250.50ms, 1868.98 req/s, 2.02MB/s
requests: 20 total, 20 started, {done} done, {ok} succeeded, 0 failed, {errored} errored, 0 timeout
status codes: {ok} 2xx, 0 3xx, 0 4xx, {bad} 5xx
traffic: 22.11KB (22640) total, 1.54KB (1580) headers (space savings 0.00%), 20.00KB ({data}) data
"""


def row(contender, cell, cpu, turn=1, **more):
    return {"round": turn, "contender": contender, "cell": cell, "cpu_per_unit": cpu, "done": 10, **more}


def command(*arguments):
    """Exit code, standard output and standard error of the command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = compare.main(list(arguments))
        except SystemExit as ended:  # argparse ends by itself.
            code = ended.code
    return code, out.getvalue(), err.getvalue()


class Folder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def path(self, name):
        return os.path.join(self.folder, name)

    def file(self, name, *lines):
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.writelines(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
        return self.path(name)


class Figures(Folder):
    def test_medians_skip_rounds_without_the_figure(self):
        rows = [row("nginx", "conc_1", value, turn) for turn, value in enumerate([9, 1, 5])]
        self.assertEqual(figures.median(rows, "nginx", "conc_1", "cpu_per_unit"), 5)
        rows.append({"contender": "nginx", "cell": "conc_1", "errors": 1})
        self.assertEqual(figures.median(rows, "nginx", "conc_1", "cpu_per_unit"), 5)
        self.assertIsNone(figures.median(rows, "nginx", "conc_10", "cpu_per_unit"))

    def test_table_compares_ours_with_the_best_peer(self):
        rows = [row("ours", "conc_1", 30.0), row("nginx", "conc_1", 20.0), row("haproxy-h1", "conc_1", 40.0)]
        text = figures.tables([RUN], rows)
        self.assertIn("| conc_1 (µs per request) | 30.0 | 20.0 | 40.0 | nginx | ×1.50 |", text)

    def test_figure_with_errors_is_marked_and_never_the_best(self):
        rows = [
            row("ours", "conc_1", 30.0),
            row("nginx", "conc_1", 10.0, errors=3, first_error="answered 503"),
            row("caddy-h1", "conc_1", None, errors=1, first_error="refused"),
            row("haproxy-h1", "conc_1", 60.0),
        ]
        text = figures.tables([RUN], rows)
        self.assertIn("| 30.0 | 10.0 ! | 60.0 | fails ! | ours | ×0.50 |", text)
        self.assertIn("- nginx, conc_1: 3 errors beside 10 done; the first: answered 503", text)

    def test_errors_while_starting_are_listed(self):
        rows = [row("ours", "conc_1", 1.0), {"contender": "nginx", "cell": "start", "errors": 1, "first_error": "no port"}]
        self.assertIn("- nginx, start: 1 error beside 0 done; the first: no port", figures.tables([RUN], rows))

    def test_numbers_keep_three_significant_digits(self):
        self.assertEqual([figures.number(n) for n in (0.1234, 1.234, 12.34, 1234.5, None)],
                         ["0.123", "1.23", "12.3", "1,234", "–"])
        self.assertEqual(figures.ratio(3, 2), "×1.50")
        self.assertEqual(figures.ratio(3, None), "–")

    def test_only_runs_of_one_kind_are_combined(self):
        first = self.file("a", {"run": RUN}, row("nginx", "conc_1", 1.0))
        second = self.file("b", {"run": RUN}, row("nginx", "conc_1", 3.0))
        runs, rows = figures.read([first, second])
        self.assertEqual(figures.median(rows, "nginx", "conc_1", "cpu_per_unit"), 2)
        self.assertIn("Put together from 2 runs", figures.tables(runs, rows))
        quick = self.file("c", {"run": {**RUN, "quick": True}}, row("nginx", "conc_1", 3.0))
        with self.assertRaisesRegex(Problem, "their quick differs"):
            figures.read([first, quick])

    def test_quick_run_is_labelled(self):
        self.assertIn("too short to compare", figures.tables([{**RUN, "quick": True}], [row("ours", "conc_1", 1.0)]))


    def test_peers_that_were_left_out_are_named(self):
        run = {**RUN, "left_out": {"caddy": "not installed"}}
        self.assertIn("Left out: caddy (not installed).", figures.tables([run], [row("ours", "conc_1", 1.0)]))
        other = {**RUN, "versions": {"caddy": "2.10"}}
        self.assertNotIn("Left out", figures.tables([run, other], [row("ours", "conc_1", 1.0)]))
        installed = {program: "/usr/bin/x" for program in compare.PROGRAMS} | {"caddy": None}
        chosen = [contenders.CONTENDERS["ours"], contenders.CONTENDERS["nginx"]]
        reasons = compare.left_out(chosen, installed)
        self.assertEqual(reasons["caddy"], "not installed")
        self.assertEqual(set(reasons), {"caddy", "haproxy", "envoy"})

    def test_page_has_the_tables_and_links_to_the_rows(self):
        rows = [row("ours", "conc_1", 30.0, turn) for turn in range(5)]
        text = figures.page(f"before\n{figures.BEGIN}old\n{figures.END}after\n", [RUN], rows, ["a.jsonl"])
        self.assertTrue(text.startswith(f"before\n{figures.BEGIN}Every figure") and text.endswith(f"{figures.END}after\n"), text)
        self.assertNotIn("old", text)
        self.assertIn("[a.jsonl](../benches/peers/rows/a.jsonl)", text)
        self.assertIn("\n## CPU time", text)
        self.assertIn("Medians of 5 rounds.", text)

    def test_page_refuses_few_rounds_and_quick_runs(self):
        page = f"{figures.BEGIN}{figures.END}"
        for run, turns in [(RUN, 4), ({**RUN, "quick": True}, 9)]:
            with self.assertRaisesRegex(Problem, "5 rounds or more"):
                figures.page(page, [run], [row("ours", "conc_1", 1.0, turn) for turn in range(turns)], ["a"])

    def test_page_refuses_rows_that_are_not_committed(self):
        rows = self.file("a.jsonl", {"run": RUN}, row("ours", "conc_1", 1.0))
        code, _, error = command("--page", rows)
        self.assertEqual(code, UNUSABLE)
        self.assertIn("is not in benches/peers/rows", error)

    def test_tables_of_the_page_are_those_of_its_rows(self):
        with open(compare.PAGE, encoding="utf-8") as file:
            text = file.read()
        shown = text.partition(figures.BEGIN)[2].partition(figures.END)[0]
        names = re.findall(r"\]\(\.\./benches/peers/rows/([^)]+)\)", shown)
        committed = [name for name in sorted(os.listdir(compare.ROWS)) if name.endswith(".jsonl")]
        self.assertEqual(sorted(names), committed, "the page shows every committed run, and no other")
        if names:
            runs, rows = figures.read([os.path.join(compare.ROWS, name) for name in names])
            self.assertEqual(figures.page(text, runs, rows, names), text, "run compare.py --page")


class Picture(unittest.TestCase):
    def draw(self, rows):
        return xml.fromstring(picture.svg([RUN], rows))

    def bars(self, drawn):
        found = [e for e in drawn.iter() if e.tag.endswith("rect") and e.get("class") in ("bar", "ours")]
        return [(e.get("class"), float(e.get("width"))) for e in found]

    def texts(self, drawn):
        return [e.text for e in drawn.iter() if e.tag.endswith("text")]

    def test_bars_match_their_figures_and_ours_is_highlighted(self):
        drawn = self.draw([row("ours", "conc_1", 10.0), row("nginx", "conc_1", 20.0)])
        (ours, short), (peer, long) = self.bars(drawn)
        self.assertEqual((ours, peer), ("ours", "bar"))
        self.assertAlmostEqual(long / short, 2, places=1)
        self.assertIn("10.0 · best", self.texts(drawn))
        self.assertIn("20.0 · ×2.00", self.texts(drawn))

    def test_failed_contender_has_a_text_and_no_bar(self):
        drawn = self.draw([row("ours", "tun_spdy", 10.0), row("caddy-h2", "tun_spdy", None, errors=1)])
        self.assertEqual(len(self.bars(drawn)), 1)
        self.assertIn("fails", self.texts(drawn))

    def test_one_panel_per_cell_inside_the_picture(self):
        rows = [row(name, cell, 5.0, kib_per_watch=3.0) for name in contenders.CONTENDERS for cell in CELLS]
        drawn = self.draw(rows)
        for cell in CELLS.values():
            self.assertIn(cell.title, self.texts(drawn))
        self.assertIn("Memory of a watch, HTTP/2", self.texts(drawn))
        width, height = float(drawn.get("width")), float(drawn.get("height"))
        for element in drawn.iter():
            self.assertLessEqual(float(element.get("x", 0)) + 90 * (element.get("class") == "ours"), width)
            self.assertLessEqual(float(element.get("y", 0)), height)

    def test_picture_has_dark_mode_and_description(self):
        text = picture.svg([RUN], [row("ours", "conc_1", 30.0), row("nginx", "conc_1", 20.0)])
        self.assertIn("prefers-color-scheme: dark", text)
        self.assertIn("nginx is best, ours takes 1.50 times as much.", text)
        self.assertIn("lower is better", text)

    def test_names_are_escaped_in_the_picture(self):
        self.assertIn("<script>", self.texts(self.draw([row("<script>", "conc_1", 1.0)])))


class Configurations(unittest.TestCase):
    VALUES = {"RUN": "/r", "PKI": "/p", "PORT": 1234, "UPSTREAM_PORT": 5678, "WORKERS": 1, "CONNECTIONS": 9, "DESCRIPTORS": 10}

    def test_every_template_is_complete_and_uses_loopback(self):
        for contender in contenders.CONTENDERS.values():
            text = contenders.render(contender, self.VALUES)
            if text is None:
                text = contenders.fill(" ".join(contender.command), {**self.VALUES, "PROGRAM": "p"})
            with self.subTest(contender.name):
                self.assertNotRegex(text, r"@[A-Z_]+@")
                self.assertIn("127.0.0.1", text)
                self.assertIn("kubernetes.default.svc", text, "the name is verified")
                self.assertIn("/p/cluster-ca.crt", text, "and the CA")
                self.assertIn("1234", text)
                self.assertIn("5678", text)
                self.assertNotRegex(text, r"(?<![\d.])0\.0\.0\.0")

    def test_placeholder_without_a_value_is_an_error(self):
        with self.assertRaisesRegex(KeyError, "@PROT@"):
            contenders.fill("listen @PROT@", {"PORT": 1})
        self.assertEqual(contenders.fill('"@type": @A@', {"A": 1}), '"@type": 1')

    def test_h1_and_h2_differ_by_the_upstream_protocol(self):
        for program in ("haproxy", "caddy", "envoy"):
            texts = [contenders.render(contenders.CONTENDERS[f"{program}-{p}"], self.VALUES) for p in ("h1", "h2")]
            self.assertNotEqual(*texts)

    def test_caddy_gets_json(self):
        json.loads(contenders.render(contenders.CONTENDERS["caddy-h2"], self.VALUES))

    def test_missing_programs_are_named_with_their_package(self):
        chosen, left_out = contenders.choose(None, {"ours": "x", "nginx": None, "haproxy": "y"})
        self.assertEqual([c.name for c in chosen], ["ours", "haproxy-h1", "haproxy-h2"])
        self.assertTrue(any("nginx-light" in sentence for sentence in left_out))
        with self.assertRaisesRegex(Problem, "nginx needs nginx, which was not found: install the Debian package"):
            contenders.choose(["nginx"], {"nginx": None})

    def test_version_is_not_taken_from_a_path(self):
        self.assertEqual(contenders.parse_version("/python3.11/bin/envoy version: 9e55/1.40.0/Clean"), "1.40.0")
        self.assertEqual(contenders.parse_version("none"), "?")


class Parsing(unittest.TestCase):
    def said(self, **values):
        return H2LOAD.format(**{"done": 20, "ok": 20, "errored": 0, "bad": 0, "data": 20480, **values})

    def test_h2load_summary(self):
        result = loads.parse_h2load(self.said(), 20, 1024)
        self.assertEqual(result, {"done": 20, "errors": 0, "first_error": "", "wall_s": 0.2505})

    def test_responses_without_reason_phrase_count_by_body(self):
        self.assertEqual(loads.parse_h2load(self.said(ok=0), 20, 1024)["done"], 20)
        short = loads.parse_h2load(self.said(ok=0, data=10 * 1024 + 5), 20, 1024)
        self.assertEqual((short["done"], short["errors"]), (10, 10))

    def test_h2load_errors_are_counted_and_named(self):
        result = loads.parse_h2load(self.said(done=18, ok=15, bad=3), 20, 1024)
        self.assertEqual((result["done"], result["errors"]), (15, 5))
        self.assertEqual(result["first_error"], "3 answered 5xx, 2 without a whole answer")

    def test_h2load_without_a_summary_is_quoted(self):
        with self.assertRaisesRegex(Problem, "could not connect"):
            loads.parse_h2load("starting\ncould not connect\n", 20, 1024)

    def test_latencies_and_percentiles(self):
        latencies = loads.h2load_latencies(["1\t200\t3000\n", "2\t200\t1000\n", "garbage\n"])
        self.assertEqual(latencies, [1.0, 3.0])
        self.assertEqual(loads.percentiles(list(range(1, 101))), {"p50_ms": 50, "p99_ms": 99})
        self.assertEqual(loads.percentiles([]), {"p50_ms": None, "p99_ms": None})

    def test_quotients_use_only_completed_work(self):
        cpu = {"proxy_cpu_ns": 4_000_000, "upstream_cpu_ns": 2_000_000}
        done = loads.derive(CELLS["conc_1"], {"done": 100, "wall_s": 0.5, **cpu})
        self.assertEqual((done["cpu_per_unit"], done["rate"], done["utilisation"]), (40.0, 200.0, 0.008))
        bulk = loads.derive(CELLS["tun_up"], {"done": 1, "bytes": 200 << 20, "wall_s": 1, **cpu})
        self.assertIs(CELLS["tun_up"].unit, BULK)
        self.assertEqual(bulk["cpu_per_unit"], 2.0)
        self.assertNotIn("cpu_per_unit", loads.derive(CELLS["conc_1"], {"done": 0, **cpu}))

    def test_status_lines(self):
        self.assertEqual(stage.parse_status(b"HTTP/1.1 200 \r\n"), 200)
        self.assertIsNone(stage.parse_status(b"\x15\x03"))


class Rounds(unittest.TestCase):
    def test_contenders_rotate_and_each_cell_runs_once_per_round(self):
        chosen = [contenders.CONTENDERS[name] for name in ("ours", "nginx", "caddy-h1")]
        cells = [CELLS[name] for name in ("conc_1", "watch_h2", "conc_10")]
        steps = list(measure.steps(chosen, cells, 2))
        order = [(turn, contender.name, [cell.name for cell in group]) for turn, contender, group in steps]
        self.assertEqual([o[1] for o in order], ["ours", "nginx", "caddy-h1"] * 2 + ["nginx", "caddy-h1", "ours"] * 2)
        self.assertEqual(order[0], (1, "ours", ["conc_1", "conc_10"]))
        self.assertEqual(order[3], (1, "ours", ["watch_h2"]), "a fresh process for the watches")

    def test_remaining_time_follows_measured_durations(self):
        steps = list(measure.steps([contenders.CONTENDERS["ours"]], [CELLS["conc_1"]], 3))
        progress = measure.Progress(steps, False, io.StringIO())
        usual = progress.left()
        progress.started()
        progress.done(CELLS["conc_1"], 100)
        self.assertGreater(progress.left(), 200)
        self.assertLess(usual, 10)

    def test_quick_is_less_work(self):
        for cell in CELLS.values():
            self.assertLess(cell.quick_seconds, cell.seconds, cell.name)
            if isinstance(cell.work, Watch):
                self.assertLess(cell.work.size(True)[0], cell.work.size(False)[0])


class Machine(unittest.TestCase):
    def test_cpu_is_named_with_its_numbers(self):
        text = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nstepping\t: 1\n\nprocessor\t: 1\n"
        self.assertEqual(machine.cpu_name(text), "AMD EPYC (family 25, model 17, stepping 1)")
        self.assertIsNone(machine.cpu_name("Processor\t: ARM\n"))

    def test_pins(self):
        here = min(os.sched_getaffinity(0))
        self.assertEqual(str(machine.parse_pins(f"{here}:{here}")), f"{here}:{here}")
        self.assertEqual(str(machine.parse_pins("none")), "none")
        for wrong in ("0", "a:b", "0:1:2", "0:", "3-1:0"):
            with self.assertRaisesRegex(Problem, "write PROXY:LOAD"):
                machine.parse_pins(wrong)
        with self.assertRaisesRegex(Problem, "may not use CPU 99999"):
            machine.parse_pins(f"{here}:99999")

    def test_default_pins_and_warnings_on_other_machines(self):
        two = machine.default_pins({0, 1}, 1)
        self.assertEqual(str(two), "0:1")
        self.assertEqual(str(machine.default_pins({0, 1, 2, 3}, 2)), "0,1:2")
        self.assertEqual(str(machine.default_pins({5}, 1)), "none")
        said = lambda pins, workers, cpus: " ".join(machine.warnings(pins, workers, cpus))
        self.assertIn("8 CPUs", said(two, 1, set(range(8))))
        self.assertIn("share a CPU", said(machine.default_pins({0, 1}, 2), 2, {0, 1}))
        self.assertIn("Nothing is pinned", said(machine.default_pins({5}, 1), 1, {5}))


class CommandLine(Folder):
    def assert_refused(self, sentence, *arguments):
        code, out, err = command(*arguments)
        self.assertEqual((code, out), (UNUSABLE, ""), err)
        self.assertIn(sentence, err)
        self.assertNotIn("Traceback", err)

    def test_usage_errors_are_one_sentence_with_exit_code_2(self):
        empty = self.file("empty", "")
        self.assert_refused("There is no cell nope. There are h2_small", "--cells", "nope")
        self.assert_refused("There is no contender nope. There are ours", "--contenders", "nope")
        self.assert_refused("/nope is not a program", "--proxy", "/nope")
        self.assert_refused("cannot be read: No such file", "--table", self.path("nope"))
        self.assert_refused("is not a file of rows", "--table", empty)
        self.assert_refused("is not a file of rows", "--table", self.file("text", "hello\n"))
        self.assert_refused("--draw needs --picture", "--draw", empty)
        self.assert_refused("invalid positive number", "--rounds", "0")
        self.assert_refused("invalid port number", "--port", "70000")

    def test_missing_tools_are_named(self):
        self.assert_refused("/nope is not a program", "--h2load", "/nope", "--proxy", sys.executable)
        with mock.patch.object(contenders, "find", lambda program, given=None: given):
            self.assert_refused("h2load was not found: install the Debian package nghttp2-client", "--proxy", "x")

    def test_port_in_use_is_reported_and_rows_are_kept(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            with self.assertRaisesRegex(Problem, "choose another with --port"):
                stage.free_port(taken.getsockname()[1])
        path = self.file("rows", {"run": RUN})
        with self.assertRaisesRegex(Problem, "exists already"):
            compare.open_rows(path)
        with self.assertRaisesRegex(Problem, "cannot be written"):
            compare.open_rows("/nope/rows")

    def test_earlier_rows_are_printed_and_drawn(self):
        rows = self.file("rows", {"run": RUN}, row("ours", "conc_1", 3.0))
        code, out, _ = command("--table", rows, "--picture", self.path("p.svg"))
        self.assertEqual(code, 0)
        self.assertIn("conc_1", out)
        xml.parse(self.path("p.svg"))
        code, out, _ = command("--draw", rows, "--picture", self.path("q.svg"))
        self.assertEqual((code, out), (0, ""))
        xml.parse(self.path("q.svg"))


class Children(unittest.TestCase):
    def setUp(self):
        self.addCleanup(stop_all)

    def test_cpu_and_memory_of_the_whole_tree(self):
        # The shell waits; its child works.
        child = Child(["sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done & wait; sleep 60"], None)
        end = time.monotonic() + 20
        while child.cpu_ns() < 5_000_000 and time.monotonic() < end:
            time.sleep(0.01)
        self.assertGreater(child.cpu_ns(), 5_000_000)
        self.assertGreater(len(tree(child.process.pid)), 1)
        self.assertGreater(child.memory().pss, 0)

    def test_process_that_ignores_sigterm_is_killed_with_children(self):
        script = "trap '' TERM; sleep 60 & echo '{}'; wait; wait"
        child = Child(["sh", "-c", script], None, stdout=subprocess.PIPE)
        child.hear(10)
        pids = tree(child.process.pid)
        self.assertEqual(len(pids), 2)
        child.stop()
        end = time.monotonic() + 5
        while any(os.path.exists(f"/proc/{pid}/cmdline") and _alive(pid) for pid in pids) and time.monotonic() < end:
            time.sleep(0.01)
        self.assertFalse([pid for pid in pids if _alive(pid)])

    def test_silence_and_early_end_have_different_errors(self):
        silent = Child(["sleep", "60"], None, stdout=subprocess.PIPE)
        with self.assertRaisesRegex(Problem, "printed nothing") as caught:
            silent.hear(0.05)
        self.assertEqual(caught.exception.code, FAILED)
        with self.assertRaisesRegex(Problem, "ended too early"):
            Child(["true"], None, stdout=subprocess.PIPE).hear(10)
        with self.assertRaisesRegex(Problem, "/nope cannot be started"):
            Child(["/nope"], None)

    def test_two_lines_in_one_read_are_two_objects(self):
        child = Child(["printf", '{"a":1}\\n{"b":2}\\n'], None, stdout=subprocess.PIPE)
        self.assertEqual([child.hear(10), child.hear(10)], [{"a": 1}, {"b": 2}])


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return not re.search(r"\) [ZX] ", file.read())
    except OSError:
        return False


if __name__ == "__main__":
    unittest.main()
