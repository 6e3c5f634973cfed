"""The lists of words for swaps and of insults: what their cards say of them is so."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

from llmkit.resources import PACKAGE


def rows(name: str) -> list[dict[str, Any]]:
    path = PACKAGE / "data" / name / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def card(name: str) -> str:
    return (PACKAGE / "data" / name / "README.md").read_text(encoding="utf-8")


PAIRS = [row for row in rows("swaps") if "a" in row]


def test_the_card_of_the_swaps_tells_the_counts_that_are_there() -> None:
    counts = Counter((row["list"], row["language"]) for row in PAIRS)
    told = re.findall(r"^\| ([a-z ]+) \| (\d+) \| (\d+) \|$", card("swaps"), flags=re.MULTILINE)
    assert {name: (int(english), int(chinese)) for name, english, chinese in told} == {
        name: (counts[(name, "en")], counts[(name, "zh")]) for name, _ in counts
    }
    assert f"{len(PAIRS)} pairs of words" in card("swaps")


def test_every_row_is_a_pair_a_word_that_stays_or_a_word_that_stops() -> None:
    for row in rows("swaps"):
        kind = set(row) - {"list", "language", "one_way"}
        assert kind in ({"a", "b"}, {"keep"}, {"skip"}), row
        assert all(row[key].strip() == row[key] != "" for key in kind)
        assert bool(re.search("[\u4e00-\u9fff]", "".join(row[key] for key in kind))) == (row["language"] == "zh"), row


@pytest.mark.parametrize("name", sorted({row["list"] for row in PAIRS}))
def test_no_word_of_a_list_has_two_partners(name: str) -> None:
    ways = [row for row in PAIRS if row["list"] == name]
    words = [row["a"] for row in ways] + [row["b"] for row in ways if not row.get("one_way")]
    assert max(Counter(words).values()) == 1
    assert all(row["a"] != row["b"] for row in ways)


def test_a_and_an_stay_right() -> None:
    for row in PAIRS:
        if row["language"] == "en":
            assert (row["a"][0].casefold() in "aeiou") == (row["b"][0].casefold() in "aeiou"), row


def test_the_card_of_the_insults_tells_the_counts_that_are_there() -> None:
    counts = Counter(row["language"] for row in rows("insults"))
    assert f"{counts.total()} mild insults in English ({counts['en']}) and simplified Chinese ({counts['zh']})" in card(
        "insults"
    )
    assert max(Counter(row["word"] for row in rows("insults")).values()) == 1
    assert all(row["word"] == row["word"].casefold().strip() for row in rows("insults"))
