"""The evaluation of completions: how near what is written comes to the reference, and how probable the reference was."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from llmkit.evaluation.intervals import Metric, mean_metric, resampled
from llmkit.evaluation.measured import Baseline, Measured, Predictions
from llmkit.evaluation.rouge import rouge_l, rouge_n, words
from llmkit.tasks.language import perplexity
from llmkit.tasks.tables import Split
from llmkit.tasks.text_generation import Example, TextGeneration

_SENTENCE = re.compile(r"[^.!?。！？\n]+[.!?。！？]*")


def adapt(task: TextGeneration, test: list[Example], split: Split) -> None:
    """Nothing of a test set has to be known to a generator."""


def measure(task: TextGeneration, test: list[Example], predictions: Predictions, seed: int) -> Measured:
    """ROUGE-1, -2 and -L of what is written; perplexity and accuracy of the tokens of the references, where the model gave
    them."""
    pairs = [(str(row["prediction"]), example.completion) for row, example in zip(predictions, test, strict=True)]
    scores = {
        "rouge_1": np.array([rouge_n(*pair, 1) for pair in pairs]),
        "rouge_2": np.array([rouge_n(*pair, 2) for pair in pairs]),
        "rouge_l": np.array([rouge_l(*pair) for pair in pairs]),
    }
    found = [mean_metric(name, values, seed) for name, values in scores.items()]
    headline = [found[-1]]
    if all("loss" in row for row in predictions):
        of_tokens = _of_tokens(predictions, seed)
        found += of_tokens
        headline += of_tokens[:1]
    columns = {"rouge_l": scores["rouge_l"].tolist()}
    record = {"rouge": "F1, lower case, no stemming, Han characters as words"}
    return Measured(found, headline, scores["rouge_l"], "ROUGE-L", record, columns)


def _of_tokens(predictions: Predictions, seed: int) -> list[Metric]:
    sums = np.array([[row["loss"], row["tokens"], row["right_tokens"]] for row in predictions], dtype=np.float64)
    loss, tokens, right = sums.sum(axis=0)

    def perplexities(totals: np.ndarray) -> np.ndarray:
        return np.exp(np.minimum(totals[:, 0] / totals[:, 1], 700))

    def accuracies(totals: np.ndarray) -> np.ndarray:
        return totals[:, 2] / totals[:, 1]

    return [
        resampled("perplexity", perplexity(loss, tokens), sums, perplexities, seed),
        resampled("token_accuracy", float(right / tokens), sums, accuracies, seed, perfect=1.0),
    ]


def baselines(task: TextGeneration, train: list[Example], test: list[Example], seed: int) -> Iterator[Baseline]:
    """The end of the prompt said again, and where the training examples are known, the answer to the most similar prompt."""
    said = [_last_sentence(example.last_message()) for example in test]
    yield Baseline("prompt repeated", "the last sentence of the prompt", [{"prediction": text} for text in said])
    if train:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectors = TfidfVectorizer(tokenizer=words, token_pattern=None, lowercase=False, sublinear_tf=True)
        known = vectors.fit_transform(example.input() for example in train)
        asked = vectors.transform(example.input() for example in test)
        nearest = [int((row @ known.T).toarray().argmax()) for row in asked]  # all at once would be a matrix of both sizes
        answers = [{"prediction": train[index].completion} for index in nearest]
        detail = f"what follows the prompt nearest by TF-IDF, of {len(train):,} training examples"
        yield Baseline("nearest prompt's answer", detail, answers)


def _last_sentence(text: str) -> str:
    sentences = _SENTENCE.findall(text)
    return sentences[-1].strip() if sentences else text
