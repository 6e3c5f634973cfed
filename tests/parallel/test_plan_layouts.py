"""`llmkit plan`: what fits, what is fastest, what is written, and what is refused."""

from __future__ import annotations

import json
import math
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit import cli, resources
from llmkit.config import parse_arguments, read_yaml
from llmkit.errors import ConfigError
from llmkit.parallel.candidates import Candidate, Cluster, candidates
from llmkit.parallel.gpus import GPUS, gpu_of, memory_bytes
from llmkit.parallel.layout import layout_of, read_layout
from llmkit.parallel.memory import Architecture, Step, memory
from llmkit.parallel.plan import Plan, as_json, describe, layout_file, make_plan, memory_of
from llmkit.parallel.roofline import speed
from llmkit.training.pretrain import PretrainConfig

ROOT = Path(__file__).resolve().parents[2]
H100 = GPUS["h100"]
EIGHT = Cluster(8, 1)

# Llama 3.1 8B (Grattafiori et al. 2024, table 3), counted by hand.
LLAMA_8B = Architecture(
    model_type="llama",
    vocab_size=128_256,
    hidden_size=4096,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=14_336,
    is_gated=True,
    norms_heads=False,
    embedding=128_256 * 4096,
    layer=2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336 + 2 * 4096,
    layer_matrices=2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336,
    final=4096,
    head=128_256 * 4096,
    has_tensor_plan=True,
)


def plan(cluster: Cluster = EIGHT, batch: int = 64, gib: float = 80, model: Architecture = LLAMA_8B, **options: Any) -> Plan:
    step = Step(1, options.pop("block_size", 8192))
    return make_plan(model, cluster, options.pop("gpu", H100), round(gib * 2**30), step, batch, 1e12, **options)


def by_name(found: Plan) -> dict[str, Any]:
    return {item.name: item for item in found.layouts}


def test_llama_8b_is_planned_by_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    words = ["--config", "pretrain/llama-3.1-8b", "--gpus", "8", "--gpu_memory", "80GB", "--price_per_gpu_hour", "2"]
    assert cli.main(["plan", *words, "--tokens", "1T", "--json", str(file)]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 100
    assert "llama, 8,030,261,248 parameters" in said
    found = json.loads(file.read_text())
    best = found["layouts"][0]
    assert found["best"] == best["name"] and best["fits"]
    assert f"fastest that fits: {best['name']}" in said
    assert all(rank["total"] <= 80 * 2**30 for rank in best["memory"])
    step = best["step"]
    assert step["micro_batch"] * step["accumulation"] * best["data_ranks"] == found["global_batch_size"] == 512
    assert best["run_seconds"] == pytest.approx(1e12 / best["speed"]["tokens_per_second"])
    assert {name: found["model"][name] for name in vars(LLAMA_8B)} == vars(LLAMA_8B)


def test_ddp_of_8b_does_not_fit_80_gib_and_is_told_why() -> None:
    found = plan()
    ddp = by_name(found)["ddp"]
    assert not ddp.fits and ddp.memory.fullest.optimizer == 8 * LLAMA_8B.parameters
    said = " ".join(describe(found, "bf16").split())
    assert "ddp: needs" in said and "a layout that divides weights, gradients and optimizer state" in said


def test_more_machines_are_named_where_they_would_do() -> None:
    """And they do."""
    only = Candidate(
        "zero2", layout_of({"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 2}}, Path("zero2"))
    )
    least = plan(gib=1, batch=4096, only=only).layouts[0].memory.fullest.total / 2**30
    small = plan(gib=least - 1, batch=4096, only=only)
    assert small.best is None
    said = " ".join(describe(small, "bf16").split())
    assert "no layout fits" in said and "or 2 machines" in said
    assert plan(Cluster(8, 2), gib=least - 1, batch=4096, only=only).best is not None


@pytest.mark.parametrize("cluster", [Cluster(1, 1), EIGHT, Cluster(4, 2), Cluster(8, 8)])
def test_every_candidate_can_be_launched_and_reads_back_as_it_was(cluster: Cluster, tmp_path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    found = plan(cluster, batch=1024)
    assert {item.name for item in found.layouts} >= ({"single"} if cluster.processes == 1 else {"ddp", "fsdp2", "zero3", "pp"})
    for item in found.layouts:
        path = tmp_path / f"{item.name}.yaml"
        path.write_text(layout_file(found, item), encoding="utf-8")
        again = read_layout(str(path))
        assert replace(again, path=item.layout.path) == item.layout
        assert again.sizes(cluster.processes) == item.sizes
        assert math.prod(item.sizes.values()) == cluster.processes
        assert load_config_from_file(str(path)).num_processes == cluster.processes
        given, _, _ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(path), "script.py"]))
        assert given.num_processes == cluster.processes


def test_the_written_layout_is_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    assert cli.main(["plan", "--num_params", "1B", "--gpus", "4", "--write", str(path)]) == 0
    best = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("fastest that fits:"))
    assert best.split(":")[1].split()[0] == path.read_text(encoding="utf-8").split()[1]
    assert read_yaml(path)[0]["num_processes"] == 4
    assert read_layout(str(path)).process_count(0) == 4


def test_nothing_is_written_where_nothing_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--config", "pretrain/llama-3.1-8b", "--gpus", "1", "--gpu_memory", "4GB"]
    assert cli.main([*words, "--write", str(tmp_path / "x.yaml")]) == 2
    assert "no layout fits" in capsys.readouterr().err
    assert not (tmp_path / "x.yaml").exists()


def test_a_config_of_transformers_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import GPT2Config

    GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=500).save_pretrained(tmp_path)
    for place in (tmp_path, tmp_path / "config.json"):
        assert cli.main(["plan", "--config", str(place), "--gpus", "2", "--global_batch_size", "8"]) == 0
        said = capsys.readouterr().out
        assert said.startswith("gpt2, ")
        assert "not possible: transformers has no tensor parallel plan for gpt2" in " ".join(said.split())


def test_a_size_that_does_not_divide_the_model_is_no_candidate() -> None:
    odd = replace(LLAMA_8B, num_key_value_heads=3, num_hidden_layers=5)
    found = {item.name: item for item in candidates(odd, EIGHT, 1023)}
    assert "num_key_value_heads 3" in found["tp"].reason
    assert "5 layers cannot be cut" not in found["pp"].reason and found["pp"].layout.pipeline <= 5  # type: ignore[union-attr]
    assert "block_size 1,023" in found["cp"].reason
    assert all(item.layout is None or item.layout.tensor == 1 for item in candidates(odd, EIGHT, 1024))


def test_a_batch_that_cannot_be_shared_is_told() -> None:
    found = plan(batch=6)
    assert {item.name: item.reason for item in found.impossible}["ddp"].endswith("do not divide the batch of 6")


@settings(deadline=None, max_examples=40)
@given(
    micro=st.sampled_from([1, 2, 4]),
    accumulation=st.sampled_from([1, 2, 8]),
    precision=st.sampled_from(["no", "bf16"]),
    checkpointing=st.booleans(),
)
def test_laws_of_memory(micro: int, accumulation: int, precision: Any, checkpointing: bool) -> None:
    step = Step(micro, 2048, accumulation, checkpointing, precision=precision)
    for item in candidates(LLAMA_8B, EIGHT, 2048):
        if item.layout is None:
            continue
        ranks = memory(LLAMA_8B, item.layout, 8, step).ranks
        assert all(min(rank.weights, rank.gradients, rank.activations, rank.logits, rank.buffers) >= 0 for rank in ranks)
        more = memory(LLAMA_8B, item.layout, 8, replace(step, micro_batch=2 * micro))
        assert more.fullest.total >= max(rank.total for rank in ranks), "more samples need no less memory"
    stages = [read_layout_of_zero(stage) for stage in (1, 2, 3)]
    totals = [memory(LLAMA_8B, layout, 8, step).fullest for layout in stages]
    held = [rank.weights + rank.all_gradients + rank.optimizer for rank in totals]
    assert held == sorted(held, reverse=True) and len(set(held)) == 3


def read_layout_of_zero(stage: int) -> Any:
    return layout_of({"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": stage}}, Path("zero"))


def test_zero_holds_what_its_paper_says() -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5 billion parameters on 64 devices take 31.4, 16.6 and 1.9 GB."""
    model = replace(LLAMA_8B, embedding=0, head=0, final=0, layer=7_500_000_000 // 32, layer_matrices=7_500_000_000 // 32)
    for stage, expected in ((1, 31.4), (2, 16.6), (3, 1.9)):
        rank = memory(model, read_layout_of_zero(stage), 64, Step(1, 1024)).fullest
        assert (rank.weights + rank.all_gradients + rank.optimizer) / 1e9 == pytest.approx(expected, rel=0.02)


def test_a_pipelines_stages_differ() -> None:
    layout = layout_of({"distributed_type": "MEGATRON_LM", "megatron_lm_config": {"megatron_lm_pp_degree": 4}}, Path("pp"))
    first, middle, last = memory(LLAMA_8B, layout, 4, Step(1, 8192, 8)).ranks
    assert (first.kind, middle.kind, last.kind) == ("first stage", "middle stages", "last stage")
    assert first.weights == middle.weights + 4 * LLAMA_8B.embedding
    assert first.logits == middle.logits == 0 < last.logits
    assert first.activations > middle.activations > last.activations


def test_the_settings_of_a_run_give_its_memory() -> None:
    """As `llmkit check` asks for it."""
    words = ["--config", "pretrain/llama-3.1-8b", "--global_batch_size", "16", "--per_device_train_batch_size", "2"]
    config = parse_arguments(PretrainConfig, [*words, "--gradient_checkpointing"]).config
    layout = read_layout("zero3")
    expected = memory(LLAMA_8B, layout, 8, Step(2, 8192, 1, checkpointing=True))
    assert memory_of(config, layout, 8) == expected
    assert memory_of(config, layout, 8, on_cpu=True).fullest.fragmentation == 0


# --------------------------------------------------------------------------------------------------------------------
# Time


def test_the_parts_of_a_step_are_the_formulas() -> None:
    """One H100, no communication: (11) and (12) by hand."""
    layout = layout_of({"distributed_type": "NO"}, Path("single"))
    found = speed(LLAMA_8B, layout, 1, Step(1, 8192, 2), H100, 8)
    matrices = 32 * LLAMA_8B.layer_matrices + 128_256 * 4096
    tokens = 2 * 8192
    assert found.matmul == pytest.approx(6 * matrices * tokens / (989.4e12 * 0.6))
    assert found.communication == found.bubble == found.recomputation == 0
    assert found.mfu == pytest.approx((6 * matrices + 12 * 32 * 4096 * 8192) * tokens / found.seconds / 989.4e12)
    assert found.tokens_per_second == pytest.approx(tokens / found.seconds)
    again = speed(LLAMA_8B, layout, 1, Step(1, 8192, 2, checkpointing=True), H100, 8)
    assert again.recomputation > found.matmul / 4 and again.mfu < found.mfu


def test_mfu_counts_operations_as_a_run_does() -> None:
    from transformers import LlamaConfig

    from llmkit.models.causal import causal_skeleton
    from llmkit.parallel.memory import architecture
    from llmkit.parallel.roofline import flops_per_token
    from llmkit.training import throughput

    for tied in (False, True):
        config = LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=3, vocab_size=500, num_attention_heads=4)
        config.tie_word_embeddings = tied
        model = causal_skeleton(config)
        real = throughput.flops_per_token(throughput.matrix_parameters(model), config, 128)
        norms = (2 * 3 + 1) * 64  # of the layers and the last one, which a run counts as if they were matrices
        assert flops_per_token(architecture(config), 128) == real - 6 * norms


def test_the_bubble_is_that_of_the_paper() -> None:
    """Narayanan et al. 2021, section 2.2.1: (p - 1) / m of the time without it."""
    layout = layout_of({"distributed_type": "MEGATRON_LM", "megatron_lm_config": {"megatron_lm_pp_degree": 4}}, Path("pp"))
    found = speed(LLAMA_8B, layout, 4, Step(1, 8192, 12), H100, 8)
    assert found.bubble / (found.seconds - found.bubble - found.update) == pytest.approx(3 / 12)


def test_tensor_parallel_across_machines_is_slower_than_inside_one() -> None:
    layout = layout_of({"distributed_type": "MULTI_GPU", "parallelism_config": {"parallelism_config_tp_size": 8}}, Path("tp"))
    inside, across = (speed(LLAMA_8B, layout, 8, Step(1, 8192), H100, machine) for machine in (8, 4))
    assert inside.communication < across.communication


# --------------------------------------------------------------------------------------------------------------------
# What is refused, and the guide


def test_an_unknown_gpu_is_refused_with_the_near_names() -> None:
    assert gpu_of("H100") is H100
    with pytest.raises(ConfigError, match="did you mean a100-80 or a100-40"):
        gpu_of("a100")
    with pytest.raises(ConfigError, match="'v100' is not in the table of GPUs"):
        gpu_of("v100")


@pytest.mark.parametrize(
    ("text", "size"), [("80GB", 80 * 2**30), ("79.5GiB", round(79.5 * 2**30)), ("24000MB", 24000 * 2**20)]
)
def test_memory_is_read(text: str, size: int) -> None:
    assert memory_bytes(text) == size


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu_memory", "much"], "is no amount of memory"),
        (["--tokens", "1 T"], "is no number of tokens"),
        (["--blok_size", "5"], "did you mean 'block_size'"),
        (["--model_type", "mamba"], "none for mamba"),
        (["--gpu", "h1000"], "did you mean h100"),
        (["--config", "nowhere.json"], "transformers reads no config there"),
        (["--config", "nowhere"], "is neither a file nor one of llmkit's recipes"),
    ],
)
def test_what_cannot_be_planned_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *words]) == 2
    assert said in capsys.readouterr().err


def test_every_gpu_names_its_source_and_reaches_more_in_fewer_bits() -> None:
    for gpu in GPUS.values():
        assert gpu.source and gpu.fp32 < gpu.bf16 < (gpu.fp8 or math.inf)
        assert gpu.network <= gpu.link < gpu.bandwidth
        assert f"{gpu.name}" in (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")


def test_the_tables_of_the_guide_are_what_is_computed() -> None:
    page = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    for line in filter(None, runpy.run_path(str(ROOT / "benchmarks" / "plan.py"))["tables"]().splitlines()):
        assert line in page, "run `python benchmarks/plan.py` and put its tables into docs/plan.md"


def test_the_shipped_architecture_is_the_public_one() -> None:
    values, _ = read_yaml(resources.find("recipes", "pretrain/llama-3.1-8b"))
    assert values["config_overrides"]["num_key_value_heads"] == LLAMA_8B.num_key_value_heads
    assert as_json(plan())["parameters"] == LLAMA_8B.parameters == 8_030_261_248
