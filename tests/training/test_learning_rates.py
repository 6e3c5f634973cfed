"""muP in a run: the seed model, the optimizer's groups and their schedule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers.optimization import get_cosine_schedule_with_warmup

from llmkit.config import Source, resolve
from llmkit.errors import ConfigError
from llmkit.pipeline.artefact import Artefact
from llmkit.training.learning_rates import multiply_learning_rates
from llmkit.training.pretrain import PretrainConfig


def test_groups_are_split_and_every_parameter_is_in_one() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    optimizer = torch.optim.AdamW(
        [{"params": [model[0].weight, model[1].weight]}, {"params": [model[0].bias, model[1].bias], "weight_decay": 0.0}],
        lr=0.1,
    )
    multipliers = {"0.weight": 0.25, "1.weight": 1.0, "0.bias": 1.0, "1.bias": 1.0}
    multiply_learning_rates(optimizer, model, multipliers)
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    assert [rates[id(weight)] for _, weight in model.named_parameters()] == [0.025, 0.1, 0.1, 0.1]
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 2, 1]
    assert optimizer.param_groups[0]["lr"] == 0.1, "what is logged is the learning rate that was set"
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, 10)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    half, also_half, quarter = (group["lr"] for group in optimizer.param_groups)
    assert half == also_half == pytest.approx(0.05) and quarter == pytest.approx(0.0125)


@pytest.mark.slow
def test_a_run_begins_and_learns_as_mup_says(run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path) -> None:
    """The first step of Adam moves every weight by its learning rate, or not at all."""
    given = {**tiny, "learning_rate": 1e-4, "max_steps": 1, "weight_decay": 0.0, "lr_scheduler_type": "constant"}
    given |= {"mup_base_width": 8, "initialisation": "uniform", "warmup_steps": 0.0}
    artefact = run("pretrain", tmp_path / "mup", tokens=tokens.directory, **given)
    weights = load_file(artefact.directory / "model.safetensors")
    assert float(weights["model.layers.1.mlp.down_proj.weight"].abs().max()) <= 0.02 * 3**0.5 / 2 + 1e-4
    assert float(weights["model.embed_tokens.weight"].abs().max()) > 0.02 * 3**0.5 * 0.99
    gain = weights["model.norm.weight"]
    assert float((gain - 0.25).abs().median()) == pytest.approx(1e-4 / 4, rel=0.01)
    other = weights["model.layers.0.input_layernorm.weight"]
    assert float((other - 1).abs().median()) == pytest.approx(1e-4, rel=0.01)
    logged = [json.loads(line) for line in (artefact.directory / "metrics.jsonl").read_text().splitlines()]
    assert next(entry["learning_rate"] for entry in logged if "learning_rate" in entry) == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mup_base_width": 0}, "mup_base_width: is 0"),
        ({"mup_base_width": 64, "optim": "adafactor"}, "its learning rates are those of Adam, and optim is adafactor"),
        ({"model_name_or_path": "m", "depth_scaled": True}, "a model is given, and depth_scaled for a new one"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve(PretrainConfig, [Source(values, {})])
