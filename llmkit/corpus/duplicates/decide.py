"""Decide over the marks of all parts which documents go, and read the decisions about one part.

Exact comes before near: what is equal goes first, and near duplicates are looked for among what is left. The first document
stays, by the order of the parts and of the rows in them, so that nothing depends on how many processes there are. Every
document that goes has a twin that stays and comes before it.

Every piece of work is done again safely and writes a file of its own, which is there as a whole or not at all; what is there
is not done again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.corpus.duplicates.buckets import repeats_of
from llmkit.corpus.duplicates.components import near_path
from llmkit.corpus.duplicates.layout import BANDS, BUCKET, DOCUMENTS, NUMBER, PARAGRAPHS, TRAIN, Layout, opened, with_care
from llmkit.corpus.duplicates.marks import without
from llmkit.corpus.duplicates.settings import DuplicateSettings
from llmkit.pipeline.stage import load_target

RULES = ("", "exact duplicate", "near duplicate", "in validation")
"""What may be said of a document; the first is: kept."""
_EXACT, _NEAR, _IN_VALIDATION = 1, 2, 3

Run = Callable[[str, list[dict[str, Any]]], Any]
"""Calls a function, given as "module:function", with each of some payloads, in any order and any process."""


@dataclass
class Summary:
    """What was decided, counted."""

    documents: int
    by_rule: dict[str, int]
    """Documents that go, by rule."""
    paragraphs: int
    """Paragraphs that count (0 where they were not asked for)."""
    repeated_paragraphs: int
    """Those among them that go from documents that stay."""


def decide(parts: Sequence[Path], settings: DuplicateSettings, directory: Path, run: Run, bucket: int = BUCKET) -> Summary:
    """Decide about all documents, in time linear in their number and memory that does not grow with it.

    Args:
        parts: directories that `Marker.save` wrote with the same settings, in the order of the corpus.
        directory: the decisions go here, and nothing else must be in it. The marks have to stay where they are, as seen from
            it, for as long as the decisions are read.
        run: how work is done: must have done all payloads when it returns.
        bucket: hashes that a process holds at once, on average.

    Raises:
        DataError: a part is missing, or numba is not installed and near duplicates are asked for.
    """
    layout = Layout.make(parts, settings, directory, bucket)
    place = {"directory": str(directory)}
    each = [{**place, "part": part} for part in range(len(parts))]
    here, in_buckets = __name__, f"{__package__}.buckets:find_repeats"

    def in_all(kind: str, bands: int = 1) -> list[dict[str, Any]]:
        buckets = range(layout.buckets(kind))
        return [{**place, "kind": kind, "band": band, "bucket": number} for band in range(bands) for number in buckets]

    if _compares_documents(layout):
        run(in_buckets, in_all(DOCUMENTS))
    run(f"{here}:settle_exact", each)
    if settings.near and parts:
        run(in_buckets, in_all(BANDS, settings.bands))
        run(f"{__package__}.components:unite", [place])
    run(f"{here}:settle_rules", each)
    if settings.paragraphs:
        run(in_buckets, in_all(PARAGRAPHS))
        run(f"{here}:settle_paragraphs", each)
    return _counted(layout)


def settle_exact(payload: dict[str, Any]) -> None:
    """Write of each document of a part the ticket of the first one with its text, or -1 where that is no reason to go."""
    layout, part = Layout.load(Path(payload["directory"])), payload["part"]
    if layout.decisions(part, "exact").exists():
        return
    start, end = layout.starts[part : part + 2].tolist()
    found = np.full(end - start, -1, dtype=np.int64)
    for pairs in repeats_of(layout, DOCUMENTS, part) if _compares_documents(layout) else ():
        own, first = pairs[:, 0], pairs[:, 1]
        goes = _in_validation(own, first) | layout.settings.documents
        found[(own[goes] & NUMBER) - start] = first[goes]
    with_care(layout.decisions(part, "exact"), found)


def settle_rules(payload: dict[str, Any]) -> None:
    """Write of each document of a part the rule by which it goes and the number of the document that stays for it.

    Where the first of equal texts goes itself, as a near duplicate, so do the others, and for the same.
    """
    layout, part = Layout.load(Path(payload["directory"])), payload["part"]
    if all(layout.decisions(part, name).exists() for name in ("twin", "rule")):
        return
    start, end = layout.starts[part : part + 2].tolist()
    own = np.arange(start, end, dtype=np.int64) + np.where(layout.marks(part, "validation"), 0, TRAIN)
    exact = np.array(layout.decided(part, "exact"))
    first = np.where(exact >= 0, exact, own)
    twin = opened(near_path(layout))[first & NUMBER] if layout.settings.near and len(own) else first
    rule = np.where(twin == own, 0, np.where(_in_validation(own, twin), _IN_VALIDATION, _NEAR))
    rule[(rule == _NEAR) & (exact == twin)] = _EXACT
    with_care(layout.decisions(part, "twin"), twin & NUMBER)
    with_care(layout.decisions(part, "rule"), rule.astype(np.uint8))


def settle_paragraphs(payload: dict[str, Any]) -> None:
    """Write of each paragraph that counts whether an earlier one, in a document that stays, is the same."""
    layout, part = Layout.load(Path(payload["directory"])), payload["part"]
    if layout.decisions(part, "repeated").exists():
        return
    start, end = layout.paragraph_starts[part : part + 2].tolist()
    found = np.zeros(end - start, dtype=bool)
    for pairs in repeats_of(layout, PARAGRAPHS, part):
        found[(pairs[:, 0] & NUMBER) - start] = True
    with_care(layout.decisions(part, "repeated"), found)


def _compares_documents(layout: Layout) -> bool:
    return bool(layout.parts) and (layout.settings.documents or any(about["validation"] for about in layout.abouts))


def _in_validation(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (own >= TRAIN) & (other < TRAIN)


def _counted(layout: Layout) -> Summary:
    rules = np.zeros(len(RULES), dtype=np.int64)
    repeated = 0
    for part in range(len(layout.parts)):
        rules += np.bincount(layout.decided(part, "rule"), minlength=len(RULES))
        if layout.settings.paragraphs:
            repeated += int(layout.decided(part, "repeated").sum())
    by_rule = {name: int(number) for name, number in zip(RULES[1:], rules[1:], strict=True)}
    return Summary(int(layout.starts[-1]), by_rule, int(layout.paragraph_starts[-1]), repeated)


class Decisions:
    """What becomes of the documents of one part, by their number in it."""

    def __init__(self, layout: Layout, part: int):
        self._layout, self._part = layout, part
        self.rules = layout.decided(part, "rule")
        """Places in RULES, uint8 of shape [documents]."""

    @classmethod
    def load(cls, directory: Path, part: int) -> Decisions:
        """The decisions that `decide` left in a directory, about the part of that number."""
        return cls(Layout.load(directory), part)

    def __len__(self) -> int:
        return len(self.rules)

    def rule(self, number: int) -> str:
        """The rule by which a document goes, or "" if it stays."""
        return RULES[self.rules[number]]

    def twin(self, number: int) -> str:
        """The id of the document that stays for this one: its own if it stays itself."""
        document = int(self._twins[number])
        part = int(np.searchsorted(self._layout.starts, document, side="right")) - 1
        place = document - int(self._layout.starts[part])
        ends, ids = self._layout.marks(part, "ids.ends"), self._layout.marks(part, "ids")
        start = int(ends[place - 1]) if place else 0
        return bytes(ids[start : int(ends[place])]).decode("utf-8", "surrogatepass")

    def text(self, number: int, text: str) -> str:
        """The text of a document, as it was marked, without the paragraphs that stand in the corpus before."""
        if not self._layout.settings.paragraphs:
            return text
        start = int(self._paragraph_ends[number - 1]) if number else 0
        return without(text, np.array(self._repeated[start : int(self._paragraph_ends[number])]))

    @cached_property
    def _twins(self) -> np.ndarray:
        return self._layout.decided(self._part, "twin")

    @cached_property
    def _repeated(self) -> np.ndarray:
        return self._layout.decided(self._part, "repeated")

    @cached_property
    def _paragraph_ends(self) -> np.ndarray:
        return self._layout.marks(self._part, "paragraphs.ends")


def serially(function: str, payloads: Iterable[dict[str, Any]]) -> None:
    """A `run` in this process."""
    call = load_target(function)
    for payload in payloads:
        call(payload)
