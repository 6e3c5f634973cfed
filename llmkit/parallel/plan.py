"""`llmkit plan`: what every launch layout needs and how fast it is, before anything is launched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkit.parallel.memory import MemoryEstimate, Precision, Step, architecture, memory

if TYPE_CHECKING:
    from llmkit.parallel.layout import Layout
    from llmkit.training.pretrain import PretrainConfig


def memory_of(config: PretrainConfig, layout: Layout, processes: int, *, on_cpu: bool = False) -> MemoryEstimate:
    """The memory of every kind of process, for settings of `pretrain` under a layout; nothing is built.

    Args:
        config: model, batch, sample length, checkpointing, loss and precision are taken from it.
        processes: of the whole launch.
        on_cpu: leave the allowance for a device's context and fragmentation out.

    Returns:
        `.fullest.total` is the bytes that the fullest process needs; `.ranks` has every kind of process, by part.

    Raises:
        ConfigError: there are no formulas for the architecture, or the layout does not divide the processes or the batch.
    """
    from llmkit.training.plan import model_config

    micro_batch, accumulation = config.batch_layout(layout.data_ranks(processes))
    step = Step(
        micro_batch=micro_batch,
        block_size=config.block_size,
        accumulation=accumulation,
        checkpointing=bool(config.training_arguments.get("gradient_checkpointing")),
        loss_chunk_size=config.loss_chunk_size or 0,
        precision=precision_of(config, layout),
    )
    return memory(architecture(model_config(config)), layout, processes, step, on_cpu)


def precision_of(config: PretrainConfig, layout: Layout) -> Precision:
    """Of the arithmetic: as the settings or the layout say, and bf16 where neither does, as GPUs from Ampere on have it."""
    if config.bf16 is False and layout.precision in (None, "no"):
        return "no"
    if config.fp16:
        return "fp16"
    return layout.precision or "bf16"  # type: ignore[return-value]
