"""Labelled examples from CSV, TSV, JSON lines, Parquet, `datasets`, or the reviews that travel with llmkit.

Every row keeps its place (file and line), so that a problem can be named by it.
"""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkit.errors import DataError
from llmkit.resources import PACKAGE

REVIEWS = "llmkit/reviews"
_REVIEWS_DIRECTORY = PACKAGE / "data" / "reviews"
_VALIDATION_SPLITS = ("validation", "valid", "dev", "val")
_FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
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


def read_dataset(name: str, configuration: str | None, split: str, revision: str | None = None) -> Split:
    """A split of the embedded reviews, or of a data set by the name or directory that `datasets` knows.

    Raises:
        DataError: there is no such data set or split.
    """
    if name == REVIEWS:
        return Split(read_table(reviews_file(split)))
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
    if name == REVIEWS:
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
