"""Metrics against their references for every kind of task, and what happens where they differ."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig

from llmkit.cli import main
from llmkit.evaluation import selfcheck
from llmkit.evaluation.discrimination import MAX_POINTS, curves
from llmkit.evaluation.measured import evaluation_of
from llmkit.evaluation.sections import Evaluated
from llmkit.evaluation.selfcheck import answer_score, difference
from llmkit.pipeline.artefact import Artefact
from llmkit.tasks import answer_scores, multiple_choice, question_answering, text_classification, text_generation, translation
from llmkit.tasks.labels import MULTI, REGRESSION
from llmkit.tasks.multiple_choice import MultipleChoice
from llmkit.tasks.question_answering import QuestionAnswering
from llmkit.tasks.text_classification import TextClassification
from llmkit.tasks.text_generation import TextGeneration
from llmkit.tasks.translation import Translation

SOME = st.integers(0, 10_000)


def checked(task: Any, test: list[Any], predictions: list[dict[str, Any]]) -> None:
    """All metrics of predictions have a reference and equal it."""
    measured = evaluation_of(task).measure(task, test, predictions, 0)
    evaluated = Evaluated(
        config=SimpleNamespace(selfcheck=True),  # type: ignore[arg-type]
        task=task,
        model=None,
        tokenizer=None,
        data=None,  # type: ignore[arg-type]
        test=test,
        predictions=predictions,
        measured=measured,
        finetuned=None,
        trained_on=None,
    )
    references = selfcheck._REFERENCES[task.name](evaluated)
    for metric in measured.metrics:
        reference, _ = references[metric.key, metric.label]
        assert difference(metric.value, reference) <= 1e-9, (metric, reference)


def classified(labels: list[Any]) -> list[Any]:
    return [
        text_classification.Example(id=str(number), place="f:1", text=f"text {number}", label=label)
        for number, label in enumerate(labels)
    ]


@given(SOME, st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_choices_are_measured_as_their_definition_has_it(seed: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    texts = ["yes", "不", "a long choice", "第二个答案"]
    test = [
        multiple_choice.Example(id=str(k), place="f:1", question="?", choices=texts, answer=int(generator.integers(4)))
        for k in range(n)
    ]
    sizes = {"choice": [1] * 4, "choice_norm": [len(x) for x in texts], "choice_bytes": [len(x.encode()) for x in texts]}
    rows: list[dict[str, Any]] = []
    for _ in test:
        found = -generator.integers(1, 9, 4).astype(float)  # with ties
        chosen = {name: int((found / size).argmax()) for name, size in sizes.items()}
        rows.append({"prediction": texts[chosen["choice"]], "loglikelihoods": found.tolist(), **chosen})
    checked(MultipleChoice(max_new_tokens=1, num_beams=1), test, rows)


def test_numbers_of_another_batch_may_differ_as_roundings_do() -> None:
    assert selfcheck._is_same(0.5, 0.5 + 1e-7) and not selfcheck._is_same(0.5, 0.51)
    assert not selfcheck._is_same("good", "bad")


@given(SOME, st.integers(2, 6), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_classes_are_measured_as_their_references_have_it(seed: int, classes: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    labels = [f"label {number}" for number in range(classes)]
    chances = generator.dirichlet(np.ones(classes), n).round(1) + 0.01  # with ties
    chances /= chances.sum(axis=1, keepdims=True)
    rows: list[dict[str, Any]] = [
        {"prediction": labels[int(row.argmax())]}
        | {f"probability_{name}": float(x) for name, x in zip(labels, row, strict=True)}
        for row in chances
    ]
    checked(TextClassification(labels), classified([labels[k] for k in generator.integers(0, classes, n)]), rows)


@given(SOME, st.integers(1, 5), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_sets_of_labels_are_measured_as_their_references_have_it(seed: int, classes: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    labels = [f"label {number}" for number in range(classes + 1)]
    test = classified([[name for name in labels if generator.random() < 0.4] for _ in range(n)])
    rows: list[dict[str, Any]] = []
    for chances in generator.random((n, len(labels))).round(1):
        row = {f"probability_{name}": float(chance) for name, chance in zip(labels, chances, strict=True)}
        rows.append({"prediction": [name for name in labels if row[f"probability_{name}"] >= 0.5], **row})
    checked(TextClassification(labels, MULTI), test, rows)


@given(SOME, st.integers(3, 30))
@settings(max_examples=20, deadline=None)
def test_numbers_are_measured_as_their_references_have_it(seed: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    true = generator.normal(size=n).round(1)
    rows = [{"prediction": float(value)} for value in true + generator.normal(size=n).round(1)]
    checked(TextClassification(["stars"], REGRESSION), classified(true.tolist()), rows)


WORDS = st.lists(st.sampled_from(["the", "cat", "a", "an", "Cat!", "ran", "2,5", "—", "North."]), max_size=6).map(" ".join)
CHINESE = st.text("北京市，。的3 a", max_size=8)


@given(st.lists(st.tuples(WORDS, st.lists(WORDS, max_size=3)), min_size=1, max_size=12), st.booleans())
@settings(max_examples=60, deadline=None)
def test_answers_are_measured_by_the_definition_of_squad(rows: list[tuple[str, list[str]]], chinese: bool) -> None:
    question = "谁住在那里？" if chinese else "Who lives there?"
    test = [
        question_answering.Example(
            id=str(number),
            place="f:1",
            context=f"context {number}",
            question=question,
            answers=[(text, 0) for text in answers],
        )
        for number, (_, answers) in enumerate(rows)
    ]
    task = QuestionAnswering.of_model({}, BertConfig())
    checked(task, test, [{"prediction": said} for said, _ in rows])


@given(CHINESE, CHINESE)
@settings(max_examples=80, deadline=None)
def test_chinese_answers_are_scored_by_the_definition_of_cmrc(said: str, answer: str) -> None:
    exact, f1 = answer_score(said, answer, chinese=True)
    normal = answer_scores.normalised_chinese_answer
    assert exact == float(normal(said) == normal(answer))
    assert f1 == pytest.approx(answer_scores.chinese_f1(said, answer))


def test_the_definition_of_squad_written_out_gives_what_the_paper_says() -> None:
    assert answer_score("The Cat!", "cat") == (1.0, 1.0)
    assert answer_score("a black cat", "the cat") == (0.0, pytest.approx(2 / 3))
    assert answer_score("", "") == (1.0, 1.0) and answer_score("", "cat") == (0.0, 0.0)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None)
def test_translations_are_measured_as_sacrebleu_does(pairs: list[tuple[str, str]]) -> None:
    test = [
        translation.Example(id=str(number), place="f:1", source="x", translation=meant or "x")
        for number, (_, meant) in enumerate(pairs)
    ]
    checked(Translation("en", "de"), test, [{"prediction": said} for said, _ in pairs])


@given(st.lists(st.tuples(WORDS, WORDS, st.floats(0.1, 90), st.integers(1, 20)), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None)
def test_completions_are_measured_as_their_definitions_have_it(rows: list[tuple[str, str, float, int]]) -> None:
    test = [
        text_generation.Example(id=str(number), place="f:1", prompt="x", completion=meant)
        for number, (_, meant, _, _) in enumerate(rows)
    ]
    said = [
        {"prediction": text, "loss": loss, "tokens": tokens, "right_tokens": tokens // 2} for text, _, loss, tokens in rows
    ]
    checked(TextGeneration(False), test, said)


# --------------------------------------------------------------------------------------------------------------------


def test_a_metric_that_differs_ends_the_evaluation(
    classifier: Artefact, toy_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("sklearn.metrics.matthews_corrcoef", lambda *_: 0.123)
    words = ["evaluate", "--model_name_or_path", str(classifier.directory), "--test_file", str(toy_files[1]), "--selfcheck"]
    assert main([*words, "--output_dir", str(tmp_path / "e")]) == 2
    said = capsys.readouterr().err
    assert "selfcheck: metrics differ from their references" in said and "scikit-learn says 0.123" in said
    assert not (tmp_path / "e").exists()


def test_predictions_that_change_with_the_batch_size_are_counted() -> None:
    class Moody:
        def predict(self, model: Any, tokenizer: Any, data: list[Any], batch_size: int) -> Any:
            assert batch_size == 1
            return [{"prediction": "b" if number == 3 else "a", "score": 0.5} for number in range(len(data))]

    evaluated = SimpleNamespace(
        task=Moody(),
        model=None,
        tokenizer=None,
        test=classified(["a"] * 250),
        predictions=[{"prediction": "a", "score": 0.75}] * 250,
        config=SimpleNamespace(per_device_eval_batch_size=64),
    )
    found = selfcheck._alone(evaluated)  # type: ignore[arg-type]
    assert (found["n"], found["changed"], found["ids"], found["largest_change_of_score"]) == (200, 1, ["3"], 0.25)


@given(SOME, st.integers(2, 400))
@settings(max_examples=40, deadline=None)
def test_thinned_curves_keep_their_ends_and_their_area(seed: int, n: int) -> None:
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(seed)
    positive = generator.random(n) < 0.4
    positive[:2] = True, False
    scores = np.round(generator.normal(size=n) + positive, int(generator.integers(0, 4)))
    found = curves(scores, positive)
    roc = np.array(found["roc"])
    assert len(roc) <= MAX_POINTS and len(found["pr"]) <= MAX_POINTS
    assert roc[0, :2].tolist() == [0, 0] and roc[-1, :2].tolist() == [1, 1] and found["pr"][-1][0] == 1
    assert (np.diff(roc[:, 0]) >= 0).all() and (np.diff(roc[:, 1]) >= 0).all()
    area = float((np.diff(roc[:, 0]) * (roc[1:, 1] + roc[:-1, 1]) / 2).sum())
    assert area == pytest.approx(roc_auc_score(positive, scores), abs=0.02)
    assert math.isfinite(area)
