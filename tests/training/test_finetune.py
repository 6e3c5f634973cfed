from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, pipeline

from llmkit.errors import ConfigError, DataError, LLMKitError
from llmkit.pipeline.artefact import Artefact
from llmkit.pipeline.stage import Workspace
from llmkit.tasks import text_generation
from llmkit.tasks.loading import load_task_model
from llmkit.tasks.settings import Columns
from llmkit.tasks.text_classification import Example, TextClassification
from llmkit.tasks.text_generation import TextGeneration
from llmkit.training.finetuning import features_of
from llmkit.training.ledger import read_ledger


@pytest.fixture(scope="module")
def bert(run: Any, corpus: Artefact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with random weights and a WordPiece tokenizer, as somebody else would have saved it."""
    place = tmp_path_factory.mktemp("bert")
    made = run("tokenizer", place / "tokenizer", corpus=corpus.directory, model="wordpiece", vocab_size=900)
    tokenizer = AutoTokenizer.from_pretrained(made.directory)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertForMaskedLM(config).save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    return place / "model"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        bare: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), **(bare if path.suffix == ".tsv" else {}))
            writer.writeheader()
            writer.writerows(rows)
    return path


def test_the_toy_problem_is_learned_from_a_causal_model(classifier: Artefact) -> None:
    metrics = classifier.manifest.metrics
    assert metrics["labels"] == ["bad", "good"]
    assert metrics["train"]["examples"] + metrics["validation"]["examples"] == 96
    assert metrics["validation"]["accuracy"] >= 0.7
    assert metrics["train"]["labels"] == {"bad": 43, "good": 43}
    assert 0 <= metrics["padding"] < 0.2


def test_the_config_names_padding_and_labels(classifier: Artefact) -> None:
    config = json.loads((classifier.directory / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(classifier.directory)
    assert config["pad_token_id"] == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert config["id2label"] == {"0": "bad", "1": "good"}
    assert config["label2id"] == {"bad": 0, "good": 1}
    assert tokenizer.padding_side == "right"


def test_the_result_holds_no_pickles_and_no_checkpoints(classifier: Artefact) -> None:
    files = {path.relative_to(classifier.directory).as_posix() for path in classifier.directory.rglob("*")}
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl")) or "checkpoint" in name]


@pytest.mark.parametrize("kind", ["causal", "bert"])
def test_plain_transformers_gives_the_label_that_our_prediction_gives(
    run: Any,
    classifier: Artefact,
    bert: Path,
    toy: Any,
    toy_files: tuple[Path, Path],
    quick: dict[str, Any],
    tmp_path: Path,
    kind: str,
) -> None:
    made = classifier
    if kind == "bert":
        made = run("finetune", tmp_path / "m", model_name_or_path=bert, train_file=toy_files[0], **quick)
        assert made.manifest.metrics["validation"]["accuracy"] >= 0.7
    rows = [*toy(30, start=500), {"text": "x", "label": "bad"}, {"text": "The soup was lovely.", "label": "good"}]
    theirs = pipeline("text-classification", model=str(made.directory))([row["text"] for row in rows], batch_size=8)
    task, model, tokenizer = load_task_model(str(made.directory))
    data = [Example(id=str(number), place="", **row) for number, row in enumerate(rows)]
    for batch_size in (1, 7):
        ours = list(task.predict(model, tokenizer, data, batch_size))
        assert [row["prediction"] for row in ours] == [item["label"] for item in theirs]
        assert [row["score"] for row in ours] == pytest.approx([item["score"] for item in theirs], abs=1e-4)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_trains_with_columns_of_its_own_and_numbers_as_labels(
    run: Any, base_model: Artefact, toy: Any, quick: dict[str, Any], tmp_path: Path, suffix: str
) -> None:
    numbers: dict[str, Any] = {"good": 10, "bad": 9}
    rows = [{"what": f'"{row["text"]}', "stars": numbers[row["label"]]} for row in toy(40)]
    made = run(
        "finetune",
        tmp_path / "m",
        model_name_or_path=base_model.directory,
        train_file=write(tmp_path / f"train{suffix}", rows),
        validation_file=write(tmp_path / f"held{suffix}", [{"what": "a", "stars": 9}, {"what": "b", "stars": 10}]),
        text_column="what",
        label_column="stars",
        **{**quick, "num_train_epochs": 1.0},
    )
    assert made.manifest.metrics["labels"] == ["9", "10"]
    assert made.manifest.metrics["train"]["examples"] == 40
    assert made.manifest.metrics["validation"]["examples"] == 2
    assert read_ledger(made.directory / "metrics.jsonl")


def test_the_same_settings_give_the_same_classifier(
    run: Any, base_model: Artefact, toy_files: tuple[Path, Path], classifier: Artefact, quick: dict[str, Any], tmp_path: Path
) -> None:
    settings = {"model_name_or_path": base_model.directory, "train_file": toy_files[0], **quick}
    again = run("finetune", tmp_path / "again", **settings)
    assert (again.directory / "model.safetensors").read_bytes() == (classifier.directory / "model.safetensors").read_bytes()
    assert again.manifest.digest == classifier.manifest.digest
    other = run("finetune", tmp_path / "other", **{**settings, "seed": 5})
    assert other.manifest.digest != again.manifest.digest


GOOD = [{"text": f"word {number}", "label": "ab"[number % 2]} for number in range(20)]


@pytest.mark.parametrize(
    ("train", "held", "settings", "said"),
    [
        (
            [{"text": letter, "label": "x"} for letter in "abcde"],
            None,
            {},
            "have the label 'x'; a classifier needs at least two",
        ),
        (GOOD, None, {"label_column": "labl"}, "has no column 'labl', it has: text, label; did you mean 'label'?"),
        (GOOD, [{"text": "c", "label": "zz"}], {}, r"validation: the label 'zz' does not occur in training.*held\.jsonl:1"),
        ([*GOOD, {"text": " ", "label": "a"}], None, {}, r"1 rows have no text in column 'text': .*train\.jsonl:21"),
        (GOOD[:2], None, {}, "2 training examples leave none to hold out for validation"),
    ],
)
def test_examples_that_cannot_train_a_classifier_are_refused(
    run: Any,
    base_model: Artefact,
    tmp_path: Path,
    train: list[dict[str, Any]],
    held: list[dict[str, Any]] | None,
    settings: dict[str, Any],
    said: str,
) -> None:
    files = {"train_file": write(tmp_path / "train.jsonl", train)}
    if held:
        files["validation_file"] = write(tmp_path / "held.jsonl", held)
    with pytest.raises(DataError, match=said):
        run("finetune", tmp_path / "m", model_name_or_path=base_model.directory, **files, **settings)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_length": 33}, "max_length: 33 is more than the 32 tokens that the model takes"),
        ({"max_length": 0}, "max_length"),
        ({"max_train_samples": 0}, "max_train_samples"),
        ({"max_train_samples": -3}, "max_train_samples"),
        ({"validation_fraction": 0.0}, "validation_fraction"),
        ({"metric_for_best_model": "f1"}, "metric_for_best_model"),
        ({"dataset_name": "llmkit/reviews"}, "give one of them"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    run: Any, base_model: Artefact, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    file = write(tmp_path / "train.jsonl", GOOD)
    with pytest.raises(ConfigError, match=said):
        run("finetune", tmp_path / "m", model_name_or_path=base_model.directory, train_file=file, **settings)


def test_a_base_model_that_is_none_is_refused(run: Any, tokenizer: Artefact, tmp_path: Path) -> None:
    file = write(tmp_path / "train.jsonl", GOOD)
    with pytest.raises(LLMKitError, match="gives no model for text-classification"):
        run("finetune", tmp_path / "m", model_name_or_path=tokenizer.directory, train_file=file)


def test_where_the_validation_examples_come_from_is_told_and_what_is_also_in_training(
    run: Any, base_model: Artefact, quick: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = {"model_name_or_path": base_model.directory, **quick, "num_train_epochs": 1.0}
    held = write(tmp_path / "held.jsonl", [{"text": "WORD  0", "label": "a"}, {"text": "new", "label": "b"}])
    train = write(tmp_path / "train.jsonl", [*GOOD, {"text": "word 1", "label": "a"}])
    made = run("finetune", tmp_path / "file", train_file=train, validation_file=held, **common)
    validation = made.manifest.metrics["validation"]
    assert (validation["from"], validation["also_in_training"]) == ("held.jsonl", 1)
    assert validation["also_in_training_share"] == 0.5
    assert made.manifest.metrics["train"]["texts_with_several_labels"] == 1
    said = capsys.readouterr().out
    assert "2 for validation (held.jsonl)" in said
    assert "warning: 1 validation examples (50.0%) have a text that is also in training" in said
    assert "warning: texts that stand in training with more than one label or target: 1" in said
    made = run("finetune", tmp_path / "none", train_file=train, **common)
    assert made.manifest.metrics["validation"]["from"] == "held out, 10% of the training examples"
    assert made.manifest.metrics["validation"]["also_in_training"] == 0


def test_a_data_set_with_a_validation_split_is_validated_on_it_and_stale_when_its_files_change(
    run: Any, base_model: Artefact, quick: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.jsonl", GOOD)
    write(tmp_path / "data" / "dev.jsonl", [{"text": "c", "label": "a"}, {"text": "d", "label": "b"}])
    (tmp_path / "data" / ".hidden").write_text("not data")
    settings = {
        "model_name_or_path": base_model.directory,
        "dataset_name": tmp_path / "data",
        **quick,
        "num_train_epochs": 1.0,
    }
    made = run("finetune", tmp_path / "m", **settings)
    metrics = made.manifest.metrics
    assert (metrics["train"]["examples"], metrics["validation"]["examples"]) == (20, 2)
    assert metrics["validation"]["from"] == "split validation of data/"
    assert {Path(record.path).name for record in made.manifest.raw_inputs} == {"train.jsonl", "dev.jsonl"}
    assert run("finetune", tmp_path / "m", **settings).manifest == made.manifest
    write(tmp_path / "data" / "train.jsonl", [*GOOD[:-1], {"text": "other", "label": "b"}])
    with pytest.raises(LLMKitError, match="differs in its inputs"):
        run("finetune", tmp_path / "m", **settings)


def test_features_are_made_anew_where_another_token_ends_a_text(base_model: Artefact, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_model.directory)
    data = [text_generation.Example(id="1", place="f:1", prompt="a", completion="b")]
    for token in ("<|endoftext|>", "<|pad|>"):
        tokenizer.eos_token = token
        features = features_of(TextGeneration(False), data, tokenizer, 32, Workspace(directory=tmp_path / "m"))
        assert features[0]["labels"][-1] == tokenizer.convert_tokens_to_ids(token)
    data = [Example(id="1", place="f:1", text="one two three four", label="a")]
    first = []
    for side in ("right", "left"):
        tokenizer.truncation_side = side
        features = features_of(TextClassification(["a", "b"]), data, tokenizer, 4, Workspace(directory=tmp_path / "m"))
        first.append(tokenizer.decode(features[0]["input_ids"]))
    assert first[0] != first[1]


def test_the_card_tells_nothing_of_the_machine_or_of_where_things_lay(
    run: Any, base_model: Artefact, classifier: Artefact, toy_files: tuple[Path, Path], quick: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(base_model.directory, tmp_path / "moved")
    file = shutil.copy(toy_files[0], tmp_path)
    made = run("finetune", tmp_path / "m", model_name_or_path=tmp_path / "moved", train_file=file, **quick)
    card = (made.directory / "README.md").read_text(encoding="utf-8")
    assert card == (classifier.directory / "README.md").read_text(encoding="utf-8")
    assert base_model.manifest.fingerprint[:12] in card
    for fact in ("processes", "device", "layout", "threads", "runtime", "per_second", "cpu", str(tmp_path)):
        assert fact not in card


def test_fewer_training_examples_are_drawn_by_the_seed(
    run: Any, base_model: Artefact, toy_files: tuple[Path, Path], quick: dict[str, Any], tmp_path: Path
) -> None:
    settings = {"model_name_or_path": base_model.directory, "train_file": toy_files[0], **quick}
    made = run("finetune", tmp_path / "m", **{**settings, "num_train_epochs": 1.0, "max_train_samples": 24})
    assert made.manifest.metrics["train"]["examples"] == 24
    assert sum(made.manifest.metrics["train"]["labels"].values()) == 24


def test_the_best_checkpoint_is_kept_and_measured(classifier: Artefact) -> None:
    curve = [entry for entry in read_ledger(classifier.directory / "metrics.jsonl") if "eval_f1_macro" in entry]
    best = max(entry["eval_f1_macro"] for entry in curve)
    assert len({entry["step"] for entry in curve}) == len(curve) == 8, "one evaluation an epoch, and none mislabelled"
    metrics = classifier.manifest.metrics
    assert metrics["validation"]["f1_macro"] == pytest.approx(best)
    assert metrics["best_step"] == next(entry["step"] for entry in curve if entry["eval_f1_macro"] == best)


def test_the_validation_metrics_are_those_of_the_weights_that_are_kept(
    classifier: Artefact, toy_files: tuple[Path, Path]
) -> None:
    from llmkit.tasks.tables import read_table

    task, model, tokenizer = load_task_model(str(classifier.directory))
    _, held = task.hold_out(task.read(read_table(toy_files[0]), Columns()), 0.1, 0)
    chances = task.probabilities(model, tokenizer, held, 4)
    true = [["bad", "good"].index(item.label) for item in held]
    validation = classifier.manifest.metrics["validation"]
    assert validation["examples"] == len(held)
    assert validation["accuracy"] == pytest.approx(sum(chances.argmax(1) == true) / len(true))
    loss = -sum(math.log(row[index]) for row, index in zip(chances, true, strict=True)) / len(true)
    assert validation["loss"] == pytest.approx(loss, abs=1e-4)
