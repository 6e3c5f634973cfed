"""`llmkit plan`: what every launch layout needs and how fast it is, before anything is launched."""

from __future__ import annotations

import argparse
import json
import math
import re
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from llmkit.config import parse_arguments
from llmkit.errors import ConfigError
from llmkit.models.sizing import TOKENS_PER_PARAMETER
from llmkit.parallel.candidates import Candidate, Cluster, candidates
from llmkit.parallel.gpus import GPU, gpu_of, memory_bytes
from llmkit.parallel.layout import Layout, read_layout
from llmkit.parallel.memory import Architecture, MemoryEstimate, Precision, RankMemory, Step, architecture, memory
from llmkit.parallel.roofline import Assumptions, Speed, speed
from llmkit.training.pretrain import PretrainConfig, tokens_of

_GIB = 2**30

_PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "fragmentation")
_WIDTH = 100


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
        checkpointing=bool(_checkpointing(config)),
        loss_chunk_size=config.loss_chunk_size or 0,
        precision=precision_of(config, layout),
    )
    return memory(architecture(model_config(config)), layout, processes, step, on_cpu)


def precision_of(config: PretrainConfig, layout: Layout | None = None) -> Precision:
    """Of the arithmetic: as the settings or the layout say, and bf16 where neither does, as GPUs from Ampere on have it."""
    named = layout.precision if layout else None
    if config.bf16 is False and named in (None, "no"):
        return "no"
    if config.fp16:
        return "fp16"
    return named or "bf16"  # type: ignore[return-value]


def _checkpointing(config: PretrainConfig) -> bool | None:
    """Whether layers are computed again in the backward pass; None where the settings do not say it."""
    given = [config.training_arguments.get(name) for name in ("gradient_checkpointing", "activation_checkpointing")]
    return any(given) if any(value is not None for value in given) else None


@dataclass(frozen=True)
class Planned:
    """A layout with the batch and checkpointing that are fastest under it among those that fit, or else need the least."""

    name: str
    layout: Layout
    sizes: dict[str, int]
    step: Step
    memory: MemoryEstimate
    speed: Speed
    fits: bool

    @property
    def data_ranks(self) -> int:
        return self.sizes["replicate"] * self.sizes["shard"]

    @property
    def dimensions(self) -> str:
        """`shard 4 x tensor 2`: the dimensions that divide something."""
        return " x ".join(f"{name} {size}" for name, size in self.sizes.items() if size > 1) or "1 process"


@dataclass(frozen=True)
class Plan:
    """All layouts of a model on a cluster, the fastest that fits first."""

    model: Architecture
    cluster: Cluster
    gpu: GPU
    capacity: int
    """Bytes of a device's memory."""
    block_size: int
    global_batch: int
    tokens: float
    """Of the run."""
    price: float | None
    """Of a device for an hour."""
    layouts: list[Planned]
    impossible: list[Candidate]
    assumptions: Assumptions

    @property
    def best(self) -> Planned | None:
        return next((planned for planned in self.layouts if planned.fits), None)


def make_plan(
    model: Architecture,
    cluster: Cluster,
    gpu: GPU,
    capacity: int,
    step: Step,
    global_batch: int,
    tokens: float,
    price: float | None = None,
    checkpointing: bool | None = None,
    only: Candidate | None = None,
    assumptions: Assumptions | None = None,
) -> Plan:
    """Search every layout, micro-batch and checkpointing.

    Args:
        step: gives sample length, loss and precision.
        global_batch: samples of an optimizer step.
        checkpointing: None tries both.
        only: the one layout to look at.
    """
    assumed = assumptions or Assumptions()
    planned: list[Planned] = []
    impossible: list[Candidate] = []
    for candidate in [only] if only else candidates(model, cluster, step.block_size):
        found = None
        if candidate.layout is not None:
            tried = _tried(model, cluster, gpu, capacity, step, global_batch, checkpointing, candidate, assumed)
            found = min(tried, key=_preference, default=None)
            if found is None:
                ranks = candidate.layout.data_ranks(cluster.processes)
                reason = f"{ranks} processes with samples of their own do not divide the batch of {global_batch:,}"
                candidate = Candidate(candidate.name, None, reason)
        if found is None:
            impossible.append(candidate)
        else:
            planned.append(found)
    best_of_kind: dict[str, Planned] = {}
    for item in sorted(planned, key=_preference):
        best_of_kind.setdefault(item.name, item)
    named = {candidate.name: candidate for candidate in impossible if candidate.name not in best_of_kind}
    return Plan(
        model,
        cluster,
        gpu,
        capacity,
        step.block_size,
        global_batch,
        tokens,
        price,
        list(best_of_kind.values()),
        list(named.values()),
        assumed,
    )


def _preference(planned: Planned) -> tuple[bool, float, int]:
    needed = planned.memory.fullest.total
    return not planned.fits, planned.speed.seconds if planned.fits else 0.0, needed


def _tried(
    model: Architecture,
    cluster: Cluster,
    gpu: GPU,
    capacity: int,
    step: Step,
    global_batch: int,
    checkpointing: bool | None,
    candidate: Candidate,
    assumed: Assumptions,
) -> Iterator[Planned]:
    layout = candidate.layout
    assert layout is not None
    each, rest = divmod(global_batch, layout.data_ranks(cluster.processes))
    if rest or not each:
        return
    sizes = layout.sizes(cluster.processes)
    # No process has the whole output layer there; see llmkit.training.losses.
    chunk = 0 if layout.zero_stage == 3 or layout.tensor > 1 else step.loss_chunk_size
    for micro in (size for size in (2**power for power in range(12)) if each % size == 0):
        for again in (False, True) if checkpointing is None else (checkpointing,):
            this = replace(step, micro_batch=micro, accumulation=each // micro, checkpointing=again, loss_chunk_size=chunk)
            needed = memory(model, layout, cluster.processes, this)
            seconds = speed(model, layout, cluster.processes, this, gpu, cluster.gpus, assumed)
            yield Planned(candidate.name, layout, sizes, this, needed, seconds, needed.fullest.total <= capacity)


# --------------------------------------------------------------------------------------------------------------------
# The command


def plan_command(words: list[str]) -> int:
    """`llmkit plan`; the exit code is 0, also where nothing fits.

    Raises:
        ConfigError: an option, a setting or a GPU that is not known, or a model without formulas.
    """
    parser = _parser()
    given, rest = parser.parse_known_args(words)
    config = parse_arguments(PretrainConfig, [*_config_words(given.config), *rest], "pretrain/quickstart").config
    from llmkit.training.plan import model_config

    gpu = gpu_of(given.gpu)
    only = None
    if given.accelerate_config:
        layout = read_layout(given.accelerate_config)
        only = Candidate(layout.path.stem, layout)
    cluster = Cluster(given.gpus, given.nodes)
    model = architecture(model_config(config))
    global_batch = config.global_batch_size or (
        config.per_device_train_batch_size * config.gradient_accumulation_steps * cluster.processes
    )
    step = Step(
        micro_batch=1,
        block_size=config.block_size,
        loss_chunk_size=config.loss_chunk_size or 0,
        precision=given.precision or precision_of(config, only.layout if only else None),
    )
    plan = make_plan(
        model,
        cluster,
        gpu,
        memory_bytes(given.gpu_memory) if given.gpu_memory else gpu.memory * _GIB,
        step,
        global_batch,
        _budget(given.tokens, config, model, global_batch),
        given.price_per_gpu_hour,
        _checkpointing(config),
        only,
        replace(Assumptions(), matmul=given.efficiency) if given.efficiency else None,
    )
    print(describe(plan, step.precision))
    if given.json:
        given.json.write_text(json.dumps(as_json(plan), indent=1) + "\n", encoding="utf-8")
    if given.write:
        if plan.best is None:
            raise ConfigError(["--write: no layout fits, so none is written"], "command")
        given.write.write_text(layout_file(plan, plan.best), encoding="utf-8")
        print(f"layout: {given.write}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmkit plan",
        allow_abbrev=False,
        description="Memory, speed and cost of every launch layout for a model, before it is built. Takes the settings of "
        "`llmkit pretrain` as well, such as --num_params 7B, --config_overrides or --block_size.",
    )
    parser.add_argument("--config", help="a recipe, a YAML file, or a config.json of transformers or its directory")
    parser.add_argument("--gpus", type=_count, default=8, help="GPUs of a machine (default: 8)")
    parser.add_argument("--nodes", type=_count, default=1, help="machines (default: 1)")
    parser.add_argument("--gpu", default="h100", help="kind of GPU (default: h100)")
    parser.add_argument("--gpu_memory", help="memory of a GPU, such as 80GB (default: that of its kind)")
    parser.add_argument("--tokens", help="tokens of the run, such as 1T (default: as the settings say, or 20 a parameter)")
    parser.add_argument("--price_per_gpu_hour", type=float, help="for the cost of the run")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16", "fp8"), help="of the arithmetic (default: bf16)")
    parser.add_argument("--efficiency", type=float, help="share of its stated rate that a GPU reaches in matrix products")
    parser.add_argument("--accelerate_config", help="look at this layout alone")
    parser.add_argument("--write", type=Path, help="write the accelerate config of the fastest layout that fits")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _config_words(config: str | None) -> list[str]:
    """The settings file as `pretrain` takes it; a config of transformers is the model to go on from."""
    if config is None:
        return []
    path = Path(config)
    is_model = path.suffix == ".json" or (path / "config.json").is_file()
    return ["--model_name_or_path" if is_model else "--config", config]


def _budget(asked: str | None, config: PretrainConfig, model: Architecture, global_batch: int) -> float:
    """Tokens of the run: as asked, as the settings say, or what is compute-optimal (Hoffmann et al. 2022)."""
    if asked is not None:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMBT]?)", asked)
        if match is None or not float(match[1]):
            raise ConfigError([f"--tokens: {asked!r} is no number of tokens; write 1T, 300B or a plain number"], "command")
        return float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[match[2]]
    if config.max_tokens is not None:
        return tokens_of(config.max_tokens)
    if config.max_steps > 0:
        return float(config.max_steps * global_batch * config.block_size)
    return float(TOKENS_PER_PARAMETER * model.parameters)


# --------------------------------------------------------------------------------------------------------------------
# What is said


def describe(plan: Plan, precision: Precision) -> str:
    """The plan as text, at most 100 columns wide."""
    model, cluster, gpu = plan.model, plan.cluster, plan.gpu
    machines = f"{cluster.machines} machines of " if cluster.machines > 1 else ""
    lines = [
        f"{model.model_type}, {model.parameters:,} parameters: {model.num_hidden_layers} layers of width "
        f"{model.hidden_size:,}, vocabulary {model.vocab_size:,}",
        f"{machines}{cluster.gpus} x {gpu.name}, {_gib(plan.capacity)} each; {precision}; "
        f"{plan.tokens:.3g} tokens, in steps of {plan.global_batch:,} samples of {plan.block_size:,}",
        "",
        *_table(plan),
        "",
    ]
    best = plan.best
    if best is None:
        lines.append("no layout fits; the nearest is:")
        best = plan.layouts[0] if plan.layouts else None
    if best is not None:
        lines += _details(plan, best)
    others = [planned for planned in plan.layouts if not planned.fits]
    if others or plan.impossible:
        lines += ["", "what does not fit, and what would make it fit:"]
        for planned in others:
            lines += _wrapped(f"  {planned.name}: ", _remedy(plan, planned))
        for candidate in plan.impossible:
            lines += _wrapped(f"  {candidate.name}: ", f"not possible: {candidate.reason}")
    at = plan.assumptions
    assumed = (
        f"of its stated rates a GPU reaches {at.matmul:.0%} in matrix products, {at.attention:.0%} in attention, "
        f"{at.memory:.0%} of its memory's and {at.links:.0%} of its links'; nothing was measured (docs/plan.md). "
        f"Rates: {gpu.source}"
    )
    lines += ["", *_wrapped("assumed: ", assumed)]
    return "\n".join(lines)


def _table(plan: Plan) -> Iterator[str]:
    yield (
        f"{'layout':<14}{'divided':<24}{'micro x acc x ranks':>20}{'ckpt':>5}{'GiB':>7}  {'':<4}{'tokens/s':>10}{'MFU':>5}"
        f"{'days':>9}"
    )
    for item in plan.layouts:
        batch = f"{item.step.micro_batch} x {item.step.accumulation} x {item.data_ranks}"
        yield (
            f"{item.name:<14}{item.dimensions:<24}{batch:>20}{'yes' if item.step.checkpointing else 'no':>5}"
            f"{item.memory.fullest.total / _GIB:>7.1f}  {'fits' if item.fits else 'no':<4}"
            f"{item.speed.tokens_per_second:>10,.0f}{item.speed.mfu:>5.0%}"
            f"{plan.tokens / item.speed.tokens_per_second / 86400:>9,.1f}"
        )


def _details(plan: Plan, item: Planned) -> Iterator[str]:
    step, seconds = item.step, item.speed
    yield (
        f"{'fastest that fits' if item.fits else 'nearest'}: {item.name} ({item.dimensions}), "
        f"activations {'computed again in the backward pass' if step.checkpointing else 'kept'}"
    )
    yield (
        f"  batch    {step.micro_batch} samples at once x {step.accumulation} accumulated x {item.data_ranks} processes with "
        f"samples of their own = {plan.global_batch:,}"
    )
    yield (
        f"  speed    {seconds.tokens_per_second:,.0f} tokens/s, "
        f"{seconds.tokens_per_second / plan.cluster.processes:,.0f} a GPU; MFU {seconds.mfu:.1%}"
    )
    yield f"  run      {plan.tokens:.3g} tokens in {_duration(plan.tokens / seconds.tokens_per_second)}{_cost(plan, seconds)}"
    parts = {
        "matrix products": seconds.matmul,
        "attention": seconds.attention,
        "element-wise": seconds.elementwise,
        "recomputation": seconds.recomputation,
        "communication": seconds.communication,
        "bubble": seconds.bubble,
        "update": seconds.update,
    }
    shares = [f"{name} {size / seconds.seconds:.0%}" for name, size in parts.items() if size / seconds.seconds >= 0.005]
    yield from _wrapped("  step     ", f"{seconds.seconds:.3g} s: {', '.join(shares)}")
    yield ""
    yield f"  GiB            {''.join(f'{name:>12}' for name in _PARTS[:-1])}{'reserve':>10}"
    for rank in item.memory.ranks:
        parts_of = "".join(f"{getattr(rank, part) / _GIB:>12.1f}" for part in _PARTS[:-1])
        yield f"  {rank.kind:<15}{parts_of}{rank.fragmentation / _GIB:>10.1f}"
    for rank in item.memory.ranks:
        host = f"; {_gib(rank.host)} of the host's memory" if rank.host else ""
        yield f"  {rank.kind}: {_gib(rank.total)} of {_gib(plan.capacity)}, fullest at: {rank.instant}{host}"
    flag = " --gradient_checkpointing" if step.checkpointing else ""
    yield (
        f"  start    llmkit pretrain ... --global_batch_size {plan.global_batch} "
        f"--per_device_train_batch_size {step.micro_batch}{flag}"
    )


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(label + text, _WIDTH, subsequent_indent=" " * len(label), drop_whitespace=True)


def _cost(plan: Plan, seconds: Speed) -> str:
    if plan.price is None:
        return ""
    hours = plan.tokens / seconds.tokens_per_second / 3600 * plan.cluster.processes
    return f", {hours:,.0f} GPU hours, {hours * plan.price:,.0f} at {plan.price:g} an hour"


def _remedy(plan: Plan, item: Planned) -> str:
    """Why a layout does not fit at its smallest, and the least that would change it."""
    rank = item.memory.fullest
    largest = max(_PARTS, key=lambda part: getattr(rank, part))
    needs = f"needs {_gib(rank.total)}, {_gib(getattr(rank, largest))} of it {largest}"
    return f"{needs}; {' or '.join(_remedies(plan, item, rank))}"


def _remedies(plan: Plan, item: Planned, rank: RankMemory) -> Iterator[str]:
    yield f"GPUs of {math.ceil(rank.total / _GIB)} GiB"
    if item.sizes["shard"] > 1 and item.sizes["replicate"] == 1:
        for times in (2, 4, 8, 16, 32, 64):
            shared = plan.global_batch % (item.data_ranks * times) == 0
            if shared and _with_more(plan, item, times) <= plan.capacity:
                yield f"{times * plan.cluster.machines} machines"
                break
    elif plan.cluster.processes > 1 and item.layout.engine == "plain" and item.layout.tensor == 1:
        yield "a layout that divides weights, gradients and optimizer state (fsdp2, zero3)"
    if not item.step.checkpointing:
        yield "gradient_checkpointing"


def _with_more(plan: Plan, item: Planned, times: int) -> int:
    """Bytes of the fullest process on so many times as many machines."""
    processes = plan.cluster.processes * times
    settings = dict(item.layout.settings)
    parallel = dict(settings.get("parallelism_config") or {})
    key = "parallelism_config_dp_shard_size"
    if key in parallel:
        settings["parallelism_config"] = {**parallel, key: parallel[key] * times}
    layout = replace(item.layout, settings=settings, shard=item.layout.shard and item.layout.shard * times)
    step = replace(item.step, accumulation=max(1, item.step.accumulation // times))
    return memory(plan.model, layout, processes, step).fullest.total


def _gib(size: float) -> str:
    return f"{size / _GIB:,.1f} GiB"


def _duration(seconds: float) -> str:
    days = seconds / 86400
    return f"{days:,.1f} days" if days >= 2 else f"{seconds / 3600:,.1f} hours"


def layout_file(plan: Plan, item: Planned) -> str:
    """The accelerate config of a layout, with a comment that says what it was chosen for."""
    model, step = plan.model, item.step
    flag = " --gradient_checkpointing" if step.checkpointing else ""
    comment = (
        f"# {item.name} for {plan.cluster.processes} x {plan.gpu.name}, by `llmkit plan`: {model.model_type} with "
        f"{model.parameters:,} parameters,\n"
        f"# {item.dimensions}; {_gib(item.memory.fullest.total)} of {_gib(plan.capacity)} a GPU.\n"
        f"#   llmkit pretrain --accelerate_config THIS_FILE --global_batch_size {plan.global_batch} "
        f"--per_device_train_batch_size {step.micro_batch}{flag}\n"
    )
    return comment + yaml.safe_dump(item.layout.settings, sort_keys=False)


def as_json(plan: Plan) -> dict[str, Any]:
    """All figures, sizes in bytes and times in seconds."""

    def described(item: Planned) -> dict[str, Any]:
        return {
            "name": item.name,
            "sizes": item.sizes,
            "fits": item.fits,
            "step": asdict(item.step),
            "data_ranks": item.data_ranks,
            "memory": [{**asdict(rank), "total": rank.total} for rank in item.memory.ranks],
            "speed": {
                **asdict(item.speed),
                "seconds": item.speed.seconds,
                "tokens_per_second": item.speed.tokens_per_second,
                "mfu": item.speed.mfu,
            },
            "run_seconds": plan.tokens / item.speed.tokens_per_second,
            "accelerate_config": item.layout.settings,
        }

    return {
        "model": asdict(plan.model),
        "parameters": plan.model.parameters,
        "cluster": asdict(plan.cluster),
        "gpu": asdict(plan.gpu),
        "gpu_memory": plan.capacity,
        "block_size": plan.block_size,
        "global_batch_size": plan.global_batch,
        "tokens": plan.tokens,
        "price_per_gpu_hour": plan.price,
        "assumptions": asdict(plan.assumptions),
        "best": plan.best.name if plan.best else None,
        "layouts": [described(item) for item in plan.layouts],
        "impossible": {candidate.name: candidate.reason for candidate in plan.impossible},
    }
