"""Repeats among what falls into one bucket: documents, bands or paragraphs whose hashes lie in one range.

Of equal ones the lowest ticket stays. A bucket is gone through twice. First the lowest ticket of each hash is found, which
needs memory only for different hashes, however often one comes; then every other ticket is written with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.corpus.duplicates.layout import BANDS, DOCUMENTS, PARAGRAPHS, TRAIN, Layout, opened, with_care
from llmkit.pipeline.artefact import sync


@dataclass
class Entries:
    """Hashes with their tickets; equal things agree in `hashes` and `rest`. All of shape [entries]."""

    hashes: np.ndarray
    rest: np.ndarray
    tickets: np.ndarray

    def firsts(self) -> Entries:
        """Of each hash the lowest ticket, in the order of the hashes."""
        order = np.lexsort((self.tickets, self.rest, self.hashes))
        hashes, rest = self.hashes[order], self.rest[order]
        is_first = np.ones(len(order), dtype=bool)
        is_first[1:] = (hashes[1:] != hashes[:-1]) | (rest[1:] != rest[:-1])
        return Entries(hashes[is_first], rest[is_first], self.tickets[order][is_first])

    def found(self, other: Entries) -> np.ndarray:
        """The ticket here of each hash of others, which are all here. `self` is in the order of the hashes."""
        at = np.searchsorted(self.hashes, other.hashes)
        while len(wrong := np.flatnonzero(self.rest[at] != other.rest)):  # two digests that agree in their first half
            at[wrong] += 1
        return self.tickets[at]


def find_repeats(payload: dict[str, Any]) -> None:
    """Write the repeats of one bucket; nothing is done where they are written.

    Args:
        payload: `directory` of the layout, `kind` of the hashes, `band`, `bucket`.
    """
    layout = Layout.load(Path(payload["directory"]))
    kind, band, bucket = payload["kind"], payload["band"], payload["bucket"]
    path = rows_path(layout, kind, band, bucket)
    if path.exists() and path.with_suffix(".npy").exists():
        return
    firsts = _firsts(layout, kind, band, bucket)
    ends = []
    aside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with aside.open("wb") as file:
        for entries in _parts(layout, kind, band, bucket):
            first = firsts.found(entries)
            repeats = np.flatnonzero(first != entries.tickets)
            rows = np.stack([entries.tickets[repeats], first[repeats]], axis=1)
            file.write(rows[np.argsort(rows[:, 0])].tobytes())
            ends.append(file.tell() // 16)
    sync(aside)
    os.replace(aside, path)
    with_care(path.with_suffix(".npy"), np.array(ends, dtype=np.int64))


def rows_path(layout: Layout, kind: str, band: int, bucket: int) -> Path:
    """Pairs of int64: a ticket, and the lowest of the same hash. Beside them is how many there are up to each part's end."""
    return layout.directory / f"{kind}-{band:04d}-{bucket:06d}.rows"


def repeats_of(layout: Layout, kind: str, part: int) -> Iterator[np.ndarray]:
    """The pairs whose first ticket is of a part, bucket by bucket; int64 of shape [pairs, 2] each."""
    for bucket in range(layout.buckets(kind)):
        path = rows_path(layout, kind, 0, bucket)
        ends = opened(path.with_suffix(".npy"))
        start = int(ends[part - 1]) if part else 0
        yield np.fromfile(path, dtype=np.int64, count=2 * (int(ends[part]) - start), offset=16 * start).reshape(-1, 2)


def _firsts(layout: Layout, kind: str, band: int, bucket: int) -> Entries:
    kept = Entries(*(np.zeros(0, dtype=dtype) for dtype in (np.uint64, np.uint64, np.int64)))
    waiting: list[Entries] = []
    for entries in _parts(layout, kind, band, bucket):
        waiting.append(entries)
        if sum(len(some.hashes) for some in waiting) > max(len(kept.hashes), layout.bucket // 4):
            kept, waiting = _joined([kept, *waiting]).firsts(), []
    return _joined([kept, *waiting]).firsts()


def _joined(some: list[Entries]) -> Entries:
    return Entries(*(np.concatenate([getattr(one, name) for one in some]) for name in ("hashes", "rest", "tickets")))


def _parts(layout: Layout, kind: str, band: int, bucket: int) -> Iterator[Entries]:
    """What each part has in a bucket."""
    count = layout.buckets(kind)
    low = (bucket << 64) // count
    high = ((bucket + 1) << 64) // count
    for part in range(len(layout.parts)):
        hashes, numbers = (layout.marks(part, f"{kind}.{name}") for name in ("hash", "number"))
        if kind == BANDS:
            hashes, numbers = hashes[band], numbers[band]
        start = int(np.searchsorted(hashes, np.uint64(low)))
        end = int(np.searchsorted(hashes, np.uint64(high))) if high < 1 << 64 else len(hashes)
        rest = layout.marks(part, "documents.rest")[start:end] if kind == DOCUMENTS else np.zeros(end - start, np.uint64)
        yield _entries(layout, kind, part, np.array(hashes[start:end]), np.array(rest), np.array(numbers[start:end]))


def _entries(layout: Layout, kind: str, part: int, hashes: np.ndarray, rest: np.ndarray, numbers: np.ndarray) -> Entries:
    """With tickets, and without what belongs to documents that are dropped already."""
    owners = numbers
    if kind == PARAGRAPHS:
        owners = np.searchsorted(layout.marks(part, "paragraphs.ends"), numbers, side="right")
    dropped = {DOCUMENTS: None, BANDS: "exact", PARAGRAPHS: "rule"}[kind]
    stays = np.ones(len(owners), dtype=bool)
    if dropped == "exact":
        stays = layout.decided(part, "exact")[owners] < 0
    elif dropped == "rule":
        stays = layout.decided(part, "rule")[owners] == 0
    start = (layout.paragraph_starts if kind == PARAGRAPHS else layout.starts)[part]
    tickets = start + numbers[stays] + np.where(layout.marks(part, "validation")[owners[stays]], 0, TRAIN)
    return Entries(hashes[stays], rest[stays], tickets)
