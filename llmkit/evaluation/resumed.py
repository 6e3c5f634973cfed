"""Predictions for test examples, on disk chunk by chunk, so that an evaluation that was killed goes on where it stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmkit import __version__
from llmkit.evaluation.measured import Predictions
from llmkit.pipeline.progress import Progress
from llmkit.tasks.base import Task, digest
from llmkit.tasks.predicted import Predicted, code_digest, model_files, no_terminal
from llmkit.tasks.writers import in_blocks

if TYPE_CHECKING:
    from llmkit.evaluation.evaluate import EvaluateConfig
    from llmkit.pipeline.stage import Workspace

SCRATCH = ".predictions"

_BATCHES = 32  # of a chunk


def predict(
    config: EvaluateConfig, task: Task[Any], model: Any, tokenizer: Any, test: list[Any], workspace: Workspace
) -> Predictions:
    """What the model gives for each test example, in their order; those that the very same job has left are not asked for.

    The longest examples come first, so that what does not fit into memory fails at once.
    """
    scratch = workspace.directory / SCRATCH
    scratch.mkdir(exist_ok=True)
    begun, size = Predicted(scratch), config.per_device_eval_batch_size
    job = {
        "llmkit": __version__,
        "code": code_digest(),
        "model": model_files(config.model_name_or_path),
        "input": digest(test),
        "settings": {"task": task.name, "batch_size": size},
    }
    done = begun.begin(job, force=False)
    if done:
        workspace.say(f"goes on after the {done:,} of {len(test):,} examples that an earlier run has predicted")
    order = list(range(len(test)))
    if len(test) > _BATCHES * size:
        order.sort(key=lambda index: -len(test[index].input()))
    with Progress(done, len(test), workspace.say, "evaluate", "example") as progress, no_terminal():
        for block in in_blocks(order[done:], _BATCHES * size):
            begun.append(list(task.predict(model, tokenizer, [test[index] for index in block], size)))
            progress.add(len(block))
    predicted = dict(zip(order, begun.rows(), strict=True))
    return [predicted[index] for index in range(len(test))]
