"""Documents on disk: Parquet shards (zstd) named `<split>-00000.parquet`, read and written as a stream.

Beside the splits stands `rejects-00000.parquet`: what did not become a document, with the rule that removed it and what that
rule saw; and `signals-00000.parquet`, where quality was measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

SHARD_BYTES = 64 << 20
"""UTF-8 bytes of text after which a new shard is begun."""
GROUP_DOCUMENTS = 1000
GROUP_BYTES = 8 << 20
"""A row group ends at whichever of the two comes first, which bounds the memory of writers and readers."""

_NUMBER = re.compile(r"-\d{5,}")
COLUMNS = ("text", "id", "source", "metadata")
SOURCES_LISTED = 100
"""Sources that a manifest tells of by name."""
REJECTS, SIGNALS = "rejects", "signals"


@dataclass(slots=True)
class Document:
    """One text with where it came from."""

    text: str
    id: str
    """Source and line (row, module) in it, unique in a corpus: `book.txt:1`, `stdlib:json.decoder`."""
    source: str
    metadata: str = "{}"
    """A JSON object; what the raw row held beside the text."""


class ShardWriter:
    """Writes record batches, whose first column is the text, to the shards of a split. No rows, no file.

    A context manager, or to be closed. Small batches are put together to row groups.
    """

    def __init__(self, directory: Path, split: str):
        self._directory, self._split = directory, split
        self._pending: list[pyarrow.RecordBatch] = []
        self._pending_rows = self._pending_bytes = self._shard_bytes = 0
        self._shard: Any = None
        self.shards = 0
        """How many were begun."""

    def write(self, batch: pyarrow.RecordBatch) -> None:
        size = batch.column(0).nbytes
        too_many = self._pending_rows + batch.num_rows > GROUP_DOCUMENTS or self._pending_bytes + size > GROUP_BYTES
        if self._pending and too_many:
            self._flush()
        if self._shard is not None and self._shard_bytes + self._pending_bytes + size > SHARD_BYTES:
            self.close()
        if batch.num_rows:
            self._pending.append(batch)
            self._pending_rows += batch.num_rows
            self._pending_bytes += size

    def _flush(self) -> None:
        import pyarrow
        import pyarrow.parquet

        if not self._pending:
            return
        if self._shard is None:
            path = self._directory / f"{self._split}-{self.shards:05d}.parquet"
            self._shard = pyarrow.parquet.ParquetWriter(path, self._pending[0].schema, compression="zstd")
            self.shards += 1
        self._shard.write_table(pyarrow.Table.from_batches(self._pending), row_group_size=self._pending_rows)
        self._shard_bytes += self._pending_bytes
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0

    def close(self) -> None:
        self._flush()
        if self._shard is not None:
            self._shard.close()
        self._shard, self._shard_bytes = None, 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def as_batch(documents: Sequence[Document]) -> pyarrow.RecordBatch:
    """Documents as one record batch."""
    import pyarrow

    columns = [[getattr(document, name) for document in documents] for name in COLUMNS]
    return pyarrow.record_batch([pyarrow.array(values, pyarrow.string()) for values in columns], names=list(COLUMNS))


def largest(sources: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """What there is of each source, the one of the most `bytes` first; beyond `SOURCES_LISTED`, all others added up."""
    ordered = sorted(sources.items(), key=lambda item: (-item[1]["bytes"], item[0]))
    listed = {name: dict(amounts) for name, amounts in ordered[:SOURCES_LISTED]}
    smaller = [amounts for _, amounts in ordered[SOURCES_LISTED:]]
    if smaller:
        added_up = {key: sum(amounts[key] for amounts in smaller) for key in smaller[0]}
        listed[f"({len(smaller):,} smaller sources)"] = added_up
    return listed


def shards(directory: Path, split: str) -> list[Path]:
    """The files of a split, in order, however many digits it takes to number them; none where the split is empty."""
    found = [path for path in Path(directory).glob(f"{split}-*.parquet") if _NUMBER.fullmatch(path.stem[len(split) :])]
    return sorted(found, key=lambda path: (len(path.name), path.name))


def count(directory: Path, split: str) -> int:
    """The number of documents of a split, without reading them."""
    import pyarrow.parquet

    return sum(pyarrow.parquet.read_metadata(path).num_rows for path in shards(directory, split))


def read_batches(
    directory: Path, split: str, columns: Sequence[str] | None = None, batch_size: int = GROUP_DOCUMENTS
) -> Iterator[pyarrow.RecordBatch]:
    """The documents of a split in the order written, as batches of at most `batch_size`.

    Args:
        columns: the columns to read; all of them when not given.
    """
    import pyarrow.parquet

    chosen = None if columns is None else list(columns)
    for path in shards(directory, split):
        with pyarrow.parquet.ParquetFile(path) as shard:
            yield from shard.iter_batches(batch_size=batch_size, columns=chosen)
