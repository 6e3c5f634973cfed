"""The learning rate over a run: a pure function of the step, so that a resumed run goes on with it to the last bit.

A schedule is a warm-up, a stretch at the peak, and a decay to a floor. `linear` and `cosine` decay from the end of the warm-up
on, `constant` never; `wsd` (warmup-stable-decay: Hu et al. 2024, MiniCPM, section 4; Hägele et al. 2024) only at the end, so
that a run can be prolonged, or ended earlier, from any checkpoint of its stable stretch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmkit.errors import ConfigError

if TYPE_CHECKING:
    from llmkit.training.arguments import TrainingConfig

OURS = ("linear", "cosine", "constant", "constant_with_warmup", "wsd")
"""Values of `lr_scheduler_type` that are computed here; transformers computes the others."""

# The share of the peak that is left after the share p of the decay. 1 - sqrt is that of Hägele et al. 2024, section 3.
_DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda p: 1 - p,
    "sqrt": lambda p: 1 - math.sqrt(p),
    "cosine": lambda p: (1 + math.cos(math.pi * p)) / 2,
}

# Of all steps, where `decay_steps` does not say it: beyond a fifth Hägele et al. 2024 (figure 5) find little more.
_WSD_DECAY = 0.2

_LENGTH = re.compile(r"(\d[\d_]*\.?\d*(?:[eE][+-]?\d+)?)\s*([kKMBT]?)\s*(tokens|epochs?)?")
_TIMES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


@dataclass(frozen=True)
class Schedule:
    """Lengths in optimizer steps; `floor` is the share of the peak that the decay ends at."""

    steps: int
    warmup: int
    decay: int
    decay_type: str = "linear"
    floor: float = 0.0

    def factor(self, step: int) -> float:
        """What the peak learning rate is multiplied by at a step, in [0, 1].

        The first step, 0, of w steps of warm-up has 1/w and learns; the floor would be that of the step after the last.
        """
        if step < self.warmup:
            return (step + 1) / self.warmup
        start = self.steps - self.decay
        if step < start or self.decay == 0:
            return 1.0
        passed = min(1.0, (step - start) / self.decay)
        return self.floor + (1 - self.floor) * _DECAYS[self.decay_type](passed)


@dataclass(frozen=True)
class RunLength:
    """How long a run and its parts are."""

    steps: int
    steps_per_epoch: float
    tokens_per_step: int | None = None
    """None where examples are learned, and not tokens."""

    def in_steps(self, length: float | str) -> int:
        """A length in optimizer steps, rounded up; see `parse_length` for how it may be given."""
        number, unit = parse_length(length)
        if unit == "tokens":
            assert self.tokens_per_step is not None, "the settings refuse tokens where none are counted"
            number /= self.tokens_per_step
        elif unit == "epochs":
            number *= self.steps_per_epoch
        elif unit == "share":
            number *= self.steps
        return math.ceil(round(number, 6))  # 0.07 of 100 steps is 7.000000000000001


def parse_length(length: float | str) -> tuple[float, str]:
    """A length as settings give it: `200` steps, a share below 1 of all steps, `10M tokens` or `0.5 epochs`.

    Returns:
        The number, and its unit: steps, share, tokens or epochs.

    Raises:
        ValueError: it is none of these; the message says what it may be.
    """
    match = _LENGTH.fullmatch(str(length).strip())
    if match is None:
        raise ValueError("is no length; write steps (200), a share of all steps (0.05), `10M tokens` or `0.5 epochs`")
    number = float(match[1].replace("_", "")) * _TIMES[match[2]]
    if match[3]:
        return number, "tokens" if match[3] == "tokens" else "epochs"
    return number, "share" if 0 < number < 1 else "steps"


def schedule_of(config: TrainingConfig, run: RunLength) -> Schedule | None:
    """The schedule of a run; None where transformers computes it.

    Raises:
        ConfigError: warm-up and decay of a `wsd` run leave no room for each other.
    """
    kind = config.lr_scheduler_type
    if kind not in OURS:
        return None
    warmup = run.in_steps(config.warmup_steps)
    if kind == "wsd":
        decay = run.in_steps(_WSD_DECAY if config.decay_steps is None else config.decay_steps)
        if warmup + decay > run.steps:
            raise ConfigError(
                [
                    f"warmup_steps, decay_steps: {warmup:,} steps of warm-up and {decay:,} of decay do not fit into a run of "
                    f"{run.steps:,}; shorten them, or give them as shares of the run"
                ]
            )
        return Schedule(run.steps, warmup, decay, config.decay_type or "sqrt", config.min_lr_ratio)
    if kind.startswith("constant"):
        return Schedule(run.steps, warmup, 0)
    return Schedule(run.steps, warmup, max(0, run.steps - warmup), kind, config.min_lr_ratio)


def problems(config: TrainingConfig) -> Iterable[str]:
    """What is wrong with the settings of the learning rate."""
    kind = config.lr_scheduler_type
    units = {}
    for name in ("warmup_steps", "decay_steps"):
        value = getattr(config, name)
        try:
            units[name] = parse_length(value)[1] if value is not None else None
        except ValueError as failure:
            yield f"{name}: {value!r} {failure}"
    if kind == "warmup_stable_decay":
        yield "lr_scheduler_type: write wsd, with `warmup_steps`, `decay_steps`, `decay_type` and `min_lr_ratio`"
        return
    if kind not in OURS and units.get("warmup_steps") in ("tokens", "epochs"):
        yield f"warmup_steps: {kind} takes steps or a share of them; tokens and epochs go with {', '.join(OURS)}"
    if kind in OURS and config.training_arguments.get("lr_scheduler_kwargs"):
        yield f"lr_scheduler_kwargs: {kind} has none; write `min_lr_ratio`, for wsd also `decay_steps` and `decay_type`"
    for name in ("decay_steps", "decay_type"):
        if getattr(config, name) is not None and kind != "wsd":
            yield f"{name}: goes with lr_scheduler_type wsd, not {kind}"
    if not 0 <= config.min_lr_ratio <= 1:
        yield f"min_lr_ratio: is {config.min_lr_ratio}, must lie between 0 and 1"
    elif config.min_lr_ratio and kind not in ("linear", "cosine", "wsd"):
        yield f"min_lr_ratio: goes with linear, cosine and wsd, not {kind}"
