"""Updates that must not be made: a gradient that is no number, on any rank.

One such gradient turns every weight into NaN and the run is lost. Its norm is that of the gradient reduced over all ranks, so
every rank comes to the same decision without asking the others, and the weights stay as they were.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import DistributedType

from llmkit.errors import LLMKitError


class Diverged(LLMKitError):
    """Too many updates in a row had no finite gradient."""


class UpdateGuard:
    """Skips updates without a finite gradient, and counts them."""

    def __init__(self, limit: int):
        """Set up.

        Args:
            limit: updates that may be skipped in a row.
        """
        self.limit = limit
        self._skipped: torch.Tensor | None = None  # shape [2]: in all, in a row; stays on the device between two logs

    def check(self, grad_norm: Any, optimizer: Any, accelerator: Any) -> None:
        """Before an optimizer step: make it no step where the norm of the gradient is no number.

        Fused optimizers of torch take the decision on the device (`found_inf`, as GradScaler gives it), so that nobody waits
        for it; for the others it is fetched, and a step without gradients changes nothing.
        """
        norm = torch.as_tensor(grad_norm)
        bad = (~torch.isfinite(norm)).float().reshape(())
        before = self._skipped if self._skipped is not None else torch.zeros(2, device=bad.device)
        self._skipped = torch.stack([before[0] + bad, (before[1] + bad) * bad])
        if accelerator.scaler is not None or accelerator.distributed_type == DistributedType.DEEPSPEED:
            return  # float16 skips by itself, and lowers its scale; DeepSpeed has made its step already
        inner = getattr(optimizer, "optimizer", optimizer)
        if all(group.get("fused") for group in inner.param_groups):
            inner.grad_scale, inner.found_inf = None, bad
        elif bad.item():
            optimizer.zero_grad(set_to_none=True)

    def stop_if_stuck(self, step: int) -> None:
        """End a run that learns nothing any more.

        Raises:
            Diverged: as many updates in a row were skipped as may be.
        """
        if self._skipped is not None and self._skipped[1].item() >= self.limit:
            raise Diverged(
                f"the last {int(self._skipped[1])} updates up to step {step:,} were skipped: their gradient is no number; "
                f"the last checkpoint is from before. Lower --learning_rate, or look at the data of these steps"
            )

    def facts(self) -> dict[str, Any]:
        """For the ledger: updates skipped so far, where there were any."""
        skipped = int(self._skipped[0]) if self._skipped is not None else 0
        return {"skipped_steps": skipped} if skipped else {}
