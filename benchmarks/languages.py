"""How well and how fast llmkit tells languages, beside py3langid itself and resiliparse's detector.

    python benchmarks/languages.py --declarations /work/shared/data/udhr

`--declarations` is a folder with one text per language, named as the Universal Declaration of Human Rights is in NLTK's data
(eng.txt, cmn_hans.txt, ...). Accuracy is the share of paragraphs of at least 100 characters (30 of Chinese and Japanese) that
get their language; llmkit has to tell simplified from traditional Chinese as well. Speed is in MB of UTF-8 a second of
processor time in one thread, the best of some rounds, over the paragraphs and over documents of 4,000 characters.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

from llmkit.corpus.languages import identify, sample

_CODES = {
    **{"arb": "ar", "cmn_hans": "zh-hans", "cmn_hant": "zh-hant", "deu_1901": "de", "eng": "en", "fra": "fr"},
    **{"hin": "hi", "jpn": "ja", "por_BR": "pt", "rus": "ru", "spa": "es", "tur": "tr"},
}
_UNSPACED = ("zh-hans", "zh-hant", "ja")
_DOCUMENT = 4000


def main() -> int:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--declarations", type=Path, required=True, help="a folder with one .txt file per language")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side, of which the best counts (default 3)")
    arguments = parser.parse_args()
    from py3langid.langid import MODEL_FILE, LanguageIdentifier
    from resiliparse.parse.lang import detect_fast

    peer = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    sides: dict[str, Callable[[str], str]] = {
        "llmkit": lambda text: identify(sample(text))[0],
        "py3langid": lambda text: peer.classify(text)[0],
        "resiliparse": lambda text: detect_fast(text)[0],
    }
    texts = {code: (arguments.declarations / f"{name}.txt").read_text(encoding="utf-8") for name, code in _CODES.items()}
    paragraphs = {code: long_lines(text, code) for code, text in texts.items()}
    print(f"| language | paragraphs | {' | '.join(sides)} |\n|{'---|' * (len(sides) + 2)}")
    for code, lines in paragraphs.items():
        shares = [accuracy(side, lines, code if name == "llmkit" else code[:2]) for name, side in sides.items()]
        print(f"| {code} | {len(lines)} | {' | '.join(f'{share:.1%}' for share in shares)} |")
    print(f"\n| MB/s | {' | '.join(sides)} |\n|{'---|' * (len(sides) + 1)}")
    for name, pieces in (
        ("paragraphs", [line for lines in paragraphs.values() for line in lines]),
        (
            "documents",
            [text[start : start + _DOCUMENT] for text in texts.values() for start in range(0, len(text), _DOCUMENT)],
        ),
    ):
        speeds = [max(speed(side, pieces) for _ in range(arguments.rounds)) for side in sides.values()]
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in speeds)} |")
    print(f"\nPython {platform.python_version()}, {platform.machine()}")
    return 0


def long_lines(text: str, code: str) -> list[str]:
    """The paragraphs that are long enough to tell."""
    least = 30 if code in _UNSPACED else 100
    return [line.strip() for line in text.split("\n") if len(line.strip()) >= least]


def accuracy(side: Callable[[str], str], lines: list[str], code: str) -> float:
    """The share of paragraphs that get their language."""
    return sum(side(line) == code for line in lines) / len(lines)


def speed(side: Callable[[str], str], texts: list[str]) -> float:
    """MB of UTF-8 a second of processor time."""
    size = sum(len(text.encode()) for text in texts) / 1e6
    start = time.process_time()
    for text in texts:
        side(text)
    return size / (time.process_time() - start)


if __name__ == "__main__":
    raise SystemExit(main())
