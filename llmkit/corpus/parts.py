"""The first pass of `preprocess`, part by part: rows to documents that are cleaned, measured and judged by themselves.

Nothing here looks at another document, so parts can be made in any order and anywhere. A part's file has all its rows in
the order of reading, with the rule that rejected a row, if one did.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from llmkit.corpus.batch import Batch, Step
from llmkit.corpus.documents import GROUP_BYTES, GROUP_DOCUMENTS
from llmkit.corpus.duplicates.marks import Marker
from llmkit.corpus.plan import is_sampled, rows
from llmkit.corpus.readers import BadRow, Row
from llmkit.corpus.settings import EVALUATION_KINDS, PreprocessConfig
from llmkit.errors import DataError
from llmkit.pipeline.artefact import sync
from llmkit.pipeline.stage import load_target, named_files

BAD_ROW, TOO_SHORT, NOT_SAMPLED = "bad row", "too short", "not sampled"
_SURROGATE = re.compile("[\ud800-\udfff]")
ROWS_BEFORE_JUDGING = 1000
"""Rows of the first part after which the stage stops at once if most of them are bad: the settings are wrong, then."""


@dataclass
class Tally:
    """What became of the rows."""

    read: int = 0
    bad: int = 0
    first_bad: list[dict[str, str]] = field(default_factory=list)
    """`place` and `reason` of the first bad rows."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Rows by the rule that rejected them, bad ones included."""

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "rejected": dict(self.rejected)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Tally:
        return cls(**{**values, "rejected": Counter(values["rejected"])})

    def add(self, other: Tally) -> None:
        self.read += other.read
        self.bad += other.bad
        self.first_bad = (self.first_bad + other.first_bad)[:3]
        self.rejected += other.rejected

    def judge(self, allowed: float) -> None:
        """Stop where too many rows are bad.

        Raises:
            DataError: more than the allowed share.
        """
        if self.bad > allowed * self.read:
            raise DataError(
                f"{self.bad:,} of {self.read:,} rows cannot be used, more than max_bad_fraction ({allowed:g}) "
                f"allows; mend them, or allow more with --max_bad_fraction. The first are:\n"
                + "\n".join(f"  - {row['place']}: {row['reason']}" for row in self.first_bad)
            )


def part_file(directory: Path, number: int) -> Path:
    return directory / f"part-{number:05d}.parquet"


def marks_of(directory: Path, number: int) -> Path:
    """Where a part's duplicate marks are."""
    return directory / f"marks-{number:05d}"


def decisions_of(directory: Path) -> Path:
    """Where it is written which documents repeat others."""
    return directory / "decisions"


def make_part(payload: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Read one part, and write its rows and the marks by which duplicates are found.

    Returns:
        Its `Tally` as JSON.
    """
    config = PreprocessConfig(**payload["settings"])
    steps, marker, tally = _steps(json.dumps(payload["settings"], sort_keys=True)), Marker(config.duplicates()), Tally()
    path = part_file(directory, payload["part"])
    path.unlink(missing_ok=True)  # made by another llmkit, say; a part without rows has no file
    unfinished = path.with_suffix(".tmp")
    writer = None
    try:
        for batch in _batches(payload, config, tally):
            for step in steps:
                step(batch)
            kept = list(batch.kept())
            texts, ids = [batch.texts[number] for number in kept], [batch.ids[number] for number in kept]
            marker.add(texts, ids, payload["split"] == "validation")
            tally.rejected.update(rule for rule in batch.rules if rule and rule != BAD_ROW)
            table = _as_table(batch)
            writer = writer or pyarrow.parquet.ParquetWriter(unfinished, table.schema, compression="zstd")
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
    if writer is not None:
        sync(unfinished)
        unfinished.replace(path)
    marker.save(marks_of(directory, payload["part"]))
    return tally.to_json()


def kept_texts(directory: Path, number: int, rows: list[int]) -> Iterator[str]:
    """Texts of a part by their number among those that the first pass kept; the numbers are in order."""
    wanted = iter(rows)
    row, before = next(wanted, -1), 0
    with pyarrow.parquet.ParquetFile(part_file(directory, number)) as table:
        for group in range(table.num_row_groups):
            columns = table.read_row_group(group, columns=["text", "rule"])
            kept = [place for place, rule in enumerate(columns["rule"].to_pylist()) if not rule]
            while 0 <= row < before + len(kept):
                yield columns["text"][kept[row - before]].as_py()
                row = next(wanted, -1)
            before += len(kept)


def call(payload: dict[str, Any], _: Path) -> dict[str, Any]:
    """A step of the decision on duplicates, as a task."""
    load_target(payload["function"])(payload["payload"])
    return {}


# --------------------------------------------------------------------------------------------------------------------
# Rows to batches


def _batches(payload: dict[str, Any], config: PreprocessConfig, tally: Tally) -> Iterator[Batch]:
    """The rows of all pieces, bounded in number and bytes; bad ones are there, rejected."""
    batch, size = Batch([], [], [], []), 0
    for piece in payload["pieces"]:
        for row in rows(piece, config, progress=lambda _: None):
            tally.read += 1
            _append(batch, _writable(row), piece, tally)
            size += len(row.text)
            if len(batch) == GROUP_DOCUMENTS or size >= GROUP_BYTES:
                yield batch
                batch, size = Batch([], [], [], []), 0
            if "max_bad_fraction" in payload and tally.read >= ROWS_BEFORE_JUDGING and tally.bad > tally.read / 2:
                tally.judge(payload["max_bad_fraction"])
    if len(batch):
        yield batch


def _append(batch: Batch, row: Row, piece: dict[str, Any], tally: Tally) -> None:
    batch.texts.append(row.text)
    batch.ids.append(row.id)
    batch.sources.append(piece["source"] or row.source)
    batch.rules.append("")
    batch.values.append(None)
    if isinstance(row, BadRow):
        batch.metadata.append({})
        batch.reject(len(batch) - 1, *((row.reason, row.detail) if row.expected else (BAD_ROW, row.reason)))
        if not row.expected:
            tally.bad += 1
            tally.first_bad = [*tally.first_bad, {"place": row.place, "reason": row.reason}][:3]
            tally.rejected[BAD_ROW] += 1
        return
    metadata = _metadata(row.metadata)
    if piece["license"]:
        metadata.setdefault("license", piece["license"])
    batch.metadata.append(metadata)
    if piece["weight"] < 1 and not is_sampled(row.id, piece["weight"]):
        batch.reject(len(batch) - 1, NOT_SAMPLED, piece["weight"])


def _metadata(text: str) -> dict[str, Any]:
    """Metadata from JSON; lone surrogates, which UTF-8 cannot hold, are put down as they were written (`\\ud800`)."""
    metadata = json.loads(text)
    if "\\ud" not in text.lower():
        return metadata
    return json.loads(_SURROGATE.sub(lambda found: f"\\\\u{ord(found[0]):04x}", json.dumps(metadata, ensure_ascii=False)))


def _writable(row: Row) -> Row:
    """The row, or a bad row where its text holds what UTF-8 cannot."""
    if isinstance(row, BadRow):
        return row
    try:
        row.text.encode()
        return row
    except UnicodeEncodeError as failure:
        text = row.text.encode("utf-8", "backslashreplace").decode()
        reason = f"a lone surrogate (\\u{ord(row.text[failure.start]):04x}) at character {failure.start:,}"
        return BadRow(text, row.id, row.source, reason, row.id)


def _as_table(batch: Batch) -> pyarrow.Table:
    def strings(values: list[str]) -> pyarrow.Array:
        return pyarrow.array(values, pyarrow.string())

    columns = {
        "text": strings(batch.texts),
        "id": strings(batch.ids),
        "source": strings(batch.sources),
        "metadata": strings([json.dumps(metadata, ensure_ascii=False) for metadata in batch.metadata]),
        "rule": strings(batch.rules),
        "value": strings([_shown(value) for value in batch.values]),
    }
    return pyarrow.table({**columns, **{name: pyarrow.array(values) for name, values in batch.signals.items()}})


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


# --------------------------------------------------------------------------------------------------------------------
# Steps


class MinChars:
    """Rejects what is too short to be a document."""

    def __init__(self, least: int):
        self._least = least

    def __call__(self, batch: Batch) -> None:
        for number in batch.kept():
            if len(batch.texts[number]) < self._least:
                batch.reject(number, TOO_SHORT, len(batch.texts[number]))


@cache
def _steps(settings: str) -> list[Step]:
    """What happens to each batch, in order. Made once a process, since some steps load a model or an index."""
    config = PreprocessConfig(**json.loads(settings))
    from llmkit.corpus.clean import Clean

    short = MinChars(config.min_chars)
    steps: list[Step] = [Clean(repair=config.repair_text, boilerplate=config.remove_boilerplate), short]
    if config.identify_language or config.languages:
        from llmkit.corpus.languages import Languages

        least = config.min_language_score if config.languages else 0.0
        steps.append(Languages(config.languages, least, config.remove_foreign_paragraphs))
    if config.pii != "keep":
        from llmkit.corpus.pii import TYPES, Pii

        steps.append(Pii(config.pii, config.pii_types or TYPES))
    if config.filters:
        from llmkit.corpus.quality.step import Quality

        quality = Quality(config.filters, config.thresholds, config.words)
        steps += [quality, quality.judge]
    if config.decontaminate:
        steps.append(_contamination(config.decontaminate))
    return [*steps, short] if len(steps) > 2 else steps


def _contamination(patterns: list[str]) -> Step:
    from llmkit.corpus.contamination import Contamination, evaluation_texts
    from llmkit.corpus.overlap import LEAST

    names, texts = zip(*evaluation_texts(named_files(patterns, "decontaminate", EVALUATION_KINDS)), strict=True)
    step = Contamination(texts, names)
    if not step.searched:
        raise DataError(
            f"decontaminate: none of the {len(texts):,} texts in {', '.join(patterns)} has the {LEAST} words that it takes; "
            f"give longer ones, or leave it out"
        )
    return step
