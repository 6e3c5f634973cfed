"""The stage `preprocess`: raw text to clean documents in two splits, `train` and `validation`.

Every row that is read ends in exactly one place: it becomes a document of a split, or a row of the rejects table with
the rule that removed it or the reason why it cannot be a document.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from llmkit.config import StageConfig, option
from llmkit.corpus.documents import Document, DocumentWriter, RejectWriter
from llmkit.corpus.embedded import STDLIB, EmbeddedReader, embedded_version, unknown_packages
from llmkit.corpus.normalise import normalise
from llmkit.corpus.readers import (
    ENDINGS,
    BadRow,
    DatasetReader,
    FileReader,
    ReadOptions,
    Row,
    find_files,
    make_names_distinct,
)
from llmkit.corpus.seen import FirstSeen
from llmkit.errors import DataError

if TYPE_CHECKING:
    from llmkit.pipeline.stage import Workspace

STATISTICS = "statistics.json"
BAD_ROW = "bad row"
ROWS_BEFORE_JUDGING = 1000
"""Rows after which too large a share of bad ones stops the stage at once."""
SOURCES_LISTED = 100
"""Sources with figures of their own; the smaller ones are added up."""

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")


@dataclass
class PreprocessConfig(StageConfig):
    """Settings of `llmkit preprocess`."""

    train_file: list[str] | None = option(default=None, role="files", kinds=ENDINGS)
    """Files, directories or patterns of raw text: .txt, .md, .jsonl, .json (one object a line), .csv, .tsv (each also
    .gz or .zst) and .parquet."""
    validation_file: list[str] | None = option(default=None, role="files", kinds=ENDINGS)
    """The same for the validation split; without it, a share of the documents is set aside (`validation_fraction`)."""
    dataset_name: str | None = None
    """A data set for `datasets`: its name on the hub, or a local directory. May be combined with files."""
    dataset_config_name: str | None = None
    """The configuration of that data set, where it has several."""
    dataset_split: str = "train"
    """The split of that data set to read."""
    embedded_packages: list[str] | None = None
    """Documentation of this Python environment as a corpus that needs no download: `stdlib`, `installed` (everything
    that is installed, llmkit aside) or names of distributions. It is `stdlib` when nothing else is given."""
    text_column: str = "text"
    """The column (JSON key) that holds the text; the others become the document's metadata."""
    sample_by: Literal["document", "paragraph", "line"] = "document"
    """What of a .txt file is a document: all of it, what stands between blank lines, or a line."""
    encoding: str = "utf-8"
    """The encoding of text, JSON and CSV files, for example gb18030 or latin-1; a byte order mark is left out."""
    max_document_chars: int = 1_000_000
    """A document of a .txt or .md file is cut at a line end so that no part is longer, in characters."""
    min_chars: int = 1
    """A document with fewer characters after normalisation is rejected (1: only empty ones are)."""
    deduplicate: bool = True
    """Whether a document whose normalised text came before is rejected. Takes about 50 bytes of memory a document."""
    validation_fraction: float = 0.02
    """The share of documents that go to the validation split, chosen by a hash of their text; 0 for none."""
    seed: int = 0
    """Chooses other documents for validation."""
    max_bad_fraction: float = option(default=0.01, identity=False)
    """The share of rows that may be unusable (broken JSON, wrong encoding, no text) before the stage stops."""

    def problems(self) -> Iterator[str]:
        for name, low, high in (("validation_fraction", 0, 0.5), ("max_bad_fraction", 0, 1)):
            if not low <= getattr(self, name) <= high:
                yield f"{name} is {getattr(self, name)}; it is a share between {low} and {high}"
        for name, low in (("max_document_chars", 100), ("min_chars", 1), ("seed", 0)):
            if getattr(self, name) < low:
                yield f"{name} is {getattr(self, name)}; {low} is the least"
        if self.min_chars > self.max_document_chars:
            yield f"min_chars ({self.min_chars}) is above max_document_chars ({self.max_document_chars})"
        yield from _encoding_problem(self.encoding)
        if self.validation_file and self.embedded_packages is None and not (self.train_file or self.dataset_name):
            yield "validation_file is given, but nothing to train on: add train_file, dataset_name or embedded_packages"
        elif not (self.train_file or self.dataset_name or self.packages()):
            yield "there is nothing to read: give train_file, dataset_name or embedded_packages"
        if self.dataset_config_name and not self.dataset_name:
            yield "dataset_config_name is given without dataset_name"
        yield from unknown_packages(self.packages())

    def packages(self) -> list[str]:
        """What is read of the embedded corpus."""
        if self.embedded_packages is not None:
            return self.embedded_packages
        return [] if self.train_file or self.dataset_name else [STDLIB]

    def raw_inputs(self) -> dict[str, str]:
        marks = {f"embedded:{name}": embedded_version([name]) for name in self.packages()}
        path = Path(self.dataset_name).expanduser() if self.dataset_name else None
        if path is not None and path.is_dir():
            marks[f"dataset:{path.name}"] = _directory_mark(path)
        return marks


def _encoding_problem(encoding: str) -> Iterator[str]:
    try:
        newline = "\n".encode(encoding)
        codecs.getincrementaldecoder(encoding)
    except LookupError:
        yield f"encoding: {encoding!r} is unknown to Python; examples: utf-8, gb18030, big5, shift_jis, cp1252, latin-1"
        return
    if newline != b"\n":
        other = "utf-8" if encoding.lower().replace("_", "-").startswith("utf-8") else None
        hint = f"write {other}" if other else f"convert the files with `iconv -f {encoding} -t UTF-8`"
        yield f"encoding: lines cannot be found in {encoding!r}; {hint}"


def _directory_mark(path: Path) -> str:
    """A hash of the names, sizes and times of a directory's files: changes when one of them is written."""
    digest = hashlib.sha256()
    for file in sorted(item for item in path.rglob("*") if item.is_file()):
        status = file.stat()
        digest.update(f"{file.relative_to(path)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "replace"))
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------------------------
# The stage


def preprocess(config: PreprocessConfig, workspace: Workspace) -> dict[str, Any]:
    """Read, normalise, check, deduplicate, split and write.

    Returns:
        What was kept and rejected; also in `statistics.json`.

    Raises:
        DataError: too many bad rows, a file without the text column, or no document left.
    """
    train, validation = _readers(config)
    with _Run(config, workspace, [*validation, *train]) as run:
        for document, _ in run.documents(validation, "validation"):
            run.write("validation", document)
        if validation:
            run.require("validation", validation)
            for document, _ in run.documents(train, "train"):
                run.write("train", document)
        else:
            for split, document in assign(run.documents(train, "train"), config.validation_fraction, config.seed):
                run.write(split, document)
        run.judge()
        run.require("train", train)
        metrics = run.metrics()
    text = json.dumps(metrics, indent=1, ensure_ascii=False) + "\n"
    (workspace.directory / STATISTICS).write_text(text, encoding="utf-8")
    run.report()
    return metrics


def assign(
    documents: Iterable[tuple[Document, bytes]], validation_fraction: float, seed: int
) -> Iterator[tuple[str, Document]]:
    """Give each document, which comes with the hash of its text, to `train` or `validation`.

    The hash alone decides, so the choice depends neither on the order nor on the other documents. Only where that would
    leave one split empty does the document with the hash nearest to it go there; a single document is for training. One
    document is held back until both splits have one.
    """
    threshold = int(validation_fraction * 2**64)
    key = str(seed).encode()
    held: tuple[int, str, Document] | None = None
    given = False
    both = validation_fraction == 0
    for document, digest in documents:
        mark = int.from_bytes(hashlib.blake2b(digest + key, digest_size=8).digest(), "big")
        split = "validation" if mark < threshold else "train"
        if both:
            yield split, document
        elif held is None:
            held = mark, split, document
        elif split != held[1]:
            both = True
            yield held[1], held[2]
            yield split, document
        else:
            nearer = mark < held[0] if split == "train" else mark > held[0]
            leaving, held = (held, (mark, split, document)) if nearer else ((mark, split, document), held)
            given = True
            yield split, leaving[2]
    if held is not None and not both:
        other = "validation" if held[1] == "train" else "train"
        yield (other if given else "train"), held[2]


class _Reader(Protocol):
    """Where rows come from."""

    skipped: int

    @property
    def size(self) -> int | None: ...
    def describe(self) -> str: ...
    def rows(self, progress: Callable[[int], None]) -> Iterator[Row]: ...


def _readers(config: PreprocessConfig) -> tuple[list[_Reader], list[_Reader]]:
    """Where the training and the validation documents come from."""
    options = ReadOptions(config.text_column, config.sample_by, config.encoding, config.max_document_chars)
    train_files = find_files(config.train_file, "train_file") if config.train_file else None
    validation_files = find_files(config.validation_file, "validation_file") if config.validation_file else None
    make_names_distinct([file for found in (train_files, validation_files) if found for file in found.files])
    train: list[_Reader] = []
    if train_files:
        train.append(FileReader(train_files, options))
    if config.dataset_name:
        name, config_name = config.dataset_name, config.dataset_config_name
        train.append(DatasetReader(name, config_name, config.dataset_split, config.text_column))
    if config.packages():
        train.append(EmbeddedReader(config.packages()))
    return train, [FileReader(validation_files, options)] if validation_files else []


@dataclass
class _Count:
    """An amount of text."""

    documents: int = 0
    characters: int = 0
    bytes: int = 0

    def add(self, other: _Count) -> None:
        self.documents += other.documents
        self.characters += other.characters
        self.bytes += other.bytes


@dataclass
class _Tally:
    rows: int = 0
    han: int = 0
    splits: dict[str, _Count] = field(default_factory=lambda: {"train": _Count(), "validation": _Count()})
    sources: dict[str, _Count] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)
    bad_rows: int = 0
    first_bad: list[BadRow] = field(default_factory=list)


class _Run:
    """One run of the stage: its writers, its memory of texts, its figures and its progress bar."""

    def __init__(self, config: PreprocessConfig, workspace: Workspace, readers: list[_Reader]):
        from tqdm import tqdm

        self._config, self._workspace, self._readers = config, workspace, readers
        self._tally = _Tally()
        self._writers = {split: DocumentWriter(workspace.directory, split) for split in self._tally.splits}
        self._rejects = RejectWriter(workspace.directory)
        self._seen = {split: FirstSeen(workspace.directory) for split in self._tally.splits}
        sizes = [reader.size for reader in readers]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        # disable=None: only where someone watches.
        self._bar = tqdm(total=total, desc="preprocess", unit="B", unit_scale=True, disable=None, file=sys.stderr)

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        for writer in (*self._writers.values(), self._rejects):
            writer.close()
        for seen in self._seen.values():
            seen.close()

    def documents(self, readers: list[_Reader], split: str) -> Iterator[tuple[Document, bytes]]:
        """The documents to keep, normalised, with the hash of their text; the rest goes to the rejects."""
        for reader in readers:
            for row in reader.rows(self._bar.update):
                self._tally.rows += 1
                row = _writable(row)
                if isinstance(row, BadRow):
                    self._set_aside(row)
                    continue
                text = normalise(row.text)
                digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
                if len(text) < self._config.min_chars:
                    self._reject(row, "too short", characters=len(text))
                elif split == "train" and (twin := self._seen["validation"].get(digest)) is not None:
                    self._reject(row, "in validation", duplicate_of=twin)
                elif self._config.deduplicate and (twin := self._seen[split].get(digest)) is not None:
                    self._reject(row, "exact duplicate", duplicate_of=twin)
                else:
                    if self._config.deduplicate or (split == "validation" and self._seen[split].get(digest) is None):
                        self._seen[split].add(digest, row.id)
                    yield Document(text, row.id, row.source, row.metadata), digest

    def write(self, split: str, document: Document) -> None:
        self._writers[split].write(document)
        amount = _Count(1, len(document.text), len(document.text.encode()))
        self._tally.splits[split].add(amount)
        self._tally.sources.setdefault(document.source, _Count()).add(amount)
        self._tally.han += _han_characters(document.text)

    def judge(self) -> None:
        """Stop where too many rows are bad."""
        tally, allowed = self._tally, self._config.max_bad_fraction
        if tally.bad_rows > allowed * tally.rows:
            raise DataError(
                f"{tally.bad_rows:,} of {tally.rows:,} rows cannot be used, more than max_bad_fraction ({allowed:g}) "
                f"allows; mend them, or allow more with --max_bad_fraction. The first are:\n"
                + "\n".join(f"  - {row.place}: {row.reason}" for row in tally.first_bad)
            )

    def require(self, split: str, readers: list[_Reader]) -> None:
        """Stop where a split that must have documents has none."""
        if not self._tally.splits[split].documents:
            self.judge()  # where bad rows are the cause, they say more
            read = " and ".join(reader.describe() for reader in readers)
            raise DataError(
                f"no document is left for {split}: {self._tally.rows:,} rows were read from {read}; "
                f"rejected: {self._rejected_line()}; give more text, or loosen min_chars ({self._config.min_chars})"
            )

    def metrics(self) -> dict[str, Any]:
        tally = self._tally
        splits = {split: asdict(amount) for split, amount in tally.splits.items()}
        characters = sum(amount.characters for amount in tally.splits.values())
        return {
            "documents": sum(amount.documents for amount in tally.splits.values()),
            "characters": characters,
            "bytes": sum(amount.bytes for amount in tally.splits.values()),
            "han_share": round(tally.han / characters, 6),
            "rows_read": tally.rows,
            "bad_rows": tally.bad_rows,
            "rejected": dict(tally.rejected.most_common()),
            "skipped_files": sum(reader.skipped for reader in self._readers),
            "splits": splits,
            "sources": _largest(tally.sources),
        }

    def report(self) -> None:
        """What a person wants to know at the end."""
        tally, say = self._tally, self._workspace.say
        train, validation = tally.splits["train"], tally.splits["validation"]
        kept = train.documents + validation.documents
        say(
            f"preprocess: kept {kept:,} of {tally.rows:,} rows: "
            f"{train.documents:,} documents for training ({train.bytes / 1e6:,.2f} MB), "
            f"{validation.documents:,} for validation ({validation.bytes / 1e6:,.2f} MB); "
            f"rejected: {self._rejected_line()}"
        )
        for row in tally.first_bad:
            say(f"preprocess: bad row: {row.place}: {row.reason}")
        skipped = sum(reader.skipped for reader in self._readers)
        if skipped:
            say(f"preprocess: passed over {skipped:,} files that are hidden, of unknown kinds or unreadable")
        if not validation.documents:
            why = "there is only one document" if kept == 1 else "validation_fraction is 0"
            say(
                f"preprocess: warning: the validation split is empty, since {why}; no validation loss can be measured. "
                f"Give --validation_file, or cut text files with --sample_by paragraph"
            )

    def _rejected_line(self) -> str:
        counts = dict(self._tally.rejected.most_common())
        if self._tally.bad_rows:
            counts[BAD_ROW] = self._tally.bad_rows
        return ", ".join(f"{rule} {number:,}" for rule, number in counts.items()) or "none"

    def _reject(self, document: Document, rule: str, **why: Any) -> None:
        self._tally.rejected[rule] += 1
        metadata = json.dumps({**json.loads(document.metadata), **why}, ensure_ascii=False)
        self._rejects.write(Document(document.text, document.id, document.source, metadata), rule)

    def _set_aside(self, row: BadRow) -> None:
        self._tally.bad_rows += 1
        if len(self._tally.first_bad) < 3:
            self._tally.first_bad.append(row)
        metadata = json.dumps({"reason": row.reason}, ensure_ascii=False)
        self._rejects.write(Document(row.text, row.id, row.source, metadata), BAD_ROW)
        if self._tally.rows >= ROWS_BEFORE_JUDGING:
            self.judge()


def _writable(row: Row) -> Row:
    """The row, or a bad row where its text holds what UTF-8 cannot."""
    if isinstance(row, BadRow):
        return row
    try:
        row.text.encode()
        return row
    except UnicodeEncodeError as failure:
        text = row.text.encode("utf-8", "backslashreplace").decode()
        reason = f"a lone surrogate (\\u{ord(row.text[failure.start]):04x}) at character {failure.start:,}"
        return BadRow(text, row.id, row.source, reason, row.id)


def _han_characters(text: str) -> int:
    return 0 if text.isascii() else sum(len(run) for run in _HAN.findall(text))


def _largest(sources: dict[str, _Count]) -> dict[str, dict[str, int]]:
    """The largest sources by bytes, and the others added up."""
    ordered = sorted(sources.items(), key=lambda item: (-item[1].bytes, item[0]))
    listed = {name: asdict(amount) for name, amount in ordered[:SOURCES_LISTED]}
    rest = _Count()
    for _, amount in ordered[SOURCES_LISTED:]:
        rest.add(amount)
    if rest.documents:
        listed[f"({len(ordered) - SOURCES_LISTED:,} smaller sources)"] = asdict(rest)
    return listed
