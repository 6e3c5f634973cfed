"""Leakage: planted test sentences are found in whatever a model was trained on, and nothing else is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from llmkit.corpus.documents import read_batches
from llmkit.evaluation import leakage
from llmkit.evaluation.evaluate import EvaluateConfig
from llmkit.evaluation.measured import evaluation_of
from llmkit.evaluation.sections import Evaluated
from llmkit.pipeline.artefact import Artefact
from llmkit.tasks import multiple_choice
from llmkit.tasks.question_answering import Example, QuestionAnswering
from llmkit.tasks.settings import Columns
from llmkit.tasks.tables import read_dataset
from llmkit.training.examples import Examples

REVIEWS = read_dataset("llmkit/reviews", None, "test").rows
PLANTED = [REVIEWS[index].values for index in (1, 20, 41, 77, 120, 150, 175, 190, 220, 251)]


@pytest.fixture(scope="module")
def leaked(
    run: Any,
    make_corpus: Callable[..., Artefact],
    corpus: Artefact,
    tokenizer: Artefact,
    tiny: dict[str, Any],
    quick: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Artefact:
    """A classifier whose base model was pretrained on a corpus with ten test reviews, each inside another text."""
    place = tmp_path_factory.mktemp("leaked")
    clean = [text for batch in read_batches(corpus.directory, "train") for text in batch.column("text").to_pylist()]
    texts = [f"Heard today: {row['text'].upper()}\n\nAnd more." for row in PLANTED]
    dirty = make_corpus(place, [*clean[:40], *texts, *clean[40:]], validation_fraction=0)
    tokens = run("tokenize", place / "tokens", corpus=dirty.directory, tokenizer=tokenizer.directory)
    base = run("pretrain", place / "base", tokens=tokens.directory, max_steps=2, **tiny)
    settings = {**quick, "num_train_epochs": 1.0, "max_train_samples": 24, "max_length": 32}
    return run("finetune", place / "m", model_name_or_path=base.directory, dataset_name="llmkit/reviews", **settings)


def found_by(artefact: Artefact) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    metrics = json.loads((artefact.directory / "metrics.json").read_text(encoding="utf-8"))
    return metrics, pyarrow.parquet.read_table(artefact.directory / "predictions.parquet").to_pylist()


@pytest.mark.slow
def test_planted_reviews_are_found_and_named_and_nothing_else_is(run: Any, leaked: Artefact, tmp_path: Path) -> None:
    settings = {"model_name_or_path": leaked.directory, "dataset_name": "llmkit/reviews", "baselines": False}
    metrics, rows = found_by(run("evaluate", tmp_path / "e", **settings))
    found = metrics["leakage"]
    assert found["complete"]
    assert {source["name"]: source["examples"] for source in found["sources"]} == {
        "pretraining": 10,
        "fine-tuning": 0,
        "fine-tuning validation": 0,
    }
    assert found["sources"][0]["mostly"] == 10
    planted = {row["id"] for row in PLANTED}
    assert {row["id"] for row in found["examples"]} == planted
    assert {row["id"] for row in rows if row["contaminated"]} == planted
    places = {row["id"]: row["found_in"] for row in found["examples"]}
    assert places == {row["id"]: f"corpus.jsonl:{41 + index}" for index, row in enumerate(PLANTED)}
    assert all(row["share"] == 1 for row in found["examples"]), "they stand there whole"
    right = np.array([row["label"] == row["prediction"] for row in rows])
    marked = np.array([row["contaminated"] for row in rows])
    for name, chosen in (("all", marked | True), ("without", ~marked), ("contaminated", marked)):
        (accuracy,) = [item for item in found["metrics"][name] if item["name"] == "accuracy"]
        assert accuracy["n"] == chosen.sum()
        assert accuracy["value"] == pytest.approx(right[chosen].mean())

    # Without the documents, the token shards are decoded.
    corpus = leaked.input("model_name_or_path").input("tokens").input("corpus").directory  # type: ignore[union-attr]
    (corpus / "train-00000.parquet").unlink()
    metrics, rows = found_by(run("evaluate", tmp_path / "decoded", **settings))
    assert "decoded from tokenize" in metrics["leakage"]["sources"][0]["detail"]
    assert {row["id"] for row in rows if row["contaminated"]} == planted
    assert {row["found_in"] for row in metrics["leakage"]["examples"]} == {f"document {number}" for number in range(41, 51)}

    # Without those too, it is not known.
    tokens = leaked.input("model_name_or_path").input("tokens").directory  # type: ignore[union-attr]
    shutil.move(tokens, tmp_path / "gone")
    metrics, rows = found_by(run("evaluate", tmp_path / "unknown", **settings))
    assert not metrics["leakage"]["complete"]
    assert metrics["leakage"]["sources"][0]["unknown"].startswith("the token shards of pretrain are no longer there")
    assert not any(row["contaminated"] for row in rows), "in what could be read there is none"


def test_a_clean_model_has_met_nothing(run: Any, classifier: Artefact, tmp_path: Path) -> None:
    test = tmp_path / "t.jsonl"
    rows = [{"text": row.values["text"], "label": ("good", "bad")[index % 2]} for index, row in enumerate(REVIEWS[:40])]
    test.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {"model_name_or_path": classifier.directory, "test_file": test, "baselines": False}
    metrics, rows = found_by(run("evaluate", tmp_path / "e", **settings))
    names = [source["name"] for source in metrics["leakage"]["sources"]]
    assert names == ["pretraining", "pretraining validation", "fine-tuning", "fine-tuning validation"]
    assert metrics["leakage"]["complete"] and metrics["leakage"]["contaminated"]["examples"] == 0
    assert not any(row["contaminated"] for row in rows)
    metrics, rows = found_by(run("evaluate", tmp_path / "off", leakage=False, **settings))
    assert "leakage" not in metrics and "contaminated" not in rows[0]


def test_of_a_model_from_elsewhere_nothing_is_known(
    run: Any, classifier: Artefact, toy_files: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(classifier.directory, tmp_path / "m", ignore=shutil.ignore_patterns("manifest.json"))
    made = run("evaluate", tmp_path / "e", model_name_or_path=tmp_path / "m", test_file=toy_files[1])
    metrics, rows = found_by(made)
    assert metrics["leakage"]["sources"] == [
        {"name": "pretraining", "unknown": "the model is not a result of llmkit, so what it was trained on is not known"}
    ]
    assert "contaminated" not in metrics["leakage"] and "contaminated" not in rows[0], "that it is clean is not claimed"


CONTEXT = (
    "The lamp was first lit in 1874 by a keeper called Ines Aldaro, who walked up from the village each night. Storms broke "
    "the glass twice, and in 1931 a motor took the place of the clockwork that had turned it for so long."
)
OTHER = "A clockwork that had turned for years stands in the museum of the town, beside the glass of an older lamp."


def asked(name: str, question: str, context: str, *answers: str) -> Example:
    found = [(answer, context.index(answer)) for answer in answers]
    return Example(id=name, place=name, question=question, context=context, answers=found)


def evaluated(test: list[Example], train: list[Example]) -> Evaluated:
    task = QuestionAnswering()
    predictions = [{"prediction": "the village", "score": 0.5} for _ in test]
    config = EvaluateConfig(model_name_or_path="someone/some-model", test_file="t.jsonl")
    measured = evaluation_of(task).measure(task, test, predictions, 0)
    split = read_dataset("llmkit/passages", None, "test")
    return Evaluated(config, task, None, None, split, test, predictions, measured, None, Examples(train, [], "none"))


def test_of_a_question_the_question_counts_and_context_and_answer_are_told_beside() -> None:
    question = "In which year did a motor take the place of the old clockwork?"
    test = [
        asked("a", "Who lit it?", CONTEXT, "Ines Aldaro"),
        asked("b", question, OTHER, "A clockwork"),
        asked("c", "Where?", OTHER),
    ]
    elsewhere = "Where did the keeper of the tower sleep when there was a storm in winter?"

    def found(*train: Example) -> dict[str, Any]:
        made = leakage.section(evaluated(test, list(train)))
        assert made is not None
        return made

    clean = found(asked("t", elsewhere, "Nobody knows."))
    assert clean["contaminated"]["examples"] == 0
    assert clean["sources"][0]["name"] == "pretraining" and "unknown" in clean["sources"][0]
    assert not clean["complete"]

    same_question = found(asked("t", question.upper(), "Nobody knows."))
    assert [(row["id"], row["part"], row["found_in"]) for row in same_question["examples"]] == [("b", "question", "t")]

    same_context = found(asked("t", elsewhere, CONTEXT))
    assert same_context["contaminated"]["examples"] == 0, "a passage gives away no answer by itself"
    assert {name: same_context["sources"][1]["parts"][name] for name in ("context", "answer")} == {"context": 1, "answer": 1}

    end = CONTEXT[CONTEXT.index("Storms") :]
    beside = found(asked("t", elsewhere, end))
    assert beside["contaminated"]["examples"] == 0, "the answer stands in the other half"
    assert beside["sources"][1]["parts"]["context"] == 1


@pytest.mark.parametrize("answer", ["The lamp", "Ines Aldaro", "long", CONTEXT])
def test_around_an_answer_there_are_as_many_words_as_an_n_gram_has(answer: str) -> None:
    parts = leakage.parts_of("question-answering", asked("a", "Who?", CONTEXT, answer))
    assert answer.strip(".") in parts["answer"]
    assert len(parts["answer"].split()) == max(13, len(answer.split()))


def test_of_a_conversation_the_last_turns_are_looked_for() -> None:
    from llmkit.tasks.text_generation import TextGeneration

    rows = read_dataset("llmkit/instructions", None, "test").rows
    example = TextGeneration(True).read(rows, Columns())[0]
    assert set(leakage.parts_of("text-generation", example)) == {"prompt", "completion"}


def test_a_question_with_choices_is_looked_for_with_the_right_one() -> None:
    choices = ["a blue one in the north", "the long red one behind the old town hall"]
    example = multiple_choice.Example(id="a", place="f:1", question="Which river is it?", choices=choices, answer=1)
    assert leakage.parts_of("multiple-choice", example) == {
        "question": "Which river is it?",
        "question and answer": "Which river is it? the long red one behind the old town hall",
    }
