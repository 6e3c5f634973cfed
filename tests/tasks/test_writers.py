"""Tables that are written are read back as they were."""

from __future__ import annotations

import datetime
import decimal
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.tasks.tables import read_table
from llmkit.tasks.writers import ColumnTypes, in_blocks, record_batches, write_parquet, write_text_table

texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"))
plain = st.one_of(st.none(), st.booleans(), st.integers(-(2**80), 2**80), st.floats(allow_nan=False), texts)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2), max_leaves=4
)


def written(rows: list[dict[str, Any]], suffix: str, columns: list[str]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"table{suffix}"
        write_text_table(path, suffix, columns, rows)
        return [row.values for row in read_table(path)]


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_csv_gives_back_every_text(cells: list[tuple[str, str]]) -> None:
    rows = [{'a, "b"': one, "c": other} for one, other in cells]
    assert written(rows, ".csv", ['a, "b"', "c"]) == rows


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_tsv_gives_back_every_text_and_names_tabs_and_line_ends(cells: list[tuple[str, str]]) -> None:
    found = written([{"a": one, "b": other} for one, other in cells], ".tsv", ["a", "b"])

    def named(text: str) -> str:
        return text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")

    assert found == [{"a": named(one), "b": named(other)} for one, other in cells]


@given(st.lists(st.dictionaries(texts, values, max_size=3), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_json_lines_give_back_every_value(rows: list[dict[str, Any]]) -> None:
    assert written(rows, ".jsonl", []) == rows


def test_half_a_character_costs_a_row_nothing_but_that_half(tmp_path: Path) -> None:
    rows = [{"text": "a\ud83d"}, {"text": "é"}]
    assert written(rows, ".jsonl", []) == rows
    assert written(rows, ".csv", ["text"]) == [{"text": "a?"}, {"text": "é"}]


def test_values_that_are_no_text_stand_in_csv_as_json_has_them() -> None:
    row = {"a": 0.1, "b": None, "c": True, "d": ["é", 1], "e": datetime.date(2026, 1, 2), "f": decimal.Decimal("1.50")}
    assert written([row], ".csv", list(row)) == [
        {"a": "0.1", "b": "", "c": "true", "d": '["é", 1]', "e": "2026-01-02", "f": "1.50"}
    ]


@given(st.lists(st.dictionaries(st.sampled_from("ab"), values, min_size=1), min_size=1, max_size=6), st.integers(1, 6))
@settings(max_examples=200, deadline=None)
def test_parquet_takes_whatever_json_lines_hold(rows: list[dict[str, Any]], at_once: int) -> None:
    """However the rows are divided while types are found; what has no common type is there as JSON or a nearest number."""
    types = ColumnTypes()
    for block in in_blocks(rows, at_once):
        types.see(block)
    added = ColumnTypes()
    added.see([{"new": number} for number in range(len(rows))])
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "table.parquet"
        batches, schema = record_batches(rows, types, ["a", "b"])
        write_parquet(path, batches, schema, ({"new": number} for number in range(len(rows))), added, ["new"])
        found = [row.values for row in read_table(path)]
    assert [row["new"] for row in found] == list(range(len(rows)))
    for name in "ab":
        for before, after in zip((row.get(name) for row in rows), (row[name] for row in found), strict=True):
            assert before == after or (isinstance(after, str) and json.loads(after) == before) or float(before) == after


def test_parquet_keeps_the_types_of_the_columns_that_are_there(tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "when": pyarrow.array([1, 2], pyarrow.timestamp("ns", "UTC")),
            "kind": pyarrow.array(["x", "y"]).dictionary_encode(),
            "bytes": pyarrow.array([b"\xff", None]),
            "small": pyarrow.array([1, 2], pyarrow.int8()),
        }
    ).replace_schema_metadata({"note": "kept"})
    types = ColumnTypes()
    types.see([{"score": 0.5}, {"score": None}])
    added = iter([{"score": 0.5}, {"score": None}])
    write_parquet(tmp_path / "a.parquet", table.to_batches(), table.schema, added, types, ["score"])
    found = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert found.select(table.column_names).equals(table)
    assert (found.column("score").to_pylist(), found.schema.metadata[b"note"]) == ([0.5, None], b"kept")


@pytest.mark.parametrize(("size", "blocks"), [(1, [[0], [1], [2]]), (2, [[0, 1], [2]]), (3, [[0, 1, 2]]), (9, [[0, 1, 2]])])
def test_blocks_are_of_one_size_and_the_last_is_the_rest(size: int, blocks: list[list[int]]) -> None:
    assert list(in_blocks(range(3), size)) == blocks
    assert list(in_blocks([], size)) == []
