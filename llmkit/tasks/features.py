"""Examples as a model takes them, in flat arrays: they are made once, kept on disk, and cost no Python object a token.

A column is ragged (token ids, one length an example), a number an example, or a vector of one size an example.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

IGNORED = -100
"""The label of a token that is not learned; what torch's cross-entropy leaves out."""

_INDEX, _OFFSETS = "features.json", ".offsets"


class Ragged:
    """Sequences of whole numbers, one after the other."""

    def __init__(self, flat: np.ndarray, offsets: np.ndarray):
        """Set up.

        Args:
            flat: int32 of shape [sum of lengths].
            offsets: int64 of shape [sequences + 1]; sequence i lies between offsets i and i + 1.
        """
        self.flat, self.offsets = flat, offsets

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> Ragged:
        """From lists."""
        offsets = np.zeros(len(sequences) + 1, dtype=np.int64)
        np.cumsum([len(sequence) for sequence in sequences], out=offsets[1:])
        flat = np.empty(offsets[-1], dtype=np.int32)
        for number, sequence in enumerate(sequences):
            flat[offsets[number] : offsets[number + 1]] = sequence
        return cls(flat, offsets)

    def lengths(self) -> np.ndarray:
        """int64 of shape [sequences]."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.flat[self.offsets[index] : self.offsets[index + 1]]


class Features:
    """The inputs of a model for examples; a torch map-style data set. What training sees is what `fingerprint` covers."""

    def __init__(self, columns: Mapping[str, Ragged | np.ndarray], facts: Mapping[str, Any] | None = None):
        """Set up.

        Args:
            columns: `input_ids`, and what else the model's `forward` and the loss take, all of one length. Attention masks
                are made by the collator.
            facts: what there is to say of them, as JSON has it: how many examples were `truncated`, say.
        """
        self.columns, self.facts = dict(columns), dict(facts or {})

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column[index] for name, column in self.columns.items()}

    def lengths(self) -> np.ndarray:
        """What each example costs: the length of its longest sequence in tokens, int64 of shape [examples]."""
        ragged = [column.lengths() for column in self.columns.values() if isinstance(column, Ragged)]
        return np.maximum.reduce(ragged)

    def fingerprint(self) -> str:
        """One sha256 of all examples as the model sees them."""
        digest = hashlib.sha256()
        for name in sorted(self.columns):
            column = self.columns[name]
            parts = (column.offsets, column.flat) if isinstance(column, Ragged) else (column,)
            for part in parts:
                digest.update(f"{name} {part.dtype.str} {part.shape}".encode())
                digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def save(self, directory: Path) -> None:
        """Write them; the directory appears complete or not at all."""
        aside = directory.with_name(f".{directory.name}.{os.getpid()}")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name, column in self.columns.items():
            if isinstance(column, Ragged):
                np.save(aside / f"{name}{_OFFSETS}.npy", column.offsets)
            np.save(aside / f"{name}.npy", column.flat if isinstance(column, Ragged) else column)
        (aside / _INDEX).write_text(json.dumps({"columns": list(self.columns), "facts": self.facts}), encoding="utf-8")
        try:
            os.rename(aside, directory)
        except OSError:  # another process was faster
            shutil.rmtree(aside, ignore_errors=True)
            if not directory.is_dir():
                raise

    @classmethod
    def load(cls, directory: Path) -> Features | None:
        """What was saved, memory-mapped; None where there is nothing, or not the whole of it."""
        try:
            index = json.loads((directory / _INDEX).read_text(encoding="utf-8"))
            columns: dict[str, Ragged | np.ndarray] = {}
            for name in index["columns"]:
                values = np.load(directory / f"{name}.npy", mmap_mode="r")
                offsets = directory / f"{name}{_OFFSETS}.npy"
                columns[name] = Ragged(values, np.load(offsets)) if offsets.exists() else values
            return cls(columns, index["facts"])
        except (OSError, ValueError, KeyError):
            return None


class Padding:
    """The collator of every task: pads the sequences of a batch on the right to the longest, and makes the attention mask.

    Only hardware with matrix units gains from lengths that are multiples of 8; elsewhere they are computed for nothing.
    """

    def __init__(
        self,
        pad_token_id: int,
        multiple: int = 1,
        values: Mapping[str, int] | None = None,
        vectors: Collection[str] = (),
        left_out: Collection[str] = (),
    ):
        """Set up.

        Args:
            multiple: what padded lengths are rounded up to.
            values: what other ragged columns are filled with; `labels` with `IGNORED` if nothing is said, others with 0.
            vectors: columns of whole numbers that are vectors of one size, and not ragged.
            left_out: columns that are no input of the model.
        """
        self.multiple, self.vectors, self.left_out = multiple, frozenset(vectors), frozenset(left_out)
        self.values = {"input_ids": pad_token_id, "labels": IGNORED, **(values or {})}

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Tensors of shape [examples, longest] for ragged columns, [examples] or [examples, size] for others."""
        import torch

        batch: dict[str, Any] = {}
        for name, first in examples[0].items():
            if name in self.left_out:
                continue
            column = [example[name] for example in examples]
            # Floating-point numbers are never ragged: labels with an entry a class.
            if isinstance(first, np.ndarray) and first.dtype.kind in "iu" and name not in self.vectors:
                lengths = np.array([len(sequence) for sequence in column])
                width = -(-int(lengths.max()) // self.multiple) * self.multiple
                padded = np.full((len(column), width), self.values.get(name, 0), dtype=np.int64)
                for row, sequence in zip(padded, column, strict=True):
                    row[: len(sequence)] = sequence
                batch[name] = torch.from_numpy(padded)
                if name == "input_ids":
                    mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
                    batch["attention_mask"] = torch.from_numpy(mask)
            else:
                batch[name] = torch.from_numpy(np.stack(column))
        return batch


def padding_waste(lengths: np.ndarray, batches: Sequence[np.ndarray], multiple: int = 1) -> float:
    """The share of what is computed that is padding.

    Args:
        lengths: tokens of each example.
        batches: the examples that are computed at once, each an array of indices.
    """
    computed = sum(-(-int(lengths[batch].max()) // multiple) * multiple * len(batch) for batch in batches)
    return 1 - sum(int(lengths[batch].sum()) for batch in batches) / computed


def cached(directory: Path, key: Mapping[str, Any], make: Callable[[], Features]) -> Features:
    """The features of a key: those that lie there from before, or new ones.

    Args:
        directory: where features are kept, one directory a key.
        key: all that decides them, as JSON has it.
    """
    place = directory / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    found = Features.load(place)
    if found is None:
        made = make()
        made.save(place)
        found = Features.load(place) or made
    return found
