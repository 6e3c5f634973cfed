"""Functions that the tests of execution have carried out by workers."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from llmkit.errors import ConfigError


def write(payload: dict[str, Any], directory: Path) -> dict[str, Any]:
    """What a real task does: reads, computes, writes a file that is whole or not there. Leaves a trace of who did it."""
    number = payload["number"]
    (directory / f"{number}.done-by-{os.getpid()}-{time.monotonic_ns()}.trace").touch()
    time.sleep(payload.get("seconds", 0))
    lines = [hashlib.sha256(f"{number} {line} 今天".encode()).hexdigest() for line in range(200)]
    aside = directory / f"{number}.{os.getpid()}.trace"
    aside.write_text("\n".join(lines), encoding="utf-8")
    os.replace(aside, directory / f"{number}.part")
    return {"number": number, "first": lines[0], "text": "今天 \ud800", "share": number / 3}


def echo(payload: dict[str, Any], directory: Path) -> dict[str, Any]:
    return {"payload": payload}


def read(payload: dict[str, Any], directory: Path) -> dict[str, Any]:
    return {"content": Path(payload["path"]).read_text(encoding="utf-8")}


def die(payload: dict[str, Any], directory: Path) -> dict[str, Any]:
    """As `write`, but the worker kills itself so many times first."""
    for death in range(payload.get("deaths", 0)):
        marker = directory / f"{payload['number']}-{death}.trace"
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return write(payload, directory)


def refuse(payload: dict[str, Any], directory: Path) -> dict[str, Any]:
    """As `write`, but number 2 meets a user's error, and number 3 a bug."""
    if payload["number"] == 2:
        raise ConfigError(["first 今天", "second"], "payload")
    if payload["number"] == 3:
        raise KeyError("a bug")
    return write(payload, directory)


def look_around(payload: dict[str, Any], directory: Path) -> dict[str, Any]:
    """What a task sees of its process; it prints and reads as a careless library does."""
    import pyarrow

    print("printed by a task")
    sys.stdin.read()
    return {"threads": pyarrow.cpu_count(), "openblas": os.environ["OPENBLAS_NUM_THREADS"], "json": json.__file__}
