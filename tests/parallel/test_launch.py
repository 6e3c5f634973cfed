"""How many processes a layout has, and what the end of a launched process means."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from llmkit.errors import ConfigError, LLMKitError, StageFailed, StageStopped
from llmkit.parallel import launch
from llmkit.parallel.launch import default_layout, gpu_count, launch_words, process_count
from llmkit.stages import STAGES


def machine(monkeypatch: pytest.MonkeyPatch, gpus: int, visible: str | None = None) -> None:
    monkeypatch.setattr(launch, "_gpus_of_machine", lambda: gpus)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


@pytest.mark.parametrize(
    ("gpus", "visible", "count"),
    [(0, None, 0), (4, None, 4), (4, "", 0), (4, "-1", 0), (4, "2", 1), (4, "0, 3", 2), (4, "1,-1,2", 1), (1, "0,1", 1),
     (4, "GPU-8932f937,GPU-9d1c25f5", 2)],
)  # fmt: skip
def test_the_gpus_that_count_are_those_that_may_be_used(
    gpus: int, visible: str | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, gpus, visible)
    assert gpu_count() == count
    assert default_layout() == ("ddp" if count > 1 else None)


@pytest.mark.parametrize(
    ("layout", "gpus", "count"),
    [
        ("distributed_type: MULTI_GPU", 4, 4),
        ("distributed_type: MULTI_GPU", 1, 1),
        ("distributed_type: MULTI_GPU", 0, 2),
        ("distributed_type: MULTI_GPU\nnum_processes: 16\nnum_machines: 2", 4, 16),
        ("distributed_type: MULTI_GPU\nuse_cpu: true", 4, 2),
        ("distributed_type: DEEPSPEED", 4, 4),
        ("distributed_type: 'NO'", 4, 1),
        ("distributed_type: NO\nnum_processes: 3", 4, 1),
        ("distributed_type: MULTI_GPU\nparallelism_config: {parallelism_config_tp_size: 4}", 6, 4),
        ("distributed_type: MULTI_GPU\nparallelism_config: {parallelism_config_tp_size: 4}", 0, 4),
        ("distributed_type: MEGATRON_LM\nmegatron_lm_config: {megatron_lm_pp_degree: 2}", 8, 8),
    ],
)
def test_a_layout_has_as_many_processes_as_it_says_or_as_there_are_gpus(
    layout: str, gpus: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, gpus)
    path = tmp_path / "layout.yaml"
    path.write_text(layout)
    assert process_count(str(path)) == count


@pytest.mark.parametrize("name", ["single", "cpu"])
def test_layouts_of_one_process_have_one_whatever_the_machine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 4)
    words = launch_words(name)
    assert words[words.index("--num_processes") + 1] == str(process_count(name)) == "1"


def test_a_layout_that_is_not_there_has_no_processes() -> None:
    with pytest.raises(ConfigError, match="'dpp' is neither a file nor one of llmkit's accelerate_configs"):
        process_count("dpp")


def test_a_layout_for_the_cpu_is_one_also_for_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    (tmp_path / "two.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 2\nuse_cpu: true\n")
    assert launch._environment(str(tmp_path / "two.yaml"))["ACCELERATE_USE_CPU"] == "true"
    assert launch._environment("cpu")["ACCELERATE_USE_CPU"] == "true"
    assert "ACCELERATE_USE_CPU" not in launch._environment("ddp")


def test_the_disk_of_an_offload_is_passed_on_which_accelerate_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_NVME_PATH"
    monkeypatch.delenv(name, raising=False)
    assert launch._environment("zero3_nvme")[name] == "/tmp/llmkit-nvme"
    assert name not in launch._environment("zero3")
    monkeypatch.setenv(name, "/fast")
    assert launch._environment("zero3_nvme")[name] == "/fast", "the environment wins"


@pytest.mark.parametrize(
    ("status", "kind", "code", "words"),
    [
        (2, StageFailed, 2, "its process ended with exit code 2; what it printed above says why"),
        (137, StageFailed, 2, "was ended by SIGKILL; is the memory full?"),
        (139, StageFailed, 2, "ended with exit code 139"),
        (128 + signal.SIGTERM, StageStopped, 143, "stopped by SIGTERM; the same command goes on where this one stopped"),
        (128 + signal.SIGINT, StageStopped, 130, "stopped by SIGINT; the same command"),
        (128 + signal.SIGHUP, StageStopped, 129, "stopped by SIGHUP; the same command"),
    ],
)
def test_an_exit_code_is_explained(status: int, kind: type[LLMKitError], code: int, words: str) -> None:
    failure = launch._failure(STAGES["pretrain"], status, None, force=False)
    assert type(failure) is kind
    assert failure.exit_code == code
    assert words in str(failure)
    assert not failure.reported


def test_a_forced_run_is_gone_on_with_without_force() -> None:
    failure = launch._failure(STAGES["pretrain"], 143, None, force=True)
    assert "the same command without --force goes on" in str(failure)


@pytest.mark.parametrize(("status", "code"), [(2, 2), (143, 143)])
def test_what_the_stage_has_said_itself_is_not_said_again(status: int, code: int) -> None:
    failure = launch._failure(STAGES["pretrain"], status, "its own words", force=False)
    assert (str(failure), failure.exit_code, failure.reported) == ("its own words", code, True)
