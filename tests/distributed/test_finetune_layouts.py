"""Fine-tuning under every kind of layout starts and goes on as in one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForSequenceClassification

from llmkit.pipeline.artefact import Artefact
from llmkit.training.ledger import read_ledger

pytestmark = pytest.mark.slow

# 80 examples make ten whole steps of 8; the short last step of an epoch would be filled up differently for two ranks.
SETTINGS = {
    "learning_rate": 5e-3,
    "max_steps": 10,
    "global_batch_size": 8,
    "bf16": False,
    "cpu_threads": 1,
    "logging_steps": 1,
    "seed": 0,
}


def losses(run: Path) -> list[float]:
    return [entry["loss"] for entry in read_ledger(run / "metrics.jsonl") if "loss" in entry]


@pytest.fixture(scope="module")
def asked(base_model: Artefact, toy_files: tuple[Path, Path]) -> dict[str, Any]:
    files = {"train_file": str(toy_files[0]), "validation_file": str(toy_files[1])}
    return {**SETTINGS, "model_name_or_path": str(base_model.directory), **files}


@pytest.fixture(scope="module")
def one(run: Any, asked: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return run("finetune", tmp_path_factory.mktemp("one") / "classifier", **asked)


def test_batches_that_are_accumulated_have_the_loss_of_one(
    run: Any, asked: dict[str, Any], one: Artefact, tmp_path: Path
) -> None:
    cut = run("finetune", tmp_path / "cut", **{**asked, "per_device_train_batch_size": 2})
    assert losses(cut.directory) == pytest.approx(losses(one.directory), rel=1e-4)


@pytest.mark.parametrize("layout", ["ddp", "zero1", "zero2", "zero3", "fsdp2", "fsdp2_offload", "tp", "hsdp", "fsdp2_tp"])
def test_a_classifier_learns_under_a_layout_as_in_one_process(
    layout: str, asked: dict[str, Any], one: Artefact, tmp_path: Path
) -> None:
    if layout.startswith("zero"):
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    (tmp_path / "asked.yaml").write_text(yaml.safe_dump(asked))
    words = ["finetune", "--config", str(tmp_path / "asked.yaml"), "--output_dir", str(tmp_path / "c")]
    done = subprocess.run(
        [sys.executable, "-m", "llmkit", *words, "--accelerate_config", layout],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(tmp_path / "c") == pytest.approx(losses(one.directory), rel=1e-4)
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "c")


def test_a_text_is_not_divided_among_processes(asked: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "asked.yaml").write_text(yaml.safe_dump(asked))
    words = ["finetune", "--config", str(tmp_path / "asked.yaml"), "--output_dir", str(tmp_path / "c")]
    done = subprocess.run(
        [sys.executable, "-m", "llmkit", *words, "--accelerate_config", "cp"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert "a task takes them whole; take another layout" in done.stderr
