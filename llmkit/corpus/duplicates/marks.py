"""What deduplication has to know of the documents of one part of a corpus, in files that are read by memory map.

Hashes stand in ascending order, each beside the number of what it belongs to, so that what falls into a bucket (a range of
hashes) is one slice of each part: nothing has to be sent from parts to buckets.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from llmkit.corpus.duplicates.minhash import MinHash
from llmkit.corpus.duplicates.settings import DuplicateSettings
from llmkit.pipeline.artefact import sync

LEAST_BYTES = 30
"""UTF-8 bytes of a paragraph that counts: about five English words or ten Han characters. Shorter ones (a heading, "Yes.", a
line of dialogue) come again in texts that have nothing to do with each other, and always stay."""

_BLANK_LINES = re.compile(r"(\n(?:[^\S\n]*\n)+)")
_LINE_ENDS = re.compile(r"(\n)")


class Marker:
    """Collects the marks of one part; holds 32 bytes a document, 8 a band and 8 a paragraph.

    Raises:
        DataError: near duplicates are asked for and numba is not installed.
    """

    def __init__(self, settings: DuplicateSettings):
        self._settings = settings
        self._hashing = MinHash(settings) if settings.near else None
        self._digests, self._paragraphs, self._ids = bytearray(), bytearray(), bytearray()
        self._counts: list[int] = []
        self._id_ends: list[int] = []
        self._validation: list[bool] = []
        self._bands: list[np.ndarray] = []

    def add(self, texts: Sequence[str], ids: Sequence[str], is_validation: bool | Sequence[bool]) -> None:
        """Documents, in the order in which they stand in the part."""
        for text, id in zip(texts, ids, strict=True):
            self._digests += blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            self._ids += id.encode("utf-8", "surrogatepass")
            self._id_ends.append(len(self._ids))
            if self._settings.paragraphs:
                self._counts.append(self._add_paragraphs(text))
        of_each = [is_validation] * len(texts) if isinstance(is_validation, bool) else is_validation
        self._validation += [bool(flag) for flag in of_each]
        if self._hashing and texts:
            self._bands.append(self._hashing.bands(texts))

    def _add_paragraphs(self, text: str) -> int:
        count = 0
        for piece in counting(pieces(text)[::2]):
            self._paragraphs += blake2b(piece, digest_size=8).digest()
            count += 1
        return count

    def save(self, path: Path) -> None:
        """Write a directory; it is there as a whole or not at all, and the same marks make the same bytes."""
        path = Path(path)
        aside = path.with_name(f"{path.name}.{os.getpid()}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        check = blake2b(digest_size=16)
        about = {
            "documents": len(self._validation),
            "validation": sum(self._validation),
            "bands": 0,
            "paragraphs": len(self._paragraphs) // 8,
        }
        for name, array in self._arrays():
            np.save(aside / f"{name}.npy", array, allow_pickle=False)
            check.update(name.encode() + np.ascontiguousarray(array).tobytes())
            if name == "bands.hash":
                about["bands"] = array.shape[1]
        (aside / "part.json").write_text(json.dumps({**about, "check": check.hexdigest()}), encoding="utf-8")
        for file in aside.iterdir():
            sync(file)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(aside, path)

    def _arrays(self) -> list[tuple[str, np.ndarray]]:
        digests = np.frombuffer(bytes(self._digests), dtype="<u8").reshape(-1, 2)
        order = np.lexsort((digests[:, 1], digests[:, 0]))
        found = [
            ("validation", np.array(self._validation, dtype=bool)),
            ("ids", np.frombuffer(bytes(self._ids), dtype=np.uint8)),
            ("ids.ends", np.array(self._id_ends, dtype=np.int64)),
            ("documents.hash", digests[order, 0]),
            ("documents.rest", digests[order, 1]),
            ("documents.number", order.astype(np.int64)),
        ]
        if self._settings.paragraphs:
            hashes = np.frombuffer(bytes(self._paragraphs), dtype="<u8")
            order = np.argsort(hashes, kind="stable")
            ends = np.cumsum(self._counts, dtype=np.int64)
            found += [("paragraphs.ends", ends), ("paragraphs.hash", hashes[order]), ("paragraphs.number", order)]
        if self._settings.near:
            bands = np.concatenate(self._bands or [np.zeros((0, self._settings.bands), dtype=np.uint64)])
            rows = np.flatnonzero(bands[:, 0]) if len(bands) else np.zeros(0, dtype=np.int64)
            columns = np.ascontiguousarray(bands[rows].T)
            orders = np.argsort(columns, axis=1, kind="stable")
            found += [("bands.hash", np.take_along_axis(columns, orders, axis=1)), ("bands.number", rows[orders])]
        return found


def pieces(text: str) -> list[str]:
    """The paragraphs of a text at even places, and what stands between them at odd ones; joined they are the text.

    Paragraphs stand between blank lines. A text without a blank line is one of lines, and each is a paragraph.
    """
    found = _BLANK_LINES.split(text)
    return found if len(found) > 1 else _LINE_ENDS.split(text)


def counting(paragraphs: Sequence[str]) -> list[bytes]:
    """The paragraphs that are long enough to count, without white space at their ends, as UTF-8."""
    stripped = (paragraph.strip().encode("utf-8", "surrogatepass") for paragraph in paragraphs)
    return [paragraph for paragraph in stripped if len(paragraph) >= LEAST_BYTES]


def without(text: str, repeated: np.ndarray) -> str:
    """A text without some of its paragraphs that count, each gone with what stands before it.

    Args:
        repeated: which of them go, bool of shape [paragraphs that count].
    """
    if not repeated.any():
        return text
    found = pieces(text)
    kept: list[str] = []
    number = 0
    for place in range(0, len(found), 2):
        if counting([found[place]]):
            number += 1
            if repeated[number - 1]:
                continue
        kept += [found[place - 1] if kept else "", found[place]]
    return "".join(kept)
