"""How a run is judged: equal, within rounding, or something else."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llmkit import cli, resources
from llmkit.errors import ConfigError
from llmkit.parallel.layout import read_layout
from llmkit.parallel.verify import (
    SPREAD,
    Quantity,
    Run,
    Verdict,
    cannot_run,
    compare,
    markdown,
    synthetic_texts,
    write_between_markers,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "layouts.md"


def a_run(noise: float = 0.0, **changes: object) -> Run:
    """Ten steps, with a relative difference from those without noise."""
    losses = [(6 - step / 10) * (1 + noise) for step in range(10)]
    run = Run(Path(), 2, losses, [1.0 + noise] * 10, [str(step) for step in range(10)], losses[-1])
    run = replace(run, **changes)  # type: ignore[arg-type]
    run.__dict__["weights"] = {"a": torch.ones(4, 4, dtype=torch.float64) * (1 + noise), "b": torch.zeros(4)}
    return run


def judged(run: Run, precision: str = "fp32", repetitions: tuple[float, ...] = ()) -> dict[str, Quantity]:
    return {one.name: one for one in compare(run, a_run(), [a_run(noise) for noise in repetitions], precision, 1000)}


def failed(quantities: dict[str, Quantity]) -> set[str]:
    return {name for name, quantity in quantities.items() if not quantity.passed}


def test_equal_runs_and_runs_that_differ_by_rounding_pass() -> None:
    assert failed(judged(a_run())) == set()
    assert failed(judged(a_run(2e-7))) == set()
    assert failed(judged(a_run(1e-4))) == {"first loss", "loss", "gradient norm", "validation loss", "weights"}
    assert failed(judged(a_run(1e-4), "bf16")) == set()


def test_what_one_process_differs_by_from_itself_widens_the_tolerance_but_not_of_the_first_loss() -> None:
    found = judged(a_run(SPREAD * 0.9e-4), repetitions=(1e-4, 1e-5))
    assert failed(found) == {"first loss"}
    assert failed(judged(a_run(SPREAD * 1.1e-4), repetitions=(1e-4, 1e-5))) == failed(judged(a_run(1e-2)))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 7.0])
@pytest.mark.parametrize("step", [1, 2, 10])
def test_the_first_step_at_which_a_loss_leaves_is_named(wrong: float, step: int) -> None:
    losses = list(a_run().losses)
    losses[step - 1] = wrong
    found = judged(a_run(losses=losses))
    assert failed(found) == ({"first loss", "loss"} if step == 1 else {"loss"})
    assert found["loss"].first_step == step


def test_another_order_of_samples_is_no_matter_of_tolerance() -> None:
    found = judged(a_run(orders=[str(step) for step in (0, 1, 2, 9, 8, 7, 6, 5, 4, 3)]), "bf16")["order of samples"]
    assert (found.passed, found.first_step) == (False, 4)


def test_the_worst_tensor_is_named_and_one_that_is_missing_fails() -> None:
    run = a_run()
    run.weights["a"][2, 3] += 0.5
    found = judged(run)["weights"]
    assert (found.passed, found.tensor, found.largest) == (False, "a", 0.5)
    run.weights["a"][2, 3] = math.nan
    assert not judged(run)["weights"].passed
    run = a_run()
    del run.weights["b"]
    found = judged(run)["weights"]
    assert not found.passed
    assert found.tensor == "b is in one of them only"


def test_a_tensor_that_is_zero_may_not_become_another() -> None:
    run = a_run()
    run.weights["b"] = torch.full((4,), 1e-9)
    assert not judged(run)["weights"].passed


def test_a_skipped_step_without_a_norm_is_equal_to_one() -> None:
    norms = [math.nan, *[1.0] * 9]
    assert compare(a_run(gradient_norms=norms), a_run(gradient_norms=norms), [], "fp16", 1000)[3].passed
    assert not compare(a_run(), a_run(gradient_norms=norms), [], "fp16", 1000)[3].passed


@pytest.mark.parametrize(
    ("layout", "gpus", "reason"),
    [
        ("distributed_type: MULTI_GPU\nnum_machines: 2\nnum_processes: 4", 2, "has 2 machines"),
        ("distributed_type: 'NO'", 2, "one process"),
        ("distributed_type: MULTI_GPU\nmixed_precision: fp8", 2, "no tolerance"),
        ("distributed_type: MULTI_GPU\nmixed_precision: fp16", 0, "needs a GPU"),
        ("distributed_type: MULTI_GPU\nmixed_precision: fp16", 2, None),
        ("distributed_type: MULTI_GPU\nmixed_precision: bf16", 0, None),
        ("distributed_type: FSDP", 0, None),
    ],
)
def test_what_cannot_be_verified_here_has_a_reason(layout: str, gpus: int, reason: str | None, tmp_path: Path) -> None:
    (tmp_path / "layout.yaml").write_text(layout)
    found = cannot_run(read_layout(str(tmp_path / "layout.yaml")), gpus)
    assert found is None if reason is None else reason in str(found)


def test_the_texts_are_the_same_always_and_none_comes_twice() -> None:
    texts = synthetic_texts()
    assert texts == synthetic_texts()
    assert len(set(texts)) == len(texts) == 120


def a_verdict(layout: str, model_type: str, difference: float) -> Verdict:
    quantities = [Quantity("missing processes", 0, 0), Quantity("order of samples", 0, 0), Quantity("loss", difference, 1e-6)]
    return Verdict(layout, "single", model_type, "fp32", 2, 20, 16, quantities)


def test_a_page_gets_the_worst_of_all_models_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- llmkit verify --all --write -->old<!-- end -->\nafter\n")
    verdicts = [a_verdict("ddp", "llama", 1e-7), a_verdict("ddp", "gpt2", 2e-6), a_verdict("tp", "llama", 3e-7)]
    write_between_markers(page, markdown(verdicts, {"tp, gpt2": "no plan"}))
    said = page.read_text()
    assert said.startswith("before\n")
    assert said.endswith("\nafter\n")
    assert "old" not in said
    assert "| `ddp` | 2 | 2.0e-06 of 1.0e-06 **fails** | llama, gpt2 |" in said
    assert "| `tp` | 2 | 3.0e-07 of 1.0e-06 | llama |" in said
    assert "- `tp, gpt2`: no plan" in said
    (tmp_path / "other.md").write_text("no markers")
    with pytest.raises(ConfigError, match="has no lines"):
        write_between_markers(tmp_path / "other.md", "")


def test_every_shipped_layout_is_in_the_page_and_passes() -> None:
    said = PAGE.read_text(encoding="utf-8")
    table = said.partition("<!-- llmkit verify")[2].partition("<!-- end -->")[0]
    missing = [name for name in resources.names("accelerate_configs") if f"`{name}`" not in table]
    assert not missing, "run `llmkit verify --all --write docs/layouts.md`"
    assert "fails" not in table


def test_wrong_options_are_refused_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "--accelerate_config", "ddq"]) == 2
    assert "did you mean 'ddp'?" in capsys.readouterr().err
    assert cli.main(["verify", "--against", "ddp"]) == 2
    assert "--against: ddp has several processes" in capsys.readouterr().err
    assert cli.main(["verify", "--steps", "0"]) == 2
    assert "--steps: is 0" in capsys.readouterr().err
