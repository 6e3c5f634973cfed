from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.corpus import documents
from llmkit.corpus.documents import Document, DocumentWriter, RejectWriter, count, read_batches, shards
from llmkit.corpus.seen import FirstSeen


def documents_of(directory: Path, split: str) -> list[Document]:
    return [Document(**row) for batch in read_batches(directory, split) for row in batch.to_pylist()]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.builds(Document, TEXT, TEXT, TEXT, TEXT), max_size=20))
def test_reading_gives_what_was_written(written: list[Document]) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with DocumentWriter(directory, "train") as writer:
            for document in written:
                writer.write(document)
        assert documents_of(directory, "train") == written
        assert count(directory, "train") == len(written)


def test_no_rows_no_file(tmp_path: Path) -> None:
    with DocumentWriter(tmp_path, "validation"), RejectWriter(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
    assert count(tmp_path, "validation") == 0
    assert list(read_batches(tmp_path, "validation")) == []


def test_shards_and_row_groups_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "SHARD_BYTES", 30_000)
    monkeypatch.setattr(documents, "GROUP_BYTES", 10_000)
    monkeypatch.setattr(documents, "GROUP_DOCUMENTS", 50)
    written = [Document("中" * (7 * i % 400), str(i), "s") for i in range(400)]
    with DocumentWriter(tmp_path, "train") as writer:
        for document in written:
            writer.write(document)
    files = shards(tmp_path, "train")
    assert [file.name for file in files[:2]] == ["train-00000.parquet", "train-00001.parquet"]
    assert len(files) > 5
    assert documents_of(tmp_path, "train") == written
    for file in files:
        table = pyarrow.parquet.ParquetFile(file)
        assert sum(len(text.encode()) for text in table.read()["text"].to_pylist()) <= 30_000
        assert max(table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)) <= 50
        assert table.metadata.row_group(0).column(0).compression == "ZSTD"


def test_splits_are_apart_and_columns_can_be_chosen(tmp_path: Path) -> None:
    with DocumentWriter(tmp_path, "train") as train, RejectWriter(tmp_path) as rejects:
        train.write(Document("text", "a:1", "a"))
        rejects.write(Document("", "a:2", "a"), "too short")
    (batch,) = read_batches(tmp_path, "train", columns=["id", "text"])
    assert batch.to_pylist() == [{"id": "a:1", "text": "text"}]
    (batch,) = read_batches(tmp_path, "rejects")
    assert batch.to_pylist() == [{"text": "", "id": "a:2", "source": "a", "metadata": "{}", "rule": "too short"}]


def test_a_shard_is_whole_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), DocumentWriter(tmp_path, "train") as writer:
        writer.write(Document("text", "a:1", "a"))
        raise RuntimeError
    assert count(tmp_path, "train") == 0


def test_first_seen_remembers_each_id(tmp_path: Path) -> None:
    seen = FirstSeen(tmp_path)
    # Small numbers as digests meet in neighbouring slots.
    digests = [number.to_bytes(8, "little") * 2 for number in range(0, 6000, 2)]
    for number, digest in enumerate(digests):
        assert seen.get(digest) is None
        seen.add(digest, f"书.txt:{number}")
    assert [seen.get(digest) for digest in digests] == [f"书.txt:{number}" for number in range(3000)]
    assert seen.get(bytes(7) + b"\x01" * 9) is None
    assert len(seen) == 3000
    seen.close()
    assert list(tmp_path.iterdir()) == []
