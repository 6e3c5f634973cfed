from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llmkit.corpus.documents import read_batches
from llmkit.errors import ArtefactError, DataError
from llmkit.pipeline.artefact import Artefact
from llmkit.tokens.shards import Index, ShardWriter, TokenStream, tokenizer_hash


def write(directory: Path, documents: list[list[int]], per_shard: int, dtype: str = "uint16", split: str = "train") -> Index:
    """Shards of documents as they are, EOS (0) included."""
    with ShardWriter(directory, split, dtype, per_shard) as writer:
        for ids in documents:
            writer.add(ids, 3 * len(ids))
    index = Index("no tokenizer", 0, 1 << 16, dtype, {split: writer.shards})
    index.save(directory)
    return index


def copy_of(artefact: Artefact, place: Path) -> Path:
    return Path(shutil.copytree(artefact.directory, place))


def test_every_document_ends_with_eos_and_no_token_is_lost(corpus: Artefact, tokenizer: Artefact, tokens: Artefact) -> None:
    loaded = AutoTokenizer.from_pretrained(tokenizer.directory)
    for split in ("train", "validation"):
        documents = [text for batch in read_batches(corpus.directory, split) for text in batch["text"].to_pylist()]
        expected = [[*loaded.encode(text), loaded.eos_token_id] for text in documents]
        stream = TokenStream(tokens.directory, split)
        assert stream.read(0, len(stream)).tolist() == list(chain(*expected))
        assert stream.text_bytes == sum(len(text.encode()) for text in documents)
        offsets = np.load(tokens.directory / f"{split}-00000.offsets.npy")
        assert np.diff(offsets).tolist() == [len(ids) for ids in expected]
        assert tokens.manifest.metrics[split]["documents"] == len(documents)
        assert tokens.manifest.metrics[split]["tokens"] == len(stream)


def test_a_literal_end_of_text_in_a_document_stays_text(
    run: Any, make_corpus: Any, tokenizer: Artefact, tmp_path: Path
) -> None:
    text = "Write <|endoftext|> after it, or <|pad|>."
    made = make_corpus(tmp_path, [text], validation_fraction=0.0)
    shards = run("tokenize", tmp_path / "tokens", corpus=made.directory, tokenizer=tokenizer.directory)
    loaded = AutoTokenizer.from_pretrained(tokenizer.directory)
    stream = TokenStream(shards.directory, "train")
    ids = stream.read(0, len(stream)).tolist()
    assert ids.count(loaded.eos_token_id) == 1
    assert ids[-1] == loaded.eos_token_id
    assert loaded.pad_token_id not in ids
    assert loaded.decode(ids[:-1]) == text


def test_tokens_are_counted_by_source(run: Any, tokenizer: Artefact, tmp_path: Path) -> None:
    texts = {"short.jsonl": ["one", "two words"], "long.jsonl": ["a text of many words " * 50, "春天来了"]}
    for name, rows in texts.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in rows)
        (tmp_path / name).write_text(lines, encoding="utf-8")
    files = [str(tmp_path / name) for name in texts]
    made = run("preprocess", tmp_path / "corpus", train_file=files, validation_fraction=0.5)
    metrics = run("tokenize", tmp_path / "tokens", corpus=made.directory, tokenizer=tokenizer.directory).manifest.metrics
    encoder = AutoTokenizer.from_pretrained(tokenizer.directory)
    expected = {}
    for name, rows in texts.items():
        rows = [text.strip() for text in rows]
        ids = [len(encoder(text, add_special_tokens=False)["input_ids"]) + 1 for text in rows]
        expected[name] = {"documents": 2, "tokens": sum(ids), "bytes": sum(len(text.encode()) for text in rows)}
    assert metrics["sources"] == expected
    assert list(metrics["sources"]) == ["long.jsonl", "short.jsonl"], "the largest first"


@pytest.mark.parametrize(("size", "dtype"), [(1 << 16, "uint16"), ((1 << 16) + 1, "uint32")])
def test_ids_are_16_bits_where_the_vocabulary_allows_it(
    run: Any, make_corpus: Any, tokenizer: Artefact, tmp_path: Path, size: int, dtype: str
) -> None:
    larger = AutoTokenizer.from_pretrained(tokenizer.directory)
    larger.add_tokens([f"token{number}" for number in range(size - len(larger))])
    larger.save_pretrained(tmp_path / "larger")
    assert len(larger) == size
    made = make_corpus(tmp_path, [f"one {larger.convert_ids_to_tokens(size - 1)} two", "more"], validation_fraction=0.0)
    shards = run("tokenize", tmp_path / "tokens", corpus=made.directory, tokenizer=tmp_path / "larger")
    index = Index.load(shards.directory)
    assert index.dtype == dtype
    assert index.vocab_size == size
    data = np.fromfile(shards.directory / "train-00000.bin", dtype=f"<{np.dtype(dtype).str[1:]}")
    assert len(data) == index.tokens("train")
    assert data.max() == size - 1
    assert TokenStream(shards.directory, "train").read(0, len(data)).tolist() == data.tolist()


@given(
    documents=st.lists(st.lists(st.integers(1, 65535), max_size=9).map(lambda ids: [*ids, 0]), min_size=1, max_size=20),
    per_shard=st.integers(1, 12),
    reads=st.lists(st.tuples(st.integers(0, 220), st.integers(0, 220)), max_size=20),
)
@settings(max_examples=150, deadline=None)
def test_a_stream_over_several_shards_reads_as_one_list(
    documents: list[list[int]], per_shard: int, reads: list[tuple[int, int]]
) -> None:
    everything = list(chain(*documents))
    with tempfile.TemporaryDirectory() as place:
        index = write(Path(place), documents, per_shard)
        stream = TokenStream(Path(place), "train")
        assert len(stream) == len(everything) == index.tokens("train")
        assert sum(shard.documents for shard in index.splits["train"]) == len(documents)
        for shard in index.splits["train"]:
            assert shard.tokens <= per_shard or shard.documents == 1, "a shard is full, or holds one long document"
            content = (Path(place) / f"{shard.name}.bin").read_bytes()
            assert shard.sha256 == hashlib.sha256(content).hexdigest()
            assert np.load(Path(place) / f"{shard.name}.offsets.npy")[-1] == shard.tokens
        for start, stop in reads:
            found = stream.read(start, stop)
            assert found.tolist() == everything[start:stop]
            assert found.dtype == np.int64
            passages = stream.passages(start, stop)
            by_name = {(shard.name, number): None for shard in index.splits["train"] for number in range(shard.documents)}
            of_document = dict(zip(by_name, documents, strict=True))
            cut = [of_document[item.shard, item.document][item.start : item.stop] for item in passages]
            assert all(cut)
            assert list(chain(*cut)) == everything[start:stop]


def test_the_shard_size_does_not_change_the_stream(run: Any, corpus: Artefact, tokens: Artefact, tmp_path: Path) -> None:
    tokenizer = tokens.directory / "tokenizer"
    small = run("tokenize", tmp_path / "small", corpus=corpus.directory, tokenizer=tokenizer, tokens_per_shard=2000)
    whole, cut = TokenStream(tokens.directory, "train"), TokenStream(small.directory, "train")
    assert len(cut.arrays) > 5
    assert cut.read(0, len(cut)).tolist() == whole.read(0, len(whole)).tolist()


def test_a_tokenizer_that_was_saved_with_truncation_cuts_no_document(
    run: Any, corpus: Artefact, tokens: Artefact, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokens.directory / "tokenizer")
    tokenizer(["x"], truncation=True, max_length=4)
    tokenizer.save_pretrained(tmp_path / "saved")
    made = run("tokenize", tmp_path / "t", corpus=corpus.directory, tokenizer=tmp_path / "saved")
    assert made.manifest.metrics == tokens.manifest.metrics


def test_the_batch_of_documents_does_not_change_the_stream(
    run: Any, corpus: Artefact, tokenizer: Artefact, tokens: Artefact, tmp_path: Path
) -> None:
    one = run("tokenize", tmp_path / "t", corpus=corpus.directory, tokenizer=tokenizer.directory, batch_documents=1)
    assert one.manifest.digest == tokens.manifest.digest
    assert one.manifest.fingerprint == tokens.manifest.fingerprint


def test_shards_of_another_tokenizer_are_refused_with_both_hashes(
    run: Any, corpus: Artefact, tokenizer: Artefact, tokens: Artefact, tmp_path: Path
) -> None:
    other = run("tokenizer", tmp_path / "other", corpus=corpus.directory, vocab_size=400)
    with pytest.raises(ArtefactError) as refused:
        TokenStream(tokens.directory, "train", tokenizer_directory=other.directory)
    for directory in (other.directory, tokenizer.directory):
        assert tokenizer_hash(directory)[:16] in str(refused.value)
    TokenStream(tokens.directory, "train", tokenizer_directory=tokenizer.directory)


def test_a_tokenizer_keeps_its_hash_when_it_is_saved_again(
    tokenizer: Artefact, base_model: Artefact, tokens: Artefact, tmp_path: Path
) -> None:
    loaded = AutoTokenizer.from_pretrained(tokenizer.directory)
    loaded(["a", "b c d"], padding=True, truncation=True, max_length=2)
    loaded.save_pretrained(tmp_path)
    expected = tokenizer_hash(tokenizer.directory)
    assert tokenizer_hash(tmp_path) == tokenizer_hash(tokens.directory / "tokenizer") == expected
    assert tokenizer_hash(base_model.directory) == expected


def test_one_added_token_changes_the_hash(tokenizer: Artefact, tmp_path: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(tokenizer.directory)
    loaded.add_tokens(["another"])
    loaded.save_pretrained(tmp_path)
    assert tokenizer_hash(tmp_path) != tokenizer_hash(tokenizer.directory)


def test_a_shard_that_was_cut_is_refused_and_named(tokens: Artefact, tmp_path: Path) -> None:
    place = copy_of(tokens, tmp_path / "cut")
    with (place / "train-00000.bin").open("rb+") as file:
        file.truncate(1001)
    with pytest.raises(ArtefactError, match=r"train-00000\.bin is missing or cut short"):
        TokenStream(place, "train")
    (place / "train-00000.bin").unlink()
    with pytest.raises(ArtefactError, match=r"train-00000\.bin is missing or cut short"):
        TokenStream(place, "train")


def test_pretraining_on_a_cut_shard_is_refused(run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path) -> None:
    place = copy_of(tokens, tmp_path / "cut")
    with (place / "train-00000.bin").open("rb+") as file:
        file.truncate(1000)
    with pytest.raises(ArtefactError, match=r"train-00000\.bin"):
        run("pretrain", tmp_path / "model", tokens=place, max_steps=1, **tiny)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"splits": {}}', '{"splits": {"train": [{"name": "x"}]}}'])
def test_a_broken_index_is_refused_and_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(ArtefactError, match=r"index\.json is not an index of token shards"):
        TokenStream(tmp_path, "train")


def test_an_index_of_a_later_format_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [[1, 2, 0]], 10)
    values = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**values, "format_version": 2}))
    with pytest.raises(ArtefactError, match="format"):
        TokenStream(tmp_path, "train")


def test_a_split_without_tokens_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [[1, 2, 0]], 10)
    with pytest.raises(DataError, match="no tokens in its 'validation' split"):
        TokenStream(tmp_path, "validation")


def test_a_tokenizer_without_eos_is_refused(run: Any, corpus: Artefact, tokenizer: Artefact, tmp_path: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(tokenizer.directory)
    loaded.eos_token = None
    loaded.save_pretrained(tmp_path / "without")
    with pytest.raises(DataError, match="with an EOS token"):
        run("tokenize", tmp_path / "tokens", corpus=corpus.directory, tokenizer=tmp_path / "without")


def test_a_directory_that_holds_no_tokenizer_is_refused(run: Any, corpus: Artefact, tmp_path: Path) -> None:
    from llmkit.errors import LLMKitError

    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("nothing here")
    with pytest.raises(LLMKitError, match="notes"):
        run("tokenize", tmp_path / "tokens", corpus=corpus.directory, tokenizer=tmp_path / "notes")


def test_reading_touches_only_the_part_that_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path, [[*range(1, 1000), 0]] * 5, 1000)
    stream = TokenStream(tmp_path, "train")
    assert all(isinstance(array, np.memmap) for array in stream.arrays)
    assert stream.read(2500, 2503).tolist() == [501, 502, 503]
