"""The language of documents and of their paragraphs, by the model that travels in the wheel of py3langid.

The model is naive Bayes over byte n-grams that an automaton finds (Lui and Baldwin 2012, ACL). llmkit reads it as it is and
walks it in compiled code: the same labels as py3langid, several times as fast.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from llmkit.corpus.batch import Batch
from llmkit.corpus.chinese import script
from llmkit.corpus.words import HAN
from llmkit.errors import ConfigError, DataError

CODES = frozenset(
    """
    ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo fr fuv fy ga
    gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko ku ky la lb lg lij ln
    lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh se si sk sl sn so sq sr
    st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh zu zxx
    zh-hans zh-hant und
    """.split()  # noqa: SIM905 (a list would be a line a code)
)
"""What a document can be told to be in, by the model and by the script of Chinese."""

_HEAD, _MIDDLE = 1500, 500
"""Characters of a document that are read: of its start, and of its middle."""
_PARAGRAPH = 500
_LONG_ENOUGH, _LONG_ENOUGH_HAN = 100, 30
_SURE = 0.8
_UNSPACED = re.compile(f"[\u3040-\u30ff{HAN}]")
_COUNTED = 4 * (_HEAD + _MIDDLE) + 2  # how often an n-gram can be in what is read


class Languages:
    """The step that tells the language of each document, and rejects those of languages that are not kept.

    Codes are those of ISO 639-1, or of ISO 639-3 where it has none (`yue`, and `zxx` for what is no language); Chinese is
    `zh-hans` or `zh-hant`, and `und` what has nothing to go by.

    Args:
        keep: codes of the languages to keep, or their first part (`zh`); None: all.
        least: documents whose language has a lower probability are rejected, from 0 to 1.
        paragraphs: paragraphs (lines) of other languages are removed where they are long enough to tell, and the model is sure

    Metadata: `language` and `language_score`, its probability to four digits.

    Signals:
        language_score: the same probability.
        foreign_paragraphs: how many paragraphs were removed, where that is asked for.

    Raises:
        ConfigError: the probability is none, or no language is kept.
        DataError: py3langid or numba is not installed.
    """

    def __init__(self, keep: Sequence[str] | None = None, least: float = 0.0, paragraphs: bool = False):
        problems = [f"languages: least is a probability, and not {least}"] if not 0 <= least <= 1 else []
        if keep is not None and not keep:
            problems.append("languages: keep names no language; leave it out to keep all")
        if paragraphs and keep is None:
            problems.append("languages: paragraphs of other languages can be removed only where keep names some")
        if problems:
            raise ConfigError(problems)
        self.keep = None if keep is None else tuple(code.lower() for code in keep)
        self.least = least
        self.paragraphs = paragraphs

    def __call__(self, batch: Batch) -> None:
        self.measure(batch)
        self.judge(batch)
        if self.paragraphs:
            self.remove_paragraphs(batch)

    def measure(self, batch: Batch) -> None:
        """Set the metadata and the signal."""
        scores = np.full(len(batch), np.nan)
        for number in batch.kept():
            language, scores[number] = identify(sample(batch.texts[number]))
            batch.metadata[number].update(language=language, language_score=float(scores[number]))
        batch.signals["language_score"] = scores

    def judge(self, batch: Batch) -> None:
        """Reject by what was measured; texts are not read."""
        for number in batch.kept():
            language, score = batch.metadata[number]["language"], batch.metadata[number]["language_score"]
            if not self._is_kept(language):
                batch.reject(number, "language", f"{language} {score:.2f}")
            elif score < self.least:
                batch.reject(number, "language score", score)

    def remove_paragraphs(self, batch: Batch) -> None:
        """Remove those of languages that are not kept from the documents that are."""
        removed = np.full(len(batch), np.nan)
        for number in batch.kept():
            lines = batch.texts[number].split("\n")
            own = [line for line in lines if not self._is_foreign(line)]
            removed[number] = len(lines) - len(own)
            if len(own) < len(lines):
                batch.texts[number] = "\n".join(own).strip("\n")
        batch.signals["foreign_paragraphs"] = removed

    def _is_kept(self, language: str) -> bool:
        return self.keep is None or any(language == code or language.startswith(f"{code}-") for code in self.keep)

    def _is_foreign(self, line: str) -> bool:
        if len(line) < _LONG_ENOUGH_HAN or (len(line) < _LONG_ENOUGH and _mostly_spaced(line)):
            return False
        language, score = identify(line[:_PARAGRAPH])
        return score >= _SURE and not self._is_kept(language)


def sample(text: str) -> str:
    """What is read of a document: its start, and as much of its middle as tells whether it goes on like that."""
    if len(text) <= _HEAD + _MIDDLE:
        return text
    middle = max(_HEAD, (len(text) - _MIDDLE) // 2)
    return text[:_HEAD] + "\n" + text[middle : middle + _MIDDLE]


def identify(text: str) -> tuple[str, float]:
    """The language of a text and its probability, to four digits; of an empty text, `und` and 0.

    Raises:
        DataError: py3langid or numba is not installed.
    """
    # As py3langid prepares a text: capitals alone say little to a model of what is mostly small letters.
    prepared = unicodedata.normalize("NFC", text.lower() if text.isupper() else text).encode("utf-8", "surrogatepass")
    language, score = _model()(prepared)
    return (script(text) if language == "zh" else language), round(score, 4)


def _mostly_spaced(line: str) -> bool:
    """Whether less than half of a line is Han characters or kana."""
    return 2 * len(_UNSPACED.findall(line)) < len(line)


@cache
def _model() -> Callable[[bytes], tuple[str, float]]:
    """From the bytes of a text to its most probable language and the probability."""
    try:
        import numba
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise DataError(f'language identification needs {error.name}: pip install "llmkit[corpus]"') from error
    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    moves, rows = np.asarray(model.tk_nextmove), np.asarray(model.tk_row, dtype=np.int32)
    outputs, weights = np.asarray(model.tk_output, dtype=np.int32), np.asarray(model.nb_ptc, dtype=np.float32)
    counts, seen = np.zeros(len(weights), dtype=np.int32), np.zeros(len(weights), dtype=np.int32)
    logarithms = np.log1p(np.arange(_COUNTED, dtype=np.float32))
    add = numba.njit(cache=True)(_add_scores)

    def classify(data: bytes) -> tuple[str, float]:
        scores = model.nb_pc.astype(np.float32)
        read = np.frombuffer(data, dtype=np.uint8)
        if not add(moves, rows, outputs, weights, logarithms, read, counts, seen, scores):
            return "und", 0.0
        # Divided by the root of the length, the probabilities of texts of any length are calibrated, as py3langid says.
        scores = scores.astype(np.float64) / math.sqrt(len(data))
        likely = np.exp(scores - scores.max())
        likely /= likely.sum()
        for first, again in model._alias_pairs:  # two columns of one language that has two scripts
            likely[first] += likely[again]
            likely[again] = 0
        best = int(likely.argmax())
        return model.nb_classes[best], float(likely[best])

    return classify


def _add_scores(
    moves: np.ndarray,
    rows: np.ndarray,
    outputs: np.ndarray,
    weights: np.ndarray,
    logarithms: np.ndarray,
    data: np.ndarray,
    counts: np.ndarray,
    seen: np.ndarray,
    scores: np.ndarray,
) -> int:
    """Add what the n-grams of a text say to the scores of the languages; how many different ones there are.

    Args:
        moves, rows, outputs: the automaton: next states (256 a row), the row of each state, and its n-gram or -1.
        weights: float32 of shape [n-grams, languages].
        logarithms: of one plus each count.
        data: the text, uint8.
        counts, seen: room to count in, int32 of shape [n-grams]; the counts are 0 before and after.
        scores: float32 of shape [languages].
    """
    state, different = 0, 0
    for byte in data:
        state = moves[(rows[state] << 8) + byte]
        gram = outputs[state]
        if gram >= 0:
            if counts[gram] == 0:
                seen[different] = gram
                different += 1
            counts[gram] += 1
    for place in range(different):
        gram = seen[place]
        weight = logarithms[min(counts[gram], len(logarithms) - 1)]
        counts[gram] = 0
        for language in range(len(scores)):
            scores[language] += weight * weights[gram, language]
    return different
