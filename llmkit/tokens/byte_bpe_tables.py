"""What the compiled byte-level BPE of `llmkit.tokens.byte_bpe` needs to know of a tokenizer, and which tokenizers it can do.

The regular expressions that text is cut with are those of GPT-2, of Llama 3, of Qwen 2 and of `llmkit tokenizer`.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from llmkit.tokens.algorithms import PIECES
from llmkit.tokens.byte_bpe import (
    ANY_CASE,
    BREAK,
    HAN,
    LETTER,
    LOWER,
    MARK,
    NEVER,
    NUMBER,
    ONE_CASE,
    OTHER,
    PLACE_BITS,
    RANK_BITS,
    SPACE,
    TOKEN_BITS,
    UNSURE,
    Cut,
    Memory,
    Merges,
    fill,
)

_CODES = 1 << 21  # what four bytes of UTF-8 can say
_LAST = 0x34000  # in Unicode 17 no letter, mark, number or white space stands from here on but these marks:
_SELECTORS = (0xE0100, 0xE01F0)
_REMEMBERED = 1 << 18  # pieces

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUTS = {
    _GPT2: Cut(LOWER, LETTER, han_apart=False, any_before=False, digits=_CODES, breaks=False),
    _LLAMA3: Cut(ANY_CASE, LETTER, han_apart=False, any_before=True, digits=3, breaks=True),
    _LLAMA3.replace("{1,3}", ""): Cut(ANY_CASE, LETTER, han_apart=False, any_before=True, digits=1, breaks=True),  # Qwen 2
    PIECES: Cut(ONE_CASE, LETTER | MARK, han_apart=True, any_before=True, digits=1, breaks=True),
}


class Plan(NamedTuple):
    """What of a tokenizer decides its ids."""

    cut: Cut
    byte_tokens: list[int]
    """The token of each byte."""
    merges: list[tuple[int, int, int]]
    """The two tokens and what they make, in the order of their ranks."""
    whole: dict[bytes, int]
    """Tokens that a piece is compared with before anything is merged (`ignore_merges`)."""


def plan_of(content: dict[str, Any]) -> Plan | None:
    """The plan of a `tokenizer.json`; None where compiled BPE is not known to give the same ids."""
    model, vocabulary = content["model"], content["model"]["vocab"]
    if (
        model["type"] != "BPE"
        or any(model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        or content["normalizer"] not in (None, {"type": "NFC"})
        or not all(token["special"] for token in content["added_tokens"])  # others are found in text
        or max(vocabulary.values()) >> TOKEN_BITS
        or len(model["merges"]) >> RANK_BITS
    ):
        return None
    cut, letters = _cut(content["pre_tokenizer"]), _byte_letters()
    if cut is None or not all(letter in vocabulary for letter in letters):
        return None
    whole = {}
    if model.get("ignore_merges"):
        values = {letter: value for value, letter in enumerate(letters)}
        written = {token: number for token, number in vocabulary.items() if all(letter in values for letter in token)}
        whole = {bytes(values[letter] for letter in token): number for token, number in written.items()}
        if len(whole) > _REMEMBERED // 2:
            return None
    merges = [(vocabulary[left], vocabulary[right], vocabulary[left + right]) for left, right in model["merges"]]
    return Plan(cut, [vocabulary[letter] for letter in letters], merges, whole)


def _cut(pre_tokenizer: dict[str, Any] | None) -> Cut | None:
    steps = [pre_tokenizer or {}]
    if steps[0].get("type") == "Sequence":
        steps = steps[0]["pretokenizers"]
    *splits, last = steps
    if last.get("type") != "ByteLevel" or last["add_prefix_space"] or last["use_regex"] == bool(splits):
        return None
    if not splits:
        return _CUTS[_GPT2]
    usual = {"type": "Split", "behavior": "Isolated", "invert": False}
    if len(splits) > 1 or any(splits[0].get(name) != value for name, value in usual.items()):
        return None
    return _CUTS.get(splits[0]["pattern"].get("Regex"))


def _byte_letters() -> list[str]:
    """The letter that byte-level BPE writes each byte as (Radford et al. 2019, GPT-2): itself where it can be seen."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [value for value in range(256) if value not in shown]
    letters = {value: chr(value) for value in shown} | {value: chr(256 + number) for number, value in enumerate(hidden)}
    return [letters[value] for value in range(256)]


def merges_of(plan: Plan, with_nfc: bool) -> Merges:
    """The tables of a plan; characters that NFC may not leave alone are unsure where there is NFC."""
    pairs = np.full(1 << (2 * len(plan.merges) + 1).bit_length(), -1, dtype=np.int64)
    given = np.array(plan.merges, dtype=np.int64).reshape(-1, 3)
    fill(pairs, given[:, :2])
    kinds = _properties() | (np.uint8(UNSURE) * _unsure() if with_nfc else np.uint8(0))
    values = {token: value for value, token in enumerate(plan.byte_tokens)}
    byte_keys = np.full(1 << 16, NEVER, dtype=np.uint32)
    for rank, (left, right, _) in enumerate(plan.merges):
        if left in values and right in values:
            byte_keys[values[left] << 8 | values[right]] = rank << PLACE_BITS
    return Merges(kinds, np.array(plan.byte_tokens, dtype=np.int32), byte_keys, pairs, given[:, 2].astype(np.int32))


def empty_memory() -> Memory:
    """Room for a quarter of a million pieces."""
    return Memory(
        slots=np.zeros(2 * _REMEMBERED, dtype=np.uint64),
        spans=np.zeros((_REMEMBERED + 1, 2), dtype=np.int64),
        text=np.zeros(16 * _REMEMBERED, dtype=np.uint8),
        ids=np.zeros(4 * _REMEMBERED, dtype=np.int32),
        used=np.zeros(2, dtype=np.int64),
    )


@cache
def _properties() -> np.ndarray:
    """The properties of each code point, uint8 of shape [_CODES], as the regular expressions of `tokenizers` see them.

    They are asked, and not Python, which may know another version of Unicode.
    """
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    asked = np.array([*range(0xD800), *range(0xE000, _LAST), *range(*_SELECTORS)])
    text = "".join(map(chr, asked))
    kinds = np.zeros(_CODES, dtype=np.uint8)
    for name, bit in ((r"\p{L}", LETTER), (r"\p{M}", MARK), (r"\p{N}", NUMBER), (r"\s", SPACE), (r"\p{Han}", HAN)):
        for _, (start, stop) in Split(Regex(f"[^{name}]+"), "removed").pre_tokenize_str(text):
            kinds[asked[start:stop]] |= bit
    kinds[[ord("\r"), ord("\n")]] |= BREAK
    kinds[kinds & (LETTER | NUMBER | SPACE) == 0] |= OTHER
    return kinds


@cache
def _unsure() -> np.ndarray:
    """Whether a text with a code point may not be in NFC, bool of shape [_CODES].

    A text is, if it has nothing but characters with the quick check "yes" that are no combining marks (Unicode Standard Annex
    15). Of characters that Python does not know yet nothing is known.
    """
    unsure = np.zeros(_CODES, dtype=bool)
    for code in range(0x300, 0x110000):
        character = chr(code)
        unsure[code] |= (
            unicodedata.category(character) == "Cn"
            or unicodedata.combining(character) > 0
            or not unicodedata.is_normalized("NFC", character)
        )
        parts = unicodedata.decomposition(character).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            unsure[int(parts[1], 16)] = True  # what may be joined with a character before it
    unsure[0x1160:0x1200] = True  # vowels and final consonants of Hangul
    return unsure
