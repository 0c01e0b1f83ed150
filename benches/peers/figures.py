"""Rows of one or more runs, their medians, and their tables.

Figures are compared within one kind of run only: rows that were taken differently are refused, not mixed.
"""

import json
import statistics
from dataclasses import dataclass

from cells import CELLS
from contenders import CONTENDERS, OURS
from problem import Problem

# Fewer rounds are too few for a median that is published.
MIN_ROUNDS = 5

# What surrounds the tables in docs/performance.md.
BEGIN, END = "<!-- tables: begin -->\n", "<!-- tables: end -->\n"

# The properties that must be equal for two runs to share a table.
_KIND = ("quick", "workers", "pin", "machine")


@dataclass(frozen=True)
class Measure:
    """A column of figures that is read from rows."""

    field: str
    title: str
    lower_is_better: bool = True


MAIN = Measure("cpu_per_unit", "CPU time of the proxy per unit of work; lower is better")
MEASURES = (
    Measure("rate", "Units per second; higher is better, but the clients share a CPU", False),
    Measure("p50_ms", "Median latency, ms; lower is better"),
    Measure("p99_ms", "99th percentile of latency, ms; lower is better"),
    Measure("utilisation", "How busy the proxy's CPU was, 1 is a whole one", False),
    Measure("upstream_cpu_per_unit", "CPU time of the apiserver, in the units of the first table"),
    Measure("kib_per_watch", "Memory per watch, KiB (growth of PSS); lower is better"),
)
ON_PAGE = ("p99_ms", "kib_per_watch")
# Figures of the process, not of a cell.
PROCESS = (
    ("start", Measure("cold_start_ms", "start to first answer, ms")),
    ("start", Measure("rss_mib", "RSS after start, MiB")),
    ("load_end", Measure("peak_rss_mib", "peak RSS of the load cells, MiB")),
    ("watch_h2", Measure("peak_rss_mib", "peak RSS of watch_h2, MiB")),
    ("watch_h1", Measure("peak_rss_mib", "peak RSS of watch_h1, MiB")),
)


def read(paths):
    """The runs and the rows of files, if they can be combined."""
    runs, rows = [], []
    for path in paths:
        try:
            with open(path, encoding="utf-8") as file:
                lines = [json.loads(line) for line in file if line.strip()]
        except OSError as err:
            raise Problem(f"{path} cannot be read: {err.strerror}.") from err
        except ValueError as err:
            raise Problem(f"{path} is not a file of rows: {err}.") from err
        if not lines or not all(isinstance(line, dict) for line in lines) or "run" not in lines[0]:
            raise Problem(f"{path} is not a file of rows: its first line does not describe a run.")
        runs += [line["run"] for line in lines if "run" in line]
        rows += [line for line in lines if "cell" in line and "contender" in line]
    for key in _KIND:
        kinds = {json.dumps(run.get(key)) for run in runs}
        if len(kinds) > 1:
            raise Problem(f"These runs cannot share a table, their {key} differs: {' and '.join(sorted(kinds))}.")
    return runs, rows


def contenders_of(rows):
    present = {row["contender"] for row in rows}
    return [name for name in CONTENDERS if name in present] + sorted(present - set(CONTENDERS))


def cells_of(rows):
    present = {row["cell"] for row in rows}
    return [name for name in CELLS if name in present]


def median(rows, contender, cell, field):
    """The median over the rounds; None if no round has the figure."""
    values = [
        row[field]
        for row in rows
        if row["contender"] == contender and row["cell"] == cell and row.get(field) is not None
    ]
    return statistics.median(values) if values else None


def errors(rows, contender, cell):
    """The number of errors, and the text of the first."""
    found = [row for row in rows if row["contender"] == contender and row["cell"] == cell and row.get("errors")]
    return sum(row["errors"] for row in found), next((row["first_error"] for row in found if row.get("first_error")), "")


def clean(rows, cell, names):
    """The medians of the main figure, without contenders that had errors: only these can be the best."""
    medians = {name: median(rows, name, cell, MAIN.field) for name in names}
    return {name: value for name, value in medians.items() if value is not None and not errors(rows, name, cell)[0]}


def number(value):
    """Three significant digits, and every digit before the point."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def ratio(value, other):
    return f"×{value / other:.2f}" if value is not None and other else "–"


def counted(errors):
    return f"{errors:,} error{'' if errors == 1 else 's'}"


def tables(runs, rows, on_page=False):
    """All tables, as Markdown; for the page only those that do not depend on the clients most."""
    names, cells = contenders_of(rows), cells_of(rows)
    parts = [_about(runs, rows)]
    if cells:
        parts.append(_main_table(rows, names, cells))
    for measure in MEASURES:
        if on_page and measure.field not in ON_PAGE:
            continue
        with_figures = [c for c in cells if any(median(rows, n, c, measure.field) is not None for n in names)]
        if with_figures:
            body = [[f"{c} ({CELLS[c].unit.name})", *(_figure(rows, n, c, measure) for n in names)] for c in with_figures]
            parts.append(f"### {measure.title}\n\n" + _markdown(["cell", *names], body))
    body = [
        [measure.title, *(number(median(rows, n, cell, measure.field)) for n in names)]
        for cell, measure in PROCESS
        if any(median(rows, n, cell, measure.field) is not None for n in names)
    ]
    if body:
        parts.append("### Start and memory of the process; lower is better\n\n" + _markdown(["", *names], body))
    lines = _error_lines(rows, names)
    if lines:
        parts.append("### Errors (!)\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def page(text, runs, rows, files):
    """The text of docs/performance.md with the tables of these rows; `files` are the committed files that have them."""
    counts = _rounds(rows)
    if not counts or counts[0] < MIN_ROUNDS or any(run.get("quick") for run in runs):
        raise Problem(f"The page shows medians of {MIN_ROUNDS} rounds or more; these rows have {counts[0] if counts else 'none'}.")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise Problem(f"The page has no lines {BEGIN.strip()} and {END.strip()}.")
    links = ", ".join(f"[{name}](../benches/peers/rows/{name})" for name in files)
    tables_of_page = tables(runs, rows, on_page=True).replace("\n### ", "\n## ")
    return f"{before}{begin}Every figure below comes from these rows: {links}.\n\n{tables_of_page}\n{end}{after}"


def _main_table(rows, names, cells):
    head = ["cell", *names, "best", *(["ours to the best peer"] if OURS in names else [])]
    body = []
    for cell in cells:
        values = clean(rows, cell, names)
        line = [_row_name(cell), *(_figure(rows, name, cell, MAIN) for name in names)]
        line.append(min(values, key=values.get) if values else "–")
        if OURS in names:
            peers = [value for name, value in values.items() if name != OURS]
            line.append(ratio(values.get(OURS), min(peers, default=None)))
        body.append(line)
    return f"### {MAIN.title}\n\n" + _markdown(head, body)


def _figure(rows, name, cell, measure):
    value = median(rows, name, cell, measure.field)
    if not errors(rows, name, cell)[0]:
        return number(value)
    return "fails !" if value is None else f"{number(value)} !"


def _row_name(cell):
    return f"{cell} ({CELLS[cell].unit.label})"


def _error_lines(rows, names):
    lines = []
    for name in names:
        for cell in ("start", *CELLS):
            count, first = errors(rows, name, cell)
            if count:
                done = sum(row.get("done", 0) for row in rows if row["contender"] == name and row["cell"] == cell)
                lines.append(f"- {name}, {cell}: {counted(count)} beside {done:,} done; the first: {first or 'unknown'}")
    return lines


def _rounds(rows):
    """How many rounds a figure has: the different numbers, in order."""
    rounds = {}
    for row in rows:
        if row["cell"] in CELLS:
            key = row["contender"], row["cell"]
            rounds[key] = rounds.get(key, 0) + 1
    return sorted(set(rounds.values()))


def _about(runs, rows):
    counts = _rounds(rows)
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else "no"
    lines = [f"Medians of {many} round{'' if counts == [1] else 's'}."]
    if any(run.get("quick") for run in runs):
        lines.append("A quick run: it shows that everything works, and its figures are too short to compare.")
    if len(runs) > 1:
        lines.append(f"Put together from {len(runs)} runs: ratios between contenders of different runs say little.")
    versions = {}
    for run in runs:
        for program, version in run.get("versions", {}).items():
            versions.setdefault(program, set()).add(version)
    if versions:
        lines.append("Versions: " + ", ".join(f"{p} {' and '.join(sorted(v))}" for p, v in versions.items()) + ".")
    # A program that one run left out may be in another.
    measured = set(versions)
    left_out = {program: why for run in runs for program, why in run.get("left_out", {}).items() if program not in measured}
    if left_out:
        lines.append("Left out: " + ", ".join(f"{program} ({why})" for program, why in left_out.items()) + ".")
    for run in runs[:1]:
        lines.append(f"Workers: {run.get('workers')}. CPUs of proxy and load: {run.get('pin')}. Machine: {run.get('machine')}.")
    return "\n".join(lines)


def _markdown(head, body):
    lines = [head, ["---", *("--:" for _ in head[1:])], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
