from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llmkit.corpus.documents import read_batches
from llmkit.errors import ConfigError, DataError
from llmkit.pipeline.artefact import Artefact

SPECIAL = ["<|user|>", "<|tool|>"]


@pytest.fixture(scope="module", params=["bpe", "unigram", "wordpiece"])
def each(request: pytest.FixtureRequest, run: Any, corpus: Artefact, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """A tokenizer of every algorithm, with special tokens of its own."""
    output = tmp_path_factory.mktemp("tokenizer") / request.param
    return run("tokenizer", output, corpus=corpus.directory, model=request.param, vocab_size=900, special_tokens=SPECIAL)


@pytest.fixture(scope="module")
def loaded(tokenizer: Artefact) -> Any:
    """The byte-level tokenizer as transformers loads it."""
    return AutoTokenizer.from_pretrained(tokenizer.directory)


def test_every_algorithm_loads_with_auto_tokenizer_and_reads_what_it_writes(each: Artefact) -> None:
    tokenizer = AutoTokenizer.from_pretrained(each.directory)
    assert tokenizer.is_fast
    assert len(tokenizer) == each.manifest.metrics["vocab_size"] == 900
    assert (
        tokenizer.decode(tokenizer.encode("Return the value of 今天的天气很好 x.")) == "Return the value of 今天的天气很好 x."
    )
    ids = tokenizer(["Return the value", "x"], padding=True)["input_ids"]
    assert len(ids[0]) == len(ids[1])
    assert ids[1][-1] == tokenizer.pad_token_id, "padding stands on the right"


def test_special_tokens_are_whole_and_apart_from_each_other(each: Artefact) -> None:
    tokenizer = AutoTokenizer.from_pretrained(each.directory)
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.pad_token == "<|pad|>"
    assert len({tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(SPECIAL), tokenizer.pad_token_id}) == 4
    for token in SPECIAL:
        number = tokenizer.convert_tokens_to_ids(token)
        assert number in tokenizer.encode(f"Return {token} the"), f"{token} is one token in a text that a program builds"
        assert tokenizer.decode([number], skip_special_tokens=True).strip() == ""


def test_a_text_gets_no_special_tokens_of_its_own(loaded: Any) -> None:
    assert loaded.encode("x") == loaded.encode("x", add_special_tokens=False)


_ASSIGNED = st.characters(exclude_categories=("Cs", "Cn"))


@given(
    st.text(_ASSIGNED) | st.text(st.sampled_from(" \n\r\t'’12٣०今天天氣\u3000é\u0301ü\u200d👩🏽\ufe0f<|>endoftx\x00\u2028"))
)
@example("<|endoftext|>")
@example("  \r\n\t 今天的天气很好 👩🏽‍🚀 e\u0301 \u1112\u1161\u11ab \ud7b0 don't DON'T 12345 ١٢٣")
@example("")
@settings(max_examples=400, deadline=None)
def test_byte_level_bpe_gives_every_text_back_up_to_nfc(loaded: Any, text: str) -> None:
    assert loaded.decode(loaded.encode(text)) == unicodedata.normalize("NFC", text)


@given(st.text(st.characters(categories=("Cn",)) | st.sampled_from("a\u0301\u0327今")))
@settings(max_examples=200, deadline=None)
def test_byte_level_bpe_gives_characters_back_that_no_unicode_version_here_knows(loaded: Any, text: str) -> None:
    assert loaded.decode(loaded.encode(text)) == loaded.backend_tokenizer.normalizer.normalize_str(text)


def test_digits_stand_alone_and_han_characters_never_merge_with_latin_letters(loaded: Any) -> None:
    pieces = [loaded.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text) for text in ("in 2024", "用Python写")]
    byte_pieces = [[piece for piece, _ in found] for found in pieces]
    assert byte_pieces[0] == ["in", "Ġ", "2", "0", "2", "4"]
    assert len(byte_pieces[1]) == 3
    assert byte_pieces[1][1] == "Python"


def test_the_report_is_what_a_recount_by_hand_gives(run: Any, make_corpus: Any, corpus: Artefact, tmp_path: Path) -> None:
    texts = {"one.txt": "The cat sat. The cat's 2 mats!", "two.txt": "今天天气好 and fine", "three.txt": "猫猫猫"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    made = run("preprocess", tmp_path / "corpus", train_file=[str(tmp_path / "*.txt")], validation_fraction=0.0)
    tokenizer = run("tokenizer", tmp_path / "tokenizer", corpus=made.directory, vocab_size=300, min_frequency=1)
    report = tokenizer.manifest.metrics["splits"]["train"]
    loaded = AutoTokenizer.from_pretrained(tokenizer.directory)

    words = {"one.txt": ["The", "cat", "sat", "The", "cat's", "mats"], "two.txt": ["and", "fine"], "three.txt": []}
    han = {"one.txt": "", "two.txt": "今天天气好", "three.txt": "猫猫猫"}

    def check(numbers: dict[str, Any], names: list[str]) -> None:
        encoded = {name: loaded.encode(texts[name]) for name in names}
        counted = sum(map(len, encoded.values()))
        assert numbers["documents"] == len(names)
        assert numbers["tokens"] == counted
        assert numbers["bytes"] == sum(len(texts[name].encode()) for name in names)
        assert numbers["bytes_per_token"] == pytest.approx(numbers["bytes"] / counted)
        assert numbers["round_trip_failures"] == 0
        of_words = [len(loaded.encode(" " + word)) for name in names for word in words[name]]
        of_han = [len(loaded.encode(han[name])) for name in names]
        characters = sum(len(han[name]) for name in names)
        assert numbers.get("tokens_per_word") == (pytest.approx(sum(of_words) / len(of_words)) if of_words else None)
        assert numbers.get("tokens_per_han_character") == (pytest.approx(sum(of_han) / characters) if characters else None)

    check(report, list(texts))
    kinds = {number for text in texts.values() for number in loaded.encode(text)}
    assert report["vocabulary_used"] == pytest.approx(len(kinds) / len(loaded))
    assert set(report["sources"]) == set(texts)
    for name in texts:
        check(report["sources"][name], [name])


def test_round_trip_failures_are_none_for_bytes_and_counted_for_wordpiece(
    run: Any, corpus: Artefact, tokenizer: Artefact, tmp_path: Path
) -> None:
    assert tokenizer.manifest.metrics["splits"]["train"]["round_trip_failures"] == 0
    lossy = run("tokenizer", tmp_path / "w", corpus=corpus.directory, model="wordpiece", vocab_size=900)
    loaded = AutoTokenizer.from_pretrained(lossy.directory)
    texts = [text for batch in read_batches(corpus.directory, "train") for text in batch["text"].to_pylist()]
    failures = sum(loaded.decode(loaded.encode(text)) != text for text in texts)
    assert lossy.manifest.metrics["splits"]["train"]["round_trip_failures"] == failures > 0


def test_only_the_train_split_is_learned_from(run: Any, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("abc abd " * 50, encoding="utf-8")
    (tmp_path / "held.txt").write_text("xyz xyz xyz " * 50, encoding="utf-8")
    files = {"train_file": [str(tmp_path / "train.txt")], "validation_file": [str(tmp_path / "held.txt")]}
    made = run("preprocess", tmp_path / "corpus", **files)
    vocabulary = AutoTokenizer.from_pretrained(run("tokenizer", tmp_path / "t", corpus=made.directory).directory).get_vocab()
    assert [token for token in vocabulary if "abc" in token]
    assert not [token for token in vocabulary if re.search("xy|yz", token)]


def test_the_first_characters_alone_are_learned_from_where_a_limit_is_set(run: Any, make_corpus: Any, tmp_path: Path) -> None:
    made = make_corpus(tmp_path, ["abab abab abab abab", "qrqr qrqr qrqr qrqr"], validation_fraction=0.0)
    learned = run("tokenizer", tmp_path / "t", corpus=made.directory, max_train_characters=19)
    vocabulary = AutoTokenizer.from_pretrained(learned.directory).get_vocab()
    assert "ab" in vocabulary
    assert "qr" not in vocabulary


@pytest.mark.parametrize("settings", [{"vocab_size": 258}, {"vocab_size": 260, "special_tokens": SPECIAL}])
def test_a_vocabulary_without_room_for_the_bytes_is_refused(
    run: Any, corpus: Artefact, tmp_path: Path, settings: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=f"vocab_size: {settings['vocab_size']} leaves nothing to learn"):
        run("tokenizer", tmp_path / "t", corpus=corpus.directory, **settings)


@pytest.mark.parametrize("model", ["unigram", "wordpiece"])
def test_a_vocabulary_without_room_for_the_characters_is_refused(
    run: Any, corpus: Artefact, tmp_path: Path, model: str
) -> None:
    with pytest.raises(DataError, match="vocab_size: 60 has no room for every character"):
        run("tokenizer", tmp_path / "t", corpus=corpus.directory, model=model, vocab_size=60)
    assert not (tmp_path / "t").exists()


def test_padding_with_eos_is_refused(run: Any, corpus: Artefact, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pad_token: is the same as eos_token"):
        run("tokenizer", tmp_path / "t", corpus=corpus.directory, pad_token="<|endoftext|>")


def test_the_same_corpus_gives_the_same_tokenizer(run: Any, corpus: Artefact, tokenizer: Artefact, tmp_path: Path) -> None:
    again = run("tokenizer", tmp_path / "again", corpus=corpus.directory, vocab_size=512)
    first, second = (json.loads((item.directory / "tokenizer.json").read_text()) for item in (tokenizer, again))
    assert first == second
    assert again.manifest.digest == tokenizer.manifest.digest


def test_a_corpus_without_text_to_learn_from_is_refused(
    run: Any, corpus: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmkit.tokens import train_tokenizer

    nothing: Callable[..., list[str]] = lambda *_: []  # noqa: E731
    monkeypatch.setattr(train_tokenizer, "_texts", nothing)
    with pytest.raises(DataError, match="has no text in its train split"):
        run("tokenizer", tmp_path / "t", corpus=corpus.directory, vocab_size=300)
