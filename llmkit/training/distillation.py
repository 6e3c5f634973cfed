"""Learning from a teacher beside the labels (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network")."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch.nn.functional import kl_div, log_softmax

from llmkit.errors import ConfigError
from llmkit.tasks.base import Task
from llmkit.tasks.features import IGNORED
from llmkit.tasks.registry import task_of

if TYPE_CHECKING:
    from llmkit.training.finetune import FinetuneConfig

_OF_TOKENS = "text-generation"


class Teacher:
    """A model that has learned the task: it is asked, and never changed."""

    def __init__(self, model: Any, classes: list[int] | None, tokens: int):
        """Set up.

        Args:
            classes: the teacher's number of each class of the student; None where the logits are those of tokens.
            tokens: size of the vocabulary.
        """
        self.model = model.eval().requires_grad_(False)
        self.classes, self.tokens = classes, tokens
        self._taken = set(inspect.signature(model.forward).parameters)

    @torch.no_grad()
    def logits(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Its logits for a batch, in the order of the student's classes or tokens."""
        known = {name: value for name, value in inputs.items() if name in self._taken and name != "labels"}
        logits = self.model(**known).logits
        return logits[..., : self.tokens] if self.classes is None else logits[..., self.classes]


def load_teacher(config: FinetuneConfig, task: Task[Any], tokenizer: Any, max_length: int) -> Teacher:
    """The teacher of a training.

    Raises:
        ConfigError: it has learned another task, other labels, or with another tokenizer; or takes shorter texts.
    """
    name = config.teacher or ""
    if task.name not in ("text-classification", _OF_TOKENS):
        raise ConfigError([f"teacher: a model can learn from one in text-classification and text-generation, not {task.name}"])
    try:
        theirs = transformers.AutoConfig.from_pretrained(name)
        vocabulary = transformers.AutoTokenizer.from_pretrained(name).get_vocab()
    except (OSError, ValueError) as failure:
        raise ConfigError([f"teacher: {name!r} is no model with a tokenizer that can be loaded: {failure}"]) from failure
    if task_of(theirs) != task.name:
        raise ConfigError(
            [f"teacher: {name!r} has learned {task_of(theirs) or 'no task'}, and the student learns {task.name}"]
        )
    if vocabulary != tokenizer.get_vocab():
        raise ConfigError(
            [
                f"teacher: {name!r} has another tokenizer than the student, whose tokens it would not understand; "
                f"a new student takes its tokenizer with --tokenizer {name}"
            ]
        )
    if getattr(theirs, "max_position_embeddings", max_length) < max_length:
        raise ConfigError([f"teacher: takes {theirs.max_position_embeddings} tokens; give max_length, at most as many"])
    classes = _same_classes(name, task.head(), theirs) if task.name != _OF_TOKENS else None
    try:
        model = getattr(transformers, task.auto_class_of(theirs)).from_pretrained(name, dtype="float32")
    except (OSError, ValueError) as failure:  # an int8 model has no weights that transformers reads
        raise ConfigError([f"teacher: the weights of {name!r} cannot be loaded: {failure}"]) from failure
    model.config.pad_token_id, model.config.use_cache = tokenizer.pad_token_id, False
    return Teacher(model, classes, len(tokenizer))


def _same_classes(name: str, head: dict[str, Any], theirs: Any) -> list[int]:
    if any(kind not in (None, "single_label_classification") for kind in (head.get("problem_type"), theirs.problem_type)):
        raise ConfigError(["teacher: learning from one is for a single label a text"])
    ours = list(head["id2label"].values())
    known = {str(label): int(number) for number, label in theirs.id2label.items()}
    if set(known) != set(ours):
        raise ConfigError([f"teacher: {name!r} knows the labels {', '.join(known)}, and the data has {', '.join(ours)}"])
    return [known[label] for label in ours]


class Distillation:
    """The loss of a student: alpha times the teacher's part, and 1 - alpha times that of the task."""

    def __init__(self, teacher: Teacher, task_loss: Callable[..., Any], temperature: float, alpha: float):
        self.teacher, self.task_loss, self.temperature, self.alpha = teacher, task_loss, temperature, alpha
        self._logits: torch.Tensor | None = None

    def ask(self, inputs: dict[str, Any]) -> None:
        """Let the teacher see the batch that the loss is computed for next."""
        self.teacher.model.to(inputs["input_ids"].device)
        self._logits = self.teacher.logits(inputs)

    def loss(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        """As `Task.loss`; where the teacher was not asked, as in validation, it is that of the task alone."""
        loss = self.task_loss(outputs, labels, num_items_in_batch=num_items_in_batch)
        if self._logits is None:
            return loss
        teacher, self._logits = self._logits, None
        student = outputs["logits"][..., : teacher.shape[-1]]
        if student.ndim == 3:  # the logits at a token are for the next one
            student, teacher, mask = student[:, :-1], teacher[:, :-1], labels[:, 1:] != IGNORED
        else:
            mask = torch.ones(len(student), dtype=torch.bool, device=student.device)
        items = mask.sum() if num_items_in_batch is None else num_items_in_batch
        part = divergence(student[mask], teacher[mask], self.temperature) / items
        return self.alpha * part + (1 - self.alpha) * loss


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """The Kullback-Leibler divergence of the student's distributions from the teacher's, summed over them and scaled.

    Both are softened by the temperature. Its square keeps the size of the gradient as the temperature changes (section 2).

    Args:
        student, teacher: logits of shape [distributions, classes].
    """
    ours, theirs = (log_softmax(logits.float() / temperature, dim=-1) for logits in (student, teacher))
    return temperature**2 * kl_div(ours, theirs, reduction="sum", log_target=True)
