"""Files that travel with llmkit: recipes, pipelines and accelerate_configs, found by name or by path.

In a checkout they lie at the top level; in an installed wheel under `llmkit/share`.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from llmkit.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent


def shipped(kind: str) -> Path:
    """The directory of the shipped `recipes`, `pipelines` or `accelerate_configs`."""
    installed = PACKAGE / "share" / kind
    return installed if installed.is_dir() else PACKAGE.parent / kind


def names(kind: str) -> list[str]:
    """The names of the shipped YAML files of a kind, without suffix, sorted."""
    root = shipped(kind)
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def find(kind: str, name: str, relative_to: Path | None = None) -> Path:
    """Find a YAML file by path, or by the name under which it is shipped (`sentiment`, `pretrain/quickstart`).

    A path is tried as given, then beside the file that names it (`relative_to`).

    Raises:
        ConfigError: nothing is found; names the nearest shipped file.
    """
    candidates = [Path(name)]
    if relative_to is not None:
        candidates.insert(0, relative_to / name)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    stem = name.removeprefix(f"{kind}/").removesuffix(".yaml")
    by_name = shipped(kind) / f"{stem}.yaml"
    if by_name.is_file():
        return by_name
    known = names(kind)
    near = difflib.get_close_matches(stem, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"shipped are: {', '.join(known) or 'none'}"
    raise ConfigError([f"{name!r} is neither a file nor one of llmkit's {kind}; {hint}"], "command")


def display(path: Path) -> str:
    """A path as it is shown to a person: relative to the working directory where it lies below it."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return str(path)
