"""`llmkit thresholds`: what other thresholds of the quality rules would keep, from the signals of a finished result.

Nothing is measured again: it takes a scan of one table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.config import merged, yaml_scalar
from llmkit.corpus.documents import SIGNALS, read_batches
from llmkit.corpus.quality.rules import Rule, failing, judge, line_rules_of, problems, rules_of
from llmkit.errors import ArtefactError, ConfigError
from llmkit.pipeline.artefact import Artefact


@dataclass
class Removed:
    """What a list of rules removes of the measured documents."""

    rules: list[Rule]
    first: np.ndarray
    """Documents of which each rule is the first to fail; int64 of shape [rules]."""
    alone: np.ndarray
    """Documents that fail each rule, whatever the others say; the same shape."""

    @property
    def total(self) -> int:
        return int(self.first.sum())


@dataclass
class Trial:
    """Other rules beside those of a result."""

    directory: Path
    words: str
    measured: int
    """Documents that came as far as the quality rules."""
    before: Removed
    after: Removed


def try_thresholds(directory: Path, changes: dict[str, Any], filters: Sequence[str] | None = None) -> Trial:
    """Judge the measured documents of a `preprocess` result by its own rules and by others.

    Args:
        changes: thresholds by set and rule; what is not named stays as it was.
        filters: other sets of rules; those of the result by default.

    Raises:
        ArtefactError: the directory is no such result, or nothing was measured for it.
        ConfigError: there are no such rules.
    """
    artefact = Artefact.open(directory, "preprocess")
    settings = artefact.manifest.config
    if not settings["filters"]:
        raise ArtefactError(f"{directory} has no signals: it was made without `filters`")
    chosen = list(filters or settings["filters"])
    thresholds = merged(settings["thresholds"], changes)
    wrong = problems(chosen, thresholds)
    if not wrong and line_rules_of(thresholds) != line_rules_of(settings["thresholds"]):
        wrong = ["thresholds: the settings of c4 that begin with line_ change texts, which is not tried here: take a new run"]
    if wrong:
        raise ConfigError(wrong)
    words = settings["words"]
    before, after = rules_of(settings["filters"], settings["thresholds"], words), rules_of(chosen, thresholds, words)
    counts = [[np.zeros(len(rules), dtype=np.int64) for _ in range(2)] for rules in (before, after)]
    measured = 0
    for batch in read_batches(directory, SIGNALS):
        signals = {name: batch[name].to_numpy(zero_copy_only=False) for name in batch.schema.names[2:]}
        if missing := sorted({rule.signal for rule in after} - signals.keys()):
            raise ArtefactError(f"{directory} has no signal {missing[0]}: make it again with --filters {' '.join(chosen)}")
        is_measured = ~np.isnan(signals["characters"])
        signals = {name: values[is_measured] for name, values in signals.items()}
        measured += int(is_measured.sum())
        for rules, (first, alone) in zip((before, after), counts, strict=True):
            numbers, _ = judge(rules, signals)
            first += np.bincount(numbers[numbers >= 0], minlength=len(rules))
            alone += failing(rules, signals).sum(axis=1)
    return Trial(directory, words, measured, Removed(before, *counts[0]), Removed(after, *counts[1]))


def describe(trial: Trial) -> str:
    """The trial as text."""
    then = {rule.name: (rule, int(first)) for rule, first in zip(trial.before.rules, trial.before.first, strict=True)}
    rows = [("rule", "threshold", "removes", "alone")]
    for rule, first, alone in zip(trial.after.rules, trial.after.first.tolist(), trial.after.alone.tolist(), strict=True):
        earlier = then.pop(rule.name, None)
        is_other = earlier is not None and earlier[0].threshold != rule.threshold
        threshold = f"{rule.threshold:g}" + (f" (was {earlier[0].threshold:g})" if earlier and is_other else "")
        removes = f"{first:,}" + (f" (was {earlier[1]:,})" if earlier and earlier[1] != first else "")
        rows.append((rule.name, threshold, removes, f"{alone:,}"))
    rows += [(name, "off", f"0 (was {first:,})", "") for name, (_, first) in then.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    kept, earlier_kept = trial.measured - trial.after.total, trial.measured - trial.before.total
    lines.append(
        f"{trial.measured:,} documents were measured (words: {trial.words}); these rules keep {kept:,}, those of "
        f"{trial.directory} kept {earlier_kept:,}. `removes` counts a document for the first rule that it fails, `alone` for "
        f"each."
    )
    return "\n".join(lines)


def main(words: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="llmkit thresholds", description="What other thresholds of the quality rules would keep; measures nothing again."
    )
    parser.add_argument("directory", type=Path, help="a result of `llmkit preprocess` with `filters`")
    parser.add_argument(
        "changes",
        nargs="*",
        metavar="SET.RULE=NUMBER",
        help="other thresholds: gopher_quality.min_words=20; null switches off",
    )
    parser.add_argument("--filters", nargs="+", metavar="SET", help="other sets of rules, in order")
    given = parser.parse_args(words)
    changes: dict[str, Any] = {}
    for change in given.changes:
        name, sign, value = change.partition("=")
        group, dot, rule = name.partition(".")
        if not sign or not dot:
            raise ConfigError([f"{change!r} is not SET.RULE=NUMBER, as gopher_quality.min_words=20 is"], "command")
        changes.setdefault(group, {})[rule] = yaml_scalar(value)
    print(describe(try_thresholds(given.directory, changes, given.filters)))
    return 0
