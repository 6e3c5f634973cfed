"""The second pass of `preprocess`, part by part: what is no duplicate goes to its split, the rest to the rejects.

By then it is known which documents repeat others, so again no part needs to look at another.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from llmkit.corpus.documents import COLUMNS, REJECTS, SIGNALS, ShardWriter, shards
from llmkit.corpus.duplicates.decide import Decisions
from llmkit.corpus.parts import decisions_of, part_file
from llmkit.corpus.statistics import Statistics
from llmkit.pipeline.artefact import sync, write_synced

SPLITS = ("train", "validation")
REPEATED = "repeated paragraphs"
"""The rule for a document of which nothing (or too little) is left without the paragraphs that came before."""


@dataclass
class Amount:
    """An amount of text."""

    documents: int = 0
    characters: int = 0
    bytes: int = 0

    def add(self, other: Amount) -> None:
        self.documents += other.documents
        self.characters += other.characters
        self.bytes += other.bytes


@dataclass
class Output:
    """What a part gave."""

    splits: dict[str, Amount] = field(default_factory=lambda: {split: Amount() for split in SPLITS})
    sources: dict[str, Amount] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)
    """Documents by the rule of this pass that rejected them."""
    nearest: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Of each split, the hash and the row of the document that would be the first to go to the other one."""
    shards: dict[str, int] = field(default_factory=dict)
    """How many files there are of each table."""

    def to_json(self) -> dict[str, Any]:
        splits, sources = [{name: asdict(amount) for name, amount in one.items()} for one in (self.splits, self.sources)]
        return {**vars(self), "splits": splits, "sources": sources, "rejected": dict(self.rejected)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Output:
        return cls(
            {split: Amount(**amount) for split, amount in values["splits"].items()},
            {name: Amount(**amount) for name, amount in values["sources"].items()},
            Counter(values["rejected"]),
            {split: (mark, row) for split, (mark, row) in values["nearest"].items()},
            values["shards"],
        )

    def add(self, other: Output) -> None:
        for split, amount in other.splits.items():
            self.splits[split].add(amount)
        for name, amount in other.sources.items():
            self.sources.setdefault(name, Amount()).add(amount)
        self.rejected += other.rejected


def shard_directory(directory: Path, number: int) -> Path:
    return directory / f"shards-{number:05d}"


def statistics_file(directory: Path, number: int) -> Path:
    return directory / f"statistics-{number:05d}.json"


def write_part(payload: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Write the shards of one part.

    Returns:
        Its `Output` as JSON.
    """
    number = payload["part"]
    place = shard_directory(directory, number)
    place.mkdir(exist_ok=True)
    for left_over in place.iterdir():
        left_over.unlink()
    output, statistics = Output(), Statistics()
    source = part_file(directory, number)
    if source.is_file():
        decisions = Decisions.load(decisions_of(directory), number)
        writers = {name: ShardWriter(place, name) for name in (*SPLITS, REJECTS, SIGNALS)}
        with pyarrow.parquet.ParquetFile(source) as table:
            before = known = 0
            for row_group in range(table.num_row_groups):
                rows = _Rows(table.read_row_group(row_group), payload, before)
                known = rows.judge(decisions, known)
                rows.assign()
                rows.write(writers, output, statistics)
                before += len(rows.texts)
        for writer in writers.values():
            writer.close()
        output.shards = {name: writer.shards for name, writer in writers.items()}
    for path in place.iterdir():
        sync(path)
    write_synced(statistics_file(directory, number), json.dumps(statistics.to_json(), ensure_ascii=False))
    return output.to_json()


class _Rows:
    """A row group of a part on its way to the shards."""

    def __init__(self, table: pyarrow.Table, payload: dict[str, Any], before: int):
        self._table, self._payload, self._before = table, payload, before
        self.texts: list[str] = table["text"].to_pylist()
        self._rules: list[str] = table["rule"].to_pylist()
        self._values: list[str] = table["value"].to_pylist()
        self._new = Counter[str]()
        self._splits = [""] * len(self.texts)
        self._marks = [0] * len(self.texts)

    def judge(self, decisions: Decisions, known: int) -> int:
        """Reject what repeats another document.

        Args:
            decisions: about the documents that the first pass kept, in their order.
            known: how many of them came before these rows.

        Returns:
            How many of them came before the next rows.
        """
        for row, rule in enumerate(self._rules):
            if rule:
                continue
            text, self._marks[row] = self.texts[row], _mark(self.texts[row], self._payload["seed"])
            if repeats := decisions.rule(known):
                self._reject(row, repeats, decisions.twin(known))
            else:
                left = decisions.text(known, text)
                if len(left) < self._payload["min_chars"]:
                    self._reject(row, REPEATED, str(len(left)))
                else:
                    self.texts[row] = left
            known += 1
        return known

    def _reject(self, row: int, rule: str, value: str) -> None:
        self._rules[row], self._values[row] = rule, value
        self._new[rule] += 1

    def assign(self) -> None:
        """Give each document to a split."""
        threshold = int(self._payload["validation_fraction"] * 2**64)
        for row, rule in enumerate(self._rules):
            if rule:
                continue
            if self._payload["split"] == "validation" or self._payload["has_validation"]:
                self._splits[row] = self._payload["split"]
            else:
                self._splits[row] = "validation" if self._marks[row] < threshold else "train"
            if self._before + row == self._payload["moved"]:
                self._splits[row] = "train" if self._splits[row] == "validation" else "validation"

    def write(self, writers: dict[str, ShardWriter], output: Output, statistics: Statistics) -> None:
        ids, sources = self._table["id"].to_pylist(), self._table["source"].to_pylist()
        metadata = self._table["metadata"].to_pylist()
        columns = {"text": self.texts, "id": ids, "source": sources, "metadata": metadata}
        batch = pyarrow.record_batch([pyarrow.array(columns[name], pyarrow.string()) for name in COLUMNS], names=list(COLUMNS))
        splits = pyarrow.array(self._splits)
        for split in SPLITS:
            writers[split].write(batch.filter(pyarrow.compute.equal(splits, split)))
        rules = pyarrow.array(self._rules)
        rejects = batch.append_column("rule", rules).append_column("value", pyarrow.array(self._values))
        writers[REJECTS].write(rejects.filter(pyarrow.compute.not_equal(rules, "")))
        names = [name for name in self._table.column_names if name not in (*COLUMNS, "rule", "value")]
        signals = {name: self._table[name].combine_chunks() for name in names}
        if signals:
            writers[SIGNALS].write(pyarrow.record_batch([batch["id"], rules, *signals.values()], names=["id", "rule", *names]))
        self._count(output, sources)
        measured = {name: values.to_numpy(zero_copy_only=False) for name, values in signals.items()}
        statistics.add_rows(self.texts, ids, sources, metadata, self._splits, self._rules, self._values, measured)

    def _count(self, output: Output, sources: list[str]) -> None:
        output.rejected += self._new
        for row, split in enumerate(self._splits):
            if not split:
                continue
            text, mark = self.texts[row], self._marks[row]
            amount = Amount(1, len(text), len(text.encode()))
            output.splits[split].add(amount)
            output.sources.setdefault(sources[row], Amount()).add(amount)
            best = output.nearest.get(split)
            nearer = best is None or (mark < best[0] if split == "train" else mark > best[0])
            if nearer:
                output.nearest[split] = (mark, self._before + row)


def _mark(text: str, seed: int) -> int:
    """A hash of a text and the seed, 64 bits: chooses the documents for validation."""
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(hashlib.blake2b(digest + str(seed).encode(), digest_size=8).digest(), "big")


def collect(directory: Path, output: Path, counts: Sequence[dict[str, int]]) -> None:
    """Move the shards of all parts to their place, numbered on through the parts. What was moved before stays.

    Args:
        counts: of each part, how many files there are of each table.
    """
    for name in (*SPLITS, REJECTS, SIGNALS):
        moved = 0
        for number, count in enumerate(counts):
            for shard in range(count.get(name, 0)):
                path = shard_directory(directory, number) / f"{name}-{shard:05d}.parquet"
                if path.is_file():
                    path.replace(output / f"{name}-{moved:05d}.parquet")
                moved += 1
        for left in shards(output, name)[moved:]:  # an earlier run by another llmkit had more
            left.unlink()
