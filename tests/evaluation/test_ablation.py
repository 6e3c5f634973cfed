"""Several seeds on a test set, and what pretraining is worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

from llmkit.config import Source, resolve
from llmkit.errors import ConfigError, DataError
from llmkit.evaluation import ablation
from llmkit.evaluation.ablate import AblateConfig
from llmkit.evaluation.ablation import compare
from llmkit.pipeline.artefact import Artefact


@pytest.fixture(scope="module")
def asked(base_model: Artefact, toy_files: tuple[Path, Path], quick: dict[str, Any]) -> dict[str, Any]:
    short = {**quick, "num_train_epochs": 2.0}
    return {"model_name_or_path": base_model.directory, "train_file": toy_files[0], **short}


def test_the_models_of_all_seeds_are_measured_on_the_test_set(
    run: Any, asked: dict[str, Any], toy_files: tuple[Path, Path], tmp_path: Path
) -> None:
    made = run("finetune", tmp_path / "m", **asked, seeds=[0, 1])
    test = {"test_file": toy_files[1], "baselines": False}
    whole = run("evaluate", tmp_path / "whole", model_name_or_path=made.directory, **test)
    alone = run("evaluate", tmp_path / "alone", model_name_or_path=made.directory / "seeds/1", **test)
    found = json.loads((whole.directory / "metrics.json").read_text())["seeds"]
    assert found == whole.manifest.metrics["seeds"]
    assert found["of"] == [0, 1]
    for name in ("accuracy", "f1_macro"):
        values = found["metrics"][name]["values"]
        assert values == {"0": whole.manifest.metrics[name]["value"], "1": alone.manifest.metrics[name]["value"]}
    assert "seeds" not in alone.manifest.metrics


def test_differences_are_paired_by_seed() -> None:
    found = compare([0, 1, 2], {"f1": [0.9, 0.7, 0.8]}, {"f1": [0.8, 0.6, 0.7]})["metrics"]["f1"]
    assert found["difference"]["low"] == pytest.approx(found["difference"]["high"]) == pytest.approx(0.1)
    assert found["sentence"] == "From the pretrained weights f1 is higher by 0.100 (+0.100 to +0.100, 3 seeds)."
    unclear = compare([0, 1], {"f1": [0.9, 0.7]}, {"f1": [0.7, 0.9]})["metrics"]["f1"]
    assert unclear["difference"]["low"] < 0 < unclear["difference"]["high"]
    assert unclear["sentence"].startswith("No evidence of a difference in f1")


def test_a_metric_that_one_start_has_not_is_left_out() -> None:
    assert set(compare([0, 1], {"mse": [1.0, 2.0], "pearson": [0.5, 0.4]}, {"mse": [2.0, 3.0]})["metrics"]) == {"mse"}


def test_a_test_set_that_does_not_fit_is_refused_before_anything_is_trained(
    run: Any, asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text("text,label\nThe soup was lovely,zzz\n")
    with pytest.raises(DataError, match="test: the label 'zzz' does not occur in training"):
        run("ablate", tmp_path / "a", **asked, seeds=[0, 1], test_file=tmp_path / "t.csv")
    assert "step" not in capsys.readouterr().out


@pytest.mark.slow
def test_both_starts_are_compared_and_a_stopped_ablation_goes_on(
    run: Any,
    asked: dict[str, Any],
    toy_files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    wanted = {**asked, "seeds": [0, 1], "test_file": toy_files[1]}
    with monkeypatch.context() as patch:
        patch.setattr(ablation, "compare", stop)
        with pytest.raises(KeyboardInterrupt):
            run("ablate", tmp_path / "a", **wanted)
    capsys.readouterr()
    made = run("ablate", tmp_path / "a", **wanted)
    said = capsys.readouterr().out
    assert said.count("finished by an earlier attempt") == 4
    assert "step " not in said
    assert "The interval says how the difference varies with the seed" in said
    found = json.loads((made.directory / "ablation.json").read_text())
    assert found["measured_on"] == "test.jsonl"
    assert found["metrics"] == made.manifest.metrics["metrics"]
    accuracy = found["metrics"]["accuracy"]
    for seed in ("0", "1"):
        between = accuracy["pretrained"]["values"][seed] - accuracy["random"]["values"][seed]
        assert accuracy["difference"]["values"][seed] == pytest.approx(between)
    files = {record.path for record in made.manifest.files}
    assert not [name for name in files if "checkpoint" in name or ".features" in name or "seed-model" in name]
    for place in ("pretrained", "pretrained/seeds/1", "random", "random/seeds/1"):
        AutoModelForSequenceClassification.from_pretrained(made.directory / place)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"peft": "lora"}, "peft: leaves most weights as they are"),
        ({"freeze": ["embeddings"]}, "freeze: leaves most weights"),
        ({"seeds": None}, "seeds: an interval needs two or more"),
        ({"test_file": "a.csv", "test_split": "test"}, "test_file, test_split: give one of them"),
        ({"model_name_or_path": None, "model_type": "bert"}, "give a pretrained model"),
    ],
)
def test_what_cannot_be_compared_is_refused(given: dict[str, Any], said: str) -> None:
    asked = {"model_name_or_path": "m", "dataset_name": "llmkit/reviews", **given}
    with pytest.raises(ConfigError, match=said):
        resolve(AblateConfig, [Source(asked, {})])
