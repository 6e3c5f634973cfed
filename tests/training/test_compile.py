from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llmkit.pipeline.artefact import Artefact
from llmkit.training import checkpoints
from llmkit.training.ledger import read_ledger


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("chunk_size", [0, 50])
def test_a_compiled_run_has_the_losses_and_the_checkpoints_of_a_plain_one(
    run: Any,
    tokens: Artefact,
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chunk_size: int,
) -> None:
    compared: list[set[str]] = []
    check_weights = checkpoints.check_weights

    def watched(checkpoint: Path, model: Any) -> None:
        """Weights under other names than in memory would not be compared at all."""
        compared.append(set(load_file(checkpoint / "model.safetensors")) & set(model.state_dict()))
        check_weights(checkpoint, model)

    monkeypatch.setattr(checkpoints, "check_weights", watched)
    settings = {**tiny, "config_overrides": {**tiny["config_overrides"], "num_hidden_layers": 1}, "max_steps": 3}
    settings |= {"tokens": tokens.directory, "save_steps": 2, "save_permanent_steps": 2, "loss_chunk_size": chunk_size}
    plain, compiled = (run("pretrain", tmp_path / str(how), torch_compile=how, **settings) for how in (False, True))
    losses = [
        [entry["loss"] for entry in read_ledger(made.directory / "metrics.jsonl") if "loss" in entry]
        for made in (plain, compiled)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    for place in (compiled.directory, compiled.directory / "checkpoints" / "checkpoint-2"):
        _, problems = AutoModelForCausalLM.from_pretrained(place, output_loading_info=True)
        assert not any(problems.values()), problems
    assert len(compared) == 4
    assert all(names == compared[0] for names in compared)
    assert "model.embed_tokens.weight" in compared[0]
