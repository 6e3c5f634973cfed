"""What the processes of a launch over several nodes tell each other while they have no process group yet.

On one machine they need not: all see the same files, and the launcher ends all of them when one has failed. Over several nodes
a directory may be another one on each, and no launcher ends the processes of another node in time. So they meet at the store
that the launcher has named for their process group, which answers as long as the main process lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

from llmkit import __version__
from llmkit.errors import ArtefactError, LLMKitError

NODE = "LLMKIT_NODE"
"""The variable in which a launcher says its node's rank and, behind a slash, a name of its own."""

AGAIN = "LLMKIT_STARTED_AGAIN"
"""The variable that a launcher sets for all processes but the first it starts. torchrun's count leaves out some restarts."""

_SIZES = {
    "replicate": "PARALLELISM_CONFIG_DP_REPLICATE_SIZE",
    "shard": "PARALLELISM_CONFIG_DP_SHARD_SIZE",
    "tensor": "PARALLELISM_CONFIG_TP_SIZE",
    "context": "PARALLELISM_CONFIG_CP_SIZE",
    "sequence": "PARALLELISM_CONFIG_SP_SIZE",
    "pipeline": "MEGATRON_LM_PP_DEGREE",
}
"""The variables in which accelerate hands the dimensions of a layout to its processes."""

_LIMIT = "LLMKIT_NODE_WAIT"
_DISK_LAG = 10.0  # seconds until a file that one node has made must be there for another; NFS looks up a new name at once
_TO_READ = timedelta(seconds=5)  # for the others to read why the main process ends
_BETWEEN_LOOKS = 1.0  # seconds between two questions whether the main process is alive
_FAREWELL = 30.0  # seconds in which what the main process has finished must become visible, after it has ended


class MainProcessGone(LLMKitError):
    """The main process has ended while another waited for it. No user's error: the launcher may start all of them again."""

    exit_code = 1


def rank() -> tuple[int, int]:
    """This process's rank and the number of ranks, as the launcher set them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def dimension(name: str) -> int:
    """Among how many processes this launch divides something: replicate, shard, tensor, context, sequence or pipeline."""
    return int(os.environ.get(_SIZES[name]) or 1)


def on_several_nodes() -> bool:
    """Whether this is a rank of a launch over several nodes."""
    return int(os.environ.get("GROUP_WORLD_SIZE") or 1) > 1


def started_again() -> bool:
    """Whether the launcher has started this process in place of one that was killed or crashed, or that worked with one."""
    return AGAIN in os.environ


def launch_id() -> str:
    """What all ranks of a launch have in common and no two launches at once, nor two starts of one that torchrun repeats."""
    names = ["TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"]
    # Each node counts its restarts by itself, and one that came later has a lower count. Where the ranks have a store of
    # their own, and not that of the launcher, its port is another one at each start.
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "False":
        names.append("TORCHELASTIC_RESTART_COUNT")
    return "/".join(os.environ.get(name, "") for name in names)


class _Meeting:
    """The store of a launch, and when the main process was last seen alive."""

    def __init__(self) -> None:
        from torch.distributed import PrefixStore, TCPStore

        this, count = rank()
        self.limit = int(os.environ.get(_LIMIT) or 600)
        hosts = this == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        try:
            store = TCPStore(
                host,
                port,
                is_master=hosts,
                multi_tenant=True,  # so that the process group, later, takes this one
                timeout=timedelta(seconds=self.limit),
                wait_for_workers=False,
            )
        except RuntimeError as failure:  # torch's own classes of it differ between versions
            raise MainProcessGone(
                f"rank {this} on {socket.gethostname()} has not reached the main process at {host}:{port} within "
                f"{self.limit} s: it has ended, or the nodes may not connect to each other on all ports"
            ) from failure
        self.store = PrefixStore(f"llmkit/{launch_id()}", store)
        self.count = count
        self.rounds = 0
        self.looked = time.monotonic()
        self.gone_since: float | None = None

    def agree(self, directory: Path, facts: dict[str, Any], problem: str | None) -> str | None:
        """What keeps the ranks from working together, in words; the same on each of them."""
        self.rounds += 1
        name = str(self.rounds)
        if rank()[0] == 0:
            verdict = self._preside(name, directory, facts, problem)
            self.store.set(f"{name}/verdict", verdict or "")
            if verdict:  # the store goes with this process, and the others are to read it first
                with contextlib.suppress(RuntimeError):
                    self.store.wait([f"{name}/{other}/knows" for other in range(1, self.count)], _TO_READ)
            return verdict
        try:
            mark = Path(json.loads(self.store.get(f"{name}/mark")))
            sees = _appears(mark)
            self._say(name, rank()[0], {**facts, "sees": sees, "problem": problem})
            verdict = self.store.get(f"{name}/verdict").decode()
            self.store.set(f"{name}/{rank()[0]}/knows", "")
            return verdict or None
        except RuntimeError as failure:
            host = os.environ["MASTER_ADDR"]
            raise MainProcessGone(
                f"rank {rank()[0]}: the main process, on {host}, has ended or not answered within {self.limit} s"
            ) from failure

    def _preside(self, name: str, directory: Path, facts: dict[str, Any], problem: str | None) -> str | None:
        mark = directory.parent / f".{directory.name}.{uuid.uuid4().hex}"
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        try:
            self.store.set(f"{name}/mark", json.dumps(str(mark.absolute())))
            ours = json.loads(json.dumps({**facts, "sees": True, "problem": problem}, default=str))
            answers = [ours]
            for other in range(1, self.count):
                try:
                    answers.append(json.loads(self.store.get(f"{name}/{other}")))
                except RuntimeError:
                    return f"rank {other} has not answered within {self.limit} s; see what its node has printed"
            return next((words for answer in answers if (words := _objection(ours, answer, mark.parent))), None) or _same_node(
                answers
            )
        finally:
            mark.unlink(missing_ok=True)

    def _say(self, name: str, this: int, answer: dict[str, Any]) -> None:
        self.store.set(f"{name}/{this}", json.dumps(answer, default=str))

    def look(self) -> None:
        """See that the main process is alive.

        Raises:
            MainProcessGone: it has ended, and what it may have finished has not become visible.
        """
        now = time.monotonic()
        if now < self.looked + _BETWEEN_LOOKS:
            return
        self.looked = now
        try:
            self.store.check(["1/verdict"])
        except RuntimeError:
            self.gone_since = self.gone_since or now
            if now > self.gone_since + _FAREWELL:
                host = os.environ["MASTER_ADDR"]
                raise MainProcessGone(f"rank {rank()[0]}: the main process, on {host}, has ended") from None


_meeting: _Meeting | None = None


def agree(directory: Path, *, problem: str | None = None, **facts: Any) -> None:
    """On several nodes, wait until all ranks are there and see that they can work together on a directory.

    Args:
        directory: where the result goes; all nodes must see the same one.
        problem: what keeps this rank from beginning; it ends all of them.
        facts: what must be the same on all ranks, by a name to call it by.

    Raises:
        ArtefactError: a rank is missing, sees another disk, has another version or other facts, or has a problem.
        MainProcessGone: the main process ended meanwhile.
    """
    global _meeting
    if not on_several_nodes():
        return
    _meeting = _meeting or _Meeting()
    ours = {"rank": rank()[0], "host": socket.gethostname(), "node": os.environ.get(NODE), "llmkit": __version__, **facts}
    verdict = _meeting.agree(directory, ours, problem)
    if verdict and not problem:
        raise ArtefactError(verdict)


def pause(seconds: float) -> None:
    """Sleep, while the main process lives.

    Raises:
        MainProcessGone: it has ended; only on several nodes, since on one the launcher ends this process then.
    """
    time.sleep(seconds)
    if _meeting is not None:
        _meeting.look()


def _appears(mark: Path) -> bool:
    deadline = time.monotonic() + _DISK_LAG
    while not mark.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _objection(ours: dict[str, Any], theirs: dict[str, Any], directory: Path) -> str | None:
    """Why a rank cannot work with the main process, or None."""
    who = f"rank {theirs['rank']} on {theirs['host']}"
    if theirs["llmkit"] != ours["llmkit"]:
        return (
            f"{who} has llmkit {theirs['llmkit']}, the main process on {ours['host']} {ours['llmkit']}; install the same one"
        )
    if not theirs["sees"]:
        return (
            f"{who} does not see what the main process on {ours['host']} has written to {directory}: all nodes must see one "
            f"and the same directory there. Name one on a disk that they share, with --output_dir or --runs_dir"
        )
    if theirs["problem"]:
        return f"{who}: {theirs['problem']}"
    for name in ours:
        if name not in ("rank", "host", "node", "sees", "problem") and theirs.get(name) != ours[name]:
            differing = _differing(ours[name], theirs.get(name))
            return f"{who} would make another result than the main process on {ours['host']}; {name}: {differing}"
    return None


def _differing(ours: Any, theirs: Any) -> str:
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return f"({ours} there, {theirs} here)"
    names = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    return ", ".join(f"{key} ({ours.get(key)} there, {theirs.get(key)} here)" for key in names)


def _same_node(answers: list[dict[str, Any]]) -> str | None:
    """What is wrong where two launchers were given the rank of one node."""
    first: dict[str, dict[str, Any]] = {}
    for answer in answers:
        number = (answer["node"] or "").partition("/")[0]
        other = first.setdefault(number, answer)
        if number and other["node"] != answer["node"]:
            return f"{other['host']} and {answer['host']} both have machine_rank {number}; give each node its own, from 0 on"
    return None
