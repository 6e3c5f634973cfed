"""What a person sees while training goes on: a line per log, with the rate and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Progress(TrainerCallback):
    """Says a line for each log of the main process. Serves a terminal and a log file alike."""

    def __init__(self, say: Callable[[str], None], items_per_step: int, items: str):
        """Set up.

        Args:
            items_per_step: what one optimizer step works through on all processes, such as tokens.
            items: what these are called.
        """
        self.say, self.items_per_step, self.items = say, items_per_step, items
        self._since = (0.0, 0)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._since = (time.monotonic(), state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero or logs is None:
            return
        step = f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}"
        if "loss" in logs:
            self.say(f"{step}  loss {logs['loss']:.4f}  lr {logs['learning_rate']:.2e}  {self._rate(state)}")
        elif "eval_loss" in logs:
            shown = [name for name in logs if name.startswith("eval_") and name not in _TIMES]
            self.say(f"{step}  validation: " + ", ".join(f"{name[5:]} {logs[name]:.4f}" for name in shown))

    def _rate(self, state: TrainerState) -> str:
        started, first = self._since
        per_second = (state.global_step - first) / max(1e-9, time.monotonic() - started)
        left = round((state.max_steps - state.global_step) / max(1e-9, per_second))
        return f"{per_second * self.items_per_step:,.0f} {self.items}/s  {left // 60}:{left % 60:02d} left"


_TIMES = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
