"""The tasks there are. Light: what a task does is imported when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from llmkit.tasks.base import Task

TaskName = Literal["text-classification", "question-answering", "translation", "text-generation"]

EvaluatedName = Literal[
    "text-classification",
    "question-answering",
    "translation",
    "text-generation",
    "multiple-choice",
    "language-modeling",
]
"""What a model can be measured by: the tasks, what a model does unasked, and how well it foretells text."""

_TASKS = {
    "text-classification": "llmkit.tasks.text_classification:TextClassification",
    "question-answering": "llmkit.tasks.question_answering:QuestionAnswering",
    "translation": "llmkit.tasks.translation:Translation",
    "text-generation": "llmkit.tasks.text_generation:TextGeneration",
    "multiple-choice": "llmkit.tasks.multiple_choice:MultipleChoice",
}

SECTION = "llmkit"
"""The entry of a model's config.json that says which task it has learned, and what its task file has to know for it."""


def task_class(name: str) -> type[Task]:
    """The class of a task."""
    from llmkit.pipeline.stage import load_target

    return load_target(_TASKS[name])


def task_of(config: Any) -> str | None:
    """The task of a model, by what llmkit noted in its config, or else by its head; None where neither says it."""
    noted = getattr(config, SECTION, None) or {}
    if noted.get("task") in _TASKS:
        return str(noted["task"])
    for ending, name in (
        ("ForSequenceClassification", "text-classification"),
        ("ForQuestionAnswering", "question-answering"),
        ("ForConditionalGeneration", "translation"),
        ("MTModel", "translation"),
        ("ForCausalLM", "text-generation"),
        ("LMHeadModel", "text-generation"),
    ):
        if any(architecture.endswith(ending) for architecture in getattr(config, "architectures", None) or []):
            return name
    return None
