"""Numbers, sizes and texts as a person reads them."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# What HTML and UTF-8 cannot carry: control characters (tab and line feed may stay) and halves of surrogate pairs.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

MISSING = "\N{EN DASH}"

_NAMES = {
    "f1": "F1",
    "mcc": "MCC",
    "bleu": "BLEU",
    "chrf": "chrF",
    "ter": "TER",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "mse": "mean squared error",
    "mae": "mean absolute error",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "f1_samples": "samples F1",
    "auc": "AUC",
    "roc_auc": "ROC AUC",
    "pr_auc": "PR AUC (average precision)",
    "brier": "Brier score",
    "ece": "expected calibration error",
}


def clean(text: str) -> str:
    """Text with carriage returns dropped and what cannot be shown made visible as U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def shorten(text: str, limit: int) -> tuple[str, int]:
    """The first `limit` characters, and how many were left out; a few more are not worth leaving out."""
    return (text, 0) if len(text) <= limit * 1.1 else (text[:limit].rstrip(), len(text) - len(text[:limit].rstrip()))


def fit(text: str, columns: int) -> str:
    """A single line cut to a width, where East Asian characters are two columns wide."""
    line = " ".join(clean(text).split())
    if width(line) <= columns:
        return line
    taken, used = [], 1
    for char in line:
        used += _char_width(char)
        if used > columns:
            break
        taken.append(char)
    return "".join(taken) + "…"


def width(text: str) -> int:
    return sum(_char_width(char) for char in text)


def _char_width(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def finite(value: Any) -> float | None:
    """A number that can be drawn or compared, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def signed(text: str) -> str:
    """With a real minus sign, which is as wide as a digit."""
    return text.replace("-", "\u2212")


def score(value: float | None) -> str:
    """A metric: three decimals on the scale 0 to 1, two on any other."""
    if value is None:
        return MISSING
    return signed(f"{value:.3f}" if abs(value) <= 1 else f"{value:,.2f}")


def measure(value: float | None) -> str:
    """A loss, a perplexity or the like: three decimals, or none where there are four digits before them."""
    return MISSING if value is None else signed(f"{value:,.3f}" if abs(value) < 1000 else f"{value:,.0f}")


def interval(low: float | None, high: float | None) -> str:
    return f"{score(low)} to {score(high)}" if low is not None and high is not None else ""


def difference(value: float | None, low: float | None, high: float | None) -> str:
    """`+0.031 (0.010 to 0.052)`."""
    if value is None:
        return MISSING
    between = interval(low, high)
    return signed(f"{value:+.3f}") + (f" ({between})" if between else "")


def percent(value: float | None, digits: int = 1) -> str:
    return MISSING if value is None else signed(f"{100 * value:.{digits}f}%")


def p_value(value: float | None) -> str:
    if value is None:
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def count(number: int, singular: str, plural: str | None = None) -> str:
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def listing(parts: list[str], last: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    return f" {last} ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def size(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:,.0f} {unit}" if unit == "bytes" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def value_of(value: Any, key: str = "") -> str:
    """Any value of a manifest; the key tells durations and sizes from other numbers."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return _number(value, key)
    if isinstance(value, Mapping):
        return count(len(value), "item") if value else "none"
    if isinstance(value, (list, tuple)):
        if len(value) > 12 or any(isinstance(item, (dict, list)) for item in value):
            return count(len(value), "item")
        return ", ".join(value_of(item) for item in value) or "none"
    text, omitted = shorten(clean(str(value)), 200)
    return text + ("…" if omitted else "")


def setting_of(value: Any) -> str:
    """A setting as it stands in a settings file, so that it can be copied."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    shown, omitted = shorten(clean(text), 200)
    return shown + ("…" if omitted else "")


def _number(value: float, key: str) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "not a number" if math.isnan(value) else signed("infinity" if value > 0 else "-infinity")
    last = re.split(r"[._ ]", key.lower())[-1] if key else ""
    if last == "bytes":
        return size(value)
    if (last in ("seconds", "runtime") or key == "seconds") and "per" not in key.lower().split("_") and value >= 0:
        return duration(value)
    if isinstance(value, int):
        return signed(f"{value:,}")
    magnitude = abs(value)
    if magnitude != 0 and (magnitude < 1e-3 or magnitude >= 1e12):
        return signed(f"{value:.3g}")
    if value == int(value):
        return signed(f"{value:,.0f}")
    digits = 0 if magnitude >= 1000 else 1 if magnitude >= 100 else 2 if magnitude >= 10 else 3 if magnitude >= 1 else 4
    text = f"{value:,.{digits}f}"
    return signed(text.rstrip("0").rstrip(".") if "." in text else text)


def flatten(values: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Every number of a nested mapping with its path, both ready to be shown."""
    for key, value in values.items():
        label = f"{prefix} / {key}" if prefix else str(key)
        if isinstance(value, Mapping) and value and depth < 4:
            yield from flatten(value, label, depth + 1)
        else:
            yield fit(label.replace("_", " "), 80), value_of(value, str(key))


def short(dataset: str) -> str:
    """A data set's name without the directories before a file."""
    return dataset if is_hub_name(dataset) else Path(dataset).name


def is_hub_name(dataset: str) -> bool:
    """Whether a data set is named `name` or `owner/name`, and not by the path of a file."""
    pattern = r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?"
    is_file = re.search(r"\.(jsonl?|csv|tsv|txt|parquet|arrow|gz|zst|xz|bz2|zip)$", dataset)
    return bool(re.fullmatch(pattern, dataset)) and not is_file


def metric_title(name: str, average: str | None = None) -> str:
    """`macro F1`, `accuracy`."""
    return " ".join(filter(None, [average, _NAMES.get(name, name.replace("_", " "))]))
