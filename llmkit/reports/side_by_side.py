"""Everything that a page on several results tells: their metrics, how they differ, and whether they can be compared at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmkit.errors import ArtefactError, ConfigError
from llmkit.evaluation.compared import compare_runs
from llmkit.evaluation.comparison import Comparison, sentence
from llmkit.pipeline.artefact import Artefact
from llmkit.reports import facts, training, words
from llmkit.reports.charts import Series
from llmkit.reports.facts import Score, Told
from llmkit.reports.lineage import Node
from llmkit.reports.training import Training


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
    """With an uncorrected p-value; its sentence has the corrected one."""
    p_corrected: float
    """Corrected for the number of pairs."""
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
    p_is: str
    """What the p-values of the pairs are called."""
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
    trainings = [item for item in told if isinstance(item, Training)]
    metrics = list(_metrics(runs))
    compared, comparability = _compared(artefacts) if evaluations else (None, _held_out(trainings))
    pairs = list(_pairs(compared, names)) if compared else []
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
        p_is=_p_is(len(pairs)),
        settings=list(_settings(runs)),
        stages=list(_stages(runs)),
        curves=list(_curves(runs)),
        limits=list(compared["limits"]) if compared else [],
        notices=[f"{run.name}: {notice}" for run in runs for notice in run.told.notices],
        interval=evaluations[0].interval if evaluations else 0.95,
    )
    found.verdict = _verdict(found)
    found.limits += _limits(found)
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


def _compared(artefacts: Sequence[Artefact]) -> tuple[dict[str, Any] | None, str]:
    """What `llmkit compare` finds of evaluations, if they can be compared, and whether they can, in a sentence or two."""
    try:
        found = compare_runs([str(artefact.directory) for artefact in artefacts])
    except ArtefactError as refusal:
        return None, f"{refusal}."
    told = f"All were measured on the same {words.count(found['n'], 'example')} (texts and labels are equal)."
    if found["over_seeds"]:
        told += " The differences are of means over the seeds of each; the metrics are those of the first seed."
    return found, told


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


def _pairs(compared: dict[str, Any], names: Sequence[str]) -> Iterator[Pair]:
    """Each run against the first, under the names that they have on the page."""
    for name, pair in zip(names[1:], compared["comparisons"], strict=True):
        difference, low, high, p_corrected = (pair[key] for key in ("difference", "low", "high", "p_corrected"))
        found = Comparison(names[0], compared["metric"], difference, low, high, p_corrected)
        are_shares = pair["table"] is not None
        said = sentence(found, compared["n"], compared["lower_is_better"], are_shares, name, _p_is(len(names) - 1))
        finding = "no clear difference" if pair["finding"] == "no evidence" else pair["finding"]
        yield Pair(name, replace(found, p_value=pair["p_value"], sentence=said), p_corrected, finding)


def _p_is(tests: int) -> str:
    return "p" if tests < 2 else f"p corrected for {tests} tests"


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
        return " ".join(pair.found.sentence for pair in found.pairs)
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
    if found.kind == "evaluations" and not found.pairs:
        yield "No difference was tested, since the evaluations cannot be compared."
    if found.kind == "trainings":
        yield "Each was trained once: how far two trainings of the same settings differ is not known; there is no interval."
