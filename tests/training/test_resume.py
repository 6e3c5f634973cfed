"""Runs that are killed with SIGKILL at a chosen instant, and go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llmkit.errors import ArtefactError
from llmkit.pipeline.artefact import Artefact
from llmkit.pipeline.lock import is_held
from llmkit.tokens.shards import data_fingerprint
from llmkit.training.checkpoints import all_checkpoints
from llmkit.training.ledger import Ledger, read_ledger
from llmkit.training.trainer import LLMKitTrainer

# Runs a stage in a process that kills itself at the n-th call of one function: `driver WHERE COUNT STAGE OPTIONS...`
DRIVER = """
import os, signal, sys
from llmkit.cli import main
from llmkit.training import checkpoints, finetuning, language_model, ledger, text_samples

owner, name = {
    "log": (ledger.Ledger, "on_log"),
    "checkpoint write": (checkpoints, "sync"),
    "checkpoint rename": (checkpoints, "rotate"),
    "text": (text_samples, "go_on"),
    "end": (language_model, "_describe"),
    "end of finetune": (finetuning, "write_card"),
}[sys.argv[1]]
original, left = getattr(owner, name), [int(sys.argv[2])]

def counted(*arguments, **options):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)

setattr(owner, name, counted)
sys.exit(main(sys.argv[3:]))
"""


def killed(where: str, count: int, stage: str, output: Path, settings: dict[str, Any]) -> str:
    """Run a stage that dies at an instant; what it said."""
    file = output.with_suffix(".yaml")
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    file.write_text(yaml.safe_dump(plain))
    words = [sys.executable, "-c", DRIVER, where, str(count), stage, "--config", str(file), "--output_dir", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == -signal.SIGKILL, f"it was to die at {where} {count}:\n{done.stdout}\n{done.stderr}"
    assert not output.exists(), "a killed run leaves nothing that claims to be complete"
    return done.stdout


def told(artefact: Artefact) -> list[tuple[Any, ...]]:
    """What the ledger says of the training, without times."""
    entries = read_ledger(artefact.directory / "metrics.jsonl")
    return [(entry["step"], entry.get("loss"), entry.get("eval_loss"), entry.get("learning_rate")) for entry in entries]


@pytest.mark.slow
def test_a_run_killed_three_times_ends_with_the_bytes_of_an_uninterrupted_one(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path
) -> None:
    settings = {
        **tiny,
        "tokens": tokens.directory,
        "per_device_train_batch_size": 128,  # 7 steps an epoch: the kills fall into two epochs
        "max_steps": 14,
        "save_steps": 4,
        "eval_steps": 2,
    }
    whole = run("pretrain", tmp_path / "whole", **settings)
    output, partial = tmp_path / "killed", tmp_path / "killed.partial"

    killed("log", 8, "pretrain", output, settings)
    assert all_checkpoints(partial)[0].name == "checkpoint-4"
    assert not is_held(partial)

    said = killed("checkpoint write", 3, "pretrain", output, settings)
    assert "going on from checkpoint-4" in said
    assert list((partial / ".writing").glob("checkpoint-8/*")), "a torn checkpoint lies there"
    assert all_checkpoints(partial)[0].name == "checkpoint-4", "and is no checkpoint"

    said = killed("checkpoint rename", 2, "pretrain", output, settings)
    assert "going on from checkpoint-4" in said
    assert all_checkpoints(partial)[0].name == "checkpoint-12"

    resumed = run("pretrain", output, **settings)
    assert (resumed.directory / "model.safetensors").read_bytes() == (whole.directory / "model.safetensors").read_bytes()
    assert resumed.manifest.digest == whole.manifest.digest
    assert told(resumed) == told(whole), "no step twice, none missing, the same losses"
    assert (resumed.directory / "samples.jsonl").read_bytes() == (whole.directory / "samples.jsonl").read_bytes()
    assert not partial.exists()


@pytest.mark.slow
def test_a_run_killed_after_its_last_step_only_finishes(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**tiny, "tokens": tokens.directory, "max_steps": 4, "save_steps": 2, "eval_steps": 2}
    settings["lr_scheduler_type"] = "constant"  # one step more would move the weights
    whole = run("pretrain", tmp_path / "whole", **settings)
    killed("end", 1, "pretrain", tmp_path / "killed", settings)
    capsys.readouterr()
    resumed = run("pretrain", tmp_path / "killed", **settings)
    assert "going on from checkpoint-4" in capsys.readouterr().out
    assert resumed.manifest.digest == whole.manifest.digest
    assert told(resumed) == told(whole)
    assert resumed.manifest.metrics["validation"] == whole.manifest.metrics["validation"]
    assert resumed.manifest.metrics["train_loss"] == whole.manifest.metrics["train_loss"]


@pytest.mark.slow
def test_a_run_killed_while_it_writes_texts_writes_them_again(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**tiny, "tokens": tokens.directory, "max_steps": 6, "save_steps": 2, "eval_steps": 2}
    whole = run("pretrain", tmp_path / "whole", **settings)
    killed("text", 5, "pretrain", tmp_path / "killed", settings)  # the second of three at step 4, which is saved
    assert {entry["step"] for entry in read_ledger(tmp_path / "killed.partial/samples.jsonl")} == {2}
    capsys.readouterr()
    resumed = run("pretrain", tmp_path / "killed", **settings)
    assert "going on from checkpoint-4" in capsys.readouterr().out
    assert (resumed.directory / "samples.jsonl").read_bytes() == (whole.directory / "samples.jsonl").read_bytes()
    assert resumed.manifest.digest == whole.manifest.digest


@pytest.mark.slow
def test_a_fine_tuning_killed_twice_ends_with_the_bytes_of_an_uninterrupted_one(
    run: Any, base_model: Artefact, toy_files: tuple[Path, Path], quick: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**quick, "model_name_or_path": base_model.directory, "train_file": str(toy_files[0]), "num_train_epochs": 4.0}
    settings["logging_steps"] = 1
    whole = run("finetune", tmp_path / "whole", **settings)
    killed("checkpoint rename", 2, "finetune", tmp_path / "killed", settings)
    killed("end of finetune", 1, "finetune", tmp_path / "killed", settings)
    resumed = run("finetune", tmp_path / "killed", **settings)
    assert (resumed.directory / "model.safetensors").read_bytes() == (whole.directory / "model.safetensors").read_bytes()
    assert resumed.manifest.digest == whole.manifest.digest
    assert resumed.manifest.metrics["validation"] == whole.manifest.metrics["validation"]
    assert resumed.manifest.metrics["best_step"] == whole.manifest.metrics["best_step"]
    assert told(resumed) == told(whole)


@pytest.fixture
def unfinished(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, dict[str, Any]]:
    """A run with checkpoints of steps 2, 4 and 6 that was killed before it was complete, and its settings."""
    from llmkit.training import language_model

    settings = {**tiny, "tokens": tokens.directory, "max_steps": 6, "save_steps": 2, "save_total_limit": 3, "eval_steps": 3}
    with monkeypatch.context() as patched:
        patched.setattr(language_model, "_describe", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("pretrain", tmp_path / "m", **settings)
    return tmp_path / "m.partial", settings


def test_a_torn_and_a_corrupt_checkpoint_are_named_and_the_one_before_serves(
    run: Any, unfinished: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial, settings = unfinished
    whole = run("pretrain", tmp_path / "whole", **settings)
    (partial / "checkpoint-6" / "optimizer.pt").unlink()
    weights = partial / "checkpoint-4" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # one bit of the last weight
    weights.write_bytes(content)
    capsys.readouterr()
    made = run("pretrain", tmp_path / "m", **settings)
    said = capsys.readouterr().out
    assert "checkpoint-6 is left out: " in said
    assert "optimizer.pt is missing" in said
    assert "model.safetensors is not as it was written: its sha256 differs" in said
    assert "going on from checkpoint-2: step 2" in said
    assert made.manifest.digest == whole.manifest.digest
    assert told(made) == told(whole)


def test_resume_never_starts_anew_and_a_path_is_gone_on_from(
    run: Any, unfinished: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial, settings = unfinished
    earlier = tmp_path / "kept" / "checkpoint-4"
    shutil.copytree(partial / "checkpoint-4", earlier)
    capsys.readouterr()
    fresh = run("pretrain", tmp_path / "m", **settings, resume="never")
    said = capsys.readouterr().out
    assert "going on" not in said
    assert "step 1/6" in said
    from_path = run("pretrain", tmp_path / "other", **settings, resume=str(earlier))
    said = capsys.readouterr().out
    assert "step 4/6" not in said
    assert "step 5/6" in said
    assert from_path.manifest.digest == fresh.manifest.digest
    with pytest.raises(ArtefactError, match="nowhere is no whole checkpoint"):
        run("pretrain", tmp_path / "third", **settings, resume=str(tmp_path / "nowhere"))


def test_a_loss_that_is_logged_after_a_resume_is_that_of_all_steps_since_the_last_log(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**tiny, "tokens": tokens.directory, "z_loss": 1e-2, "max_steps": 8, "logging_steps": 4}
    settings.update(save_steps=3, save_permanent_steps=3)
    whole = run("pretrain", tmp_path / "whole", **settings)
    resumed = run("pretrain", tmp_path / "resumed", **settings, resume=str(whole.directory / "checkpoints" / "checkpoint-3"))
    logged = [
        [
            (entry["step"], entry["loss"], entry["z_loss"])
            for entry in read_ledger(made.directory / "metrics.jsonl")
            if "loss" in entry
        ]
        for made in (whole, resumed)
    ]
    assert [step for step, *_ in logged[0]] == [4, 8]
    assert logged[0] == logged[1]


def test_a_checkpoint_of_other_data_is_refused_with_both_fingerprints(
    run: Any, unfinished: tuple[Path, dict[str, Any]], make_corpus: Any, tokenizer: Artefact, tmp_path: Path
) -> None:
    partial, settings = unfinished
    checkpoint = tmp_path / "kept" / "checkpoint-4"
    shutil.copytree(partial / "checkpoint-4", checkpoint)
    corpus = make_corpus(tmp_path / "else", ["Quite another text. " * 40], validation_fraction=0)
    other = run("tokenize", tmp_path / "other", corpus=corpus.directory, tokenizer=tokenizer.directory)
    old, new = (data_fingerprint(Path(place))[:16] for place in (settings["tokens"], other.directory))
    with pytest.raises(ArtefactError, match=f"its fingerprint is {old}, that of the data now is {new}"):
        run("pretrain", tmp_path / "n", **{**settings, "tokens": other.directory, "resume": str(checkpoint)})


def test_every_checkpoint_is_a_repository_with_the_logits_of_the_live_model(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = torch.arange(24).reshape(2, 12) % 512
    live = {}

    def keep(trainer: Any, written: Path) -> None:
        check(trainer, written)
        model = trainer.model.eval()
        with torch.no_grad():
            live[written.name] = model(ids).logits
        model.train()

    check = LLMKitTrainer._check_written
    monkeypatch.setattr(LLMKitTrainer, "_check_written", keep)
    settings = {**tiny, "tokens": tokens.directory, "max_steps": 6, "save_steps": 2, "save_permanent_steps": 2}
    made = run("pretrain", tmp_path / "m", **settings)
    places = sorted((made.directory / "checkpoints").iterdir())
    assert [place.name for place in places] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"] == sorted(live)
    for place in places:
        model = AutoModelForCausalLM.from_pretrained(place)
        with torch.no_grad():
            assert torch.equal(model(ids).logits, live[place.name])
        AutoTokenizer.from_pretrained(place)
        assert model.generation_config.eos_token_id == AutoTokenizer.from_pretrained(made.directory).eos_token_id
        assert f"at step {place.name[-1]}" in (place / "README.md").read_text()
        assert not list(place.glob("training_args.bin"))


def test_weights_that_are_not_on_disk_as_in_memory_make_no_checkpoint(
    run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flip(trainer: Any, written: Path) -> None:
        weights = written / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        check(trainer, written)

    check = LLMKitTrainer._check_written
    monkeypatch.setattr(LLMKitTrainer, "_check_written", flip)
    with pytest.raises(ArtefactError, match="is not on disk as it is in memory"):
        run("pretrain", tmp_path / "m", tokens=tokens.directory, max_steps=4, save_steps=2, **tiny)
    assert all_checkpoints(tmp_path / "m.partial") == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_ends_with_a_status_that_a_scheduler_can_tell(
    number: int, status: int, run: Any, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**tiny, "tokens": str(tokens.directory), "max_steps": 400, "save_steps": 1000, "eval_steps": 1000}
    output, file = tmp_path / "m", tmp_path / "asked.yaml"
    file.write_text(yaml.safe_dump(settings))
    words = [sys.executable, "-m", "llmkit", "pretrain", "--config", str(file), "--output_dir", str(output)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step  20/"):
            process.send_signal(number)
            break
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, out + err
    [checkpoint] = all_checkpoints(tmp_path / "m.partial")
    assert f"stopped after step {checkpoint.name.removeprefix('checkpoint-')} of 400, which is saved" in err
    assert "Traceback" not in err
    resumed = run("pretrain", output, **settings)
    assert resumed.manifest.digest == run("pretrain", tmp_path / "whole", **settings).manifest.digest


def test_the_newest_checkpoint_is_the_one_with_the_highest_step(tmp_path: Path) -> None:
    assert all_checkpoints(tmp_path) == []
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-2", "checkpoint-x", "checkpoint-11.old", ".writing"):
        (tmp_path / name).mkdir()
    (tmp_path / ".writing" / "checkpoint-12").mkdir()
    assert [path.name for path in all_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-9", "checkpoint-2"]


def test_a_ledger_forgets_a_torn_line_and_the_steps_that_are_made_again(tmp_path: Path) -> None:
    from types import SimpleNamespace

    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3, 4)]
    path.write_text("\n".join(lines) + '\n{"step": 2, "lo', encoding="utf-8")
    assert [entry["step"] for entry in read_ledger(path)] == [1, 2, 3, 4]
    state: Any = SimpleNamespace(is_world_process_zero=True, global_step=2, log_history=[])
    Ledger(path).on_train_begin(None, state, None)  # type: ignore[arg-type]
    assert [entry["step"] for entry in read_ledger(path)] == [1, 2]
    assert read_ledger(tmp_path / "none.jsonl") == []
