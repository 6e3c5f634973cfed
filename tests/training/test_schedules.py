"""The learning rate of every step, by law and in real runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import ConfigError
from llmkit.pipeline.artefact import Artefact
from llmkit.training.ledger import read_ledger
from llmkit.training.schedules import RunLength, Schedule, parse_length


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    steps = draw(st.integers(1, 10_000))
    warmup = draw(st.integers(0, steps))
    decay = draw(st.integers(0, steps - warmup))
    return Schedule(steps, warmup, decay, draw(st.sampled_from(["linear", "sqrt", "cosine"])), draw(st.floats(0, 1)))


@given(schedules())
def test_a_schedule_is_bounded_starts_above_zero_and_ends_at_its_floor(schedule: Schedule) -> None:
    factors = [schedule.factor(step) for step in range(0, schedule.steps + 1, max(1, schedule.steps // 500))]
    assert all(0 <= factor <= 1 for factor in factors)
    assert schedule.factor(0) > 0
    assert all(schedule.factor(step) > 0 for step in range(schedule.steps - min(50, schedule.steps), schedule.steps))
    assert schedule.factor(schedule.steps) == pytest.approx(schedule.floor if schedule.decay else 1.0)
    assert schedule.factor(schedule.steps + 7) == schedule.factor(schedule.steps)


@given(schedules(), st.data())
def test_a_schedule_has_no_jumps(schedule: Schedule, data: st.DataObject) -> None:
    """From one step to the next it moves no more than its shape does where that is steepest."""
    step = data.draw(st.integers(0, schedule.steps))
    up = 1 / schedule.warmup if schedule.warmup else 0.0
    fastest = {"linear": lambda d: 1 / d, "cosine": lambda d: math.pi / (2 * d), "sqrt": lambda d: 1 / math.sqrt(d)}
    down = fastest[schedule.decay_type](schedule.decay) if schedule.decay else 0.0
    assert -down - 1e-12 <= schedule.factor(step + 1) - schedule.factor(step) <= up + 1e-12


@given(st.integers(1, 5000), st.integers(1, 100_000), st.integers(1, 1000))
def test_a_length_is_the_same_in_steps_shares_tokens_and_epochs(steps: int, tokens_per_step: int, per_epoch: int) -> None:
    run = RunLength(5001, per_epoch, tokens_per_step)
    assert run.in_steps(steps) == steps
    assert run.in_steps(f"{steps * tokens_per_step} tokens") == steps
    assert run.in_steps(steps / 5001) == steps
    assert run.in_steps(f"{steps / per_epoch} epochs") == steps


@pytest.mark.parametrize(
    ("length", "parsed"),
    [
        (0.0, (0, "steps")),
        (1, (1, "steps")),
        (0.05, (0.05, "share")),
        ("1B tokens", (1e9, "tokens")),
        ("1.5M tokens", (1.5e6, "tokens")),
        ("2e6 tokens", (2e6, "tokens")),
        ("20_000 tokens", (2e4, "tokens")),
        ("0.5 epochs", (0.5, "epochs")),
        ("1 epoch", (1, "epochs")),
    ],
)
def test_lengths_are_read(length: float | str, parsed: tuple[float, str]) -> None:
    assert parse_length(length) == parsed


@pytest.mark.parametrize("length", ["-3", "ten", "3 weeks", "nan", "inf", "", "1B B tokens"])
def test_what_is_no_length_is_refused(length: str) -> None:
    with pytest.raises(ValueError, match="is no length; write steps"):
        parse_length(length)


def test_the_factors_of_a_small_run_by_hand() -> None:
    wsd = Schedule(steps=10, warmup=2, decay=4, decay_type="sqrt", floor=0.0)
    expected = [0.5, 1, 1, 1, 1, 1, 1, 1 - math.sqrt(0.25), 1 - math.sqrt(0.5), 1 - math.sqrt(0.75), 0]
    assert [wsd.factor(step) for step in range(11)] == pytest.approx(expected)
    cosine = Schedule(steps=5, warmup=1, decay=4, decay_type="cosine", floor=0.1)
    expected = [1, 1, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2, 0.55, 0.1 + 0.9 * (1 - math.sqrt(0.5)) / 2]
    assert [cosine.factor(step) for step in range(5)] == pytest.approx(expected)


def rates(artefact: Artefact) -> list[float]:
    return [entry["learning_rate"] for entry in read_ledger(artefact.directory / "metrics.jsonl") if "loss" in entry]


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({"lr_scheduler_type": "linear", "warmup_steps": 2}, [1 / 2, 1, 1, 3 / 4, 2 / 4, 1 / 4]),
        ({"lr_scheduler_type": "constant", "warmup_steps": 0.5}, [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ({"lr_scheduler_type": "wsd", "warmup_steps": "248 tokens", "decay_steps": 2, "decay_type": "linear"},
         [1 / 2, 1, 1, 1, 1, 1 / 2]),
        ({"lr_scheduler_type": "wsd", "decay_steps": "200 tokens", "decay_type": "linear", "min_lr_ratio": 0.5},
         [1, 1, 1, 1, 1, 3 / 4]),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 1.0, "lr_end": 0.0}},
         [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
    ],
)  # fmt: skip
def test_the_rates_in_the_ledger_are_those_of_the_schedule(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, settings: dict[str, Any], factors: list[float]
) -> None:
    made = run("pretrain", tmp_path / "m", tokens=tokens.directory, max_tokens=6 * 4 * 31 - 5, **{**tiny, **settings})
    assert rates(made) == pytest.approx([1e-2 * factor for factor in factors])


def test_a_checkpoint_of_the_stable_stretch_can_be_decayed_early(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**tiny, "tokens": tokens.directory, "lr_scheduler_type": "wsd", "decay_type": "linear", "decay_steps": 2}
    long = run("pretrain", tmp_path / "long", **settings, max_steps=8, save_steps=4, save_permanent_steps=4)
    short = run("pretrain", tmp_path / "short", **settings, max_steps=6)
    branch = long.directory / "checkpoints" / "checkpoint-4"
    decayed = run("pretrain", tmp_path / "decayed", **settings, max_steps=6, resume=str(branch))
    assert rates(decayed) == pytest.approx([1e-2, 0.5e-2])
    assert (decayed.directory / "model.safetensors").read_bytes() == (short.directory / "model.safetensors").read_bytes()


def test_a_fine_tuning_warms_up_by_epochs(
    run: Any, base_model: Artefact, toy_files: tuple[Path, Path], quick: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**quick, "model_name_or_path": base_model.directory, "train_file": str(toy_files[0]), "num_train_epochs": 2.0}
    made = run("finetune", tmp_path / "m", **settings, warmup_steps="0.5 epochs", logging_steps=1)
    steps = made.manifest.metrics["steps"]
    warmup, seen = steps // 4 + steps % 4 // 2, rates(made)
    assert seen[:warmup] == pytest.approx([5e-3 * (step + 1) / warmup for step in range(warmup)])
    assert seen[warmup:] == pytest.approx([5e-3 * (steps - step) / (steps - warmup) for step in range(warmup, steps)])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr_scheduler_type": "warmup_stable_decay"}, "write wsd, with `warmup_steps`, `decay_steps`"),
        ({"lr_scheduler_type": "cosine", "decay_steps": 3}, "decay_steps: goes with lr_scheduler_type wsd, not cosine"),
        ({"lr_scheduler_type": "constant", "min_lr_ratio": 0.1}, "min_lr_ratio: goes with linear, cosine and wsd"),
        ({"min_lr_ratio": 1.5}, "must lie between 0 and 1"),
        ({"warmup_steps": "a while"}, "warmup_steps: 'a while' is no length; write steps"),
        ({"lr_scheduler_type": "inverse_sqrt", "warmup_steps": "1M tokens"}, "inverse_sqrt takes steps or a share of them"),
        ({"lr_scheduler_kwargs": {"num_cycles": 2}}, "lr_scheduler_kwargs: cosine has none"),
        ({"lr_scheduler_type": "wsd", "warmup_steps": 4, "decay_steps": 3},
         "4 steps of warm-up and 3 of decay do not fit into a run of 6"),
        ({"max_tokens": "2B"}, "max_tokens: max_steps also says how long the run is"),
        ({"max_tokens": "much", "max_steps": -1}, "'much' is no number of tokens"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_together_are_refused(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run("pretrain", tmp_path / "m", tokens=tokens.directory, **{**tiny, "max_steps": 6, **settings})
