"""What the tests of all embedded data sets measure alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations

import pytest

Text = tuple[str, str, frozenset[str]]
"""The split of a text, its id, and the n-grams of its characters."""
NearCopies = Callable[[Sequence[Text]], list[tuple[str, str, float]]]

NEAR = 0.3


@pytest.fixture(scope="session")
def near_copies() -> NearCopies:
    """The pairs of texts of different splits whose n-grams have a Jaccard similarity of 0.3 or more."""

    def find(texts: Sequence[Text]) -> list[tuple[str, str, float]]:
        holders: dict[str, list[int]] = {}
        for number, (_, _, pieces) in enumerate(texts):
            for piece in pieces:
                holders.setdefault(piece, []).append(number)
        shared: Counter[tuple[int, int]] = Counter()
        for numbers in holders.values():
            shared.update((a, b) for a, b in combinations(numbers, 2) if texts[a][0] != texts[b][0])
        assert shared, "texts of one language share some n-grams, or this compares nothing"
        near = []
        for (a, b), count in shared.items():
            similarity = count / (len(texts[a][2]) + len(texts[b][2]) - count)
            if similarity >= NEAR:
                near.append((texts[a][1], texts[b][1], round(similarity, 3)))
        return near

    return find
