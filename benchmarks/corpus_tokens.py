"""How fast llmkit writes the tokens of documents to shards, beside datatrove, and whether the tokens are the same.

    llmkit preprocess --train_file wiki.train.tokens --output_dir runs/documents
    python benchmarks/corpus_tokens.py --corpus runs/documents --python ~/venv/bin/python

`--python` is the interpreter of an environment with datatrove, tokenizers and pyarrow. All sides read the same Parquet files
and one tokenizer.json, write the tokens of the train split with an EOS after each document, in order, and use one thread.
Each is a process of its own, one after the other, round after round, every second round in the opposite order. Two times are
taken, of the processor, which other work on the machine changes less than the wall clock: from documents to shards, when
everything is imported and compiled; and of the whole process. llmkit is `llmkit tokenize`, with hashes and manifest, by its
fast way and with `--fast false`. Documents that hold a special token as text are left out: datatrove makes it the real one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain import working_directory
from rounds import alternating, give, log_entry, plain, ratio, take, version_elsewhere

_LLMKIT = ("llmkit", "llmkit --fast false")


def main() -> int:
    """Measure, and print the table."""
    arguments = parse()
    if arguments.side is not None:
        run_side(json.loads(Path(arguments.side[0]).read_text(encoding="utf-8")), arguments.side[1])
        return 0
    with working_directory(arguments.keep) as place:
        case = prepare(arguments, place)
        datatrove = version_elsewhere(arguments.python, "datatrove")
        if datatrove is None:
            print(f"datatrove: {arguments.python} does not have it", file=sys.stderr)
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in (*_LLMKIT, *(["datatrove"] if datatrove else []))}
        for number, side in alternating(list(runs), arguments.rounds):
            found = take(sys.executable if side in _LLMKIT else arguments.python, __file__, case, side)
            runs[side].append(found)
            rate = case["bytes"] / 1e6 / found["processor"]
            print(f"round {number + 1}: {side} ({found['how']})  {rate:.2f} MB/s", file=sys.stderr)
        lines = table(runs, case)
        print("\n".join(lines))
        if arguments.log:
            measured = (
                f"{case['documents']:,} documents, {case['bytes'] / 1e6:.1f} MB of text, a vocabulary of "
                f"{case['vocab_size']:,}; {case['rounds']} rounds, the order turned round each time"
            )
            title = "how fast llmkit tokenizes to shards, beside datatrove"
            print("\n" + log_entry(title, __file__, case, measured, lines, f", datatrove {datatrove}" if datatrove else ""))
    return 0


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line, or other words in its place."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--corpus", type=Path, help="documents: the result of `llmkit preprocess`")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer (default: byte-level BPE of the documents)")
    parser.add_argument("--vocab_size", type=int, default=32_000, help="tokens of the default tokenizer (default 32000)")
    parser.add_argument("--python", default=sys.executable, help="interpreter with datatrove")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side (default 3)")
    parser.add_argument("--log", action="store_true", help="print an entry for benchmarks/LOG.md as well")
    parser.add_argument("--keep", type=Path, help="work here and leave everything (default: a temporary directory)")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.side is None and arguments.corpus is None:
        parser.error("--corpus is needed")
    return arguments


def prepare(arguments: argparse.Namespace, place: Path) -> dict[str, Any]:
    """The tokenizer, and the documents without special tokens in their text."""
    from transformers import AutoTokenizer

    from llmkit.corpus.documents import read_batches

    corpus = arguments.corpus.resolve()
    trained = arguments.tokenizer
    if trained is None:
        trained = place / "trained"
        stage("tokenizer", trained, corpus=str(corpus), vocab_size=arguments.vocab_size)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    tokenizer.save_pretrained(place / "tokenizer")
    texts = [text for batch in read_batches(corpus, "train", columns=["text"]) for text in batch.column("text").to_pylist()]
    for token in tokenizer.all_special_tokens:
        if any(token in text for text in texts):
            raise SystemExit(f"--corpus: a document has {token} in its text, which datatrove makes a special token")
    return {
        **plain(arguments),
        "place": str(place),
        "device": "cpu",
        "threads": 1,
        "corpus": str(corpus),
        "tokenizer": str(place / "tokenizer"),
        "eos": tokenizer.eos_token,
        "vocab_size": len(tokenizer),
        "documents": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
    }


def stage(name: str, output: Path, **settings: Any) -> dict[str, Any]:
    """Run a stage of llmkit, and give its metrics."""
    from llmkit.config import Source, resolve
    from llmkit.pipeline.stage import run_stage
    from llmkit.stages import STAGES

    resolved = resolve(STAGES[name].config_class, [Source(settings, {})])
    return run_stage(STAGES[name], resolved, output, force=True).manifest.metrics


# ----------------------------------------------------------------------------------------------------------------------
# The sides. Each imports and compiles what it needs, and returns a function that writes the shards and says how, and where.

Writing = Callable[[], tuple[str, list[Path]]]


def run_side(case: dict[str, Any], side: str) -> None:
    """What the process of a side does."""
    import hashlib

    write = datatrove(case) if side == "datatrove" else llmkit(case, fast=side == "llmkit")
    started = time.process_time()
    how, paths = write()
    found = time.process_time() - started
    tokens = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
    give({"processor": found, "how": how, "tokens": tokens, "size": sum(path.stat().st_size for path in paths)})


def llmkit(case: dict[str, Any], fast: bool) -> Writing:
    """As `llmkit tokenize`."""
    import pyarrow
    from transformers import AutoTokenizer

    from llmkit.tokens.encoders import FastEncoder

    FastEncoder.of(AutoTokenizer.from_pretrained(case["tokenizer"])).encode(pyarrow.array(["compiled"]))
    output = Path(case["place"]) / "llmkit"

    def write() -> tuple[str, list[Path]]:
        metrics = stage("tokenize", output, corpus=case["corpus"], tokenizer=case["tokenizer"], fast=fast)
        return metrics["encoder"], sorted(output.glob("train-*.bin"))

    return write


def datatrove(case: dict[str, Any]) -> Writing:
    """Its reader and its `DocumentTokenizer`, without shuffling."""
    import shutil

    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    output = Path(case["place"]) / "datatrove"
    shutil.rmtree(output, ignore_errors=True)

    def write() -> tuple[str, list[Path]]:
        reader = ParquetReader(case["corpus"], glob_pattern="train-*.parquet")
        writer = DocumentTokenizer(
            str(output / "tokens"), f"{case['tokenizer']}/tokenizer.json", eos_token=case["eos"], shuffle_documents=False
        )
        LocalPipelineExecutor([reader, writer], tasks=1, workers=1, logging_dir=str(output / "logs")).run()
        return "encode_batch", sorted((output / "tokens").glob("*.ds"))

    return write


def table(runs: dict[str, list[dict[str, Any]]], case: dict[str, Any]) -> list[str]:
    """A line for each side, in Markdown."""
    ours = runs["llmkit"]
    lines = [
        "| | way | MB/s of llmkit to it | lowest to highest | the same of the whole process | lowest to highest | MB/s | "
        "whole process | tokens |",
        f"|{'---|' * 9}",
    ]
    for side, theirs in runs.items():
        ratios = [ratio([run[time] for run in theirs], [run[time] for run in ours]) for time in ("processor", "whole")]
        processor, whole = (statistics.median(run[name] for run in theirs) for name in ("processor", "whole"))
        same = all((run["tokens"], run["size"]) == (ours[0]["tokens"], ours[0]["size"]) for run in theirs)
        lines.append(
            f"| {side} | {theirs[0]['how']} | {' | '.join(ratios)} | {case['bytes'] / 1e6 / processor:.2f} | {whole:.1f} s | "
            f"{'the same' if same else 'NOT THE SAME'} |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
