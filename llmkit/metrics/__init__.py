"""The metrics of llmkit as modules of Hugging Face's `evaluate`, each a folder that loads with no network:

    evaluate.load(llmkit.metrics.path("f1")).compute(predictions=[0, 1, 1], references=[0, 1, 0])

Each gives its value, the limits of its 95% interval as `<name>_low` and `<name>_high`, and `n`. This package imports nothing
heavy; the folders import `evaluate`.
"""

from __future__ import annotations

from pathlib import Path

from llmkit.errors import ConfigError

_PLACE = Path(__file__).parent


def names() -> list[str]:
    """The metrics there are."""
    return sorted(folder.name for folder in _PLACE.iterdir() if (folder / f"{folder.name}.py").is_file())


def path(name: str) -> str:
    """The folder of a metric, for `evaluate.load`.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in names():
        raise ConfigError([f"no metric {name!r}; there are {', '.join(names())}"], "metrics")
    return str(_PLACE / name)
