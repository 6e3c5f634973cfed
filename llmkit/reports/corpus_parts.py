"""The sections of the report on a corpus: signals, duplicates, personal data, vocabulary, overlap."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from llmkit.evaluation.intervals import wilson
from llmkit.reports import charts, corpus_facts, words
from llmkit.reports.charts import Mark, Series
from llmkit.reports.corpus_charts import Columns, Part, column_chart, part_chart
from llmkit.reports.corpus_facts import BINS, Corpus, Distribution, share
from llmkit.reports.origins import Table

MAX_BARS = 8
MAX_COMPARED = 12


def of_whole(part: int, whole: int) -> str:
    return f"{part:,} ({percentage(part, whole)})"


def percentage(part: float, whole: float) -> str:
    """A share that says nothing of none where there is a little."""
    found = share(part, whole)
    return "< 0.1%" if 0 < found < 0.0005 else words.percent(found)


def drawn(found: Distribution, number: int) -> tuple[str, Markup, str]:
    def place(value: float) -> float:
        low, high, at = (math.log10(x) if found.is_log else x for x in (found.low, found.high, value))
        return (at - low) / (high - low) * BINS

    if found.is_log:
        every = [10.0**power for power in range(math.ceil(math.log10(found.high)))]
    else:
        every = [tick for tick in charts._ticks(found.low, found.high, 4) if tick <= found.high]
    inside = [(place(value), text) for value, text in found.thresholds if found.low <= value <= found.high]
    outside = [text for value, text in found.thresholds if not found.low <= value <= found.high]
    caption = found.signal.replace("_", " ").capitalize()
    columns = Columns(found.counts, [(place(tick), charts._tick(tick)) for tick in every], inside)
    chart = column_chart(
        columns,
        key=f"signal-{number}",
        title=f"{caption} of documents",
        x_label="log scale" if found.is_log else "",
    )
    notes = [f"Beyond the edge: {words.listing(outside)}."] if outside else []
    notes += ["The last column holds all above it."] if found.is_cut else []
    return f"{caption} ({found.n:,} documents)", chart, " ".join(notes)


def duplicates(corpus: Corpus) -> dict[str, Any]:
    found = corpus.metrics.get("duplicates")
    values = dict(found) if isinstance(found, Mapping) else {}
    curve, sample, clusters = (values.pop(name, None) for name in ("curve", "sample", "clusters"))
    if not curve and corpus.settings.get("near_duplicates"):
        curve = _collisions(corpus.settings["minhash_bands"], corpus.settings["minhash_rows"])
    drawn = Markup("")
    if curve:
        points = [point.values() if isinstance(point, Mapping) else point for point in curve]
        drawn = charts.share_chart(
            [Series("by the bands and rows", [(float(x), float(y)) for x, y in points])],
            key="collisions",
            title="Probability that a pair of documents is found, by its similarity",
            x_label="Jaccard similarity",
            y_label="probability",
            marks=list(_observed(sample)),
        )
    return {
        "numbers": list(words.flatten(values)),
        "curve": drawn,
        "sample": _sampled(sample) if isinstance(sample, Mapping) else "",
        "clusters": _clusters(clusters) if isinstance(clusters, Mapping) else "",
    }


def _collisions(bands: int, rows: int) -> list[tuple[float, float]]:
    """How probably two documents have a band of their signatures in common (Leskovec et al. 2020, section 3.4.2)."""
    return [(place / 50, 1 - (1 - (place / 50) ** rows) ** bands) for place in range(51)]


def _observed(sample: Any) -> Iterator[Mark]:
    """The share of pairs of a sample that were found, by tenths of similarity."""
    tenths = sample.get("by_jaccard", []) if isinstance(sample, Mapping) else []
    for tenth in tenths:
        if tenth["pairs"]:
            low, high = wilson(tenth["found"], tenth["pairs"])
            yield Mark(tenth["low"] + 0.05, tenth["found"] / tenth["pairs"], low, high)


def _sampled(sample: Mapping[str, Any]) -> str:
    """Recall and precision, as far as they are there."""
    values = {name: value for name, value in sample.items() if name != "by_jaccard"}
    named = [f"{name} {words.percent(values.pop(name))}" for name in ("recall", "precision") if words.finite(values.get(name))]
    others = ", ".join(f"{name} {text}" for name, text in words.flatten(values) if text != words.MISSING)
    text = f"Against the exact Jaccard similarity on a sample ({others}): {words.listing(named) or 'no pair is alike'}."
    text += " Pairs that were found are sought out for the sample, so what it says of recall is an upper bound."
    has_marks = any(tenth["pairs"] for tenth in sample.get("by_jaccard", []))
    marks = " The marks in the chart are its pairs by tenths of similarity, with Wilson's 95% intervals."
    return text + (marks if has_marks else "")


def _clusters(clusters: Mapping[str, int]) -> Markup:
    sizes = sorted((int(size), int(count)) for size, count in clusters.items())
    parts = [Part(f"{size:,} documents", count, words.count(count, "time")) for size, count in sizes[:MAX_BARS]]
    more = sum(count for _, count in sizes[MAX_BARS:])
    parts += [Part("more", more, words.count(more, "time"))] if more else []
    return part_chart(parts, key="clusters", title="Clusters of duplicates by size")


def pii(corpus: Corpus) -> Table | None:
    documents = corpus.total().documents
    rows = [
        [kind.replace("_", " "), f"{count:,}", of_whole(holders, documents)]
        for kind, (count, holders) in sorted(corpus.statistics.pii.items(), key=lambda item: (-item[1][0], item[0]))
    ]
    caption = "Personal data found by patterns in documents that were kept" + corpus_facts.replaced(corpus)
    return Table(["Type", "Found", "Documents with it"], rows, caption) if rows else None


# --------------------------------------------------------------------------------------------------------------------
# Vocabulary, overlap and rights


def vocabulary(corpus: Corpus) -> dict[str, Any] | None:
    vocabulary = corpus.statistics.vocabulary
    growth, usage, heaps = vocabulary.growth(), vocabulary.usage(), vocabulary.heaps()
    if usage is None:
        return None
    read, kinds = growth[-1]
    is_exact = not usage.level
    different = f"{usage.kinds:,}" if is_exact else _about(kinds)
    sentences = [
        f"{words.count(read, 'word')}, {different} different; words are compared without letter case. In the chart "
        f"{'' if is_exact else 'and here '}numbers of different words above 1,000 are estimates with a standard error of 3.1%."
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
        Part(kind, count, of_whole(count, total))
        for kind, count in sorted(characters.items(), key=lambda item: (-item[1], item[0]))[:MAX_BARS]
    ]
    return {
        "sentences": sentences,
        "growth": charts.line_chart(
            lines, key="growth", title="Different words against words read", x_label="words", from_zero=True
        ),
        "scripts": part_chart(parts, key="scripts", title="Characters by script and class"),
    }


def _about(number: int) -> str:
    """An estimate, with the digits that it has."""
    return f"about {int(float(f'{number:.3g}')):,}" if number > 1000 else f"{number:,}"


def overlap(corpus: Corpus) -> dict[str, Any] | None:
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
            cells.append(words.MISSING if found is None else percentage(found[0], 1))
            if found and found[0] > highest[0]:
                highest = found[0], name, other
        rows.append(cells)
    head = ["Of the source", *(f"in {number + 1}" for number in range(len(names)))]
    sentence = "No two sources share a run of five words, as far as the samples tell."
    if highest[0]:
        sentence = (
            f"The most that a source shares with another is {percentage(highest[0], 1)}: of the different runs of five words "
            f"of {words.fit(highest[1], 60)}, that share also stands in {words.fit(highest[2], 60)}."
        )
    return {
        "sentence": sentence,
        "table": Table(
            head, rows, "Share of the different runs of five words of a source (row) that stand in another (column)"
        ),
        "note": f"Of the {len(names)} largest sources compared; estimated from the runs with the smallest hashes, at most "
        f"4,096 of each source, so that a share has a standard error of up to 5 points where 100 could be compared, and 0.8 "
        f"where 4,096 could. Where fewer than 100 could be, as with a far larger source, nothing is said ({words.MISSING}).",
    }
