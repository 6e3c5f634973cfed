"""How fast llmkit makes a corpus, beside datatrove: the quality filters, near duplicates, tokens to shards.

    python benchmarks/corpus.py --text wiki.train.tokens --python ~/datatrove/bin/python

Runs corpus_filters.py, corpus_minhash.py and corpus_tokens.py, which say what they measure, on one WikiText file: its articles
are the documents of the filters and of tokenisation, its sentences those of deduplication. `--python` is the interpreter of an
environment with `datatrove[processing]`, spacy, tokenizers and pyarrow; its pins need not agree with llmkit's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from pretrain import working_directory

_HERE = Path(__file__).resolve().parent


def main() -> int:
    """Run the three, one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--text", type=Path, required=True, help="a file of WikiText")
    parser.add_argument("--python", required=True, help="interpreter with datatrove")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side (default 3)")
    parser.add_argument("--max_documents", type=int, default=300, help="documents for the filters (default 300)")
    parser.add_argument("--keep", type=Path, help="work here and leave everything (default: a temporary directory)")
    given = parser.parse_args()
    shared = ["--python", given.python, "--rounds", str(given.rounds)]
    with working_directory(given.keep) as place:
        corpus, documents = place / "corpus", place / "documents.jsonl"
        read = ["--train_file", str(given.text.resolve()), "--markup", "wikitext", "--output_dir", str(corpus)]
        run([sys.executable, "-m", "llmkit", "preprocess", *read])
        write_documents(corpus, documents)
        most = ["--max_documents", str(given.max_documents)]
        run([sys.executable, str(_HERE / "corpus_filters.py"), "--documents", str(documents), *most, *shared])
        run([sys.executable, str(_HERE / "corpus_minhash.py"), "--text", str(given.text), *shared])
        run([sys.executable, str(_HERE / "corpus_tokens.py"), "--corpus", str(corpus), *shared])
    return 0


def write_documents(corpus: Path, path: Path) -> None:
    """The training documents as JSON lines."""
    from llmkit.corpus.documents import read_batches

    with path.open("w", encoding="utf-8") as file:
        for batch in read_batches(corpus, "train", columns=["text"]):
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())


def run(command: list[str]) -> None:
    """Run one part, whose output is shown."""
    print(f"== {Path(command[1]).stem if command[1] != '-m' else command[3]}", flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
