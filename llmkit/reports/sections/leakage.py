"""Test examples that the model has met: see `llmkit.evaluation.leakage`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmkit.reports import words

if TYPE_CHECKING:
    from llmkit.reports.facts import Told

TITLE = "Leakage"
_SHOWN = 20
_SETS = {"all": "All examples", "without": "Without the contaminated", "contaminated": "The contaminated alone"}


def context(found: dict[str, Any], told: Told) -> dict[str, Any]:
    """What the template needs."""
    metrics = found.get("metrics", {})
    return {
        "verdict": verdict(found),
        "rows": [(source, _parts(source)) for source in found["sources"]],
        "has_parts": any(_parts(source) for source in found["sources"]),
        "metrics": [(_SETS[name], metrics[name]) for name in _SETS if name in metrics] if len(metrics) > 1 else [],
        "examples": found.get("examples", [])[:_SHOWN],
        "more": max(0, len(found.get("examples", [])) - _SHOWN) + found.get("not_listed", 0),
    }


def verdict(found: dict[str, Any]) -> str:
    """The finding in a sentence."""
    if "contaminated" not in found:
        return "Nothing that the model was trained on could be read, so whether it has met test examples is not known."
    count = found["contaminated"]["examples"]
    where = "what the model was trained on" if found["complete"] else "the part of its training texts that could be read"
    kind, verb, how = "test example", "share", f"a run of {found['n_gram']} words with"
    if found.get("least_share"):  # documents, of which a run of words says little
        kind, verb, how = "document", "stand", "by half of the first 2,000 characters or more in"
    if not count:
        return f"No {kind} {verb}s {how} {where}."
    share = words.percent(found["contaminated"]["share"])
    return f"{words.count(count, kind)} ({share}) {verb}{'s' if count == 1 else ''} {how} {where}."


def _parts(source: dict[str, Any]) -> str:
    """How often each part of an example was found, where examples have more than one."""
    counts = source.get("parts", {})
    return ", ".join(f"{part} {count:,}" for part, count in counts.items()) if len(counts) > 1 else ""


def limits(found: dict[str, Any]) -> Iterator[str]:
    """What was not looked for."""
    yield (
        f"Leakage was looked for by runs of {found['n_gram']} words, letter case and punctuation aside. A paraphrase, a "
        f"translation or a copy with a word changed every dozen words is not found, and a shared quotation or phrase is taken "
        f"for a leak; the share of an example that was found tells the one from the other."
    )
    if found["too_short"]:
        yield (
            f"{words.count(found['too_short'], 'test example')} with fewer than {found['least_words']} words "
            f"{'was' if found['too_short'] == 1 else 'were'} not looked for: so short a text turns up by chance."
        )
    for source in found["sources"]:
        if "unknown" in source:
            yield f"Leakage from {source['name']} is not known: {source['unknown']}."


def markdown(found: dict[str, Any]) -> list[str]:
    """For the model card."""
    return [verdict(found)]
