"""What packing does to a corpus, counted from the samples that a run will see before it begins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmkit.tokens.samples import PackedDocuments, PackedSamples, TokenBlocks


@dataclass(frozen=True)
class PackingReport:
    """How documents became samples. Shares are from 0 to 1."""

    packing: str
    document_masking: bool
    tokens: int
    """Of the stream: each once, EOS included."""
    documents: int
    documents_split: int
    """Documents that no sample holds as a whole."""
    samples: int
    block_size: int
    targets: int
    """Tokens that are learned in one epoch."""
    dropped: int
    """Tokens that are in no sample."""
    crossing_share: float
    """Share of the samples' tokens in samples that hold several documents."""
    padding_share: float
    """Share of the samples' places that are only filled up."""
    epochs: float
    """Passes over the samples that the run will make."""

    def line(self) -> str:
        """The report as a person reads it."""
        apart = ", masked from each other" if self.document_masking else ""
        return (
            f"packing {self.packing}: {self.tokens:,} tokens, {self.dropped:,} dropped, in {self.samples:,} samples with "
            f"{self.padding_share:.2%} padding; {self.documents_split:,} of {self.documents:,} documents split, "
            f"{self.crossing_share:.1%} of tokens in samples with several documents{apart}; {self.epochs:.2f} epochs"
        )


def packing_report(samples: PackedSamples, samples_in_run: int) -> PackingReport:
    """Count; for blocks in constant memory, from the boundaries of documents alone.

    Args:
        samples_in_run: how many samples the run will take, over all its epochs.
    """
    if isinstance(samples, TokenBlocks):
        name, (split, covered, held, crossing) = "concat", _of_blocks(samples)
    else:
        assert isinstance(samples, PackedDocuments)
        name, (split, covered, held, crossing) = "best_fit", _of_rows(samples)
    return PackingReport(
        packing=name,
        document_masking=samples.document_masking,
        tokens=len(samples.stream),
        documents=samples.stream.documents,
        documents_split=split,
        samples=len(samples),
        block_size=samples.block_size,
        targets=samples.targets,
        dropped=len(samples.stream) - covered,
        crossing_share=crossing / held,
        padding_share=1 - held / (len(samples) * samples.block_size),
        epochs=samples_in_run / len(samples),
    )


def _of_blocks(samples: TokenBlocks) -> tuple[int, int, int, int]:
    """Documents split, tokens covered, tokens held by all blocks together, and by those with several documents."""
    block_size, stride, last = samples.block_size, samples.stride, len(samples) - 1
    in_last = min(block_size, len(samples.stream) - last * stride)
    split = crossing = 0
    seen = -1  # the last block found to hold the beginning of a document after another one
    for starts, ends in samples.stream.document_spans():
        # The last block that holds a document's beginning reaches furthest.
        split += int((ends > starts // stride * stride + block_size).sum())
        # A document that begins at token t > 0 shares a block with the one before: that which holds t - 1 and t.
        blocks = (starts[starts > 0] - 1) // stride
        crossing += int(np.count_nonzero(np.diff(blocks, prepend=seen)))
        seen = int(blocks[-1]) if len(blocks) else seen
    held_by_crossing = crossing * block_size - (block_size - in_last if seen == last else 0)
    covered = last * stride + in_last
    return split, covered, last * block_size + in_last, held_by_crossing


def _of_rows(samples: PackedDocuments) -> tuple[int, int, int, int]:
    """As `_of_blocks`."""
    split = sum(int((ends - starts > samples.block_size).sum()) for starts, ends in samples.stream.document_spans())
    in_order = np.argsort(samples.starts)
    starts = samples.starts[in_order]
    ends = starts + samples.lengths[in_order]
    reached = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]])
    covered = int(np.maximum(0, ends - np.maximum(starts, reached)).sum())
    held = np.add.reduceat(samples.lengths, samples.rows[:-1], dtype=np.int64)
    return split, covered, int(held.sum()), int(held[np.diff(samples.rows) > 1].sum())
