from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmkit.config import Source, resolve
from llmkit.errors import ConfigError
from llmkit.evaluation.evaluate import EvaluateConfig
from llmkit.evaluation.harness import _metrics, _rows
from llmkit.evaluation.intervals import wilson
from llmkit.pipeline.artefact import Artefact


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A local task of two choices, in a folder of its own."""
    place = tmp_path / "tasks"
    place.mkdir()
    rows = [{"question": f"The number {number} is", "label": number % 2} for number in range(12)]
    (place / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "parity",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(place / "data.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": ["even", "odd"],
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    (place / "parity.yaml").write_text(yaml.safe_dump(task))
    return place


@pytest.mark.slow
def test_a_local_task_gives_what_multiple_choice_gives(run: Any, base_model: Artefact, tasks: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness, an extra, is not installed")
    given = {"model_name_or_path": base_model.directory, "lm_eval": ["tasks=parity", f"include_path={tasks}"]}
    theirs = run("evaluate", tmp_path / "theirs", **given)
    rows = [json.loads(line) | {"choices": ["even", "odd"]} for line in (tasks / "data.jsonl").read_text().splitlines()]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ours = run(
        "evaluate",
        tmp_path / "ours",
        model_name_or_path=base_model.directory,
        test_file=tmp_path / "t.jsonl",
        task="multiple-choice",
    )
    for name, other in (("acc", "accuracy"), ("acc_norm", "accuracy_norm")):
        assert theirs.manifest.metrics[name]["value"] == pytest.approx(ours.manifest.metrics[other]["value"])
        low, high = theirs.manifest.metrics[name]["low"], theirs.manifest.metrics[name]["high"]
        assert 0 <= low <= theirs.manifest.metrics[name]["value"] <= high <= 1
    assert {Path(record.path).name for record in theirs.manifest.raw_inputs} >= {"parity.yaml", "data.jsonl"}
    report = run("report", tmp_path / "r", evaluation=theirs.directory)
    assert "acc norm" in (report.directory / "report.html").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="there is no task primes; there are parity"):
        run("evaluate", tmp_path / "e", **{**given, "lm_eval": ["tasks=primes", f"include_path={tasks}"]})


def test_without_the_extra_it_is_said_how_to_get_it(
    run: Any, base_model: Artefact, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"lm_eval: is not installed .*pip install 'llmkit\[lm_eval\]'"):
        run("evaluate", tmp_path / "e", model_name_or_path=base_model.directory, lm_eval=["tasks=parity"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task=parity"], "'task' is none of tasks=, include_path="),
        (["limit=3"], "name the tasks"),
        (["tasks= ,"], "name the tasks"),
        (["tasks=parity", "tasks=primes"], "tasks= is given twice"),
        (["tasks=parity", "limit=few"], "limit is 'few'"),
        (["tasks=parity", "include_path=nowhere"], "there is no directory 'nowhere'"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    run: Any, base_model: Artefact, tmp_path: Path, words: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run("evaluate", tmp_path / "e", model_name_or_path=base_model.directory, lm_eval=words)


def test_names_of_tasks_may_have_spaces_between() -> None:
    assert EvaluateConfig(model_name_or_path="m", lm_eval=["tasks=a, b"]).lm_eval_tasks() == ["a", "b"]


def test_a_document_is_a_row_however_many_filters_its_answer_went_through() -> None:
    logged = [
        {"doc_id": number, "filter": name, "arguments": [["q"]], "target": "4", "filtered_resps": [name], "exact_match": right}
        for name, right in (("strict-match", 0.0), ("flexible-extract", 1.0))
        for number in range(3)
    ]
    rows = _rows({"samples": {"gsm8k": logged}})
    assert [row["id"] for row in rows] == ["gsm8k/0", "gsm8k/1", "gsm8k/2"]
    assert {row["value"] for row in rows} == {0.0}


def test_that_documents_do_not_differ_is_not_taken_for_certainty() -> None:
    values = {
        "alias": "parity",
        "acc,none": 1.0,
        "acc_stderr,none": 0.0,
        "exact_match,strict-match": 0.0,
        "exact_match_stderr,strict-match": 0.0,
        "f1,none": 1.0,
        "f1_stderr,none": 0.0,
        "acc_norm,none": 0.8,
        "acc_norm_stderr,none": 0.2,
    }
    found = {
        metric.key: metric for metric in _metrics({"results": {"parity": values}, "n-samples": {"parity": {"effective": 5}}})
    }
    ends = {key: (metric.low, metric.high, metric.method) for key, metric in found.items()}
    assert ends == {
        "acc": (*wilson(5, 5), "wilson"),
        "exact_match (strict-match)": (*wilson(0, 5), "wilson"),
        "f1": (None, None, "none"),
        "acc_norm": (pytest.approx(0.408, abs=1e-3), 1.0, "normal"),
    }
    group = _metrics({"results": {"both": {"acc,none": 1.0, "acc_stderr,none": 0.0}}, "n-samples": {}})
    assert (group[0].low, group[0].method) == (None, "none"), "how many documents a group has is not said"


@pytest.mark.parametrize(("setting", "value"), [("selfcheck", True), ("slice_by", ["x"]), ("stride", 8)])
def test_settings_that_say_nothing_of_its_tasks_are_refused(setting: str, value: Any) -> None:
    given = {"model_name_or_path": "m", "lm_eval": ["tasks=parity"], setting: value}
    with pytest.raises(ConfigError, match=f"{setting}: is "):
        resolve(EvaluateConfig, [Source(given, {})])
