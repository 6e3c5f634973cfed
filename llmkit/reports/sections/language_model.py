"""What a language model makes of documents: by position in its context, by source and by language, and what it writes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from llmkit.reports import charts, words
from llmkit.reports.charts import Series

if TYPE_CHECKING:
    from llmkit.reports.facts import Told

TITLE = "Language model"

_PARTS = {"sources": "Source", "languages": "Language or script"}


def context(found: dict[str, Any], told: Told) -> dict[str, Any]:
    """What the template needs."""
    points = [(math.log2(item["from"]), float(item["bits_per_token"])) for item in found["positions"]]
    chart = charts.line_chart(
        [Series("bits per token", points)],
        key="positions",
        title="Loss by how many tokens the model has in view",
        x_label="tokens in view, as a power of two",
    )
    groups = [(title, found[part]) for part, title in _PARTS.items() if len(found[part]) > 1]
    return {"chart": chart, "groups": groups}


def limits(found: dict[str, Any]) -> list[str]:
    """What its numbers do not show."""
    said = [
        f"Each document begins after {found['begins_after']!r}, and its end is not scored; documents longer than "
        f"{found['context']:,} tokens are read in windows that begin every {found['stride']:,} tokens. Another context or "
        f"stride gives other figures."
    ]
    if found["unknown_tokens"]:
        count = words.count(found["unknown_tokens"], "token")
        said.append(f"{count} stand for text that the tokenizer does not know, so the bits per byte are too low.")
    if found["empty_documents"]:
        said.append(f"{words.count(found['empty_documents'], 'document')} without text {_were(found)} left out.")
    said.append("How well a model foretells text says little of what it can be used for.")
    return said


def _were(found: dict[str, Any]) -> str:
    return "was" if found["empty_documents"] == 1 else "were"


def markdown(found: dict[str, Any]) -> list[str]:
    """Its lines on the model card."""
    size = f"{found['tokens']:,} tokens, {found['bytes']:,} bytes"
    lines = [f"{size}; context {found['context']:,} tokens, stride {found['stride']:,}."]
    for part, title in _PARTS.items():
        if len(found[part]) > 1:
            lines += ["", f"| {title} | Documents | Bits per byte | Perplexity |", "|---|---|---|---|"]
            lines += [
                f"| {_cell(item['name'])} | {item['documents']:,} | {item['bits_per_byte']:.4f} | {item['perplexity']:.2f} |"
                for item in found[part]
            ]
    return lines


def _cell(name: str) -> str:
    return words.fit(name, 60).replace("|", "/").replace("<", "&lt;").replace("`", "'")
