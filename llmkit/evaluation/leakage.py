"""Test examples that the model has met: the n-grams they share with its pretraining corpus and its fine-tuning examples.

What the model has met is found from its lineage: the `finetune` result, the base model that it was made from, the token shards
that one was trained on, and the documents these were made from. Where the documents are gone, the shards are decoded.

A part of an example is looked for by itself. Of a question, the question counts. Its context, and the answer with the words
beside it there, are only counted: a passage of an encyclopedia in a corpus gives away no answer by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.corpus import documents as corpora
from llmkit.corpus.overlap import LEAST, Match, N, Overlap
from llmkit.corpus.words import WORD
from llmkit.errors import LLMKitError
from llmkit.evaluation.intervals import wilson
from llmkit.pipeline.artefact import Artefact, InputRecord, Manifest, enclosing
from llmkit.tokens.shards import TokenStream

if TYPE_CHECKING:
    from llmkit.evaluation.sections import Evaluated

LISTED = 200
"""Contaminated examples that are listed; the column `contaminated` of predictions.parquet marks all."""
SHARED = ("context", "answer")
"""The parts of an example that may be shared."""

MOSTLY = 0.5
"""The share of a document's n-grams from which on it counts as met."""

_DECODED_AT_ONCE = 1000  # documents
_SPLITS = {"train": "pretraining", "validation": "pretraining validation"}


@dataclass
class Source:
    """Texts that a model has met."""

    name: str
    detail: str
    documents: Callable[[], Iterator[tuple[str, str]]]
    """The id and the text of each."""


@dataclass
class Unknown:
    """Texts that a model has met and that cannot be had."""

    name: str
    unknown: str
    """Why."""


_NOT_OURS = Unknown("pretraining", "the model is not a result of llmkit, so what it was trained on is not known")


def section(evaluated: Evaluated) -> dict[str, Any] | None:
    """The examples that share an n-gram with what the model has met, by source, and the metrics with and without them."""
    if not evaluated.config.leakage:
        return None
    parts = [parts_of(evaluated.task.name, example) for example in evaluated.test]
    found, contaminated = search([example.id for example in evaluated.test], parts, _sources(evaluated))
    if contaminated is not None:
        evaluated.columns["contaminated"] = contaminated.tolist()
        found["metrics"] = _metrics(evaluated, contaminated)
    return found


def of_documents(model: str, documents: Iterable[tuple[str, str]]) -> tuple[dict[str, Any], np.ndarray | None]:
    """The documents that a language model was pretrained on: those of which `MOSTLY` is found, as a long text easily shares a
    quotation or a notice with a large corpus. Its validation documents, which it may well be measured on, are not looked at.

    Args:
        documents: the id and the text of each, as much of it as is to be looked for.

    Returns:
        As `search`.
    """
    artefact = _artefact(model)
    sources = pretraining(artefact) if artefact else iter([_NOT_OURS])
    ids, texts = zip(*documents, strict=True)
    trained_on = (source for source in sources if source.name != _SPLITS["validation"])
    return search(ids, [{"text": text} for text in texts], trained_on, MOSTLY)


def search(
    ids: Sequence[str], parts: list[dict[str, str]], sources: Iterable[Source | Unknown], least_share: float = 0.0
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Look for examples in what a model has met.

    Args:
        ids: of the examples.
        parts: of each, the texts that are looked for; see `parts_of`.
        least_share: the share of a text's n-grams that has to be found for it to count.

    Returns:
        What was found, as JSON has it, and which examples are contaminated, bool of shape [examples]; None where nothing that
        the model has met could be read.
    """
    texts = list(dict.fromkeys(text for found in parts for text in found.values()))
    overlap = Overlap(texts)
    searched = dict(zip(texts, overlap.searched.tolist(), strict=True))
    told: list[dict[str, Any]] = []
    listed: list[dict[str, Any]] = []
    contaminated = np.zeros(len(parts), dtype=bool)
    for source in sources:
        if isinstance(source, Unknown):
            told.append({"name": source.name, "unknown": source.unknown})
            continue
        matches = {texts[match.text]: match for match in overlap.search(source.documents()) if match.share >= least_share}
        found = [list(_matched(item, matches)) for item in parts]
        contaminated |= np.array([bool(those) for those in found])
        told.append({"name": source.name, "detail": source.detail, **_counts(parts, matches, found)})
        for name, those in zip(ids, found, strict=True):
            for part, match in those:
                row = {"id": name, "source": source.name, "part": part, "share": match.share}
                listed.append({**row, "found_in": match.found_in, "n_gram": match.gram})
    known = [source for source in told if "unknown" not in source]
    result: dict[str, Any] = {
        "n_gram": N,
        "least_words": LEAST,
        "least_share": least_share,
        "too_short": sum(not any(searched[text] for part, text in item.items() if part not in SHARED) for item in parts),
        "sources": told,
        "complete": len(known) == len(told),
    }
    if not known:
        return result, None
    return result | {
        "contaminated": {"examples": int(contaminated.sum()), "share": float(contaminated.mean())},
        "examples": sorted(listed, key=lambda row: -row["share"])[:LISTED],
        "not_listed": max(0, len(listed) - LISTED),
    }, contaminated


def warning(found: dict[str, Any]) -> str | None:
    """What a search has found, in a line for a terminal; None where it is nothing."""
    count = found.get("contaminated", {}).get("examples", 0)
    if not count:
        return None
    where = ", ".join(f"{source['name']} {source['examples']}" for source in found["sources"] if source.get("examples"))
    if found.get("least_share"):
        return f"  warning: {count} documents stand by half at least in what was trained on: {where}"
    return f"  warning: {count} test examples share a run of words with what was trained on: {where}"


def _matched(parts: dict[str, str], matches: dict[str, Match]) -> Iterator[tuple[str, Match]]:
    """The parts of an example that make it contaminated."""
    yield from ((part, matches[text]) for part, text in parts.items() if part not in SHARED and text in matches)


def _counts(parts: list[dict[str, str]], matches: dict[str, Match], found: list[list[tuple[str, Match]]]) -> dict[str, Any]:
    """How many examples are contaminated, how many of them by half at least, and how often each part was found."""
    count, n = sum(map(bool, found)), len(found)
    low, high = wilson(count, n)
    mostly = sum(any(match.share >= MOSTLY for _, match in those) for those in found)
    names = dict.fromkeys(part for item in parts for part in item)
    by_part = {name: sum(item.get(name) in matches for item in parts) for name in names}
    return {"examples": count, "share": count / n, "low": low, "high": high, "mostly": mostly, "parts": by_part}


def _metrics(evaluated: Evaluated, contaminated: np.ndarray) -> dict[str, list[dict[str, Any]]]:
    """The first metrics of all examples, of those that are not contaminated, and of those that are."""
    found = {"all": evaluated.measured.headline}
    if contaminated.any():
        found |= {
            name: evaluated.measure(chosen).headline
            for name, chosen in (("without", ~contaminated), ("contaminated", contaminated))
            if chosen.any()
        }
    return {name: [metric.as_dict() for metric in metrics] for name, metrics in found.items()}


# --------------------------------------------------------------------------------------------------------------------
# What is looked for


def parts_of(task: str, example: Any) -> dict[str, str]:
    """The texts of an example that are looked for, by what they are; of a conversation the last turns."""
    if task == "question-answering":
        found = {"question": example.question, "answer": _around_answer(example), "context": example.context}
    elif task == "multiple-choice":
        found = {"question": example.question, "question and answer": f"{example.question} {example.target()}"}
    elif task == "translation":
        found = {"source": example.source, "translation": example.translation}
    elif task == "text-generation":
        found = {"prompt": example.last_message(), "completion": example.completion}
    elif task == "text-classification":
        found = {"text": example.text, "second text": example.text_pair or ""}
    else:
        found = {"text": example.input()}
    return {part: text for part, text in found.items() if text}


def _around_answer(example: Any) -> str:
    """The first answer with the words beside it, an n-gram at least, as far as the context goes."""
    if not example.answers:
        return ""
    text, start = example.answers[0]
    spans = [match.span() for match in WORD.finditer(example.context)]
    inside = [index for index, (first, last) in enumerate(spans) if last > start and first < start + len(text)]
    if not inside:
        return ""
    begin = max(0, min(inside[0] - max(0, N - len(inside)) // 2, len(spans) - N))
    end = min(len(spans), max(begin + N, inside[-1] + 1))
    return str(example.context[spans[begin][0] : spans[end - 1][1]])


# --------------------------------------------------------------------------------------------------------------------
# Where it is looked for


def _sources(evaluated: Evaluated) -> Iterator[Source | Unknown]:
    model = evaluated.finetuned or _artefact(evaluated.config.model_name_or_path)
    if model is None:
        yield _NOT_OURS
    else:
        yield from pretraining(model)
    if evaluated.trained_on is None:
        if evaluated.finetuned is not None:
            yield Unknown("fine-tuning", "the examples that it was trained on cannot be had")
        return
    for name, examples in (
        ("fine-tuning", evaluated.trained_on.train),
        ("fine-tuning validation", evaluated.trained_on.validation),
    ):
        yield Source(name, f"{len(examples):,} examples", partial(_texts, evaluated.task.name, examples))


def _texts(task: str, examples: list[Any]) -> Iterator[tuple[str, str]]:
    for example in examples:
        yield from ((example.id, text) for part, text in parts_of(task, example).items() if part != "answer")


def _artefact(name: str) -> Artefact | None:
    return enclosing(Path(name)) if Path(name).exists() else None


def pretraining(model: Artefact) -> Iterator[Source | Unknown]:
    """The documents of every pretraining on the way back from a model.

    A model that began with random weights and was fine-tuned has none.
    """
    stage, config, inputs = model.manifest.stage, model.manifest.config, model.manifest.inputs
    if stage not in ("pretrain", "finetune", "ablate", "quantize"):
        yield Unknown("pretraining", f"{_name(model.manifest)} does not say what its model was trained on")
    for port in [name for name, record in inputs.items() if record.stage == "tokenize"]:
        tokens = model.input(port)
        if tokens is None:
            yield Unknown("pretraining", f"the token shards of {stage} are no longer there, or have changed since")
        else:
            yield from _documents(tokens, model)
    for port in ("model_name_or_path", "teacher"):
        if not config.get(port):
            continue
        earlier = model.input(port)
        if earlier is not None:
            if earlier.manifest.stage in ("finetune", "ablate"):
                yield Unknown("earlier fine-tuning", f"the examples of {_name(earlier.manifest)} were not looked at")
            yield from pretraining(earlier)
        elif port in inputs:
            yield Unknown("pretraining", f"{_name(inputs[port])} is no longer there, or has changed since")
        else:
            which = "the teacher" if port == "teacher" else "the base model"
            yield Unknown("pretraining", f"{which} is not a result of llmkit, so what it was pretrained on is not known")


def _documents(tokens: Artefact, model: Artefact) -> Iterator[Source | Unknown]:
    """The documents that token shards were made from, split by split."""
    corpus = tokens.input("corpus")
    if corpus is not None and corpus.damaged():
        corpus = None
    for split, name in _SPLITS.items():
        if corpus is not None:
            count = corpora.count(corpus.directory, split)
            if count:
                detail = f"{_counted(count)} of {_name(corpus.manifest)}"
                yield Source(name, detail, partial(_read, corpus, split))
            continue
        try:
            stream = TokenStream(tokens.directory, split, model.directory)
        except LLMKitError as failure:
            if split == "train":
                yield Unknown(name, f"the documents are no longer there, and the token shards cannot be read: {failure}")
            continue
        detail = f"{_counted(stream.documents)}, decoded from {_name(tokens.manifest)}"
        yield Source(name, detail, partial(_decoded, stream, model.directory))


def _name(record: Manifest | InputRecord) -> str:
    return f"{record.stage} {record.fingerprint[:12]}"


def _counted(documents: int) -> str:
    return f"{documents:,} document{'s' if documents != 1 else ''}"


def _read(corpus: Artefact, split: str) -> Iterator[tuple[str, str]]:
    from tqdm import tqdm

    with tqdm(total=corpora.count(corpus.directory, split), desc="leakage", unit="document", disable=None) as bar:
        for batch in corpora.read_batches(corpus.directory, split, ("id", "text")):
            yield from zip(batch.column("id").to_pylist(), batch.column("text").to_pylist(), strict=True)
            bar.update(batch.num_rows)


def _decoded(stream: TokenStream, tokenizer_directory: Path) -> Iterator[tuple[str, str]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    number = 0
    for starts, ends in stream.document_spans():
        for first in range(0, len(starts), _DECODED_AT_ONCE):
            spans = zip(starts[first : first + _DECODED_AT_ONCE], ends[first : first + _DECODED_AT_ONCE], strict=True)
            ids = [stream.read(int(start), int(end)).tolist() for start, end in spans]
            for text in tokenizer.batch_decode(ids, skip_special_tokens=True):
                number += 1
                yield f"document {number}", text
