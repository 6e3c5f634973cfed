"""The README.md of a model directory: what the model is and how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def write_card(directory: Path, front_matter: dict[str, Any], title: str, sections: dict[str, str]) -> None:
    """Write a model card as the hub reads it: YAML front matter, then Markdown.

    Args:
        sections: heading to Markdown text.
    """
    parts = [f"---\n{yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True)}---", f"# {title}"]
    parts += [f"## {heading}\n\n{text.strip()}" for heading, text in sections.items()]
    (directory / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def settings_table(values: dict[str, Any]) -> str:
    """Settings or facts as a Markdown table of two columns."""
    rows = "\n".join(f"| {key} | {_shown(value)} |" for key, value in values.items())
    return f"| | |\n|---|---|\n{rows}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value).replace("|", "\\|")
