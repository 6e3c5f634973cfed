from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.evaluation import text_generation, translation
from llmkit.evaluation.intervals import wilson
from llmkit.evaluation.rouge import rouge_l, rouge_n, words
from llmkit.pipeline.artefact import Artefact
from llmkit.tasks import text_generation as generated
from llmkit.tasks import translation as translated
from llmkit.tasks.translation_metrics import bleu, chrf, language_of, score, statistics, ter, value

ENGLISH = ["the cat sat on the mat", "a small dog barks", "", "it rains today , and tomorrow ."]
REFERENCES = ["the cat is sitting on the mat", "a little dog is barking", "nothing", "it rains today and tomorrow."]
CHINESE = ["我喜欢跳舞。", "他在弹吉他", "今天下雨"]
CHINESE_REFERENCES = ["我爱跳舞。", "他在一个乐队里弹吉他。", "今天会下雨。"]


def value_of(found: Any, name: str) -> Any:
    return next(metric for metric in found.metrics if metric.name == name)


# Lin 2004, section 3: S1 "police killed the gunman", S2 "police kill the gunman", S3 "the gunman kill police".
def test_rouge_is_that_of_the_examples_in_the_paper() -> None:
    reference = "police killed the gunman"
    assert rouge_n("police kill the gunman", reference, 1) == pytest.approx(3 / 4)
    assert rouge_n("police kill the gunman", reference, 2) == pytest.approx(1 / 3)
    assert rouge_l("police kill the gunman", reference) == pytest.approx(3 / 4)
    assert rouge_n("the gunman kill police", reference, 2) == pytest.approx(1 / 3)
    assert rouge_l("the gunman kill police", reference) == pytest.approx(2 / 4)


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("a a a", "a b", (2 * 1 / 5, 0.0, 2 * 1 / 5)),  # a repeated word counts as often as it is in both
        ("a b c d", "a c", (2 * 2 / 6, 0.0, 2 * 2 / 6)),
        ("", "a", (0.0, 0.0, 0.0)),
        ("A, b!", "a b", (1.0, 1.0, 1.0)),
        ("我喜欢猫", "我爱猫", (2 * 2 / 7, 0.0, 2 * 2 / 7)),
    ],
)
def test_rouge_by_hand(text: str, reference: str, expected: tuple[float, float, float]) -> None:
    found = (rouge_n(text, reference, 1), rouge_n(text, reference, 2), rouge_l(text, reference))
    assert found == pytest.approx(expected)


def test_han_characters_are_words_and_punctuation_is_none() -> None:
    assert words("GPT-2 写了一句 code_x。") == ["gpt", "2", "写", "了", "一", "句", "code", "x"]
    assert words("?!") == ["?!"]


@given(st.lists(st.sampled_from("abc"), max_size=9), st.lists(st.sampled_from("abc"), max_size=9))
@settings(max_examples=100, deadline=None)
def test_rouge_is_symmetric_and_the_common_subsequence_no_longer_than_the_common_words(
    first: list[str], second: list[str]
) -> None:
    text, reference = " ".join(first), " ".join(second)
    assert rouge_l(text, reference) == rouge_l(reference, text)
    assert rouge_l(text, reference) <= rouge_n(text, reference, 1) <= 1
    if first:
        assert rouge_l(text, text) == 1


@pytest.mark.parametrize(
    ("texts", "references", "language"), [(ENGLISH, REFERENCES, "de"), (CHINESE, CHINESE_REFERENCES, "zh")]
)
def test_metrics_of_a_corpus_are_sacrebleus(texts: list[str], references: list[str], language: str) -> None:
    kind = "zh" if language == "zh" else "13a"
    expected = {
        "bleu": sacrebleu.corpus_bleu(texts, [references], tokenize=kind).score,
        "chrf": sacrebleu.corpus_chrf(texts, [references]).score,
        "ter": sacrebleu.corpus_ter(texts, [references], normalized=language == "zh", asian_support=language == "zh").score,
    }
    for name, metric in (("bleu", bleu(language)), ("chrf", chrf()), ("ter", ter(language))):
        assert score(metric, texts, references) == pytest.approx(expected[name])
        assert value(metric, statistics(metric, texts, references).sum(axis=0)) == pytest.approx(expected[name])
    data = [
        translated.Example(id=str(number), place="f", source="x", translation=reference)
        for number, reference in enumerate(references)
    ]
    found = translation.measure(translated.Translation("en", language), data, [{"prediction": text} for text in texts], seed=0)
    for name, number in expected.items():
        metric = value_of(found, name)
        assert metric.value == pytest.approx(number)
        assert metric.low <= number <= metric.high
    assert f"tok:{kind}|" in found.record["signatures"]["bleu"]
    assert found.record["signatures"]["bleu"].endswith(f"version:{sacrebleu.__version__}")
    singly = [sacrebleu.sentence_chrf(text, [reference]).score for text, reference in zip(texts, references, strict=True)]
    assert found.values.tolist() == pytest.approx(singly)


@pytest.mark.parametrize(
    ("texts", "language"),
    [
        (CHINESE, "zh"),
        (ENGLISH, None),
        (["今日はとても暑いです。"], "ja"),
        (["오늘은 비가 온다"], "ko"),
        (["Ein Wort 今 darin"], None),
    ],
)
def test_languages_without_spaces_are_known_by_their_script(texts: list[str], language: str | None) -> None:
    assert language_of(texts) == language


def signature(language: str) -> str:
    metric = bleu(language)
    score(metric, CHINESE, CHINESE_REFERENCES)
    return str(metric.get_signature())


@pytest.mark.parametrize("language", ["zh", "zh_CN", "zho_Hans"])
def test_chinese_is_compared_by_character_whatever_it_is_called(language: str) -> None:
    assert "tok:zh" in signature(language)


def test_japanese_without_its_segmenter_is_compared_by_character() -> None:
    assert any(f"tok:{kind}" in signature("ja") for kind in ("char", "ja-mecab"))


def test_a_perfect_translation_is_better_than_the_source_copied() -> None:
    data = [
        translated.Example(id=str(number), place="f", source=text, translation=reference)
        for number, (text, reference) in enumerate(zip(ENGLISH * 5, REFERENCES * 5, strict=True))
    ]
    task = translated.Translation("en", "de")
    perfect = translation.measure(task, data, [{"prediction": item.translation} for item in data], 0)
    assert [metric.value for metric in perfect.metrics] == pytest.approx([100, 100, 0])
    (baseline,) = translation.baselines(task, [], data, 0)
    copied = translation.measure(task, data, baseline.predictions, 0)
    assert perfect.against(copied, baseline.name, 0).sentence.startswith("Better than source copied in chrF")


def test_a_translation_without_a_fault_or_one_alone_is_not_taken_for_certain() -> None:
    task = translated.Translation("en", "de")
    data = [translated.Example(id=text, place="f", source=text, translation=text) for text in ENGLISH]
    for count, said in ((len(data), ENGLISH), (1, REFERENCES)):
        found = translation.measure(task, data[:count], [{"prediction": text} for text in said[:count]], 0)
        assert [(metric.low, metric.high, metric.method) for metric in found.metrics] == [(None, None, "none")] * 3


def completions(*texts: str) -> list[generated.Example]:
    return [
        generated.Example(id=str(number), place="f", prompt=f"First. Say {text}!", completion=text)
        for number, text in enumerate(texts)
    ]


def test_perplexity_is_that_of_all_tokens_together() -> None:
    data = completions("red", "blue green")
    rows = [
        {"prediction": "red", "loss": 2 * math.log(2), "tokens": 2, "right_tokens": 1},
        {"prediction": "blue", "loss": 6 * math.log(4), "tokens": 6, "right_tokens": 3},
    ]
    found = text_generation.measure(generated.TextGeneration(False), data, rows, seed=0)
    perplexity = value_of(found, "perplexity")
    assert perplexity.value == pytest.approx(math.exp((2 * math.log(2) + 6 * math.log(4)) / 8))
    assert perplexity.low == pytest.approx(2)
    assert perplexity.high == pytest.approx(4)
    assert value_of(found, "token_accuracy").value == pytest.approx(0.5)
    assert value_of(found, "rouge_l").value == pytest.approx((1 + 2 / 3) / 2)


def test_tokens_that_are_all_right_or_of_one_text_are_not_taken_for_certain() -> None:
    task = generated.TextGeneration(False)
    right = [{"prediction": "red", "loss": 0.0, "tokens": 2, "right_tokens": 2}] * 3
    found = text_generation.measure(task, completions("red", "blue", "green"), right, 0)
    accuracy, perplexity = value_of(found, "token_accuracy"), value_of(found, "perplexity")
    assert (accuracy.low, accuracy.high) == wilson(3, 3)
    assert (perplexity.value, perplexity.low, perplexity.high) == (1, None, None)
    half = [{"prediction": "red", "loss": 1.0, "tokens": 2, "right_tokens": 1}]
    found = text_generation.measure(task, completions("red"), half, 0)
    for name in ("token_accuracy", "perplexity"):
        assert (value_of(found, name).low, value_of(found, name).method) == (None, "none")


def test_baselines_repeat_the_prompt_or_answer_as_to_the_nearest_one() -> None:
    train, test = completions("red", "blue"), completions("blue")
    repeated, nearest = text_generation.baselines(generated.TextGeneration(False), train, test, 0)
    assert [row["prediction"] for row in repeated.predictions] == ["Say blue!"]
    assert [row["prediction"] for row in nearest.predictions] == ["blue"]
    assert len(list(text_generation.baselines(generated.TextGeneration(False), [], test, 0))) == 1
    found = text_generation.measure(generated.TextGeneration(False), test, repeated.predictions, 0)
    assert [metric.name for metric in found.metrics] == ["rouge_1", "rouge_2", "rouge_l"]


@pytest.mark.parametrize("task", ["translation", "text-generation"])
def test_a_model_that_writes_is_trained_evaluated_and_reported(
    run: Any, base_model: Artefact, tmp_path: Path, task: str
) -> None:
    columns = ("en", "zh") if task == "translation" else ("prompt", "completion")
    rows = [{columns[0]: f"say {number}", columns[1]: f"红 {number}"} for number in range(24)]
    for name, part in (("train", rows[:16]), ("test", rows[16:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    settings = {"task": task, "model_name_or_path": base_model.directory, "train_file": tmp_path / "train.jsonl"}
    settings |= {"source_lang": "en", "target_lang": "zh"} if task == "translation" else {}
    quick = {"max_new_tokens": 6, "num_train_epochs": 1.0, "bf16": False, "cpu_threads": 1}
    made = run("finetune", tmp_path / "m", **settings, **quick)
    evaluated = run("evaluate", tmp_path / "e", model_name_or_path=made.directory, test_file=tmp_path / "test.jsonl")
    metrics = json.loads((evaluated.directory / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["task"] == task
    assert metrics["n"] == 8
    assert len(metrics["comparison"]) == len(metrics["baselines"]) >= 1
    assert ("signatures" in metrics) == (task == "translation")
    table = pyarrow.parquet.read_table(evaluated.directory / "predictions.parquet").to_pylist()
    assert [row["label"] for row in table] == [row[columns[1]] for row in rows[16:]]
    assert all(np.isfinite(row["loss"]) and 0 < row["score"] <= 1 for row in table)
    report = run("report", tmp_path / "r", evaluation=evaluated.directory)
    assert (report.directory / "report.html").is_file()
