"""Statistics: the same whatever the parts and their order, right against plain counting, bounded in memory."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.corpus import statistics
from llmkit.corpus.statistics import COLUMNS, Statistics, vocabulary
from llmkit.corpus.statistics.characters import count_characters, kind_of
from llmkit.corpus.statistics.examples import PER_RULE
from llmkit.corpus.statistics.sketches import LEVELS, Amounts, Distinct, levels_of
from llmkit.corpus.words import Words, normalised, words

Row = dict[str, Any]

pieces = st.sampled_from(["red ", "Blue, ", "green\n", "红", "绿", "7 ", "ß", "カ", "\ud800", "-"])
texts = st.lists(pieces, max_size=40).map("".join)
metadata = st.fixed_dictionaries(
    {},
    optional={
        "language": st.sampled_from(["en", "zh", ""]),
        "url": st.sampled_from(["https://www.a.org/x", "http://b.com:80/", "no address", "http://[1"]),
        "date": st.sampled_from(["2021-03-04T10:00", "1999", "soon", 2020]),
        "license": st.sampled_from(["CC0", {"name": "own"}, None]),
        "opt_out": st.booleans(),
    },
)
row = st.fixed_dictionaries(
    {
        "text": texts,
        "source": st.sampled_from(["a", "b", "c"]),
        "metadata": metadata.map(json.dumps),
        "split": st.sampled_from(["train", "validation"]),
        "rule": st.sampled_from(["", "", "too short", "near duplicate"]),
        "pii_email": st.sampled_from([0.0, 1.0, 3.0, math.nan]),
    }
)


def statistics_of(rows: list[Row]) -> Statistics:
    found = Statistics()
    found.add_rows(
        [row["text"] for row in rows],
        [row["id"] for row in rows],
        [row["source"] for row in rows],
        [row["metadata"] for row in rows],
        ["" if row["rule"] else row["split"] for row in rows],
        [row["rule"] for row in rows],
        ["17" if row["rule"] else "" for row in rows],
        {"pii_email": np.array([row["pii_email"] for row in rows]), "other": np.ones(len(rows))},
    )
    return found


def written(found: Statistics) -> str:
    return json.dumps(found.to_json())


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that small examples reach, so that everything is sampled."""
    monkeypatch.setattr(statistics, "NAMES", 2)
    for name, value in {
        "PASSAGE": 3,
        "GROWTH_SKETCH": 4,
        "WORD_KINDS": 5,
        "WORDS_COUNTED": 40,
        "SOURCES": 2,
        "SOURCE_SKETCH": 4,
        "_CHARACTERS": 10,
        "_LONGEST": 20,
        "_WORD_END": 10,
        "_PENDING": 6,
    }.items():
        monkeypatch.setattr(vocabulary, name, value)


@pytest.mark.usefixtures("tight")
@settings(deadline=None, max_examples=60)
@given(st.lists(row, max_size=25), st.data())
def test_parts_give_the_same_in_any_partition_and_order(rows: list[Row], data: Any) -> None:
    rows = [{**one, "id": f"id-{number}"} for number, one in enumerate(rows)]
    whole = written(statistics_of(rows))
    part_of = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
    parts = [statistics_of([one for one, part in zip(rows, part_of, strict=True) if part == number]) for number in range(4)]
    parts = [Statistics.from_json(json.loads(written(part))) for part in data.draw(st.permutations(parts))]
    first, second, third, fourth = parts
    if data.draw(st.booleans()):  # ((1 2) 3) 4, or (1 2) (3 4)
        for other in (second, third, fourth):
            first.merge(other)
    else:
        first.merge(second)
        third.merge(fourth)
        first.merge(third)
    assert written(first) == whole
    shuffled = data.draw(st.permutations(rows))
    assert written(statistics_of(shuffled)) == whole


@settings(deadline=None, max_examples=50)
@given(st.lists(row, max_size=12))
def test_figures_are_those_of_plain_counting(rows: list[Row]) -> None:
    rows = [{**one, "id": f"id-{number}"} for number, one in enumerate(rows)]
    found = statistics_of(rows)
    kept = [one for one in rows if not one["rule"]]
    for group, key in (("split", "split"), ("source", "source")):
        expected: dict[str, list[int]] = {}
        for one in rows:
            size = len(one["text"].encode("utf-8", "surrogatepass"))
            counted = sum(1 for _ in Words([one["text"]]).starts)
            name = "" if one["rule"] and group == "split" else one[key]
            amounts = [0, 0, 0, 0, 1, size] if one["rule"] else [1, size, len(one["text"]), counted, 0, 0]
            expected[name] = [a + b for a, b in zip(expected.get(name, [0] * len(COLUMNS)), amounts, strict=True)]
        assert found.groups[group].totals() == dict(sorted(expected.items()))
    assert {rule: amounts[0] for rule, amounts in found.rules.totals().items()} == Counter(
        one["rule"] for one in rows if one["rule"]
    )
    assert found.characters == count_characters(one["text"] for one in kept)
    every = [word for one in kept for word in words(normalised(one["text"])) if word.isalnum()]
    usage = found.vocabulary.usage()
    assert found.vocabulary.words() == len(every)
    if usage is not None:
        assert (usage.words, usage.kinds, usage.level) == (len(every), len(set(every)), 0)
        plain = -sum(n / len(every) * math.log2(n / len(every)) for n in Counter(every).values())
        assert usage.entropy == pytest.approx(plain + (len(set(every)) - 1) / (2 * len(every) * math.log(2)))
        assert found.vocabulary.growth()[-1] == (len(every), len(set(every)))
    counts = [one["pii_email"] for one in kept if one["pii_email"] > 0]
    assert found.pii.get("email", [0, 0]) == [sum(counts), len(counts)]


def one_document(**facts: Any) -> Statistics:
    found = Statistics()
    found.add(["A text."], ["1"], ["a"], [json.dumps(facts)], ["train"])
    return found


@pytest.mark.parametrize(
    ("facts", "group", "name"),
    [
        ({"host": "WWW.Example.org"}, "domain", "example.org"),
        ({"url": "https://user@www.example.org:80/path?x=http://other.com"}, "domain", "example.org"),
        ({"url": "http://[::1]/"}, "domain", "[::1]"),
        ({"url": "http://[1"}, "domain", ""),
        ({"url": "not an address"}, "domain", ""),
        ({"date": "2021-03-04T05:06:07Z"}, "year", "2021"),
        ({"year": 1999}, "year", "1999"),
        ({"date": "yesterday"}, "year", ""),
        ({"date": 1609459200}, "year", ""),
        ({"date": 20210304}, "year", "2021"),
        ({"language": "zh-hant"}, "language", "zh-hant"),
        ({"licence": "CC-BY-4.0"}, "license", "CC-BY-4.0"),
        ({"opt_out": True}, "opt_out", "true"),
        ({"opt_out": False}, "opt_out", "false"),
        ({}, "license", ""),
    ],
)
def test_metadata(facts: dict[str, Any], group: str, name: str) -> None:
    assert list(one_document(**facts).groups[group].totals()) == [name]


def test_dates_are_a_range() -> None:
    first = one_document(date="2021-03-04T05:06:07Z")
    first.merge(one_document(date="1999"))
    first.merge(one_document())
    first.merge(one_document(date=20200102))
    first.merge(one_document(date=1609459200))
    assert first.dates == ("1999", "2021-03-04")
    assert one_document(date=20200102).dates == ("2020-01-02", "2020-01-02")


def test_lengths_are_powers_of_two() -> None:
    found = Statistics()
    sizes = [1, 2, 3, 4, 1023, 1024]
    found.add(["x" * n for n in sizes], [str(n) for n in sizes], ["a"] * 6, ["{}"] * 6, ["train"] * 6)
    assert {name: amounts[0] for name, amounts in found.groups["length"].totals().items()} == {
        "0": 1,
        "1": 2,
        "2": 1,
        "9": 1,
        "10": 1,
    }


def test_examples_are_few_short_and_the_same_for_any_order() -> None:
    def rejected(order: list[int]) -> list[Any]:
        found = Statistics()
        for number in order:
            found.add_rejected([f"{number} " * 500], [f"id-{number}"], ["a"], ["{}"], ["too short"], [str(number)])
        return found.examples.of("too short")

    there, back = rejected(list(range(100))), rejected(list(range(99, -1, -1)))
    assert there == back and len(there) == PER_RULE
    assert all(len(example.text) == 300 < example.characters for example in there)


def test_characters_have_the_script_of_their_name() -> None:
    kinds = {char: kind_of(char) for char in "aＡ红豈々かカﾊ한яعहก7७。!€ \u3000\n\t\x00\ue000\ud800ʰ\u0301𝒜"}
    assert [kinds[char] for char in "aＡ𝒜"] == ["Latin"] * 3
    assert [kinds[char] for char in "红豈々"] == ["Han"] * 3
    assert [kinds[char] for char in "かカﾊ"] == ["kana"] * 3
    assert [kinds[char] for char in "한яعहก"] == ["Hangul", "Cyrillic", "Arabic", "Devanagari", "Thai"]
    assert {kinds[char] for char in "7७"} == {"digits"}
    assert {kinds[char] for char in " \u3000\n\t"} == {"white space"}
    assert {kinds[char] for char in "。!€"} == {"punctuation and symbols"}
    assert {kinds[char] for char in "\x00\ue000\ud800"} == {"control and unassigned characters"}
    assert kinds["\u0301"] == "other letters and marks"


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1))
def test_a_level_is_the_number_of_zeros_at_the_end(values: list[int]) -> None:
    expected = [min(LEVELS - 1, (value & -value).bit_length() - 1 if value else LEVELS) for value in values]
    assert levels_of(np.array(values, dtype=np.uint64)).tolist() == expected


def test_distinct_hashes_are_counted_exactly_while_few_and_closely_when_many() -> None:
    generator = np.random.default_rng(0)
    many = generator.integers(0, 2**64 - 1, 200_000, dtype=np.uint64, endpoint=True)
    found = Distinct(1024)
    for part in np.split(np.concatenate([many, many[:100_000]]), 30):
        found.add(part)
    assert not found.is_exact()
    assert abs(found.estimate() / 200_000 - 1) < 4 / math.sqrt(1022)
    few = Distinct(1024)
    few.add(np.concatenate([many[:1000], many[:1000]]))
    assert few.is_exact() and few.estimate() == 1000


def test_many_names_are_sampled_and_shares_stay_right() -> None:
    hashes = np.random.default_rng(1).integers(0, 2**64 - 1, 20_000, dtype=np.uint64)
    names = ["common" if number % 4 == 0 else f"rare-{number}" for number in range(20_000)]
    found = Amounts(1000, 1)
    found.add(names, levels_of(hashes), np.ones((20_000, 1), dtype=np.int64))
    totals = found.totals()
    assert found.level > 0 and 400 < len(totals) <= 1000
    n = sum(amount for (amount,) in totals.values())
    assert abs(totals["common"][0] / n - 0.25) < 4 * math.sqrt(0.25 * 0.75 / n)


def zipf_texts(count: int, seed: int, prefix: str = "w") -> list[str]:
    """Texts of words that are used as often as Zipf's law says."""
    generator = random.Random(seed)
    return [" ".join(f"{prefix}{int(generator.paretovariate(0.4))}" for _ in range(200)) for _ in range(count)]


def of_texts(found: Statistics, some: list[str], source: str) -> None:
    ids = [f"{source}:{number}" for number in range(len(some))]
    found.add(some, ids, [source] * len(some), ["{}"] * len(some), ["train"] * len(some))


def test_growth_rises_to_the_size_of_the_vocabulary() -> None:
    found = Statistics()
    some = zipf_texts(400, seed=0)
    of_texts(found, some, "a")
    points = found.vocabulary.growth()
    assert points == sorted(points)
    kinds = len({word for text in some for word in text.split()})
    assert points[-1][0] == 400 * 200
    assert abs(points[-1][1] / kinds - 1) < 4 / math.sqrt(1022)
    heaps = found.vocabulary.heaps()
    assert heaps is not None and 0.3 < heaps[1] < 1
    assert one_document().vocabulary.heaps() is None


def shingles(some: list[str]) -> set[tuple[str, ...]]:
    return {tuple(cut[start : start + 5]) for cut in map(str.split, some) for start in range(len(cut) - 4)}


def test_overlap_is_the_share_of_shingles() -> None:
    found = Statistics()
    ours, theirs = zipf_texts(100, seed=2, prefix="a"), zipf_texts(300, seed=3, prefix="b")
    of_texts(found, ours, "ours")
    of_texts(found, theirs + ours[:25], "theirs")
    of_texts(found, ["a short one of six words"], "short")
    own, other = shingles(ours), shingles([*theirs, *ours[:25]])
    expected = len(own & other) / len(own)
    assert 0.1 < expected < 0.4
    share = found.overlap.share("ours", "theirs")
    assert share is not None and abs(share[0] - expected) < 4 * math.sqrt(expected * (1 - expected) / share[1])
    same = found.overlap.share("ours", "ours")
    assert same is not None and same[0] == 1
    assert found.overlap.share("short", "ours") is None


def test_a_long_text_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(zipf_texts(50, seed=4))
    whole = Statistics()
    of_texts(whole, [text], "a")
    monkeypatch.setattr(vocabulary, "_LONGEST", 5000)
    monkeypatch.setattr(vocabulary, "_CHARACTERS", 4000)
    pieces = Statistics()
    of_texts(pieces, [text], "a")
    assert pieces.vocabulary.to_json() == whole.vocabulary.to_json()
    assert pieces.groups["split"].totals() == whole.groups["split"].totals()


def test_memory_and_file_stay_bounded_however_many_words_there_are() -> None:
    found = Statistics()
    for seed in range(3):
        of_texts(found, zipf_texts(900, seed, prefix=f"v{seed}x"), f"s{seed}")
    usage = found.vocabulary.usage()
    assert usage is not None and usage.level > 0
    assert usage.kinds <= vocabulary.WORD_KINDS and usage.words <= vocabulary.WORDS_COUNTED
    assert len(written(found)) < 1_500_000
