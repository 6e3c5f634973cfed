"""How well a tokenizer fits a corpus: compression, words and Han characters, vocabulary use, round trips."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from llmkit.corpus.documents import read_batches

# CJK Unified Ideographs with extensions A to I and the compatibility block (Unicode 15.1, Scripts.txt: Han).
HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
_SOURCES_LISTED = 20
_CHARACTERS_SAMPLED = 4000  # of each document, where words and Han characters are counted
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")


def report(tokenizer: PreTrainedTokenizerFast, corpus: Path, documents: int) -> dict[str, Any]:
    """Measure a tokenizer on the first documents of each split of a corpus.

    Returns:
        `vocab_size`, and for each split, and in it for the `sources` with the most documents: `bytes_per_token`,
        `tokens_per_word` (text without Han characters), `tokens_per_han_character`, `round_trip_failures` (documents that
        decoding does not give back, up to NFC); for a split also `vocabulary_used` (share of the vocabulary that occurs).
    """
    splits: dict[str, Any] = {}
    for split in ("train", "validation"):
        total = _Tally()
        by_source: dict[str, _Tally] = {}
        used = np.zeros(len(tokenizer), dtype=bool)
        for source, text in _documents(corpus, split, documents):
            measured = _measure(tokenizer, text)
            used[measured.ids] = True
            for tally in (total, by_source.setdefault(source, _Tally())):
                tally.add(measured)
        if total.documents:
            largest = sorted(by_source.items(), key=lambda item: (-item[1].documents, item[0]))[:_SOURCES_LISTED]
            splits[split] = {
                **total.numbers(),
                "vocabulary_used": float(used.mean()),
                "sources": {name: tally.numbers() for name, tally in largest},
            }
    return {"vocab_size": len(tokenizer), "splits": splits}


def _documents(corpus: Path, split: str, limit: int) -> Iterator[tuple[str, str]]:
    seen = 0
    for batch in read_batches(corpus, split, columns=["source", "text"]):
        for source, text in zip(batch.column("source").to_pylist(), batch.column("text").to_pylist(), strict=True):
            if seen == limit:
                return
            seen += 1
            yield source, text


@dataclass
class _Measured:
    """One document."""

    ids: list[int]
    bytes: int
    failed: bool
    words: int
    word_tokens: int
    han: int
    han_tokens: int


def _measure(tokenizer: PreTrainedTokenizerFast, text: str) -> _Measured:
    """Words and Han characters are counted apart: in a text of both, one number would blur the two."""
    backend = tokenizer.backend_tokenizer
    ids = backend.encode(text, add_special_tokens=False).ids
    sample = text[:_CHARACTERS_SAMPLED]
    words = [" " + word for word in _WORD.findall(HAN.sub(" ", sample))]
    han = "".join(HAN.findall(sample))
    return _Measured(
        ids=ids,
        bytes=len(text.encode("utf-8")),
        failed=tokenizer.decode(ids) != unicodedata.normalize("NFC", text),
        words=len(words),
        word_tokens=sum(len(item.ids) for item in backend.encode_batch_fast(words, add_special_tokens=False)),
        han=len(han),
        han_tokens=len(backend.encode(han, add_special_tokens=False).ids) if han else 0,
    )


@dataclass
class _Tally:
    """Several documents."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    failures: int = 0
    words: int = 0
    word_tokens: int = 0
    han: int = 0
    han_tokens: int = 0

    def add(self, measured: _Measured) -> None:
        self.documents += 1
        self.bytes += measured.bytes
        self.tokens += len(measured.ids)
        self.failures += measured.failed
        self.words += measured.words
        self.word_tokens += measured.word_tokens
        self.han += measured.han
        self.han_tokens += measured.han_tokens

    def numbers(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "documents": self.documents,
            "bytes": self.bytes,
            "tokens": self.tokens,
            "bytes_per_token": self.bytes / max(1, self.tokens),
            "round_trip_failures": self.failures,
        }
        if self.words:
            values["tokens_per_word"] = self.word_tokens / self.words
        if self.han:
            values["tokens_per_han_character"] = self.han_tokens / self.han
        return values
