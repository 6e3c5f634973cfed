"""Low-rank adaptation: what is saved is a plain model, and what a resume takes are the updates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    MarianConfig,
    MarianMTModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from llmkit.config import Source, resolve
from llmkit.errors import ConfigError
from llmkit.pipeline.artefact import Artefact
from llmkit.training.checkpoints import all_checkpoints
from llmkit.training.finetune import FinetuneConfig
from llmkit.training.ledger import read_ledger
from llmkit.training.lora import Adapter
from llmkit.training.trainer import LLMKitTrainer


def settings(**given: Any) -> FinetuneConfig:
    asked = {"model_name_or_path": "model", "dataset_name": "llmkit/reviews", "peft": "lora", **given}
    return resolve(FinetuneConfig, [Source(asked, {})]).config


TINY = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}


def models() -> dict[str, Any]:
    torch.manual_seed(0)
    marian = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    marian |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 50}
    return {
        "encoder": RobertaForSequenceClassification(RobertaConfig(**TINY, num_labels=3)),
        "causal": AutoModelForCausalLM.from_config(GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50)),
        "encoder-decoder": MarianMTModel(MarianConfig(**marian, pad_token_id=49, decoder_start_token_id=49)),
    }


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(2, 14).reshape(2, 6)
    decoder = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=ids, **decoder).logits


@pytest.mark.parametrize("kind", ["encoder", "causal", "encoder-decoder"])
def test_merged_weights_give_what_the_base_model_with_its_updates_gives(kind: str, tmp_path: Path) -> None:
    model = models()[kind]
    plain = set(model.state_dict())
    base = logits(model)
    adapter = Adapter(model, [], settings(lora_r=4))
    assert torch.equal(logits(model), base), "updates begin with nothing"
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapter.save(tmp_path)
    merged = adapter.state_dict()
    assert set(merged) == plain
    model.save_pretrained(tmp_path, state_dict=merged)
    adapted, read = logits(model), type(model).from_pretrained(tmp_path)
    assert not torch.allclose(adapted, base, atol=1e-3)
    assert torch.allclose(logits(read), adapted, atol=1e-5)
    again = PeftModel.from_pretrained(models()[kind], tmp_path / "adapter")
    assert torch.equal(logits(again.get_base_model()), adapted)


def test_the_head_and_new_weights_are_trained_whole_and_the_layers_by_their_updates() -> None:
    model = models()["encoder"]
    Adapter(model, ["roberta.embeddings.LayerNorm.weight"], settings())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    whole = {name for name in trained if "lora_" not in name}
    assert {name.partition(".modules_to_save")[0] for name in whole} == {"classifier", "roberta.embeddings.LayerNorm"}
    assert {name.rpartition(".lora_")[0].rpartition(".")[2] for name in trained - whole} == {"query", "key", "value", "dense"}


def test_layers_that_are_named_get_updates_and_a_name_that_is_none_is_refused() -> None:
    adapter = Adapter(models()["encoder"], [], settings(lora_target_modules=["query", "layer.1.attention.self.value"]))
    assert adapter.layers == 3
    with pytest.raises(ConfigError, match="no linear layer 'q_proj'; its linear layers are dense, key, query, value"):
        Adapter(models()["encoder"], [], settings(lora_target_modules=["query", "q_proj"]))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lora_r": 0}, "lora_r: is 0"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"peft": None, "lora_r": 4}, "lora_r: goes with peft"),
        ({"freeze": ["embeddings"]}, "freeze: with peft"),
        ({"random_start": True}, "peft: leaves random weights"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings(**given)


def test_a_missing_package_is_named(run: Any, base_model: Artefact, toy_files: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("llmkit.training.lora.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'llmkit\[peft\]'"):
        run("finetune", tmp_path / "m", model_name_or_path=base_model.directory, train_file=toy_files[0], peft="lora")


@pytest.fixture(scope="module")
def asked(base_model: Artefact, toy_files: tuple[Path, Path], quick: dict[str, Any]) -> dict[str, Any]:
    lora = {"peft": "lora", "lora_dropout": 0.1, "learning_rate": 2e-2, "logging_steps": 1}
    return {"model_name_or_path": base_model.directory, "train_file": toy_files[0], **quick, **lora}


@pytest.fixture(scope="module")
def adapted(run: Any, asked: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return run("finetune", tmp_path_factory.mktemp("lora") / "whole", **asked)


def test_it_learns_the_toy_problem_as_the_whole_model_does(adapted: Artefact, classifier: Artefact) -> None:
    ours, theirs = adapted.manifest.metrics, classifier.manifest.metrics
    assert min(ours["validation"]["accuracy"], theirs["validation"]["accuracy"]) >= 0.7
    assert ours["parameters"] == theirs["parameters"]
    assert ours["trained_parameters"] < theirs["trained_parameters"] / 3


def test_the_result_is_a_plain_model_with_its_updates_beside(adapted: Artefact, base_model: Artefact) -> None:
    place = adapted.directory
    tokenizer = AutoTokenizer.from_pretrained(place)
    batch = tokenizer(["The soup was lovely (3).", "Her song was awful (8)."], return_tensors="pt", padding=True)
    merged = AutoModelForSequenceClassification.from_pretrained(place).eval()
    assert set(load_file(place / "model.safetensors")) <= set(merged.state_dict())
    base = AutoModelForSequenceClassification.from_pretrained(base_model.directory, num_labels=2)
    base.config.pad_token_id = tokenizer.pad_token_id
    beside = PeftModel.from_pretrained(base, place / "adapter").eval()
    with torch.no_grad():
        assert torch.allclose(merged(**batch).logits, beside(**batch).logits, atol=1e-5)
    assert str(base_model.directory) not in (place / "adapter/adapter_config.json").read_text()
    assert {path.name for path in (place / "adapter").iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}


def test_weights_without_updates_are_those_of_the_base_model(adapted: Artefact, base_model: Artefact) -> None:
    ours, base = (load_file(made.directory / "model.safetensors") for made in (adapted, base_model))
    name = "model.embed_tokens.weight"
    assert torch.equal(ours[name], base[name])
    changed = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(ours[changed], base[changed])


def test_a_resume_is_exact(run: Any, asked: dict[str, Any], adapted: Artefact, tmp_path: Path, monkeypatch: Any) -> None:
    """Also from the second of two kills, and for the best checkpoint, which is from before the first."""

    class Killed(Exception):
        pass

    output = tmp_path / "killed"
    for step in (40, 63):
        log = LLMKitTrainer.log

        def dying(self: Any, logs: Any, *rest: Any, last: int = step, log: Any = log) -> None:
            if self.state.global_step == last:
                raise Killed
            log(self, logs, *rest)

        monkeypatch.setattr(LLMKitTrainer, "log", dying)
        with pytest.raises(Killed):
            run("finetune", output, **asked)
        monkeypatch.setattr(LLMKitTrainer, "log", log)
        newest = all_checkpoints(tmp_path / "killed.partial")[0]
        AutoModelForSequenceClassification.from_pretrained(newest)
        assert (newest / "adapter/adapter_model.safetensors").exists()
    resumed = run("finetune", output, **asked)
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (resumed.directory / file).read_bytes() == (adapted.directory / file).read_bytes()
    assert resumed.manifest.digest == adapted.manifest.digest
    told = [
        [(entry["step"], entry.get("loss")) for entry in read_ledger(made.directory / "metrics.jsonl")]
        for made in (resumed, adapted)
    ]
    assert told[0] == told[1]


def test_an_encoder_whose_pooler_is_new_is_adapted_with_it(
    run: Any, tokenizer: Artefact, asked: dict[str, Any], tmp_path: Path
) -> None:
    words = AutoTokenizer.from_pretrained(tokenizer.directory)
    torch.manual_seed(0)
    config = BertConfig(**{**TINY, "vocab_size": len(words)}, max_position_embeddings=64, pad_token_id=words.pad_token_id)
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    words.save_pretrained(tmp_path / "bert")
    made = run("finetune", tmp_path / "m", **{**asked, "model_name_or_path": tmp_path / "bert", "learning_rate": 5e-3})
    assert made.manifest.metrics["validation"]["accuracy"] >= 0.7
    assert "bert.pooler.dense" in json.loads((made.directory / "adapter/adapter_config.json").read_text())["modules_to_save"]
