"""Tasks as a Slurm array: a script with a plan beside it, submitted and waited for, or left to the user to submit."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from llmkit.corpus.execution.progress import TaskProgress
from llmkit.corpus.execution.tasks import ONE_THREAD, TRIES, Failure, Job, Task
from llmkit.errors import DataError
from llmkit.pipeline.artefact import write_synced

_ELEMENTS = 1000
"""The longest array: Slurm's MaxArraySize is 1001 unless it is configured, and bounds the largest index."""

_FIRST_LOOK, _LAST_LOOK = 0.5, 15.0  # seconds between looks at the queue: short work is seen soon, long work costs little


def run_on_slurm(job: Job, tasks: Sequence[Task], workers: int | None, progress: TaskProgress) -> None:
    """Do tasks as an array job, and wait for it.

    What sbatch reads from the environment holds (SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT, ...). An interrupted
    wait leaves the job in the queue; called again, this waits for it instead of submitting another.

    Raises:
        DataError: there is no `sbatch` here (says what to do with the script), or three arrays in a row got nothing done.
        LLMKitError, RuntimeError: as `run_tasks`.
    """
    array = _Array(job, workers, progress)
    missing, fruitless = list(tasks), 0
    while missing:
        if not array.is_queued():
            array.submit(missing)
        array.wait(missing)
        left = [task for task in missing if job.result(task) is None]
        fruitless = fruitless + 1 if len(left) == len(missing) else 0
        if fruitless == TRIES:
            raise DataError(
                f"{left[0].about()} cannot be done: {TRIES} arrays ended without its result. Jobs that end without a message "
                f"have mostly asked for more memory or time than they may: see {array.logs} and `sacct`, and raise "
                f"SBATCH_MEM_PER_CPU or SBATCH_TIMELIMIT. What is done already is kept"
            )
        if left:
            progress.say(f"the array ended with {len(left):,} tasks not done; they are submitted again")
        missing = left
    array.forget()


def do_element(plan: Path, element: int) -> int:
    """Do the tasks of one element of an array; the exit code of its process."""
    made = json.loads(plan.read_text(encoding="utf-8"))
    job = Job(made["function"], Path(made["directory"]), tuple(made["path"]), Path(made["base"]))
    for fields in made["tasks"][element :: made["elements"]]:
        task = Task(**fields)
        failure = job.attempt(task)
        if failure is not None:
            write_synced(_failed(job, task), json.dumps(failure))
            print(failure["traceback"], file=sys.stderr)
            return 1
    return 0


class _Array:
    """The array job of a function in a directory."""

    def __init__(self, job: Job, workers: int | None, progress: TaskProgress):
        self._job, self._workers, self._progress = job, workers, progress
        self._name = re.sub(r"\W+", "-", job.function.partition(":")[2])
        self._script = job.directory / f"{self._name}.sbatch"
        self._record = job.directory / f"{self._name}.submitted"
        self.logs = job.directory / f"{self._name}-%A_%a.log"

    def is_queued(self) -> bool:
        """Whether an array that was submitted before has not ended yet."""
        if not self._record.exists() or not shutil.which("squeue"):
            return False
        words = ["squeue", "--noheader", "--jobs", self._record.read_text(encoding="utf-8")]
        answer = subprocess.run(words, capture_output=True, text=True)
        if answer.returncode:  # it is gone from the books, or the controller is too busy to answer
            return "invalid job id" not in answer.stderr.lower()
        return bool(answer.stdout.strip())

    def forget(self) -> None:
        """It is done, though the queue may list it for a while: what is run next in this directory is another one."""
        self._record.unlink(missing_ok=True)

    def submit(self, tasks: Sequence[Task]) -> None:
        """Write the script and submit it.

        Raises:
            DataError: there is no `sbatch`, or it refuses the script.
            Exception: with no `sbatch` here: what a task has met in an element that the user has run.
        """
        failed = self._failures(tasks, remove=True)
        can_submit = shutil.which("sbatch") is not None
        if failed and not can_submit:
            raise failed[0]
        self._write(tasks)
        if not can_submit:
            raise DataError(
                f"there is no `sbatch` on this machine. {self._script} does the {len(tasks):,} tasks: submit it on the "
                f"cluster with `sbatch {shlex.quote(str(self._script))}`, and when it has ended, run the same command "
                f"again, which goes on"
            )
        answer = subprocess.run(["sbatch", "--parsable", str(self._script)], capture_output=True, text=True)
        if answer.returncode:
            raise DataError(f"sbatch refused {self._script}: {answer.stderr.strip() or answer.stdout.strip()}")
        number = answer.stdout.strip().split(";")[0]
        write_synced(self._record, number)
        self._progress.say(f"submitted {self._script} as job {number}")

    def wait(self, tasks: Sequence[Task]) -> None:
        """Wait until the array has ended, or all its results are there.

        Raises:
            Exception: a task has failed; the array is cancelled.
        """
        left, pause, queued = {self._job.place(task).name: task for task in tasks}, _FIRST_LOOK, True
        try:
            while left and queued:
                time.sleep(pause)
                pause = min(1.5 * pause, _LAST_LOOK)
                queued = self.is_queued()
                for name in left.keys() & set(os.listdir(self._job.directory)):  # listing a directory asks a file server anew
                    self._progress.finish(left.pop(name))
                failed = self._failures(list(left.values()))
                if failed:
                    subprocess.run(["scancel", self._record.read_text(encoding="utf-8")], check=False)
                    raise failed[0]
        except KeyboardInterrupt:
            self._progress.say(f"job {self._record.read_text(encoding='utf-8')} goes on; `scancel` ends it")
            raise

    def _failures(self, tasks: Sequence[Task], remove: bool = False) -> list[Exception]:
        """What elements have written of failed tasks."""
        files = set(os.listdir(self._job.directory))
        found = []
        for task in tasks:
            place = _failed(self._job, task)
            if place.name in files:
                found.append(Failure(**json.loads(place.read_text(encoding="utf-8"))).error(task.name))
                if remove:
                    place.unlink()
        return found

    def _write(self, tasks: Sequence[Task]) -> None:
        """Write the script, and the plan under a name of its own: one that an array in the queue still reads stays."""
        elements = min(len(tasks), _ELEMENTS)
        plan = json.dumps(
            {
                "function": self._job.function,
                "directory": str(self._job.directory),
                "path": self._job.path,
                "base": str(self._job.base or Path.cwd()),
                "elements": elements,
                "tasks": [asdict(task) for task in tasks],
            }
        )
        place = self._job.directory / f"{self._name}-{hashlib.sha256(plan.encode()).hexdigest()[:12]}.plan"
        write_synced(place, plan)
        at_once = f"%{self._workers}" if self._workers else ""
        lines = [
            "#!/bin/bash",
            f"#SBATCH --job-name=llmkit-{self._name}",
            f"#SBATCH --array=0-{elements - 1}{at_once}",
            "#SBATCH --cpus-per-task=1",
            f'#SBATCH --output="{self.logs}"',
            *(f"export {name}={value}" for name, value in ONE_THREAD.items()),
            f"exec {shlex.quote(sys.executable)} -m llmkit.corpus.execution.worker --plan {shlex.quote(str(place))} "
            '--element "$SLURM_ARRAY_TASK_ID"',
        ]
        write_synced(self._script, "\n".join(lines) + "\n")


def _failed(job: Job, task: Task) -> Path:
    return job.directory / f"{task.name}.failed"
