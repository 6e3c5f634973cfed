"""Pretraining with packing and document masking: what the run logs is what its documents give alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from llmkit.errors import ConfigError
from llmkit.pipeline.artefact import Artefact
from llmkit.tokens.samples import PackedDocuments, PackedSamples, TokenBlocks
from llmkit.tokens.shards import TokenStream
from llmkit.training.ledger import read_ledger
from llmkit.training.order import sample_ids

BLOCK = 128


@pytest.fixture(scope="module")
def short(run: Any, make_corpus: Any, tokenizer: Artefact, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """Token shards of short documents, several to a sample, and one that is longer than a sample."""
    place = tmp_path_factory.mktemp("short")
    texts = [f"Document {number}: " + "the return value of the function. " * (number % 7) for number in range(60)]
    corpus = make_corpus(place, [*texts, "A long one. " * 90], validation_fraction=0.2)
    return run("tokenize", place / "tokens", corpus=corpus.directory, tokenizer=tokenizer.directory)


def loss_alone(model: Any, samples: PackedSamples, indices: list[int]) -> float:
    """Mean loss over the tokens of samples, every document by itself: it ends with the EOS, or where its row does."""
    total, count = 0.0, 0
    for index in indices:
        sample = samples[index]
        ids, learned = sample["input_ids"], sample["labels"] != -100
        ends = np.flatnonzero(ids.numpy() == samples.stream.index.eos_token_id) + 1
        for part, labels in zip(np.split(ids, ends), np.split(learned, ends), strict=True):
            if len(part) > 1 and labels[1:].all():
                loss = model(input_ids=torch.as_tensor(part)[None], labels=torch.as_tensor(part)[None]).loss
                total, count = total + float(loss) * (len(part) - 1), count + len(part) - 1
    return total / count


@pytest.mark.parametrize(("packing", "made"), [("concat", TokenBlocks), ("best_fit", PackedDocuments)])
def test_the_losses_of_a_run_are_those_of_its_documents_alone(
    run: Any, short: Artefact, tiny: dict[str, Any], tmp_path: Path, packing: str, made: type[PackedSamples]
) -> None:
    settings = {**tiny, "block_size": BLOCK, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    settings["learning_rate"] = 1e-30  # so that the model that is saved is the one that has learned
    out = run(
        "pretrain", tmp_path / "m", tokens=short.directory, packing=packing, document_masking=True, max_steps=1, **settings
    )
    model = AutoModelForCausalLM.from_pretrained(out.directory, dtype="float32").eval()
    samples = made(TokenStream(short.directory, "train"), BLOCK, document_masking=True)
    first_step = sample_ids(0, 4, len(samples), out.manifest.settings["seed"]).tolist()
    logged = next(entry["loss"] for entry in read_ledger(out.directory / "metrics.jsonl") if "loss" in entry)
    with torch.no_grad():
        assert logged == pytest.approx(loss_alone(model, samples, first_step), abs=2e-5)
        held_out = TokenBlocks(TokenStream(short.directory, "validation"), BLOCK, document_masking=True)
        validation = out.manifest.metrics["validation"]
        assert validation["loss"] == pytest.approx(loss_alone(model, held_out, list(range(len(held_out)))), abs=2e-5)
    counted = short.manifest.metrics["validation"]
    assert validation["tokens"] == counted["tokens"] - counted["documents"]


def test_best_fit_without_masking_trains_and_says_how_it_packs(
    run: Any, short: Artefact, tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run("pretrain", tmp_path / "m", tokens=short.directory, packing="best_fit", num_train_epochs=2.0, **tiny)
    packing = out.manifest.metrics["packing"]
    assert out.manifest.metrics["epochs"] == packing["epochs"] == pytest.approx(2.0, abs=0.2)
    assert packing["tokens"] == short.manifest.metrics["train"]["tokens"]
    assert packing["dropped"] == 0
    assert "packing best_fit: " in capsys.readouterr().out


def test_an_architecture_that_cannot_mask_is_refused(run: Any, short: Artefact, tiny: dict[str, Any], tmp_path: Path) -> None:
    settings = {**tiny, "model_type": "mamba", "config_overrides": {"hidden_size": 32, "num_hidden_layers": 2}}
    with pytest.raises(ConfigError, match="document_masking: mamba"):
        run("pretrain", tmp_path / "m", tokens=short.directory, document_masking=True, max_steps=1, **settings)
