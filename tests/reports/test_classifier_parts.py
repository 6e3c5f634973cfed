"""The parts of the page on probabilities: texts from data are escaped, and what is missing is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmkit.evaluation.calibration import abstention, risk_coverage
from llmkit.evaluation.discrimination import curves
from llmkit.evaluation.probabilistic import Reliability, mean_metric


class Judged:
    def __init__(self, n: int, seed: int):
        generator = np.random.default_rng(seed)
        self.confidence = generator.uniform(0.3, 1, n)
        self.right = generator.random(n) < self.confidence


def reliability(judged: Judged) -> dict[str, Any]:
    bins = Reliability.of(judged.confidence, judged.right)
    rows = [
        {"from": 0.2, "to": 0.4, "n": 3, "right": 1, "confidence": 0.3, "accuracy": 1 / 3, "low": 0.06, "high": 0.79},
        {"from": 0.8, "to": 1.0, "n": 9, "right": 9, "confidence": 0.9, "accuracy": 1.0, "low": 0.7, "high": 1.0},
    ]
    return {"ece": bins.error(0).as_dict(), "log_loss": mean_metric("log_loss", judged.confidence).as_dict(), "bins": rows}


@pytest.fixture
def record(chain: Any) -> dict[str, Any]:
    """An evaluation with labels that try to break out of the page, and no temperature."""
    test, validation = Judged(60, 1), Judged(200, 2)
    points, aurc = risk_coverage(test.confidence, test.right)
    shapes = [curves(test.confidence, test.right) for _ in range(6)]
    return {
        **chain.metrics_of(chain.example_rows()),
        "calibration": {
            "bins": 15,
            "before": reliability(test),
            "after": None,
            "temperature": None,
            "no_temperature": "<b>the validation examples</b> are not known",
            "coverage": points,
            "aurc": aurc.as_dict(),
            "abstention": [abstention(target, validation, test) for target in (0.6, 0.999)],
        },
        "discrimination": {
            "classes": 12,
            "curves": [
                {"label": f"{number} {chain.HOSTILE[number]}", "positives": 10 + number, **shape}
                for number, shape in enumerate(shapes)
            ],
        },
    }


def test_labels_and_reasons_are_escaped_and_four_classes_are_drawn(
    chain: Any, write: Callable[..., Any], record: dict[str, Any]
) -> None:
    chain.build(record=record)
    page = write().html
    assert "<script>alert" not in page and "<b>the validation" not in page
    assert "&lt;b&gt;the validation examples&lt;/b&gt; are not known" in page
    assert "Drawn are the 4 classes with most examples, of 12" in page
    assert "5 &lt;/blockquote&gt;" in page and "0 &lt;script&gt;" not in page, "the class with fewest examples is not drawn"
    assert "After temperature scaling" not in page and "No confidence was found from which on surely 100%" in page
    assert "withhold predictions below a confidence of 0." in page


def test_with_a_temperature_both_diagrams_stand_side_by_side(
    chain: Any, write: Callable[..., Any], record: dict[str, Any]
) -> None:
    part = record["calibration"]
    part |= {"after": reliability(Judged(60, 3)), "temperature": {"value": 1.4567, "n": 200}}
    del part["no_temperature"]
    chain.build(record=record)
    written = write()
    assert 'aria-labelledby="reliability-before-title' in written.html
    assert 'aria-labelledby="reliability-after-title' in written.html
    assert "A temperature of 1.457, fitted on 200 validation examples, makes the model less sure" in written.html
    assert written.json["metrics"]["calibration"]["temperature"]["value"] == 1.4567
    card = (written.directory / "model" / "README.md").read_text(encoding="utf-8")
    assert "at temperature 1.457, fitted on validation" in card
