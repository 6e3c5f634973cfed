"""The text of web pages: how exactly each extractor finds it, and how fast.

    python benchmarks/extraction.py --pages /work/shared/data/html-articles

The pages are news and blog articles whose text was marked by hand (scrapinghub/article-extraction-benchmark, MIT). Measured
as there: precision and recall of 4-grams of words, their mean over pages, and the F1 of the two means. Speed is the MB of
HTML in a second of processor time, the median of alternating rounds on one thread.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from llmkit.corpus.extract import extract
from llmkit.errors import LLMKitError

Grams = Counter[tuple[str, ...]]

_N = 4


@dataclass
class Page:
    """A page, and the text that it should give."""

    html: str
    grams: Grams


@dataclass
class Result:
    """What one extractor did."""

    precision: float
    recall: float
    seconds: list[float] = field(default_factory=list)

    @property
    def f1(self) -> float:
        return 2 * self.precision * self.recall / (self.precision + self.recall)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pages", type=Path, required=True, help="a directory with ground-truth.json and html/<id>.html.gz")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    pages = read_pages(arguments.pages)
    size = sum(len(page.html.encode()) for page in pages) / 1e6
    results: dict[str, Result] = {}
    for name, extractor in extractors().items():
        try:
            results[name] = judge([extractor(page.html) for page in pages], pages)
        except (LLMKitError, ImportError) as failure:
            print(f"{name}: left out: {failure}", file=sys.stderr)
    for number in range(arguments.rounds):
        for name in results if number % 2 == 0 else reversed(results):
            results[name].seconds.append(seconds(extractors()[name], pages))
    print(f"{len(pages)} pages, {size:.1f} MB; {versions()}")
    print("| | precision | recall | F1 | MB/s of processor time | lowest to highest |\n|---|---|---|---|---|---|")
    for name, result in results.items():
        speeds = sorted(size / taken for taken in result.seconds)
        print(
            f"| {name} | {result.precision:.3f} | {result.recall:.3f} | {result.f1:.3f} | "
            f"{statistics.median(speeds):.1f} | {speeds[0]:.1f} to {speeds[-1]:.1f} |"
        )
    return 0


def extractors() -> dict[str, Callable[[str], str]]:
    return {
        "llmkit, resiliparse": lambda html: extract(html, "resiliparse").text,
        "llmkit, trafilatura": lambda html: extract(html, "trafilatura").text,
        "llmkit, plain": lambda html: extract(html, "plain").text,
        "resiliparse alone, main content": _resiliparse,
    }


def _resiliparse(html: str) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    text: str = extract_plain_text(html, main_content=True, alt_texts=False)
    return text


def read_pages(directory: Path) -> list[Page]:
    truth = json.loads((directory / "ground-truth.json").read_text(encoding="utf-8"))
    pages = []
    for name, about in sorted(truth.items()):
        html = gzip.decompress((directory / "html" / f"{name}.html.gz").read_bytes()).decode("utf-8", "replace")
        pages.append(Page(html, grams(about["articleBody"])))
    return pages


def grams(text: str) -> Grams:
    words = re.findall(r"\w+", text)
    return Counter(tuple(words[at : at + _N]) for at in range(max(1, len(words) - _N + 1))) if words else Counter()


def judge(texts: list[str], pages: list[Page]) -> Result:
    precisions, recalls = [], []
    for text, page in zip(texts, pages, strict=True):
        found = grams(text)
        shared = sum((found & page.grams).values())
        if found:
            precisions.append(shared / sum(found.values()))
        if page.grams:
            recalls.append(shared / sum(page.grams.values()))
    return Result(statistics.mean(precisions), statistics.mean(recalls))


def seconds(extractor: Callable[[str], str], pages: list[Page]) -> float:
    start = time.process_time()
    for page in pages:
        extractor(page.html)
    return time.process_time() - start


def versions() -> str:
    found = []
    for name in ("resiliparse", "trafilatura"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join([*found, f"Python {platform.python_version()}"])


if __name__ == "__main__":
    sys.exit(main())
