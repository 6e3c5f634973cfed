"""What runs in a worker: a process of `local`, or an element of a Slurm array."""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import IO, Any


def serve() -> None:
    """Do the tasks that come as lines on standard input, one after the other, and answer each with a line.

    The answer is `null` or a `Failure`; the result lies on disk. The end of the input means that the parent is gone, however
    it ended; a thread waits for it, so that a task in progress ends as well.
    """
    commands, answers = _channels()
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in commands:
            lines.put(line)
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    from llmkit.corpus.execution.tasks import Job, Task

    while True:
        command: dict[str, Any] = json.loads(lines.get())
        failure = Job(command["function"], Path(command["directory"])).attempt(Task(command["name"], command["payload"]))
        sys.stdout.flush()
        sys.stderr.flush()
        answers.write(json.dumps(failure) + "\n")
        answers.flush()


def _channels() -> tuple[IO[str], IO[str]]:
    """The pipes to the parent, out of reach of tasks: what these print goes to standard error."""
    commands = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return commands, answers


def main() -> int:
    """`python -m llmkit.corpus.execution.worker --plan FILE --element NUMBER`, as the script of a Slurm array says."""
    from llmkit.corpus.execution.slurm import do_element

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--element", type=int, required=True)
    given = parser.parse_args()
    return do_element(given.plan, given.element)


if __name__ == "__main__":
    sys.exit(main())
