"""report.json is what its schema says, for every kind of report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from llmkit.reports.page import REPORT_FORMAT, SCHEMA

if TYPE_CHECKING:
    from tests.reports.conftest import Chain, Written

TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}
KNOWN = {"$ref", "const", "enum", "type", "oneOf", "properties", "required", "additionalProperties", "items", "description"}


def faults(value: Any, schema: dict[str, Any], root: dict[str, Any], where: str = "$") -> Iterator[str]:
    """What is wrong with a value by the keywords of JSON Schema that schema.json uses."""
    assert set(schema) <= KNOWN, schema
    if "$ref" in schema:
        yield from faults(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, where)
    if "const" in schema and value != schema["const"]:
        yield f"{where} is {value!r}, not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where} is {value!r}, none of {schema['enum']}"
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if isinstance(value, bool) or not any(isinstance(value, TYPES[name]) for name in names):
            yield f"{where} is {type(value).__name__}, not {names}"
            return
    if "oneOf" in schema:
        found = [list(faults(value, part, root, where)) for part in schema["oneOf"]]
        if sum(not part for part in found) != 1:
            yield f"{where} fits {sum(not part for part in found)} of {len(found)}: {found}"
    if isinstance(value, dict):
        yield from (f"{where} lacks {key}" for key in schema.get("required", ()) if key not in value)
        for key, item in value.items():
            part = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
            if part:
                yield from faults(item, part, root, f"{where}.{key}")
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from faults(item, schema["items"], root, f"{where}[{index}]")


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json.loads(SCHEMA.read_text(encoding="utf-8"))


def problems(report: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    return list(faults(report, {"oneOf": schema["oneOf"]}, schema))


def test_every_report_is_as_the_schema_says(chain: Chain, write: Callable[..., Written], schema: dict[str, Any]) -> None:
    chain.build()
    for kind, runs in {
        "evaluation": ["evaluate"],
        "training": ["pretrain"],
        "runs": ["pretrain", "finetune"],
    }.items():
        report = write(kind, runs=[str(chain.root / name) for name in runs]).json
        assert (report["kind"], report["format"]) == (kind, REPORT_FORMAT)
        assert problems(report, schema) == []
        documented = set(schema["$defs"][kind]["properties"])
        assert set(report) == documented


def test_evaluations_side_by_side_and_what_is_missing_fit_too(
    chain: Chain, write: Callable[..., Written], schema: dict[str, Any]
) -> None:
    chain.build()
    (chain.root / "evaluate").rename(chain.root / "first")
    chain.evaluate()
    report = write("runs", runs=[str(chain.root / "first"), str(chain.root / "evaluate")]).json
    assert problems(report, schema) == [] and len(report["differences"]) == 1
    chain.evaluate(model=None, record={"task": "translation", "n": 30, "metrics": []})
    assert problems(write("bare").json, schema) == []


def test_what_is_not_as_the_schema_says_is_found(chain: Chain, write: Callable[..., Written], schema: dict[str, Any]) -> None:
    chain.build()
    report = write().json
    for change in (
        lambda r: r.pop("verdict"),
        lambda r: r.update(format=1),
        lambda r: r.update(limits="none"),
        lambda r: r["metrics"]["metrics"][0].update(value="high"),
        lambda r: r["findings"][0].update(finding="splendid"),
        lambda r: r["lineage"][0].pop("fingerprint"),
    ):
        changed = json.loads(json.dumps(report))
        change(changed)
        assert problems(changed, schema)
