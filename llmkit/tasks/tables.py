"""Rows of examples from CSV, TSV, JSON lines, Parquet, `datasets`, or a data set that travels with llmkit.

Every row keeps its place (file and line), so that a problem can be named by it.
"""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from llmkit.errors import ColumnError, DataError
from llmkit.resources import PACKAGE
from llmkit.tasks import squad_json

EMBEDDED = ("llmkit/reviews", "llmkit/passages", "llmkit/pairs", "llmkit/instructions")
"""The data sets that travel with llmkit, by the names that `dataset_name` takes."""

_VALIDATION_SPLITS = ("validation", "valid", "dev", "val")
_LONGEST_FIELD = 2**31 - 1  # characters; the csv module begins with 131,072, and texts are longer
_ROWS_AT_ONCE = 1024
_SHOWN = 3


@dataclass
class Row:
    """One example as it stands in its source."""

    place: str
    """`file:line`, or `data set[row]`."""
    values: dict[str, Any]


@dataclass
class Split:
    """The rows of one split of a data set."""

    rows: list[Row]
    revision: str | None = None
    """The commit that was read, for a data set of the hub."""
    classes: dict[str, list[str]] = field(default_factory=dict)
    """For columns whose labels are numbers with names, the names in the order of the numbers."""


def embedded_file(name: str, split: str) -> Path:
    """The file of a split of a data set that travels with llmkit.

    Raises:
        DataError: there is no such split.
    """
    path = PACKAGE / "data" / name.rpartition("/")[2] / f"{split}.jsonl"
    if not path.is_file():
        raise DataError(f"{name} has no split {split!r}; it has train, validation and test")
    return path


def read_table(path: str | Path) -> list[Row]:
    """All rows of a file.

    Raises:
        DataError: as `iterate_table`; or there are no rows.
    """
    rows = list(iterate_table(path))
    if not rows:
        raise DataError(f"{path} holds no rows")
    return rows


def iterate_table(path: str | Path, line_column: str | None = None) -> Iterator[Row]:
    """The rows of a file one after the other, in memory that does not grow with it.

    Args:
        line_column: what the only column of a .txt file is called, where such a file is allowed: each of its lines is a row,
            an empty one too.

    Raises:
        DataError: no such file, unknown format, not UTF-8, or a row that is broken (named by its line).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is not a file (looked in {Path.cwd()})")
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}
    if line_column is not None:
        readers[".txt"] = partial(_read_lines, column=line_column)
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: the format {path.suffix!r} is not known; known are {', '.join(readers)}")
    try:
        yield from reader(path)
    except UnicodeDecodeError:
        place = f"{path}:{_first_line_not_utf8(path)}"
        raise DataError(f"{place} is not UTF-8; convert the file, with `iconv -t utf-8` for example") from None
    except OSError as failure:
        raise DataError(f"{path} cannot be read: {failure}") from None


def _first_line_not_utf8(path: Path) -> int:
    """The line; a text file's own error counts bytes from the start of some block of it."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 0  # mended meanwhile


def _read_csv(path: Path) -> Iterator[Row]:
    # Tab-separated files of this ecosystem (GLUE, say) hold bare quotation marks, so there a quote is only a character.
    dialect: dict[str, Any] = {}
    if path.suffix.lower() == ".tsv":
        dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True, **dialect)
        try:
            twice = [name for name, count in Counter(reader.fieldnames or []).items() if count > 1]
            if twice:
                raise DataError(f"{path}:1 names a column twice: {twice[0]!r}")
            for values in reader:
                place = f"{path}:{reader.line_num}"
                if None in values or None in values.values():
                    count = len(reader.fieldnames or [])
                    raise DataError(
                        f"{place} does not have the {count} columns of the first line: {', '.join(reader.fieldnames or [])}"
                    )
                yield Row(place, values)
        except csv.Error as failure:
            raise DataError(f"{path}:{reader.line_num + 1} begins a row that is not CSV: {failure}") from None


def _read_json(path: Path) -> Iterator[Row]:
    """One object that holds everything under `data`, as SQuAD has it, an array of rows, or else JSON lines."""
    try:
        whole = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError:
        whole = None
    if isinstance(whole, dict) and isinstance(whole.get("data"), list):
        yield from (Row(*found) for found in squad_json.rows_of(path, whole["data"]))
    elif isinstance(whole, list):
        for number, values in enumerate(whole, start=1):
            if not isinstance(values, dict):
                raise DataError(f"{path}: entry {number} of the array is not an object with columns")
            yield Row(f"{path}: entry {number}", values)
    else:
        yield from _read_jsonl(path)


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError as failure:
                raise DataError(f"{path}:{number} is not a JSON object a line: {failure}") from None
            if not isinstance(values, dict):
                raise DataError(f"{path}:{number} is JSON, but not an object with columns")
            yield Row(f"{path}:{number}", values)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}:{number}", values)
    except pyarrow.ArrowInvalid as failure:
        raise DataError(f"{path} is not Parquet: {failure}") from None


def _read_lines(path: Path, column: str) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            yield Row(f"{path}:{number}", {column: line.removesuffix("\n").removesuffix("\r")})


def read_dataset(name: str, configuration: str | None, split: str, revision: str | None = None) -> Split:
    """A split of an embedded data set, or of one by the name or directory that `datasets` knows.

    Raises:
        DataError: there is no such data set or split.
    """
    if name in EMBEDDED:
        return Split(read_table(embedded_file(name, split)))
    import datasets

    data = _load(name, configuration, split, revision)
    # A column of lists, whose items are of one kind, has that as its `feature`.
    kinds = {column: getattr(kind, "feature", kind) for column, kind in data.features.items()}
    classes = {column: kind.names for column, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)}
    rows = []
    for number, values in enumerate(data):
        for column, names in classes.items():
            if isinstance(values[column], list):
                values[column] = [names[item] for item in values[column]]
            elif isinstance(values[column], int) and values[column] >= 0:
                values[column] = names[values[column]]
        rows.append(Row(f"{name}[{split}][{number}]", values))
    return Split(rows, _revision(data), classes)


def validation_split(name: str, configuration: str | None, revision: str | None = None) -> str | None:
    """The name of a data set's own validation split, or None where it has none.

    Raises:
        DataError: there is no such data set.
    """
    if name in EMBEDDED:
        return "validation"
    splits = _load(name, configuration, None, revision)
    return next((split for split in _VALIDATION_SPLITS if split in splits), None)


def _load(name: str, configuration: str | None, split: str | None, revision: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, configuration, split=split, revision=revision)
    except Exception as failure:
        what = f"data set {name!r}" + (f", split {split!r}," if split else "")
        raise DataError(f"{what} cannot be loaded: {failure}") from failure


def _revision(data: Any) -> str | None:
    """The commit of the hub that a data set was read at: `datasets` keeps it in a cache directory of that name."""
    parts = {part for file in data.cache_files for part in Path(file["filename"]).parts}
    return next((part for part in sorted(parts) if re.fullmatch("[0-9a-f]{40}", part)), None)


def source_name(source: str) -> str:
    """A file, directory or data set by its name alone: where files lie must not change the bytes of a result.

    The slash after a directory's name tells it from a data set of the hub.
    """
    path = Path(source)
    return f"{path.resolve().name}/" if path.is_dir() else path.name if path.is_file() else source


def pick_column(rows: list[Row], asked: str | None, usual: tuple[str, ...], setting: str) -> str:
    """The column to use: the one asked for, or the only usual one there is.

    Raises:
        ColumnError: it is not there; names the columns and the nearest.
    """
    columns = list(rows[0].values)
    listing = ", ".join(columns)
    if asked is not None:
        if asked in columns:
            return asked
        near = difflib.get_close_matches(asked, columns, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ColumnError(f"{setting}: {rows[0].place} has no column {asked!r}, it has: {listing}{hint}")
    found = [name for name in usual if name in columns]
    if len(found) != 1:
        raise ColumnError(f"{setting}: which column? {rows[0].place} has: {listing}. Name it with --{setting}")
    return found[0]


def places(rows: list[Row]) -> str:
    """The first few places of rows, in words."""
    listing = ", ".join(row.place for row in rows[:_SHOWN])
    return listing + (f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else "")
