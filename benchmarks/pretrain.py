"""How fast llmkit pretrains, beside a bare PyTorch loop and beside peers.

    python benchmarks/pretrain.py --quick
    python benchmarks/pretrain.py --rounds 5 --nanogpt ~/nanoGPT --run_clm ~/run_clm.py

Each side is a process of its own, with the same tokens, batch, threads and size of model, one after the other, round after
round, every second round in the opposite order. All sides are timed by one clock, this process's: it notes when a side says
that it has made a number of steps, and takes the time between the first such line after the warm-up and the last. Start-up,
warm-up, evaluation and saving are outside. A token is a position of a sample: batch x block_size of them make a step.

The bare loop is the floor: the model of llmkit's run, trained by the fewest lines that train it as well (fused AdamW without
decay on vectors, clipping, cosine with warm-up, mixed precision). It sets up the processor as llmkit does, so that the ratio
tells what llmkit's trainer costs, and nothing else.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import pickle
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_VERSIONS = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "liger-kernel")
_FLOOR = "bare loop"


@dataclass
class Side:
    """One of those who are compared."""

    name: str
    command: list[str]
    steps_said: Callable[[str], bool]
    """Whether a line of its output says that it has made another `log_every` steps."""
    directory: Path
    """Where it is started."""
    note: str = ""
    environment: dict[str, str] | None = None


@dataclass
class Run:
    """One run of one side."""

    tokens_per_second: float
    processor_seconds: float
    """Time that its threads were at work, a token; unlike the rate it stands when others use the machine as well."""
    peak_bytes: int
    """Most memory of its process; on a GPU, most memory of the device in use beyond what was before."""
    seconds: float
    """From its start to its end."""


def main() -> int:
    """Measure, and print the table."""
    arguments = parse()
    if arguments.bare is not None:
        bare_loop(json.loads(Path(arguments.bare).read_text(encoding="utf-8")))
        return 0
    with working_directory(arguments.keep) as place:
        case = prepare(arguments, place)
        sides = [llmkit_side(case), bare_side(case)]
        if arguments.nanogpt:
            sides.append(nanogpt_side(case, arguments.nanogpt))
        if arguments.run_clm:
            sides.extend(run_clm_sides(case, arguments.run_clm))
        runs: dict[str, list[Run]] = {side.name: [] for side in sides}
        for number in range(arguments.rounds):
            for side in sides if number % 2 == 0 else reversed(sides):
                run = measure(side, case)
                runs[side.name].append(run)
                print(f"round {number + 1}: {side.name}  {run.tokens_per_second:,.0f} tokens/s", file=sys.stderr, flush=True)
        lines = table(sides, runs, arguments)
        print("\n".join(lines))
        if arguments.log:
            print("\n" + log_entry(lines, sides, runs, case))
    return 0


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line, or other words in its place."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small model, few steps, 2 rounds: a minute or two")
    parser.add_argument("--rounds", type=int, help="runs of each side (default 5)")
    parser.add_argument("--num_params", help="size of the model, about, with its embedding (default 12M)")
    parser.add_argument("--model_type", default="llama", choices=("llama", "gpt2"), help="architecture of llmkit and run_clm")
    parser.add_argument(
        "--tokens", type=Path, help="token shards (default: those of the embedded corpus, made for the purpose)"
    )
    parser.add_argument("--block_size", type=int, help="tokens of a sample (default 256)")
    parser.add_argument("--batch", type=int, help="samples of a step (default 16)")
    parser.add_argument("--steps", type=int, help="steps of a run, warm-up included (default 60)")
    parser.add_argument("--warmup", type=int, help="first steps that are not timed (default 10)")
    parser.add_argument("--log_every", type=int, default=5, help="steps between two lines of each side (default 5)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="default: bf16 where the hardware has it")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of each side on a CPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile for every side")
    parser.add_argument("--liger", action="store_true", help="Liger kernels for llmkit, the bare loop and run_clm; GPUs only")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a further setting of llmkit")
    parser.add_argument("--nanogpt", type=Path, help="folder of karpathy/nanoGPT")
    parser.add_argument("--run_clm", type=Path, help="run_clm.py of transformers' examples, or its folder")
    parser.add_argument("--log", action="store_true", help="print an entry for benchmarks/LOG.md as well")
    parser.add_argument("--keep", type=Path, help="work here and leave everything (default: a temporary directory)")
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    usual = {"rounds": 5, "num_params": "12M", "block_size": 256, "batch": 16, "steps": 60, "warmup": 10}
    if arguments.quick:
        usual = {"rounds": 2, "num_params": "2M", "block_size": 128, "batch": 8, "steps": 25, "warmup": 5}
    for name, value in usual.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.steps // arguments.log_every - math.ceil(arguments.warmup / arguments.log_every) < 2:
        parser.error("--steps: after the warm-up must come at least two lines, one every --log_every steps")
    return arguments


@contextmanager
def working_directory(keep: Path | None) -> Iterator[Path]:
    """Where the runs go."""
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="llmkit-benchmark-") as name:
        yield Path(name)


# ----------------------------------------------------------------------------------------------------------------------
# The case: what all sides train


def prepare(arguments: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Token shards, a seed model and what else every side needs."""
    from transformers import AutoTokenizer

    from llmkit.models.causal import causal_config, new_causal_model, parameter_counts
    from llmkit.tokens.shards import TokenStream
    from llmkit.training.hardware import has_fast_bf16

    tokens = arguments.tokens.resolve() if arguments.tokens else embedded_tokens(place)
    tokenizer = AutoTokenizer.from_pretrained(tokens / "tokenizer")
    overrides = shape(arguments.num_params, arguments.model_type, len(tokenizer))
    model = new_causal_model(causal_config(arguments.model_type, overrides, tokenizer, arguments.block_size), seed=0)
    model.save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    precision = arguments.precision or ("bf16" if has_fast_bf16(arguments.device == "cpu") else "fp32")
    stream = TokenStream(tokens, "train")
    return {
        **{key: value for key, value in vars(arguments).items() if not isinstance(value, Path)},
        "place": str(place),
        "tokens": str(tokens),
        "model": str(place / "model"),
        "overrides": overrides,
        "vocab_size": len(tokenizer),
        "train_tokens": len(stream),
        "parameters": parameter_counts(model)["total"],
        "precision": precision,
    }


def embedded_tokens(place: Path) -> Path:
    """Token shards of the corpus that llmkit carries."""
    from llmkit.config import resolve
    from llmkit.stages import prepare_tokens
    from llmkit.training.pretrain import PretrainConfig

    return Path(prepare_tokens(resolve(PretrainConfig, []), place / "runs").config.tokens).resolve()


def shape(num_params: str, model_type: str, vocab_size: int) -> dict[str, Any]:
    """Width and depth for about so many parameters, embedding tied: heads of 64, and about 64 times as wide as deep.

    A layer has 12 x width^2 parameters in both architectures: 4 of attention, 8 of the feed-forward part (for Llama three
    matrices of 8/3 of the width).
    """
    factor = {"K": 1e3, "M": 1e6, "B": 1e9}[num_params[-1].upper()]
    wanted = float(num_params[:-1]) * factor

    def size(width: int, layers: int) -> float:
        return 12 * layers * width**2 + vocab_size * width

    width, layers = min(
        ((width, max(2, round(width / 64))) for width in range(64, 8192 + 1, 64)), key=lambda pair: abs(size(*pair) - wanted)
    )
    layers = max(2, round((wanted - vocab_size * width) / (12 * width**2)))
    if model_type == "gpt2":
        dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
        return {"n_embd": width, "n_layer": layers, "n_head": width // 64, **dropout}
    return {
        "hidden_size": width,
        "intermediate_size": round(8 * width / 3 / 64) * 64,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        "tie_word_embeddings": True,
    }


def environment(case: dict[str, Any]) -> dict[str, str]:
    """What every side finds in its environment."""
    threads = str(case["threads"])
    given = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "OMP_", "MKL_"))}
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if case["device"] == "cpu" else {}
    return {
        **given,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **hidden,
    }


# ----------------------------------------------------------------------------------------------------------------------
# The sides


def llmkit_side(case: dict[str, Any]) -> Side:
    """`llmkit pretrain`, as a user starts it."""
    settings = {
        "tokens": case["tokens"],
        "model_type": case["model_type"],
        "config_overrides": case["overrides"],
        "block_size": case["block_size"],
        "per_device_train_batch_size": case["batch"],
        "max_steps": case["steps"],
        "warmup_steps": case["warmup"],
        "learning_rate": 1e-3,
        "logging_steps": case["log_every"],
        "eval_steps": case["steps"],
        "save_steps": case["steps"],
        "cpu_threads": case["threads"],
        "bf16": case["precision"] == "bf16",
        "use_cpu": case["device"] == "cpu",
        "torch_compile": case["compile"],
        "use_liger_kernel": case["liger"],
    }
    path = Path(case["place"]) / "llmkit.yaml"
    path.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    further = [f"--{setting}" for setting in case["set"]]
    output = Path(case["place"]) / "llmkit"
    words = [
        sys.executable,
        "-m",
        "llmkit",
        "pretrain",
        "--config",
        str(path),
        "--output_dir",
        str(output),
        "--force",
        *further,
    ]
    return Side("llmkit", words, re.compile(r"step +\d+/\d+  loss").search, ROOT)  # type: ignore[arg-type]


def bare_side(case: dict[str, Any]) -> Side:
    """This file's own loop."""
    path = Path(case["place"]) / "bare.json"
    path.write_text(json.dumps(case), encoding="utf-8")
    return Side(_FLOOR, [sys.executable, __file__, "--bare", str(path)], lambda line: line.startswith("step "), ROOT)


def nanogpt_side(case: dict[str, Any], folder: Path) -> Side:
    """karpathy/nanoGPT: its own GPT-2 of the same width, depth and vocabulary."""
    import numpy as np

    from llmkit.tokens.shards import TokenStream

    data = Path(case["place"]) / "nanogpt" / "data"
    data.mkdir(parents=True, exist_ok=True)
    for split, name in (("train", "train.bin"), ("validation", "val.bin")):
        stream = TokenStream(Path(case["tokens"]), split)
        stream.read(0, min(len(stream), 50_000_000)).astype(np.uint16).tofile(data / name)
    (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": case["vocab_size"]}))
    overrides = case["overrides"]
    width = overrides.get("hidden_size") or overrides["n_embd"]
    on_cpu = case["device"] == "cpu"
    options = {
        "dataset": str(data),  # joined to its own data folder, an absolute path stands for itself
        "out_dir": str(data.parent / "out"),
        "n_layer": overrides.get("num_hidden_layers") or overrides["n_layer"],
        "n_head": width // 64,
        "n_embd": width,
        "block_size": case["block_size"],
        "batch_size": case["batch"],
        "gradient_accumulation_steps": 1,
        "max_iters": case["steps"],
        "lr_decay_iters": case["steps"],
        "warmup_iters": case["warmup"],
        "log_interval": case["log_every"],
        "eval_interval": 1_000_000,
        "eval_iters": 1,
        "device": case["device"],
        "compile": bool(case["compile"]),
        "dtype": "bfloat16" if case["precision"] == "bf16" and not on_cpu else "float32",
    }
    words = [f"--{key}={value}" for key, value in options.items()]
    note = "computes in fp32: on a CPU it knows no bf16" if on_cpu and case["precision"] == "bf16" else ""
    command = [sys.executable, "train.py", *words]
    return Side("nanoGPT", command, re.compile(r"^iter \d+: loss").search, folder.resolve(), note)  # type: ignore[arg-type]


def run_clm_sides(case: dict[str, Any], given: Path) -> list[Side]:
    """transformers' run_clm.py on the same text, in the precision of the others and, where that differs, in its own."""
    from transformers import AutoTokenizer

    from llmkit.tokens.shards import TokenStream

    script = (given / "run_clm.py" if given.is_dir() else given).resolve()
    place = Path(case["place"]) / "run_clm"
    place.mkdir(exist_ok=True)
    stream = TokenStream(Path(case["tokens"]), "train")
    needed = min(len(stream), 2 * case["steps"] * case["batch"] * case["block_size"])
    tokenizer = AutoTokenizer.from_pretrained(case["model"])
    pieces = (stream.read(start, min(start + 512, needed)) for start in range(0, needed, 512))
    lines = [json.dumps({"text": tokenizer.decode(piece)}) + "\n" for piece in pieces]
    (place / "train.json").write_text("".join(lines), encoding="utf-8")
    environment = {}
    if importlib.util.find_spec("evaluate") is None:  # it imports it, and uses it only for --do_eval
        (place / "modules").mkdir(exist_ok=True)
        (place / "modules" / "evaluate.py").write_text("", encoding="utf-8")
        environment = {"PYTHONPATH": str(place / "modules")}
    words = [
        *("--config_name", case["model"], "--tokenizer_name", case["model"], "--train_file", str(place / "train.json")),
        *("--output_dir", str(place / "out"), "--do_train", "--block_size", str(case["block_size"])),
        *("--per_device_train_batch_size", str(case["batch"]), "--max_steps", str(case["steps"])),
        *("--logging_steps", str(case["log_every"]), "--save_strategy", "no", "--disable_tqdm", "true"),
        *("--warmup_steps", str(case["warmup"]), "--lr_scheduler_type", "cosine", "--report_to", "none"),
        *("--cache_dir", str(place / "cache")),
        *(["--use_cpu"] if case["device"] == "cpu" else []),
        *(["--torch_compile"] if case["compile"] else []),
        *(["--use_liger_kernel"] if case["liger"] else []),
    ]
    says = re.compile(r"'loss':").search
    command = [sys.executable, str(script), *words]
    if case["precision"] == "fp32":
        return [Side("run_clm", command, says, place, environment=environment)]  # type: ignore[arg-type]
    return [
        Side("run_clm", [*command, "--bf16"], says, place, environment=environment),  # type: ignore[arg-type]
        Side("run_clm, own defaults", command, says, place, "fp32", environment),  # type: ignore[arg-type]
    ]


def bare_loop(case: dict[str, Any]) -> None:
    """The floor: what training this model on these tokens costs with nothing around it."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    from llmkit.tokens.shards import TokenStream
    from llmkit.training.hardware import use_cpu_well

    device, steps, warmup, length = torch.device(case["device"]), case["steps"], case["warmup"], case["block_size"]
    if device.type == "cpu":
        use_cpu_well(case["threads"])
    torch.manual_seed(0)
    if case["liger"]:
        from liger_kernel.transformers import _apply_liger_kernel

        _apply_liger_kernel(case["model_type"])
    model = AutoModelForCausalLM.from_pretrained(case["model"], dtype=torch.float32).to(device)
    model.config.use_cache = False
    decayed = [weight for weight in model.parameters() if weight.ndim >= 2]
    others = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
        ),
    )
    forward = torch.compile(model) if case["compile"] else model
    tokens = TokenStream(Path(case["tokens"]), "train").read(0, 50_000_000)
    numbers = np.random.default_rng(0)
    for step in range(steps):
        starts = numbers.integers(0, len(tokens) - length, size=case["batch"])
        ids = torch.from_numpy(np.stack([tokens[start : start + length] for start in starts])).to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=case["precision"] == "bf16"):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % case["log_every"] == 0:
            print(f"step {step + 1}  loss {loss.item():.4f}", flush=True)


# ----------------------------------------------------------------------------------------------------------------------
# Measuring


def measure(side: Side, case: dict[str, Any]) -> Run:
    """Run a side once.

    Raises:
        SystemExit: it failed, or said too little; with the end of its output.
    """
    shutil.rmtree(Path(case["place"]) / "run_clm" / "out", ignore_errors=True)
    variables = {**environment(case), **(side.environment or {})}
    started = time.perf_counter()
    with device_memory(case["device"]) as most_on_device:
        process = subprocess.Popen(
            side.command, cwd=side.directory, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        said: list[str] = []
        marks: list[tuple[float, float]] = []
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if side.steps_said(line):
                marks.append((time.perf_counter(), processor_seconds(process.pid)))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{side.name} failed:\n{shlex.join(side.command)}\n{''.join(said[-25:])}")
    timed = marks[math.ceil(case["warmup"] / case["log_every"]) :]
    if len(timed) < 2:
        raise SystemExit(f"{side.name} said too little of its steps:\n{''.join(said[-25:])}")
    tokens = (len(timed) - 1) * case["log_every"] * case["batch"] * case["block_size"]
    (first, busy_before), (last, busy_after) = timed[0], timed[-1]
    unit = 1 if sys.platform == "darwin" else 1024
    peak = most_on_device() if case["device"] == "cuda" else usage.ru_maxrss * unit
    return Run(tokens / (last - first), (busy_after - busy_before) / tokens, peak, time.perf_counter() - started)


def processor_seconds(process: int) -> float:
    """Time that the threads of a process have been at work; not a number where the system does not say it as Linux does."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def device_memory(device: str) -> Iterator[Callable[[], int]]:
    """Watches the memory in use on the GPU; gives a function that tells the most of it, in bytes, beyond what was before."""
    if device == "cpu":
        yield lambda: 0
        return

    def used() -> int:
        words = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[0]) << 20

    before, most, over = used(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            most[0] = max(most[0], used())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: max(0, most[0] - before)
    finally:
        over.set()
        watcher.join()


# ----------------------------------------------------------------------------------------------------------------------
# Telling


def table(sides: list[Side], runs: dict[str, list[Run]], arguments: argparse.Namespace) -> list[str]:
    """The rates as ratios to the bare loop of the same round, in Markdown."""
    lines = [
        "| | tokens/s to bare loop | lowest to highest | processor time to bare loop | tokens/s | peak memory | |",
        "|---|---|---|---|---|---|---|",
    ]
    for side in sides:
        ratios = [
            own.tokens_per_second / floor.tokens_per_second for own, floor in zip(runs[side.name], runs[_FLOOR], strict=True)
        ]
        busy = [
            own.processor_seconds / floor.processor_seconds for own, floor in zip(runs[side.name], runs[_FLOOR], strict=True)
        ]
        rate = statistics.median(run.tokens_per_second for run in runs[side.name])
        peak = statistics.median(run.peak_bytes for run in runs[side.name])
        lines.append(
            f"| {side.name} | {statistics.median(ratios):.3f} | {min(ratios):.3f} to {max(ratios):.3f} | "
            f"{statistics.median(busy):.3f} | {rate:,.0f} | "
            f"{peak / 2**20:,.0f} MiB | {side.note} |"
        )
    for name, given in (("nanoGPT", arguments.nanogpt), ("run_clm", arguments.run_clm)):
        if not given:
            lines.append(f"| {name} | not given | | | | | |")
    return lines


def log_entry(lines: list[str], sides: list[Side], runs: dict[str, list[Run]], case: dict[str, Any]) -> str:
    """An entry for benchmarks/LOG.md, in its form."""
    rounds = len(runs[_FLOOR])
    size = (
        f"{case['parameters'] / 1e6:,.1f} M parameters ({case['model_type']}, {case['vocab_size']:,} tokens in its vocabulary)"
    )
    what = f"{size}, {case['batch']} samples of {case['block_size']} tokens a step, {case['precision']}"
    options = [name for name in ("compile", "liger") if case[name]] + case["set"]
    seconds = ", ".join(f"{side.name} {statistics.median(run.seconds for run in runs[side.name]):.0f} s" for side in sides)
    return "\n".join(
        [
            f"## {date.today().isoformat()}: how fast llmkit pretrains, beside a bare loop and peers",
            "",
            f"- llmkit: {commit()}; Python {platform.python_version()}, {', '.join(versions())}",
            f"- hardware: {hardware(case)}",
            f"- measured: `{shlex.join(['python', 'benchmarks/pretrain.py', *sys.argv[1:]])}`; {what}"
            f"{', with ' + ', '.join(options) if options else ''}; {rounds} rounds, the order turned round each time; steps "
            f"{case['warmup']} to {case['steps']} timed; a whole run took: {seconds}",
            "- result:",
            "",
            *lines,
        ]
    )


def versions() -> list[str]:
    """Versions of the packages that matter."""
    found = []
    for name in _VERSIONS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of this checkout, and whether it has been changed."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or "unknown commit"


def hardware(case: dict[str, Any]) -> str:
    """Processor, threads in use and memory; the GPU where it is one."""
    if case["device"] == "cuda":
        import torch

        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    information = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", information.read_text(encoding="utf-8")) if information.exists() else []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[2]
    name = models[0] if models else platform.processor()
    used = f"{case['threads']} threads of {os.cpu_count()} cores"
    return f"{name}, {used}, {memory:.0f} GiB; load over 15 minutes {load:.1f}"


if __name__ == "__main__":
    sys.exit(main())
