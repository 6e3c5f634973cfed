"""The losses of single tokens under a causal language model, with logits only where something is to be predicted.

For 64 windows of 1,024 tokens and a vocabulary of 128,000 the logits are 34 GB in float32. Here the hidden states of the
targets alone meet the output layer, a chunk of them at a time, and no logits are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from llmkit.errors import ConfigError
from llmkit.tasks.features import IGNORED

_CHUNK_SIZE = 1024  # positions whose logits are in memory at once


class TokenScorer:
    """A causal model of transformers, asked for the losses of given tokens."""

    def __init__(self, model: Any):
        """Set up.

        Args:
            model: in evaluation mode.

        Raises:
            ConfigError: it gives what is no number, or its attention is not causal.
        """
        self.model = model
        if not self._is_causal():
            problem = f"a {model.config.model_type} sees the tokens that it is to foretell; give a causal model"
            raise ConfigError([f"model_name_or_path: {problem}"])
        self._head = model.get_output_embeddings()
        self._is_bare = isinstance(self._head, torch.nn.Linear) and self._gives_the_logits()

    def __call__(self, ids: torch.Tensor, targets: torch.Tensor, **inputs: Any) -> tuple[np.ndarray, np.ndarray]:
        """Losses of what follows tokens.

        Args:
            ids: what the model reads, int64 of shape [rows, tokens], filled up on the right: a causal model does not see that.
            targets: what follows each token, of the same shape; `IGNORED` where nothing is asked.
            inputs: further arguments of the model.

        Returns:
            As `losses`, row by row.
        """
        wanted = targets != IGNORED
        return self.losses(self.states(ids, wanted, **inputs), targets[wanted])

    @torch.inference_mode()
    def states(self, ids: torch.Tensor, wanted: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """What stands at the wanted positions, shape [wanted, width]: hidden states, or logits where these cannot be had from
        hidden states alone (they are capped or scaled after the output layer)."""
        device = self.model.device
        if not self._is_bare:
            return self.model(input_ids=ids.to(device), **inputs).logits[wanted.to(device)]
        with self._head_as(lambda hidden: hidden):
            return self.model(input_ids=ids.to(device), **inputs).logits[wanted.to(device)]

    @torch.inference_mode()
    def losses(self, states: torch.Tensor, targets: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Negative log-likelihoods of targets, int64 of shape [targets], and whether each is the most likely token.

        Returns:
            float64 and bool of shape [targets].
        """
        parts = zip(states.split(_CHUNK_SIZE), targets.to(states.device).split(_CHUNK_SIZE), strict=True)
        found = [_losses(self._head(part) if self._is_bare else part, asked) for part, asked in parts]
        losses, right = (torch.cat(items).cpu() for items in zip(*found, strict=True))
        return losses.double().numpy(), right.numpy()

    @contextmanager
    def _head_as(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
        self._head.forward = function
        try:
            yield
        finally:
            del self._head.forward

    @torch.inference_mode()
    def _is_causal(self) -> bool:
        """Whether a token changes nothing before it."""
        ids = torch.arange(8, device=self.model.device).reshape(2, 4) % self.model.config.get_text_config().vocab_size
        ids[1, :3] = ids[0, :3]
        before = self.model(input_ids=ids, use_cache=False).logits[:, :3].float()
        if not (before < torch.inf).all():  # -inf is allowed: a token that never comes
            raise ConfigError(["model_name_or_path: the model gives NaN or infinity; its weights are damaged or diverged"])
        return torch.allclose(before[0], before[1], rtol=1e-3, atol=1e-4)

    @torch.inference_mode()
    def _gives_the_logits(self) -> bool:
        """Whether the logits are what the output layer gives. They are made large for it, so that a soft cap shows."""
        ids = torch.arange(8, device=self.model.device).reshape(2, 4) % self.model.config.get_text_config().vocab_size
        given, logits_of = [], self._head.forward

        def enlarged(hidden: torch.Tensor) -> torch.Tensor:
            given.append(logits_of(hidden) * 1000)
            return given[-1]

        with self._head_as(enlarged):
            logits = self.model(input_ids=ids).logits
        return len(given) == 1 and logits.shape == given[0].shape and torch.allclose(logits.float(), given[0].float())


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The cross-entropy of each row of logits, of shape [targets, vocabulary], and whether its target has the highest."""
    logits = logits.float()
    of_target = logits.gather(1, targets[:, None])
    highest = logits.amax(-1, keepdim=True)
    partition = (logits - highest).exp_().sum(-1, keepdim=True)
    return (partition.log() + highest - of_target)[:, 0], (of_target >= highest)[:, 0]
