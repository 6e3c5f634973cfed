"""The documents that a language model is measured on: read as a stream, kept as tokens on disk.

What stays in memory of a document are a few numbers; its tokens and what is told of it lie in scratch files.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
import pyarrow.parquet

from llmkit.corpus.documents import Document, read_batches
from llmkit.corpus.readers import BadRow, DatasetReader, FileReader, ReadOptions, find_files
from llmkit.errors import ArtefactError, DataError
from llmkit.pipeline.artefact import Artefact
from llmkit.tasks.tables import EMBEDDED, embedded_file
from llmkit.tasks.writers import in_blocks

if TYPE_CHECKING:
    from llmkit.evaluation.evaluate import EvaluateConfig

_TEXT_KEPT = 2000  # characters of a document that stand in predictions.parquet
_ENCODED_AT_ONCE = 256  # documents

_TOLD = pyarrow.schema([(name, pyarrow.string()) for name in ("id", "text", "text_sha256")])

# Scripts by which a language is told where no column names it (Unicode blocks). Japanese has Han characters as well as kana.
_SCRIPTS = {
    "Japanese": "\u3040-\u30ff",
    "Korean": "\u1100-\u11ff\uac00-\ud7af",
    "Han script": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
    "Cyrillic script": "\u0400-\u052f",
    "Greek script": "\u0370-\u03ff\u1f00-\u1fff",
    "Arabic script": "\u0600-\u06ff\u0750-\u077f",
    "Hebrew script": "\u0590-\u05ff",
    "Devanagari script": "\u0900-\u097f",
    "Thai script": "\u0e00-\u0e7f",
    "Latin script": "A-Za-z\u00c0-\u024f\u1e00-\u1eff",
}
_SCRIPT_PATTERNS = {name: re.compile(f"[{letters}]") for name, letters in _SCRIPTS.items()}
_SOURCE_KEYS, _LANGUAGE_KEYS = ("source",), ("language", "lang")


def read_documents(config: EvaluateConfig) -> Iterator[Document]:
    """The documents that the settings name.

    Raises:
        DataError: a row cannot be read or has no text (named by its place), or there is no such data.
        ArtefactError: the corpus behind token shards is no longer there.
    """
    if config.corpus is not None:
        yield from _held_out(config.corpus)
        return
    options = ReadOptions(text_column=config.text_column or "text", sample_by=config.sample_by)
    reader: FileReader | DatasetReader
    if config.test_file is not None:
        reader = FileReader(find_files([config.test_file], "test_file"), options)
    elif config.dataset_name in EMBEDDED:
        file = str(embedded_file(config.dataset_name or "", config.dataset_split))
        reader = FileReader(find_files([file], "dataset_name"), options)
    else:
        name = config.dataset_name or ""
        column, revision = options.text_column, config.dataset_revision
        reader = DatasetReader(name, config.dataset_config_name, config.dataset_split, column, revision)
    for row in reader.rows(lambda size: None):
        if not isinstance(row, BadRow):
            yield row
        elif not row.expected:
            raise DataError(f"{row.place}: {row.reason}; remove or mend this row")


def _held_out(place: str) -> Iterator[Document]:
    """The validation split of a `preprocess` result, or of the one behind a `tokenize` result."""
    artefact = Artefact.peek(Path(place))
    if artefact is None or artefact.manifest.stage not in ("preprocess", "tokenize"):
        raise ArtefactError(f"corpus: {place} is no result of `llmkit preprocess` or `llmkit tokenize`")
    if artefact.manifest.stage == "tokenize":
        artefact = artefact.input("corpus")
    if artefact is None:
        raise ArtefactError(f"corpus: the documents behind {place} are no longer there; name them by --test_file")
    for batch in read_batches(artefact.directory, "validation"):
        yield from (Document(**row) for row in batch.to_pylist())


def _named(document: Document, keys: tuple[str, ...]) -> str | None:
    """What a column beside the text says, where there is one."""
    metadata = json.loads(document.metadata)
    return next((metadata[key] for key in keys if isinstance(metadata.get(key), str) and metadata[key]), None)


def source_of(document: Document) -> str:
    """The source that a column names, or else the file or data set."""
    return _named(document, _SOURCE_KEYS) or document.source


def language_of(document: Document) -> str:
    """The language that a column names, or else the script that most letters are of."""
    named = _named(document, _LANGUAGE_KEYS)
    if named is not None:
        return named
    letters = Counter({name: len(pattern.findall(document.text[:_TEXT_KEPT])) for name, pattern in _SCRIPT_PATTERNS.items()})
    if letters["Japanese"]:
        letters["Japanese"] += letters.pop("Han script")
    script, count = letters.most_common(1)[0]
    return script if count else "no letters"


@dataclass
class Names:
    """Sources, or languages: each with a number, and the number of each document."""

    numbers: dict[str, int] = field(default_factory=dict)
    of_document: array = field(default_factory=lambda: array("i"))

    def add(self, name: str) -> None:
        self.of_document.append(self.numbers.setdefault(name, len(self.numbers)))

    def documents(self, name: str) -> np.ndarray:
        """Which documents are of that name, bool of shape [documents]."""
        return np.asarray(self.of_document) == self.numbers[name]


class Tokens:
    """Documents as tokens, on disk, and of each a few numbers."""

    def __init__(self, directory: Path, first: int):
        """Set up.

        Args:
            directory: where scratch files go.
            first: the token that documents begin after.
        """
        self.directory, self.first = directory, first
        self.empty = 0
        """Documents without a token, which are left out."""
        self.unknown = 0
        """Tokens that stand for what the tokenizer does not know."""
        self.sources, self.languages = Names(), Names()
        self.text_bytes, self.compressed = array("q"), array("q")
        """Of each document, its UTF-8 bytes, and those that DEFLATE makes of them."""
        self._offsets = array("q", [0])
        self._digest = hashlib.sha256()
        self._ids = np.zeros(0, dtype=np.uint32)

    def fill(self, documents: Iterator[Document], tokenizer: Any) -> None:
        """Tokenise documents, whole and without special tokens of their own.

        Raises:
            DataError: none has a token.
        """
        with (
            (self.directory / "ids.bin").open("wb") as file,
            pyarrow.parquet.ParquetWriter(self.directory / "told.parquet", _TOLD, compression="zstd") as told,
        ):
            for batch in in_blocks(documents, _ENCODED_AT_ONCE):
                kept, texts = [], [_utf8(document) for document in batch]
                encoded = encode([document.text for document in batch], tokenizer)
                for document, text, ids in zip(batch, texts, encoded, strict=True):
                    if not ids:
                        self.empty += 1
                        continue
                    data = np.asarray(ids, dtype=np.uint32).tobytes()
                    file.write(data)
                    self._digest.update(len(ids).to_bytes(8, "little") + data)
                    self._offsets.append(self._offsets[-1] + len(ids))
                    self.unknown += ids.count(tokenizer.unk_token_id)
                    self.text_bytes.append(len(text))
                    self.compressed.append(_deflated(text))
                    self.sources.add(source_of(document))
                    self.languages.add(language_of(document))
                    sha256 = hashlib.sha256(text).hexdigest()
                    kept.append({"id": document.id, "text": document.text[:_TEXT_KEPT], "text_sha256": sha256})
                told.write_table(pyarrow.Table.from_pylist(kept, schema=_TOLD))
        if not len(self):
            raise DataError(f"there is nothing to measure: none of the {self.empty:,} documents has any text")
        self._ids = np.memmap(self.directory / "ids.bin", dtype=np.uint32, mode="r")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64 of shape [documents]."""
        return np.diff(np.asarray(self._offsets))

    @property
    def sha256(self) -> str:
        """Of all tokens and where documents end."""
        return self._digest.hexdigest()

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        """x[start:stop] of a document, where x[0] is the token that it begins after; int64."""
        offset = self._offsets[document]
        ids = self._ids[offset + max(start - 1, 0) : offset + stop - 1].astype(np.int64)
        return np.concatenate([[self.first], ids]) if start == 0 else ids

    def told(self) -> Iterator[pyarrow.RecordBatch]:
        """Id, the beginning of the text and the hash of all of it, of each document in their order."""
        with pyarrow.parquet.ParquetFile(self.directory / "told.parquet") as file:
            yield from file.iter_batches()

    def beginnings(self) -> Iterator[tuple[str, str]]:
        """Id and the first 2,000 characters of each document."""
        for batch in self.told():
            yield from zip(batch["id"].to_pylist(), batch["text"].to_pylist(), strict=True)


def _deflated(text: bytes) -> int:
    """Bytes of a text compressed by DEFLATE (RFC 1951), without a header."""
    compressor = zlib.compressobj(9, wbits=-15)
    return len(compressor.compress(text)) + len(compressor.flush())


def _utf8(document: Document) -> bytes:
    try:
        return document.text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{document.id} holds half of a surrogate pair, which is no text; remove or mend it") from None


def encode(texts: list[str], tokenizer: Any) -> list[list[int]]:
    """Texts as tokens, without special tokens: what looks like one in a text is text."""
    if not tokenizer.is_fast:
        return [tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts]
    tokenizer.backend_tokenizer.encode_special_tokens = True
    tokenizer.backend_tokenizer.no_truncation()  # a tokenizer is saved with how it was last called
    tokenizer.backend_tokenizer.no_padding()
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]
