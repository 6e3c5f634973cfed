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

from llmkit import resources
from llmkit.errors import ArtefactError
from llmkit.parallel.launch import launch_words
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
def test_muon_is_refused_where_matrices_are_partitioned(settings: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    words = command(tmp_path / "m", "pretrain", {**settings, "optim": "muon"}, "zero2")
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "optim: muon needs whole matrices on every process" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_muon_on_two_ranks_computes_what_it_does_on_one(settings: dict[str, Any], run: Any, tmp_path: Path) -> None:
    settings = {**settings, "optim": "muon"}
    one = run("pretrain", tmp_path / "one", **{**settings, "per_device_train_batch_size": 32})
    done = subprocess.run(
        command(tmp_path / "two", "pretrain", settings), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(Artefact.open(tmp_path / "two", "pretrain")) == pytest.approx(losses(one), abs=1e-3)


@pytest.mark.slow
def test_two_ranks_have_the_z_loss_of_one(settings: dict[str, Any], run: Any, tmp_path: Path) -> None:
    settings = {**settings, "z_loss": 0.1}
    one = run("pretrain", tmp_path / "one", **{**settings, "per_device_train_batch_size": 32})
    done = subprocess.run(
        command(tmp_path / "two", "pretrain", settings), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    two = Artefact.open(tmp_path / "two", "pretrain")
    for key in ("loss", "z_loss"):
        assert losses(two, key) == pytest.approx(losses(one, key), abs=TOLERANCE)


@pytest.mark.slow
def test_two_ranks_have_the_validation_loss_of_one(two_ranks: tuple[Artefact, str], one_rank: Artefact) -> None:
    assert losses(two_ranks[0], "eval_loss") == pytest.approx(losses(one_rank, "eval_loss"), abs=TOLERANCE)
    loss = two_ranks[0].manifest.metrics["validation"]["loss"]
    assert loss == pytest.approx(one_rank.manifest.metrics["validation"]["loss"], abs=TOLERANCE)


@pytest.mark.slow
def test_the_samples_of_a_step_and_not_the_layout_are_part_of_the_fingerprint(
    two_ranks: tuple[Artefact, str], run: Any, settings: dict[str, Any]
) -> None:
    artefact = two_ranks[0]
    before = artefact.manifest
    again = run("pretrain", artefact.directory, **{**settings, "per_device_train_batch_size": 32})  # one process
    assert again.manifest == before, "there is nothing to do"
    with pytest.raises(ArtefactError, match=r"differs in global_batch_size \(32 there, 16 now\)"):
        run("pretrain", artefact.directory, **settings)


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
    assert {path.name for path in tmp_path.iterdir()} - {".hashes.json"} == {"m-asked.yaml", "m.partial"}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["single", "ddp"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_command_ends_all_ranks_with_its_code_and_the_run_can_go_on(
    layout: str, number: signal.Signals, settings: dict[str, Any], tmp_path: Path
) -> None:
    endless = {**settings, "max_steps": 100_000, "save_steps": 5}
    output = tmp_path / "m"
    partial = output.with_name("m.partial")
    process = subprocess.Popen(
        command(output, "pretrain", endless, layout),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell turns it off with `&`
    )
    try:
        _until(lambda: len(read_ledger(partial / "metrics.jsonl")) > 7 or process.poll() is not None)
        assert process.poll() is None, "it ended by itself"
        ranks = psutil.Process(process.pid).children(recursive=True)
        assert len(ranks) == {"single": 1, "ddp": 3}[layout], "of several ranks, the launcher too"
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 128 + number
        assert said.count("the same command goes on") == 1
        assert "Traceback" not in said
        assert not psutil.wait_procs(ranks, timeout=60)[1], "none is alive"
        assert not is_held(partial)
        assert not output.exists()
        assert list(partial.glob("checkpoint-*"))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_single_process_that_is_killed_is_named_with_what_may_be_the_cause(settings: dict[str, Any], tmp_path: Path) -> None:
    words = command(tmp_path / "m", "pretrain", {**settings, "max_steps": 100_000}, "single")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    _until(lambda: (tmp_path / "m.partial/metrics.jsonl").exists() or process.poll() is not None)
    for child in psutil.Process(process.pid).children():
        child.kill()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert said.splitlines()[-1] == "llmkit: pretrain: its process was ended by SIGKILL; is the memory full?"


@pytest.mark.slow
def test_a_stage_of_one_process_started_under_several_is_run_by_the_first(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A text that is long enough to be one.\n" * 5)
    recipe = resources.shipped("recipes") / "preprocess.py"
    words = [*launch_words("ddp"), str(recipe), "--train_file", str(tmp_path / "a.txt"), "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("preprocess: done") == 1
    assert Artefact.open(tmp_path / "out", "preprocess").damaged(hashes=True) == []
    words[words.index(str(tmp_path / "a.txt"))] = "nowhere"
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.count("llmkit: train_file: 'nowhere' is no file") == 1


@pytest.mark.slow
def test_two_ranks_without_token_shards_make_them_once(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("".join(f"This is line {number} of a text.\n" for number in range(2000)))
    corpus = {"train_file": str(tmp_path / "corpus.txt"), "vocab_size": 300, "max_steps": 2}
    given = {key: value for key, value in settings.items() if key != "tokens"}
    recipe = resources.shipped("recipes") / "pretrain.py"
    asked = command(tmp_path / "m", "pretrain", {**given, **corpus})
    words = [*launch_words("ddp"), str(recipe), *asked[4 : asked.index("--accelerate_config")]]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("tokenize: running") == 1
    assert Artefact.open(tmp_path / "m", "pretrain").manifest.metrics["processes"] == 2


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
