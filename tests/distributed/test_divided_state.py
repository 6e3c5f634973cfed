"""Layouts that divide weights and optimizer: a run goes on under another layout, and under the same one to the bit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llmkit.pipeline.artefact import Artefact
from llmkit.training.checkpoints import CheckpointRecord
from llmkit.training.ledger import read_ledger

pytestmark = pytest.mark.slow

# Sums of float32 in another order, over four steps of AdamW whose rate is 1e-2.
LOSS, WEIGHT = 1e-5, 2e-4

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def train(tokens: Artefact, tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Train:
    place = tmp_path_factory.mktemp("divided")
    shared = {
        **tiny,
        "tokens": str(tokens.directory),
        "max_steps": 8,
        "eval_steps": 4,
        "save_steps": 4,
        "save_permanent_steps": 4,
        "global_batch_size": 16,
        "per_device_train_batch_size": 8,
    }

    def train_under(layout: str, resume: Path | None = None, expect: int = 0, **settings: Any) -> Path:
        name = f"{layout}-from-{resume.parts[-3]}" if resume else layout
        output = place / name
        if not (output / "manifest.json").exists():
            asked = {**shared, **settings, **({"resume": str(resume)} if resume else {})}
            (place / f"{name}.yaml").write_text(yaml.safe_dump(asked))
            words = ["pretrain", "--config", str(place / f"{name}.yaml"), "--output_dir", str(output)]
            words += ["--accelerate_config", layout]
            done = subprocess.run(
                [sys.executable, "-m", "llmkit", *words], capture_output=True, text=True, timeout=300, check=False
            )
            assert done.returncode == expect, done.stdout + done.stderr
            (place / f"{name}.stderr").write_text(done.stderr)
        return output

    return train_under


def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "checkpoint-4"


def losses(run: Path) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in read_ledger(run / "metrics.jsonl") if "loss" in entry}


def far(one: Path, other: Path) -> float:
    """The largest difference of two weights."""
    mine, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert set(mine) == set(theirs)
    return max(float((mine[name] - theirs[name]).abs().max()) for name in mine)


@pytest.mark.parametrize("layout", ["fsdp2", "tp", "fsdp2_tp"])
def test_a_divided_run_goes_on_to_the_bit(layout: str, train: Train) -> None:
    whole = train(layout)
    again = train(layout, checkpoint(whole))
    assert far(whole, again) == 0
    ledger = losses(whole)
    assert losses(again) == {step: ledger[step] for step in (5, 6, 7, 8)}


@pytest.mark.parametrize(
    ("written", "read"),
    [("single", "fsdp2"), ("fsdp2", "tp"), ("tp", "single"), ("single", "tp"), ("fsdp2_tp", "fsdp2"), ("ddp", "single")],
)
def test_a_run_goes_on_under_another_layout_with_its_optimizer(written: str, read: str, train: Train) -> None:
    reference, other = train("single"), train(read, checkpoint(train(written)))
    ledger = losses(reference)
    assert losses(other) == pytest.approx({step: ledger[step] for step in (5, 6, 7, 8)}, abs=LOSS)
    assert far(reference, other) < WEIGHT


@pytest.mark.parametrize(("written", "read"), [("zero1", "single"), ("zero3", "ddp"), ("zero2", "fsdp2"), ("zero2", "zero1")])
def test_a_run_of_zero_goes_on_under_another_layout_with_its_optimizer(written: str, read: str, train: Train) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    reference, other = train("single"), train(read, checkpoint(train(written)))
    ledger = losses(reference)
    assert losses(other) == pytest.approx({step: ledger[step] for step in (5, 6, 7, 8)}, abs=LOSS)
    assert far(reference, other) < WEIGHT
    assert not list(other.glob(".universal*")), "the form it was read in is removed"


def test_a_checkpoint_that_zero_cannot_read_is_refused_with_what_can_be_done(train: Train) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    refused = train("zero1", checkpoint(train("single")), expect=2)
    said = refused.with_name(f"{refused.name}.stderr").read_text()
    assert "whose optimizer state (whole) this one (zero1) cannot read" in said
    assert "--resume never --model_name_or_path" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("layout", ["tp", "fsdp2"])
def test_a_divided_run_leaves_whole_models(layout: str, train: Train) -> None:
    output = train(layout)
    assert CheckpointRecord.load(checkpoint(output)).kept_as == "shards"
    for place in (checkpoint(output), output):
        model = AutoModelForCausalLM.from_pretrained(place)
        assert all(type(parameter.data) is torch.Tensor for parameter in model.parameters())
    assert far(train("single"), output) < WEIGHT


def test_the_data_are_those_of_one_process_also_where_ranks_share_their_samples(train: Train) -> None:
    chains = {layout: CheckpointRecord.load(checkpoint(train(layout))).data_chain for layout in ("single", "tp", "fsdp2_tp")}
    assert len(set(chains.values())) == 1


def test_the_validation_loss_of_samples_divided_along_their_length_is_that_of_whole_ones(train: Train) -> None:
    for entry, other in zip(
        read_ledger(train("single") / "metrics.jsonl"), read_ledger(train("cp") / "metrics.jsonl"), strict=True
    ):
        for key in ("loss", "eval_loss", "grad_norm"):
            assert entry.get(key) == (pytest.approx(other[key], abs=LOSS) if key in entry else None)
