"""Answers from Python: what transformers' pipeline for question answering was, until version 5 took it away."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llmkit.errors import ConfigError
from llmkit.tasks.loading import load_task_model
from llmkit.tasks.question_answering import Example, QuestionAnswering

Answer = dict[str, Any]


class QuestionAnswerer:
    """A model that finds answers in texts."""

    def __init__(self, task: QuestionAnswering, model: Any, tokenizer: Any):
        """Set up; see `from_pretrained`."""
        self.task, self.model, self.tokenizer = task, model, tokenizer

    @classmethod
    def from_pretrained(cls, name: str) -> QuestionAnswerer:
        """From the directory of a `finetune` result, or from any model for extractive question answering.

        Raises:
            ConfigError: there is no such model, or it has learned another task.
        """
        task, model, tokenizer = load_task_model(str(name), QuestionAnswering.name)
        assert isinstance(task, QuestionAnswering)
        return cls(task, model, tokenizer)

    def __call__(
        self, question: str | Sequence[str], context: str | Sequence[str], top_k: int = 1, batch_size: int = 32
    ) -> Answer | list[Answer] | list[list[Answer]]:
        """Answer questions.

        Args:
            question, context: a question and the text in which the answer is looked for, or lists of them; one context may
                serve many questions.
            top_k: how many answers to each question are wanted.
            batch_size: windows that are computed at once.

        Returns:
            `answer` (empty where the text has none), `score` (a probability), and `start` and `end` in characters of the
            context (both 0 where there is no answer). For lists, a list of these; with `top_k` above 1, lists of the best.

        Raises:
            ConfigError: there are not as many contexts as questions, or a text is empty.
        """
        questions = [question] if isinstance(question, str) else list(question)
        contexts = [context] * len(questions) if isinstance(context, str) else list(context)
        if len(questions) != len(contexts):
            raise ConfigError([f"context: there are {len(questions)} questions and {len(contexts)} contexts"])
        for number, texts in enumerate(zip(questions, contexts, strict=True)):
            if not all(text.strip() for text in texts):
                raise ConfigError([f"question, context: pair {number} has an empty text"])
        pairs = zip(questions, contexts, strict=True)
        examples = [
            Example(id=str(number), place=f"[{number}]", question=asked.strip(), context=text, answers=[])
            for number, (asked, text) in enumerate(pairs)
        ]
        if not examples:
            return []
        found = [_answers(row)[:top_k] for row in self.task.predict(self.model, self.tokenizer, examples, batch_size)]
        flat = found if top_k > 1 else [answers[0] for answers in found]
        return flat[0] if isinstance(question, str) else flat


def _answers(row: dict[str, Any]) -> list[Answer]:
    return [
        {
            "answer": item["text"],
            "score": item["score"],
            "start": item["answer_start"] or 0,
            "end": (item["answer_start"] or 0) + len(item["text"]),
        }
        for item in json.loads(row["n_best"])
    ]
