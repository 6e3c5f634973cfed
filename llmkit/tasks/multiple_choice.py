"""Multiple choice for a causal language model: which of several texts it finds most likely after a question.

Nothing is learned for it. What the choices of one question have in common is computed once, and its keys and values serve all
of them; the losses are those of the plain way, one sequence a choice.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from llmkit.errors import ColumnError, ConfigError, DataError
from llmkit.tasks import base
from llmkit.tasks.base import batches_of_like_length
from llmkit.tasks.features import IGNORED
from llmkit.tasks.language import LanguageTask, smoothing_of, told
from llmkit.tasks.tables import Row, pick_column, places
from llmkit.tasks.token_losses import TokenScorer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

QUESTIONS, CONTEXTS = ("question", "prompt", "query", "ctx", "text", "sentence"), ("context", "passage")
CHOICES = ("choices", "options", "endings")
ANSWERS = ("answer", "label", "gold", "answerKey")


@dataclass(kw_only=True)
class Example(base.Example):
    """A question, what may follow, and which of it is right."""

    question: str
    """All that stands before the choice."""
    choices: list[str]
    answer: int | None
    """The number of the right choice, from 0; None where it is not known."""

    def input(self) -> str:
        return "\n".join([self.question, *(f"- {choice}" for choice in self.choices)])

    def target(self) -> str:
        return "" if self.answer is None else self.choices[self.answer]


@dataclass
class _Question:
    """A question as tokens."""

    before: list[list[int]]
    """What stands before each choice, at least one token: the same for all, unless a choice changes how it is encoded."""
    choices: list[list[int]]

    @property
    def is_shared(self) -> bool:
        """Whether all choices go on from the same tokens."""
        return all(tokens == self.before[0] for tokens in self.before)

    @property
    def length(self) -> int:
        """Tokens that the model reads."""
        return len(self.before[0]) + sum(map(len, self.choices))


class MultipleChoice(LanguageTask[Example]):
    """The most likely of several texts."""

    name = "multiple-choice"
    title = "Language model that chooses"
    metrics: ClassVar[dict[str, bool]] = {"perplexity": False, "token_accuracy": True}

    @property
    def usage(self) -> str:
        """The Python lines on its card."""
        return (
            "from llmkit.tasks.loading import load_task_model\n"
            "from llmkit.tasks.multiple_choice import Example\n\n"
            'task, model, tokenizer = load_task_model("PATH_OF_THIS_DIRECTORY", "multiple-choice")\n'
            'asked = Example(id="1", place="1", question="The sky is", choices=["blue", "square"], answer=None)\n'
            "print(next(task.predict(model, tokenizer, [asked], batch_size=1)))"
        )

    @classmethod
    def of_config(cls, config: Any) -> MultipleChoice:
        return cls(config.max_new_tokens, config.num_beams, smoothing_of(config))

    @classmethod
    def of_model(cls, stored: Mapping[str, Any], config: PretrainedConfig) -> MultipleChoice:
        task = cls(**{"max_new_tokens": 128, "num_beams": 1, **told(stored)})
        task.adapt_to(config, 0)
        return task

    def adapt_to(self, config: PretrainedConfig, max_length: int) -> int:
        if config.is_encoder_decoder:
            raise ConfigError([f"task: {self.name} needs a causal model, and {config.model_type} is an encoder-decoder"])
        return super().adapt_to(config, max_length)

    # Examples

    def read(self, rows: list[Row], columns: Any, is_labelled: bool = True) -> list[Example]:
        choices_name = pick_column(rows, columns.choices_column, CHOICES, "choices_column")
        question_name, context_name = self._question_columns(rows, columns)
        answer_name = pick_column(rows, columns.label_column, ANSWERS, "label_column") if is_labelled else None
        found, broken, unanswered = [], [], []
        for row in rows:
            question, choices = row.values.get(question_name), _choices(row.values.get(choices_name))
            context = row.values.get(context_name) if context_name else None
            answer = None if answer_name is None else _answer(row.values.get(answer_name), *choices)
            if not isinstance(question, str) or not question.strip() or len(choices[0]) < 2:
                broken.append(row)
            elif is_labelled and answer is None:
                unanswered.append(row)
            else:
                asked = f"{context}\n{question}" if isinstance(context, str) and context.strip() else question
                id = str(row.values.get("id", Path(row.place).name))
                found.append(Example(id=id, place=row.place, question=asked, choices=choices[0], answer=answer))
        if broken:
            what = f"no text in column {question_name!r} or no list of two or more texts in column {choices_name!r}"
            raise DataError(f"{len(broken)} rows have {what}: {places(broken)}; remove or mend them")
        if unanswered:
            what = f"in column {answer_name!r} neither the number (from 0), the letter nor the text of a choice"
            raise DataError(f"{len(unanswered)} rows have {what}: {places(unanswered)}; remove or mend them")
        return found

    def _question_columns(self, rows: list[Row], columns: Any) -> tuple[str, str | None]:
        there = rows[0].values
        context = columns.context_column or next((name for name in CONTEXTS if name in there), None)
        try:
            question = pick_column(rows, columns.question_column, QUESTIONS, "question_column")
        except ColumnError:
            if columns.question_column or context is None:
                raise
            return context, None  # the choices go on after a context alone
        return question, context

    # Tokens

    def prompt(self, example: Example, tokenizer: Any) -> list[int]:
        return _encoded([example.question.rstrip()], tokenizer)[0]

    def sequences(self, example: Example, tokenizer: Any) -> tuple[list[int], list[int]]:
        """The question with its right choice, which alone is learned."""
        (question,) = self._questions([example], tokenizer, None)
        before, choice = question.before[example.answer or 0], question.choices[example.answer or 0]
        return before + choice, [IGNORED] * len(before) + choice

    def _questions(self, data: Sequence[Example], tokenizer: Any, context: int | None) -> list[_Question]:
        """Questions as tokens. A choice stands after a space, and is encoded together with the question, as
        lm-evaluation-harness does; where both are longer than the context, the beginning is left out."""
        asked = [example.question.rstrip() for example in data]
        spaces = [example.question[len(text) :] or " " for example, text in zip(data, asked, strict=True)]
        prompts = _encoded(asked, tokenizer)
        texts = [
            f"{text}{space}{choice}"
            for example, text, space in zip(data, asked, spaces, strict=True)
            for choice in example.choices
        ]
        wholes = iter(_encoded(texts, tokenizer))
        found = []
        for example, prompt in zip(data, prompts, strict=True):
            question = _Question([], [])
            for choice in example.choices:
                whole = next(wholes)
                before, tokens = whole[: len(prompt)], whole[len(prompt) :]
                left_out = max(0, len(whole) - 1 - context) if context is not None else 0
                if not tokens or left_out >= len(before):
                    why = "is more than the model reads" if tokens else "adds no token to the question"
                    raise DataError(f"{example.place}: the choice {choice[:40]!r} {why}")
                question.before.append(before[left_out:])
                question.choices.append(tokens)
            found.append(question)
        return found

    # Predictions

    def predict(self, model: Any, tokenizer: Any, data: Sequence[Example], batch_size: int) -> Iterator[dict[str, Any]]:
        """The number of the most likely choice (`choice`) and its text; also the one that is most likely a character
        (`choice_norm`) and a byte (`choice_bytes`), by which long choices are at no disadvantage; `loglikelihoods` of all, and
        as `score` the share of the chosen one in their probabilities."""
        questions = self._questions(data, tokenizer, self.context(model.config, tokenizer))
        for example, found in zip(data, self._loglikelihoods(model, questions, batch_size), strict=True):
            sizes = np.array([[len(text), len(text.encode())] for text in example.choices], dtype=np.float64)
            best = int(found.argmax())
            chances = np.exp(found - found.max())
            yield {
                "prediction": example.choices[best],
                "score": float(chances[best] / chances.sum()),
                "choice": best,
                "choice_norm": int((found / sizes[:, 0]).argmax()),
                "choice_bytes": int((found / sizes[:, 1]).argmax()),
                "loglikelihoods": found.tolist(),
            }

    def _loglikelihoods(self, model: Any, questions: Sequence[_Question], batch_size: int) -> Iterator[np.ndarray]:
        """Of each question the log-likelihoods of its choices, float64 of shape [choices]."""
        scorer, can_share = TokenScorer(model), _can_share(model)
        found: list[np.ndarray] = [np.empty(0)] * len(questions)
        lengths = np.array([question.length for question in questions])
        for chosen in batches_of_like_length(lengths, batch_size):
            batch = [questions[index] for index in chosen]
            shares = can_share and all(question.is_shared for question in batch)
            losses = _losses_shared(scorer, batch) if shares else _losses_plainly(scorer, batch)
            ends = np.cumsum([len(question.choices) for question in batch])[:-1]
            for index, values in zip(chosen, np.split(-losses, ends), strict=True):
                found[index] = values
        yield from found


def _can_share(model: Any) -> bool:
    """Whether the model keeps keys and values of single tokens, which can be masked one by one. A window that slides over
    them, or a state that takes them all in, cannot forget what fills up a row."""
    takes = inspect.signature(model.forward).parameters
    if not {"past_key_values", "position_ids", "attention_mask"} <= takes.keys():
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def _losses_shared(scorer: TokenScorer, questions: list[_Question]) -> np.ndarray:
    """The loss of each choice. What stands before the choices is read once, and foretells the first token of all of them;
    those with further tokens go on from there.

    Rows are filled up on the right: the beginnings need no mask, as causal attention does not look ahead, and what filled them
    up is masked when the choices are read.
    """
    device, cache = scorer.model.device, DynamicCache(config=scorer.model.config)
    shared = _filled([question.before[0] for question in questions], 0)
    lengths = torch.tensor([len(question.before[0]) for question in questions])
    is_last = torch.arange(shared.shape[1]) == lengths[:, None] - 1
    states = scorer.states(shared, is_last, past_key_values=cache, use_cache=True)
    owners = torch.repeat_interleave(torch.tensor([len(question.choices) for question in questions]))
    choices = [choice for question in questions for choice in question.choices]
    losses = scorer.losses(states[owners.to(device)], torch.tensor([choice[0] for choice in choices]))[0]
    longer = [number for number, choice in enumerate(choices) if len(choice) > 1]
    if not longer:
        return losses
    owners = owners[longer]
    cache.batch_select_indices(owners.to(device))
    rests = [choices[number] for number in longer]
    before, sizes = lengths[owners][:, None], torch.tensor([[len(choice) - 1] for choice in rests])
    ids = _filled([choice[:-1] for choice in rests], 0)
    places = torch.arange(ids.shape[1])
    further = scorer(
        ids,
        _filled([choice[1:] for choice in rests], IGNORED),
        past_key_values=cache,
        position_ids=(before + torch.minimum(places, sizes - 1)).to(device),  # what fills up has none of its own
        attention_mask=torch.cat([torch.arange(shared.shape[1]) < before, places < sizes], dim=1).to(device),
    )[0]
    np.add.at(losses, np.repeat(longer, sizes[:, 0]), further)
    return losses


def _losses_plainly(scorer: TokenScorer, questions: list[_Question]) -> np.ndarray:
    """The loss of each choice, read with all that stands before it."""
    pairs = [pair for question in questions for pair in zip(question.before, question.choices, strict=True)]
    ids = _filled([[*before, *choice[:-1]] for before, choice in pairs], 0)
    asked = _filled([[IGNORED] * (len(before) - 1) + choice for before, choice in pairs], IGNORED)
    losses = np.zeros(len(pairs))
    np.add.at(losses, np.repeat(np.arange(len(pairs)), [len(choice) for _, choice in pairs]), scorer(ids, asked)[0])
    return losses


def _filled(rows: list[list[int]], value: int) -> torch.Tensor:
    """Rows of one length, filled up on the right; int64."""
    filled = torch.full((len(rows), max(map(len, rows))), value)
    for row, ids in zip(filled, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return filled


def _encoded(texts: list[str], tokenizer: Any) -> list[list[int]]:
    return list(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])


def _choices(value: Any) -> tuple[list[str], list[str]]:
    """The texts of the choices and what they are called: a list, or as ARC has them lists `text` and `label`."""
    names: Any = []
    if isinstance(value, dict):
        value, names = value.get("text"), value.get("label")
    if isinstance(value, str):
        try:
            value = json.loads(value)  # as a CSV file holds a list
        except ValueError:
            return [], []
    texts = value if isinstance(value, list) and all(isinstance(item, str) and item for item in value) else []
    return texts, [str(name) for name in names or []]


def _answer(value: Any, texts: list[str], names: list[str]) -> int | None:
    """The number of the right choice, from how a data set tells it: by number, by what choices are called, or by its text."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):  # a number is no text, also where choices are numbers
        if str(value) in names:
            return names.index(str(value))
        return value if 0 <= value < len(texts) else None
    if not isinstance(value, str):
        return None
    for known in (names, texts):
        if value in known:
            return known.index(value)
    if len(value) == 1 and "A" <= value <= "Z":
        value = ord(value) - ord("A")
    try:
        number = int(value)
    except ValueError:
        return None
    return number if 0 <= number < len(texts) else None
