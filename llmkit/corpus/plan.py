"""What `preprocess` reads, cut into parts of about equal size. A part is the work of one task, and its payload is JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from llmkit.corpus.embedded import EmbeddedReader
from llmkit.corpus.readers import (
    DatasetReader,
    Found,
    ReadOptions,
    Row,
    Unit,
    find_files,
    make_names_distinct,
    read,
    units,
)
from llmkit.corpus.settings import PreprocessConfig

_INPUTS_NAMED = 3  # where a task is spoken of
_OF_OTHERS = ("train_file", "validation_file", "sources", "executor", "workers", "max_bad_fraction")
_SMALLEST = 4096  # bytes that a file counts for at least: opening one costs something, too


@dataclass
class Piece:
    """Something to read as a whole: a file or a range of one, a data set, or the embedded corpus."""

    kind: str
    """`file`, `dataset` or `embedded`."""
    size: int
    unit: dict[str, Any] = field(default_factory=dict)
    """The `Unit` of a file."""
    source: str | None = None
    """The name of the source, where it has one."""
    weight: float = 1.0
    license: str | None = None


@dataclass
class Part:
    """What one task reads."""

    split: str
    pieces: list[Piece]

    @property
    def size(self) -> int:
        return sum(piece.size for piece in self.pieces)


@dataclass
class Plan:
    """All parts, those of the validation split first: their documents take precedence over equal ones for training."""

    parts: list[Part]
    described: dict[str, str]
    """What is read for each split, in words."""
    skipped: int
    """Files passed over."""
    outside: int
    """Those among them that are links in a directory, and lead out of it."""


def make_plan(config: PreprocessConfig) -> Plan:
    """Find what there is to read.

    Raises:
        DataError: a setting names nothing that can be read.
    """
    train = find_files(config.train_file, "train_file") if config.train_file else Found()
    validation = find_files(config.validation_file, "validation_file") if config.validation_file else Found()
    named = {name: find_files(files, f"sources: {name}") for name, files in config.source_files().items()}
    found = [validation, train, *named.values()]
    make_names_distinct([file for one in found for file in one.files])
    pieces = list(_pieces(config, train))
    for name, one in named.items():
        settings = config.sources[name]
        more = _pieces(config, one, source=name, weight=float(settings.get("weight", 1)), license=settings.get("license"))
        pieces += more
    words = [_described(one) for one in (train, *named.values()) if one.files]
    if config.dataset_name:
        pieces.append(Piece("dataset", config.task_bytes))
        words.append(_dataset(config).describe())
    if config.packages():
        reader = EmbeddedReader(config.packages())
        pieces.append(Piece("embedded", reader.size))
        words.append(reader.describe())
    described = {"train": " and ".join(words), "validation": _described(validation) if validation.files else ""}
    parts = [
        Part(split, group)
        for split, some in (("validation", list(_pieces(config, validation))), ("train", pieces))
        for group in _grouped(some, config.task_bytes)
    ]
    return Plan(parts, described, sum(one.skipped for one in found), sum(one.outside for one in found))


def rows(piece: dict[str, Any], config: PreprocessConfig, progress: Callable[[int], None]) -> Iterator[Row]:
    """The rows of a piece, given as JSON."""
    if piece["kind"] == "file":
        yield from read(Unit.from_json(piece["unit"]), read_options(config), progress)
    elif piece["kind"] == "dataset":
        yield from _dataset(config).rows(progress)
    else:
        yield from EmbeddedReader(config.packages()).rows(progress)


def is_sampled(id: str, weight: float) -> bool:
    """Whether the document of this id is in a sample of that share of its source."""
    mark = int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "big")
    return mark < weight * 2**64


def payload(number: int, part: Part, config: PreprocessConfig) -> dict[str, Any]:
    """What the task of a part is told: the settings that change what it makes, without the lists of all inputs.

    The first part is told the share of bad rows that is allowed, too; see `ROWS_BEFORE_JUDGING`.
    """
    settings = {name: value for name, value in vars(config).items() if name not in _OF_OTHERS}
    pieces = [asdict(piece) for piece in part.pieces]
    inputs = [piece.unit.get("name", piece.kind) for piece in part.pieces[:_INPUTS_NAMED]]
    told = {"part": number, "split": part.split, "pieces": pieces, "inputs": inputs, "settings": settings}
    return told if number else {**told, "max_bad_fraction": config.max_bad_fraction}


def read_options(config: PreprocessConfig) -> ReadOptions:
    return ReadOptions(
        text_column=config.text_column,
        sample_by=config.sample_by,
        encoding=config.encoding,
        max_document_chars=config.max_document_chars,
        markup=config.markup,
        extractor=config.extractor,
    )


def _pieces(config: PreprocessConfig, found: Found, **source: Any) -> Iterator[Piece]:
    for unit in units(found.files, read_options(config), config.task_bytes):
        yield Piece("file", max(unit.size, _SMALLEST), unit.to_json(), **source)


def _grouped(pieces: list[Piece], size: int) -> Iterator[list[Piece]]:
    """Neighbours together, until they are large enough for a task."""
    group: list[Piece] = []
    total = 0
    for piece in pieces:
        if group and total + piece.size > size:
            yield group
            group, total = [], 0
        group.append(piece)
        total += piece.size
    if group:
        yield group


def _described(found: Found) -> str:
    more = f" and {len(found.files) - 1:,} more files" if len(found.files) > 1 else ""
    return f"{found.files[0].shown}{more}"


def _dataset(config: PreprocessConfig) -> DatasetReader:
    assert config.dataset_name
    return DatasetReader(config.dataset_name, config.dataset_config_name, config.dataset_split, config.text_column)
