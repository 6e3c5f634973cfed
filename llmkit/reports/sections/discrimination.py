"""ROC and precision-recall curves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmkit.reports import charts
from llmkit.reports.charts import Series

if TYPE_CHECKING:
    from llmkit.reports.facts import Told

TITLE = "ROC and precision-recall"

_DRAWN = 4  # lines that can still be told apart


def context(found: dict[str, Any], told: Told) -> dict[str, Any]:
    drawn = sorted(found["curves"], key=lambda item: -item["positives"])[:_DRAWN]
    drawn = [item for item in found["curves"] if item in drawn]

    def lines(name: str) -> list[Series]:
        return [Series(item["label"], [(point[0], point[1]) for point in item[name]]) for item in drawn]

    return {
        "labels": [item["label"] for item in drawn],
        "figures": [
            (
                "ROC",
                charts.share_chart(
                    lines("roc"),
                    key="roc",
                    title="ROC curves",
                    x_label="false positive rate",
                    y_label="true positive rate",
                    diagonal=True,
                ),
            ),
            (
                "Precision and recall",
                charts.share_chart(
                    lines("pr"), key="pr", title="Precision-recall curves", x_label="recall", y_label="precision"
                ),
            ),
        ],
    }


def limits(found: dict[str, Any]) -> Iterator[str]:
    yield from ()


def markdown(found: dict[str, Any]) -> list[str]:
    return []
