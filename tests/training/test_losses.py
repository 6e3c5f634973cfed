from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, linear
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    TrainingArguments,
)

from llmkit.errors import ConfigError
from llmkit.pipeline.artefact import Artefact
from llmkit.training.ledger import read_ledger
from llmkit.training.losses import ChunkedLoss, chunked_cross_entropy, set_up_loss

SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def whole_loss(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor) -> torch.Tensor:
    """What the chunks must add up to, in the plain way."""
    return cross_entropy(linear(hidden, weight, bias).float(), labels, reduction="sum")


@settings(deadline=None, max_examples=40)
@given(
    positions=st.integers(1, 40),
    vocabulary=st.integers(2, 70),
    chunk_size=st.integers(1, 50),
    ignored=st.floats(0, 1),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_chunks_give_the_value_and_the_gradients_of_the_whole(
    positions: int, vocabulary: int, chunk_size: int, ignored: float, has_bias: bool, seed: int
) -> None:
    numbers = torch.Generator().manual_seed(seed)
    hidden = torch.randn(positions, 8, generator=numbers)
    weight = torch.randn(vocabulary, 8, generator=numbers)
    bias = torch.randn(vocabulary, generator=numbers) if has_bias else None
    labels = torch.randint(vocabulary, (positions,), generator=numbers)
    labels[torch.rand(positions, generator=numbers) < ignored] = -100
    results = []
    for function in (
        lambda h, w, b: whole_loss(h, w, b, labels) / positions,
        lambda h, w, b: chunked_cross_entropy(h, w, labels, chunk_size, b) / positions,
    ):
        given_tensors = [tensor.clone().requires_grad_() for tensor in (hidden, weight, bias) if tensor is not None]
        loss = function(*given_tensors, *([] if has_bias else [None]))
        loss.backward()
        results.append([loss.detach(), *(tensor.grad for tensor in given_tensors)])
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-6)


def test_a_target_that_is_nearly_certain_keeps_its_gradient_in_bf16() -> None:
    """1 - p is 2e-3 there: with the softmax rounded to bfloat16 before the one is taken from it, it would be 0."""
    hidden, weight = torch.ones(1, 1), torch.tensor([[6.2], [0.0]], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        chunked_cross_entropy(hidden, weight, torch.tensor([0]), 1).backward()
    assert weight.grad is not None
    assert weight.grad[1, 0].item() == pytest.approx(2.0e-3, rel=0.05)


def test_huge_logits_overflow_nothing() -> None:
    hidden, weight = torch.tensor([[300.0]], requires_grad=True), torch.tensor([[1.0], [-1.0]])
    loss = chunked_cross_entropy(hidden, weight, torch.tensor([1]), 1)
    loss.backward()
    assert loss.item() == 600.0
    assert hidden.grad is not None
    assert hidden.grad.item() == 2.0


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL, tie_word_embeddings=True),
        LlamaConfig(**SMALL, tie_word_embeddings=False),
        GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=2, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0),
    ],
    ids=["llama, tied", "llama, untied", "gpt2"],
)
def test_a_model_learns_the_same_from_chunks(config: Any) -> None:
    """Accumulated over two micro-batches, weighted by the number of learned tokens in both, some of them ignored."""
    gradients, losses = [], []
    for chunk_size in (None, 5):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        if chunk_size:
            ChunkedLoss(model, chunk_size)
        ids = torch.randint(97, (4, 12), generator=torch.Generator().manual_seed(1))
        labels = ids.clone()
        labels[0, :7] = -100
        learned = (labels[:, 1:] != -100).sum()
        total = 0.0
        for rows in (slice(0, 1), slice(1, 4)):
            loss = model(input_ids=ids[rows], labels=labels[rows], num_items_in_batch=learned).loss
            loss.backward()
            total += loss.item()
        losses.append(total)
        gradients.append({name: weights.grad for name, weights in model.named_parameters()})
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_without_labels_a_model_gives_its_logits_as_before() -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)).eval()
    ids = torch.arange(10)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        ChunkedLoss(model, 4)
        model(input_ids=ids, labels=ids)
        assert torch.equal(model(input_ids=ids).logits, before)
    generated = model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert generated.shape == (1, 13)


def test_a_model_that_caps_its_logits_is_refused() -> None:
    """As it is initialised, its logits are far below the cap, and nothing shows yet."""
    model = AutoModelForCausalLM.from_config(Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=16), dtype=torch.float32)
    ids = torch.arange(12)[None]
    expected = model(input_ids=ids, labels=ids)
    with pytest.raises(ConfigError, match="loss_chunk_size: gemma2 does more to its logits"):
        ChunkedLoss(model, 4)
    as_it_was = model(input_ids=ids, labels=ids)
    assert torch.equal(as_it_was.loss, expected.loss)
    assert torch.equal(as_it_was.logits, expected.logits)


@pytest.mark.parametrize(
    "config",
    [
        GraniteConfig(**SMALL, num_key_value_heads=2, logits_scaling=3.0),
        MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1, state_size=4),
    ],
    ids=lambda config: config.model_type,
)
def test_architectures_that_are_not_refused_have_their_own_loss(config: Any) -> None:
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    ids = torch.arange(12)[None]
    expected = model(input_ids=ids, labels=ids).loss.item()
    ChunkedLoss(model, 4)
    assert model(input_ids=ids, labels=ids).loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("vocab_size", "chunk_size", "further", "in_chunks"),
    [
        (32_768, None, {}, True),
        (32_767, None, {}, False),
        (32_768, 0, {}, False),
        (97, 8, {}, True),
        (32_768, None, {"label_smoothing_factor": 0.1}, False),
    ],
)
def test_chunks_are_the_default_for_large_vocabularies(
    vocab_size: int, chunk_size: int | None, further: dict[str, Any], in_chunks: bool, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**{**SMALL, "vocab_size": vocab_size}))
    set_up_loss(model, chunk_size, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **further))
    ids = torch.arange(6)[None]
    assert (model(input_ids=ids, labels=ids).logits.shape[-1] == 32) == in_chunks


def test_a_run_in_chunks_has_the_losses_of_one_in_whole(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path
) -> None:
    losses = []
    for chunk_size in (0, 50):
        place = tmp_path / str(chunk_size)
        made = run("pretrain", place, tokens=tokens.directory, max_steps=4, loss_chunk_size=chunk_size, **tiny)
        losses.append([entry["loss"] for entry in read_ledger(made.directory / "metrics.jsonl") if "loss" in entry])
        losses[-1].append(made.manifest.metrics["validation"]["loss"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert AutoModelForCausalLM.from_pretrained(made.directory)(torch.arange(4)[None]).logits.shape == (1, 4, 512)


def test_a_loss_that_cannot_be_in_chunks_is_refused_at_once(run: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    for name, value in (("label_smoothing_factor", 0.1), ("use_liger_kernel", True)):
        with pytest.raises(ConfigError, match=f"loss_chunk_size: {name} needs a loss of its own"):
            run("pretrain", tmp_path / "model", tokens=str(tmp_path), loss_chunk_size=8, **{name: value}, **tiny)
