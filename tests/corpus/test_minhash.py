"""MinHash signatures: the compiled pass gives what NumPy gives, and both estimate Jaccard similarity."""

from __future__ import annotations

import random
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.corpus.duplicates import minhash
from llmkit.corpus.duplicates.curve import collision_curve, sample_quality, threshold
from llmkit.corpus.duplicates.minhash import MinHash
from llmkit.corpus.duplicates.settings import DuplicateSettings
from llmkit.corpus.words import normalised
from llmkit.errors import DataError

pytest.importorskip("numba")

SMALL = DuplicateSettings(documents=False, paragraphs=False, near=True, bands=3, rows=2)


def both_agree(texts: list[str], chosen: DuplicateSettings) -> None:
    hashing = MinHash(chosen)
    values, has_words = hashing.signatures(texts)
    plain, plain_has_words = hashing.plain(texts)
    assert (values == plain).all() and (has_words == plain_has_words).all()


letters = st.characters(max_codepoint=0x3FFF) | st.characters()  # half pairs, too
worded = st.lists(
    st.sampled_from(["a", "Bc", "ＤＥ", "ß", "红", "ﾊﾞ", "é", "e\u0301", "가", "\u1100\u1161", "7", "-"]), max_size=12
)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.text(letters, max_size=40) | worded.map(" ".join) | worded.map("".join), max_size=4), st.integers(1, 6))
def test_the_compiled_pass_gives_what_numpy_gives(texts: list[str], ngram: int) -> None:
    both_agree(texts, DuplicateSettings(False, False, True, bands=3, rows=2, ngram=ngram))


def test_the_compiled_pass_gives_what_numpy_gives_on_adversarial_texts() -> None:
    texts = ["\n" * 5000, "a" * 5000, "a " * 3000, "床" * 3000, "\U000e0100 a\U0010ffff b", "a\x00b", "e" + "\u0301" * 500, ""]
    both_agree([*texts, "".join(texts)], SMALL)


def test_folding_by_table_is_normalising_by_python() -> None:
    table = minhash._folding()
    easy = [code for code in range(len(table)) if not table[code] & 4]
    assert len(easy) > 200_000
    shuffled = random.Random(0)
    for _ in range(300):
        some = shuffled.choices(easy[:12000], k=300) + shuffled.choices(easy, k=300)
        shuffled.shuffle(some)
        text = "".join(map(chr, some))
        assert normalised(text) == "".join(chr(int(table[code]) >> 3) for code in some)


def test_every_pair_of_a_base_letter_and_a_joining_one_is_left_to_python() -> None:
    table = minhash._folding()
    for code in range(len(table)):
        composed = chr(code)
        parts = unicodedata.normalize("NFD", composed)
        if len(parts) > 1 and unicodedata.normalize("NFC", parts) == composed:
            assert any(ord(part) >= len(table) or table[ord(part)] & 4 for part in parts[1:])


def test_case_width_and_punctuation_make_no_difference_and_words_do() -> None:
    texts = ["One, two; three FOUR five six", "one two three four five – ｓｉｘ!", "one two three four five seven"]
    bands = MinHash(SMALL).bands(texts)
    assert (bands[0] == bands[1]).all() and not (bands[0] == bands[2]).all()


def test_a_text_without_words_has_no_bands() -> None:
    bands = MinHash(SMALL).bands(["", "...", "a"])
    assert (bands[:2] == 0).all() and (bands[2] > 0).all()
    assert MinHash(SMALL).bands([]).shape == (0, 3)


def test_a_seed_changes_the_hashes_and_the_same_one_does_not() -> None:
    text = ["some words that make a shingle or two"]
    other = DuplicateSettings(False, False, True, bands=3, rows=2, seed=1)
    assert (MinHash(SMALL).bands(text) == MinHash(SMALL).bands(text)).all()
    assert not (MinHash(SMALL).bands(text) == MinHash(other).bands(text)).any()


@pytest.mark.parametrize("shared", [100, 400, 700, 950])
def test_signatures_agree_as_often_as_jaccard_says(shared: int) -> None:
    chosen = DuplicateSettings(False, False, True, bands=500, rows=8, ngram=1)
    one = [f"w{number}" for number in range(1000)]
    other = [*one[:shared], *(f"v{number}" for number in range(1000 - shared))]
    values, _ = MinHash(chosen).signatures([" ".join(one), " ".join(other)])
    expected = shared / (2000 - shared)
    deviation = np.sqrt(expected * (1 - expected) / 4000)
    assert abs((values[0] == values[1]).mean() - expected) < 4 * deviation


def test_the_curve_goes_from_never_to_always_and_is_half_at_the_threshold() -> None:
    curve = collision_curve(14, 8)
    similarities = [point["jaccard"] for point in curve]
    chances = [point["probability"] for point in curve]
    assert (similarities[0], similarities[-1]) == (0, 1) and (chances[0], chances[-1]) == (0, 1)
    assert chances == sorted(chances)
    half = threshold(14, 8)
    assert 1 - (1 - half**8) ** 14 == pytest.approx(0.5)
    assert collision_curve(1, 1)[5]["probability"] == pytest.approx(collision_curve(1, 1)[5]["jaccard"])


def test_the_quality_of_a_sample_is_that_of_all_its_pairs() -> None:
    shuffled = random.Random(0)
    texts = []
    for _ in range(60):
        words = [f"w{shuffled.randrange(5000)}" for _ in range(100)]
        for changes in (0, 1, 8, 20):
            changed = list(words)
            for place in shuffled.sample(range(100), changes):
                changed[place] = f"v{shuffled.randrange(5000)}"
            texts.append(" ".join(changed))
    chosen = DuplicateSettings(True, False, True)
    found = sample_quality([*texts, "", "!"], chosen)
    assert found["documents"] == len(texts) + 2
    shingles = [{tuple(text.split()[at : at + 5]) for at in range(96)} for text in texts]
    bands = MinHash(chosen).bands(texts)
    alike = similar = both = 0
    for one in range(len(texts)):
        for other in range(one):
            is_alike = bool((bands[one] == bands[other]).any())
            is_similar = len(shingles[one] & shingles[other]) / len(shingles[one] | shingles[other]) >= threshold(14, 8)
            alike, similar, both = alike + is_alike, similar + is_similar, both + (is_alike and is_similar)
    assert (found["pairs_found"], found["pairs_alike"], found["pairs_both"]) == (alike, similar, both)
    assert found["recall"] == both / similar and found["precision"] == both / alike
    assert found["recall"] > 0.8 and found["precision"] > 0.8


def test_the_quality_of_nothing_is_not_known() -> None:
    for texts in ([], ["a text alone"], ["", ""]):
        found = sample_quality(texts, SMALL)
        assert found["recall"] is None and found["precision"] is None


def test_a_missing_numba_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import llmkit.corpus.duplicates as package

    monkeypatch.delattr(package, "kernels", raising=False)
    monkeypatch.setitem(sys.modules, "llmkit.corpus.duplicates.kernels", None)
    with pytest.raises(DataError, match=r"llmkit\[corpus\]"):
        MinHash(SMALL).bands(["a"])
