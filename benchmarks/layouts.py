"""What a launch layout costs: tokens/s and memory of each process, as ratios to the plain one.

    python benchmarks/layouts.py --quick
    python benchmarks/layouts.py --rounds 3 --log
    python benchmarks/layouts.py --single

Every layout trains the same model with the same samples a step, one after the other, round after round, every second round in
the opposite order. Rates are timed by this process's clock between two lines that a run prints after its warm-up. Memory is
the most that a process of the run has held (VmHWM of Linux), of the fullest process; on a GPU the most that its device had in
use.

On a CPU the ratios show what a layout adds in work and talk between processes, not what it saves: two processes share the
cores that one would have, and what goes over gloo would go over NVLink. `--single` compares what one process can be told:
compilation, kernels, FP8, checkpointing of activations and offload.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import psutil
from pretrain import ROOT, commit, device_memory, environment, hardware, prepare, versions, working_directory

from llmkit import resources
from llmkit.parallel.launch import gpu_count
from llmkit.parallel.layout import read_layout
from llmkit.parallel.verify import cannot_run

_STEP = re.compile(r"step +\d+/\d+  loss")


@dataclass(frozen=True)
class Variant:
    """A way to train, by what differs from the others."""

    name: str
    layout: str
    settings: dict[str, Any] = field(default_factory=dict)


SINGLE = (
    Variant("plain", "single"),
    Variant("compiled", "single", {"torch_compile": True}),
    Variant("Liger", "single", {"use_liger_kernel": True}),
    Variant("activation checkpointing", "single", {"gradient_checkpointing": True}),
    Variant("FP8", "fp8", {"bf16": None}),
    Variant("FSDP2 with offload", "fsdp2_offload"),
)
"""What one process can be told; FP8 and offload are layouts, which one GPU gives one process."""


@dataclass
class Run:
    """One run of one variant."""

    processes: int
    tokens_per_second: float
    peak_bytes: int


def main() -> int:
    """Measure, and print the table."""
    arguments = parse()
    with working_directory(arguments.keep) as place:
        case = prepare(arguments, place)
        variants = SINGLE if arguments.single else [Variant(name, name) for name in arguments.layouts]
        runs: dict[str, list[Run]] = {variant.name: [] for variant in variants}
        failed: dict[str, str] = {}
        for number in range(arguments.rounds):
            for variant in variants if number % 2 == 0 else reversed(variants):
                if variant.name in failed:
                    continue
                print(f"round {number + 1}: {variant.name}", file=sys.stderr)
                try:
                    runs[variant.name].append(measure(variant, case))
                except RuntimeError as failure:
                    failed[variant.name] = str(failure)
                    print(f"{variant.name} failed:\n{failure}", file=sys.stderr)
    lines = table(variants, runs, failed)
    print("\n".join(lines))
    if arguments.log:
        print("\n" + log_entry(lines, case))
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small model and one round")
    parser.add_argument("--layouts", nargs="+", help="default: all that can run here; the first is the plain one")
    parser.add_argument("--single", action="store_true", help="what one process can be told, in place of layouts")
    parser.add_argument("--rounds", type=int, help="runs of each (default 2)")
    parser.add_argument("--num_params", help="size of the model, about (default 12M)")
    parser.add_argument("--tokens", type=Path, help="token shards (default: those of the embedded corpus)")
    parser.add_argument("--block_size", type=int, default=256, help="tokens of a sample")
    parser.add_argument("--batch", type=int, default=8, help="samples of a step, on all processes")
    parser.add_argument("--steps", type=int, default=14, help="steps of a run, warm-up included")
    parser.add_argument("--warmup", type=int, default=4, help="first steps that are not timed")
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="default: bf16 where the hardware has it")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if gpu_count() else "cpu")
    parser.add_argument("--log", action="store_true", help="print an entry for benchmarks/LOG.md as well")
    parser.add_argument("--keep", type=Path, help="work here and leave everything (default: a temporary directory)")
    arguments = parser.parse_args()
    usual = {"rounds": 1, "num_params": "2M"} if arguments.quick else {"rounds": 2, "num_params": "12M"}
    for name, value in usual.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.layouts is None:
        found = [name for name in resources.names("accelerate_configs") if not cannot_run(read_layout(name), gpu_count())]
        precisions = ("bf16", "fp16", "fp8")
        arguments.layouts = ["ddp", *(name for name in found if name != "ddp" and name not in precisions)]
    arguments.model_type, arguments.threads = "llama", 1
    return arguments


def measure(variant: Variant, case: dict[str, Any]) -> Run:
    """Run a variant once.

    Raises:
        RuntimeError: it failed, or said too little; with the end of its output.
    """
    place = Path(case["place"])
    settings = {
        "tokens": case["tokens"],
        "model_name_or_path": case["model"],
        "block_size": case["block_size"],
        "global_batch_size": case["batch"],
        "per_device_train_batch_size": case["batch"],
        "max_steps": case["steps"],
        "warmup_steps": 0.0,
        "logging_steps": 1,
        "eval_steps": 10 * case["steps"],
        "save_steps": 10 * case["steps"],
        "sample_prompts": [],
        "cpu_threads": 1,
        "bf16": case["precision"] == "bf16",
        **variant.settings,
    }
    if variant.layout == "pp":  # a pipeline needs micro-batches to fill it
        settings["per_device_train_batch_size"] = max(1, case["batch"] // 4)
    (place / "settings.yaml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    words = ["pretrain", "--config", str(place / "settings.yaml"), "--output_dir", str(place / "run"), "--force"]
    command = [sys.executable, "-m", "llmkit", *words, "--accelerate_config", variant.layout]
    peaks: dict[int, int] = {}
    marks: list[float] = []
    said: list[str] = []
    with device_memory(case["device"]) as most_on_device:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(case), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if _STEP.search(line):
                marks.append(time.perf_counter())
                look(process.pid, peaks)
        process.wait()
    timed = marks[case["warmup"] :]
    if process.returncode != 0 or len(timed) < 2:
        raise RuntimeError(f"{shlex.join(command)}\n{''.join(said[-25:])}")
    rate = (len(timed) - 1) * case["batch"] * case["block_size"] / (timed[-1] - timed[0])
    return Run(len(peaks), rate, most_on_device() if case["device"] == "cuda" else max(peaks.values()))


def look(process: int, peaks: dict[int, int]) -> None:
    """Note the most memory that each rank below a process has held so far, in bytes."""
    for child in psutil.Process(process).children(recursive=True):
        try:
            status = Path(f"/proc/{child.pid}/status").read_text(encoding="utf-8")
        except (OSError, psutil.Error):
            continue
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        if found and "recipes" in " ".join(child.cmdline()) and not child.children():
            peaks[child.pid] = int(found[1]) << 10


def table(variants: list[Variant] | tuple[Variant, ...], runs: dict[str, list[Run]], failed: dict[str, str]) -> list[str]:
    """Markdown, the first variant that ran as the plain one."""
    plain = next(variant.name for variant in variants if runs[variant.name])
    lines = [
        f"| | processes | tokens/s to {plain} | lowest to highest | memory to {plain} | tokens/s | fullest process |",
        "|---|---|---|---|---|---|---|",
    ]
    memory = statistics.median(run.peak_bytes for run in runs[plain])
    for variant in variants:
        of_it = runs[variant.name]
        if not of_it:
            reason = failed[variant.name].strip().splitlines()[-1]
            lines.append(f"| {variant.name} | not run: {reason} | | | | | |")
            continue
        ratios = [ours.tokens_per_second / theirs.tokens_per_second for ours, theirs in zip(of_it, runs[plain], strict=False)]
        peak = statistics.median(run.peak_bytes for run in of_it)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}" if len(ratios) > 1 and variant.name != plain else ""
        rate = statistics.median(run.tokens_per_second for run in of_it)
        lines.append(
            f"| {variant.name} | {of_it[0].processes} | {statistics.median(ratios):.2f} | {spread} | {peak / memory:.2f} | "
            f"{rate:,.0f} | {peak / 2**20:,.0f} MiB |"
        )
    return lines


def log_entry(lines: list[str], case: dict[str, Any]) -> str:
    """The table with what an entry of benchmarks/LOG.md says."""
    model = f"{case['parameters'] / 1e6:.1f} M parameters, {case['batch']} samples of {case['block_size']} tokens a step"
    heading = [
        f"## {date.today()}: what launch layouts cost",
        "",
        f"- llmkit: {commit()}; {', '.join(versions())}",
        f"- hardware: {hardware(case)}",
        f"- measured: `python benchmarks/layouts.py {shlex.join(sys.argv[1:])}`; {model}, {case['precision']}; steps "
        f"{case['warmup']} to {math.ceil(case['steps'])} timed",
        "",
    ]
    return "\n".join([*heading, *lines])


if __name__ == "__main__":
    sys.exit(main())
