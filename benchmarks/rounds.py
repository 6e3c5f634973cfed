"""What the benchmarks share that run their sides one after the other, round after round."""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from pretrain import ROOT, commit, environment, hardware, versions

_RESULT = "result: "
_SideT = TypeVar("_SideT")


def alternating(sides: Sequence[_SideT], rounds: int) -> Iterator[tuple[int, _SideT]]:
    """The number of a round, from 0, and a side; every second round goes through them in the opposite order."""
    for number in range(rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            yield number, side


def plain(arguments: argparse.Namespace) -> dict[str, Any]:
    """What of the command line can be written as JSON."""
    return {key: value for key, value in vars(arguments).items() if not isinstance(value, Path)}


def give(result: dict[str, Any]) -> None:
    """Called by the process of a side, at its end."""
    print(_RESULT + json.dumps(result), flush=True)


def take(python: str, script: str, case: dict[str, Any], *side: str) -> dict[str, Any]:
    """What a side gives that is run by a script in a process of its own, as `--side CASE *side`.

    `whole` is added, the processor time in seconds from its start to its end.

    Raises:
        SystemExit: it failed; with the end of its output.
    """
    place = Path(case["place"])
    (place / "case.json").write_text(json.dumps(case), encoding="utf-8")
    command = [python, str(Path(script).resolve()), "--side", str(place / "case.json"), *side]
    variables = {**environment(case), "PYTHONPATH": str(ROOT)}
    before = _processor_of_children()
    done = subprocess.run(command, cwd=place, env=variables, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith(_RESULT)]
    if done.returncode != 0 or not found:
        raise SystemExit(f"{side[-1]} failed:\n{shlex.join(command)}\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    return {**json.loads(found[-1].removeprefix(_RESULT)), "whole": _processor_of_children() - before}


def _processor_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> str:
    """Two cells of a table: the median of ratios within rounds, and the lowest to the highest."""
    ratios = [one / other for one, other in zip(numerators, denominators, strict=True)]
    return f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f}"


def log_entry(title: str, script: str, case: dict[str, Any], measured: str, lines: list[str], peers: str = "") -> str:
    """An entry for benchmarks/LOG.md, in its form."""
    return "\n".join(
        [
            f"## {date.today().isoformat()}: {title}",
            "",
            f"- llmkit: {commit()}; Python {platform.python_version()}, {', '.join(versions())}{peers}",
            f"- hardware: {hardware(case)}",
            f"- measured: `{shlex.join(['python', f'benchmarks/{Path(script).name}', *sys.argv[1:]])}`; {measured}",
            "- result:",
            "",
            *lines,
        ]
    )


def version_elsewhere(python: str, package: str) -> str | None:
    """The version of a package that another interpreter has; None where it has none."""
    code = f"from importlib import metadata; print(metadata.version({package!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
