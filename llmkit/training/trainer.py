"""The engine: `transformers.Trainer`, subclassed once.

What is ours: the data order (`order.py`), checkpoints that are complete or absent (`checkpoints.py`), a resume that costs the
same at any step, an orderly stop (`stopping.py`), updates that are skipped where a gradient is no number (`instability.py`)
with a record of what made them (`dumps.py`), schedules of the learning rate (`schedules.py`), Muon (`optimizers.py`), the
z-loss (`z_loss.py`), a validation loss in which every token weighs the same, and the metrics ledger (`ledger.py`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType, broadcast_object_list
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_callback import ExportableState

from llmkit.errors import ArtefactError, ConfigError, StageStopped
from llmkit.pipeline.artefact import LEDGER
from llmkit.pipeline.stage import data_ranks
from llmkit.training import checkpoints, dumps, named_state, optimizers, shards, universal
from llmkit.training.cpu_ranks import needs_a_device
from llmkit.training.hardware import on_cpu, precision
from llmkit.training.instability import Step, UpdateGuard
from llmkit.training.learning_rates import multiply_learning_rates
from llmkit.training.ledger import Ledger
from llmkit.training.optimizers import MUON, muon, undecayed_names
from llmkit.training.order import DIGEST, Digesting, OrderedSamples, chained
from llmkit.training.progress import TIMES, Progress
from llmkit.training.schedules import OURS, Schedule
from llmkit.training.stopping import GracefulStop
from llmkit.training.throughput import Throughput, measured_peak, peak_memory
from llmkit.training.z_loss import ZLoss

if TYPE_CHECKING:
    from llmkit.pipeline.stage import Workspace
    from llmkit.training.arguments import TrainingConfig
    from llmkit.training.distillation import Distillation
    from llmkit.training.lora import Adapter


NVME = "nvme-offload"
"""Where DeepSpeed's offload to a disk goes, in the directory of a run, if no place is named."""

_GUARD, _LOSS = "UpdateGuard", "LossSinceLog"
"""The names of the states of guard and running loss in `trainer_state.json`, where those of stateful callbacks lie as well."""


def training_arguments(config: TrainingConfig, directory: Path, **ours: Any) -> TrainingArguments:
    """transformers' arguments from our settings.

    Args:
        ours: arguments that the stage decides, over everything else.

    Raises:
        ConfigError: transformers refuses them, or a step's samples cannot be shared by the processes.
    """
    shared = (
        "learning_rate",
        "num_train_epochs",
        "max_steps",
        "per_device_eval_batch_size",
        "weight_decay",
        "adam_beta2",
        "max_grad_norm",
        "seed",
        "logging_steps",
    )
    at_once, accumulated = config.batch_layout(data_ranks())
    values: dict[str, Any] = {name: getattr(config, name) for name in shared}
    if config.lr_scheduler_type not in OURS:  # those are not transformers' to compute
        values.update(lr_scheduler_type=config.lr_scheduler_type, warmup_steps=config.warmup_steps)
    values.update(
        output_dir=str(directory),
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=accumulated,
        report_to="none",
        disable_tqdm=True,
        save_strategy="steps",
        logging_nan_inf_filter=False,
        use_cpu=on_cpu(config) and not needs_a_device(),
        dataloader_pin_memory=not on_cpu(config),
        remove_unused_columns=False,
        **precision(config, os.environ.get("ACCELERATE_MIXED_PRECISION")),
    )
    if config.optim != MUON:
        values["optim"] = config.optim
    values.update({key: value for key, value in config.training_arguments.items() if value is not None})
    values.update(ours)
    try:
        arguments = TrainingArguments(**values)
    except (ValueError, TypeError, ImportError) as failure:
        raise ConfigError([f"transformers refuses the training settings: {failure}"]) from failure
    if config.optim == MUON:
        arguments.optim = MUON
    return arguments


def samples_per_step(arguments: TrainingArguments) -> int:
    """Samples of one optimizer step, on all processes."""
    return arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * data_ranks()


class LLMKitTrainer(Trainer):
    """The Trainer of every training stage."""

    def __init__(
        self,
        *,
        workspace: Workspace,
        data: str,
        keep: int,
        permanent_steps: int | None = None,
        write_card: Callable[[Path, TrainerState], None] | None = None,
        items_per_sample: int = 1,
        items: str = "samples",
        flops_per_item: float | None = None,
        targets_per_sample: float | None = None,
        guard: UpdateGuard,
        schedule: Callable[[int], Schedule | None] = lambda steps: None,
        z_loss: float = 0.0,
        lr_multipliers: Mapping[str, float] | None = None,
        further_metrics: Callable[[LLMKitTrainer], dict[str, float]] | None = None,
        adapter: Adapter | None = None,
        distillation: Distillation | None = None,
        **arguments: Any,
    ):
        """As `Trainer`.

        Args:
            workspace: where the metrics ledger goes, and who is told of progress.
            data: fingerprint of the training data; a checkpoint of other data is refused.
            keep: checkpoints that are kept for a resume.
            permanent_steps: steps between checkpoints that are kept for good.
            write_card: writes the model card of a checkpoint into its directory.
            items_per_sample, items: what the rate counts, and how many of them a sample has.
            flops_per_item: floating point operations to learn one of them.
            targets_per_sample: mean number of learned tokens in a validation sample; gives a validation loss in which each
                token weighs the same, where samples are filled up differently.
            guard: decides which updates are not made.
            schedule: gives the learning rate's schedule for a number of steps; None where transformers computes it.
            z_loss: weight of the z-loss that is added to the training loss of a language model.
            lr_multipliers: what the learning rate of each parameter is multiplied with, by its name; None: with nothing.
            further_metrics: what an evaluation measures beside its losses, called on every rank; see `written.py`.
            adapter: low-rank updates of the model, which alone are trained; what is saved has them added to its weights.
            distillation: asks a teacher in training; its `loss` is the `compute_loss_func`.
        """
        self._lr_multipliers, self._further_metrics = lr_multipliers, further_metrics
        self.adapter, self.distillation = adapter, distillation
        self._use_cache = getattr(arguments["model"].config, "use_cache", None)
        # transformers cannot write the optimizer of a model that it has divided itself, and refuses to begin; `shards` can.
        save_only_model = arguments["args"].save_only_model
        arguments["args"].save_only_model |= getattr(arguments["model"], "is_distributed_loading_by_transformers", False)
        try:
            super().__init__(**arguments)
        except (ImportError, RuntimeError, ValueError) as failure:
            if not any(words in str(failure) for words in ("Callback requires", "is not supported, only")):
                raise
            raise ConfigError([f"report_to: {failure}"]) from failure  # a tracker that is not installed, or that nobody knows
        self.args.save_only_model = save_only_model
        if self.is_deepspeed_enabled:
            self._mend_offload(self.accelerator.state.deepspeed_plugin.deepspeed_config)
        if self.args.optim == MUON and (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            raise ConfigError(
                [
                    "optim: muon needs whole matrices on every process, and DeepSpeed and FSDP partition them; "
                    "take another layout, such as ddp, or another optimizer"
                ]
            )
        self._undecayed = undecayed_names(self.model)
        self.optimizer_shares: dict[str, dict[str, int]] = {}
        """What each optimizer owns; see `optimizers.shares`."""
        self.data_fingerprint, self.keep, self.permanent_steps, self.write_card = data, keep, permanent_steps, write_card
        self.targets_per_sample, self.items_per_sample = targets_per_sample, items_per_sample
        self.schedule = schedule
        self.z_loss = ZLoss(z_loss, self.args.gradient_accumulation_steps, data_ranks()) if z_loss else None
        self.workspace = workspace
        self.data_chain = ""
        """Digest of all the data learned so far, in its order; see `order.Digesting`."""
        self._digests: list[torch.Tensor] = []
        self._rates: dict[str, float] = {}
        self._learning_rates: list[float] = []
        self._resumed_from: str | None = None
        self._universal: Path | None = None
        self._random_state_in: str | None = None
        self._loss_in: dict[str, Any] | None = None
        self._is_writing = False
        self._is_ordered = isinstance(self.train_dataset, OrderedSamples)
        self.guard = guard
        self._step_loss: torch.Tensor | None = None  # of this rank, over the batches of a step so far
        self._named: list[tuple[str, torch.nn.Parameter]] = []
        self._with_gradient: list[str] = []
        self._parameter_norms: torch.Tensor | None = None
        self.stop = GracefulStop()
        if guard.skip_spikes and self.is_deepspeed_enabled:
            raise ConfigError(["skip_spikes: DeepSpeed makes its step before anybody sees the gradient; use another layout"])
        self.remove_callback(PrinterCallback)
        peak = self._measured_peak() if flops_per_item is not None else None
        self.throughput = Throughput(samples_per_step(self.args) * items_per_sample, items, flops_per_item, peak)
        self.add_callback(self.stop)
        self.add_callback(self.throughput)
        self.callback_handler.callbacks.insert(0, Ledger(workspace.directory / LEDGER, self._ledger_facts))
        self.add_callback(Progress(workspace.say, self.throughput))

    def _mend_offload(self, settings: dict[str, Any]) -> None:
        if self.args.device.type == "cpu":
            # DeepSpeed's own optimizer for offloaded state is compiled at its first use; here there is nothing to be won.
            settings["zero_force_ds_cpu_optimizer"] = False
        for part in ("offload_optimizer", "offload_param"):
            offload = settings["zero_optimization"].get(part) or {}
            if offload.get("device") == "nvme" and offload.get("nvme_path") in (None, "none"):
                # `accelerate launch` reads the path in its config and does not pass it on.
                offload["nvme_path"] = os.path.join(self.args.output_dir, NVME)

    def _measured_peak(self) -> float:
        dtype = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else torch.float32
        return measured_peak(self.args.device, dtype) * self.args.world_size

    # A run: start or go on, and end in order.

    def run(self, resume: str) -> Any:
        """Train to the end.

        Args:
            resume: where to go on, see the setting `resume`.

        Returns:
            The TrainOutput of transformers.

        Raises:
            ArtefactError: the checkpoint asked for is not whole, or of other data.
            StageStopped: SIGTERM or SIGINT ended it after a checkpoint.
            Diverged: too many updates in a row had to be skipped.
        """
        directory = Path(self.args.output_dir)
        found: list[Any] = [None]
        if self.is_world_process_zero():
            checkpoint = checkpoints.to_resume(directory, resume, self.data_fingerprint, self.workspace.say)
            step = checkpoints.step_of(checkpoint) if checkpoint else -1
            checkpoints.discard_after(directory, step)
            dumps.discard_after(directory, step)
            found = [str(checkpoint) if checkpoint else None]
        self._resumed_from = self._random_state_in = broadcast_object_list(found)[0]
        if self._resumed_from:
            self.data_chain = checkpoints.CheckpointRecord.load(Path(self._resumed_from)).data_chain
            self.state = TrainerState.load_from_json(os.path.join(self._resumed_from, "trainer_state.json"))
            if _GUARD in self.state.stateful_callbacks:
                self.guard.restore(self.state.stateful_callbacks[_GUARD]["attributes"])
                self._loss_in = self.state.stateful_callbacks[_LOSS]["attributes"]
            for callback in self.callback_handler.callbacks:  # the patience that is left, say
                if isinstance(callback, ExportableState) and (kept := self._kept_state(callback)):
                    vars(callback).update(kept)
            # A checkpoint is written before the evaluation of its step, which the killed run may not have come to.
            at_this_step = self.args.eval_strategy == "steps" and self.state.global_step % self.args.eval_steps == 0
            self.args.eval_on_start = at_this_step and self._evaluated_at(self.state.global_step) is None
        place = str(self._as_this_layout_reads_it(Path(self._resumed_from))) if self._resumed_from else None
        try:
            outcome = self.train(resume_from_checkpoint=place)
            self._dump_noted()
        finally:
            if self._universal is not None and self.is_world_process_zero():
                shutil.rmtree(self._universal, ignore_errors=True)
            self.stop.restore()
        if self.stop.signal is not None and self.state.global_step < self.state.max_steps:
            raise StageStopped(
                self.stop.signal,
                f"stopped after step {self.state.global_step:,} of {self.state.max_steps:,}, which is saved; "
                f"the same command goes on there",
            )
        return outcome

    def _kept_state(self, callback: TrainerCallback) -> dict[str, Any]:
        return self.state.stateful_callbacks.get(type(callback).__name__, {}).get("attributes", {})

    def _has_lost_patience(self) -> bool:
        """Whether early stopping has ended the run; one that is killed then is resumed from the checkpoint of that step."""
        callbacks = (item for item in self.callback_handler.callbacks if isinstance(item, EarlyStoppingCallback))
        return any(item.early_stopping_patience_counter >= item.early_stopping_patience for item in callbacks)

    def _run_epoch(self, **arguments: Any) -> None:
        """An epoch; none where a run is resumed that was killed after its last step, for which Trainer would make one more.

        Trainer would read the samples before the checkpoint and drop them. Ours have an order that is known at any position,
        so the pass begins where the checkpoint was, and costs there what it costs at the start.
        """
        step, last = self.state.global_step, self.state.max_steps
        if step >= last or self._has_lost_patience():
            self.control.should_training_stop = True
            return
        self._restore_loss()
        if self._is_ordered:
            self.train_dataset.resume_at(step)
            arguments["num_update_steps_per_epoch"] = last - step
            arguments["steps_in_epoch"] = (last - step) * self.args.gradient_accumulation_steps
            arguments["steps_trained_in_current_epoch"] = 0
        super()._run_epoch(**arguments)

    def _loss_since_log(self) -> dict[str, Any]:
        """The losses summed up since the last log, of each rank: the next log is their mean, also after a resume."""
        z_loss = self.z_loss.since_log if self.z_loss is not None else 0.0
        sums = torch.stack([self._tr_loss, torch.as_tensor(z_loss, device=self._tr_loss.device)])
        return {"logged_at": self._globalstep_last_logged, "of_ranks": self.accelerator.gather(sums[None]).tolist()}

    def _restore_loss(self) -> None:
        if self._loss_in is None:
            return
        of_ranks, ranks = torch.tensor(self._loss_in["of_ranks"], device=self.args.device), self.args.world_size
        loss, z_loss = of_ranks[self.args.process_index] if len(of_ranks) == ranks else of_ranks.mean(dim=0)
        self._tr_loss, self._globalstep_last_logged = loss.clone(), self._loss_in["logged_at"]
        if self.z_loss is not None:
            self.z_loss.go_on(z_loss.clone(), self.state.global_step - self._globalstep_last_logged)
        self._loss_in = None

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The batches of a step, and the number of tokens in them that are learned, on all ranks."""
        with self.throughput.waiting():
            batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._is_ordered:
            digest = torch.stack([batch.pop(DIGEST).sum() for batch in batches]).sum()
            # Of the ranks that compute the same samples together, which are neighbours, the first counts them.
            together = self.args.world_size // data_ranks()
            self._digests.append(digest if self.args.process_index % together == 0 else torch.zeros_like(digest))
            if self._random_state_in:  # starting a data loader draws a random number, which the first run had drawn before
                self._load_rng_state(self._random_state_in)
                self._random_state_in = None
        return batches, items

    # Updates that are not made, and what they would have been made of.

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """The loss of a batch, which is also kept for the step as a whole."""
        loss = super().training_step(*arguments, **options)
        self._step_loss = loss if self._step_loss is None else self._step_loss + loss
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = self._clip_and_measure(model, self.args.max_grad_norm)
        return norm if norm is not None else super()._clip_grad_norm(model)

    def _clip_and_measure(self, model: Any, max_norm: float) -> torch.Tensor | None:
        """Clip as `torch.nn.utils.clip_grad_norm_` does, and keep the norms of the single gradients that it computes anyway.

        Clipping makes all gradients NaN where one is, so that afterwards nobody can tell where it arose.

        Returns:
            The norm of all before clipping; None where DeepSpeed has them, and nothing was done.
        """
        self._parameter_norms = None
        if self.is_deepspeed_enabled:
            return None
        if not self._named:  # to look them up takes as long as a small model's update
            self._named = list(self.accelerator.unwrap_model(model).named_parameters())
        named = [(name, parameter) for name, parameter in self._named if parameter.grad is not None]
        if not named:
            return None
        self.accelerator.unscale_gradients()
        gradients = [parameter.grad for _, parameter in named if parameter.grad is not None]
        if not all(type(gradient) is torch.Tensor for gradient in gradients):  # shards of tensors
            return shards.clip_shards([parameter for _, parameter in named], max_norm)
        norms = torch.stack(torch._foreach_norm(gradients))
        norm = torch.linalg.vector_norm(norms)
        torch.nn.utils.clip_grads_with_norm_([parameter for _, parameter in named], max_norm, norm)
        self._with_gradient, self._parameter_norms = [name for name, _ in named], norms
        return norm

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is None:
            grad_norm = self._clip_and_measure(model, float("inf"))
        norm = super()._get_grad_norm(model, grad_norm)
        assert self._step_loss is not None
        losses = self.accelerator.gather(self._step_loss.reshape(1))
        on_device = torch.as_tensor(norm, device=losses.device).reshape(())
        step = Step(self.state.global_step + 1, losses, on_device, self._parameter_norms, self._with_gradient)
        self._step_loss = None
        self.guard.check(step, self.optimizer, self.accelerator)
        if self.guard.looks_now(step):
            self._dump_noted()
        return norm

    def _dump_noted(self) -> None:
        noted = self.guard.noted()
        if noted and self.is_world_process_zero():
            with self.throughput.apart():
                for step in noted:
                    self._dump(step)

    def _dump(self, step: Step) -> None:
        samples = []
        if self._is_ordered:
            at_once, ranks = self.args.per_device_train_batch_size, data_ranks()
            samples = dumps.describe_samples(self.train_dataset, step.number, at_once, ranks, self.processing_class)
        weights = None if self._is_partitioned() else dict(self.accelerator.unwrap_model(self.model).named_parameters())
        place = dumps.write(Path(self.args.output_dir), dumps.describe(step, weights, self.state.global_step, samples))
        done = "its update is skipped" if step.was_skipped else "its update is made"
        self.workspace.say(f"step {step.number}: {step.reason}, {done}; see {place}")

    def _is_partitioned(self) -> bool:
        """Whether no process has whole weights and gradients."""
        return self.is_deepspeed_enabled or self._is_in_shards()

    def _is_in_shards(self) -> bool:
        """Whether weights, gradients and optimizer state are DTensors, or will be when training begins."""
        return self.is_fsdp_enabled or self.is_distributed_loading_by_transformers

    def _maybe_log_save_evaluate(self, *arguments: Any, **options: Any) -> None:
        """Log, save, and only then evaluate: nothing is lost where that fails. (To save the best, it has to come first.)"""
        if self.control.should_log or self.control.should_save:
            self._chain_digests()
            self._dump_noted()
        if self.control.should_log:
            self.guard.stop_if_stuck(self.state.global_step)
        if self.args.load_best_model_at_end:
            super()._maybe_log_save_evaluate(*arguments, **options)
            return
        evaluating, self.control.should_evaluate = self.control.should_evaluate, False
        super()._maybe_log_save_evaluate(*arguments, **options)
        if evaluating:
            self.control.should_evaluate = True
            super()._maybe_log_save_evaluate(*arguments, **options)

    def _chain_digests(self) -> None:
        """Take the digests of the steps since the last time into the chain, those of all ranks together."""
        if self._digests:
            steps = self.accelerator.reduce(torch.stack(self._digests), reduction="sum")
            for digest in steps.tolist():
                self.data_chain = chained(self.data_chain, digest)
            self._digests = []

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the epoch counted in passes over the samples, where for Trainer the whole run is one."""
        self._count_epochs()
        if "loss" in logs:
            self._rates = self.throughput.measure(self.state.global_step)
            if self.z_loss is not None:
                logs["z_loss"] = self.z_loss.since_last(self.accelerator)
                logs["loss"] -= logs["z_loss"]  # the cross-entropy, as validation has it
        super().log(logs, start_time)
        if "loss" in logs:
            self.guard.logged()

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        """Operations of a batch. Trainer counts the parameters of the model for it, anew for each batch."""
        if self.throughput.flops_per_item is None or "input_ids" not in inputs:
            return super().floating_point_ops(inputs)
        return len(inputs["input_ids"]) * self.items_per_sample * self.throughput.flops_per_item

    def _count_epochs(self) -> None:
        if self._is_ordered:
            self.state.epoch = self.state.global_step * samples_per_step(self.args) / self.train_dataset.n

    def _ledger_facts(self) -> dict[str, Any]:
        """What the ledger says beside the losses."""
        facts: dict[str, Any] = {
            self.throughput.items: self.state.global_step * self.throughput.items_per_step,
            **self._rates,
            "peak_memory_bytes": peak_memory(self.args.device),
            **self.guard.facts(),
        }
        if len(set(self._learning_rates)) > 1:
            facts["learning_rates"] = self._learning_rates
        return {**facts, "data_chain": self.data_chain} if self.data_chain else facts

    # The optimizer and its learning rate.

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimizer, by `optimizers.py` or by transformers; what owns which parameters is said."""
        if self.optimizer is None:  # type: ignore[has-type]
            trained = self.model if model is None else model
            if self.args.optim == MUON:
                self.optimizer = muon(trained, self.get_decay_parameter_names(trained), self.args)
            try:
                self.optimizer = super().create_optimizer(model)
            except (ImportError, ValueError) as failure:  # of a library that it needs
                raise ConfigError([f"optim: transformers gives no {self.args.optim}: {failure}"]) from failure
            if self._lr_multipliers is not None:
                multiply_learning_rates(self.optimizer, trained, self._lr_multipliers)
            self.optimizer_shares = self._optimizer_shares(trained)
            self.workspace.say(
                "; ".join(
                    f"{name}: {count['tensors']:,} tensors, {count['parameters']:,} parameters"
                    for name, count in self.optimizer_shares.items()
                )
            )
        return self.optimizer

    def _optimizer_shares(self, model: Any) -> dict[str, dict[str, int]]:
        return optimizers.shares(model, self.optimizer)

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """The parameters with weight decay: matrices and embeddings, and no vector of any name."""
        return [name for name in super().get_decay_parameter_names(model) if name not in self._undecayed]

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The learning rate over the run, by `schedules.py` or by transformers."""
        if self.lr_scheduler is None and (schedule := self.schedule(num_training_steps)) is not None:  # type: ignore[has-type]
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, schedule.factor)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def _get_learning_rate(self) -> float:
        """The learning rate of the step just made, before the schedule moves on; the ledger gets that of every group."""
        self._learning_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        return super()._get_learning_rate()

    # Samples and losses.

    def get_train_dataloader(self) -> DataLoader:
        """The samples of training; those of a whole run in their order come with digests."""
        collate: Any = self.data_collator  # type: ignore[has-type]
        if self._is_ordered:
            self.data_collator = Digesting(collate)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collate

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        return SequentialSampler(dataset) if isinstance(dataset, OrderedSamples) else super()._get_train_sampler(dataset)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
        """The loss; in evaluation of a language model scaled so that the mean over samples is the mean over tokens."""
        labels: Any = inputs.get("labels")  # which Trainer takes out where the loss is a function of ours
        if model.training:
            if self.distillation is not None:
                self.distillation.ask(inputs)
            if self.z_loss is None:
                return super().compute_loss(model, inputs, return_outputs, **kwargs)
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
            loss = self.z_loss.added_to(loss, outputs.logits, labels, kwargs.get("num_items_in_batch"))
            return (loss, outputs) if return_outputs else loss
        smoother, self.label_smoother = self.label_smoother, None  # type: ignore[has-type]
        # smoothing is for learning; it would hide what was learned
        try:
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        finally:
            self.label_smoother = smoother
        if self.targets_per_sample is not None:
            if "shift_labels" in inputs:  # of a part of each sample, along its length
                targets = (inputs["shift_labels"] != -100).sum() * self.get_cp_size()
            else:
                targets = ((labels if self.model.config.is_encoder_decoder else labels[:, 1:]) != -100).sum()
            loss = torch.where(targets > 0, loss, 0.0)  # the mean over no targets is not a number
            loss = loss * targets / (len(labels) * self.targets_per_sample)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Evaluate, and leave the random numbers of training as they are: how often one looks does not change the result."""
        with (
            self.throughput.apart(),
            torch.random.fork_rng(devices=[] if self.args.device.type == "cpu" else [self.args.device]),
        ):
            return super().evaluate(*arguments, **options)

    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        """As Trainer's, and what else is measured."""
        outcome = super().evaluation_loop(*arguments, **options)
        if self._further_metrics is not None and options.get("metric_key_prefix") == "eval":
            outcome.metrics.update({f"eval_{name}": value for name, value in self._further_metrics(self).items()})
        return outcome

    def final_evaluation(self) -> dict[str, float]:
        """The validation metrics of the model as it is after training: those logged at its step, where it was evaluated."""
        best = self.state.best_global_step if self.args.load_best_model_at_end else None
        return self._evaluated_at(best or self.state.global_step) or self.evaluate()

    def _evaluated_at(self, step: int) -> dict[str, float] | None:
        entries = (entry for entry in reversed(self.state.log_history) if "eval_loss" in entry and entry["step"] == step)
        return next(entries, None)

    # Checkpoints. Trainer writes into the place where a checkpoint will be found, so a kill leaves a torn one that the next
    # run picks up and crashes on. Here it writes aside, and a checkpoint appears by one rename when all of it is on disk.

    def _get_output_dir(self, trial: Any) -> str:
        directory = super()._get_output_dir(trial)
        return os.path.join(directory, checkpoints.WRITING) if self._is_writing else directory

    @contextmanager
    def _config_as_given(self) -> Iterator[None]:
        """The config with its cache as it was given: Trainer turns it off to train, and those who generate want it on."""
        config = self.accelerator.unwrap_model(self.model).config
        while_training = getattr(config, "use_cache", None)
        if self._use_cache is not None:
            config.use_cache = self._use_cache
        try:
            yield
        finally:
            if self._use_cache is not None:
                config.use_cache = while_training

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.adapter is not None and self.args.should_save:
            state_dict = self.adapter.state_dict()
        with self._config_as_given():
            super()._save(output_dir, state_dict)
        if self.adapter is not None and self.args.should_save:
            self.adapter.save(Path(output_dir or self.args.output_dir))
        # A pickle of transformers, which nothing of ours reads: llmkit.yaml says the same and can be read by a person.
        Path(output_dir or self.args.output_dir, "training_args.bin").unlink(missing_ok=True)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.throughput.apart():
            self._write_checkpoint(model, trial)

    def _other_names(self) -> dict[str, str]:
        """What a tied parameter is called where another part of the model is."""
        return {}

    def _write_checkpoint(self, model: Any, trial: Any) -> None:
        directory = Path(super()._get_output_dir(trial))
        step = self.state.global_step
        name = f"checkpoint-{step}"
        permanent = self.permanent_steps is not None and step % self.permanent_steps == 0
        self._count_epochs()
        if self.is_world_process_zero():
            shutil.rmtree(directory / checkpoints.WRITING, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        for key, state in ((_GUARD, self.guard.state()), (_LOSS, self._loss_since_log())):
            self.state.stateful_callbacks[key] = {"args": {}, "attributes": state}
        self._is_writing = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._is_writing = False
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(directory / f"checkpoint-{self.state.best_global_step}")
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            written = directory / checkpoints.WRITING / name
            history = [{name: entry[name] for name in entry if name not in TIMES} for entry in self.state.log_history]
            # Without times, equal runs have equal checkpoints.
            replace(self.state, log_history=history).save_to_json(str(written / "trainer_state.json"))
            if self.write_card is not None:
                self.write_card(written, self.state)
            record = checkpoints.CheckpointRecord(
                step,
                self.data_fingerprint,
                self.data_chain,
                samples_per_step(self.args),
                self.args.world_size,
                self._kept_as(),
            )
            place = directory / checkpoints.PERMANENT / name if permanent else directory / name
            checkpoints.commit(written, place, record, self._check_written)
            checkpoints.rotate(directory, self.keep, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()

    @property
    def has_partitioned_weights(self) -> bool:
        """Whether no process has the whole weights."""
        return is_deepspeed_zero3_enabled() or self._is_in_shards()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._is_in_shards():
            super()._save_optimizer_and_scheduler(output_dir)
            return
        shards.save_state(self._bare_model(), self._bare_optimizer(), Path(output_dir, checkpoints.SHARDS))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _kept_as(self) -> str:
        if self.is_deepspeed_enabled:
            return f"zero{self.accelerator.state.deepspeed_plugin.zero_stage}"
        return "shards" if self._is_in_shards() else "whole"

    def _as_this_layout_reads_it(self, checkpoint: Path) -> Path:
        """The checkpoint, or another form of it where this layout cannot read what another one wrote.

        Raises:
            ArtefactError: this layout cannot read it in any form.
        """
        record, ours = checkpoints.CheckpointRecord.load(checkpoint), self._kept_as()
        theirs = record.kept_as
        if theirs in ("", ours) and (record.processes == self.args.world_size or not self.is_deepspeed_enabled):
            return checkpoint
        by_both = {theirs, ours} <= {"zero1", "zero2"} or theirs == ours
        if ours == "stages" or (self.is_deepspeed_enabled and not by_both):
            raise ArtefactError(
                f"{checkpoint} was written under a layout whose optimizer state ({theirs}) this one ({ours}) cannot read; go "
                f"on under that layout, or train on from its weights with a new optimizer: --resume never "
                f"--model_name_or_path {checkpoint}"
            )
        if not theirs.startswith("zero"):
            return checkpoint
        self._universal = universal.beside(checkpoint, Path(self.args.output_dir))
        if self.is_world_process_zero():
            universal.make_universal(checkpoint, self._universal)
        self.accelerator.wait_for_everyone()
        if self.is_deepspeed_enabled:
            self.accelerator.state.deepspeed_plugin.deepspeed_config["checkpoint"] = {"load_universal": True}
        return self._universal

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The weights of a checkpoint. Those of another layout come with the optimizer's state, when there is one."""
        if self.adapter is not None:
            self.adapter.load(Path(resume_from_checkpoint))
            return
        divided = Path(resume_from_checkpoint, checkpoints.SHARDS).exists() or self._universal is not None
        if not self._is_in_shards() and not divided:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        model, optimizer, place = self._bare_model(), self._bare_optimizer(), Path(checkpoint)
        if (place / checkpoints.SHARDS).exists():
            shards.load_state(model, optimizer, place / checkpoints.SHARDS)
        elif self._universal is not None:
            weights, states = universal.named_state(place)
            for state in states.values():
                state["step"] = torch.tensor(float(self.state.global_step))
            shards.load_named(model, optimizer, weights, states)
        elif of_stages := named_state.read(place):
            if self._is_in_shards():
                shards.load_named(model, optimizer, shards.whole_weights(place), of_stages)
            else:
                named_state.load(optimizer, model, of_stages, self._other_names())
        elif self._is_in_shards():
            shards.load_named(model, optimizer, *shards.whole_state(place, model, optimizer))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        self.lr_scheduler.load_state_dict(torch.load(place / SCHEDULER_NAME, weights_only=True))
        for group, rate in zip(optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    def _load_best_model(self) -> None:
        if self.adapter is not None:
            self.adapter.load(Path(self.state.best_model_checkpoint or ""))
            return
        place = Path(self.state.best_model_checkpoint or "", checkpoints.SHARDS)
        if not place.exists():
            super()._load_best_model()
        else:
            shards.load_weights(self._bare_model(), place)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Without the tensors that no checkpoint holds: those that are another one too, and those that a model leaves out."""
        state = self._bare_model().state_dict()
        missing = set(load_result.missing_keys)
        read = {tensor.data_ptr() for name, tensor in state.items() if name not in missing}
        expected = set(getattr(self.model, "_keys_to_ignore_on_save", None) or ())
        expected |= {name for name in missing & set(state) if state[name].data_ptr() in read}
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in expected]
        super()._issue_warnings_after_load(load_result)

    def _bare_model(self) -> torch.nn.Module:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def _bare_optimizer(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _check_written(self, written: Path) -> None:
        if self.adapter is not None:
            self.adapter.check(written)
            checkpoints.check_weights(written, self.adapter)
            return
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        checkpoints.check_weights(written, None if self._is_partitioned() else model)


def describe_run(trainer: LLMKitTrainer) -> dict[str, Any]:
    """How a run was laid out: steps, last training loss, processes, device, precision, batch arithmetic."""
    args, state = trainer.args, trainer.state
    layout = trainer.accelerator.distributed_type
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    return {
        "steps": state.global_step,
        "train_loss": losses[-1] if losses else None,
        "processes": args.world_size,
        "device": str(args.device.type),
        "layout": layout.value if isinstance(layout, DistributedType) else str(layout),
        "precision": {"no": "fp32"}.get(args.mixed_precision, args.mixed_precision),
        "samples_per_step": samples_per_step(args),
        "threads": torch.get_num_threads(),
    }
