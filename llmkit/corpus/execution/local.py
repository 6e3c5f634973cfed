"""Tasks in processes of this machine, each with one thread.

The processes are started by themselves and not by `multiprocessing`: they do not import the main module (a script without
`if __name__ == "__main__"` would start again in each), nothing is forked beside running threads, and the death of one touches
its own task only (the pools of the standard library hang or lose all workers).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait

from llmkit.corpus.execution.progress import TaskProgress
from llmkit.corpus.execution.tasks import ONE_THREAD, Deaths, Failure, Job, Task

_SERVE = "from llmkit.corpus.execution.worker import serve; serve()"


def run_locally(job: Job, tasks: Sequence[Task], workers: int, progress: TaskProgress) -> None:
    """Do tasks in so many processes at once; each has one task, and gets the next one when that is done.

    Raises:
        as `run_tasks`.
    """
    waiting, deaths = deque(tasks), Deaths()
    running: list[_Worker] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(_Worker(job, waiting.popleft()))
            ready = wait([worker.answers.fileno() for worker in running])
            for worker in [worker for worker in running if worker.answers.fileno() in ready]:
                if worker.is_done():
                    progress.finish(worker.task)
                    if waiting:
                        worker.begin(waiting.popleft())
                        continue
                else:
                    how = worker.how_it_ended()
                    deaths.add(worker.task, how)
                    progress.say(f"the worker of {worker.task.name} died ({how}); the task is done again")
                    waiting.appendleft(worker.task)
                running.remove(worker)
                worker.end()
    finally:
        for worker in running:
            worker.end()


class _Worker:
    """A process with a task."""

    def __init__(self, job: Job, task: Task):
        self._job = job
        self._process = subprocess.Popen(
            # The modules that are found here are found there, and no file of the working directory stands before them.
            [sys.executable, "-c", f"import sys; sys.path[:] = {[*job.path]}; {_SERVE}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, **ONE_THREAD},
            start_new_session=True,  # Ctrl-C is for the parent, which then ends its workers
        )
        assert self._process.stdin and self._process.stdout
        self._commands, self.answers = self._process.stdin, self._process.stdout
        self.begin(task)

    def begin(self, task: Task) -> None:
        """Give it a task."""
        self.task = task
        command = {
            "function": self._job.function,
            "directory": str(self._job.directory),
            "name": task.name,
            "payload": task.payload,
        }
        with contextlib.suppress(BrokenPipeError):  # it is dead, as its silence will tell
            self._commands.write(json.dumps(command) + "\n")
            self._commands.flush()

    def is_done(self) -> bool:
        """Whether it has done its task, or has died.

        Raises:
            Exception: the task has failed.
        """
        answer = self.answers.readline()
        if not answer.endswith("\n"):
            return False
        failure = json.loads(answer)
        if failure is not None:
            raise Failure(**failure).error(self.task.name)
        return True

    def how_it_ended(self) -> str:
        """In what way it died."""
        code = self._process.wait()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"

    def end(self) -> None:
        """End it at once; what it wrote is whole or not there."""
        self._process.kill()
        self._process.wait()
        self.answers.close()
        with contextlib.suppress(BrokenPipeError):  # of a command that never reached it
            self._commands.close()
