"""Slices: parts of a test set against the rest."""

from __future__ import annotations

import csv
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from llmkit.errors import LLMKitError
from llmkit.evaluation import slices
from llmkit.evaluation.comparison import holm
from llmkit.evaluation.evaluate import EvaluateConfig
from llmkit.evaluation.intervals import wilson
from llmkit.evaluation.measured import Measured, evaluation_of
from llmkit.evaluation.sections import Evaluated
from llmkit.evaluation.slices import against_rest, answer_position, mean_of, quarters, question_word, script
from llmkit.pipeline.artefact import Artefact
from llmkit.tasks.question_answering import QuestionAnswering
from llmkit.tasks.settings import Columns
from llmkit.tasks.tables import Row, Split, read_dataset
from llmkit.tasks.text_classification import TextClassification


def measured(values: Any, groups: Any = None) -> Measured:
    return Measured([], [], np.asarray(values, dtype=np.float64), "f1", groups=None if groups is None else np.asarray(groups))


def sides(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return chosen, ~chosen


def test_a_difference_of_shares_has_newcombes_interval_and_fishers_p_value() -> None:
    """The example of Newcombe (1998), table II, (a): 56 of 70 against 48 of 80."""
    values = [1] * 56 + [0] * 14 + [1] * 48 + [0] * 32
    found = against_rest(measured(values), *sides(np.arange(150) < 70))
    assert found[:3] == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert found[3] == pytest.approx(stats.fisher_exact([[56, 14], [48, 32]]).pvalue)


def test_a_difference_of_means_is_about_that_of_welchs_test_and_more_careful() -> None:
    generator = np.random.default_rng(0)
    inside, outside = generator.normal(0.4, 0.2, 50), generator.normal(0.5, 0.3, 200)
    difference, low, high, p_value = against_rest(measured([*inside, *outside]), *sides(np.arange(250) < 50))
    welch = stats.ttest_ind(inside, outside, equal_var=False)
    limits = welch.confidence_interval()
    assert difference == pytest.approx(inside.mean() - outside.mean())
    assert low <= limits.low and high >= limits.high
    assert (low, high) == pytest.approx((limits.low, limits.high), abs=0.01)
    assert p_value >= welch.pvalue and p_value == pytest.approx(welch.pvalue, abs=0.01)


def test_questions_about_one_context_count_as_one() -> None:
    """Under no difference, in data where ten questions share the luck of their context, the interval covers 0 as it claims."""
    generator = np.random.default_rng(0)
    covered = found = 0
    for _ in range(400):
        groups = np.repeat(np.arange(30), 10)
        values = np.clip(generator.normal(0.5, 0.2, 30)[groups] + generator.normal(0, 0.05, 300), 0, 1)
        chosen = groups < 12
        _, low, high, p_value = against_rest(measured(values, groups), *sides(chosen))
        covered += low <= 0 <= high
        found += p_value < 0.05
    assert 0.92 <= covered / 400 <= 0.99
    assert covered == 400 - found, "test and interval say the same"
    _, low, high, _ = against_rest(measured(values), *sides(chosen))
    assert (low > 0 or high < 0) or high - low < 0.2, "as if they were independent, it would be far too narrow"


def test_a_mean_has_students_interval_and_one_of_groups_that_of_their_number() -> None:
    values = np.random.default_rng(0).uniform(0.2, 0.8, 40)
    everything = np.ones(40, dtype=bool)
    found = mean_of(measured(values), everything)
    assert found == pytest.approx((values.mean(), *stats.t.interval(0.95, 39, values.mean(), stats.sem(values))))
    pairs = mean_of(measured(np.repeat(values, 2), np.repeat(np.arange(40), 2)), np.ones(80, dtype=bool))
    assert pairs == pytest.approx(found), "each value said twice tells no more"
    graded = measured([0.0] * 40 + [0.5])
    zero = mean_of(graded, np.arange(41) < 40)
    assert zero[:2] == (0.0, 0.0) and zero[2] == pytest.approx(wilson(0, 40)[1])


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_is_between_the_plain_value_and_bonferroni(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for before, after in zip(p_values, corrected, strict=True):
        assert before <= after <= min(1.0, len(p_values) * before)
    order = np.argsort(p_values, kind="stable")
    assert all(first <= second for first, second in pairwise(np.array(corrected)[order]))


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=200))
def test_quarters_divide_and_keep_equal_numbers_together(values: list[int]) -> None:
    parts = list(quarters("number", [float(value) for value in values]).parts.values())
    assert 1 <= len(parts) <= 4
    assert (np.sum(parts, axis=0) == 1).all(), "each example is in one part"
    numbers = np.array(values)
    spans = [(numbers[part].min(), numbers[part].max()) for part in parts]
    assert all(first[1] < second[0] for first, second in pairwise(spans))


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("Why did it stop?", "why"),
        ("In what year did it stop?", "what"),
        ("How many were there?", "how many"),
        ("How was it found?", "how"),
        ("To whom does it belong?", "who"),
        ("Name the river.", "other"),
        ("Somehow it went wrong?", "other"),
        ("茶亭是什么时候建的？", "when"),
        ("他们为什么离开？", "why"),
        ("一共有多少人？", "how many"),
        ("谁发现了它？", "who"),
        ("它叫什么名字？", "what"),
        ("船在哪里停？", "where"),
        ("怎么去？", "how"),
        ("说说这条河。", "other"),
    ],
)
def test_the_word_of_a_question_is_found_in_english_and_chinese(question: str, word: str) -> None:
    assert question_word(question) == word


def test_the_embedded_questions_have_a_question_word_nearly_always() -> None:
    rows = read_dataset("llmkit/passages", None, "test").rows
    kinds = [question_word(row.values["question"]) for row in rows]
    assert kinds.count("other") < 0.1 * len(kinds)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A plain text.", "Latin"),
        ("今天的天气很好。", "Chinese"),
        ("我新买的iPhone屏幕很清楚", "Chinese"),
        ("今天买的 headphones 不错", "Chinese and Latin"),
        ("123 !!!", "other"),
        ("Это хорошо", "other"),
    ],
)
def test_the_script_of_a_text(text: str, expected: str) -> None:
    assert script(text) == expected


def reviews(guess: Any, **settings: Any) -> Evaluated:
    """The embedded test reviews with guessed labels."""
    split = read_dataset("llmkit/reviews", None, "test")
    task = TextClassification(["negative", "neutral", "positive"], is_pair=False)
    test = task.read(split.rows, Columns())
    predictions = [{"prediction": guess(row), "score": 0.9} for row in split.rows]
    config = EvaluateConfig(model_name_or_path="someone/some-model", dataset_name="llmkit/reviews", **settings)
    found = evaluation_of(task).measure(task, test, predictions, 0)
    return Evaluated(config, task, None, None, split, test, predictions, found, None, None)


def wrong_in_chinese(row: Row) -> str:
    label = str(row.values["label"])
    return label if row.values["language"] == "en" else {"positive": "neutral"}.get(label, "positive")


def test_the_part_where_a_model_fails_stands_first() -> None:
    evaluated = reviews(wrong_in_chinese)
    found = slices.section(evaluated)
    assert found is not None
    worst = next(part for part in found["parts"] if part["part"] == "Chinese")
    assert worst["value"] == 0 and worst["n"] == 84 and worst["p_holm"] < 1e-6
    assert worst["difference"] == pytest.approx(-1.0)
    differences = [part["difference"] for part in found["parts"]]
    assert differences == sorted(differences) and differences[0] == -1.0
    assert {part["by"] for part in found["parts"]} >= {"script", "label", "subject", "length of the input, in characters"}
    assert not any(part["by"] == "language" for part in found["parts"]), "the same examples as by script"
    assert all(part["n"] >= 20 for part in found["parts"])
    corrected = holm([part["p_value"] for part in found["parts"]])
    assert [part["p_holm"] for part in found["parts"]] == pytest.approx(corrected)
    for part in found["parts"]:
        assert part["low"] <= part["value"] <= part["high"]
        assert part["difference_low"] <= part["difference"] <= part["difference_high"]


def test_a_model_that_guesses_everywhere_alike_is_nowhere_clearly_worse() -> None:
    generator = np.random.default_rng(3)
    found = slices.section(reviews(lambda row: str(generator.choice(["negative", "neutral", "positive"]))))
    assert found is not None and len(found["parts"]) > 8
    assert not any(part["p_holm"] < 0.05 for part in found["parts"] if part["by"] != "label")


def test_a_small_test_set_is_not_divided() -> None:
    evaluated = reviews(wrong_in_chinese)
    few = evaluated.test[:30], list(evaluated.predictions)[:30]
    evaluated.test, evaluated.predictions = few
    evaluated.data = Split(evaluated.data.rows[:30])
    evaluated.measured = evaluation_of(evaluated.task).measure(evaluated.task, *few, 0)
    assert slices.section(evaluated) is None


def test_questions_are_sliced_by_their_word_and_by_where_the_answer_stands() -> None:
    split = read_dataset("llmkit/passages", None, "test")
    task = QuestionAnswering()
    test = task.read(split.rows, Columns())
    predictions = [{"prediction": example.answers[0][0] if example.answers else "never"} for example in test]
    config = EvaluateConfig(model_name_or_path="someone/some-model", dataset_name="llmkit/passages")
    found = evaluation_of(task).measure(task, test, predictions, 0)
    made = slices.section(Evaluated(config, task, None, None, split, test, predictions, found, None, None))
    assert made is not None
    assert made["parts"][0]["part"] == "no answer" and made["parts"][0]["value"] == 0
    assert 0 == made["parts"][0]["low"] < made["parts"][0]["high"], "that none was right proves nothing of the next"
    assert (made["parts"][0]["difference"], made["parts"][0]["difference_low"]) == (-1.0, -1.0), "no F1 is below 0"
    assert not any(part["difference"] for part in made["parts"] if part["by"] == "position of the answer"), "among answers"
    assert {"question word", "position of the answer", "length of the context, in characters"} <= {
        part["by"] for part in made["parts"]
    }
    places = [answer_position(example) for example in test]
    assert len(set(places)) == 5, "four quarters and none"


def test_no_mean_error_is_below_0() -> None:
    errors = measured([0.0] * 19 + [20.0] + [1.0] * 20)
    errors.lower_is_better = True
    value, low, high = mean_of(errors, np.arange(40) < 20)
    assert (value, low) == (1.0, 0.0) and high > 3


def test_one_group_says_nothing_of_how_groups_differ() -> None:
    found = measured([0.2, 0.4, 0.9, 0.6, 0.1, 0.3], [0] * 6)
    chosen = np.array([True] * 3 + [False] * 3)
    assert slices.mean_of(found, chosen)[1:] == (0, 1), "the whole scale"
    assert slices.against_rest(found, *sides(chosen))[3] == 1


@pytest.mark.parametrize(
    ("cell", "number"), [(3, 3), (2.5, 2.5), ("17", 17), ("1e3", 1000), ("", None), (True, None), ("x", None)]
)
def test_a_cell_of_a_csv_may_spell_a_number(cell: Any, number: float | None) -> None:
    assert math.isnan(slices._number(cell)) if number is None else slices._number(cell) == number


def test_any_column_can_be_named(run: Any, classifier: Artefact, toy: Any, tmp_path: Path) -> None:
    rows = [
        {**row, "price": index * 1.5, "shop": ("north", "south")[index % 3 == 0]} for index, row in enumerate(toy(90, 101))
    ]
    rows[0]["price"] = ""  # a cell that is empty
    path = tmp_path / "t.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    settings = {"model_name_or_path": classifier.directory, "test_file": path, "baselines": False}
    made = run("evaluate", tmp_path / "e", slice_by=["price", "shop"], **settings)
    parts = json.loads((made.directory / "metrics.json").read_text(encoding="utf-8"))["slices"]["parts"]
    sizes = {(part["by"], part["part"]): part["n"] for part in parts}
    assert sizes[("shop", "south")] == 30
    assert [size for (by, _), size in sizes.items() if by == "price"] and sum(
        size for (by, _), size in sizes.items() if by == "price"
    ) == 89
    with pytest.raises(LLMKitError, match=r"slice_by: .* has no column 'prices', it has: .*did you mean 'price'"):
        run("evaluate", tmp_path / "f", slice_by=["prices"], **settings)


def test_cells_that_are_lists_or_mappings_are_values_like_others() -> None:
    evaluated = reviews(wrong_in_chinese, slice_by=["tags"])
    for number, row in enumerate(evaluated.data.rows):
        row.values |= {"topic": ["a", "b"] if number % 2 else ["a"], "tags": {"shop": number % 3}, "source": [number]}
    found = slices.section(evaluated)
    assert found is not None
    names = {(part["by"], part["part"]) for part in found["parts"]}
    assert {("topic", '["a", "b"]'), ("topic", '["a"]'), ("tags", '{"shop": 0}')} <= names
    assert f"source (more than {slices.MOST_VALUES} values)" in found["left_out"]
