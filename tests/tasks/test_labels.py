from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import DataError
from llmkit.tasks.labels import MULTI, REGRESSION, SINGLE, detect, label_of, number
from llmkit.tasks.settings import Columns
from llmkit.tasks.tables import Row
from llmkit.tasks.text_classification import TextClassification


@pytest.mark.parametrize(
    ("values", "separator", "kind", "said"),
    [
        (["good", "bad", "good"], None, SINGLE, "labels are 2 different texts: classes"),
        ([0, 1, 1], None, SINGLE, "labels are 2 different whole numbers: classes"),
        (
            [1, 2, 5],
            None,
            SINGLE,
            "labels are 3 different whole numbers: classes; if they are quantities, set problem_type to",
        ),
        (["1", "2"], None, SINGLE, "labels are 2 different whole numbers: classes"),
        ([1.0, 2.0, 3.0], None, SINGLE, "labels are 3 different whole numbers: classes"),
        ([1, 2.5, 3], None, REGRESSION, "labels are 3 different fractional numbers: regression"),
        (["0.5", "1", "1e-3"], None, REGRESSION, "labels are 3 different fractional numbers: regression"),
        ([["a"], [], ["a", "b"]], None, MULTI, "labels are lists: multi-label"),
        ([["a"], ["b"], "a"], None, MULTI, "labels are lists: multi-label"),
        (["a|b", "a"], "|", MULTI, "labels are texts with '|' between them: multi-label"),
        ([0.5, None, 0.7, float("nan")], None, REGRESSION, "labels are 2 different fractional numbers: regression"),
        ([True, False], None, SINGLE, "labels are 2 different texts: classes"),
    ],
)
def test_what_labels_are_follows_from_the_data_and_is_said(
    values: list[Any], separator: str | None, kind: str, said: str
) -> None:
    found, sentence = detect(values, separator)
    assert found == kind
    assert sentence.startswith(said)


@pytest.mark.parametrize(
    ("value", "kind", "separator", "label"),
    [
        (" a ", SINGLE, None, "a"),
        (3, SINGLE, None, "3"),
        (float("nan"), SINGLE, None, None),
        (["a"], SINGLE, None, None),
        (["b", "a", " a "], MULTI, None, ["a", "b"]),
        ([], MULTI, None, []),
        ([2, 10], MULTI, None, ["10", "2"]),
        (["a", None], MULTI, None, None),
        ("a", MULTI, None, None),
        (None, MULTI, None, None),
        ("b | a|", MULTI, "|", ["a", "b"]),
        ("", MULTI, "|", []),
        ("1.5", REGRESSION, None, 1.5),
        (2, REGRESSION, None, 2.0),
        ("many", REGRESSION, None, None),
        (True, REGRESSION, None, None),
        (float("inf"), REGRESSION, None, None),
    ],
)
def test_a_value_is_a_label_of_the_wanted_kind_or_none(value: Any, kind: Any, separator: str | None, label: Any) -> None:
    assert label_of(value, kind, separator) == label


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_that_is_written_down_is_read_back(value: float) -> None:
    assert number(repr(value)) == number(value) == value


def rows(*labels: Any) -> list[Row]:
    return [Row(f"f.jsonl:{line}", {"text": f"t{line}", "label": label}) for line, label in enumerate(labels, start=1)]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            (["a"], ["b"], "a", None),
            r"2 rows have no list of labels \(\[\] stands for none\) in column 'label': f.jsonl:3, f.jsonl:4",
        ),
        ((0.5, 1.5, "much"), "1 rows have no number in column 'label': f.jsonl:3 .labels are 2 different fractional numbers"),
        (("a", "b", ["a"]), "1 rows have no single label in column 'label': f.jsonl:3"),
    ],
)
def test_labels_of_another_kind_than_most_are_named_by_their_rows(labels: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        TextClassification([]).read(rows(*labels), Columns())


def test_problem_type_overrides_what_the_data_looks_like() -> None:
    whole = rows(1, 2, 3)
    assert [item.label for item in TextClassification([], REGRESSION).read(whole, Columns())] == [1.0, 2.0, 3.0]
    assert [item.label for item in TextClassification([], SINGLE).read(rows(0.5, 1.5), Columns())] == ["0.5", "1.5"]
