"""Every shipped layout computes what one process computes.

By default each layout is run once, and some of the further settings and crossings; `pytest --every-layout` runs all of them.
"""

from __future__ import annotations

from typing import Any

import pytest

from llmkit import resources
from llmkit.errors import LLMKitError
from llmkit.parallel.launch import gpu_count
from llmkit.parallel.layout import read_layout
from llmkit.parallel.verify import Run, Verdict, Verification, cannot_run, compare

LAYOUTS = resources.names("accelerate_configs")
"""A new file in accelerate_configs/ is run, unless `cannot_run` has a reason."""


def runnable(layout: str) -> str:
    reason = cannot_run(read_layout(layout), gpu_count())
    if reason:
        pytest.skip(f"{layout} {reason}")
    return layout


def assert_passed(verdict: Verdict) -> None:
    assert verdict.passed, verdict.table()


def some(*usual: str) -> list[Any]:
    """The layouts, of which only the usual ones are run by default."""
    return [layout if layout in usual else pytest.param(layout, marks=pytest.mark.every_layout) for layout in LAYOUTS]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_computes_what_one_process_computes(layout: str, verification: Verification) -> None:
    verdict = verification.verify(runnable(layout))
    assert_passed(verdict)
    assert verdict.processes >= 2


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["qwen3", "gpt2"])
@pytest.mark.parametrize("layout", some("tp", "cp"))
def test_a_layout_computes_it_with_other_architectures(layout: str, model_type: str, verification: Verification) -> None:
    try:
        assert_passed(verification.verify(runnable(layout), model_type))
    except LLMKitError as refusal:
        assert model_type == "gpt2", refusal
        found = read_layout(layout)
        assert found.tensor > 1 or found.context > 1, refusal
        said = "no tensor-parallel plan for gpt2" if found.tensor > 1 else "context parallel knows no attention of gpt2"
        assert said in str(refusal)


@pytest.mark.slow
@pytest.mark.parametrize("layout", some("fsdp2", "zero3"))
def test_gradient_checkpointing_changes_nothing(layout: str, verification: Verification) -> None:
    assert_passed(verification.verify(runnable(layout), gradient_checkpointing=True))


@pytest.mark.slow
@pytest.mark.parametrize("layout", [pytest.param(name, marks=pytest.mark.every_layout) for name in ("ddp", "fsdp2")])
def test_compilation_changes_nothing_but_roundings(layout: str, verification: Verification) -> None:
    assert_passed(verification.verify(layout, torch_compile=True))


@pytest.fixture(scope="module")
def of_documents(tmp_path_factory: pytest.TempPathFactory) -> Verification:
    """Runs whose samples are whole documents that do not see each other."""
    return Verification(tmp_path_factory.mktemp("documents"), cpu_threads=1, packing="best_fit", document_masking=True)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [pytest.param(name, marks=pytest.mark.every_layout) for name in LAYOUTS])
def test_a_layout_keeps_documents_apart(layout: str, of_documents: Verification) -> None:
    if read_layout(layout).context > 1:
        with pytest.raises(LLMKitError, match="context parallel has no mask of documents"):
            of_documents.verify(layout)
        return
    assert_passed(of_documents.verify(runnable(layout)))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("layout", [pytest.param(name, marks=pytest.mark.every_layout) for name in ("ddp", "zero3", "fsdp2")])
def test_a_layout_agrees_in_less_precision(layout: str, precision: str, verification: Verification) -> None:
    """In float16 the ranks agree on the loss scale and on the steps that it makes them skip, or the losses would part."""
    if precision == "fp16" and gpu_count() < 2:
        pytest.skip("float16 needs GPUs, one for each of two processes")
    assert_passed(verification.verify(layout, precision=precision))


# From the weights of one layout to another, through the Hugging Face repository that both write and read.
CROSSINGS = [
    ("zero3", "ddp"),
    pytest.param("ddp", "single", marks=pytest.mark.every_layout),
    pytest.param("single", "ddp", marks=pytest.mark.every_layout),
    ("fsdp2", "tp"),
    pytest.param("tp", "zero3", marks=pytest.mark.every_layout),
    pytest.param("fsdp2_tp", "fsdp2", marks=pytest.mark.every_layout),
]


@pytest.fixture(scope="module")
def further(tmp_path_factory: pytest.TempPathFactory) -> Verification:
    """Runs that go on from the weights of earlier ones."""
    return Verification(tmp_path_factory.mktemp("further"), cpu_threads=1)


@pytest.fixture(scope="module")
def one_process(verification: Verification, further: Verification) -> list[Run]:
    """The reference and its repetitions, each gone on with from its own weights."""
    before, repetitions = verification.reference("llama", "fp32", 16)
    return [go_on(further, f"one-{number}", "single", run, 16) for number, run in enumerate([before, *repetitions])]


def go_on(further: Verification, name: str, layout: str, run: Run, at_once: int) -> Run:
    settings: dict[str, Any] = {"model_name_or_path": str(run.directory), "model_type": None, "config_overrides": {}}
    return further.train(name, layout, "llama", "fp32", 16, {**settings, "per_device_train_batch_size": at_once})


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), CROSSINGS)
def test_a_model_goes_on_under_another_layout(
    first: str, second: str, verification: Verification, further: Verification, one_process: list[Run]
) -> None:
    settings = {"per_device_train_batch_size": 4}
    begun = verification.train(f"{first}-begun", runnable(first), "llama", "fp32", 16, settings)
    run = go_on(further, f"{first}-{second}", second, begun, 4)
    # The weights that it begins with differ as those of the repetitions do, so the first loss is a loss like the others.
    quantities = compare(run, one_process[0], one_process[1:], "fp32", 16 * 63)
    assert not [quantity for quantity in quantities if not quantity.passed and quantity.name != "first loss"]
    assert run.losses[0] < begun.losses[0] - 0.5
