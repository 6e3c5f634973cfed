"""Updates without a finite gradient are not made, spikes are seen, and both leave a dump of what made them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llmkit.errors import ConfigError
from llmkit.pipeline.artefact import Artefact
from llmkit.tokens.samples import TokenBlocks
from llmkit.tokens.shards import TokenStream
from llmkit.training.dumps import by_layer
from llmkit.training.instability import Diverged, SpikeWindow, Step, UpdateGuard
from llmkit.training.ledger import read_ledger
from llmkit.training.order import sample_ids
from llmkit.training.trainer import LLMKitTrainer

SINGLE = SimpleNamespace(scaler=None, distributed_type="NO")


def ledger(artefact: Artefact) -> list[dict[str, Any]]:
    return [entry for entry in read_ledger(artefact.directory / "metrics.jsonl") if "loss" in entry]


def dump_of(directory: Path, step: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "dumps" / f"step-{step}" / "dump.json").read_text(encoding="utf-8"))
    return found


TRAINING_STEP = LLMKitTrainer.training_step


def poison_with(patched: pytest.MonkeyPatch, function: Callable[[int, Any], None]) -> None:
    """From now on, `function(step, model)` is called when the gradients of a step are there."""

    def training_step(trainer: Any, model: Any, *arguments: Any, **options: Any) -> Any:
        loss = TRAINING_STEP(trainer, model, *arguments, **options)
        function(trainer.state.global_step + 1, model)
        return loss

    patched.setattr(LLMKitTrainer, "training_step", training_step)


@pytest.mark.parametrize("fused", [True, False])
def test_a_gradient_that_is_no_number_leaves_weights_and_moments_as_they_are(fused: bool) -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 4))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5, fused=fused)
    guard = UpdateGuard(limit=2)
    for number, grad in enumerate((1.0, float("nan"), float("inf"), 1.0), 1):
        before, moments = weight.detach().clone(), repr(optimizer.state_dict()["state"])
        weight.grad = torch.full((4, 4), grad)
        guard.check(Step(number, torch.ones(1), weight.grad.norm()), optimizer, SINGLE)
        optimizer.step()
        finite = grad == 1.0
        assert torch.equal(weight, before) == (not finite)
        assert (repr(optimizer.state_dict()["state"]) == moments) == (not finite)
    assert [(step.number, step.reason, step.was_skipped) for step in guard.noted()] == [
        (2, "no number", True),
        (3, "no number", True),
    ]
    assert guard.facts() == {"skipped_steps": 2, "skipped_at": [2, 3]}
    guard.stop_if_stuck(4)  # the last one was made


def test_the_loss_of_one_rank_that_is_no_number_skips_the_update_though_the_gradient_is_one() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    guard = UpdateGuard(limit=2)
    weight.grad = torch.ones(2)
    guard.check(Step(1, torch.tensor([1.0, float("nan")]), weight.grad.norm()), optimizer, SINGLE)
    optimizer.step()
    assert weight.tolist() == [1.0, 1.0]


def test_skipped_updates_are_in_the_ledger_and_too_many_in_a_row_end_the_run(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned: set[int] = {3, 4}

    def spoil(step: int, model: Any) -> None:
        if step in poisoned:
            next(model.parameters()).grad[0, 0] = float("nan")

    poison_with(monkeypatch, spoil)
    settings = {**tiny, "tokens": tokens.directory, "max_steps": 8, "max_skipped_steps": 3}
    made = run("pretrain", tmp_path / "m", **settings)
    entries = ledger(made)
    assert [entry.get("skipped_steps", 0) for entry in entries] == [0, 0, 1, 2, 2, 2, 2, 2]
    assert [entry.get("skipped_at", []) for entry in entries] == [[], [], [3], [4], [], [], [], []]
    assert entries[-1]["loss"] < entries[0]["loss"]
    assert sorted(path.name for path in (made.directory / "dumps").iterdir()) == ["step-3", "step-4"]
    poisoned.add(5)
    with pytest.raises(Diverged, match="the last 3 updates up to step 5 were skipped"):
        run("pretrain", tmp_path / "n", **settings)
    assert dump_of(tmp_path / "n.partial", 5)["was_skipped"] is True


def test_a_dump_names_the_documents_and_texts_of_its_step_and_the_layer_that_went_wrong(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(step: int, model: Any) -> None:
        if step == 3:
            model.model.layers[1].mlp.up_proj.weight.grad[0, 0] = float("nan")

    poison_with(monkeypatch, spoil)
    made = run("pretrain", tmp_path / "m", tokens=tokens.directory, max_steps=4, **tiny)
    dump, entry = dump_of(made.directory, 3), ledger(made)[2]
    assert (dump["reason"], dump["was_skipped"], dump["weights_after_step"]) == ("no number", True, 2)
    assert dump["loss"] == entry["loss"] == dump["loss_of_ranks"][0]
    assert math.isnan(dump["grad_norm"])
    spoilt = [layer for layer, norm in dump["grad_norm_of_layers"].items() if math.isnan(norm)]
    assert spoilt == ["model.layers.1"], "clipping has not hidden where it arose"
    assert set(dump["weight_norm_of_layers"]) == set(dump["grad_norm_of_layers"])
    assert all(norm > 0 for norm in dump["weight_norm_of_layers"].values())

    stream = TokenStream(tokens.directory, "train")
    blocks = TokenBlocks(stream, tiny["block_size"])
    expected = sample_ids(2, 4, len(blocks), 0).tolist()
    assert [sample["sample"] for sample in dump["samples"]] == expected
    tokenizer = AutoTokenizer.from_pretrained(tokens.directory / "tokenizer")
    for sample in dump["samples"]:
        ids = blocks[sample["sample"]]["input_ids"].tolist()
        assert sample["text"] == tokenizer.decode(ids)
        read: list[int] = []
        for passage in sample["documents"]:
            offsets = np.load(tokens.directory / f"{passage['shard']}.offsets.npy")
            start = int(offsets[passage["document"]])
            read += stream.read(start + passage["start"], start + passage["stop"]).tolist()  # the corpus has one shard
        assert read == ids[: len(read)]
        assert len(read) == tiny["block_size"] or max(expected) == len(blocks) - 1


def test_where_nobody_waits_for_the_verdict_the_dump_comes_with_the_next_log_or_checkpoint(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: what was kept from the step is the same, and the dump says that the weights are later ones."""

    def spoil(step: int, model: Any) -> None:
        if step in (3, 6, 8):
            model.model.layers[1].mlp.up_proj.weight.grad[0, 0] = float("nan")

    poison_with(monkeypatch, spoil)
    settings = {**tiny, "tokens": tokens.directory, "max_steps": 9, "logging_steps": 5, "save_steps": 7}
    at_once = run("pretrain", tmp_path / "at_once", **settings)
    monkeypatch.setattr(UpdateGuard, "looks_now", lambda *_: False)
    later = run("pretrain", tmp_path / "later", **settings)
    assert later.manifest.digest == at_once.manifest.digest
    for step, written in ((3, 5), (6, 7), (8, 9)):  # at a log, at a checkpoint, and at the end
        one, other = dump_of(at_once.directory, step), dump_of(later.directory, step)
        assert (one.pop("weights_after_step"), other.pop("weights_after_step")) == (step - 1, written)
        assert one.pop("weight_norm_of_layers") != other.pop("weight_norm_of_layers")
        assert repr(one) == repr(other)  # NaN is not equal to itself
    assert ledger(later)[0]["skipped_at"] == ledger(at_once)[0]["skipped_at"] == [3]


def test_norms_of_layers_are_those_of_all_their_parameters() -> None:
    names = {"model.embed.weight": 1.0, "model.layers.0.a.weight": 3.0, "model.layers.0.b.bias": 4.0, "head": 2.0}
    assert by_layer(names) == {"model.embed": 1.0, "model.layers.0": 5.0, "head": 2.0}
    assert math.isnan(by_layer({"h.0.a.weight": math.inf, "h.0.b.weight": math.nan})["h.0"])


def test_gradients_are_clipped_as_torch_clips_them(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = run("pretrain", tmp_path / "ours", tokens=tokens.directory, max_steps=4, max_grad_norm=0.1, **tiny)
    monkeypatch.setattr(LLMKitTrainer, "_clip_and_measure", lambda *_: None)
    theirs = run("pretrain", tmp_path / "theirs", tokens=tokens.directory, max_steps=4, max_grad_norm=0.1, **tiny)
    assert ours.manifest.digest == theirs.manifest.digest
    assert [entry["grad_norm"] for entry in ledger(ours)] == [entry["grad_norm"] for entry in ledger(theirs)]


# --------------------------------------------------------------------------------------------------------------------
# Spikes


@given(
    values=st.lists(st.floats(0.5, 100, width=32), min_size=1, max_size=40),
    length=st.integers(4, 16),
    sigma=st.floats(0.5, 6),
)
@settings(max_examples=150, deadline=None)
def test_a_spike_is_what_its_definition_says(values: list[float], length: int, sigma: float) -> None:
    window = SpikeWindow(sigma, length)
    for position, value in enumerate(values):
        before = np.array(values[max(0, position - length) : position])
        found = bool(window.takes(torch.tensor([value, 1.0])))
        if len(before) < max(2, length // 2):
            assert not found
            continue
        limit = before.mean() + sigma * before.std(ddof=1)
        if abs(value - limit) > 1e-3 * limit:  # float32 against float64
            assert found == (value > limit)


@given(st.lists(st.floats(0, 100, width=32), max_size=40), st.integers(4, 16))
@settings(max_examples=100, deadline=None)
def test_a_window_that_was_saved_as_json_goes_on_to_the_bit(values: list[float], length: int) -> None:
    window, restored = SpikeWindow(1.0, length), SpikeWindow(1.0, length)
    for value in values:
        window.takes(torch.tensor([value, value / 3]))
    restored.restore(json.loads(json.dumps(window.state())))
    for value in (1.0, 50.0, 2.0):
        new = torch.tensor([value, value])
        assert window.takes(new) == restored.takes(new)
    assert window.state() == restored.state()


def test_equal_values_are_no_spike_and_what_is_no_number_stays_out_of_the_window() -> None:
    window = SpikeWindow(1.0, 8)
    for _ in range(20):
        assert not window.takes(torch.tensor([0.1, 0.3]))
        window.takes(torch.tensor([float("nan"), 0.3]))
    assert window.takes(torch.tensor([0.11, 0.3]))
    assert window.takes(torch.tensor([0.1, float("inf")]))


def spiking(step: int, model: Any) -> None:
    """A gradient a thousand times too large in steps 9 and 13."""
    if step in (9, 13):
        for parameter in model.parameters():
            parameter.grad *= 1000


@pytest.mark.parametrize("skip_spikes", [False, True])
def test_a_spike_is_recorded_and_skipped_if_asked(
    skip_spikes: bool, run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_with(monkeypatch, spiking)
    settings = {**tiny, "tokens": tokens.directory, "max_steps": 15, "spike_window": 8, "logging_steps": 5}
    made = run("pretrain", tmp_path / "m", skip_spikes=skip_spikes, **settings)
    entries = ledger(made)
    assert [entry.get("spikes", 0) for entry in entries] == [0, 1, 1], "the second one lies in the spread of the first"
    assert [entry.get("spikes_at") for entry in entries] == [None, [9], None]
    assert [entry.get("skipped_steps", 0) for entry in entries] == ([0, 1, 1] if skip_spikes else [0, 0, 0])
    dump = dump_of(made.directory, 9)
    assert (dump["reason"], dump["was_skipped"]) == ("spike", skip_spikes)
    assert len(dump["samples"]) == 4
    unlooked = run("pretrain", tmp_path / "n", spike_sigma=None, **settings)
    assert not (unlooked.directory / "dumps").exists()
    assert (unlooked.manifest.digest == made.manifest.digest) == (not skip_spikes), "to look changes nothing"


def test_skipping_spikes_without_looking_for_them_is_refused(run: Any, tokens: Artefact, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="skip_spikes: spikes are not looked for"):
        run("pretrain", tmp_path / "m", tokens=tokens.directory, skip_spikes=True, spike_sigma=None)


def test_a_run_that_skips_spikes_goes_on_from_a_checkpoint_to_the_bit(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_with(monkeypatch, spiking)
    settings = {**tiny, "tokens": tokens.directory, "max_steps": 15, "spike_window": 8, "logging_steps": 5}
    settings |= {"skip_spikes": True, "spike_sigma": 4.0, "save_steps": 7, "save_total_limit": 3}
    whole = run("pretrain", tmp_path / "whole", **settings)
    for stopped_at in (8, 9, 11, 15):  # before the spike and at it, whose window the checkpoint of step 7 holds, and after it

        def fail(step: int, model: Any, last: int = stopped_at) -> None:
            if step == last:
                raise KeyboardInterrupt
            spiking(step, model)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            poison_with(patched, fail)
            run("pretrain", tmp_path / f"m{stopped_at}", **settings)
        resumed = run("pretrain", tmp_path / f"m{stopped_at}", **settings)
        weights = [(artefact.directory / "model.safetensors").read_bytes() for artefact in (resumed, whole)]
        assert weights[0] == weights[1]
        names = ("step", "grad_norm", "skipped_steps", "skipped_at", "spikes", "spikes_at")
        told = [[[entry.get(name) for name in names] for entry in ledger(artefact)] for artefact in (resumed, whole)]
        assert told[0] == told[1]
        assert dump_of(resumed.directory, 9) == dump_of(whole.directory, 9)
    assert ledger(whole)[-1]["skipped_steps"] == 1
