"""JSON lines and CSV to rows."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmkit.corpus.readers.lines import LONGEST_ROW, Line, rows_as_lines
from llmkit.corpus.readers.rows import ReadOptions, Row, bad, no_column, row
from llmkit.corpus.readers.unit import Unit
from llmkit.errors import DataError

ROWS_BEFORE_GIVING_UP = 100
"""Rows of a JSON lines file of which none has the text column, after which the column is said to be missing."""


def read_json(unit: Unit, stream: io.BufferedIOBase, encoding: str, options: ReadOptions) -> Iterator[Row]:
    """One object a line.

    Raises:
        DataError: the file, not only the unit, has no text column.
    """
    objects, columns = 0, dict[str, None]()
    checks = unit.start == 0
    stop = math.inf if unit.stop is None else unit.stop
    for line in rows_as_lines(stream, encoding, unit):
        inside = line.offset < stop
        if not inside and not (checks and objects < ROWS_BEFORE_GIVING_UP and options.text_column not in columns):
            break
        found = _json_row(unit, line, options.text_column)
        if found is None:
            continue
        values, parsed = found
        if values is not None and objects < ROWS_BEFORE_GIVING_UP:
            columns.update(dict.fromkeys(values))
        objects += values is not None
        if inside:
            yield parsed
        if checks and objects == ROWS_BEFORE_GIVING_UP and options.text_column not in columns:
            break
    if checks and objects and options.text_column not in columns:
        raise DataError(f"{unit.shown} {no_column(options.text_column, columns)}")


def _json_row(unit: Unit, line: Line, column: str) -> tuple[dict[str, Any] | None, Row] | None:
    """The object on a line, where there is one, and the row it makes; None for an empty line."""
    if line.problem:
        return None, bad(unit, line.number, line.text, line.problem)
    if not line.text.strip():
        return None
    try:
        values = json.loads(line.text)
    except (ValueError, RecursionError) as failure:
        if line.number == 1 and line.text.lstrip().startswith("["):
            raise _json_array(unit) from None
        return None, bad(unit, line.number, line.text, f"not JSON: {failure}")
    if line.number == 1 and isinstance(values, list):
        raise _json_array(unit)
    if not isinstance(values, dict):
        return None, bad(unit, line.number, line.text, f"not a JSON object but {type(values).__name__}")
    return values, row(unit, line.number, values, column, raw=line.text)


def _json_array(unit: Unit) -> DataError:
    return DataError(
        f"{unit.shown}: holds one JSON array, where one object a line is expected; convert it with "
        f"`jq -c '.[]' {Path(unit.path).name} > {Path(unit.path).stem}.jsonl`"
    )


def read_csv(unit: Unit, stream: io.BufferedIOBase, encoding: str, options: ReadOptions) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_ROW)
    unread = rows_as_lines(stream, encoding, unit)
    again: deque[Line] = deque()  # lines that a quote in the wrong place took for its own
    taken: list[Line] = []  # the lines of the row being read

    def lines() -> Iterator[str]:
        while (line := again.popleft() if again else next(unread, None)) is not None:
            taken.append(line)
            yield line.text

    # Strict, since a quote in the wrong place otherwise swallows the lines that follow it.
    table = csv.reader(lines(), delimiter="\t" if unit.kind == ".tsv" else ",", strict=True)
    header: list[str] = []
    while True:
        taken.clear()
        error = None
        try:
            values = next(table, None)
        except csv.Error as failure:
            values, error = [], str(failure)
            if "expected after" in error and header:
                again.extendleft(reversed(taken[1:]))
                del taken[1:]
        if values is None:
            break
        number, raw = (taken[0].number, "".join(line.text for line in taken)) if taken else (1, "")
        problem = next((line.problem for line in taken if line.problem), None)
        if error and not problem and error.startswith(("unexpected end of data", "field larger than")):
            raise DataError(f"{unit.shown}:{number}: a quoted field begins in this row and does not end ({error})")
        error = problem or error
        if error and not header:
            raise DataError(f"{unit.shown}:{number}: the header cannot be read: {error}")
        if error:
            yield bad(unit, number, raw, error)
        elif values and not header:
            header = values
            if options.text_column not in header:
                raise DataError(f"{unit.shown} {no_column(options.text_column, header)}")
        elif values and len(values) != len(header):
            yield bad(unit, number, raw, f"{len(values)} fields, the header has {len(header)}")
        elif values:
            yield row(unit, number, dict(zip(header, values, strict=True)), options.text_column)
