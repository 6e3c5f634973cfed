"""Which optimizer owns which parameter, and Muon: its arithmetic, its state, its resume."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmkit.errors import ConfigError
from llmkit.pipeline.artefact import Artefact
from llmkit.training.instability import Step, UpdateGuard
from llmkit.training.ledger import read_ledger
from llmkit.training.optimizers import Muon, Owner, hidden_matrices, owners
from llmkit.training.trainer import LLMKitTrainer

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 2}
MAMBA = {"hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[LLMKitTrainer]:
    """The trainers of the runs that a test makes, with the optimizer before it is wrapped."""
    made: list[LLMKitTrainer] = []
    create = LLMKitTrainer.create_optimizer

    def create_optimizer(trainer: LLMKitTrainer, model: Any = None) -> Any:
        made.append(trainer)
        return create(trainer, model)

    monkeypatch.setattr(LLMKitTrainer, "create_optimizer", create_optimizer)
    return made


def owned(trainer: LLMKitTrainer) -> dict[str, Owner]:
    """The owners, with it proved that each parameter has exactly one."""
    inner = trainer.optimizer.optimizer
    held = [id(parameter) for group in inner.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in trainer.model.parameters())
    found = owners(trainer.model, inner)
    assert found.keys() == {name for name, _ in trainer.model.named_parameters()}
    return found


M, A, a = Owner("Muon", True), Owner("AdamW", True), Owner("AdamW", False)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("model_type", "overrides", "expected"),
    [
        ("llama", LLAMA, {
            "model.embed_tokens.weight": A,
            **{f"model.layers.0.self_attn.{part}_proj.weight": M for part in "qkvo"},
            **{f"model.layers.0.mlp.{part}_proj.weight": M for part in ("gate", "up", "down")},
            "model.layers.0.input_layernorm.weight": a,
            "model.layers.0.post_attention_layernorm.weight": a,
            "model.norm.weight": a,
            "lm_head.weight": A,
        }),
        ("gpt2", GPT2, {
            "transformer.wte.weight": A,
            "transformer.wpe.weight": A,
            **{f"transformer.h.0.{part}.weight": M for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")},
            **{f"transformer.h.0.{part}.bias": a for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")},
            **{f"transformer.{part}.{kind}": a for part in ("h.0.ln_1", "h.0.ln_2", "ln_f") for kind in ("weight", "bias")},
            "lm_head.weight": A,
        }),
    ],
)  # fmt: skip
@pytest.mark.parametrize("optim", ["muon", "adamw_torch_fused"])
def test_every_parameter_has_one_owner_and_only_matrices_decay(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    trainers: list[LLMKitTrainer], model_type: str, overrides: dict[str, Any], expected: dict[str, Owner], tied: bool,
    optim: str,
) -> None:  # fmt: skip
    settings = {**tiny, "model_type": model_type, "config_overrides": {**overrides, "tie_word_embeddings": tied}}
    made = run("pretrain", tmp_path / "m", tokens=tokens.directory, max_steps=1, optim=optim, **settings)
    wanted = {name: owner for name, owner in expected.items() if not (tied and name == "lm_head.weight")}
    if optim != "muon":
        wanted = {name: Owner("AdamW", owner.decayed) for name, owner in wanted.items()}
    assert owned(trainers[0]) == wanted
    said = made.manifest.metrics["optimizer"]
    assert sum(count["tensors"] for count in said.values()) == len(wanted)
    assert sum(count["parameters"] for count in said.values()) == made.manifest.metrics["parameters"]["total"]
    count = said["AdamW without weight decay"]
    line = f"AdamW without weight decay: {count['tensors']} tensors, {count['parameters']:,} parameters"
    assert line in capsys.readouterr().out


def test_the_rates_of_mamba_and_its_vectors_have_no_decay(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, trainers: list[LLMKitTrainer]
) -> None:
    settings = {**tiny, "model_type": "mamba", "config_overrides": MAMBA, "optim": "muon"}
    run("pretrain", tmp_path / "m", tokens=tokens.directory, max_steps=1, **settings)
    found = owned(trainers[0])
    for name, owner in {"A_log": a, "D": a, "conv1d.weight": A, "in_proj.weight": M, "out_proj.weight": M}.items():
        assert found[f"backbone.layers.0.mixer.{name}"] == owner


def small() -> tuple[torch.nn.Parameter, torch.nn.Parameter, torch.nn.Parameter, Muon]:
    torch.manual_seed(0)
    matrix, table, vector = (torch.nn.Parameter(torch.randn(*shape)) for shape in ((6, 4), (8, 4), (4,)))
    others = [{"params": [table], "weight_decay": 0.1}, {"params": [vector], "weight_decay": 0.0}]
    return matrix, table, vector, Muon([matrix], others, lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)


def test_an_update_is_orthogonal_and_of_the_size_of_adamws() -> None:
    matrix, table, vector, optimizer = small()
    before, grad = matrix.detach().clone(), torch.randn(6, 4)
    for parameter in (matrix, table, vector):
        parameter.grad = grad.clone() if parameter is matrix else torch.randn_like(parameter)
    optimizer.step()
    update = (before * (1 - 0.01 * 0.1) - matrix.detach()) / 0.01
    scale = 0.2 * 6**0.5
    singular = torch.linalg.svdvals(update / scale)
    assert all(0.5 < value < 1.5 for value in singular.tolist()), "Newton-Schulz brings them near 1"
    left, _, right = torch.linalg.svd(grad, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(update.flatten(), (left @ right).flatten(), dim=0) > 0.97
    assert update.square().mean().sqrt() == pytest.approx(0.2, rel=0.4), "AdamW's updates are of 0.2 to 0.4 (Liu et al. 2025)"


def test_the_two_optimizers_share_groups_and_state_also_after_loading() -> None:
    matrix, table, vector, optimizer = small()
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)  # halves the rate of all groups
    grads = [torch.randn_like(parameter) for parameter in (matrix, table, vector)]

    def step(parameters: list[torch.nn.Parameter], opt: Muon) -> None:
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad.clone()
        opt.step()

    step([matrix, table, vector], optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    twins = [torch.nn.Parameter(parameter.detach().clone()) for parameter in (matrix, table, vector)]
    other = Muon(
        twins[:1],
        [{"params": [twins[1]], "weight_decay": 0.1}, {"params": [twins[2]], "weight_decay": 0.0}],
        lr=9.0, weight_decay=0.9, betas=(0.1, 0.1), eps=1.0,
    )  # fmt: skip
    other.load_state_dict(saved)
    step([matrix, table, vector], optimizer)
    step(twins, other)
    assert all(torch.equal(one, two) for one, two in zip((matrix, table, vector), twins, strict=True))
    assert repr(other.state_dict()) == repr(optimizer.state_dict())
    assert [group["lr"] for group in other.param_groups] == [0.005] * 3


def test_a_gradient_that_is_no_number_leaves_muons_weights_and_state_as_they_are() -> None:
    matrix, table, vector, optimizer = small()
    guard = UpdateGuard(limit=3)
    single = SimpleNamespace(scaler=None, distributed_type="NO")
    for bad in (False, True, False):
        for parameter in (matrix, table, vector):
            parameter.grad = torch.randn_like(parameter)
        if bad:
            table.grad[0, 0] = float("nan")  # type: ignore[index]
        before = [parameter.detach().clone() for parameter in (matrix, table, vector)], repr(optimizer.state_dict())
        norm = torch.stack([parameter.grad.norm() for parameter in (matrix, table, vector)]).norm()  # type: ignore[union-attr]
        guard.check(Step(1, torch.ones(1), norm), optimizer, single)
        optimizer.step()
        moved = [not torch.equal(old, new) for old, new in zip(before[0], (matrix, table, vector), strict=True)]
        assert moved == [not bad] * 3
        assert (repr(optimizer.state_dict()) == before[1]) == bad


def test_a_resumed_run_with_muon_is_bit_identical(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmkit.training import checkpoints

    settings = {**tiny, "tokens": tokens.directory, "optim": "muon", "lr_scheduler_type": "wsd", "warmup_steps": 2}
    settings.update(max_steps=8, save_steps=4, save_permanent_steps=4, eval_steps=4)
    whole = run("pretrain", tmp_path / "whole", **settings)
    first = whole.directory / "checkpoints" / "checkpoint-4"
    resumed = run("pretrain", tmp_path / "resumed", **settings, resume=str(first))
    assert (resumed.directory / "model.safetensors").read_bytes() == (whole.directory / "model.safetensors").read_bytes()
    last = [artefact.directory / "checkpoints" / "checkpoint-8" for artefact in (whole, resumed)]
    records = [{file.path: file.sha256 for file in checkpoints.CheckpointRecord.load(checkpoint).files} for checkpoint in last]
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        assert records[0][name] == records[1][name], f"{name} differs"
    losses = [entry["loss"] for entry in read_ledger(whole.directory / "metrics.jsonl") if "loss" in entry]
    assert losses[-1] < losses[0] - 0.2, "and it learns"


@pytest.mark.parametrize("optim", ["adafactor", "sgd", "adamw_torch"])
def test_optimizers_of_transformers_serve_by_their_names(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, optim: str
) -> None:
    made = run("pretrain", tmp_path / "m", tokens=tokens.directory, max_steps=6, optim=optim, **tiny)
    losses = [entry["loss"] for entry in read_ledger(made.directory / "metrics.jsonl") if "loss" in entry]
    assert losses[-1] < losses[0]
    name = {"adafactor": "Adafactor", "sgd": "SGD", "adamw_torch": "AdamW"}[optim]
    assert set(made.manifest.metrics["optimizer"]) == {f"{name} with weight decay", f"{name} without weight decay"}


def test_the_rates_of_groups_that_differ_are_in_the_ledger(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = LLMKitTrainer.create_optimizer

    def create_optimizer(trainer: LLMKitTrainer, model: Any = None) -> Any:
        optimizer = create(trainer, model)
        optimizer.param_groups[1]["lr"] = 2e-2
        return optimizer

    settings = {**tiny, "tokens": tokens.directory, "max_steps": 4, "lr_scheduler_type": "linear"}
    same = run("pretrain", tmp_path / "same", **settings)
    monkeypatch.setattr(LLMKitTrainer, "create_optimizer", create_optimizer)
    made = run("pretrain", tmp_path / "m", **settings)
    entries = [entry for entry in read_ledger(made.directory / "metrics.jsonl") if "loss" in entry]
    for number, entry in enumerate(entries):
        assert entry["learning_rate"] == pytest.approx(1e-2 * (4 - number) / 4)
        assert entry["learning_rates"] == pytest.approx([entry["learning_rate"], 2 * entry["learning_rate"]])
        assert entry["grad_norm"] > 0
    assert not any("learning_rates" in entry for entry in read_ledger(same.directory / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("optim", "said"),
    [
        ("galore_adamw_layerwise", "updates during the backward pass, where nothing can be clipped"),
        pytest.param("adamw_bnb_8bit", "optim: transformers gives no .*bitsandbytes", marks=pytest.mark.skipif(
            importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is here"
        )),
    ],
)  # fmt: skip
def test_an_optimizer_that_cannot_serve_is_refused(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, optim: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run("pretrain", tmp_path / "m", tokens=tokens.directory, max_steps=1, optim=optim, **tiny)


def test_a_classifiers_head_is_no_hidden_matrix(classifier: Artefact) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(classifier.directory)
    hidden = hidden_matrices(model)
    assert "score.weight" not in hidden
    assert len(hidden) == 2 * 7, "of the two layers"


def test_a_fine_tuning_takes_muon(
    run: Any, base_model: Artefact, toy_files: tuple[Path, Path], quick: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**quick, "model_name_or_path": base_model.directory, "train_file": str(toy_files[0]), "optim": "muon"}
    made = run("finetune", tmp_path / "m", **settings)
    assert made.manifest.metrics["validation"]["accuracy"] >= 0.7


def test_a_model_without_hidden_matrices_is_refused() -> None:
    from llmkit.training.optimizers import muon

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **LLAMA, vocab_size=16))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name not in hidden_matrices(model)
    with pytest.raises(ConfigError, match="llama has no hidden matrices that muon could train"):
        muon(model, [], None)  # type: ignore[arg-type]
