"""Byte-level BPE compiled by numba: UTF-8 text of many documents to token ids, without a Python object a word.

What is cut, merged and remembered here, and what the tables hold, is said in `llmkit.tokens.encoders`, the only user.
Functions take offsets into one array of bytes, `text`, which must be valid UTF-8.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

LETTER, MARK, NUMBER, SPACE, BREAK, HAN, OTHER, UNSURE = (1 << bit for bit in range(8))
"""Properties of characters: Unicode's L, M and N, white space, CR or LF, Han, none of L, N and white space; and those that a
normal form may not leave alone."""

LOWER, ONE_CASE, ANY_CASE = range(3)
"""In which letter case 's, 't, 're, 've, 'm, 'll and 'd are pieces by themselves."""

TOKEN_BITS, RANK_BITS, PLACE_BITS = 20, 23, 9
"""How large a token, the rank of a merge and a place in a piece may be."""

LONGEST = 1 << PLACE_BITS
"""Bytes of a piece. Merging takes quadratic time, so that a document with a longer one is left to others."""

NEVER = np.uint32((1 << 32) - 1)
"""The key of a pair that is not merged. A key is a rank, and below it a place, so that the lowest one is merged first."""

# Nothing is allocated in here; to count references all the same would take half of the time.
_compiled = njit(cache=True, _nrt=False)
_RANK = (1 << RANK_BITS) - 1
_NUMBER = np.uint64((1 << 20) - 1)
_APOSTROPHE, _BLANK = ord("'"), ord(" ")


class Cut(NamedTuple):
    """How text is cut to pieces: the choices between the regular expressions that are known."""

    contractions: int
    letters: int
    """The properties that the characters of a word have one of."""
    han_apart: bool
    """Whether Han characters make words of their own."""
    any_before: bool
    """Whether a word takes any sign before it, or a blank only, which numbers then take, too."""
    digits: int
    """Most characters of a number."""
    breaks: bool
    """Whether line ends stay with the signs and white space before them."""


class Merges(NamedTuple):
    """The merges, by the pair that is merged."""

    kinds: np.ndarray
    """The properties of each character, uint8 of shape [code points]."""
    byte_tokens: np.ndarray
    """The token of each byte, int32 of shape [256]."""
    byte_keys: np.ndarray
    """The keys of pairs of bytes, which every piece begins with, without a place; uint32 of shape [65536]."""
    pairs: np.ndarray
    """A hash table with open addressing, int64 of shape [slots]: two tokens and the rank of their merge; -1 in a free slot."""
    merged: np.ndarray
    """The token that the merge of each rank makes, int32 of shape [merges]."""


class Memory(NamedTuple):
    """The tokens of pieces met before."""

    slots: np.ndarray
    """A hash table with open addressing, uint64 of shape [slots]: 44 bits of the hash of a piece and its number from 1; 0 in
    a free slot."""
    spans: np.ndarray
    """Where its bytes start and end, and its tokens; int64 of shape [pieces + 1, 2]: piece i ends where i + 1 starts."""
    text: np.ndarray
    """Bytes of all pieces, one after the other."""
    ids: np.ndarray
    """Tokens of all pieces, one after the other."""
    used: np.ndarray
    """How many pieces there are, and whether there was no room for another; int64 of shape [2]."""


@_compiled
def _character(text, at):  # type: ignore[no-untyped-def]
    """The code point at an offset, and the offset after it."""
    first = np.int64(text[at])
    if first < 0x80:
        return first, at + 1
    second = np.int64(text[at + 1]) & 0x3F
    if first < 0xE0:
        return (first & 0x1F) << 6 | second, at + 2
    third = np.int64(text[at + 2]) & 0x3F
    if first < 0xF0:
        return (first & 0x0F) << 12 | second << 6 | third, at + 3
    return (first & 0x07) << 18 | second << 12 | third << 6 | np.int64(text[at + 3]) & 0x3F, at + 4


@_compiled
def _run(text, at, end, kinds, wanted, unwanted, most):  # type: ignore[no-untyped-def]
    """Where a run ends of at most so many characters with a wanted property and no unwanted one."""
    while at < end and most > 0:
        code, after = _character(text, at)
        kind = kinds[code]
        if not kind & wanted or kind & unwanted:
            break
        at = after
        most -= 1
    return at


@_compiled
def _word(text, at, end, kinds, cut):  # type: ignore[no-untyped-def]
    """Where a word ends that starts here; where none starts, here."""
    if not cut.han_apart:
        return _run(text, at, end, kinds, cut.letters, 0, end)
    stop = _run(text, at, end, kinds, HAN, 0, end)
    return stop if stop > at else _run(text, at, end, kinds, cut.letters, HAN, end)


@_compiled
def _contraction(text, at, end, case):  # type: ignore[no-untyped-def]
    """Where a contraction ends whose apostrophe stands before; 0 where it is none."""
    first = text[at] if at < end else 0
    second = text[at + 1] if at + 1 < end else 0
    if case == ANY_CASE and first == 0xC5 and second == 0xBF:  # the long s, which is an s when case does not count
        return at + 2
    if case != LOWER and 65 <= first <= 90:
        first |= 32
        second = second | 32 if 65 <= second <= 90 else 0 if case == ONE_CASE else second
    elif case == ANY_CASE and 65 <= second <= 90:
        second |= 32
    if first == 115 or first == 116 or first == 109 or first == 100:  # s t m d
        return at + 1
    if (first == 108 and second == 108) or ((first == 118 or first == 114) and second == 101):  # ll ve re
        return at + 2
    return 0


@_compiled
def _space(text, at, end, kinds, breaks):  # type: ignore[no-untyped-def]
    """Where white space ends: after the last line end in it, or before its last character where something follows."""
    start, last, after_break = at, at, 0
    while at < end:
        code, after = _character(text, at)
        kind = kinds[code]
        if not kind & SPACE:
            break
        last, at = at, after
        if kind & BREAK:
            after_break = after
    if breaks and after_break:
        return after_break
    return at if at == end or last == start else last


@_compiled
def _piece(text, at, end, kinds, cut):  # type: ignore[no-untyped-def]
    """Where the piece ends that starts here: the alternatives of the regular expression in their order."""
    code, after = _character(text, at)
    kind = kinds[code]
    if code == _APOSTROPHE:
        stop = _contraction(text, after, end, cut.contractions)
        if stop:
            return stop
    if code == _BLANK or (cut.any_before and not kind & (LETTER | NUMBER | BREAK)):
        stop = _word(text, after, end, kinds, cut)
        if stop > after:
            return stop
    stop = _word(text, at, end, kinds, cut)
    if stop > at:
        return stop
    behind = after if code == _BLANK else at
    start = at if cut.any_before else behind
    stop = _run(text, start, end, kinds, NUMBER, 0, cut.digits)
    if stop > start:
        return stop
    stop = _run(text, behind, end, kinds, OTHER, 0, end)
    if stop > behind:
        return _run(text, stop, end, kinds, BREAK, 0, end) if cut.breaks else stop
    return _space(text, at, end, kinds, cut.breaks)


@_compiled
def _slot(pair, slots):  # type: ignore[no-untyped-def]
    """The slot that a pair is looked for in first: Fibonacci hashing (Knuth, TAOCP 6.4)."""
    mixed = np.uint64(pair) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64(mixed >> np.uint64(32)) & (slots - 1)


@_compiled
def fill(pairs, given):  # type: ignore[no-untyped-def]
    """Put pairs, int64 of shape [merges, 2], in the order of their ranks, into an empty hash table."""
    for rank in range(len(given)):
        pair = given[rank, 0] << TOKEN_BITS | given[rank, 1]
        slot = _slot(pair, len(pairs))
        while pairs[slot] != -1 and pairs[slot] >> RANK_BITS != pair:
            slot = (slot + 1) & (len(pairs) - 1)
        pairs[slot] = pair << RANK_BITS | rank


@_compiled
def _key(pairs, left, right, place):  # type: ignore[no-untyped-def]
    """The rank of a pair's merge, and its place; NEVER where there is no such merge."""
    pair = np.int64(left) << TOKEN_BITS | np.int64(right)
    slot = _slot(pair, len(pairs))
    while pairs[slot] >> RANK_BITS != pair:
        if pairs[slot] == -1:
            return NEVER
        slot = (slot + 1) & (len(pairs) - 1)
    return np.uint32((pairs[slot] & _RANK) << PLACE_BITS | place)


@_compiled
def _merge(text, start, stop, merges, work, ids, written):  # type: ignore[no-untyped-def]
    """Write the tokens of a piece: of all pairs side by side the first of the lowest rank is merged, until none can be."""
    tokens, keys, before, behind = work
    count = stop - start
    for place in range(count):
        tokens[place] = merges.byte_tokens[text[start + place]]
        before[place], behind[place] = place - 1, place + 1
    for place in range(count - 1):
        pair = np.int64(text[start + place]) << 8 | np.int64(text[start + place + 1])
        keys[place] = merges.byte_keys[pair] | np.uint32(place)
    keys[count - 1] = NEVER
    while True:
        lowest = NEVER
        for place in range(count):
            lowest = min(lowest, keys[place])
        if lowest == NEVER:
            break
        place = np.int64(lowest) & (LONGEST - 1)
        tokens[place] = merges.merged[lowest >> PLACE_BITS]
        right = behind[place]
        keys[right] = NEVER
        right = behind[place] = behind[right]
        keys[place] = NEVER
        if right < count:
            before[right] = place
            keys[place] = _key(merges.pairs, tokens[place], tokens[right], place)
        left = before[place]
        if left >= 0:
            keys[left] = _key(merges.pairs, tokens[left], tokens[place], left)
    place = 0
    while place < count:
        ids[written] = tokens[place]
        written += 1
        place = behind[place]
    return written


@_compiled
def _find(text, start, stop, memory):  # type: ignore[no-untyped-def]
    """The number of a piece in memory, or -1; its hash, and the slot where it stands or may be put."""
    mixed = np.uint64(0xCBF29CE484222325)  # FNV-1a (Fowler, Noll, Vo)
    for at in range(start, stop):
        mixed = (mixed ^ np.uint64(text[at])) * np.uint64(0x100000001B3)
    slot = np.int64(mixed >> np.uint64(20)) & (len(memory.slots) - 1)
    while memory.slots[slot]:
        number = np.int64(memory.slots[slot] & _NUMBER) - 1
        first = memory.spans[number, 0]
        if memory.slots[slot] | _NUMBER == mixed | _NUMBER and memory.spans[number + 1, 0] - first == stop - start:
            same = True
            for at in range(stop - start):
                if memory.text[first + at] != text[start + at]:
                    same = False
                    break
            if same:
                return number, mixed, slot
        slot = (slot + 1) & (len(memory.slots) - 1)
    return -1, mixed, slot


@_compiled
def _remember(text, start, stop, ids, first, count, memory, mixed, slot):  # type: ignore[no-untyped-def]
    """Put a piece and its tokens into a free slot, where there is room."""
    number = memory.used[0]
    at, ids_at = memory.spans[number, 0], memory.spans[number, 1]
    if number + 1 == len(memory.spans) or at + stop - start > len(memory.text) or ids_at + count > len(memory.ids):
        memory.used[1] = 1
        return
    memory.slots[slot] = mixed & ~_NUMBER | np.uint64(number + 1)
    for item in range(stop - start):
        memory.text[at + item] = text[start + item]
    for item in range(count):
        memory.ids[ids_at + item] = ids[first + item]
    memory.spans[number + 1, 0] = at + stop - start
    memory.spans[number + 1, 1] = ids_at + count
    memory.used[0] = number + 1


@_compiled
def remember_all(text, offsets, ids, memory):  # type: ignore[no-untyped-def]
    """Remember texts that are one token each."""
    for number in range(len(offsets) - 1):
        start, stop = offsets[number], offsets[number + 1]
        found, mixed, slot = _find(text, start, stop, memory)
        if found < 0:
            _remember(text, start, stop, ids, number, 1, memory, mixed, slot)


@_compiled
def _is_unsure(text, at, end, kinds):  # type: ignore[no-untyped-def]
    while at < end:
        if text[at] < 0x80:
            at += 1
            continue
        code, at = _character(text, at)
        if kinds[code] & UNSURE:
            return True
    return False


@_compiled
def encode(text, offsets, normalised, eos, cut, merges, memory, remembered, ids, lengths, work):  # type: ignore[no-untyped-def]
    """Write the tokens of documents, an EOS after each, and how many they are.

    A document that cannot be done here has 0 tokens, not even an EOS: unless all are `normalised` it has a character that
    is unsure, or it has a piece longer than LONGEST bytes.

    Args:
        offsets: where documents start and the last ends, int64 of shape [documents + 1].
        remembered: bytes of the longest piece to be remembered.
        ids: int32, with room for a token a byte and the EOS.
        lengths: int64 of shape [documents].
        work: three arrays to work with.

    Returns:
        How many tokens were written.
    """
    written = 0
    for document in range(len(offsets) - 1):
        first, at, end = written, offsets[document], offsets[document + 1]
        possible = normalised or not _is_unsure(text, at, end, merges.kinds)
        while possible and at < end:
            stop = _piece(text, at, end, merges.kinds, cut)
            number = -1
            if stop - at <= remembered:
                number, mixed, slot = _find(text, at, stop, memory)
            if number >= 0:
                for item in range(memory.spans[number, 1], memory.spans[number + 1, 1]):
                    ids[written] = memory.ids[item]
                    written += 1
            elif stop - at > LONGEST:
                possible = False
            else:
                start = written
                written = _merge(text, at, stop, merges, work, ids, written)
                if stop - at <= remembered:
                    _remember(text, at, stop, ids, start, written - start, memory, mixed, slot)
            at = stop
        if possible:
            ids[written] = eos
            written += 1
        else:
            written = first
        lengths[document] = written - first
    return written
