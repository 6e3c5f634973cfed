"""Every byte of a directory of token shards, checked against its index; what `llmkit tokens verify` does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from llmkit.errors import ArtefactError
from llmkit.pipeline.artefact import Artefact
from llmkit.tokens.shards import Index, Shard, tokenizer_hash

_AT_ONCE = 1 << 20  # tokens or documents


def faults(directory: Path) -> Iterator[str]:
    """What is wrong, one sentence each. Reads every file once, in memory that does not grow with them.

    Raises:
        ArtefactError: there is no index of token shards to check against.
    """
    index = Index.load(directory)
    yield from _of_tokenizer(directory, index)
    if index.dtype not in ("uint16", "uint32"):
        yield f"index.json: dtype is {index.dtype!r}, must be uint16 or uint32"
        return
    if not 0 <= index.eos_token_id < index.vocab_size:
        yield f"index.json: eos_token_id is {index.eos_token_id}, outside the vocabulary of {index.vocab_size:,}"
    checked = set()
    for shards in index.splits.values():
        for shard in shards:
            checked.add(f"{shard.name}.bin")
            yield from _of_shard(directory, shard, index)
    artefact = Artefact.peek(directory)
    if artefact is not None:  # it knows the content of the other files as well
        others = [record for record in artefact.manifest.files if record.path not in checked]
        yield from Artefact(directory, replace(artefact.manifest, files=others)).damaged(hashes=True)


def _of_tokenizer(directory: Path, index: Index) -> Iterator[str]:
    try:
        found = tokenizer_hash(directory / "tokenizer")
    except ArtefactError as failure:
        yield str(failure)
        return
    if found != index.tokenizer_sha256:
        yield f"tokenizer: its hash is {found[:16]}, the shards were written with {index.tokenizer_sha256[:16]}"


def _of_shard(directory: Path, shard: Shard, index: Index) -> Iterator[str]:
    path = directory / f"{shard.name}.bin"
    if not path.is_file():
        yield f"{path.name} is missing"
        return
    dtype = np.dtype(index.dtype)
    size, expected = path.stat().st_size, shard.tokens * dtype.itemsize
    if size != expected:
        yield f"{path.name} has {size:,} bytes, the index says {expected:,}"
    digest = hashlib.sha256()
    outside, first, position = 0, -1, 0
    with path.open("rb") as file:
        while block := file.read(_AT_ONCE * dtype.itemsize):
            digest.update(block)
            wrong = np.flatnonzero(np.frombuffer(block, dtype, count=len(block) // dtype.itemsize) >= index.vocab_size)
            first = position + int(wrong[0]) if len(wrong) and not outside else first
            outside += len(wrong)
            position += _AT_ONCE
    if digest.hexdigest() != shard.sha256:
        yield f"{path.name} has another sha256 than the index says: {digest.hexdigest()[:16]}, not {shard.sha256[:16]}"
    if outside:
        yield f"{path.name}: ids outside the vocabulary of {index.vocab_size:,}: {outside:,}, the first is token {first:,}"
    tokens = (
        np.memmap(path, dtype, mode="r", shape=(size // dtype.itemsize,)) if size >= dtype.itemsize else np.empty(0, dtype)
    )
    yield from _of_boundaries(directory, shard, tokens, index.eos_token_id)


def _of_boundaries(directory: Path, shard: Shard, tokens: np.ndarray, eos: int) -> Iterator[str]:
    path = directory / f"{shard.name}.offsets.npy"
    if not path.is_file():
        yield f"{path.name} is missing"
        return
    try:
        offsets = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as failure:
        yield f"{path.name} cannot be read: {failure}"
        return
    if offsets.dtype != np.int64 or offsets.shape != (shard.documents + 1,):
        yield (
            f"{path.name} holds {offsets.dtype} of shape {list(offsets.shape)}, "
            f"{shard.documents:,} documents need int64 of shape [{shard.documents + 1}]"
        )
        return
    if offsets[0] != 0 or offsets[-1] != shard.tokens:
        yield f"{path.name} goes from {offsets[0]:,} to {offsets[-1]:,}, the index says from 0 to {shard.tokens:,}"
    backwards = unended = 0
    for start in range(0, shard.documents, _AT_ONCE):
        bounds = offsets[start : start + _AT_ONCE + 1]
        backwards += int((np.diff(bounds) < 1).sum())
        lasts = bounds[1:] - 1
        inside = lasts[(lasts >= 0) & (lasts < len(tokens))]
        unended += len(lasts) - int((tokens[inside] == eos).sum())
    if backwards:
        yield f"{path.name}: documents that end where they start, or before: {backwards:,}"
    if unended:
        yield f"{shard.name}: documents that do not end with the EOS, token {eos}: {unended:,}"
