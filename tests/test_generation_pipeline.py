"""The shipped pipeline `generation`, from text to samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmkit import cli

if TYPE_CHECKING:
    from llmkit.pipeline.artefact import Artefact


@pytest.mark.slow
def test_the_generation_pipeline_ends_with_samples_of_its_own_model(
    corpus: Artefact,
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {
        "preprocess.train_file": corpus.manifest.config["train_file"][0],
        "tokenizer.vocab_size": 512,
        **{f"pretrain.config_overrides.{name}": value for name, value in tiny["config_overrides"].items()},
        "pretrain.block_size": 64,
        "pretrain.max_steps": 3,
        "pretrain.cpu_threads": 1,
        "pretrain.bf16": "false",
        "generate.max_new_tokens": 6,
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    assert cli.main(["run", "generation", *words]) == 0
    result = tmp_path / "runs/generation/generate"
    rows = [json.loads(line) for line in (result / "generations.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == ["Return the", "def ", "The first thing to know about a file is", "今天的天气"]
    assert "next: open runs/generation/generate/generations.jsonl" in capsys.readouterr().out
    assert cli.main(["trace", str(result / "generations.jsonl")]) == 0
    traced = capsys.readouterr().out
    for stage in ("generate", "pretrain", "tokenize", "tokenizer", "preprocess"):
        assert f"{stage} " in traced
    assert cli.main(["run", "generation", *words]) == 0
    assert "running" not in capsys.readouterr().out, "all of it is fresh"
