"""The compiled pass over the bytes of many documents. `reference` says the same in plain Python, and is easier to read.

Texts are UTF-8, one after the other, with the offsets of their ends, as Arrow has them. Words and lines are compared by 64-bit
polynomial hashes of their characters (Karp and Rabin 1987), which go together to those of n-grams without being read again.
Everything here stands in one file, since the on-disk cache of numba looks at no other. Import it inside functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from llmkit.corpus.quality.characters import DIGIT, LETTER, LINE_END, SPACE, SYMBOL, TERMINAL, UNSPACED, WORD

REPETITION, QUALITY, LINES = 1, 2, 4  # groups of columns
BY_PATTERN, BY_SPACES, GIVEN = 0, 1, 2  # what a word is
LOREM, JAVASCRIPT, POLICY, UNSPACED_POLICY, CURLY = 1, 2, 4, 8, 16  # what a line mentions

COLUMNS = (
    "characters",
    "unspaced_share",
    "duplicate_paragraph_fraction",
    "duplicate_paragraph_character_fraction",
    "duplicate_line_fraction",
    "duplicate_line_character_fraction",
    *(f"top_{n}_gram_character_fraction" for n in (2, 3, 4)),
    *(f"duplicate_{n}_gram_character_fraction" for n in (5, 6, 7, 8, 9, 10)),
    "words",
    "mean_word_length",
    "hash_ratio",
    "ellipsis_ratio",
    "bullet_line_fraction",
    "ellipsis_line_fraction",
    "alphabetic_word_fraction",
    "stop_words",
    "lines",
    "punctuated_line_fraction",
    "short_line_fraction",
    "repeated_line_character_fraction",
    "newline_ratio",
)
CLEAN_COLUMNS = ("lorem_ipsum_lines", "curly_bracket_lines", "sentences", "kept_lines")

_PARAGRAPHS, _TOP, _WORDS, _LINES = 2, 6, 15, 23  # the first column of each kind
_NEVER = np.nan
BASE, _STEP, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0xBF58476D1CE4E5B9)
_ZERO, _ONE = np.uint64(0), np.uint64(1)
_N = np.array([[2, 3, 4, 5, 6, 7, 8, 9, 10], [3, 5, 6, 8, 10, 11, 13, 14, 16]])
"""Lengths of n-grams, in words; where the script has no spaces in characters, 1.6 times as many."""
_SHORT = np.array([30, 8])
_FULL_STOP, _ELLIPSIS, _WIDE_STOP = 0x2E, 0x2026, 0x3002
_ENDINGS = np.array([0x22, 0x27, 0x2026, 0x201D, 0x2019, 0x300D, 0x300F])  # " ' … ” ’ 」 』
_BULLETS = np.array([0x2022, 0x2D, 0x30FB, 0x25CF, 0xB7])  # • - and, where the script has no spaces, ・ ● ·
_SPACED_BULLETS = 2

# Counters of a text.
_CHARACTERS, _LETTERS, _UNSPACED_LETTERS, _EAST_ASIAN, _HASHES, _ELLIPSES, _ELLIPSIS_RUNS = 0, 1, 2, 3, 4, 5, 6
_SPLIT_LINES, _BULLET_LINES, _UNSPACED_BULLET_LINES, _ELLIPSIS_LINES, _UNSPACED_ELLIPSIS_LINES, _NEWLINES = 7, 8, 9, 10, 11, 12
_ALL_WORDS, _REAL_WORDS, _REAL_CHARACTERS, _ALPHABETIC, _STOPS = 13, 14, 15, 16, 17

compiled: Any = njit(nogil=True, error_model="numpy")


@compiled
def _decoded(data: Any, at: int) -> Any:
    """The character that begins at a byte, and how many bytes it takes."""
    first = np.int64(data[at])
    if first < 0x80:
        return first, 1
    if first < 0xE0:
        return (first & 0x1F) << 6 | np.int64(data[at + 1]) & 0x3F, 2
    low = (np.int64(data[at + 1]) & 0x3F) << 6 | np.int64(data[at + 2]) & 0x3F
    if first < 0xF0:
        return (first & 0x0F) << 12 | low, 3
    return (first & 0x07) << 18 | low << 6 | np.int64(data[at + 3]) & 0x3F, 4


@compiled
def _grown(table: Any) -> Any:
    """The same rows with room for as many again."""
    bigger = np.empty((2 * table.shape[0], table.shape[1]), dtype=table.dtype)
    bigger[: table.shape[0]] = table
    return bigger


@compiled
def _read(data: Any, start: int, end: int, classes: Any, counts: Any, lines: Any) -> Any:
    """Count what is counted by characters and by lines of str.splitlines; gather the lines between newlines.

    Returns lines: uint64 of shape [lines, 5]: first byte, last byte, characters, hash, last character * 2 + not blank.
    """
    number, line_start, line_characters, line_hash, last, inked = 0, start, 0, _ZERO, 0, 0
    opened, first, gap, carriage, stops, wide_stops, run, run_code = False, True, False, False, 0, 0, 0, 0
    at = start
    while at <= end:
        code, size = _decoded(data, at) if at < end else (0, 1)
        kind = classes[code]
        if run and (code != run_code or at == end):
            counts[_ELLIPSES] += run if run_code == _ELLIPSIS else run // 3 if run_code == _FULL_STOP else 0
            counts[_ELLIPSIS_RUNS] += run_code == _ELLIPSIS or run >= 3
            run = 0
        breaks = at == end or (kind & LINE_END) != 0
        if breaks and (opened or (at < end and not (carriage and code == 10))):
            counts[_SPLIT_LINES] += 1
            counts[_ELLIPSIS_LINES] += stops == -1 or stops >= 3
            counts[_UNSPACED_ELLIPSIS_LINES] += stops == -1 or stops >= 3 or wide_stops >= 3
            opened, first, stops, wide_stops = False, True, 0, 0
        if at == end or code == 10:
            if number == len(lines):
                lines = _grown(lines)
            row = lines[number]
            row[0], row[1], row[2], row[3] = np.uint64(line_start), np.uint64(at), np.uint64(line_characters), line_hash
            row[4] = np.uint64(last * 2 + inked)
            number, line_start, line_characters, line_hash, last, inked = number + 1, at + 1, 0, _ZERO, 0, 0
            if at == end:
                break
            counts[_NEWLINES] += 1
        else:
            line_characters, line_hash, last = line_characters + 1, line_hash * BASE + np.uint64(code + 1), code
        counts[_CHARACTERS] += 1
        if kind & SPACE:
            gap = True
            opened = opened or not breaks
            carriage = code == 13
        else:
            opened, inked, carriage = True, 1, False
            if kind & LETTER:
                counts[_LETTERS] += 1
                if kind & UNSPACED:
                    counts[_UNSPACED_LETTERS] += 1
                    counts[_EAST_ASIAN] += code >= 0x3000
            if first:
                for bullet in range(len(_BULLETS)):
                    counts[_BULLET_LINES] += code == _BULLETS[bullet] and bullet < _SPACED_BULLETS
                    counts[_UNSPACED_BULLET_LINES] += code == _BULLETS[bullet]
            first = False
            if code in (_FULL_STOP, _ELLIPSIS, _WIDE_STOP):
                run, run_code = run + 1, code
                stops = -1 if code == _ELLIPSIS else 0 if code == _WIDE_STOP else 1 if gap or stops < 0 else stops + 1
                wide_stops = 0 if code != _WIDE_STOP else 1 if gap else wide_stops + 1
            else:
                stops, wide_stops = 0, 0
                counts[_HASHES] += code == 0x23
            gap = False
        at += size
        if (
            opened and not gap and not run
        ):  # ASCII letters after a character that is no space and no stop count as such, no more
            letters = at
            while at < end and data[at] < 0x80 and classes[data[at]] & LETTER:
                last = np.int64(data[at])
                line_hash = line_hash * BASE + np.uint64(last + 1)
                at += 1
            line_characters += at - letters
            counts[_CHARACTERS] += at - letters
            counts[_LETTERS] += at - letters
    return lines[:number], lines


@compiled
def _mixed(value: Any) -> Any:
    value = (value ^ (value >> np.uint64(30))) * _MIX
    return value ^ (value >> np.uint64(31))


@compiled
def _read_word(data: Any, at: int, end: int, classes: Any, by: int, stops: Any, counts: Any, row: Any) -> int:
    """Count the word that begins here, with a character which is no space, and tell where it ends.

    Its hash and its length go into `row`.
    """
    code, size = _decoded(data, at)
    kind = classes[code]
    in_run = by == BY_PATTERN and kind & (WORD | UNSPACED) == WORD
    in_signs = by == BY_PATTERN and not kind & WORD
    in_letter = by == BY_PATTERN and not in_run and not in_signs
    value, characters, kinds, real = _ZERO, 0, 0, False
    while True:
        value = value * BASE + np.uint64(code + 1)
        characters, kinds, real = characters + 1, kinds | kind, real or not kind & SYMBOL
        at += size
        if at >= end:
            break
        code, size = _decoded(data, at)
        kind = classes[code]
        if in_run:
            if kind & (WORD | UNSPACED) != WORD:
                if (code != 0x27 and code != 0x2019 and code != 0x2D) or at + size >= end:
                    break
                following, _ = _decoded(data, at + size)
                if classes[following] & (WORD | UNSPACED) != WORD:
                    break
        elif in_signs:
            if kind & (WORD | SPACE):
                break
        elif in_letter:
            if kind & (WORD | UNSPACED) != UNSPACED:
                break
        elif by == BY_SPACES and kind & SPACE:
            break
    counts[_ALL_WORDS] += 1
    counts[_ALPHABETIC] += kinds & LETTER != 0
    if real:
        counts[_REAL_WORDS] += 1
        counts[_REAL_CHARACTERS] += characters
    row[0], row[1] = _mixed(value), np.uint64(characters)
    slot = np.int64(value >> np.uint64(56))
    while stops[slot, 1] != 0:
        if stops[slot, 0] == value:
            counts[_STOPS] |= np.int64(stops[slot, 1])
            break
        slot = (slot + 1) & 255
    return at


@compiled
def _cleared(table: Any, count: int) -> Any:
    """An empty table of which so many hashes fill at most two thirds; how far to shift a hash to get its place; the store."""
    bits = 4
    while 1 << bits < count + count // 2:
        bits += 1
    if len(table) < 1 << bits:
        table = np.empty(1 << bits, dtype=np.uint64)
    table[: 1 << bits] = _ZERO
    return table[: 1 << bits], np.uint64(64 - bits), table


@compiled
def _was_there(table: Any, shift: Any, key: Any) -> bool:
    """Put a hash into a table, unless it is there already."""
    key = key if key else _ONE
    slot = np.int64((key * _MIX) >> shift)
    while table[slot] != _ZERO:
        if table[slot] == key:
            return True
        slot = (slot + 1) & (len(table) - 1)
    table[slot] = key
    return False


@compiled
def _characters_hash(data: Any, start: int, end: int) -> Any:
    value, characters, at = _ZERO, 0, start
    while at < end:
        code, size = _decoded(data, at)
        value, characters, at = value * BASE + np.uint64(code + 1), characters + 1, at + size
    return value, characters


@compiled
def _repeated_lines(lines: Any, table: Any, shift: Any, not_blank: bool) -> Any:
    """How many lines stood before already, the characters of these, and how many lines there are; empty ones are none."""
    count, repeated, characters = 0, 0, 0
    for number in range(len(lines)):
        row = lines[number]
        if row[4] & _ONE if not_blank else row[2]:
            count += 1
            if _was_there(table, shift, _mixed(row[3])):
                repeated, characters = repeated + 1, characters + np.int64(row[2])
    return count, repeated, characters


@compiled
def _repeated_paragraphs(data: Any, lines: Any, classes: Any, table: Any, shift: Any) -> Any:
    """As for lines, of what stands between empty lines in the text without the white space around it."""
    first, last = 0, len(lines) - 1
    while first <= last and not lines[first, 4] & _ONE:
        first += 1
    while last > first and not lines[last, 4] & _ONE:
        last -= 1
    count, repeated, characters, value, length = 0, 0, 0, _ZERO, 0
    for number in range(first, last + 1):
        row = lines[number]
        line_hash, line_length = row[3], np.int64(row[2])
        if number in (first, last):
            start, end = np.int64(row[0]), np.int64(row[1])
            if number == first:
                code, size = _decoded(data, start)
                while classes[code] & SPACE:
                    start += size
                    code, size = _decoded(data, start)
            if number == last:
                kept = start
                at = start
                while at < end:
                    code, size = _decoded(data, at)
                    at += size
                    if not classes[code] & SPACE:
                        kept = at
                end = kept
            line_hash, line_length = _characters_hash(data, start, end)
        if line_length:
            value = _mixed(value + _STEP) + line_hash if length else line_hash
            length += line_length + (length > 0)
        if length and (not line_length or number == last):
            count += 1
            if _was_there(table, shift, _mixed(value)):
                repeated, characters = repeated + 1, characters + length
            value, length = _ZERO, 0
    return max(1, count), repeated, characters


@compiled
def _share(part: float, whole: float) -> float:
    return part / whole if whole else _NEVER


@compiled
def _repeated_grams(words: Any, script: int, total: int, grams: Any, scratch: Any, store: Any, tallies: Any, out: Any) -> Any:
    """The shares of characters in n-grams that are there several times, for all lengths n.

    An n-gram can be there twice only where shorter ones at its begin and at its end are, so that each length looks at few.

    Args:
        words: uint64 of shape [words, 2]: hash, characters.
        grams: room for hashes of n-grams by first word.
        scratch: int64 of shape [more than words, 4]: the characters before each word; the last length, counted from 1, of
            which its n-gram is there twice; the first words of the n-grams to look at; their places in the table.
    """
    count, reached = len(words), 1
    scratch[0, 0] = 0
    for word in range(count):
        scratch[word + 1, 0] = scratch[word, 0] + np.int64(words[word, 1])
        scratch[word, 1], scratch[word, 2] = 0, word
        grams[word] = words[word, 0]
    for number in range(9):
        n = _N[script, number]
        kept = 0
        for place in range(count):
            word = scratch[place, 2]
            if word + n <= len(words) and scratch[word, 1] == number and scratch[word + n - reached, 1] == number:
                value = grams[word]
                for following in range(word + reached, word + n):
                    value = value * _STEP + words[following, 0]
                grams[word], scratch[kept, 2] = value, word
                kept += 1
        count, reached = kept, n

        table, shift, store = _cleared(store, count)
        if len(tallies) < len(table):
            tallies = np.empty((len(store), 2), dtype=np.int32)
        best, best_first = 1, 0
        for place in range(count):
            word = scratch[place, 2]
            key = grams[word] if grams[word] else _ONE
            slot = np.int64((key * _MIX) >> shift)
            while table[slot] != _ZERO and table[slot] != key:
                slot = (slot + 1) & (len(table) - 1)
            if table[slot] == _ZERO:
                table[slot] = key
                tallies[slot, 0], tallies[slot, 1] = 0, word
            tallies[slot, 0] += 1
            scratch[place, 3] = slot
            if tallies[slot, 0] > best or (tallies[slot, 0] == best and tallies[slot, 1] < best_first):
                best, best_first = tallies[slot, 0], tallies[slot, 1]
        for place in range(count):
            if tallies[scratch[place, 3], 0] > 1:
                scratch[scratch[place, 2], 1] = number + 1

        found = 0
        if number < 3:  # the most frequent one, the first of several, with spaces between its words
            if n <= len(words):
                found = best * (scratch[best_first + n, 0] - scratch[best_first, 0] + (n - 1) * (1 - script))
        else:  # all that stood there before; after one, its n words are passed
            table, shift, store = _cleared(store, count)
            free = 0
            for place in range(count):
                word = scratch[place, 2]
                if word >= free and scratch[word, 1] == number + 1 and _was_there(table, shift, grams[word]):
                    found += scratch[word + n, 0] - scratch[word, 0]
                    free = word + n
        out[number] = _share(found, total)
    return store, tallies


@njit(nogil=True, error_model="numpy", cache=True)
def measure(
    data: Any,
    offsets: Any,
    classes: Any,
    stops: Any,
    by: int,
    spans: Any,
    span_offsets: Any,
    groups: int,
    scripts: Any,
    out: Any,
) -> None:
    """The columns of each document.

    Args:
        data: the bytes of all, uint8; offsets: where each begins, and the end, int64 of shape [documents + 1].
        stops: a table of stop words by hash, uint64 of shape [256, 2]: hash, bit (0: free); the first 8 bits are English.
        by: what a word is; spans: where words begin and end, int64 of shape [words, 2], and span_offsets, int64 of shape
            [documents + 1], where they are given.
        groups: which columns are wanted.
        scripts: 1 where the script has no spaces, 0 elsewhere, -1 to be decided here; int8 of shape [documents].
        out: float64 of shape [documents, columns].
    """
    counts = np.zeros(18, dtype=np.int64)
    line_store, word_store = np.empty((256, 5), dtype=np.uint64), np.empty((4096, 2), dtype=np.uint64)
    store, tallies = np.empty(1 << 13, dtype=np.uint64), np.empty((1 << 13, 2), dtype=np.int32)
    grams, scratch = np.empty(4096, dtype=np.uint64), np.empty((4097, 4), dtype=np.int64)
    for document in range(len(offsets) - 1):
        start, end, row = offsets[document], offsets[document + 1], out[document]
        counts[:] = 0
        lines, line_store = _read(data, start, end, classes, counts, line_store)
        total = counts[_CHARACTERS]
        row[0] = total
        row[1] = counts[_UNSPACED_LETTERS] / counts[_LETTERS] if counts[_LETTERS] else 0.0
        if scripts[document] < 0:
            scripts[document] = by == BY_PATTERN and row[1] > 0.5
        script = scripts[document]

        at, words, given = start, 0, span_offsets[document] if by == GIVEN else 0
        while groups:
            to = end
            if by == GIVEN:
                if given == span_offsets[document + 1]:
                    break
                at, to = spans[given, 0], spans[given, 1]
                given += 1
            else:
                while at < end:
                    code, size = _decoded(data, at)
                    if not classes[code] & SPACE:
                        break
                    at += size
                if at == end:
                    break
            if words == len(word_store):
                word_store = _grown(word_store)
            at = _read_word(data, at, to, classes, by, stops, counts, word_store[words])
            words += 1

        if groups & REPETITION:
            table, shift, store = _cleared(store, len(lines))
            count, repeated, characters = _repeated_paragraphs(data, lines, classes, table, shift)
            row[_PARAGRAPHS], row[_PARAGRAPHS + 1] = repeated / count, _share(characters, total)
            table, shift, store = _cleared(store, len(lines))
            count, repeated, characters = _repeated_lines(lines, table, shift, False)
            # Where newlines come first or last, an empty line is cut off there; with both, the second has been there before.
            empty_first = lines[0, 2] == 0
            empty_last = len(lines) > 1 and lines[len(lines) - 1, 2] == 0
            count, repeated = count + empty_first + empty_last, repeated + (empty_first and empty_last)
            row[_PARAGRAPHS + 2], row[_PARAGRAPHS + 3] = repeated / count, _share(characters, total)

            if len(grams) < words:
                grams, scratch = np.empty(len(word_store), dtype=np.uint64), np.empty((len(word_store) + 1, 4), dtype=np.int64)
            store, tallies = _repeated_grams(
                word_store[:words], script, total, grams, scratch, store, tallies, row[_TOP : _TOP + 9]
            )

        if groups & QUALITY:
            row[_WORDS] = counts[_REAL_WORDS]
            row[_WORDS + 1] = _share(counts[_REAL_CHARACTERS], counts[_REAL_WORDS])
            row[_WORDS + 2] = _share(counts[_HASHES], words)
            row[_WORDS + 3] = _share(counts[_ELLIPSIS_RUNS if script else _ELLIPSES], words)
            row[_WORDS + 4] = _share(counts[_UNSPACED_BULLET_LINES if script else _BULLET_LINES], counts[_SPLIT_LINES])
            row[_WORDS + 5] = _share(counts[_UNSPACED_ELLIPSIS_LINES if script else _ELLIPSIS_LINES], counts[_SPLIT_LINES])
            row[_WORDS + 6] = _share(counts[_ALPHABETIC], words)
            seen, number = counts[_STOPS] >> 8 if script else counts[_STOPS] & 255, 0
            while seen:
                seen, number = seen & (seen - 1), number + 1
            row[_WORDS + 7] = number
            if script and 2 * counts[_EAST_ASIAN] < counts[_UNSPACED_LETTERS]:
                row[_WORDS + 7] = _NEVER

        if groups & LINES:
            table, shift, store = _cleared(store, len(lines))
            count, repeated, characters = _repeated_lines(lines, table, shift, True)
            punctuated, short = 0, 0
            for number in range(len(lines)):
                if lines[number, 4] & _ONE:
                    code = np.int64(lines[number, 4] >> _ONE)
                    punctuated += (classes[code] & TERMINAL) != 0 or (script == 1 and _closes(code))
                    short += np.int64(lines[number, 2]) <= _SHORT[script]
            row[_LINES] = count
            row[_LINES + 1], row[_LINES + 2] = _share(punctuated, count), _share(short, count)
            row[_LINES + 3] = _share(characters, total - counts[_NEWLINES])
            row[_LINES + 4] = _share(counts[_NEWLINES], words)


@compiled
def _closes(code: int) -> bool:
    """Whether a character may stand after the end of a sentence, in scripts without spaces."""
    found = False
    for number in range(len(_ENDINGS)):
        found = found or code == _ENDINGS[number]
    return found


@compiled
def _citation_end(data: Any, at: int, end: int, classes: Any) -> int:
    """Where a mark such as [12] or [edit] that begins here ends; the same place where there is none."""
    to = at + 1
    while to < end:
        code, size = _decoded(data, to)
        if not classes[code] & DIGIT:
            break
        to += size
    if to < end and data[to] == 0x5D:
        return to + 1
    for text in (b"[edit]", b"[citation needed]"):
        if at + len(text) <= end:
            same = 0
            while same < len(text) and data[at + same] == text[same]:
                same += 1
            if same == len(text):
                return at + same
    return at


@compiled
def _mentioned(data: Any, start: int, end: int, phrases: Any, lengths: Any, meanings: Any, firsts: Any) -> int:
    """Which phrases, whatever their case, a line has."""
    found = 0
    for at in range(start, end):
        byte = data[at] | np.uint8(0x20) if 0x41 <= data[at] <= 0x5A else data[at]
        for phrase in range(firsts[byte], firsts[byte + 1]):
            to, same = at + 1, 1
            while same < lengths[phrase] and to < end:
                wanted, byte_there = phrases[phrase, same], data[to]
                if 0x41 <= byte_there <= 0x5A:
                    byte_there = byte_there | np.uint8(0x20)
                if byte_there == wanted:
                    to += 1
                elif wanted == 0x6B and to + 2 < end and data[to] == 0xE2 and data[to + 1] == 0x84 and data[to + 2] == 0xAA:
                    to += 3  # the sign of the unit kelvin, whose small letter is k
                else:
                    break
                same += 1
            if same == lengths[phrase]:
                found |= meanings[phrase]
    return found


@compiled
def _sentences(data: Any, start: int, end: int, classes: Any) -> int:
    """One, and one more for each word that follows the end of a sentence: a full stop only with a space between."""
    count, state, at = 1, 0, start
    while at < end:
        code, size = _decoded(data, at)
        kind = classes[code]
        if kind & WORD:
            count, state = count + (state == 2), 0
            while at + size < end and data[at + size] < 0x80 and classes[data[at + size]] & LETTER:
                size += 1
        elif kind & TERMINAL:
            state = 2 if code >= 0x80 else max(state, 1)
        elif kind & SPACE and state == 1:
            state = 2
        at += size
    return count


@njit(nogil=True, error_model="numpy", cache=True)
def clean(
    data: Any,
    offsets: Any,
    classes: Any,
    scripts: Any,
    limits: Any,
    phrases: Any,
    lengths: Any,
    meanings: Any,
    firsts: Any,
    kept: Any,
    kept_offsets: Any,
    out: Any,
) -> None:
    """Each document without the lines that C4 removes, into `kept`, and what is counted meanwhile.

    Args:
        limits: fewest words, fewest letters where the script has no spaces, longest word; and whether a line has to end as a
            sentence, those that mention JavaScript or policies go, citation marks go; float64 of shape [7], -1: off.
        phrases: uint8 of shape [phrases, bytes], lower case, in their order, with lengths and meanings; firsts: the number of
            the first one that begins with a byte or one after it, int64 of shape [257].
        kept: uint8, as long as `data`, and kept_offsets, as `offsets`, to be filled.
        out: float64 of shape [documents, columns].
    """
    to = 0
    kept_offsets[0] = 0
    for document in range(len(offsets) - 1):
        at, end, script, row = offsets[document], offsets[document + 1], scripts[document], out[document]
        begin, lines, sentences, lorem, curly = to, 0, 0, 0, 0
        while at < end:
            first, last, words, length, longest, letters, bracket = at, at, 0, 0, 0, 0, False
            while at < end:
                code, size = _decoded(data, at)
                kind = classes[code]
                at += size
                if kind & LINE_END:
                    if code == 13 and at < end and data[at] == 10:
                        at += 1
                    break
                if kind & SPACE:
                    length = 0
                else:
                    if last == first:
                        first = at - size
                    words, length, letters = words + (length == 0), length + 1, letters + (kind & WORD)
                    bracket = bracket or code == 0x5B
                    last = at
                    while last < end and data[last] < 0x80 and classes[data[last]] & LETTER:
                        last += 1
                    length, letters, at = length + last - at, letters + last - at, last
                    longest = max(longest, length)
            if not script and limits[2] >= 0 and longest > limits[2]:
                continue

            source, line, line_end = data, first, last
            if bracket and limits[6] > 0:
                source, line = kept, to + (lines > 0)
                line_end, position = line, first
                while position < last:
                    past = _citation_end(data, position, last, classes) if data[position] == 0x5B else position
                    if past == position:
                        kept[line_end] = data[position]
                        line_end, past = line_end + 1, position + 1
                    position = past

            if limits[3] > 0:
                if line_end == line:
                    continue
                tail = line_end - 1
                while source[tail] & 0xC0 == 0x80:
                    tail -= 1
                code, _ = _decoded(source, tail)
                ends = code == 0x2E or code == 0x3F or code == 0x21 or code == 0x22 or code == 0x27
                if script:
                    ends = ends or (classes[code] & TERMINAL) != 0 or _closes(code)
                cut = code == 0x2E and line_end - line >= 3 and source[line_end - 2] == 0x2E and source[line_end - 3] == 0x2E
                if cut or not ends:
                    continue
            if (letters if script else words) < limits[1 if script else 0]:
                continue
            found = _mentioned(source, line, line_end, phrases, lengths, meanings, firsts)
            lorem += found & LOREM != 0
            if limits[4] > 0 and found & JAVASCRIPT:
                continue
            curly += found & CURLY != 0
            if limits[5] > 0 and (found & POLICY or (script and found & UNSPACED_POLICY)):
                continue
            sentences += _sentences(source, line, line_end, classes)
            if lines:
                kept[to] = 10
                to += 1
            if line_end > line:
                kept[to : to + line_end - line] = source[line:line_end]
            to, lines = to + line_end - line, lines + 1

        first = begin
        while first < to:
            code, size = _decoded(kept, first)
            if not classes[code] & SPACE:
                break
            first += size
        for position in range(first, to):
            kept[begin + position - first] = kept[position]
        to -= first - begin
        last = begin
        position = begin
        while position < to:
            code, size = _decoded(kept, position)
            position += size
            if not classes[code] & SPACE:
                last = position
        to = last
        kept_offsets[document + 1] = to
        row[0], row[1], row[2], row[3] = lorem, curly, sentences, lines
