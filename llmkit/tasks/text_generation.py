"""Text generation as instruction models do it: a completion after a prompt, or an assistant's turns in a conversation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from llmkit.errors import ConfigError, DataError
from llmkit.tasks import base
from llmkit.tasks.features import IGNORED
from llmkit.tasks.language import LanguageTask, smoothing_of, told, without_end
from llmkit.tasks.tables import Row, pick_column, places

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from llmkit.tasks.features import Features

# Whose turn it is stands there in words: a base model's vocabulary has no tokens for it, and new ones would be untrained rows
# in its embeddings. What ends an assistant's turn is the EOS, which the model knows. The markers of `generation` tell
# transformers (and other trainers) which part is the assistant's.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- message['role'] | capitalize + ':\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] | trim + eos_token -}}{%- endgeneration -%}{{- '\n' -}}"
    "{%- else -%}"
    "{{- message['content'] | trim + '\n\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:\n' -}}{%- endif -%}"
)
"""The chat template of a model whose tokenizer has none."""

MESSAGES, PROMPTS = ("messages", "conversations"), ("prompt", "instruction", "question")
COMPLETIONS = ("completion", "output", "response", "answer")
_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


@dataclass(kw_only=True)
class Example(base.Example):
    """What stands there, as text or as a conversation, and what is to follow."""

    prompt: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    """The conversation up to the assistant's last turn, each with `role` and `content`; empty where the prompt is text."""
    completion: str
    """The text that follows, or the assistant's last turn. Empty where none is known."""

    def input(self) -> str:
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in self.messages) or self.prompt

    def target(self) -> str:
        return self.completion

    def last_message(self) -> str:
        """The last that was said before the completion."""
        return self.messages[-1]["content"] if self.messages else self.prompt


class TextGeneration(LanguageTask[Example]):
    """Text that follows."""

    name = "text-generation"
    title = "Text generator"
    metrics: ClassVar[dict[str, bool]] = {"perplexity": False, "token_accuracy": True}

    def __init__(self, is_chat: bool, max_new_tokens: int = 128, num_beams: int = 1, label_smoothing: float = 0.0):
        """Set up; see `LanguageTask`.

        Args:
            is_chat: whether it has learned conversations.
        """
        super().__init__(max_new_tokens, num_beams, label_smoothing)
        self.is_chat = is_chat

    @property
    def usage(self) -> str:
        """The Python lines on its card."""
        asked = '[{"role": "user", "content": "Say hello."}]' if self.is_chat else '"Say hello."'
        return (
            "from transformers import pipeline\n\n"
            'generate = pipeline("text-generation", model="PATH_OF_THIS_DIRECTORY")\n'
            f"print(generate({asked}, max_new_tokens={self.max_new_tokens}))"
        )

    @classmethod
    def of_config(cls, config: Any) -> TextGeneration:
        return cls(False, config.max_new_tokens, config.num_beams, smoothing_of(config))

    @classmethod
    def of_model(cls, stored: Mapping[str, Any], config: PretrainedConfig) -> TextGeneration:
        task = cls(bool(stored.get("is_chat")), **told(stored))
        task.adapt_to(config, 0)
        return task

    def stored(self) -> dict[str, Any]:
        return {**super().stored(), "is_chat": self.is_chat}

    def adapt_to(self, config: PretrainedConfig, max_length: int) -> int:
        if config.is_encoder_decoder:
            raise ConfigError([f"task: {self.name} needs a causal model, and {config.model_type} is an encoder-decoder"])
        return super().adapt_to(config, max_length)

    # Examples

    def read(self, rows: list[Row], columns: Any, is_labelled: bool = True) -> list[Example]:
        first = rows[0].values
        if columns.messages_column or (columns.prompt_column is None and any(name in first for name in MESSAGES)):
            column = pick_column(rows, columns.messages_column, MESSAGES, "messages_column")
            return _conversations(rows, column, is_labelled)
        prompt_name = pick_column(rows, columns.prompt_column, PROMPTS, "prompt_column")
        completion_name = pick_column(rows, columns.completion_column, COMPLETIONS, "completion_column") if is_labelled else ""
        found, empty, without = [], [], []
        for row in rows:
            prompt, completion = row.values.get(prompt_name), row.values.get(completion_name) if is_labelled else ""
            if not isinstance(prompt, str) or not prompt.strip():
                empty.append(row)
            elif not isinstance(completion, str) or (is_labelled and not completion.strip()):
                without.append(row)
            elif prompt_name == "instruction" or self.is_chat:  # a model of conversations is asked in one
                # With a text to work on beside the instruction: the shape of Taori et al. 2023 (Alpaca).
                given = row.values.get("input") if prompt_name == "instruction" else None
                asked = f"{prompt}\n\n{given}" if isinstance(given, str) and given.strip() else prompt
                messages = [{"role": "user", "content": asked.strip()}]
                found.append(Example(id=_id(row), place=row.place, messages=messages, completion=completion.strip()))
            else:
                found.append(Example(id=_id(row), place=row.place, prompt=prompt, completion=completion))
        _refuse(empty, f"have no text in column {prompt_name!r}")
        _refuse(without, f"have no text in column {completion_name!r}")
        return found

    def learn(self, train: list[Example]) -> Iterator[str]:
        self.is_chat = any(example.messages for example in train)
        yield "conversations, of which the assistant's turns are learned" if self.is_chat else "completions of prompts"

    def load_tokenizer(self, name: str) -> Any:
        tokenizer = super().load_tokenizer(name)
        if self.is_chat and not tokenizer.chat_template:
            tokenizer.chat_template = CHAT_TEMPLATE
        return tokenizer

    def described(self) -> dict[str, Any]:
        return {"conversations": self.is_chat}

    def facts(self, data: list[Example]) -> dict[str, Any]:
        return {"turns": sum(1 + sum(turn["role"] == "assistant" for turn in example.messages[1:]) for example in data)}

    def what_it_is(self) -> str:
        return f"A causal language model that {'answers in conversations' if self.is_chat else 'goes on after prompts'}"

    # Features

    def sequences(self, example: Example, tokenizer: Any) -> tuple[list[int], list[int]]:
        # What the assistant says first answers nothing, and no model is asked for it: it is read, and not learned.
        return self._conversation(example, tokenizer, 1) if example.messages else self._completed(example, tokenizer)

    def reference(self, example: Example, tokenizer: Any) -> tuple[list[int], list[int]]:
        """As `sequences`. Where a template rewrites earlier turns it is the last one alone, and where it rewrites the prompt
        itself, what follows that: the model has answered, and its answer is kept whatever the template does."""
        for first in (1, len(example.messages)) if example.messages else ():
            with contextlib.suppress(ConfigError):
                return self._conversation(example, tokenizer, first)
        return self._completed(example, tokenizer)

    def _completed(self, example: Example, tokenizer: Any) -> tuple[list[int], list[int]]:
        """The prompt, and the completion with an EOS right after it."""
        read = self.prompt(example, tokenizer)
        learned = [
            *tokenizer(example.completion, add_special_tokens=False, verbose=False)["input_ids"],
            tokenizer.eos_token_id,
        ]
        return _from_the_second(read + learned, [IGNORED] * len(read) + learned)

    def _conversation(self, example: Example, tokenizer: Any, first: int) -> tuple[list[int], list[int]]:
        """A conversation, of which the assistant's turns are learned, from the turn of number `first` on."""
        ids: list[int] = []
        labels: list[int] = []
        for text, is_learned in self._pieces(example, tokenizer, first):
            piece = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            ids += piece
            labels += piece if is_learned else [IGNORED] * len(piece)
        return _from_the_second(ids, labels)

    def _pieces(self, example: Example, tokenizer: Any, first: int) -> Iterator[tuple[str, bool]]:
        """A conversation as its template writes it, cut where the assistant's turns begin and end, EOS included."""
        turns = [*example.messages, {"role": "assistant", "content": example.completion}]
        end, done, rest = tokenizer.eos_token, "", ""
        for number, turn in enumerate(turns):
            if turn["role"] != "assistant" or number < first:
                continue
            before = _rendered(tokenizer, turns[:number], True)
            after = _rendered(tokenizer, turns[: number + 1], False)
            if not (before.startswith(done) and after.startswith(before)):
                raise ConfigError(
                    [
                        f"the chat template of the tokenizer writes the beginning of a conversation differently once it goes "
                        f"on, so that turns cannot be learned together ({example.place}); give each turn a row of its own"
                    ]
                )
            learned, found, tail = after[len(before) :].rpartition(end)
            if not found:  # the template leaves it to the caller to end the last turn
                learned, tail = tail, ""
            yield rest + before[len(done) :], False
            yield learned + (found or (end if number == len(turns) - 1 else "")), True
            done, rest = after, tail

    def prompt(self, example: Example, tokenizer: Any) -> list[int]:
        if not example.messages:  # text begins as the tokenizer begins texts; a chat template has its own beginning
            return without_end(tokenizer(example.prompt, verbose=False)["input_ids"], tokenizer)
        text = _rendered(tokenizer, example.messages, True)
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def features(self, data: list[Example], tokenizer: Any, max_length: int) -> Features:
        made = super().features(data, tokenizer, max_length)
        made.facts["completion_tokens"] = round(len(made) * self.targets_per_example(made))
        return made


def _from_the_second(ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
    """What is learned without the first token: there is nothing to predict it from."""
    return ids, [IGNORED, *labels[1:]]


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, str]], goes_on: bool) -> str:
    from jinja2 import TemplateError

    template = tokenizer.chat_template or CHAT_TEMPLATE
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=goes_on, chat_template=template
            )
        )
    except TemplateError as failure:
        first = messages[0]["content"][:40] if messages else ""
        raise DataError(
            f"the chat template of the tokenizer refuses the conversation that begins {first!r}: {failure}"
        ) from failure


def _conversations(rows: list[Row], column: str, is_labelled: bool) -> list[Example]:
    """Examples from lists of messages, with `role` and `content` or (as ShareGPT has them) `from` and `value`. What the
    assistant says last is no part of what is asked, and a target only where targets are wanted."""
    found, broken, silent = [], [], []
    for row in rows:
        turns = _turns(row.values.get(column))
        if turns is None:
            broken.append(row)
            continue
        while turns and turns[-1]["role"] != "assistant" and is_labelled:  # nothing is said to it
            turns.pop()
        ends = bool(turns) and turns[-1]["role"] == "assistant"
        messages, completion = (turns[:-1], turns[-1]["content"]) if ends else (turns, "")
        if not messages or (is_labelled and not ends):
            silent.append(row)
        else:
            completion = completion if is_labelled else ""
            found.append(Example(id=_id(row), place=row.place, messages=messages, completion=completion))
    _refuse(
        broken,
        f"have in column {column!r} no messages, each with a role ({', '.join(dict.fromkeys(_ROLES))}) and a text of its own",
    )
    _refuse(silent, f"have in column {column!r} no turn of the assistant after another's")
    return found


def _turns(messages: Any) -> list[dict[str, str]] | None:
    if not isinstance(messages, list) or not messages:
        return None
    turns = []
    for message in messages:
        if not isinstance(message, dict):
            return None
        role = _ROLES.get(message.get("role") or message.get("from") or "")
        content = message.get("content") if "content" in message else message.get("value")
        if role is None or not isinstance(content, str) or not content.strip():
            return None
        turns.append({"role": role, "content": content.strip()})
    return turns


def _id(row: Row) -> str:
    return str(row.values.get("id", Path(row.place).name))


def _refuse(rows: list[Row], what: str) -> None:
    if rows:
        raise DataError(f"{len(rows)} rows {what}: {places(rows)}; remove or mend them")
