"""Pipeline parallelism: the layers of a model divided among processes, by torch.distributed.pipelining.

A step's samples of a data rank pass through the stages in micro-batches, those that Trainer would accumulate. Three schedules
order their forward and backward passes: GPipe (Huang et al. 2019) makes all forward passes first; 1F1B (Narayanan et al. 2019,
PipeDream-Flush in 2021) begins with the backward passes as soon as it can, and holds the activations of as many micro-batches
as there are stages, not of all; interleaved 1F1B (Narayanan et al. 2021, section 2.2) gives each process several parts of the
model, which shortens the wait at both ends of a step.

Processes are numbered replica by replica: with p stages, process r has stage r % p of replica r // p. Data order, ledger,
checkpoints, resume and stop are those of `LLMKitTrainer`; what is divided, and therefore done otherwise, is here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from llmkit.errors import ArtefactError, ConfigError
from llmkit.pipeline.ranks import dimension
from llmkit.training import checkpoints, named_state
from llmkit.training.pipeline_stages import Stage, cut, keep_only, layers_of_stages
from llmkit.training.trainer import LLMKitTrainer

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from llmkit.training.pretrain import PretrainConfig

_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")
_SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B, "interleaved": ScheduleInterleaved1F1B}
_ANOTHER = "leave it out, or take another layout, such as fsdp2"


def pipeline_degree() -> int:
    """Processes that the layers are divided among, as the layout of this launch says it; 1 without a pipeline."""
    return dimension("pipeline")


def pipeline_problems(config: PretrainConfig, arguments: TrainingArguments) -> Iterator[str]:
    """What the settings ask for that a pipeline does not do, each with what to do about it."""
    if config.optim not in _OPTIMIZERS:
        yield f"optim: a pipeline trains with {', '.join(_OPTIMIZERS)}, not {config.optim}"
    for name in ("document_masking", "z_loss", "loss_chunk_size"):
        if getattr(config, name):
            yield f"{name}: not in a pipeline, whose stages hand on nothing but hidden states; {_ANOTHER}"
    for name in ("torch_compile", "label_smoothing_factor", "use_liger_kernel", "neftune_noise_alpha"):
        if getattr(arguments, name):
            yield f"{name}: not in a pipeline, which has no whole model to apply it to; {_ANOTHER}"
    if arguments.fp16:
        yield "fp16: a pipeline does not scale its loss; use bf16"
    if int(os.environ.get("MEGATRON_LM_TP_DEGREE") or 1) > 1:
        yield "accelerate_config: megatron_lm_tp_degree is Megatron-LM's, which is not used; set it to 1"
    if arguments.world_size % pipeline_degree():
        yield f"num_processes: {arguments.world_size} are no multiple of the {pipeline_degree()} of a pipeline; start one"
    micro, degree = arguments.gradient_accumulation_steps, pipeline_degree()
    if config.pipeline_schedule == "interleaved" and micro % max(1, micro // degree):
        yield (
            f"pipeline_schedule: interleaved takes a multiple of {degree} micro-batches (or fewer than {2 * degree}), and a "
            f"step has {micro}; change global_batch_size, per_device_train_batch_size or gradient_accumulation_steps"
        )


def idle_share(degree: int, micro_batches: int, parts: int = 1) -> float:
    """The share of a step in which a process waits for others (Narayanan et al. 2021, sections 2.2.1 and 2.2.2).

    Args:
        degree: processes that the layers are divided among.
        parts: of the model, on each process.
    """
    return (degree - 1) / (parts * micro_batches + degree - 1)


class PipelineTrainer(LLMKitTrainer):
    """A `LLMKitTrainer` each of whose processes has some of the layers.

    `model` has the modules of this process only, under the names that they have in the whole model.
    """

    def __init__(self, *, config: PretrainConfig, **arguments: Any):
        """As `LLMKitTrainer`.

        Args:
            config: the settings of the run.

        Raises:
            ConfigError: they ask for something that a pipeline does not do, or the model cannot be cut.
        """
        model, args = arguments["model"], arguments["args"]
        problems = list(pipeline_problems(config, args))
        if problems:
            raise ConfigError(problems)
        os.environ.pop("ACCELERATE_USE_MEGATRON_LM", None)  # accelerate would now look for Megatron-LM
        self.degree = pipeline_degree()
        self.position, self.replica = args.process_index % self.degree, args.process_index // self.degree
        self.replicas = args.world_size // self.degree
        parts = config.pipeline_virtual_stages if config.pipeline_schedule == "interleaved" else 1
        self._count = self.degree * parts
        self._numbers = range(self.position, self._count, self.degree)
        stages = cut(model, self._count)
        self._whole = _Whole(model, stages, self.degree)
        self._stages = [stages[number] for number in self._numbers]
        keep_only(model, self._stages)
        del stages
        arguments["lr_multipliers"] = self._whole.under_all_names(arguments.get("lr_multipliers"))
        if arguments["eval_dataset"] is not None:
            arguments["eval_dataset"].fill_up_to_multiple(args.eval_batch_size * args.world_size)
        super().__init__(**arguments)
        self.accelerator.prepare_model = lambda model, **_: model  # it would have DDP average over all stages
        torch.manual_seed(args.seed + args.process_index)  # equal seeds would drop the same units in every stage
        mesh = init_device_mesh(args.device.type, (self.replicas, self.degree), mesh_dim_names=("replica", "stage"))
        self._across_replicas, self._along_pipeline = mesh.get_group("replica"), mesh.get_group("stage")
        for stage in self._stages:
            stage.autocast = self.accelerator.autocast
        self._micro_batches: list[dict[str, torch.Tensor]] = []
        micro_batches = args.gradient_accumulation_steps
        # With fewer micro-batches than stages, 1F1B is GPipe: no stage gets to a backward pass before its last forward pass.
        name = "gpipe" if config.pipeline_schedule == "1f1b" and micro_batches < self.degree else config.pipeline_schedule
        self._training = self._schedule(name, args.per_device_train_batch_size, micro_batches, config.block_size)
        self._evaluating = self._schedule(name, args.eval_batch_size, self.degree, config.block_size)
        self.described = {
            "schedule": config.pipeline_schedule,
            "stages": self._count,
            "layers": [len(layers) for layers in layers_of_stages(model.config.num_hidden_layers, self._count)],
            "micro_batches": micro_batches,
            "idle_share": idle_share(self.degree, micro_batches, parts),
        }
        self.workspace.say(
            f"pipeline of {self._count} stages on {self.degree} processes, {config.pipeline_schedule}, {micro_batches} "
            f"micro-batches a step: each process waits {self.described['idle_share']:.0%} of it"
        )

    def _schedule(self, name: str, batch: int, micro_batches: int, length: int) -> Any:
        ids = torch.empty(batch, length, dtype=torch.int64, device="meta")
        hidden = torch.empty(batch, length, self.model.config.hidden_size, device="meta", requires_grad=True)
        stages = [
            PipelineStage(
                stage,
                number,
                self._count,
                self.args.device,
                input_args=ids if stage.is_first else hidden,
                output_args=hidden.new_empty(()) if stage.is_last else hidden,
                group=self._along_pipeline,
            )
            for number, stage in zip(self._numbers, self._stages, strict=True)
        ]
        made = stages if name == "interleaved" else stages[0]
        return _SCHEDULES[name](made, micro_batches, loss_fn=lambda loss, _: loss, scale_grads=False)

    # A step.

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The batches of a step; Trainer counts their tokens on every process, so those of a replica many times over."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, items // self.degree

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Collect the micro-batches of a step; with the last of them, pass all through the pipeline.

        Returns:
            The loss of the step on this replica, times replicas: the mean over processes is that of the step.
        """
        self._micro_batches.append(inputs)
        if len(self._micro_batches) < self.args.gradient_accumulation_steps:
            return torch.zeros((), device=self.args.device)
        batches, self._micro_batches = self._micro_batches, []
        self._set_up_stages(True, num_items_in_batch)
        losses = self._pass_through(self._training.step, batches)
        self._reduce_gradients()
        loss = losses.sum()
        dist.all_reduce(loss, group=self._along_pipeline)
        self._step_loss = loss * self.replicas
        return self._step_loss

    def _set_up_stages(self, training: bool, targets: Any) -> None:
        self.model.train(training)
        for stage in self._stages:
            stage.train(training)
            stage.targets = targets

    def _pass_through(self, run: Callable[..., Any], batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        """The losses of micro-batches, shape [micro-batches]; zeros where the last stage is not."""
        ids, labels = (torch.cat([batch[key] for batch in batches]) for key in ("input_ids", "labels"))
        losses: list[torch.Tensor] = []
        inputs = [ids] if self._stages[0].is_first else []
        if self._stages[-1].is_last:
            run(*inputs, target=labels, losses=losses, return_outputs=False, labels=labels)
            return torch.stack([loss.detach() for loss in losses])
        run(*inputs, return_outputs=False)
        return torch.zeros(len(batches), device=self.args.device)

    def _reduce_gradients(self) -> None:
        """Sum the gradients of all replicas, and those of a table that is embedding here and output layer there."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        if self.replicas > 1:
            for gradient in gradients:
                dist.all_reduce(gradient, group=self._across_replicas)
        tied = self._tied()
        if tied is not None:
            assert tied.grad is not None
            there = self.replica * self.degree + (self.degree - 1 if self.position == 0 else 0)
            others = torch.empty_like(tied.grad)
            sending = [dist.P2POp(dist.isend, tied.grad, there), dist.P2POp(dist.irecv, others, there)]
            for work in dist.batch_isend_irecv(sending):
                work.wait()
            tied.grad += others  # a sum of two, so both get the same to the bit

    def _tied(self) -> torch.nn.Parameter | None:
        """The table of embeddings that is the output layer too, on the two processes that have it."""
        if self._whole.tied is None or self.position not in (0, self.degree - 1):
            return None
        name = self._whole.tied[0 if self.position == 0 else 1]
        return self.model.get_parameter(name)

    def _clip_and_measure(self, model: Any, max_norm: float) -> torch.Tensor | None:
        """As `LLMKitTrainer`, with the norm over all stages; a tied table counts once."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        again = self._tied() if self.position else None
        counted = [parameter.grad for parameter in parameters if parameter is not again]
        square = torch.stack(torch._foreach_norm(counted)).square().sum()
        dist.all_reduce(square, group=self._along_pipeline)
        norm = square.sqrt()
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return norm

    def _optimizer_shares(self, model: Any) -> dict[str, dict[str, int]]:
        """Of all stages together; a tied table counts once."""
        counted = super()._optimizer_shares(model)
        again = self._tied() if self.position else None
        if again is not None:
            key = next(name for name in counted if name.endswith(" with weight decay"))
            counted[key] = {"tensors": counted[key]["tensors"] - 1, "parameters": counted[key]["parameters"] - again.numel()}
        of_stages: list[Any] = [None] * self.degree
        dist.all_gather_object(of_stages, counted, group=self._along_pipeline)
        total: dict[str, dict[str, int]] = {}
        for share in of_stages:
            for name, count in share.items():
                sums = total.setdefault(name, dict.fromkeys(count, 0))
                for unit, number in count.items():
                    sums[unit] += number
        return total

    # Samples and evaluation.

    def _get_dataloader(self, *arguments: Any, **options: Any) -> DataLoader:
        """Batches in turn to the replicas, where accelerate gives them in turn to the processes."""
        loader = super()._get_dataloader(*arguments, **options)
        share: Any = loader.batch_sampler
        share.num_processes, share.process_index = self.replicas, self.replica
        return loader

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The mean loss over all tokens, as many batches at once in the pipeline as it has processes."""
        self._set_up_stages(False, 1)
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        batches = iter(dataloader)
        while together := list(islice(batches, self.degree)):
            sums[0] += self._pass_through(self._evaluating.eval, together).sum()
            if self._stages[-1].is_last:
                sums[1] += sum((batch["labels"][:, 1:] != -100).sum() for batch in together)
        dist.all_reduce(sums)
        loss, targets = sums.tolist()
        return EvalLoopOutput(None, None, {f"{metric_key_prefix}_loss": loss / targets}, len(dataloader.dataset))  # type: ignore[arg-type]

    # Checkpoints.

    @property
    def has_partitioned_weights(self) -> bool:
        """Whether no process has the whole weights."""
        return True

    def _is_partitioned(self) -> bool:
        return True

    def _kept_as(self) -> str:
        return "stages"

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the whole model, which the main process gathers tensor by tensor."""
        whole = self._whole.gather(self.model, self.position, self.args.device) if self.replica == 0 else None
        super()._save(output_dir, whole)

    def _check_written(self, written: Path) -> None:
        checkpoints.check_weights(written, self.model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        os.makedirs(output_dir, exist_ok=True)  # the main process may still gather weights
        if self.replica == 0:
            named_state.save(self.optimizer, self.model, Path(output_dir), self.position)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, "scheduler.pt"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._whole.load(self.model, Path(resume_from_checkpoint))

    def _other_names(self) -> dict[str, str]:
        return self._whole.aliases


class _Whole:
    """What the whole model is called: its tensors, and who has them."""

    def __init__(self, model: Any, stages: list[Stage], degree: int):
        positions: dict[int, int] = {}
        for number, stage in enumerate(stages):
            for tensor in (*stage.parameters(), *stage.buffers()):
                positions.setdefault(id(tensor), number % degree)
        state = model.state_dict(keep_vars=True)
        first_names: dict[int, str] = {}
        self.aliases: dict[str, str] = {}
        """Of a tensor with two names, the name of the other."""
        for name, tensor in state.items():
            first = first_names.setdefault(id(tensor), name)
            if first != name:
                self.aliases |= {name: first, first: name}
        self.tensors = {
            name: (positions[id(state[name])], state[name].shape, state[name].dtype) for name in first_names.values()
        }
        """Position, shape and dtype of each tensor, one name each, in the order of the model."""
        table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        names = [name for name, tensor in state.items() if tensor is table]
        self.tied = (names[0], names[1]) if table is head else None
        """The names of a table as embedding and as output layer, where it is both."""

    def under_all_names(self, values: Any) -> Any:
        """Values by name, of tied parameters under both names."""
        if values is None:
            return None
        return {**{other: values[name] for name, other in self.aliases.items() if name in values}, **values}

    def gather(self, model: Any, position: int, device: torch.device) -> dict[str, torch.Tensor] | None:
        """All tensors on the CPU, at position 0; the other processes of the first replica send what they have."""
        own, gathered = model.state_dict(), {}
        for name, (owner, shape, dtype) in self.tensors.items():
            if position == 0:
                tensor = own[name] if owner == 0 else torch.empty(shape, dtype=dtype, device=device)
                if owner != 0:
                    dist.recv(tensor, owner)
                gathered[name] = tensor.detach().cpu()
            elif position == owner:
                dist.send(own[name].detach().contiguous(), 0)
        return gathered if position == 0 else None

    def load(self, model: Any, directory: Path) -> None:
        """Read what a process has from a model repository.

        Raises:
            ArtefactError: a tensor is not there.
        """
        wanted = dict(model.state_dict())
        for file in sorted(directory.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                there = set(tensors.keys())
                for name in list(wanted):
                    found = name if name in there else self.aliases.get(name)
                    if found in there:
                        wanted.pop(name).copy_(tensors.get_tensor(found))
        if wanted:
            raise ArtefactError(
                f"{directory} has no weights called {', '.join(sorted(wanted))}; was it made of another model?"
            )
