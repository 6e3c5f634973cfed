"""Which examples a page has, and how much of their texts: nothing is lost, moved or shown as what it is not."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.reports import examples
from llmkit.reports.examples import FOLDED, PREDICTED, TRUE, Example, carry, chosen, outcomes


def example(text: str, marks: list[tuple[int, int, int]] | None = None, number: int = 0) -> Example:
    return Example(f"id-{number}", text, None, "a", "b", "wrong", False, 0.5, 0.1, 0.0, marks or [])


@given(st.data())
def test_the_pieces_of_a_text_are_the_text(data: st.DataObject) -> None:
    text = data.draw(st.text(st.sampled_from("ab 一\U0001f600<\u0301"), max_size=400))
    place = st.integers(0, len(text))
    drawn = data.draw(st.lists(st.tuples(place, place, st.sampled_from([TRUE, PREDICTED])), max_size=4))
    marks = [(min(a, b), max(a, b), kind) for a, b, kind in drawn if a != b]
    near, carried = data.draw(st.integers(8, 100)), data.draw(st.integers(0, 500))
    position, kept = 0, 0
    for piece in example(text, marks).pieces(near, carried):
        if len(piece) == 1:
            assert piece[0] > 0
            position += piece[0]
            continue
        words, kind = piece
        assert words == text[position : position + len(words)] != ""
        if kind != FOLDED:
            inside = {k for begin, end, k in marks if begin <= position and position + len(words) <= end}
            assert kind == sum(inside)
        position, kept = position + len(words), kept + len(words)
    assert position == len(text)
    shown = sum(stop - start for start, stop in example(text, marks)._shown(near))
    assert kept <= max(carried, shown)
    if carried >= len(text):
        assert kept == len(text)


def test_a_long_context_is_cut_around_the_answers() -> None:
    text = "x" * 5000 + "TRUE" + "y" * 5000 + "SAID" + "z" * 5000
    marks = [(5000, 5004, TRUE), (10_004, 10_008, PREDICTED)]
    pieces = example(text, marks).pieces(500, 6000)
    assert [piece[1] if len(piece) == 2 else "left out" for piece in pieces] == [
        FOLDED, 0, TRUE, 0, FOLDED, "left out", 0, PREDICTED, 0, "left out",
    ]  # fmt: skip
    assert [piece[0] for piece in pieces if piece[-1] in (TRUE, PREDICTED)] == ["TRUE", "SAID"]
    assert sum(len(piece[0]) for piece in pieces if len(piece) == 2) == 6000


def test_words_are_not_cut() -> None:
    text = "some words and " * 200
    pieces = example(text, [(1500, 1504, TRUE)]).pieces(200, 0)
    assert [len(piece) for piece in pieces] == [1, 2, 2, 2, 1]
    before, after = pieces[1][0], pieces[3][0]
    assert set(before.split()) | set(after.split()) <= {"some", "words", "and"}
    start, stop = pieces[0][0], len(text) - pieces[4][0]
    assert text[start - 1] == " " == text[stop]
    assert example("字" * 900).pieces(200, 0) == [["字" * 200, 0], [700]]


def table(count: int, wrong: int, **columns: list[object]) -> pa.Table:
    return pa.table(
        {
            "id": [f"id-{n}" for n in range(count)],
            "text": [f"text {n}" for n in range(count)],
            "label": ["a"] * count,
            "prediction": ["b" if n < wrong else "a" for n in range(count)],
            "value": [float(n >= wrong) for n in range(count)],
            "score": [n % 7 / 7 for n in range(count)],
            **columns,
        }
    )


def test_all_errors_come_first_and_then_a_sample_that_depends_on_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "MAX_EXAMPLES", 20)
    whole = table(100, 8)
    right = pa.array([n >= 8 for n in range(100)])
    found = chosen(whole, right, False, "text-classification", False)
    assert len(found) == 20 and [item.is_right for item in found] == [False] * 8 + [True] * 12
    assert [item.score for item in found[:8]] == sorted((n % 7 / 7 for n in range(8)), reverse=True)
    places = [int(item.id[3:]) for item in found[8:]]
    assert places == sorted(places)
    turned = whole.take(list(reversed(range(100))))
    again = chosen(turned, pa.array(list(reversed(right.to_pylist()))), False, "text-classification", False)
    assert {item.id for item in again} == {item.id for item in found}
    assert outcomes(found) == [("wrong", 8), ("right", 12)]


def test_the_outcomes_of_questions() -> None:
    labels, said, values = ["x", "x", "x", "x", "", ""], ["x", "x y", "z", "", "z", ""], [1.0, 0.5, 0.0, 0.0, 0.0, 1.0]
    questions = ["Q?\nw x y z"] * 6
    found = chosen(
        table(6, 0, text=questions, label=labels, prediction=said, value=values, context_start=[3] * 6,
              answer_start=[2, 2, 6, None, 6, None], answer_spans=[[[2, 3]]] * 4 + [[]] * 2),
        pa.array([value == 1 for value in values]), False, "question-answering", True,
    )  # fmt: skip
    assert {item.id: item.outcome for item in found} == {
        "id-0": "right answer",
        "id-1": "partly right",
        "id-2": "wrong answer",
        "id-3": "abstained",
        "id-4": "false answer",
        "id-5": "rightly no answer",
    }
    by_id = {item.id: item for item in found}
    assert by_id["id-1"].question == "Q?"
    assert by_id["id-1"].pieces() == [["w ", 0], ["x", TRUE + PREDICTED], [" y", PREDICTED], [" z", 0]]
    assert by_id["id-4"].pieces() == [["w x y ", 0], ["z", PREDICTED]]


@given(st.lists(st.text(max_size=300), min_size=1, max_size=20), st.integers(0, 20_000))
def test_what_is_carried_fits_and_cannot_end_its_element(texts: list[str], budget: int) -> None:
    given_examples = [example(text, number=number) for number, text in enumerate(texts)]
    found = carry(given_examples, budget)
    assert len(found.json.encode()) <= max(budget, 2)
    assert "<" not in found.json and "\u2028" not in found.json and "\x00" not in found.json
    assert found.examples == given_examples[: len(found.examples)]
    rows = json.loads(found.json)
    assert [row[0] for row in rows] == [item.id for item in found.examples]
    if budget == 20_000:
        assert len(rows) == len(texts)
