"""How far the model's confidence can be believed, and when it should rather not answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmkit.reports import charts, words
from llmkit.reports.charts import Mark, Series

if TYPE_CHECKING:
    from llmkit.reports.facts import Told

TITLE = "Calibration"


def context(found: dict[str, Any], told: Told) -> dict[str, Any]:
    figures = [
        ("As the model gives it", _diagram(found["before"], "before")),
        ("After temperature scaling", _diagram(found["after"], "after") if found["after"] else ""),
    ]
    curve = Series("accuracy", [(point["coverage"], point["accuracy"]) for point in found["coverage"]])
    marks = [Mark(point["coverage"], point["accuracy"], point["low"], point["high"]) for point in found["coverage"]]
    lowest = min((mark.low for mark in marks), default=0.0)
    return {
        "figures": [(caption, drawn) for caption, drawn in figures if drawn],
        "coverage": charts.share_chart(
            [curve],
            key="risk-coverage",
            title="Accuracy where the least sure predictions are withheld",
            x_label="share of examples that is answered",
            y_label="accuracy",
            marks=marks,
            bottom=max(0.0, int(lowest * 5) / 5),
        ),
        "when": when_to_answer(found),
    }


def _diagram(part: dict[str, Any], name: str) -> str:
    marks = [Mark(row["confidence"], row["accuracy"], row["low"], row["high"]) for row in part["bins"]]
    return charts.share_chart(
        [],
        key=f"reliability-{name}",
        title="Confidence against the share that is right",
        x_label="mean confidence of a bin",
        y_label="share that is right",
        marks=marks,
        diagonal=True,
    )


def when_to_answer(found: dict[str, Any]) -> list[str]:
    """From which confidence on predictions are right often enough, a sentence for each target."""
    said = []
    for item in found["abstention"]:
        target = words.percent(item["target"], 0)
        if item["confidence"] is None:
            said.append(f"No confidence was found from which on surely {target} of the validation predictions are right.")
            continue
        test = item["test"]
        said.append(
            f"To be right at least {target} of the time, withhold predictions below a confidence of "
            f"{item['confidence']:.3f}: so chosen on validation, it leaves {words.percent(test['coverage'])} of the test "
            f"examples{_accuracy(test)}."
        )
    return said


def _accuracy(test: dict[str, Any]) -> str:
    if not test["answered"]:
        return ""
    between = f"{words.percent(test['low'])} to {words.percent(test['high'])}"
    return f", of which {words.percent(test['accuracy'])} are right ({between})"


def limits(found: dict[str, Any]) -> Iterator[str]:
    if found["after"]:
        yield (
            "The probabilities on this page are the model's own; those after temperature scaling are what `llmkit predict "
            "--calibration` gives."
        )
    else:
        yield f"The probabilities are the model's own; no temperature was fitted: {found['no_temperature']}."
    yield "Calibration is that of these texts: on others the same confidence may be worth less."


def markdown(found: dict[str, Any]) -> list[str]:
    line = f"The expected calibration error is {_error(found['before'])}"
    if found["after"]:
        value = found["temperature"]["value"]
        line += f"; at temperature {value:.3f}, fitted on validation, it is {_error(found['after'])}"
    return [f"{line}.", "", *(f"- {sentence}" for sentence in when_to_answer(found))]


def _error(part: dict[str, Any]) -> str:
    between = words.interval(part["ece"]["low"], part["ece"]["high"])
    return words.score(part["ece"]["value"]) + (f" ({between})" if between else "")
