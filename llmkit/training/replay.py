"""Make one step of a pretraining run again, from the checkpoint before it, and look at it closely.

The steps from the checkpoint on are made as the run made them: the same samples, random numbers, optimizer and schedule,
dropout included. On the hardware, versions and number of processes of the run, loss and gradient are its own to the bit.
Nothing is written into the run's directory.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmkit.config import Source, read_settings_file, resolve
from llmkit.errors import ArtefactError, LLMKitError
from llmkit.pipeline.artefact import DUMPS, LEDGER, SETTINGS, enclosing
from llmkit.pipeline.stage import Workspace, rank
from llmkit.resources import display
from llmkit.training.checkpoints import PERMANENT, CheckpointRecord, problem_with, step_of
from llmkit.training.dumps import DUMP
from llmkit.training.language_model import new_trainer
from llmkit.training.ledger import read_ledger
from llmkit.training.pretrain import PretrainConfig

_SHOWN_CHARACTERS = 200


class _Until(TrainerCallback):
    """Stops after a step, and saves and evaluates nothing."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_save = control.should_evaluate = False
        control.should_training_stop = state.global_step >= self.step


def replay(checkpoint: Path, step: int) -> dict[str, Any] | None:
    """Make the steps of a run after a checkpoint again, up to `step`.

    Args:
        checkpoint: of an unfinished run (`<output>.partial/checkpoint-<k>`), or a permanent one of a finished run
            (`<output>/checkpoints/checkpoint-<k>`).
        step: as in the ledger; the first of a run is 1.

    Returns:
        The dump of the step (see `dumps.describe`) and beside it `checkpoint`, `processes` (of the run and now) and
        `recorded`: what the ledger says of the step, where it says something. None on all processes but the main one.

    Raises:
        ArtefactError: the checkpoint is not whole, or does not lie in a pretraining run.
        LLMKitError: the step is not one of those after the checkpoint.
    """
    wrong = problem_with(checkpoint)
    if wrong:
        raise ArtefactError(f"--checkpoint: {wrong}")
    if step <= step_of(checkpoint):
        raise LLMKitError(
            f"--step: {checkpoint.name} is the state after step {step_of(checkpoint):,}; step {step:,} needs an earlier one"
        )
    this_rank, processes = rank()
    record = CheckpointRecord.load(checkpoint)
    run = checkpoint.parent.parent if checkpoint.parent.name == PERMANENT else checkpoint.parent
    is_main = this_rank == 0
    with tempfile.TemporaryDirectory(prefix="llmkit-replay-") as directory:
        place = Path(directory)
        trainer, _, _ = new_trainer(
            _settings(run, checkpoint, record, processes), Workspace(place, is_main, print if is_main else lambda _: None)
        )
        if step > trainer.args.max_steps:
            raise LLMKitError(f"--step: the run has {trainer.args.max_steps:,} steps; there is no step {step:,}")
        trainer.args.logging_steps = 1
        trainer.remove_callback(trainer.stop)  # there is nothing that a signal could save
        trainer.add_callback(_Until(step))
        trainer.guard.asked_for.add(step)
        trainer.run(str(checkpoint))
        if not is_main:
            return None
        told = next(entry for entry in read_ledger(place / LEDGER) if entry["step"] == step and "loss" in entry)
        dump = json.loads((place / DUMPS / f"step-{step}" / DUMP).read_text(encoding="utf-8"))
    recorded = next((entry for entry in read_ledger(run / LEDGER) if entry["step"] == step and "loss" in entry), None)
    return {
        "checkpoint": display(checkpoint),
        "processes": {"run": record.processes, "replay": processes},
        **dump,
        "data_chain": told["data_chain"],
        "recorded": recorded and {name: recorded.get(name) for name in ("loss", "grad_norm", "data_chain")},
    }


def _settings(run: Path, checkpoint: Path, record: CheckpointRecord, processes: int) -> PretrainConfig:
    """The settings of a run, to go on from a checkpoint and tell nobody."""
    if not (run / SETTINGS).is_file():
        raise ArtefactError(f"--checkpoint: {checkpoint} lies in no run of llmkit: there is no {run / SETTINGS}")
    sources = read_settings_file(run / SETTINGS)
    if "tokens" not in sources[-1].values:
        raise ArtefactError(f"--checkpoint: {run} is no pretraining run; only those have an order that can be replayed")
    changed: dict[str, Any] = {
        "model_name_or_path": str(checkpoint),
        "resume": str(checkpoint),
        "report_to": "none",
        "push_to_hub": False,
    }
    finished = enclosing(run)
    tokens = finished.input("tokens") if finished is not None else None
    if tokens is not None:  # also where all of it was moved
        changed["tokens"] = str(tokens.directory)
    if processes != record.processes:
        changed |= {"global_batch_size": record.samples_per_step, "gradient_accumulation_steps": 1}
    return resolve(PretrainConfig, [*sources, Source(changed, {})]).config


def describe(replayed: dict[str, Any]) -> str:
    """A replayed step for a person to read."""
    verdict = {"no number": "no number", "spike": "a spike", "asked for": "nothing unusual"}[replayed["reason"]]
    lines = [
        f"step {replayed['step']:,}, from {replayed['checkpoint']}: {verdict}, "
        f"its update is {'skipped' if replayed['was_skipped'] else 'made'}",
        f"loss {replayed['loss']!r}, gradient norm {replayed['grad_norm']!r}",
        *_compared(replayed),
    ]
    ranks = replayed["loss_of_ranks"]
    if len(ranks) > 1:
        lines.append("loss of the ranks: " + ", ".join(map(repr, ranks)))
    gradients, weights = (replayed[f"{kind}_norm_of_layers"] or {} for kind in ("grad", "weight"))
    if weights:
        width = max(map(len, weights))
        lines.append(f"{'layer':{width}}  gradient norm  weight norm")
        lines += [f"{name:{width}}  {gradients.get(name, 0.0):13.6g}  {norm:11.6g}" for name, norm in weights.items()]
    for sample in replayed["samples"]:
        passages = (f"{item['shard']}/{item['document']} [{item['start']}:{item['stop']}]" for item in sample["documents"])
        # As JSON, nothing in the text can steer the terminal.
        text = json.dumps(sample["text"][:_SHOWN_CHARACTERS], ensure_ascii=False)
        lines.append(f"sample {sample['sample']} (rank {sample['rank']}; {', '.join(passages)}): {text}")
    return "\n".join(lines)


def _compared(replayed: dict[str, Any]) -> list[str]:
    recorded, processes = replayed["recorded"], replayed["processes"]
    if recorded is None:
        return [f"{LEDGER} of the run has no entry of this step to compare with"]
    if replayed["data_chain"] != recorded["data_chain"]:
        return [f"{LEDGER} of the run tells of other data up to this step"]
    lines = []
    # A loss in the ledger may be the mean over several steps; the gradient norm is that of its step.
    if repr(replayed["grad_norm"]) == repr(recorded["grad_norm"]):
        lines.append(f"{LEDGER} of the run tells of the same data and the same gradient norm, to the bit")
    else:
        lines.append(f"{LEDGER} of the run tells of the same data, and of gradient norm {recorded['grad_norm']!r}")
    if processes["run"] != processes["replay"]:
        lines.append(
            f"the run had {processes['run']} processes, this replay {processes['replay']}: dropout draws other numbers; "
            f"give --accelerate_config as the run had it"
        )
    return lines
