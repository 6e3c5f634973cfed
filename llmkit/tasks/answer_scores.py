"""Exact match and F1 of answers, as SQuAD and CMRC 2018 define them, and the threshold of no answer that gives the best F1.

SQuAD (Rajpurkar et al. 2016; v2.0: 2018): letter case, punctuation, articles and white space make no difference, and F1 is
that of two bags of words. CMRC 2018 (Cui et al. 2019), for Chinese: letter case and punctuation make no difference, and F1 is
that of the longest common substring, counted in Han characters and in words of other scripts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)

_HAN = "\u3400-\u4dbf\u4e00-\u9fff"
_HAN_OR_WORD = re.compile(f"[{_HAN}]|[^\\W{_HAN}]+")
# What CMRC 2018's script leaves out, and nothing else: the full stop of ASCII is in numbers; the ellipsis stands in its list
# as a pair, which no single character equals.
_NO_CHINESE_PUNCTUATION = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
# Outside of Han characters CMRC 2018 takes the words of a tokenizer for English: numbers stay whole, other signs are words.
_SEGMENT = re.compile(f"[{_HAN}]|[^\\W{_HAN}]+(?:[.,'][^\\W{_HAN}]+)*|[^\\w\\s]")


def is_chinese(text: str) -> bool:
    """Whether a text has at least as many Han characters as words of other scripts."""
    pieces = _HAN_OR_WORD.findall(text)
    han = sum("\u3400" <= piece <= "\u9fff" for piece in pieces)
    return han > 0 and 2 * han >= len(pieces)


def normalised_answer(text: str) -> str:
    """What SQuAD compares: lower case, without punctuation, articles and superfluous white space."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def normalised_chinese_answer(text: str) -> str:
    """What CMRC 2018 compares: lower case, without punctuation."""
    return text.lower().strip().translate(_NO_CHINESE_PUNCTUATION)


def segments(text: str) -> list[str]:
    """What CMRC 2018 counts: Han characters and words of other scripts, without punctuation."""
    return _SEGMENT.findall(normalised_chinese_answer(text))


def _f1(common: int, predicted: int, true: int) -> float:
    return 2 * common / (predicted + true) if common else 0.0  # of precision and recall this is the harmonic mean


def word_f1(prediction: str, answer: str) -> float:
    """SQuAD's F1 of two answers; where either is none, whether both are."""
    predicted, true = normalised_answer(prediction).split(), normalised_answer(answer).split()
    if not predicted or not true:
        return float(predicted == true)
    return _f1((Counter(predicted) & Counter(true)).total(), len(predicted), len(true))


def chinese_f1(prediction: str, answer: str) -> float:
    """CMRC 2018's F1 of two answers; where either is none, whether both are."""
    predicted, true = segments(prediction), segments(answer)
    if not predicted or not true:
        return float(predicted == true)
    common = SequenceMatcher(None, predicted, true, autojunk=False).find_longest_match().size
    return _f1(common, len(predicted), len(true))


def score(prediction: str, answers: Sequence[str], chinese: bool) -> tuple[float, float]:
    """Exact match and F1 of a prediction: the best over the true answers.

    Args:
        prediction: empty for no answer.
        answers: the true ones; without any, no answer is right.
        chinese: whether CMRC 2018's definition holds, and not SQuAD's.
    """
    normal, f1 = (normalised_chinese_answer, chinese_f1) if chinese else (normalised_answer, word_f1)
    true = [answer for answer in answers if normal(answer)] or [""]
    exact = any(normal(prediction) == normal(answer) for answer in true)
    return float(exact), max(f1(prediction, answer) for answer in true)


def best_threshold(differences: np.ndarray, answered: np.ndarray, abstained: np.ndarray) -> float:
    """The threshold with the highest mean value: no answer is given where the difference is above it.

    It lies in the middle between two differences, or half a unit outside of all of them, so that rounding decides nothing. Of
    equally good ones the lowest is taken. Cost: one sort, as in the official script of SQuAD v2.0.

    Args:
        differences: score of no answer minus that of the best answer, float64 of shape [questions].
        answered: what the best answer is worth (its F1), float64 of shape [questions].
        abstained: what no answer is worth, likewise.
    """
    order = np.argsort(differences, kind="stable")
    ordered = differences[order]
    # Entry i: the first i questions in this order are answered, the others are not.
    values = abstained.sum() + np.concatenate([[0.0], np.cumsum((answered - abstained)[order])])
    edges = np.concatenate([[ordered[0] - 1.0], ordered, [ordered[-1] + 1.0]])
    possible = edges[:-1] < edges[1:]  # equal differences are answered all or none
    best = int(np.argmax(np.where(possible, np.round(values, 9), -np.inf)))
    return float((edges[best] + edges[best + 1]) / 2)
