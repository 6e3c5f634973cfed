"""The engine: `transformers.Trainer`, subclassed once.

What is ours: the data order (`order.py`), checkpoints that are complete or absent, a validation loss that weighs every token
the same, and the metrics ledger (`ledger.py`).
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from llmkit.errors import ConfigError
from llmkit.pipeline.artefact import LEDGER, sync
from llmkit.training.hardware import on_cpu, precision, use_cpu_well
from llmkit.training.ledger import Ledger
from llmkit.training.order import OrderedSamples, PermutedSampler
from llmkit.training.progress import Progress

if TYPE_CHECKING:
    from llmkit.pipeline.stage import Workspace
    from llmkit.training.arguments import TrainingConfig

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_WRITING = ".writing"


def training_arguments(config: TrainingConfig, directory: Path, **ours: Any) -> TrainingArguments:
    """transformers' arguments from our settings.

    Args:
        ours: arguments that the stage decides, over everything else.

    Raises:
        ConfigError: transformers refuses them.
    """
    shared = (
        "learning_rate",
        "num_train_epochs",
        "max_steps",
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "lr_scheduler_type",
        "warmup_steps",
        "weight_decay",
        "adam_beta2",
        "max_grad_norm",
        "seed",
        "logging_steps",
        "save_total_limit",
    )
    values: dict[str, Any] = {name: getattr(config, name) for name in shared}
    values.update(
        output_dir=str(directory),
        report_to="none",
        disable_tqdm=True,
        save_strategy="steps",
        use_cpu=on_cpu(config),
        dataloader_pin_memory=not on_cpu(config),
        remove_unused_columns=False,
        **precision(config, os.environ.get("ACCELERATE_MIXED_PRECISION")),
    )
    values.update({key: value for key, value in config.training_arguments.items() if value is not None})
    values.update(ours)
    if on_cpu(config):
        use_cpu_well(config.cpu_threads)
    try:
        return TrainingArguments(**values)
    except (ValueError, TypeError, ImportError) as failure:
        raise ConfigError([f"transformers refuses the training settings: {failure}"]) from failure


def samples_per_step(arguments: TrainingArguments) -> int:
    """Samples of one optimizer step, on all processes."""
    return arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size


class LLMKitTrainer(Trainer):
    """The Trainer of every training stage."""

    def __init__(
        self,
        *,
        workspace: Workspace,
        items_per_sample: int = 1,
        items: str = "samples",
        targets_per_sample: float | None = None,
        **arguments: Any,
    ):
        """As `Trainer`.

        Args:
            workspace: where the metrics ledger goes, and who is told of progress.
            items_per_sample, items: what the rate counts, and how many of them a sample has.
            targets_per_sample: mean number of learned tokens in a validation sample; gives a validation loss in which each
                token weighs the same, where samples are filled up differently.
        """
        self._use_cache = getattr(arguments["model"].config, "use_cache", None)
        super().__init__(**arguments)
        self.targets_per_sample = targets_per_sample
        self.remove_callback(PrinterCallback)
        self.add_callback(Ledger(workspace.directory / LEDGER))
        self.add_callback(Progress(workspace.say, samples_per_step(self.args) * items_per_sample, items))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the epoch counted in passes over the samples, where for Trainer the whole run is one."""
        if isinstance(self.train_dataset, OrderedSamples):
            self.state.epoch = self.state.global_step * samples_per_step(self.args) / self.train_dataset.n
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        if isinstance(dataset, OrderedSamples):
            return SequentialSampler(dataset)
        if self.args.train_sampling_strategy != "random":
            return super()._get_train_sampler(dataset)
        return PermutedSampler(len(dataset), self.args.seed)  # type: ignore[arg-type]

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
        """The loss; in evaluation of a language model scaled so that the mean over samples is the mean over tokens."""
        if model.training or self.targets_per_sample is None:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        targets = (inputs["labels"][:, 1:] != -100).sum()
        loss = torch.where(targets > 0, loss, 0.0)  # the mean over no targets is not a number
        loss = loss * targets / (len(inputs["labels"]) * self.targets_per_sample)
        return (loss, outputs) if return_outputs else loss

    def final_evaluation(self) -> dict[str, float]:
        """The validation metrics of the model as it is after training: those logged at its step, where it was evaluated."""
        best = self.state.best_global_step if self.args.load_best_model_at_end else None
        for entry in reversed(self.state.log_history):
            if "eval_loss" in entry and entry["step"] == (best or self.state.global_step):
                return entry
        return self.evaluate()

    def _run_epoch(self, **arguments: Any) -> None:
        """An epoch; none where a run is resumed that was killed after its last step, for which Trainer would make one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(**arguments)

    # Checkpoints. Trainer writes into the place where a checkpoint will be found, so a kill leaves a torn one that the next
    # run picks up and crashes on. Here it writes aside, and a checkpoint appears by one rename when all of it is on disk.

    def _get_output_dir(self, trial: Any) -> str:
        directory = super()._get_output_dir(trial)
        return os.path.join(directory, _WRITING) if self._is_writing else directory

    _is_writing = False

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the config as it was given: Trainer turns the cache off while it trains, and those who generate want it on."""
        config = self.accelerator.unwrap_model(self.model).config
        if self._use_cache is None:
            super()._save(output_dir, state_dict)
            return
        while_training, config.use_cache = config.use_cache, self._use_cache
        try:
            super()._save(output_dir, state_dict)
        finally:
            config.use_cache = while_training

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        place = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            shutil.rmtree(place / _WRITING, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._is_writing = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._is_writing = False
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(place / f"checkpoint-{self.state.best_global_step}")
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            written = place / _WRITING / name
            self.state.save_to_json(str(written / "trainer_state.json"))
            for path in written.rglob("*"):
                sync(path)
            shutil.rmtree(place / name, ignore_errors=True)
            os.replace(written, place / name)
            sync(place)
            rotate_checkpoints(
                output_dir=str(place),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=False,
            )
        self.accelerator.wait_for_everyone()


def last_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint of an earlier attempt, or None."""
    found = [
        (int(match.group(1)), path) for path in directory.glob("checkpoint-*") if (match := _CHECKPOINT.fullmatch(path.name))
    ]
    return max(found)[1] if found else None


def describe_run(trainer: LLMKitTrainer) -> dict[str, Any]:
    """How a run was laid out: steps, last training loss, processes, device, precision, batch arithmetic."""
    args, state = trainer.args, trainer.state
    precision_name = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
    processes = args.world_size
    layout = trainer.accelerator.distributed_type
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    return {
        "steps": state.global_step,
        "train_loss": losses[-1] if losses else None,
        "processes": processes,
        "device": str(args.device.type),
        "layout": layout.value if isinstance(layout, DistributedType) else str(layout),
        "precision": precision_name,
        "samples_per_step": samples_per_step(args),
        "threads": torch.get_num_threads(),
    }
