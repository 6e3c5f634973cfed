"""What `llmkit plan` predicts for runs that others have published, and for such as nobody can try.

    python benchmarks/plan.py

prints the tables of docs/plan.md. The published figures and settings are those of torchtitan's benchmark of December 2024
(benchmarks/llama3_h100_202412_torchtitan.md in its repository); what the planner cannot plan is planned as the nearest that it
can, and the table says as what. Nothing is measured, and no assumption of the planner was fitted to these figures.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from llmkit.parallel.candidates import Candidate, Cluster, candidates
from llmkit.parallel.gpus import GPUS
from llmkit.parallel.memory import Architecture, Step, architecture
from llmkit.parallel.plan import Plan, make_plan

LENGTH = 8192

# Width, width of the MLP, layers, heads, key-value heads, vocabulary (Touvron et al. 2023, table 2; Grattafiori et al. 2024,
# table 3).
MODELS = {
    "7B": (4096, 11008, 32, 32, 32, 32_000),
    "8B": (4096, 14336, 32, 32, 8, 128_256),
    "70B": (8192, 28672, 80, 64, 8, 128_256),
    "405B": (16384, 53248, 126, 128, 8, 128_256),
}


@dataclass(frozen=True)
class Published:
    """A published run: tokens a second and GPU, and GiB where they are known."""

    source: str
    model: str
    gpus: int
    samples: int
    """Of a step, for each GPU."""
    layout: str
    tokens_per_second: float
    memory: float
    how: str
    """What it had that is not planned."""
    tensor: int = 1


RUNS = (
    Published("torchtitan", "8B", 8, 2, "fsdp2", 5762, 82.4, "selective checkpointing"),
    Published("torchtitan", "8B", 8, 2, "fsdp2", 6667, 77.0, "selective checkpointing, compiled"),
    Published("torchtitan", "8B", 128, 2, "fsdp2", 5605, 67.0, "selective checkpointing"),
    Published("torchtitan", "70B", 256, 2, "fsdp2_tp", 829, 71.9, "float8, compiled", tensor=8),
    Published("torchtitan", "405B", 512, 1, "zero3", 100, 82.5, "float8, compiled, FSDP 8 x TP 8 x PP 8, 1F1B"),
    Published("torchtitan", "405B", 512, 1, "zero3", 128, 72.7, "the same, interleaved"),
)
PLANS = (("7B", 64, 16), ("70B", 512, 2), ("405B", 4096, 1))
MEGATRON = (41, 48)
"""Per cent of MFU that Megatron-LM publishes for models from 2B to 462B parameters."""


def model_of(name: str) -> Architecture:
    from transformers import LlamaConfig

    width, inner, layers, heads, groups, vocabulary = MODELS[name]
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=vocabulary,
    )
    return architecture(config)


def plan_of(model: str, gpus: int, samples: int, layout: str | None = None, tensor: int = 1, **options: Any) -> Plan:
    """The plan for H100s, with so many samples of a step for each."""
    cluster, of_model = Cluster(8, gpus // 8), model_of(model)
    step = Step(1, LENGTH)
    only = None
    if layout:
        named = [item for item in candidates(of_model, cluster, LENGTH) if item.name == layout]
        only = next(item for item in named if item.layout is not None and item.layout.tensor == tensor)
        assert isinstance(only, Candidate)
    gpu = GPUS["h100"]
    return make_plan(of_model, cluster, gpu, gpu.memory * 2**30, step, gpus * samples, 1e12, only=only, **options)


def published_table() -> list[str]:
    lines = [
        "| run | H100s | it had | planned as | published tokens/s a GPU | planned | error | published GiB | planned | error |",
        "|---|---:|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for run in RUNS:
        item = plan_of(run.model, run.gpus, run.samples, run.layout, run.tensor, checkpointing=True).layouts[0]
        rate = item.speed.tokens_per_second / run.gpus
        assumed = f"{item.name}, {item.dimensions}, {item.step.micro_batch} at once, checkpointed"
        needed = item.memory.fullest.total / 2**30
        lines.append(
            f"| {run.source} {run.model} | {run.gpus} | {run.how} | {assumed} | {run.tokens_per_second:,.0f} | {rate:,.0f} | "
            f"{rate / run.tokens_per_second - 1:+.0%} | {run.memory:g} | {needed:.0f} | {needed / run.memory - 1:+.0%} |"
        )
    return lines


def plans_table() -> list[str]:
    lines = [
        "| model | H100s | fastest that fits | batch | GiB | tokens/s a GPU | MFU | Megatron-LM's MFU |",
        "|---|---:|---|---|---:|---:|---:|---:|",
    ]
    for model, gpus, samples in PLANS:
        best = plan_of(model, gpus, samples).best
        assert best is not None
        kept = ", checkpointed" if best.step.checkpointing else ""
        batch = f"{best.step.micro_batch} x {best.step.accumulation} x {best.data_ranks}{kept}"
        lines.append(
            f"| {model} | {gpus:,} | {best.name}: {best.dimensions} | {batch} | {best.memory.fullest.total / 2**30:.0f} | "
            f"{best.speed.tokens_per_second / gpus:,.0f} | {best.speed.mfu:.0%} | {MEGATRON[0]} to {MEGATRON[1]}% |"
        )
    return lines


def tables() -> str:
    """Both, as they stand in docs/plan.md."""
    return "\n".join([*published_table(), "", *plans_table()]) + "\n"


def parse(words: list[str] | None = None) -> argparse.Namespace:
    return argparse.ArgumentParser(description="Predictions of `llmkit plan` beside published runs.").parse_args(words)


if __name__ == "__main__":
    parse()
    print(tables(), end="")
