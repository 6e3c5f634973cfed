"""The datasheet of a corpus, after Gebru et al. 2021, "Datasheets for Datasets" (CACM 64:12), as a dataset card.

What can be counted is filled in. What only a person can know stands there as a question to be answered.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from llmkit.reports import corpus_facts, words
from llmkit.reports.corpus_facts import Corpus, share
from llmkit.reports.markdown import items, pairs, safe, table

_SIZES = (10**3, 10**4, 10**5, 10**6, 10**7, 10**8, 10**9, 10**10, 10**11, 10**12)
_MAX_ROWS = 20
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


def write(corpus: Corpus) -> str:
    """The datasheet as Markdown, with the YAML front matter that the Hugging Face hub reads."""
    parts = ["# Dataset card for this corpus", safe(corpus_facts.verdict(corpus))]
    for title, section in _SECTIONS:
        parts += [f"## {title}", *section(corpus)]
    return f"---\n{_front_matter(corpus)}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(corpus: Corpus) -> str:
    import yaml

    codes = dict.fromkeys(row.name.split("-")[0] for row in corpus.known("language"))
    licenses = [row.name.lower() for row in corpus.rows("license") if row.documents]
    values: dict[str, Any] = {
        "language": [code for code in codes if re.fullmatch("[a-z]{2,3}", code)],
        "license": licenses if licenses and all(map(_LICENSE.fullmatch, licenses)) else [],
        "size_categories": [_size_category(corpus.total().documents)],
        "task_categories": ["text-generation"],
        "tags": ["llmkit"],
    }
    return yaml.safe_dump({name: value for name, value in values.items() if value}, sort_keys=False, allow_unicode=True)


def _size_category(documents: int) -> str:
    """As the hub names them."""
    names = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
    for place, size in enumerate(_SIZES):
        if documents < size:
            return f"n<{names[0]}" if not place else f"{names[place - 1]}<n<{names[place]}"
    return "n>1T"


def _ask(*questions: str) -> str:
    return items([f"not known: say it here: {question}" for question in questions])


def _motivation(corpus: Corpus) -> Iterator[str]:
    yield _ask(
        "for what purpose was the corpus made, and which gap was it to fill?",
        "who made it, and on whose behalf?",
        "who paid for it?",
    )


def _composition(corpus: Corpus) -> Iterator[str]:
    total, splits = corpus.total(), corpus.known("split")
    yield "Each instance is a document: its text, an id, its source, and metadata as JSON."
    rows = [[row.name, f"{row.documents:,}", words.size(row.bytes), f"{row.words:,}"] for row in splits]
    yield table(["Split", "Documents", "Text", "Words"], rows)
    for group, title in (("language", "Language"), ("source", "Source"), ("domain", "Domain"), ("year", "Year")):
        found = corpus.known(group)
        if found:
            yield f"### {title}s"
            rate = corpus.is_sampled(group)
            if rate > 1:
                yield f"Counted in a sample of one document in {rate:,}."
            rows = [
                [row.name, f"{row.documents:,}", words.size(row.bytes), words.percent(share(row.bytes, total.bytes))]
                for row in found[:_MAX_ROWS]
            ]
            yield table([title, "Documents", "Text", "Share"], rows)
            if len(found) > _MAX_ROWS:
                yield f"{len(found) - _MAX_ROWS:,} more stand in report.html."
    yield "### Who is missing"
    yield items(list(corpus_facts.representativeness(corpus)))
    yield "### Personal data"
    pii = corpus.statistics.pii
    if pii:
        yield f"Found by patterns in the documents{safe(corpus_facts.replaced(corpus))}:"
        yield pairs([(kind, f"found {count:,} times in {words.count(n, 'document')}") for kind, (count, n) in pii.items()])
    else:
        yield "It was not looked for, or none was found."
    yield _ask("can people be identified, directly or together with other data?", "is any of it offensive, or confidential?")


def _collection(corpus: Corpus) -> Iterator[str]:
    settings = corpus.settings
    named = ["train_file", "validation_file", "embedded_packages", "sources"]
    if settings.get("dataset_name"):
        named += ["dataset_name", "dataset_config_name", "dataset_split"]
    known = [(name, words.setting_of(settings[name])) for name in named if settings.get(name)]
    yield pairs(known, as_code=True) if known else "The inputs, with sizes and hashes, stand in manifest.json."
    if corpus.statistics.dates:
        yield f"The dates of the documents run from {safe(corpus.statistics.dates[0])} to {safe(corpus.statistics.dates[1])}."
    yield _opt_outs(corpus)
    yield _ask(
        "how were the texts acquired, by whom, and over what time?",
        "did the people who wrote them know of it, and agree?",
        "was there an ethical review?",
    )


def _opt_outs(corpus: Corpus) -> str:
    found = corpus.known("opt_out")
    if not found:
        return "No robots or opt-out field of the sources was recorded."
    return "Opt-out fields of the sources: " + ", ".join(f"{safe(row.name)}: {row.documents:,}" for row in found) + "."


def _preprocessing(corpus: Corpus) -> Iterator[str]:
    total, metrics = corpus.total(), corpus.metrics
    read, merged = metrics.get("read", total.read), metrics.get("merged", 0)
    rejected = metrics.get("rejected", total.removed_documents - merged)
    yield f"{read:,} documents were read: {total.documents:,} kept, {merged:,} merged, {rejected:,} rejected."
    rules = corpus.rules()
    if rules:
        rows = [[rule, f"{count:,}", words.percent(share(count, total.read)), words.size(size)] for rule, count, size in rules]
        yield table(["Rule", "Documents removed", "Of all read", "Text"], rows)
    yield "Removed documents are kept in the rejects table with the rule and what it saw. All settings:"
    yield pairs([(name, words.setting_of(value)) for name, value in corpus.settings.items()], as_code=True)


def _uses(corpus: Corpus) -> Iterator[str]:
    yield "Made for training language models. What these numbers do not show:"
    yield items(list(corpus_facts.limits(corpus)))
    yield _ask("what has it been used for?", "what should it not be used for?")


def _distribution(corpus: Corpus) -> Iterator[str]:
    total = corpus.total()
    rows = [
        [row.name or "not known", f"{row.documents:,}", words.percent(share(row.bytes, total.bytes))]
        for row in corpus.rows("license")[:_MAX_ROWS]
        if row.documents
    ]
    yield table(["License", "Documents", "Share of the text"], rows)
    yield _ask("is it passed on, to whom, and how?", "which licenses and terms hold for the corpus as a whole?")


def _maintenance(corpus: Corpus) -> Iterator[str]:
    yield "The command in manifest.json makes the same corpus again from the same inputs."
    yield _ask("who looks after it, and how are they reached?", "how can someone have their text taken out?")


_SECTIONS: Sequence[tuple[str, Any]] = (
    ("Motivation", _motivation),
    ("Composition", _composition),
    ("Collection process", _collection),
    ("Preprocessing, cleaning and labelling", _preprocessing),
    ("Uses", _uses),
    ("Distribution", _distribution),
    ("Maintenance", _maintenance),
)
