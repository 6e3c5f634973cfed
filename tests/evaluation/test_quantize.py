from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmkit.errors import ConfigError
from llmkit.pipeline.artefact import Artefact
from llmkit.tasks.loading import load_task_model


@pytest.fixture(scope="module")
def quantised(
    run: Any, classifier: Artefact, toy_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Artefact:
    place = tmp_path_factory.mktemp("quantize")
    return run("quantize", place / "q", model_name_or_path=classifier.directory, test_file=toy_files[1])


def test_the_accuracy_stands_beside_the_original_and_the_size_is_told(quantised: Artefact) -> None:
    metrics = quantised.manifest.metrics
    assert metrics["int8_layers"] == 14, "seven a layer; the head is not among them"
    assert abs(metrics["int8"]["accuracy"]["value"] - metrics["original"]["accuracy"]["value"]) <= 0.05
    assert metrics["comparison"]["baseline"] == "the original"
    assert metrics["equal_predictions"] >= 0.95
    sizes = metrics["weight_bytes"]
    assert sizes["int8"] == (quantised.directory / "model.int8.safetensors").stat().st_size < sizes["original"]
    assert metrics["examples_per_second"]["int8"] > 0
    assert not [path for path in quantised.directory.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


def test_a_quantised_model_is_evaluated_as_any_other(
    run: Any, quantised: Artefact, toy_files: tuple[Path, Path], tmp_path: Path
) -> None:
    made = run("evaluate", tmp_path / "e", model_name_or_path=quantised.directory, test_file=toy_files[1])
    record = json.loads((made.directory / "metrics.json").read_text(encoding="utf-8"))
    (accuracy,) = [item["value"] for item in record["metrics"] if item["name"] == "accuracy"]
    assert accuracy == quantised.manifest.metrics["int8"]["accuracy"]["value"]
    assert len(record["baselines"]) == 2, "the training examples are those of the original"
    report = run("report", tmp_path / "r", evaluation=made.directory)
    card = (report.directory / "model" / "README.md").read_text(encoding="utf-8")
    assert "load_task_model" in card and "pipeline(" not in card


def test_without_test_examples_only_the_size_is_told(run: Any, classifier: Artefact, tmp_path: Path) -> None:
    made = run("quantize", tmp_path / "q", model_name_or_path=classifier.directory)
    assert set(made.manifest.metrics) == {"task", "int8_layers", "weight_bytes"}
    task, model, _ = load_task_model(str(made.directory))
    assert task.labels == ["bad", "good"]  # type: ignore[attr-defined]
    assert not model.training


def test_what_is_quantised_already_is_refused(run: Any, quantised: Artefact, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is quantised already"):
        run("quantize", tmp_path / "q", model_name_or_path=quantised.directory)
