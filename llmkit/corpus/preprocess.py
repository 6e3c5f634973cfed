"""The stage `preprocess`: raw text to clean documents in two splits, `train` and `validation`.

Every row that is read ends in exactly one place: it becomes a document of a split, or a row of the rejects table with
the rule that removed it or the reason why it cannot be a document. The work is done in parts (`plan`): a first pass makes
documents of rows (`parts`), then it is decided which of them repeat others (`duplicates`), and a second pass writes what is
left (`outputs`). Each part is a task that can be done again, on any machine, in any order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llmkit.corpus.documents import largest
from llmkit.corpus.settings import PreprocessConfig
from llmkit.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from llmkit.corpus.outputs import Output
    from llmkit.corpus.parts import Tally
    from llmkit.corpus.plan import Plan
    from llmkit.pipeline.stage import Workspace

__all__ = ["SCRATCH", "STATISTICS", "PreprocessConfig", "preprocess"]

STATISTICS = "statistics.json"
SCRATCH = ".work"
_ALONE = 1 << 30
"""Bytes of input below which one process decides on duplicates faster than several could be started."""
_SAMPLED = 1 << 24
"""Characters of the sample on which near deduplication is measured, at most: they are all in memory, with 40 bytes each."""
_DUPLICATES = ("exact duplicate", "near duplicate", "in validation")


def preprocess(config: PreprocessConfig, workspace: Workspace) -> dict[str, Any]:
    """Read, clean, judge, deduplicate, split and write.

    Returns:
        What was kept and rejected; also in `statistics.json`, with what the corpus is made of.

    Raises:
        DataError: too many bad rows, a file without the text column, or no document left.
    """
    from llmkit.corpus.plan import make_plan

    scratch = workspace.directory / SCRATCH
    scratch.mkdir(exist_ok=True)
    plan = make_plan(config)
    run = _Run(config, workspace, scratch, plan)
    tally = run.first_pass()
    repeated = run.find_duplicates()
    outputs = run.second_pass()
    output = run.total(outputs, tally)
    run.collect(outputs)
    metrics = _metrics(config, plan, tally, output, repeated)
    text = json.dumps({**run.statistics(), "metrics": metrics}, indent=1, ensure_ascii=False) + "\n"
    (workspace.directory / STATISTICS).write_text(text, encoding="utf-8")
    _report(workspace.say, plan, tally, metrics, config)
    return metrics


class _Run:
    """The passes of one run."""

    def __init__(self, config: PreprocessConfig, workspace: Workspace, scratch: Path, plan: Plan):
        self._config, self._workspace, self._scratch, self._plan = config, workspace, scratch, plan

    def first_pass(self) -> Tally:
        """Make documents of all rows."""
        from llmkit.corpus.parts import Tally
        from llmkit.corpus.plan import payload

        payloads = [payload(number, part, self._config) for number, part in enumerate(self._plan.parts)]
        tally = Tally()
        for result in self._tasks("llmkit.corpus.parts:make_part", "read", payloads):
            tally.add(Tally.from_json(result))
        tally.judge(self._config.max_bad_fraction)
        return tally

    def find_duplicates(self) -> dict[str, Any]:
        """Decide which documents repeat others."""
        from llmkit.corpus.duplicates.decide import decide
        from llmkit.corpus.parts import decisions_of, marks_of

        marks = [marks_of(self._scratch, number) for number in range(len(self._plan.parts))]
        rounds = iter(range(1 << 30))

        def run(function: str, payloads: Iterable[dict[str, Any]]) -> None:
            calls = [{"function": function, "payload": payload} for payload in payloads]
            is_small = sum(part.size for part in self._plan.parts) < _ALONE
            self._tasks("llmkit.corpus.parts:call", f"duplicates-{next(rounds)}", calls, here=is_small)

        settings = self._config.duplicates()
        found = asdict(decide(marks, settings, decisions_of(self._scratch), run))
        return {**found, **self._near_quality()} if settings.near else found

    def _near_quality(self) -> dict[str, Any]:
        """How well near duplicates are found: in theory, and on a sample of this corpus."""
        from llmkit.corpus.duplicates.curve import collision_curve, sample_quality
        from llmkit.corpus.duplicates.sample import sample
        from llmkit.corpus.parts import decisions_of, kept_texts

        rows: dict[int, list[int]] = {}
        for part, row in sample(decisions_of(self._scratch)):
            rows.setdefault(part, []).append(row)
        texts = _within(text for part, some in rows.items() for text in kept_texts(self._scratch, part, some))
        curve = collision_curve(self._config.minhash_bands, self._config.minhash_rows)
        return {
            "curve": [[point["jaccard"], point["probability"]] for point in curve],
            "sample": sample_quality(texts, self._config.duplicates()),
        }

    def second_pass(self) -> list[Output]:
        """Write the shards of all parts."""
        outputs = self._write([self._write_payload(number) for number in range(len(self._plan.parts))], "write")
        return self._with_both_splits(outputs)

    def total(self, outputs: list[Output], tally: Tally) -> Output:
        """What all parts gave.

        Raises:
            DataError: a split that must have documents has none.
        """
        total = _total(outputs)
        self._require("validation", total, tally)
        self._require("train", total, tally)
        return total

    def _write_payload(self, number: int, moved: int = -1) -> dict[str, Any]:
        shared = {name: getattr(self._config, name) for name in ("validation_fraction", "seed", "min_chars")}
        split, has_validation = self._plan.parts[number].split, bool(self._plan.described["validation"])
        return {"part": number, "split": split, "has_validation": has_validation, "moved": moved, **shared}

    def _write(self, payloads: list[dict[str, Any]], name: str) -> list[Output]:
        from llmkit.corpus.outputs import Output

        return [Output.from_json(result) for result in self._tasks("llmkit.corpus.outputs:write_part", name, payloads)]

    def _with_both_splits(self, outputs: list[Output]) -> list[Output]:
        """Where the hashes leave a split empty, the document nearest to it goes there; a single one is for training."""
        total = _total(outputs)
        counts = {split: amount.documents for split, amount in total.splits.items()}
        if self._plan.described["validation"] or not self._config.validation_fraction:
            return outputs
        alone = sum(counts.values()) == 1
        empty = next((split for split, count in counts.items() if not count), None)
        if empty is None or not any(counts.values()) or (alone and counts["train"]):
            return outputs
        giving = "train" if empty == "validation" else "validation"
        choose = min if giving == "train" else max
        (_, row), number = choose(
            (output.nearest[giving], number) for number, output in enumerate(outputs) if giving in output.nearest
        )
        outputs[number] = self._write([self._write_payload(number, moved=row)], f"write-again-{number:05d}")[0]
        return outputs

    def _require(self, split: str, output: Output, tally: Tally) -> None:
        described = self._plan.described[split]
        if described and not output.splits[split].documents:
            rejected = _rules(tally.rejected + output.rejected)
            bad = "".join(f"\n  - {row['place']}: {row['reason']}" for row in tally.first_bad)
            raise DataError(
                f"no document is left for {split}: {tally.read:,} rows were read from {described}; "
                f"rejected: {rejected}; give more text, or loosen min_chars ({self._config.min_chars}) and the filters{bad}"
            )

    def collect(self, outputs: list[Output]) -> None:
        """Put the shards in their place."""
        from llmkit.corpus.outputs import collect

        collect(self._scratch, self._workspace.directory, [output.shards for output in outputs])

    def statistics(self) -> dict[str, Any]:
        """What the corpus is made of."""
        from llmkit.corpus.outputs import statistics_file
        from llmkit.corpus.statistics import Statistics

        total = Statistics()
        for number in range(len(self._plan.parts)):
            values = json.loads(statistics_file(self._scratch, number).read_text(encoding="utf-8"))
            total.merge(Statistics.from_json(values))
        return total.to_json()

    def _tasks(self, function: str, name: str, payloads: list[dict[str, Any]], here: bool = False) -> list[dict[str, Any]]:
        from llmkit.corpus.execution.run import run_tasks
        from llmkit.corpus.execution.tasks import Task

        tasks = []
        for number, payload in enumerate(payloads):
            size = self._plan.parts[payload["part"]].size if "part" in payload else 1
            tasks.append(Task(f"{name}-{number:05d}", payload, size))
        return run_tasks(
            function,
            tasks,
            self._scratch,
            executor="local" if here else self._config.executor,
            workers=1 if here or (self._config.executor == "local" and len(tasks) == 1) else self._config.workers,
            describe=f"preprocess: {name.partition('-')[0]}",
            say=self._workspace.say,
        )


def _within(texts: Iterable[str], characters: int = _SAMPLED) -> list[str]:
    """The first texts, as many as have so many characters together."""
    found: list[str] = []
    for text in texts:
        characters -= len(text)
        if characters < 0:
            break
        found.append(text)
    return found


def _total(outputs: list[Output]) -> Output:
    from llmkit.corpus.outputs import Output

    total = Output()
    for output in outputs:
        total.add(output)
    return total


# --------------------------------------------------------------------------------------------------------------------
# What is said about it


def _metrics(config: PreprocessConfig, plan: Plan, tally: Tally, output: Output, repeated: dict[str, Any]) -> dict[str, Any]:
    rejected = tally.rejected + output.rejected
    kept = sum(amount.documents for amount in output.splits.values())
    merged = sum(rejected[rule] for rule in _DUPLICATES)
    metrics = {
        "read": tally.read,
        "kept": kept,
        "rejected": rejected.total() - merged,
        "merged": merged,
        "documents": kept,
        "characters": sum(amount.characters for amount in output.splits.values()),
        "bytes": sum(amount.bytes for amount in output.splits.values()),
        "bad_rows": tally.bad,
        "removed": dict(rejected.most_common()),
        "skipped_files": plan.skipped,
        "splits": {split: asdict(amount) for split, amount in output.splits.items()},
        "sources": largest({name: asdict(amount) for name, amount in output.sources.items()}),
        "duplicates": repeated,
    }
    if config.filters:
        metrics["words"] = config.words
    return metrics


def _report(say: Callable[[str], None], plan: Plan, tally: Tally, metrics: dict[str, Any], config: PreprocessConfig) -> None:
    """What a person wants to know at the end."""
    train, validation = metrics["splits"]["train"], metrics["splits"]["validation"]
    say(
        f"preprocess: kept {metrics['kept']:,} of {metrics['read']:,} rows: "
        f"{train['documents']:,} documents for training ({train['bytes'] / 1e6:,.2f} MB), "
        f"{validation['documents']:,} for validation ({validation['bytes'] / 1e6:,.2f} MB); "
        f"rejected: {_rules(metrics['removed'])}"
    )
    for row in tally.first_bad:
        say(f"preprocess: bad row: {row['place']}: {row['reason']}")
    if plan.skipped:
        outside = f", {plan.outside:,} of them links that lead out of their directory" if plan.outside else ""
        say(f"preprocess: passed over {plan.skipped:,} files that are hidden, of unknown kinds or unreadable{outside}")
    if config.validation_fraction and not validation["documents"]:
        say(
            "preprocess: warning: the validation split is empty, since there is only one document; no validation loss can be "
            "measured. Give --validation_file, or cut text files with --sample_by paragraph"
        )


def _rules(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{rule} {number:,}" for rule, number in ordered) or "none"
