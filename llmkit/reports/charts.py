"""Charts as inline SVG, drawn by hand: no library, no script, and the page's own colours in light, dark and print.

Every chart is about 400 units wide and scales with its box, so that two stand side by side on a desk and one fills a
phone at a readable size. Series differ in colour, dash and mark, not in colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from llmkit.reports.words import clean, fit, score, signed, width

WIDTH = 400
_CHAR = 6.7  # mean width of a character of 12 units
_POINTS = 300  # a series with more is thinned; no screen shows them
_MARKED = 40  # a series with at most this many points shows each
MAX_CELLS = 25  # labels that a confusion matrix still shows legibly

STYLE = """
svg.chart { display: block; width: 100%; max-width: 34rem; height: auto; overflow: visible; }
svg.chart text { font: 12px var(--sans); fill: var(--soft); font-variant-numeric: tabular-nums; }
svg.chart .name { fill: var(--ink); }
svg.chart .strong { fill: var(--ink); font-weight: 600; }
svg.chart .grid { stroke: var(--line); stroke-width: 1; fill: none; }
svg.chart .axis { stroke: var(--soft); stroke-width: 1; fill: none; }
svg.chart .whisker { stroke: var(--ink); stroke-width: 1.5; fill: none; }
svg.chart .bar { fill: var(--plain); }
svg.chart .bar.first { fill: var(--s0); }
svg.chart .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg.chart .l0 { stroke: var(--s0); } svg.chart .m0 { fill: var(--s0); }
svg.chart .l1 { stroke: var(--s1); stroke-dasharray: 7 4; } svg.chart .m1 { fill: var(--s1); }
svg.chart .l2 { stroke: var(--s2); stroke-dasharray: 2 4; } svg.chart .m2 { fill: var(--s2); }
svg.chart .l3 { stroke: var(--s3); stroke-dasharray: 9 3 2 3; } svg.chart .m3 { fill: var(--s3); }
svg.chart .box { fill: var(--wash); stroke: var(--soft); stroke-width: 1; } svg.chart .box.lost { stroke-dasharray: 4 3; }
svg.chart .box.first { stroke: var(--s0); stroke-width: 2; } svg.chart .code { font-family: var(--mono); font-size: 11px; }
svg.chart .edge { stroke: var(--soft); stroke-width: 1.25; fill: none; } svg.chart .head { fill: var(--soft); }
svg.chart .cell { fill: var(--heat); }
svg.chart text.count { font-size: 15px; font-weight: 600; fill: var(--ink); }
svg.chart text.share { fill: var(--ink); }
svg.chart text.over { fill: var(--on-heat); }
svg.chart text.between { fill: var(--between-heat); }
"""


@dataclass
class Series:
    """A line: its name and its points, sorted by x."""

    name: str
    points: list[tuple[float, float]]


@dataclass
class Bar:
    """A value with its interval."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    first: bool = False
    """Drawn in the colour of the model, not of a baseline."""


@dataclass
class Box:
    """A result of a stage in a graph."""

    name: str
    code: str
    """A second line, in the type of code."""
    inputs: list[int]
    """Places in the list of boxes of those it was made from; all stand before it."""
    is_lost: bool = False
    first: bool = False
    """Drawn in the colour of what the page is on."""


def line_chart(series: Sequence[Series], *, key: str, title: str, x_label: str = "step", from_zero: bool = False) -> Markup:
    """Lines over steps; the y axis is logarithmic where the values span more than a factor of 20.

    Args:
        key: makes the ids of this chart unique on its page.
        from_zero: the y axis is linear and begins at zero, whatever the values.
    """
    series = [Series(item.name, _finite(item.points)) for item in series]
    series = [item for item in series if item.points][:4]
    if not series:
        return Markup("")
    xs = [x for item in series for x, _ in item.points]
    ys = [y for item in series for _, y in item.points]
    log = not from_zero and min(ys) > 0 and max(ys) / min(ys) > 20
    y_ticks = _log_ticks(min(ys), max(ys)) if log else _ticks(0.0 if from_zero else min(ys), max(ys))
    low, high = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)
    first, last = (0.0 if 0 <= min(xs) < 0.4 * max(xs) else min(xs)), max(xs)
    x_ticks = [x for x in _ticks(first, last, whole=True) if first <= x <= last]

    legend, legend_height = _legend(series)
    left, right, top = 14 + _CHAR * max(len(_tick(y)) for y in y_ticks), WIDTH - 12, 14 + legend_height
    bottom = top + 190

    def place_x(x: float) -> float:
        return left + (x - first) / ((last - first) or 1) * (right - left)

    def place_y(y: float) -> float:
        a, b, c = (math.log(low), math.log(high), math.log(y)) if log else (low, high, y)
        return bottom - (c - a) / ((b - a) or 1) * (bottom - top)

    parts = [*legend, f'<text x="{right:.1f}" y="12" text-anchor="end">{"log scale" if log else ""}</text>']
    for y in y_ticks:
        parts.append(f'<path class="grid" d="M{left:.1f} {place_y(y):.1f}H{right:.1f}"/>')
        parts.append(f'<text x="{left - 7:.1f}" y="{place_y(y) + 4:.1f}" text-anchor="end">{_tick(y)}</text>')
    parts.append(f'<path class="axis" d="M{left:.1f} {bottom:.1f}H{right:.1f}"/>')
    for x in x_ticks:
        parts.append(f'<path class="axis" d="M{place_x(x):.1f} {bottom:.1f}v4"/>')
        parts.append(f'<text x="{place_x(x):.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{_tick(x)}</text>')
    parts.append(f'<text x="{right:.1f}" y="{bottom + 36:.1f}" text-anchor="end">{escape(x_label)}</text>')
    for number, item in enumerate(series):
        points = [(place_x(x), place_y(y)) for x, y in thin(item.points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="line l{number}" points="{path}"/>')
        if len(item.points) <= _MARKED:
            parts += [_mark(number, x, y) for x, y in points]
    summary = "; ".join(
        f"{item.name}: {len(item.points)} points, first {_tick(item.points[0][1])} at step {_tick(item.points[0][0])}, "
        f"last {_tick(item.points[-1][1])} at step {_tick(item.points[-1][0])}"
        for item in series
    )
    return _svg(key, WIDTH, bottom + 42, title, summary, parts)


@dataclass
class Mark:
    """A point of a chart of shares, with its interval from below to above."""

    x: float
    y: float
    low: float
    high: float


def share_chart(
    series: Sequence[Series],
    *,
    key: str,
    title: str,
    x_label: str,
    y_label: str,
    marks: Sequence[Mark] = (),
    diagonal: bool = False,
    bottom: float = 0.0,
) -> Markup:
    """Lines and marks in a square from 0 to 1.

    Args:
        diagonal: a line of equal shares, for comparison.
        bottom: where the y axis begins.
    """
    series = [Series(item.name, _finite(item.points)) for item in series]
    series = [item for item in series if item.points][:4]
    if not series and not marks:
        return Markup("")
    legend, top = _legend(series) if len(series) > 1 else ([], 0.0)
    left, right, top = 46.0, WIDTH - 12.0, top + 32
    base = top + (right - left) * 0.75

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x * (right - left), base - (y - bottom) / (1 - bottom) * (base - top)

    parts = [*legend, f'<text x="{left:.1f}" y="{top - 10:.1f}">{escape(y_label)}</text>']
    for tick in _ticks(bottom, 1):
        _, y = place(0, tick)
        parts.append(f'<path class="{"axis" if tick == bottom else "grid"}" d="M{left:.1f} {y:.1f}H{right:.1f}"/>')
        parts.append(f'<text x="{left - 7:.1f}" y="{y + 4:.1f}" text-anchor="end">{_tick(tick)}</text>')
    for tick in _ticks(0, 1):
        x, y = place(tick, bottom)
        parts.append(f'<path class="axis" d="M{x:.1f} {y:.1f}v4"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{_tick(tick)}</text>')
    parts.append(f'<text x="{right:.1f}" y="{base + 36:.1f}" text-anchor="end">{escape(x_label)}</text>')
    if diagonal:
        (x, y), (end, high) = place(bottom, bottom), place(1, 1)
        parts.append(f'<path class="axis" stroke-dasharray="4 4" d="M{x:.1f} {y:.1f}L{end:.1f} {high:.1f}"/>')
    for number, item in enumerate(series):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in item.points))
        parts.append(f'<polyline class="line l{number}" points="{path}"/>')
    for mark in marks:
        x, y = place(mark.x, mark.y)
        _, low = place(mark.x, max(bottom, mark.low))
        _, high = place(mark.x, mark.high)
        parts.append(
            f'<path class="whisker" d="M{x:.1f} {low:.1f}V{high:.1f}M{x - 3:.1f} {low:.1f}h6M{x - 3:.1f} {high:.1f}h6"/>'
        )
        parts.append(_mark(0, x, y))
    summary = [f"{item.name}: {len(item.points)} points" for item in series]
    summary += [f"{score(mark.y)} ({score(mark.low)} to {score(mark.high)}) at {score(mark.x)}" for mark in marks]
    return _svg(key, WIDTH, base + 42, title, "; ".join(summary), parts)


def bar_chart(bars: Sequence[Bar], *, key: str, title: str) -> Markup:
    """Horizontal bars from zero, each with its interval as a whisker; its name, which may be long, stands above it."""
    if not bars:
        return Markup("")
    edges = [edge for bar in bars for edge in (bar.value, bar.low, bar.high) if edge is not None]
    high = 1.0 if max(edges) <= 1 else _ticks(0, max(edges))[-1]
    low = 0.0 if min(edges) >= 0 else -1.0 if min(edges) >= -1 and high == 1 else _ticks(min(edges), 0)[0]
    left, right, step = 4.0, WIDTH - 8.0, 46

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    bottom = step * len(bars) - 4
    parts = []
    for tick in _ticks(low, high):
        rows = "".join(f"M{place(tick):.1f} {step * number + 17}v24" for number in range(len(bars)))
        parts.append(f'<path class="{"grid" if tick else "axis"}" d="{rows}"/>')
        parts.append(f'<text x="{place(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{_tick(tick)}</text>')
    for number, bar in enumerate(bars):
        top = step * number + 20
        start, end = sorted((place(0), place(bar.value)))
        name = "first" if bar.first else ""
        parts.append(f'<text class="{"strong" if bar.first else "name"}" x="{left}" y="{top - 6}">{_cut(bar.name, 46)}</text>')
        value = f'<text class="strong" x="{right}" y="{top - 6}" text-anchor="end">{score(bar.value)}</text>'
        parts += [value, f'<rect class="bar {name}" x="{start:.1f}" y="{top}" width="{end - start:.1f}" height="18"/>']
        if bar.low is not None and bar.high is not None:
            a, b, middle = place(bar.low), place(bar.high), top + 9
            parts.append(f'<path class="whisker" d="M{a:.1f} {middle}H{b:.1f}M{a:.1f} {top + 4}v10M{b:.1f} {top + 4}v10"/>')
    summary = "; ".join(
        f"{bar.name}: {score(bar.value)}"
        + (f" ({score(bar.low)} to {score(bar.high)})" if bar.low is not None and bar.high is not None else "")
        for bar in bars
    )
    return _svg(key, WIDTH, bottom + 22, title, summary, parts)


def confusion_matrix(counts: Sequence[Sequence[int]], labels: Sequence[str], *, key: str, title: str) -> Markup:
    """Rows are true labels, columns predictions; colour and percentage are the share of the row."""
    n = len(labels)
    if not 0 < n <= MAX_CELLS or len(counts) != n:
        return Markup("")
    shown = [fit(label, 16) for label in labels]
    margin = min(124.0, 30 + _CHAR * max(width(label) for label in shown))
    cell = max(30.0, min(92.0, (WIDTH - margin) / n))
    slanted = any(_CHAR * width(label) > cell - 4 for label in shown)
    top = 26 + (_CHAR * max(width(label) for label in shown) * 0.75 if slanted else 16)
    height = cell if n > 6 else min(cell, 64.0)
    parts = [
        f'<text x="{margin:.1f}" y="12">predicted</text>',
        f'<text transform="translate(12 {top + height * n / 2:.1f}) rotate(-90)" text-anchor="middle">true</text>',
    ]
    for column, label in enumerate(shown):
        x = margin + cell * (column + 0.5)
        if slanted:
            parts.append(
                f'<text class="name" transform="translate({x:.1f} {top - 6:.1f}) rotate(-45)">{_cut(label, 16)}</text>'
            )
        else:
            parts.append(f'<text class="name" x="{x:.1f}" y="{top - 8:.1f}" text-anchor="middle">{_cut(label, 16)}</text>')
    for row, label in enumerate(shown):
        y = top + height * row
        total = sum(counts[row])
        parts.append(
            f'<text class="name" x="{margin - 8:.1f}" y="{y + height / 2 + 4:.1f}" text-anchor="end">{_cut(label, 16)}</text>'
        )
        for column in range(n):
            value = counts[row][column]
            parts += _cell(value, total, margin + cell * column, y, cell, height, n)
    summary = "; ".join(
        f"true {labels[row]}: "
        + ", ".join(f"{counts[row][column]} as {labels[column]}" for column in range(n) if counts[row][column])
        for row in range(n)
    )
    total_width = max(float(WIDTH), margin + cell * n + 2)
    bottom = top + height * n + 4
    return _svg(key, total_width, bottom, title, summary if n <= 12 else "The counts stand in report.json.", parts)


def _cell(value: int, total: int, x: float, y: float, cell: float, height: float, n: int) -> list[str]:
    share = value / total if total else 0.0
    # Dark text on a light cell, light on a dark one. Between 0.55 and 0.7 the schemes differ.
    tone = "over" if share >= 0.7 else "between" if share >= 0.55 else ""
    parts = [
        f'<rect class="cell" x="{x + 1:.1f}" y="{y + 1:.1f}" width="{cell - 2:.1f}" height="{height - 2:.1f}" '
        f'fill-opacity="{0.05 + 0.95 * share:.2f}"/>'
    ]
    middle, centre = x + cell / 2, y + height / 2
    if n <= 8:
        parts.append(f'<text class="count {tone}" x="{middle:.1f}" y="{centre - 1:.1f}" text-anchor="middle">{value}</text>')
        parts.append(
            f'<text class="share {tone}" x="{middle:.1f}" y="{centre + 16:.1f}" text-anchor="middle">{100 * share:.0f}%</text>'
        )
    elif value:
        parts.append(f'<text class="share {tone}" x="{middle:.1f}" y="{centre + 4:.1f}" text-anchor="middle">{value}</text>')
    return parts


def graph(boxes: Sequence[Box], *, key: str, title: str) -> Markup:
    """What was made from what, from top to bottom; an arrow over more than one row goes round at the side.

    Empty where a row would have more boxes than can be read.
    """
    rows: list[list[int]] = []
    row_of: dict[int, int] = {}
    for number, box in enumerate(boxes):
        row_of[number] = max((row_of[source] + 1 for source in box.inputs), default=0)
        if row_of[number] == len(rows):
            rows.append([])
        rows[row_of[number]].append(number)
    widest = max(map(len, rows), default=0)
    if not 0 < widest <= 3:
        return Markup("")
    side, high, step = 40.0, 40.0, 66.0
    wide = min(170.0, (WIDTH - 2 * side) / widest - 12)
    middle = {number: side + (WIDTH - 2 * side) * (place + 0.5) / len(row) for row in rows for place, number in enumerate(row)}
    parts = []
    for number, box in enumerate(boxes):
        x, top = middle[number], 4 + step * row_of[number]
        for source in box.inputs:
            parts += _edge(middle[source], 4 + step * row_of[source], x, top, wide, high, row_of[number] - row_of[source])
        kind = " lost" if box.is_lost else " first" if box.first else ""
        parts += [
            f'<rect class="box{kind}" x="{x - wide / 2:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{high:.0f}" rx="4"/>',
            f'<text class="strong" x="{x:.1f}" y="{top + 17:.1f}" text-anchor="middle">{_cut(box.name, int(wide / 8))}</text>',
            f'<text class="code" x="{x:.1f}" y="{top + 32:.1f}" text-anchor="middle">{_cut(box.code, int(wide / 7))}</text>',
        ]
    summary = "; ".join(
        f"{box.name} {box.code}" + (f" from {', '.join(boxes[source].name for source in box.inputs)}" if box.inputs else "")
        for box in boxes
    )
    return _svg(key, WIDTH, step * len(rows) - step + high + 8, title, summary, parts)


def _edge(x: float, y: float, to_x: float, to_y: float, wide: float, high: float, rows: int) -> list[str]:
    """An arrow from the box whose top stands at the one place to that of the other."""
    if rows == 1:
        middle = (y + high + to_y) / 2
        line = f"M{x:.1f} {y + high:.1f}C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y - 5:.1f}"
        head = f"M{to_x:.1f} {to_y:.1f}l-4 -7h8z"
    else:
        start, end, out = x + wide / 2, to_x + wide / 2, max(x, to_x) + wide / 2 + 16 * rows
        line = f"M{start:.1f} {y + high / 2:.1f}C{out:.1f} {y + high / 2:.1f} {out:.1f} {to_y + high / 2:.1f} "
        line += f"{end + 5:.1f} {to_y + high / 2:.1f}"
        head = f"M{end:.1f} {to_y + high / 2:.1f}l7 -4v8z"
    return [f'<path class="edge" d="{line}"/>', f'<path class="head" d="{head}"/>']


def thin(points: Sequence[tuple[float, float]], limit: int = _POINTS) -> list[tuple[float, float]]:
    """Fewer points that still show every spike: of each stretch the lowest and the highest, and both ends."""
    if len(points) <= limit:
        return list(points)
    stretches = limit // 2
    kept = {0, len(points) - 1}
    for number in range(stretches):
        part = range(number * len(points) // stretches, (number + 1) * len(points) // stretches)
        kept |= {min(part, key=lambda i: points[i][1]), max(part, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


# --------------------------------------------------------------------------------------------------------------------
# Parts


def _svg(key: str, wide: float, high: float, title: str, summary: str, parts: Sequence[str]) -> Markup:
    least = f' style="min-width: {wide:.0f}px"' if wide > WIDTH else ""
    return Markup(
        f'<svg class="chart" role="img" aria-labelledby="{key}-title {key}-about" '
        f'viewBox="0 0 {wide:.0f} {high:.0f}"{least}>'
        f'<title id="{key}-title">{escape(clean(title))}</title><desc id="{key}-about">{escape(clean(summary))}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _cut(text: str, columns: int) -> Markup:
    return escape(fit(text, columns))


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _legend(series: Sequence[Series]) -> tuple[list[str], float]:
    """The names with a sample of their lines, in rows; and the height that the rows take."""
    parts = []
    x, y = 0.0, 12.0
    for number, item in enumerate(series):
        name = fit(item.name, 40)
        wide = 38 + _CHAR * width(name) + 16
        if x and x + wide > WIDTH - 70:
            x, y = 0.0, y + 18
        parts.append(f'<path class="line l{number}" d="M{x + 2:.1f} {y - 4:.1f}h26"/>')
        if len(item.points) <= _MARKED:
            parts.append(_mark(number, x + 15, y - 4))
        parts.append(f'<text class="name" x="{x + 36:.1f}" y="{y:.1f}">{escape(name)}</text>')
        x += wide
    return parts, y


def _mark(number: int, x: float, y: float) -> str:
    shape = number % 4
    if shape == 0:
        return f'<circle class="m0" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>'
    if shape == 1:
        return f'<rect class="m1" x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"/>'
    if shape == 2:
        return f'<path class="m2" d="M{x:.1f} {y - 4:.1f}l4 7h-8z"/>'
    return f'<path class="m3" d="M{x:.1f} {y - 4:.1f}l4 4l-4 4l-4-4z"/>'


def _ticks(low: float, high: float, wanted: int = 5, whole: bool = False) -> list[float]:
    """Round numbers that enclose a range."""
    if high <= low:
        pad = abs(low) * 0.05 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    if whole:
        step = max(1.0, float(math.ceil(step)))
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(start, end + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    if len(powers) > 4:
        every = [10.0**power for power in powers]
    inner = [tick for tick in every if low * 0.999 <= tick <= high * 1.001]
    below = max((tick for tick in every if tick <= low), default=low)
    above = min((tick for tick in every if tick >= high), default=high)
    return sorted({below, *inner, above})


def _tick(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= limit:
                return signed(f"{value / limit:.4g}{unit}")
    return signed(f"{value:.4g}")
