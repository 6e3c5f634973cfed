"""What a person sees while training goes on: a line per log, with the rate and the time left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmkit.training.throughput import Throughput

# What transformers measures of an evaluation with a clock.
TIMES = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


class Progress(TrainerCallback):
    """Says a line for each log of the main process. Serves a terminal and a log file alike."""

    def __init__(self, say: Callable[[str], None], throughput: Throughput):
        self.say, self.throughput = say, throughput

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
            self.say(f"{step}  loss {logs['loss']:.4f}  lr {logs['learning_rate']:.2e}" + self._rate(state))
        elif "eval_loss" in logs:
            shown = [name for name in logs if name.startswith("eval_") and name not in TIMES]
            self.say(f"{step}  validation: " + ", ".join(f"{name[5:]} {logs[name]:.4f}" for name in shown))

    def _rate(self, state: TrainerState) -> str:
        rates, seconds = self.throughput.latest, self.throughput.seconds_left(state.max_steps - state.global_step)
        if seconds is None:
            return ""
        items = self.throughput.items
        mfu = f"  MFU {rates['mfu']:.0%}" if "mfu" in rates else ""
        minutes, seconds = divmod(round(seconds), 60)
        return f"  {rates[f'{items}_per_second']:,.0f} {items}/s{mfu}  {minutes}:{seconds:02d} left"
