"""A run sized by one number: what wins over what, where values say they come from, and the plan that `--dry_run` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkit import cli
from llmkit.config import Resolved, parse_arguments, read_settings_file, resolve
from llmkit.errors import ConfigError
from llmkit.pipeline.artefact import Artefact
from llmkit.training.pretrain import PREPARED_VOCABULARY, PretrainConfig


def settings(*words: str) -> Resolved[PretrainConfig]:
    return parse_arguments(PretrainConfig, list(words), "pretrain/quickstart")


def test_a_size_replaces_what_the_recipe_says_of_another_one() -> None:
    resolved = settings("--num_params", "125M")
    assert resolved.config.config_overrides["hidden_size"] > 256
    sized = ("model_type", "config_overrides", "block_size", "global_batch_size", "learning_rate", "max_steps")
    assert {resolved.origins[name] for name in sized} == {"num_params 125M"}
    assert resolved.origins["warmup_steps"] == "default"
    assert "quickstart.yaml" in resolved.origins["eval_steps"], "what has nothing to do with the size stays"
    assert settings("--depth", "6").origins["learning_rate"] == "depth 6"


def test_what_is_set_beside_the_size_wins(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("num_params: 30M\nlearning_rate: 5e-4\nconfig_overrides: {num_key_value_heads: 1}\n", encoding="utf-8")
    resolved = settings("--config", str(file), "--max_steps", "7")
    config = resolved.config
    assert (config.learning_rate, config.max_steps) == (5e-4, 7)
    assert config.config_overrides["num_key_value_heads"] == 1 and config.config_overrides["num_hidden_layers"] > 2
    assert resolved.origins["config_overrides"].startswith("num_params 30M, changed by ")
    assert resolved.origins["learning_rate"].endswith("own.yaml:2")
    assert resolved.origins["global_batch_size"] == "num_params 30M"


def test_the_later_of_two_sizes_counts(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("num_params: 30M\n", encoding="utf-8")
    assert settings("--config", str(file), "--depth", "3").config.config_overrides["num_hidden_layers"] == 3
    with pytest.raises(ConfigError, match="num_params: the size is given, and depth"):
        settings("--num_params", "30M", "--depth", "3")


def test_what_a_run_writes_down_gives_it_again(tmp_path: Path) -> None:
    first = settings("--num_params", "30M", "--config_overrides.num_key_value_heads", "1")
    file = tmp_path / "llmkit.yaml"
    file.write_text(first.to_yaml("a run"), encoding="utf-8")
    again = resolve(PretrainConfig, read_settings_file(file))
    assert first.config.config_overrides["hidden_size"] != 256, "the recipe's, for a model of another size"
    assert again.config == first.config
    assert again.origins["config_overrides"] == first.origins["config_overrides"]


def test_the_vocabulary_is_that_of_the_token_shards(tokens: Artefact) -> None:
    assumed, known = settings("--num_params", "5M"), settings("--num_params", "5M", "--tokens", str(tokens.directory))
    assert known.config.config_overrides["hidden_size"] >= assumed.config.config_overrides["hidden_size"]
    with pytest.raises(ConfigError, match=r"the vocabulary is not known before the token shards are made"):
        settings("--num_params", "5M", "--tokens", "not-there-yet")
    assert settings("--num_params", "5M", "--tokens", "not-there-yet", "--config_overrides", "vocab_size=512").config.max_steps


def test_the_assumed_vocabulary_is_that_of_the_tokenizer_that_would_be_made() -> None:
    from llmkit.pipeline import runner
    from llmkit.stages import STAGES

    sources = runner.load("base-model", STAGES).step("tokenizer").sources
    assert [source.values["vocab_size"] for source in sources if "vocab_size" in source.values] == [PREPARED_VOCABULARY]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--num_params", "much"], "num_params: 'much' is no size"),
        (["--num_params", "10k"], "num_params: 10,000 parameters are too few"),
        (["--depth", "0"], "depth: is 0, must be between 1 and 200"),
        (["--num_params", "5M", "--model_type", "qwen3"], "model_type: num_params and depth give a llama, not qwen3"),
        (["--num_params", "5M", "--model_name_or_path", "m"], "a model is given, and num_params for a new one"),
    ],
)
def test_a_size_that_means_nothing_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings(*words)


def test_a_dry_run_says_what_and_why_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["pretrain", "--num_params", "125M", "--learning_rate", "1e-3", "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "  1. vocabulary 8,192 (assumed" in said and "  12. steps " in said
    assert "learning_rate: 0.001  # from command line" in said
    assert "max_steps: " in said and "# from num_params 125M" in said
    parameters = settings("--num_params", "125M")
    assert f"steps: {parameters.config.max_steps:,} of {parameters.config.global_batch_size:,} samples" in said
    assert "model: 123,878,976 parameters: embedding" in said
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_given_settings_counts_the_data(
    tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--tokens", str(tokens.directory), "--max_steps", "10", "--model_type", "gpt2"]
    words += ["--config_overrides", "n_embd=32,n_layer=2,n_head=2", "--block_size", "32"]
    assert cli.main(["pretrain", *words, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "sizes, and why" not in said
    assert "the token shards have" in said and "steps: 10 of 16 samples of 32 tokens" in said
    assert list(tmp_path.iterdir()) == []


def test_a_stage_without_a_plan_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tokenizer", "--corpus", "c", "--dry_run"]) == 2
    assert "--dry_run: tokenizer has no plan to show" in capsys.readouterr().err
