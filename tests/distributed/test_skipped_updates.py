"""Two ranks whose loss is no number on one of them skip the update together; and a step of two ranks is made again by two."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from llmkit.parallel.launch import launch_words
from llmkit.pipeline.artefact import Artefact
from llmkit.training.ledger import read_ledger

# On rank 1, the loss of step 3 is no number, nor is its gradient; of step 5 only the loss is none. Each rank writes down
# its weights after each step, as a digest, and the samples that it had in step 3.
DRIVER = """
import hashlib, json, os, sys
from pathlib import Path

from llmkit import stages
from llmkit.training.trainer import LLMKitTrainer

rank = int(os.environ["RANK"])
compute_loss, log_save = LLMKitTrainer.compute_loss, LLMKitTrainer._maybe_log_save_evaluate
weights, samples = {}, []

def poisoned(self, model, inputs, *arguments, **options):
    step = self.state.global_step + 1
    if model.training and step == 3:
        samples.extend(inputs["input_ids"].tolist())
    loss = compute_loss(self, model, inputs, *arguments, **options)
    if rank == 1 and model.training and step == 3:
        return loss * float("nan")
    return loss + float("nan") if rank == 1 and model.training and step == 5 else loss

def noted(self, *arguments, **options):
    content = hashlib.sha256()
    for parameter in self.accelerator.unwrap_model(self.model).parameters():
        content.update(parameter.detach().numpy().tobytes())
    weights[self.state.global_step] = content.hexdigest()
    Path(os.environ["NOTES"], f"{rank}.json").write_text(json.dumps({"weights": weights, "samples": samples}))
    log_save(self, *arguments, **options)

LLMKitTrainer.compute_loss, LLMKitTrainer._maybe_log_save_evaluate = poisoned, noted
sys.exit(stages.main("pretrain"))
"""


@pytest.mark.slow
def test_no_number_on_one_rank_skips_the_update_on_both(
    tokens: Artefact, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "driver.py").write_text(DRIVER)
    settings = {**tiny, "tokens": str(tokens.directory), "max_steps": 6, "gradient_accumulation_steps": 2}
    (tmp_path / "asked.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("NOTES", str(tmp_path))
    asked = [str(tmp_path / "driver.py"), "--config", str(tmp_path / "asked.yaml"), "--output_dir", str(tmp_path / "m")]
    done = subprocess.run([*launch_words("ddp"), *asked], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    notes = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    weights = notes[0]["weights"]
    assert weights == notes[1]["weights"], "both ranks have the same weights after every step"
    unchanged = [step for step in range(2, 7) if weights[str(step)] == weights[str(step - 1)]]
    assert unchanged == [3, 5]
    assert [entry["skipped_at"] for entry in read_ledger(tmp_path / "m" / "metrics.jsonl") if "skipped_at" in entry] == [
        [3],
        [5],
    ]

    tokenizer = AutoTokenizer.from_pretrained(tokens.directory / "tokenizer")
    for step in (3, 5):
        dump = json.loads((tmp_path / "m" / "dumps" / f"step-{step}" / "dump.json").read_text())
        assert [math.isnan(loss) for loss in dump["loss_of_ranks"]] == [False, True]
        assert math.isnan(dump["grad_norm"]) == (step == 3)
        assert len(dump["samples"]) == 16
        if step == 3:
            for rank in (0, 1):
                told = [sample["text"] for sample in dump["samples"] if sample["rank"] == rank]
                assert told == [tokenizer.decode(ids) for ids in notes[rank]["samples"]]


@pytest.mark.slow
def test_a_step_of_two_ranks_is_replayed_by_two_ranks_to_the_bit(
    tokens: Artefact, tiny: dict[str, Any], tmp_path: Path
) -> None:
    settings = {
        **tiny,
        "tokens": str(tokens.directory),
        "model_type": "gpt2",  # it has dropout, which every rank draws for itself
        "config_overrides": {"n_embd": 32, "n_layer": 2, "n_head": 2},
        "max_steps": 6,
        "save_steps": 3,
        "save_permanent_steps": 3,
    }
    (tmp_path / "asked.yaml").write_text(yaml.safe_dump(settings))
    layout = ["--accelerate_config", "ddp"]
    run(["pretrain", "--config", str(tmp_path / "asked.yaml"), "--output_dir", str(tmp_path / "m"), *layout])
    checkpoint = str(tmp_path / "m" / "checkpoints" / "checkpoint-3")
    asked = ["replay", "--checkpoint", checkpoint, "--step", "5", "--output", str(tmp_path / "step.json")]
    entry = next(entry for entry in read_ledger(tmp_path / "m" / "metrics.jsonl") if entry["step"] == 5)

    said = run([*asked, *layout])
    found = json.loads((tmp_path / "step.json").read_text())
    assert [found[name] for name in ("loss", "grad_norm")] == [entry[name] for name in ("loss", "grad_norm")]
    assert found["data_chain"] == entry["data_chain"]
    assert len(found["loss_of_ranks"]) == 2
    assert said.count("the same gradient norm, to the bit") == 1

    said = run(asked)
    found = json.loads((tmp_path / "step.json").read_text())
    assert found["data_chain"] == entry["data_chain"], "one process learns the same samples"
    assert found["loss"] != entry["loss"]
    assert "the run had 2 processes, this replay 1: dropout draws other numbers" in said


def run(words: list[str]) -> str:
    done = subprocess.run([sys.executable, "-m", "llmkit", *words], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
