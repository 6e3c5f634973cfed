"""Settings of the single tasks, for the stages and commands that take them. Light: imports no task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from llmkit.config import option


@dataclass(kw_only=True)
class Columns:
    """Which columns of a table hold what; None: as in fine-tuning, or found by its usual names."""

    text_column: str | None = option(None)
    """Column of texts to classify; None: found by its name."""

    label_column: str | None = option(None)
    """Column of labels; None: found by its name."""

    question_column: str | None = option(None)
    """Column of questions; None: `question`."""

    context_column: str | None = option(None)
    """Column of the texts in which answers are looked for; None: `context`, or `passage` or `paragraph`."""

    answers_column: str | None = option(None)
    """Column of answers, each with a text and its offset in the context; None: `answers`, or `answer`."""


@dataclass(kw_only=True)
class QuestionAnsweringSettings:
    """Settings of a training for extractive question answering."""

    task_name: ClassVar[str] = "question-answering"

    doc_stride: int = option(128)
    """Tokens of a long context that two neighbouring windows share; at most half of what a window holds of the context."""

    max_answer_length: int = option(30)
    """Longest answer in tokens."""

    n_best_size: int = option(20)
    """Answers that are kept and scored for each question."""

    null_score_diff_threshold: float | None = option(None)
    """No answer is given where its score (a sum of two logits) is higher by more than this than that of the best answer. None:
    chosen on the validation examples for the best F1, where training has questions without an answer."""

    question_first: bool = option(True)
    """Whether the question stands before the context; only an encoder can have it behind."""

    def problems(self) -> Iterable[str]:
        """See `StageConfig.problems`."""
        yield from super().problems()  # type: ignore[misc]
        if self.doc_stride < 0:
            yield f"doc_stride: is {self.doc_stride}, must be at least 0"
        for name in ("max_answer_length", "n_best_size"):
            if getattr(self, name) < 1:
                yield f"{name}: is {getattr(self, name)}, must be at least 1"
