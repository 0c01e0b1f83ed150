"""The rounds: every contender in turn, every cell of it, one row each; and the progress messages."""

import json
import sys
import time

import loads
from cells import CELLS
from figures import counted, number
from problem import Problem
from stage import Stage, verify

START_ESTIMATE = 0.6  # seconds to start and stop a contender


def steps(contenders, cells, rounds):
    """(round, contender, cells that share its process), round by round and interleaved.

    The order rotates by one each round, so that no contender always follows the same one.
    """
    groups = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    for turn in range(rounds):
        first = turn % len(contenders)
        for group in groups.values():
            for contender in contenders[first:] + contenders[:first]:
                yield turn + 1, contender, group


class Progress:
    """Reports progress and the estimated remaining time, on standard error."""

    def __init__(self, planned, quick, out=sys.stderr):
        self._begun = time.monotonic()
        self._quick, self._out = quick, out
        self._left = [cell for _, _, group in planned for cell in group]
        self._starts = len(planned)
        self._took = {}

    def left(self):
        """Seconds, from the duration of each cell so far, or from its usual duration before its first run."""
        total = self._starts * START_ESTIMATE
        for cell in self._left:
            took = self._took.get(cell.name)
            usual = cell.quick_seconds if self._quick else cell.seconds
            total += sum(took) / len(took) if took else usual
        return total

    def started(self):
        self._starts = max(0, self._starts - 1)

    def done(self, cell, seconds):
        if seconds is not None:
            self._took.setdefault(cell.name, []).append(seconds)
        if cell in self._left:
            self._left.remove(cell)

    def say(self, text):
        passed = time.monotonic() - self._begun
        print(f"[{duration(passed)}, about {duration(self.left())} left] {text}", file=self._out, flush=True)


def duration(seconds):
    seconds = round(seconds)
    return f"{seconds} s" if seconds < 100 else f"{seconds // 60} min {seconds % 60:02} s"


def measure(setting, clients, contenders, cells, rounds, out):
    """Writes a row for every round, contender and cell; returns them."""
    planned = list(steps(contenders, cells, rounds))
    progress = Progress(planned, clients.quick)
    rows = []

    def put(row):
        rows.append(row)
        out.write(json.dumps(row) + "\n")
        out.flush()  # The rows measured so far are kept, even if the run is stopped.

    for turn, contender, group in planned:
        progress.started()
        about = {"round": turn, "contender": contender.name}
        where = f"round {turn} of {rounds}, {contender.name}"
        try:
            with Stage(setting, contender) as stage:
                stage.wait_until_ready()
                start = {"cold_start_ms": stage.cold_start_ms, "rss_mib": stage.proxy.memory().rss / 1024}
                put({**about, "cell": "start", **start})
                for cell in group:
                    begun = time.monotonic()
                    row = _row(cell, clients, stage)
                    put({**about, "cell": cell.name, **row})
                    progress.done(cell, time.monotonic() - begun)
                    progress.say(f"{where}, {cell.name}: {_short(cell, row)}")
                if group[0].group == "load":
                    peak = stage.proxy.memory().peak_rss / 1024
                    put({**about, "cell": "load_end", "peak_rss_mib": peak})
        except Problem as err:
            put({**about, "cell": "start", "errors": 1, "first_error": str(err)})
            for cell in group:
                progress.done(cell, None)
            progress.say(f"{where}: {err}")
    return rows


def _row(cell, clients, stage):
    try:
        return loads.run(cell, clients, stage)
    except Problem as err:
        return {"done": 0, "units": 0, "errors": 1, "first_error": str(err)}


def _short(cell, row):
    text = f"{number(row.get('cpu_per_unit'))} {cell.unit.label}"
    if row.get("errors"):
        text += f", {counted(row['errors'])} ({row.get('first_error') or 'unknown'})"
    return text


def verified(setting, contenders, say):
    """The contenders that refuse every bad apiserver, after a sentence about each."""
    passed = []
    for contender in contenders:
        try:
            wrong, known = verify(setting, contender)
        except Problem as err:
            wrong, known = [str(err).rstrip(".")], []
        if wrong:
            say(f"{contender.name} is not measured: {'; '.join(wrong)}.")
            continue
        passed.append(contender)
        note = f"; known: {'; '.join(known)}" if known else ""
        say(f"{contender.name} refuses a wrong CA and a wrong name{note}.")
    return passed


def cells_named(names):
    for name in names or []:
        if name not in CELLS:
            raise Problem(f"There is no cell {name}. There are {', '.join(CELLS)}.")
    return [cell for cell in CELLS.values() if (cell.name in names if names else not cell.by_name)]
