"""Tasks carried out by an executor: each that has no result yet, and no other."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from llmkit.corpus.execution.progress import TaskProgress
from llmkit.corpus.execution.tasks import Job, Task
from llmkit.errors import DataError

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # cgroup v2: what a container may use


def run_tasks(
    function: str,
    tasks: Sequence[Task],
    directory: Path,
    *,
    executor: Literal["local", "ray", "slurm"] = "local",
    workers: int | None = None,
    describe: str = "",
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Call a function for each task that has no result yet.

    A task whose worker dies is done again, up to three times, and the others are not touched by it. So what the function
    writes beside its result must bear to be written again; it should be on disk (fsync) when the function returns.

    Args:
        function: `module:function`, called as `function(payload, directory)`; returns what JSON can hold.
        tasks: with distinct names, which are the names of the result files.
        directory: where the results go; one that all workers and the caller share.
        workers: how many tasks run at once: processes of this machine (default: one on each usable core; with 1 there is no
            further process), tasks in flight on Ray (default: two a core of the cluster), elements of a Slurm array
            (default: what the scheduler allows).
        describe: what is done, for the progress.
        say: gets lines for people.

    Returns:
        The results in the order of `tasks`, the same whoever did them.

    Raises:
        LLMKitError: raised by the function, with its class and message; other workers are stopped.
        DataError: a task has lost its worker three times, or there is no cluster, or its results do not arrive here.
        RuntimeError: the function has failed in another way; carries its traceback.
    """
    job = Job(function, directory.resolve(), tuple(map(str, sys.path)), Path.cwd())
    job.directory.mkdir(parents=True, exist_ok=True)
    results = {task.name: job.result(task) for task in tasks}
    if len(results) < len(tasks):
        raise ValueError("two tasks have one name")
    missing = [task for task in tasks if results[task.name] is None]
    for task in missing:
        job.place(task).unlink(missing_ok=True)  # made from something else; from here on, a file means that a task is done
    if missing:
        with TaskProgress(tasks, missing, describe, say) as progress:
            _run(executor, workers, job, missing, progress)
        results |= {task.name: job.result(task) for task in missing}
    job.remove_leftovers(tasks)
    ordered = []
    for task in tasks:
        result = results[task.name]
        if result is None:
            raise DataError(f"{job.place(task)} was written by a worker, but cannot be read here")
        ordered.append(result)
    return ordered


def _run(executor: str, workers: int | None, job: Job, missing: Sequence[Task], progress: TaskProgress) -> None:
    if executor == "ray":
        from llmkit.corpus.execution.on_ray import run_on_ray

        run_on_ray(job, missing, workers, progress)
    elif executor == "slurm":
        from llmkit.corpus.execution.slurm import run_on_slurm

        run_on_slurm(job, missing, workers, progress)
    elif (workers or usable_cores()) == 1:
        for task in missing:
            job.do(task)
            progress.finish(task)
    else:
        from llmkit.corpus.execution.local import run_locally

        run_locally(job, missing, workers or usable_cores(), progress)


def usable_cores() -> int:
    """The cores that this process may use, by its affinity and its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CGROUP_QUOTA.read_text(encoding="utf-8").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no container, or no limit: `max 100000`
        return cores
