from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.config import Source, resolve
from llmkit.errors import ConfigError
from llmkit.pipeline.artefact import Artefact
from llmkit.training import hardware
from llmkit.training.hardware import precision
from llmkit.training.pretrain import PretrainConfig


def config(**settings: Any) -> PretrainConfig:
    return resolve(PretrainConfig, [Source({**settings, "use_cpu": True}, {})]).config


@pytest.mark.parametrize(("bf16", "amx", "expected"), [(True, False, True), (False, True, True), (False, False, False)])
def test_a_cpu_computes_in_bf16_where_it_has_it_and_in_fp32_elsewhere(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, amx: bool, expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert precision(config(), None) == {"bf16": expected, "fp16": False}


@pytest.mark.parametrize(
    ("settings", "layout", "bf16"),
    [
        ({"bf16": True}, None, True),
        ({"bf16": True}, "bf16", True),
        ({"bf16": True}, "no", True),
        ({"bf16": False}, None, False),
        ({"bf16": False}, "no", False),
        ({}, "bf16", True),
    ],
)
def test_what_is_asked_wins_over_what_the_hardware_has(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], layout: str | None, bf16: bool
) -> None:
    monkeypatch.setattr(hardware, "has_fast_bf16", lambda cpu: not bf16)
    assert precision(config(**settings), layout) == {"bf16": bf16, "fp16": False}


@pytest.mark.parametrize(
    ("settings", "layout"), [({"bf16": True}, "fp16"), ({"fp16": True}, "bf16"), ({"bf16": False}, "bf16")]
)
def test_two_places_that_ask_for_different_precisions_are_refused(settings: dict[str, Any], layout: str) -> None:
    with pytest.raises(ConfigError, match=f"the accelerate config for '{layout}'; set it in one place"):
        precision(config(**settings), layout)


def test_fp8_is_what_the_layout_says_and_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="fp8: FP8 training needs a GPU"):
        precision(config(), "fp8")
    monkeypatch.setattr(hardware, "on_cpu", lambda _: False)
    assert precision(config(), "fp8") == {"bf16": False, "fp16": False}, "accelerate takes what its config says"
    with pytest.raises(ConfigError, match="ask for 'bf16', the accelerate config for 'fp8'"):
        precision(config(bf16=True), "fp8")


@pytest.mark.parametrize(("settings", "layout"), [({"fp16": True}, None), ({}, "fp16"), ({"fp16": True}, "fp16")])
def test_float16_on_a_cpu_is_refused_with_what_to_do(settings: dict[str, Any], layout: str | None) -> None:
    with pytest.raises(ConfigError, match="float16 training needs a GPU; on a CPU use bf16"):
        precision(config(**settings), layout)


def test_both_precisions_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match="either bf16 or fp16"):
        config(bf16=True, fp16=True)


@pytest.mark.parametrize("wanted", [True, False])
def test_the_run_computes_in_the_precision_that_its_manifest_names(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    seen = set()
    forward = LlamaMLP.forward

    def watched(self: Any, x: torch.Tensor) -> torch.Tensor:
        result = forward(self, x)
        seen.add(result.dtype)
        return result

    monkeypatch.setattr(LlamaMLP, "forward", watched)
    monkeypatch.setattr(hardware, "has_fast_bf16", lambda cpu: wanted)
    settings = {**tiny, "bf16": None, "use_cpu": True}
    made = run("pretrain", tmp_path / "model", tokens=tokens.directory, max_steps=1, **settings)
    assert made.manifest.metrics["precision"] == ("bf16" if wanted else "fp32")
    assert seen == {torch.bfloat16 if wanted else torch.float32}


def test_weights_are_saved_in_float32_whatever_they_were_computed_in(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    made = run("pretrain", tmp_path / "model", tokens=tokens.directory, max_steps=1, **{**tiny, "bf16": True})
    assert {tensor.dtype for tensor in load_file(made.directory / "model.safetensors").values()} == {torch.float32}


def test_a_precision_asked_for_in_one_run_does_not_linger_in_the_next(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path
) -> None:
    names = []
    for number, bf16 in enumerate((True, False, True)):
        made = run("pretrain", tmp_path / str(number), tokens=tokens.directory, max_steps=1, **{**tiny, "bf16": bf16})
        names.append(made.manifest.metrics["precision"])
    assert names == ["bf16", "fp32", "bf16"]
