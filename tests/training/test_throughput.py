"""Rates and operations: what is counted, and what is left out."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from llmkit.pipeline.artefact import Artefact
from llmkit.training.ledger import read_ledger
from llmkit.training.throughput import Throughput, flops_per_token, matrix_parameters, measured_peak, peak_memory

LENGTH = 64


@pytest.mark.parametrize(
    "overrides",
    [
        {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True},
        {"model_type": "llama", "tie_word_embeddings": False},
        {"model_type": "gpt2", "n_positions": LENGTH},
    ],
)
def test_the_formula_counts_what_torch_counts(overrides: dict[str, Any]) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 256}
    if overrides["model_type"] == "gpt2":
        sizes = {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 256}
    config = AutoConfig.for_model(**overrides, **sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    ids = torch.randint(0, 256, (2, LENGTH))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    ours = flops_per_token(matrix_parameters(model), config, LENGTH) * ids.numel()
    # Norms, biases and GPT-2's table of positions are parameters but no matrix products: a small part of a small model.
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_of_experts_only_the_chosen_ones_count() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
    counts = {}
    for chosen in (1, 2, 4):
        config = AutoConfig.for_model(
            "mixtral", **sizes, num_local_experts=4, num_experts_per_tok=chosen, num_key_value_heads=2
        )
        counts[chosen] = matrix_parameters(AutoModelForCausalLM.from_config(config))
    expert = 3 * 32 * 64
    assert counts[2] - counts[1] == expert
    assert counts[4] - counts[2] == 2 * expert


def test_a_peak_is_measured_and_memory_is_known() -> None:
    device = torch.device("cpu")
    assert measured_peak(device, torch.float32) > 1e8
    assert peak_memory(device) > 1 << 20


def test_evaluations_and_checkpoints_are_no_training() -> None:
    rates = Throughput(items_per_step=100, items="tokens", flops_per_item=7.0, peak=1e6)
    args: Any = SimpleNamespace(device=torch.device("cpu"))
    rates.on_train_begin(args, SimpleNamespace(global_step=10), None)  # type: ignore[arg-type]
    assert rates.measure(12) == {}, "the first two steps warm up"
    rates.on_step_end(args, SimpleNamespace(global_step=12), None)  # type: ignore[arg-type]
    with rates.waiting():
        time.sleep(0.02)
    with rates.apart():
        time.sleep(5)
    measured = rates.measure(22)
    assert measured["tokens_per_second"] > 1000 / 4, "the five seconds do not count"
    assert 0 < measured["data_wait"] <= 1
    assert measured["mfu"] == pytest.approx(measured["tokens_per_second"] * 7 / 1e6)
    assert rates.described()["steps_measured"] == 10
    assert rates.described()["flops_per_token"] == 7
    left = rates.seconds_left(20)
    assert left is not None
    assert left == pytest.approx(2 * 1000 / measured["tokens_per_second"])


def test_the_ledger_has_rates_with_what_they_mean(base_model: Artefact) -> None:
    throughput = base_model.manifest.metrics["throughput"]
    assert throughput["steps_measured"] == 28
    assert "12 x layers" in throughput["formula"]
    assert "not halved" in throughput["convention"]
    assert throughput["peak"].startswith("measured")
    last = [entry for entry in read_ledger(base_model.directory / "metrics.jsonl") if "loss" in entry][-1]
    assert last["tokens"] == 30 * 4 * 31
    assert {"tokens_per_second", "flops_per_second", "mfu", "data_wait", "peak_memory_bytes", "data_chain"} <= set(last)
