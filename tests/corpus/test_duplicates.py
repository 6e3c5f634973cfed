"""Which duplicates go: the law by brute force, and that nothing depends on how the work is cut."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.corpus.duplicates import decide as deciding
from llmkit.corpus.duplicates.curve import sample_quality
from llmkit.corpus.duplicates.decide import Decisions, Summary, decide, serially
from llmkit.corpus.duplicates.marks import LEAST_BYTES, Marker, counting, pieces, without
from llmkit.corpus.duplicates.minhash import MinHash
from llmkit.corpus.duplicates.sample import sample
from llmkit.corpus.duplicates.settings import DuplicateSettings
from llmkit.errors import ConfigError, DataError

pytest.importorskip("numba")

EXACT = DuplicateSettings(documents=True, paragraphs=False, near=False)
NEAR = DuplicateSettings(documents=True, paragraphs=False, near=True, bands=4, rows=2, ngram=2)
ALL = DuplicateSettings(documents=True, paragraphs=True, near=True, bands=4, rows=2, ngram=2)

Row = tuple[str, bool]

pool = [
    "the cat sat on the mat and looked at the wall for a while",
    "The cat sat on the mat and looked at the wall for a while!",
    "the cat sat on the mat and looked at the door for a while",
    "a cat sat on the mat and looked at the door for an hour",
    "something that has no word in common but that",
    "床前明月光疑是地上霜举头望明月低头思故乡",
    "床前明月光疑是地上霜举头望山月低头思故乡",
    "",
    "!!!",
    "one",
]
rows = st.lists(st.tuples(st.sampled_from(pool), st.booleans()), max_size=14)


def decided(
    place: Path, parts: Sequence[Sequence[Row]], chosen: DuplicateSettings, run: Any = serially, bucket: int = 1 << 22
) -> tuple[Summary, list[tuple[str, str]], list[str]]:
    """Rule and twin of each document, whose ids are their numbers, and their texts."""
    number = 0
    paths = []
    for part, documents in enumerate(parts):
        marks = Marker(chosen)
        for text, is_validation in documents:
            marks.add([text], [str(number)], is_validation)
            number += 1
        paths.append(place / f"marks-{part}")
        marks.save(paths[-1])
    summary = decide(paths, chosen, place / "decisions", run, bucket)
    verdicts, texts = [], []
    for part, documents in enumerate(parts):
        found = Decisions.load(place / "decisions", part)
        assert len(found) == len(documents)
        for place_in_part, (text, _) in enumerate(documents):
            verdicts.append((found.rule(place_in_part), found.twin(place_in_part)))
            texts.append(found.text(place_in_part, text))
    return summary, verdicts, texts


def expected(documents: Sequence[Row], chosen: DuplicateSettings) -> list[tuple[str, str]]:
    """The law, by comparing all with all."""
    order = sorted(range(len(documents)), key=lambda number: (not documents[number][1], number))
    rank = {number: place for place, number in enumerate(order)}
    first: dict[int, int] = {}
    for number in range(len(documents)):
        equal = [other for other in order if documents[other][0] == documents[number][0]]
        leaves = chosen.documents or (documents[equal[0]][1] and not documents[number][1])
        first[number] = equal[0] if leaves else number
    stays = {number: number for number in order}
    if chosen.near:
        bands = MinHash(chosen).bands([text for text, _ in documents])
        alive = [number for number in order if first[number] == number]
        for only_validation in (True, False):
            group = {number: number for number in alive}
            for _ in alive:
                for one in alive:
                    for other in alive:
                        if only_validation and not (documents[one][1] and documents[other][1]):
                            continue
                        if bands[one, 0] and (bands[one] == bands[other]).any():
                            lowest = min(group[one], group[other], key=rank.__getitem__)
                            group[one] = group[other] = lowest
            stays.update({number: group[number] for number in alive if documents[number][1] == only_validation})
    verdicts = []
    for number, (_, is_validation) in enumerate(documents):
        twin = stays[first[number]]
        rule = "exact duplicate" if twin == first[number] else "near duplicate"
        if documents[twin][1] and not is_validation:
            rule = "in validation"
        verdicts.append(("" if twin == number else rule, str(twin)))
    return verdicts


@settings(deadline=None, max_examples=40)
@given(rows, st.lists(st.integers(0, 14), max_size=3), st.sampled_from([1, 2, 5, 1 << 22]), st.booleans(), st.booleans())
def test_decisions_are_those_of_comparing_all_with_all_however_the_corpus_is_cut(
    documents: list[Row], cuts: list[int], bucket: int, exact: bool, near: bool
) -> None:
    chosen = DuplicateSettings(documents=exact, paragraphs=False, near=near, bands=4, rows=2, ngram=2)
    edges = [0, *sorted(min(cut, len(documents)) for cut in cuts), len(documents)]
    parts = [documents[start:end] for start, end in pairwise(edges)]
    with TemporaryDirectory() as place:
        summary, verdicts, _ = decided(Path(place), parts, chosen, bucket=bucket)
    assert verdicts == expected(documents, chosen)
    assert summary.documents == len(documents)
    assert sum(summary.by_rule.values()) == sum(bool(rule) for rule, _ in verdicts)
    for number, (rule, twin) in enumerate(verdicts):
        if rule:
            assert verdicts[int(twin)] == ("", twin), "a twin stays"
            assert (not documents[int(twin)][1], int(twin)) < (not documents[number][1], number), "and comes before"
            assert not documents[number][1] or documents[int(twin)][1], "no validation document goes for one of training"


@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(st.sampled_from(["a" * 30, "b" * 31, "床" * 10, "short", " " + "a" * 30]), max_size=4), max_size=8))
def test_the_first_of_equal_paragraphs_stays_in_the_corpus_and_later_ones_go(documents: list[list[str]]) -> None:
    chosen = DuplicateSettings(documents=False, paragraphs=True, near=False)
    texts = ["\n\n".join(paragraphs) for paragraphs in documents]
    with TemporaryDirectory() as place:
        parts = [[(text, False)] for text in texts]
        summary, _, left = decided(Path(place), parts, chosen, bucket=2)
    seen: set[str] = set()
    gone = 0
    for text, after in zip(texts, left, strict=True):
        wanted = []
        for paragraph in text.split("\n\n"):
            counts = len(paragraph.strip().encode()) >= LEAST_BYTES
            if counts and paragraph.strip() in seen:
                gone += 1
                continue
            if counts:
                seen.add(paragraph.strip())
            wanted.append(paragraph)
        assert after == "\n\n".join(wanted)
    assert summary.repeated_paragraphs == gone


@settings(deadline=None)
@given(st.text(alphabet="ab \n\t\u3000\r", max_size=60))
def test_pieces_join_to_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text
    assert without(text, np.zeros(len(counting(pieces(text)[::2])), dtype=bool)) == text


def test_a_text_without_blank_lines_is_one_of_lines() -> None:
    long, other = "a line that is long enough to count", "another line that is long enough"
    assert pieces(f"{long}\n{other}")[::2] == [long, other]
    assert pieces(f"{long}\n{other}\n \n    indented")[::2] == [f"{long}\n{other}", "    indented"]
    assert without(f"{long}\nshort\n{other}", np.array([True, False])) == f"short\n{other}"


def test_a_paragraph_of_a_document_that_goes_is_not_the_first(tmp_path: Path) -> None:
    shared, own = "a paragraph that several texts share, long enough", "the paragraph of one text alone, long enough, too"
    twice = f"{own}\n\n{shared}"
    chosen = DuplicateSettings(documents=True, paragraphs=True, near=False)
    parts = [[(twice, True)], [(twice, False), (shared, False), (f"{shared}\n\nmore", False)]]
    _, verdicts, left = decided(tmp_path, parts, chosen)
    assert [rule for rule, _ in verdicts] == ["", "in validation", "", ""]
    assert left[0] == twice and left[2:] == ["", "more"]


def test_a_validation_document_stays_though_a_training_one_joins_it_to_another(tmp_path: Path) -> None:
    chosen = DuplicateSettings(documents=True, paragraphs=False, near=True, bands=40, rows=2, ngram=1)
    words = [f"w{number}" for number in range(40)]
    first, middle, last = (" ".join(words[start:end]) for start, end in ((0, 20), (0, 40), (20, 40)))
    parts = [[(first, True), (last, True)], [(middle, False)]]
    bands = MinHash(chosen).bands([first, middle, last])
    assert (bands[0] == bands[1]).any() and (bands[1] == bands[2]).any(), "the middle one is like both"
    assert not (bands[0] == bands[2]).any(), "which are not alike"
    _, verdicts, _ = decided(tmp_path, parts, chosen)
    assert verdicts == [("", "0"), ("", "1"), ("in validation", "0")]


def test_work_that_was_cut_short_is_done_again_to_the_same_bytes(tmp_path: Path) -> None:
    shuffled = random.Random(0)
    documents = [(shuffled.choice(pool) * shuffled.randint(1, 2), number < 20) for number in range(80)]
    parts = [documents[start : start + 20] for start in range(0, 80, 20)]
    _, verdicts, texts = decided(tmp_path, parts, ALL, bucket=16)
    whole = contents(tmp_path / "decisions")
    assert len(whole) > 30
    for chance in (0.2, 0.8):
        for path in sorted((tmp_path / "decisions").iterdir()):
            if path.name != "layout.json" and shuffled.random() < chance:
                path.rename(path.with_name(f"{path.name}.77.partial"))
        assert decided(tmp_path, parts, ALL, bucket=16)[1:] == (verdicts, texts)
        assert contents(tmp_path / "decisions") == whole


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_the_order_in_which_work_is_done_makes_no_difference(tmp_path: Path) -> None:
    documents = [(text, number == 3) for number, text in enumerate(pool * 2)]
    parts = [documents[:7], [], documents[7:]]

    def backwards(function: str, payloads: list[dict[str, Any]]) -> None:
        serially(function, payloads[::-1])

    for name, run in (("one", serially), ("two", backwards)):
        (tmp_path / name).mkdir()
        decided(tmp_path / name, parts, ALL, run, bucket=3)
    assert contents(tmp_path / "one" / "decisions") == contents(tmp_path / "two" / "decisions")


@pytest.mark.slow
def test_worker_processes_leave_the_bytes_that_one_process_leaves(tmp_path: Path) -> None:
    documents = [(text, number == 3) for number, text in enumerate(pool * 3)]
    parts = [documents[:7], documents[7:20], documents[20:]]
    with ProcessPoolExecutor(2, get_context("spawn")) as workers:

        def run(function: str, payloads: list[dict[str, Any]]) -> None:
            list(workers.map(serially, [function] * len(payloads), [[payload] for payload in payloads]))

        for name, chosen in (("one", serially), ("two", run)):
            (tmp_path / name).mkdir()
            decided(tmp_path / name, parts, ALL, chosen, bucket=5)
    assert contents(tmp_path / "one" / "decisions") == contents(tmp_path / "two" / "decisions")


def test_marks_are_the_same_bytes_however_the_documents_come(tmp_path: Path) -> None:
    one, many = Marker(ALL), Marker(ALL)
    ids = [f"d{number}" for number in range(len(pool))]
    one.add(pool, ids, [number < 2 for number in range(len(pool))])
    for number, (text, id) in enumerate(zip(pool, ids, strict=True)):
        many.add([text], [id], number < 2)
    one.save(tmp_path / "one")
    many.save(tmp_path / "many")
    many.save(tmp_path / "many")
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    assert {path.name for path in tmp_path.iterdir()} == {"one", "many"}


def test_decisions_about_other_marks_are_not_taken_for_those_about_these(tmp_path: Path) -> None:
    _, verdicts, _ = decided(tmp_path, [[("one", False), ("two", False)]], EXACT)
    assert [rule for rule, _ in verdicts] == ["", ""]
    _, verdicts, _ = decided(tmp_path, [[("one", False), ("one", False)]], EXACT)
    assert [rule for rule, _ in verdicts] == ["", "exact duplicate"]


@pytest.mark.parametrize("chosen", [EXACT, NEAR, ALL])
def test_nothing_one_and_all_the_same(tmp_path: Path, chosen: DuplicateSettings) -> None:
    same = [("a text that comes again and again and again", False)] * 50
    for number, (parts, goes) in enumerate([([], 0), ([[]], 0), ([[], same[:1]], 0), ([same[:20], same[20:]], 49)]):
        place = tmp_path / str(number)
        place.mkdir()
        summary, verdicts, _ = decided(place, parts, chosen, bucket=4)
        assert summary.by_rule == {"exact duplicate": goes, "near duplicate": 0, "in validation": 0}
        assert all(twin == "0" for _, twin in verdicts)


def test_two_digests_that_agree_in_their_first_half_are_two(tmp_path: Path) -> None:
    marks = Marker(EXACT)
    marks.add(["one", "two", "two"], ["a", "b", "c"], False)
    half = bytes(marks._digests[:8])
    for start in (16, 32):
        marks._digests[start : start + 8] = half
    marks.save(tmp_path / "marks")
    decide([tmp_path / "marks"], EXACT, tmp_path / "decisions", serially)
    found = Decisions.load(tmp_path / "decisions", 0)
    assert [found.rule(number) for number in range(3)] == ["", "", "exact duplicate"]
    assert found.twin(2) == "b"


def test_a_part_without_marks_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="part-7"):
        decide([tmp_path / "part-7"], EXACT, tmp_path / "decisions", serially)


def test_settings_out_of_range_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        DuplicateSettings(documents=True, paragraphs=False, near=True, bands=0, rows=-1)
    assert "bands" in str(caught.value) and "rows" in str(caught.value)
    with pytest.raises(ConfigError, match="hash functions"):
        DuplicateSettings(documents=True, paragraphs=False, near=True, bands=1000, rows=1000)


def test_decisions_move_with_their_marks(tmp_path: Path) -> None:
    place = tmp_path / "before"
    place.mkdir()
    decided(place, [[("one", False)], [("one", False)]], EXACT)
    shutil.move(place, tmp_path / "after")
    found = Decisions.load(tmp_path / "after" / "decisions", 1)
    assert (found.rule(0), found.twin(0)) == ("exact duplicate", "0")
    assert deciding.RULES[found.rules[0]] == "exact duplicate"


def test_a_sample_has_near_duplicates_with_their_twins_and_does_not_depend_on_the_cut(tmp_path: Path) -> None:
    chosen = DuplicateSettings(documents=True, paragraphs=False, near=True)
    base = [" ".join(f"w{number}x{place}" for place in range(60)) for number in range(300)]
    near = [f"{text} and more" for text in base[:40]]
    documents = [(text, number < 9) for number, text in enumerate([*base, *near, *base[:20]])]
    found = []
    for name, cuts in (("one", [0, 360]), ("two", [0, 100, 100, 333, 360])):
        (tmp_path / name).mkdir()
        parts = [documents[start:end] for start, end in pairwise(cuts)]
        _, verdicts, _ = decided(tmp_path / name, parts, chosen)
        found.append([cuts[part] + row for part, row in sample(tmp_path / name / "decisions", 60)])
    assert found[0] == found[1] == sorted(set(found[0]))
    assert len(found[0]) == 60
    rules = [verdicts[number][0] for number in found[0]]
    assert rules.count("near duplicate") + rules.count("in validation") >= 15 and "exact duplicate" not in rules
    assert max(found[0]) < 340, "nor those whose text stands in validation"
    assert len(sample(tmp_path / "one" / "decisions", 10_000)) == 340
    quality = sample_quality([documents[number][0] for number in found[0]], chosen)
    assert quality["pairs_alike"] >= 15 and quality["recall"] > 0.9
