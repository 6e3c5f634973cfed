"""The loss of classifiers, as a sum over examples that is divided once: accumulated batches and ranks weigh right.

The loss inside transformers' models is the mean over a batch, whatever it is told of the other batches of the step, and
Trainer takes it for a share of the mean over the step: with N processes or N accumulated batches, the gradient is N times too
large.

With class weights too it is a mean over the examples of the step, and not over the sum of their weights as in torch's
`CrossEntropyLoss(weight=...)`: that sum differs from batch to batch, and an example would weigh more beside light ones. The
weights are scaled to a mean of 1 over the training examples instead, so that only their ratios matter and the learning rate
keeps its meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkit.tasks.labels import MULTI, REGRESSION, ProblemType

if TYPE_CHECKING:
    import torch


@dataclass
class ClassificationLoss:
    """Cross-entropy for one class a text, binary cross-entropy for several, the squared error for numbers."""

    kind: ProblemType
    weights: Sequence[float] | None = None
    """Of each class; for several classes a text, what weighs its presence against its absence (`pos_weight` in torch)."""
    focal_gamma: float = 0.0
    """The term of a class with probability p of being right is multiplied by (1 - p)**gamma (Lin et al. 2017,
    arXiv:1708.02002), so that what is easy counts less; 0 is the cross-entropy."""
    smoothing: float = 0.0
    """Share of the target that is spread over all classes (Szegedy et al. 2016), or over presence and absence."""

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """The loss, as Trainer takes a `compute_loss_func`.

        Args:
            outputs: with `logits` of shape [batch, classes], or [batch, 1] for numbers.
            labels: class numbers, int64 of shape [batch]; or 1 for each class of a text, float32 of shape [batch, classes]; or
                numbers, float32 of shape [batch].
            num_items_in_batch: entries of the labels of the whole step, on all processes; None outside of training, for the
                batch's own mean.
        """
        logits = outputs["logits"].float()
        terms = {MULTI: self._several, REGRESSION: self._number}.get(self.kind, self._one)(logits, labels)
        return terms.sum() / (labels.numel() if num_items_in_batch is None else num_items_in_batch)

    def _one(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import log_softmax, one_hot

        targets = one_hot(labels, logits.shape[1]) * (1 - self.smoothing) + self.smoothing / logits.shape[1]
        logarithms = log_softmax(logits, dim=1)
        return -targets * self._weights(logits) * self._focus(logarithms) * logarithms

    def _several(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import logsigmoid

        targets = labels * (1 - self.smoothing) + self.smoothing / 2
        present, absent = logsigmoid(logits), logsigmoid(-logits)
        there = targets * self._weights(logits) * self._focus(present) * present
        return -there - (1 - targets) * self._focus(absent) * absent

    def _number(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (logits.squeeze(1) - labels) ** 2

    def _weights(self, logits: torch.Tensor) -> Any:
        return 1.0 if self.weights is None else logits.new_tensor(self.weights)

    def _focus(self, logarithms: torch.Tensor) -> Any:
        if not self.focal_gamma:
            return 1.0
        # The slope of x**gamma is infinite at 0 where gamma is below 1, and a float32 probability does reach 1.
        return (-logarithms.expm1()).clamp_min(1e-7) ** self.focal_gamma


def class_weights(
    asked: str | dict[str, Any], labels: list[str], counts: Sequence[int], examples: int, kind: ProblemType
) -> list[float]:
    """The weight of each class, in the order of `labels`.

    Args:
        asked: `balanced`, or weights of some labels; the others weigh 1.
        counts: examples of each class in training.
        examples: how many there are in all.
    """
    if kind == MULTI and asked == "balanced":  # presence and absence of a class then have the same sum
        return [max(1, examples - count) / count for count in counts]
    named = asked if isinstance(asked, dict) else {label: 1 / count for label, count in zip(labels, counts, strict=True)}
    raw = [float(named.get(label, 1.0)) for label in labels]
    if kind == MULTI:
        return raw
    mean = sum(weight * count for weight, count in zip(raw, counts, strict=True)) / examples
    return [weight / mean for weight in raw]
