"""Documents on disk: Parquet shards (zstd) named `<split>-00000.parquet`, read and written as a stream.

Beside the splits stands `rejects-00000.parquet`: what did not become a document, with the rule that removed it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import pyarrow

WriterT = TypeVar("WriterT", bound="_ShardWriter")

SHARD_BYTES = 64 << 20
"""UTF-8 bytes of text after which a new shard is begun."""
GROUP_DOCUMENTS = 1000
GROUP_BYTES = 8 << 20
"""A row group ends at whichever of the two comes first, which bounds the memory of writers and readers."""

COLUMNS = ("text", "id", "source", "metadata")
REJECTS = "rejects"


@dataclass(slots=True)
class Document:
    """One text with where it came from."""

    text: str
    id: str
    """Source and line (row, module) in it, unique in a corpus: `book.txt:1`, `stdlib:json.decoder`."""
    source: str
    metadata: str = "{}"
    """A JSON object; what the raw row held beside the text."""


class _ShardWriter:
    """Rows of strings, the first being the text, to shards. No rows, no file."""

    def __init__(self, directory: Path, split: str, columns: Sequence[str]):
        self._directory, self._split, self._columns = directory, split, columns
        self._rows: list[tuple[str, ...]] = []
        self._row_bytes = 0
        self._shard: Any = None
        self._shards = 0
        self._shard_bytes = 0

    def _add(self, row: tuple[str, ...]) -> None:
        size = len(row[0].encode())
        if self._rows and (len(self._rows) == GROUP_DOCUMENTS or self._row_bytes + size > GROUP_BYTES):
            self._flush()
        if self._shard is not None and self._shard_bytes + self._row_bytes + size > SHARD_BYTES:
            self._flush()
            self._close_shard()
        self._rows.append(row)
        self._row_bytes += size

    def _flush(self) -> None:
        import pyarrow
        import pyarrow.parquet

        if not self._rows:
            return
        schema = pyarrow.schema([(name, pyarrow.string()) for name in self._columns])
        if self._shard is None:
            path = self._directory / f"{self._split}-{self._shards:05d}.parquet"
            self._shard = pyarrow.parquet.ParquetWriter(path, schema, compression="zstd")
            self._shards += 1
        columns = [pyarrow.array(values, pyarrow.string()) for values in zip(*self._rows, strict=True)]
        self._shard.write_batch(pyarrow.record_batch(columns, schema=schema))
        self._shard_bytes += self._row_bytes
        self._rows, self._row_bytes = [], 0

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()
        self._shard, self._shard_bytes = None, 0

    def close(self) -> None:
        self._flush()
        self._close_shard()

    def __enter__(self: WriterT) -> WriterT:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self._close_shard()


class DocumentWriter(_ShardWriter):
    """Writes the documents of one split; a context manager, or to be closed."""

    def __init__(self, directory: Path, split: str):
        super().__init__(directory, split, COLUMNS)

    def write(self, document: Document) -> None:
        self._add((document.text, document.id, document.source, document.metadata))


class RejectWriter(_ShardWriter):
    """Writes the table of what was removed, with the rule that removed it."""

    def __init__(self, directory: Path):
        super().__init__(directory, REJECTS, (*COLUMNS, "rule"))

    def write(self, document: Document, rule: str) -> None:
        self._add((document.text, document.id, document.source, document.metadata, rule))


def shards(directory: Path, split: str) -> list[Path]:
    """The files of a split, in order; none where the split is empty."""
    return sorted(Path(directory).glob(f"{split}-[0-9][0-9][0-9][0-9][0-9].parquet"))


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
