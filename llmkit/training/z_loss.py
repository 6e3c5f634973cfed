"""The z-loss: a small pull of the softmax normaliser towards 1 (Chowdhery et al. 2022, PaLM, section 5).

The cross-entropy does not change when all logits of a position move together, so they can drift until low precision fails. The
mean of log(Z)^2 over the learned tokens, Z being the sum of the exponentiated logits, keeps them near where Z is 1.
"""

from __future__ import annotations

from typing import Any

import torch


def z_loss(logits_BTV: torch.Tensor, labels_BT: torch.Tensor, num_items: torch.Tensor | int | None = None) -> torch.Tensor:
    """The mean of log(Z)^2 over the positions that a next token is learned at.

    Args:
        logits_BTV: of batch, position and vocabulary.
        labels_BT: tokens, -100 where none is learned; a position predicts the label after it.
        num_items: learned tokens of the whole step, on all ranks; the parts of a step then sum up to its mean. None: those
            of this batch.

    Returns:
        A scalar, float32.
    """
    learned = labels_BT[:, 1:] != -100
    squares = torch.logsumexp(logits_BTV[:, :-1].float(), dim=-1).square()
    total = torch.where(learned, squares, 0.0).sum()
    return total / (learned.sum().clamp(min=1) if num_items is None else num_items)


class ZLoss:
    """The z-loss of a run with its weight, and what the ledger says of it."""

    def __init__(self, weight: float, accumulated: int, processes: int):
        """Set up.

        Args:
            accumulated: micro-batches of an optimizer step, on each process.
        """
        self.weight, self.accumulated, self.processes = weight, accumulated, processes
        self.since_log: torch.Tensor | float = 0.0
        """Its sum on this rank since the last log; stays on the device."""
        self._micro_batches = 0

    def go_on(self, since_log: torch.Tensor, steps: int) -> None:
        """Go on as a run that has made some steps since its last log."""
        self.since_log, self._micro_batches = since_log, steps * self.accumulated

    def added_to(self, loss: torch.Tensor, logits_BTV: torch.Tensor, labels_BT: torch.Tensor, num_items: Any) -> torch.Tensor:
        """The loss of a micro-batch as Trainer computed it, with the weighted z-loss.

        Args:
            num_items: as Trainer counts them; with it, Trainer multiplies the loss by the number of processes, because their
                gradients are averaged. None: the loss is a mean, and Trainer divides it by the accumulated micro-batches.
        """
        value = self.weight * z_loss(logits_BTV, labels_BT, num_items)
        if num_items is not None:
            value = value * self.processes
        self.since_log = self.since_log + (value.detach() if num_items is not None else value.detach() / self.accumulated)
        self._micro_batches += 1
        return loss + value

    def since_last(self, accelerator: Any) -> float:
        """The weighted z-loss of a step, its mean over the steps since the last time and over all ranks."""
        steps = self._micro_batches / self.accumulated
        mean = accelerator.reduce(torch.as_tensor(self.since_log), reduction="mean").item() / steps
        self.since_log, self._micro_batches = 0.0, 0
        return mean
