"""The data dictionary: what the quality filters measure of a document, one number each."""

from __future__ import annotations

from dataclasses import dataclass

GOPHER = "Rae et al. 2021, arXiv:2112.11446, table A1"
GOPHER_QUALITY = "Rae et al. 2021, arXiv:2112.11446, section A.1.1"
C4 = "Raffel et al. 2020, JMLR 21:140, section 2.2"
FINEWEB = "Penedo et al. 2024, arXiv:2406.17557, section 3.6"
OWN = "llmkit"


@dataclass(frozen=True)
class Signal:
    """One measurement of a document."""

    name: str
    definition: str
    unit: str
    source: str
    group: str
    """The set of rules that judges by it; "" where all may."""


_WORD_GRAMS = {2: 3, 3: 5, 4: 6, 5: 8, 6: 10, 7: 11, 8: 13, 9: 14, 10: 16}
"""Lengths of n-grams in words, and in characters where the script has no spaces: 1.6 characters to a word, as in the corpora
of the second bakeoff for Chinese word segmentation (Emerson 2005: 1.65 in PKU's, 1.71 in MSR's)."""


def _gram(n: int) -> str:
    return f"{n}-grams of words (of {_WORD_GRAMS[n]} characters where the script has no spaces)"


_REPETITION = [
    (
        "duplicate_paragraph_fraction",
        "paragraphs that stood in the text before, of all; between them are empty lines",
        "share",
    ),
    ("duplicate_paragraph_character_fraction", "characters of paragraphs that stood in the text before, of all", "share"),
    ("duplicate_line_fraction", "lines that stood in the text before, of all that are not empty", "share"),
    ("duplicate_line_character_fraction", "characters of lines that stood in the text before, of all", "share"),
    *(
        (
            f"top_{n}_gram_character_fraction",
            f"characters of the most frequent one of the {_gram(n)}, times how often it is there, of all characters",
            "share",
        )
        for n in (2, 3, 4)
    ),
    *(
        (
            f"duplicate_{n}_gram_character_fraction",
            f"characters in {_gram(n)} that stood in the text before, none counted twice, of all characters",
            "share",
        )
        for n in (5, 6, 7, 8, 9, 10)
    ),
]
_QUALITY = [
    ("words", "words that are not of punctuation alone", "words"),
    ("mean_word_length", "mean length of those words; undefined without any", "characters"),
    ("hash_ratio", "number signs (#) to each word or sign", "per word"),
    (
        "ellipsis_ratio",
        "ellipses (… or ...) to each word or sign; a run counts once where the script has no spaces",
        "per word",
    ),
    ("bullet_line_fraction", "lines that begin with • or - (or with ・ ● · where the script has no spaces), of all", "share"),
    (
        "ellipsis_line_fraction",
        "lines that end with an ellipsis, of all (also 。。。 where the script has no spaces)",
        "share",
    ),
    ("alphabetic_word_fraction", "words with a letter in them, of all words and signs", "share"),
    (
        "stop_words",
        "how many of eight frequent English words are there (of frequent Chinese and Japanese characters where the script "
        "has no spaces; undefined for Thai and others)",
        "words",
    ),
]
_C4 = [
    ("lorem_ipsum_lines", "lines with the words lorem ipsum, of those that line rules before it have kept", "lines"),
    ("curly_bracket_lines", "lines with a curly bracket, of those that line rules before it have kept", "lines"),
    ("sentences", "sentences in the lines that are kept", "sentences"),
    ("kept_lines", "lines that are kept", "lines"),
]
_FINEWEB = [
    ("lines", "lines that are not blank", "lines"),
    (
        "punctuated_line_fraction",
        "lines that end with the end of a sentence, of all that are not blank (where the script has no spaces also with "
        "quotation marks and …)",
        "share",
    ),
    ("short_line_fraction", "lines of at most 30 characters (8 where the script has no spaces), of all not blank", "share"),
    ("repeated_line_character_fraction", "characters of lines that stood in the text before, of all but newlines", "share"),
    ("newline_ratio", "newlines to each word or sign", "per word"),
]

SIGNALS: dict[str, Signal] = {
    signal.name: signal
    for signal in (
        Signal("characters", "length of the text", "characters", OWN, ""),
        Signal(
            "unspaced_share",
            "letters of scripts without spaces between words (Han, kana, Thai, Khmer, ...), of all letters",
            "share",
            OWN,
            "",
        ),
        *(Signal(*one, GOPHER, "gopher_repetition") for one in _REPETITION),
        *(Signal(*one, GOPHER_QUALITY, "gopher_quality") for one in _QUALITY),
        *(Signal(*one, C4, "c4") for one in _C4),
        *(Signal(*one, FINEWEB, "fineweb") for one in _FINEWEB),
    )
}
"""By name, in the order in which tables have them."""
