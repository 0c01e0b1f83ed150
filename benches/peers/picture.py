"""Draws the main figures: one panel per cell, one bar per contender, ours highlighted, in light and dark.

Every panel has a scale of its own, so bars are compared within a panel only; the ratio to the panel's best is
written beside each bar, for those who do not go by length.
"""

from xml.sax.saxutils import escape

import figures
from cells import CELLS
from contenders import OURS

COLUMNS = 3
PANEL_WIDTH, GAP = 400, 28
MARGIN, TOP = 24, 92
ROW, BAR = 20, 14
TITLE_HEIGHT = 44
LABELS, NUMBERS = 88, 112  # left of the bars and right of them

STYLE = """
  svg { font-family: system-ui, sans-serif; font-size: 12px; }
  .ground { fill: #ffffff; } text { fill: #24292f; } .quiet { fill: #57606a; } .head { font-size: 19px; font-weight: 600; }
  .title { font-size: 14px; font-weight: 600; } .bar { fill: #afb8c1; } .ours { fill: #0969da; } .own { font-weight: 700; }
  .line { stroke: #d0d7de; } .fails { fill: #a40e26; }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117; } text { fill: #e6edf3; } .quiet { fill: #9198a1; } .bar { fill: #57606a; } .ours { fill: #58a6ff; }
    .line { stroke: #30363d; } .fails { fill: #ff938a; }
  }
"""


def svg(runs, rows):
    """The whole picture."""
    names = figures.contenders_of(rows)
    panels = [_cell_panel(rows, names, cell) for cell in figures.cells_of(rows)]
    panels += [
        panel
        for measure, cell in (("kib_per_watch", "watch_h2"), ("kib_per_watch", "watch_h1"))
        if (panel := _other_panel(rows, names, cell, measure, f"Memory of a watch, {_protocol(cell)}", "KiB"))
    ]
    panels += [
        panel
        for measure, cell, title, unit in (
            ("rss_mib", "start", "Memory after start", "MiB of RSS"),
            ("cold_start_ms", "start", "Start to first answer", "ms"),
        )
        if (panel := _other_panel(rows, names, cell, measure, title, unit))
    ]
    panel_height = TITLE_HEIGHT + len(names) * ROW
    lines = -(-len(panels) // COLUMNS)
    columns = max(1, min(COLUMNS, len(panels)))
    width = 2 * MARGIN + columns * PANEL_WIDTH + (columns - 1) * GAP
    height = TOP + lines * (panel_height + GAP) - GAP + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' role="img" aria-labelledby="t d">',
        '<title id="t">What each proxy costs for the same work</title>',
        f'<desc id="d">{escape(_words(rows, names))}</desc>',
        f"<style>{STYLE}</style>",
        f'<rect class="ground" width="{width}" height="{height}"/>',
        _text(MARGIN, 34, "The cost of each proxy for the same work: lower is better", "head"),
        _text(MARGIN, 56, "CPU time of the proxy per unit, then memory and start. Each panel has its own scale;"
              " × is the ratio to its best.", "quiet"),
        _text(MARGIN, 74, _origin(runs), "quiet"),
    ]
    for index, (title, unit, values, words) in enumerate(panels):
        x = MARGIN + index % COLUMNS * (PANEL_WIDTH + GAP)
        y = TOP + index // COLUMNS * (panel_height + GAP)
        parts += _panel(x, y, title, unit, names, values, words)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _protocol(cell):
    return "HTTP/2" if cell.endswith("h2") else "HTTP/1.1"


def _cell_panel(rows, names, cell):
    values = figures.clean(rows, cell, names)
    words = {}
    for name in names:
        if name not in values:
            count = figures.errors(rows, name, cell)[0]
            words[name] = _without_figure(count, figures.median(rows, name, cell, figures.MAIN.field))
    return CELLS[cell].title, f"{CELLS[cell].unit.label}  ({cell})", values, words


def _without_figure(errors, median):
    if not errors:
        return "not measured"
    return "fails" if median is None else "errors"


def _other_panel(rows, names, cell, measure, title, unit):
    values = {name: figures.median(rows, name, cell, measure) for name in names}
    # Watches that failed use no memory, which must not look good.
    values = {n: v for n, v in values.items() if v is not None and not figures.errors(rows, n, cell)[0]}
    if not values:
        return None
    return title, unit, values, {name: "not measured" for name in names if name not in values}


def _panel(x, y, title, unit, names, values, words):
    best = min(values.values(), default=0)
    longest = max(values.values(), default=0)
    room = PANEL_WIDTH - LABELS - NUMBERS
    left = x + LABELS
    yield _text(x, y + 14, title, "title")
    yield _text(x, y + 31, unit, "quiet")
    for index, name in enumerate(names):
        top = y + TITLE_HEIGHT + index * ROW
        base = top + BAR - 3
        own = "own" if name == OURS else ""
        yield _text(left - 8, base, name, own, "end")
        if name not in values:
            yield _text(left + 6, base, words[name], "quiet" if words[name] == "not measured" else "fails")
            continue
        value = values[name]
        length = max(1, room * value / longest) if longest > 0 else 1
        yield f'<rect class="{"ours" if own else "bar"}" x="{left}" y="{top}" width="{length:.1f}" height="{BAR}" rx="2"/>'
        text = f"{figures.number(value)} · {'best' if value == best else figures.ratio(value, best)}"
        yield _text(left + length + 6, base, text, own)
    yield f'<line class="line" x1="{left}" y1="{y + TITLE_HEIGHT - 3}" x2="{left}" y2="{y + TITLE_HEIGHT + len(names) * ROW - 3}"/>'


def _text(x, y, text, kind="", anchor="start"):
    kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y}"{kind} text-anchor="{anchor}">{escape(text)}</text>'


def _words(rows, names):
    """The description of the picture for screen readers: the best of each cell, and the ratio of ours to it."""
    sentences = []
    for cell in figures.cells_of(rows):
        values = figures.clean(rows, cell, names)
        if not values:
            continue
        best = min(values, key=values.get)
        sentence = f"{CELLS[cell].title}: {best} is best"
        if OURS in values and best != OURS:
            sentence += f", ours takes {values[OURS] / values[best]:.2f} times as much"
        sentences.append(sentence + ".")
    return " ".join(sentences)


def _origin(runs):
    versions = {}
    for run in runs:
        versions.update(run.get("versions", {}))
    listed = ", ".join(f"{program} {version}" for program, version in versions.items())
    quick = "A quick run, too short to compare. " if any(run.get("quick") for run in runs) else ""
    merged = f"Combined from {len(runs)} runs. " if len(runs) > 1 else ""
    pin = runs[0].get("pin")
    pinned = "Nothing is pinned" if pin == "none" else f"CPUs of proxy and load: {pin}"
    return f"{quick}{merged}Medians; {listed}. {pinned}."
