"""Reports on tasks whose predictions are more than right or wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmkit.reports.facts import _predictions


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
    made = _predictions(path, 3, 0.95, {"value_is": "f1"})
    assert made is not None
    assert (made.n, made.right, made.measure, made.confidence) == (4, 1, "f1", [])
    assert [(item.id, item.value) for item in made.worst] == [("d", 0.0), ("b", 0.0), ("c", 0.5)]


def test_predictions_without_scores_are_told(tmp_path: Path) -> None:
    columns = {"id": ["a", "b"], "text": ["x", "y"], "label": ["1", "2"], "prediction": ["1", "3"]}
    made = _predictions(written(tmp_path / "p.parquet", **columns), 5, 0.95, {})
    assert made is not None
    assert (made.right, made.measure, made.confidence) == (1, None, [])
    assert [(item.id, item.score) for item in made.worst] == [("b", None)]
