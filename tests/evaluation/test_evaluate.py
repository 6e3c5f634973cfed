from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from llmkit.errors import DataError, LLMKitError
from llmkit.pipeline.artefact import Artefact


@pytest.fixture(scope="module")
def evaluation(
    run: Any, classifier: Artefact, toy_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Artefact:
    settings = {"model_name_or_path": classifier.directory, "test_file": toy_files[1]}
    return run("evaluate", tmp_path_factory.mktemp("evaluate") / "e", **settings)


@pytest.fixture
def foreign(tokenizer: Artefact, tmp_path: Path) -> Path:
    """A classifier that llmkit did not make: no manifest, labels of its own."""
    loaded = AutoTokenizer.from_pretrained(tokenizer.directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(loaded),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=loaded.pad_token_id,
        num_labels=2,
        id2label={0: "bad", 1: "good"},
        label2id={"bad": 0, "good": 1},
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "foreign")
    loaded.save_pretrained(tmp_path / "foreign")
    return tmp_path / "foreign"


def result_of(artefact: Artefact) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    metrics = json.loads((artefact.directory / "metrics.json").read_text(encoding="utf-8"))
    return metrics, pyarrow.parquet.read_table(artefact.directory / "predictions.parquet").to_pylist()


def value(metrics: list[dict[str, Any]], name: str, average: str | None = None) -> float:
    (found,) = [item for item in metrics if (item["name"], item["average"], item["label"]) == (name, average, None)]
    return found["value"]


def test_metrics_and_predictions_tell_the_same(evaluation: Artefact, toy_files: tuple[Path, Path]) -> None:
    metrics, rows = result_of(evaluation)
    asked = [json.loads(line) for line in toy_files[1].read_text(encoding="utf-8").splitlines()]
    assert [(row["text"], row["label"]) for row in rows] == [(row["text"], row["label"]) for row in asked], "in their order"
    assert metrics["n"] == len(rows) == 40
    labels = metrics["labels"]
    true, guessed = ([row[key] for row in rows] for key in ("label", "prediction"))
    assert value(metrics["metrics"], "accuracy") == pytest.approx(
        np.mean([a == b for a, b in zip(true, guessed, strict=True)])
    )
    assert value(metrics["metrics"], "f1", "macro") == pytest.approx(f1_score(true, guessed, average="macro"))
    for row, name in enumerate(labels):
        for column, other in enumerate(labels):
            count = sum(pair == (name, other) for pair in zip(true, guessed, strict=True))
            assert metrics["confusion"][row][column] == count
    for row in rows:
        chances = {label: row[f"probability_{label}"] for label in labels}
        assert sum(chances.values()) == pytest.approx(1)
        assert row["prediction"] == max(chances, key=lambda label: chances[label])
        assert row["score"] == pytest.approx(max(chances.values()))


def test_the_manifest_tells_the_headline_numbers_with_intervals(evaluation: Artefact) -> None:
    metrics, _ = result_of(evaluation)
    told = evaluation.manifest.metrics
    assert told["n"] == 40
    for key, name, average in (
        ("accuracy", "accuracy", None),
        ("f1_macro", "f1", "macro"),
        ("recall_weighted", "recall", "weighted"),
    ):
        assert told[key]["value"] == pytest.approx(value(metrics["metrics"], name, average))
        assert told[key]["low"] <= told[key]["value"] <= told[key]["high"]


def test_the_classifier_and_both_baselines_are_compared_on_the_same_examples(evaluation: Artefact) -> None:
    metrics, _ = result_of(evaluation)
    assert [item["name"] for item in metrics["baselines"]] == ["majority class", "TF-IDF + logistic regression"]
    accuracies = [value(item["metrics"], "accuracy") for item in metrics["baselines"]]
    ours = value(metrics["metrics"], "accuracy")
    assert accuracies[0] == 0.5 < ours
    for accuracy, comparison in zip(accuracies, metrics["comparison"], strict=True):
        assert comparison["difference"] == pytest.approx(ours - accuracy)
    assert metrics["comparison"][0]["sentence"].startswith("Better than majority class")


def test_what_is_evaluated_is_the_input_that_the_manifest_names(evaluation: Artefact, classifier: Artefact) -> None:
    assert evaluation.manifest.inputs["model_name_or_path"].digest == classifier.manifest.digest
    assert [Path(record.path).name for record in evaluation.manifest.raw_inputs] == ["test.jsonl"]


@pytest.mark.parametrize("batch", [1, 64])
def test_the_batch_size_does_not_change_a_prediction(
    run: Any, evaluation: Artefact, classifier: Artefact, toy_files: tuple[Path, Path], tmp_path: Path, batch: int
) -> None:
    settings = {"model_name_or_path": classifier.directory, "test_file": toy_files[1], "baselines": False}
    made = run("evaluate", tmp_path / "e", per_device_eval_batch_size=batch, **settings)
    metrics, rows = result_of(made)
    _, expected = result_of(evaluation)
    assert [row["prediction"] for row in rows] == [row["prediction"] for row in expected]
    assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in expected], abs=1e-4)
    assert metrics["baselines"] == metrics["comparison"] == []


def test_a_foreign_classifier_is_evaluated_without_baselines(
    run: Any, foreign: Path, toy_files: tuple[Path, Path], tmp_path: Path
) -> None:
    made = run("evaluate", tmp_path / "e", model_name_or_path=foreign, test_file=toy_files[1])
    metrics, rows = result_of(made)
    assert metrics["labels"] == ["bad", "good"]
    assert metrics["baselines"] == []
    assert len(rows) == 40
    assert {Path(record.path).name for record in made.manifest.raw_inputs} >= {"model.safetensors", "test.jsonl"}


def test_text_and_label_columns_are_those_of_training_unless_others_are_named(
    run: Any, base_model: Artefact, toy: Any, quick: dict[str, Any], tmp_path: Path
) -> None:
    rows = [{"comment": row["text"], "verdict": row["label"], "text": "misleading"} for row in toy(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"text_column": "comment", "label_column": "verdict"}
    files = {"train_file": tmp_path / "a.jsonl", **columns, **quick, "num_train_epochs": 1.0}
    made = run("finetune", tmp_path / "m", model_name_or_path=base_model.directory, **files)
    evaluated = run("evaluate", tmp_path / "e", model_name_or_path=made.directory, test_file=tmp_path / "a.jsonl")
    assert [row["text"] for row in result_of(evaluated)[1]] == [row["comment"] for row in rows]


def test_a_label_unseen_in_training_is_refused_with_its_row(run: Any, classifier: Artefact, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\nfine,good\nso so,mixed\n")
    with pytest.raises(DataError, match=r"test: the label 'mixed' does not occur in training \(there: bad, good\).*t\.csv:3"):
        run("evaluate", tmp_path / "e", model_name_or_path=classifier.directory, test_file=tmp_path / "t.csv")
    assert not (tmp_path / "e").exists()


def test_a_base_model_is_no_classifier(run: Any, base_model: Artefact, toy_files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(LLMKitError, match="no text classifier"):
        run("evaluate", tmp_path / "e", model_name_or_path=base_model.directory, test_file=toy_files[1])


def test_a_class_that_the_test_set_lacks_is_measured_and_no_error(run: Any, classifier: Artefact, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\nThe soup was lovely,good\nThe film was wonderful,good\n")
    made = run("evaluate", tmp_path / "e", model_name_or_path=classifier.directory, test_file=tmp_path / "t.csv")
    metrics, _ = result_of(made)
    (recall,) = [item for item in metrics["metrics"] if (item["name"], item["label"]) == ("recall", "bad")]
    assert (recall["n"], recall["value"], recall["low"], recall["high"]) == (0, 0.0, 0.0, 1.0)


def test_a_label_from_data_may_hold_any_character(
    run: Any, base_model: Artefact, quick: dict[str, Any], tmp_path: Path
) -> None:
    rows = [{"text": f"text {number}", "label": ('<b>"x"</b>', "很好/坏")[number % 2]} for number in range(20)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    settings = {"train_file": tmp_path / "a.jsonl", **quick, "num_train_epochs": 1.0}
    made = run("finetune", tmp_path / "m", model_name_or_path=base_model.directory, **settings)
    assert AutoModelForSequenceClassification.from_pretrained(made.directory).config.id2label[0] == '<b>"x"</b>'
    evaluated = run("evaluate", tmp_path / "e", model_name_or_path=made.directory, test_file=tmp_path / "a.jsonl")
    assert result_of(evaluated)[0]["labels"] == ['<b>"x"</b>', "很好/坏"]
