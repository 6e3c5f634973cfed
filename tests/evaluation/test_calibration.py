"""Temperature, reliability, risk and coverage: on drawn probabilities, and on a classifier that learned from noisy labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.cli import main
from llmkit.evaluation.calibration import abstention, risk_coverage
from llmkit.evaluation.intervals import wilson
from llmkit.pipeline.artefact import Artefact
from llmkit.tasks import temperature
from llmkit.tasks.tables import iterate_table


def drawn(seed: int, n: int, classes: int, power: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities to a power, and classes drawn from them as they were before."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, classes)) * 2
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    true = np.minimum((chances.cumsum(axis=1) < generator.random((n, 1))).sum(axis=1), classes - 1)
    return temperature.scaled(chances, 1 / power), true


# --------------------------------------------------------------------------------------------------------------------
# Temperature


@pytest.mark.parametrize("power", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_temperature_of_drawn_probabilities_is_found(power: float, classes: int) -> None:
    """Calibrated ones have 1."""
    chances, true = drawn(1, 20_000, classes, power)
    value = temperature.fit(chances, true)
    assert value == pytest.approx(power, rel=0.05)
    calibrated = temperature.scaled(chances, value)
    before, after = (temperature.log_loss(item, true) for item in (chances, calibrated))
    assert after <= before and (power == 1 or after < before)


@given(st.integers(0, 10_000), st.integers(2, 6), st.floats(0.05, 20))
@settings(max_examples=60, deadline=None)
def test_a_temperature_changes_no_order_and_undoes_itself(seed: int, classes: int, value: float) -> None:
    chances, true = drawn(seed, 30, classes, 1.0)
    scaled = temperature.scaled(chances, value)
    assert (scaled.argmax(axis=1) == chances.argmax(axis=1)).all()
    assert scaled.sum(axis=1) == pytest.approx(1)
    if value > 0.3:  # below, probabilities may become 0
        assert temperature.scaled(scaled, 1 / value) == pytest.approx(chances, abs=1e-9)
    fitted = temperature.fit(chances, true)
    assert temperature.log_loss(temperature.scaled(chances, fitted), true) <= temperature.log_loss(chances, true)


def test_it_is_the_softmax_of_logits_divided_by_it() -> None:
    logits = np.array([[2.0, -1.0, 0.5], [900.0, 0.0, -900.0]])
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    expected = np.exp(logits[0] / 3) / np.exp(logits[0] / 3).sum()
    assert temperature.scaled(chances, 3.0)[0] == pytest.approx(expected)
    assert np.isfinite(temperature.scaled(chances, 0.05)).all()


# --------------------------------------------------------------------------------------------------------------------
# Coverage


def test_risk_and_coverage_of_a_small_set_by_hand() -> None:
    confidence, right = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, True])
    points, aurc = risk_coverage(confidence, right)
    assert [(point["answered"], point["right"]) for point in points] == [(4, 3), (3, 2), (2, 1), (1, 1)]
    assert aurc.value == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert all((point["low"], point["high"]) == wilson(point["right"], point["answered"]) for point in points)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_examples_of_equal_confidence_are_answered_all_or_none(rows: list[tuple[int, bool]]) -> None:
    confidence, right = np.array([row[0] / 4 for row in rows]), np.array([row[1] for row in rows])
    points, aurc = risk_coverage(confidence, right)
    assert points[0]["answered"] == len(rows) and points[0]["accuracy"] == pytest.approx(right.mean())
    for point in points:
        assert point["answered"] == (confidence >= point["confidence"]).sum()
    rates = [1 - right[confidence >= value].mean() for value in confidence]
    assert aurc.value == pytest.approx(np.mean(rates))
    assert aurc.low <= aurc.value + 1e-12 and aurc.value <= aurc.high + 1e-12  # type: ignore[operator]


class Judged:
    def __init__(self, confidence: list[float], right: list[bool]):
        self.confidence, self.right = np.array(confidence), np.array(right)


def test_the_confidence_to_answer_from_is_chosen_on_the_one_split_and_shown_on_the_other() -> None:
    sure, unsure = [0.9] * 100, [0.6] * 100
    chosen_on = Judged(sure + unsure, [True] * 98 + [False] * 2 + [True] * 60 + [False] * 40)
    shown_on = Judged([0.95, 0.9, 0.6, 0.3], [True, False, True, False])
    found = abstention(0.9, chosen_on, shown_on)
    assert found["confidence"] == 0.9 and found["validation"]["low"] >= 0.9
    assert (found["test"]["answered"], found["test"]["right"], found["test"]["coverage"]) == (2, 1, 0.5)
    assert abstention(0.99, chosen_on, shown_on) == {"target": 0.99, "confidence": None}


# --------------------------------------------------------------------------------------------------------------------
# A classifier


@pytest.fixture(scope="module")
def noisy(
    run: Any,
    base_model: Artefact,
    toy: Callable[..., list[dict[str, str]]],
    quick: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Artefact, Path]:
    """A classifier that learned from labels of which some are wrong, and the place of its files."""
    place = tmp_path_factory.mktemp("noisy")
    generator = np.random.default_rng(0)
    for name, count, start in (("train", 96, 0), ("validation", 60, 201), ("test", 80, 401)):
        rows = toy(count, start)
        for row in rows:
            if generator.random() < 0.25:
                row["label"] = {"good": "bad", "bad": "good"}[row["label"]]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = {"train_file": place / "train.jsonl", "validation_file": place / "validation.jsonl"}
    return run("finetune", place / "model", model_name_or_path=base_model.directory, **files, **quick), place


@pytest.fixture(scope="module")
def evaluation(run: Any, noisy: tuple[Artefact, Path]) -> Artefact:
    model, place = noisy
    settings = {
        "model_name_or_path": model.directory,
        "test_file": place / "test.jsonl",
        "baselines": False,
        "selfcheck": True,
    }
    return run("evaluate", place / "evaluation", **settings)


def metrics_of(artefact: Artefact) -> dict[str, Any]:
    return json.loads((artefact.directory / "metrics.json").read_text(encoding="utf-8"))


def test_the_temperature_is_fitted_on_the_validation_examples_and_told_with_their_digest(
    noisy: tuple[Artefact, Path], evaluation: Artefact
) -> None:
    found = metrics_of(evaluation)["calibration"]
    fitted = found["temperature"]
    assert fitted["n"] == 60 and fitted["left_out"] == 0
    assert fitted["sha256"] == noisy[0].manifest.metrics["validation"]["sha256"]
    assert fitted["value"] != 1
    assert fitted["log_loss_after"] < fitted["log_loss_before"]
    for part in (found["before"], found["after"]):
        assert sum(row["n"] for row in part["bins"]) == 80
        assert all((row["low"], row["high"]) == wilson(row["right"], row["n"]) for row in part["bins"])
    assert found["after"]["log_loss"]["value"] != found["before"]["log_loss"]["value"]
    ece = next(item for item in metrics_of(evaluation)["metrics"] if item["name"] == "ece")
    assert found["before"]["ece"] == ece


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("validation", "the test examples are the validation examples"),
        ("validation backwards", "0 validation examples are no test examples, and 20 are needed"),
    ],
)
def test_a_leaked_validation_set_is_refused(
    run: Any, noisy: tuple[Artefact, Path], tmp_path: Path, rows: str, said: str
) -> None:
    model, place = noisy
    lines = (place / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "t.jsonl").write_text("\n".join(lines[::-1] if "backwards" in rows else lines), encoding="utf-8")
    settings = {"model_name_or_path": model.directory, "test_file": tmp_path / "t.jsonl", "baselines": False}
    found = metrics_of(run("evaluate", tmp_path / "e", **settings))["calibration"]
    assert said in found["no_temperature"]
    assert found["temperature"] is found["after"] is None and found["abstention"] == []


def test_validation_examples_that_are_also_test_examples_take_no_part(
    run: Any, noisy: tuple[Artefact, Path], tmp_path: Path
) -> None:
    model, place = noisy
    lines = [(place / f"{name}.jsonl").read_text(encoding="utf-8").splitlines() for name in ("test", "validation")]
    (tmp_path / "t.jsonl").write_text("\n".join([*lines[0], *lines[1][:7]]), encoding="utf-8")
    settings = {"model_name_or_path": model.directory, "test_file": tmp_path / "t.jsonl", "baselines": False}
    found = metrics_of(run("evaluate", tmp_path / "e", **settings))["calibration"]["temperature"]
    assert (found["n"], found["left_out"]) == (53, 7)


def test_predictions_are_calibrated_by_an_evaluation_and_stay_the_same(
    noisy: tuple[Artefact, Path], evaluation: Artefact, tmp_path: Path
) -> None:
    model, place = noisy
    words = ["predict", "--model", str(model.directory), "--input", str(place / "test.jsonl")]
    assert main([*words, "--output", str(tmp_path / "a.jsonl")]) == 0
    assert main([*words, "--output", str(tmp_path / "b.jsonl"), "--calibration", str(evaluation.directory)]) == 0
    plain, calibrated = ([row.values for row in iterate_table(tmp_path / f"{name}.jsonl")] for name in "ab")
    value = metrics_of(evaluation)["calibration"]["temperature"]["value"]
    for before, after in zip(plain, calibrated, strict=True):
        assert after["prediction"] == before["prediction"]
        chances = np.array([before["probability_bad"], before["probability_good"]])
        assert [after["probability_bad"], after["probability_good"]] == pytest.approx(
            temperature.scaled(chances, value).tolist()
        )
        assert after["score"] == after[f"probability_{after['prediction']}"]


def test_a_temperature_of_another_model_is_refused(
    classifier: Artefact, noisy: tuple[Artefact, Path], evaluation: Artefact, tmp_path: Path, capsys: Any
) -> None:
    words = ["predict", "--model", str(classifier.directory), "--input", str(noisy[1] / "test.jsonl")]
    words += ["--output", str(tmp_path / "a.jsonl"), "--calibration", str(evaluation.directory)]
    assert main(words) == 2
    assert "is of a model with other weights" in capsys.readouterr().err


def test_what_an_evaluation_checks_of_itself_stands_in_its_metrics(evaluation: Artefact) -> None:
    found = metrics_of(evaluation)["selfcheck"]
    checked = {(row["metric"], row["label"]) for row in found["metrics"]}
    told = {
        (item["name"] if item["average"] is None else f"{item['name']}_{item['average']}", item["label"])
        for item in metrics_of(evaluation)["metrics"]
    }
    assert checked == told and found["without_reference"] == []
    assert max(row["difference"] for row in found["metrics"]) <= found["tolerance"] == 1e-9
    assert (found["batch_size"]["n"], found["batch_size"]["changed"]) == (80, 0)
    assert found["batch_size"]["largest_change_of_score"] < 1e-4


def test_the_curves_end_at_both_corners(evaluation: Artefact) -> None:
    found = metrics_of(evaluation)["discrimination"]
    (curve,) = found["curves"]
    recall = next(item for item in metrics_of(evaluation)["metrics"] if (item["name"], item["label"]) == ("recall", "good"))
    assert (curve["label"], curve["positives"]) == ("good", recall["n"])
    assert curve["roc"][0][:2] == [0, 0] and curve["roc"][-1][:2] == [1, 1]
    assert curve["pr"][-1][0] == 1


def test_the_report_shows_calibration_curves_and_self_check(run: Any, evaluation: Artefact, tmp_path: Path) -> None:
    made = run("report", tmp_path / "r", evaluation=evaluation.directory)
    page = (made.directory / "report.html").read_text(encoding="utf-8")
    for said in ("Calibration", "ROC and precision-recall", "Self-check", "When to answer", "after temperature scaling"):
        assert said in page
    card = (made.directory / "model" / "README.md").read_text(encoding="utf-8")
    assert "## Calibration" in card and "expected calibration error" in card
