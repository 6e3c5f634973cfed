"""Texts that a model writes while it is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from llmkit.tasks.generation import Decoding, go_on, load, seed_of
from llmkit.training.ledger import read_ledger
from llmkit.training.text_samples import TextSamples, samples_section

if TYPE_CHECKING:
    from llmkit.pipeline.artefact import Artefact

PROMPTS = ["Return the", "今天"]


@pytest.fixture(scope="module")
def with_dropout(tokens: Artefact, tiny: dict[str, Any]) -> dict[str, Any]:
    """A GPT-2 with dropout: a random number that samples took from training would change its weights."""
    overrides = {"n_embd": 32, "n_layer": 2, "n_head": 2}
    more = {"model_type": "gpt2", "config_overrides": overrides, "max_steps": 5, "eval_steps": 2, "seed": 3}
    return {**tiny, **more, "tokens": tokens.directory}


@pytest.fixture(scope="module")
def sampled(run: Any, with_dropout: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return run("pretrain", tmp_path_factory.mktemp("m") / "m", **with_dropout, sample_prompts=PROMPTS, sample_tokens=6)


def test_a_text_for_each_prompt_is_written_at_each_evaluation(sampled: Artefact) -> None:
    entries = read_ledger(sampled.directory / "samples.jsonl")
    assert [(entry["step"], entry["prompt"]) for entry in entries] == [(step, text) for step in (2, 4, 5) for text in PROMPTS]
    assert all(0 < entry["tokens"] <= 6 for entry in entries)
    assert "samples.jsonl" in {record.path for record in sampled.manifest.files}


def test_the_last_texts_are_those_of_the_model_and_stand_in_its_card(sampled: Artefact) -> None:
    model = load(str(sampled.directory))
    last = read_ledger(sampled.directory / "samples.jsonl")[-2:]
    card = (sampled.directory / "README.md").read_text(encoding="utf-8")
    assert "## What it writes\n\nAfter step 5, " in card
    for entry in last:
        made = go_on(*model, entry["prompt"], Decoding(6), seed_of(3, entry["prompt"]))
        assert made.text == entry["text"]
        assert entry["prompt"] in card


@pytest.mark.parametrize("prompts", [None, ["Something else"]], ids=["none", "others"])
def test_they_do_not_change_the_weights(
    run: Any, sampled: Artefact, with_dropout: dict[str, Any], tmp_path: Path, prompts: list[str] | None
) -> None:
    other = run("pretrain", tmp_path / "m", **with_dropout, sample_prompts=prompts)
    assert (other.directory / "model.safetensors").read_bytes() == (sampled.directory / "model.safetensors").read_bytes()
    assert other.manifest.fingerprint == sampled.manifest.fingerprint
    assert (other.directory / "samples.jsonl").exists() == bool(prompts)


def test_a_prompt_that_does_not_fit_ends_no_training(
    run: Any, with_dropout: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run("pretrain", tmp_path / "m", **with_dropout, sample_prompts=["Return the number of items. " * 20])
    assert made.manifest.metrics["steps"] == 5
    said = capsys.readouterr().out
    assert said.count("no samples of text: DataError: the prompt 'Return the number of items.") == 1
    assert not (made.directory / "samples.jsonl").exists()
    assert "What it writes" not in (made.directory / "README.md").read_text(encoding="utf-8")


def test_no_text_ends_its_block_in_a_card() -> None:
    sample = json.loads('{"step": 1000, "prompt": "a", "text": "\\n````\\n# heading\\u001b"}')
    assert samples_section([sample]).endswith("`````text\na\n````\n# heading\\x1b\n`````")
    assert samples_section([sample]).startswith("After step 1,000, ")


def test_a_resumed_run_forgets_what_came_after_its_checkpoint_and_a_torn_line(sampled: Artefact, tmp_path: Path) -> None:
    """Step 4 was evaluated after the checkpoint of step 4 was written, so the run will evaluate it again."""
    path = tmp_path / "samples.jsonl"
    lines = (sampled.directory / "samples.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:4]) + lines[4][:20], encoding="utf-8")
    model, tokenizer = load(str(sampled.directory))
    callback = TextSamples(path, tokenizer, PROMPTS, 6, print, partitioned=False)
    state = TrainerState(global_step=4, log_history=[{"step": 2, "eval_loss": 1.0}, {"step": 4, "loss": 1.0}])
    callback.on_train_begin(TrainingArguments(str(tmp_path), use_cpu=True), state, TrainerControl(), model=model)
    assert path.read_text(encoding="utf-8") == "".join(lines[:2])


def test_partitioned_weights_give_no_texts_and_it_is_said(sampled: Artefact, tmp_path: Path) -> None:
    said: list[str] = []
    model, tokenizer = load(str(sampled.directory))
    callback = TextSamples(tmp_path / "samples.jsonl", tokenizer, PROMPTS, 6, said.append, partitioned=True)
    arguments, state = TrainingArguments(str(tmp_path), use_cpu=True), TrainerState()
    callback.on_train_begin(arguments, state, TrainerControl(), model=model)
    callback.on_evaluate(arguments, state, TrainerControl(), model=model)
    assert said == ["no samples of text on the way: the weights are spread over the processes"]
    assert not (tmp_path / "samples.jsonl").exists()
    assert callback.last() == []
