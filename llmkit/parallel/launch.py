"""Start a stage through `accelerate launch`, under a layout found by name or by path."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from functools import cache
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import Any

from llmkit import resources
from llmkit.config import Resolved
from llmkit.errors import ConfigError, LLMKitError, StageFailed, StageStopped
from llmkit.parallel.layout import read_layout
from llmkit.parallel.nodes import node_count, read_nodes
from llmkit.pipeline.artefact import Artefact
from llmkit.pipeline.stage import Stage, failure_message, forget_failure, writing

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def gpu_count() -> int:
    """The GPUs that this process may use, counted without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return _gpus_of_machine()
    chosen = takewhile(lambda name: name not in ("", "-1"), map(str.strip, visible.split(",")))
    return min(_gpus_of_machine(), len(list(chosen)))  # CUDA too stops at the first that is none


@cache
def _gpus_of_machine() -> int:
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
        return sum(line.startswith("GPU ") for line in listing.splitlines())
    except (OSError, subprocess.SubprocessError):
        return int(Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists())


def process_count(layout: str) -> int:
    """How many processes a layout has on all nodes, if they are as this one; see `Layout.process_count`.

    Raises:
        ConfigError: there is no such layout.
    """
    found = read_layout(layout)
    return found.process_count(gpu_count())


def several_nodes(layout: str) -> bool:
    """Whether a layout is started on more than this machine.

    Raises:
        ConfigError: there is no such layout.
    """
    found = read_layout(layout)
    return not found.is_single and node_count(found.settings) > 1


def data_ranks(layout: str) -> int:
    """How many processes of a layout have samples of their own.

    Raises:
        ConfigError: there is no such layout, or its dimensions do not divide its processes.
    """
    return read_layout(layout).data_ranks(process_count(layout))


def launch_words(layout: str) -> list[str]:
    """The command line that starts a script under a layout, up to the script.

    Raises:
        ConfigError: there is no such layout, or what it needs is not installed.
    """
    found = read_layout(layout)
    if found.engine == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError([f"layout {layout!r} needs DeepSpeed: pip install 'llmkit[deepspeed]'"], "command")
    # No `--cpu` on a machine without a GPU: with it accelerate starts one process, whatever the layout says. The ranks find
    # by themselves that there is no GPU, and talk over gloo.
    words = [sys.executable, "-m", "llmkit.parallel.launcher", "--quiet", "--config_file", str(found.path)]
    return [*words, *found.launch_options(process_count(layout))]


def default_layout() -> str | None:
    """The layout of a training stage where none is named: None, this process, unless there are several GPUs to fill."""
    return "ddp" if gpu_count() > 1 else None


def refuse(stage: str, resolved: Resolved[Any], output: Path, layout: str) -> None:
    """Refuse a launch that would go wrong, before a process is started; see `check`.

    Raises:
        ConfigError: with everything that is wrong.
    """
    from llmkit.parallel.check import refuse_broken  # which needs this module

    refuse_broken(stage, resolved, output, layout)


def launch_stage(
    stage: Stage,
    resolved: Resolved[Any],
    output: Path,
    layout: str,
    force: bool = False,
    *,
    script: Path | None = None,
    log: Path | None = None,
) -> Artefact:
    """Run a stage in processes of its own and give back what it made.

    Args:
        script: what the processes run; None: the recipe of the stage.
        log: where what they print goes; None: to where this process prints.

    Raises:
        ConfigError: it would go wrong, by `check`; no process was started.
        LLMKitError: the stage ended with a user's error; its message is passed on.
        StageStopped: it was told to end, itself or by way of this process.
        StageFailed: it ended with any other error, which it has printed itself.
    """
    refuse(stage.name, resolved, output, layout)
    node = read_nodes(read_layout(layout).settings, {}).rank if several_nodes(layout) else 0
    settings = output.with_name(f"{output.name}.{node}.{os.getpid()}.yaml")  # on several nodes, others may have its number
    recipe = script or resources.shipped("recipes") / f"{stage.name}.py"
    words = [*launch_words(layout), str(recipe), "--config", str(settings), "--output_dir", str(output), "--layout", layout]
    try:
        with writing(settings.parent, stage.name):
            settings.parent.mkdir(parents=True, exist_ok=True)
            settings.write_text(resolved.to_yaml(f"Settings of `llmkit {stage.name}`, resolved"), encoding="utf-8")
            forget_failure(output)
        status = _run_forwarding_signals([*words, *(["--force"] if force else [])], _environment(layout), log)
    finally:
        settings.unlink(missing_ok=True)
    artefact = Artefact.peek(output)
    if status == 0 and artefact is not None:
        return artefact
    raise _failure(stage, status, failure_message(output), force)


def launch_command(layout: str, words: list[str]) -> int:
    """Run a command of llmkit that is no stage in the processes of a layout; its exit code.

    Raises:
        ConfigError: as `launch_words`.
    """
    return _run_forwarding_signals([*launch_words(layout), "--module", "llmkit", *words], _environment(layout))


def _failure(stage: Stage, status: int, message: str | None, force: bool) -> LLMKitError:
    """The error for an exit code, with the stage's own words where it has left some."""
    error: LLMKitError
    if status - 128 in _STOPS:
        name = signal.Signals(status - 128).name
        command = "the same command without --force" if force else "the same command"
        said = message or f"{stage.name}: stopped by {name}; {command} goes on where this one stopped"
        error = StageStopped(status - 128, said)
    elif message:
        error = LLMKitError(message)
    elif status == 128 + signal.SIGKILL:
        error = StageFailed(f"{stage.name}: its process was ended by SIGKILL; is the memory full?")
    else:
        error = StageFailed(f"{stage.name}: its process ended with exit code {status}; what it printed above says why")
    error.reported = message is not None
    return error


def _environment(layout: str) -> dict[str, str]:
    """What accelerate reads in a layout and does not pass on: `use_cpu` to several processes, and where NVMe offload goes."""
    found = read_layout(layout)
    further = {"ACCELERATE_USE_CPU": "true"} if found.use_cpu else {}
    for part in ("optimizer", "param"):
        place = (found.settings.get("deepspeed_config") or {}).get(f"offload_{part}_nvme_path")
        if place:
            further[f"ACCELERATE_DEEPSPEED_OFFLOAD_{part.upper()}_NVME_PATH"] = str(place)
    return {**further, **os.environ}


def _run_forwarding_signals(words: list[str], environment: dict[str, str], log: Path | None = None) -> int:
    """Run a command to its end, also when this process is told to end: it is passed on, and the command may save first.

    Args:
        log: where what it prints goes; None: to where this process prints.

    Returns:
        Its exit code, as a shell gives it: 128 and the number of the signal that ended it, or stopped it through us.
    """
    received: list[int] = []
    # A session of its own: Ctrl-C in a terminal would reach the launcher's processes twice, by it and by the terminal.
    with log.open("w", encoding="utf-8") if log else nullcontext() as file:
        process = subprocess.Popen(
            words, env=environment, start_new_session=True, stdout=file, stderr=subprocess.STDOUT if file else None
        )

    def forward(number: int, _: FrameType | None) -> None:
        if not received:  # a second one would tear the launcher from processes that are saving
            received.append(number)
            process.send_signal(number)

    heeded = [number for number in _STOPS if signal.getsignal(number) != signal.SIG_IGN]  # nohup has some ignored
    before = {number: signal.signal(number, forward) for number in heeded}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status != 0 and received:
        return 128 + received[0]
    return status if status >= 0 else 128 - status
