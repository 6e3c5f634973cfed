"""The z-loss by hand, and that it weighs every token the same however a step is shared out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmkit.errors import ConfigError
from llmkit.pipeline.artefact import Artefact
from llmkit.tokens.samples import TokenBlocks
from llmkit.tokens.shards import TokenStream
from llmkit.training.ledger import read_ledger
from llmkit.training.order import sample_ids
from llmkit.training.z_loss import z_loss


def test_the_value_by_hand() -> None:
    logits = torch.tensor([[[0.0, 0.0], [math.log(3.0), 0.0], [9.0, 9.0]], [[1.0, 1.0], [5.0, 5.0], [9.0, 9.0]]])
    labels = torch.tensor([[0, 1, 0], [0, 1, -100]])
    expected = (math.log(2) ** 2 + math.log(4) ** 2 + (1 + math.log(2)) ** 2) / 3
    assert z_loss(logits, labels).item() == pytest.approx(expected), "last positions and masked labels do not count"
    parts = [z_loss(logits[row : row + 1], labels[row : row + 1], num_items=3) for row in (0, 1)]
    assert sum(parts).item() == pytest.approx(expected)  # type: ignore[union-attr]
    assert z_loss(logits, torch.full_like(labels, -100)).item() == 0


def test_the_gradient_pulls_the_normaliser_towards_one() -> None:
    logits = torch.full((1, 2, 8), 3.0, requires_grad=True)
    z_loss(logits, torch.tensor([[0, 1]])).backward()
    log_z = 3 + math.log(8)
    assert logits.grad is not None
    assert logits.grad[0, 0].tolist() == pytest.approx([2 * log_z / 8] * 8)
    assert logits.grad[0, 1].eq(0).all()


def entries(artefact: Artefact) -> list[dict[str, Any]]:
    return [entry for entry in read_ledger(artefact.directory / "metrics.jsonl") if "loss" in entry]


def test_the_first_step_has_the_loss_and_the_z_loss_of_its_samples(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**tiny, "tokens": tokens.directory, "z_loss": 0.5, "max_steps": 2, "save_steps": 1, "save_permanent_steps": 1}
    made = run("pretrain", tmp_path / "m", **settings)
    model = AutoModelForCausalLM.from_pretrained(made.directory / "checkpoints" / "checkpoint-1").eval()
    blocks = TokenBlocks(TokenStream(tokens.directory, "train"), 32)
    ids = torch.stack([torch.as_tensor(blocks[index]["input_ids"]) for index in sample_ids(1, 4, len(blocks), seed=0)])
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].double()
    second = entries(made)[1]
    cross_entropy = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert second["loss"] == pytest.approx(cross_entropy.item(), abs=1e-5)
    assert second["z_loss"] == pytest.approx(0.5 * torch.logsumexp(logits, -1).square().mean().item(), rel=1e-5)


def test_micro_batches_do_not_change_it_and_it_trains_but_does_not_validate(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**tiny, "tokens": tokens.directory, "max_steps": 6, "z_loss": 0.1}
    whole, split, without = (
        run("pretrain", tmp_path / name, **{**settings, "global_batch_size": 8, **further})
        for name, further in (
            ("whole", {"per_device_train_batch_size": 8}),
            ("split", {"per_device_train_batch_size": 1}),
            ("without", {"per_device_train_batch_size": 8, "z_loss": 0.0}),
        )
    )
    for key in ("loss", "z_loss"):
        values = [[entry[key] for entry in entries(artefact)] for artefact in (whole, split)]
        assert values[0] == pytest.approx(values[1], abs=1e-4)
    normaliser = [entry["z_loss"] for entry in entries(whole)]
    assert normaliser[-1] < 0.9 * normaliser[0]
    first = entries(whole)[0]["loss"], entries(without)[0]["loss"]
    assert first[0] == pytest.approx(first[1], abs=1e-5), "the logged loss is the cross-entropy alone"
    assert "z_loss" not in entries(without)[0]
    model = AutoModelForCausalLM.from_pretrained(whole.directory).eval()
    stream = TokenStream(tokens.directory, "validation")
    ids = torch.from_numpy(stream.read(0, len(stream)))
    total = 0.0
    for start in range(0, len(ids) - 1, 31):
        block = ids[start : start + 32]
        with torch.no_grad():
            total += float(model(block[None], labels=block[None]).loss) * (len(block) - 1)
    assert whole.manifest.metrics["validation"]["loss"] == pytest.approx(total / (len(ids) - 1), abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"z_loss": -1}, "z_loss: is -1.0, must not be below 0"),
        ({"z_loss": 1e-4, "use_liger_kernel": True}, "z_loss: is computed from the logits"),
    ],
)
def test_settings_that_cannot_work_are_refused(run: Any, tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run("pretrain", tmp_path / "m", tokens=tmp_path, **settings)
