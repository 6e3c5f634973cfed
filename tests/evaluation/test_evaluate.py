from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from llmkit.errors import DataError, LLMKitError
from llmkit.evaluation.text_classification import name_classes
from llmkit.pipeline.artefact import Artefact
from llmkit.tasks.tables import Split
from llmkit.tasks.text_classification import Example


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


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def trained(run: Any, base_model: Artefact, toy: Any, quick: dict[str, Any], tmp_path: Path) -> Artefact:
    """A classifier whose training file a test may change."""
    files = {
        "train_file": write(tmp_path / "train.jsonl", toy(40)),
        "validation_file": write(tmp_path / "v.jsonl", toy(9, 99)),
    }
    settings = {**quick, "num_train_epochs": 1.0, "max_train_samples": 30}
    return run("finetune", tmp_path / "m", model_name_or_path=base_model.directory, **files, **settings)


def test_the_baselines_learn_from_what_the_classifier_saw_whatever_else_changed(
    run: Any, trained: Artefact, toy_files: tuple[Path, Path], tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    write(tmp_path / "train.jsonl", [{**row, "new column": 1} for row in rows])  # other bytes, the same examples
    made = run("evaluate", tmp_path / "e", model_name_or_path=trained.directory, test_file=toy_files[1])
    metrics, _ = result_of(made)
    assert "trained on the same 30 examples" in metrics["baselines"][1]["detail"]
    assert "baselines_left_out" not in metrics


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("gone", "cannot be read again (.*train.jsonl is not a file"),
        ("train", "the train examples are not those"),
        ("v", "the validation examples are not those"),
    ],
)
def test_baselines_that_cannot_be_measured_are_left_out_with_the_reason(
    run: Any, trained: Artefact, toy_files: tuple[Path, Path], tmp_path: Path, change: str, said: str
) -> None:
    if change == "gone":
        (tmp_path / "train.jsonl").unlink()
    else:
        path = tmp_path / f"{change}.jsonl"
        path.write_text(path.read_text(encoding="utf-8").replace(" was ", " is "), encoding="utf-8")
    made = run("evaluate", tmp_path / "e", model_name_or_path=trained.directory, test_file=toy_files[1])
    metrics, _ = result_of(made)
    assert metrics["baselines"] == metrics["comparison"] == [] and metrics["overlap"] is None
    assert re.search(said.replace("(", r"\(", 1), metrics["baselines_left_out"])
    assert metrics["overlap_unknown"] == metrics["baselines_left_out"]


def test_test_texts_that_were_met_in_training_are_counted_and_left_out_beside(
    run: Any, trained: Artefact, toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    from llmkit.evaluation.task_model import _training_examples

    used, _ = _training_examples(trained)
    assert used is not None and len(used.train) == 30 < len(train)
    known = [{"text": f" {used.train[index].text.upper()} ", "label": used.train[index].label} for index in range(3)]
    fresh = toy(20, start=301)
    test = write(
        tmp_path / "t.jsonl", [*known, *toy(2, 99), *fresh, {**fresh[0], "label": "good"}, {**fresh[0], "label": "bad"}]
    )
    made = run("evaluate", tmp_path / "e", model_name_or_path=trained.directory, test_file=test)
    metrics, rows = result_of(made)
    overlap = metrics["overlap"]
    assert overlap["train"] == {"examples": 3, "share": pytest.approx(3 / 27)}
    assert overlap["validation"] == {"examples": 2, "share": pytest.approx(2 / 27)}
    assert overlap["either"]["examples"] == 5
    rest = rows[5:]
    assert overlap["without"]["n"] == len(rest) == 22
    assert overlap["without"]["value"] == pytest.approx(np.mean([row["label"] == row["prediction"] for row in rest]))
    assert metrics["texts_with_several_labels"] == 1
    assert "warning: 3 test texts are also in training, 2 in validation; accuracy on the others 0." in capsys.readouterr().out


def test_a_data_set_in_a_directory_is_evaluated_again_when_its_files_change(
    run: Any, classifier: Artefact, toy: Any, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "test.jsonl", toy(20, start=101))
    settings = {"model_name_or_path": classifier.directory, "dataset_name": tmp_path / "data", "baselines": False}
    made = run("evaluate", tmp_path / "e", **settings)
    assert result_of(made)[0]["dataset"] == "data/"
    assert [Path(record.path).name for record in made.manifest.raw_inputs] == ["test.jsonl"]
    assert run("evaluate", tmp_path / "e", **settings).manifest == made.manifest
    write(tmp_path / "data" / "test.jsonl", toy(24, start=101))
    assert run("evaluate", tmp_path / "e2", **settings).manifest.metrics["n"] == 24
    with pytest.raises(LLMKitError, match="differs in its inputs"):
        run("evaluate", tmp_path / "e", **settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dataset_name": "t.jsonl"}, "dataset_name: .* is a file; give it as --test_file"),
        ({"test_file": "t.jsonl", "dataset_revision": "main"}, "dataset_revision: goes with dataset_name"),
        ({"dataset_name": "llmkit/reviews", "dataset_revision": "main"}, "'llmkit/reviews' is not on the hub"),
    ],
)
def test_settings_of_the_data_that_cannot_work_are_refused(
    run: Any, classifier: Artefact, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    write(tmp_path / "t.jsonl", [{"text": "a", "label": "good"}])
    given = {key: str(tmp_path / value) if value == "t.jsonl" else value for key, value in settings.items()}
    with pytest.raises(LLMKitError, match=said):
        run("evaluate", tmp_path / "e", model_name_or_path=classifier.directory, **given)


def nameless(*labels: str, classes: int = 2, known: dict[str, list[str]] | None = None) -> list[str]:
    test = [Example(id=str(index), text="text", label=label, place="f:1") for index, label in enumerate(labels)]
    return name_classes([f"LABEL_{index}" for index in range(classes)], test, Split([], None, known or {}))


def test_classes_without_names_are_what_their_numbers_say() -> None:
    assert nameless("1", "0") == nameless("1") == ["0", "1"]
    assert nameless("LABEL_1") == ["LABEL_0", "LABEL_1"]
    assert nameless("good", known={"label": ["bad", "good"]}) == ["bad", "good"]
    assert nameless("good", known={"label": ["bad", "good"], "topic": ["food", "film"]}) == ["bad", "good"]


@pytest.mark.parametrize(
    ("labels", "known"),
    [
        (("bad", "good"), None),
        (("1", "2"), None),
        (("0", "LABEL_1"), None),
        (("bad",), {"label": ["bad", "so so", "good"]}),
        (("bad",), {"label": ["bad", "good"], "other": ["good", "bad"]}),
    ],
)
def test_classes_without_names_that_could_be_several_things_are_refused(
    labels: tuple[str, ...], known: dict[str, list[str]] | None
) -> None:
    with pytest.raises(DataError, match=r"only LABEL_0 to LABEL_1, and the test labels are .*: which is which"):
        nameless(*labels, known=known)


def test_a_foreign_classifier_without_names_is_evaluated(run: Any, foreign: Path, tmp_path: Path) -> None:
    config = json.loads((foreign / "config.json").read_text())
    config |= {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    (foreign / "config.json").write_text(json.dumps(config))
    rows = [{"text": f"text {number}", "label": number % 2} for number in range(10)]
    made = run("evaluate", tmp_path / "e", model_name_or_path=foreign, test_file=write(tmp_path / "t.jsonl", rows))
    metrics, _ = result_of(made)
    assert metrics["labels"] == ["0", "1"]
    assert "not a result of `llmkit finetune`" in metrics["baselines_left_out"]


def test_a_label_unseen_in_training_is_refused_with_its_row(run: Any, classifier: Artefact, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\nfine,good\nso so,mixed\n")
    with pytest.raises(DataError, match=r"test: the label 'mixed' does not occur in training \(there: bad, good\).*t\.csv:3"):
        run("evaluate", tmp_path / "e", model_name_or_path=classifier.directory, test_file=tmp_path / "t.csv")
    assert not (tmp_path / "e").exists()


def test_a_base_model_is_no_classifier(run: Any, base_model: Artefact, toy_files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(LLMKitError, match="has learned no task of llmkit"):
        run("evaluate", tmp_path / "e", model_name_or_path=base_model.directory, test_file=toy_files[1])


def test_a_file_with_choices_asks_for_its_task(run: Any, base_model: Artefact, tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [{"question": "Which?", "choices": ["one", "two"], "answer": 0}])
    with pytest.raises(LLMKitError, match=r"rows have choices, .*give --task multiple-choice"):
        run("evaluate", tmp_path / "e", model_name_or_path=base_model.directory, test_file=path)


def test_texts_that_repeat_others_are_counted(run: Any, classifier: Artefact, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\nThe soup was lovely,good\nThe  SOUP was lovely,good\nThe film was dull,bad\n")
    made = run(
        "evaluate", tmp_path / "e", model_name_or_path=classifier.directory, test_file=tmp_path / "t.csv", baselines=False
    )
    assert result_of(made)[0]["repeated_texts"] == 1


def test_a_class_that_the_test_set_lacks_is_measured_and_no_error(run: Any, classifier: Artefact, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\nThe soup was lovely,good\nThe film was wonderful,good\n")
    made = run("evaluate", tmp_path / "e", model_name_or_path=classifier.directory, test_file=tmp_path / "t.csv")
    metrics, _ = result_of(made)
    (recall,) = [item for item in metrics["metrics"] if (item["name"], item["label"]) == ("recall", "bad")]
    assert (recall["n"], recall["value"], recall["low"], recall["high"]) == (0, None, None, None)


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
