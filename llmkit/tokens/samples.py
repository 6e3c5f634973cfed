"""Training samples from a token stream, in two packings: fixed blocks, or whole documents that fit together.

With document masking, a token sees nothing but its own document. A sample then has `position_ids` that start again at 0 with
every document, from which transformers makes a mask that attention does not cross (and which rotary or learned positions
follow): a document is learned as if it stood alone. So the first token of a document is no target: there is nothing before it
to predict it from, and the EOS of the document before, which happens to stand there, is not to teach it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from llmkit.tokens.best_fit import best_fit_decreasing
from llmkit.tokens.shards import Passage, TokenStream

IGNORED = -100
"""Label of a position that takes no part in the loss (torch.nn.CrossEntropyLoss, `ignore_index`)."""


class PackedSamples(Dataset):
    """Samples of `block_size` tokens; what the packings have in common."""

    def __init__(self, stream: TokenStream, block_size: int, document_masking: bool = False):
        self.stream, self.block_size, self.stride = stream, block_size, block_size - 1
        self.document_masking = document_masking

    @property
    def targets(self) -> int:
        """Tokens that are learned in one pass."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def passages(self, index: int) -> list[Passage]:
        """The documents of one sample, in order."""
        raise NotImplementedError

    def _sample(self, tokens: np.ndarray, begins: np.ndarray, unlearned: np.ndarray) -> dict[str, torch.Tensor]:
        """A sample from its tokens, filled up with EOS that is not learned.

        Args:
            tokens: int64 of shape [at most block_size].
            begins: positions in it, above 0, where a document begins, or a further piece of one.
            unlearned: those positions that are no target.
        """
        ids = np.full(self.block_size, self.stream.index.eos_token_id, dtype=np.int64)
        ids[: len(tokens)] = tokens
        labels = np.full(self.block_size, IGNORED, dtype=np.int64)
        labels[: len(tokens)] = tokens
        labels[unlearned] = IGNORED
        sample = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
        if self.document_masking:
            begin_of = np.zeros(self.block_size, dtype=np.int64)
            begin_of[begins] = begins
            begin_of[len(tokens) :] = len(tokens)  # what fills up stands alone as well
            positions = np.arange(self.block_size) - np.maximum.accumulate(begin_of)
            sample["position_ids"] = torch.from_numpy(positions)
        return sample


class TokenBlocks(PackedSamples):
    """Packing `concat`: blocks that overlap by one, wherever documents begin and end.

    A causal model of transformers predicts token t + 1 from tokens up to t of the same row, so the first token of a row is
    never a target. With blocks that merely abut, one token in `block_size` would never be learned; overlapping by one makes
    each token but the very first of the stream a target exactly once (with document masking, each but the first of its
    document). The last block is filled with EOS, not learned.
    """

    def __init__(self, stream: TokenStream, block_size: int, document_masking: bool = False):
        super().__init__(stream, block_size, document_masking)
        self._blocks = max(0, -(-(len(stream) - 1) // self.stride))

    @property
    def targets(self) -> int:
        return len(self.stream) - (self.stream.documents if self.document_masking else 1)

    def fill_up_to_multiple(self, samples: int) -> None:
        """Add blocks without a target, so that batches come out even on all ranks and none has to repeat a sample."""
        self.add(-self._blocks % samples)

    def add(self, blocks: int) -> None:
        """Add blocks without a target."""
        self._blocks += blocks

    def __len__(self) -> int:
        return self._blocks

    def passages(self, index: int) -> list[Passage]:
        """As `PackedSamples`."""
        return self.stream.passages(index * self.stride, index * self.stride + self.block_size)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One sample: `input_ids` and `labels`, and with document masking `position_ids`, each int64 of shape [block_size].

        The model shifts the labels.
        """
        start = index * self.stride
        tokens = self.stream.read(start, start + self.block_size)
        begins = np.empty(0, dtype=np.int64)
        if self.document_masking:
            begins = self.stream.document_starts(start + 1, start + len(tokens)) - start
        return self._sample(tokens, begins, unlearned=begins)


class PackedDocuments(PackedSamples):
    """Packing `best_fit`: whole documents, put together so that they fill rows; none is cut that fits into one.

    A longer document is cut into pieces that fill a row, which overlap by one as `TokenBlocks` do, and a last one that is
    packed like a document. A row's documents stand in the order of the corpus, and what is free at its end is filled with
    EOS, not learned. Each token is a target exactly once, but for the first of each row (with document masking, the first of
    each document).

    Memory: about 21 bytes for each document or row.
    """

    def __init__(self, stream: TokenStream, block_size: int, document_masking: bool = False):
        super().__init__(stream, block_size, document_masking)
        starts, lengths, goes_on = _pieces(stream, block_size)
        row_of = best_fit_decreasing(lengths, block_size)
        by_row = np.argsort(row_of, kind="stable")
        self.starts, self.lengths, self.goes_on = starts[by_row], lengths[by_row], goes_on[by_row]
        """Of the pieces, row by row: the place of the first token in the stream, the number of tokens, and whether the first
        one is the last of the piece before."""
        self.rows = np.concatenate([[0], np.cumsum(np.bincount(row_of))])
        """Where the pieces of each row begin, and the end of the last; int64 of shape [rows + 1]."""

    @property
    def targets(self) -> int:
        tokens = int(self.lengths.sum(dtype=np.int64))
        if self.document_masking:
            return tokens - len(self.lengths)
        again = int(self.goes_on.sum()) - int(self.goes_on[self.rows[:-1]].sum())  # where they are not first in their row
        return tokens - len(self) - again

    def __len__(self) -> int:
        return len(self.rows) - 1

    def passages(self, index: int) -> list[Passage]:
        """As `TokenBlocks`."""
        return [passage for start, stop in self._spans(index) for passage in self.stream.passages(start, stop)]

    def _spans(self, index: int) -> list[tuple[int, int]]:
        """Where the pieces of a row begin and end in the stream."""
        pieces = slice(int(self.rows[index]), int(self.rows[index + 1]))
        starts, lengths = self.starts[pieces].tolist(), self.lengths[pieces].tolist()
        return [(start, start + length) for start, length in zip(starts, lengths, strict=True)]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """As `TokenBlocks`."""
        pieces = slice(int(self.rows[index]), int(self.rows[index + 1]))
        lengths = self.lengths[pieces].astype(np.int64)
        tokens = np.concatenate([self.stream.read(start, stop) for start, stop in self._spans(index)])
        begins = np.cumsum(lengths)[:-1]
        return self._sample(tokens, begins, begins if self.document_masking else begins[self.goes_on[pieces][1:]])


class JoinedSamples(Dataset):
    """The samples of several sources, one source after the other."""

    def __init__(self, sources: Sequence[PackedSamples]):
        self.sources = sources
        self.stride = sources[0].stride
        self.targets = sum(samples.targets for samples in sources)
        """Tokens that are learned in one pass."""
        self._set_ends()

    def _set_ends(self) -> None:
        self._ends = np.cumsum([len(samples) for samples in self.sources])

    def fill_up_to_multiple(self, samples: int) -> None:
        """As `TokenBlocks`, at the end of the last source."""
        last = self.sources[-1]
        assert isinstance(last, TokenBlocks)
        last.add(-len(self) % samples)
        self._set_ends()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _in_source(self, index: int) -> tuple[PackedSamples, int]:
        """The source of a sample, and its index there."""
        source = int(np.searchsorted(self._ends, index, side="right"))
        return self.sources[source], index - int(self._ends[source - 1] if source else 0)

    def passages(self, index: int) -> list[Passage]:
        """As that of the source."""
        samples, inside = self._in_source(index)
        return samples.passages(inside)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """As that of the source."""
        samples, inside = self._in_source(index)
        return samples[inside]


def _pieces(stream: TokenStream, block_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Documents as pieces of at most `block_size` tokens, in the order of the stream: starts, lengths, whether one goes on."""
    stride = block_size - 1
    parts = []
    for starts, ends in stream.document_spans():
        counts = np.maximum(1, -(-(ends - starts - 1) // stride))
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # of each piece in its document
        piece_starts = np.repeat(starts, counts) + number * stride
        lengths = np.minimum(np.repeat(ends, counts) - piece_starts, block_size)
        parts.append((piece_starts, lengths.astype(np.int32), number > 0))
    starts, lengths, goes_on = (np.concatenate(part) for part in zip(*parts, strict=True))
    return starts, lengths, goes_on
