"""Token shards: flat arrays of token ids on disk, document boundaries beside them, and an index that describes them.

    <split>-00000.bin          uint16 or uint32, little-endian, all documents one after the other, each ended by the EOS
    <split>-00000.offsets.npy  int64, where each document starts, and the end of the last: len = documents + 1
    index.json                 tokenizer hash, EOS id, dtype, and of each shard its token and document counts and sha256

A shard is memory-mapped: opening one costs the same whatever its size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from llmkit.errors import ArtefactError, DataError

INDEX = "index.json"
FORMAT_VERSION = 1
_AT_ONCE = 1 << 20  # documents


@dataclass
class Shard:
    """One file of tokens."""

    name: str
    tokens: int
    documents: int
    bytes: int
    """UTF-8 bytes of the text that the tokens stand for; what bits per byte divides by."""
    sha256: str


@dataclass
class Index:
    """What a directory of token shards holds."""

    tokenizer_sha256: str
    eos_token_id: int
    vocab_size: int
    dtype: str
    splits: dict[str, list[Shard]]
    format_version: int = FORMAT_VERSION

    def tokens(self, split: str) -> int:
        return sum(shard.tokens for shard in self.splits.get(split, []))

    def save(self, directory: Path) -> None:
        (directory / INDEX).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Index:
        try:
            values = json.loads((directory / INDEX).read_text(encoding="utf-8"))
            if values["format_version"] != FORMAT_VERSION:
                raise ValueError(f"its format_version is {values['format_version']}, this llmkit reads {FORMAT_VERSION}")
            splits = {name: [Shard(**shard) for shard in shards] for name, shards in values["splits"].items()}
            return cls(**{**values, "splits": splits})
        except (OSError, ValueError, KeyError, TypeError) as failure:
            raise ArtefactError(f"{directory / INDEX} is not an index of token shards: {failure}") from None


def data_fingerprint(*directories: Path) -> str:
    """One sha256 of all that decides what the token shards in directories say, from their indexes alone.

    Raises:
        ArtefactError: a directory holds no index that this llmkit reads.
    """
    deciding: list[Any] = []
    for directory in directories:
        index = Index.load(directory)
        hashes = {split: [shard.sha256 for shard in shards] for split, shards in index.splits.items()}
        deciding += [index.tokenizer_sha256, index.eos_token_id, index.dtype, hashes]
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def tokenizer_hash(directory: Path) -> str:
    """The sha256 of what decides a tokenizer's ids, whatever the order and spacing of its `tokenizer.json`."""
    path = directory / "tokenizer.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        raise ArtefactError(f"{path} cannot be read ({failure}); a fast tokenizer is needed") from None
    deciding = {key: content.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


class ShardWriter:
    """Writes the shards of one split; a new shard is begun when one is full."""

    def __init__(self, directory: Path, split: str, dtype: str, tokens_per_shard: int):
        self.directory, self.split, self.dtype, self.limit = directory, split, np.dtype(dtype), tokens_per_shard
        self.shards: list[Shard] = []
        self._file: Any = None
        self._open_next()

    def _open_next(self) -> None:
        self._name = f"{self.split}-{len(self.shards):05d}"
        self._file = (self.directory / f"{self._name}.bin").open("wb")
        self._digest = hashlib.sha256()
        self._lengths: list[np.ndarray] = []
        self._tokens = 0
        self._bytes = 0

    def add(self, ids: list[int], text_bytes: int) -> None:
        """Append a document, its EOS included. A document never spans two shards."""
        self.add_all(np.array(ids), np.array([len(ids)]), np.array([text_bytes]))

    def add_all(self, ids: np.ndarray, lengths: np.ndarray, text_bytes: np.ndarray) -> None:
        """Append documents, one after the other in ids of shape [tokens], each with its EOS.

        Args:
            lengths: how many tokens each has, shape [documents].
            text_bytes: UTF-8 bytes of the text of each, shape [documents].

        Raises:
            DataError: an id is larger than the dtype can say.
        """
        if len(ids) and ids.max() > np.iinfo(self.dtype).max:
            raise DataError(f"token {ids.max()} does not fit into {self.dtype}: the tokenizer leaves ids out")
        ends = np.concatenate([[0], np.cumsum(lengths)])
        first = 0
        while first < len(lengths):
            last = int(np.searchsorted(ends, ends[first] + self.limit - self._tokens, side="right")) - 1
            if last <= first:  # the next has no room here, or nowhere
                if self._tokens:
                    self._close_current()
                    self._open_next()
                    continue
                last = first + 1
            data = ids[ends[first] : ends[last]].astype(self.dtype).tobytes()
            self._file.write(data)
            self._digest.update(data)
            self._lengths.append(lengths[first:last])
            self._tokens += int(ends[last] - ends[first])
            self._bytes += int(text_bytes[first:last].sum())
            first = last

    def _close_current(self) -> None:
        self._file.close()
        if not self._tokens:
            (self.directory / f"{self._name}.bin").unlink()
            return
        offsets = np.cumsum(np.concatenate([[0], *self._lengths]), dtype=np.int64)
        np.save(self.directory / f"{self._name}.offsets.npy", offsets)
        self.shards.append(Shard(self._name, self._tokens, len(offsets) - 1, self._bytes, self._digest.hexdigest()))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._close_current()
        else:
            self._file.close()


@dataclass
class Passage:
    """Tokens of one document."""

    shard: str
    document: int
    """Its number in the shard, from 0."""
    start: int
    """Its first token here, counted in the document."""
    stop: int
    """The token after its last one here; the EOS counts."""


class TokenStream:
    """All tokens of a split as one long array, memory-mapped over its shards."""

    def __init__(self, directory: Path, split: str, tokenizer_directory: Path | None = None):
        """Open a split.

        Args:
            tokenizer_directory: refuse the shards unless they were written with this tokenizer.

        Raises:
            ArtefactError: the shards were written with another tokenizer (both hashes are named), or a file is missing.
            DataError: the split has no tokens.
        """
        self.index = Index.load(directory)
        if tokenizer_directory is not None:
            given = tokenizer_hash(tokenizer_directory)
            if given != self.index.tokenizer_sha256:
                raise ArtefactError(
                    f"{directory} was written with another tokenizer: its hash is {self.index.tokenizer_sha256[:16]}, "
                    f"that of {tokenizer_directory} is {given[:16]}; "
                    f"make the shards again with `llmkit tokenize`"
                )
        shards = self.index.splits.get(split, [])
        if not shards:
            raise DataError(f"{directory} has no tokens in its {split!r} split")
        self.shards = shards
        self.arrays = [self._map(directory, shard) for shard in shards]
        self.offsets = [self._map_offsets(directory, shard) for shard in shards]
        self.starts = np.concatenate([[0], np.cumsum([shard.tokens for shard in shards])])
        self.documents = sum(shard.documents for shard in shards)
        self.text_bytes = sum(shard.bytes for shard in shards)

    def _map(self, directory: Path, shard: Shard) -> np.ndarray:
        path = directory / f"{shard.name}.bin"
        dtype = np.dtype(self.index.dtype)
        if not path.is_file() or path.stat().st_size != shard.tokens * dtype.itemsize:
            raise ArtefactError(f"{path} is missing or cut short: the index says {shard.tokens:,} tokens")
        return np.memmap(path, dtype=dtype, mode="r", shape=(shard.tokens,))

    def _map_offsets(self, directory: Path, shard: Shard) -> np.ndarray:
        path = directory / f"{shard.name}.offsets.npy"
        try:
            offsets = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as failure:
            raise ArtefactError(f"{path} cannot be read: {failure}") from None
        if offsets.dtype != np.int64 or offsets.shape != (shard.documents + 1,):
            raise ArtefactError(
                f"{path} does not hold the boundaries of the {shard.documents:,} documents that the index says"
            )
        return offsets

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` (cut at the end of the stream), shape [stop - start], int64."""
        stop = min(stop, len(self))
        pieces = []
        shard = int(np.searchsorted(self.starts, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self.starts[shard + 1]))
            offset = int(self.starts[shard])
            pieces.append(self.arrays[shard][start - offset : end - offset])
            start, shard = end, shard + 1
        return np.concatenate(pieces).astype(np.int64) if pieces else np.empty(0, dtype=np.int64)

    def passages(self, start: int, stop: int) -> list[Passage]:
        """The documents that tokens `start` to `stop` (cut at the end of the stream) belong to, in order.

        The offsets are memory-mapped and searched by halving, so that it takes the same time in a stream of any length.
        """
        stop = min(stop, len(self))
        found = []
        while start < stop:
            shard = int(np.searchsorted(self.starts, start, side="right")) - 1
            first = int(self.starts[shard])
            offsets = self.offsets[shard]
            document = int(np.searchsorted(offsets, np.int64(start - first), side="right")) - 1
            begin, end = first + int(offsets[document]), first + int(offsets[document + 1])
            found.append(Passage(self.shards[shard].name, document, start - begin, min(stop, end) - begin))
            start = end
        return found

    def document_starts(self, start: int, stop: int) -> np.ndarray:
        """Where documents start from token `start` to before token `stop`, in order; int64."""
        stop = min(stop, len(self))
        pieces = []
        shard = int(np.searchsorted(self.starts, start, side="right")) - 1
        while start < stop:
            base, end = int(self.starts[shard]), min(stop, int(self.starts[shard + 1]))
            starts = self.offsets[shard][:-1]
            first, last = np.searchsorted(starts, [start - base, end - base])
            pieces.append(starts[first:last] + base)
            start, shard = end, shard + 1
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def document_spans(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Where documents start and end, a bounded number at once: pairs of int64 arrays of one shape."""
        for base, offsets in zip(self.starts.tolist(), self.offsets, strict=False):
            for first in range(0, len(offsets) - 1, _AT_ONCE):
                bounds = np.asarray(offsets[first : first + _AT_ONCE + 1]) + base
                yield bounds[:-1], bounds[1:]
