"""Parquet to rows, by row group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmkit.corpus.readers.rows import Progress, ReadOptions, Row, bad, no_column, row
from llmkit.corpus.readers.unit import Unit
from llmkit.errors import DataError


def read_parquet(unit: Unit, options: ReadOptions, progress: Progress) -> Iterator[Row]:
    """The rows of some row groups; a damaged group is one bad row, and reading goes on after it."""
    import pyarrow

    broken = (pyarrow.ArrowException, OSError)
    with open_parquet(unit) as table:
        kinds = {column.name: column.type for column in table.schema_arrow}
        if options.text_column not in kinds:
            raise DataError(f"{unit.shown} {no_column(options.text_column, kinds)}")
        kind = kinds[options.text_column]
        if pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        if str(kind) not in ("string", "large_string", "string_view", "null"):
            raise DataError(f"{unit.shown}: column {options.text_column!r} is {kind}, not text")
        groups = table.metadata.num_row_groups if unit.stop is None else unit.stop
        number = unit.rows_before
        for group in range(unit.start, groups):
            described = table.metadata.row_group(group)
            following = number + described.num_rows
            try:
                for batch in table.iter_batches(batch_size=256, row_groups=[group]):
                    for values in _rows_of(batch):
                        number += 1
                        if isinstance(values, str):
                            yield bad(unit, number, "", values)
                        else:
                            yield row(unit, number, values, options.text_column)
            except broken as failure:
                lost = f"the {following - number:,} rows from this one on are damaged"
                yield bad(unit, number + 1, "", f"{lost}: {failure}")
            number = following
            progress(sum(described.column(column).total_compressed_size for column in range(described.num_columns)))


def open_parquet(unit: Unit) -> Any:
    """The file, opened.

    Raises:
        DataError: it is not Parquet.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(unit.path)
    except (pyarrow.ArrowException, OSError) as failure:
        raise DataError(f"{unit.shown} cannot be read as Parquet: {failure}") from None


def _rows_of(batch: Any) -> list[Any]:
    """The rows of a batch; in the place of one that cannot be decoded, a sentence saying so."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError) as failure:  # a date of the year 50,000, say, which Python cannot hold
        if batch.num_rows == 1:
            if isinstance(failure, UnicodeDecodeError):
                return [f"not UTF-8 ({failure.reason}), although its column says that it is"]
            return [f"cannot be decoded: {failure}"]
    return [row for position in range(batch.num_rows) for row in _rows_of(batch.slice(position, 1))]
