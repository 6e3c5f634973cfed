"""`accelerate launch`, silent about processes that failed: each has said itself why, and here it would be a second traceback.

Use: `python -m llmkit.parallel.launcher --config_file LAYOUT [options of accelerate launch] script [options of the script]`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from argparse import Namespace
from pathlib import Path

from llmkit.config import read_yaml

# Seconds that a stage has to save what it reached, when it is told to end, before torchrun kills it. Its own default, 30,
# is too short for a large model on a slow disk.
_TIME_TO_SAVE = "300"


def main() -> int:
    """Run `accelerate launch` with this command line; the exit code is that of the first process that failed."""
    try:
        return _launch()
    except KeyboardInterrupt:  # later it is passed on to the processes
        return 128 + signal.SIGINT


def _launch() -> int:
    from accelerate.commands import launch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _TIME_TO_SAVE)
    launch.simple_launcher = _become
    arguments = launch.launch_command_parser().parse_args()
    if read_yaml(Path(arguments.config_file))[0].get("num_machines", 1) == 1:
        # torchrun then takes a port that is free when it binds it, not one that was free a second before; and a launch has
        # an id of its own, by which its ranks know each other's files.
        arguments.standalone, arguments.local_addr = True, "127.0.0.1"
    try:
        launch.launch_command(arguments)
    except ChildFailedError as failure:
        rank, first = failure.get_first_failure()
        if first.exitcode >= 0:
            return first.exitcode
        print(f"llmkit: process {rank} of the launch was ended by {signal.Signals(-first.exitcode).name}", file=sys.stderr)
        return 128 - first.exitcode
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    return 0


def _become(arguments: Namespace) -> None:
    """Become the one process of a layout, so that signals reach it and its exit code is the launcher's own."""
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    words, environment = prepare_simple_launcher_cmd_env(arguments)
    os.execvpe(words[0], words, environment)


if __name__ == "__main__":
    sys.exit(main())
