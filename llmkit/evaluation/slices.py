"""Where a model fails: its value on parts of the test set, each against the rest.

Parts are made by what every example has (length, script, label), by what those of a task have (question word, position of the
answer), and by columns of the test set. A part needs 20 examples, and so does the rest.

A share has Wilson's interval, and a difference of shares that of Newcombe (1998, Statistics in Medicine 17, method 10), with
the p-value of Fisher's exact test. Other means have Student's t with the variance of each side, summed over groups where
examples are not independent (Liang and Zeger 1986, Biometrika 73), and as many degrees of freedom as the side with fewer
groups allows; a side whose values are all the worst or all the best has the width of Wilson's interval, since that it never
varied proves nothing. Tests of all parts are corrected together by Holm's method.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.corpus.words import HAN
from llmkit.evaluation.comparison import holm
from llmkit.evaluation.intervals import LEVEL, quantile, wilson
from llmkit.evaluation.measured import Measured
from llmkit.tasks.labels import MULTI, REGRESSION, classes_of
from llmkit.tasks.text_classification import TextClassification

if TYPE_CHECKING:
    from llmkit.evaluation.sections import Evaluated

LEAST = 20
"""Examples of a part, and of the rest."""
MOST_VALUES = 20
"""Values of a column that is no number."""
USUAL_COLUMNS = ("language", "lang", "source", "domain", "subject", "topic", "category", "kind")
"""Columns that tell, where a test set has them, what kind of text an example is."""

_HAN, _LATIN = re.compile(f"[{HAN}]"), re.compile("[A-Za-z\u00c0-\u024f]")
# The longer first, since 为什么 holds 什么. In English, the first question word that stands there.
_CHINESE_QUESTIONS = {
    "why": "为什么|為什麼|为何|為何|何以|怎么会|原因",
    "how many": "多少|几|幾|多长|多長|多大|多高|多远|多遠|多久|多重",
    "when": "什么时候|什麼時候|何时|何時|哪年|哪一年|哪天|哪一天|时间|時間",
    "where": "哪里|哪裡|哪儿|哪兒|何处|何處|在哪|什么地方|什麼地方",
    "who": "谁|誰|何人|哪位|什么人|什麼人",
    "how": "怎么|怎麼|怎样|怎樣|如何",
    "which": "哪",
    "what": "什么|什麼|何",
}
_ENGLISH_QUESTION = re.compile(
    r"\b(how (?:many|much|long|old|far|big|tall|often)|how|what|when|where|which|who|whom|whose|why)\b"
)


@dataclass
class Way:
    """A way of dividing the test set."""

    by: str
    parts: dict[str, np.ndarray]
    """Whether each example belongs to a part, bool of shape [examples], by what the part is called. Each part is compared with
    the others together."""


def section(evaluated: Evaluated) -> dict[str, Any] | None:
    """The parts of the test set, the worst first; None where it is too small to be divided."""
    found, left_out = [], []
    seen: set[bytes] = set()
    for way in _ways(evaluated):
        among = np.any(list(way.parts.values()), axis=0) if way.parts else np.zeros(0, dtype=bool)
        large = {name: chosen for name, chosen in way.parts.items() if LEAST <= chosen.sum() <= among.sum() - LEAST}
        if not large:
            left_out.append(way.by)
        for name, chosen in large.items():
            if chosen.tobytes() in seen:  # the same examples by another name: Chinese by language and by script
                continue
            seen.add(chosen.tobytes())
            found.append(_part(evaluated, way.by, name, chosen, among & ~chosen))
    if not found:
        return None
    for part, p_value in zip(found, holm([part["p_value"] for part in found]), strict=True):
        part["p_holm"] = p_value
    sign = -1 if evaluated.measured.lower_is_better else 1
    found.sort(key=lambda part: sign * part["difference"])
    return {
        "metric": evaluated.measured.metric,
        "lower_is_better": evaluated.measured.lower_is_better,
        "least": LEAST,
        "tests": len(found),
        "parts": found,
        "left_out": left_out,
    }


def _part(evaluated: Evaluated, by: str, name: str, chosen: np.ndarray, rest: np.ndarray) -> dict[str, Any]:
    value, low, high = mean_of(evaluated.measured, chosen)
    difference, least, most, p_value = against_rest(evaluated.measured, chosen, rest)
    ends = {"low": low, "high": high, "difference_low": least, "difference_high": most}
    part = {"by": by, "part": name, "n": int(chosen.sum()), "value": value, "difference": difference, "p_value": p_value}
    return part | {name: end if math.isfinite(end) else None for name, end in ends.items()}


def mean_of(measured: Measured, chosen: np.ndarray) -> tuple[float, float, float]:
    """The mean of some examples and its interval, in closed form, as there are many parts.

    Args:
        chosen: bool of shape [examples].
    """
    values = measured.values[chosen]
    value = float(values.mean())
    if measured.is_share:
        return value, *wilson(int(values.sum()), len(values))
    if (limits := _end_of_scale(measured, chosen)) is not None:
        return value, *limits
    deviations, groups = _deviations(measured, chosen)
    half, _ = _student(value, float((deviations**2).sum()), groups)
    return value, max(0.0, value - half), min(math.inf if measured.lower_is_better else measured.perfect, value + half)


def against_rest(measured: Measured, chosen: np.ndarray, rest: np.ndarray) -> tuple[float, float, float, float]:
    """The mean of some examples minus that of others: difference, interval, and p-value.

    Args:
        chosen, rest: bool of shape [examples], with some examples in each and none in both.
    """
    from scipy import stats

    inside, outside = measured.values[chosen], measured.values[rest]
    difference = float(inside.mean() - outside.mean())
    if measured.is_share:
        counts = [(int(side.sum()), len(side)) for side in (inside, outside)]
        (low, high), (rest_low, rest_high) = (wilson(*count) for count in counts)
        share, other = float(inside.mean()), float(outside.mean())
        down, up = math.hypot(share - low, rest_high - other), math.hypot(high - share, other - rest_low)
        table = [[hits, n - hits] for hits, n in counts]
        return difference, difference - down, difference + up, float(stats.fisher_exact(table).pvalue)
    (ours, count), (theirs, rest_count) = _deviations(measured, chosen), _deviations(measured, rest)
    variance = float(((ours - theirs) ** 2).sum())  # what moves both sides of a group moves the difference less
    for side in (chosen, rest):
        if (limits := _end_of_scale(measured, side)) is not None:
            variance += ((limits[1] - limits[0]) / 2 / quantile(LEVEL)) ** 2
    half, p_value = _student(difference, variance, min(count, rest_count))
    most = math.inf if measured.lower_is_better else measured.perfect
    return difference, max(-most, difference - half), min(most, difference + half), p_value


def _deviations(measured: Measured, chosen: np.ndarray) -> tuple[np.ndarray, int]:
    """How far each group moves the mean of some examples, float64 of shape [groups], and how many groups they have."""
    groups = np.arange(len(chosen)) if measured.groups is None else measured.groups
    values, own = measured.values[chosen], groups[chosen]
    return np.bincount(own, values - values.mean(), int(groups.max()) + 1) / len(values), len(np.unique(own))


def _student(value: float, variance: float, groups: int) -> tuple[float, float]:
    """Half the width of the interval of a value with such a variance, and the p-value that it is 0."""
    from scipy import stats

    if groups < 2:  # of how groups differ one says nothing
        return math.inf, 1.0
    freedom = groups - 1
    error = math.sqrt(variance * (freedom + 1) / freedom)
    if error < 1e-12:
        return 0.0, float(abs(value) < 1e-12)
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    return half, float(2 * stats.t.sf(abs(value) / error, freedom))


def _end_of_scale(measured: Measured, chosen: np.ndarray) -> tuple[float, float] | None:
    """The interval of the mean of examples whose values are all 0 or all perfect, which has no variance that could be seen;
    None of any others, and of errors, which have no upper end."""
    values = measured.values[chosen]
    if measured.lower_is_better or np.ptp(values) or values[0] not in (0.0, measured.perfect):
        return None
    groups = _deviations(measured, chosen)[1]
    low, high = wilson(groups if values[0] else 0, groups)
    return low * measured.perfect, high * measured.perfect


# --------------------------------------------------------------------------------------------------------------------
# Ways to divide


def _ways(evaluated: Evaluated) -> Iterator[Way]:
    test, rows = evaluated.test, evaluated.data.rows
    yield quarters("length of the input, in characters", [len(example.input()) for example in test])
    yield Way("script", _named([script(example.input()) for example in test]))
    yield from _ways_of_task(evaluated)
    columns = [name for name in USUAL_COLUMNS if name in rows[0].values]
    for name in dict.fromkeys([*evaluated.config.slice_by, *columns]):
        values = [row.values.get(name) for row in rows]
        numbers = [_number(value) for value in values]
        shown = [_shown(value) for value in values]  # a cell may be a list, which is in no set
        there = np.array([value not in (None, "") for value in values])
        if len(set(shown)) > MOST_VALUES and all(math.isfinite(number) for number in np.array(numbers)[there]):
            yield quarters(name, np.array(numbers)[there], there)
        elif len(set(shown)) <= MOST_VALUES:
            yield Way(name, _named(shown))
        else:
            yield Way(f"{name} (more than {MOST_VALUES} values)", {})


def _ways_of_task(evaluated: Evaluated) -> Iterator[Way]:
    task, test = evaluated.task, evaluated.test
    if isinstance(task, TextClassification) and task.kind == REGRESSION:
        yield quarters("true number", [float(example.label) for example in test])
    elif isinstance(task, TextClassification):
        given = [classes_of(example.label) for example in test]
        name = "a label" if task.kind == MULTI else "label"
        yield Way(name, {label: np.array([label in labels for labels in given]) for label in task.labels[:MOST_VALUES]})
    elif task.name == "question-answering":
        yield Way("question word", _named([question_word(example.question) for example in test]))
        there = np.array([bool(example.answers) for example in test])
        yield Way("answer", {"with an answer": there, "no answer": ~there})
        places = _named([answer_position(example) for example in test])
        yield Way("position of the answer", {name: chosen for name, chosen in places.items() if name})
        yield quarters("length of the context, in characters", [len(example.context) for example in test])
        lengths = [len(example.answers[0][0]) for example in test if example.answers]
        if lengths:
            yield quarters("length of the answer, in characters", lengths, there)


def quarters(by: str, values: Sequence[float] | np.ndarray, there: np.ndarray | None = None) -> Way:
    """Parts of like size by a number; equal numbers stay in one part, so there may be fewer than four.

    Args:
        values: of the examples that have the number.
        there: which these are, bool of shape [examples]; None: all.
    """
    there = np.ones(len(values), dtype=bool) if there is None else there
    numbers = np.asarray(values, dtype=np.float64)
    edges = np.unique(np.quantile(numbers, [0.25, 0.5, 0.75], method="lower"))
    places = np.searchsorted(edges, numbers)
    parts = {}
    for place in np.unique(places):
        inside = numbers[places == place]
        chosen = np.zeros(len(there), dtype=bool)
        chosen[np.flatnonzero(there)[places == place]] = True
        parts[f"{inside.min():,g} to {inside.max():,g}" if inside.min() < inside.max() else f"{inside.min():,g}"] = chosen
    return Way(by, parts)


def _named(values: Sequence[str]) -> dict[str, np.ndarray]:
    array = np.array(values, dtype=object)
    return {name: array == name for name in Counter(values)}


def _number(value: Any) -> float:
    """The number that a cell is or, in a CSV, spells; NaN where it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "(none)"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def script(text: str) -> str:
    """Whether a text is mostly Chinese, Latin, both in turn, or neither; a Han character counts as a word of four letters."""
    han, latin = 4 * len(_HAN.findall(text)), len(_LATIN.findall(text))
    if max(han, latin) == 0:
        return "other"
    if min(han, latin) > 0.25 * max(han, latin):
        return "Chinese and Latin"
    return "Chinese" if han > latin else "Latin"


def question_word(question: str) -> str:
    """The kind of a question by its word, in English and Chinese; of Chinese ones under the English name."""
    if _HAN.search(question):
        return next((name for name, pattern in _CHINESE_QUESTIONS.items() if re.search(pattern, question)), "other")
    found = _ENGLISH_QUESTION.search(question.casefold())
    if found is None:
        return "other"
    word = found[1]
    if word.startswith("how "):
        return "how many"
    return "who" if word in ("whom", "whose") else word


def answer_position(example: Any) -> str:
    """The quarter of the context in which the first answer begins; empty where there is none."""
    if not example.answers:
        return ""
    quarter = min(3, 4 * example.answers[0][1] // max(1, len(example.context)))
    return f"{('first', 'second', 'third', 'last')[quarter]} quarter of the context"
