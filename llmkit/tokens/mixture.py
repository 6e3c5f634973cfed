"""Several sources in given shares: which source each position of a run takes its sample from, known for any position.

The positions of a run are dealt to the sources in cycles. In a cycle every source has a whole number of positions, as near to
its share as whole numbers can be (the method of largest remainders), and they stand as evenly as they can: the i-th of q
positions of a source belongs at (i + 1/2) / q of the cycle, and all are put in the order of that. This is the sequence of
Webster's and Sainte-Laguë's method of apportionment (Balinski & Young 1982), so that at every position of a run, each source
has had its share to within a sample or so. The table of one cycle is all the memory it takes, however long the run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CYCLE = 1 << 16
"""Positions in a cycle: shares are kept to within one part in so many."""


class Mixture:
    """Deals the positions of a run to sources."""

    def __init__(self, weights: Sequence[float]):
        """Set up.

        Args:
            weights: of the sources, above 0; their sum does not matter.

        Raises:
            ValueError: a weight is so small that its source would have no position in a cycle.
        """
        exact = np.asarray(weights, dtype=np.float64) / np.sum(weights) * CYCLE
        self.quotas = np.floor(exact).astype(np.int64)
        largest_remainders = np.argsort(self.quotas - exact, kind="stable")[: CYCLE - int(self.quotas.sum())]
        self.quotas[largest_remainders] += 1
        if self.quotas.min() < 1:
            raise ValueError(f"a weight is less than one part in {CYCLE:,} of all")
        numbers = np.concatenate([np.arange(quota) for quota in self.quotas])
        sources = np.repeat(np.arange(len(self.quotas)), self.quotas)
        order = np.argsort((numbers + 0.5) / self.quotas[sources], kind="stable")
        self.sources, self.numbers = sources[order], numbers[order]
        """Of each position of a cycle: its source, and how many positions that one has before it."""

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each position of a run, and its number among that source's positions; int64 like `positions`."""
        sources, numbers = self.sources[positions % CYCLE], self.numbers[positions % CYCLE]
        return sources, positions // CYCLE * self.quotas[sources] + numbers

    def counts(self, positions: int) -> list[int]:
        """How many of the first positions of a run each source has."""
        begun = np.bincount(self.sources[: positions % CYCLE], minlength=len(self.quotas))
        return (positions // CYCLE * self.quotas + begun).tolist()
