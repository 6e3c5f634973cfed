"""The loops that are compiled, by numba; imported only where they are run.

`signatures` reads UTF-8 once. Of each text it makes the words, their runs and the least values of these under each hash
function, with no memory that grows with the text. `llmkit.corpus.duplicates.minhash` has the same in NumPy.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np


@numba.njit(cache=True)
def _mixed(value: Any) -> Any:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@numba.njit(cache=True)
def _lower(least: Any, factors: Any, terms: Any, pending: Any) -> None:
    """Four more hashes under every function."""
    first, second, third, fourth = pending[0], pending[1], pending[2], pending[3]
    for number in range(least.shape[0]):
        factor, term = factors[number], terms[number]
        one = min(first * factor + term, second * factor + term)
        two = min(third * factor + term, fourth * factor + term)
        least[number] = min(least[number], min(one, two))


@numba.njit(cache=True, inline="always")
def _read(text: Any, at: Any, end: Any, table: Any) -> Any:
    """What the table says of the character at a place, and the next place; 0 at the end."""
    entry = np.uint32(0)
    if at >= end:
        return entry, at + 1
    code = np.uint32(text[at])
    if code < 0x80:
        at += 1
    elif code < 0xE0:
        code = ((code & 0x1F) << 6) | (np.uint32(text[at + 1]) & 0x3F)
        at += 2
    elif code < 0xF0:
        code = ((code & 0x0F) << 12) | ((np.uint32(text[at + 1]) & 0x3F) << 6) | (np.uint32(text[at + 2]) & 0x3F)
        at += 3
    else:
        code = ((code & 0x07) << 18) | ((np.uint32(text[at + 1]) & 0x3F) << 12)
        code |= ((np.uint32(text[at + 2]) & 0x3F) << 6) | (np.uint32(text[at + 3]) & 0x3F)
        at += 4
    if code < table.shape[0]:
        entry = table[code]
    return entry, at


@numba.njit(cache=True)
def signatures(text: Any, ends: Any, table: Any, factors: Any, terms: Any, powers: Any, least: Any, states: Any) -> None:
    """The MinHash values of some texts.

    Args:
        text: the UTF-8 of all, one after the other, uint8.
        ends: where each ends, int64 of shape [texts].
        table: by code point, uint32: the folded one times 8, plus 4 where the character cannot be folded by itself, plus its
            kind (0: between words, 1: a letter of one, 2: a word). Code points beyond its end are between words.
        factors, terms: of the hash functions, uint64 of shape [functions].
        powers: of the base of the polynomial hash, from 0 to the n of an n-gram; then its inverse; uint64 of shape [n + 2].
        least: written: uint64 of shape [texts, functions].
        states: written: uint8 of shape [texts]: 0 with words, 1 without one, 2 where a character could not be folded.
    """
    n = powers.shape[0] - 2
    base, inverse, highest = powers[1], powers[n + 1], powers[n - 1]
    ring = np.zeros(n, dtype=np.uint64)
    pending = np.zeros(4, dtype=np.uint64)
    start = 0
    for document in range(ends.shape[0]):
        end = ends[document]
        own = least[document]
        own[:] = np.uint64(0xFFFFFFFFFFFFFFFF)
        words, waiting, gram = 0, 0, np.uint64(0)
        word, power, inside = np.uint64(0), np.uint64(1), False
        at, hard = start, False
        while at <= end:  # one step past the end, which ends the last word
            entry, at = _read(text, at, end, table)
            if entry & 4:
                hard = True
                break
            kind = entry & 3
            if kind == 1:
                word += np.uint64(entry >> 3) * power
                power *= base
                inside = True
                continue
            turns = 0
            if inside:
                turns = 1
            if kind == 2:
                turns += 1
            for _ in range(turns):
                if not inside:
                    word = np.uint64(entry >> 3)
                value = _mixed(word)
                word, power, inside = np.uint64(0), np.uint64(1), False
                place = words % n
                if words < n:
                    gram += value * powers[words]
                else:
                    gram = (gram - ring[place]) * inverse + value * highest
                ring[place] = value
                words += 1
                if words >= n:
                    pending[waiting] = _mixed(gram + np.uint64(n))
                    waiting += 1
                    if waiting == 4:
                        _lower(own, factors, terms, pending)
                        waiting = 0
        if 0 < words < n:
            pending[0] = _mixed(gram + np.uint64(words))
            waiting = 1
        if waiting:
            for place in range(waiting, 4):
                pending[place] = pending[0]
            _lower(own, factors, terms, pending)
        states[document] = 2 if hard else (1 if words == 0 else 0)
        start = end


@numba.njit(cache=True)
def _stands(known: Any, value: Any) -> bool:
    """Whether a value is among ascending ones."""
    low, high = 0, known.shape[0]
    while low < high:
        middle = (low + high) // 2
        if known[middle] < value:
            low = middle + 1
        else:
            high = middle
    return bool(low < known.shape[0] and known[low] == value)


@numba.njit(cache=True)
def begun(text: Any, ends: Any, table: Any, powers: Any, known: Any, likely: Any, shift: Any, states: Any) -> None:
    """Whether a run of n words of a set stands in each text.

    Args:
        text, ends, table, powers: as of `signatures`.
        known: the hashes in the set, ascending, uint64.
        likely: one bit for each value of their high bits, uint8 of shape [2^bits / 8]; most hashes need no search.
        shift: 64 less the number of these high bits.
        states: written: uint8 of shape [texts]: 0 for no, 1 for yes, 2 where a character could not be folded.
    """
    n = powers.shape[0] - 2
    base, inverse, highest = powers[1], powers[n + 1], powers[n - 1]
    ring = np.zeros(n, dtype=np.uint64)
    start = 0
    for document in range(ends.shape[0]):
        end = ends[document]
        states[document] = 0
        words, gram = 0, np.uint64(0)
        word, power, inside = np.uint64(0), np.uint64(1), False
        at = start
        while at <= end and states[document] == 0:
            entry, at = _read(text, at, end, table)
            if entry & 4:
                states[document] = 2
                break
            kind = entry & 3
            if kind == 1:
                word += np.uint64(entry >> 3) * power
                power *= base
                inside = True
                continue
            turns = 0
            if inside:
                turns = 1
            if kind == 2:
                turns += 1
            for _ in range(turns):
                if not inside:
                    word = np.uint64(entry >> 3)
                value = _mixed(word)
                word, power, inside = np.uint64(0), np.uint64(1), False
                place = words % n
                if words < n:
                    gram += value * powers[words]
                else:
                    gram = (gram - ring[place]) * inverse + value * highest
                ring[place] = value
                words += 1
                if words >= n:
                    found = _mixed(gram + np.uint64(n))
                    high = found >> shift
                    is_likely = (likely[high >> np.uint64(3)] >> (high & np.uint64(7))) & np.uint64(1)
                    if is_likely and _stands(known, found):
                        states[document] = 1
        start = end


@numba.njit(cache=True)
def _root(parents: Any, ticket: Any, mask: Any) -> Any:
    """The ticket at the root of a tree; the path to it is halved on the way."""
    while parents[ticket & mask] != ticket:
        above = parents[parents[ticket & mask] & mask]
        parents[ticket & mask] = above
        ticket = above
    return ticket


@numba.njit(cache=True)
def unite(parents: Any, edges: Any, mask: Any, most: Any) -> None:
    """Join the components of the two ends of each edge; the lower ticket becomes the root.

    Args:
        parents: the ticket above each document, int64 of shape [documents]; a root has its own.
        edges: int64 of shape [edges, 2].
        mask: the bits of a ticket that are the number of its document.
        most: edges with an end above this ticket are passed over.
    """
    for number in range(edges.shape[0]):
        if edges[number, 0] > most or edges[number, 1] > most:
            continue
        first, second = _root(parents, edges[number, 0], mask), _root(parents, edges[number, 1], mask)
        if first < second:
            parents[second & mask] = first
        elif second < first:
            parents[first & mask] = second


@numba.njit(cache=True)
def roots(parents: Any, start: Any, found: Any, mask: Any) -> None:
    """The root of each of some documents from the number `start`, into int64 of shape [documents]."""
    for number in range(found.shape[0]):
        found[number] = _root(parents, parents[start + number], mask)
