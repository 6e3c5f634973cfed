"""What made a step go wrong: `dumps/step-<n>/dump.json` in the directory of a run.

On a CPU a dump is written in its step. On an accelerator nobody waits for the verdict on a step (see `instability.py`), so it
is written at the next log or checkpoint: losses and gradient norms were kept from the step, but the weights have moved on, and
the dump says how far. `llmkit replay` makes the step again and gives them as they were.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llmkit.pipeline.artefact import DUMPS, write_synced
from llmkit.training.order import OrderedSamples

if TYPE_CHECKING:
    from llmkit.training.instability import Step

DUMP = "dump.json"

TEXT_CHARACTERS = 2_000
"""The text of a sample is cut to this length."""

_KEPT = 32
"""Dumps of a run; the oldest give way. The ledger names all the steps."""

_LAYER = re.compile(r"(.*?\.\d+)\.")


def describe(step: Step, parameters: dict[str, torch.Tensor] | None, updates: int, samples: list[dict[str, Any]]) -> Any:
    """The content of a dump.

    Args:
        parameters: the weights by name; None where no process has whole ones.
        updates: optimizer steps that these weights have behind them, made or skipped.
        samples: see `describe_samples`.
    """
    gradients = None
    if step.parameter_norms is not None:
        gradients = by_layer(dict(zip(step.parameters, step.parameter_norms.tolist(), strict=True)))
    weights = None
    if parameters is not None:
        norms = torch.stack(torch._foreach_norm([value.detach() for value in parameters.values()]))
        weights = by_layer(dict(zip(parameters, norms.tolist(), strict=True)))
    return {
        "step": step.number,
        "reason": step.reason,
        "was_skipped": step.was_skipped,
        "loss": step.losses.mean().item(),
        "loss_of_ranks": step.losses.tolist(),
        "grad_norm": step.grad_norm.item(),
        "grad_norm_of_layers": gradients,
        "weight_norm_of_layers": weights,
        "weights_after_step": updates,
        "samples": samples,
    }


def by_layer(norms: dict[str, float]) -> dict[str, float]:
    """Norms of parameters joined to those of layers: `model.layers.0`, or the module where there is no number."""
    joined: dict[str, list[float]] = {}
    for name, norm in norms.items():
        match = _LAYER.match(name)
        joined.setdefault(match.group(1) if match else name.rpartition(".")[0] or name, []).append(norm)
    # math.hypot calls anything infinite that holds an infinity, a NaN beside it or not.
    return {layer: math.nan if any(map(math.isnan, parts)) else math.hypot(*parts) for layer, parts in joined.items()}


def describe_samples(dataset: OrderedSamples, step: int, at_once: int, ranks: int, tokenizer: Any) -> list[dict[str, Any]]:
    """The samples of an optimizer step on all ranks: their order is known, so any process can read them.

    Args:
        step: as in the ledger, from 1.
        at_once: samples that a rank computes at once.
    """
    described = []
    for position, index in enumerate(dataset.of_step(step - 1).tolist()):
        ids = dataset.samples[index]["input_ids"][: 4 * TEXT_CHARACTERS].tolist()  # a character has up to four tokens
        text = tokenizer.decode(ids)[:TEXT_CHARACTERS] if tokenizer is not None else None
        passages_of = getattr(dataset.samples, "passages", lambda _: ())  # the examples of a task are not parts of documents
        passages = [asdict(passage) for passage in passages_of(index)]
        described.append({"sample": index, "rank": position // at_once % ranks, "documents": passages, "text": text})
    return described


def write(directory: Path, content: dict[str, Any]) -> Path:
    """Write the dump of a step into the directory of its run, and give way where there are many."""
    place = directory / DUMPS / f"step-{content['step']}"
    place.mkdir(parents=True, exist_ok=True)
    write_synced(place / DUMP, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    for _, oldest in sorted(_all(directory), reverse=True)[_KEPT:]:
        shutil.rmtree(oldest)
    return place


def discard_after(directory: Path, step: int) -> None:
    """Remove the dumps of steps that a resumed run makes again."""
    for number, place in _all(directory):
        if number > step:
            shutil.rmtree(place)


def _all(directory: Path) -> list[tuple[int, Path]]:
    return [(int(place.name.removeprefix("step-")), place) for place in (directory / DUMPS).glob("step-*")]
