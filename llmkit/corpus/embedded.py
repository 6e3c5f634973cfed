"""The corpus that needs no download: documentation that every Python environment carries.

`stdlib` is the help topics of the language reference and the docstrings of the standard library; `installed` and the
names of distributions add the docstrings of what is installed. Sources are parsed with `ast`; no module is imported.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import os
import platform
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePath

from llmkit.corpus.documents import Document
from llmkit.corpus.readers.rows import BadRow, Row
from llmkit.resources import display

STDLIB, INSTALLED = "stdlib", "installed"
TOPICS = "topics"
_OURSELVES = "llmkit"

# Tests are no documentation, and third-party packages are not the standard library.
_SKIPPED_DIRECTORIES = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "_bundled"}


@dataclass(frozen=True)
class _Module:
    """A source file and the document it becomes."""

    package: str
    name: str
    path: Path
    size: int


class EmbeddedReader:
    """Documents made from the documentation of this Python environment, in a fixed order."""

    def __init__(self, packages: list[str]):
        self._packages = list(packages)
        self._modules = [module for package in self._packages for module in _modules_of(package)]
        self._modules = list({module.path: module for module in self._modules}.values())
        self.size = sum(module.size for module in self._modules)

    def describe(self) -> str:
        return f"{len(self._modules):,} modules of the embedded corpus ({', '.join(self._packages)})"

    def rows(self, progress: Callable[[int], None]) -> Iterator[Row]:
        for module in self._modules:
            progress(module.size)
            tree = _parse(module.path)
            if tree is None:
                id, place = f"{module.package}:{module.name}", display(module.path)
                yield BadRow("", id, module.package, "no Python source", place, expected=True)
            elif module.package == TOPICS:
                for topic, text in sorted(_topics(tree).items()):
                    yield Document(f"{topic}\n{'=' * len(topic)}\n\n{text}", f"{TOPICS}:{topic}", TOPICS)
            elif text := _documentation(module.name, tree):
                yield Document(text, f"{module.package}:{module.name}", module.package)


def embedded_version(packages: Iterable[str]) -> str:
    """A sha256 that changes when Python or one of the distributions is another version. Reads no sources."""
    marks = {f"{platform.python_implementation()}=={platform.python_version()}"}
    for package in packages:
        if package == INSTALLED:
            marks |= {f"{name}=={item.version}" for name, item in _installed().items()}
        elif package != STDLIB:
            marks.add(f"{_plain(package)}=={metadata.version(package)}")
    return hashlib.sha256("\n".join(sorted(marks)).encode()).hexdigest()


def unknown_packages(packages: Iterable[str]) -> Iterator[str]:
    """One sentence for each name that is neither `stdlib`, `installed` nor an installed distribution."""
    for package in packages:
        if package in (STDLIB, INSTALLED):
            continue
        try:
            metadata.version(package)
        except (metadata.PackageNotFoundError, ValueError):
            near = difflib.get_close_matches(_plain(package), [STDLIB, INSTALLED, *_installed()], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {STDLIB!r}, {INSTALLED!r} and what pip lists"
            yield f"embedded_packages: {package!r} is not installed here; {hint}"


# --------------------------------------------------------------------------------------------------------------------
# Finding sources


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _installed() -> dict[str, metadata.Distribution]:
    """The distributions of this environment by name, sorted; of two with one name the one that would be imported."""
    found: dict[str, metadata.Distribution] = {}
    for item in metadata.distributions():
        name = item.metadata["Name"]
        if name and _plain(name) != _OURSELVES:
            found.setdefault(_plain(name), item)
    return dict(sorted(found.items()))


def _modules_of(package: str) -> list[_Module]:
    if package == STDLIB:
        root = Path(sysconfig.get_path("stdlib"))
        topics = _module(TOPICS, TOPICS, root / "pydoc_data" / "topics.py")
        files = ((path.relative_to(root), path) for path in _walk(root) if path != topics.path)
        return [topics, *_modules(STDLIB, files)]
    if package == INSTALLED:
        return [module for name, item in _installed().items() for module in _modules(name, _files(item))]
    return _modules(_plain(package), _files(metadata.distribution(package)))


def _walk(root: Path) -> Iterator[Path]:
    for directory, below, files in os.walk(root):
        below[:] = [name for name in below if name not in _SKIPPED_DIRECTORIES]
        yield from (Path(directory, name) for name in files)


def _files(item: metadata.Distribution) -> Iterator[tuple[PurePath, Path]]:
    for file in item.files or []:
        if not _SKIPPED_DIRECTORIES.intersection(file.parts) and ".." not in file.parts:
            yield file, Path(str(file.locate()))


def _modules(package: str, files: Iterable[tuple[PurePath, Path]]) -> list[_Module]:
    """The Python sources among files (given with their path below the package root), by module name."""
    found = []
    for relative, path in files:
        if relative.suffix == ".py":
            parts = relative.with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
            found.append(_module(package, name, path))
    return sorted(found, key=lambda module: module.name)


def _module(package: str, name: str, path: Path) -> _Module:
    return _Module(package, name, path, path.stat().st_size if path.is_file() else 0)


# --------------------------------------------------------------------------------------------------------------------
# Sources to text


def _parse(path: Path) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _topics(tree: ast.Module) -> dict[str, str]:
    """The dict `topics = {...}` of pydoc_data/topics.py."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            return dict(ast.literal_eval(statement.value))
    return {}


def _documentation(module: str, tree: ast.Module) -> str:
    """The module's docstring and those of its public classes and functions, each under its signature."""
    parts = list(_documented(tree.body, module))
    own = ast.get_docstring(tree)
    if own:
        parts.insert(0, own)
    return "\n\n".join([f"{module}\n{'=' * len(module)}", *parts]) if parts else ""


def _documented(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.If, ast.Try)):  # a definition for one platform or version among several
            yield from _documented([*node.body, *node.orelse], prefix)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            text = ast.get_docstring(node)
            if text:
                yield f"{_signature(node, prefix)}\n\n{text}"
            if isinstance(node, ast.ClassDef):
                yield from _documented(node.body, f"{prefix}.{node.name}")


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, prefix: str) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {prefix}.{node.name}" + (f"({bases})" if bases else "")
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{word} {prefix}.{node.name}({ast.unparse(node.args)}){returns}"
