"""The loss of a language model without its logits in memory.

For a vocabulary of 128,000 tokens the logits of 8,192 positions are 4 GB in float32, and their gradient as much again: more
than many a model. Here the output layer and the cross-entropy are computed together, a chunk of positions at a time, and the
gradient of a chunk is made while its logits are there: nothing is computed twice (Hsu et al. 2024, arXiv:2410.10989).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch.nn.functional import pad

from llmkit.errors import ConfigError
from llmkit.tokens.samples import IGNORED

_LARGEST_DIFFERENCE = 1e-5
"""Relative difference of a loss in chunks from one in whole, in float32, that other orders of its sums explain."""

_LARGE_VOCABULARY = 32_768
"""From here on chunks are faster as well as smaller on a CPU; below they only save memory (docs/throughput.md)."""

_CHUNK_SIZE = 1024


def set_up_loss(model: Any, chunk_size: int | None, arguments: Any) -> None:
    """Have a model compute its loss as the setting `loss_chunk_size` says.

    Args:
        arguments: transformers.TrainingArguments of the run.

    Raises:
        ConfigError: chunks are asked for and cannot be had.
    """
    if chunk_size:
        if arguments.fsdp:
            raise ConfigError(["loss_chunk_size: under FSDP no process has the whole output layer; set it to 0"])
        ChunkedLoss(model, chunk_size)
        return
    pays = arguments.device.type == "cpu" and getattr(model.config, "vocab_size", 0) >= _LARGE_VOCABULARY
    has_another = arguments.fsdp or arguments.use_liger_kernel or arguments.label_smoothing_factor
    if chunk_size is None and pays and not has_another:
        with suppress(ConfigError):
            ChunkedLoss(model, _CHUNK_SIZE)


class ChunkedLoss:
    """Has a causal model of transformers compute its loss in chunks, wherever it is called with labels.

    Its output layer then passes the hidden states on, its loss function multiplies them with the layer's weight chunk by
    chunk, and the `logits` of its output are these hidden states. Called without labels, to generate, it is as it was.
    """

    def __init__(self, model: Any, chunk_size: int):
        """Set up `model`.

        Args:
            chunk_size: positions whose logits are in memory at once.

        Raises:
            ConfigError: the architecture does something else between output layer and loss, such as a soft cap on its logits.
        """
        head = model.get_output_embeddings()
        if not isinstance(head, torch.nn.Linear):
            raise ConfigError([f"loss_chunk_size: the output layer of {model.config.model_type} is not a linear one"])
        if hasattr(head.weight, "ds_numel"):
            raise ConfigError(["loss_chunk_size: under ZeRO-3 no process has the whole output layer; set it to 0"])
        self.chunk_size, self._has_labels = chunk_size, False
        self._head: Any = head
        self._logits_of = head.forward
        loss_before = model.loss_function
        difference = self._difference(model)
        if not difference <= _LARGEST_DIFFERENCE:
            model.loss_function = loss_before
            del self._head.forward
            raise ConfigError(
                [
                    f"loss_chunk_size: {model.config.model_type} does more to its logits than compare them with the labels, "
                    f"such as cap them, and its loss in chunks would be another one; set it to 0"
                ]
            )
        self._watch(model)

    def _watch(self, model: Any) -> None:
        self._head.forward = self._output_layer
        model.register_forward_pre_hook(self._before, with_kwargs=True)
        model.register_forward_hook(self._after, always_call=True)

    def _difference(self, model: Any) -> float:
        """How far the loss in chunks, which the model has from here on, is from the one that it had, relatively.

        The hidden states are made a hundred times as large for it: logits of a new model are too small for a cap to show.
        """
        ids = torch.arange(16, device=self._head.weight.device).reshape(2, 8) % model.config.vocab_size
        self._head.forward = lambda hidden: self._logits_of(hidden * 100)
        expected = _loss_of(model, ids)
        self._head.forward = lambda hidden: hidden * 100
        model.loss_function = self._loss
        try:
            return abs(_loss_of(model, ids) - expected) / abs(expected)
        except (RuntimeError, ValueError, IndexError):
            return float("inf")  # it takes what it has for logits to compute a loss of its own

    def _before(self, model: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._has_labels = options.get("labels") is not None

    def _after(self, model: Any, arguments: tuple[Any, ...], output: Any) -> None:
        self._has_labels = False

    def _output_layer(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden if self._has_labels else self._logits_of(hidden)

    def _loss(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        vocab_size: int,
        num_items_in_batch: torch.Tensor | int | None = None,
        shift_labels: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """As `ForCausalLMLoss` of transformers, with hidden states of shape [batch, length, width] for logits."""
        targets = shift_labels if shift_labels is not None else pad(labels[..., 1:], (0, 1), value=IGNORED)
        hidden, targets = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1).to(logits.device)
        total = chunked_cross_entropy(hidden, self._head.weight, targets, self.chunk_size, self._head.bias)
        return total / (num_items_in_batch if num_items_in_batch is not None else (targets != IGNORED).sum())


@torch.no_grad()
def _loss_of(model: Any, ids: torch.Tensor) -> float:
    was_training = model.training
    try:
        return model.eval()(input_ids=ids, labels=ids).loss.item()
    finally:
        model.train(was_training)


@torch.compiler.disable
def chunked_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    chunk_size: int,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """The sum of the cross-entropies of `hidden @ weight.T + bias`, a scalar in float32.

    Logits are computed in the precision of autocast, and everything after them in float32, as transformers does.

    Args:
        hidden: last hidden states, shape [positions, width].
        weight: of the output layer, shape [vocabulary, width].
        labels: int64, shape [positions]; positions with -100 take no part.
        chunk_size: positions whose logits are in memory at once.
        bias: of the output layer, shape [vocabulary].
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = bias.to(dtype) if bias is not None else None
    with torch.autocast(hidden.device.type, enabled=False):
        return _ChunkedCrossEntropy.apply(hidden, weight, bias, labels, chunk_size)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        chunk_size: int,
    ) -> torch.Tensor:
        wanted = ctx.needs_input_grad[:3]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_gradient = torch.empty_like(hidden) if wanted[0] else None
        # Sums over many chunks, so in float32, whatever the weights are.
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
        bias_gradient = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wanted[2] else None
        # The same memory for every chunk: on a CPU, new pages cost more than the arithmetic on them.
        shape = (min(chunk_size, len(hidden)), len(weight))
        all_logits = torch.empty(shape, dtype=hidden.dtype, device=hidden.device)
        all_scores = all_logits if hidden.dtype == torch.float32 else torch.empty_like(all_logits, dtype=torch.float32)
        for start in range(0, len(hidden), chunk_size):
            part, targets = hidden[start : start + chunk_size], labels[start : start + chunk_size]
            logits, scores = all_logits[: len(part)], all_scores[: len(part)]
            torch.mm(part, weight.t(), out=logits)
            if bias is not None:
                logits += bias
            learned = (targets != IGNORED)[:, None]
            index = torch.where(learned, targets[:, None], 0)
            scores.copy_(logits)
            highest, target_score = scores.amax(-1, keepdim=True), scores.gather(1, index)
            exponentials = scores.sub_(highest).exp_()
            partition = exponentials.sum(-1, keepdim=True)
            total += torch.where(learned, partition.log() + highest - target_score, 0.0).sum()
            if not any(wanted):
                continue
            # d loss / d logits = softmax - one-hot
            slope = learned.float()
            gradient = exponentials.mul_(slope / partition)
            gradient.scatter_add_(1, index, -slope)
            gradient = logits.copy_(gradient)
            if hidden_gradient is not None:
                torch.mm(gradient, weight, out=hidden_gradient[start : start + chunk_size])
            if weight_gradient is not None:
                weight_gradient += gradient.t() @ part
            if bias_gradient is not None:
                bias_gradient += gradient.sum(0, dtype=torch.float32)
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)
        ctx.dtypes = weight.dtype, bias.dtype if bias is not None else None
        return total

    @staticmethod
    def backward(ctx: Any, output_gradient: torch.Tensor) -> Any:
        hidden, weight, bias = ctx.saved_tensors
        return (
            hidden * output_gradient if hidden is not None else None,
            (weight * output_gradient).to(ctx.dtypes[0]) if weight is not None else None,
            (bias * output_gradient).to(ctx.dtypes[1]) if bias is not None else None,
            None,
            None,
        )
