"""Questions and their contexts as a model for extractive question answering takes them.

A context that is longer than an input is divided into windows, each with the whole question, and neighbours share some tokens.
The answer of a window is a pair of tokens; where the answer does not lie in it wholly, that is the null slot, twice. In an
encoder the null slot is CLS, as in BERT. In a causal model a token is computed from what stands before it, so that the first
says nothing of question and context: there the null slot is the EOS at the end.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from llmkit.errors import ConfigError
from llmkit.tasks.features import Features, Ragged

FOR_DECODING = ("char_start", "char_end", "example", "null")
"""Columns of features that are no input of the model."""


class Asked(Protocol):
    """A question with its context; `answers` are pairs of text and offset in characters, none where there is no answer."""

    question: str
    context: str
    answers: list[tuple[str, int]]


@dataclass(frozen=True)
class Frame:
    """The tokens around two texts, and where the null slot is."""

    before: list[int]
    between: list[int]
    after: list[int]
    types: tuple[int, int, int, int, int] | None
    """Token types of the three and the two texts, in their order; None for models that have none."""
    null: int
    """The index of the null slot in an input; negative where it is counted from the end."""

    @property
    def size(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


def frame_of(tokenizer: Any, is_causal: bool, has_types: bool) -> Frame:
    """The tokenizer's own form of a pair of texts, where it has one and the model is an encoder.

    Otherwise the first text, a separator (SEP, or else a line break as the model has read it in texts), the second, and EOS.

    Raises:
        ConfigError: the tokenizer has no EOS.
    """
    pair = tokenizer("a", "b").encodings[0]
    sequence = np.array([-1 if number is None else number for number in pair.sequence_ids])
    first, second = np.flatnonzero(sequence == 0), np.flatnonzero(sequence == 1)
    before, between = pair.ids[: first[0]], pair.ids[first[-1] + 1 : second[0]]
    if between and not is_causal:
        after = pair.ids[second[-1] + 1 :]
        ends = (0, first[0], first[-1] + 1, second[0], min(second[-1] + 1, len(pair.ids) - 1))
        types = tuple(int(pair.type_ids[index]) for index in ends)
    else:
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        if end is None:
            raise ConfigError(["model_name_or_path: its tokenizer has no EOS token, the place where `no answer` is scored"])
        line = tokenizer("\n", add_special_tokens=False)["input_ids"]
        reads_lines = line and tokenizer.unk_token_id not in line
        separator = tokenizer.sep_token_id if not is_causal else None
        between, after = ([separator] if separator is not None else line if reads_lines else [end]), [end]
        types = (0, 0, 0, 1, 1)
    cls = tokenizer.cls_token_id
    if cls is not None and not is_causal and cls in before:
        null = before.index(cls)
    elif cls is not None and not is_causal and cls in after:
        null = after.index(cls) - len(after)
    else:
        null = -1
    return Frame(before, between, after, types if has_types else None, null)  # type: ignore[arg-type]


def window_starts(length: int, room: int, shared: int) -> range:
    """Where windows of `room` tokens begin in a context of `length`, so that they cover it and neighbours share tokens."""
    step = room - shared
    count = 1 + -(-max(0, length - room) // step)
    return range(0, count * step, step)


def answer_tokens(starts: np.ndarray, ends: np.ndarray, begin: int, end: int) -> tuple[int, int] | None:
    """The first and the last token of the characters from begin to end; None if no token has any of them.

    Args:
        starts, ends: characters of each token, int64 of shape [tokens], not falling.
    """
    first, last = int(np.searchsorted(ends, begin, "right")), int(np.searchsorted(starts, end, "left")) - 1
    return (first, last) if first <= last else None


def windows(
    data: Sequence[Asked], tokenizer: Any, frame: Frame, max_length: int, doc_stride: int, question_first: bool
) -> Features:
    """One feature a window: `input_ids`, `token_type_ids` where the model has them, and as `labels` the indices of the first
    and the last token of the answer and the number of tokens, int64 of shape [3].

    For decoding there are, of the same length as `input_ids`, `char_start` and `char_end` in the context (-1 for a token that
    is not of it), and of each window the number of its `example` and the index of its `null` slot. Learned is the first of
    the answers. A question longer than half of the input is cut.

    Raises:
        ConfigError: `max_length` has no room for question and context.
    """
    space = max_length - frame.size
    if space < 2:
        raise ConfigError([f"max_length: {max_length} tokens have no room for a question and a context; take at least 64"])
    contexts = list(dict.fromkeys(item.context for item in data))
    questions = list(dict.fromkeys(item.question for item in data))
    encoded = dict(zip(contexts, _encode(tokenizer, contexts), strict=True))  # many questions are about one context
    asked = dict(zip(questions, _encode(tokenizer, questions), strict=True))
    before, between, after = (np.array(ids, dtype=np.int32) for ids in (frame.before, frame.between, frame.after))
    columns: dict[str, list[Any]] = {name: [] for name in ("input_ids", "token_type_ids", "labels", *FOR_DECODING)}
    cut = 0
    for number, item in enumerate(data):
        question = asked[item.question][0]
        cut += len(question) > space // 2
        question = question[: space // 2]
        ids, starts, ends = encoded[item.context]
        room = space - len(question)
        answer = None
        if item.answers:
            text, begin = item.answers[0]
            answer = answer_tokens(starts, ends, begin, begin + len(text))
        for start in window_starts(len(ids), room, min(doc_stride, room // 2)):
            part = slice(start, start + room)
            context = ids[part]
            texts = (question, context) if question_first else (context, question)
            pieces = [before, texts[0], between, texts[1], after]
            sizes = [len(piece) for piece in pieces]
            offset = len(before) if not question_first else len(before) + len(question) + len(between)
            length = sum(sizes)
            null = frame.null % length
            labels = (null, null, length)
            if answer is not None and start <= answer[0] and answer[1] < start + len(context):
                labels = (answer[0] - start + offset, answer[1] - start + offset, length)
            columns["input_ids"].append(np.concatenate(pieces))
            if frame.types is not None:
                columns["token_type_ids"].append(np.repeat(frame.types, sizes))
            for name, characters in (("char_start", starts), ("char_end", ends)):
                there = np.full(length, -1, dtype=np.int32)
                there[offset : offset + len(context)] = characters[part]
                columns[name].append(there)
            columns["labels"].append(labels)
            columns["example"].append(number)
            columns["null"].append(null)
    ragged = ("input_ids", "token_type_ids", "char_start", "char_end")
    made = {
        name: Ragged.of(values) if name in ragged else np.array(values, dtype=np.int64)
        for name, values in columns.items()
        if name != "token_type_ids" or frame.types is not None
    }
    without = sum(first == null for (first, _, _), null in zip(columns["labels"], columns["null"], strict=True))
    return Features(made, {"truncated": cut, "windows": len(columns["null"]), "windows_without_answer": without})


def _encode(tokenizer: Any, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Token ids of each text, and the characters from which and to which each token goes."""
    found = []
    for text, item in zip(texts, tokenizer(texts, add_special_tokens=False, verbose=False).encodings, strict=True):
        offsets = np.array(item.offsets, dtype=np.int64).reshape(-1, 2)
        if not unicodedata.is_normalized("NFC", text):
            offsets = _with_marks(text, offsets)
        found.append((np.array(item.ids, dtype=np.int32), offsets[:, 0], offsets[:, 1]))
    return found


def _with_marks(text: str, offsets: np.ndarray) -> np.ndarray:
    """Characters of tokens with the accents: where a normaliser joins letter and mark, offsets end before the mark."""
    known = set(offsets[:, 0].tolist())

    def end_of(end: int) -> int:
        while end < len(text) and end not in known and not text[end].isspace():
            end += 1
        return end

    return np.array([[begin, end_of(end)] for begin, end in offsets.tolist()], dtype=np.int64).reshape(-1, 2)
