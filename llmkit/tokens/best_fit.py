"""Best-fit decreasing: pieces of text into rows of one capacity, so that few rows are left partly empty.

Every piece goes, the longest first, into the row with the least free space that still takes it (Johnson 1974); Ding et al.
2024, "Fewer Truncations Improve Language Modeling", pack documents for pretraining so. Pieces of one length are placed
together: what one row of some free space takes of them, each row of that space takes, so the work grows with the number of
lengths and not with that of the pieces.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The row of each piece; the same for the same lengths.

    Args:
        lengths: of the pieces in tokens, whole numbers of shape [pieces], each from 1 to `capacity`.

    Returns:
        int64 of shape [pieces]; rows are numbered from 0 without a gap.
    """
    row_of = np.empty(len(lengths), dtype=np.int64)
    longest_first = np.argsort(-lengths, kind="stable")
    sizes, counts = np.unique(lengths, return_counts=True)
    open_rows: defaultdict[int, list[np.ndarray]] = defaultdict(list)  # by free space, in chunks of row numbers
    spaces = 0  # a set of the free spaces there are, as the bits of one number: finding the least that fits is one shift
    rows = placed = 0

    def put(chunk: np.ndarray, space: int) -> None:
        nonlocal spaces
        if space and len(chunk):
            open_rows[space].append(chunk)
            spaces |= 1 << space

    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            fitting = spaces >> size
            if fitting:
                space = size + (fitting & -fitting).bit_length() - 1
                chunk = open_rows[space].pop()
                if not open_rows[space]:
                    spaces ^= 1 << space
            else:
                space = capacity
                chunk = np.arange(rows, rows - (-count // (capacity // size)))
                rows += len(chunk)
            # A row that took a piece fits the next one best, until it takes no more: it has less space than all others.
            each = min(space // size, count)
            taking = chunk[: count // each]
            put(chunk[len(taking) :], space)
            put(taking, space - each * size)
            row_of[longest_first[placed : placed + each * len(taking)]] = np.repeat(taking, each)
            placed += each * len(taking)
            count -= each * len(taking)
    return row_of
