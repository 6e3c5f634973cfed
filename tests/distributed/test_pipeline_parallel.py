"""Layers divided among real processes compute what one process computes, and their runs end and go on as any other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llmkit.parallel.launch import launch_words
from llmkit.pipeline.artefact import Artefact
from llmkit.tokens.samples import TokenBlocks
from llmkit.tokens.shards import TokenStream
from llmkit.training.checkpoints import all_checkpoints
from llmkit.training.ledger import read_ledger

# The same sums in float32; only the norm over all layers, and with data parallelism the gradient, is added in another order.
LOSS = 1e-5
# That order decides the last bit of a gradient, and Adam divides it by the root of its square: where a gradient is next to
# nothing, an update of the size of the learning rate, 3e-3, can differ by a good part of itself.
WEIGHT = 1e-3

LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "config_overrides": {**LLAMA, "num_hidden_layers": 5}},
    "tied": {"model_type": "qwen3", "config_overrides": {**LLAMA, "num_hidden_layers": 4, "tie_word_embeddings": True}},
    "gpt2": {
        "model_type": "gpt2",  # tied, with a table of positions
        "config_overrides": {
            "n_embd": 32,
            "n_layer": 5,
            "n_head": 2,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    },
}


@pytest.fixture(scope="module")
def settings(tokens: Artefact) -> dict[str, Any]:
    return {
        "tokens": tokens.directory,
        "block_size": 32,
        "global_batch_size": 32,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 3e-3,
        "warmup_steps": 0.0,
        "max_steps": 8,
        "eval_steps": 4,
        "save_steps": 4,
        "save_permanent_steps": 4,
        "logging_steps": 1,
        "bf16": False,
        "cpu_threads": 1,
    }


def command(output: Path, settings: dict[str, Any], processes: int = 2, shipped: str = "pp") -> list[str]:
    file, layout = (output.with_name(f"{output.name}-{kind}.yaml") for kind in ("asked", "layout"))
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    file.write_text(yaml.safe_dump(plain))
    config = {"num_processes": processes, "num_machines": 1, "machine_rank": 0, "main_process_port": 0}
    kind = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MEGATRON_LM"}
    layout.write_text(yaml.safe_dump({**config, **kind, "megatron_lm_config": {"megatron_lm_pp_degree": 2}}))
    words = [sys.executable, "-m", "llmkit", "pretrain", "--config", str(file), "--output_dir", str(output)]
    return [*words, "--accelerate_config", shipped if processes == 2 else str(layout)]


def train(output: Path, settings: dict[str, Any], processes: int = 2, shipped: str = "pp") -> Artefact:
    words = command(output, settings, processes, shipped)
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Artefact.open(output, "pretrain")


def told(artefact: Artefact, *keys: str) -> list[Any]:
    return [entry[key] for entry in read_ledger(artefact.directory / "metrics.jsonl") for key in keys if key in entry]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


@pytest.fixture(scope="module")
def one_process(run: Any, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artefact]:
    directory = tmp_path_factory.mktemp("one")
    return {name: run("pretrain", directory / name, **settings, **model) for name, model in MODELS.items()}


@pytest.fixture(scope="module")
def pipeline(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """A tied model on two processes, with 1F1B."""
    return train(tmp_path_factory.mktemp("pipeline") / "m", {**settings, **MODELS["tied"]})


def assert_same(found: Artefact, expected: Artefact) -> None:
    for key in ("loss", "eval_loss"):
        assert told(found, key) == pytest.approx(told(expected, key), abs=LOSS)
    assert told(found, "grad_norm") == pytest.approx(told(expected, "grad_norm"), rel=1e-3)
    assert told(found, "data_chain", "learning_rate") == told(expected, "data_chain", "learning_rate")
    ours, theirs = weights(found.directory), weights(expected.directory)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=WEIGHT, rtol=0)
    for key in ("parameters", "optimizer", "samples_per_step", "tokens_learned", "data_chain"):
        assert found.manifest.metrics[key] == expected.manifest.metrics[key]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "schedule", "processes", "layers"),
    [
        ("llama", "gpipe", 2, [3, 2]),
        ("gpt2", "interleaved", 2, [2, 1, 1, 1]),
        ("gpt2", "1f1b", 2, [3, 2]),
        ("llama", "interleaved", 4, [2, 1, 1, 1]),
        ("tied", "1f1b", 4, [2, 2]),
    ],
)
def test_stages_compute_what_one_process_computes(
    model: str,
    schedule: str,
    processes: int,
    layers: list[int],
    settings: dict[str, Any],
    one_process: dict[str, Artefact],
    tmp_path: Path,
) -> None:
    found = train(tmp_path / "m", {**settings, **MODELS[model], "pipeline_schedule": schedule}, processes)
    assert_same(found, one_process[model])
    assert found.manifest.metrics["processes"] == processes
    assert found.manifest.metrics["pipeline"] == {
        "schedule": schedule,
        "stages": len(layers),
        "layers": layers,
        "micro_batches": 16 // processes,
        "idle_share": 1 / ((2 if schedule == "interleaved" else 1) * 16 // processes + 1),
    }


@pytest.mark.slow
def test_a_step_may_have_fewer_micro_batches_than_stages_and_recompute_activations(
    settings: dict[str, Any], one_process: dict[str, Artefact], pipeline: Artefact, tmp_path: Path
) -> None:
    assert_same(pipeline, one_process["tied"])
    asked = {**settings, **MODELS["tied"], "per_device_train_batch_size": 32, "gradient_checkpointing": True}
    found = train(tmp_path / "m", asked)
    assert found.manifest.metrics["pipeline"]["micro_batches"] == 1
    assert_same(found, one_process["tied"])


@pytest.mark.slow
def test_result_and_checkpoint_load_and_have_the_loss_that_was_reported(pipeline: Artefact, settings: dict[str, Any]) -> None:
    held_out = TokenBlocks(TokenStream(settings["tokens"], "validation"), 32)
    samples = [held_out[number] for number in range(len(held_out))]
    for directory in (pipeline.directory, pipeline.directory / "checkpoints" / "checkpoint-8"):
        model = AutoModelForCausalLM.from_pretrained(directory).eval()
        assert model.config.num_hidden_layers == 4
        assert model.config.use_cache
        with torch.no_grad():
            total = sum(
                model(sample["input_ids"][None], labels=sample["labels"][None], num_items_in_batch=1).loss
                for sample in samples
            )
        assert total.item() / held_out.targets == pytest.approx(told(pipeline, "eval_loss")[-1], abs=LOSS)


@pytest.mark.slow
def test_a_checkpoint_of_a_pipeline_goes_on_in_one_process_in_shards_and_under_another_schedule(
    run: Any, pipeline: Artefact, settings: dict[str, Any], tmp_path: Path
) -> None:
    resumed = {**settings, **MODELS["tied"], "resume": str(pipeline.directory / "checkpoints" / "checkpoint-4")}
    for found in (
        run("pretrain", tmp_path / "one", **resumed),
        train(tmp_path / "shards", resumed, shipped="fsdp2"),
        train(tmp_path / "other", {**resumed, "pipeline_schedule": "interleaved"}),
    ):
        for key in ("loss", "grad_norm", "eval_loss"):
            of_all = told(pipeline, key)
            assert told(found, key) == pytest.approx(of_all[-len(told(found, key)) :], abs=LOSS)
        assert told(found, "data_chain")[-1] == told(pipeline, "data_chain")[-1]
        ours = weights(found.directory)
        for name, tensor in weights(pipeline.directory).items():
            torch.testing.assert_close(ours[name], tensor, atol=WEIGHT, rtol=0)


@pytest.mark.slow
def test_a_checkpoint_of_another_layout_is_refused(
    one_process: dict[str, Artefact], settings: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = one_process["tied"].directory / "checkpoints" / "checkpoint-4"
    words = command(tmp_path / "m", {**settings, **MODELS["tied"], "resume": str(checkpoint)})
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "whose optimizer state (whole) this one (stages) cannot read" in done.stderr
    assert f"--model_name_or_path {checkpoint}" in done.stderr


@pytest.mark.slow
def test_a_pipeline_that_is_killed_goes_on_to_the_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    dropout = {"n_embd": 32, "n_layer": 4, "n_head": 2}  # so that the random numbers of every stage matter
    asked = {
        **settings,
        "model_type": "gpt2",
        "config_overrides": dropout,
        "max_steps": 14,
        "save_steps": 3,
        "logging_steps": 2,
    }
    asked["save_permanent_steps"] = 12
    whole = train(tmp_path / "whole", asked)
    output = tmp_path / "killed"
    for step in (5, 10):
        kill_after(command(output, asked), output, step)
    killed = train(output, asked)
    assert (killed.directory / "model.safetensors").read_bytes() == (whole.directory / "model.safetensors").read_bytes()
    ends = [artefact.directory / "checkpoints" / "checkpoint-12" for artefact in (whole, killed)]
    names = sorted(path.name for path in ends[0].glob("*.p[th]*"))
    assert names == ["optimizer-0.pt", "optimizer-1.pt", "rng_state_0.pth", "rng_state_1.pth", "scheduler.pt"]
    for name in names:
        states = [torch.load(end / name, weights_only=False) for end in ends]
        assert repr(flat(states[0])) == repr(flat(states[1])), name
    for key in ("step", "loss", "grad_norm", "eval_loss", "data_chain"):
        assert told(killed, key) == told(whole, key), "no step twice, none missing"
    assert killed.manifest.digest == whole.manifest.digest


@pytest.mark.slow
def test_a_signal_ends_a_pipeline_after_a_checkpoint(settings: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "m"
    words = command(
        output, {**settings, **MODELS["tied"], "max_steps": 100_000, "save_steps": 1000, "save_permanent_steps": None}
    )
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_step(output, 4, process)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command goes on there" in said
    assert "Traceback" not in said
    checkpoint = all_checkpoints(output.with_name("m.partial"))[0]
    assert AutoModelForCausalLM.from_pretrained(checkpoint).config.num_hidden_layers == 4


# In step 3, a gradient of the first stage is no number; the losses are, and so are all other gradients.
DRIVER = """
import sys

from llmkit import stages
from llmkit.training.pipeline_parallel import PipelineTrainer

reduce = PipelineTrainer._reduce_gradients

def poisoned(self):
    if self.position == 0 and self.state.global_step + 1 == 3:
        next(self.model.parameters()).grad.fill_(float("nan"))
    reduce(self)

PipelineTrainer._reduce_gradients = poisoned
sys.exit(stages.main("pretrain"))
"""


@pytest.mark.slow
def test_a_gradient_that_is_no_number_in_one_stage_skips_the_update_of_all(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(DRIVER)
    asked = {**settings, **MODELS["llama"], "max_steps": 4, "save_steps": 1, "save_permanent_steps": 1}
    words = command(tmp_path / "m", asked)
    words = [*launch_words("pp"), str(tmp_path / "driver.py"), *words[4 : words.index("--accelerate_config")]]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert told(Artefact.open(tmp_path / "m", "pretrain"), "skipped_at") == [[3]]
    states = [weights(tmp_path / "m" / "checkpoints" / f"checkpoint-{step}") for step in range(1, 5)]
    changed = [{name for name in now if not torch.equal(now[name], before[name])} for before, now in pairwise(states)]
    assert [len(names) for names in changed] == [len(states[0]), 0, len(states[0])]


@pytest.mark.slow
def test_all_that_a_pipeline_does_not_do_is_refused_at_once(settings: dict[str, Any], tmp_path: Path) -> None:
    asked = {**MODELS["llama"], "optim": "muon", "document_masking": True, "z_loss": 1e-4, "label_smoothing_factor": 0.1}
    asked |= {"pipeline_schedule": "interleaved", "global_batch_size": 20}
    words = command(tmp_path / "m", {**settings, **asked})
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "5 problems in the settings" in done.stderr
    for name in ("optim", "document_masking", "z_loss", "label_smoothing_factor", "pipeline_schedule"):
        assert done.stderr.count(f"  - {name}: ") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_fine_tuning_has_no_pipeline_and_says_so(base_model: Artefact, toy_files: tuple[Path, Path], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "llmkit", "finetune", "--model_name_or_path", str(base_model.directory)]
    words += ["--train_file", str(toy_files[0]), "--output_dir", str(tmp_path / "m"), "--accelerate_config", "pp"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert (
        done.stderr.splitlines()[-1]
        == "  - accelerate_config: only pretraining has a pipeline; take another layout, such as fsdp2"
    )


def flat(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return (str(state.dtype), state.tolist())
    if isinstance(state, dict):
        return {key: flat(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [flat(value) for value in state]
    return state.tolist() if hasattr(state, "tolist") else state


def wait_for_step(output: Path, step: int, process: subprocess.Popen[str]) -> None:
    path, deadline = output.with_name(f"{output.name}.partial") / "metrics.jsonl", time.monotonic() + 120
    while max((entry["step"] for entry in read_ledger(path)), default=0) < step:
        assert process.poll() is None, "it ended before it came there"
        assert time.monotonic() < deadline, "it does not get on"
        time.sleep(0.01)


def kill_after(words: list[str], output: Path, step: int) -> None:
    """Kill every process of a launch with SIGKILL once the ledger tells of a step."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, start_new_session=True)
    try:
        wait_for_step(output, step, process)
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            member.kill()
        assert process.wait(30) == -signal.SIGKILL
        psutil.wait_procs(family, timeout=30)
        assert not output.exists()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
