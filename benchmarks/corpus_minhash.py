"""How fast llmkit finds near duplicates, beside datatrove, end to end, and how time and memory grow.

    python benchmarks/corpus_minhash.py --text wiki.train.tokens --python ~/datatrove/bin/python
    python benchmarks/corpus_minhash.py --text wiki.train.tokens --growth 10 100 1000

`--python` is the interpreter of an environment with `datatrove[processing]` and spaCy (which datatrove needs and does not ask
for). Documents are made of sentences of the text, drawn at random; one in ten is then an exact copy of an earlier one, and one
in seven a copy with some words replaced. Both sides read the same JSONL shards and do all there is to do: signatures (14 bands
of 8, 5-grams of words), buckets, components, and the documents that stay written, by llmkit as Parquet (zstd), by datatrove
as JSONL. Each run is a process of its own with one worker, round after round, every second round in the opposite order.
It goes once over ten documents first, and then is timed by the processor time of the process and its children.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

from pretrain import commit, working_directory
from rounds import alternating, give, take, version_elsewhere

_SHARD_BYTES = 16 << 20
_BATCH = 500
_GROWTH_BUCKET = 1 << 19
_SIDES = ("llmkit", "datatrove")


def main() -> int:
    """Measure, and print the table."""
    arguments = parse()
    if arguments.side is not None:
        run_side(*arguments.side[1:])
        return 0
    with working_directory(arguments.keep) as place:
        lines = growth(arguments, place) if arguments.growth else comparison(arguments, place)
    print("\n".join(lines))
    if arguments.log:
        versions = {name: version_elsewhere(arguments.python, name) for name in ("datatrove", "spacy")}
        told = ", ".join(f"{name} {version}" for name, version in versions.items() if version) or "none"
        command = shlex.join(["python", "benchmarks/corpus_minhash.py", *sys.argv[1:]])
        print(f"\n## {date.today().isoformat()}: near duplicates\n\n- llmkit: {commit()}; Python {platform.python_version()}")
        print(f"- peer: {told}\n- measured: `{command}`; load over 15 minutes {os.getloadavg()[2]:.1f}")
    return 0


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line, or other words in its place."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--text", type=Path, help="a text file, of whose sentences documents are made")
    parser.add_argument("--python", default=sys.executable, help="interpreter with datatrove[processing] and spacy")
    parser.add_argument("--megabytes", type=float, default=8, help="text that both sides get (default 8)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side (default 3)")
    parser.add_argument("--growth", type=float, nargs="+", help="megabytes of several sizes: llmkit alone on each")
    parser.add_argument("--log", action="store_true", help="print versions and the command as well")
    parser.add_argument("--keep", type=Path, help="work here and leave everything (default: a temporary directory)")
    parser.add_argument("--side", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.side is None and arguments.text is None:
        parser.error("--text is needed")
    return arguments


# ----------------------------------------------------------------------------------------------------------------------
# The documents


def make_shards(text: Path, megabytes: float, place: Path) -> int:
    """Documents in shards of JSONL; how many bytes of text they have."""
    place.mkdir(parents=True, exist_ok=True)
    made = total = size = 0
    shard = (place / "shard-00000.jsonl").open("w", encoding="utf-8")
    for number, document in enumerate(documents(text.read_text(encoding="utf-8"), megabytes * 1e6)):
        if size > _SHARD_BYTES or (total > (made + 1) * megabytes * 1e6 / 4 and made < 3):  # four at least
            shard.close()
            made, size = made + 1, 0
            shard = (place / f"shard-{made:05d}.jsonl").open("w", encoding="utf-8")
        shard.write(json.dumps({"id": str(number), "text": document}, ensure_ascii=False) + "\n")
        size += len(document.encode())
        total += len(document.encode())
    shard.close()
    return total


def documents(text: str, size: float) -> Iterator[str]:
    """Texts of at least so many bytes together, with exact and near copies among them."""
    drawn = random.Random(0)
    sentences = [line for line in re.split(r"(?<=[.!?]) |\n", text) if len(line) > 20]
    earlier: list[str] = []
    while size > 0:
        kind = drawn.random()
        if kind < 0.1 and earlier:
            document = drawn.choice(earlier)
        elif kind < 0.25 and earlier:
            words = drawn.choice(earlier).split(" ")
            for _ in range(drawn.randint(1, max(1, len(words) // 25))):
                words[drawn.randrange(len(words))] = f"changed{drawn.randrange(1000)}"
            document = " ".join(words)
        else:
            document = "\n".join(drawn.choices(sentences, k=drawn.randint(3, 40)))
            if len(earlier) < 20_000:  # what is copied from: bounded, as memory here is
                earlier.append(document)
        size -= len(document.encode())
        yield document


# ----------------------------------------------------------------------------------------------------------------------
# Each side, in a process of its own


def run_side(side: str, shards: str, output: str) -> None:
    """Run a side on a few documents, then on all, and print what it took."""
    few = Path(output) / "few"
    few.mkdir(parents=True)
    with (Path(shards) / "shard-00000.jsonl").open(encoding="utf-8") as file:
        (few / "shard-00000.jsonl").write_text(
            "".join(line for line, _ in zip(file, range(10), strict=False)), encoding="utf-8"
        )
    run: Callable[[Path, Path], list[str]] = {"llmkit": llmkit_side, "datatrove": datatrove_side, "growth": growth_side}[side]
    run(few, Path(output) / "warm")
    before = processor_seconds()
    began = time.perf_counter()
    kept = run(Path(shards), Path(output) / "all")
    found = {"processor": processor_seconds() - before, "wall": time.perf_counter() - began, "kept": kept}
    memory = {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "own": _OWN_MEMORY[0]}
    give({**found, **memory})


def processor_seconds() -> float:
    """Of this process and its children that have ended."""
    return sum(os.times()[:4])


def llmkit_side(shards: Path, output: Path) -> list[str]:
    """As the stage `preprocess`: marks by shard, decisions, the documents that stay."""
    return list(_stay(shards, output, 1 << 22))


def _stay(shards: Path, output: Path, bucket: int) -> Iterator[str]:
    """The ids of the documents that stay."""
    from llmkit.corpus.documents import Document, ShardWriter, as_batch
    from llmkit.corpus.duplicates.decide import Decisions, decide, serially
    from llmkit.corpus.duplicates.marks import Marker
    from llmkit.corpus.duplicates.settings import DuplicateSettings

    def run(function: str, payloads: list[dict[str, Any]]) -> None:
        for payload in payloads:
            serially(function, [payload])
            note_memory()

    settings = DuplicateSettings(documents=False, paragraphs=False, near=True)
    paths = sorted(shards.glob("*.jsonl"))
    parts = []
    for path in paths:
        marks = Marker(settings)
        for batch in batches(path):
            marks.add([row["text"] for row in batch], [row["id"] for row in batch], False)
        note_memory()
        parts.append(output / "marks" / path.stem)
        marks.save(parts[-1])
    decide(parts, settings, output / "decisions", run, bucket)
    (output / "documents").mkdir()
    with ShardWriter(output / "documents", "train") as writer:
        for part, path in enumerate(paths):
            decisions = Decisions.load(output / "decisions", part)
            number = 0
            for batch in batches(path):
                rows = [row for place, row in enumerate(batch, start=number) if not decisions.rule(place)]
                number += len(batch)
                writer.write(as_batch([Document(row["text"], row["id"], path.name) for row in rows]))
                yield from (row["id"] for row in rows)
            note_memory()


def growth_side(shards: Path, output: Path) -> list[str]:
    """The same with smaller buckets, so that a corpus of some gigabytes has several, and no ids remembered."""
    return [str(sum(1 for _ in _stay(shards, output, _GROWTH_BUCKET)))]


def batches(path: Path) -> Iterator[list[dict[str, str]]]:
    rows: list[dict[str, str]] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            rows.append(json.loads(line))
            if len(rows) == _BATCH:
                yield rows
                rows = []
    if rows:
        yield rows


_OWN_MEMORY = [0.0]


def note_memory() -> None:
    """Remember the largest memory, in MiB, that is not a file's."""
    status = Path("/proc/self/status")
    found = re.search(r"RssAnon:\s*(\d+)", status.read_text(encoding="utf-8")) if status.exists() else None
    _OWN_MEMORY[0] = max(_OWN_MEMORY[0], int(found[1]) / 1024 if found else 0.0)


def datatrove_side(shards: Path, output: Path) -> list[str]:
    """Its four steps with one worker, as in its example, with its own defaults."""
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter
    from datatrove.utils.logging import logger

    logger.remove()
    config = MinhashConfig()
    count = len(list(shards.glob("*.jsonl")))

    def go(name: str, tasks: int, pipeline: list[Any]) -> None:
        LocalPipelineExecutor(pipeline=pipeline, tasks=tasks, workers=1, logging_dir=str(output / "logs" / name)).run()

    def at(name: str) -> str:
        return str(output / name)

    reader = JsonlReader(str(shards), glob_pattern="*.jsonl")
    go("signatures", count, [reader, MinhashDedupSignature(at("signatures"), config=config)])
    go("buckets", config.num_buckets, [MinhashDedupBuckets(at("signatures"), at("buckets"), config=config)])
    go("clusters", 1, [MinhashDedupCluster(at("buckets"), at("remove"), config=config)])
    writer = JsonlWriter(at("documents"), compression=None)
    go("filter", count, [reader, MinhashDedupFilter(at("remove")), writer])
    return [
        json.loads(line)["id"] for path in sorted((output / "documents").iterdir()) for line in path.open(encoding="utf-8")
    ]


# ----------------------------------------------------------------------------------------------------------------------
# Measuring and telling


def comparison(arguments: argparse.Namespace, place: Path) -> list[str]:
    """Both sides in rounds, as a table."""
    size = make_shards(arguments.text, arguments.megabytes, place / "shards") / 1e6
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in _SIDES}
    for number, side in alternating(_SIDES, arguments.rounds):
        found = measure(side, place / "shards", place / f"{side}-{number}", arguments.python)
        runs[side].append(found)
        print(f"round {number + 1}: {side}: processor {found['processor']:.2f} s", file=sys.stderr)
    ours, theirs = (runs[side] for side in _SIDES)
    ratios = [their["processor"] / our["processor"] for our, their in zip(ours, theirs, strict=True)]
    rates = [size / statistics.median(run["processor"] for run in some) for some in (ours, theirs)]
    one, other = (set(some[0]["kept"]) for some in (ours, theirs))
    total = sum(1 for path in (place / "shards").iterdir() for _ in path.open(encoding="utf-8"))
    told = [f"{run['kept'] == some[0]['kept']}" for some in (ours, theirs) for run in some]
    return [
        "| MB of text | llmkit to datatrove, by processor time | lowest to highest | MB/s of llmkit, of it | peak MiB "
        "of llmkit, of it | documents | kept by llmkit, by it | by both | the same in all rounds |",
        f"|{'---|' * 9}",
        f"| {size:.1f} | {statistics.median(ratios):.1f} | {min(ratios):.1f} to {max(ratios):.1f} | {rates[0]:.1f}, "
        f"{rates[1]:.2f} | {ours[0]['peak']:.0f}, {theirs[0]['peak']:.0f} | {total} | {len(one)}, {len(other)} | "
        f"{len(one & other)} | {'yes' if set(told) == {'True'} else 'NO'} |",
    ]


def growth(arguments: argparse.Namespace, place: Path) -> list[str]:
    """llmkit alone on corpora of several sizes, as a table."""
    lines = [
        "| MB of text | processor s | MB/s | peak MiB | of it not of files, MiB | kept |",
        f"|{'---|' * 6}",
    ]
    for megabytes in arguments.growth:
        shards = place / f"shards-{megabytes:g}"
        size = make_shards(arguments.text, megabytes, shards) / 1e6
        found = measure("growth", shards, place / f"growth-{megabytes:g}", sys.executable)
        rate = size / found["processor"]
        lines.append(
            f"| {size:.1f} | {found['processor']:.2f} | {rate:.1f} | {found['peak']:.0f} | {found['own']:.0f} | "
            f"{found['kept'][0]} |"
        )
        print(lines[-1], file=sys.stderr)
    return lines


def measure(side: str, shards: Path, output: Path, python: str) -> dict[str, Any]:
    """Run a side once, in a process of its own.

    Raises:
        SystemExit: it failed; with the end of its output.
    """
    case = {"place": str(output.parent), "device": "cpu", "threads": 1}
    return take(python if side == "datatrove" else sys.executable, __file__, case, side, str(shards), str(output))


if __name__ == "__main__":
    sys.exit(main())
