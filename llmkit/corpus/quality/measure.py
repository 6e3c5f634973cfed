"""Texts to signals: bytes for the compiled pass, and what comes out of it by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from llmkit.corpus.quality import lines as c4
from llmkit.corpus.quality.characters import classes
from llmkit.corpus.quality.lines import LineRules
from llmkit.corpus.quality.signals import SIGNALS
from llmkit.corpus.quality.words import DEFINITIONS, spacy_sentences, spans
from llmkit.errors import DataError

SETS = ("gopher_repetition", "gopher_quality", "c4", "fineweb")

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
"""Rae et al. 2021, section A.1.1."""

UNSPACED_STOP_WORDS = tuple("的一是不了在人有我他这這个個们們中来來上大为為和国國地到以说說") + tuple("のにはをたがでてとも")
"""The most frequent characters of modern Chinese, in both scripts, and the particles of Japanese."""


@dataclass
class Measured:
    """What was measured of some documents.

    Attributes:
        signals: by name, float64 of shape [documents]; NaN where one does not apply.
        texts: what C4's line rules leave of each; None without them.
    """

    signals: dict[str, np.ndarray]
    texts: list[str] | None


@dataclass
class Packed:
    """Documents as the compiled pass reads them: their bytes together, uint8, and offsets, int64 of shape [documents + 1]."""

    data: np.ndarray
    offsets: np.ndarray

    def __post_init__(self) -> None:
        self.data.setflags(write=False)  # always, since the pass is compiled once more for what can be written to

    def text(self, number: int) -> str:
        return self.data[self.offsets[number] : self.offsets[number + 1]].tobytes().decode("utf-8", "surrogatepass")

    def __len__(self) -> int:
        return len(self.offsets) - 1


def measure(
    texts: Any, words: str = "unicode-run-1", filters: Sequence[str] = SETS, lines: LineRules | None = None
) -> dict[str, np.ndarray]:
    """The signals of documents, by name: float64 of shape [documents], NaN where one does not apply.

    What stands in `filters` after c4 is measured of the lines that C4 leaves.

    Args:
        texts: strings, or an Arrow array of them, which is read where it lies. Nulls are empty texts.
        words: what a word is (`llmkit.corpus.quality.words`).
        filters: the sets of rules whose signals are wanted, in their order.
        lines: what C4 removes.

    Raises:
        DataError: numba, or spaCy for its words, is not installed.
    """
    return measure_packed(packed(texts), words, filters, lines or LineRules()).signals


def packed(texts: Any) -> Packed:
    """Texts as one buffer."""
    if hasattr(texts, "combine_chunks") or hasattr(texts, "buffers"):
        return _from_arrow(texts)
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum([len(one) for one in encoded], out=offsets[1:])
    return Packed(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets)


def _from_arrow(array: Any) -> Packed:
    import pyarrow as pa

    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        array = array.cast(pa.large_string())
    if array.null_count:
        array = array.fill_null("")
    kind = np.int64 if pa.types.is_large_string(array.type) else np.int32
    _, ends, data = array.buffers()
    offsets = np.frombuffer(ends, dtype=kind)[array.offset : array.offset + len(array) + 1] if len(array) else np.zeros(1)
    return Packed(np.frombuffer(data or b"", dtype=np.uint8), offsets.astype(np.int64))


def measure_packed(documents: Packed, words: str, filters: Sequence[str], lines: LineRules) -> Measured:
    """As `measure`, with the texts that C4 leaves."""
    count, scripts = len(documents), np.full(len(documents), -1, dtype=np.int8)
    before = list(filters).index("c4") if "c4" in filters else len(filters)
    signals, texts = _run(documents, words, filters[:before], scripts), None
    if before < len(filters):
        documents, found = _cleaned(documents, scripts, lines)
        texts = [documents.text(number) for number in range(count)]
        signals.update(zip(_kernel().CLEAN_COLUMNS, found.T, strict=True))
        if words == "spacy":
            kept = zip(texts, signals["kept_lines"], strict=True)
            signals["sentences"] = np.array([_spacy_count(text, int(number)) for text, number in kept], dtype=np.float64)
        if filters[before + 1 :]:  # what is measured of every text is that of the whole one
            signals = _run(documents, words, filters[before + 1 :], scripts) | signals
    return Measured({name: signals[name] for name in SIGNALS if name in signals}, texts)


def _spacy_count(text: str, kept_lines: int) -> int:
    return sum(spacy_sentences(line) for line in text.split("\n")) if kept_lines else 0


def _run(documents: Packed, words: str, filters: Sequence[str], scripts: np.ndarray) -> dict[str, np.ndarray]:
    """One compiled pass: the signals of filters other than c4, and those of every text."""
    kernel = _kernel()
    found, offsets = np.zeros((0, 2), dtype=np.int64), np.zeros(1, dtype=np.int64)
    if words == "spacy" and filters:
        texts = [documents.text(number) for number in range(len(documents))]
        found, offsets = spans(texts, [text.encode("utf-8", "surrogatepass") for text in texts])
        found += documents.offsets[0]
    groups = {"gopher_repetition": kernel.REPETITION, "gopher_quality": kernel.QUALITY, "fineweb": kernel.LINES}
    wanted, by = sum(groups[name] for name in filters), DEFINITIONS.index(words)
    out = np.full((len(documents), len(kernel.COLUMNS)), np.nan)
    kernel.measure(documents.data, documents.offsets, classes(), _stops(), by, found, offsets, wanted, scripts, out)
    columns = zip(kernel.COLUMNS, out.T, strict=True)
    return {name: column.copy() for name, column in columns if SIGNALS[name].group in ("", *filters)}


def _cleaned(documents: Packed, scripts: np.ndarray, lines: LineRules) -> tuple[Packed, np.ndarray]:
    kernel = _kernel()
    limits = np.array([-1 if value is None else value for value in _limits(lines)], dtype=np.float64)
    kept = np.empty(len(documents.data), dtype=np.uint8)
    offsets, out = np.zeros_like(documents.offsets), np.zeros((len(documents), len(kernel.CLEAN_COLUMNS)))
    kernel.clean(documents.data, documents.offsets, classes(), scripts, limits, *_phrases(), kept, offsets, out)
    return Packed(kept, offsets), out


def _limits(lines: LineRules) -> list[float | None]:
    """The line rules as the compiled pass takes them: those without a threshold are 1 where they are on."""
    switches = [None if getattr(lines, name) is None else 1 for name in c4.FIXED]
    return [lines.line_min_words, lines.line_unspaced_min_words, lines.line_max_word_length, *switches]


@cache
def _phrases() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What lines may mention: the bytes, padded, their lengths, what each means, and where each first byte begins."""
    kernel = _kernel()
    named = [(c4.LOREM, kernel.LOREM), (c4.JAVASCRIPT, kernel.JAVASCRIPT), (c4.CURLY, kernel.CURLY)]
    named += [(phrase, kernel.POLICY) for phrase in c4.POLICIES]
    named += [(phrase, kernel.UNSPACED_POLICY) for phrase in c4.UNSPACED_POLICIES]
    encoded = sorted((phrase.encode(), meaning) for phrase, meaning in named)
    lengths = np.array([len(phrase) for phrase, _ in encoded], dtype=np.int64)
    padded = np.zeros((len(encoded), lengths.max()), dtype=np.uint8)
    for number, (phrase, _) in enumerate(encoded):
        padded[number, : len(phrase)] = list(phrase)
    firsts = np.searchsorted(padded[:, 0], np.arange(257)).astype(np.int64)
    return padded, lengths, np.array([meaning for _, meaning in encoded], dtype=np.int64), firsts


@cache
def _stops() -> np.ndarray:
    """The stop words as the compiled pass looks them up."""
    table = np.zeros((256, 2), dtype=np.uint64)
    base, modulus = int(_kernel().BASE), 1 << 64
    for number, word in enumerate(STOP_WORDS + UNSPACED_STOP_WORDS):
        value = 0
        for char in word:
            value = (value * base + ord(char) + 1) % modulus
        slot = value >> 56
        while table[slot, 1]:
            slot = (slot + 1) & 255
        table[slot] = value, 1 << number
    return table


def _kernel() -> Any:
    try:
        from llmkit.corpus.quality import kernel
    except ImportError as error:
        raise DataError('Quality filters need numba: pip install "llmkit[corpus]"') from error
    return kernel
