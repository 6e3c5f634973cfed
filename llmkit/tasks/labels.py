"""What the labels of a table are: one class a text, any number of classes, or a number.

The names are those of `problem_type` in transformers' configs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]

SINGLE: ProblemType = "single_label_classification"
MULTI: ProblemType = "multi_label_classification"
REGRESSION: ProblemType = "regression"

Label = str | list[str] | float
"""A class, several classes (sorted, none twice), or a number."""

WANTED = {SINGLE: "single label", MULTI: "list of labels ([] stands for none)", REGRESSION: "number"}
"""What a row has to have, in words."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def detect(values: Sequence[Any], separator: str | None) -> tuple[ProblemType, str]:
    """What labels are, by most of those that are given, and the sentence that says why.

    Args:
        values: a column as it was read.
        separator: what stands between the labels of a text, where they are written as one string.
    """
    if separator is not None:
        return MULTI, f"labels are texts with {separator!r} between them: multi-label"
    given = [value for value in values if not _is_missing(value)]
    if 2 * sum(isinstance(value, (list, tuple)) for value in given) > len(given):
        return MULTI, "labels are lists: multi-label"
    numbers = [found for value in given if (found := number(value)) is not None]
    different = len(set(numbers))
    if 2 * len(numbers) <= len(given):
        return SINGLE, f"labels are {len({str(value) for value in given})} different texts: classes"
    if not all(found.is_integer() for found in numbers):
        return REGRESSION, f"labels are {different} different fractional numbers: regression"
    quantities = "; if they are quantities, set problem_type to regression" if different > 2 else ""
    return SINGLE, f"labels are {different} different whole numbers: classes{quantities}"


def label_of(value: Any, kind: ProblemType, separator: str | None) -> Label | None:
    """The label that a value of a table is; None where there is none, or one of another kind."""
    if kind == REGRESSION:
        return number(value)
    if kind == SINGLE:
        if _is_missing(value) or isinstance(value, (list, tuple, dict)) or not str(value).strip():
            return None
        return str(value).strip()
    if separator is not None and isinstance(value, str):
        return sorted({part.strip() for part in value.split(separator) if part.strip()})
    if not isinstance(value, (list, tuple)):
        return None
    parts = [label_of(part, SINGLE, None) for part in value]
    return None if None in parts else sorted({str(part) for part in parts})


def number(value: Any) -> float | None:
    """A number, also one that is written as text; None for anything else, for what is not finite, and for true and false."""
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value.strip()) and math.isfinite(float(value)) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def classes_of(label: Label) -> list[str]:
    """The classes of a label that is one or several."""
    return label if isinstance(label, list) else [str(label)]
