"""The law of units: the rows of all units of a file, joined, are those of the file read whole, wherever it is cut."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit.corpus.readers import ReadOptions, Row, Unit, find_files, read, units
from llmkit.errors import DataError

law = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
sizes = st.integers(1, 60)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def planned(path: Path, options: ReadOptions, size: int) -> list[Unit]:
    return units(find_files([str(path)], "train_file").files, options, size)


def rows_of(some: list[Unit], options: ReadOptions) -> list[Row] | str:
    """The rows, or the error that reading ends with."""
    found: list[Row] = []
    try:
        for unit in some:
            found.extend(read(Unit.from_json(json.loads(json.dumps(unit.to_json()))), options, lambda count: None))
    except DataError as failure:
        return str(failure)
    return found


def check_law(path: Path, size: int, options: ReadOptions | None = None) -> list[Unit]:
    options = options or ReadOptions()
    parts = planned(path, options, size)
    (whole,) = planned(path, options, 1 << 40)
    assert rows_of(parts, options) == rows_of([whole], options)
    if path.suffix != ".parquet":
        assert [part.stop for part in parts] == [*(part.start for part in parts[1:]), None]
        assert sum(part.size for part in parts) == path.stat().st_size
    return parts


text_bytes = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.sampled_from(
            [
                b"\n",
                b"\n\n",
                b"\r\n\r\n",
                b" \n",
                "中文\n".encode(),
                "\u3000\n".encode(),
                b"x" * 70,
                b"\xff\n",
                b"\xef\xbb\xbf",
            ]
        ),
    ),
    max_size=40,
).map(b"".join)


@law
@given(
    content=text_bytes,
    size=sizes,
    limit=st.sampled_from([1, 7, 40, 1000]),
    sample_by=st.sampled_from(["line", "paragraph", "document"]),
)
def test_text(tmp_path: Path, content: bytes, size: int, limit: int, sample_by: str) -> None:
    options = ReadOptions(sample_by=sample_by, max_document_chars=limit)  # type: ignore[arg-type]
    check_law(write(tmp_path / "a.txt", content), size, options)


@law
@given(
    text=st.text("中文ab\n\r \u3000é", max_size=300),
    size=sizes,
    encoding=st.sampled_from(["gb18030", "utf-16", "auto", "utf-8"]),
)
def test_text_in_other_encodings(tmp_path: Path, text: str, size: int, encoding: str) -> None:
    path = write(tmp_path / "a.txt", text.encode("gb18030" if encoding == "auto" else encoding))
    check_law(path, size, ReadOptions(sample_by="line", encoding=encoding))


json_lines = st.lists(
    st.sampled_from(
        [
            b'{"text": "one"}\n',
            '{"text": "二", "n": 1}\n'.encode(),
            b'{"other": 1}\n',
            b"\n",
            b"[1]\n",
            b"\xff\n",
            b'{"text": "cr"}\r\n',
            b"{",
        ]
    ),
    max_size=250,
).map(b"".join)


@law
@given(content=json_lines, size=st.integers(1, 500))
def test_json_lines(tmp_path: Path, content: bytes, size: int) -> None:
    check_law(write(tmp_path / "a.jsonl", content), size)


def test_the_text_column_is_looked_for_in_the_file_and_not_in_the_unit(tmp_path: Path) -> None:
    path = write(tmp_path / "late.jsonl", b'{"other": 1}\n' * 60 + b'{"text": "late"}\n' * 60)
    parts = check_law(path, 100)
    assert len(parts) > 5
    assert len(rows_of(parts, ReadOptions())) == 120
    without = write(tmp_path / "without.jsonl", b'{"other": 1}\n' * 300)
    assert "has no 'text'" in str(rows_of(planned(without, ReadOptions(), 100)[:1], ReadOptions()))
    check_law(without, 100)


def test_lines_keep_their_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b"".join(b'{"text": "%d"}\n' % number for number in range(1, 1001)))
    parts = check_law(path, 1000)
    assert len(parts) > 10
    last = rows_of(parts[-1:], ReadOptions())
    assert all(isinstance(row, object) and row.id == f"a.jsonl:{row.text}" for row in last)  # type: ignore[union-attr]


@law
@given(
    pieces=st.lists(
        st.sampled_from(
            [
                b" \n = Title = \n \n",
                b" some words , here \n",
                b" = = Part = = \n",
                b" \n",
                b" = x = \n",
                b"\n",
                b"\xff\n",
                b" = A = \r\n",
            ]
        ),
        max_size=40,
    ),
    size=sizes,
    limit=st.sampled_from([1, 7, 60, 1000]),
)
def test_wikitext(tmp_path: Path, pieces: list[bytes], size: int, limit: int) -> None:
    options = ReadOptions(markup="wikitext", max_document_chars=limit)
    check_law(write(tmp_path / "a.tokens", b"".join(pieces)), size, options)


@law
@given(groups=st.lists(st.integers(0, 5), min_size=1, max_size=8), size=st.integers(1, 1000))
def test_parquet(tmp_path: Path, groups: list[int], size: int) -> None:
    path = tmp_path / "a.parquet"
    schema = pyarrow.schema([("text", pyarrow.string()), ("n", pyarrow.int64())])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for number, rows in enumerate(groups):
            writer.write_table(pyarrow.table({"text": ["中" * number] * rows, "n": list(range(rows))}, schema=schema))
    parts = check_law(path, size)
    assert len(parts) >= 1


def test_a_damaged_row_group_is_one_bad_row_and_the_next_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"text {number} " * 20 for number in range(90)]
    pyarrow.parquet.write_table(
        pyarrow.table({"text": texts}), path, row_group_size=30, compression="gzip", use_dictionary=False
    )
    column = pyarrow.parquet.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset : column.data_page_offset + 20] = b"\xff" * 20
    path.write_bytes(content)
    check_law(path, 1)
    rows = rows_of(planned(path, ReadOptions(), 1 << 40), ReadOptions())
    assert not isinstance(rows, str)
    assert [row.id for row in rows] == [f"a.parquet:{number}" for number in (*range(1, 32), *range(61, 91))]
    assert "the 30 rows from this one on are damaged" in rows[30].reason  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["a.csv", "a.md", "a.html", "a.jsonl.gz", "a.jsonl.bz2"])
def test_what_cannot_be_cut_is_one_unit(tmp_path: Path, name: str) -> None:
    content = b'text\n"two\nlines"\n' * 100
    path = write(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    (unit,) = planned(path, ReadOptions(), 10)
    assert (unit.start, unit.stop, unit.size) == (0, None, path.stat().st_size)


def test_units_are_about_as_large_as_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"".join(b"%d\n" % number for number in range(100_000)))
    parts = planned(path, ReadOptions(sample_by="line"), 50_000)
    assert all(50_000 <= part.size < 50_010 for part in parts[:-1])
    assert parts[3].rows_before == path.read_bytes()[: parts[3].start].count(b"\n")
