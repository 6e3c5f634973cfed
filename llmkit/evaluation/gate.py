"""Conditions that a metric has to meet, with its interval. Light to import."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkit.errors import ConfigError

if TYPE_CHECKING:
    from llmkit.evaluation.evaluate import EvaluateConfig
    from llmkit.pipeline.artefact import Artefact

_FORM = re.compile(r"\s*([^<>=\s][^<>=]*?)\s*(>=|<=)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*")


@dataclass
class Gate:
    """A condition, such as `accuracy>=0.8`."""

    metric: str
    """Its key in the manifest."""
    is_least: bool
    """Whether it says at least, and not at most."""
    bound: float

    def __str__(self) -> str:
        return f"{self.metric} {'>=' if self.is_least else '<='} {self.bound:g}"


def parse(text: str) -> Gate | None:
    """The condition that a word states, or None where it states none."""
    found = _FORM.fullmatch(text)
    return Gate(found[1], found[2] == ">=", float(found[3])) if found else None


def problems(texts: Iterable[str]) -> Iterator[str]:
    """Words that are no conditions."""
    for text in texts:
        if parse(text) is None:
            yield f"gate: {text!r} is not METRIC>=NUMBER or METRIC<=NUMBER; a shell takes < and > for itself, so quote it"


def check_names(texts: Iterable[str], metrics: Iterable[str]) -> None:
    """Refuse conditions on metrics that there are not.

    Raises:
        ConfigError: naming the nearest there is.
    """
    known = list(metrics)
    wrong = []
    for condition in filter(None, map(parse, texts)):
        if condition.metric not in known:
            near = difflib.get_close_matches(condition.metric, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            wrong.append(f"gate: there is no metric {condition.metric!r}; {hint}")
    if wrong:
        raise ConfigError(wrong)


def check(config: EvaluateConfig, artefact: Artefact) -> int:
    """Hold the metrics of an evaluation against its conditions, and say of each whether it is met.

    A condition is met where all values that the interval leaves possible meet it, so that chance does not open a gate.

    Returns:
        The exit code: 1 where one is not met.
    """
    if not config.gate:
        return 0
    metrics = {name: found for name, found in artefact.manifest.metrics.items() if isinstance(found, dict) and "low" in found}
    check_names(config.gate, metrics)
    n = artefact.manifest.metrics["n"]
    results = [_told(condition, metrics[condition.metric], n) for condition in filter(None, map(parse, config.gate))]
    for _, line in results:
        print(line)
    return 0 if all(is_met for is_met, _ in results) else 1


def _told(condition: Gate, metric: Mapping[str, Any], n: int) -> tuple[bool, str]:
    end, limit = ("lower", metric["low"]) if condition.is_least else ("upper", metric["high"])
    if metric["value"] is None:
        return False, f"gate {condition}: FAILED, {condition.metric} is undefined on these examples"
    if limit is None:
        examples = "1 example" if n == 1 else f"{n:,} examples"
        why = f"{condition.metric} has no interval on {examples}, so nothing can be held against it"
        return False, f"gate {condition}: FAILED, {why}"
    is_met = limit >= condition.bound if condition.is_least else limit <= condition.bound
    verdict = "passed" if is_met else "FAILED"
    return is_met, f"gate {condition}: {verdict}, value {metric['value']:.4g}, {end} end of its 95% interval {limit:.4g}"
