"""Document masking: the loss of a packed row is that of its documents alone, weighted by their tokens."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, default_data_collator

from llmkit.errors import ConfigError
from llmkit.models.masking import check_document_masking
from llmkit.tokens.samples import PackedDocuments, PackedSamples, TokenBlocks
from llmkit.tokens.shards import Index, ShardWriter, TokenStream

VOCABULARY, BLOCK = 600, 48
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen3": {**LLAMA, "head_dim": 16},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "mistral": {**LLAMA, "sliding_window": 8},
}
MODELS = pytest.mark.parametrize(
    ("attention", "model_type"),
    [
        (attention, model_type)
        for attention in ("sdpa", "eager", "flex_attention")
        for model_type in ARCHITECTURES
        if (attention, model_type) != ("flex_attention", "gpt2")  # which transformers does not give
    ],
)


@pytest.fixture(autouse=True)
def small_and_not_compiled() -> Iterator[None]:
    """On one thread, and flex_attention as PyTorch computes it without compiling."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.compiler.set_stance("force_eager"):
        yield
    torch.set_num_threads(threads)


def model_of(model_type: str, attention: str | None = None, **fields: Any) -> Any:
    """A model of some noise: that of an initialisation says little about what sees what."""
    fields = {**ARCHITECTURES.get(model_type, {}), **fields}
    config = AutoConfig.for_model(model_type, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, **fields)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.normal_(std=weights.shape[-1] ** -0.5, generator=generator)
    return model


@pytest.fixture(scope="module")
def documents() -> list[list[int]]:
    """Documents in which each token has a number of its own; one is longer than a row."""
    sizes = [3, 20, 9, 110, 1, 14, 31, 2, 48, 25, 7, 16, 40, 5]
    ids = np.random.default_rng(0).permutation(VOCABULARY - 1)[: sum(sizes)] + 1
    return [part.tolist() for part in np.split(ids, np.cumsum(sizes)[:-1])]


@pytest.fixture(scope="module")
def stream(documents: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> TokenStream:
    place: Path = tmp_path_factory.mktemp("shards")
    with ShardWriter(place, "train", "uint16", 200) as writer:
        for ids in documents:
            writer.add(ids, 0)
    Index("no tokenizer", 0, VOCABULARY, "uint16", {"train": writer.shards}).save(place)
    return TokenStream(place, "train")


def alone(model: Any, samples: PackedSamples, documents: list[list[int]]) -> torch.Tensor:
    """The loss of what each row holds of each document, computed by itself, as the mean over tokens."""
    number = {token: place for place, ids in enumerate(documents) for token in ids}
    total, count = torch.tensor(0.0), 0
    for index in range(len(samples)):
        held = [token for token in samples[index]["input_ids"].tolist() if token != 0]
        for _, part in groupby(held, number.__getitem__):
            ids = torch.tensor([list(part)])
            if ids.shape[1] > 1:
                total = total + model(input_ids=ids, labels=ids, use_cache=False).loss * (ids.shape[1] - 1)
                count += ids.shape[1] - 1
    return total / count


def packed(model: Any, samples: PackedSamples, without: str = "") -> torch.Tensor:
    """The loss of all rows in one batch, as Trainer computes it."""
    batch = default_data_collator([samples[index] for index in range(len(samples))])
    batch.pop(without, None)
    return model(**batch, use_cache=False).loss


@pytest.mark.parametrize("packing", [TokenBlocks, PackedDocuments])
@MODELS
def test_the_loss_of_packed_rows_is_that_of_their_documents_alone(
    stream: TokenStream, documents: list[list[int]], packing: type[PackedSamples], attention: str, model_type: str
) -> None:
    model = model_of(model_type, attention)
    samples = packing(stream, BLOCK, document_masking=True)
    assert len(samples) > 4
    with torch.no_grad():
        assert float(packed(model, samples)) == pytest.approx(float(alone(model, samples, documents)), abs=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_so_are_the_gradients(stream: TokenStream, documents: list[list[int]], attention: str) -> None:
    model = model_of("llama", attention).train()
    samples = PackedDocuments(stream, BLOCK, document_masking=True)
    gradients = []
    for loss in (packed(model, samples), alone(model, samples, documents)):
        model.zero_grad()
        loss.backward()
        gradients.append(torch.cat([weights.grad.flatten() for weights in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("packing", [TokenBlocks, PackedDocuments])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_without_masking_it_is_not(
    stream: TokenStream, documents: list[list[int]], packing: type[PackedSamples], model_type: str
) -> None:
    model = model_of(model_type)
    samples = packing(stream, BLOCK, document_masking=True)
    across = packed(model, samples, without="position_ids").item()
    assert abs(across - alone(model, samples, documents).item()) > 1e-3


@MODELS
def test_the_check_passes_models_that_mask(attention: str, model_type: str) -> None:
    check_document_masking(model_of(model_type, attention))


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 2}),
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 2}),
        (
            "opt",
            {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
        ),
    ],
)
def test_the_check_refuses_models_that_do_not_and_leaves_random_numbers_alone(model_type: str, fields: dict[str, Any]) -> None:
    model = model_of(model_type, **fields)
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match=f"document_masking: {model_type} with .* does not keep documents apart"):
        check_document_masking(model)
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_of_weights_that_are_zero_is_not_passed_for_that() -> None:
    model = model_of("mamba", hidden_size=32, num_hidden_layers=2)
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_()
    with pytest.raises(ConfigError, match="does not keep documents apart"):
        check_document_masking(model)


def test_flash_attention_is_refused_with_what_to_take_instead() -> None:
    model = model_of("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match="take attn_implementation sdpa or flex_attention"):
        check_document_masking(model)
