"""Pretraining on several token shards in given shares."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from llmkit import cli
from llmkit.errors import ArtefactError, ConfigError, DataError
from llmkit.pipeline.artefact import Artefact
from llmkit.tokens.mixture import Mixture
from llmkit.tokens.shards import TokenStream, tokenizer_hash
from llmkit.training.order import BalancedSamples, LengthGrouped, MixedSamples, OrderedSamples


class Places(Dataset):
    """Samples that are their place."""

    def __getitem__(self, index: int) -> int:
        return index


def mixed(sizes: list[int], weights: list[float], seed: int = 1) -> MixedSamples:
    return MixedSamples(Places(), sizes, Mixture(weights), steps=10**9, global_batch=8, seed=seed)


def test_each_source_is_seen_whole_in_each_of_its_own_epochs() -> None:
    samples = mixed([30, 50], [3, 1])
    seen = samples.__getitems__(list(range(400)))
    first, second = [item for item in seen if item < 30], [item - 30 for item in seen if item >= 30]
    assert len(first) == 300
    for epoch in range(10):
        assert sorted(first[30 * epoch : 30 * epoch + 30]) == list(range(30))
    assert first[:30] != first[30:60], "each epoch has another order"
    assert sorted(second[:50]) == sorted(second[50:]) == list(range(50))


def test_the_order_depends_on_nothing_but_position_and_seed() -> None:
    one, other = mixed([1000, 500], [1, 2]), mixed([1000, 500], [1, 2])
    forwards = one.__getitems__(list(range(200)))
    assert [other[index] for index in reversed(range(200))] == forwards[::-1]
    other.resume_at(20)
    assert other.__getitems__(list(range(40))) == forwards[160:]
    assert mixed([1000, 500], [1, 2], seed=2).__getitems__(list(range(200))) != forwards


def test_a_mixture_of_one_is_no_mixture() -> None:
    plain = OrderedSamples(Places(), 77, steps=100, global_batch=8, seed=3)
    assert mixed([77], [0.3], seed=3).__getitems__(list(range(300))) == plain.__getitems__(list(range(300)))


@given(st.lists(st.integers(1, 40), min_size=2, max_size=5), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_balanced_groups_have_equal_shares_at_every_position_also_with_lengths_grouped(sizes: list[int], seed: int) -> None:
    groups = np.split(np.random.default_rng(seed).permutation(sum(sizes)), np.cumsum(sizes)[:-1])
    of = {sample: number for number, group in enumerate(groups) for sample in group.tolist()}
    balanced = BalancedSamples(Places(), groups, steps=50, global_batch=4, seed=seed)
    ids = [balanced[position] for position in range(200)]
    for position in (17, 50, 200):
        counts = Counter(of[sample] for sample in ids[:position])
        assert max(counts.values()) - min(counts[number] for number in range(len(sizes))) <= 1
    grouped = LengthGrouped(balanced, np.arange(sum(sizes)))
    assert sorted(grouped[position] for position in range(200)) == sorted(ids)
    for number, group in enumerate(groups):
        of_group = [sample for sample in ids if of[sample] == number][: len(group)]
        assert len(set(of_group)) == len(of_group), "each sample of a group once before any twice"


def test_sources_of_one_size_have_orders_of_their_own() -> None:
    seen = mixed([100, 100], [1, 1]).__getitems__(list(range(200)))
    assert [item for item in seen if item < 100] != [item - 100 for item in seen if item >= 100]


def test_a_run_at_sample_10_to_the_12_costs_what_one_at_the_start_costs() -> None:
    samples = mixed([10**12, 10**10], [0.9, 0.1])
    samples.resume_at(10**9 - 10)
    found = samples.__getitems__(list(range(80)))
    assert len(set(found)) == 80
    assert Counter(item < 10**12 for item in found)[False] == 8


@pytest.fixture(scope="module")
def other_tokens(run: Any, make_corpus: Any, tokenizer: Artefact, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """A second corpus with the same tokenizer, without validation data."""
    place = tmp_path_factory.mktemp("other")
    corpus = make_corpus(place, ["tomato " * 40 + str(number) for number in range(30)], validation_fraction=0.0)
    return run("tokenize", place / "tokens", corpus=corpus.directory, tokenizer=tokenizer.directory)


def test_a_run_takes_its_samples_in_the_shares_asked_for(
    run: Any,
    tokens: Artefact,
    other_tokens: Artefact,
    tiny: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mixture = {str(tokens.directory): 3, str(other_tokens.directory): 1}
    out = run("pretrain", tmp_path / "m", mixture=mixture, max_steps=20, document_masking=True, **tiny)
    first, second = out.manifest.metrics["mixture"]
    assert (first["samples_in_run"], second["samples_in_run"]) == (60, 20)
    assert (first["asked_share"], second["asked_share"]) == (first["realised_share"], second["realised_share"]) == (0.75, 0.25)
    assert second["packing"]["epochs"] == 20 / second["packing"]["samples"]
    assert first["packing"]["dropped"] == second["packing"]["dropped"] == 0
    said = capsys.readouterr().out
    assert f"{other_tokens.directory}: 25.00% of the samples asked, 25.00% given; packing concat" in said
    assert [record.fingerprint for record in out.manifest.inputs.values()] == [
        tokens.manifest.fingerprint,
        other_tokens.manifest.fingerprint,
    ]
    held_out = TokenStream(tokens.directory, "validation")
    assert out.manifest.metrics["validation"]["tokens"] == len(held_out) - held_out.documents
    assert cli.main(["trace", str(out.directory)]) == 0
    assert "mixture.1" in capsys.readouterr().out


def test_weights_and_sources_decide_the_fingerprint_and_paths_do_not(
    run: Any, tokens: Artefact, other_tokens: Artefact, tiny: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tokens.directory)
    first, link, second = str(tokens.directory), str(tmp_path / "link"), str(other_tokens.directory)
    made = [
        run("pretrain", tmp_path / f"m{number}", mixture=mixture, max_steps=1, **tiny).manifest
        for number, mixture in enumerate([{first: 1, second: 1}, {link: 1, second: 1}, {first: 2, second: 1}])
    ]
    assert made[0].fingerprint == made[1].fingerprint != made[2].fingerprint
    assert made[0].metrics["data_chain"] == made[1].metrics["data_chain"]


def test_validation_is_that_of_all_sources_together(run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tokens.directory)
    settings = {**tiny, "max_steps": 1, "learning_rate": 1e-30}
    twice = run("pretrain", tmp_path / "a", mixture={str(tokens.directory): 1, str(tmp_path / "link"): 1}, **settings)
    once = run("pretrain", tmp_path / "b", tokens=tokens.directory, **settings)
    both, one = twice.manifest.metrics["validation"], once.manifest.metrics["validation"]
    assert both["tokens"] == 2 * one["tokens"]
    assert both["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert both["bits_per_byte"] == pytest.approx(one["bits_per_byte"], abs=1e-5)


def test_a_packed_and_masked_mixture_is_the_same_after_a_resume_and_in_another_layout(
    run: Any,
    tokens: Artefact,
    other_tokens: Artefact,
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from llmkit.training import language_model

    mixture = {str(tokens.directory): 2, str(other_tokens.directory): 1}
    settings = {**tiny, "mixture": mixture, "packing": "best_fit", "document_masking": True, "max_steps": 6, "save_steps": 2}
    whole = run("pretrain", tmp_path / "whole", **settings)
    with monkeypatch.context() as patched:
        patched.setattr(language_model, "_describe", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("pretrain", tmp_path / "m", **settings)
    shutil.rmtree(tmp_path / "m.partial" / "checkpoint-6")
    capsys.readouterr()
    resumed = run("pretrain", tmp_path / "m", **settings)
    assert "going on from checkpoint-4" in capsys.readouterr().out
    assert resumed.manifest.digest == whole.manifest.digest
    layout = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "dataloader_num_workers": 2}
    other = run("pretrain", tmp_path / "other", **{**settings, **layout})
    assert other.manifest.metrics["data_chain"] == whole.manifest.metrics["data_chain"]


def test_two_tokenizers_are_refused_with_both_hashes(
    run: Any, corpus: Artefact, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path
) -> None:
    other = run("tokenizer", tmp_path / "tokenizer", corpus=corpus.directory, vocab_size=400)
    shards = run("tokenize", tmp_path / "tokens", corpus=corpus.directory, tokenizer=other.directory)
    mixture = {str(tokens.directory): 1, str(shards.directory): 1}
    with pytest.raises(ArtefactError) as refused:
        run("pretrain", tmp_path / "m", mixture=mixture, max_steps=1, **tiny)
    for directory in (tokens.directory / "tokenizer", other.directory):
        assert tokenizer_hash(directory)[:16] in str(refused.value)


@pytest.mark.parametrize("weight", [0, -1, "much", True, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(run: Any, tokens: Artefact, tmp_path: Path, weight: Any) -> None:
    with pytest.raises(ConfigError, match="mixture: the weight of"):
        run("pretrain", tmp_path / "m", mixture={str(tokens.directory): weight})


def test_a_mixture_beside_other_data_and_one_that_is_not_there_are_refused(run: Any, tokens: Artefact, tmp_path: Path) -> None:
    mixture = {str(tokens.directory): 1}
    with pytest.raises(ConfigError, match="mixture: given together with tokens"):
        run("pretrain", tmp_path / "m", mixture=mixture, tokens=tokens.directory)
    with pytest.raises(ConfigError, match="mixture: given together with train_file"):
        run("pretrain", tmp_path / "m", mixture=mixture, train_file=["a.txt"])
    with pytest.raises(DataError, match="mixture: there is no directory"):
        run("pretrain", tmp_path / "m", mixture={str(tmp_path / "nowhere"): 1})


def test_samples_of_all_sources_stand_one_after_the_other(tokens: Artefact, other_tokens: Artefact) -> None:
    from llmkit.tokens.samples import JoinedSamples, TokenBlocks

    parts = [TokenBlocks(TokenStream(item.directory, "train"), 32) for item in (tokens, other_tokens)]
    joined = JoinedSamples(parts)
    expected = [samples[index]["input_ids"] for samples in parts for index in range(len(samples))]
    assert len(joined) == len(expected)
    assert joined.targets == sum(samples.targets for samples in parts)
    for index in np.random.default_rng(0).integers(0, len(joined), 50).tolist():
        assert torch.equal(joined[index]["input_ids"], expected[index])
    joined.fill_up_to_multiple(64)
    assert len(joined) % 64 == 0
    assert bool((joined[len(joined) - 1]["labels"][1:] == -100).all())
