"""The examples that the page shows: which ones, in which order, and how much of their texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from llmkit.reports import words
from llmkit.reports.words import finite

if TYPE_CHECKING:
    import pyarrow

MAX_EXAMPLES = 10_000
"""Of a larger test set the page has all errors first, and then a sample of what was right."""

TRUE, PREDICTED, FOLDED = 1, 2, 4
"""What a piece of a text is: in a true answer, in the predicted one (added up where it is in both), or folded away."""

# Characters of a text that are shown, and that are carried, where there is more and more of it.
_LENGTHS = ((800, 10_000), (500, 4_000), (500, 1_500), (500, 500), (250, 250), (120, 120), (60, 60))
_MARKED_AT_MOST = 8
_WORD = 20  # characters within which a cut looks for the end of a word
_NAME = 240

Piece = list[Any]
"""`[text, kind]`, or `[number of characters that are left out]`."""


@dataclass
class Example:
    """One prediction."""

    id: str
    text: str
    """What the model was given; of a question, the context."""
    question: str | None
    label: str
    prediction: str
    outcome: str
    is_right: bool
    score: float | None
    label_score: float | None
    """Probability that was given to the true label."""
    value: float
    """How good it is, or how wrong where values are errors."""
    marks: list[tuple[int, int, int]]
    """Stretches of the text, from character to character, that are `TRUE` or `PREDICTED`."""

    @cached_property
    def names(self) -> list[str]:
        """Id, label and prediction, each on a line that is not too long."""
        return [words.fit(text, _NAME) for text in (self.id, self.label, self.prediction)]

    def pieces(self, near: int = 500, carried: int = 0) -> list[Piece]:
        """The text in pieces of one kind each, ready to be shown.

        Args:
            near: characters that are shown: the first, or with marks those around each.
            carried: characters in all, of which the others are folded away.
        """
        shown = self._shown(near)
        rest = max(0, carried - sum(stop - start for start, stop in shown))
        pieces: list[Piece] = []
        done = 0
        for start, stop in [*shown, (len(self.text), len(self.text))]:
            folded = min(rest, start - done)
            rest -= folded
            if folded:
                pieces.append([words.clean(self.text[done : done + folded]), FOLDED])
            if start > done + folded:
                pieces.append([start - done - folded])
            edges = sorted({start, stop, *(edge for mark in self.marks for edge in mark[:2] if start < edge < stop)})
            for left, right in pairwise(edges):
                kinds = {kind for begin, end, kind in self.marks if begin <= left and right <= end}
                pieces.append([words.clean(self.text[left:right]), sum(kinds)])
            done = stop
        return pieces

    def _shown(self, near: int) -> list[tuple[int, int]]:
        """The stretches of the text that are shown, in their order and apart from each other."""
        size = len(self.text)
        if size <= near * 1.1:  # a few more are not worth leaving out
            return [(0, size)] if size else []
        around = near // 4
        wanted = [
            (max(0, start - around), min(size, min(end, start + 2 * around) + around)) for start, end, _ in sorted(self.marks)
        ]
        shown: list[tuple[int, int]] = []
        for start, stop in wanted or [(0, near)]:
            start, stop = _word_edge(self.text, start, -1), _word_edge(self.text, stop, 1)
            if shown and start <= shown[-1][1]:
                shown[-1] = (shown[-1][0], max(stop, shown[-1][1]))
            else:
                shown.append((start, stop))
        return shown

    def row(self, near: int, carried: int) -> list[Any]:
        """What the page's script reads."""
        numbers = [None if x is None else float(f"{x:.5g}") for x in (self.score, self.label_score, self.value)]
        question = None if self.question is None else words.clean(self.question[: max(near, 200)])
        return [*self.names, self.outcome, *numbers, question, self.pieces(near, carried)]

    def as_dict(self) -> dict[str, Any]:
        """What report.json has of it."""
        pieces = self.pieces()
        return {
            "id": self.id,
            "question": self.question,
            "text": "".join(piece[0] if len(piece) == 2 else "…" for piece in pieces),
            "omitted": sum(piece[0] for piece in pieces if len(piece) == 1),
            "label": self.label,
            "prediction": self.prediction,
            "outcome": self.outcome,
            "score": self.score,
            "label_score": self.label_score,
            "value": self.value,
        }


def _word_edge(text: str, place: int, step: int) -> int:
    """The nearest edge of a word in a direction; the place itself where none is near, as in Chinese."""
    for edge in range(place, place + step * _WORD, step):
        if edge <= 0 or edge >= len(text) or text[edge - (step < 0)].isspace():
            return min(max(edge, 0), len(text))
    return place


def chosen(table: pyarrow.Table, is_right: Any, is_error: bool, task: str, graded: bool) -> list[Example]:
    """The examples for the page: the worst errors first, of equals those of which the model was surest; then right ones, in
    the order of the table, chosen by the hashes of their ids where there are too many.

    Args:
        table: columns `id`, `text`, `label`, `prediction`, `value`, `score`, and what else the task has written.
        is_right: bool array, whether each prediction is wholly right.
        is_error: whether `value` is an error, and not how good the prediction is.
        graded: whether a prediction is more than right or wrong.
    """
    import pyarrow.compute as pc

    wrong, right = table.filter(pc.invert(is_right)), table.filter(is_right)
    order = [("value", "descending" if is_error else "ascending"), ("score", "descending"), ("id", "ascending")]
    wrong = wrong.take(pc.sort_indices(wrong, order)[:MAX_EXAMPLES])
    free = MAX_EXAMPLES - wrong.num_rows
    if right.num_rows > free:
        marks = [hashlib.blake2b(str(name).encode("utf-8", "replace")).digest() for name in right["id"].to_pylist()]
        right = right.take(sorted(sorted(range(len(marks)), key=lambda place: (marks[place], place))[:free]))
    rows = [(row, is_good) for part, is_good in ((wrong, False), (right, True)) for row in part.to_pylist()]
    return [_example(row, is_good, task, graded) for row, is_good in rows]


def _example(row: Mapping[str, Any], is_right: bool, task: str, graded: bool) -> Example:
    text, label, prediction = (row[name] or "" for name in ("text", "label", "prediction"))
    question, marks, value = None, [], finite(row["value"]) or 0.0
    begin = row.get("context_start")
    if task == "question-answering" and isinstance(begin, int):
        question, text = text[:begin].strip(), text[begin:]
        marks = [(start, end, TRUE) for start, end in row.get("answer_spans") or []][:_MARKED_AT_MOST]
        if prediction and isinstance(row.get("answer_start"), int):
            marks.append((row["answer_start"], row["answer_start"] + len(prediction), PREDICTED))
        marks = [mark for mark in marks if 0 <= mark[0] < mark[1] <= len(text)]
    return Example(
        id=row["id"] or "",
        text=text,
        question=question,
        label=label,
        prediction=prediction,
        outcome=_outcome(task, graded, is_right, value, bool(label), bool(prediction)),
        is_right=is_right,
        score=finite(row["score"]),
        label_score=finite(row.get(f"probability_{label}")),
        value=value,
        marks=marks,
    )


def _outcome(task: str, graded: bool, is_right: bool, value: float, has_answer: bool, gave_answer: bool) -> str:
    if task == "question-answering":
        if not has_answer:
            return "false answer" if gave_answer else "rightly no answer"
        if not gave_answer:
            return "abstained"
        return "right answer" if is_right else "partly right" if value > 0 else "wrong answer"
    if graded:
        return "wholly right" if is_right else "not wholly right"
    return "right" if is_right else "wrong"


def are_judged(shown: Sequence[Example]) -> bool:
    """Whether there is anything to be right about: documents whose probability was measured have no label."""
    return any(example.label or example.prediction or example.question is not None for example in shown)


def outcomes(shown: Sequence[Example]) -> list[tuple[str, int]]:
    """The outcomes and how many of the shown examples have them, those that are no success first."""
    counts: dict[str, int] = {}
    for example in shown:
        counts[example.outcome] = counts.get(example.outcome, 0) + 1
    return list(counts.items())


def choices(shown: Sequence[Example], place: int, limit: int = 30) -> list[str]:
    """What of `Example.names` there is to choose from; nothing where it is too much to be chosen from."""
    found = {example.names[place] for example in shown}
    return sorted(found) if 1 < len(found) <= limit else []


@dataclass
class Carried:
    """What the page carries."""

    json: str
    """For the element that the script reads."""
    examples: list[Example]
    length: int
    """Characters of a text that are there at most."""

    @property
    def is_cut(self) -> bool:
        return any(len(example.text) > self.length * 1.1 for example in self.examples)


def carry(shown: Sequence[Example], budget: int) -> Carried:
    """As much of the examples as a number of bytes holds: shorter texts first, and then fewer examples."""
    for near, carried in _LENGTHS:
        texts = list(_encoded(shown, near, carried))
        if sum(len(text.encode()) + 1 for text in texts) <= budget:
            break
    else:
        used, kept = 2, 0
        for text in texts:
            used += len(text.encode()) + 1
            if used > budget:
                break
            kept += 1
        texts = texts[:kept]
    return Carried("[" + ",".join(texts) + "]", list(shown[: len(texts)]), carried)


def _encoded(shown: Sequence[Example], near: int, carried: int) -> Iterator[str]:
    """JSON that cannot end the element it stands in, whatever the texts hold."""
    for example in shown:
        text = json.dumps(example.row(near, carried), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        yield text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
