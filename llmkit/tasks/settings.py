"""Settings of the single tasks, for the stages and commands that take them. Light: imports no task."""

from __future__ import annotations

from dataclasses import dataclass

from llmkit.config import option


@dataclass(kw_only=True)
class Columns:
    """Which columns of a table hold what; None: as in fine-tuning, or found by its usual names."""

    text_column: str | None = option(None)
    """Column of texts to classify; None: found by its name."""

    label_column: str | None = option(None)
    """Column of labels; None: found by its name."""
