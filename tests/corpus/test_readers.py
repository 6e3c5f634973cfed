from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit.corpus.documents import Document
from llmkit.corpus.readers import (
    BadRow,
    DatasetReader,
    FileReader,
    ReadOptions,
    Row,
    find_files,
    make_names_distinct,
)
from llmkit.errors import DataError

POEM = "床前明月光，\n疑是地上霜。\n\n\n举头望明月，\n低头思故乡。\n"


def read(*patterns: Path | str, **options: Any) -> list[Row]:
    return list(stream(*patterns, **options))


def stream(*patterns: Path | str, **options: Any) -> Iterator[Row]:
    found = find_files([str(pattern) for pattern in patterns], "train_file")
    make_names_distinct(found.files)
    return FileReader(found, ReadOptions(**options)).rows(lambda size: None)


def texts(rows: list[Row]) -> list[str]:
    assert all(isinstance(row, Document) for row in rows), rows
    return [row.text for row in rows]


def bad(rows: list[Row]) -> list[BadRow]:
    return [row for row in rows if isinstance(row, BadRow)]


def metadata(row: Row) -> Any:
    assert isinstance(row, Document), row
    return json.loads(row.metadata)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def json_lines(path: Path, rows: list[Any]) -> Path:
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


# --------------------------------------------------------------------------------------------------------------------
# Text


def test_text_by_document_paragraph_and_line(tmp_path: Path) -> None:
    path = write(tmp_path / "诗.txt", POEM)
    assert texts(read(path)) == [POEM]
    paragraphs = read(path, sample_by="paragraph")
    assert texts(paragraphs) == ["床前明月光，\n疑是地上霜。\n", "举头望明月，\n低头思故乡。\n"]
    assert [row.id for row in paragraphs] == ["诗.txt:1", "诗.txt:5"]
    assert texts(read(path, sample_by="line")) == POEM.splitlines(keepends=True)


def test_markdown_is_one_document_whatever_sample_by(tmp_path: Path) -> None:
    assert texts(read(write(tmp_path / "a.md", POEM), sample_by="line")) == [POEM]


def test_long_text_is_cut_at_line_ends(tmp_path: Path) -> None:
    content = "".join(f"line {i} 行\n" for i in range(2000))
    rows = read(write(tmp_path / "a.txt", content), max_document_chars=500)
    assert "".join(texts(rows)) == content
    assert all(len(row.text) <= 500 and row.text.endswith("\n") for row in rows)
    assert len({row.id for row in rows}) == len(rows) > 20


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(st.sampled_from("ab中é🙂\n \r\ufeff"), max_size=400),
    limit=st.integers(1, 50),
    encoding=st.sampled_from(["utf-8", "gb18030"]),
)
def test_cut_text_is_whole_and_bounded(tmp_path: Path, text: str, limit: int, encoding: str) -> None:
    path = write(tmp_path / "a.txt", text.encode(encoding))
    for sample_by in ("document", "line"):
        rows = read(path, max_document_chars=limit, encoding=encoding, sample_by=sample_by)
        assert "".join(texts(rows)) == text.removeprefix("\ufeff")
        assert all(len(row.text) <= limit for row in rows)
        assert len({row.id for row in rows}) == len(rows) >= 1


def test_memory_is_bounded_even_by_one_endless_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(100):
            file.write("数据" * 50_000)  # 30 MB in one line
    for sample_by in ("document", "paragraph", "line"):
        tracemalloc.start()
        characters = sum(len(row.text) for row in stream(path, max_document_chars=50_000, sample_by=sample_by))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert characters == 10_000_000
        assert peak < 6e6


def test_byte_order_mark_is_left_out(tmp_path: Path) -> None:
    assert texts(read(write(tmp_path / "a.txt", b"\xef\xbb\xbfhello"))) == ["hello"]
    assert texts(read(write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "hello"}\n'))) == ["hello"]
    assert texts(read(write(tmp_path / "a.csv", b"\xef\xbb\xbftext\nhello\n"))) == ["hello"]


def test_an_empty_text_file_is_a_row(tmp_path: Path) -> None:
    assert texts(read(write(tmp_path / "a.txt", ""))) == [""]


def test_other_encodings(tmp_path: Path) -> None:
    assert texts(read(write(tmp_path / "a.txt", POEM.encode("gb18030")), encoding="gb18030")) == [POEM]
    assert texts(read(write(tmp_path / "b.txt", "café".encode("latin-1")), encoding="latin-1")) == ["café"]


def test_wrong_encoding_names_file_line_and_byte_and_offers_others(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "fine\n中文\n".encode("gb18030"))
    (row,) = bad(read(path))
    assert row.place == f"{path}:1"
    assert row.reason.startswith("line 2: not utf-8 at byte 5 (0xd6)")
    assert "--encoding gb18030 or latin-1" in row.reason
    assert row.text.startswith("fine\n\\xd6")
    assert "--encoding utf-8" in bad(read(write(tmp_path / "b.txt", b"\xff\n"), encoding="gb18030"))[0].reason


def test_one_wrong_line_spoils_only_its_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"one\ntwo\n\xff\xfethree\nfour\n")
    rows = read(path, sample_by="line")
    assert [type(row) for row in rows] == [Document, Document, BadRow, Document]
    assert rows[2].id == "a.txt:3"


def test_utf16_is_recognised(tmp_path: Path) -> None:
    assert "iconv -f UTF-16" in bad(read(write(tmp_path / "a.txt", "text".encode("utf-16"))))[0].reason


def test_a_character_cut_off_by_the_end_of_the_file(tmp_path: Path) -> None:
    (row,) = bad(read(write(tmp_path / "a.txt", "好中".encode()[:-1])))
    assert "byte 3" in row.reason
    for limit in range(1, 9):  # also where a piece ends exactly there
        rows = read(tmp_path / "a.txt", max_document_chars=limit)
        assert bad(rows)
        assert texts([row for row in rows if isinstance(row, Document)]) in ([], ["好"])


# --------------------------------------------------------------------------------------------------------------------
# Compression


def compress(content: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(content[: len(content) // 2]) + gzip.compress(content[len(content) // 2 :])
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": f"第{i}行 {os.urandom(20).hex()}"} for i in range(20_000)]
    plain = json_lines(tmp_path / "plain.jsonl", rows).read_bytes()
    whole = write(tmp_path / f"a.jsonl{suffix}", compress(plain, suffix))
    assert texts(read(whole)) == [row["text"] for row in rows]

    cut = write(tmp_path / f"cut.jsonl{suffix}", whole.read_bytes()[:-5000])
    some = read(cut)
    assert [row.text for row in some[:-1]] == [row["text"] for row in rows[: len(some) - 1]]
    assert len(some) > 1000
    assert [row.place for row in bad(some)] == [f"{cut}:{len(some)}"]
    assert "cut short or damaged" in bad(some)[0].reason

    false = write(tmp_path / f"false.txt{suffix}", b"not compressed at all")
    assert len(bad(read(false))) == len(read(false)) == 1


def test_a_cut_document_is_not_kept_in_part(tmp_path: Path) -> None:
    content = gzip.compress(os.urandom(50_000).hex().encode())
    (row,) = read(write(tmp_path / "a.txt.gz", content[:-100]))
    assert isinstance(row, BadRow)


def test_a_csv_cut_short_says_so(tmp_path: Path) -> None:
    content = b"text\n" + b"".join(os.urandom(20).hex().encode() + b"\n" for _ in range(5000))
    rows = read(write(tmp_path / "a.csv.gz", gzip.compress(content)[:-1000]))
    assert len(rows) > 4000
    assert len(bad(rows)) == 1
    assert "cut short" in bad(rows)[0].reason


# --------------------------------------------------------------------------------------------------------------------
# JSON


def test_json_lines_keep_the_other_keys(tmp_path: Path) -> None:
    values = {"text": "你好", "id": 7, "tags": ["a", None], "deep": {"x": 1.5}, "score": float("nan")}
    (row,) = read(json_lines(tmp_path / "a.jsonl", [values]))
    assert (row.text, row.id, row.source) == ("你好", "a.jsonl:1", "a.jsonl")
    assert metadata(row) == {"id": 7, "tags": ["a", None], "deep": {"x": 1.5}, "score": None}
    assert "text" not in metadata(row)


def test_bad_json_rows_each_with_its_place_and_reason(tmp_path: Path) -> None:
    deep = '{"text": ' + "[" * 200_000 + "]" * 200_000 + "}"
    lines = [
        '{"text": "fine"}',
        '{"text": "bro',
        '{"title": "x"}',
        '{"text": 5}',
        '{"text": null}',
        '["text"]',
        "",
        deep,
    ]
    path = write(tmp_path / "a.json", "\n".join([*lines, '{"text": "fine"}']))
    rows = read(path)
    assert [row.id for row in rows] == [f"a.json:{number}" for number in (1, 2, 3, 4, 5, 6, 8, 9)]
    reasons = [row.reason for row in bad(rows)]
    assert reasons[0].startswith("not JSON: ")
    assert reasons[1] == "has no 'text'; has 'title'"
    assert reasons[2] == "'text' is int, not text"
    assert reasons[3] == "'text' is empty (null), not text"
    assert reasons[4] == "not a JSON object but list"
    assert bad(rows)[0].text.strip() == lines[1]


def test_a_file_without_the_column_is_refused_with_the_nearest(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", [{"content": "x", "title": "y"}] * 3)
    with pytest.raises(DataError, match=r"a.jsonl has no 'text'; has 'content', 'title'; .* --text_column content"):
        read(path)
    assert texts(read(path, text_column="content")) == ["x"] * 3
    many = json_lines(tmp_path / "many.jsonl", [{"content": "x"}] * 100_000)
    seen = 0
    with pytest.raises(DataError):
        for _ in stream(many):
            seen += 1
    assert seen == 100


def test_a_json_array_is_refused_with_the_way_out(tmp_path: Path) -> None:
    for name, indent in (("a", None), ("b", 2)):
        path = write(tmp_path / f"{name}.json", json.dumps([{"text": "x"}], indent=indent))
        with pytest.raises(DataError, match=r"jq -c '\.\[\]'"):
            read(path)


# --------------------------------------------------------------------------------------------------------------------
# CSV


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.text('a,"\n\t中 ', max_size=12), st.text("b\n", max_size=3)), max_size=12),
    suffix=st.sampled_from([".csv", ".tsv"]),
)
def test_csv_as_python_writes_it(tmp_path: Path, rows: list[tuple[str, str]], suffix: str) -> None:
    target = io.StringIO(newline="")
    writer = csv.writer(target, delimiter="," if suffix == ".csv" else "\t", quoting=csv.QUOTE_ALL)
    writer.writerow(["label", "text"])
    writer.writerows((label, text) for text, label in rows)
    found = read(write(tmp_path / f"a{suffix}", target.getvalue()))
    assert texts(found) == [text for text, _ in rows]
    assert [metadata(row)["label"] for row in found] == [label for _, label in rows]
    assert len({row.id for row in found}) == len(found)


def test_bad_csv_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'label,text\n1,fine\n2\n3,a,b\n\n4,"quo"te\n5,\xff\n6,"two\nlines"\n7,last')
    rows = read(path)
    assert [(row.id, row.text) for row in rows if isinstance(row, Document)] == [
        ("a.csv:2", "fine"),
        ("a.csv:8", "two\nlines"),
        ("a.csv:10", "last"),
    ]
    reasons = {row.id: row.reason for row in bad(rows)}
    assert reasons["a.csv:3"] == "1 fields, the header has 2"
    assert reasons["a.csv:4"] == "3 fields, the header has 2"
    assert "expected after" in reasons["a.csv:6"]
    assert "not utf-8 at byte" in reasons["a.csv:7"]
    assert len(rows) == 7


@pytest.mark.parametrize(("suffix", "mark"), [(".csv", ","), (".tsv", "\t")])
def test_a_quote_in_the_wrong_place_takes_no_other_row_with_it(tmp_path: Path, suffix: str, mark: str) -> None:
    lines = ["label|text", '1|"It is quoted', "0|fine", '1|so"so', '0|"the end" of it', '1|"two', 'lines"', "1|last"]
    rows = read(write(tmp_path / f"a{suffix}", "\n".join(lines).replace("|", mark)))
    assert [row.id for row in bad(rows)] == [f"a{suffix}:2", f"a{suffix}:5"]
    found = [(row.id, row.text) for row in rows if isinstance(row, Document)]
    assert found == [
        (f"a{suffix}:3", "fine"),
        (f"a{suffix}:4", 'so"so'),
        (f"a{suffix}:6", "two\nlines"),
        (f"a{suffix}:8", "last"),
    ]


def test_a_quote_that_never_ends_is_not_swallowed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'label,text\n1,fine\n2,"open\n3,lost\n4,lost\n')
    with pytest.raises(DataError, match=r"a\.csv:3: a quoted field begins"):
        read(path)


def test_a_csv_cut_short_within_quotes(tmp_path: Path) -> None:
    content = gzip.compress(b"text\nfine\n" + b'"' + os.urandom(30_000).hex().encode() + b'"\n')
    rows = read(write(tmp_path / "a.csv.gz", content[:-1000]))
    assert [type(row) for row in rows] == [Document, BadRow]
    assert "cut short" in bad(rows)[0].reason


def test_csv_without_the_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no 'text'; has 'label', 'texts'; .*--text_column texts"):
        read(write(tmp_path / "a.csv", "label,texts\n1,fine\n"))


# --------------------------------------------------------------------------------------------------------------------
# Parquet and data sets


def parquet(path: Path, **columns: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_parquet(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=["一", None, "三"], image=[b"abc", None, b""])
    rows = read(path)
    assert [row.id for row in rows] == ["a.parquet:1", "a.parquet:2", "a.parquet:3"]
    assert metadata(rows[0]) == {"image": "<3 bytes>"}
    assert [row.id for row in bad(rows)] == ["a.parquet:2"]
    assert texts(read(parquet(tmp_path / "b.parquet", text=pyarrow.array(["x", "x"]).dictionary_encode()))) == [
        "x",
        "x",
    ]


def test_parquet_that_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no 'text'; has 'body'; did you mean --text_column body"):
        read(parquet(tmp_path / "a.parquet", body=["x"]))
    with pytest.raises(DataError, match=r"column 'text' is int64, not text"):
        read(parquet(tmp_path / "b.parquet", text=[1]))
    with pytest.raises(DataError, match=r"c\.parquet cannot be read as Parquet"):
        read(write(tmp_path / "c.parquet", b"PAR1 and no more"))


def test_parquet_with_wrong_bytes(tmp_path: Path) -> None:
    binary = pyarrow.array([b"fine", b"\xff\xfe", b"fine"], pyarrow.binary())
    column = pyarrow.Array.from_buffers(pyarrow.string(), 3, binary.buffers())
    rows = read(parquet(tmp_path / "a.parquet", text=column))
    assert [type(row) for row in rows] == [Document, BadRow, Document]


def test_parquet_with_a_date_that_python_cannot_hold(tmp_path: Path) -> None:
    dates = pyarrow.array([0, 1_609_459_200_000_000, 0], pyarrow.timestamp("ms"))  # microseconds where milliseconds are meant
    rows = read(parquet(tmp_path / "a.parquet", text=["one", "two", "three"], published=dates))
    assert [type(row) for row in rows] == [Document, BadRow, Document]
    assert "cannot be decoded" in rows[1].reason


def test_local_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets")
    saved = tmp_path / "saved"
    datasets.Dataset.from_dict({"text": ["一", "two"], "label": [0, 1]}).save_to_disk(str(saved))
    rows = list(DatasetReader(str(saved), None, "train", "text").rows(lambda size: None))
    assert texts(rows) == ["一", "two"]
    assert rows[1].id.endswith("saved:2")
    assert metadata(rows[1]) == {"label": 1}

    json_lines(tmp_path / "lines" / "train.jsonl", [{"text": "a"}, {"text": "b"}])
    lines = str(tmp_path / "lines")
    assert texts(list(DatasetReader(lines, None, "train", "text").rows(lambda size: None))) == ["a", "b"]
    with pytest.raises(DataError, match=r"has no 'body'; has 'text'"):
        list(DatasetReader(lines, None, "train", "body").rows(lambda size: None))
    with pytest.raises(DataError, match=r"dataset_name: the split 'test' .* cannot be loaded"):
        list(DatasetReader(lines, None, "test", "text").rows(lambda size: None))
    with pytest.raises(DataError, match=r"cannot be loaded"):
        list(DatasetReader(str(tmp_path / "nowhere"), None, "train", "text").rows(lambda size: None))


# --------------------------------------------------------------------------------------------------------------------
# Finding files


def test_directories_and_patterns_pass_over_what_they_do_not_know(tmp_path: Path) -> None:
    for name in ("a.txt", "sub/b.TXT", "c.pdf", "README", ".hidden.txt", ".git/d.txt", "e.parquet.gz"):
        write(tmp_path / name, "text")
    found = find_files([str(tmp_path)], "train_file")
    assert [file.name for file in found.files] == ["a.txt", "sub/b.TXT"]
    assert found.skipped == 5
    found = find_files([str(tmp_path / "*.*"), str(tmp_path / "a.txt")], "train_file")
    assert [file.name for file in found.files] == ["a.txt"]


def test_a_named_file_of_unknown_kind_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pdf", "text")
    with pytest.raises(DataError, match=r"train_file: .*a\.pdf is of an unknown kind; known are \.txt, \.md"):
        find_files([str(path)], "train_file")
    with pytest.raises(DataError, match=r"none of the 1 files"):
        find_files([str(tmp_path)], "train_file")
    with pytest.raises(DataError, match="no file, directory or pattern"):
        find_files([str(tmp_path / "nothing*.txt")], "train_file")


def test_names_tell_files_apart(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, "text") for name in ("x/en/a.txt", "x/zh/a.txt", "y/en/a.txt", "b.txt")]
    rows = read(*paths)
    assert [row.source for row in rows] == ["x/en/a.txt", "zh/a.txt", "y/en/a.txt", "b.txt"]


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.txt"
    try:
        Path(os.fsdecode(path)).write_text("text", encoding="utf-8")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (row,) = read(tmp_path)
    row.id.encode()
    assert row.text == "text"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=20))
def test_no_line_of_any_bytes_is_lost(tmp_path: Path, lines: list[bytes]) -> None:
    content = b"".join(line + b"\n" for line in lines)
    rows = read(write(tmp_path / "a.txt", content), sample_by="line")
    assert len(rows) == max(len(lines), 1)
    rows = read(write(tmp_path / "a.jsonl", content))
    assert len(rows) == sum(1 for line in lines if line.decode("utf-8", "backslashreplace").strip("\ufeff").strip())
    for row in rows:
        row.text.encode()
