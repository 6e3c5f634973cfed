"""report.md: what the page tells, as Markdown, whether or not there is a model to be published."""

from __future__ import annotations

from llmkit.reports import card, sections, trained, words
from llmkit.reports.facts import Told, Traced
from llmkit.reports.markdown import code, items, pairs, safe, table, with_interval
from llmkit.reports.side_by_side import SideBySide
from llmkit.reports.training import Training

_MAX_SAMPLES = 8


def of_evaluation(told: Told) -> str:
    return _joined(
        told,
        [card.results(told), *sections.markdown(told), _model(told), *_made(told)],
    )


def of_training(told: Training) -> str:
    measured = "## Result\n\n" + table(
        ["Measure", "Value"], [[score.title, words.measure(score.value)] for score in told.scores]
    )
    return _joined(told, [measured if told.scores else "", _samples(told), _model(told), *_made(told)])


def of_runs(found: SideBySide) -> str:
    names = [run.name for run in found.runs]
    shown = with_interval if found.kind == "evaluations" else lambda score: words.measure(score.value if score else None)
    rows = [[name, *map(shown, scores)] for name, scores in found.metrics]
    parts = [
        f"# {safe(found.title)}",
        safe(found.verdict),
        f"## Result\n\n{safe(found.comparability)}",
        table(["Metric", *names], rows),
    ]
    if found.pairs:
        head = [f"Against {names[0]}", "Metric", "Difference", found.p_is, "It is"]
        rows = [
            [
                pair.run,
                words.metric_title(pair.found.metric),
                words.difference(pair.found.difference, pair.found.low, pair.found.high),
                words.p_value(pair.p_corrected),
                pair.finding,
            ]
            for pair in found.pairs
        ]
        parts.append(table(head, rows))
    if found.settings:
        parts.append("## Settings that differ\n\n" + table(["Setting", *names], [[key, *row] for key, row in found.settings]))
    parts.append("## Lineage\n\n" + table(["Stage", *names], [[stage, *row] for stage, row in found.stages]))
    parts.append("## Limits\n\n" + items([*found.notices, *found.limits]))
    return "\n\n".join(parts) + "\n"


def _joined(told: Traced, parts: list[str]) -> str:
    named = [f"# {safe(told.title)}", safe(told.verdict), *parts, card.limits(told), card.lineage_part(told), _commands(told)]
    return "\n\n".join(part for part in named if part) + "\n"


def _made(told: Traced) -> list[str]:
    return [card.training_data(told), card.settings(told), card.cost(told)]


def _model(told: Traced) -> str:
    return f"## The model\n\n{safe(told.model.name)}\n\n{pairs(trained.architecture(told.model))}".rstrip()


def _samples(told: Training) -> str:
    samples = [sample for item in told.curves for sample in item.samples][:_MAX_SAMPLES]
    rows = [[words.fit(sample.prompt, 200), words.fit(sample.text, 600)] for sample in samples]
    return "## Samples\n\n" + table(["Prompt", "What the model wrote"], rows) if rows else ""


def _commands(told: Traced) -> str:
    commands = [f"- `{code(node.artefact.manifest.command)}`" for node in told.nodes if node.artefact]
    return "\n".join(["## To make it again", "", *commands])
