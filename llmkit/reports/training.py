"""Everything that the report on a training by itself tells, of a `pretrain` or a `finetune` result."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmkit.pipeline.artefact import Artefact
from llmkit.reports import lineage, trained, verdict, words
from llmkit.reports.facts import Score, Traced
from llmkit.reports.words import finite

STAGES = ("pretrain", "finetune")
"""The stages whose results have a report without an evaluation."""

TITLES = {"pretrain": "Pretraining", "finetune": "Fine-tuning"}


@dataclass(kw_only=True)
class Training(Traced):
    """All that the report on a training tells."""

    stage: str
    scores: list[Score]
    """The losses at its end, and what was measured on held-out text or validation examples; none has an interval."""
    record: dict[str, Any]
    """What its manifest records as metrics."""


def gather(artefact: Artefact, title: str | None) -> Training:
    """Read a training and follow it back to the raw bytes."""
    root = lineage.walk(artefact)
    nodes = list(root.ancestors())
    metrics = artefact.manifest.metrics
    model = trained.model_at(root)
    told = Training(
        title=words.clean(title) if title else f"{TITLES[root.stage]} of {_name(artefact)}",
        verdict="",
        curves=list(trained.curves_of(model)),
        model=model,
        root=root,
        nodes=nodes,
        limits=[],
        notices=[f"{node.stage} ({node.directory}): {node.problem}" for node in nodes if node.problem],
        stage=root.stage,
        scores=list(_scores(metrics)),
        record=metrics,
    )
    told.verdict = _verdict(told)
    told.limits = list(_limits(told))
    return told


def _name(artefact: Artefact) -> str:
    """A directory is mostly called by its stage, and then the one above tells more."""
    place = artefact.directory.absolute()
    return place.parent.name if place.name == artefact.manifest.stage else place.name


def _scores(metrics: Mapping[str, Any]) -> Iterator[Score]:
    """The training loss, then all numbers of the validation that are measures."""
    loss = finite(metrics.get("train_loss"))
    if loss is not None:
        yield Score("training loss", loss)
    held_out = metrics.get("validation")
    if isinstance(held_out, Mapping):
        for key, value in held_out.items():
            # Whole numbers are counts, of examples and of what was cut or set aside.
            if isinstance(value, float) and finite(value) is not None and key != "also_in_training_share":
                yield Score(f"validation {trained.score_name(key)}", finite(value))


def _verdict(told: Training) -> str:
    """What was done and how far it came."""
    metrics, held_out = told.record, told.record.get("validation")
    steps = finite(metrics.get("steps"))
    kind = str(told.model.config.get("model_type") or "model")
    size = f" of {told.model.parameters:,} parameters" if told.model.parameters is not None else ""
    learned = ""
    if finite(metrics.get("tokens_learned")) is not None:
        epochs = finite(metrics.get("epochs"))
        times = f", {epochs:.3g} times the corpus," if epochs is not None else ""
        learned = f" on {metrics['tokens_learned']:,} tokens{times}"
    elif isinstance(metrics.get("train"), Mapping) and "examples" in metrics["train"]:
        learned = f" on {words.count(metrics['train']['examples'], 'example')}"
    done = f" in {words.count(int(steps), 'step')}" if steps is not None else ""
    start = f"A {words.clean(kind)} model{size} was trained{learned}{done}"
    measured = [score for score in told.scores if score.name.startswith("validation")]
    claims = [f"its {score.name} is {words.measure(score.value)}" for score in measured]
    if not isinstance(held_out, Mapping) or not claims:
        return f"{start}; nothing was measured on held-out text."
    counted = "token" if "tokens" in held_out else "example"
    n = finite(held_out.get(f"{counted}s"))
    where = f" on {words.count(int(n), f'held-out {counted}')}" if n is not None else ""
    return f"{start};{where} {words.listing(claims)}.".replace("  ", " ")


def _limits(told: Training) -> Iterator[str]:
    yield "One training was run. Another seed gives another model, and nothing here tells by how much it would differ."
    if any(score.name.startswith("validation") for score in told.scores):
        yield (
            "The validation figures have no interval, and may have been used to choose settings or a checkpoint; "
            "`llmkit evaluate` measures a task model on a test set, with intervals and baselines."
        )
    loss = next((score.value for score in told.scores if score.name == "validation loss"), None)
    if told.stage == "pretrain" and loss is not None and math.isfinite(loss):
        yield (
            "Loss and perplexity depend on the tokenizer and cannot be compared between tokenizers; bits per byte can, on the "
            "same text."
        )
    if told.stage == "pretrain":
        yield "What the model writes was not judged: the samples are texts after fixed prompts, and not chosen."
    yield from verdict.limits_of_lineage(told)
