"""Where the marks of all parts are, and where decisions about them go.

Documents are numbered through all parts. A ticket is the number of a document (or paragraph), with a high bit for one of
training: the lowest of several tickets is the one that stays, which makes validation come before training whatever the order
of the parts.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llmkit import __version__
from llmkit.corpus.duplicates.settings import DuplicateSettings
from llmkit.errors import DataError

TRAIN = np.int64(1 << 62)
"""The bit of a ticket that says: of training."""
NUMBER = np.int64((1 << 62) - 1)
"""The bits of a ticket that are the number."""
BUCKET = 1 << 22
"""Hashes in a bucket, on average: what a process holds at once."""
DOCUMENTS, BANDS, PARAGRAPHS = "documents", "bands", "paragraphs"


@dataclass
class Layout:
    """All parts, in the order that counts, and how the work is cut."""

    directory: Path
    settings: DuplicateSettings
    parts: list[str]
    """Directories of marks, relative to `directory`."""
    abouts: list[dict[str, Any]]
    """What each part says of itself."""
    bucket: int = BUCKET

    @classmethod
    def make(cls, parts: Sequence[Path], settings: DuplicateSettings, directory: Path, bucket: int) -> Layout:
        """The layout for some parts; decisions that lie in the directory and are about others are removed.

        Raises:
            DataError: a part is not there, or was not finished.
        """
        abouts = []
        for part in parts:
            try:
                abouts.append(json.loads((Path(part) / "part.json").read_text(encoding="utf-8")))
            except FileNotFoundError:
                raise DataError(f"{part}: no marks of a part of the corpus; run its task again") from None
        relative = [os.path.relpath(part, directory) for part in parts]
        made = cls(Path(directory), settings, relative, abouts, bucket)
        if not made._is_written():
            shutil.rmtree(directory, ignore_errors=True)
            Path(directory).mkdir(parents=True)
            with_care(made.directory / "layout.json", json.dumps(made._told()).encode())
        for left in (*made.directory.glob("*.partial"), *made.directory.glob("*.forest")):  # of work that was killed
            left.unlink()
        return made

    @classmethod
    def load(cls, directory: Path) -> Layout:
        told = json.loads((Path(directory) / "layout.json").read_text(encoding="utf-8"))
        settings = DuplicateSettings(**told["settings"])
        return cls(Path(directory), settings, told["parts"], told["abouts"], told["bucket"])

    def _told(self) -> dict[str, Any]:
        return {
            "settings": asdict(self.settings),
            "parts": self.parts,
            "abouts": self.abouts,
            "bucket": self.bucket,
            "llmkit": __version__,
        }

    def _is_written(self) -> bool:
        try:
            return json.loads((self.directory / "layout.json").read_text(encoding="utf-8")) == self._told()
        except (FileNotFoundError, json.JSONDecodeError):
            return False

    def marks(self, part: int, name: str) -> np.ndarray:
        """An array of marks of a part, by memory map."""
        return opened(self.directory / self.parts[part] / f"{name}.npy")

    def decided(self, part: int, name: str) -> np.ndarray:
        """An array of decisions about a part, by memory map."""
        return opened(self.decisions(part, name))

    def decisions(self, part: int, name: str) -> Path:
        return self.directory / f"{name}-{part:06d}.npy"

    @cached_property
    def starts(self) -> np.ndarray:
        """The number of the first document of each part, and how many there are; int64 of shape [parts + 1]."""
        return np.cumsum([0, *(about["documents"] for about in self.abouts)], dtype=np.int64)

    @cached_property
    def paragraph_starts(self) -> np.ndarray:
        """The same of paragraphs."""
        return np.cumsum([0, *(about["paragraphs"] for about in self.abouts)], dtype=np.int64)

    def buckets(self, kind: str) -> int:
        """Into how many ranges the hashes of a kind (of one band) are cut."""
        return max(1, -(-sum(about[kind] for about in self.abouts) // self.bucket))


def opened(path: Path) -> np.ndarray:
    """An array by memory map; one without elements cannot be mapped and is read."""
    try:
        return np.load(path, mmap_mode="r")
    except ValueError:
        return np.load(path)


def with_care(path: Path, content: bytes | np.ndarray) -> None:
    """Write a file that is there as a whole or not at all, also after a power cut."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with aside.open("wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            np.save(file, content, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
