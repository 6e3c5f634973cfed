"""From rows to answers, end to end, with a causal model and with an encoder."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from transformers import AutoModelForQuestionAnswering

import llmkit
from llmkit.errors import ConfigError, DataError
from llmkit.pipeline.artefact import Artefact
from llmkit.training.ledger import read_ledger

KINDS = {
    "Who came?": ("Anna", "Ben", "Cora", "Dan"),
    "Where was it?": ("Rome", "Oslo", "Lima", "Kyoto"),
    "When was it?": ("Monday", "Friday", "June", "April"),
    "谁来了？": ("小王", "小李", "老张"),
}
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.1,
}


def questions(count: int, seed: int) -> list[dict[str, Any]]:
    """What is asked for is of a kind that the question names; a fifth of the contexts has nothing of it."""
    generator, rows = random.Random(seed), []
    for number in range(count):
        question = list(KINDS)[number % 4]
        present = [kind for kind in KINDS if kind != question and generator.random() < 0.7]
        present += [question] * (number % 5 > 0)
        generator.shuffle(present)
        context = f"Note {number}: " + ", ".join(generator.choice(KINDS[kind]) for kind in present) + "."
        answers = [word for word in KINDS[question] if word in context]
        found = {"text": answers, "answer_start": [context.index(word) for word in answers]}
        rows.append({"id": f"q{number}", "question": question, "context": context, "answers": found})
    return rows


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("questions")
    for name, rows in (("train", questions(400, 1)), ("test", questions(80, 2))):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return place / "train.jsonl", place / "test.jsonl"


@pytest.fixture(scope="module")
def quickly(files: tuple[Path, Path]) -> dict[str, Any]:
    return {
        "task": "question-answering",
        "model_type": "llama",
        "config_overrides": SMALL,
        "vocab_size": 400,
        "train_file": files[0],
        "validation_file": files[1],
        "max_length": 64,
        "num_train_epochs": 10.0,
        "learning_rate": 5e-3,
        "bf16": False,
        "cpu_threads": 1,
    }


@pytest.fixture(scope="module")
def answerer(run: Any, quickly: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """A causal model that has learned to answer."""
    return run("finetune", tmp_path_factory.mktemp("answerer") / "model", **quickly)


@pytest.fixture(scope="module")
def evaluation(run: Any, answerer: Artefact, files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    settings = {"model_name_or_path": answerer.directory, "test_file": files[1]}
    return run("evaluate", tmp_path_factory.mktemp("evaluation") / "evaluation", **settings)


def test_a_causal_model_learns_to_answer_and_not_to_answer(answerer: Artefact) -> None:
    metrics = answerer.manifest.metrics
    assert metrics["validation"]["f1"] > 0.95
    losses = [entry["eval_loss"] for entry in read_ledger(answerer.directory / "metrics.jsonl") if "eval_loss" in entry]
    assert losses[-1] < losses[0] / 2
    assert metrics["train"]["without_answer"] == 80 and metrics["train"]["windows"] == 400
    assert metrics["tuned"]["f1"] >= metrics["tuned"]["f1_before"]
    assert metrics["tuned"]["f1"] == pytest.approx(metrics["validation"]["f1"])


def test_the_threshold_and_the_windows_are_in_the_config_of_the_model(answerer: Artefact) -> None:
    noted = json.loads((answerer.directory / "config.json").read_text())["llmkit"]
    assert noted["null_score_diff_threshold"] == answerer.manifest.metrics["tuned"]["null_score_diff_threshold"]
    assert (noted["task"], noted["max_length"], noted["doc_stride"]) == ("question-answering", 64, 128)


@pytest.mark.slow
def test_an_encoder_learns_it_too(run: Any, quickly: dict[str, Any], tmp_path: Path) -> None:
    bert = {**SMALL, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    changed = {"model_type": "bert", "config_overrides": bert, "learning_rate": 3e-3, "num_train_epochs": 12.0}
    made = run("finetune", tmp_path / "bert", **{**quickly, **changed})
    assert made.manifest.metrics["validation"]["f1"] > 0.95


def test_an_evaluation_tells_of_questions_with_and_without_an_answer_and_of_baselines(
    evaluation: Artefact, answerer: Artefact
) -> None:
    record = json.loads((evaluation.directory / "metrics.json").read_text())
    values = {(item["name"], item["label"]): item["value"] for item in record["metrics"]}
    assert values["f1", None] == pytest.approx(answerer.manifest.metrics["validation"]["f1"], abs=0.03)
    assert values["f1", None] == pytest.approx((64 * values["f1", "HasAns"] + 16 * values["f1", "NoAns"]) / 80)
    assert [item["name"] for item in record["baselines"]] == ["first sentence", "lexical overlap", "always no answer"]
    assert record["baselines"][2]["metrics"][0]["value"] == pytest.approx(16 / 80)
    assert record["comparison"][2]["difference"] > 0.5
    counts = record["answered"]["with_answer"]
    assert counts["answered"] + counts["not"] == 64


def test_the_predictions_of_an_evaluation_are_the_answers_that_a_user_gets(
    evaluation: Artefact, answerer: Artefact, files: tuple[Path, Path]
) -> None:
    rows = pyarrow.parquet.read_table(evaluation.directory / "predictions.parquet").to_pylist()
    asked = [json.loads(line) for line in files[1].read_text(encoding="utf-8").splitlines()]
    answer = llmkit.QuestionAnswerer.from_pretrained(str(answerer.directory))
    found = answer([row["question"] for row in asked], [row["context"] for row in asked], batch_size=7)
    assert [row["prediction"] for row in rows] == [item["answer"] for item in found]
    assert [row["score"] for row in rows] == pytest.approx([item["score"] for item in found], abs=1e-4)
    assert any(row["prediction"] == "" for row in rows) and any(row["prediction"] for row in rows)
    for row, question in zip(rows, asked, strict=True):  # by these a report marks the answers
        context = row["text"][row["context_start"] :]
        assert context == question["context"]
        assert [context[start:end] for start, end in row["answer_spans"]] == question["answers"]["text"]
        assert not row["prediction"] or context.startswith(row["prediction"], row["answer_start"])
    for row, item in zip(asked, found, strict=True):
        assert row["context"][item["start"] : item["end"]] == item["answer"], "an answer is a piece of the context"
    for row, one in zip(rows, asked, strict=True):
        best = json.loads(row["n_best"])
        assert best[0]["text"] == row["prediction"] and 0 < sum(item["score"] for item in best) <= 1 + 1e-6
        assert row["answer_start"] is None or one["context"].startswith(row["prediction"], row["answer_start"])


def test_questions_are_asked_one_by_one_and_together(answerer: Artefact) -> None:
    answer = llmkit.QuestionAnswerer.from_pretrained(str(answerer.directory))
    context = "Note 7: Ben, Oslo, June."
    one = answer(question="Where was it?", context=context)
    assert set(one) == {"answer", "score", "start", "end"}
    best = answer(question="Where was it?", context=context, top_k=3)
    assert len(best) == 3 and best[0]["answer"] == one["answer"]
    several = answer(question=["Where was it?", "Who came?"], context=context)
    assert [item["answer"] for item in several] == [one["answer"], answer("Who came?", context)["answer"]]
    assert answer([], []) == []
    with pytest.raises(ConfigError, match="2 questions and 1 contexts"):
        answer(["a", "b"], ["c"])
    with pytest.raises(ConfigError, match="pair 0 has an empty text"):
        answer("a", " ")


def test_a_report_is_made_of_it(run: Any, evaluation: Artefact, tmp_path: Path) -> None:
    made = run("report", tmp_path / "report", evaluation=evaluation.directory)
    assert "question answering" in (made.directory / "report.html").read_text(encoding="utf-8").lower()


def test_the_model_is_one_of_transformers(answerer: Artefact) -> None:
    _, loading = AutoModelForQuestionAnswering.from_pretrained(answerer.directory, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]


def test_contexts_longer_than_the_model_are_read_in_windows_and_only_the_head_is_new(
    run: Any, base_model: Artefact, quickly: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = questions(24, 3)
    for row in rows:
        row["context"] += " And so on, and so forth, and nothing of this matters at all." * 2
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    here = {"model_name_or_path": base_model.directory, "train_file": tmp_path / "long.jsonl", "max_length": None}
    left = {name: value for name, value in quickly.items() if name not in ("model_type", "config_overrides", "vocab_size")}
    made = run("finetune", tmp_path / "model", **{**left, **here, "validation_file": None, "max_steps": 2, "doc_stride": 8})
    train = made.manifest.metrics["train"]
    assert train["windows"] > 2 * train["examples"]
    assert made.manifest.metrics["max_length"] == 32
    assert "except for new ones: qa_outputs.bias, qa_outputs.weight\n" in capsys.readouterr().out


def losses(made: Artefact) -> list[float]:
    return [entry["loss"] for entry in read_ledger(made.directory / "metrics.jsonl") if "loss" in entry]


def test_accumulated_steps_are_whole_steps(run: Any, quickly: dict[str, Any], tmp_path: Path) -> None:
    asked = {**quickly, "max_steps": 3, "logging_steps": 1}
    whole = run("finetune", tmp_path / "whole", **asked, per_device_train_batch_size=8)
    parts = run("finetune", tmp_path / "parts", **asked, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)


@pytest.mark.slow
def test_two_ranks_make_the_steps_of_one(run: Any, quickly: dict[str, Any], tmp_path: Path) -> None:
    asked = {**quickly, "max_steps": 3, "logging_steps": 1}
    one = run("finetune", tmp_path / "one", **asked, per_device_train_batch_size=8)
    words = [sys.executable, "-m", "llmkit", "finetune", "--output_dir", str(tmp_path / "two"), "--accelerate_config", "ddp"]
    for name, value in {**asked, "per_device_train_batch_size": 4}.items():
        words += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    two = Artefact.open(tmp_path / "two", "finetune")
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert two.manifest.metrics["validation"]["f1"] == pytest.approx(one.manifest.metrics["validation"]["f1"], abs=1e-6)


def test_an_answer_that_is_not_at_its_offset_ends_with_its_row(run: Any, quickly: dict[str, Any], tmp_path: Path) -> None:
    rows = questions(3, 1)
    rows[1]["answers"]["answer_start"] = [1]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.jsonl:2: '\w+' at 1, where '.+' stands \(it begins at \d+\)"):
        run("finetune", tmp_path / "model", **{**quickly, "train_file": tmp_path / "bad.jsonl"})


def test_label_smoothing_is_refused_and_not_left_out(run: Any, quickly: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="label_smoothing_factor: is for classes and tokens"):
        run("finetune", tmp_path / "m", **quickly, label_smoothing_factor=0.1)
