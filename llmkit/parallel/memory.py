"""What a process of a launch layout needs in memory, computed before any weight is made.

Every formula has a number, by which docs/plan.md and the comments here call it. They are derived for what runs here: models of
transformers in eager mode with SDPA (no matrix of attention scores is stored), float32 weights with bfloat16 arithmetic by
autocast, or bfloat16 modules under FSDP2 and DeepSpeed, and AdamW. Bytes throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llmkit.errors import ConfigError

if TYPE_CHECKING:
    from llmkit.parallel.layout import Layout

Precision = Literal["no", "bf16", "fp16", "fp8"]

CONTEXT = 1 << 30
"""Bytes that CUDA, cuBLAS and NCCL take on a device before the first tensor; an assumption."""

FRAGMENTATION = 0.05
"""Share of what comes and goes within a step that the caching allocator cannot use; an assumption."""

BUCKET = 500_000_000
"""Values of DeepSpeed's `reduce_bucket_size`, allocated whole, as its documentation gives the default."""

GATHERED = 1_000_000_000
"""Parameters of DeepSpeed's `stage3_max_live_parameters`, its default."""


@dataclass(frozen=True)
class Architecture:
    """What memory and time of a decoder depend on. Sizes have the names of transformers; the rest counts parameters."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    is_gated: bool
    """Whether the MLP has three matrices (SwiGLU) or two."""
    norms_heads: bool
    """Whether queries and keys are normalised head by head, as in Qwen3."""
    embedding: int
    """Tables of tokens and positions."""
    layer: int
    """One layer, all of it."""
    layer_matrices: int
    """One layer's matrices, which tensor parallelism divides; the rest are norms and biases."""
    final: int
    """What comes after the last layer and before the output layer: a norm."""
    head: int
    """The output layer; 0 where it is the token table."""
    has_tensor_plan: bool
    """Whether transformers knows how to divide its matrices among processes."""

    @property
    def parameters(self) -> int:
        return self.embedding + self.num_hidden_layers * self.layer + self.final + self.head


@dataclass(frozen=True)
class Step:
    """What a process computes between two optimizer steps."""

    micro_batch: int
    """Samples at once."""
    block_size: int
    """Tokens of a sample."""
    accumulation: int = 1
    """Micro-batches that are summed; in a pipeline, those that pass through it."""
    checkpointing: bool = False
    """Whether layers keep their input only and are computed again in the backward pass."""
    loss_chunk_size: int = 0
    """Tokens whose logits are in memory at once; 0: all."""
    precision: Precision = "bf16"


@dataclass(frozen=True)
class RankMemory:
    """The memory of one kind of process, at the fullest instant of a step; the parts add up to `total`."""

    kind: str
    """Which processes: `every process`, or of a pipeline `first stage`, `middle stages`, `last stage`."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int
    """Copies of weights in the precision of the arithmetic, gathered layers, buckets of communication."""
    fragmentation: int
    """Allowance for what the allocator cannot use, and for the context of the device; 0 on a CPU."""
    host: int
    """Bytes of the host's memory that this process needs for what is offloaded."""
    all_gradients: int
    """Gradients once all are made."""
    instant: str
    """When it is."""

    @property
    def total(self) -> int:
        return (
            self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.buffers + self.fragmentation
        )


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory of every kind of process of a layout."""

    ranks: tuple[RankMemory, ...]

    @property
    def fullest(self) -> RankMemory:
        return max(self.ranks, key=lambda rank: rank.total)


def architecture(config: Any) -> Architecture:
    """The architecture of a transformers config, by its skeleton without weights.

    Raises:
        ConfigError: there are no formulas for it.
    """
    from llmkit.models.causal import causal_skeleton

    model = causal_skeleton(config)
    names = {name.rpartition(".")[2]: parameter.shape for name, parameter in model.named_parameters() for name in [name[:-7]]}
    is_gated, has_two = {"gate_proj", "up_proj", "down_proj"} <= set(names), {"c_attn", "c_fc"} <= set(names)
    if not (is_gated or has_two) or getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        raise ConfigError(
            [
                f"model_type: llmkit plan has formulas for gpt2 and for decoders with a gated MLP, such as llama and qwen3, "
                f"and none for {config.model_type}"
            ]
        )
    heads = config.num_attention_heads
    table, output = model.get_input_embeddings(), model.get_output_embeddings()
    sizes: dict[str, int] = dict.fromkeys(("embedding", "layer", "layer_matrices", "final", "head"), 0)
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        size = parameter.numel()
        if parameter is table.weight or name.endswith("wpe.weight"):
            sizes["embedding"] += size
        elif parameter is output.weight:
            sizes["head"] += size
        elif ".layers." in name or ".h." in name:
            sizes["layer"] += size
            sizes["layer_matrices"] += size if parameter.ndim > 1 else 0
        else:
            sizes["final"] += size
    layers = config.num_hidden_layers
    sizes["layer"] //= layers
    sizes["layer_matrices"] //= layers
    return Architecture(
        model_type=config.model_type,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        intermediate_size=names["gate_proj"][0] if is_gated else names["c_fc"][1],
        is_gated=is_gated,
        norms_heads="q_norm" in names,
        has_tensor_plan=bool(getattr(model, "tp_plan", None)),
        **sizes,
    )


@dataclass(frozen=True)
class _Stage:
    """The share of a model that one process computes with, before anything of it is sharded."""

    kind: str
    layers: int
    has_embedding: bool
    has_head: bool
    in_flight: int
    """Micro-batches whose activations are kept at once."""


@dataclass(frozen=True)
class _Instant:
    """What is in memory at an instant of a step, beside weights and optimizer state."""

    name: str
    gradients: float
    activations: float
    logits: float
    buffers: float


def memory(model: Architecture, layout: Layout, processes: int, step: Step, on_cpu: bool = False) -> MemoryEstimate:
    """The memory of every kind of process.

    Args:
        on_cpu: leave the allowance for a device's context and fragmentation out.

    Raises:
        ConfigError: the dimensions of the layout do not divide the processes.
    """
    sizes = layout.sizes(processes)
    stages = _stages(model, sizes["pipeline"], step.accumulation)
    return MemoryEstimate(tuple(_Rank(model, layout, sizes, step, stage, on_cpu).estimate() for stage in stages))


def _stages(model: Architecture, pipeline: int, micro_batches: int) -> list[_Stage]:
    if pipeline == 1:
        return [_Stage("every process", model.num_hidden_layers, True, True, 1)]
    each, over = divmod(model.num_hidden_layers, pipeline)
    names = ["first stage", *["middle stages"] * (pipeline - 2), "last stage"]
    found: dict[str, _Stage] = {}
    for index, kind in enumerate(names):
        stage = _Stage(kind, each + (index < over), index == 0, index == pipeline - 1, min(micro_batches, pipeline - index))
        found.setdefault(kind, stage)  # of the middle ones the first has the most
    return list(found.values())


def computing_widths(layout: Layout, precision: Precision) -> tuple[int, int]:
    """Bytes of a value of the matrix products, and of the residual stream, (1).

    Autocast computes in 2 bytes on a stream of 4; FSDP2 of accelerate and DeepSpeed make the modules themselves bfloat16.
    """
    if precision == "no":
        return 4, 4
    casts_modules = layout.engine == "deepspeed" or layout.settings.get("distributed_type") == "FSDP"
    return 2, 2 if casts_modules else 4


def sharding(layout: Layout, sizes: dict[str, int]) -> int:
    """Processes among which weights or states are divided: under FSDP2 those of a context group as well."""
    return sizes["shard"] * (sizes["context"] if layout.engine == "fsdp" else 1)


def kept_per_token(model: Architecture, compute: int, stream: int, tensor: int = 1) -> float:
    """Bytes that one layer keeps of a token for its backward pass, (2) to (4).

    Counted as Korthikanti et al. 2022, section 4.1, count them, for other operations: RMSNorm of transformers, SwiGLU, no
    dropout, and an attention that stores neither scores nor probabilities.
    """
    heads, groups = model.num_attention_heads / tensor, model.num_key_value_heads / tensor
    queries, keys = heads * model.head_dim, groups * model.head_dim
    hidden, inner = model.hidden_size, model.intermediate_size / tensor
    attention = compute * (2 * queries + 2 * keys) + 4 * heads  # (2) queries, keys, values, output; 4 of log-sum-exp
    if model.norms_heads:
        # In float32 on a copy, except where they are float32 already; the normalised ones for the weight's gradient.
        attention += (4 + compute) * (queries + keys) + 4 * (heads + groups)
    if model.is_gated:
        # (3) A norm keeps its input in float32, and what its weight multiplies; a product that casts, an input of its own.
        norms = 2 * (4 + stream) * hidden + 2 * 4
        inputs = compute * hidden * (2 if compute == stream else 5)
        mlp = 4 * compute * inner
    else:
        norms = 2 * stream * hidden + 2 * 8
        inputs = 2 * compute * hidden
        mlp = 5 * compute * inner  # (4) GELU by tanh, in four operations of Python
    return attention + norms + inputs + mlp


class _Rank:
    """One kind of process of a layout."""

    def __init__(self, model: Architecture, layout: Layout, sizes: dict[str, int], step: Step, stage: _Stage, on_cpu: bool):
        self.model, self.layout, self.step, self.stage, self.on_cpu = model, layout, step, stage, on_cpu
        self.shard, self.replicate, self.tensor = sharding(layout, sizes), sizes["replicate"], sizes["tensor"]
        self.compute, self.stream = computing_widths(layout, step.precision)
        self.tokens = step.micro_batch * step.block_size / sizes["context"]
        self.layer = model.layer_matrices / self.tensor + model.layer - model.layer_matrices
        is_last_of_several = stage.has_head and not stage.has_embedding
        head = (model.head or (model.embedding if is_last_of_several else 0)) / (self.tensor if model.head else 1)
        self.head = head if stage.has_head else 0
        self.final = model.final if stage.has_head else 0
        self.embedding = model.embedding if stage.has_embedding else 0
        self.parameters = stage.layers * self.layer + self.head + self.final + self.embedding
        self.gathers = layout.engine in ("fsdp", "deepspeed") and layout.zero_stage == 3
        self.casts = self.compute != self.stream

    def estimate(self) -> RankMemory:
        weights, each_gradient, optimizer, host = self._states()
        instants = list(self._instants(each_gradient))
        fullest = max(instants, key=lambda at: at.gradients + at.activations + at.logits + at.buffers)
        parts = {
            "weights": weights,
            "gradients": fullest.gradients,
            "optimizer": optimizer,
            "activations": fullest.activations,
            "logits": fullest.logits,
            "buffers": fullest.buffers,
        }
        allowance = 0.0 if self.on_cpu else CONTEXT + FRAGMENTATION * (sum(parts.values()) - weights - optimizer)
        return RankMemory(
            kind=self.stage.kind,
            **{name: round(size) for name, size in parts.items()},
            fragmentation=round(allowance),
            host=round(host),
            all_gradients=round(each_gradient * self.parameters),
            instant=fullest.name,
        )

    def _states(self) -> tuple[float, float, float, float]:
        """Bytes of weights; of the gradient of one parameter; of optimizer state; and of all these on the host, (5) to (8)."""
        size, share = self.parameters, self.parameters / self.shard
        if self.layout.engine == "deepspeed":
            stage, width = self.layout.zero_stage, self.compute
            weights = width * (share if stage == 3 else size)  # (7)
            gradient = width / (self.shard if stage >= 2 else 1)
            optimizer = 12 * (share if stage >= 1 else size)
        else:
            weights, gradient, optimizer = 4 * share, 4 / self.shard, 8 * share  # (5), (6)
            if self.layout.engine == "fsdp" and self.step.accumulation > 1:
                # Trainer scatters the gradients of the last micro-batch only, and until then they are kept whole.
                gradient = max(gradient, self.stream)
        host = 0.0
        if self.layout.offload_optimizer != "none":
            host += optimizer + 4 * share
            optimizer = 0.0
            if not (self.layout.engine == "fsdp" and self.step.accumulation > 1):
                gradient = 0.0
        if self.layout.offload_weights != "none":
            host += weights
            weights = 0.0
        return weights, gradient, optimizer, host

    def _instants(self, each_gradient: float) -> Iterator[_Instant]:
        """The instants of a step at which its memory may be fullest."""
        model, tokens, layers = self.model, self.tokens, self.stage.layers
        compute, stream, hidden = self.compute, self.stream, self.model.hidden_size
        computed = tokens * kept_per_token(model, compute, stream, self.tensor)
        kept = tokens * stream * hidden if self.step.checkpointing else computed
        earlier = (self.stage.in_flight - 1) * layers * kept  # micro-batches of a pipeline that are on their way
        after = self._after_layers(tokens)
        steady = self._steady_buffers()
        casts = 2 * self.model.layer_matrices / self.tensor if self.casts else 0.0
        head_cast = 2 * self._output_parameters() if self.casts and self.stage.has_head else 0.0
        summed = self.step.accumulation > 1

        def gradients(made: float) -> float:
            return each_gradient * (self.parameters if summed else made)

        all_kept = earlier + layers * kept + after
        forward, backward, chunk_buffers = self._logits()
        yield _Instant("loss", gradients(0), all_kept, forward, steady + layers * casts + head_cast + chunk_buffers)
        kept_casts = 0.0 if self.step.checkpointing else layers * casts
        yield _Instant(
            "backward of the loss", gradients(0), all_kept, backward, steady + kept_casts + head_cast + chunk_buffers
        )
        yield _Instant(
            "backward of the output layer",
            gradients(self.head),
            all_kept + tokens * stream * hidden,
            0 if self.step.loss_chunk_size else compute * tokens * model.vocab_size * self.stage.has_head,
            steady + kept_casts + 2 * head_cast,
        )
        transient = self._transient()
        for below in range(layers, 0, -1):
            made = self.head + self.final + (layers - below) * self.layer
            now = below * kept + (computed if self.step.checkpointing else 0.0)
            held = casts * (1 if self.step.checkpointing else below)
            yield _Instant(f"backward of layer {below}", gradients(made), earlier + now + transient, 0, steady + held)
        # A table that is the output layer as well gets a second gradient, before the two are added.
        second = 4 * self.embedding if self.stage.has_embedding and self.stage.has_head and not model.head else 0
        yield _Instant(
            "backward of the embedding", gradients(self.parameters), earlier + tokens * stream * hidden, 0, steady + second
        )
        yield _Instant("update", each_gradient * self.parameters, 0, 0, steady + self._update_buffers())

    def _output_parameters(self) -> float:
        return self.head or self.model.vocab_size * self.model.hidden_size

    def _after_layers(self, tokens: float) -> float:
        """What the last norm and the output layer keep."""
        if not self.stage.has_head:
            return 0.0
        return tokens * self.model.hidden_size * (4 + self.stream + self.compute)

    def _transient(self) -> float:
        """Gradients of activations that a layer's backward pass has at once: of the MLP, and of the residual stream."""
        inner = self.model.intermediate_size / self.tensor
        return self.tokens * (2 * self.compute * inner + 2 * self.stream * self.model.hidden_size)

    def _logits(self) -> tuple[float, float, float]:
        """Bytes of logits in the forward and the backward pass, and of gradients that a loss in chunks has with them, (9)."""
        if not self.stage.has_head:
            return 0.0, 0.0, 0.0
        vocabulary, chunk = self.model.vocab_size, self.step.loss_chunk_size
        if not chunk:
            forward = (self.compute if self.compute < 4 else 0) + 8
            return forward * self.tokens * vocabulary, 12 * self.tokens * vocabulary, 0.0
        width = 4 if self.compute == 4 else 6
        table = vocabulary * self.model.hidden_size
        hidden = self.compute * self.tokens * self.model.hidden_size
        cast = 4 if self.on_cpu and self.compute < 4 else 0  # to add in float32, a CPU casts the share of a chunk first
        return width * min(chunk, self.tokens) * vocabulary, 0.0, (4 + self.compute + cast) * table + hidden

    def _steady_buffers(self) -> float:
        """Buckets and gathered layers, (10)."""
        engine = self.layout.engine
        if engine == "deepspeed":
            largest = (
                self.model.vocab_size * self.model.hidden_size if self.stage.has_head else 0
            )  # gathered whole, however large
            gathered = self.compute * min(self.parameters, max(GATHERED, largest)) if self.gathers else 0
            return self.compute * BUCKET + gathered
        if engine == "fsdp":
            root = self.embedding + self.head + self.final
            layers = 3 if self.gathers else self.stage.layers
            return self.compute * (layers * self.layer + 2 * self.layer + 2 * root)
        # DDP copies gradients into its buckets; llmkit's pipeline sums them where they are.
        return 4 * self.parameters if engine == "plain" and self.replicate > 1 else 0.0

    def _update_buffers(self) -> float:
        """What the optimizer needs while it steps: DeepSpeed a float32 copy of its gradients."""
        return 4 * self.parameters / self.shard if self.layout.engine == "deepspeed" else 0.0
