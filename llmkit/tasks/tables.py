"""Labelled examples from CSV, TSV, JSON lines, Parquet, `datasets`, or the reviews that travel with llmkit.

Every row keeps its place (file and line), so that a problem can be named by it.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.errors import DataError
from llmkit.resources import PACKAGE

REVIEWS = "llmkit/reviews"
_REVIEWS_DIRECTORY = PACKAGE / "data" / "reviews"
_FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_SHOWN = 3


@dataclass
class Row:
    """One example as it stands in its source."""

    place: str
    """`file:line`, or `data set[row]`."""
    values: dict[str, Any]


def reviews_file(split: str) -> Path:
    """The file of a split of the embedded reviews.

    Raises:
        DataError: there is no such split.
    """
    path = _REVIEWS_DIRECTORY / f"{split}.jsonl"
    if not path.is_file():
        raise DataError(f"{REVIEWS} has no split {split!r}; it has train, validation and test")
    return path


def read_table(path: str | Path) -> list[Row]:
    """All rows of a file.

    Raises:
        DataError: no such file, unknown format, not UTF-8, no rows, or a row that is broken (named by its line).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is not a file (looked in {Path.cwd()})")
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".json": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: the format {path.suffix!r} is not known; known are {', '.join(_FORMATS)}")
    try:
        rows = list(reader(path))
    except UnicodeDecodeError:
        place = f"{path}:{_first_line_not_utf8(path)}"
        raise DataError(f"{place} is not UTF-8; convert the file, with `iconv -t utf-8` for example") from None
    except OSError as failure:
        raise DataError(f"{path} cannot be read: {failure}") from None
    if not rows:
        raise DataError(f"{path} holds no rows")
    return rows


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
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True, **dialect)
        try:
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
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}:{number}", values)
    except pyarrow.ArrowInvalid as failure:
        raise DataError(f"{path} is not Parquet: {failure}") from None


def read_dataset(name: str, configuration: str | None, split: str) -> list[Row]:
    """All rows of a split of the embedded reviews, or of a data set by the name or path that `datasets` knows.

    Raises:
        DataError: there is no such data set or split.
    """
    if name == REVIEWS:
        return read_table(reviews_file(split))
    import datasets

    try:
        data = datasets.load_dataset(name, configuration, split=split)
    except Exception as failure:
        raise DataError(f"data set {name!r}, split {split!r}, cannot be loaded: {failure}") from failure
    features = data.features
    rows = []
    for number, values in enumerate(data):
        for column, feature in features.items():
            if isinstance(feature, datasets.ClassLabel) and isinstance(values[column], int) and values[column] >= 0:
                values[column] = feature.int2str(values[column])
        rows.append(Row(f"{name}[{split}][{number}]", values))
    return rows


def pick_column(rows: list[Row], asked: str | None, usual: tuple[str, ...], setting: str) -> str:
    """The column to use: the one asked for, or the only usual one there is.

    Raises:
        DataError: it is not there; names the columns and the nearest.
    """
    columns = list(rows[0].values)
    listing = ", ".join(columns)
    if asked is not None:
        if asked in columns:
            return asked
        near = difflib.get_close_matches(asked, columns, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"{setting}: {rows[0].place} has no column {asked!r}, it has: {listing}{hint}")
    found = [name for name in usual if name in columns]
    if len(found) != 1:
        raise DataError(f"{setting}: which column? {rows[0].place} has: {listing}. Name it with --{setting}")
    return found[0]


def places(rows: list[Row]) -> str:
    """The first few places of rows, in words."""
    listing = ", ".join(row.place for row in rows[:_SHOWN])
    return listing + (f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else "")
