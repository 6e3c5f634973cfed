"""The metrics of an evaluation beside their references, and predictions that change with the batch size.

References are scikit-learn, scipy and sacrebleu, and definitions of papers written out once more in the plainest way.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from llmkit.errors import LLMKitError
from llmkit.evaluation.probabilistic import BINS, chances_of
from llmkit.evaluation.rouge import words
from llmkit.evaluation.sections import Evaluated
from llmkit.tasks.answer_scores import is_chinese, normalised_chinese_answer, segments
from llmkit.tasks.labels import MULTI, REGRESSION

TOLERANCE = 1e-9
"""The largest difference, relative to the reference, that rounding explains."""

MOST = 200
"""Examples that are predicted again."""

Key = tuple[str, str | None]
"""The key of a metric and the label it is of."""
References = dict[Key, tuple[float | None, str]]
"""Reference values, and where they come from."""


def section(evaluated: Evaluated) -> dict[str, Any] | None:
    """Check an evaluation that was asked to check itself.

    Returns:
        `metrics`, each with its reference and the difference; `without_reference`, the keys of others; and `batch_size`, how
        many of the first examples are predicted otherwise by themselves.

    Raises:
        LLMKitError: a metric is not what its reference is.
    """
    if not evaluated.config.selfcheck:
        return None
    references = _REFERENCES[evaluated.task.name](evaluated)
    rows: list[dict[str, Any]] = []
    without = []
    for metric in evaluated.measured.metrics:
        if (metric.key, metric.label) not in references:
            without.append(metric.key)
            continue
        reference, source = references[metric.key, metric.label]
        row = {"metric": metric.key, "label": metric.label, "value": metric.value, "reference": reference, "by": source}
        rows.append(row | {"difference": difference(metric.value, reference)})
    wrong = [row for row in rows if not row["difference"] <= TOLERANCE]
    if wrong:
        told = "\n".join(f"  - {_named(row)} is {row['value']}, {row['by']} says {row['reference']}" for row in wrong)
        raise LLMKitError(f"selfcheck: metrics differ from their references; please report this:\n{told}")
    return {
        "tolerance": TOLERANCE,
        "metrics": rows,
        "without_reference": list(dict.fromkeys(without)),
        "batch_size": _alone(evaluated),
    }


def summary(found: dict[str, Any]) -> list[str]:
    """A line for each metric, one for its classes, and one for the batch size."""
    largest: dict[tuple[str, str], float] = {}
    for row in found["metrics"]:
        key = row["metric"] if row["label"] is None else f"{row['metric']} of parts", row["by"]
        largest[key] = max(largest.get(key, 0.0), row["difference"])
    lines = [f"  selfcheck: {name:22} as {by} (largest difference {value:.1e})" for (name, by), value in largest.items()]
    lines += [f"  selfcheck: {name:22} has no reference" for name in found["without_reference"]]
    alone = found["batch_size"]
    return [*lines, f"  selfcheck: {alone['changed']} of {alone['n']} predictions change when each example is computed alone"]


def difference(value: float | None, reference: float | None) -> float:
    """Relative to the reference where that is above 1e-6, which rounding of what is about 0 would exceed; infinite where only
    one is defined."""
    if value is None or reference is None:
        return 0.0 if value is reference else math.inf
    return abs(value - reference) / max(abs(reference), 1e-6)


def _named(row: dict[str, Any]) -> str:
    return row["metric"] if row["label"] is None else f"{row['metric']} of {row['label']}"


def _alone(evaluated: Evaluated) -> dict[str, Any]:
    """The first examples predicted again, one at a time."""
    examples = evaluated.test[:MOST]
    alone = list(evaluated.task.predict(evaluated.model, evaluated.tokenizer, examples, 1))
    pairs = list(zip(evaluated.predictions, alone, strict=False))
    changed = [
        example.id
        for example, (row, other) in zip(examples, pairs, strict=True)
        if not _is_same(row["prediction"], other["prediction"])
    ]
    name = "prediction" if pairs and isinstance(pairs[0][0]["prediction"], float) else "score"
    shifts = [abs(row[name] - other[name]) for row, other in pairs if name in row and name in other]
    return {
        "n": len(examples),
        "batch_size": evaluated.config.per_device_eval_batch_size,
        "changed": len(changed),
        "ids": changed[:20],
        "largest_change_of_score": max(shifts, default=None),
    }


def _is_same(prediction: Any, other: Any) -> bool:
    """Numbers of another batch may differ as roundings do."""
    if isinstance(prediction, float):
        return math.isclose(prediction, other, rel_tol=1e-4, abs_tol=1e-5)
    return bool(prediction == other)


# --------------------------------------------------------------------------------------------------------------------
# References


def _classification(evaluated: Evaluated) -> References:
    task: Any = evaluated.task
    return {MULTI: _several, REGRESSION: _numbers}.get(task.kind, _one)(evaluated, task)


def _one(evaluated: Evaluated, task: Any) -> References:
    from sklearn import metrics

    labels = task.labels
    true = [str(example.label) for example in evaluated.test]
    given = [row["prediction"] for row in evaluated.predictions]
    present = [label for label in labels if label in true]
    found: References = {("accuracy", None): (float(metrics.accuracy_score(true, given)), "scikit-learn")}
    scores = metrics.precision_recall_fscore_support
    for average in ("macro", "micro", "weighted"):
        of = labels if average == "micro" else present
        values = scores(true, given, labels=of, average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), values, strict=False):
            found[f"{name}_{average}", None] = float(value), "scikit-learn"
    for name, values in zip(
        ("precision", "recall", "f1"), scores(true, given, labels=labels, average=None, zero_division=0), strict=False
    ):
        for label, value in zip(labels, values, strict=True):
            is_defined = label in present or (name == "precision" and label in given)
            found[name, label] = float(value) if is_defined else None, "scikit-learn"
    mcc = float(metrics.matthews_corrcoef(true, given)) if len(present) > 1 else None
    found["mcc", None] = mcc, "scikit-learn"
    chances = chances_of(labels, evaluated.predictions)
    if chances is not None:
        numbers = np.array([labels.index(label) for label in true])
        is_class = numbers[:, None] == np.arange(len(labels))
        found |= _rankings(chances, is_class, labels)
        if len(labels) == 2:
            found["roc_auc", None] = found.pop(("roc_auc_macro", None))
        brier = sum(metrics.mean_squared_error(is_class[:, k], chances[:, k]) for k in range(len(labels)))
        found["log_loss", None] = float(metrics.log_loss(numbers, chances, labels=range(len(labels)))), "scikit-learn"
        found["brier", None] = float(brier) / (2 if len(labels) == 2 else 1), "scikit-learn"
        confidence = [row[f"probability_{row['prediction']}"] for row in evaluated.predictions]
        error = calibration_error(confidence, [a == b for a, b in zip(true, given, strict=True)])
        found["ece", None] = error, "Guo et al. 2017"
    return found


def _rankings(chances: np.ndarray, is_class: np.ndarray, labels: list[str]) -> References:
    from sklearn import metrics

    found: References = {}
    for name, score in (("roc_auc", metrics.roc_auc_score), ("pr_auc", metrics.average_precision_score)):
        values = {
            label: float(score(is_class[:, k], chances[:, k])) if 0 < is_class[:, k].sum() < len(is_class) else None
            for k, label in enumerate(labels)
        }
        defined = [value for value in values.values() if value is not None]
        found |= {(name, label): (value, "scikit-learn") for label, value in values.items()}
        found[f"{name}_macro", None] = float(np.mean(defined)) if defined else None, "scikit-learn"
    return found


def calibration_error(confidence: list[float], right: list[bool]) -> float:
    """The expected calibration error, bin by bin."""
    error = 0.0
    for number in range(BINS):
        inside = [
            (chance, hit)
            for chance, hit in zip(confidence, right, strict=True)
            if number < chance * BINS <= number + 1 or (number == 0 and chance == 0)
        ]
        if inside:
            mean_confidence = math.fsum(chance for chance, _ in inside) / len(inside)
            accuracy = sum(hit for _, hit in inside) / len(inside)
            error += len(inside) / len(confidence) * abs(accuracy - mean_confidence)
    return error


def _several(evaluated: Evaluated, task: Any) -> References:
    from sklearn import metrics

    true = task.targets(evaluated.test) > 0
    given = np.array([[label in row["prediction"] for label in task.labels] for row in evaluated.predictions])
    present = np.flatnonzero(true.any(axis=0))
    found: References = {
        ("exact_match", None): (float(metrics.accuracy_score(true, given)), "scikit-learn"),
        ("f1_samples", None): (float(metrics.f1_score(true, given, average="samples", zero_division=1)), "scikit-learn"),
    }
    scores = metrics.precision_recall_fscore_support
    for name, place in (("precision", 0), ("recall", 1), ("f1", 2)):
        micro = scores(true, given, average="micro", zero_division=0)[place]
        of_class = scores(true, given, average=None, zero_division=0)[place]
        found[f"{name}_micro", None] = float(micro), "scikit-learn"
        found[f"{name}_macro", None] = float(of_class[present].mean()) if len(present) else 0.0, "scikit-learn"
        for k, label in enumerate(task.labels):
            is_defined = k in present or (name == "precision" and given[:, k].any())
            found[name, label] = float(of_class[k]) if is_defined else None, "scikit-learn"
    chances = chances_of(task.labels, evaluated.predictions)
    return found if chances is None else found | _rankings(chances, true, task.labels)


def _numbers(evaluated: Evaluated, task: Any) -> References:
    from scipy import stats
    from sklearn import metrics

    true = task.targets(evaluated.test).astype(np.float64)
    given = np.array([row["prediction"] for row in evaluated.predictions], dtype=np.float64)
    varies = np.ptp(true) > 0 and np.ptp(given) > 0
    return {
        ("pearson", None): (float(stats.pearsonr(true, given).statistic) if varies else None, "scipy"),
        ("spearman", None): (float(stats.spearmanr(true, given).statistic) if varies else None, "scipy"),
        ("mse", None): (float(metrics.mean_squared_error(true, given)), "scikit-learn"),
        ("mae", None): (float(metrics.mean_absolute_error(true, given)), "scikit-learn"),
    }


def _answers(evaluated: Evaluated) -> References:
    source = "the definition of SQuAD (CMRC 2018 for Chinese)"
    scores = []
    for example, row in zip(evaluated.test, evaluated.predictions, strict=True):
        chinese = is_chinese(example.question)
        plain = normalised_chinese_answer if chinese else _plain
        answers = [text for text, _ in example.answers if plain(text)] or [""]
        pairs = [answer_score(row["prediction"], answer, chinese) for answer in answers]
        scores.append(tuple(max(values) for values in zip(*pairs, strict=True)))
    found: References = {}
    has_answer = [bool(example.answers) for example in evaluated.test]
    for label, wanted in ((None, (True, False)), ("HasAns", (True,)), ("NoAns", (False,))):
        part = [score for score, has in zip(scores, has_answer, strict=True) if has in wanted]
        for place, name in enumerate(("exact_match", "f1")):
            value = math.fsum(score[place] for score in part) / len(part) if part else None
            found[name, label] = value, source
    return found


def answer_score(prediction: str, answer: str, chinese: bool = False) -> tuple[float, float]:
    """Exact match and F1 of two answers as Rajpurkar et al. (2016) define them; for Chinese as Cui et al. (2019)."""
    if chinese:
        ours, theirs = segments(prediction), segments(answer)
        exact = normalised_chinese_answer(prediction) == normalised_chinese_answer(answer)
        common = max(
            (
                length
                for length in range(1, len(ours) + 1)
                for start in range(len(ours) - length + 1)
                if any(ours[start : start + length] == theirs[at : at + length] for at in range(len(theirs)))
            ),
            default=0,
        )
    else:
        ours, theirs = (_plain(text).split() for text in (prediction, answer))
        exact = _plain(prediction) == _plain(answer)
        common = sum((Counter(ours) & Counter(theirs)).values())
    if not ours or not theirs:
        return float(exact), float(ours == theirs)
    if not common:
        return float(exact), 0.0
    precision, recall = common / len(ours), common / len(theirs)
    return float(exact), 2 * precision * recall / (precision + recall)


def _plain(text: str) -> str:
    kept = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return " ".join(word for word in re.sub(r"\b(?:the|an|a)\b", " ", kept).split())


def _translations(evaluated: Evaluated) -> References:
    from llmkit.tasks.translation_metrics import bleu, chrf, language_for, score, ter

    task: Any = evaluated.task
    texts = [str(row["prediction"]) for row in evaluated.predictions]
    references = [example.translation for example in evaluated.test]
    language = language_for(task.target_lang, references)
    metrics = {"bleu": bleu(language), "chrf": chrf(), "ter": ter(language)}
    return {(name, None): (score(metric, texts, references), "sacrebleu") for name, metric in metrics.items()}


def _generations(evaluated: Evaluated) -> References:
    pairs = [
        (words(str(row["prediction"])), words(example.completion))
        for row, example in zip(evaluated.predictions, evaluated.test, strict=True)
    ]
    scores = {
        "rouge_1": [_shared_grams(*pair, 1) for pair in pairs],
        "rouge_2": [_shared_grams(*pair, 2) for pair in pairs],
        "rouge_l": [_subsequence(*pair) for pair in pairs],
    }
    found: References = {(name, None): (math.fsum(values) / len(values), "Lin 2004") for name, values in scores.items()}
    if all("loss" in row for row in evaluated.predictions):
        loss, tokens, right = (
            math.fsum(row[name] for row in evaluated.predictions) for name in ("loss", "tokens", "right_tokens")
        )
        found["perplexity", None] = math.exp(loss / tokens), "its definition"
        found["token_accuracy", None] = right / tokens, "its definition"
    return found


def _choices(evaluated: Evaluated) -> References:
    sizes: dict[str, Callable[[str], int]] = {
        "accuracy": lambda choice: 1,
        "accuracy_norm": len,
        "accuracy_bytes": lambda choice: len(choice.encode()),
    }
    found: References = {}
    for name, size in sizes.items():
        hits = 0
        for example, row in zip(evaluated.test, evaluated.predictions, strict=True):
            scores = [value / size(choice) for value, choice in zip(row["loglikelihoods"], example.choices, strict=True)]
            hits += scores.index(max(scores)) == example.answer
        found[name, None] = hits / len(evaluated.test), "the definition of lm-evaluation-harness"
    return found


def _shared_grams(ours: list[str], theirs: list[str], n: int) -> float:
    """ROUGE-N: each n-gram of ours takes one of theirs away."""
    grams, left = ([part[start : start + n] for start in range(len(part) - n + 1)] for part in (ours, theirs))
    total, common = len(grams) + len(left), 0
    for gram in grams:
        if gram in left:
            left.remove(gram)
            common += 1
    return 2 * common / total if total else 0.0


def _subsequence(ours: list[str], theirs: list[str]) -> float:
    """ROUGE-L, by the whole table of longest common subsequences."""
    table = [[0] * (len(theirs) + 1) for _ in range(len(ours) + 1)]
    for row, word in enumerate(ours, start=1):
        for column, other in enumerate(theirs, start=1):
            either = max(table[row - 1][column], table[row][column - 1])
            table[row][column] = table[row - 1][column - 1] + 1 if word == other else either
    total = len(ours) + len(theirs)
    return 2 * table[-1][-1] / total if total else 0.0


_REFERENCES: dict[str, Callable[[Evaluated], References]] = {
    "text-classification": _classification,
    "question-answering": _answers,
    "translation": _translations,
    "text-generation": _generations,
    "multiple-choice": _choices,
}
