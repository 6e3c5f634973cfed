"""SIGTERM and SIGINT: save, and stop at the same step on all ranks."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class GracefulStop(TrainerCallback):
    """Turns a signal to any rank into one last checkpoint of all of them.

    A launcher passes a signal on to its ranks one after the other, so that they may hear of it in different steps. They agree
    at the end of each step, over gloo: the devices are not waited for.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}
        self._group: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if dist.is_initialized() and dist.get_world_size() > 1 and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._heard) for number in _SIGNALS}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.signal = self._agreed()
        if self.signal is not None:
            control.should_save = state.global_step < state.max_steps  # the end of a run is its result
            control.should_evaluate = False
            control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.restore()

    def restore(self) -> None:
        """Give the signals back to whoever handled them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _heard(self, number: int, _: FrameType | None) -> None:
        self.signal = self.signal or number

    def _agreed(self) -> int | None:
        if not (dist.is_initialized() and dist.get_world_size() > 1):
            return self.signal
        heard = torch.tensor([self.signal or 0])
        dist.all_reduce(heard, op=dist.ReduceOp.MAX, group=self._group)
        return int(heard) or None
