"""Updates that must not be made, and steps that a person should look at.

One gradient that is no number turns every weight into NaN, and the run is lost; so such an update is skipped. A loss or a norm
of the gradient far above those of the steps before (a spike) is recorded, and skipped on request, as OLMo 2 does (Team OLMo
2024, arXiv:2501.00656).

Every decision is taken from values that all ranks have in common, the losses gathered and the norm of the reduced gradient, so
that they agree. It is taken on the device: nobody waits for it, and what it was is read where training waits for the device
anyway, at a log or a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType

from llmkit.errors import LLMKitError

if TYPE_CHECKING:
    from llmkit.training.arguments import TrainingConfig

_SPIKE, _NO_NUMBER = 1, 2


class Diverged(LLMKitError):
    """Too many updates in a row were skipped."""


@dataclass
class Step:
    """What is known of an optimizer step; the tensors stay on the device."""

    number: int
    """As in the ledger: the first is 1."""
    losses: torch.Tensor
    """Of the ranks, shape [ranks]; their mean is the loss of the global batch."""
    grad_norm: torch.Tensor
    """Before clipping, of the gradient reduced over all ranks, shape []."""
    parameter_norms: torch.Tensor | None = None
    """Of the gradients of single parameters, before clipping, shape [parameters]; None where no rank has whole gradients."""
    parameters: Iterable[str] = ()
    """The names that belong to them."""
    verdict: torch.Tensor = field(init=False)
    """0, _SPIKE or _NO_NUMBER, shape []."""
    reason: str = ""
    """The verdict in words, once it is fetched."""
    was_skipped: bool = False
    can_be_skipped: bool = True
    """Not where DeepSpeed has made the update already."""


class SpikeWindow:
    """Mean and spread of loss and gradient norm over the last steps, and whether a step lies beyond them.

    A value is a spike if it is more than `sigma` standard deviations above the mean of the window, once that is half full. A
    spike enters the window as well: a change that lasts is no spike for long. What is no number does not.
    """

    def __init__(self, sigma: float, length: int):
        """Set up.

        Args:
            sigma: standard deviations above the mean.
            length: steps in the window.
        """
        self.sigma, self.length = sigma, length
        self._values: torch.Tensor | None = None  # shape [2, length], float32, the newest last; NaN where there is none yet

    def takes(self, new: torch.Tensor) -> torch.Tensor:
        """Whether a step is a spike; afterwards it belongs to the window.

        Args:
            new: loss and gradient norm, float32 of shape [2].

        Returns:
            bool of shape [].
        """
        if self._values is None:
            self._values = torch.full((2, self.length), torch.nan, device=new.device)
        values = self._values = self._values.to(new.device)
        count = (~values[0].isnan()).sum()
        mean = values.nanmean(dim=1)
        spread = ((values - mean[:, None]).square().nansum(dim=1) / (count - 1)).sqrt()
        # Equal values have a mean that differs from them by rounding: that is no spread.
        spread = torch.maximum(spread, torch.finfo(torch.float32).eps * mean.abs())
        is_spike = (new > mean + self.sigma * spread).any() & (count >= max(2, self.length // 2))
        self._values = torch.where(new.isfinite().all(), torch.cat([values[:, 1:], new[:, None]], dim=1), values)
        return is_spike

    def state(self) -> list[list[float]]:
        """The losses and the norms in the window."""
        return self._values[:, ~self._values[0].isnan()].tolist() if self._values is not None else [[], []]

    def restore(self, state: list[list[float]]) -> None:
        """Go on with a window as it was saved; float32 survives the way through decimal digits."""
        newest = torch.tensor(state, dtype=torch.float32)[:, -self.length :]
        self._values = torch.full((2, self.length), torch.nan)
        self._values[:, self.length - newest.shape[1] :] = newest


class UpdateGuard:
    """Skips the updates that must not be made, counts them and the spikes, and remembers which steps they were."""

    def __init__(self, limit: int, spike_sigma: float | None = None, spike_window: int = 128, skip_spikes: bool = False):
        """Set up.

        Args:
            limit: updates that may be skipped in a row.
            spike_sigma, spike_window: see `SpikeWindow`; None looks for no spikes.
            skip_spikes: whether the update of a spike is skipped too.
        """
        self.limit, self.skip_spikes = limit, skip_spikes
        self.window = SpikeWindow(spike_sigma, spike_window) if spike_sigma is not None else None
        self.asked_for: set[int] = set()
        """Steps that are noted whatever they are, as `llmkit replay` wants it."""
        self._counts = torch.zeros(3)  # skipped in all, skipped in a row, spikes; moves to the device with the first step
        self._since_look: list[Step] = []
        self._since_log: dict[str, list[int]] = {"skipped_at": [], "spikes_at": []}

    @classmethod
    def of(cls, config: TrainingConfig) -> UpdateGuard:
        """As the settings ask for."""
        return cls(config.max_skipped_steps, config.spike_sigma, config.spike_window, config.skip_spikes)

    def check(self, step: Step, optimizer: Any, accelerator: Any) -> None:
        """Before an optimizer step: make it no step where it must not be made.

        Fused optimizers of torch take the decision on the device (`found_inf`, as GradScaler gives it), so that nobody waits
        for it; for the others it is fetched, and a step without gradients changes nothing.
        """
        values = torch.stack([step.losses.mean(), step.grad_norm]).float()
        no_number = ~values.isfinite().all()
        is_spike = self.window.takes(values) & ~no_number if self.window is not None else torch.zeros_like(no_number)
        bad = no_number | is_spike if self.skip_spikes else no_number
        skipped, in_a_row, spikes = self._counts.to(bad.device).unbind()
        self._counts = torch.stack([skipped + bad, (in_a_row + bad) * bad, spikes + is_spike])
        step.verdict = no_number * _NO_NUMBER + is_spike * _SPIKE
        step.can_be_skipped = accelerator.distributed_type != DistributedType.DEEPSPEED
        self._since_look.append(step)
        if accelerator.scaler is not None or not step.can_be_skipped:
            return  # float16 skips by itself, and lowers its scale
        inner = getattr(optimizer, "optimizer", optimizer)
        if all(group.get("fused") for group in inner.param_groups):
            inner.grad_scale, inner.found_inf = None, bad.float()
        elif bad.item():
            optimizer.zero_grad(set_to_none=True)

    def looks_now(self, step: Step) -> bool:
        """Whether the verdict on a step is read at once: on a CPU, where that costs nothing, or because it is asked for."""
        return step.losses.device.type == "cpu" or step.number in self.asked_for

    def noted(self) -> list[Step]:
        """The steps since the last look that were skipped, a spike or asked for; waits for the device."""
        steps, self._since_look = self._since_look, []
        if not steps:
            return []
        for step, verdict in zip(steps, torch.stack([step.verdict for step in steps]).tolist(), strict=True):
            is_bad = verdict == _NO_NUMBER or (verdict == _SPIKE and self.skip_spikes)
            step.was_skipped = is_bad and step.can_be_skipped
            if verdict:
                step.reason = "no number" if verdict == _NO_NUMBER else "spike"
            elif step.number in self.asked_for:
                step.reason = "asked for"
            if step.was_skipped:
                self._since_log["skipped_at"].append(step.number)
            if verdict == _SPIKE:
                self._since_log["spikes_at"].append(step.number)
        return [step for step in steps if step.reason]

    def stop_if_stuck(self, step: int) -> None:
        """End a run that learns nothing any more.

        Raises:
            Diverged: as many updates in a row were skipped as may be.
        """
        in_a_row = int(self._counts[1])
        if in_a_row >= self.limit:
            raise Diverged(
                f"the last {in_a_row} updates up to step {step:,} were skipped: their loss or gradient is no number"
                f"{', or a spike' if self.skip_spikes else ''}. Lower --learning_rate, or look at the data of these steps: "
                f"the directory `dumps` of the run tells which they were"
            )

    def facts(self) -> dict[str, Any]:
        """For the ledger: updates skipped and spikes so far, and at which steps since the last log; nothing for none."""
        skipped, _, spikes = (int(count) for count in self._counts.tolist())
        facts = {"skipped_steps": skipped, "spikes": spikes, **self._since_log}
        return {name: value for name, value in facts.items() if value}

    def logged(self) -> None:
        """The ledger has the facts."""
        self._since_log = {name: [] for name in self._since_log}

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to decide as this one would, for JSON."""
        window = self.window.state() if self.window is not None else None
        return {"counts": self._counts.tolist(), "window": window, "since_log": self._since_log}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved `state`."""
        self._counts, self._since_log = torch.tensor(state["counts"]), state["since_log"]
        if self.window is not None and state["window"] is not None:
            self.window.restore(state["window"])
