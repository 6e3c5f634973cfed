from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from llmkit.errors import ArtefactError, ConfigError, DataError, LLMKitError
from llmkit.pipeline.artefact import Artefact
from llmkit.tokens.shards import TokenStream
from llmkit.training.ledger import read_ledger

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def train_losses(artefact: Artefact) -> list[float]:
    return [entry["loss"] for entry in read_ledger(artefact.directory / "metrics.jsonl") if "loss" in entry]


def loss_by_hand(artefact: Artefact, tokens: Artefact, block_size: int) -> float:
    """Mean loss over all validation tokens but the first, each predicted from what its block shows before it."""
    model = AutoModelForCausalLM.from_pretrained(artefact.directory, dtype="float32").eval()
    stream = TokenStream(tokens.directory, "validation")
    everything = torch.from_numpy(stream.read(0, len(stream)))
    total, count = 0.0, 0
    for start in range(0, len(everything) - 1, block_size - 1):
        block = everything[start : start + block_size]
        with torch.no_grad():
            logits = model(block[None]).logits[0, :-1].double()
        total += float(torch.nn.functional.cross_entropy(logits, block[1:], reduction="sum"))
        count += len(block) - 1
    assert count == len(everything) - 1
    return total / count


def test_the_result_generates_text_with_plain_transformers(base_model: Artefact) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_model.directory)
    assert model.config.model_type == "llama"
    assert model.config.use_cache, "generation is slow without"
    assert model.generation_config.eos_token_id == model.config.eos_token_id
    generate = pipeline("text-generation", model=str(base_model.directory))
    text = generate("Return the", max_new_tokens=5)[0]["generated_text"]
    assert text.startswith("Return the")
    assert len(text) > len("Return the")


def test_the_result_holds_no_pickles_and_nothing_that_only_a_resume_needs(base_model: Artefact) -> None:
    files = {path.relative_to(base_model.directory).as_posix() for path in base_model.directory.rglob("*")}
    assert not [name for name in files if name.endswith(PICKLES)]
    assert not [name for name in files if "checkpoint" in name or "seed-model" in name or name.startswith(".")]
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "README.md"} <= files


def test_the_manifest_counts_what_was_learned(base_model: Artefact, tokens: Artefact) -> None:
    metrics = base_model.manifest.metrics
    assert metrics["steps"] == 30
    assert metrics["samples_per_step"] == 4
    targets = tokens.manifest.metrics["train"]["tokens"] - 1
    samples = math.ceil(targets / 31)
    assert metrics["epochs"] == pytest.approx(30 * 4 / samples)
    assert metrics["tokens_learned"] == round(30 * 4 / samples * targets)
    model = AutoModelForCausalLM.from_pretrained(base_model.directory)
    assert metrics["parameters"]["total"] == sum(weights.numel() for weights in model.parameters())


def test_training_learns(base_model: Artefact) -> None:
    losses = train_losses(base_model)
    assert len(losses) == 30
    assert losses[0] == pytest.approx(math.log(512), abs=0.1)
    assert sum(losses[-5:]) / 5 < losses[0] - 0.5


def test_the_validation_loss_is_the_mean_over_tokens(base_model: Artefact, tokens: Artefact) -> None:
    held = tokens.manifest.metrics["validation"]["tokens"]
    assert (held - 1) % 31, "the last block must be partial, or this test proves less than it says"
    expected = loss_by_hand(base_model, tokens, 32)
    validation = base_model.manifest.metrics["validation"]
    assert validation["loss"] == pytest.approx(expected, abs=1e-5)
    assert validation["tokens"] == held - 1
    assert validation["perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    in_bytes = tokens.manifest.metrics["validation"]["bytes"]
    assert validation["bits_per_byte"] == pytest.approx(expected * (held - 1) / math.log(2) / in_bytes, rel=1e-5)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_batch_size_of_evaluation_does_not_move_the_validation_loss(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, batch: int
) -> None:
    made = run("pretrain", tmp_path / "m", tokens=tokens.directory, max_steps=2, per_device_eval_batch_size=batch, **tiny)
    assert made.manifest.metrics["validation"]["loss"] == pytest.approx(loss_by_hand(made, tokens, 32), abs=1e-5)


def test_the_same_settings_give_the_same_bytes_and_another_seed_gives_others(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path
) -> None:
    one, same, other = (
        run("pretrain", tmp_path / name, tokens=tokens.directory, max_steps=3, seed=seed, **tiny)
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    weights = [(item.directory / "model.safetensors").read_bytes() for item in (one, same, other)]
    assert weights[0] == weights[1] != weights[2]
    assert one.manifest.digest == same.manifest.digest, "what a later stage takes for new"
    assert one.manifest.fingerprint == same.manifest.fingerprint != other.manifest.fingerprint


def test_the_split_into_micro_batches_does_not_change_the_losses(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**tiny, "tokens": tokens.directory, "max_steps": 6}
    whole = run("pretrain", tmp_path / "whole", **{**settings, "per_device_train_batch_size": 8})
    split = run(
        "pretrain", tmp_path / "split", **{**settings, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    )
    assert train_losses(split) == pytest.approx(train_losses(whole), abs=1e-4)


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2}),
        ("qwen3", {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                   "num_key_value_heads": 1, "head_dim": 16}),
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
        ("mixtral", {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                     "num_key_value_heads": 2, "num_local_experts": 4}),
    ],
)  # fmt: skip
def test_other_architectures_train_and_load(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, model_type: str, overrides: dict[str, Any]
) -> None:
    settings = {**tiny, "config_overrides": overrides, "model_type": model_type, "max_steps": 8}
    made = run("pretrain", tmp_path / "model", tokens=tokens.directory, **settings)
    losses = train_losses(made)
    assert losses[-1] < losses[0]
    model = AutoModelForCausalLM.from_pretrained(made.directory)
    assert model.config.model_type == model_type
    assert made.manifest.metrics["validation"]["loss"] == pytest.approx(loss_by_hand(made, tokens, 32), abs=1e-5)


def test_training_goes_on_from_a_pretrained_model(
    run: Any, base_model: Artefact, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path
) -> None:
    settings = {key: value for key, value in tiny.items() if key != "config_overrides"}
    further = run(
        "pretrain",
        tmp_path / "further",
        tokens=tokens.directory,
        model_name_or_path=base_model.directory,
        max_steps=3,
        **{**settings, "learning_rate": 1e-3},
    )
    assert train_losses(further)[0] < train_losses(base_model)[0] - 0.4
    assert further.manifest.inputs["model_name_or_path"].fingerprint == base_model.manifest.fingerprint


def test_going_on_tells_the_architecture_that_it_goes_on_with(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpt2 = {**tiny, "model_type": "gpt2", "config_overrides": {"n_embd": 32, "n_layer": 1, "n_head": 2}}
    first = run("pretrain", tmp_path / "first", tokens=tokens.directory, max_steps=1, **gpt2)
    settings = {key: value for key, value in tiny.items() if key != "config_overrides"}
    onward = {"tokens": tokens.directory, "model_name_or_path": first.directory, "max_steps": 1}
    second = run("pretrain", tmp_path / "second", **onward, **settings)
    card = (second.directory / "README.md").read_text()
    assert "gpt2" in card
    assert "llama" not in card
    with pytest.raises(ConfigError, match="block_size: 64 is more than the model's n_positions of 32"):
        run("pretrain", tmp_path / "third", **onward, **{**settings, "block_size": 64})


def test_going_on_with_another_tokenizer_is_refused(
    run: Any, base_model: Artefact, corpus: Artefact, tiny: dict[str, Any], tmp_path: Path
) -> None:
    other = run("tokenizer", tmp_path / "tokenizer", corpus=corpus.directory, vocab_size=300)
    shards = run("tokenize", tmp_path / "tokens", corpus=corpus.directory, tokenizer=other.directory)
    settings = {**tiny, "tokens": shards.directory, "model_name_or_path": base_model.directory, "max_steps": 1}
    del settings["config_overrides"]
    with pytest.raises(ArtefactError, match="was written with another tokenizer"):
        run("pretrain", tmp_path / "m", **settings)


@pytest.fixture(scope="module")
def one_document(run: Any, make_corpus: Any, tokenizer: Artefact, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    place = tmp_path_factory.mktemp("one")
    made = make_corpus(place, ["The only document there is. " * 20])
    return run("tokenize", place / "tokens", corpus=made.directory, tokenizer=tokenizer.directory)


def test_a_corpus_of_one_document_trains_without_validation(
    run: Any, one_document: Artefact, tiny: dict[str, Any], tmp_path: Path
) -> None:
    made = run("pretrain", tmp_path / "model", tokens=one_document.directory, max_steps=4, **tiny)
    assert "validation" not in made.manifest.metrics
    assert len(train_losses(made)) == 4
    assert "No validation text was held out" in (made.directory / "README.md").read_text()


def test_a_corpus_too_small_for_one_sample_is_refused(
    run: Any, one_document: Artefact, tiny: dict[str, Any], tmp_path: Path
) -> None:
    there = one_document.manifest.metrics["train"]["tokens"]
    with pytest.raises(DataError, match=rf"the corpus has {there} training tokens, fewer than one sample of 4096"):
        run("pretrain", tmp_path / "model", tokens=one_document.directory, max_steps=1, **{**tiny, "block_size": 4096})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_type": "lama"}, "no causal language model 'lama'.*llama"),
        ({"config_overrides": {"hiden_size": 32}}, "did you mean 'hidden_size'"),
        ({"config_overrides": {"hidden_size": 30, "num_attention_heads": 4}}, "30.*is not a multiple"),
        ({"config_overrides": {"max_position_embeddings": 16}}, "block_size: 32 is more than"),
        ({"lr_scheduler_type": "cosin"}, "cosin"),
        ({"optim": "adamm"}, "adamm"),
        ({"attn_implementation": "flash"}, "attn_implementation"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_training(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(LLMKitError, match=said):
        run("pretrain", tmp_path / "model", tokens=tokens.directory, max_steps=1, **{**tiny, **settings})
    assert not (tmp_path / "model").exists()


def test_the_tokenizer_of_the_model_is_the_one_of_the_shards(base_model: Artefact, tokenizer: Artefact) -> None:
    one, two = AutoTokenizer.from_pretrained(base_model.directory), AutoTokenizer.from_pretrained(tokenizer.directory)
    assert one.get_vocab() == two.get_vocab()
    assert one.encode("Return 今天 <|endoftext|>") == two.encode("Return 今天 <|endoftext|>")


def test_every_line_of_the_ledger_is_json_with_a_step(base_model: Artefact) -> None:
    lines = (base_model.directory / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["step"] for entry in entries] == sorted(entry["step"] for entry in entries)
    assert any("eval_loss" in entry for entry in entries), "the end is always evaluated"


def tensorboard_events(path: Path) -> Iterator[Any]:
    """The events of a TensorBoard file: each has 8 bytes of length, 4 of checksum, its own, and 4 of checksum."""
    from tensorboardX.proto.event_pb2 import Event

    content = path.read_bytes()
    while content:
        end = 12 + int.from_bytes(content[:8], "little")
        yield Event.FromString(content[12:end])
        content = content[end + 4 :]


def test_a_tracker_gets_what_the_ledger_has_and_the_result_is_the_same(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    settings = {**tiny, "tokens": tokens.directory, "max_steps": 5}
    tracked = run("pretrain", tmp_path / "tracked", **settings, report_to="tensorboard")
    found: dict[tuple[str, int], float] = {}
    for path in (tracked.directory / "runs").rglob("events.out.*"):
        for event in tensorboard_events(path):
            found.update({(value.tag, event.step): value.simple_value for value in event.summary.value})
    entries = [entry for entry in read_ledger(tracked.directory / "metrics.jsonl") if "loss" in entry]
    assert len(entries) == 5
    for entry in entries:
        for name in {"loss", "grad_norm", "learning_rate", "tokens", "tokens_per_second", "mfu"} & entry.keys():
            assert found[f"train/{name}", entry["step"]] == pytest.approx(entry[name], rel=1e-6)
    assert ("train/mfu", 5) in found
    assert run("pretrain", tmp_path / "alone", **settings).manifest.digest == tracked.manifest.digest


@pytest.mark.parametrize(
    ("tracker", "said"), [("wandb", "report_to: WandbCallback requires"), ("tensorbord", "report_to: tensorbord is not")]
)
def test_a_tracker_that_cannot_be_had_is_refused(
    tracker: str, said: str, run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        run("pretrain", tmp_path / "m", tokens=tokens.directory, max_steps=2, report_to=tracker, **tiny)
