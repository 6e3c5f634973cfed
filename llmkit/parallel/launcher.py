"""`accelerate launch`, silent about processes that failed: each has said itself why, and here it would be a second traceback.

Use: `python -m llmkit.parallel.launcher --config_file LAYOUT [options of accelerate launch] script [options of the script]`.

Over several nodes the launchers meet by the c10d rendezvous of torchrun: any of them may come first, a lost one may come
again, and the processes are started anew when one was killed or crashed.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
import uuid
from argparse import Namespace
from typing import Any

from llmkit.errors import LLMKitError
from llmkit.parallel.layout import read_layout
from llmkit.parallel.nodes import WAIT, Nodes, read_nodes
from llmkit.pipeline.ranks import AGAIN, NODE

# Seconds that a stage has to save what it reached, when it is told to end, before torchrun kills it. Its own default, 30,
# is too short for a large model on a slow disk.
_TIME_TO_SAVE = "300"

_LOUDNESS = "TORCH_CPP_LOG_LEVEL"

# Exit codes of processes that ended on purpose and have said why: a user's error, and the signals that stop a stage.
_DELIBERATE = {2, *(128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))}


def main() -> int:
    """Run `accelerate launch` with this command line; the exit code is that of the first process that failed."""
    try:
        return _launch()
    except KeyboardInterrupt:  # later it is passed on to the processes
        return 128 + signal.SIGINT
    except LLMKitError as failure:
        print(f"llmkit: {failure}", file=sys.stderr)
        return failure.exit_code


def _launch() -> int:
    loud = os.environ.get(_LOUDNESS)
    os.environ.setdefault(_LOUDNESS, "FATAL")  # else it prints a stack for each attempt to reach a node; read at import
    from accelerate.commands import launch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _TIME_TO_SAVE)
    launch.simple_launcher = _become
    arguments = launch.launch_command_parser().parse_args()
    layout = read_layout(arguments.config_file)
    nodes = None if layout.is_single else read_nodes(layout.settings, vars(arguments))
    begun: list[bool] = []
    if nodes is None or nodes.count == 1:
        # torchrun then takes a port that is free when it binds it, not one that was free a second before; and a launch has
        # an id of its own, by which its ranks know each other's files.
        arguments.standalone, arguments.local_addr = True, "127.0.0.1"
        if loud is None:
            del os.environ[_LOUDNESS]
    else:
        os.environ[_LOUDNESS] = loud or "ERROR"  # of the processes, which warn when one has left
        _join(arguments, nodes)
        _restart_only_what_broke(begun)
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
    except RendezvousError:
        if nodes is None:
            raise
        raise LLMKitError(_alone(nodes, bool(begun))) from None
    return 0


def _join(arguments: Namespace, nodes: Nodes) -> None:
    """Set up the launch for its nodes.

    Raises:
        LLMKitError: the port at which they are to meet is taken, or nobody listens there in time.
    """
    from torch.distributed.run import logger

    if nodes.rank == 0:
        _check_free(nodes)
    else:
        _await_first(nodes)
    logger.setLevel(logging.CRITICAL)  # it warns that this rendezvous has no need of the node's rank
    arguments.num_machines, arguments.machine_rank = nodes.count, nodes.rank
    arguments.main_process_ip, arguments.main_process_port = nodes.address, nodes.port
    arguments.same_network, arguments.rdzv_backend, arguments.rdzv_id = False, "c10d", "llmkit"
    arguments.deepspeed_multinode_launcher = "standard"  # one launcher a node; the default logs in to the others by itself
    arguments.max_restarts = arguments.max_restarts or nodes.restarts
    limits = f"join_timeout={nodes.wait},read_timeout={nodes.wait},is_host={int(nodes.rank == 0)}"
    arguments.rdzv_conf = ",".join(filter(None, [limits, arguments.rdzv_conf]))
    arguments.local_addr = _own_address(nodes)
    if arguments.local_addr:
        # gloo would listen at the address that this node's own name has here, which may be one that no other node reaches.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface(arguments.local_addr))
    # The launcher would keep one store for all starts of its processes, with what those before have left in it.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ[NODE] = f"{nodes.rank}/{uuid.uuid4().hex}"


def _check_free(nodes: Nodes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", nodes.port))
        except OSError as failure:
            raise LLMKitError(
                f"port {nodes.port}, at which the nodes are to meet, cannot be used on {socket.gethostname()}: "
                f"{os.strerror(failure.errno or 0)}. Set MASTER_PORT, or --main_process_port, to another one on all nodes"
            ) from failure


def _await_first(nodes: Nodes) -> None:
    """Wait until the first node listens. torch's own attempts to reach it take several times the limit that they are given."""
    deadline = time.monotonic() + nodes.wait
    while True:
        try:
            socket.create_connection((nodes.address, nodes.port), timeout=max(1.0, deadline - time.monotonic())).close()
            return
        except OSError as failure:
            if time.monotonic() + 1 > deadline:
                raise LLMKitError(f"{_alone(nodes, begun=False)} ({failure.strerror or failure})") from failure
            time.sleep(1)


def _own_address(nodes: Nodes) -> str | None:
    """The address of this node on the network in which the nodes meet; None where it cannot be told."""
    try:
        family, _, _, _, place = socket.getaddrinfo(nodes.address, nodes.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(place)  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    return None if own.startswith("127.") or own == "::1" else own


def _interface(address: str) -> str:
    import psutil

    return next(
        name
        for name, entries in psutil.net_if_addrs().items()
        if address in (entry.address.partition("%")[0] for entry in entries)
    )


def _restart_only_what_broke(begun: list[bool]) -> None:
    """Have torchrun's agent not repeat what ended on purpose.

    Args:
        begun: gets an entry when the processes run for the first time.
    """
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    watch = LocalElasticAgent._monitor_workers

    def watch_and_judge(agent: Any, workers: Any) -> Any:
        begun[:] = [True]
        os.environ[AGAIN] = "true"  # for the processes that it starts from now on
        result = watch(agent, workers)
        if any(failure.exitcode in _DELIBERATE for failure in result.failures.values()):
            agent._remaining_restarts = 0
        return result

    LocalElasticAgent._monitor_workers = watch_and_judge  # type: ignore[method-assign]


def _alone(nodes: Nodes, begun: bool) -> str:
    """Why this node is without the others, as far as it can tell."""
    longer = f"{WAIT}=SECONDS waits longer"
    if begun:
        return (
            f"the launch over {nodes.count} nodes has ended on another node, or a lost one did not come again within "
            f"{nodes.wait} s; what the others have printed says why. The same command on all nodes goes on; {longer}"
        )
    if nodes.rank == 0:
        return (
            f"waited {nodes.wait} s at {nodes.place} for {nodes.count} nodes, and not all have come. Is the same command "
            f"running on each, with a rank of its own and this address, and may they connect to port {nodes.port}? {longer}"
        )
    return (
        f"node {nodes.rank} waited {nodes.wait} s to meet {nodes.count} nodes at {nodes.place}. Is the node of rank 0 running "
        f"there, are the others, and may they connect to port {nodes.port}? {longer}"
    )


def _become(arguments: Namespace) -> None:
    """Become the one process of a layout, so that signals reach it and its exit code is the launcher's own."""
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    words, environment = prepare_simple_launcher_cmd_env(arguments)
    os.execvpe(words[0], words, environment)


if __name__ == "__main__":
    sys.exit(main())
