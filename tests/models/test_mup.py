"""Width transfer: the coordinate check of Yang et al. 2022 (appendix D.1), and that no multiplier is lost by folding it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from llmkit.errors import ConfigError
from llmkit.models.causal import new_causal_model
from llmkit.models.mup import SERVED, apply_mup, lr_multipliers

BASE, HEAD_WIDTH, VOCABULARY = 64, 16, 64


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that share cores with other work wait for each other, many times longer than these models take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(model_type: str, width: int, tied: bool = False, **more: Any) -> Any:
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": width // HEAD_WIDTH,
        "initializer_range": BASE**-0.5,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
    }
    if model_type == "gpt2":
        values |= {"n_positions": 32, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    else:
        values |= {"num_key_value_heads": width // HEAD_WIDTH, "intermediate_size": 2 * width}
    if model_type == "qwen3":
        values |= {"head_dim": HEAD_WIDTH}
    if model_type == "granite":
        values |= {"attention_multiplier": HEAD_WIDTH**-0.5}
    return new_causal_model(CONFIG_MAPPING[model_type](**{**values, **more}), seed=0)


def learn(model: Any, multipliers: dict[str, float], lr: float = 1e-2, steps: int = 4) -> torch.Tensor:
    """A few steps of Adam on one batch; returns it."""
    batch = torch.randint(0, VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(0))
    groups = [{"params": [weight], "lr": lr * multipliers[name]} for name, weight in model.named_parameters()]
    optimizer = torch.optim.Adam(groups, eps=1e-12)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    return batch


def activations(model: Any, batch: torch.Tensor) -> list[float]:
    """Mean absolute value of what each block puts out, first to last."""
    sizes: list[float] = []
    blocks = next(module for module in model.base_model.children() if isinstance(module, torch.nn.ModuleList))

    def note(_: Any, __: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        sizes.append(float(hidden.abs().mean()))

    handles = [block.register_forward_hook(note) for block in blocks]
    with torch.no_grad():
        model(input_ids=batch)
    for handle in handles:
        handle.remove()
    return sizes


def standard(model: Any) -> dict[str, float]:
    return {name: 1.0 for name, _ in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", SERVED)
def test_coordinates_stay_the_same_from_width_64_to_512_and_grow_without_mup(model_type: str, tied: bool) -> None:
    flat, growing = [], []
    for width in (64, 128, 256, 512):
        model = make(model_type, width, tied)
        apply_mup(model, BASE)
        flat.append(activations(model, learn(model, lr_multipliers(model, BASE))))
        model = make(model_type, width, tied)
        growing.append(activations(model, learn(model, standard(model))))
    for sizes in zip(*flat, strict=True):
        assert max(sizes) < 1.35 * min(sizes), sizes
    for sizes in zip(*growing, strict=True):
        assert list(sizes) == sorted(sizes) and sizes[-1] > 5 * sizes[0], sizes


@pytest.mark.parametrize("tied", [False, True])
def test_the_folded_multiplier_learns_what_an_explicit_one_learns(tied: bool) -> None:
    """Granite has a multiplier of the logits, so that both forms can be trained side by side."""
    width, multiplier = 128, 2.0
    folded = make("granite", width, tied)
    apply_mup(folded, BASE)
    explicit = make("granite", width, tied, logits_scaling=multiplier)
    apply_mup(explicit, BASE)
    torch.nn.init.ones_(explicit.model.norm.weight)
    multipliers = lr_multipliers(folded, BASE)
    assert multipliers["model.norm.weight"] == 1 / multiplier
    batch = learn(folded, multipliers)
    learn(explicit, {**multipliers, "model.norm.weight": 1.0})
    with torch.no_grad():
        ours, theirs = (model(input_ids=batch).logits for model in (folded, explicit))
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("model_type", SERVED)
def test_at_the_base_width_nothing_changes(model_type: str) -> None:
    model, plain = make(model_type, BASE), make(model_type, BASE)
    apply_mup(model, BASE)
    assert all(torch.equal(weight, plain.state_dict()[name]) for name, weight in model.state_dict().items())
    assert set(lr_multipliers(model, BASE).values()) == {1.0}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", SERVED)
def test_every_parameter_is_scaled_by_the_rule_of_its_kind(model_type: str, tied: bool) -> None:
    model, plain = make(model_type, 256, tied), make(model_type, 256, tied)
    apply_mup(model, BASE)
    multipliers = lr_multipliers(model, BASE)
    assert multipliers.keys() == dict(model.named_parameters()).keys()
    before = dict(plain.named_parameters())
    for name, weight in model.named_parameters():
        in_block = ".layers." in name or ".h." in name
        last = name.startswith(("model.norm.", "transformer.ln_f."))
        smaller, slower = (1 / 2, 1 / 4) if in_block and weight.ndim == 2 else (1 / 4, 1 / 4) if last else (1.0, 1.0)
        assert torch.allclose(weight, before[name] * smaller), name
        assert multipliers[name] == slower, name


def test_a_saved_model_gives_the_same_in_plain_transformers(tmp_path: Any) -> None:
    model = make("llama", 256, tied=True)
    apply_mup(model, BASE)
    model.save_pretrained(tmp_path)
    batch = torch.arange(32).view(2, 16)
    with torch.no_grad():
        assert torch.equal(model.eval()(batch).logits, AutoModelForCausalLM.from_pretrained(tmp_path).eval()(batch).logits)


def test_an_architecture_without_rules_is_refused() -> None:
    with pytest.raises(ConfigError, match="no rules for mixtral"):
        apply_mup(make("mixtral", 64, num_local_experts=4), BASE)
