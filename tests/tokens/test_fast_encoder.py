"""The fast encoder gives the ids of `tokenizers`, whatever the text."""

from __future__ import annotations

import json
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmkit.pipeline.artefact import Artefact
from llmkit.tokens import encoders, tokenize_corpus
from llmkit.tokens.encoders import FastEncoder, StandardEncoder
from llmkit.tokens.shards import tokenizer_hash

numba = pytest.importorskip("numba")

SPECIAL = ["<|endoftext|>", "<|pad|>", "pad", "[EOS]"]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LEARNED = [
    "The quick brown fox doesn't jump; it's 2024 and they've 12345 reasons, we'll see.\n\n    return value\r\n",
    "今天的天气很好，我们去公园散步，看见湖边有很多人在拍照。今天的天气很好！",
    "Ærøskøbing, naïve café, Zürich — “quoted” … ١٢٣ नमस्ते สวัสดี 👩🏽‍🚀 <|endoftext|>",
] * 5


def byte_level(pattern: str | None, normaliser: Any = None, **model: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE; pattern None: cut as GPT-2 does."""
    tokenizer = Tokenizer(models.BPE(**model))
    cut: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    if pattern:
        cut = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior="isolated"), cut])
    tokenizer.pre_tokenizer, tokenizer.decoder = cut, decoders.ByteLevel()
    if normaliser:
        tokenizer.normalizer = normaliser
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, min_frequency=2, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(LEARNED, trainer=trainer)
    return wrapped(tokenizer)


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    special = [AddedToken(token, special=True) for token in SPECIAL[2:]]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL[0], pad_token=SPECIAL[1], additional_special_tokens=special
    )


def edited(tokenizer: PreTrainedTokenizerFast, **changes: Any) -> PreTrainedTokenizerFast:
    """The same with other values in the model of its JSON."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["model"].update(changes)
    return wrapped(Tokenizer.from_str(json.dumps(content)))


def with_every_split(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """As Llama 3 is converted: a merge for each way to cut a token in two, and whole pieces looked up before all merges.

    Of some tokens the merges are left out, so that nothing but the looking up finds them.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocabulary, merges = model["vocab"], []
    for token, _ in sorted(vocabulary.items(), key=lambda item: item[1]):
        cuts = [(token[:place], token[place:]) for place in range(1, len(token))]
        if token not in SPECIAL and len(token) != 5:
            merges += [[left, right] for left, right in cuts if left in vocabulary and right in vocabulary]
    return edited(tokenizer, merges=merges, ignore_merges=True)


@pytest.fixture(scope="module")
def tokenizers_by_name(run: Any, corpus: Artefact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    own = run("tokenizer", tmp_path_factory.mktemp("own") / "t", corpus=corpus.directory, vocab_size=700)
    return {
        "gpt2": byte_level(None),
        "llama3": byte_level(LLAMA3),
        "qwen2": byte_level(QWEN2, normalizers.NFC()),
        "own": AutoTokenizer.from_pretrained(own.directory),
        "llama3, whole pieces first": with_every_split(byte_level(LLAMA3)),
    }


NAMES = ["gpt2", "llama3", "qwen2", "own", "llama3, whole pieces first"]


@pytest.fixture(scope="module")
def both(tokenizers_by_name: dict[str, Any]) -> dict[str, tuple[FastEncoder, StandardEncoder]]:
    found = {}
    for name, tokenizer in tokenizers_by_name.items():
        fast = FastEncoder.of(tokenizer)
        assert fast is not None, f"{name} qualifies"
        found[name] = (fast, StandardEncoder(tokenizer))
    return found


def check(pair: tuple[FastEncoder, StandardEncoder], texts: list[str]) -> None:
    documents = pyarrow.array(texts, pyarrow.string())
    (ids, lengths), (expected, expected_lengths) = (encoder.encode(documents) for encoder in pair)
    assert lengths.tolist() == expected_lengths.tolist()
    assert ids.tolist() == expected.tolist()


PARTS = [
    *SPECIAL,
    *("'s", "'S", "'ſ", "'ll", "'lL", "'LL", "'Ve", "'re", "'RE", "'d", "'x", "'", "’s", "don't", "ſ"),
    *(" ", "  ", "\t", "\n", "\r\n", "\r", " \n", "\u00a0", "\u3000", "\u2028", "\x85", "\x0b", "\x1c", " " * 40, "\n" * 7),
    *("0", "12345", "１２", "Ⅷ", "½", "〇", "١٢٣", "!", "...", "—", "$", "_", "“", "，", "。"),
    *(
        "word",
        "The",
        "é",
        "e\u0301",
        "ẛ̣",
        "Å",
        "ﬁ",
        "今天",
        "天气很好",
        "々",
        "⺀",
        "豈",
        "カ",
        "한국",
        "\u1112\u1161\u11ab",
        "ไทย",
        "क्ष",
    ),
    *(
        "👩🏽‍🚀",
        "\ufe0f",
        "\u200d",
        "\ufeff",
        "\x00",
        "\x7f",
        "\ufffd",
        "\U0001f1e9",
        "\U00030000",
        "\U000e0101",
        "\U0010ffff",
    ),
    *("\u0378", "\U00016121", "\U00033500", "ab" * 300, "天" * 200, "=" * 600),
]
TEXTS = st.lists(st.sampled_from(PARTS) | st.text(max_size=4), max_size=12).map("".join) | st.text(max_size=40)


@pytest.mark.parametrize("name", NAMES)
@given(st.lists(TEXTS, max_size=4))
@example(["".join(PARTS), "", " ".join(PARTS), "\n".join(PARTS)])
@example([])
@settings(max_examples=150, deadline=None)
def test_ids_are_those_of_tokenizers(
    both: dict[str, tuple[FastEncoder, StandardEncoder]], name: str, texts: list[str]
) -> None:
    check(both[name], texts)


def check_cut(tokenizer: Any, text: str) -> None:
    from llmkit.tokens.byte_bpe import _piece
    from llmkit.tokens.byte_bpe_tables import _properties, plan_of

    plan = plan_of(json.loads(tokenizer.backend_tokenizer.to_str()))
    assert plan is not None
    data, ends = np.frombuffer(text.encode(), dtype=np.uint8), [0]
    while ends[-1] < len(data):
        ends.append(_piece(data, ends[-1], len(data), _properties(), plan.cut))
    sizes = np.cumsum([0, *(len(character.encode()) for character in text)])
    expected = [int(sizes[end]) for _, (_, end) in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert ends[1:] == expected


@pytest.mark.parametrize("name", NAMES[:4])
@given(TEXTS | st.text(st.sampled_from("'sSlLvEſ x1१ \t\n\r!，天〇⺀々\u0301é")))
@example("'Sx'ſx'lLx'LLx'Vex'VEx'ſſ'tx'T'Dx'mm")
@settings(max_examples=200, deadline=None)
def test_text_is_cut_as_the_regular_expression_cuts_it(tokenizers_by_name: dict[str, Any], name: str, text: str) -> None:
    check_cut(tokenizers_by_name[name], text)


@pytest.mark.parametrize("name", NAMES[:4])
def test_every_character_is_cut_as_the_regular_expression_cuts_it(tokenizers_by_name: dict[str, Any], name: str) -> None:
    """Each beside letters, digits, signs, white space and Han, and before a combining mark."""
    codes = [
        *range(0x3500),
        *range(0x9F00, 0xAC10),
        *range(0xD780, 0xD800),
        *range(0xE000, 0x20000, 5),
        *range(0, 0x110000, 1009),
    ]
    characters = [chr(code) for code in codes if not 0xD800 <= code < 0xE000]
    check_cut(tokenizers_by_name[name], "".join(f"{c} a{c}b {c}1{c}  !{c}\n{c}'{c}{c} 天{c}\u0301" for c in characters))


def test_what_a_normal_form_may_change_has_a_character_that_is_unsure() -> None:
    """What composes, decomposes or is put into another order, by the Unicode version of `tokenizers`."""
    from llmkit.tokens.byte_bpe_tables import _unsure

    unsure, whole, apart = _unsure(), normalizers.NFC(), normalizers.NFD()
    changed = 0
    for code in range(0x80, 0x110000):
        if 0xAC00 <= code <= 0xDFFF or 0x34000 <= code < 0xE0000:  # Hangul, of which a few do; nothing
            continue
        character = chr(code)
        decomposed = apart.normalize_str(character)
        beside = [("\u0315" + character, character), (character + "\u0334", character)]  # marks of a high and a low class
        for text, deciding in [(character, character), (decomposed, decomposed), *beside]:
            if whole.normalize_str(text) != text:
                changed += 1
                assert any(unsure[ord(part)] for part in deciding), hex(code)
    assert changed > 2000
    assert all(unsure[ord(part)] for syllable in "한글각" for part in apart.normalize_str(syllable)[1:])


def test_special_tokens_in_a_text_are_text(tokenizers_by_name: dict[str, Any]) -> None:
    tokenizer = tokenizers_by_name["llama3"]
    fast = FastEncoder.of(tokenizer)
    assert fast is not None
    ids, _ = fast.encode(pyarrow.array(["<|endoftext|> and <|pad|>"]))
    assert ids.tolist().count(tokenizer.eos_token_id) == 1 and tokenizer.pad_token_id not in ids
    assert tokenizer.decode(ids[:-1]) == "<|endoftext|> and <|pad|>"


def test_a_slice_of_a_column_is_encoded_alone(both: dict[str, tuple[FastEncoder, StandardEncoder]]) -> None:
    texts = pyarrow.array(["one", "two e\u0301", "three 今天", "four"])
    for kind in (pyarrow.string(), pyarrow.large_string()):
        ids, lengths = both["own"][0].encode(texts.cast(kind).slice(1, 2))
        expected, expected_lengths = both["own"][1].encode(texts.slice(1, 2))
        assert (ids.tolist(), lengths.tolist()) == (expected.tolist(), expected_lengths.tolist())


def test_a_full_memory_is_emptied_and_changes_nothing(
    tokenizers_by_name: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmkit.tokens import byte_bpe_tables

    monkeypatch.setattr(byte_bpe_tables, "_REMEMBERED", 1 << 11)
    words = ["".join(letters) for letters in product("abcdefgh", repeat=4)]
    for name in ("own", "llama3, whole pieces first"):
        fast = FastEncoder.of(tokenizers_by_name[name])
        assert fast is not None
        used = []
        for start in range(0, len(words), 256):
            check((fast, StandardEncoder(tokenizers_by_name[name])), [" ".join(words[start : start + 256]), "abcde fox"])
            used.append(int(fast._memory.used[0]))
        assert any(later < earlier for earlier, later in pairwise(used)), "it was full at some time"


def test_what_is_not_known_to_give_the_same_ids_is_refused(tokenizers_by_name: dict[str, Any]) -> None:
    gpt2 = tokenizers_by_name["gpt2"]
    assert FastEncoder.of(edited(gpt2, dropout=0.1)) is None
    assert FastEncoder.of(byte_level(None, normalizers.NFKC())) is None
    assert FastEncoder.of(byte_level(r"\w+|\W+")) is None
    added = wrapped(Tokenizer.from_str(gpt2.backend_tokenizer.to_str()))
    added.add_tokens(["fox"])
    assert FastEncoder.of(added) is None
    prefixed = Tokenizer.from_str(gpt2.backend_tokenizer.to_str())
    prefixed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert FastEncoder.of(wrapped(prefixed)) is None
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    assert FastEncoder.of(wrapped(unigram)) is None


# ----------------------------------------------------------------------------------------------------------------------
# The stage


def test_shards_are_the_same_byte_for_byte(
    run: Any, corpus: Artefact, tokenizer: Artefact, tokens: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tokens.manifest.metrics["encoder"] == "standard", "a small corpus is not worth the start"
    monkeypatch.setattr(tokenize_corpus, "_LARGE", 1)
    made = run("tokenize", tmp_path / "fast", corpus=corpus.directory, tokenizer=tokenizer.directory, tokens_per_shard=5000)
    plain = {"corpus": corpus.directory, "tokenizer": tokenizer.directory, "tokens_per_shard": 5000, "fast": False}
    other = run("tokenize", tmp_path / "plain", **plain)
    assert made.manifest.metrics["encoder"] == "fast" and made.manifest.metrics["documents_compared"] > 10
    assert other.manifest.metrics["encoder"] == "standard" and other.manifest.metrics["documents_compared"] == 0
    assert made.manifest.digest == other.manifest.digest
    assert made.manifest.fingerprint == other.manifest.fingerprint
    assert tokenizer_hash(made.directory / "tokenizer") == tokenizer_hash(tokenizer.directory)


class Wrong(FastEncoder):
    """Gives one id too high for texts with some word in them."""

    def encode(self, texts: pyarrow.Array) -> tuple[np.ndarray, np.ndarray]:
        ids, lengths = super().encode(texts)
        return ids + ("wrong" in "".join(texts.to_pylist())), lengths


@pytest.mark.parametrize("rare", [False, True])
def test_another_id_is_seen_before_or_on_the_way(
    run: Any,
    make_corpus: Any,
    tokenizer: Artefact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rare: bool,
) -> None:
    """A difference in the sample means the standard way; a later one, that the stage fails."""
    from llmkit.errors import DataError

    monkeypatch.setattr(tokenize_corpus, "_LARGE", 1)
    monkeypatch.setattr(encoders, "FastEncoder", Wrong)
    made = make_corpus(tmp_path, ["right", "the wrong one", "right again"], validation_fraction=0.0)
    settings = {"corpus": made.directory, "tokenizer": tokenizer.directory}
    if not rare:
        shards = run("tokenize", tmp_path / "tokens", **settings)
        assert shards.manifest.metrics["encoder"] == "standard"
        assert "gives other ids for document" in capsys.readouterr().out
        plain = run("tokenize", tmp_path / "plain", **settings, fast=False)
        assert shards.manifest.digest == plain.manifest.digest
        return
    monkeypatch.setattr(tokenize_corpus, "_sample", lambda directory: iter(()))
    made = make_corpus(tmp_path / "rare", ["the wrong one comes first"], validation_fraction=0.0)
    with pytest.raises(DataError, match="begins 'the wrong one comes first'; run again with --fast false"):
        run("tokenize", tmp_path / "tokens", **{**settings, "corpus": made.directory})


def test_without_numba_the_standard_way_is_taken(
    run: Any,
    corpus: Artefact,
    tokenizer: Artefact,
    tokens: Artefact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import sys

    monkeypatch.setattr(tokenize_corpus, "_LARGE", 1)
    for module in ("llmkit.tokens.byte_bpe", "llmkit.tokens.byte_bpe_tables"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)
    made = run("tokenize", tmp_path / "t", corpus=corpus.directory, tokenizer=tokenizer.directory)
    assert made.manifest.metrics["encoder"] == "standard"
    assert 'pip install "llmkit[corpus]"' in capsys.readouterr().out
    assert made.manifest.digest == tokens.manifest.digest
