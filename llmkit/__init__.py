"""llmkit: raw text to a language model, the model to a task, the task to an evaluation report that can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmkit.tasks.question_answerer import QuestionAnswerer as QuestionAnswerer

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "QuestionAnswerer":  # imported when it is asked for: the command starts without torch
        from llmkit.tasks.question_answerer import QuestionAnswerer

        return QuestionAnswerer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
