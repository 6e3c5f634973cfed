"""Make requirements-lock.txt anew: `python .ci/lock.py` (also `make lock`), with Python 3.10 to 3.13 on the PATH.

pip resolves pyproject.toml's ranges, all extras included, once with each Python, and installs nothing. Where the answers
differ, a line carries the Python versions it is for. The CUDA libraries that some builds of torch need are left out: torch
names them itself, each with its exact version, and a build for the CPU has none.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements-lock.txt"
TORCH = "torch==2.13.0"
PYTHONS = (10, 11, 12, 13)  # the minor versions of Python 3, in order
_LEFT_TO_TORCH = re.compile(r"nvidia-|cuda-|triton$")

HEADER = """\
# Exact versions of everything that `make setup` installs, for Python 3.10 to 3.13 on Linux.
# Made by `make lock` from the ranges in pyproject.toml; do not edit by hand.
# torch's CUDA libraries are not listed: torch names them itself, and a build for the CPU needs none.
"""


def resolve(minor: int, directory: Path) -> dict[str, str]:
    """The version that pip would install of each package, with Python 3.`minor`."""
    python = shutil.which(f"python3.{minor}")
    if python is None:
        sys.exit(f"python3.{minor} is not on the PATH; the lock is made with every Python from 3.{PYTHONS[0]} on")
    home, report = directory / str(minor), directory / f"{minor}.json"
    subprocess.run([python, "-m", "venv", home], check=True)
    pip = [str(home / "bin" / "python"), "-m", "pip", "--quiet", "--quiet"]
    subprocess.run([*pip, "install", "--upgrade", "pip"], check=True)
    # DeepSpeed comes as source only; its compiled parts are made when they are first used.
    binary = ["--only-binary", ":all:", "--no-binary", "deepspeed"]
    wanted = [
        "--dry-run",
        "--ignore-installed",
        *binary,
        "--report",
        str(report),
        TORCH,
        f"{ROOT}[dev,corpus,deepspeed,evaluate,peft,ray,search,sentences,trafilatura]",
    ]
    subprocess.run([*pip, "install", *wanted], check=True)
    packages = (item["metadata"] for item in json.loads(report.read_text(encoding="utf-8"))["install"])
    return {_plain(package["name"]): package["version"].partition("+")[0] for package in packages}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lines(versions: dict[int, dict[str, str]]) -> Iterator[str]:
    """The lock's lines: `name==version`, with a marker where it is not for every Python."""
    for name in sorted({name for found in versions.values() for name in found}):
        if name == "llmkit" or _LEFT_TO_TORCH.match(name):
            continue
        run: list[int] = []
        for minor in (*versions, None):
            version = versions[minor].get(name) if minor is not None else None
            if run and version != versions[run[0]].get(name):
                yield f"{name}=={versions[run[0]][name]}{_marker(run)}"
                run = []
            if minor is not None and version is not None:
                run.append(minor)


def _marker(run: list[int]) -> str:
    bounds = []
    if run[0] != PYTHONS[0]:
        bounds.append(f'python_version >= "3.{run[0]}"')
    if run[-1] != PYTHONS[-1]:
        bounds.append(f'python_version < "3.{run[-1] + 1}"')
    return f" ; {' and '.join(bounds)}" if bounds else ""


def main() -> None:
    versions = {}
    with tempfile.TemporaryDirectory() as directory:
        for minor in PYTHONS:
            print(f"resolving for Python 3.{minor}", flush=True)
            versions[minor] = resolve(minor, Path(directory))
    LOCK.write_text(HEADER + "\n".join(lines(versions)) + "\n", encoding="utf-8")
    print(f"wrote {LOCK}")


if __name__ == "__main__":
    main()
