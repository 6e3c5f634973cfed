"""Command `compare`: two evaluations or more on the same examples, side by side. Light to import."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from llmkit.errors import LLMKitError

_ABOUT = """\
Two results of `llmkit evaluate` or more on the same examples: each against the first, with the interval of the difference, a
test, the examples that were fixed and broken, and the smallest difference that so many examples could have shown."""


def main(words: list[str]) -> int:
    """The command.

    Returns:
        The exit code, which says nothing of which is better.
    """
    parser = argparse.ArgumentParser(prog="llmkit compare", description=_ABOUT)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="results of `llmkit evaluate`; the first is the reference")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="a JSON file for all that is found")
    parser.add_argument("--show", type=int, default=5, metavar="N", help="fixed and broken examples to show (default: 5)")
    given = parser.parse_args(words)
    if len(given.runs) < 2:
        parser.error("name two results or more")
    if given.show < 0:
        parser.error(f"--show is {given.show}, must be at least 0")

    from llmkit.evaluation import compared

    found = compared.compare_runs(given.runs)
    print(compared.describe(found, given.show))
    if given.output:
        try:
            given.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as failure:
            raise LLMKitError(f"--output: {given.output} cannot be written: {failure.strerror}") from None
    return 0
