"""The charts of the report on a corpus: amounts by name, and distributions with thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from llmkit.reports.charts import WIDTH, _cut, _svg, _tick, _ticks


@dataclass
class Part:
    """A bar: its name, its length, and what is written beside it."""

    name: str
    value: float
    text: str
    first: bool = False


@dataclass
class Columns:
    """A distribution: how many are in each bin, and what stands below and above the bins."""

    counts: Sequence[float]
    ticks: Sequence[tuple[float, str]]
    """Where they stand, in bins from the left edge, and their texts."""
    lines: Sequence[tuple[float, str]] = field(default_factory=tuple)
    """Thresholds: the same."""


def part_chart(parts: Sequence[Part], *, key: str, title: str) -> Markup:
    """Horizontal bars from zero, the longest over the whole width; the name of each stands above it."""
    if not parts or max(part.value for part in parts) <= 0:
        return Markup("")
    longest, step, right = max(part.value for part in parts), 40, WIDTH - 8.0
    drawn = []
    for number, part in enumerate(parts):
        top = step * number + 19
        kind = "first" if part.first else ""
        wide = (right - 4) * part.value / longest
        drawn += [
            f'<text class="{"strong" if part.first else "name"}" x="4" y="{top - 6}">{_cut(part.name, 40)}</text>',
            f'<text class="strong" x="{right}" y="{top - 6}" text-anchor="end">{escape(part.text)}</text>',
            f'<rect class="bar {kind}" x="4" y="{top}" width="{wide:.1f}" height="12"/>',
        ]
    return _svg(key, WIDTH, step * len(parts), title, "; ".join(f"{part.name}: {part.text}" for part in parts), drawn)


def column_chart(columns: Columns, *, key: str, title: str, x_label: str = "") -> Markup:
    """Upright bars from zero, and thresholds as lines over them."""
    counts = columns.counts
    if not len(counts) or max(counts) <= 0:
        return Markup("")
    y_ticks = [tick for tick in _ticks(0, max(counts), wanted=4) if tick == int(tick)]
    high = max(max(counts), y_ticks[-1])
    above = 16.0 * max(1, len(columns.lines))  # a line of its own for each, since thresholds may be close together
    left, right, top = 14 + 6.7 * max(len(_tick(tick)) for tick in y_ticks), WIDTH - 12.0, above + 10
    bottom = top + 150
    wide = (right - left) / len(counts)
    drawn = []
    for tick in y_ticks:
        y = bottom - tick / high * (bottom - top)
        drawn.append(f'<path class="{"grid" if tick else "axis"}" d="M{left:.1f} {y:.1f}H{right:.1f}"/>')
        drawn.append(f'<text x="{left - 7:.1f}" y="{y + 4:.1f}" text-anchor="end">{_tick(tick)}</text>')
    for number, count in enumerate(counts):
        if count:
            y = bottom - count / high * (bottom - top)
            gap = min(2.0, wide / 5)
            drawn.append(
                f'<rect class="bar first" x="{left + wide * number + gap / 2:.1f}" y="{y:.1f}" width="{wide - gap:.1f}" '
                f'height="{bottom - y:.1f}"/>'
            )
    for place, text in columns.ticks:
        x = left + wide * place
        drawn.append(f'<text x="{x:.1f}" y="{bottom + 17:.1f}" text-anchor="middle">{escape(text)}</text>')
    for number, (place, text) in enumerate(columns.lines):
        x, y = left + wide * place, 12.0 + 16 * number
        anchor = "end" if place > len(counts) * 0.6 else "start" if place < len(counts) * 0.4 else "middle"
        drawn.append(f'<path class="whisker" stroke-dasharray="5 3" d="M{x:.1f} {y + 4:.1f}V{bottom:.1f}"/>')
        drawn.append(f'<text class="strong" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')
    if x_label:
        drawn.append(f'<text x="{right:.1f}" y="{bottom + 34:.1f}" text-anchor="end">{escape(x_label)}</text>')
    thresholds = f"; thresholds: {', '.join(text for _, text in columns.lines)}" if columns.lines else ""
    summary = f"{len(counts)} columns, the highest of {_tick(max(counts))}{thresholds}"
    return _svg(key, WIDTH, bottom + (40 if x_label else 22), title, summary, drawn)
