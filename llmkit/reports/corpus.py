"""The data report of `preprocess`: what a corpus is made of and what was removed, as a page and as a datasheet."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from markupsafe import Markup

from llmkit.corpus.preprocess import PreprocessConfig
from llmkit.pipeline.artefact import write_synced
from llmkit.reports import charts, corpus_facts, corpus_parts, datasheet, page, words
from llmkit.reports.corpus_charts import Columns, Part, column_chart, part_chart
from llmkit.reports.corpus_facts import Corpus, Row
from llmkit.reports.corpus_parts import MAX_BARS, of_whole, percentage
from llmkit.reports.origins import Table

REPORT, DATASHEET = "report.html", "datasheet.md"

# What the page shows at most.
MAX_ROWS = 100
SHORT = 12  # rows of a table that is not folded away

_TITLES = {"source": "source", "language": "language", "domain": "domain", "year": "year", "length": "length"}
_VERSIONS = ("llmkit", "numpy", "pyarrow", "fastwarc", "resiliparse", "trafilatura", "ftfy", "py3langid", "numba")


def write(directory: Path, settings: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Write `report.html` and `datasheet.md` into the result of `preprocess`.

    Raises:
        DataError: its `statistics.json` cannot be read.
    """
    corpus = corpus_facts.gather(directory, metrics, settings)
    write_synced(directory / REPORT, render(corpus))
    write_synced(directory / DATASHEET, datasheet.write(corpus))


def corpus_report(directory: Path, metrics: Mapping[str, Any], out: Path) -> None:
    """Write the page alone, of a result in a directory, to a file; without settings, thresholds are not drawn."""
    write_synced(out, render(corpus_facts.gather(directory, metrics, {})))


def render(corpus: Corpus) -> str:
    """The page as HTML; equal inputs give equal bytes."""
    told = SimpleNamespace(
        title="The corpus",
        verdict=corpus_facts.verdict(corpus),
        notices=list(corpus_facts.notices(corpus)),
        limits=list(corpus_facts.limits(corpus)),
    )
    context = {
        "told": told,
        "policy": page._POLICY,
        "chart_style": Markup(charts.STYLE),
        "curves": [],
        "account": _account(corpus),
        "representativeness": list(corpus_facts.representativeness(corpus)),
        "composition_charts": list(_composition_charts(corpus)),
        "compositions": list(_compositions(corpus)),
        "removed": [(rule, count, corpus.statistics.examples.of(rule)) for rule, count, _ in corpus.rules()],
        "removed_table": _removed(corpus),
        "distributions": [corpus_parts.drawn(found, number) for number, found in enumerate(corpus.distributions)],
        "signal_rows": corpus.signal_rows,
        "duplicates": corpus_parts.duplicates(corpus),
        "pii": corpus_parts.pii(corpus),
        "vocabulary": corpus_parts.vocabulary(corpus),
        "overlap": corpus_parts.overlap(corpus),
        "rights": list(_rights(corpus)),
        "chosen": _settings(corpus, chosen=True),
        "defaults": _settings(corpus, chosen=False),
        "versions": list(_versions()),
    }
    return page._environment().get_template("corpus.html.j2").render(**context)


# --------------------------------------------------------------------------------------------------------------------
# Accounting


def _account(corpus: Corpus) -> dict[str, Any]:
    total, metrics = corpus.total(), corpus.metrics
    read, merged = metrics.get("read", total.read), metrics.get("merged", 0)
    rejected = metrics.get("rejected", total.removed_documents - merged)
    parts = [
        Part("kept", total.documents, of_whole(total.documents, read), first=True),
        *([Part("merged into another document", merged, of_whole(merged, read))] if merged else []),
        Part("rejected by a rule", rejected, of_whole(rejected, read)),
    ]
    rows = [_amounts(row, total) for row in corpus.rows("split") if row.documents]
    return {
        "sentence": f"{read:,} read = {total.documents:,} kept + {merged:,} merged + {rejected:,} rejected.",
        "chart": part_chart(parts, key="account", title="What became of the documents"),
        "table": Table(["Split", *_HEAD[:-1]], [row[:-1] for row in rows], "What was kept, by split"),
    }


_HEAD = ["Documents", "Bytes", "Of the text", "Characters", "Words", "Kept of those read"]


def _amounts(row: Row, total: Row) -> list[str]:
    return [
        words.fit(row.name, 80) or "not known",
        f"{row.documents:,}",
        words.size(row.bytes),
        percentage(row.bytes, total.bytes),
        f"{row.characters:,}",
        f"{row.words:,}",
        words.percent(row.kept_share),
    ]


def _removed(corpus: Corpus) -> Table:
    total = corpus.total()
    read, size = total.read, total.bytes + total.removed_bytes
    rows = [
        [
            words.fit(rule, 80),
            f"{count:,}",
            percentage(count, read),
            words.size(taken),
            percentage(taken, size),
        ]
        for rule, count, taken in corpus.rules()
    ]
    head = ["Rule", "Documents", "Of all read", "Bytes", "Of all bytes"]
    return Table(head, rows, "What each rule removed; the first rule that removes a document is the one that counts")


# --------------------------------------------------------------------------------------------------------------------
# Composition


def _composition_charts(corpus: Corpus) -> Iterator[tuple[str, Markup]]:
    total = corpus.total()
    for group, title in (("language", "Languages"), ("source", "Sources"), ("domain", "Domains")):
        rows = corpus.known(group)
        parts = [
            Part(
                _named(group, row),
                row.bytes,
                f"{words.size(row.bytes)} ({percentage(row.bytes, total.bytes)})",
                not place,
            )
            for place, row in enumerate(rows[:MAX_BARS])
        ]
        rest = [row.bytes for row in rows[MAX_BARS:]]
        if rest:
            text = f"{words.size(sum(rest))} ({percentage(sum(rest), total.bytes)})"
            parts.append(Part(f"{len(rest):,} others", sum(rest), text))
        if parts:
            caption = f"{title} by bytes{_sample_note(corpus, group)}"
            yield caption, part_chart(parts, key=f"by-{group}", title=caption)
    yield from _by_year(corpus)
    yield from _by_length(corpus)


def _by_year(corpus: Corpus) -> Iterator[tuple[str, Markup]]:
    counts = {int(row.name): row.documents for row in corpus.known("year")}
    if len(counts) < 2:
        return
    first, last = min(counts), max(counts)
    earlier = sum(count for year, count in counts.items() if year < last - 59)
    first = max(first, last - 59)
    span = range(first, last + 1)
    ticks = [(year - first + 0.5, str(year)) for year in span if (last - year) % max(1, len(span) // 5) == 0]
    columns = Columns([counts.get(year, 0) for year in span], ticks)
    caption = "Documents by year" + (f"; {earlier:,} are from before {first}" if earlier else "")
    yield caption, column_chart(columns, key="by-year", title=caption)


def _by_length(corpus: Corpus) -> Iterator[tuple[str, Markup]]:
    counts = {int(row.name): row.documents for row in corpus.known("length")}
    if not counts:
        return
    first, last = min(counts), max(counts)
    ticks = [(number - first, f"{2**number:,}") for number in range(first, last + 2, max(1, (last - first) // 4))]
    columns = Columns([counts.get(number, 0) for number in range(first, last + 1)], ticks)
    caption = "Documents by length"
    yield caption, column_chart(columns, key="by-length", title=caption, x_label="characters, doubling from column to column")


def _compositions(corpus: Corpus) -> Iterator[tuple[str, Table, bool]]:
    total = corpus.total()
    for group, title in _TITLES.items():
        rows = [row for row in corpus.rows(group) if row.read]
        if group in ("year", "length"):
            rows.sort(key=lambda row: (not row.name, int(row.name or 0)))
        if not any(row.name for row in rows):
            continue
        shown = [_amounts(dataclasses.replace(row, name=_named(group, row)), total) for row in rows[:MAX_ROWS]]
        rest = rows[MAX_ROWS:]
        if rest:
            sums = (sum(getattr(row, name) for row in rest) for name in corpus_facts.COLUMNS)
            shown.append(_amounts(Row(f"{len(rest):,} others", *sums), total))
        caption = f"By {title}{_sample_note(corpus, group)}; bytes, characters and words are of what was kept"
        yield title, Table([title.capitalize(), *_HEAD], shown, caption), len(shown) <= SHORT


def _named(group: str, row: Row) -> str:
    if group == "language" and row.name:
        return corpus_facts.language(row.name)
    if group == "length" and row.name:
        return f"{2 ** int(row.name):,} to {2 ** (int(row.name) + 1) - 1:,} characters"
    return row.name or ("empty" if group == "length" else "")


def _sample_note(corpus: Corpus, group: str) -> str:
    rate = corpus.is_sampled(group)
    return f", of a sample of one document in {rate:,}" if rate > 1 else ""


# --------------------------------------------------------------------------------------------------------------------
# Licenses and settings


def _rights(corpus: Corpus) -> Iterator[Table]:
    total = corpus.total()
    titles = (
        ("license", "License", "Licenses as the sources state them"),
        ("opt_out", "Opt-out", "What robots and opt-out fields of the sources say"),
    )
    for group, head, caption in titles:
        if not corpus.known(group):
            continue
        rows = [row for row in corpus.rows(group) if row.documents]
        shown = [_amounts(row, total)[:4] for row in rows[:MAX_ROWS]]
        yield Table([head, *_HEAD[:3]], shown, f"{caption}, of the kept documents")


def _settings(corpus: Corpus, chosen: bool) -> list[tuple[str, str]]:
    """The settings that differ from their defaults, or the others."""
    defaults = vars(PreprocessConfig())
    return [
        (name, words.setting_of(value))
        for name, value in corpus.settings.items()
        if (name not in defaults or value != defaults[name]) == chosen
    ]


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for name in _VERSIONS:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
