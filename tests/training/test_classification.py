"""Text classification beyond one class a text: several labels, numbers, pairs, and classes of unequal size."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from transformers import pipeline

from llmkit.errors import ConfigError, DataError
from llmkit.pipeline.artefact import Artefact
from llmkit.tasks.loading import load_task_model
from llmkit.tasks.settings import Columns
from llmkit.tasks.tables import read_table
from llmkit.training.ledger import read_ledger

THEMES = {
    "food": ("soup", "bread", "tea", "面条"),
    "room": ("bed", "garden", "window", "房间"),
    "staff": ("waiter", "clerk", "driver", "店员"),
}


def notes(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts about any number of themes, in English and Chinese; each theme is a label."""
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        names = [name for name in THEMES if generator.random() < 0.45]
        words = [generator.choice(THEMES[name]) for name in names]
        generator.shuffle(words)
        rows.append({"text": f"note {seed + number}: {' and '.join(words or ['nothing'])}", "labels": names})
    return rows


def praise(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts whose number follows from how often a word stands there."""
    generator = random.Random(seed)
    drawn = [generator.randint(0, 6) for _ in range(count)]
    return [{"text": f"{'very ' * many}good ({seed + number})", "stars": many / 4} for number, many in enumerate(drawn)]


def opinions(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of texts; the label needs both."""
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        first, second = generator.choice(("好", "坏")), generator.choice(("好", "坏"))
        label = {"好好": "both", "坏坏": "neither", "好坏": "first", "坏好": "second"}[first + second]
        rows.append({"sentence1": f"店{number}: {first}", "sentence2": f"书{number}: {second}", "label": label})
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def finetuned(
    run: Any, base: Artefact, place: Path, rows: list[dict[str, Any]], quick: dict[str, Any], **more: Any
) -> Artefact:
    place.mkdir(parents=True, exist_ok=True)
    settings = {**quick, "num_train_epochs": 14.0, **more}
    return run(
        "finetune", place / "m", model_name_or_path=base.directory, train_file=write(place / "t.jsonl", rows), **settings
    )


def evaluated(
    run: Any, model: Artefact, place: Path, rows: list[dict[str, Any]], **more: Any
) -> tuple[dict[str, Any], list[Any]]:
    test = write(place / "test.jsonl", rows)
    made = run("evaluate", place / "e", model_name_or_path=model.directory, test_file=test, **more)
    record = json.loads((made.directory / "metrics.json").read_text(encoding="utf-8"))
    return record, pyarrow.parquet.read_table(made.directory / "predictions.parquet").to_pylist()


def config_of(model: Artefact) -> dict[str, Any]:
    return json.loads((model.directory / "config.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def several(run: Any, base_model: Artefact, quick: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return finetuned(run, base_model, tmp_path_factory.mktemp("several"), notes(80), quick, validation_fraction=0.3)


def test_several_labels_a_text_are_learned_with_thresholds_that_are_kept(several: Artefact, run: Any, tmp_path: Path) -> None:
    metrics, config = several.manifest.metrics, config_of(several)
    assert metrics["labels"] == ["food", "room", "staff"]
    assert (config["problem_type"], config["id2label"]["0"]) == ("multi_label_classification", "food")
    assert config["llmkit"]["thresholds"] == metrics["tuned"]["thresholds"]
    assert set(config["llmkit"]["thresholds"]) == {"food", "room", "staff"}
    assert metrics["tuned"]["f1_micro"]["tuned"] >= metrics["tuned"]["f1_micro"]["at_0.5"]
    assert metrics["train"]["without_labels"] > 0, "a text without labels is an example"
    record, rows = evaluated(run, several, tmp_path, notes(40, seed=1000))
    assert {"f1_micro", "f1_macro", "exact_match"} <= set(record["headline"])
    value = {(item["name"], item["average"]): item["value"] for item in record["metrics"] if item["label"] is None}
    assert value["f1", "micro"] > 0.6
    assert value["exact_match", None] == sum(row["label"] == row["prediction"] for row in rows) / 40
    for row in rows:
        given = [name for name in THEMES if row[f"probability_{name}"] >= config["llmkit"]["thresholds"][name]]
        assert row["prediction"] == " | ".join(given)
    assert [item["name"] for item in record["baselines"]] == ["most frequent labels", "TF-IDF + logistic regression"]
    assert all(item["sentence"].startswith(("Better", "Worse", "No evidence")) for item in record["comparison"])


def test_transformers_gives_the_probabilities_of_several_labels(several: Artefact) -> None:
    task, model, tokenizer = load_task_model(str(several.directory))
    data = task.read(read_table(several.directory.parent / "t.jsonl"), Columns(), is_labelled=False)[:12]
    theirs = pipeline("text-classification", model=str(several.directory), top_k=None)([item.text for item in data])
    for ours, row in zip(task.predict(model, tokenizer, data, 5), theirs, strict=True):
        assert {f"probability_{item['label']}": item["score"] for item in row} == pytest.approx(
            {name: ours[name] for name in ours if name.startswith("probability_")}, abs=1e-4
        )


def test_labels_in_one_string_train_the_model_that_lists_train(
    several: Artefact, run: Any, base_model: Artefact, quick: Any, tmp_path: Path
) -> None:
    rows = [{"text": row["text"], "labels": "|".join(row["labels"])} for row in notes(80)]
    more = {"validation_fraction": 0.3, "label_separator": "|"}
    made = finetuned(run, base_model, tmp_path, rows, quick, **more)
    assert made.manifest.metrics["tuned"] == several.manifest.metrics["tuned"]
    weights = "model.safetensors"
    assert (made.directory / weights).read_bytes() == (several.directory / weights).read_bytes()


def test_numbers_are_learned_and_transformers_gives_the_same(
    run: Any, base_model: Artefact, quick: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = finetuned(run, base_model, tmp_path, praise(80), quick, label_column="stars")
    assert "labels are 7 different fractional numbers: regression" in capsys.readouterr().out
    assert made.manifest.metrics["validation"]["pearson"] > 0.5
    config = config_of(made)
    assert (config["problem_type"], config["id2label"]) == ("regression", {"0": "stars"})
    record, rows = evaluated(run, made, tmp_path, praise(40, seed=1000))
    assert record["headline"] == ["pearson", "spearman", "mse"]
    compared = {item["baseline"]: item["sentence"].split()[0] for item in record["comparison"]}
    assert set(compared) == {"mean of training", "TF-IDF + ridge regression"}
    assert compared["mean of training"] == "Better"
    theirs = pipeline("text-classification", model=str(made.directory))([row["text"] for row in rows])
    assert [item["score"] for item in theirs] == pytest.approx([float(row["prediction"]) for row in rows], abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_pairs_are_learned_from_both_texts(
    run: Any, base_model: Artefact, tokenizer: Artefact, quick: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    settings = {**quick, "num_train_epochs": 25.0, "learning_rate": 3e-3}
    if kind == "bert":
        small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        start = {"model_type": "bert", "config_overrides": small, "tokenizer": tokenizer.directory, "max_length": 32}
    else:
        start = {"model_name_or_path": base_model.directory}
    made = run("finetune", tmp_path / "m", train_file=write(tmp_path / "t.jsonl", opinions(120)), **start, **settings)
    record, rows = evaluated(run, made, tmp_path, opinions(40, seed=1), baselines=False)
    value = {item["name"]: item["value"] for item in record["metrics"] if item["average"] is None and item["label"] is None}
    assert value["accuracy"] > 0.6, "by chance it is a quarter"
    assert rows[0]["text"] == f"店0: {rows[0]['text'][4]} || 书0: {rows[0]['text'][-1]}"
    assert config_of(made)["llmkit"]["is_pair"] is True
    texts = [{"text": row["sentence1"], "text_pair": row["sentence2"]} for row in opinions(40, seed=1)]
    theirs = pipeline("text-classification", model=str(made.directory))(texts)
    assert [item["label"] for item in theirs] == [row["prediction"] for row in rows]


def unequal(toy: Any) -> list[dict[str, str]]:
    return [row for number, row in enumerate(toy(200)) if row["label"] == "good" or number % 10 == 1]


@pytest.mark.parametrize(
    "settings",
    [
        {"class_weights": "balanced", "label_smoothing_factor": 0.1},
        {"class_weights": {"bad": 5.0}, "focal_gamma": 1.0},
        {"class_sampling": "balanced", "tune_threshold": True},
    ],
)
def test_a_rare_class_is_learned(
    run: Any, base_model: Artefact, toy: Any, quick: dict[str, Any], tmp_path: Path, settings: dict[str, Any]
) -> None:
    made = finetuned(run, base_model, tmp_path, unequal(toy), quick, **settings)
    assert made.manifest.metrics["train"]["labels"]["bad"] * 4 < made.manifest.metrics["train"]["labels"]["good"]
    record, rows = evaluated(run, made, tmp_path, toy(40, start=1001), baselines=False)
    recall = {item["label"]: item["value"] for item in record["metrics"] if item["name"] == "recall"}
    assert recall["bad"] > 0.3
    if "tune_threshold" in settings:
        (threshold,) = config_of(made)["llmkit"]["thresholds"].values()
        for row in rows:
            assert (row["prediction"] == "good") == (row["probability_good"] >= threshold)
            assert row["score"] == row[f"probability_{row['prediction']}"]


def test_weights_in_two_halves_of_a_step_are_the_weights_of_the_step(
    run: Any, base_model: Artefact, toy: Any, quick: dict[str, Any], tmp_path: Path
) -> None:
    losses = []
    for at_once in (8, 2):
        more = {"global_batch_size": 8, "per_device_train_batch_size": at_once, "num_train_epochs": 1.0, "logging_steps": 1}
        settings = {"class_weights": {"bad": 9}, "focal_gamma": 2.0, "label_smoothing_factor": 0.1}
        made = finetuned(run, base_model, tmp_path / str(at_once), unequal(toy), quick, **more, **settings)
        losses.append([row["loss"] for row in read_ledger(made.directory / "metrics.jsonl") if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert len(losses[0]) > 5


@pytest.mark.parametrize(
    ("rows", "settings", "said"),
    [
        (
            praise(20),
            {"label_column": "stars", "class_weights": "balanced"},
            "class_weights: is for classes, and the labels are",
        ),
        (praise(20), {"label_column": "stars", "label_smoothing_factor": 0.1}, "label_smoothing_factor: is for classes"),
        (notes(20), {"class_sampling": "balanced"}, "class_sampling: needs one class a text; class_weights balances"),
        (notes(20), {"class_weights": {"fod": 2}}, "class_weights: no label 'fod'; there are food, room, staff"),
        (notes(20), {"metric_for_best_model": "accuracy"}, "'accuracy' is not one of f1_micro, f1_macro, exact_match, loss"),
        (
            praise(20),
            {"label_column": "stars", "metric_for_best_model": "f1_macro"},
            "is not one of pearson, spearman, mse, loss",
        ),
        (opinions(20), {"tune_threshold": True}, "tune_threshold: is for two classes, or several labels a text"),
        (notes(20), {"class_weights": "balanced", "class_sampling": "balanced"}, "give one of them"),
        (notes(20), {"focal_gamma": -1.0}, "focal_gamma: is -1.0, must be at least 0"),
        (notes(20), {"class_weights": {"food": 0}}, "the weight of 'food' is 0, must be a number above 0"),
        (
            notes(20),
            {"task": "translation", "focal_gamma": 2.0},
            "focal_gamma: is a setting of text-classification, and the task is",
        ),
    ],
)
def test_settings_that_do_not_go_with_the_labels_are_refused(
    run: Any, base_model: Artefact, tmp_path: Path, rows: list[dict[str, Any]], settings: dict[str, Any], said: str
) -> None:
    file = write(tmp_path / "t.jsonl", rows)
    with pytest.raises(ConfigError, match=said):
        run("finetune", tmp_path / "m", model_name_or_path=base_model.directory, train_file=file, **settings)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"text": f"t{number}", "labels": ["a"]} for number in range(9)],
            "have the label 'a'; a classifier needs at least two",
        ),
        ([{"text": f"t{number}", "labels": []} for number in range(9)], "have no label; a classifier needs at least two"),
        ([{"text": "x", "label": 0.5}] * 9, "all 9 training examples have the number 0.5"),
    ],
)
def test_labels_that_teach_nothing_are_refused(run: Any, base_model: Artefact, tmp_path: Path, rows: Any, said: str) -> None:
    files = {"train_file": write(tmp_path / "t.jsonl", rows), "validation_file": write(tmp_path / "v.jsonl", rows[:1])}
    with pytest.raises(DataError, match=said):
        run("finetune", tmp_path / "m", model_name_or_path=base_model.directory, **files)


def test_a_label_of_a_set_that_training_has_not_is_named_with_its_row(run: Any, base_model: Artefact, tmp_path: Path) -> None:
    held = write(tmp_path / "held.jsonl", [{"text": "x", "labels": ["food"]}, {"text": "y", "labels": ["food", "sky"]}])
    file = write(tmp_path / "t.jsonl", notes(20))
    with pytest.raises(DataError, match=r"validation: the label 'sky' does not occur in training .*held\.jsonl:2"):
        run("finetune", tmp_path / "m", model_name_or_path=base_model.directory, train_file=file, validation_file=held)
