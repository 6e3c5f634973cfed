"""The compiled pass: identical to its plain reference, whatever the text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmkit.corpus.quality import reference
from llmkit.corpus.quality.lines import LineRules
from llmkit.corpus.quality.measure import SETS, measure
from llmkit.corpus.quality.words import DEFINITIONS

pytest.importorskip("numba")

PIECES = [
    *(
        "a",
        "b",
        "ab",
        "the",
        "be",
        "to",
        "of",
        "The",
        "don't",
        "co-op",
        "Müller",
        "İ",
        "K",
        "_",
        "７",
        "３.14",
        "Ｈｅ",
        "x\u0301",
    ),
    *(
        "你",
        "好",
        "的",
        "了",
        "。",
        "，",
        "！",
        "？",
        "…",
        "……",
        "”",
        "」",
        "・",
        "●",
        "·",
        "カ",
        "ー",
        "ｶ",
        "〇",
        "々",
        "ก",
        "ำ",
        "ี",
        "ᄀ",
    ),
    *(
        " ",
        "  ",
        "\n",
        "\n\n",
        "\n\n\n",
        "\r\n",
        "\r",
        "\t",
        "\v",
        "\x1c",
        "\x85",
        "\u2028",
        "\u2029",
        "\u3000",
        "\xa0",
        "\u200b",
    ),
    *(
        ".",
        "...",
        "....",
        "..",
        "。。。",
        "?",
        "!",
        '"',
        "'",
        "’",
        "-",
        "•",
        "#",
        "##",
        "[1]",
        "[",
        "]",
        "[edit]",
        "[citation needed]",
    ),
    *(
        "[٣]",
        "{",
        "lorem ipsum",
        "LOREM IPSUM.",
        "JavaScript",
        "javascript.",
        "Privacy Policy",
        "use cooKies",
        "使用条款",
        "隐私政策。",
    ),
    *("😀", "👩‍👩‍👧", "\ufe0f", "\U000e0041", "\U00020000", "\ud800", "\x00", "=", "x" * 40, "7", "a.b", "Mr. X", "One. Two."),
]
texts = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=60).map("".join),
    st.lists(st.sampled_from(["a", "b", "aa", " ", "\n"]), max_size=120).map("".join),
    st.text(max_size=60),
    st.lists(st.text(st.sampled_from("ab \n."), max_size=8), max_size=12).map("\n".join),
)
orders = st.permutations(SETS).flatmap(lambda order: st.integers(0, 4).map(lambda count: order[:count]))


@st.composite
def rules(draw: st.DrawFn) -> LineRules:
    """Line rules, each on or off."""
    return LineRules(
        *(draw(st.none() | st.integers(0, 6)) for _ in range(2)),
        draw(st.none() | st.integers(0, 30)),
        *(None if draw(st.booleans()) else value for value in (1, 0, 0, 0)),
    )


def same(texts: list[str], words: str, filters: tuple[str, ...], lines: LineRules) -> None:
    found, expected = (one(texts, words, filters, lines) for one in (measure, reference.measure))
    if texts:
        assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name, strict=True)


@settings(deadline=None, max_examples=400)
@given(st.lists(texts, max_size=4), st.sampled_from(DEFINITIONS[:2]), st.just(SETS) | orders, rules())
@example([""], "unicode-run-1", SETS, LineRules())
@example(["\n" * 50, "\n", " \n \n", "\r\n\r\n"], "unicode-run-1", SETS, LineRules())
def test_the_compiled_pass_is_the_reference(texts: list[str], words: str, filters: tuple[str, ...], lines: LineRules) -> None:
    same(texts, words, filters, lines)


@pytest.mark.parametrize("script", ["abcdefg hijk", "的一是不了在人有我他这"])
def test_long_documents_outgrow_the_room_that_there_is_at_first(script: str) -> None:
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list(script), size=generator.integers(1, 4))) for _ in range(60)]
    lines = [" ".join(generator.choice(words, size=12)) + "." for _ in range(700)]
    texts = ["\n".join(lines), "\n\n".join(lines[:350] + lines[:100]), "short", "\n".join(lines + lines)]
    same(texts, "unicode-run-1", SETS, LineRules())
