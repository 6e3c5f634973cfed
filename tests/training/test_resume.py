"""Runs that are killed with SIGKILL at a chosen instant, and go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmkit.pipeline.artefact import Artefact
from llmkit.pipeline.lock import is_held
from llmkit.training.ledger import Ledger, read_ledger
from llmkit.training.trainer import last_checkpoint

# Runs a stage in a process that kills itself at the n-th call of one function: `driver WHERE COUNT STAGE OPTIONS...`
DRIVER = """
import os, signal, sys
from llmkit.cli import main
from llmkit.training import classifier, language_model, ledger, trainer

owner, name = {
    "log": (ledger.Ledger, "on_log"),
    "checkpoint write": (trainer, "sync"),
    "checkpoint rename": (trainer, "rotate_checkpoints"),
    "end": (language_model, "write_card"),
    "end of finetune": (classifier, "write_card"),
}[sys.argv[1]]
original, left = getattr(owner, name), [int(sys.argv[2])]

def counted(*arguments, **options):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)

setattr(owner, name, counted)
sys.exit(main(sys.argv[3:]))
"""


def killed(where: str, count: int, stage: str, output: Path, settings: dict[str, Any]) -> str:
    """Run a stage that dies at an instant; what it said."""
    file = output.with_suffix(".yaml")
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    file.write_text(yaml.safe_dump(plain))
    words = [sys.executable, "-c", DRIVER, where, str(count), stage, "--config", str(file), "--output_dir", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == -signal.SIGKILL, f"it was to die at {where} {count}:\n{done.stdout}\n{done.stderr}"
    assert not output.exists(), "a killed run leaves nothing that claims to be complete"
    return done.stdout


def told(artefact: Artefact) -> list[tuple[Any, ...]]:
    """What the ledger says of the training, without times."""
    entries = read_ledger(artefact.directory / "metrics.jsonl")
    return [(entry["step"], entry.get("loss"), entry.get("eval_loss"), entry.get("learning_rate")) for entry in entries]


@pytest.mark.slow
def test_a_run_killed_three_times_ends_with_the_bytes_of_an_uninterrupted_one(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path
) -> None:
    settings = {
        **tiny,
        "tokens": tokens.directory,
        "per_device_train_batch_size": 128,  # 7 steps an epoch: the kills fall into two epochs
        "max_steps": 14,
        "save_steps": 4,
        "eval_steps": 2,
    }
    whole = run("pretrain", tmp_path / "whole", **settings)
    output, partial = tmp_path / "killed", tmp_path / "killed.partial"

    killed("log", 8, "pretrain", output, settings)
    checkpoint = last_checkpoint(partial)
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-4"
    assert not is_held(partial)

    said = killed("checkpoint write", 3, "pretrain", output, settings)
    assert "going on from checkpoint-4" in said
    assert list((partial / ".writing").glob("checkpoint-8/*")), "a torn checkpoint lies there"
    checkpoint = last_checkpoint(partial)
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-4", "and is no checkpoint"

    said = killed("checkpoint rename", 2, "pretrain", output, settings)
    assert "going on from checkpoint-4" in said
    checkpoint = last_checkpoint(partial)
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-12"

    resumed = run("pretrain", output, **settings)
    assert (resumed.directory / "model.safetensors").read_bytes() == (whole.directory / "model.safetensors").read_bytes()
    assert resumed.manifest.digest == whole.manifest.digest
    assert told(resumed) == told(whole), "no step twice, none missing, the same losses"
    assert not partial.exists()


@pytest.mark.slow
def test_a_run_killed_after_its_last_step_only_finishes(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**tiny, "tokens": tokens.directory, "max_steps": 4, "save_steps": 2, "eval_steps": 2}
    settings["lr_scheduler_type"] = "constant"  # one step more would move the weights
    whole = run("pretrain", tmp_path / "whole", **settings)
    killed("end", 1, "pretrain", tmp_path / "killed", settings)
    capsys.readouterr()
    resumed = run("pretrain", tmp_path / "killed", **settings)
    assert "going on from checkpoint-4" in capsys.readouterr().out
    assert resumed.manifest.digest == whole.manifest.digest
    assert told(resumed) == told(whole)
    assert resumed.manifest.metrics["validation"] == whole.manifest.metrics["validation"]
    assert resumed.manifest.metrics["train_loss"] == whole.manifest.metrics["train_loss"]


@pytest.mark.slow
def test_a_fine_tuning_killed_twice_ends_with_the_bytes_of_an_uninterrupted_one(
    run: Any, base_model: Artefact, toy_files: tuple[Path, Path], quick: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**quick, "model_name_or_path": base_model.directory, "train_file": str(toy_files[0]), "num_train_epochs": 4.0}
    settings["logging_steps"] = 1
    whole = run("finetune", tmp_path / "whole", **settings)
    killed("checkpoint rename", 2, "finetune", tmp_path / "killed", settings)
    killed("end of finetune", 1, "finetune", tmp_path / "killed", settings)
    resumed = run("finetune", tmp_path / "killed", **settings)
    assert (resumed.directory / "model.safetensors").read_bytes() == (whole.directory / "model.safetensors").read_bytes()
    assert resumed.manifest.digest == whole.manifest.digest
    assert resumed.manifest.metrics["validation"] == whole.manifest.metrics["validation"]
    assert resumed.manifest.metrics["best_step"] == whole.manifest.metrics["best_step"]
    assert told(resumed) == told(whole)


def test_a_checkpoint_loads_as_a_model_repository(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llmkit.training import language_model

    class Stopped(Exception):
        pass

    def stop(*_: Any) -> None:
        raise Stopped

    monkeypatch.setattr(language_model, "write_card", stop)
    with pytest.raises(Stopped):
        run("pretrain", tmp_path / "m", tokens=tokens.directory, max_steps=4, save_steps=1, save_total_limit=2, **tiny)
    partial = tmp_path / "m.partial"
    assert sorted(path.name for path in partial.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    checkpoint = last_checkpoint(partial)
    assert checkpoint is not None
    AutoModelForCausalLM.from_pretrained(checkpoint)
    AutoTokenizer.from_pretrained(checkpoint)
    assert (checkpoint / "generation_config.json").is_file()


def test_the_newest_checkpoint_is_the_one_with_the_highest_step(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-2", "checkpoint-x", "checkpoint-11.old", ".writing"):
        (tmp_path / name).mkdir()
    (tmp_path / ".writing" / "checkpoint-12").mkdir()
    found = last_checkpoint(tmp_path)
    assert found == tmp_path / "checkpoint-10"


def test_a_ledger_forgets_a_torn_line_and_the_steps_that_are_made_again(tmp_path: Path) -> None:
    from types import SimpleNamespace

    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3, 4)]
    path.write_text("\n".join(lines) + '\n{"step": 2, "lo', encoding="utf-8")
    assert [entry["step"] for entry in read_ledger(path)] == [1, 2, 3, 4]
    state: Any = SimpleNamespace(is_world_process_zero=True, global_step=2)
    Ledger(path).on_train_begin(None, state, None)  # type: ignore[arg-type]
    assert [entry["step"] for entry in read_ledger(path)] == [1, 2]
    assert read_ledger(tmp_path / "none.jsonl") == []
