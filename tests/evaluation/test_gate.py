"""Conditions on metrics, by the command line, on fresh results and in pipelines."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit import cli
from llmkit.config import Source, resolve
from llmkit.errors import ConfigError
from llmkit.evaluation import gate
from llmkit.evaluation.evaluate import EvaluateConfig
from llmkit.pipeline.artefact import Artefact
from llmkit.tasks.text_classification import TextClassification


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def words(classifier: Artefact, toy_files: tuple[Path, Path]) -> list[str]:
    """The command, but for its conditions."""
    return [
        "evaluate",
        f"--model_name_or_path={classifier.directory}",
        f"--test_file={toy_files[1]}",
        "--no_baselines",
        "--output_dir=e",
    ]


def told(place: str = "e") -> dict[str, Any]:
    return Artefact.open(place, "evaluate").manifest.metrics


def test_a_condition_holds_for_the_end_of_the_interval_and_its_failure_is_an_exit_code(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The value would pass, its lower end does not; the result is kept, and the condition is held again when it is fresh."""
    assert cli.main([*words, "--gate", "accuracy>=0.5", "f1_macro <= 1"]) == 0
    accuracy = told()["accuracy"]
    low, value = accuracy["low"], accuracy["value"]
    assert low < value
    said = capsys.readouterr().out
    assert f"gate accuracy >= 0.5: passed, value {value:.4g}, lower end of its 95% interval {low:.4g}" in said
    between = (low + value) / 2
    for _ in range(2):
        assert cli.main([*words, "--gate", f"accuracy>={between}", "accuracy>=0.5"]) == 1
        said = capsys.readouterr().out
        assert "already there, nothing to do" in said
        assert f"gate accuracy >= {between:g}: FAILED" in said and "gate accuracy >= 0.5: passed" in said
    assert cli.main([*words, "--gate", f"accuracy<={between}"]) == 1
    assert "upper end" in capsys.readouterr().out
    assert cli.main(words) == 0


@pytest.mark.slow
def test_the_process_ends_with_the_exit_code_and_keeps_the_result(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llmkit", *words, "--gate", "accuracy>=1.5"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "gate accuracy >= 1.5: FAILED" in done.stdout and "Traceback" not in done.stderr
    assert told()["n"] == 40


def test_a_wrong_name_is_told_before_all_examples_are_computed(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    predict = TextClassification.predict

    def counting(task: Any, model: Any, tokenizer: Any, data: Any, batch_size: int) -> Any:
        asked.append(len(data))
        return predict(task, model, tokenizer, data, batch_size)

    monkeypatch.setattr(TextClassification, "predict", counting)
    assert cli.main([*words, "--gate", "acuracy>=0.5", "f1_marco>=0.5"]) == 2
    said = capsys.readouterr().err
    assert "no metric 'acuracy'; did you mean 'accuracy'?" in said and "did you mean 'f1_macro'?" in said
    assert asked == [1] and not Path("e").exists()
    assert cli.main(words) == 0
    assert cli.main([*words, "--gate", "acuracy>=0.5"]) == 2, "also where the result is there"
    assert asked == [1, 40]


def test_a_pipeline_holds_the_conditions_of_its_steps_also_where_nothing_is_to_be_done(
    words: list[str], classifier: Artefact, toy_files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"model_name_or_path": str(classifier.directory), "test_file": str(toy_files[1]), "baselines": False}
    stages = {
        "evaluate": {"config": {**settings, "gate": ["accuracy>=1.5"]}},
        "report": {"inputs": {"evaluation": "evaluate"}},
    }
    Path("p.yaml").write_text(json.dumps({"stages": stages}), encoding="utf-8")
    assert cli.main(["run", "p.yaml"]) == 1
    said = capsys.readouterr().out
    assert "gate accuracy >= 1.5: FAILED" in said and "result: runs/p/report/report.html" in said
    assert Path("runs/p/report/report.html").is_file(), "what comes after is made all the same"
    assert cli.main(["run", "p.yaml"]) == 1
    assert "nothing to do: all 2 stages are fresh" in capsys.readouterr().out
    assert cli.main(["run", "p.yaml", "--set", "evaluate.gate=accuracy>=0.5"]) == 0
    said = capsys.readouterr().out
    assert "nothing to do" in said and "gate accuracy >= 0.5: passed" in said
    assert cli.main(["run", "p.yaml", "--dry_run"]) == 0


@pytest.mark.parametrize(
    "word", ["accuracy", "accuracy>0.8", "accuracy=>0.8", "f1>=0.1>=0.2", ">=0.8", "accuracy>=high", "accuracy>=0.8 x"]
)
def test_what_is_no_condition_is_refused_with_the_settings(word: str) -> None:
    with pytest.raises(ConfigError, match="is not METRIC>=NUMBER or METRIC<=NUMBER"):
        resolve(EvaluateConfig, [Source({"model_name_or_path": "m", "test_file": "t.csv", "gate": [word]}, {})])


@given(
    st.from_regex(r"[a-z_190():@,-]([a-z_190():@, -]*[a-z_190():@,-])?", fullmatch=True), st.booleans(), st.floats(-1e6, 1e6)
)
def test_a_condition_is_read_as_it_is_written(metric: str, is_least: bool, bound: float) -> None:
    assert gate.parse(f" {metric} {'>=' if is_least else '<='} {bound!r}") == gate.Gate(metric, is_least, bound)


def test_the_names_of_tasks_of_lm_eval_can_be_given() -> None:
    for metric in ("parity: acc", "gsm8k: exact_match (strict-match)", "pass@1"):
        assert gate.parse(f"{metric}>=0.5") == gate.Gate(metric, True, 0.5)


def test_a_wrong_metric_of_a_language_model_is_told_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.txt").write_text("a text", encoding="utf-8")
    words = ["evaluate", "--model_name_or_path=nowhere", "--task=language-modeling", "--test_file=t.txt", "--output_dir=e"]
    assert cli.main([*words, "--gate", "bits_per_bite<=2"]) == 2
    assert "no metric 'bits_per_bite'; did you mean 'bits_per_byte'?" in capsys.readouterr().err


def test_an_undefined_metric_meets_no_condition(
    classifier: Artefact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = EvaluateConfig(model_name_or_path="m", test_file="t.csv", gate=["pearson>=-1"])
    undefined = {"n": 1, "pearson": {"value": None, "low": None, "high": None}}
    assert gate.check(config, Artefact(tmp_path, replace(classifier.manifest, metrics=undefined))) == 1
    assert "FAILED, pearson is undefined" in capsys.readouterr().out
    pointed = {"n": 1, "pearson": {"value": 0.5, "low": None, "high": None}}
    assert gate.check(config, Artefact(tmp_path, replace(classifier.manifest, metrics=pointed))) == 1
    assert "FAILED, pearson has no interval on 1 example, so nothing can be held" in capsys.readouterr().out
