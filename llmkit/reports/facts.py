"""Everything that the report on an evaluation tells, read from it and from what it was made from.

Nothing is drawn here, and nothing is worded for one format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.errors import ArtefactError, DataError
from llmkit.pipeline.artefact import Artefact
from llmkit.reports import examples, lineage, trained, verdict, words
from llmkit.reports.examples import Example
from llmkit.reports.lineage import Node
from llmkit.reports.trained import Curves, Model
from llmkit.reports.words import finite

METRICS = "metrics.json"
PREDICTIONS = "predictions.parquet"

_LOWER_IS_BETTER = {"loss", "log_loss", "mse", "mae", "perplexity", "bits_per_byte", "ter", "brier", "ece", "error"}
_AFTER_SHARES = {"mcc", "roc_auc", "pr_auc", "log_loss", "brier", "ece"}


@dataclass
class Score:
    """One metric with its interval."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    average: str | None = None
    label: str | None = None
    method: str | None = None

    @property
    def key(self) -> str:
        return "_".join(filter(None, [self.average, self.name]))

    @property
    def title(self) -> str:
        return words.metric_title(self.name, self.average)


@dataclass
class Baseline:
    """Something simpler that was measured on the same examples."""

    name: str
    detail: str
    scores: list[Score]


@dataclass
class Comparison:
    """The model against a baseline in one metric, on the same examples."""

    baseline: str
    metric: str
    average: str | None
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    finding: str
    """`better`, `worse`, `no clear difference` or `not tested`."""

    @property
    def standing(self) -> str:
        return "not clearly different" if self.finding == "no clear difference" else self.finding

    @property
    def title(self) -> str:
        return words.metric_title(self.metric, self.average)


@dataclass
class ClassRow:
    """The scores of one class."""

    label: str
    support: int | None
    scores: dict[str, Score]


@dataclass
class Predictions:
    """What single predictions show."""

    n: int
    right: int
    shown: list[Example]
    """Those that the page shows, the worst errors first."""
    measure: str | None = None
    """What tells how good a prediction is, where it is more than right or wrong."""

    @property
    def are_judged(self) -> bool:
        return examples.are_judged(self.shown)

    @property
    def errors(self) -> list[Example]:
        """Those of the shown that are not wholly right."""
        return [example for example in self.shown if not example.is_right]


@dataclass
class OverSeeds:
    """A metric of the models of several seeds on the same test examples."""

    title: str
    values: dict[str, float]
    """By seed."""
    mean: float
    low: float
    high: float
    sd: float
    apart: Mapping[str, float] | None = None
    """What `llmkit.evaluation.seeds.two_way` says of it; None where values of single examples are not what it is made of."""


@dataclass
class Overlap:
    """Test examples whose text the model had met before."""

    train: int
    validation: int
    either: int
    without: Score | None
    """Accuracy on the other examples."""


@dataclass(kw_only=True)
class Traced:
    """What a report on any one result tells."""

    title: str
    verdict: str
    curves: list[Curves]
    model: Model
    root: Node
    """The result that is reported on."""
    nodes: list[Node]
    """The lineage, raw bytes first and the result last."""
    limits: list[str]
    notices: list[str]
    """What is not as it should be: missing stages, numbers that do not agree."""


@dataclass(kw_only=True)
class Told(Traced):
    """All that the report on an evaluation tells."""

    task: str
    dataset: str
    split: str
    n: int
    interval: float
    seed: int | None
    scores: list[Score]
    headline: list[Score]
    baselines: list[Baseline]
    comparisons: list[Comparison]
    classes: list[ClassRow]
    labels: list[str]
    confusion: list[list[int]]
    overlap: Overlap | None
    """None where it was not looked for."""
    predictions: Predictions | None
    worst_errors: int
    """How many errors stand on the page for readers without scripts."""
    seeds: list[OverSeeds]
    """Empty where one model was evaluated."""
    record: dict[str, Any]
    """metrics.json as it stands."""

    @property
    def evaluation(self) -> Node:
        return self.root

    @property
    def absent(self) -> list[str]:
        """The classes of which the test set has no example."""
        return [row.label for row in self.classes if row.support == 0]

    def reason(self, key: str) -> str:
        """Why something was left out of the evaluation, as the end of a sentence; empty where it does not say."""
        reason = self.record.get(key)
        return f": {reason}" if isinstance(reason, str) else ""


def gather(artefact: Artefact, title: str | None, worst_errors: int) -> Told:
    """Read an evaluation and follow it back to the raw bytes.

    Raises:
        ArtefactError: its files are not those that its manifest describes.
        DataError: its metrics or predictions lack what a report needs.
    """
    changed = artefact.damaged(hashes=True)
    if changed:
        raise ArtefactError(f"{artefact.directory} was changed after it was made: {changed[0]}; evaluate again with --force")
    record = _read_metrics(artefact.directory / METRICS)
    root = lineage.walk(artefact)
    nodes = list(root.ancestors())
    notices = [f"{node.stage} ({node.directory}): {node.problem}" for node in nodes if node.problem]

    scores = _scores(record["metrics"])
    interval = finite(record.get("interval")) or 0.95
    baselines = [
        Baseline(str(item.get("name", "baseline")), str(item.get("detail") or ""), _scores(item.get("metrics") or []))
        for item in record.get("baselines") or []
    ]
    comparisons = [_comparison(item, interval) for item in record.get("comparison") or []]
    labels = [str(label) for label in record.get("labels") or []]
    confusion = _confusion(record, labels)
    overall = [score for score in scores if score.label is None]
    headline = _headline(overall, record.get("headline"))
    task, dataset = str(record.get("task") or "evaluation"), str(record.get("dataset") or "")
    model = trained.model_of(root)
    told = Told(
        title=words.clean(title) if title else verdict.title(task, dataset),
        task=task,
        dataset=dataset,
        split=str(record.get("split") or ""),
        n=int(record["n"]),
        interval=interval,
        seed=record.get("seed"),
        scores=overall,
        headline=headline,
        baselines=baselines,
        comparisons=comparisons,
        verdict="",
        classes=_classes(scores, labels, confusion),
        labels=labels,
        confusion=confusion,
        overlap=_overlap(record),
        predictions=_predictions(artefact.directory / PREDICTIONS, record),
        worst_errors=worst_errors,
        seeds=list(_over_seeds(record, overall)),
        curves=list(trained.curves_of(model)),
        model=model,
        root=root,
        nodes=nodes,
        limits=[],
        notices=notices,
        record=record,
    )
    told.notices += _disagreements(told)
    told.verdict = verdict.verdict(told)
    told.limits = list(verdict.limits(told))
    return told


# --------------------------------------------------------------------------------------------------------------------
# Metrics


def _read_metrics(path: Path) -> dict[str, Any]:
    try:
        record = _clean(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise DataError(f"{path} is missing; evaluate again with --force") from None
    except (OSError, ValueError) as failure:
        raise DataError(f"{path} cannot be read: {failure}; evaluate again with --force") from None
    problems = []
    if not isinstance(record, dict):
        problems.append("it is not a mapping")
    else:
        if not isinstance(record.get("metrics"), list):
            problems.append("`metrics` is not a list")
        if not isinstance(record.get("n"), int):
            problems.append("`n`, the number of examples, is not a whole number")
    if problems:
        raise DataError(f"{path}: {'; '.join(problems)}; was it written by another version of `llmkit evaluate`?")
    return record


def _clean(value: Any) -> Any:
    """All texts without what no file can carry, such as half of a surrogate pair (JSON can spell one)."""
    if isinstance(value, dict):
        return {words.clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return words.clean(value) if isinstance(value, str) else value


def _scores(records: Sequence[Mapping[str, Any]]) -> list[Score]:
    return [
        Score(
            name=str(item.get("name", "metric")),
            value=finite(item.get("value")),
            low=finite(item.get("low")),
            high=finite(item.get("high")),
            n=item["n"] if isinstance(item.get("n"), int) else None,
            average=item.get("average"),
            label=None if item.get("label") is None else str(item["label"]),
            method=item.get("method"),
        )
        for item in records
    ]


def matching(scores: Sequence[Score], wanted: Score) -> Score | None:
    """The same metric of something else."""
    same = (
        score for score in scores if (score.name, score.average, score.label) == (wanted.name, wanted.average, wanted.label)
    )
    return next(same, None)


def shown_scores(overall: Sequence[Score]) -> list[Score]:
    """Accuracy, then what weighs every class the same, then the other averages, then what is no share of predictions.

    With one label for each example every micro average is the accuracy again, and is left out.
    """
    accuracy = next((score.value for score in overall if score.name == "accuracy"), None)
    kept = [score for score in overall if score.average != "micro" or score.value is None or score.value != accuracy]
    order = {None: 0, "macro": 1, "weighted": 2, "micro": 3}

    def place(score: Score) -> tuple[bool, bool, int, bool]:
        return score.name != "accuracy", score.name in _AFTER_SHARES, order.get(score.average, 9), score.name != "f1"

    return sorted(kept, key=place)


def _headline(overall: Sequence[Score], keys: Any) -> list[Score]:
    """What the evaluation tells first; where it does not say it, accuracy and macro F1, or the first two metrics."""
    wanted = keys if isinstance(keys, list) else ["accuracy", "f1_macro"]
    chosen = [score for key in wanted for score in overall if "_".join(filter(None, [score.name, score.average])) == key]
    return chosen or list(overall[:2])


def _comparison(item: Mapping[str, Any], interval: float) -> Comparison:
    difference, low, high = (finite(item.get(key)) for key in ("difference", "low", "high"))
    p_value = finite(item.get("p_value"))
    metric = str(item.get("metric", "metric"))
    return Comparison(
        baseline=str(item.get("baseline", "baseline")),
        metric=metric,
        average=item.get("average"),
        difference=difference,
        low=low,
        high=high,
        p_value=p_value,
        finding=finding(difference, low, high, p_value, interval, metric in _LOWER_IS_BETTER),
    )


def finding(
    difference: float | None,
    low: float | None,
    high: float | None,
    p_value: float | None,
    interval: float,
    lower_is_better: bool,
) -> str:
    """A difference counts only where its interval leaves out zero and, if there is a test, the test agrees."""
    if difference is None or (p_value is None and (low is None or high is None)):
        return "not tested"
    apart = low is None or high is None or low > 0 or high < 0
    significant = p_value is None or p_value < 1 - interval
    if not apart or not significant or difference == 0:
        return "no clear difference"
    return "worse" if (difference < 0) != lower_is_better else "better"


def _confusion(record: Mapping[str, Any], labels: list[str]) -> list[list[int]]:
    rows = record.get("confusion") or []
    square = len(rows) == len(labels) and all(isinstance(row, list) and len(row) == len(labels) for row in rows)
    return [[int(value) for value in row] for row in rows] if square else []


def _classes(scores: Sequence[Score], labels: list[str], confusion: list[list[int]]) -> list[ClassRow]:
    named = dict.fromkeys([*labels, *(score.label for score in scores if score.label is not None)])
    rows = []
    for label in named:
        own = {score.name: score for score in scores if score.label == label}
        if not own:
            continue
        support = sum(confusion[labels.index(label)]) if confusion and label in labels else None
        if support is None:
            counted = [own[name] for name in ("recall", "f1", *own) if name in own]  # precision counts predictions
            support = next((score.n for score in counted if score.n is not None), None)
        rows.append(ClassRow(label, support, own))
    return rows


def _overlap(record: Mapping[str, Any]) -> Overlap | None:
    found = record.get("overlap")
    if not isinstance(found, dict):
        return None
    try:
        train, validation, either = (int(found[part]["examples"]) for part in ("train", "validation", "either"))
        return Overlap(train, validation, either, _scores([found["without"]])[0])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DataError(f"`overlap` in {METRICS} is not what `llmkit evaluate` writes; evaluate again with --force") from None


def _over_seeds(record: Mapping[str, Any], overall: Sequence[Score]) -> Iterator[OverSeeds]:
    titles = {"_".join(filter(None, [score.name, score.average])): score.title for score in overall}
    seeds = record.get("seeds") or {}
    value = seeds.get("value") or {}
    for key, found in (seeds.get("metrics") or {}).items():
        mean, low, high, sd = (float(found[name]) for name in ("mean", "low", "high", "sd"))
        yield OverSeeds(titles.get(key, key), found["values"], mean, low, high, sd, value if value.get("of") == key else None)


def class_metrics(rows: Sequence[ClassRow]) -> list[str]:
    """The metrics that classes have: precision, recall and F1 first, then up to three others."""
    usual = ("precision", "recall", "f1")
    present = dict.fromkeys(name for row in rows for name in row.scores)
    return [name for name in usual if name in present] + [name for name in present if name not in usual][:3]


def confusions(told: Told, limit: int) -> list[tuple[str, str, int, int]]:
    """The most frequent mistakes: true label, prediction, how often, and how often the true label occurs."""
    pairs = [
        (told.labels[row], told.labels[column], count, sum(counts))
        for row, counts in enumerate(told.confusion)
        for column, count in enumerate(counts)
        if row != column and count
    ]
    return sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))[:limit]


# --------------------------------------------------------------------------------------------------------------------
# Predictions


def read_predictions(path: Path) -> Any:
    """predictions.parquet as a `pyarrow.Table`, its texts as strings, with a `value` and a `score` for each; None where there
    is no such file.

    Raises:
        DataError: it is not what `llmkit evaluate` writes.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as failure:
        raise DataError(f"{path} cannot be read: {failure}; evaluate again with --force") from None
    missing = [name for name in ("id", "text", "label", "prediction") if name not in table.column_names]
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(table.column_names)}")
    for name in ("id", "text", "label", "prediction"):
        table = table.set_column(table.column_names.index(name), name, pc.cast(table[name], pa.string()))
    if "value" not in table.column_names:
        is_equal = pc.fill_null(pc.equal(table["label"], table["prediction"]), False)
        table = table.append_column("value", pc.cast(is_equal, pa.float64()))
    if "score" not in table.column_names:
        table = table.append_column("score", pa.nulls(table.num_rows, pa.float64()))
    return table


def _predictions(path: Path, record: Mapping[str, Any]) -> Predictions | None:
    """What the single predictions show; None where the evaluation kept none."""
    import pyarrow.compute as pc

    table = read_predictions(path)
    if table is None or table.num_rows == 0:
        return None if table is None else Predictions(0, 0, [])
    is_error, perfect = bool(record.get("lower_is_better")), finite(record.get("perfect")) or 1.0
    is_right = pc.less_equal(table["value"], 0.0) if is_error else pc.greater_equal(table["value"], perfect)
    is_right = pc.fill_null(is_right, False)
    right = pc.sum(is_right).as_py()
    graded = is_error or record.get("value_is", "accuracy") != "accuracy"
    shown = examples.chosen(table, is_right, is_error, str(record.get("task")), graded)
    return Predictions(table.num_rows, right, shown, str(record.get("value_is") or "value") if graded else None)


def _disagreements(told: Told) -> Iterator[str]:
    """Numbers of the evaluation that contradict each other, counted again from the single predictions."""
    if told.confusion and sum(map(sum, told.confusion)) != told.n:
        yield f"the confusion matrix counts {sum(map(sum, told.confusion)):,} examples, the evaluation {told.n:,}"
    made = told.predictions
    if made is None:
        yield f"the evaluation kept no {PREDICTIONS}: wrong predictions cannot be shown"
        return
    if made.n != told.n:
        yield f"{PREDICTIONS} has {words.count(made.n, 'row')}, the evaluation counts {told.n:,} examples"
        return
    accuracy = next((score.value for score in told.scores if score.name == "accuracy"), None)
    if accuracy is not None and made.n and abs(made.right / made.n - accuracy) > 1e-6:
        yield f"{PREDICTIONS} gives an accuracy of {made.right / made.n:.4f}, {METRICS} says {accuracy:.4f}"
