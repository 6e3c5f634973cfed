"""Quality filters as a step: signals first, then thresholds, with the lines that C4 removes in between."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmkit.corpus.batch import Batch
from llmkit.corpus.quality.measure import SETS, measure, measure_packed, packed
from llmkit.corpus.quality.step import Quality
from llmkit.errors import ConfigError

pytest.importorskip("numba")

GOOD = """The ferry left the island before the sun had come up.
Only two of the passengers had ever been to the mainland, and both were asleep.
We asked the captain why he would not wait for the storm to pass.
He said that he had a wife who worried, a boat that leaked and a debt to pay.
Nobody laughed, because all of it was true!
By noon we could see the harbour with its cranes and the white church on the hill.
What would my brother say when he found me there?"""

CHINESE = """我们在山里的小村子住了一个晚上，第二天早上才离开。
那里的人大多上了年纪，年轻人都到城里去找工作了。
村口有一棵很老的树，听说已经三百多岁。
她问我以后还会不会再来，我不知道该怎么回答。
车子开动的时候，雨也停了！
回到家里，我把照片一张一张地看完，心里说不出是什么味道。"""


def batch_of(*texts: str) -> Batch:
    return Batch(list(texts), [str(number) for number in range(len(texts))], [""] * len(texts), [{} for _ in texts])


def test_documents_are_rejected_with_rule_and_value_and_others_keep_what_c4_leaves() -> None:
    menu = f"Home | About\n{GOOD}\nYou have to enable JavaScript for that."
    batch = batch_of(GOOD, "Too short to be of use.", menu, "", CHINESE, GOOD)
    batch.reject(5, "language", "de")
    quality = Quality(SETS)
    quality(batch)
    assert batch.texts == [GOOD, "Too short to be of use.", GOOD, "", CHINESE, GOOD]
    assert batch.rules == ["", "", "", "", "", "language"], "measuring rejects nothing"
    assert all(column.shape == (6,) and np.isnan(column[5]) for column in batch.signals.values())
    quality.judge(batch)
    assert batch.rules == [
        "",
        "gopher_repetition.max_top_2_gram_character_fraction",
        "",
        "gopher_repetition.min_characters",
        "",
        "language",
    ]
    assert batch.values[3] == 0 and batch.values[1] == batch.signals["top_2_gram_character_fraction"][1]


def test_a_rejected_document_keeps_its_lines() -> None:
    text = f"Home | About\n{GOOD[:130]}"
    batch = batch_of(text)
    quality = Quality(["c4"], {"c4": {"min_sentences": 2}})
    quality(batch)
    quality.judge(batch)
    assert (batch.rules, batch.texts, batch.values) == (["c4.min_sentences"], [text], [1.0])


def test_another_threshold_needs_no_second_measuring() -> None:
    batch = batch_of(GOOD, "Some words that have to be with us. " * 3)
    Quality(SETS)(batch)
    again = Batch(batch.texts, batch.ids, batch.sources, batch.metadata, signals=batch.signals)
    Quality(["gopher_quality"], {"gopher_quality": {"min_words": 40}}).judge(again)
    Quality(["gopher_quality"]).judge(batch)
    assert batch.rules == ["", "gopher_quality.min_words"] and again.rules == ["", "gopher_quality.min_words"]
    once_more = Batch(batch.texts, batch.ids, batch.sources, batch.metadata, signals=batch.signals)
    Quality(["gopher_quality"], {"gopher_quality": {"min_words": 1000}}).judge(once_more)
    assert once_more.rules == ["gopher_quality.min_words"] * 2


def test_filters_after_c4_see_what_it_leaves_and_those_before_it_the_whole_text() -> None:
    text = "menu\n" * 30 + GOOD
    before, after = measure([text], filters=["fineweb", "c4"]), measure([text], filters=["c4", "fineweb"])
    assert before["lines"] == 37 and after["lines"] == 7
    assert after["characters"] == len(text)
    assert (
        measure([text], filters=["gopher_quality", "c4"])["words"] > measure([text], filters=["c4", "gopher_quality"])["words"]
    )
    assert set(measure([text], filters=["c4"])) & {"lines", "words"} == set()


def test_chinese_is_judged_by_characters() -> None:
    signals = measure([CHINESE, CHINESE[:60]])
    assert (signals["unspaced_share"] == 1).all() and signals["sentences"][0] == 6
    batch = batch_of(CHINESE[:60], CHINESE + CHINESE)
    quality = Quality(SETS)
    quality(batch)
    quality.judge(batch)
    assert batch.rules == ["gopher_quality.unspaced_min_words", "gopher_repetition.max_duplicate_line_fraction"]


def test_thai_has_no_list_of_stop_words_and_fails_none() -> None:
    assert np.isnan(measure(["ภาษาไทยเป็นภาษาที่มีระดับเสียงของคำแน่นอน"])["stop_words"])
    assert measure(["あの人はとても親切で、いつも本を読んでいる。"])["stop_words"] >= 5


def test_arrow_arrays_are_read_where_they_lie() -> None:
    pa = pytest.importorskip("pyarrow")
    texts = ["first", None, CHINESE, GOOD, "last"]
    expected = measure([text or "" for text in texts[1:]])
    arrays = [pa.array(texts, kind)[1:] for kind in (pa.string(), pa.large_string())]
    for array in [*arrays, pa.chunked_array([arrays[0][:2], arrays[0][2:]])]:
        found = measure(array)
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert len(measure(pa.array([], pa.string()))["characters"]) == 0
    assert len(measure([])["words"]) == 0


def test_what_comes_out_does_not_depend_on_the_documents_around() -> None:
    texts = ["a " * 3000, GOOD, "", "x\n" * 5000, CHINESE, "the be " * 9000, GOOD]
    together = measure(texts)
    for number, text in enumerate(texts):
        alone = measure([text])
        for name in together:
            np.testing.assert_array_equal(alone[name], together[name][number : number + 1], err_msg=name)


def test_a_half_of_a_surrogate_pair_is_a_character_too() -> None:
    found = measure_packed(packed(["It is \ud800 here to be. " * 3]), "unicode-run-1", ["c4"], Quality(["c4"]).lines)
    assert found.texts == ["It is \ud800 here to be. " * 2 + "It is \ud800 here to be."]


@pytest.mark.parametrize("words", ["unicode-run-1", "whitespace-1"])
def test_long_texts_end(words: str) -> None:
    """A prototype had a table by the size of the text, which many short lines filled; it looped for ever."""
    texts = [
        "\n" * 300_000,
        "a\n" * 200_000,
        "".join(f"{number}\n" for number in range(100_000)),
        "x" * 500_000,
        ". " * 200_000,
    ]
    found = measure([*texts, "字" * 200_000, "ab " * 150_000, "a!" * 200_000], words)
    assert found["characters"].tolist() == [300_000, 400_000, 588_890, 500_000, 400_000, 200_000, 450_000, 400_000]


def test_settings_that_there_are_not_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Quality(["c5"], {"c4": {"min_sentence": 1}}, words="spaces")
    assert len(caught.value.problems) == 4


def test_numba_is_imported_by_the_first_measuring_only() -> None:
    code = "import llmkit.corpus.quality.step, sys; print('numba' in sys.modules, 'spacy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["False", "False"]


@pytest.mark.slow
def test_the_compiled_code_is_kept_where_the_package_cannot_be_written(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    code = "from llmkit.corpus.quality.measure import measure; print(measure(['a'])['characters'][0])"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["1.0"], done.stderr
    assert list(cache.rglob("kernel.measure*.nbc")) and list(cache.rglob("kernel.clean*.nbc"))
