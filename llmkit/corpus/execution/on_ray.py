"""Tasks on a Ray cluster that is there already, each a Ray Core task on one core."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llmkit.corpus.execution.progress import TaskProgress
from llmkit.corpus.execution.tasks import ONE_THREAD, Deaths, Failure, Job, Task
from llmkit.errors import DataError

_PATIENCE = 60.0  # seconds until a file of another machine must be seen here; NFS remembers for so long what was not there


def run_on_ray(job: Job, tasks: Sequence[Task], workers: int | None, progress: TaskProgress) -> None:
    """Do tasks on the cluster that RAY_ADDRESS names, or that this machine belongs to; `RAY_ADDRESS=local` starts one here.

    Raises:
        as `run_tasks`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if _address() != "local":  # Ray asks a cluster that is gone 20 times, 36 s each; its constants are read at import
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")
    try:
        import ray
    except ImportError:
        raise DataError('--executor ray needs Ray: pip install "llmkit[ray]"') from None
    with _connected(ray, workers):
        # What a lost task costs is decided here, as for local workers: Ray itself would try for ever where memory is short.
        remote = ray.remote(num_cpus=1, max_retries=0)(Job.attempt)
        at_once = workers or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting, deaths = deque(tasks), Deaths()
        running: dict[Any, Task] = {}
        lost = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError)
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    task = waiting.popleft()
                    running[remote.options(name=task.name).remote(job, task)] = task
                for ready in ray.wait(list(running))[0]:
                    task = running.pop(ready)
                    try:
                        failure = ray.get(ready)
                    except lost as death:
                        how = type(death).__name__
                        deaths.add(task, f"with Ray's {how}")
                        progress.say(f"the worker of {task.name} died ({how}); the task is done again")
                        waiting.appendleft(task)
                        continue
                    if failure is not None:
                        raise Failure(**failure).error(task.name)
                    _await_file(job, task)
                    progress.finish(task)
        finally:
            for left in running:
                ray.cancel(left, force=True)


@contextmanager
def _connected(ray: Any, workers: int | None) -> Iterator[None]:
    """A connection to the cluster, ended afterwards unless the caller had it before."""
    if ray.is_initialized():
        yield
        return
    address = _address()
    own = {"num_cpus": workers, "include_dashboard": False} if address == "local" else {}
    environment = {"env_vars": ONE_THREAD}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment, **own)
    except (ConnectionError, RuntimeError) as failure:
        raise DataError(
            f"--executor ray found no Ray cluster at {address!r} ({str(failure).splitlines()[0]}). Start one with "
            f"`ray start --head` (and `ray start --address=...` on the other machines), name one in RAY_ADDRESS, or set "
            f"RAY_ADDRESS=local for one on this machine alone. A named cluster that asks for a token needs RAY_AUTH_MODE=token"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _address() -> str:
    return os.environ.get("RAY_ADDRESS") or "auto"


def _await_file(job: Job, task: Task) -> None:
    """See to it that a result is seen here.

    Raises:
        DataError: it is not, so the directory is not shared.
    """
    until = time.monotonic() + _PATIENCE
    while job.result(task) is None:
        if time.monotonic() > until:
            raise DataError(
                f"{task.name} was done on the cluster, but its result {job.place(task)} is not seen here: the output must "
                f"lie on a file system that all machines of the cluster share, under the same path"
            )
        time.sleep(0.5)
        os.listdir(job.directory)  # makes a network file system ask the server again
