"""Reports on tasks whose predictions are more than right or wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmkit.reports.facts import Score, _classes, _predictions


def written(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_the_worst_predictions_come_first_by_their_value(tmp_path: Path) -> None:
    path = written(
        tmp_path / "p.parquet",
        id=["a", "b", "c", "d"],
        text=["question a", "question b", "question c", "question d"],
        label=["Paris | in Paris", "", "7", "x"],
        prediction=["Paris", "Rome", "7 or 8", "y"],
        value=[1.0, 0.0, 0.5, 0.0],
        score=[0.9, 0.2, 0.4, 0.8],
    )
    made = _predictions(path, {"value_is": "f1"})
    assert made is not None
    assert (made.n, made.right, made.measure) == (4, 1, "f1")
    assert [(item.id, item.value) for item in made.errors] == [("d", 0.0), ("b", 0.0), ("c", 0.5)]


def test_predictions_without_scores_are_told(tmp_path: Path) -> None:
    columns = {"id": ["a", "b"], "text": ["x", "y"], "label": ["1", "2"], "prediction": ["1", "3"]}
    made = _predictions(written(tmp_path / "p.parquet", **columns), {})
    assert made is not None
    assert (made.right, made.measure) == (1, None)
    assert [(item.id, item.score) for item in made.errors] == [("b", None)]


def test_what_counts_to_a_hundred_is_wholly_right_at_a_hundred(tmp_path: Path) -> None:
    columns = {"id": ["a", "b"], "text": ["x", "y"], "label": ["1", "2"], "prediction": ["1", "3"]}
    path = written(tmp_path / "p.parquet", **columns, value=[100.0, 41.5])
    made = _predictions(path, {"value_is": "chrF of a text", "perfect": 100.0})
    assert made is not None
    assert (made.right, [item.value for item in made.errors]) == (1, [41.5])


def test_an_error_is_worst_where_it_is_highest(tmp_path: Path) -> None:
    columns = {"id": ["a", "b", "c"], "text": ["x", "y", "z"], "label": ["1", "2", "3"], "prediction": ["1", "4", "8"]}
    path = written(tmp_path / "p.parquet", **columns, value=[0.0, 4.0, 25.0])
    made = _predictions(path, {"value_is": "mse", "lower_is_better": True})
    assert made is not None
    assert (made.right, [item.id for item in made.errors]) == (1, ["c", "b"])


def test_the_examples_of_a_class_are_not_the_predictions_of_it() -> None:
    scores = [
        Score("precision", 0.2, n=80, label="cat"),
        Score("recall", 0.5, n=25, label="cat"),
        Score("precision", None, n=0, label="dog"),
        Score("recall", 0.0, n=2, label="dog"),
    ]
    assert [(row.label, row.support) for row in _classes(scores, ["cat", "dog"], [])] == [("cat", 25), ("dog", 2)]
