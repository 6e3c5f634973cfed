"""`llmkit verify` catches a launch that is tampered with, by the quantity and the step at which it shows."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from llmkit import cli
from llmkit.parallel.launch import gpu_count
from llmkit.parallel.verify import Quantity, Verification

# The recipe, with something patched before it runs; on rank 1 alone where it says so.
DRIVER = """
import dataclasses, os, sys

import torch

from llmkit import stages
from llmkit.training import language_model
from llmkit.training.trainer import LLMKitTrainer

rank = int(os.environ["RANK"])
training_step, clip = LLMKitTrainer.training_step, LLMKitTrainer._clip_and_measure
new_trainer = language_model.new_trainer

TAMPERING
sys.exit(stages.main("pretrain"))
"""

ANOTHER_SEED = """
def tampered(config, workspace):
    return new_trainer(dataclasses.replace(config, seed=config.seed + rank), workspace)

language_model.new_trainer = tampered
"""

# What has been counted for the ledger is not what rank 1 learns.
OTHER_SAMPLES = """
def tampered(self, model, inputs, *rest, **options):
    if rank == 1:
        inputs = {name: torch.roll(tensor, 1, dims=1) for name, tensor in inputs.items()}
    return training_step(self, model, inputs, *rest, **options)

LLMKitTrainer.training_step = tampered
"""

OTHER_WEIGHTS = """
def tampered(self, model, *rest, **options):
    if rank == 1 and self.state.global_step == 2:
        with torch.no_grad():
            next(model.parameters()).mul_(1.001)
    return training_step(self, model, *rest, **options)

LLMKitTrainer.training_step = tampered
"""

# Rank 1 takes part in the reduction, and goes on with its own gradients.
NOT_REDUCED_ON_ONE = """
def keeps_its_own(state, bucket):
    own = bucket.buffer().clone()
    reduced = torch.distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
    return reduced.then(lambda sums: own if rank == 1 else sums.value()[0] / 2)

def tampered(self, model, *rest, **options):
    if not hasattr(self, "hooked"):
        self.hooked = model.register_comm_hook(None, keeps_its_own) or True
    return training_step(self, model, *rest, **options)

LLMKitTrainer.training_step = tampered
"""

NOT_REDUCED = """
def tampered(self, model, *rest, **options):
    with model.no_sync():
        return training_step(self, model, *rest, **options)

LLMKitTrainer.training_step = tampered
"""

# As where a norm is added up over ranks that all have the whole of it; the norm that is logged is right.
CLIPPED_BY_A_DOUBLED_NORM = """
def tampered(self, model, max_norm):
    return clip(self, model, max_norm / 2)

LLMKitTrainer._clip_and_measure = tampered
"""

SUMMED = """
def doubled(self, model, max_norm):
    for parameter in model.parameters():
        parameter.grad.mul_(2)
    return clip(self, model, max_norm)

LLMKitTrainer._clip_and_measure = doubled
"""


def tampered(verification: Verification, tmp_path: Path, tampering: str) -> dict[str, Quantity]:
    (tmp_path / "driver.py").write_text(DRIVER.replace("TAMPERING", textwrap.dedent(tampering)))
    verdict = verification.verify("ddp", script=tmp_path / "driver.py")
    assert not verdict.passed
    return {quantity.name: quantity for quantity in verdict.quantities}


def begins(quantities: dict[str, Quantity]) -> dict[str, int]:
    return {name: quantity.first_step for name, quantity in quantities.items() if quantity.first_step is not None}


@pytest.mark.slow
def test_a_rank_with_another_seed_is_caught_by_the_order_of_samples(verification: Verification, tmp_path: Path) -> None:
    found = begins(tampered(verification, tmp_path, ANOTHER_SEED))
    assert found["order of samples"] == found["first loss"] == found["gradient norm"] == 1


@pytest.mark.slow
def test_a_rank_that_learns_other_samples_than_it_counts_is_caught_by_the_first_loss(
    verification: Verification, tmp_path: Path
) -> None:
    found = begins(tampered(verification, tmp_path, OTHER_SAMPLES))
    assert "order of samples" not in found
    assert found["first loss"] == found["gradient norm"] == 1


@pytest.mark.slow
def test_a_rank_whose_weights_stray_is_caught_at_that_step(verification: Verification, tmp_path: Path) -> None:
    found = begins(tampered(verification, tmp_path, OTHER_WEIGHTS))
    assert min(found.values()) == found["gradient norm"] == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tampering", "step_of_norm"), [(NOT_REDUCED_ON_ONE, 2), (NOT_REDUCED, 1)], ids=["on one rank", "on both"]
)
def test_a_gradient_that_is_not_reduced_is_caught(
    tampering: str, step_of_norm: int, verification: Verification, tmp_path: Path
) -> None:
    quantities = tampered(verification, tmp_path, tampering)
    found = begins(quantities)
    assert "order of samples" not in found
    assert "first loss" not in found
    assert found == {"loss": 2, "gradient norm": step_of_norm}
    assert not quantities["weights"].passed


@pytest.mark.slow
def test_clipping_by_a_doubled_norm_is_caught_by_what_it_leads_to(verification: Verification, tmp_path: Path) -> None:
    quantities = tampered(verification, tmp_path, CLIPPED_BY_A_DOUBLED_NORM)
    assert begins(quantities) == {"loss": 2, "gradient norm": 2}, "Adam with a usual epsilon would hide it"
    assert not quantities["weights"].passed


@pytest.mark.slow
def test_gradients_that_are_summed_in_place_of_averaged_are_caught(verification: Verification, tmp_path: Path) -> None:
    quantities = tampered(verification, tmp_path, SUMMED)
    assert begins(quantities)["gradient norm"] == 1
    assert quantities["gradient norm"].difference > 0.9, "doubled at first; what it leads to may differ more"


@pytest.mark.slow
def test_float16_without_a_gpu_is_refused_in_words(capfd: pytest.CaptureFixture[str]) -> None:
    if gpu_count():
        pytest.skip("there is a GPU")
    assert cli.main(["verify", "--accelerate_config", "ddp", "--precision", "fp16", "--steps", "1"]) == 2
    said = capfd.readouterr().err
    assert "fp16: float16 training needs a GPU, and here it is a CPU; take bf16" in said
    assert "Traceback" not in said
