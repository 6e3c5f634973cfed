"""`accelerate launch`, silent about processes that failed: each has said itself why, and here it would be a second traceback.

Use: `python -m llmkit.parallel.launcher [options of accelerate launch] script [options of the script]`.
"""

from __future__ import annotations

import logging
import signal
import sys


def main() -> int:
    """Run `accelerate launch` with this command line; the exit code is that of the first process that failed."""
    from accelerate.commands.launch import main as launch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        launch()
    except ChildFailedError as failure:
        rank, first = failure.get_first_failure()
        if first.exitcode >= 0:
            return first.exitcode
        name = signal.Signals(-first.exitcode).name
        hint = "; is the memory full?" if name == "SIGKILL" else ""
        print(f"llmkit: process {rank} of the launch was ended by {name}{hint}", file=sys.stderr)
        return 128 - first.exitcode
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main())
