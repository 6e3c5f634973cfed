"""Documents that hold pieces of evaluation sets, to be kept out of training.

A document goes where it shares a 13-gram with an evaluation text (Brown et al. 2020, appendix C; `llmkit.corpus.overlap` says
how short texts and the wording of forms are dealt with). The whole document goes, not only the passage: what stands round a
question is often its answer.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkit.corpus.batch import Batch
from llmkit.corpus.duplicates.marks import pieces
from llmkit.corpus.duplicates.minhash import Prefilter
from llmkit.corpus.overlap import Overlap
from llmkit.errors import DataError

RULE = "contaminated"


class Contamination:
    """A step that rejects documents with a piece of an evaluation text.

    The value of a rejection is the n-gram and the name of a text that has it. Most documents are passed over fast, by a
    compiled pass that finds no words in them with which an n-gram begins.

    Args:
        texts: the evaluation texts, any number.
        names: what to call each.

    Raises (when called):
        DataError: numba is not installed.
    """

    def __init__(self, texts: Sequence[str], names: Sequence[str]):
        self._overlap, self._names = Overlap(texts), names
        self._prefilter = Prefilter(self._overlap.heads, self._overlap.head)
        self.searched = int(self._overlap.searched.sum())
        """How many texts are long enough to be looked for."""

    def __call__(self, batch: Batch) -> None:
        kept = list(batch.kept())
        kept = [kept[number] for number in self._prefilter.holders([batch.texts[place] for place in kept])]
        for number, text, gram in self._overlap.holders([batch.texts[place] for place in kept]):
            batch.reject(kept[number], RULE, f"{gram} ({self._names[text]})")


def evaluation_texts(files: Mapping[Path, str]) -> list[tuple[str, str]]:
    """The texts of evaluation files, each with its name: file, row (from 1) and column.

    Each string of a row is a text of its own, those inside lists and objects too, so that questions, contexts and answers are
    looked for apart. In a .txt file a text is what stands between blank lines, or a line where there are none.

    Args:
        files: .jsonl, .csv, .tsv, .parquet and .txt files, each with what to call it.

    Raises:
        DataError: a file is missing, has another ending, or cannot be read; or there is no text in any.
    """
    found = [
        (f"{name}:{number}{f' {column}' if column else ''}", text)
        for path, name in files.items()
        for number, row in _rows(path)
        for column, text in _strings(row, "")
        if text.strip()
    ]
    if files and not found:
        raise DataError(f"{', '.join(map(str, files))}: no text to look for in the corpus")
    return found


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: an evaluation file has to end in one of {', '.join(_READERS)}")
    if not path.is_file():
        raise DataError(f"{path}: no such evaluation file")
    try:
        yield from enumerate(reader(path), start=1)
    except (ValueError, OSError, csv.Error) as error:  # of JSON, UTF-8 and Arrow, too
        raise DataError(f"{path}: cannot be read as {path.suffix}: {error}") from error


def _json_lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            yield json.loads(line) if line.strip() else None


def _tables(path: Path) -> Iterator[Any]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(
            file, delimiter=delimiter, quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
        )


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1000):
            yield from batch.to_pylist()


def _plain(path: Path) -> Iterator[Any]:
    yield from pieces(path.read_text(encoding="utf-8-sig"))[::2]


_READERS = {".jsonl": _json_lines, ".csv": _tables, ".tsv": _tables, ".parquet": _parquet, ".txt": _plain}


def _strings(value: Any, column: str) -> Iterator[tuple[str, str]]:
    """The strings in a value, each with the way to it."""
    if isinstance(value, str):
        yield column, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(inner, f"{column}.{key}" if column else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, column)
