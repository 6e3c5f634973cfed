"""The charts: well formed, readable scales, and nothing that breaks on odd values."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from llmkit.reports import charts, words
from llmkit.reports.charts import Bar, Mark, Series


def parse(svg: str) -> ET.Element:
    root = ET.fromstring(svg)
    assert root.get("role") == "img"
    assert root[0].tag == "title" and root[0].text and root[1].tag == "desc" and root[1].text
    for value in (value for element in root.iter() for value in element.attrib.values()):
        assert "nan" not in value.split() and "inf" not in value
    return root


def texts(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter("text")]


@pytest.mark.parametrize(
    "points",
    [
        [(1, 2.0)],
        [(1, 0.0), (2, 0.0)],
        [(0, -3.0), (10, 5.0)],
        [(1, 1e-8), (1000, 1e9)],
        [(1, math.nan), (2, 1.0), (3, math.inf)],
        [(100_000, 3.0), (2_000_000, 1.0)],
        [(5, 7.1234567), (6, 7.1234568)],
    ],
)
def test_lines_of_any_values(points: list[tuple[float, float]]) -> None:
    parse(charts.line_chart([Series("a & <b>", points)], key="x", title="t & <u>"))


def test_lines_without_a_point_are_no_chart() -> None:
    assert charts.line_chart([Series("a", []), Series("b", [(1, math.nan)])], key="x", title="t") == ""


def test_a_rate_is_drawn_from_zero_whatever_its_span() -> None:
    for low, high in ((1e-6, 1e-3), (4990.0, 5010.0), (0.0, 0.0)):
        drawn = texts(parse(charts.line_chart([Series("a", [(1, low), (2, high)])], key="x", title="t", from_zero=True)))
        assert "log scale" not in drawn and drawn.count("0") >= 1


def test_a_wide_span_is_drawn_on_a_log_scale() -> None:
    wide = parse(charts.line_chart([Series("a", [(1, 100.0), (2, 1.0)])], key="x", title="t"))
    narrow = parse(charts.line_chart([Series("a", [(1, 10.0), (2, 1.0)])], key="x", title="t"))
    assert "log scale" in texts(wide) and "log scale" not in texts(narrow)


def test_thinning_keeps_ends_and_spikes() -> None:
    points = [(float(x), 100.0 if x == 777 else 1.0) for x in range(10_000)]
    kept = charts.thin(points)
    assert len(kept) <= 302 and kept[0] == points[0] and kept[-1] == points[-1] and (777.0, 100.0) in kept


def test_bars_with_whiskers_without_and_below_zero() -> None:
    bars = [Bar("model", 0.5, 0.4, 0.6, first=True), Bar("b" * 200, 0.2), Bar("负", -0.3, -0.4, -0.2)]
    root = parse(charts.bar_chart(bars, key="x", title="t"))
    assert len([element for element in root.iter("path") if element.get("class") == "whisker"]) == 2
    assert "\u22120.300" in texts(root)
    assert charts.bar_chart([], key="x", title="t") == ""
    parse(charts.bar_chart([Bar("bleu", 23.4, 20.1, 27.0)], key="x", title="t"))


def test_shares_lie_in_the_square_with_their_whiskers_and_the_diagonal() -> None:
    labels = {"x_label": "a & <b>", "y_label": "right"}
    curve = Series("c", [(0.0, 0.6), (0.5, math.nan), (1.0, 0.95)])
    marks = [Mark(0.2, 0.6, 0.4, 0.7), Mark(1.0, 1.0, 0.9, 1.0)]
    root = parse(charts.share_chart([curve], key="x", title="t", marks=marks, diagonal=True, bottom=0.5, **labels))
    assert len([element for element in root.iter("path") if element.get("class") == "whisker"]) == 2
    assert {"a & <b>", "right", "0.5", "1"} <= set(texts(root))
    (line,) = root.iter("polyline")
    ends = [tuple(map(float, point.split(","))) for point in (line.get("points") or "").split()]
    assert len(ends) == 2 and ends[0][0] < ends[1][0] and ends[0][1] > ends[1][1], "to the right and upwards"
    assert charts.share_chart([], key="x", title="t", **labels) == ""
    many = [Series(f"class {number}", [(0, 0), (1, 1)]) for number in range(6)]
    assert len(list(parse(charts.share_chart(many, key="x", title="t", **labels)).iter("polyline"))) == 4


def test_a_matrix_shows_counts_and_shares_of_rows() -> None:
    root = parse(charts.confusion_matrix([[8, 2], [0, 0]], ["yes", "no & <b>"], key="x", title="t"))
    assert {"8", "2", "80%", "20%", "0%"} <= set(texts(root))


@pytest.mark.parametrize("n", [1, 2, 5, 9, 25])
def test_a_matrix_of_many_labels_is_drawn_and_of_too_many_is_not(n: int) -> None:
    labels = [f"a long label 标签 {number}" for number in range(n)]
    parse(charts.confusion_matrix([[number] * n for number in range(n)], labels, key="x", title="t"))
    assert charts.confusion_matrix([[1] * 26] * 26, ["x"] * 26, key="x", title="t") == ""


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.31, 0.32), (3, 3), (0, 0), (-5, 1000), (1e-9, 2e-9)])
def test_ticks_enclose_the_values_and_are_few(low: float, high: float) -> None:
    ticks = charts._ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 9


@pytest.mark.parametrize(
    ("value", "key", "text"),
    [
        (1234567, "tokens", "1,234,567"),
        (1_500_000, "output_bytes", "1.5 MB"),
        (3.71, "bytes_per_token", "3.71"),
        (912.4, "train_runtime", "15 min 12 s"),
        (9000, "seconds", "2 h 30 min"),
        (12.5, "eval_samples_per_second", "12.5"),
        (0.00001, "rate", "1e\u221205"),
        (-0.25, "x", "\u22120.25"),
        (0.0, "x", "0"),
        (float("inf"), "x", "infinity"),
        (True, "x", "yes"),
        ([1, 2], "x", "1, 2"),
        ({}, "x", "none"),
    ],
)
def test_values_read_as_people_write_them(value: object, key: str, text: str) -> None:
    assert words.value_of(value, key) == text


def test_fit_counts_wide_characters_twice() -> None:
    assert words.fit("短短短短短短", 7) == "短短短…"
    assert words.fit("short", 7) == "short"


def test_a_graph_has_a_box_for_each_result_and_an_arrow_for_each_input() -> None:
    boxes = [
        charts.Box("corpus <b>", "aaa", []),
        charts.Box("tokenizer", "bbb", [0]),
        charts.Box("tokens", "ccc", [0, 1], is_lost=True),
        charts.Box("model", "ddd", [2], first=True),
    ]
    drawn = str(charts.graph(boxes, key="g", title="Lineage"))
    parse(drawn)
    assert drawn.count('class="box') == 4 and drawn.count('class="edge"') == 4 and drawn.count('class="head"') == 4
    assert "tokens ccc from corpus &lt;b&gt;, tokenizer" in drawn
    tops = [float(match) for match in re.findall(r'<rect class="box[^>]* y="([\d.]+)"', drawn)]
    assert tops == sorted(tops) and len(set(tops)) == 4
    assert charts.graph([charts.Box(str(n), "", []) for n in range(4)], key="g", title="Wide") == ""
