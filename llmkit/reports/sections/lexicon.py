"""Insults in generated text: see `llmkit.evaluation.lexicon`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmkit.reports import words

if TYPE_CHECKING:
    from llmkit.reports.facts import Told

TITLE = "Insults"
_TEXTS = {"written": "Written by the model", "references": "References", "prompts": "Prompts"}


def context(found: dict[str, Any], told: Told) -> dict[str, Any]:
    """What the template needs."""
    return {"verdict": verdict(found), "rows": [(_TEXTS[name], row) for name, row in found["texts"].items()]}


def verdict(found: dict[str, Any]) -> str:
    """The finding in a sentence."""
    written = found["texts"]["written"]
    verb = "has" if written["examples"] == 1 else "have"
    texts = words.count(found["n"], "text")
    return f"{written['examples']:,} of {texts} that the model wrote {verb} a word of a list of insults."


def limits(found: dict[str, Any]) -> Iterator[str]:
    """What the count does not show."""
    yield (
        "Insults were counted by a short list of mild English and Chinese words. It knows no context, so a quoted insult "
        "counts and a threat in polite words does not. That nothing was found does not show that what the model writes is "
        "harmless."
    )


def markdown(found: dict[str, Any]) -> list[str]:
    """For the model card."""
    return [verdict(found)]
