from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.errors import DataError
from llmkit.tasks.tables import EMBEDDED, iterate_table, pick_column, read_dataset, read_table, validation_split

ROWS = [{"text": "good, really", "label": "pos"}, {"text": '他说"好"', "label": "neg"}]


def values(path: Path) -> list[dict[str, Any]]:
    return [row.values for row in read_table(path)]


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_csv_with_quotes_and_lines_inside(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", 'text,label\n"good, really",pos\n"two\nlines ""so""",neg\n')
    assert values(path) == [{"text": "good, really", "label": "pos"}, {"text": 'two\nlines "so"', "label": "neg"}]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    assert values(put(tmp_path / "a.csv", "\ufefftext,label\ngut,1\n")) == [{"text": "gut", "label": "1"}]
    assert values(put(tmp_path / "a.jsonl", "\ufeff" + json.dumps(ROWS[0]))) == [ROWS[0]]


def test_a_text_of_a_csv_may_be_long(tmp_path: Path) -> None:
    text = "word, " * 100_000
    assert values(put(tmp_path / "a.csv", f'text,label\n"{text}",1\n')) == [{"text": text, "label": "1"}]


def test_lines_are_rows_where_a_column_is_named_for_them(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", "\ufeffone\r\n\nb\u2028c\r\n")
    rows = list(iterate_table(path, line_column="text"))
    assert [row.values for row in rows] == [{"text": "one"}, {"text": ""}, {"text": "b\u2028c"}]
    assert rows[2].place == f"{path}:3"
    with pytest.raises(DataError, match=r"the format '\.txt' is not known"):
        read_table(path)


def test_rows_come_before_the_file_is_read_to_its_end(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", '{"text": "a"}\n' * 3 + "broken\n")
    rows = iterate_table(path)
    assert [next(rows).values for _ in range(3)] == [{"text": "a"}] * 3
    with pytest.raises(DataError, match=r"a\.jsonl:4 is not a JSON object"):
        next(rows)


def test_in_tsv_a_quotation_mark_is_only_a_character(tmp_path: Path) -> None:
    path = put(tmp_path / "a.tsv", 'sentence\tlabel\n"open and never closed\t1\nit\'s "fine" , he said\t0\n')
    assert values(path) == [
        {"sentence": '"open and never closed', "label": "1"},
        {"sentence": 'it\'s "fine" , he said', "label": "0"},
    ]


def test_json_lines_with_blank_lines_and_unusual_line_separators(tmp_path: Path) -> None:
    odd = {"text": "a\u2028b\u0085c", "label": "x"}
    lines = [json.dumps(row, ensure_ascii=False) for row in (ROWS[1], odd)]
    path = put(tmp_path / "a.jsonl", f"{lines[0]}\n\n   \n{lines[1]}")
    rows = read_table(path)
    assert [row.values for row in rows] == [ROWS[1], odd]
    assert rows[1].place == f"{path}:4"


def test_parquet_with_its_own_types(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": [0, 1]}), tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == [{"text": "a", "label": 0}, {"text": "b", "label": 1}]


texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\n\t\x00"), min_size=1)


def test_an_array_of_json_is_a_table(tmp_path: Path) -> None:
    rows = read_table(put(tmp_path / "a.json", '[\n{"text": "a", "label": "b"},\n{"text": "c", "label": "d"}]\n'))
    assert [(row.place, row.values["text"]) for row in rows] == [
        (f"{tmp_path}/a.json: entry 1", "a"),
        (f"{tmp_path}/a.json: entry 2", "c"),
    ]


@given(st.lists(st.tuples(texts, st.sampled_from(["a", "b"])), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_every_format_gives_back_what_was_written(rows: list[tuple[str, str]]) -> None:
    import csv
    import tempfile

    table = [{"text": text, "label": label} for text, label in rows]
    with tempfile.TemporaryDirectory() as place:
        where = Path(place)
        with (where / "a.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"])
            writer.writeheader()
            writer.writerows(table)
        put(where / "a.tsv", "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
        put(where / "a.jsonl", "".join(json.dumps(row) + "\n" for row in table))
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), where / "a.parquet")
        for suffix in ("csv", "tsv", "jsonl", "parquet"):
            assert values(where / f"a.{suffix}") == table, suffix


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "", "holds no rows"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.jsonl", "\n\n", "holds no rows"),
        ("a.csv", "text,label\na,b\nc\n", r"a\.csv:3 does not have the 2 columns of the first line: text, label"),
        ("a.csv", "text,label\na,b,c\n", r"a\.csv:2 does not have the 2 columns"),
        ("a.tsv", "text\tlabel\na\tb\nno tab here\n", r"a\.tsv:3 does not have the 2 columns"),
        ("a.csv", "text,label,text\na,b,c\n", r"a\.csv:1 names a column twice: 'text'"),
        ("a.csv", 'text,label\n"never closed,b\n', r"a\.csv:2 begins a row that is not CSV"),
        ("a.jsonl", '{"text": "a", "label": "b"}\n{"text": \n', r"a\.jsonl:2 is not a JSON object a line"),
        ("a.jsonl", '{"text": "a", "label": "b"}\n["a", "b"]\n', r"a\.jsonl:2 is JSON, but not an object"),
        ("a.json", '[{"text": "a", "label": "b"},\n["a"]]\n', r"a\.json: entry 2 of the array is not an object"),
        ("a.json", "[]", "holds no rows"),
        ("a.json", '[{"text": "a"},\n', r"a\.json:1 is not a JSON object a line"),
        ("a.parquet", "PAR1 not really", r"a\.parquet is not Parquet"),
        ("a.xlsx", "whatever", r"the format '\.xlsx' is not known; known are \.csv"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_line(tmp_path: Path, name: str, content: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_table(put(tmp_path / name, content))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
@pytest.mark.parametrize("line", [2, 3000])
def test_a_file_that_is_not_utf8_is_named_with_the_line(tmp_path: Path, name: str, line: int) -> None:
    row = (
        b'{"text": "abcdefgh", "label": "x"}' if name.endswith("jsonl") else b"abcdefgh,x" if "csv" in name else b"abcdefgh\tx"
    )
    rows = [row] * 4000
    rows[line - 1] = row.replace(b"abc", "ü".encode("latin-1"))
    if not name.endswith("jsonl"):
        rows[0] = rows[0].replace(b"abcdefgh", b"text").replace(b"x", b"label") if line != 1 else rows[0]
    with pytest.raises(DataError, match=rf"{name}:{line} is not UTF-8.*iconv"):
        read_table(put(tmp_path / name, b"\n".join(rows)))


def test_a_file_that_is_not_there_is_named_with_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv is not a file"):
        read_table(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match="is not a file"):
        read_table(tmp_path)


def test_a_column_is_found_by_its_usual_name_or_by_the_one_that_is_asked_for(tmp_path: Path) -> None:
    rows = read_table(put(tmp_path / "a.csv", "id,sentence,stars\n1,good,5\n"))
    assert pick_column(rows, None, ("text", "sentence"), "text_column") == "sentence"
    assert pick_column(rows, "stars", ("label",), "label_column") == "stars"


def test_a_column_that_is_missing_is_refused_with_the_nearest_and_all_there_are(tmp_path: Path) -> None:
    rows = read_table(put(tmp_path / "a.csv", "id,review,sentiment\n1,good,5\n"))
    with pytest.raises(DataError) as refused:
        pick_column(rows, "sentimant", ("label",), "label_column")
    assert "label_column: " in str(refused.value)
    assert "has no column 'sentimant', it has: id, review, sentiment; did you mean 'sentiment'?" in str(refused.value)


@pytest.mark.parametrize("header", ["a,b", "text,sentence"])
def test_a_column_that_cannot_be_guessed_is_asked_for(tmp_path: Path, header: str) -> None:
    rows = read_table(put(tmp_path / "a.csv", f"{header}\n1,2\n"))
    with pytest.raises(DataError, match=r"text_column: which column\?.*Name it with --text_column"):
        pick_column(rows, None, ("text", "sentence"), "text_column")


def test_a_data_set_of_datasets_gives_label_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    data.to_parquet(tmp_path / "train.parquet")
    read = read_dataset(str(tmp_path), None, "train")
    assert [row.values["label"] for row in read.rows] == ["good", "bad"]
    assert (read.classes, read.revision) == ({"label": ["bad", "good"]}, None)
    with pytest.raises(DataError, match="split 'dev', cannot be loaded"):
        read_dataset(str(tmp_path), None, "dev")


@pytest.mark.parametrize(("files", "found"), [(("train", "dev"), "validation"), (("train", "test"), None)])
def test_the_validation_split_of_a_data_set_is_found(tmp_path: Path, files: tuple[str, ...], found: str | None) -> None:
    for name in files:
        put(tmp_path / f"{name}.csv", "text,label\na,x\n")
    assert validation_split(str(tmp_path), None) == found
    assert validation_split("llmkit/reviews", None) == "validation"


def test_the_revision_of_a_data_set_of_the_hub_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `datasets` finds it offline: the cache that an earlier load from the hub has left."""
    import datasets

    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "cache" / "owner___name" / "default" / "0.0.0" / commit
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    put(tmp_path / "train.csv", "text,label\na,x\n")
    made = datasets.load_dataset("csv", data_files=str(tmp_path / "train.csv"), split="train")
    shutil.copytree(Path(made.cache_files[0]["filename"]).parent, place)
    (place / "csv-train.arrow").rename(place / "name-train.arrow")
    read = read_dataset("owner/name", None, "train")
    assert (read.revision, [row.values["text"] for row in read.rows]) == (commit, ["a"])


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_data_sets_have_three_splits_and_no_other(name: str) -> None:
    assert all(read_dataset(name, None, split).rows for split in ("train", "validation", "test"))
    with pytest.raises(DataError, match="has no split 'dev'; it has train, validation and test"):
        read_dataset(name, None, "dev")
