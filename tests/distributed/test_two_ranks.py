"""Two real ranks on the CPU, started as a user starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from llmkit.pipeline.artefact import Artefact
from llmkit.pipeline.lock import is_held
from llmkit.training.ledger import read_ledger

# Gradients of two ranks are added in another order than those of one; float32 over a few steps of a tiny model.
TOLERANCE = 1e-4


def command(output: Path, stage: str, settings: dict[str, Any], layout: str = "ddp") -> list[str]:
    file = output.with_name(f"{output.name}-asked.yaml")
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    file.write_text(yaml.safe_dump(plain))
    words = [sys.executable, "-m", "llmkit", stage, "--config", str(file), "--output_dir", str(output)]
    return [*words, "--accelerate_config", layout]


def losses(artefact: Artefact, key: str = "loss") -> list[float]:
    return [entry[key] for entry in read_ledger(artefact.directory / "metrics.jsonl") if key in entry]


@pytest.fixture(scope="module")
def settings(tokens: Artefact, tiny: dict[str, Any]) -> dict[str, Any]:
    return {
        **tiny,
        "tokens": tokens.directory,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 4,
        "max_steps": 8,
        "eval_steps": 4,
    }


@pytest.fixture(scope="module")
def two_ranks(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Artefact, str]:
    output = tmp_path_factory.mktemp("ranks") / "two"
    done = subprocess.run(command(output, "pretrain", settings), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Artefact.open(output, "pretrain"), done.stdout


@pytest.fixture(scope="module")
def one_rank(run: Any, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    output = tmp_path_factory.mktemp("ranks") / "one"
    return run("pretrain", output, **{**settings, "per_device_train_batch_size": 32})


@pytest.mark.slow
def test_two_ranks_commit_one_artefact(two_ranks: tuple[Artefact, str]) -> None:
    artefact, said = two_ranks
    metrics = artefact.manifest.metrics
    assert (metrics["processes"], metrics["layout"], metrics["samples_per_step"]) == (2, "MULTI_CPU", 32)
    assert artefact.damaged(hashes=True) == []
    beside = {path.name for path in artefact.directory.parent.iterdir()} - {"one", ".hashes.json", "two-asked.yaml"}
    assert beside == {"two"}, "nothing is left beside it"
    assert said.count("pretrain: done") == 1
    assert len(losses(artefact)) == 8, "each step is logged once"


@pytest.mark.slow
def test_two_ranks_have_the_losses_of_one_at_the_same_global_batch(
    two_ranks: tuple[Artefact, str], one_rank: Artefact
) -> None:
    two = two_ranks[0]
    assert losses(two) == pytest.approx(losses(one_rank), abs=TOLERANCE)
    assert losses(two)[-1] < losses(two)[0] - 0.3


@pytest.mark.slow
def test_two_ranks_have_the_losses_of_one_also_past_the_end_of_an_epoch(
    run: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    further = {**settings, "per_device_train_batch_size": 64, "max_steps": 9, "eval_steps": 100}  # 7 steps an epoch
    one = run("pretrain", tmp_path / "one", **{**further, "per_device_train_batch_size": 128})
    words = command(tmp_path / "two", "pretrain", further)
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    two = Artefact.open(tmp_path / "two", "pretrain")
    assert losses(two)[:6] == pytest.approx(losses(one)[:6], abs=TOLERANCE)
    assert losses(two) == pytest.approx(losses(one), abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["zero2", "zero3"])
def test_zero_layouts_compute_what_one_process_computes(
    layout: str, settings: dict[str, Any], one_rank: Artefact, tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    words = command(tmp_path / "two", "pretrain", settings, layout)
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    artefact = Artefact.open(tmp_path / "two", "pretrain")
    assert artefact.manifest.metrics["layout"] == "DEEPSPEED"
    assert artefact.manifest.metrics["parameters"] == one_rank.manifest.metrics["parameters"]
    assert losses(artefact) == pytest.approx(losses(one_rank), abs=TOLERANCE)
    assert losses(artefact, "eval_loss") == pytest.approx(losses(one_rank, "eval_loss"), abs=TOLERANCE)


@pytest.mark.slow
def test_two_ranks_have_the_validation_loss_of_one(two_ranks: tuple[Artefact, str], one_rank: Artefact) -> None:
    assert losses(two_ranks[0], "eval_loss") == pytest.approx(losses(one_rank, "eval_loss"), abs=TOLERANCE)
    loss = two_ranks[0].manifest.metrics["validation"]["loss"]
    assert loss == pytest.approx(one_rank.manifest.metrics["validation"]["loss"], abs=TOLERANCE)


@pytest.mark.slow
def test_the_layout_is_no_part_of_the_fingerprint(two_ranks: tuple[Artefact, str], run: Any, settings: dict[str, Any]) -> None:
    artefact = two_ranks[0]
    before = artefact.manifest
    again = run("pretrain", artefact.directory, **settings)  # one process, the same settings
    assert again.manifest == before, "there is nothing to do"


@pytest.mark.slow
def test_a_users_error_on_two_ranks_is_the_last_word_without_a_traceback(settings: dict[str, Any], tmp_path: Path) -> None:
    wrong = {**settings, "block_size": 100_000}  # refused: the corpus has 26,933 tokens
    words = command(tmp_path / "m", "pretrain", wrong)
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2
    assert "fewer than one sample of 100000" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("llmkit: the corpus has")
    assert "Traceback" not in done.stderr
    assert "torch" not in done.stderr, "nor a word of the launcher"


@pytest.mark.slow
def test_sigterm_to_the_command_ends_all_ranks_and_the_run_can_go_on(settings: dict[str, Any], tmp_path: Path) -> None:
    endless = {**settings, "max_steps": 100_000, "save_steps": 5}
    output = tmp_path / "m"
    partial = output.with_name("m.partial")
    process = subprocess.Popen(
        command(output, "pretrain", endless), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _until(lambda: len(read_ledger(partial / "metrics.jsonl")) > 7 or process.poll() is not None)
        assert process.poll() is None, "it ended by itself"
        ranks = psutil.Process(process.pid).children(recursive=True)
        assert len(ranks) >= 3, "the launcher and two ranks"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) != 0
        assert not psutil.wait_procs(ranks, timeout=60)[1], "none is alive"
        assert not is_held(partial)
        assert not output.exists()
        assert list(partial.glob("checkpoint-*"))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_rank_that_is_killed_takes_the_others_with_it_and_is_named(settings: dict[str, Any], tmp_path: Path) -> None:
    endless = {**settings, "max_steps": 100_000}
    output = tmp_path / "m"
    ledger = tmp_path / "m.partial" / "metrics.jsonl"
    process = subprocess.Popen(
        command(output, "pretrain", endless),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    try:
        _until(lambda: len(read_ledger(ledger)) > 1 or process.poll() is not None)
        ranks = psutil.Process(process.pid).children(recursive=True)
        workers = [rank for rank in ranks if "recipes" in " ".join(rank.cmdline()) and not rank.children()]
        assert len(workers) == 2
        workers[1].kill()
        said = process.communicate(timeout=90)[1]
        assert process.returncode == 2
        assert "was ended by SIGKILL" in said
        assert not psutil.wait_procs(ranks, timeout=30)[1]
        assert not output.exists()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _until(happened: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.1)
