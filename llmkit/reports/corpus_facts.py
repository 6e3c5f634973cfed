"""What the report on a corpus and its datasheet tell: read from the result of `preprocess`, worded for no format."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.corpus.documents import shards
from llmkit.corpus.quality.rules import rules_of
from llmkit.corpus.readers import SET_ASIDE
from llmkit.corpus.settings import PreprocessConfig
from llmkit.corpus.statistics import COLUMNS, Statistics
from llmkit.errors import DataError
from llmkit.reports import words

STATISTICS = "statistics.json"
SIGNALS = "signals"
MAX_SIGNAL_ROWS = 200_000
"""Documents whose signals are drawn."""
LEAST_READ = 50
"""Of a language or source with fewer documents read, the share that was kept is no finding."""
BINS = 40

LANGUAGES = {
    "en": "English",
    "zh": "Chinese",
    "zh-hans": "Chinese, simplified",
    "zh-hant": "Chinese, traditional",
    "fr": "French",
    "de": "German",
    "es": "Spanish",
    "ja": "Japanese",
    "ru": "Russian",
    "ar": "Arabic",
    "pt": "Portuguese",
    "it": "Italian",
    "ko": "Korean",
    "hi": "Hindi",
    "tr": "Turkish",
}


@dataclass
class Row:
    """Something that documents were counted by, with its amounts."""

    name: str
    documents: int
    bytes: int
    characters: int
    words: int
    removed_documents: int
    removed_bytes: int

    @property
    def read(self) -> int:
        return self.documents + self.removed_documents

    @property
    def kept_share(self) -> float | None:
        return self.documents / self.read if self.read else None


@dataclass
class Distribution:
    """A signal over the documents, with the thresholds of the rules that judge by it."""

    signal: str
    counts: list[int]
    low: float
    high: float
    thresholds: list[tuple[float, str]]
    n: int
    is_cut: bool
    """Whether the last bin holds all that is above."""
    is_log: bool
    """Whether the bins are equally wide in the logarithm; the first then holds all below 1."""


@dataclass
class Corpus:
    """All that is told."""

    metrics: dict[str, Any]
    settings: dict[str, Any]
    statistics: Statistics
    distributions: list[Distribution]
    signal_rows: int
    """Documents of which the distributions are."""

    def rows(self, group: str) -> list[Row]:
        """The largest first."""
        found = [Row(name, *amounts) for name, amounts in self.statistics.groups[group].totals().items()]
        return sorted(found, key=lambda row: (-row.bytes, -row.removed_bytes, row.name))

    def known(self, group: str) -> list[Row]:
        """Those with a name and kept documents."""
        return [row for row in self.rows(group) if row.name and row.documents]

    def total(self) -> Row:
        rows = self.rows("split")
        return Row("", *(sum(getattr(row, column) for row in rows) for column in COLUMNS))

    def rules(self) -> list[tuple[str, int, int]]:
        """Each rule with the documents and bytes that it removed, the most first."""
        found = [(rule, count, size) for rule, (count, size) in self.statistics.rules.totals().items()]
        return sorted(found, key=lambda item: (-item[1], item[0]))

    def set_aside(self) -> int:
        """Rows that by what they are can be no document, such as requests and images in a web archive."""
        return sum(count for rule, count, _ in self.rules() if rule in SET_ASIDE)

    def is_sampled(self, group: str) -> int:
        """Counted is one document in this many."""
        return 2 ** self.statistics.groups[group].level


def gather(directory: Path, metrics: Mapping[str, Any], settings: Mapping[str, Any]) -> Corpus:
    """Read what `preprocess` has written.

    Raises:
        DataError: there is no `statistics.json`, or one of another format.
    """
    path = directory / STATISTICS
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        statistics = Statistics.from_json(values)
    except (OSError, ValueError, KeyError, TypeError) as failure:
        raise DataError(f"{path} has no statistics of a corpus ({failure!r}); run `llmkit preprocess` again") from None
    distributions, rows = _distributions(directory, settings)
    return Corpus(dict(metrics) or values.get("metrics", {}), _lasting(settings), statistics, distributions, rows)


def _lasting(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that can change the result; the number of workers, say, cannot, and must not change the page."""
    passing = {field.name for field in dataclasses.fields(PreprocessConfig) if not field.metadata.get("identity", True)}
    return {name: value for name, value in settings.items() if name not in passing}


def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def effective(sizes: Sequence[int]) -> float:
    """How many equally large ones would be as diverse: exp of the entropy of the shares (Jost 2006, Oikos 113:2)."""
    total = sum(sizes)
    return math.exp(-sum(size / total * math.log(size / total) for size in sizes if size)) if total else 0.0


def language(code: str) -> str:
    return f"{LANGUAGES[code]} ({code})" if code in LANGUAGES else code


# --------------------------------------------------------------------------------------------------------------------
# Signals


def _distributions(directory: Path, settings: Mapping[str, Any]) -> tuple[list[Distribution], int]:
    """The signals that rules judge by, of as many documents of each file as there is room for."""
    import pyarrow.parquet

    files, rules = shards(directory, SIGNALS), _rules(settings)
    if not files or not rules:
        return [], 0
    there = set(pyarrow.parquet.read_schema(files[0]).names)
    names = [name for name in dict.fromkeys(rule.signal for rule in rules) if name in there]
    tables = []
    for path in files:
        with pyarrow.parquet.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=max(1, MAX_SIGNAL_ROWS // len(files)), columns=names)
            tables += [next(batches)] if file.metadata.num_rows else []
    table = pyarrow.Table.from_batches(tables)
    found = []
    for name in names:
        values = table[name].to_numpy().astype(np.float64)
        bounds = [(rule.threshold, _bound(rule)) for rule in rules if rule.signal == name]
        values = values[np.isfinite(values)]
        if len(values):
            found.append(_distribution(name, values, sorted(set(bounds))))
    return found, table.num_rows


def _rules(settings: Mapping[str, Any]) -> list[Any]:
    """The quality rules that judged."""
    if not settings.get("filters"):
        return []
    return list(rules_of(settings["filters"], settings.get("thresholds") or {}, settings.get("words", "unicode-run-1")))


def _bound(rule: Any) -> str:
    """The bound in words, with a place for the threshold."""
    return f"at {rule.bound} {{}}" + (" (unspaced)" if rule.script == "unspaced" else "")


def _distribution(name: str, values: np.ndarray, bounds: list[tuple[float, str]]) -> Distribution:
    thresholds = [(threshold, bound.format(f"{threshold:,g}")) for threshold, bound in bounds]
    low, high = min(0.0, float(values.min())), float(np.quantile(values, 0.99))
    is_log = low >= 0 and high > 100 and high > 20 * np.median(values)
    if is_log:
        low, high = 1.0, max([float(values.max()), *(2 * threshold for threshold, _ in bounds)])
        counts, _ = np.histogram(np.log10(np.maximum(values, 1)), bins=BINS, range=(0, math.log10(high)))
    else:
        high = max([high, *(1.1 * threshold for threshold, _ in bounds if threshold <= 3 * high)]) or 1.0
        counts, _ = np.histogram(np.minimum(values, high), bins=BINS, range=(low, high))
    is_cut = bool(values.max() > high)
    return Distribution(name, counts.tolist(), low, high, thresholds, len(values), is_cut, is_log)


# --------------------------------------------------------------------------------------------------------------------
# In words


def verdict(corpus: Corpus) -> str:
    """What came of what, in one sentence or two."""
    total = corpus.total()
    read = corpus.metrics.get("read", total.read)
    sources, languages = corpus.known("source"), corpus.known("language")
    aside = corpus.set_aside()
    rows = f"Of {words.count(read, 'document')} read"
    if aside:
        rows = (
            f"Of {read:,} rows read, {aside:,} hold no document (requests, images, redirects); of the other {read - aside:,}"
        )
    text = (
        f"{rows}, {total.documents:,} were kept ({words.percent(share(total.documents, read - aside))}): "
        f"{words.size(total.bytes)} of text, {words.count(total.words, 'word')}, from {words.count(len(sources), 'source')}"
    )
    if languages:
        first = languages[0]
        text += f"; {words.percent(share(first.bytes, total.bytes))} of the text is {language(first.name)}"
    return text + "."


def notices(corpus: Corpus) -> Iterator[str]:
    metrics, total = corpus.metrics, corpus.total()
    if {"read", "kept", "rejected", "merged"} <= metrics.keys():
        counted = metrics["kept"] + metrics["rejected"] + metrics["merged"]
        if counted != metrics["read"]:
            yield f"{metrics['read']:,} documents were read, but {counted:,} are accounted for: this is a fault of llmkit."
    bad = metrics.get("bad_rows", 0)
    if bad:
        yield f"{words.count(bad, 'row')} could not be read as a document; they stand among the rejects as “bad row”."
    if total.documents and not any(row.name == "validation" and row.documents for row in corpus.rows("split")):
        yield "There is no validation split: no loss on held-out text can be measured."
    refused = sum(row.documents for row in corpus.known("opt_out") if row.name.lower() not in ("false", "no", "0"))
    if refused:
        carry = f"{words.count(refused, 'kept document')} {'carries' if refused == 1 else 'carry'} an opt-out"
        yield f"{carry} in the metadata; this stage does not act on it."


def representativeness(corpus: Corpus) -> Iterator[str]:
    """Who is in the corpus and who is not, as far as numbers tell; a sentence each."""
    total = corpus.total()
    for group, title in (("language", "language"), ("source", "source"), ("domain", "domain")):
        yield from _concentration(corpus, group, title)
    yield from _years(corpus)
    letters = {kind: count for kind, count in corpus.statistics.characters.items() if kind not in _NO_LETTERS}
    if letters:
        kind, count = max(letters.items(), key=lambda item: (item[1], item[0]))
        others, held = len(letters) - 1, share(count, sum(letters.values()))
        rest = f"; the rest is of {words.count(others, 'other script')}" if others else ""
        yield f"{'Nearly all' if 0.9995 <= held < 1 else f'{words.percent(held)} of all'} letters are {kind}{rest}."
    for group, title in (("language", "language"), ("source", "source")):
        yield from _uneven(corpus, group, title)
    unknown = sum(row.documents for row in corpus.rows("license") if not row.name)
    if unknown == total.documents:
        yield "No document says under which license it may be used."
    elif unknown:
        yield f"No license is known of {words.percent(share(unknown, total.documents))} of the documents."
    yield (
        "Nothing is recorded about who wrote the texts: age, gender, region and dialect cannot be read off these numbers, and "
        "people who write little in public are missing from any collection of public text."
    )


_NO_LETTERS = (
    "digits",
    "punctuation and symbols",
    "white space",
    "control and unassigned characters",
    "other letters and marks",
)


def _concentration(corpus: Corpus, group: str, title: str) -> Iterator[str]:
    rows = corpus.known(group)
    whole = sum(row.bytes for row in corpus.rows(group))
    if not rows:
        yield f"The {title} of the documents was not recorded."
        return
    first = rows[0]
    name = language(first.name) if group == "language" else first.name
    largest = f"The largest {title}, {words.fit(name, 60)}, holds {words.percent(share(first.bytes, whole))} of the text"
    unknown = share(sum(row.bytes for row in corpus.rows(group) if not row.name), whole)
    if len(rows) == 1:
        text = f"{largest}, and is the only one"
    else:
        text = (
            f"{largest}; the {len(rows):,} {title}s are as diverse as {effective([row.bytes for row in rows]):.1f} of equal "
            f"size (exp of the entropy of their shares of bytes)"
        )
    yield text + (f"; of {words.percent(unknown)} of the text it is not known." if unknown else ".")


def _years(corpus: Corpus) -> Iterator[str]:
    rows, total = sorted(corpus.known("year"), key=lambda row: row.name), corpus.total()
    if not rows:
        yield "No document has a date: how old the texts are is not known."
        return
    dated = sum(row.documents for row in rows)
    every = sum(row.documents for row in corpus.rows("year"))
    seen = 0
    for row in rows:
        seen += row.documents
        if seen * 2 >= dated:
            break
    missing = share(every - dated, every) if total.documents else 0.0
    yield f"Half of the dated documents are from {row.name} or before; {words.percent(missing)} have no date."


def _uneven(corpus: Corpus, group: str, title: str) -> Iterator[str]:
    rows = [row for row in corpus.rows(group) if row.name and row.read >= LEAST_READ]
    if len(rows) < 2:
        return
    shares = sorted((share(row.documents, row.read), row.name, row.read) for row in rows)
    (least, lost, n), (most, won, m) = shares[0], shares[-1]
    if most - least < 0.02:
        return
    named = [words.fit(language(name) if group == "language" else name, 60) for name in (lost, won)]
    yield (
        f"The rules do not treat all {title}s alike: {words.percent(least)} of {words.count(n, 'document')} of {named[0]} "
        f"were kept, and {words.percent(most)} of {m:,} of {named[1]}."
    )


def replaced(corpus: Corpus) -> str:
    """What became of the personal data that was found."""
    return "; replaced by placeholders such as [EMAIL]" if corpus.settings.get("pii") == "replace" else ""


def limits(corpus: Corpus) -> Iterator[str]:
    yield "What a rule removed is not thereby bad, and what was kept is not thereby good: look at the examples."
    if corpus.known("language"):
        yield "Languages were identified by a model or given by the source; short and mixed texts are often wrong."
    else:
        yield "The language of the documents was not identified; `identify_language: true` does so."
    if corpus.statistics.pii or corpus.settings.get("pii", "keep") != "keep":
        yield "Personal data was looked for by patterns: names and addresses in running text are not found by these."
    else:
        yield "Personal data was not looked for; `pii: replace` does so."
    yield (
        "Words are runs of letters and digits, and of scripts without spaces between words (Han, kana, Thai) single "
        "characters: word counts of such languages cannot be compared with those of others."
    )
    yield "Toxic, false or illegal content was not looked for."
