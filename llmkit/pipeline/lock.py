"""One writer per directory: a lock that dies with its process, and says who holds it.

The lock is `flock` on the directory itself, so a killed process leaves nothing to clean up.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from llmkit.errors import ArtefactError, LockedError

HOLDER = ".holder.json"

_PATIENCE = 0.2  # seconds; `is_held` holds a directory for an instant, which must not refuse anyone


def holder_of(directory: Path) -> str:
    """Who holds a directory, in words."""
    try:
        holder = json.loads((directory / HOLDER).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']} (`{holder['command']}`)"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def is_held(directory: Path) -> bool:
    """Whether some process holds a directory now."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(handle)


@contextmanager
def hold(directory: Path, *, wait: bool = False, say: Callable[[str], None] = print) -> Iterator[None]:
    """Hold a directory, creating it where needed, while the block runs.

    Args:
        wait: wait for another holder to finish (it is named) instead of giving up.

    Raises:
        LockedError: another process holds it.
    """
    handle = _acquire(directory, wait, say)
    try:
        (directory / HOLDER).write_text(
            json.dumps(
                {
                    "pid": os.getpid(),
                    "host": socket.gethostname(),
                    "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                    "command": shlex.join(sys.argv),
                }
            ),
            encoding="utf-8",
        )
        yield
    finally:
        # The directory may have been renamed meanwhile (that is how a stage commits); its new place is not ours to touch.
        if _is_same(handle, directory):
            with contextlib.suppress(OSError):
                (directory / HOLDER).unlink(missing_ok=True)
                directory.rmdir()  # where nothing was written into it
        os.close(handle)


def _acquire(directory: Path, wait: bool, say: Callable[[str], None]) -> int:
    told = False
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            handle = os.open(directory, os.O_RDONLY)
        except (FileExistsError, FileNotFoundError) as failure:
            if os.path.lexists(directory) and not directory.is_dir():
                raise
            if time.monotonic() > deadline:
                raise ArtefactError(f"{directory} cannot be made: {failure.strerror}") from None
            continue  # renamed or removed between two looks at it: the holder has just finished
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            if time.monotonic() < deadline:
                time.sleep(0.01)
                continue
            if not wait:
                raise LockedError(f"{directory} is in use by {holder_of(directory)}; wait for it or stop it") from None
            if not told:
                say(f"waiting for {holder_of(directory)}, which is writing {directory}")
                told = True
            time.sleep(0.2)
            continue
        if _is_same(handle, directory):
            return handle
        os.close(handle)  # what we locked was renamed away while we waited


def _is_same(handle: int, directory: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(directory))
    except FileNotFoundError:
        return False
