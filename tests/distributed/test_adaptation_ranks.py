"""Low-rank updates, several seeds and early stopping on two ranks, which are killed and go on."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from transformers import AutoModelForSequenceClassification

from llmkit.pipeline.artefact import Artefact
from llmkit.training.ledger import read_ledger

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def asked(base_model: Artefact, toy_files: tuple[Path, Path], quick: dict[str, Any]) -> dict[str, Any]:
    return {
        **quick,
        "model_name_or_path": str(base_model.directory),
        "train_file": str(toy_files[0]),
        "peft": "lora",
        "lora_dropout": 0.1,
        "learning_rate": 2e-2,
        "global_batch_size": 8,
        "logging_steps": 1,
        "num_train_epochs": 16.0,
        "eval_steps": 6,
        "metric_for_best_model": "loss",
        "early_stopping_patience": 4,
        "seeds": [0, 1],
    }


def on_two_ranks(output: Path, settings: dict[str, Any], layout: str = "ddp") -> list[str]:
    file = output.with_name(f"{output.name}-asked.yaml")
    file.write_text(yaml.safe_dump(settings))
    words = ["finetune", "--config", str(file), "--output_dir", str(output), "--accelerate_config", layout]
    return [sys.executable, "-m", "llmkit", *words]


def finished(output: Path, settings: dict[str, Any]) -> tuple[Artefact, str]:
    done = subprocess.run(on_two_ranks(output, settings), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Artefact.open(output, "finetune"), done.stdout


def killed_at(output: Path, settings: dict[str, Any], inside: str, step: int) -> None:
    """Kill all processes of a run with SIGKILL, as soon as the ledger of a model has come to a step."""
    launcher = subprocess.Popen(on_two_ranks(output, settings), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    place = output.with_name(f"{output.name}.partial") / inside / "metrics.jsonl"
    while not any(entry["step"] >= step for entry in read_ledger(place)):
        assert launcher.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    family = [*psutil.Process(launcher.pid).children(recursive=True), psutil.Process(launcher.pid)]
    for process in family:
        process.kill()
    psutil.wait_procs(family)


def told(place: Path) -> list[tuple[Any, ...]]:
    entries = read_ledger(place / "metrics.jsonl")
    return [(entry["step"], entry.get("loss"), entry.get("eval_loss"), entry.get("data_chain")) for entry in entries]


def test_updates_of_two_seeds_on_two_ranks_are_those_of_one_and_survive_kills_to_the_bit(
    run: Any, asked: dict[str, Any], tmp_path: Path
) -> None:
    whole, said = finished(tmp_path / "whole", asked)
    assert "LoRA of rank 8" in said
    metrics = whole.manifest.metrics
    assert (metrics["processes"], metrics["samples_per_step"]) == (2, 8)
    assert set(metrics["seeds"]["validation"]["accuracy"]["values"]) == {"0", "1"}
    losses = [loss for _, loss, _, _ in told(whole.directory) if loss is not None]
    assert min(losses) < 0.8 * losses[0], "it learns; ten examples of a validation split would be too few to tell"

    killed_at(tmp_path / "killed", asked, "", 5)
    killed_at(tmp_path / "killed", asked, "seeds/1", 7)
    again, said = finished(tmp_path / "killed", asked)
    assert "seed 0: finished by an earlier attempt" in said
    assert again.manifest.digest == whole.manifest.digest
    for inside in ("", "seeds/1"):
        assert told(again.directory / inside) == told(whole.directory / inside)
        AutoModelForSequenceClassification.from_pretrained(again.directory / inside)

    one = run("finetune", tmp_path / "one", **asked)
    ours, theirs = ([chain for *_, chain in told(made.directory) if chain][:6] for made in (whole, one))
    assert ours == theirs and len(ours) == 6, "dropout falls differently, the data does not"


def test_a_layout_that_divides_weights_is_refused_with_low_rank_updates(asked: dict[str, Any], tmp_path: Path) -> None:
    words = on_two_ranks(tmp_path / "m", {**asked, "seeds": None}, "fsdp2")
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2
    assert "take ddp" in done.stderr
