"""The files that settings name."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from llmkit.corpus.readers.streams import COMPRESSIONS
from llmkit.corpus.readers.unit import Unit, printable
from llmkit.errors import DataError
from llmkit.pipeline.stage import expand
from llmkit.resources import display

KINDS = (
    *(".txt", ".md", ".jsonl", ".json", ".csv", ".tsv", ".parquet"),
    *(".html", ".htm", ".warc", ".wet", ".wat", ".xml", ".tokens"),
)
ENDINGS = (*KINDS, *(kind + compression for kind in KINDS if kind != ".parquet" for compression in COMPRESSIONS))
"""Of the names of all files that are read."""


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

    def whole(self) -> Unit:
        """All of the file as one unit."""
        return Unit(str(self.path), self.name, self.kind, self.compression, size=self.path.stat().st_size)


@dataclass
class Found:
    """The files that a setting names, and how many were passed over."""

    files: list[InputFile] = field(default_factory=list)
    skipped: int = 0
    outside: int = 0
    """Of those passed over, links in a directory that lead out of it."""


def find_files(patterns: list[str], setting: str) -> Found:
    """The readable files that paths, directories and patterns name, in their order, none twice.

    In a directory or behind a pattern, hidden files and those of unknown kinds are passed over, and counted in a directory.
    So are links in a directory that lead out of it: who gives a directory means what is in it. A file that is named by
    itself or by a pattern may be a link.

    Raises:
        DataError: a file named by itself is of an unknown kind, or nothing readable is found.
    """
    found: dict[Path, InputFile] = {}
    skipped: set[Path] = set()
    outside: set[Path] = set()
    for pattern in patterns:
        root = Path(pattern).expanduser()
        for path in expand([pattern], setting):
            below = path.relative_to(root).parts if root.is_dir() else (path.name,)
            file = _recognise(path, depth=len(below))
            if path == root and file is None:
                raise DataError(f"{setting}: {path} is of an unknown kind; known are {_known_kinds()}")
            if root.is_dir() and _leads_out(path, root):
                outside.add(path.absolute())
            elif file is None:
                skipped.add(path.absolute())
            else:
                found.setdefault(path.absolute(), file)
        if root.is_dir():
            below_root = sorted(root.rglob("*"))
            skipped.update(path.absolute() for path in below_root if path.is_file())
            linked = (path for path in below_root if path.is_symlink() and path.is_dir())
            outside.update(path.absolute() for path in linked if _leads_out(path, root))
    outside -= found.keys()
    skipped = (skipped | outside) - found.keys()
    if not found and outside:
        raise DataError(
            f"{setting}: {len(outside):,} files or directories below {patterns} are links that lead out of it and are not "
            f"followed; to read them, give the directory they lead to, or a pattern such as '*.jsonl'"
        )
    if not found:
        raise DataError(
            f"{setting}: none of the {len(skipped)} files below {patterns} can be read; known are {_known_kinds()}"
        )
    return Found(list(found.values()), len(skipped), len(outside))


def _leads_out(path: Path, root: Path) -> bool:
    return not path.resolve().is_relative_to(root.resolve())


def _known_kinds() -> str:
    return f"{', '.join(KINDS)}, all but .parquet also with {', '.join(COMPRESSIONS[:-1])} or {COMPRESSIONS[-1]}"


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
