"""The order of training samples: a pure function of position, epoch and seed.

A keyed pseudo-random permutation of [0, n) is computed for each index by itself: a balanced Feistel network (Luby &
Rackoff 1988) on the smallest square domain that holds n, walked until it lands below n (Black & Rogaway 2002). It needs
no permutation array, so it costs no memory at any n, and resuming at any sample costs what starting costs. The order does
not depend on ranks, micro-batch, accumulation or data workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from llmkit.tokens.mixture import Mixture

DIGEST = "digest"
_ROUNDS = 6
_STRETCH = 64  # steps
_MASK = (1 << 64) - 1


def _mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014): every input bit moves every output bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _round_keys(seed: int, epoch: int) -> np.ndarray:
    """One key a round from seed and epoch, shape [_ROUNDS], uint64."""
    base = _mix(np.array([(seed * 0x9E3779B97F4A7C15 + epoch * 0xD1B54A32D192ED03 + 1) & _MASK], dtype=np.uint64))
    steps = np.arange(1, _ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return _mix(base + steps)


def permute(indices: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Where each index goes under the permutation of [0, n) that belongs to seed and epoch.

    Args:
        indices: int64 of any shape, each in [0, n).

    Returns:
        int64 of the same shape.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)  # bits of each side: the domain is 4**half, less than 4 n
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    keys = _round_keys(seed, epoch)
    values = np.asarray(indices, dtype=np.uint64).copy()
    walking = np.ones(values.shape, dtype=bool)
    while walking.any():
        left, right = values[walking] >> shift, values[walking] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        values[walking] = (left << shift) | right
        walking[walking] = values[walking] >= np.uint64(n)
    return values.astype(np.int64)


def samples_at(positions: np.ndarray, n: int, seed: int) -> np.ndarray:
    """The samples that stand at positions of a run, epoch after epoch; each epoch of n positions holds every sample once.

    Args:
        positions: int64 of any shape; 0 is the first sample of the run.

    Returns:
        int64 of the same shape.
    """
    ids = np.empty(positions.shape, dtype=np.int64)
    for epoch in np.unique(positions // n):
        here = positions // n == epoch
        ids[here] = permute(positions[here] % n, n, seed, int(epoch))
    return ids


def sample_ids(step: int, global_batch: int, n: int, seed: int) -> np.ndarray:
    """The samples of one optimizer step, whatever the layout; int64 of shape [global_batch]."""
    return samples_at(np.arange(step * global_batch, (step + 1) * global_batch, dtype=np.int64), n, seed)


class OrderedSamples(Dataset):
    """The samples of a whole run in their order, so that a run is one pass over it from front to back.

    Where epochs end inside a step, no rank has to repeat a sample to even out its batch: two ranks take the same steps as one.
    """

    def __init__(self, samples: Dataset, n: int, steps: int, global_batch: int, seed: int):
        """Set up.

        Args:
            n: number of samples in `samples`.
            steps: optimizer steps of the run.
            global_batch: samples of a step, on all ranks.
        """
        self.samples, self.n, self.steps, self.global_batch, self.seed = samples, n, steps, global_batch, seed
        self.first = 0
        """The position that index 0 stands for: a resumed run begins here, and nothing before it is ever read."""

    def __len__(self) -> int:
        return self.steps * self.global_batch

    def resume_at(self, step: int) -> None:
        """Begin with the samples of an optimizer step."""
        self.first = step * self.global_batch

    def of_step(self, step: int) -> np.ndarray:
        """The samples of an optimizer step of the run, from 0; int64 of shape [global_batch]."""
        return self._ids_at(np.arange(step * self.global_batch, (step + 1) * self.global_batch, dtype=np.int64))

    def __getitems__(self, indices: list[int]) -> list[Any]:
        ids = self._ids_at(self.first + np.asarray(indices, dtype=np.int64))
        return [self.samples[index] for index in ids.tolist()]

    def _ids_at(self, positions: np.ndarray) -> np.ndarray:
        return samples_at(positions, self.n, self.seed)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]


class MixedSamples(OrderedSamples):
    """The samples of a run that mixes sources in given shares; each source has an order and epochs of its own."""

    def __init__(self, samples: Dataset, sizes: Sequence[int], mixture: Mixture, steps: int, global_batch: int, seed: int):
        """As `OrderedSamples`.

        Args:
            samples: of all sources, one source after the other.
            sizes: the number of samples of each source.
            mixture: which source each position of the run takes its sample from.
        """
        super().__init__(samples, sum(sizes), steps, global_batch, seed)
        self.sizes, self.mixture = sizes, mixture

    def _ids_at(self, positions: np.ndarray) -> np.ndarray:
        sources, numbers = self.mixture.at(positions)
        ids = np.empty(positions.shape, dtype=np.int64)
        before = 0
        for source, size in enumerate(self.sizes):
            here = sources == source
            ids[here] = before + samples_at(numbers[here], size, self.seed + (source << 32))
            before += size
        return ids


class BalancedSamples(MixedSamples):
    """The samples of a run in which every group has the same share, however many samples it has."""

    def __init__(self, samples: Dataset, groups: Sequence[np.ndarray], steps: int, global_batch: int, seed: int):
        """As `OrderedSamples`.

        Args:
            groups: the samples of each group, int64.
        """
        sizes = [len(group) for group in groups]
        super().__init__(samples, sizes, Mixture([1.0] * len(groups)), steps, global_batch, seed)
        self.members = np.concatenate(groups)

    def _ids_at(self, positions: np.ndarray) -> np.ndarray:
        return self.members[super()._ids_at(positions)]


class LengthGrouped(OrderedSamples):
    """The samples of another order, moved within stretches of some steps so that a step has samples of like length.

    Within a stretch the samples are sorted by length and cut into steps, and the steps are shuffled. A stretch is part of an
    epoch, at most a quarter, so which samples are alike in a step changes from epoch to epoch: in steps of always the same
    ones, a small model of few examples learned next to nothing. As any order it is a function of the position.
    """

    def __init__(self, order: OrderedSamples, lengths: np.ndarray):
        """Set up.

        Args:
            order: what is grouped.
            lengths: tokens of each sample, int64 of shape [n].
        """
        super().__init__(order.samples, order.n, order.steps, order.global_batch, order.seed)
        self.order, self.lengths = order, lengths
        steps_per_epoch = order.n // order.global_batch
        self._stretch = max(1, min(_STRETCH, steps_per_epoch // 4))
        self._made: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def _ids_at(self, positions: np.ndarray) -> np.ndarray:
        size = self._stretch * self.global_batch
        positions = np.minimum(positions, len(self) - 1)  # a loader of a resumed run reads ahead, beyond the end
        ids = np.empty(positions.shape, dtype=np.int64)
        for number in np.unique(positions // size).tolist():
            here = positions // size == number
            ids[here] = self._ids_of(number)[positions[here] % size]
        return ids

    def _ids_of(self, number: int) -> np.ndarray:
        """The samples of a stretch, the last of which may be shorter."""
        if self._made[0] != number:
            first = number * self._stretch
            steps = min(self._stretch, self.steps - first)
            positions = np.arange(first * self.global_batch, (first + steps) * self.global_batch, dtype=np.int64)
            ids = self.order._ids_at(positions)
            by_length = ids[np.argsort(-self.lengths[ids], kind="stable")].reshape(steps, self.global_batch)
            shuffled = permute(np.arange(steps, dtype=np.int64), steps, self.seed, number)
            self._made = number, by_length[shuffled].reshape(-1)
        return self._made[1]


class Digesting:
    """A collator that adds the digest of its batch: a sum, so that it does not matter how a step is shared out.

    The digest of a step is the sum, modulo 2**64, of the BLAKE2b-64 digests of its samples' token ids. Chained from step to
    step it proves which data a run has learned, whatever ranks, micro-batch, accumulation and workers it had.
    """

    def __init__(self, collate: Any):
        self.collate = collate

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate; `digest` is an int64 of shape [1]."""
        total = 0
        for sample in samples:
            ids = np.asarray(sample["input_ids"], dtype="<i8")
            total += int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "little")
        batch = dict(self.collate(samples))
        batch[DIGEST] = torch.from_numpy(np.array([total & _MASK], dtype=np.uint64).view(np.int64))
        return batch


def chained(chain: str, step_digest: int) -> str:
    """The chain of digests, one step longer; 64 hexadecimal digits."""
    return hashlib.sha256(f"{chain}{step_digest & _MASK:016x}".encode()).hexdigest()
