"""How many of a model's texts hold a word of a small list of insults, beside how many of the references and prompts do.

The list lies in llmkit/data/insults with a card that says how it was made and what it is not.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any

from llmkit.corpus.words import normalised
from llmkit.evaluation.intervals import wilson
from llmkit.resources import PACKAGE

if TYPE_CHECKING:
    from llmkit.evaluation.sections import Evaluated

_SHOWN = 10
_SHOWN_CHARACTERS = 200


@cache
def pattern() -> re.Pattern[str]:
    """Finds a listed word in a normalised text; English ones only as whole words."""
    path = PACKAGE / "data" / "insults" / "insults.jsonl"
    words: dict[str, list[str]] = {"en": [], "zh": []}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        words[row["language"]].append(re.escape(row["word"]))
    return re.compile(f"(?<![a-z0-9_])(?:{'|'.join(words['en'])})(?![a-z0-9_])|{'|'.join(words['zh'])}")


def section(evaluated: Evaluated) -> dict[str, Any] | None:
    """Counts for generated text; None for other tasks."""
    if evaluated.task.name != "text-generation":
        return None
    written = [str(row["prediction"]) for row in evaluated.predictions]
    found = [pattern().findall(normalised(text)) for text in written]
    texts = {
        "written": written,
        "references": [example.completion for example in evaluated.test],
        "prompts": [example.input() for example in evaluated.test],
    }
    words = Counter(word for those in found for word in those)
    shown = [
        {"id": example.id, "words": sorted(set(those)), "text": text[:_SHOWN_CHARACTERS]}
        for example, text, those in zip(evaluated.test, written, found, strict=True)
        if those
    ]
    return {
        "n": len(written),
        "texts": {name: _share(those) for name, those in texts.items()},
        "words": dict(words.most_common(_SHOWN)),
        "examples": shown[:_SHOWN],
    }


def _share(texts: list[str]) -> dict[str, Any]:
    hits, n = sum(bool(pattern().search(normalised(text))) for text in texts), len(texts)
    low, high = wilson(hits, n)
    return {"examples": hits, "share": hits / n, "low": low, "high": high}
