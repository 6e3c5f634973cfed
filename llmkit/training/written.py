"""Metrics of what a model writes for validation examples, at each evaluation of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

if TYPE_CHECKING:
    from llmkit.tasks.language import LanguageTask
    from llmkit.training.trainer import LLMKitTrainer


class WrittenMetrics:
    """Lets the model write, and measures that.

    Ranks with whole weights share the examples. Where the weights are divided, every pass through the model is one of all
    ranks, so all of them write all examples, in step because they write the same.
    """

    def __init__(self, task: LanguageTask[Any], tokenizer: Any, data: list[Any], batch_size: int):
        """Set up.

        Args:
            data: the examples, which `task.samples_written` has chosen.
            batch_size: how many a rank writes at once.
        """
        self.task, self.tokenizer, self.data, self.batch_size = task, tokenizer, data, batch_size

    def __call__(self, trainer: LLMKitTrainer) -> dict[str, float]:
        """The metrics, on every rank; called on all ranks together."""
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        if trainer.has_partitioned_weights:
            texts = self.task.write(model, self.tokenizer, self.data, self.batch_size)
        else:
            rank, ranks = trainer.args.process_index, trainer.args.world_size
            mine = range(rank, len(self.data), ranks)
            written = self.task.write(model, self.tokenizer, [self.data[index] for index in mine], self.batch_size)
            found = dict(gather_object(list(zip(mine, written, strict=True))))
            texts = [found[index] for index in range(len(self.data))]
        return self.task.written_metrics(self.data, texts)
