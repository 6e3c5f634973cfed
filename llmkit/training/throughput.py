"""How fast a run learns: tokens, floating point operations, and the share of what the hardware could do (MFU).

Model FLOPs utilisation as Chowdhery et al. 2022 (PaLM, appendix B) define it: the operations that forward and backward pass
need, per second, over the peak rate of the hardware. Operations that a technique adds, such as computing activations again, do
not count. A number of this kind means little without its conventions, so they stand beside it: see `Throughput.described`.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PretrainedConfig, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

FORMULA = "6 x (parameters in matrix products) + 12 x layers x (heads x head_dim) x sequence length, per token"
CONVENTION = "attention in full, not halved for the causal mask; the input embedding is a look-up and counts nothing"

_WARM_UP_STEPS = 2
"""The first steps allocate memory and compile kernels; no rate is taken from them."""


def flops_per_token(matrix_parameters: int, config: PretrainedConfig, length: int) -> int:
    """Operations of forward and backward pass for one token.

    Args:
        matrix_parameters: parameters that a token is multiplied with: all but the input embedding (a tied one serves as output
            layer too, and counts), of experts only those that a token goes through.
        length: tokens of a sample.
    """
    layers, heads = (getattr(config, name, None) for name in ("num_hidden_layers", "num_attention_heads"))
    if not layers or not heads:  # a model without attention, such as Mamba
        return 6 * matrix_parameters
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 6 * matrix_parameters + 12 * layers * heads * width * length


def matrix_parameters(model: Any) -> int:
    """Parameters that a token is multiplied with; see `flops_per_token`."""
    config = model.config
    total = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())
    if not getattr(config, "tie_word_embeddings", False):
        table = model.get_input_embeddings().weight
        total -= getattr(table, "ds_numel", table.numel())
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    chosen = getattr(config, "num_experts_per_tok", None)
    if experts and chosen:
        routed = sum(
            getattr(parameter, "ds_numel", parameter.numel())
            for name, parameter in model.named_parameters()
            if ".experts." in name
        )
        total -= routed * (experts - chosen) // experts
    return total


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large square matrix product, the best of a few: what this device can really do.

    A table of data sheets would be wrong for the next card, and for this one at its power limit.
    """
    size = 1024 if device.type == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        _wait_for(device)
        started = time.perf_counter()
        left @ right
        _wait_for(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


class Throughput(TrainerCallback):
    """Measures training between two logs, evaluations and checkpoints left out."""

    def __init__(self, items_per_step: int, items: str, flops_per_item: float | None, peak: float | None):
        """Set up.

        Args:
            items_per_step: what an optimizer step works through, on all processes.
            items: what these are called: tokens, examples.
            flops_per_item: operations for one of them, or None where they are not known.
            peak: operations per second that all devices together can do.
        """
        self.items_per_step, self.items, self.flops_per_item, self.peak = items_per_step, items, flops_per_item, peak
        self._started = self._apart = self._waited = 0.0
        self._first_step = self._logged_step = 0
        self._total_seconds = 0.0
        self._total_steps = 0
        self.latest: dict[str, float] = {}

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What is done inside is no training."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._apart += time.perf_counter() - began

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, the training waits for data."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - began

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._first_step = state.global_step
        self._begin(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step - self._first_step == _WARM_UP_STEPS:
            _wait_for(args.device)
            self._begin(state.global_step)

    def _begin(self, step: int) -> None:
        self._started, self._apart, self._waited, self._logged_step = time.perf_counter(), 0.0, 0.0, step

    def measure(self, step: int) -> dict[str, float]:
        """The rates since the last time, to be called where the device has finished the step. Empty before there are any."""
        steps = step - self._logged_step
        seconds = time.perf_counter() - self._started - self._apart
        if steps <= 0 or step - self._first_step <= _WARM_UP_STEPS:
            return {}
        self._total_seconds += seconds
        self._total_steps += steps
        self.latest = {**self._rates(steps, seconds), "data_wait": self._waited / seconds}
        self._begin(step)
        return self.latest

    def _rates(self, steps: int, seconds: float) -> dict[str, float]:
        per_second = steps * self.items_per_step / seconds
        rates = {f"{self.items}_per_second": per_second}
        if self.flops_per_item is not None:
            rates["flops_per_second"] = per_second * self.flops_per_item
            if self.peak:
                rates["mfu"] = rates["flops_per_second"] / self.peak
        return rates

    def seconds_left(self, steps: int) -> float | None:
        """Time that steps will take at the mean rate so far."""
        return steps * self._total_seconds / self._total_steps if self._total_steps else None

    def described(self) -> dict[str, Any]:
        """The rates of the whole run, with what they mean."""
        if not self._total_steps:
            return {}
        described: dict[str, Any] = {
            "steps_measured": self._total_steps,
            **self._rates(self._total_steps, self._total_seconds),
        }
        if self.flops_per_item is not None:
            described |= {"flops_per_token": self.flops_per_item, "formula": FORMULA, "convention": CONVENTION}
        if self.peak:
            described |= {"peak_flops_per_second": self.peak, "peak": "measured: a matrix product in the precision of the run"}
        return described


def peak_memory(device: torch.device) -> int:
    """The most bytes that tensors took on an accelerator, or that this process took on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
