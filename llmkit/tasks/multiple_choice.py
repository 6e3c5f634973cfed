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
from llmkit.tasks.base import batches_of_like_length, context_length
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

    shared: list[int]
    """What the choices have in common of what the model reads, without the last token before they differ."""
    rests: list[list[int]]
    """What it reads of each after that."""
    targets: list[list[int]]
    """What follows each token of the rests; `IGNORED` before the choice begins."""


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
        return _encoded(example.question.rstrip(), tokenizer) or [_first_token(tokenizer)]

    def sequences(self, example: Example, tokenizer: Any) -> tuple[list[int], list[int]]:
        """The question with its right choice, which alone is learned."""
        before, whole = self._with_choice(example, example.answer or 0, tokenizer)
        return whole, [IGNORED] * before + whole[before:]

    def _with_choice(self, example: Example, number: int, tokenizer: Any) -> tuple[int, list[int]]:
        """The tokens of the question with a choice after a space, and how many of them stand before the choice; they are
        encoded as one text, as lm-evaluation-harness does."""
        before = self.prompt(example, tokenizer)
        spaces = example.question[len(example.question.rstrip()) :]
        whole = _encoded(f"{example.question.rstrip()}{spaces or ' '}{example.choices[number]}", tokenizer)
        if not example.question.strip():
            whole = before + whole
        return len(before), whole

    def _question(self, example: Example, tokenizer: Any, context: int) -> _Question:
        """Tokens of a question; where they are too many, its beginning is left out."""
        read, asked = [], []
        for number in range(len(example.choices)):
            before, whole = self._with_choice(example, number, tokenizer)
            targets = [IGNORED] * (before - 1) + whole[before:]
            if len(targets) < len(whole) - 1 or before >= len(whole):
                raise DataError(f"{example.place}: of the choice {example.choices[number]!r} no token is left to be scored")
            read.append(whole[:-1][-context:])
            asked.append(targets[-context:])
        common = 0
        limit = min(len([target for target in targets if target == IGNORED]) for targets in asked)
        while common < limit and len({ids[common] for ids in read}) == 1:
            common += 1
        return _Question(read[0][:common], [ids[common:] for ids in read], [targets[common:] for targets in asked])

    # Predictions

    def predict(self, model: Any, tokenizer: Any, data: Sequence[Example], batch_size: int) -> Iterator[dict[str, Any]]:
        """The number of the most likely choice (`choice`) and its text; also the one that is most likely a character
        (`choice_norm`) and a byte (`choice_bytes`), by which long choices are at no disadvantage; `loglikelihoods` of all, and
        as `score` the share of the chosen one in their probabilities."""
        context = context_length(model.config, tokenizer, None)
        questions = [self._question(example, tokenizer, context) for example in data]
        for example, found in zip(data, self.loglikelihoods(model, questions, batch_size), strict=True):
            sizes = np.array([[len(text), len(text.encode())] for text in example.choices], dtype=np.float64)
            best = int(found.argmax())
            chances = np.exp(found - found.max())
            yield {
                "prediction": example.choices[best],
                "score": float(chances[best] / chances.sum()),
                "choice": best,
                "choice_norm": int((found / np.maximum(sizes[:, 0], 1)).argmax()),
                "choice_bytes": int((found / np.maximum(sizes[:, 1], 1)).argmax()),
                "loglikelihoods": found.tolist(),
            }

    def loglikelihoods(self, model: Any, questions: Sequence[_Question], batch_size: int) -> Iterator[np.ndarray]:
        """Of each question the log-likelihoods of its choices, float64 of shape [choices]."""
        scorer = TokenScorer(model)
        score = _scored_shared if _can_share(model) else _scored_plainly
        found: list[np.ndarray] = [np.empty(0)] * len(questions)
        lengths = np.array([len(item.shared) + sum(map(len, item.rests)) for item in questions])
        for chosen in batches_of_like_length(lengths, batch_size):
            for index, values in zip(chosen, score(scorer, [questions[index] for index in chosen]), strict=True):
                found[index] = values
        yield from found


def _can_share(model: Any) -> bool:
    """Whether the model keeps keys and values of single tokens, which can be masked one by one. A window that slides over
    them, or a state that takes them all in, cannot forget what fills up a row."""
    takes = inspect.signature(model.forward).parameters
    if not {"past_key_values", "position_ids", "attention_mask"} <= takes.keys():
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def _scored_shared(scorer: TokenScorer, questions: list[_Question]) -> Iterator[np.ndarray]:
    """What the choices share is read once, with questions side by side, then all choices go on from there.

    Rows are filled up on the right: the beginnings need no mask, as causal attention does not look ahead, and what filled them
    up is masked when the choices are read.
    """
    if not all(question.shared for question in questions):
        yield from _scored_plainly(scorer, questions)
        return
    cache = DynamicCache(config=scorer.model.config)
    lengths = torch.tensor([len(question.shared) for question in questions])
    shared = _filled([question.shared for question in questions], 0)
    scorer.read(shared, cache)
    owners = torch.repeat_interleave(torch.tensor([len(question.rests) for question in questions]))
    device = scorer.model.device
    cache.batch_select_indices(owners.to(device))
    rests = [rest for question in questions for rest in question.rests]
    before = lengths[owners][:, None]
    ids, asked = _filled(rests, 0), _filled([row for question in questions for row in question.targets], IGNORED)
    sizes = torch.tensor([len(rest) for rest in rests])[:, None]
    places = torch.arange(ids.shape[1])
    is_read, is_new = torch.arange(shared.shape[1]) < before, places < sizes
    yield from _by_question(
        questions,
        scorer(
            ids,
            asked,
            past_key_values=cache,
            position_ids=(before + torch.minimum(places, sizes - 1)).to(device),  # what fills up has none of its own
            attention_mask=torch.cat([is_read, is_new], dim=1).to(device),
        )[0],
    )


def _scored_plainly(scorer: TokenScorer, questions: list[_Question]) -> Iterator[np.ndarray]:
    """Each choice with all that stands before it."""
    ids = [question.shared + rest for question in questions for rest in question.rests]
    asked = [[IGNORED] * len(question.shared) + row for question in questions for row in question.targets]
    yield from _by_question(questions, scorer(_filled(ids, 0), _filled(asked, IGNORED))[0])


def _by_question(questions: list[_Question], losses: np.ndarray) -> Iterator[np.ndarray]:
    """The log-likelihoods of choices from the losses of their tokens, one after the other."""
    counts = [sum(target != IGNORED for target in row) for question in questions for row in question.targets]
    sums = np.array([part.sum() for part in np.split(losses, np.cumsum(counts)[:-1])])
    yield from (-part for part in np.split(sums, np.cumsum([len(question.rests) for question in questions])[:-1]))


def _filled(rows: list[list[int]], value: int) -> torch.Tensor:
    """Rows of one length, filled up on the right; int64."""
    filled = torch.full((len(rows), max(map(len, rows))), value)
    for row, ids in zip(filled, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return filled


def _encoded(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _first_token(tokenizer: Any) -> int:
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return int(first)


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
    if isinstance(value, bool) or value is None:
        return None
    for known in (names, texts):
        if str(value) in known:
            return known.index(str(value))
    if isinstance(value, str) and len(value) == 1 and "A" <= value <= "Z":
        value = ord(value) - ord("A")
    try:
        number = int(value)
    except ValueError:
        return None
    return number if 0 <= number < len(texts) else None
