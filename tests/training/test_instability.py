"""Updates without a finite gradient are not made, and a run that makes none any more ends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmkit.pipeline.artefact import Artefact
from llmkit.training.instability import Diverged, UpdateGuard
from llmkit.training.ledger import read_ledger
from llmkit.training.trainer import LLMKitTrainer

SINGLE = SimpleNamespace(scaler=None, distributed_type="NO")


@pytest.mark.parametrize("fused", [True, False])
def test_a_gradient_that_is_no_number_leaves_weights_and_moments_as_they_are(fused: bool) -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 4))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5, fused=fused)
    guard = UpdateGuard(limit=2)
    for grad in (1.0, float("nan"), float("inf"), 1.0):
        before, moments = weight.detach().clone(), repr(optimizer.state_dict()["state"])
        weight.grad = torch.full((4, 4), grad)
        guard.check(weight.grad.norm(), optimizer, SINGLE)
        optimizer.step()
        finite = grad == 1.0
        assert torch.equal(weight, before) == (not finite)
        assert (repr(optimizer.state_dict()["state"]) == moments) == (not finite)
    assert guard.facts() == {"skipped_steps": 2}
    guard.stop_if_stuck(4)  # the last one was made


def test_skipped_updates_are_in_the_ledger_and_too_many_in_a_row_end_the_run(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = LLMKitTrainer.training_step
    poisoned: set[int] = {2, 3}

    def training_step(trainer: Any, model: Any, *arguments: Any, **options: Any) -> Any:
        loss = step(trainer, model, *arguments, **options)
        if trainer.state.global_step in poisoned:
            next(model.parameters()).grad[0, 0] = float("nan")
        return loss

    monkeypatch.setattr(LLMKitTrainer, "training_step", training_step)
    settings = {**tiny, "tokens": tokens.directory, "max_steps": 8, "max_skipped_steps": 3}
    made = run("pretrain", tmp_path / "m", **settings)
    entries = [entry for entry in read_ledger(made.directory / "metrics.jsonl") if "loss" in entry]
    assert [entry.get("skipped_steps", 0) for entry in entries] == [0, 0, 1, 2, 2, 2, 2, 2]
    assert entries[-1]["loss"] < entries[0]["loss"]
    poisoned.add(4)
    with pytest.raises(Diverged, match="the last 3 updates up to step 5 were skipped"):
        run("pretrain", tmp_path / "n", **settings)
