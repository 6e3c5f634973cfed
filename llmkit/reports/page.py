"""The page: one HTML file that asks for nothing from outside, and the same facts as JSON."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from llmkit.reports import charts, facts, lineage, sections, trained, words
from llmkit.reports.charts import Bar, Box
from llmkit.reports.examples import MAX_EXAMPLES, Example, carry, choices, outcomes
from llmkit.reports.facts import ClassRow, Score, Told, Traced
from llmkit.reports.lineage import Node
from llmkit.reports.origins import origins_of
from llmkit.reports.side_by_side import SideBySide
from llmkit.reports.trained import Curves
from llmkit.reports.training import TITLES, Training

# What a page shows at most, so that it stays readable and below 500 kB whatever the data; report.json has the rest.
MAX_CLASSES = 60
MAX_RAW_INPUTS = 40
MAX_FACTS = 36
MAX_SETTINGS = 60
MAX_CONFUSIONS = 15
MAX_BASELINES = 6
MAX_SAMPLES = 8

MAX_BYTES = 500_000
"""Of a page with at most 500 examples."""
MAX_BYTES_OF_MANY = 3_000_000
"""Of a page with `examples.MAX_EXAMPLES`; between the two it grows with their number."""

REPORT_FORMAT = 2
SCHEMA = Path(__file__).parent / "schema.json"
"""JSON Schema of report.json."""

_SCRIPT = (Path(__file__).parent / "examples.js").read_text(encoding="utf-8")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render(told: Told, published: list[str] | None) -> str:
    """The page on an evaluation as HTML; equal inputs give equal bytes.

    Args:
        published: names of the files that were written to `model/`, if it was written.
    """
    template, context = _environment().get_template("page.html.j2"), _evaluation_context(told, published)
    shown = told.predictions.shown if told.predictions else []
    errors = told.predictions.errors[: told.worst_errors] if told.predictions else []
    limit = _limit(len(shown))
    while True:
        without = template.render(**context, **_browser([], 0), errors=errors)
        if len(without.encode()) < limit or not errors:
            break
        errors = errors[: len(errors) * 2 // 3]  # texts are the only part whose length the data decides alone
    budget = limit - len(without.encode()) - len(_SCRIPT.encode())
    while True:
        html = template.render(**context, **_browser(shown, budget), errors=errors)
        excess = len(html.encode()) - limit
        if excess < 0 or budget <= 0:
            return html
        budget -= excess + 1000  # the names to choose from take their place too


def render_training(told: Training) -> str:
    """The page on a training as HTML."""
    context = {
        **_traced_context(told),
        "rows": told.scores,
        "policy": _POLICY,
    }
    return _environment().get_template("training.html.j2").render(**context)


def render_runs(found: SideBySide) -> str:
    """The page on several results as HTML."""
    level = f"{100 * found.interval:g}%"
    bars = [
        (name, _run_bars(found, scores, number))
        for number, (name, scores) in enumerate(found.metrics)
        if name in found.headline and any(score and score.value is not None for score in scores)
    ]
    curves = [
        (name, charts.line_chart(lines, key=f"curve-{number}", title=f"{name} by step"), len(lines))
        for number, (name, lines) in enumerate(found.curves)
    ]
    context = {
        "told": found,
        "level": level,
        "policy": _POLICY,
        "chart_style": Markup(charts.STYLE),
        "metric_title": words.metric_title,
        "bars": bars,
        "curves": [(name, chart, count) for name, chart, count in curves if chart],
        "settings": found.settings[:MAX_SETTINGS],
    }
    return _environment().get_template("side_by_side.html.j2").render(**context)


def _limit(examples: int) -> float:
    """Bytes of a page with so many examples."""
    many = min(1.0, max(0.0, (examples - 500) / (MAX_EXAMPLES - 500)))
    return MAX_BYTES + many * (MAX_BYTES_OF_MANY - MAX_BYTES)


def _browser(shown: list[Example], budget: float) -> dict[str, Any]:
    """What the template needs for the examples that can be browsed."""
    carried = carry(shown, int(budget)) if shown else None
    if carried is None or not carried.examples:
        return {"carried": None, "policy": _POLICY}
    found = carried.examples
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    labelled = found[0].question is None
    filters = [("label", "True", choices(found, 1)), ("prediction", "Predicted", choices(found, 2))]
    return {
        "carried": carried,
        "carried_errors": sum(not example.is_right for example in found),
        "outcomes": outcomes(found),
        "successes": json.dumps(sorted({example.outcome for example in found if example.is_right})),
        "label_filters": [item for item in filters if labelled and item[-1]],
        "has_scores": any(example.score is not None for example in found),
        "has_marks": any(example.marks for example in found),
        "script": Markup(_SCRIPT),
        "policy": f"{_POLICY}; script-src 'sha256-{digest}'",
    }


def as_json(told: Told) -> str:
    """The facts of the page on an evaluation as JSON, and what the page leaves out for its length; see schema.json."""
    made = told.predictions
    predictions = None
    if made is not None:
        predictions = {
            "n": made.n,
            "right": made.right,
            "measure": made.measure,
            "outcomes": dict(outcomes(made.shown)),
            "worst": [example.as_dict() for example in made.errors[: told.worst_errors]],
        }
    return _written(
        {
            **_traced_values(told, "evaluation"),
            "metrics": told.record,
            "findings": [vars(item) for item in told.comparisons],
            "predictions": predictions,
        }
    )


def training_as_json(told: Training) -> str:
    """The facts of the page on a training as JSON."""
    return _written({**_traced_values(told, "training"), "stage": told.stage, "metrics": told.record})


def runs_as_json(found: SideBySide) -> str:
    """The facts of the page on several results as JSON."""
    values = {
        "format": REPORT_FORMAT,
        "kind": "runs",
        "of": found.kind,
        "title": found.title,
        "verdict": found.verdict,
        "comparability": found.comparability,
        "notices": found.notices,
        "limits": found.limits,
        "runs": [
            {
                "name": run.name,
                "fingerprint": run.told.root.fingerprint,
                "title": run.told.title,
                "verdict": run.told.verdict,
                "metrics": run.told.record,
            }
            for run in found.runs
        ],
        "differences": [
            {"run": pair.run, "finding": pair.finding, "p_corrected": pair.p_corrected, **dataclasses.asdict(pair.found)}
            for pair in found.pairs
        ],
        "settings": {name: _by_run(found, values) for name, values in found.settings},
        "stages": {name: _by_run(found, values) for name, values in found.stages},
    }
    return _written(values)


def _by_run(found: SideBySide, values: list[str]) -> dict[str, str]:
    return dict(zip((run.name for run in found.runs), values, strict=True))


def _traced_values(told: Traced, kind: str) -> dict[str, Any]:
    return {
        "format": REPORT_FORMAT,
        "kind": kind,
        "title": told.title,
        "verdict": told.verdict,
        "notices": told.notices,
        "limits": told.limits,
        "curves": [dataclasses.asdict(item) for item in told.curves],
        "model": {
            "name": told.model.name,
            "parameters": told.model.parameters,
            "weight_bytes": told.model.weight_bytes,
            "dtypes": told.model.dtypes,
            "config": told.model.config,
            "not_published": told.model.absent or None,
        },
        "lineage": [node.as_dict() for node in told.nodes],
    }


def _written(values: dict[str, Any]) -> str:
    text = json.dumps(_plain(values), indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"
    return text.encode("utf-8", "replace").decode("utf-8")


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity; they become null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters.update(
        score=words.score,
        percent=words.percent,
        p_value=words.p_value,
        duration=words.duration,
        bytes=words.size,
        day=lambda created: str(created)[:16].replace("T", " "),
        points=lambda value: words.MISSING if value is None else words.signed(f"{value:+.3f}"),
        fit=words.fit,
        count=words.count,
        measure=words.measure,
        listing=words.listing,
    )
    return environment


def _printable(value: Any) -> Any:
    """Applied to everything that the template inserts, before it is escaped."""
    return words.clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _evaluation_context(told: Told, published: list[str] | None) -> dict[str, Any]:
    baselines = told.baselines[:MAX_BASELINES]
    shown = facts.shown_scores(told.scores)
    return {
        **_traced_context(told),
        "published": published,
        "level": f"{100 * told.interval:g}%",
        "baselines": baselines,
        "rows": [(score, [facts.matching(item.scores, score) for item in baselines]) for score in shown],
        "micro_left_out": len(shown) < len(told.scores),
        "methods": _methods(told),
        "bars": [_bars(told, score, number) for number, score in enumerate(told.headline) if score.value is not None],
        "classes": _shown_classes(told.classes),
        "class_metrics": facts.class_metrics(told.classes),
        "matrix": charts.confusion_matrix(told.confusion, told.labels, key="confusion", title="Confusion matrix"),
        "confusions": facts.confusions(told, MAX_CONFUSIONS),
        "sections": sections.contexts(told),
    }


def _traced_context(told: Traced) -> dict[str, Any]:
    assert told.root.artefact is not None
    sources = lineage.raw_inputs(told.nodes)
    return {
        "told": told,
        "chart_style": Markup(charts.STYLE),
        "metric_title": words.metric_title,
        "curves": [
            (TITLES.get(item.stage, item.stage), item, _drawn(item, number)) for number, item in enumerate(told.curves)
        ],
        "max_samples": MAX_SAMPLES,
        "origins": origins_of(told.nodes, told.curves),
        "architecture": trained.architecture(told.model),
        "stages": [_stage(node) for node in told.nodes if node.artefact],
        "graph": _graph(told),
        "sources": sources[:MAX_RAW_INPUTS],
        "more_sources": max(0, len(sources) - MAX_RAW_INPUTS),
        "environments": [(stages, _environment_facts(values)) for stages, values in lineage.environments(told.nodes)],
        "commands": [(node.stage, node.artefact.manifest.command) for node in told.nodes if node.artefact],
        "root_name": shlex.quote(_place(told.root)),
    }


def _place(root: Node) -> str:
    """Where the command that made a result has put it, as far as that says; else its name."""
    assert root.artefact is not None
    said = re.search(r"--(?:output_dir|config) (\S+)", root.artefact.manifest.command)
    place = said[1].removesuffix("/llmkit.yaml") if said else ""
    name = root.artefact.directory.resolve().name
    return place if Path(place).name == name else name


def _methods(told: Told) -> list[str]:
    """How the intervals of the page came about, one phrase for each method in use."""
    used = {
        score.method for score in (*told.scores, *(s for row in told.classes for s in row.scores.values())) if score.method
    }
    seed = f" (seed {told.seed})" if told.seed is not None else ""
    known = {
        "wilson": "Wilson is the score interval of a share; F1 of a class has that of TP / (TP + FP + FN), transformed",
        "wilson over contexts": "Wilson over contexts counts contexts in place of examples",
        "mover": "MOVER combines the intervals of the classes",
        "fisher": "Fisher is the delta method on the transform of a correlation",
        "score": "score is Newcombe's interval of an area under the ROC curve",
        "logit": "logit is that of the logit, by the infinitesimal jackknife",
        "normal": "normal is that of a normal distribution with the standard error that lm-evaluation-harness gives",
        "skewness-corrected t": "skewness-corrected t is Student's interval of a mean, by Hall",
        "test inversion": f"test inversion holds the errors under which the one found would be no surprise{seed}",
        "bootstrap": f"bootstrap draws the test examples again many times with replacement{seed}",
        "cluster bootstrap": "cluster bootstrap draws groups of examples, such as questions on one text, many times with "
        f"replacement{seed}",
    }
    return [text for name, text in known.items() if name in used]


def _bars(told: Told, score: Score, number: int) -> tuple[str, Markup]:
    assert score.value is not None
    bars = [Bar("this model", score.value, score.low, score.high, first=True)]
    for baseline in told.baselines[:MAX_BASELINES]:
        same = facts.matching(baseline.scores, score)
        if same is not None and same.value is not None:
            bars.append(Bar(baseline.name, same.value, same.low, same.high))
    title = score.title[0].upper() + score.title[1:]
    return title, charts.bar_chart(bars, key=f"bars-{number}", title=f"{title} of the model and the baselines")


def _graph(told: Traced) -> Markup:
    places = {id(node): place for place, node in enumerate(told.nodes)}
    boxes = [
        Box(
            node.stage,
            node.fingerprint[:12],
            sorted({places[id(earlier)] for earlier in node.inputs.values()}),
            is_lost=node.artefact is None,
            first=node is told.root,
        )
        for node in told.nodes
    ]
    return charts.graph(boxes, key="graph", title="What was made from what")


def _run_bars(found: SideBySide, scores: list[Score | None], number: int) -> Markup:
    bars = [
        Bar(run.name, score.value, score.low, score.high, first=not place)
        for place, (run, score) in enumerate(zip(found.runs, scores, strict=True))
        if score is not None and score.value is not None
    ]
    return charts.bar_chart(bars, key=f"bars-{number}", title=f"{found.metrics[number][0]} of the runs")


def _shown_classes(rows: list[ClassRow]) -> list[ClassRow]:
    """The classes of the table; with very many, those with most examples."""
    return rows if len(rows) <= MAX_CLASSES else sorted(rows, key=lambda row: -(row.support or 0))[:MAX_CLASSES]


def _drawn(curves: Curves, number: int) -> list[tuple[str, Markup]]:
    stage = TITLES.get(curves.stage, curves.stage)
    drawn = [
        ("Loss", charts.line_chart(curves.loss, key=f"loss-{number}", title=f"{stage}: loss by step")),
        (
            "Validation scores",
            charts.line_chart(curves.scores, key=f"scores-{number}", title=f"{stage}: validation scores by step"),
        ),
        (
            "Learning rate",
            charts.line_chart(
                curves.learning_rate, key=f"learning-rate-{number}", title=f"{stage}: learning rate by step", from_zero=True
            ),
        ),
        (
            "Throughput",
            charts.line_chart(curves.rate, key=f"rate-{number}", title=f"{stage}: throughput by step", from_zero=True),
        ),
    ]
    return [(title, chart) for title, chart in drawn if chart]


def _environment_facts(environment: dict[str, Any]) -> list[tuple[str, str]]:
    """Versions and hardware under their own names, without the group that they stand in."""
    flat: dict[str, Any] = {}
    for key, value in environment.items():
        flat.update(value if isinstance(value, dict) else {key: value})
    return list(words.flatten(flat))[:MAX_FACTS]


def _stage(node: Node) -> dict[str, Any]:
    assert node.artefact is not None
    # What the evaluation measured stands in its own sections.
    numbers = [] if node.stage == "evaluate" else list(words.flatten(node.artefact.manifest.metrics))
    settings = trained.chosen_settings(node)
    return {
        "name": node.stage,
        "purpose": node.purpose,
        "numbers": numbers[:MAX_FACTS],
        "more": max(0, len(numbers) - MAX_FACTS),
        "settings": settings[:MAX_SETTINGS],
    }
