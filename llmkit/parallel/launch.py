"""Start a stage through `accelerate launch`, under a layout found by name or by path."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from llmkit import resources
from llmkit.config import Resolved, read_yaml
from llmkit.errors import ConfigError, LLMKitError, StageFailed
from llmkit.pipeline.artefact import Artefact
from llmkit.pipeline.stage import Stage, failure_message, forget_failure, writing


def has_gpu() -> bool:
    """Whether this machine has a GPU, found without importing torch."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists() or shutil.which("nvidia-smi") is not None


def launch_words(layout: str) -> list[str]:
    """The command line that starts a script under a layout, up to the script.

    A layout that does not say how many processes it wants gets one for each GPU, or on a machine without one the two
    that show that it works.

    Raises:
        ConfigError: there is no such layout, or what it needs is not installed.
    """
    path = resources.find("accelerate_configs", layout)
    settings, _ = read_yaml(path)
    if settings.get("distributed_type") == "DEEPSPEED" and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError([f"layout {layout!r} needs DeepSpeed: pip install 'llmkit[deepspeed]'"], "command")
    words = [sys.executable, "-m", "llmkit.parallel.launcher", "--quiet", "--config_file", str(path)]
    if "num_processes" not in settings:
        words += ["--num_processes", str(_gpu_count() if has_gpu() else 2)]
    # No `--cpu` on a machine without a GPU: with it accelerate starts one process, whatever the layout says. The ranks find
    # by themselves that there is no GPU, and talk over gloo.
    return words


def _gpu_count() -> int:
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 1
    return max(1, sum(line.startswith("GPU ") for line in listing.splitlines()))


def default_layout() -> str | None:
    """The layout of a training stage where none is named: None, this process, unless there are several GPUs to fill."""
    return "ddp" if has_gpu() and _gpu_count() > 1 else None


def launch_stage(stage: Stage, resolved: Resolved[Any], output: Path, layout: str, force: bool = False) -> Artefact:
    """Run a stage in processes of its own and give back what it made.

    Raises:
        LLMKitError: the stage ended with a user's error; its message is passed on.
        StageFailed: it ended with any other error, which it has printed itself.
    """
    settings = output.with_name(f"{output.name}.yaml")
    with writing(settings.parent, stage.name):
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(resolved.to_yaml(f"Settings of `llmkit {stage.name}`, resolved"), encoding="utf-8")
        forget_failure(output)
    recipe = resources.shipped("recipes") / f"{stage.name}.py"
    words = [*launch_words(layout), str(recipe), "--config", str(settings), "--output_dir", str(output), "--layout", layout]
    status = _run_forwarding_signals([*words, *(["--force"] if force else [])])
    artefact = Artefact.peek(output)
    if status == 0 and artefact is not None:
        settings.unlink(missing_ok=True)
        return artefact
    message = failure_message(output)
    if message:
        error = LLMKitError(message)
        error.reported = True
        raise error
    raise StageFailed(f"{stage.name}: its process ended with exit code {status}; what it printed above says why")


def _run_forwarding_signals(words: list[str]) -> int:
    """Run a command in a process group of its own; Ctrl-C and SIGTERM reach all of it."""
    process = subprocess.Popen(words, start_new_session=True)

    def forward(number: int, _: FrameType | None) -> None:
        os.killpg(process.pid, number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
