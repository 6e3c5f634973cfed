"""Launches that would go wrong are found before they are made: each fault is named, with what to do, and all at once."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llmkit import cli, resources
from llmkit.config import Source, resolve
from llmkit.parallel.architecture import causal_types, parameters_in, read_architecture
from llmkit.parallel.check import arithmetic, problems
from llmkit.parallel.launch_checks import _checkpoint_bytes, memory_problems
from llmkit.parallel.layout import read_layout
from llmkit.parallel.machine import PACKAGES, Machine
from llmkit.parallel.subject import Subject
from llmkit.pipeline.artefact import Artefact
from llmkit.training.arguments import TrainingConfig
from llmkit.training.pretrain import PretrainConfig

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
FSDP = {"fsdp_version": 2, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
ZERO3 = {"zero_stage": 3, "zero3_save_16bit_model": True}


@dataclass
class Broken:
    """A launch with one fault."""

    says: str
    remedy: str
    settings: dict[str, Any] = field(default_factory=dict)
    layout: dict[str, Any] = field(default_factory=dict)
    deepspeed: dict[str, Any] | None = None
    """DeepSpeed's own JSON."""


def multi(**further: Any) -> dict[str, Any]:
    return {"distributed_type": "MULTI_GPU", "num_processes": 2, **further}


def deepspeed(**further: Any) -> dict[str, Any]:
    return {"distributed_type": "DEEPSPEED", "num_processes": 2, "deepspeed_config": {"zero_stage": 2, **further}}


def fsdp(**further: Any) -> dict[str, Any]:
    return {"distributed_type": "FSDP", "num_processes": 2, "fsdp_config": {**FSDP, **further}}


def sizes(**dimensions: int) -> dict[str, Any]:
    return {"parallelism_config": {f"parallelism_config_{name}_size": size for name, size in dimensions.items()}}


ZERO2 = {"zero_optimization": {"stage": 2}, "gradient_accumulation_steps": "auto"}

BROKEN = {
    "misspelt setting": Broken("unknown key 'learning_rte'", "did you mean 'learning_rate'?", {"learning_rte": 1}),
    "renamed setting": Broken("'warmup_ratio' is no setting", "write `warmup_steps`", {"warmup_ratio": 0.1}),
    "misspelt field of the model": Broken(
        "llama has no field 'hiden_size'",
        "write 'hidden_size'",
        {"config_overrides": {"hiden_size": 32}},
    ),
    "no such architecture": Broken("no causal language model 'lama'", "write 'llama'", {"model_type": "lama"}),
    "misspelt key of the layout": Broken(
        "unknown key 'num_process'", "write 'num_processes'", layout={"distributed_type": "NO", "num_process": 1}
    ),
    "misspelt key in a block": Broken(
        "unknown key 'fsdp_ofload_params', over which accelerate passes in silence",
        "write 'fsdp_offload_params'",
        layout=fsdp(fsdp_ofload_params=True),
    ),
    "precision in two places": Broken(
        "the settings ask for 'bf16', the accelerate config for 'no'",
        "set it in one place",
        {"bf16": True},
        multi(mixed_precision="no"),
    ),
    "fp16 without a GPU": Broken("float16 training needs a GPU", "take bf16", {"fp16": True}),
    "samples that cannot be shared": Broken(
        "17 samples cannot be shared by 2 processes", "set it to 16 or 18", {"global_batch_size": 17}, multi()
    ),
    "clipping of DeepSpeed": Broken(
        "gradient_clipping is 0.5, and max_grad_norm of the settings 1.0",
        "take it out: it then follows the settings",
        layout=deepspeed(gradient_clipping=0.5),
    ),
    "accumulation of DeepSpeed": Broken(
        "gradient_accumulation_steps is 4, and gradient_accumulation_steps of the settings 1",
        "take it out",
        layout=deepspeed(gradient_accumulation_steps=4),
    ),
    "batch of DeepSpeed's JSON": Broken(
        "train_batch_size is 64, and the samples of a step of the settings 8",
        'write "auto"',
        layout=deepspeed(),
        deepspeed={**ZERO2, "train_batch_size": 64},
    ),
    "accumulation that DeepSpeed's JSON leaves out": Broken(
        "gradient_accumulation_steps is 1, and gradient_accumulation_steps of the settings 3",
        'write "auto"',
        {"gradient_accumulation_steps": 3},
        deepspeed(),
        {"zero_optimization": {"stage": 2}},
    ),
    "precision of DeepSpeed's JSON": Broken(
        "bf16.enabled is true, and the settings ask for float32",
        'write "auto"',
        {"bf16": False},
        deepspeed(),
        {**ZERO2, "bf16": {"enabled": True}},
    ),
    "optimizer of DeepSpeed's JSON": Broken(
        "optimizer takes the place of optim, which is adafactor",
        "take the block optimizer out",
        {"optim": "adafactor"},
        deepspeed(),
        {**ZERO2, "optimizer": {"type": "AdamW", "params": {"lr": "auto"}}},
    ),
    "NVMe without a path": Broken(
        "offload_optimizer_device is nvme, and offload_optimizer_nvme_path is not given",
        "set offload_optimizer_nvme_path to a directory",
        layout=deepspeed(offload_optimizer_device="nvme"),
    ),
    "ZeRO-3 that saves no model": Broken(
        "zero3_save_16bit_model is not set", "set it to true", layout=deepspeed(zero_stage=3, zero3_init_flag=False)
    ),
    "FSDP1": Broken("fsdp_version is 1", "set it to 2", layout=fsdp(fsdp_version=1)),
    "layers of another model": Broken(
        "GPT2Block is no class of llama",
        "set it to LlamaDecoderLayer",
        layout=fsdp(fsdp_transformer_layer_cls_to_wrap="GPT2Block"),
    ),
    "recomputing twice": Broken(
        "both would compute activations again",
        "take gradient_checkpointing out",
        {"gradient_checkpointing": True},
        fsdp(fsdp_activation_checkpointing=True),
    ),
    "FSDP that saves no model": Broken(
        "with which transformers saves no model",
        "set it to FULL_STATE_DICT",
        layout=fsdp(fsdp_state_dict_type="SHARDED_STATE_DICT"),
    ),
    "no plan for tensor parallel": Broken(
        "no tensor-parallel plan for gpt2",
        "such as llama or qwen3",
        {"model_type": "gpt2", "config_overrides": {"n_embd": 32, "n_head": 2, "n_layer": 2}},
        multi(**sizes(tp=2)),
    ),
    "heads that cannot be divided": Broken(
        "num_key_value_heads: 1 cannot be divided among 2 tensor-parallel processes",
        "make it a multiple of 2",
        {"config_overrides": {**LLAMA, "num_key_value_heads": 1}},
        multi(**sizes(tp=2)),
    ),
    "fewer layers than stages": Broken(
        "2 layers cannot be divided among 4 pipeline stages",
        "take at least 4 layers",
        layout={
            "distributed_type": "MEGATRON_LM",
            "num_processes": 4,
            "megatron_lm_config": {"megatron_lm_pp_degree": 4},
        },
    ),
    "samples that a context cannot divide": Broken(
        "block_size: 30 tokens cannot be divided by 2 x 2",
        "set block_size to 28",
        {"block_size": 30},
        {**fsdp(), **sizes(cp=2)},
    ),
    "documents that a context cannot tell apart": Broken(
        "attention then knows no documents",
        "set document_masking: false",
        {"document_masking": True},
        {**fsdp(), **sizes(cp=2)},
    ),
    "attention that stays in one process": Broken(
        "eager cannot attend across processes", "take sdpa", {"attn_implementation": "eager"}, {**fsdp(), **sizes(cp=2)}
    ),
    "dimensions and processes": Broken(
        "3 processes cannot be divided by 2 (tensor 2)",
        "set num_processes to 2",
        layout=multi(**sizes(tp=2)) | {"num_processes": 3},
    ),
    "samples longer than the context": Broken(
        "block_size: 32 is more than the model's context of 16 tokens",
        "set block_size to 16",
        {"config_overrides": {**LLAMA, "max_position_embeddings": 16}},
    ),
    "vocabulary smaller than the tokenizer's": Broken(
        "config_overrides.vocab_size has 100, the tokenizer needs 8192",
        "set it to 8192",
        {"config_overrides": {**LLAMA, "vocab_size": 100}},
    ),
    "no token shards": Broken("there is no directory 'runs/nowhere'", "`llmkit tokenize`", {"tokens": "runs/nowhere"}),
    "no corpus": Broken("'nowhere' is no file", "give the path of a file", {"train_file": ["nowhere"]}),
    "machines that do not find each other": Broken(
        "the rank of this node among 2 is not said",
        "set NODE_RANK, or --machine_rank, from 0 to 1",
        layout=multi(num_machines=2, main_process_ip="10.0.0.1", main_process_port=29501),
    ),
    "muon in pieces": Broken("muon needs whole matrices", "such as ddp", {"optim": "muon"}, deepspeed()),
    "spikes under DeepSpeed": Broken(
        "skip_spikes: DeepSpeed makes its step", "another layout", {"skip_spikes": True}, deepspeed()
    ),
}


def asked(broken: Broken, directory: Path) -> list[str]:
    """The words of `llmkit check` for a launch."""
    settings = {"config_overrides": LLAMA, "block_size": 32, "per_device_train_batch_size": 4, **broken.settings}
    if "tokens" not in settings:
        settings.setdefault("max_steps", 3)
    recipe = directory / "asked.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    layout = broken.layout or {"distributed_type": "NO", "use_cpu": True}
    if broken.deepspeed is not None:
        (directory / "deepspeed.json").write_text(json.dumps(broken.deepspeed))
        layout = {**layout, "deepspeed_config": {"deepspeed_config_file": str(directory / "deepspeed.json")}}
    (directory / "layout.yaml").write_text(yaml.safe_dump(layout))
    return ["pretrain", "--config", str(recipe), "--accelerate_config", str(directory / "layout.yaml")]


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory, on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.parametrize("name", BROKEN)
def test_a_fault_is_named_with_its_remedy_and_nothing_else_is(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = BROKEN[name]
    assert cli.main(["check", *asked(broken, tmp_path)]) == 1
    said = capsys.readouterr().out
    assert broken.says in said
    assert broken.remedy in said
    assert said.splitlines()[0].endswith(": 1 problem")


def test_faults_of_all_kinds_are_told_at_once_and_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Broken(
        "",
        "",
        {"config_overrides": {**LLAMA, "max_position_embeddings": 16}, "optim": "muon", "global_batch_size": 17},
        deepspeed(gradient_clipping=0.5),
    )
    assert cli.main(["check", *asked(broken, tmp_path), "--json", "answer.json"]) == 1
    said = capsys.readouterr().out
    assert said.splitlines()[0].endswith(": 4 problems")
    answer = json.loads(Path("answer.json").read_text())
    assert [problem["what"].split(":")[0] for problem in answer["problems"]] == [
        "global_batch_size",
        "layout.yaml",
        "optim",
        "block_size",
    ]
    assert all(problem["what"] in said and problem["remedy"] in said for problem in answer["problems"])


def test_settings_that_cannot_be_read_do_not_hide_what_is_wrong_with_the_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Broken("", "", {"learning_rte": 1, "warmup_ratio": 0.1}, fsdp(fsdp_version=1))
    assert cli.main(["check", *asked(broken, tmp_path)]) == 1
    said = capsys.readouterr().out
    assert said.splitlines()[0].endswith(": 3 problems")
    for words in ("learning_rte", "warmup_ratio", "fsdp_version is 1", "The settings have to be right before"):
        assert words in said


def test_the_guide_shows_what_the_command_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "check.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^```yaml\n# (\S+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    for name, text in shown.items():
        Path(name).write_text(text)
    assert cli.main(["check", "pretrain", "--config", "my_run.yaml", "--accelerate_config", "my_layout.yaml"]) == 1
    assert f"```text\n{capsys.readouterr().out}```" in page


@pytest.mark.parametrize("layout", resources.names("accelerate_configs"))
@pytest.mark.parametrize("recipe", ["pretrain/quickstart", "pretrain/wikitext-2", "finetune/reviews"])
def test_what_is_shipped_is_right(recipe: str, layout: str, base_model: Artefact, capsys: pytest.CaptureFixture[str]) -> None:
    further = ["--model_name_or_path", str(base_model.directory)] if recipe.startswith("finetune") else []
    status = cli.main(["check", recipe, "--accelerate_config", layout, *further])
    said = capsys.readouterr().out
    if status == 1:  # what this machine does not have, and a model that is made for another number of processes
        true_here = (
            "needs a GPU",
            "needs DeepSpeed",
            "needs torchao",
            "of this node among",
            "of the first of the",
            "GPUs",
            "machines",
            "cannot be divided among",
            "cannot be shared by",
        )
        listed = [line for line in said.splitlines()[1:] if line.startswith("  - ")]
        assert all(any(words in line for words in true_here) for line in listed), said
    else:
        assert said.startswith(f"nothing is wrong: {recipe.split('/')[0]} under {layout}: ")
        assert "samples a step" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pretrain/quikstart"], "did you mean 'pretrain/quickstart'?"),
        (["pretrain", "--accelerate_config", "ddq"], "did you mean 'ddp'?"),
        (["tokenizer", "--vocab_size", "300"], "'tokenizer' is nothing that is launched; give a recipe, or one of pretrain"),
        (["both.yaml"], "could be settings of pretrain and of finetune; write llmkit check pretrain --config both.yaml"),
    ],
)
def test_what_cannot_be_checked_is_an_error_of_its_own(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("both.yaml").write_text("learning_rate: 1e-3\n")
    assert cli.main(["check", *words]) == 2
    assert says in capsys.readouterr().err


def test_the_stage_of_a_recipe_is_found_by_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("block_size: 64\nnum_params: 5M\n")
    assert cli.main(["check", "mine.yaml"]) == 0
    assert capsys.readouterr().out.startswith("nothing is wrong: pretrain under single")
    Path("mine.yaml").write_text("dataset_name: llmkit/reviews\nlabel_column: label\n")
    assert cli.main(["check", "mine.yaml"]) == 1
    assert capsys.readouterr().out.startswith("finetune under single: 1 problem\n  - --model_name_or_path is missing")


# --------------------------------------------------------------------------------------------------------------------
# Data and models that are there


def test_token_shards_are_held_against_the_tokenizer_of_a_model(
    tokens: Artefact, base_model: Artefact, run: Any, corpus: Artefact, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["check", "pretrain", "--model_name_or_path", str(base_model.directory), "--max_steps", "3", "--block_size", "32"]
    words += ["--config", "empty.yaml"]
    Path("empty.yaml").write_text("seed: 0\n")
    assert cli.main([*words, "--tokens", str(tokens.directory)]) == 0, capsys.readouterr().out
    capsys.readouterr()
    other = run("tokenizer", Path("other"), corpus=corpus.directory, vocab_size=600)
    shards = run("tokenize", Path("shards"), corpus=corpus.directory, tokenizer=other.directory)
    assert cli.main([*words, "--tokens", str(shards.directory)]) == 1
    said = capsys.readouterr().out
    assert f"{shards.directory} was written with another tokenizer than that of the model" in said
    assert "vocab_size: the model has 512, the tokenizer needs 600" in said


def test_several_token_shards_of_a_mixture_have_one_tokenizer(
    tokens: Artefact, run: Any, corpus: Artefact, capsys: pytest.CaptureFixture[str]
) -> None:
    other = run("tokenizer", Path("other"), corpus=corpus.directory, vocab_size=600)
    shards = run("tokenize", Path("shards"), corpus=corpus.directory, tokenizer=other.directory)
    Path("mixed.yaml").write_text(yaml.safe_dump({"mixture": {str(tokens.directory): 0.5, str(shards.directory): 0.5}}))
    assert cli.main(["check", "mixed.yaml"]) == 1
    assert "mixture: its token shards were written with several tokenizers" in capsys.readouterr().out


def test_a_text_longer_than_the_model_takes_is_found_in_fine_tuning(
    base_model: Artefact, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["check", "finetune/reviews", "--model_name_or_path", str(base_model.directory), "--max_length", "64"]
    assert cli.main(words) == 1
    assert "max_length: 64 is more than the model's context of 32 tokens\n      set it to 32" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------------------------
# Machines that are not this one


MACHINE = Machine(
    gpus=8,
    gpu_memory=80 << 30,
    memory=512 << 30,
    bf16_on_cpu=True,
    bf16_on_gpu=True,
    free_disk=10**15,
    can_write=True,
    taken_ports=frozenset(),
    packages=frozenset(PACKAGES),
)


def subject(layout: dict[str, Any], machine: Machine = MACHINE, **settings: Any) -> Subject:
    Path("layout.yaml").write_text(yaml.safe_dump(layout))
    config = resolve(PretrainConfig, [Source({"max_steps": 100, **settings}, {})]).config
    return Subject("pretrain", cast(TrainingConfig, config), read_layout("layout.yaml"), machine, Path("runs"))


def said(found: Subject) -> str:
    return "\n".join(map(str, problems(found)))


def test_a_machine_with_all_that_is_asked_for_has_no_problem() -> None:
    found = subject({"distributed_type": "DEEPSPEED", "deepspeed_config": ZERO3}, global_batch_size=64)
    assert problems(found) == []
    assert arithmetic(found) == "8 processes; 8 samples at once x 1 accumulated x 8 data-parallel = 64 samples a step"


def test_more_processes_than_gpus_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_RANK", "0")
    assert "16 processes on this machine, which has 8 GPUs; set num_processes to 8" in said(subject(multi(num_processes=16)))
    several = multi(num_processes=16, num_machines=2, main_process_ip="10.0.0.1", main_process_port=29500)
    assert problems(subject(several)) == []


@pytest.mark.parametrize(
    ("package", "settings", "layout"),
    [
        ("DeepSpeed", {}, {"distributed_type": "DEEPSPEED"}),
        ("liger_kernel", {"use_liger_kernel": True}, multi()),
        ("bitsandbytes", {"optim": "adamw_bnb_8bit"}, multi()),
        ("torchao", {"optim": "adamw_torch_8bit"}, multi()),
        ("flash_attn", {"attn_implementation": "flash_attention_2"}, multi()),
        ("transformer_engine or torchao", {}, multi(mixed_precision="fp8")),
        ("torchao", {}, multi(mixed_precision="fp8", fp8_config={"backend": "AO"})),
    ],
)
def test_a_package_that_is_not_installed_is_named(package: str, settings: dict[str, Any], layout: dict[str, Any]) -> None:
    assert f"needs {package}" in said(subject(layout, replace(MACHINE, packages=frozenset()), **settings))
    assert problems(subject(layout, **settings)) == []


def test_fp8_and_fp16_need_a_gpu() -> None:
    none = replace(MACHINE, gpus=0, gpu_memory=None)
    assert "mixed_precision fp8 needs a GPU" in said(subject(multi(mixed_precision="fp8"), none))
    assert "float16 training needs a GPU" in said(subject(multi(mixed_precision="fp16"), none))
    assert "float16 training needs a GPU" in said(subject(multi(use_cpu=True), fp16=True))
    assert problems(subject(multi(), fp16=True)) == []


def test_no_mixed_precision_in_a_layout_decides_nothing() -> None:
    assert problems(subject(multi(mixed_precision="no"))) == [], "`accelerate config` writes it into every file"


def test_a_disk_that_is_too_small_for_the_checkpoints_is_found() -> None:
    size = {"num_params": "125M", "save_steps": 10}
    assert problems(subject(multi(), replace(MACHINE, free_disk=6 * 10**9), **size)) == []
    found = said(subject(multi(), replace(MACHINE, free_disk=5 * 10**9), **size))
    assert "has 5.0 GB free, and the run needs about 5." in found
    assert "3 checkpoints of 1.5 GB" in found
    assert "save_total_limit to 1" in found
    one = subject(multi(), replace(MACHINE, free_disk=5 * 10**9), num_params="125M", save_steps=100)
    assert problems(one) == [], "a run of 100 steps has one checkpoint"


def test_memory_that_is_short_is_found_by_the_planner_and_the_planner_is_not_asked_where_it_surely_fits() -> None:
    pytest.importorskip("llmkit.parallel.plan", reason="the planner is not there yet")
    small = subject(multi(), num_params="125M", per_device_train_batch_size=1)
    assert list(memory_problems(small)) == []
    short = replace(small, machine=replace(MACHINE, gpu_memory=1 << 30))
    (problem,) = memory_problems(short)
    assert "more than a GPU of 1.1 GB" in problem.what
    assert "llmkit plan" in problem.remedy


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["single", "zero2"])
def test_checkpoints_take_the_room_that_is_reckoned_for_them(
    layout: str, tokens: Artefact, tiny: dict[str, Any], tmp_path: Path
) -> None:
    if layout != "single":
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    wide = {
        "config_overrides": {**LLAMA, "hidden_size": 256, "intermediate_size": 704},
        "save_permanent_steps": 1,
        "save_steps": 1,
    }
    settings = {**tiny, **wide, "tokens": str(tokens.directory), "max_steps": 1}
    Path("asked.yaml").write_text(yaml.safe_dump(settings))
    words = [sys.executable, "-m", "llmkit", "pretrain", "--config", "asked.yaml", "--output_dir", "out"]
    done = subprocess.run([*words, "--accelerate_config", layout], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    checkpoint = tmp_path / "out" / "checkpoints" / "checkpoint-1"
    taken = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    reckoned = parameters_in(checkpoint) * _checkpoint_bytes(read_layout(layout))
    assert taken == pytest.approx(reckoned, rel=0.05)


def test_a_place_that_cannot_be_written_to_is_found(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert Machine.at_hand(tmp_path / "new" / "run", None).can_write
    here = Machine.at_hand(tmp_path / "file" / "run", None)
    assert not here.can_write
    assert "no directory can be made there" in said(subject({"distributed_type": "NO"}, here))


def test_a_port_that_is_taken_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    layout = {"distributed_type": "NO", "use_cpu": True}
    with socket.socket() as held:
        held.bind(("", 0))
        held.listen()
        port = held.getsockname()[1]
        Path("port.yaml").write_text(yaml.safe_dump({**layout, "main_process_port": port}))
        assert cli.main(["check", "pretrain/quickstart", "--accelerate_config", "port.yaml"]) == 1
        assert f"main_process_port {port} is taken" in capsys.readouterr().out
    assert cli.main(["check", "pretrain/quickstart", "--accelerate_config", "port.yaml"]) == 0


@given(samples=st.integers(1, 4096), ranks=st.integers(1, 512), at_once=st.integers(1, 64))
def test_batches_add_up_or_are_refused_with_numbers_that_do(samples: int, ranks: int, at_once: int) -> None:
    config = PretrainConfig(global_batch_size=samples, per_device_train_batch_size=at_once, max_steps=1)
    layout = replace(read_layout("ddp"), processes=ranks)
    found = Subject("pretrain", config, layout, replace(MACHINE, gpus=ranks), Path("runs"))
    wrong = problems(found)
    if samples % ranks:
        (problem,) = wrong
        for number in map(int, problem.remedy.removeprefix("set it to ").split(" or ")):
            again = PretrainConfig(global_batch_size=number, per_device_train_batch_size=at_once, max_steps=1)
            assert problems(replace(found, config=again)) == []
    else:
        assert wrong == []
        assert f"= {samples} samples a step" in arithmetic(found)


# --------------------------------------------------------------------------------------------------------------------
# Architectures, without torch


@pytest.mark.slow
def test_architectures_are_read_as_transformers_has_them() -> None:
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert causal_types() == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    for name in ("llama", "gpt2", "qwen3", "gpt_neox", "mixtral", "qwen3_moe", "mamba", "phi3", "gemma2"):
        config, found = CONFIG_MAPPING[name](), read_architecture(name)
        assert found is not None
        assert found.has_tensor_plan == bool(config.base_model_tp_plan)
        assert set(config.to_dict()) <= found.known
        for field_name in ("hidden_size", "num_hidden_layers", "vocab_size"):
            assert found.get(field_name) == getattr(config, field_name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "mixtral"])
def test_the_number_of_parameters_is_about_that_of_the_model(name: str) -> None:
    from transformers import CONFIG_MAPPING

    from llmkit.models.causal import causal_skeleton, parameter_counts

    overrides = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 1000}
    overrides |= {"intermediate_size": 320, "num_key_value_heads": 2, "head_dim": 32} if name != "gpt2" else {}
    counted = parameter_counts(causal_skeleton(CONFIG_MAPPING[name](**overrides)))["total"]
    found = read_architecture(name)
    assert found is not None
    assert found.with_values(overrides).parameters(1000) == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("layout", ["ddp", "zero3"])
def test_a_check_imports_neither_torch_nor_transformers(layout: str) -> None:
    program = (
        "import sys; from llmkit.cli import main; code = main(sys.argv[1:]);"
        "print(sorted({'torch', 'transformers', 'accelerate', 'deepspeed'} & set(sys.modules))); sys.exit(code)"
    )
    words = [sys.executable, "-c", program, "check", "pretrain/quickstart", "--accelerate_config", layout]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


# --------------------------------------------------------------------------------------------------------------------
# Launching


def test_no_token_shards_are_made_for_a_launch_that_would_go_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    Path("corpus.txt").write_text("A text.\n" * 100)
    words = ["pretrain", "--train_file", "corpus.txt", "--optim", "muon", "--accelerate_config", "zero2"]
    assert cli.main(words) == 2
    assert "muon needs whole matrices" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_launch_that_would_go_wrong_starts_no_process(tokens: Artefact, tiny: dict[str, Any], tmp_path: Path) -> None:
    settings = {**tiny, "tokens": str(tokens.directory), "optim": "muon", "skip_spikes": True, "max_steps": 2}
    (tmp_path / "asked.yaml").write_text(yaml.safe_dump(settings))
    program = (
        "import sys; sys.addaudithook(lambda event, given: event == 'subprocess.Popen' and print('started', given[1]));"
        "from llmkit.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", program, "pretrain", "--config", "asked.yaml", "--output_dir", "out/model"]
    done = subprocess.run([*words, "--accelerate_config", "zero2"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "2 problems in the launch of pretrain under zero2" in done.stderr
    assert "muon needs whole matrices" in done.stderr
    assert "skip_spikes: DeepSpeed makes its step" in done.stderr
    assert "launcher" not in done.stdout
    assert not (tmp_path / "out").exists()
