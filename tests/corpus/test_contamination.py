"""Documents that hold evaluation texts are rejected, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.corpus.batch import Batch
from llmkit.corpus.contamination import RULE, Contamination, evaluation_texts
from llmkit.corpus.overlap import Overlap
from llmkit.corpus.words import normalised, words
from llmkit.errors import DataError

pytest.importorskip("numba")

QUESTION = "In which year did the famous explorer whose ship was lost near the northern cape return to his home town?"
CHINESE = "请问那位在北方海角附近失去船只的著名探险家是在哪一年回到故乡的"


def batch(*texts: str) -> Batch:
    ids = [str(number) for number in range(len(texts))]
    return Batch(list(texts), ids, ["test"] * len(texts), [{} for _ in texts])


def test_a_document_with_a_piece_of_an_evaluation_text_goes_with_the_piece_and_its_name() -> None:
    step = Contamination([QUESTION, CHINESE], ["squad:7 question", "drcd:1"])
    found = batch(f"Quiz! {QUESTION.upper()} Yes.", "In which year did it happen?", f"前面{CHINESE[3:20]}后面", "")
    step(found)
    assert step.searched == 2
    assert found.rules == [RULE, "", RULE, ""]
    assert found.values[0] == "in which year did the famous explorer whose ship was lost near the (squad:7 question)"
    assert found.values[2].endswith("(drcd:1)") and found.values[2].startswith(CHINESE[3:16])


def test_a_document_that_is_rejected_already_keeps_its_rule() -> None:
    found = batch(QUESTION, QUESTION)
    found.reject(0, "too short", 3)
    Contamination([QUESTION], ["q"])(found)
    assert found.rules == ["too short", RULE] and found.values[0] == 3


def test_nothing_is_contaminated_by_nothing() -> None:
    found = batch(QUESTION)
    Contamination([], [])(found)
    Contamination(["fewer than eight words"], ["short"])(found)
    Contamination([QUESTION], ["q"])(batch())
    assert found.rules == [""]


few_words = st.lists(st.sampled_from(["red", "Blue", "GREEN", "红", "7"]), max_size=10).map(" ".join)


def grams(text: str, n: int) -> list[tuple[str, ...]]:
    found = words(normalised(text))
    return [tuple(found[start : start + n]) for start in range(len(found) - n + 1)]


@settings(deadline=None)
@given(st.lists(few_words, max_size=14), st.lists(few_words, max_size=6))
def test_holders_are_the_documents_that_share_an_n_gram_that_counts(texts: list[str], documents: list[str]) -> None:
    n, least = 3, 2
    lengths = [min(n, len(words(normalised(text)))) for text in texts]
    owners: dict[tuple[str, ...], set[int]] = {}
    for number, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        for gram in grams(text, length) if length >= least else []:
            owners.setdefault(gram, set()).add(number)
    counting = {gram: those for gram, those in owners.items() if len(those) <= 10}
    expected = {}
    for number, document in enumerate(documents):
        starts = range(len(words(normalised(document))))
        for gram in (tuple(words(normalised(document))[start : start + length]) for start in starts for length in (3, 2)):
            if gram in counting:
                expected[number] = gram
                break
    found = Overlap(texts, n, least).holders(documents)
    assert {number: tuple(gram.split()) for number, _, gram in found} == expected
    assert len(found) == len(expected)
    assert all(text in counting[expected[number]] for number, text, _ in found)


awkward = st.sampled_from(["red", "Blue", "ＷＩＤＥ", "红", "e\u0301", "ß", "!", "\ud800", "7"])


@settings(deadline=None)
@given(st.lists(st.lists(awkward, max_size=16).map(" ".join), max_size=6), st.data())
def test_the_step_rejects_all_that_the_search_finds(texts: list[str], data: st.DataObject) -> None:
    pieces = st.lists(awkward, max_size=3).map(" ".join) | st.sampled_from(texts or [""]).map(str.upper)
    documents = data.draw(st.lists(st.lists(pieces, max_size=4).map("  ".join), max_size=5))
    found = batch(*documents)
    Contamination(texts, [str(number) for number in range(len(texts))])(found)
    expected = {number: f"{gram} ({text})" for number, text, gram in Overlap(texts).holders(documents)}
    assert {number: value for number, value in enumerate(found.values) if value} == expected


def test_evaluation_files_of_every_kind_give_their_strings(tmp_path: Path) -> None:
    rows = [
        {"question": "Who?", "answers": {"text": ["I", "you"], "start": [1]}, "n": 3},
        {"question": "谁？", "answers": None},
    ]
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    (tmp_path / "b.csv").write_text('text,label\n"one, two",1\n', encoding="utf-8")
    (tmp_path / "c.tsv").write_text('text\tlabel\na "quote\t0\n', encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.table({"s": ["x y"], "n": [1]}), tmp_path / "d.parquet")
    (tmp_path / "e.txt").write_text("first\nlines\n\nsecond\n", encoding="utf-8")
    files = {tmp_path / name: name for name in ("a.jsonl", "b.csv", "c.tsv", "d.parquet", "e.txt")}
    assert evaluation_texts(files) == [
        ("a.jsonl:1 question", "Who?"),
        ("a.jsonl:1 answers.text", "I"),
        ("a.jsonl:1 answers.text", "you"),
        ("a.jsonl:3 question", "谁？"),
        ("b.csv:1 text", "one, two"),
        ("b.csv:1 label", "1"),
        ("c.tsv:1 text", 'a "quote'),
        ("c.tsv:1 label", "0"),
        ("d.parquet:1 s", "x y"),
        ("e.txt:1", "first\nlines"),
        ("e.txt:2", "second\n"),
    ]
    assert evaluation_texts({}) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b"{"),
        ("a.jsonl", b"\xff\xfe"),
        ("a.parquet", b"not parquet"),
        ("a.docx", b"x"),
        ("empty.txt", b" \n"),
        ("b.csv", b'text\n"' + b"x" * 200_000 + b'"'),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        evaluation_texts({tmp_path / name: name})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        evaluation_texts({tmp_path / "missing.jsonl": "missing.jsonl"})
