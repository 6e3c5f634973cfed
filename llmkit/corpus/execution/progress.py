"""How far the tasks are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmkit.corpus.execution.tasks import Task
from llmkit.pipeline.progress import Progress


class TaskProgress(Progress):
    """A count of tasks, with rate and estimate by their bytes."""

    def __init__(self, tasks: Sequence[Task], missing: Sequence[Task], describe: str, say: Callable[[str], None]):
        """Begin; all tasks but the missing ones are done."""
        total = sum(task.size for task in tasks)
        super().__init__(total - sum(task.size for task in missing), total, say, describe or "tasks", "byte")
        self._tasks, self._tasks_done = len(tasks), len(tasks) - len(missing)
        if self._tasks_done:
            self.say(f"{self._told()} are done already")

    def finish(self, task: Task) -> None:
        """A task is done."""
        self._tasks_done += 1
        self.add(task.size, self._told())

    def _told(self) -> str:
        return f"{self._tasks_done:,} of {self._tasks:,} tasks"
