"""Raw files and data sets to rows, as a stream: each row is a `Document` or a `BadRow`, and none is dropped.

    .txt .md            text, whole or cut by paragraph or line (`sample_by`)
    .jsonl .json        one JSON object a line
    .csv .tsv           with a header line
    .parquet
    the first six also with .gz or .zst after them

Text is read as bytes and decoded line by line, so that a wrong byte has an address and no file is ever in memory.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import io
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from llmkit.corpus.documents import Document
from llmkit.errors import DataError
from llmkit.pipeline.stage import expand
from llmkit.resources import display

SampleBy = Literal["document", "paragraph", "line"]
Progress = Callable[[int], None]
"""Called with the number of bytes of raw files (or the like) that were read since the last call."""

KINDS = (".txt", ".md", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
COMPRESSIONS = (".gz", ".zst")
ENDINGS = (*KINDS, *(kind + compression for kind in KINDS if kind != ".parquet" for compression in COMPRESSIONS))
"""Of the names of all files that are read."""

LONGEST_ROW = 64 << 20
"""Bytes of one JSON or CSV row; a longer one is a broken file rather than a document."""
ROWS_BEFORE_GIVING_UP = 100
"""Rows of a JSON lines file of which none has the text column, after which the column is said to be missing."""

_BUFFER = 1 << 20
_DAMAGED = (OSError, EOFError, zlib.error)  # what a cut or damaged compressed file raises while it is read
_USUAL_NAMES = ("text", "content", "document", "body", "article", "sentence", "code", "markdown")


@dataclass(slots=True)
class BadRow:
    """A row that cannot be a document."""

    text: str
    """What can be shown of it."""
    id: str
    source: str
    reason: str
    place: str
    """Where a person finds it: path and line."""


Row = Document | BadRow


@dataclass
class ReadOptions:
    """How files become rows; the settings of the same names in `PreprocessConfig`."""

    text_column: str = "text"
    sample_by: SampleBy = "document"
    encoding: str = "utf-8"
    max_document_chars: int = 1_000_000


# --------------------------------------------------------------------------------------------------------------------
# Files


@dataclass
class InputFile:
    """A raw file, what it holds, and what it is called in the corpus."""

    path: Path
    kind: str
    compression: str
    depth: int
    """How many of the last parts of its path name it."""
    name: str = ""

    def __post_init__(self) -> None:
        self.name_by(self.depth)

    def name_by(self, depth: int) -> None:
        parts = self.path.parts
        self.depth = depth
        self.name = printable("/".join(parts[-depth:]) if depth < len(parts) else self.path.as_posix())

    @property
    def shown(self) -> str:
        return printable(display(self.path))


@dataclass
class Found:
    """The files that a setting names, and how many were passed over."""

    files: list[InputFile] = field(default_factory=list)
    skipped: int = 0


def find_files(patterns: list[str], setting: str) -> Found:
    """The readable files that paths, directories and patterns name, in their order, none twice.

    In a directory or behind a pattern, hidden files and those of unknown kinds are passed over, and counted in a directory.

    Raises:
        DataError: a file named by itself is of an unknown kind, or nothing readable is found.
    """
    found: dict[Path, InputFile] = {}
    skipped: set[Path] = set()
    for pattern in patterns:
        root = Path(pattern).expanduser()
        for path in expand([pattern], setting):
            below = path.relative_to(root).parts if root.is_dir() else (path.name,)
            file = _recognise(path, depth=len(below))
            if path == root and file is None:
                raise DataError(f"{setting}: {path} is of an unknown kind; known are {_known_kinds()}")
            if file is None:
                skipped.add(path.absolute())
            else:
                found.setdefault(path.absolute(), file)
        if root.is_dir():
            skipped.update(path.absolute() for path in root.rglob("*") if path.is_file())
    skipped -= found.keys()
    if not found:
        raise DataError(
            f"{setting}: none of the {len(skipped)} files below {patterns} can be read; known are {_known_kinds()}"
        )
    return Found(list(found.values()), len(skipped))


def _known_kinds() -> str:
    return f"{', '.join(KINDS)}, all but .parquet also with {' or '.join(COMPRESSIONS)}"


def _recognise(path: Path, depth: int) -> InputFile | None:
    name = path.name.lower()
    if not name.endswith(ENDINGS):
        return None
    compression = next((ending for ending in COMPRESSIONS if name.endswith(ending)), "")
    kind = next(kind for kind in KINDS if name.removesuffix(compression).endswith(kind))
    return InputFile(path.absolute(), kind, compression, depth)


def make_names_distinct(files: list[InputFile]) -> None:
    """Name files by as many directories as it takes to tell them apart, since ids are made of names."""
    pending = {file.path: file for file in files}
    while True:
        uses = Counter(file.name for file in pending.values())
        unclear = [file for file in pending.values() if uses[file.name] > 1 and file.depth < len(file.path.parts)]
        if not unclear:
            break
        for file in unclear:
            file.name_by(file.depth + 1)
    for file in files:  # a path may stand in two lists
        file.name_by(pending[file.path].depth)


class FileReader:
    """The rows of files, one file after the other."""

    def __init__(self, found: Found, options: ReadOptions):
        self._files = found.files
        self._options = options
        self.skipped = found.skipped
        self.size = sum(file.path.stat().st_size for file in self._files)

    def describe(self) -> str:
        more = f" and {len(self._files) - 1:,} more files" if len(self._files) > 1 else ""
        return f"{self._files[0].shown}{more}"

    def rows(self, progress: Progress) -> Iterator[Row]:
        for file in self._files:
            if file.kind == ".parquet":
                yield from _read_parquet(file, self._options, progress)
            else:
                with _open(file, progress) as stream:
                    yield from _READERS[file.kind](file, stream, self._options)


class _CountedFile(io.FileIO):
    """A file that reports how much of it was read."""

    def __init__(self, path: Path, progress: Progress):
        super().__init__(path)
        self._progress = progress

    def readinto(self, buffer: Any) -> int | None:
        size = super().readinto(buffer)
        self._progress(size or 0)
        return size


@contextmanager
def _open(file: InputFile, progress: Progress) -> Iterator[io.BufferedIOBase]:
    try:
        counted = _CountedFile(file.path, progress)
    except OSError as failure:
        raise DataError(f"{file.shown} cannot be read: {failure.strerror}") from None
    with io.BufferedReader(counted, _BUFFER) as raw:
        if not file.compression:
            yield raw
            return
        with _decompressed(raw, file.compression) as stream:
            yield stream


def _decompressed(raw: io.BufferedIOBase, compression: str) -> Any:
    """A stream that gives what it can of a damaged file before it raises; hence the small buffers."""
    if compression == ".gz":
        return gzip.GzipFile(fileobj=raw)
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"), _BUFFER // 16)


# --------------------------------------------------------------------------------------------------------------------
# Rows


def printable(text: str) -> str:
    """The text with lone surrogates, which no file can hold, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _bad(file: InputFile, line: int | str, text: str, reason: str) -> BadRow:
    return BadRow(printable(text), f"{file.name}:{line}", file.name, printable(reason), f"{file.shown}:{line}")


def _row(file: InputFile, line: int, values: dict[str, Any], column: str, raw: str | None = None) -> Row:
    """A row of named values as a document; what stands beside the text becomes its metadata."""
    text = values.get(column)
    if isinstance(text, str):
        return Document(text, f"{file.name}:{line}", file.name, _metadata(values, column))
    if column in values:
        reason = f"{column!r} is {'empty (null)' if text is None else type(text).__name__}, not text"
    else:
        reason = _no_column(column, values)
    return _bad(file, line, _metadata(values) if raw is None else raw, reason)


def _metadata(values: dict[str, Any], column: str | None = None) -> str:
    try:
        rest = {str(key): _plain(value) for key, value in values.items() if key != column}
        return printable(json.dumps(rest, ensure_ascii=False, allow_nan=False))
    except RecursionError:
        return '{"llmkit": "nested too deeply to be kept"}'


def _plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return f"<{len(value):,} bytes>" if isinstance(value, bytes) else str(value)


def _no_column(column: str, columns: Iterable[str]) -> str:
    names = [str(name) for name in columns]
    near = difflib.get_close_matches(column, names, n=1, cutoff=0.5) or [name for name in _USUAL_NAMES if name in names]
    hint = f"; did you mean --text_column {near[0]}?" if near else ""
    return f"has no {column!r}; has {', '.join(map(repr, names)) or 'nothing'}{hint}"


# --------------------------------------------------------------------------------------------------------------------
# Lines


@dataclass(slots=True)
class _Line:
    """A line of a file, or a piece of one longer than the limit."""

    number: int
    text: str
    problem: str | None = None
    piece: int = 0
    ends: bool = True


def _lines(stream: io.BufferedIOBase, encoding: str, limit: int) -> Iterator[_Line]:
    """The lines of a file; one of more than `limit` bytes comes in pieces, cut between characters.

    What cannot be decoded comes with its problem and with escapes in place of the wrong bytes. Where a compressed file
    is damaged, the last line has the problem and no text.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    number, piece, offset = 1, 0, 0
    while True:
        try:
            raw = stream.readline(limit)
        except _DAMAGED as failure:
            yield _Line(number, "", f"the file is cut short or damaged: {failure}", piece)
            return
        pending = decoder.getstate()[0]  # the first bytes of a character that the last cut fell into
        if not raw and not pending:
            return
        ends = raw.endswith(b"\n") or len(raw) < limit
        problem = None
        try:
            text = decoder.decode(raw, final=ends)
        except UnicodeDecodeError as failure:
            problem = _not_decodable(pending + raw, offset - len(pending), failure, encoding)
            text = (pending + raw).decode(encoding, "backslashreplace")
            decoder.reset()
        if offset == 0:
            text = text.removeprefix("\ufeff")
        yield _Line(number, text, problem, piece, ends)
        offset += len(raw)
        number, piece = (number + 1, 0) if ends else (number, piece + 1)


def _not_decodable(data: bytes, offset: int, failure: UnicodeDecodeError, encoding: str) -> str:
    byte = f"byte {offset + failure.start:,} (0x{data[failure.start]:02x})"
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return f"not {encoding} at {byte}: this is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`"
    others = [other for other in ("utf-8", "gb18030", "latin-1") if codecs.lookup(other) != codecs.lookup(encoding)]
    return f"not {encoding} at {byte}; if the file is in another encoding, say so: --encoding {' or '.join(others)}"


def _rows_as_lines(stream: io.BufferedIOBase, encoding: str) -> Iterator[_Line]:
    """Lines that must be whole to be of use."""
    for line in _lines(stream, encoding, LONGEST_ROW):
        if line.piece == 0 and not line.ends:
            yield replace(line, problem=f"longer than {LONGEST_ROW:,} bytes")
        elif line.piece == 0 or not line.text:
            yield line


# --------------------------------------------------------------------------------------------------------------------
# Text


def _read_text(file: InputFile, stream: io.BufferedIOBase, options: ReadOptions) -> Iterator[Row]:
    """Text by document, paragraph (blank lines between) or line, in parts of at most `max_document_chars`."""
    sample_by = "document" if file.kind == ".md" else options.sample_by
    limit = options.max_document_chars
    rows = _TextRows(file)
    seen = False
    for line in _lines(stream, options.encoding, 4 * limit):
        seen = True
        if sample_by == "paragraph" and line.piece == 0 and line.ends and not line.problem and not line.text.strip():
            yield from rows.finish()
            continue
        if rows.characters + len(line.text) > limit:
            yield from rows.finish()
        for start in range(0, max(len(line.text), 1), limit):
            if start:
                yield from rows.finish()
            rows.add(line, line.text[start : start + limit])
        if sample_by == "line" and line.ends:
            yield from rows.finish()
    yield from rows.finish()
    if not seen:
        yield Document("", f"{file.name}:1", file.name)


class _TextRows:
    """Puts lines together to rows, each named after the line it begins on."""

    def __init__(self, file: InputFile):
        self._file = file
        self._parts: list[str] = []
        self._place = ""
        self._problem = ""
        self._last_line = self._cuts = 0
        self.characters = 0

    def add(self, line: _Line, text: str) -> None:
        if not self._parts:
            self._cuts = self._cuts + 1 if line.number == self._last_line else 0
            self._place = f"{line.number}.{self._cuts}" if self._cuts else str(line.number)
            self._last_line = line.number
        if line.problem and not self._problem:
            self._problem = f"line {line.number}: {line.problem}"
        self._parts.append(text)
        self.characters += len(text)

    def finish(self) -> Iterator[Row]:
        if self._parts:
            text = "".join(self._parts)
            if self._problem:
                yield _bad(self._file, self._place, text, self._problem)
            else:
                yield Document(text, f"{self._file.name}:{self._place}", self._file.name)
        self._parts, self._problem, self.characters = [], "", 0


# --------------------------------------------------------------------------------------------------------------------
# Tables


def _read_json(file: InputFile, stream: io.BufferedIOBase, options: ReadOptions) -> Iterator[Row]:
    objects, columns = 0, dict[str, None]()
    for line in _rows_as_lines(stream, options.encoding):
        if line.problem:
            yield _bad(file, line.number, line.text, line.problem)
            continue
        if not line.text.strip():
            continue
        try:
            values = json.loads(line.text)
        except (ValueError, RecursionError) as failure:
            if line.number == 1 and line.text.lstrip().startswith("["):
                raise _json_array(file) from None
            yield _bad(file, line.number, line.text, f"not JSON: {failure}")
            continue
        if line.number == 1 and isinstance(values, list):
            raise _json_array(file)
        if not isinstance(values, dict):
            yield _bad(file, line.number, line.text, f"not a JSON object but {type(values).__name__}")
            continue
        objects += 1
        if objects <= ROWS_BEFORE_GIVING_UP:
            columns.update(dict.fromkeys(values))
        yield _row(file, line.number, values, options.text_column, raw=line.text)
        if objects == ROWS_BEFORE_GIVING_UP and options.text_column not in columns:
            break
    if objects and options.text_column not in columns:
        raise DataError(f"{file.shown} {_no_column(options.text_column, columns)}")


def _json_array(file: InputFile) -> DataError:
    return DataError(
        f"{file.shown}: holds one JSON array, where one object a line is expected; convert it with "
        f"`jq -c '.[]' {file.path.name} > {file.path.stem}.jsonl`"
    )


def _read_csv(file: InputFile, stream: io.BufferedIOBase, options: ReadOptions) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_ROW)
    taken: list[_Line] = []  # the lines of the row being read

    def lines() -> Iterator[str]:
        for line in _rows_as_lines(stream, options.encoding):
            taken.append(line)
            yield line.text

    # Strict, since a quote in the wrong place otherwise swallows the lines that follow it.
    table = csv.reader(lines(), delimiter="\t" if file.kind == ".tsv" else ",", strict=True)
    header: list[str] = []
    while True:
        taken.clear()
        error = None
        try:
            values = next(table, None)
        except csv.Error as failure:
            values, error = [], str(failure)
        if values is None:
            break
        number, raw = (taken[0].number, "".join(line.text for line in taken)) if taken else (1, "")
        problem = next((line.problem for line in taken if line.problem), None)
        if error and not problem and error.startswith(("unexpected end of data", "field larger than")):
            raise DataError(f"{file.shown}:{number}: a quoted field begins in this row and does not end ({error})")
        error = problem or error
        if error and not header:
            raise DataError(f"{file.shown}:{number}: the header cannot be read: {error}")
        if error:
            yield _bad(file, number, raw, error)
        elif values and not header:
            header = values
            if options.text_column not in header:
                raise DataError(f"{file.shown} {_no_column(options.text_column, header)}")
        elif values and len(values) != len(header):
            yield _bad(file, number, raw, f"{len(values)} fields, the header has {len(header)}")
        elif values:
            yield _row(file, number, dict(zip(header, values, strict=True)), options.text_column)


def _read_parquet(file: InputFile, options: ReadOptions, progress: Progress) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    broken = (pyarrow.ArrowException, OSError)
    try:
        table = pyarrow.parquet.ParquetFile(file.path)
    except broken as failure:
        raise DataError(f"{file.shown} cannot be read as Parquet: {failure}") from None
    with table:
        kinds = {column.name: column.type for column in table.schema_arrow}
        if options.text_column not in kinds:
            raise DataError(f"{file.shown} {_no_column(options.text_column, kinds)}")
        kind = kinds[options.text_column]
        if pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        if str(kind) not in ("string", "large_string", "string_view", "null"):
            raise DataError(f"{file.shown}: column {options.text_column!r} is {kind}, not text")
        number, total = 0, table.metadata.num_rows
        batches = table.iter_batches(batch_size=256)
        while True:
            try:
                batch = next(batches, None)
            except broken as failure:
                yield _bad(file, number + 1, "", f"damaged from this row on: {failure}")
                return
            if batch is None:
                return
            for values in _rows_of(batch):
                number += 1
                if isinstance(values, str):
                    yield _bad(file, number, "", values)
                else:
                    yield _row(file, number, values, options.text_column)
            progress(file.path.stat().st_size * batch.num_rows // total)


def _rows_of(batch: Any) -> list[Any]:
    """The rows of a batch; in the place of one that cannot be decoded, a sentence saying so."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as failure:
        if batch.num_rows == 1:
            return [f"not UTF-8 ({failure.reason}), although its column says that it is"]
    return [row for position in range(batch.num_rows) for row in _rows_of(batch.slice(position, 1))]


_READERS: dict[str, Callable[[InputFile, io.BufferedIOBase, ReadOptions], Iterator[Row]]] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
}


# --------------------------------------------------------------------------------------------------------------------
# Data sets


class DatasetReader:
    """The rows of a data set by its hub name or local path, streamed by `datasets`."""

    size = None
    skipped = 0

    def __init__(self, name: str, config_name: str | None, split: str, text_column: str, revision: str | None = None):
        self._name, self._config_name, self._split, self._column = name, config_name, split, text_column
        self._revision = revision

    def describe(self) -> str:
        return f"the split {self._split!r} of the data set {self._name}"

    def rows(self, progress: Progress) -> Iterator[Row]:
        rows = iter(self._load())
        file = InputFile(Path(self._name), "dataset", "", depth=2)
        number = 0
        while True:
            number += 1
            try:
                values = next(rows, None)
            except Exception as failure:
                where = f"{self.describe()} cannot be read at row {number}"
                raise DataError(f"{where}: {_first_line(failure)}") from failure
            if values is None:
                return
            if self._column not in values:
                raise DataError(f"{self.describe()} {_no_column(self._column, values)}")
            yield _row(file, number, values, self._column)

    def _load(self) -> Any:
        import datasets

        path = Path(self._name).expanduser()
        try:
            if (path / "dataset_dict.json").is_file():
                return datasets.load_from_disk(str(path))[self._split]
            if (path / "state.json").is_file():
                return datasets.load_from_disk(str(path))
            given = {"split": self._split, "revision": self._revision}
            return datasets.load_dataset(self._name, self._config_name, streaming=True, **given)
        except Exception as failure:  # whatever a hub, a file system or a builder may raise
            raise DataError(f"dataset_name: {self.describe()} cannot be loaded: {_first_line(failure)}") from failure


def _first_line(failure: Exception) -> str:
    lines = str(failure).strip().splitlines()
    return f"{type(failure).__name__}: {lines[0] if lines else 'no message'}"
