"""Where the model fails: see `llmkit.evaluation.slices`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmkit.reports import words

if TYPE_CHECKING:
    from llmkit.reports.facts import Told

TITLE = "Slices"
_SHOWN = 10
_MOST = 100


def context(found: dict[str, Any], told: Told) -> dict[str, Any]:
    """What the template needs."""
    rows = [(row, _standing(row, found)) for row in found["parts"]]
    return {
        "verdict": verdict(found),
        "worst": rows[:_SHOWN],
        "rest": rows[_SHOWN:_MOST],
        "more": max(0, len(rows) - _MOST),
    }


def _standing(row: dict[str, Any], found: dict[str, Any]) -> str:
    """Whether a part differs from the rest, once all tests are counted; test and interval must agree."""
    low, high = row["difference_low"], row["difference_high"]
    apart = low is not None and high is not None and (low > 0 or high < 0)
    if row["p_holm"] >= 0.05 or not apart:
        return "not clearly different"
    return "worse" if (row["difference"] < 0) != found["lower_is_better"] else "better"


def verdict(found: dict[str, Any]) -> str:
    """The finding in a sentence."""
    worse = [row for row in found["parts"] if _standing(row, found) == "worse"]
    tests = words.count(found["tests"], "part")
    if not worse:
        return f"Of {tests} of the test set none is clearly worse than the rest, all tests counted."
    named = [f"“{words.fit(row['part'], 40)}” ({words.fit(row['by'], 60)})" for row in worse[:5]]
    more = f" and {len(worse) - 5} more" if len(worse) > 5 else ""
    verb = "is" if len(worse) == 1 else "are"
    return f"Of {tests} of the test set {len(worse)} {verb} clearly worse than the rest: {words.listing(named)}{more}."


def limits(found: dict[str, Any]) -> Iterator[str]:
    """What slices do not show."""
    yield (
        f"Slices compare parts of the test set with at least {found['least']} examples by what stands in it. They do not say "
        f"why a part is worse (short texts may be of one subject), and a part that is too small for its difference to show "
        f"may be worse all the same."
    )
    if found["left_out"]:
        yield f"No part is large enough by: {words.fit(words.listing(found['left_out']), 300)}."


def markdown(found: dict[str, Any]) -> list[str]:
    """For the model card."""
    return [verdict(found)]
