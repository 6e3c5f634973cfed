"""The page: one HTML file that asks for nothing from outside, and the same facts as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from llmkit.reports import charts, facts, lineage, sections, trained, words
from llmkit.reports.charts import Bar
from llmkit.reports.facts import ClassRow, Score, Told
from llmkit.reports.lineage import Node
from llmkit.reports.trained import Curves

# What a page shows at most, so that it stays readable and below 500 kB whatever the data; report.json has the rest.
MAX_CLASSES = 60
MAX_RAW_INPUTS = 40
MAX_FACTS = 36
MAX_SETTINGS = 60
MAX_CONFUSIONS = 15
MAX_BASELINES = 6
MAX_SAMPLES = 8

MAX_BYTES = 500_000

REPORT_FORMAT = 1
_STAGE_TITLES = {"finetune": "Fine-tuning", "pretrain": "Pretraining"}


def render(told: Told, published: list[str] | None) -> str:
    """The page as HTML; equal inputs give equal bytes.

    Args:
        published: names of the files that were written to `model/`, if it was written.
    """
    template, context = _environment().get_template("page.html.j2"), _context(told, published)
    errors = told.predictions.worst if told.predictions else []
    while True:
        html = template.render(**context, errors=errors)
        if len(html.encode()) < MAX_BYTES or not errors:
            return html
        errors = errors[: len(errors) * 2 // 3]  # texts are the only part whose length the data decides alone


def as_json(told: Told) -> str:
    """The facts of the page as JSON, and what the page leaves out for its length."""
    values = {
        "format": REPORT_FORMAT,
        "title": told.title,
        "verdict": told.verdict,
        "notices": told.notices,
        "limits": told.limits,
        "metrics": told.record,
        "findings": [vars(item) for item in told.comparisons],
        "predictions": dataclasses.asdict(told.predictions) if told.predictions else None,
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
        listing=words.listing,
    )
    return environment


def _printable(value: Any) -> Any:
    """Applied to everything that the template inserts, before it is escaped."""
    return words.clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _context(told: Told, published: list[str] | None) -> dict[str, Any]:
    assert told.evaluation.artefact is not None
    baselines = told.baselines[:MAX_BASELINES]
    sources = lineage.raw_inputs(told.nodes)
    shown = facts.shown_scores(told.scores)
    return {
        "told": told,
        "published": published,
        "chart_style": Markup(charts.STYLE),
        "level": f"{100 * told.interval:g}%",
        "baselines": baselines,
        "rows": [(score, [facts.matching(item.scores, score) for item in baselines]) for score in shown],
        "micro_left_out": len(shown) < len(told.scores),
        "methods": _methods(told),
        "bars": [_bars(told, score, number) for number, score in enumerate(told.headline) if score.value is not None],
        "classes": _shown_classes(told.classes),
        "class_metrics": facts.class_metrics(told.classes),
        "metric_title": words.metric_title,
        "matrix": charts.confusion_matrix(told.confusion, told.labels, key="confusion", title="Confusion matrix"),
        "confusions": facts.confusions(told, MAX_CONFUSIONS),
        "sections": sections.contexts(told),
        "curves": [
            (_STAGE_TITLES.get(item.stage, item.stage), item, _drawn(item, number)) for number, item in enumerate(told.curves)
        ],
        "max_samples": MAX_SAMPLES,
        "architecture": trained.architecture(told.model),
        "stages": [_stage(node) for node in told.nodes if node.artefact],
        "sources": sources[:MAX_RAW_INPUTS],
        "more_sources": max(0, len(sources) - MAX_RAW_INPUTS),
        "environments": [(stages, _environment_facts(values)) for stages, values in lineage.environments(told.nodes)],
        "commands": [(node.stage, node.artefact.manifest.command) for node in told.nodes if node.artefact],
        "evaluation_name": shlex.quote(told.evaluation.artefact.directory.resolve().name),
    }


def _methods(told: Told) -> list[str]:
    """How the intervals of the page came about, one phrase for each method in use."""
    used = {
        score.method for score in (*told.scores, *(s for row in told.classes for s in row.scores.values())) if score.method
    }
    seed = f" (seed {told.seed})" if told.seed is not None else ""
    known = {
        "wilson": "Wilson is the score interval of a share; F1 of a class has that of TP / (TP + FP + FN), transformed",
        "mover": "MOVER combines the intervals of the classes",
        "fisher": "Fisher is the delta method on the transform of a correlation",
        "score": "score is Newcombe's interval of an area under the ROC curve",
        "logit": "logit is that of the logit, by the infinitesimal jackknife",
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


def _shown_classes(rows: list[ClassRow]) -> list[ClassRow]:
    """The classes of the table; with very many, those with most examples."""
    return rows if len(rows) <= MAX_CLASSES else sorted(rows, key=lambda row: -(row.support or 0))[:MAX_CLASSES]


def _drawn(curves: Curves, number: int) -> list[tuple[str, Markup]]:
    stage = _STAGE_TITLES.get(curves.stage, curves.stage)
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
