"""Tables to CSV, TSV, JSON lines and Parquet, row by row, in memory that does not grow with them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

_QUOTED = re.compile(r'[",\r\n]|^\s|\s$')
_TSV_ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})
_ROWS_AT_ONCE = 16_384


def in_blocks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Rows in lists of one size, the last one shorter."""
    remaining = iter(rows)
    while block := list(islice(remaining, size)):
        yield block


def write_text_table(path: Path, kind: str, columns: list[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write rows; a column that a row lacks is empty in it.

    Numbers, lists and mappings stand in CSV and TSV as JSON has them. TSV cannot hold tabs and line ends within a value (it is
    read without quotes), so there they are written as in Python's literals.

    Args:
        kind: `.csv`, `.tsv` or `.jsonl`.
    """
    line = {".csv": _csv_line, ".tsv": _tsv_line, ".jsonl": None}[kind]
    # A text may hold half of a surrogate pair, which JSON can name and UTF-8 cannot hold.
    with path.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
        if line is not None:
            file.write(line(columns))
        for row in rows:
            file.write(_json_line(row) if line is None else line([row.get(name) for name in columns]))


def _json_line(row: dict[str, Any]) -> str:
    text = as_json(row)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(row, default=plain)
    return text + "\n"


def _csv_line(values: list[Any]) -> str:
    cells = (_cell(value) for value in values)
    return ",".join(f'"{cell.replace(chr(34), chr(34) * 2)}"' if _QUOTED.search(cell) else cell for cell in cells) + "\n"


def _tsv_line(values: list[Any]) -> str:
    return "\t".join(_cell(value).translate(_TSV_ESCAPES) for value in values) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return as_json(value) if isinstance(value, (bool, int, float, list, dict)) else str(value)


def as_json(value: Any) -> str:
    """A value in one line of JSON; what JSON has no word for, a date say, as text."""
    return json.dumps(value, ensure_ascii=False, default=plain)


def plain(value: Any) -> Any:
    """What JSON has no word for: arrays and numbers of numpy as lists and numbers, all else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


class ColumnTypes:
    """The Arrow type of each column, found while rows pass by. What fits no type, or has keys of its own, becomes JSON."""

    def __init__(self) -> None:
        self._types: dict[str, pyarrow.DataType] = {}
        self._as_json: set[str] = set()

    def see(self, rows: list[dict[str, Any]]) -> None:
        """Take the values of some rows into account."""
        for name in dict.fromkeys(name for row in rows for name in row):
            try:
                seen = pyarrow.array([_encodable(row.get(name)) for row in rows]).type
                if _has_keys(seen):
                    raise ValueError("a struct would give every row the keys of all")
                self._types[name] = _common(self._types.get(name, pyarrow.null()), seen)
            except (ValueError, TypeError, OverflowError, pyarrow.ArrowNotImplementedError):
                self._types[name] = pyarrow.string()
                self._as_json.add(name)

    def fields(self, names: Iterable[str]) -> list[pyarrow.Field]:
        """The columns of these names as a schema has them; those that only held nothing are text."""
        types = {name: self._types.get(name, pyarrow.null()) for name in names}
        return [pyarrow.field(name, pyarrow.string() if pyarrow.types.is_null(kind) else kind) for name, kind in types.items()]

    def arrays(self, names: Iterable[str], rows: list[dict[str, Any]]) -> list[pyarrow.Array]:
        """The values of rows, a column each."""
        return [
            pyarrow.array([self._value(name, row.get(name), field.type) for row in rows], type=field.type)
            for name, field in zip(names, self.fields(names), strict=True)
        ]

    def _value(self, name: str, value: Any, kind: pyarrow.DataType) -> Any:
        if value is None:
            return None
        if name in self._as_json and not isinstance(value, str):
            value = as_json(value)
        if pyarrow.types.is_floating(kind):
            return float(value)
        return _encodable(value)


def _common(one: pyarrow.DataType, other: pyarrow.DataType) -> pyarrow.DataType:
    schemas = [pyarrow.schema([("column", kind)]) for kind in (one, other)]
    return pyarrow.unify_schemas(schemas, promote_options="permissive").field(0).type


def _has_keys(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_struct(kind) or (pyarrow.types.is_list(kind) and _has_keys(kind.value_type))


def _encodable(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


def write_parquet(
    path: Path,
    given: Iterable[pyarrow.RecordBatch],
    schema: pyarrow.Schema,
    added: Iterator[dict[str, Any]],
    types: ColumnTypes,
    names: list[str],
) -> None:
    """Write columns that are there with columns that are added.

    Args:
        given: the rows that are there, which keep their types.
        schema: theirs.
        added: a row of new columns for each of them.
        types: those of the new columns.
        names: the new columns.
    """
    for field in types.fields(names):
        schema = schema.append(field)
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in given:
            new = types.arrays(names, list(islice(added, batch.num_rows)))
            writer.write_table(pyarrow.Table.from_arrays([*batch.columns, *new], schema=schema))


def record_batches(
    rows: Iterable[dict[str, Any]], types: ColumnTypes, names: list[str]
) -> tuple[Iterator[pyarrow.RecordBatch], pyarrow.Schema]:
    """Rows as Arrow has them, and their schema."""
    schema = pyarrow.schema(types.fields(names))
    blocks = in_blocks(rows, _ROWS_AT_ONCE)
    return (pyarrow.RecordBatch.from_arrays(types.arrays(names, block), schema=schema) for block in blocks), schema
