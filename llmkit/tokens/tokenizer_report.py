"""How well a tokenizer fits a corpus: compression, words and Han characters, vocabulary use, round trips."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from llmkit.corpus.documents import read_batches

# CJK Unified Ideographs with extensions A to I and the compatibility block (Unicode 15.1, Scripts.txt: Han).
HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")


def report(tokenizer: PreTrainedTokenizerFast, corpus: Path, documents: int) -> dict[str, Any]:
    """Measure a tokenizer on the first documents of each split of a corpus.

    Returns:
        `vocab_size`, and for each split and source: `bytes_per_token`, `tokens_per_word` (text without Han characters),
        `tokens_per_han_character`, `round_trip_failures` (documents that decoding does not give back, up to NFC),
        `vocabulary_used` (share of the vocabulary that occurs).
    """
    splits: dict[str, Any] = {}
    for split in ("train", "validation"):
        total, by_source = _Tally(len(tokenizer)), {}
        for source, text in _documents(corpus, split, documents):
            ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
            failed = tokenizer.decode(ids) != unicodedata.normalize("NFC", text)
            for tally in (total, by_source.setdefault(source, _Tally(len(tokenizer)))):
                tally.add(text, ids, failed)
            total.add_kinds(tokenizer, text)
        if total.documents:
            splits[split] = {**total.numbers(), "sources": {name: tally.numbers() for name, tally in by_source.items()}}
    return {"vocab_size": len(tokenizer), "splits": splits}


def _documents(corpus: Path, split: str, limit: int) -> Iterator[tuple[str, str]]:
    seen = 0
    for batch in read_batches(corpus, split, columns=["source", "text"]):
        for source, text in zip(batch.column("source").to_pylist(), batch.column("text").to_pylist(), strict=True):
            if seen == limit:
                return
            seen += 1
            yield source, text


class _Tally:
    def __init__(self, vocab_size: int):
        self.documents = self.bytes = self.tokens = self.failures = 0
        self.words = self.word_tokens = self.han = self.han_tokens = 0
        self.used = np.zeros(vocab_size, dtype=bool)

    def add(self, text: str, ids: list[int], failed: bool) -> None:
        self.documents += 1
        self.bytes += len(text.encode("utf-8"))
        self.tokens += len(ids)
        self.failures += failed
        self.used[ids] = True

    def add_kinds(self, tokenizer: PreTrainedTokenizerFast, text: str) -> None:
        """Words and Han characters are measured apart: a text of both would blur the two."""
        backend = tokenizer.backend_tokenizer
        words = [" " + word for word in _WORD.findall(HAN.sub(" ", text)[:4000])]
        han = "".join(HAN.findall(text[:4000]))
        self.words += len(words)
        self.word_tokens += sum(len(item.ids) for item in backend.encode_batch_fast(words, add_special_tokens=False))
        self.han += len(han)
        self.han_tokens += len(backend.encode(han, add_special_tokens=False).ids)

    def numbers(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "documents": self.documents,
            "bytes": self.bytes,
            "tokens": self.tokens,
            "bytes_per_token": self.bytes / max(1, self.tokens),
            "vocabulary_used": float(self.used.mean()),
            "round_trip_failures": self.failures,
        }
        if self.words:
            values["tokens_per_word"] = self.word_tokens / self.words
        if self.han:
            values["tokens_per_han_character"] = self.han_tokens / self.han
        return values
