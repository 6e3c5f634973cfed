from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.corpus import documents
from llmkit.corpus.documents import Document, ShardWriter, as_batch, count, read_batches, shards


def documents_of(directory: Path, split: str) -> list[Document]:
    return [Document(**row) for batch in read_batches(directory, split) for row in batch.to_pylist()]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.builds(Document, TEXT, TEXT, TEXT, TEXT), max_size=20), max_size=4))
def test_reading_gives_what_was_written(batches: list[list[Document]]) -> None:
    written = [document for batch in batches for document in batch]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with ShardWriter(directory, "train") as writer:
            for batch in batches:
                writer.write(as_batch(batch))
        assert documents_of(directory, "train") == written
        assert count(directory, "train") == len(written)


def test_shards_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["train-00000", "train-00002", "train-99999", "train-100000", "train-100001"]
    for name in [*names, "train-000", "train-00001.part", "train-x-00001", "training-00001"]:
        (tmp_path / f"{name}.parquet").touch()
    assert [path.stem for path in shards(tmp_path, "train")] == names


def test_no_rows_no_file(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "validation") as writer:
        writer.write(as_batch([]))
    assert list(tmp_path.iterdir()) == []
    assert count(tmp_path, "validation") == 0
    assert list(read_batches(tmp_path, "validation")) == []


def test_shards_and_row_groups_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "SHARD_BYTES", 30_000)
    monkeypatch.setattr(documents, "GROUP_BYTES", 10_000)
    monkeypatch.setattr(documents, "GROUP_DOCUMENTS", 50)
    written = [Document("中" * (7 * i % 400), str(i), "s") for i in range(400)]
    with ShardWriter(tmp_path, "train") as writer:
        for start in range(0, 400, 7):
            writer.write(as_batch(written[start : start + 7]))
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
    with ShardWriter(tmp_path, "train") as train, ShardWriter(tmp_path, "rejects") as rejects:
        train.write(as_batch([Document("text", "a:1", "a")]))
        rejects.write(as_batch([Document("", "a:2", "a")]).append_column("rule", pyarrow.array(["too short"])))
    (batch,) = read_batches(tmp_path, "train", columns=["id", "text"])
    assert batch.to_pylist() == [{"id": "a:1", "text": "text"}]
    (batch,) = read_batches(tmp_path, "rejects")
    assert batch.to_pylist() == [{"text": "", "id": "a:2", "source": "a", "metadata": "{}", "rule": "too short"}]
