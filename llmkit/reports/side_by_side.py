"""Everything that a page on several results tells: their metrics, how they differ, and whether they can be compared at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.errors import ConfigError
from llmkit.evaluation.comparison import Comparison, compare_accuracy, compare_means
from llmkit.pipeline.artefact import Artefact
from llmkit.reports import facts, training, words
from llmkit.reports.charts import Series
from llmkit.reports.facts import PREDICTIONS, Score, Told
from llmkit.reports.lineage import Node
from llmkit.reports.training import Training
from llmkit.tasks.base import normalised


@dataclass
class Run:
    """One of the results."""

    name: str
    """What tells its directory from those of the others."""
    told: Told | Training


@dataclass
class Pair:
    """A result against the first one, on the same examples."""

    run: str
    found: Comparison
    finding: str
    """`better`, `worse` or `no clear difference`."""


@dataclass(kw_only=True)
class SideBySide:
    """All that a page on several results tells."""

    title: str
    verdict: str
    kind: str
    """`evaluations` or `trainings`."""
    runs: list[Run]
    metrics: list[tuple[str, list[Score | None]]]
    """Each metric that one of them has, with the value of each."""
    headline: list[str]
    """The metrics that are drawn."""
    comparability: str
    """Whether the figures can be compared, in a sentence."""
    pairs: list[Pair]
    settings: list[tuple[str, list[str]]]
    """The settings in which the stages of the same name differ."""
    stages: list[tuple[str, list[str]]]
    """Stages with the fingerprint that each run has of them."""
    curves: list[tuple[str, list[Series]]]
    limits: list[str]
    notices: list[str]
    interval: float


def gather(artefacts: Sequence[Artefact], title: str | None) -> SideBySide:
    """Read several evaluations, or several trainings.

    Raises:
        ArtefactError: files of one of them are not those that its manifest describes.
        ConfigError: they are of both kinds, or one stands there twice.
        DataError: the metrics or predictions of an evaluation lack what a report needs.
    """
    is_evaluation = [artefact.manifest.stage == "evaluate" for artefact in artefacts]
    names = distinct_names([artefact.directory.absolute() for artefact in artefacts])
    if len(set(is_evaluation)) > 1:
        kinds = ", ".join(f"{artefact.directory} is of {artefact.manifest.stage}" for artefact in artefacts)
        raise ConfigError([f"runs: evaluations and trainings have nothing in common to set side by side: {kinds}"])
    told = [facts.gather(item, None, 0) if is_evaluation[0] else training.gather(item, None) for item in artefacts]
    runs = [Run(name, item) for name, item in zip(names, told, strict=True)]
    evaluations = [item for item in told if isinstance(item, Told)]
    metrics = list(_metrics(runs))
    same, comparability = _comparability(runs)
    pairs = list(_pairs(runs)) if same else []
    drawn = [score.title for item in evaluations for score in item.headline] or [name for name, _ in metrics]
    found = SideBySide(
        title=words.clean(title) if title else f"{len(runs)} {'evaluations' if evaluations else 'trainings'} side by side",
        verdict="",
        kind="evaluations" if evaluations else "trainings",
        runs=runs,
        metrics=metrics,
        headline=list(dict.fromkeys(drawn))[:4],
        comparability=comparability,
        pairs=pairs,
        settings=list(_settings(runs)),
        stages=list(_stages(runs)),
        curves=list(_curves(runs)),
        limits=[],
        notices=[f"{run.name}: {notice}" for run in runs for notice in run.told.notices],
        interval=evaluations[0].interval if evaluations else 0.95,
    )
    found.verdict = _verdict(found)
    found.limits = list(_limits(found))
    return found


def distinct_names(places: Sequence[Path]) -> list[str]:
    """What tells directories apart: their paths without the parts that all have in common at either end.

    Raises:
        ConfigError: a directory stands there twice.
    """
    if len(set(places)) < len(places):
        raise ConfigError([f"runs: {next(str(place) for place in places if places.count(place) > 1)} stands there twice"])
    parts = [list(place.parts) for place in places]
    while all(len(item) > 1 for item in parts) and len({item[0] for item in parts}) == 1:
        parts = [item[1:] for item in parts]
    while all(len(item) > 1 for item in parts) and len({item[-1] for item in parts}) == 1:
        parts = [item[:-1] for item in parts]
    return ["/".join(item) for item in parts]


# --------------------------------------------------------------------------------------------------------------------
# Metrics


def _scores(run: Run) -> list[Score]:
    return facts.shown_scores(run.told.scores) if isinstance(run.told, Told) else run.told.scores


def _metrics(runs: Sequence[Run]) -> Iterator[tuple[str, list[Score | None]]]:
    scores = [{score.title: score for score in _scores(run)} for run in runs]
    for name in dict.fromkeys(name for found in scores for name in found):
        yield name, [found.get(name) for found in scores]


def _examples(run: Run) -> Any:
    """The predictions of an evaluation in an order that does not depend on the order of the test set; None without any."""
    assert run.told.root.artefact is not None
    table = facts.read_predictions(run.told.root.artefact.directory / PREDICTIONS)
    return None if table is None else table.sort_by([(name, "ascending") for name in ("id", "text", "label")])


def _digest(table: Any) -> str:
    """Of ids, inputs and labels: equal digests mean the same examples."""
    columns = [table[name].to_pylist() for name in ("id", "text", "label")]
    return hashlib.sha256(json.dumps(columns).encode()).hexdigest()


def _comparability(runs: Sequence[Run]) -> tuple[bool, str]:
    """Whether all were measured on the same examples by the same metric, and that in a sentence."""
    told = [run.told for run in runs if isinstance(run.told, Told)]
    if not told:
        return False, _held_out([run.told for run in runs if isinstance(run.told, Training)])
    for name, title in (("task", "tasks"), ("n", "numbers of examples")):
        values = list(dict.fromkeys(str(getattr(item, name)) for item in told))
        if len(values) > 1:
            return False, f"They cannot be compared: their {title} differ ({words.listing(values)})."
    measures = list(dict.fromkeys(str(item.record.get("value_is") or "accuracy") for item in told))
    if len(measures) > 1:
        return False, f"They cannot be compared: they were measured by {words.listing(measures)}."
    tables = [_examples(run) for run in runs]
    absent = [run.name for run, table in zip(runs, tables, strict=True) if table is None]
    if absent:
        return False, f"Whether they were measured on the same examples is not known: {words.listing(absent)} kept none."
    if len({_digest(table) for table in tables}) > 1:
        return False, "They were measured on different examples, and their figures cannot be compared."
    return True, f"All were measured on the same {words.count(told[0].n, 'example')} (ids, inputs and labels are equal)."


def _held_out(trainings: Sequence[Training]) -> str:
    """Whether losses are means over the same held-out text in the same tokens, in a sentence."""
    found = set()
    for told in trainings:
        shards = tuple(sorted(node.fingerprint for node in told.root.inputs.values() if node.stage == "tokenize"))
        validation = told.record.get("validation")
        examples = validation.get("sha256") if isinstance(validation, dict) else None
        found.add((told.stage, told.record.get("task"), shards, examples))
    (stage, _, shards, examples), *others = found
    if others or not (shards or examples):
        return (
            "It is not known that their losses were measured on the same held-out text in the same tokens, so they cannot be "
            "compared."
        )
    data = "token shards" if stage == "pretrain" else "validation examples"
    return f"All were measured on the same {data}, so their losses can be compared."


def _pairs(runs: Sequence[Run]) -> Iterator[Pair]:
    """Each run against the first, paired by example."""
    tables = [_examples(run) for run in runs]
    first, told = tables[0], runs[0].told
    assert isinstance(told, Told)
    metric, is_error = str(told.record.get("value_is") or "accuracy"), bool(told.record.get("lower_is_better"))
    groups, weights = _groups(first), _weights(first, metric)
    theirs = np.array(first["value"].to_pylist(), dtype=np.float64) * weights
    for run, table in zip(runs[1:], tables[1:], strict=True):
        mine = np.array(table["value"].to_pylist(), dtype=np.float64) * weights
        is_share = groups is None and not is_error and bool(np.isin([mine, theirs], (0.0, 1.0)).all())
        if is_share:
            found = compare_accuracy(mine > 0, theirs > 0, runs[0].name, metric)
        else:
            found = compare_means(mine, theirs, runs[0].name, metric, told.seed or 0, groups, is_error)
        finding = facts.finding(found.difference, found.low, found.high, found.p_value, told.interval, is_error)
        yield Pair(run.name, found, finding)


def _weights(table: Any, metric: str) -> Any:
    """How much an example counts in the metric, 1 in the mean: bits per byte of a corpus are those of all its bytes."""
    if metric != "bits_per_byte" or "bytes" not in table.column_names:
        return 1.0
    sizes = np.array(table["bytes"].to_pylist(), dtype=np.float64)
    return sizes / sizes.mean()


def _groups(table: Any) -> np.ndarray | None:
    """The number of the context that each question is about, as the evaluation counted them; None where there are none."""
    if "context_start" not in table.column_names:
        return None
    numbers: dict[str, int] = {}
    pairs = zip(table["text"].to_pylist(), table["context_start"].to_pylist(), strict=True)
    return np.array([numbers.setdefault(normalised(text[start:]), len(numbers)) for text, start in pairs])


# --------------------------------------------------------------------------------------------------------------------
# How they were made


def _by_stage(run: Run) -> dict[str, Node]:
    return {node.stage: node for node in run.told.nodes}


def _settings(runs: Sequence[Run]) -> Iterator[tuple[str, list[str]]]:
    """Settings of stages that all have, where they differ; inputs and places are not among them."""
    nodes = [_by_stage(run) for run in runs]
    for stage in dict.fromkeys(stage for found in nodes for stage in found):
        of_stage = [found[stage].artefact if stage in found else None for found in nodes]
        manifests = [artefact.manifest for artefact in of_stage if artefact is not None]
        if len(manifests) < len(runs):
            continue
        for key in dict.fromkeys(key for manifest in manifests for key in manifest.config):
            values = [manifest.config.get(key) for manifest in manifests]
            is_input = any(port.split(".")[0] == key for manifest in manifests for port in manifest.inputs)
            if not is_input and any(value != values[0] for value in values):
                yield f"{stage}: {key}", [words.setting_of(value) for value in values]


def _stages(runs: Sequence[Run]) -> Iterator[tuple[str, list[str]]]:
    nodes = [_by_stage(run) for run in runs]
    for stage in dict.fromkeys(stage for found in nodes for stage in found):
        yield stage, [found[stage].fingerprint[:12] if stage in found else words.MISSING for found in nodes]


def _curves(runs: Sequence[Run]) -> Iterator[tuple[str, list[Series]]]:
    """Losses of the same stage together: of the validation where all have it, or else of the training."""
    stages = dict.fromkeys(item.stage for run in runs for item in run.told.curves)
    for stage in stages:
        of_stage = [(run.name, item) for run in runs for item in run.told.curves if item.stage == stage]
        for kind in ("validation", "training"):
            lines = [
                Series(name, next((line.points for line in item.loss if line.name == kind), [])) for name, item in of_stage
            ]
            if lines and all(line.points for line in lines):
                yield f"{training.TITLES.get(stage, stage)}: {kind} loss", lines


# --------------------------------------------------------------------------------------------------------------------
# In words


def _verdict(found: SideBySide) -> str:
    if found.pairs:
        return " ".join(f"{pair.run}: {pair.found.sentence[0].lower()}{pair.found.sentence[1:]}" for pair in found.pairs)
    if found.kind == "trainings":
        loss = next((row for row in found.metrics if row[0] == "validation loss"), None)
        values = [
            f"{words.measure(score.value)} for {run.name}"
            for run, score in zip(found.runs, loss[1] if loss else [], strict=False)
            if score is not None
        ]
        return (f"The validation loss is {words.listing(values)}. " if values else "") + found.comparability
    return found.comparability


def _limits(found: SideBySide) -> Iterator[str]:
    if found.pairs:
        yield (
            "Each difference holds for these models on these examples. That other seeds of the same settings would differ "
            "in the same way is not shown."
        )
    if len(found.pairs) > 1:
        yield (
            f"{len(found.pairs)} differences were tested, each as if it were the only one; `llmkit compare` corrects for "
            f"their number."
        )
    if found.kind == "evaluations" and not found.pairs:
        yield "No difference was tested, since the examples are not known to be the same."
    if found.kind == "trainings":
        yield "Each was trained once: how far two trainings of the same settings differ is not known; there is no interval."
