"""A step that is made again is the step that was made."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmkit import cli
from llmkit.errors import ArtefactError
from llmkit.pipeline.artefact import Artefact
from llmkit.training import language_model
from llmkit.training.checkpoints import CheckpointRecord, commit
from llmkit.training.ledger import read_ledger
from llmkit.training.replay import describe, replay

STEPS = 8


@pytest.fixture(scope="module")
def settings(tokens: Artefact, tiny: dict[str, Any]) -> dict[str, Any]:
    """A GPT-2 with dropout, past the end of an epoch: every random number, and the whole order of samples, matters."""
    return {
        **tiny,
        "tokens": tokens.directory,
        "model_type": "gpt2",
        "config_overrides": {"n_embd": 32, "n_layer": 2, "n_head": 2},
        "per_device_train_batch_size": 64,
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS,
        "save_steps": 3,
        "save_permanent_steps": 3,
        "eval_steps": 2,
    }


@pytest.fixture(scope="module")
def finished(run: Any, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return run("pretrain", tmp_path_factory.mktemp("replay") / "m", **settings)


def entry_of(directory: Path, step: int) -> dict[str, Any]:
    return next(entry for entry in read_ledger(directory / "metrics.jsonl") if entry["step"] == step and "loss" in entry)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("saved", "step"), [(3, 4), (3, 7), (6, 8)])
def test_loss_and_gradient_of_a_replayed_step_are_those_of_the_run_to_the_bit(
    saved: int, step: int, finished: Artefact, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = contents(finished.directory)
    checkpoint = finished.directory / "checkpoints" / f"checkpoint-{saved}"
    words = ["replay", "--checkpoint", str(checkpoint), "--step", str(step), "--output", str(tmp_path / "step.json")]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    found, entry = json.loads((tmp_path / "step.json").read_text()), entry_of(finished.directory, step)
    assert [found[name] for name in ("loss", "grad_norm", "data_chain")] == [
        entry[name] for name in ("loss", "grad_norm", "data_chain")
    ]
    assert "the same gradient norm, to the bit" in said
    assert f"loss {entry['loss']!r}, gradient norm {entry['grad_norm']!r}" in said
    for layer in ("transformer.wte", "transformer.h.0", "transformer.h.1", "transformer.ln_f"):
        assert layer in said
    assert math.hypot(*found["grad_norm_of_layers"].values()) == pytest.approx(found["grad_norm"], rel=1e-5)
    assert len(found["samples"]) == 128
    assert said.count("\nsample ") == 128
    assert contents(finished.directory) == before, "the run is as it was"


def test_a_step_of_an_unfinished_run_that_was_skipped_shows_why(
    run: Any, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight of the checkpoint is infinite; the replay shows in which layer."""
    monkeypatch.setattr(language_model, "_describe", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("pretrain", tmp_path / "m", **{**settings, "save_permanent_steps": None})
    checkpoint = tmp_path / "m.partial" / "checkpoint-6"
    weights = load_file(checkpoint / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.weight"][0, 0] = torch.inf
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtefactError, match=r"--checkpoint: .*model.safetensors is not as it was written"):
        replay(checkpoint, 7)
    record = CheckpointRecord.load(checkpoint)
    record.files = []
    (checkpoint / "checkpoint.json").unlink()
    commit(checkpoint.rename(tmp_path / "aside"), checkpoint, record, lambda _: None)
    found = replay(checkpoint, 7)
    assert found is not None
    assert (found["reason"], found["was_skipped"]) == ("no number", True)
    assert math.isinf(found["weight_norm_of_layers"]["transformer.h.1"])
    assert math.isfinite(found["weight_norm_of_layers"]["transformer.h.0"])
    assert "no number, its update is skipped" in describe(found)
    assert not (tmp_path / "m.partial" / "dumps").exists()


@pytest.mark.parametrize(
    ("inside", "step", "said"),
    [
        ("checkpoints/checkpoint-3", 3, "checkpoint-3 is the state after step 3; step 3 needs an earlier one"),
        ("checkpoints/checkpoint-6", 9, "the run has 8 steps; there is no step 9"),
        ("checkpoints/checkpoint-4", 5, "is no whole checkpoint"),
        ("", 5, "is no whole checkpoint"),
    ],
)
def test_what_cannot_be_replayed_is_said(
    inside: str, step: int, said: str, finished: Artefact, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["replay", "--checkpoint", str(finished.directory / inside), "--step", str(step)]) == 2
    assert said in capsys.readouterr().err
