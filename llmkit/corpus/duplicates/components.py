"""Documents that are alike, put together: a component is kept as its first document.

Being alike is not transitive, and a component takes it to be: if A is like B and B like C, one of the three stays. Validation
documents are put together by themselves before those of training join, so that none goes because of a training document.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.corpus.duplicates.buckets import rows_path
from llmkit.corpus.duplicates.layout import BANDS, NUMBER, TRAIN, Layout, opened
from llmkit.corpus.duplicates.minhash import kernels

_ALL = np.int64((1 << 63) - 1)


def near_path(layout: Layout) -> Path:
    """The ticket of the document that stays for each document (its own where it does), int64 of shape [documents]."""
    return layout.directory / "near.npy"


def unite(payload: dict[str, Any]) -> None:
    """Write what stays for each document; nothing is done where that is written.

    A forest over a file (Tarjan 1975, with the lower ticket as root, so that the result does not depend on the order of the
    edges); what of it is in memory is the system's to decide.

    Args:
        payload: `directory` of the layout.
    """
    layout = Layout.load(Path(payload["directory"]))
    path = near_path(layout)
    count = int(layout.starts[-1])
    if path.exists():
        return
    aside, forest = (path.with_name(f"{path.name}.{os.getpid()}.{what}") for what in ("partial", "forest"))
    found = np.lib.format.open_memmap(aside, mode="w+", dtype=np.int64, shape=(count,))
    parents = np.lib.format.open_memmap(forest, mode="w+", dtype=np.int64, shape=(count,))
    for part, start, end in _parts(layout):
        own = np.where(layout.marks(part, "validation"), 0, TRAIN)
        parents[start:end] = np.arange(start, end) + own
    has_validation = any(about["validation"] for about in layout.abouts)
    for most in (NUMBER, _ALL) if has_validation else (_ALL,):
        for edges in _edges(layout):
            kernels().unite(parents, edges, NUMBER, most)
        for part, start, end in _parts(layout):
            roots = np.empty(end - start, dtype=np.int64)
            kernels().roots(parents, start, roots, NUMBER)
            asked = layout.marks(part, "validation") == (most == NUMBER)
            found[start:end][asked] = roots[asked]
    found.flush()
    del found, parents
    os.remove(forest)
    os.replace(aside, path)


def _parts(layout: Layout) -> Iterator[tuple[int, int, int]]:
    """The parts that have documents: their numbers, and those of their first document and of the first after them."""
    for part, (start, end) in enumerate(zip(layout.starts[:-1].tolist(), layout.starts[1:].tolist(), strict=True)):
        if end > start:
            yield part, start, end


def _edges(layout: Layout) -> Iterator[np.ndarray]:
    for band in range(layout.settings.bands):
        for bucket in range(layout.buckets(BANDS)):
            path = rows_path(layout, BANDS, band, bucket)
            total = int(opened(path.with_suffix(".npy"))[-1])
            for start in range(0, total, layout.bucket):
                size = min(layout.bucket, total - start)
                yield np.fromfile(path, dtype=np.int64, count=2 * size, offset=16 * start).reshape(-1, 2)
