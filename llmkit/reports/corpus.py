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

from llmkit.pipeline.artefact import write_synced
from llmkit.reports import charts, corpus_facts, datasheet, page, words
from llmkit.reports.charts import Series
from llmkit.reports.corpus_charts import Columns, Part, column_chart, part_chart
from llmkit.reports.corpus_facts import BINS, Corpus, Distribution, Row, share
from llmkit.reports.origins import Table

REPORT, DATASHEET = "report.html", "datasheet.md"

# What the page shows at most.
MAX_ROWS = 100
MAX_BARS = 8
MAX_COMPARED = 12
SHORT = 12  # rows of a table that is not folded away

_TITLES = {"source": "source", "language": "language", "domain": "domain", "year": "year", "length": "length"}
_VERSIONS = ("llmkit", "numpy", "pyarrow", "fastwarc", "resiliparse", "trafilatura", "ftfy", "py3langid", "numba")
_FOOTER = "All facts of this page stand in report.json beside it."


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
        "distributions": [_drawn(found, number) for number, found in enumerate(corpus.distributions)],
        "signal_rows": corpus.signal_rows,
        "duplicates": _duplicates(corpus),
        "pii": _pii(corpus),
        "vocabulary": _vocabulary(corpus),
        "overlap": _overlap(corpus),
        "rights": list(_rights(corpus)),
        "chosen": _settings(corpus, chosen=True),
        "defaults": _settings(corpus, chosen=False),
        "versions": list(_versions()),
    }
    html = page._environment().get_template("corpus.html.j2").render(**context)
    return html.replace(_FOOTER, "All figures of this page stand in statistics.json beside it.")


# --------------------------------------------------------------------------------------------------------------------
# Accounting


def _account(corpus: Corpus) -> dict[str, Any]:
    total, metrics = corpus.total(), corpus.metrics
    read, merged = metrics.get("read", total.read), metrics.get("merged", 0)
    rejected = metrics.get("rejected", total.removed_documents - merged)
    parts = [
        Part("kept", total.documents, _of(total.documents, read), first=True),
        *([Part("merged: the text stands in another document", merged, _of(merged, read))] if merged else []),
        Part("rejected by a rule", rejected, _of(rejected, read)),
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
        words.percent(share(row.bytes, total.bytes)),
        f"{row.characters:,}",
        f"{row.words:,}",
        words.percent(row.kept_share),
    ]


def _of(part: int, whole: int) -> str:
    return f"{part:,} ({words.percent(share(part, whole))})"


def _removed(corpus: Corpus) -> Table:
    total = corpus.total()
    read, size = total.read, total.bytes + total.removed_bytes
    rows = [
        [words.fit(rule, 80), f"{count:,}", words.percent(share(count, read)), words.size(taken), words.percent(share(taken, size))]
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
            Part(_named(group, row), row.bytes, f"{words.size(row.bytes)} ({words.percent(share(row.bytes, total.bytes))})", not place)
            for place, row in enumerate(rows[:MAX_BARS])
        ]
        rest = [row.bytes for row in rows[MAX_BARS:]]
        if rest:
            text = f"{words.size(sum(rest))} ({words.percent(share(sum(rest), total.bytes))})"
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
    first = max(first, last - 59)
    span = range(first, last + 1)
    ticks = [(year - first + 0.5, str(year)) for year in span if (last - year) % max(1, len(span) // 5) == 0]
    columns = Columns([counts.get(year, 0) for year in span], ticks)
    yield "Documents by year", column_chart(columns, key="by-year", title="Documents by year")


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
    return row.name


def _sample_note(corpus: Corpus, group: str) -> str:
    rate = corpus.is_sampled(group)
    return f", of a sample of one document in {rate:,}" if rate > 1 else ""


# --------------------------------------------------------------------------------------------------------------------
# Signals and duplicates


def _drawn(found: Distribution, number: int) -> tuple[str, Markup, str]:
    def place(value: float) -> float:
        return (value - found.low) / (found.high - found.low) * BINS

    ticks = [(place(tick), charts._tick(tick)) for tick in charts._ticks(found.low, found.high, 4) if tick <= found.high]
    inside = [(place(value), text) for value, text in found.thresholds if found.low <= value <= found.high]
    outside = [text for value, text in found.thresholds if not found.low <= value <= found.high]
    caption = found.signal.replace("_", " ").capitalize()
    chart = column_chart(Columns(found.counts, ticks, inside), key=f"signal-{number}", title=f"{caption} of documents")
    notes = [f"The threshold {words.listing(outside)} lies beyond the edge."] if outside else []
    notes += ["The last column holds all above it."] if found.is_cut else []
    return f"{caption} ({found.n:,} documents)", chart, " ".join(notes)


def _duplicates(corpus: Corpus) -> dict[str, Any]:
    found = corpus.metrics.get("duplicates")
    values = dict(found) if isinstance(found, Mapping) else {}
    curve, sample, clusters = (values.pop(name, None) for name in ("curve", "sample", "clusters"))
    drawn = Markup("")
    if curve:
        line = Series("found", [(float(x), float(y)) for x, y in curve])
        title = "Probability that a pair of documents is compared, by its similarity"
        drawn = charts.share_chart([line], key="collisions", title=title, x_label="Jaccard similarity", y_label="probability")
    return {
        "numbers": list(words.flatten(values)),
        "curve": drawn,
        "sample": _sampled(sample) if isinstance(sample, Mapping) else "",
        "clusters": _clusters(clusters) if isinstance(clusters, Mapping) else "",
    }


def _sampled(sample: Mapping[str, Any]) -> str:
    """Recall and precision, as far as they are there."""
    named = [
        f"{name} {words.percent(sample[name])}" for name in ("recall", "precision") if words.finite(sample.get(name)) is not None
    ]
    others = [f"{name} {text}" for name, text in words.flatten(sample) if name not in ("recall", "precision")]
    return f"Against the exact Jaccard similarity on a sample: {words.listing(named)} ({', '.join(others)})." if named else ""


def _clusters(clusters: Mapping[str, int]) -> Markup:
    sizes = sorted((int(size), int(count)) for size, count in clusters.items())
    parts = [Part(f"{size:,} documents", count, words.count(count, "time")) for size, count in sizes[:MAX_BARS]]
    more = sum(count for _, count in sizes[MAX_BARS:])
    parts += [Part("more", more, words.count(more, "time"))] if more else []
    return part_chart(parts, key="clusters", title="Clusters of duplicates by size")


def _pii(corpus: Corpus) -> Table | None:
    documents = corpus.total().documents
    rows = [
        [kind.replace("_", " "), f"{count:,}", _of(holders, documents)]
        for kind, (count, holders) in sorted(corpus.statistics.pii.items(), key=lambda item: (-item[1][0], item[0]))
    ]
    caption = "Personal data found by patterns in documents that were kept"
    return Table(["Type", "Found", "Documents with it"], rows, caption) if rows else None


# --------------------------------------------------------------------------------------------------------------------
# Vocabulary, overlap and rights


def _vocabulary(corpus: Corpus) -> dict[str, Any] | None:
    vocabulary = corpus.statistics.vocabulary
    growth, usage, heaps = vocabulary.growth(), vocabulary.usage(), vocabulary.heaps()
    if usage is None:
        return None
    read, kinds = growth[-1]
    sentences = [
        f"{words.count(read, 'word')}, {'about ' if kinds > 1000 else ''}{words.count(kinds, 'different one')}. Words are compared "
        f"without letter case; the count of different ones is an estimate with a standard error of 3.1% where it is above 1,000."
    ]
    if heaps:
        factor, power = heaps
        sentences.append(
            f"Their number grows as {factor:,.3g} × words^{power:.3f} (Heaps' law, by least squares): with twice as much text "
            f"there would be {2**power:.2f} times as many."
        )
    of = "all words" if not usage.level else f"a sample of one passage of 1,000 words in {2**usage.level:,}"
    sentences.append(
        f"Unigram entropy: {usage.entropy:.2f} bits a word; type-token ratio: {usage.kinds / usage.words:.4f} "
        f"({usage.kinds:,} different ones among {words.count(usage.words, 'word')}: {of})."
    )
    lines = [Series("different words", [(0.0, 0.0), *((float(x), float(y)) for x, y in growth)])]
    characters = corpus.statistics.characters
    total = sum(characters.values())
    parts = [
        Part(kind, count, _share_of(count, total))
        for kind, count in sorted(characters.items(), key=lambda item: (-item[1], item[0]))[:MAX_BARS]
    ]
    return {
        "sentences": sentences,
        "growth": charts.line_chart(lines, key="growth", title="Different words against words read", x_label="words", from_zero=True),
        "scripts": part_chart(parts, key="scripts", title="Characters by script and class"),
    }


def _share_of(part: int, whole: int) -> str:
    found = share(part, whole)
    return f"{part:,} (below 0.1%)" if 0 < found < 0.001 else _of(part, whole)


def _overlap(corpus: Corpus) -> dict[str, Any] | None:
    overlap = corpus.statistics.overlap
    there = set(overlap.names())
    names = [row.name for row in corpus.known("source") if row.name in there][:MAX_COMPARED]
    if len(names) < 2:
        return None
    rows, highest = [], (0.0, "", "")
    for number, name in enumerate(names):
        cells = [f"{number + 1}. {words.fit(name, 40)}"]
        for other in names:
            found = None if other == name else overlap.share(name, other)
            cells.append(words.MISSING if found is None else words.percent(found[0]))
            if found and found[0] > highest[0]:
                highest = found[0], name, other
        rows.append(cells)
    head = ["Of the source", *(f"in {number + 1}" for number in range(len(names)))]
    sentence = "No two sources share a run of five words, as far as the samples tell."
    if highest[0]:
        sentence = (
            f"The most that a source shares with another is {words.percent(highest[0])}: of the different runs of five words of "
            f"{words.fit(highest[1], 60)}, that share also stands in {words.fit(highest[2], 60)}."
        )
    return {
        "sentence": sentence,
        "table": Table(head, rows, "Share of the different runs of five words of a source (row) that stand in another (column)"),
        "note": f"Of the {len(names)} largest sources compared; estimated from the runs with the smallest hashes, at most 4,096 of "
        f"each source, so that a share has a standard error of up to 5 points where 100 could be compared, and 0.8 where 4,096 "
        f"could. Where fewer than 100 could be, as with a far larger source, nothing is said ({words.MISSING}).",
    }


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


# --------------------------------------------------------------------------------------------------------------------
# Settings


def _settings(corpus: Corpus, chosen: bool) -> list[tuple[str, str]]:
    """The settings that differ from their defaults, or the others."""
    from llmkit.corpus.preprocess import PreprocessConfig

    fields = {field.name: field for field in dataclasses.fields(PreprocessConfig)}
    found = []
    for name, value in corpus.settings.items():
        field = fields.get(name)
        has_factory = field is not None and field.default_factory is not dataclasses.MISSING
        default = field.default_factory() if field and has_factory else field.default if field else dataclasses.MISSING
        if (value != default) == chosen:
            found.append((name, words.setting_of(value)))
    return found


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for name in _VERSIONS:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
