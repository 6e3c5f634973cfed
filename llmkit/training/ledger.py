"""The metrics ledger: everything that is logged, one JSON object a line, consistent also after a kill and a resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmkit.pipeline.artefact import write_synced


class Ledger(TrainerCallback):
    """Writes each log of the main process to a file, and hands it on to the callbacks after it."""

    def __init__(self, path: Path, facts: Callable[[], dict[str, Any]] = dict):
        """Set up.

        Args:
            facts: gives what is written beside each training loss.
        """
        self.path, self.facts = path, facts

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Forget what a killed run logged after the checkpoint it is resumed from: those steps are made again.

        So are an evaluation that came after the checkpoint of its step, and the summary of the whole training.
        """
        if not state.is_world_process_zero or not self.path.exists():
            return
        entries = [json.loads(line) for line in _whole_lines(self.path)]
        evaluated = {entry["step"] for entry in state.log_history if "eval_loss" in entry}
        kept = [
            entry
            for entry in entries
            if entry["step"] <= state.global_step
            and "train_runtime" not in entry
            and ("eval_loss" not in entry or entry["step"] in evaluated)
        ]
        write_synced(self.path, "".join(json.dumps(entry) + "\n" for entry in kept))

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
        facts = self.facts() if "loss" in logs else {}
        entry = {"step": state.global_step, **logs, **facts}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        # For the trackers of `report_to`, which come after the ledger and take numbers only.
        logs.update({name: value for name, value in facts.items() if isinstance(value, (int, float))})


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file that were written to their end."""
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """All entries of a ledger, oldest first; none where there is no file."""
    return [json.loads(line) for line in _whole_lines(path)] if path.exists() else []
