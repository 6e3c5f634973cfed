"""Evaluations side by side, each against the first. `compare.py` holds the command and stays light to import."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from llmkit.errors import ArtefactError
from llmkit.evaluation.comparison import (
    POWER,
    Comparison,
    bootstrap_cells,
    compare_means,
    compare_seeds,
    detectable_mean,
    detectable_share,
    holm,
    seed_error,
    sentence,
)
from llmkit.evaluation.intervals import LEVEL, bootstrap
from llmkit.evaluation.measured import Measured
from llmkit.pipeline.artefact import Artefact
from llmkit.pipeline.stage import changed_settings

_OVER_SEEDS = "mean_over_seeds"

_WEIGHED_BY = {"bits_per_byte": "bytes"}
"""The columns by which values count in the mean, where not all count alike."""

_EXAMPLE = ("text", "label", "text_sha256")
"""The columns that say what an example is; the last where the text is only its beginning."""

_TEXT = 90
"""Characters of an example on the terminal."""


@dataclass
class Run:
    """An evaluation as it lies on disk."""

    name: str
    artefact: Artefact
    record: dict[str, Any]
    """metrics.json."""
    columns: dict[str, list[Any]]
    """predictions.parquet."""

    @classmethod
    def open(cls, name: str) -> Run:
        """The evaluation in a directory.

        Raises:
            ArtefactError: there is none, or it keeps no value for each prediction.
        """
        artefact = Artefact.open(name, "evaluate")
        try:
            record = json.loads((artefact.directory / "metrics.json").read_text(encoding="utf-8"))
            columns = pyarrow.parquet.read_table(artefact.directory / "predictions.parquet").to_pydict()
        except (OSError, ValueError, pyarrow.ArrowException) as failure:
            raise ArtefactError(f"{name} cannot be read: {failure}; evaluate again with --force") from None
        whole = ("text_sha256",) if record.get("task") == "language-modeling" else ()  # its texts are cut
        needed = ("id", "text", "label", "prediction", "value", *whole)
        missing = [*(key for key in needed if key not in columns), *(key for key in ("task", "value_is") if key not in record)]
        if missing:
            raise ArtefactError(f"{name} has no {', '.join(missing)} that could be compared; evaluate again with --force")
        return cls(name, artefact, record, columns)

    @property
    def n(self) -> int:
        """How many examples it has."""
        return len(self.columns["id"])

    @cached_property
    def examples(self) -> list[tuple[str, ...]]:
        """Text and label of each example, and the hash of the whole text where it is cut. An id is none of it: it may be the
        name of a file, and a copy has another."""
        told = (self.columns[name] for name in _EXAMPLE if name in self.columns)
        return [tuple(map(str, example)) for example in zip(*told, strict=True)]

    @cached_property
    def digest(self) -> str:
        """One hash of its examples."""
        return hashlib.sha256(json.dumps(self.examples).encode()).hexdigest()

    @property
    def overall(self) -> list[dict[str, Any]]:
        """Its metrics of all examples, as metrics.json has them."""
        return [metric for metric in self.record.get("metrics", []) if metric.get("label") is None]

    @property
    def seeds(self) -> list[int]:
        """The seeds that it is the mean of; empty for one model."""
        return self.record["seeds"]["of"] if _OVER_SEEDS in self.columns else []

    @property
    def training(self) -> tuple[float, int]:
        """The standard deviation that training leaves to luck, and the number of seeds."""
        return self.record["seeds"]["value"]["sd_training"], len(self.seeds)

    @property
    def weights(self) -> np.ndarray | None:
        """How much each value counts in the mean; None where all count alike."""
        column = _WEIGHED_BY.get(self.record["value_is"])
        return np.array(self.columns[column], dtype=np.float64) if column in self.columns else None

    def measured(self, over_seeds: bool) -> Measured:
        """The values of its predictions; those of the first seed, or in the mean over all."""
        values = np.array(self.columns[_OVER_SEEDS if over_seeds else "value"], dtype=np.float64)
        groups = np.array(self.columns["group"]) if "group" in self.columns else None
        lower, perfect = bool(self.record.get("lower_is_better")), float(self.record.get("perfect", 1.0))
        return Measured([], [], values, self.record["value_is"], groups=groups, lower_is_better=lower, perfect=perfect)


def compare_runs(names: list[str]) -> dict[str, Any]:
    """Compare evaluations on the same examples, each with the first; docs/compare.md says what the keys mean.

    Raises:
        ArtefactError: one is no evaluation, or they are not comparable; says why.
    """
    reference, *others = [Run.open(name) for name in names]
    for other in others:
        _check_comparable(reference, other)
    over_seeds = all(run.seeds for run in (reference, *others))
    seed = int(reference.record.get("seed", 0))
    pairs = [Pair(reference, other, over_seeds, seed) for other in others]
    corrected = holm([pair.found.p_value for pair in pairs])
    theirs = pairs[0].theirs
    return {
        "task": reference.record["task"],
        "dataset": reference.record.get("dataset"),
        "split": reference.record.get("split"),
        "n": reference.n,
        "groups": None if theirs.groups is None else len(np.unique(theirs.groups)),
        "examples_sha256": reference.digest,
        "metric": theirs.metric,
        "lower_is_better": theirs.lower_is_better,
        "over_seeds": over_seeds,
        "interval": LEVEL,
        "seed": seed,
        "correction": "holm" if len(pairs) > 1 else None,
        "runs": [_told_run(run, over_seeds, seed) for run in (reference, *others)],
        "comparisons": [pair.told(p_value, len(pairs)) for pair, p_value in zip(pairs, corrected, strict=True)],
        "limits": list(_limits(reference, others, over_seeds)),
    }


def _told_run(run: Run, over_seeds: bool, seed: int) -> dict[str, Any]:
    mean = run.measured(over_seeds).mean(np.ones(run.n, dtype=bool), seed)
    found = {"value": mean.value, "low": mean.low, "high": mean.high}
    if over_seeds:
        found |= {name: run.record["seeds"]["value"][name] for name in ("low", "high")}
    else:  # as the evaluation tells it, where the value is one of its metrics
        told = (metric for metric in run.overall if _key(metric) == mean.name)
        found |= next(({name: metric[name] for name in found} for metric in told), {})
    model = run.artefact.manifest.config.get("model_name_or_path")
    return {"name": run.name, "model": model, "seeds": run.seeds, **found}


# --------------------------------------------------------------------------------------------------------------------
# What is comparable


def _check_comparable(reference: Run, other: Run) -> None:
    """Refuse evaluations that say nothing of each other.

    Raises:
        ArtefactError: naming what differs, and of examples the first that does.
    """
    for key, what in (
        ("task", "they are of different tasks"),
        ("value_is", "predictions are measured by different metrics"),
        ("lower_is_better", "what is better differs"),
        ("perfect", "their metrics have different scales"),
        ("signatures", "their metrics have different signatures"),
        ("split", "they are of different splits"),
    ):
        ours, theirs = reference.record.get(key), other.record.get(key)
        if ours != theirs:
            raise ArtefactError(f"{reference.name} and {other.name} cannot be compared: {what} ({ours} and {theirs})")
    for run in (reference, other):
        values = np.array(run.columns["value"], dtype=np.float64)
        if void := int((~np.isfinite(values)).sum()):
            raise ArtefactError(f"{run.name} cannot be compared: {void:,} of {run.n:,} examples have no value")
    if reference.digest != other.digest:
        first = _first_difference(reference, other)
        raise ArtefactError(f"{reference.name} and {other.name} cannot be compared: their examples differ. {first}")


def _first_difference(reference: Run, other: Run) -> str:
    for number, (ours, theirs) in enumerate(zip(reference.examples, other.examples, strict=False), start=1):
        for name, first, second in zip(_EXAMPLE, ours, theirs, strict=False):
            if first != second:
                identity = _line(str(reference.columns["id"][number - 1]))
                shown = f"{_line(first)!r} in {reference.name}, {_line(second)!r} in {other.name}"
                return f"The first is number {number}, id {identity!r}: its {name} is {shown}"
    return f"{reference.name} has {reference.n:,} of them, {other.name} {other.n:,}, alike as far as both go"


# --------------------------------------------------------------------------------------------------------------------
# Two of them


@dataclass
class Pair:
    """A run and the one that it is compared with."""

    reference: Run
    run: Run
    over_seeds: bool
    """Whether both are means over several seeds."""
    seed: int
    """Of resampling."""

    @cached_property
    def ours(self) -> Measured:
        """The values of the run."""
        return self.run.measured(self.over_seeds)

    @cached_property
    def theirs(self) -> Measured:
        """The values of the reference."""
        return self.reference.measured(self.over_seeds)

    @property
    def are_shares(self) -> bool:
        """Whether predictions are either right or wrong, and examples independent."""
        return not self.over_seeds and self.ours.are_shares(self.theirs)

    @property
    def training(self) -> list[tuple[float, int]]:
        """What both trainings leave to luck, and their numbers of seeds."""
        return [self.run.training, self.reference.training] if self.over_seeds else []

    @property
    def method(self) -> str:
        """How interval and p-value are made."""
        if self.are_shares:
            return "Bonett and Price's interval, McNemar's exact test"
        return "Student's interval and test over examples and seeds" if self.over_seeds else "paired bootstrap, sign-flip test"

    @cached_property
    def gains(self) -> np.ndarray:
        """By how much the run is better than the reference, float64 of shape [n]."""
        differences = self.ours.values - self.theirs.values
        return -differences if self.ours.lower_is_better else differences

    @cached_property
    def found(self) -> Comparison:
        """The difference, run minus reference, with an uncorrected p-value."""
        ours, theirs, name, weights = self.ours, self.theirs, self.reference.name, self.run.weights
        told = (ours.values, theirs.values, name, ours.metric)
        if self.over_seeds:
            return compare_seeds(*told, self.training, ours.groups, ours.lower_is_better)
        if weights is not None:
            return compare_means(*told, self.seed, ours.groups, ours.lower_is_better, weights)
        return ours.against(theirs, name, self.seed)

    def detectable(self, alpha: float) -> dict[str, Any]:
        """The smallest difference that so many examples could have shown, where a p-value has to be below alpha."""
        if self.are_shares:
            smallest = detectable_share(float((self.gains != 0).mean()), self.run.n, alpha)
            source = "power of McNemar's exact test at the share of examples that differ (Duffy 1984)"
        else:
            error = seed_error(self.gains, self.training, self.ours.groups, self.run.weights)
            smallest = detectable_mean(error, alpha)
            source = "standard error of the differences times the sum of two normal quantiles (Bloom 1995)"
        return {"difference": smallest, "power": POWER, "alpha": alpha, "source": source}

    def table(self) -> dict[str, int] | None:
        """On how many examples both are right, only one, or none; None where right and wrong is not all."""
        if not self.are_shares:
            return None
        right, were_right = self.ours.values > 0, self.theirs.values > 0
        return {
            "both_right": int((right & were_right).sum()),
            "only_reference": int((~right & were_right).sum()),
            "only_run": int((right & ~were_right).sum()),
            "both_wrong": int((~right & ~were_right).sum()),
        }

    def told(self, corrected: float, tests: int) -> dict[str, Any]:
        """All that is found of it.

        Args:
            corrected: the p-value, corrected for the number of tests that are made with this one.
        """
        found = replace(self.found, p_value=corrected)
        is_better = (found.difference > 0) != self.ours.lower_is_better
        better, worse = np.flatnonzero(self.gains > 0), np.flatnonzero(self.gains < 0)
        p_is = "p" if tests == 1 else f"p corrected for {tests} tests"
        lower, name = self.ours.lower_is_better, self.run.name
        metrics = {} if self.over_seeds else dict(_further(self.reference, self.run, self.ours.groups, self.seed))
        overall = [_key(metric) for metric in self.reference.overall]
        return {
            "reference": self.reference.name,
            "run": name,
            "differs_in": _differing_settings(self.reference, self.run),
            "method": self.method,
            "difference": found.difference,
            "low": found.low,
            "high": found.high,
            "p_value": self.found.p_value,
            "p_corrected": corrected,
            "finding": ("better" if is_better else "worse") if found.is_clear else "no evidence",
            "sentence": sentence(found, self.run.n, lower, self.are_shares, name, p_is),
            "table": self.table(),
            "better": len(better),
            "worse": len(worse),
            "equal": self.run.n - len(better) - len(worse),
            "detectable": self.detectable((1 - LEVEL) / tests),  # what Holm asks of the smallest p-value
            "metrics": metrics,
            "not_compared": [key for key in dict.fromkeys(overall) if key not in (self.ours.metric, *metrics)],
            "fixes": [self._example(place) for place in better[np.argsort(-self.gains[better], kind="stable")]],
            "breaks": [self._example(place) for place in worse[np.argsort(self.gains[worse], kind="stable")]],
        }

    def _example(self, place: int) -> dict[str, Any]:
        text, label, *_ = self.run.examples[place]
        found = {"id": str(self.run.columns["id"][place]), "text": text, "label": label}
        if not self.over_seeds:
            found |= {"reference_prediction": self.reference.columns["prediction"][place]}
            found |= {"prediction": self.run.columns["prediction"][place]}
        return found | {"reference_value": float(self.theirs.values[place]), "value": float(self.ours.values[place])}


def _key(metric: dict[str, Any]) -> str:
    return "_".join(filter(None, [metric["name"], metric.get("average")]))


def _differing_settings(reference: Run, run: Run) -> dict[str, list[Any]]:
    """The settings in which two evaluations, and the trainings of their models, differ."""
    pairs = [(reference.artefact, run.artefact)]
    models = [item.artefact.input("model_name_or_path") for item in (reference, run)]
    if models[0] and models[1]:
        pairs.append((models[0], models[1]))
    found = {}
    for first, second in pairs:
        ours, theirs = first.manifest.settings, second.manifest.settings
        for name in changed_settings(ours, theirs):
            found[f"{second.manifest.stage}.{name}"] = [ours.get(name), theirs.get(name)]
    return found


# --------------------------------------------------------------------------------------------------------------------
# Further metrics, from what predictions.parquet keeps


def _further(reference: Run, run: Run, groups: np.ndarray | None, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The metrics that can be computed again, each with the paired bootstrap interval of its difference."""
    if all("confusion" in item.record for item in (reference, run)):
        true, *given = (
            np.array(item) for item in (run.columns["label"], *(x.columns["prediction"] for x in (run, reference)))
        )
        yield "f1_macro", _macro_f1(true, given[0], given[1], seed)
    if all("exact_match" in item.columns for item in (reference, run)):
        ours, theirs = (np.array(item.columns["exact_match"], dtype=np.float64) for item in (run, reference))
        found = compare_means(ours, theirs, reference.name, "exact_match", seed, groups)
        yield "exact_match", _further_told(ours.mean(), theirs.mean(), found.low, found.high)
    if all("loss" in item.columns for item in (reference, run)) and reference.columns["tokens"] == run.columns["tokens"]:
        sums = np.array([run.columns["loss"], reference.columns["loss"], run.columns["tokens"]], dtype=np.float64).T
        ours, theirs = _perplexities(sums.sum(axis=0, keepdims=True))
        ends = bootstrap(sums, lambda totals: np.subtract(*_perplexities(totals)), seed, groups)
        yield "perplexity", _further_told(ours[0], theirs[0], *ends)


def _further_told(ours: float, theirs: float, low: float, high: float) -> dict[str, Any]:
    return {
        "reference_value": float(theirs),
        "value": float(ours),
        "difference": float(ours - theirs),
        "low": low,
        "high": high,
        "method": "paired bootstrap",
    }


def _perplexities(totals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both, from sums of both losses and of tokens, of shape [resamples, 3]."""
    ours, theirs, tokens = totals.T
    return np.exp(np.minimum(ours / tokens, 700)), np.exp(np.minimum(theirs / tokens, 700))


def _macro_f1(true: np.ndarray, ours: np.ndarray, theirs: np.ndarray, seed: int) -> dict[str, Any]:
    """Macro F1 of two classifiers over the classes that have examples, from the counts of (true, ours, theirs)."""
    labels, numbers = np.unique(np.concatenate([true, ours, theirs]), return_inverse=True)
    cells, counts = np.unique(numbers.reshape(3, -1), axis=1, return_counts=True)
    classes = len(labels)
    is_true, is_ours, is_theirs = np.eye(classes)[cells]  # of shape [cells, classes] each
    sums = np.concatenate([is_true, is_ours, is_theirs, is_true * is_ours, is_true * is_theirs], axis=1)
    present = counts @ is_true > 0

    def scores(totals: np.ndarray) -> list[np.ndarray]:
        support, predicted, also, hits, also_hits = np.split(totals, 5, axis=1)
        found = []
        for above, below in ((2 * hits, support + predicted), (2 * also_hits, support + also)):
            of_classes = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
            found.append(of_classes[:, present].mean(axis=1))
        return found

    values = scores((counts @ sums)[None])
    ends = bootstrap_cells(counts, sums, lambda totals: np.subtract(*scores(totals)), seed)
    return _further_told(values[0][0], values[1][0], *ends)


# --------------------------------------------------------------------------------------------------------------------
# In words


def _limits(reference: Run, others: list[Run], over_seeds: bool) -> Iterator[str]:
    """What the numbers do not show."""
    runs = [reference, *others]
    if not over_seeds:
        yield (
            "Intervals and tests are over the choice of examples, for the very models that were evaluated: other seeds give "
            "other models, and what a setting is worth takes several."
        )
        several = [run.name for run in runs if run.seeds]
        if several:
            yield f"Not every run has several seeds, so of {', '.join(dict.fromkeys(several))} the first is compared."
    if len(others) > 1:
        yield (
            f"Each run is compared with the first, {reference.name}, and with no other. p-values are corrected for their "
            f"number (Holm 1979); intervals are not, and each holds for itself."
        )


def describe(found: dict[str, Any], show: int) -> str:
    """What was found, for a terminal.

    Args:
        show: how many of the fixed and of the broken examples are shown.
    """
    grouped = f" in {found['groups']:,} groups" if found["groups"] else ""
    head = f"{found['metric']} on {found['dataset']} ({found['split']}), n = {found['n']:,}{grouped}"
    lines = [f"{head}, {100 * found['interval']:g}% intervals", ""]
    width = max(len(run["name"]) for run in found["runs"])
    for run in found["runs"]:
        over = f"  mean over seeds {', '.join(map(str, run['seeds']))}" if found["over_seeds"] else ""
        between = "no interval" if run["low"] is None else f"{run['low']:.3f} to {run['high']:.3f}"
        lines.append(f"  {run['name']:{width}}  {run['value']:.3f}  ({between}){over}")
    for pair in found["comparisons"]:
        lines += ["", *_described_pair(pair, show)]
    return "\n".join([*lines, "", *found["limits"]]).rstrip()


def _described_pair(pair: dict[str, Any], show: int) -> Iterator[str]:
    yield pair["sentence"]
    table, reference, run = pair["table"], pair["reference"], pair["run"]
    if table:
        columns = (f"{run} right", f"{run} wrong")
        rows = ((f"{reference} right", "both_right", "only_reference"), (f"{reference} wrong", "only_run", "both_wrong"))
        width = max(len(row[0]) for row in rows)
        yield f"  {'':{width}}  {columns[0]}  {columns[1]}"
        for name, first, second in rows:
            yield f"  {name:{width}}  {table[first]:>{len(columns[0])},}  {table[second]:>{len(columns[1])},}"
    else:
        yield f"  {run} is better on {pair['better']:,} examples, worse on {pair['worse']:,}, equal on {pair['equal']:,}"
    yield f"  {_could_show(pair)}"
    for name, metric in pair["metrics"].items():
        spread = f"({metric['low']:+.3f} to {metric['high']:+.3f})"
        values = f"{metric['reference_value']:.3f} and {metric['value']:.3f}"
        yield f"  {name}: {values}, difference {metric['difference']:+.3f} {spread}"
    if pair["not_compared"]:
        yield f"  not compared: {', '.join(pair['not_compared'])}"
    if pair["differs_in"]:
        told = (
            f"{name} ({_line(str(first), 30)}, {_line(str(second), 30)})"
            for name, (first, second) in pair["differs_in"].items()
        )
        yield f"  they differ in {', '.join(told)}"
    for kind, what in (("fixes", "better"), ("breaks", "worse")):
        examples = pair[kind]
        if examples and show:
            yield f"  {what} in {run}, {min(show, len(examples))} of {len(examples):,}:"
            for example in examples[:show]:
                label = f" [{_line(example['label'], 40)}]" if example["label"] else ""
                yield f"    {_line(example['id'], 20)}{label} {_change(example, bool(table))}: {_line(example['text'])}"


def _change(example: dict[str, Any], is_right_or_wrong: bool) -> str:
    """What the reference and the run gave, and how good that is where it is more than right or wrong."""
    values = f"{example['reference_value']:.3f} -> {example['value']:.3f}"
    given = [_line(str(example.get(name, "")), 40) for name in ("reference_prediction", "prediction")]
    if not any(given):
        return values
    change = " -> ".join(given)
    return change if is_right_or_wrong else f"{change} ({values})"


def _could_show(pair: dict[str, Any]) -> str:
    detectable = pair["detectable"]
    if detectable["difference"] is None:
        return "what difference so many examples could have shown cannot be said: too few of them, or none differs"
    size = f"{100 * detectable['difference']:.1f} points" if pair["table"] else f"{detectable['difference']:.3f}"
    return f"the smallest difference that so many examples show with {100 * detectable['power']:g}% probability: {size}"


def _line(text: str, limit: int = _TEXT) -> str:
    """Text from data on one line: what a terminal would obey or turn round, and more than fits, is left out."""
    plain = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"
