"""How long a step takes under a layout, by a roofline (Williams et al. 2009): computation, memory and communication.

Formulas have numbers, by which docs/plan.md calls them. What kernels reach of a device's rates is assumed, and stated: see
`Assumptions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmkit.parallel.memory import Architecture, Step, computing_widths, kept_per_token, sharding

if TYPE_CHECKING:
    from llmkit.parallel.gpus import GPU
    from llmkit.parallel.layout import Layout


@dataclass(frozen=True)
class Assumptions:
    """Shares of a device's stated rates that are reached."""

    matmul: float = 0.6
    """By large matrix products, under the power limit of the device."""
    attention: float = 0.4
    """By attention that stores no scores (Dao 2023, FlashAttention-2), forward and backward."""
    memory: float = 0.8
    """By kernels that do nothing but read and write."""
    links: float = 0.75
    """By collectives on large messages."""
    passes: float = 8.0
    """Bytes that the element-wise kernels of eager mode read and write for each byte that a layer keeps, forward and backward:
    counted operation by operation for Llama in bfloat16, 8.4."""
    host: float = 20e9
    """Bytes a second between device and host, in one direction, and of an optimizer that steps on the host."""


@dataclass(frozen=True)
class Speed:
    """Seconds of an optimizer step, by what they go into. The parts add up to `seconds`."""

    matmul: float
    attention: float
    elementwise: float
    """Norms, activations, residual stream and loss: kernels that the memory limits."""
    recomputation: float
    communication: float
    """What is not hidden behind computation."""
    bubble: float
    """Waiting for other stages of a pipeline."""
    update: float
    """The optimizer, and copies from and to the host."""
    tokens: int
    """Of the step, on all processes."""
    flops: float
    """Operations that the model needs for these tokens; see llmkit.training.throughput."""
    peak: float
    """Operations a second of all devices together."""

    @property
    def seconds(self) -> float:
        return (
            self.matmul
            + self.attention
            + self.elementwise
            + self.recomputation
            + self.communication
            + self.bubble
            + self.update
        )

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def mfu(self) -> float:
        return self.flops / self.seconds / self.peak


def matrix_parameters(model: Architecture) -> int:
    """Parameters that a token is multiplied with: those of the layers' matrices and of the output layer."""
    return model.num_hidden_layers * model.layer_matrices + model.vocab_size * model.hidden_size


def flops_per_token(model: Architecture, block_size: int) -> float:
    """Operations of a token, forward and backward, (11): as llmkit.training.throughput counts them for a run's MFU."""
    width = model.num_attention_heads * model.head_dim
    return 6 * matrix_parameters(model) + 12 * model.num_hidden_layers * width * block_size


@dataclass(frozen=True)
class _Group:
    """Processes that talk to each other."""

    size: int
    bytes_per_second: float

    def all_gather(self, size: float) -> float:
        """Seconds to give every process all `size` bytes, of which each has a share; a reduce-scatter takes as long, (15)."""
        return size * (self.size - 1) / self.size / self.bytes_per_second if self.size > 1 else 0.0

    def all_reduce(self, size: float) -> float:
        return 2 * self.all_gather(size)


def speed(
    model: Architecture,
    layout: Layout,
    processes: int,
    step: Step,
    gpu: GPU,
    per_machine: int,
    assumed: Assumptions | None = None,
) -> Speed:
    """The seconds of an optimizer step.

    Args:
        per_machine: devices of a machine; processes are laid out tensor first, then context, shard, replicate and pipeline.
    """
    at = assumed or Assumptions()
    sizes = layout.sizes(processes)
    groups = _groups(sizes, gpu, per_machine, at)
    groups["weights"] = _weights_group(layout, sizes, gpu, per_machine, at)
    compute, stream = computing_widths(layout, step.precision)
    peak = gpu.fp32 if compute == 4 else gpu.bf16
    matmul_peak = gpu.fp8 if step.precision == "fp8" and gpu.fp8 else peak
    tensor, context, stages = sizes["tensor"], sizes["context"], sizes["pipeline"]
    tokens = step.micro_batch * step.block_size / context
    layers = -(-model.num_hidden_layers // stages)
    rate = gpu.bandwidth * at.memory

    # (12) A layer's products: operations, or the bytes of weights where there are few tokens.
    matrices = model.layer_matrices / tensor
    forward = max(2 * matrices * tokens / (matmul_peak * at.matmul), compute * matrices / rate)
    table = model.vocab_size * model.hidden_size / tensor
    head = max(2 * table * tokens / (peak * at.matmul), compute * table / rate)
    # (13) Attention: half of the scores are masked; the backward pass computes them again, 2.5 times the forward's operations.
    width = model.num_attention_heads * model.head_dim / tensor
    attend = 2 * step.block_size * width * tokens / (peak * at.attention)
    # (14) Element-wise kernels, by the bytes that they move; a third of them in the forward pass.
    moved = at.passes * tokens * kept_per_token(model, compute, stream, tensor) / rate
    loss = 30 * tokens * model.vocab_size / rate

    per_layer = 3 * forward + 3.5 * attend + moved
    again = (forward + attend + moved / 3) if step.checkpointing else 0.0
    last = 3 * head + loss
    # Of a pipeline's stages the slowest sets the pace: here the last, which has the output layer.
    micro = layers * (per_layer + again) + last

    exposed, each_step = _communication(model, layout, sizes, groups, step, tokens, layers, micro, compute, stream)
    if layout.offload_weights != "none":
        copied = 2 * compute * layers * model.layer / tensor / sharding(layout, sizes) / at.host
        exposed += max(0.0, copied - micro)
    micro_batches = step.accumulation
    # (16) Pipeline bubble (Narayanan et al. 2021, section 2.2.1): p - 1 times the forward and backward pass of a micro-batch.
    bubble = (stages - 1) * (micro + exposed)
    update = _update(model, layout, sizes, layers, rate, at)
    data_ranks = layout.data_ranks(processes)
    all_tokens = step.micro_batch * step.block_size * step.accumulation * data_ranks
    return Speed(
        matmul=micro_batches * 3 * (layers * forward + head),
        attention=micro_batches * 3.5 * layers * attend,
        elementwise=micro_batches * (layers * moved + loss),
        recomputation=micro_batches * layers * again,
        communication=micro_batches * exposed + each_step,
        bubble=bubble,
        update=update,
        tokens=all_tokens,
        flops=flops_per_token(model, step.block_size) * all_tokens,
        peak=peak * processes,
    )


def _weights_group(layout: Layout, sizes: dict[str, int], gpu: GPU, per_machine: int, at: Assumptions) -> _Group:
    """Those that share the weights: as in `memory.sharding`."""
    joined = sizes if layout.engine != "fsdp" else {**sizes, "shard": sizes["shard"] * sizes["context"], "context": 1}
    return _groups(joined, gpu, per_machine, at)["shard"]


def _groups(sizes: dict[str, int], gpu: GPU, per_machine: int, at: Assumptions) -> dict[str, _Group]:
    """The groups of each dimension; inner ones are neighbours, on one machine as far as it goes.

    A group with g members on each machine uses the network of g devices, but not more than their links carry.
    """
    groups, stride = {}, 1
    for name in ("tensor", "context", "shard", "replicate", "pipeline"):
        size = sizes[name]
        together = max(1, min(size, per_machine // stride))
        across = size > together
        rate = min(gpu.link, together * gpu.network) if across else gpu.link
        groups[name] = _Group(size, rate * at.links)
        stride *= size
    return groups


def _communication(
    model: Architecture,
    layout: Layout,
    sizes: dict[str, int],
    groups: dict[str, _Group],
    step: Step,
    tokens: float,
    layers: int,
    micro: float,
    compute: int,
    stream: int,
) -> tuple[float, float]:
    """Seconds of communication that no computation hides: of a micro-batch, and of a step, (15)."""
    tensor = sizes["tensor"]
    layer = model.layer_matrices / tensor
    outside = (model.embedding + model.head / tensor) if sizes["pipeline"] == 1 else model.embedding
    everything = layers * layer + outside
    hidden = tokens * model.hidden_size
    # Tensor: two sums of activations forward and two backward, two more where layers are computed again; nothing hides them.
    exposed = layers * (6 if step.checkpointing else 4) * groups["tensor"].all_reduce(compute * hidden)
    if tensor > 1:
        exposed += groups["tensor"].all_gather(compute * tokens * model.vocab_size)
    # Context: keys and values of the whole sample are gathered in each layer, and their gradients scattered.
    keys = 2 * model.num_key_value_heads * model.head_dim / tensor
    exposed += layers * 3 * groups["context"].all_gather(compute * tokens * sizes["context"] * keys)
    if sizes["pipeline"] > 1:
        exposed += 2 * stream * hidden / groups["pipeline"].bytes_per_second
    each_step = 0.0
    shard, replicate = groups["weights"], groups["replicate"]
    last_backward = 2 / 3 * micro
    if layout.engine in ("fsdp", "deepspeed") and layout.zero_stage == 3:
        gathers = 2 * shard.all_gather(compute * everything)
        scatters = shard.all_gather(compute * everything)
        each_batch = gathers + (scatters if layout.engine == "deepspeed" else 0.0)
        exposed += max(0.0, each_batch - micro)  # layer by layer, beside the computation of the layer before
        if layout.engine == "fsdp":
            each_step += max(0.0, scatters - last_backward)
    elif layout.engine == "deepspeed":
        reduced = shard.all_reduce(compute * everything) if layout.zero_stage < 2 else shard.all_gather(compute * everything)
        exposed += reduced if layout.zero_stage == 2 else 0.0  # by default DeepSpeed overlaps nothing below stage 3
        each_step += (reduced if layout.zero_stage < 2 else 0.0) + shard.all_gather(compute * everything)
    hidden_behind = 0.0 if layout.engine == "pipeline" else last_backward
    each_step += max(0.0, replicate.all_reduce(4 * everything / shard.size) - hidden_behind)
    return exposed, each_step


def _update(model: Architecture, layout: Layout, sizes: dict[str, int], layers: int, rate: float, at: Assumptions) -> float:
    """Seconds of the optimizer, (17): AdamW reads 16 bytes a parameter and writes 12."""
    share = model.parameters * layers / model.num_hidden_layers / sizes["tensor"]
    if layout.engine in ("fsdp", "deepspeed") and layout.zero_stage >= 1:
        share /= sharding(layout, sizes)
    if layout.offload_optimizer == "none":
        return 28 * share / rate
    return (28 + 4 + 2) * share / at.host
