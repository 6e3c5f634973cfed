"""Training samples from a token stream: fixed blocks in which every token is learned exactly once."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from llmkit.tokens.shards import Passage, TokenStream

IGNORED = -100
"""Label of a position that takes no part in the loss (torch.nn.CrossEntropyLoss, `ignore_index`)."""


class TokenBlocks(Dataset):
    """Blocks of `block_size` tokens that overlap by one.

    A causal model of transformers predicts token t + 1 from tokens up to t of the same row, so the first token of a row is
    never a target. With blocks that merely abut, one token in `block_size` would never be learned; overlapping by one makes
    each token but the very first of the stream a target exactly once. The last block is filled with EOS, not learned.
    """

    def __init__(self, stream: TokenStream, block_size: int):
        self.stream, self.block_size, self.stride = stream, block_size, block_size - 1
        self._blocks = max(0, -(-(len(stream) - 1) // self.stride))

    def fill_up_to_multiple(self, samples: int) -> None:
        """Add blocks without a target, so that batches come out even on all ranks and none has to repeat a sample."""
        self._blocks = -(-self._blocks // samples) * samples

    def __len__(self) -> int:
        return self._blocks

    def passages(self, index: int) -> list[Passage]:
        """The documents of one sample, in order."""
        return self.stream.passages(index * self.stride, index * self.stride + self.block_size)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One sample: `input_ids` and `labels`, each int64 of shape [block_size]; the model shifts the labels."""
        start = index * self.stride
        tokens = torch.from_numpy(self.stream.read(start, start + self.block_size))
        missing = self.block_size - len(tokens)
        if missing == 0:
            return {"input_ids": tokens, "labels": tokens}
        fill = torch.full((missing,), self.stream.index.eos_token_id)
        ignored = torch.full((missing,), IGNORED)
        return {"input_ids": torch.cat([tokens, fill]), "labels": torch.cat([tokens, ignored])}
