"""How fast llmkit's quality filters are beside datatrove's, on the same texts, and whether both say the same.

    python benchmarks/corpus_filters.py --python ~/venv/bin/python --documents texts.jsonl

`--python` is the interpreter of an environment with datatrove[processing] and spacy; texts are the field `text` of each line.
Both sides are processes of their own, one after the other, round after round, every second round in the opposite order. Each
holds the texts in memory, warms up on a few, and times from there to verdicts by the processor time of its one thread: the
four filters in FineWeb's order, and each alone. datatrove stops at the first rule that a document fails; llmkit measures all
signals of all.

llmkit is timed with its own definition of words. A run of it with spaCy's words is compared with datatrove: whether each
document stays, and which filter removes it otherwise. tests/corpus/test_quality_datatrove.py compares rule by rule.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain import working_directory
from rounds import alternating, give, plain, take

FILTERS = ("gopher_repetition", "gopher_quality", "c4", "fineweb")
JOBS = {"all four": FILTERS, **{name: (name,) for name in FILTERS}}


def main() -> int:
    """Measure, and print a line for each job."""
    arguments = parse()
    if arguments.side:
        run_side(json.loads(Path(arguments.side[0]).read_text(encoding="utf-8")), arguments.side[1])
        return 0
    runs: dict[str, list[dict[str, Any]]] = {"llmkit": [], "datatrove": []}
    with working_directory(None) as place:
        case = {**plain(arguments), "documents": str(arguments.documents.resolve()), "place": str(place)}
        case |= {"device": "cpu", "threads": 1}
        for number, side in alternating(list(runs), arguments.rounds):
            python = arguments.python if side == "datatrove" else sys.executable
            runs[side].append(take(python, __file__, case, side))
            told = ", ".join(f"{job} {rate:.2f}" for job, rate in runs[side][-1]["rates"].items())
            print(f"round {number + 1}: {side}, MB/s: {told}", file=sys.stderr)
        same = take(sys.executable, __file__, case, "llmkit-spacy")["reasons"]
    ours, theirs = runs["llmkit"][0], runs["datatrove"][0]
    print(f"{ours['documents']} documents, {ours['megabytes']:.1f} MB; {theirs['version']}; {os.cpu_count()} cores, one used")
    for job in JOBS:
        ratios = [one["rates"][job] / other["rates"][job] for one, other in zip(*runs.values(), strict=True)]
        rates = [statistics.median(run["rates"][job] for run in both) for both in runs.values()]
        differ = sum(a != b for a, b in zip(same[job], theirs["reasons"][job], strict=True))
        agree = statistics.mean((not a) == (not b) for a, b in zip(ours["reasons"][job], theirs["reasons"][job], strict=True))
        print(
            f"{job}: {statistics.median(ratios):.0f} times datatrove's MB/s ({min(ratios):.0f} to {max(ratios):.0f}): "
            f"{rates[0]:.1f} and {rates[1]:.2f}; other verdicts with spaCy's words: {differ}, kept or not as there with "
            f"llmkit's: {agree:.1%}"
        )
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--python", default=sys.executable, help="interpreter with datatrove and spacy")
    parser.add_argument("--documents", type=Path, help="JSONL with a field `text`")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side (default 3)")
    parser.add_argument("--max_documents", type=int, default=1000, help="documents (default 1000)")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side is None and arguments.documents is None:
        parser.error("--documents is needed")
    return arguments


def run_side(case: dict[str, Any], side: str) -> None:
    """What the process of a side does."""
    with Path(case["documents"]).open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for _, line in zip(range(case["max_documents"]), file, strict=False)]
    judge, version = SIDES[side]()
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    rates, reasons = {}, {}
    for job, filters in JOBS.items():
        judge(texts[:5], filters)
        started = time.process_time()
        reasons[job] = judge(texts, filters)
        rates[job] = megabytes / (time.process_time() - started)
    give({"rates": rates, "reasons": reasons, "documents": len(texts), "megabytes": megabytes, "version": version})


# ----------------------------------------------------------------------------------------------------------------------
# The sides: a function from texts and filters to the reason why each goes, "" where it stays; and a version.

Judging = Callable[[list[str], tuple[str, ...]], list[str]]


def llmkit(words: str = "unicode-run-1") -> tuple[Judging, str]:
    from llmkit.corpus.batch import Batch
    from llmkit.corpus.quality.step import Quality

    def judge(texts: list[str], filters: tuple[str, ...]) -> list[str]:
        batch = Batch(list(texts), [""] * len(texts), [""] * len(texts), [{} for _ in texts])
        quality = Quality(filters, words=words)
        quality(batch)
        quality.judge(batch)
        return [rule.partition(".")[0] for rule in batch.rules]

    return judge, "llmkit"


def datatrove() -> tuple[Judging, str]:
    from importlib.metadata import version

    from datatrove.data import Document
    from datatrove.pipeline import filters as peers
    from datatrove.utils.text import split_into_parts

    blocks = {
        "gopher_repetition": peers.GopherRepetitionFilter(),
        "gopher_quality": peers.GopherQualityFilter(),
        "c4": peers.C4QualityFilter(),
        "fineweb": peers.FineWebQualityFilter(),
    }

    def judge(texts: list[str], filters: tuple[str, ...]) -> list[str]:
        split_into_parts.cache_clear()
        found = []
        for text in texts:
            document = Document(text=text, id="")
            found.append(next((name for name in filters if blocks[name].filter(document) is not True), ""))
        return found

    return judge, f"datatrove {version('datatrove')}, spaCy {version('spacy')}"


SIDES: dict[str, Callable[[], tuple[Judging, str]]] = {
    "llmkit": llmkit,
    "llmkit-spacy": lambda: llmkit("spacy"),
    "datatrove": datatrove,
}


if __name__ == "__main__":
    sys.exit(main())
