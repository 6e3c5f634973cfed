"""Personal data and secrets in a text: found by type, and replaced by what type they were, or the document rejected.

Every type has rules of its own: a pattern, and a check that what it matched can be one (a check digit, a date of birth,
a public address). Precision goes before recall, since a number in a text is mostly just a number. Names of persons and
postal addresses are not looked for: rules cannot tell them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from llmkit.corpus.batch import Batch
from llmkit.corpus.pii import addresses, numbers, secrets
from llmkit.errors import ConfigError

_ANYWHERE: dict[str, Callable[[str], Iterator[tuple[int, int]]]] = {
    "secret": secrets.secrets,
    "email": addresses.emails,
    "ip": addresses.ip_addresses,
}
_NUMBERS: dict[str, Callable[[str, int, int], Iterator[tuple[int, int]]]] = {
    "iban": numbers.ibans,
    "chinese_id": numbers.chinese_ids,
    "credit_card": numbers.credit_cards,
    "chinese_mobile": numbers.chinese_mobiles,
    "phone": numbers.phones,
}

TYPES = (*_ANYWHERE, *_NUMBERS)
"""In the order in which they claim a passage: of the numbers, those with a check digit before those without."""

# Digits with only these between them may be one number, and 20 of those characters in a row may be a secret. Both tests
# together cost a hundredth of what the patterns do.
_DIGITS = bytes.maketrans(b"0123456789", b"0" * 10)
_BETWEEN_DIGITS = b" -.()/"
_NUMBER = b"0" * 7
_SECRET_CHARACTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
_SECRETS = bytes.maketrans(_SECRET_CHARACTERS, b"0" * len(_SECRET_CHARACTERS))
_SECRET = b"0" * secrets.SHORTEST

_WIDE = re.compile("[０-９＠]")
_NARROW = str.maketrans("０１２３４５６７８９＋－＠", "0123456789+-@")
"""Signs that Chinese text may have in full width, each for one, so that places stay."""


@dataclass(frozen=True)
class Found:
    """Where something of a type stands in a text, in characters."""

    type: str
    start: int
    end: int


def find(text: str, types: Iterable[str] = TYPES) -> list[Found]:
    """What a text has of these types, in order; no two overlap, and of two that might be meant it is the one with a check.

    Raises:
        ConfigError: there is no such type.
    """
    return _find(text, _checked(types))


def replace(text: str, types: Iterable[str] = TYPES) -> tuple[str, list[Found]]:
    """The text with placeholders, such as `[EMAIL]`, and what they stand for; doing so twice is the same as once.

    What replacing uncovers is replaced as well, and counted; its place is then that in the text replaced so far.

    Raises:
        ConfigError: there is no such type.
    """
    return _replace(text, _checked(types))


def placeholder(type_: str) -> str:
    """What stands in the place of something: letters in square brackets, which no later step takes for HTML."""
    return f"[{type_.upper()}]"


class Pii:
    """The step that replaces personal data and secrets, or rejects the documents that have any.

    Args:
        action: `replace`: placeholders are put in; `drop`: the document is rejected, with the types as the value.
        types: those to look for.

    Signals:
        pii_email, ...: how many there were of each type that is looked for.

    Raises:
        ConfigError: there is no such action or type.
    """

    def __init__(self, action: str = "replace", types: Iterable[str] = TYPES):
        if action not in ("replace", "drop"):
            raise ConfigError([f"pii: the action is replace or drop, and not {action!r}"])
        self.action = action
        self.types = _checked(types)

    def __call__(self, batch: Batch) -> None:
        counts = {type_: np.full(len(batch), np.nan) for type_ in self.types}
        for number in batch.kept():
            text, found = batch.texts[number], _find(batch.texts[number], self.types)
            if found and self.action == "replace":
                batch.texts[number], found = _replace(text, self.types)
            for type_ in self.types:
                counts[type_][number] = 0
            for item in found:
                counts[item.type][number] += 1
            if found and self.action == "drop":
                batch.reject(number, "pii", ", ".join(type_ for type_ in self.types if counts[type_][number]))
        batch.signals.update({f"pii_{type_}": values for type_, values in counts.items()})


def _checked(types: Iterable[str]) -> tuple[str, ...]:
    wanted = set(types)
    unknown = sorted(wanted - set(TYPES))
    if unknown:
        raise ConfigError([f"pii: there is no type {name!r}; there are {', '.join(TYPES)}" for name in unknown])
    return tuple(type_ for type_ in TYPES if type_ in wanted)


def _find(text: str, types: tuple[str, ...]) -> list[Found]:
    if not text.isascii() and _WIDE.search(text):
        text = text.translate(_NARROW)
    coded = text.encode("utf-8", "surrogatepass")
    secretive = _SECRET in coded.translate(_SECRETS)
    passages = numbers.passages(text) if _NUMBER in coded.translate(_DIGITS, _BETWEEN_DIGITS) else []
    found: list[Found] = []
    claimed = bytearray(len(text))
    for type_ in types:
        if type_ in _NUMBERS:
            spans = [span for first, last in passages for span in _NUMBERS[type_](text, first, last)]
        else:
            spans = list(_ANYWHERE[type_](text)) if secretive or type_ != "secret" else []
        for start, end in spans:
            if not any(claimed[start:end]):
                claimed[start:end] = b"\1" * (end - start)
                found.append(Found(type_, start, end))
    return sorted(found, key=lambda item: item.start)


def _replace(text: str, types: tuple[str, ...]) -> tuple[str, list[Found]]:
    replaced: list[Found] = []
    while found := _find(text, types):
        pieces, end = [], 0
        for item in found:
            pieces += [text[end : item.start], placeholder(item.type)]
            end = item.end
        text = "".join([*pieces, text[end:]])
        replaced += found
    return text, replaced
