"""The best answers of a model that scores every token as the first and as the last one of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmkit.tasks.features import Features, Ragged
from llmkit.tasks.windows import Asked

_AT_ONCE = 4_000_000
_NOTHING = 1e4
"""The difference where a window holds nothing that could be an answer: no answer then, whatever the threshold."""


@dataclass
class Span:
    """A piece of a context, from character to character, and its score: the sum of the logits of its ends."""

    start: int
    end: int
    score: float


@dataclass
class Answers:
    """What a model gives for a question."""

    spans: list[Span]
    """The best first; no two are the same."""
    null: float
    """The score of no answer: the least over the windows, for an answer in any of them is one."""

    @property
    def difference(self) -> float:
        """The score of no answer minus that of the best answer."""
        return float(np.clip(self.null - self.spans[0].score, -_NOTHING, _NOTHING)) if self.spans else _NOTHING

    def is_none(self, threshold: float | None) -> bool:
        """Whether no answer is given; without a threshold only where there is nothing to answer with."""
        return not self.spans or (threshold is not None and self.difference > threshold)


def best_pairs(
    start: np.ndarray, end: np.ndarray, allowed: np.ndarray, offsets: np.ndarray, count: int, longest: int
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of first and last token with the highest sums of logits, of each window; all pairs are looked at.

    Args:
        start, end: logits, float32 of shape [tokens of all windows].
        allowed: whether a token may be in an answer, bool of the same shape.
        offsets: where windows begin and end in these, int64 of shape [windows + 1].
        count: how many pairs are wanted.
        longest: tokens of the longest answer.

    Returns:
        Tokens of shape [windows, count, 2], counted from the start of the window, and sums of shape [windows, count], the
        highest first; where there are fewer pairs, the sum is -inf and the tokens are 0.
    """
    lengths = np.diff(offsets)
    tokens = np.zeros((len(lengths), count, 2), dtype=np.int64)
    sums = np.full((len(lengths), count), -np.inf, dtype=np.float32)
    order = np.argsort(-lengths, kind="stable")
    done = 0
    while done < len(order):
        width = int(lengths[order[done]])  # the longest of those that are left
        reach = min(longest, width)
        chosen = order[done : done + max(1, _AT_ONCE // (width * reach))]
        first, last = (np.full((len(chosen), width + extra), -np.inf, dtype=np.float32) for extra in (0, reach - 1))
        for row, window in enumerate(chosen):
            part = slice(offsets[window], offsets[window + 1])
            inside = np.flatnonzero(allowed[part])
            first[row, inside], last[row, inside] = start[part][inside], end[part][inside]
        ends = np.lib.stride_tricks.sliding_window_view(last, reach, axis=1)
        total = (first[:, :, None] + ends).reshape(len(chosen), -1)
        kept = min(count, total.shape[1])
        best = np.argpartition(total, -kept, axis=1)[:, -kept:]
        values = np.take_along_axis(total, best, axis=1)
        ranked = np.argsort(-values, axis=1, kind="stable")
        best, values = np.take_along_axis(best, ranked, axis=1), np.take_along_axis(values, ranked, axis=1)
        tokens[chosen, :kept, 0] = best // reach
        tokens[chosen, :kept, 1] = best // reach + best % reach
        sums[chosen, :kept] = values
        done += len(chosen)
    tokens[np.isneginf(sums)] = 0
    return tokens, sums


def decode(
    data: Sequence[Asked], features: Features, start: np.ndarray, end: np.ndarray, count: int, longest: int
) -> list[Answers]:
    """The best answers to each question, over all its windows; white space at their ends is left out.

    Args:
        features: see `windows.windows`.
        start, end: logits, float32 of shape [tokens of all windows].
        count: how many answers are kept of each question.
        longest: tokens of the longest answer.
    """
    begins, ends = features.columns["char_start"], features.columns["char_end"]
    assert isinstance(begins, Ragged) and isinstance(ends, Ragged)
    offsets = begins.offsets
    tokens, sums = best_pairs(start, end, begins.flat >= 0, offsets, count, longest)
    nulls = offsets[:-1] + features.columns["null"]
    null_scores = start[nulls] + end[nulls]
    from_characters = begins.flat[offsets[:-1, None] + tokens[:, :, 0]]
    to_characters = ends.flat[offsets[:-1, None] + tokens[:, :, 1]]
    found: list[dict[tuple[int, int], float]] = [{} for _ in data]
    null = np.full(len(data), np.inf)
    np.minimum.at(null, np.asarray(features.columns["example"]), null_scores)
    for window, number in enumerate(np.asarray(features.columns["example"]).tolist()):
        context, spans = data[number].context, found[number]
        for begin, stop, value in zip(
            from_characters[window].tolist(), to_characters[window].tolist(), sums[window].tolist(), strict=True
        ):
            if value == -np.inf:
                break
            text = context[begin:stop]
            begin += len(text) - len(text.lstrip())
            place = (begin, begin + len(text.strip()))
            if place[0] < place[1] and value > spans.get(place, -np.inf):
                spans[place] = value
    return [
        Answers([Span(*place, value) for place, value in sorted(spans.items(), key=_by_score)[:count]], float(least))
        for spans, least in zip(found, null, strict=True)
    ]


def _by_score(item: tuple[tuple[int, int], float]) -> tuple[float, tuple[int, int]]:
    return -item[1], item[0]


def probabilities(answers: Answers, with_null: bool) -> tuple[np.ndarray, float]:
    """Softmax over the kept answers, and over no answer where it is one of the possibilities.

    Returns:
        Probabilities of the spans, float64 of shape [spans], and that of no answer.
    """
    scores = np.array([*(span.score for span in answers.spans), *([answers.null] if with_null or not answers.spans else [])])
    exponentials = np.exp(scores - scores.max())
    shares = exponentials / exponentials.sum()
    count = len(answers.spans)
    return shares[:count], float(shares[count:].sum())
