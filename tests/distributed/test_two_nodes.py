"""Two nodes: two network namespaces of this machine, joined by a cable, each with a host name and a launcher of its own."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from llmkit import resources
from llmkit.pipeline.artefact import Artefact
from llmkit.training.ledger import read_ledger

# Gradients of two ranks are added in another order than those of one; float32 over a few steps of a tiny model.
TOLERANCE = 1e-4

PORT = 29511
WAIT = 90  # seconds; generous, since the machine may be busy with other tests


class Cluster:
    """Two hosts that see each other and nothing else."""

    def __init__(self) -> None:
        mark = secrets.token_hex(3)
        self.hosts = [f"lk{mark}{number}" for number in (0, 1)]
        self.addresses = [f"10.77.{int(mark[:2], 16)}.{number}" for number in (1, 2)]
        self.started: list[subprocess.Popen[str]] = []

    def build(self) -> None:
        listed = "127.0.0.1 localhost\n" + "".join(f"{a} {h}\n" for a, h in zip(self.addresses, self.hosts, strict=True))
        for host in self.hosts:
            call("ip", "netns", "add", host)
            place = Path("/etc/netns") / host  # `ip netns exec` shows it as /etc
            place.mkdir(parents=True)
            (place / "hosts").write_text(listed)
        first, second = self.hosts
        call("ip", "link", "add", first, "netns", first, "type", "veth", "peer", "name", second, "netns", second)
        for host, address in zip(self.hosts, self.addresses, strict=True):
            call("ip", "-n", host, "addr", "add", f"{address}/24", "dev", host)
            call("ip", "-n", host, "link", "set", host, "up")
            call("ip", "-n", host, "link", "set", "lo", "up")

    def remove(self) -> None:
        for number, host in enumerate(self.hosts):
            self.lose(number)
            subprocess.run(["ip", "netns", "delete", host], capture_output=True, check=False)
            shutil.rmtree(Path("/etc/netns") / host, ignore_errors=True)
        for process in self.started:
            process.wait(timeout=30)

    def start(self, number: int, words: list[str], log: Path, before: str = ":", **variables: str) -> subprocess.Popen[str]:
        """Start a command on a node, what it prints going to a file.

        Args:
            before: a shell command that is run first; what it mounts only this command sees.
        """
        host = self.hosts[number]
        prelude = [
            "ip",
            "netns",
            "exec",
            host,
            "unshare",
            "--uts",
            "--mount",
            "sh",
            "-ec",
            f'hostname {host}; {before}; exec "$@"',
            "-",
        ]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PET_", "SKYPILOT_"))}
        with log.open("a") as file:
            process = subprocess.Popen(
                [*prelude, *words], stdout=file, stderr=subprocess.STDOUT, text=True, env={**inherited, **variables}
            )
        self.started.append(process)
        return process

    def processes(self, number: int) -> list[psutil.Process]:
        found = subprocess.run(["ip", "netns", "pids", self.hosts[number]], capture_output=True, text=True, check=False)
        return [psutil.Process(int(pid)) for pid in found.stdout.split() if psutil.pid_exists(int(pid))]

    def worker(self, number: int) -> psutil.Process:
        """The one process of a node that trains."""
        found = [process for process in self.processes(number) if "recipes/pretrain.py" in " ".join(process.cmdline())]
        return next(process for process in found if not process.children() and "launcher" not in " ".join(process.cmdline()))

    def lose(self, number: int) -> None:
        """End all that runs on a node at once, as a loss of power does."""
        for process in self.processes(number):
            process.kill()


def call(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("network namespaces need the commands `ip` and `unshare`")
    made = Cluster()
    try:
        try:
            made.build()
        except (subprocess.CalledProcessError, OSError) as failure:
            said = getattr(failure, "stderr", None) or failure
            pytest.skip(f"network namespaces cannot be made here: {said}")
        yield made
    finally:
        made.remove()


@pytest.fixture(autouse=True)
def nothing_is_left(cluster: Cluster) -> Iterator[None]:
    yield
    for number in (0, 1):
        cluster.lose(number)


@pytest.fixture(scope="module")
def settings(tokens: Artefact, tiny: dict[str, Any]) -> dict[str, Any]:
    return {
        **tiny,
        "tokens": str(tokens.directory),
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 4,
        "max_steps": 8,
        "eval_steps": 4,
    }


@pytest.fixture(scope="module")
def one_process(run: Any, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    output = tmp_path_factory.mktemp("nodes") / "one"
    return run("pretrain", output, **{**settings, "per_device_train_batch_size": 32})


class Launch:
    """One command, `llmkit pretrain`, on both nodes."""

    def __init__(self, cluster: Cluster, output: Path, settings: dict[str, Any], layout: str = "multi_node", **variables: str):
        self.cluster, self.output, self.variables = cluster, output, variables
        file = output.with_name(f"{output.name}-asked.yaml")
        file.write_text(yaml.safe_dump(settings))
        self.words = [sys.executable, "-m", "llmkit", "pretrain", "--config", str(file), "--output_dir", str(output)]
        self.words += ["--accelerate_config", layout]
        self.logs = [output.with_name(f"node{number}.log") for number in (0, 1)]

    @property
    def partial(self) -> Path:
        return self.output.with_name(f"{self.output.name}.partial")

    def start(self, number: int, *words: str, before: str = ":", **variables: str) -> subprocess.Popen[str]:
        given = {
            "NNODES": "2",
            "NODE_RANK": str(number),
            "MASTER_ADDR": self.cluster.hosts[0],
            "MASTER_PORT": str(PORT),
            "LLMKIT_NODE_WAIT": str(WAIT),
            **self.variables,
            **variables,
        }
        return self.cluster.start(number, [*self.words, *words], self.logs[number], before, **given)

    def said(self, number: int) -> str:
        return self.logs[number].read_text(errors="replace")

    def end(self, *nodes: subprocess.Popen[str]) -> list[int]:
        """The exit codes, when all have ended."""
        return [node.wait(timeout=300) for node in nodes]

    def until(self, happened: Callable[[], Any], *nodes: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 180
        while not happened():
            assert time.monotonic() < deadline, "nothing happened\n" + self.said(0) + self.said(1)
            assert all(node.poll() is None for node in nodes), "a node ended by itself\n" + self.said(0) + self.said(1)
            time.sleep(0.02)

    def result(self) -> Artefact:
        return Artefact.open(self.output, "pretrain")


def losses(artefact: Artefact, key: str = "loss") -> list[float]:
    return [entry[key] for entry in read_ledger(artefact.directory / "metrics.jsonl") if key in entry]


def weights(artefact: Artefact) -> str:
    return hashlib.sha256((artefact.directory / "model.safetensors").read_bytes()).hexdigest()


# --------------------------------------------------------------------------------------------------------------------
# They train


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["multi_node", "zero1", "fsdp2"])
def test_two_nodes_compute_what_one_process_computes(
    layout: str, cluster: Cluster, settings: dict[str, Any], one_process: Artefact, tmp_path: Path
) -> None:
    if layout.startswith("zero"):
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    launch = Launch(cluster, tmp_path / "two", settings, layout)
    nodes = [launch.start(number) for number in (1, 0)]
    assert launch.end(*nodes) == [0, 0], launch.said(0) + launch.said(1)
    assert launch.result().manifest.metrics["processes"] == 2
    assert losses(launch.result()) == pytest.approx(losses(one_process), abs=TOLERANCE)
    assert losses(launch.result(), "eval_loss") == pytest.approx(losses(one_process, "eval_loss"), abs=TOLERANCE)
    assert {path.name for path in tmp_path.iterdir()} == {"two", "two-asked.yaml", "node0.log", "node1.log"}


@pytest.mark.slow
@pytest.mark.parametrize("rendezvous", ["static", "c10d"])
def test_accelerate_launch_by_itself_serves_as_well(
    rendezvous: str, cluster: Cluster, settings: dict[str, Any], one_process: Artefact, tmp_path: Path
) -> None:
    launch = Launch(cluster, tmp_path / "two", settings)
    layout, recipe = resources.shipped("accelerate_configs") / "multi_node.yaml", resources.shipped("recipes") / "pretrain.py"
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(layout), "--num_processes", "2"]
    words += ["--rdzv_backend", rendezvous, "--main_process_ip", cluster.hosts[0], "--main_process_port", str(PORT)]
    asked = launch.words[4 : launch.words.index("--accelerate_config")]
    nodes = []
    for number in (0, 1):
        launch.words = [*words, "--machine_rank", str(number), str(recipe), *asked]
        nodes.append(launch.start(number))
    assert launch.end(*nodes) == [0, 0], launch.said(0) + launch.said(1)
    assert losses(launch.result()) == pytest.approx(losses(one_process), abs=TOLERANCE)


@pytest.mark.slow
def test_the_slurm_script_starts_the_launchers_and_slurm_tells_them_their_places(
    cluster: Cluster, settings: dict[str, Any], one_process: Artefact, tmp_path: Path
) -> None:
    launch = Launch(cluster, tmp_path / "two", settings)
    asked = launch.words[launch.words.index("--config") + 1]
    (tmp_path / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$MASTER_PORT" "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    script = resources.PACKAGE.parent / "docs" / "cluster" / "slurm.sbatch"
    given = {"SLURM_JOB_ID": "77", "TOKENS": str(settings["tokens"]), "OUTPUT": str(launch.output)}
    done = subprocess.run(
        ["bash", str(script), "--config", asked],
        env={**os.environ, **given, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    port, option, program, *words = done.stdout.splitlines()
    assert (port, option, program) == ("20077", "--kill-on-bad-exit=0", "llmkit")
    nodes = []
    for number, host in enumerate(cluster.hosts):
        said = {"SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": str(number), "SLURM_STEP_NODELIST": ",".join(cluster.hosts)}
        command = [sys.executable, "-m", "llmkit", *words]
        nodes.append(cluster.start(number, command, tmp_path / f"{host}.log", **said, MASTER_PORT=port))
    assert launch.end(*nodes) == [0, 0], [path.read_text() for path in tmp_path.glob("*.log")]
    assert losses(launch.result()) == pytest.approx(losses(one_process), abs=TOLERANCE)


# --------------------------------------------------------------------------------------------------------------------
# They survive


@pytest.fixture(scope="module")
def longer(settings: dict[str, Any]) -> dict[str, Any]:
    return {**settings, "max_steps": 90, "eval_steps": 45, "save_steps": 10}


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, longer: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    launch = Launch(cluster, tmp_path_factory.mktemp("nodes") / "two", longer)
    nodes = [launch.start(number) for number in (0, 1)]
    assert launch.end(*nodes) == [0, 0], launch.said(0) + launch.said(1)
    return launch.result()


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_is_killed_is_started_again_with_all_others_and_the_run_ends_as_if_nothing_had_happened(
    number: int, cluster: Cluster, longer: dict[str, Any], undisturbed: Artefact, tmp_path: Path
) -> None:
    launch = Launch(cluster, tmp_path / "two", longer)
    nodes = [launch.start(number) for number in (0, 1)]
    launch.until(lambda: list(launch.partial.glob("checkpoint-*")), *nodes)
    cluster.worker(number).send_signal(signal.SIGKILL)
    assert launch.end(*nodes) == [0, 0], launch.said(0) + launch.said(1)
    assert "going on from checkpoint-" in launch.said(0), launch.said(0)
    assert losses(launch.result()) == losses(undisturbed)
    assert weights(launch.result()) == weights(undisturbed)


@pytest.mark.slow
def test_a_node_that_is_lost_may_come_again_and_the_run_ends_as_if_nothing_had_happened(
    cluster: Cluster, longer: dict[str, Any], undisturbed: Artefact, tmp_path: Path
) -> None:
    launch = Launch(cluster, tmp_path / "two", longer)
    first, second = (launch.start(number) for number in (0, 1))
    launch.until(lambda: list(launch.partial.glob("checkpoint-*")), first, second)
    cluster.lose(1)
    assert launch.end(second) == [-signal.SIGKILL]
    again = launch.start(1)
    assert launch.end(first, again) == [0, 0], launch.said(0) + launch.said(1)
    assert losses(launch.result()) == losses(undisturbed)
    assert weights(launch.result()) == weights(undisturbed)


@pytest.mark.slow
def test_a_forced_run_that_is_started_again_goes_on_and_does_not_begin_anew(
    cluster: Cluster, longer: dict[str, Any], undisturbed: Artefact, tmp_path: Path
) -> None:
    launch = Launch(cluster, tmp_path / "two", longer)
    nodes = [launch.start(number, "--force") for number in (0, 1)]
    launch.until(lambda: list(launch.partial.glob("checkpoint-*")), *nodes)
    cluster.worker(1).send_signal(signal.SIGKILL)
    assert launch.end(*nodes) == [0, 0], launch.said(0) + launch.said(1)
    assert "going on from checkpoint-" in launch.said(0), launch.said(0)
    assert weights(launch.result()) == weights(undisturbed)


@pytest.mark.slow
def test_a_signal_to_one_node_stops_both_and_the_same_command_goes_on(
    cluster: Cluster, longer: dict[str, Any], undisturbed: Artefact, tmp_path: Path
) -> None:
    launch = Launch(cluster, tmp_path / "two", longer)
    nodes = [launch.start(number) for number in (0, 1)]
    launch.until(lambda: list(launch.partial.glob("checkpoint-*")), *nodes)
    nodes[1].send_signal(signal.SIGTERM)
    assert launch.end(*nodes) == [143, 143], launch.said(0) + launch.said(1)
    nodes = [launch.start(number) for number in (0, 1)]
    assert launch.end(*nodes) == [0, 0], launch.said(0) + launch.said(1)
    assert weights(launch.result()) == weights(undisturbed)


@pytest.mark.slow
def test_a_node_that_is_lost_for_good_ends_the_launch_within_the_stated_time(
    cluster: Cluster, longer: dict[str, Any], tmp_path: Path
) -> None:
    launch = Launch(cluster, tmp_path / "two", longer, LLMKIT_NODE_WAIT="25")
    nodes = [launch.start(number) for number in (0, 1)]
    launch.until(lambda: list(launch.partial.glob("checkpoint-*")), *nodes)
    cluster.lose(1)
    assert nodes[0].wait(timeout=120) == 2, launch.said(0)
    assert "a lost one did not come again within 25 s" in launch.said(0)
    assert list(launch.partial.glob("checkpoint-*"))


# --------------------------------------------------------------------------------------------------------------------
# They refuse


def last_words(launch: Launch, number: int) -> str:
    said = launch.said(number)
    assert "Traceback" not in said
    assert "frame #" not in said, "nor a stack of torch"
    return [line for line in said.splitlines() if line.startswith("llmkit:")][-2 if "its process ended" in said else -1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_node_that_waits_for_one_that_never_comes_gives_up_within_the_stated_time(
    number: int, cluster: Cluster, settings: dict[str, Any], tmp_path: Path
) -> None:
    launch = Launch(cluster, tmp_path / "two", settings, LLMKIT_NODE_WAIT="5")
    assert launch.start(number).wait(timeout=240) == 2, launch.said(number)
    said = last_words(launch, number)
    assert f"waited 5 s {'at' if number == 0 else 'to meet 2 nodes at'} {cluster.hosts[0]}:{PORT}" in said
    assert ("not all have come" if number == 0 else "Is the node of rank 0 running there") in said
    assert f"connect to port {PORT}? LLMKIT_NODE_WAIT=SECONDS waits longer" in said


@pytest.mark.slow
def test_a_port_that_is_taken_is_named_on_the_node_that_would_listen_there(
    cluster: Cluster, settings: dict[str, Any], tmp_path: Path
) -> None:
    launch = Launch(cluster, tmp_path / "two", settings, LLMKIT_NODE_WAIT="5")
    listener = (  # a port that an earlier test used may still be closing
        "import socket, time; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); "
        "s.bind(('', %d)); s.listen(); print('here', flush=True); time.sleep(120)"
    )
    cluster.start(0, [sys.executable, "-c", listener % PORT], tmp_path / "listener.log")
    deadline = time.monotonic() + 30
    while "here" not in (tmp_path / "listener.log").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "here" in (tmp_path / "listener.log").read_text()
    assert launch.end(launch.start(0)) == [2], launch.said(0)
    assert f"port {PORT}, at which the nodes are to meet, cannot be used on {cluster.hosts[0]}" in last_words(launch, 0)


@pytest.mark.slow
def test_two_nodes_of_one_rank_are_named(cluster: Cluster, settings: dict[str, Any], tmp_path: Path) -> None:
    launch = Launch(cluster, tmp_path / "two", settings)
    nodes = [launch.start(number, NODE_RANK="0") for number in (0, 1)]
    assert launch.end(*nodes) == [2, 2], launch.said(0) + launch.said(1)
    for number in (0, 1):
        assert f"{cluster.hosts[0]} and {cluster.hosts[1]} both have machine_rank 0" in last_words(launch, number)


@pytest.mark.slow
def test_nodes_that_see_different_disks_are_told_so(cluster: Cluster, settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    launch = Launch(cluster, tmp_path / "runs" / "two", settings)
    launch.logs = [tmp_path / "node0.log", tmp_path / "node1.log"]
    own_disk = f"mkdir {tmp_path}/own; cp {tmp_path}/runs/* {tmp_path}/own; mount --bind {tmp_path}/own {tmp_path}/runs"
    nodes = [launch.start(0), launch.start(1, before=own_disk)]
    assert launch.end(*nodes) == [2, 2], launch.said(0) + launch.said(1)
    first, second = cluster.hosts
    told = f"rank 1 on {second} does not see what the main process on {first} has written to {tmp_path}/runs"
    assert told in last_words(launch, 0)
    assert told in last_words(launch, 1)
    assert not launch.partial.exists()
    assert not list((tmp_path / "runs").glob(".two*"))


@pytest.mark.slow
def test_nodes_with_different_settings_are_told_in_what_they_differ(
    cluster: Cluster, settings: dict[str, Any], tmp_path: Path
) -> None:
    launch = Launch(cluster, tmp_path / "two", settings)
    nodes = [launch.start(0), launch.start(1, "--learning_rate", "0.5")]
    assert launch.end(*nodes) == [2, 2], launch.said(0) + launch.said(1)
    for number in (0, 1):
        assert "would make another result than the main process" in last_words(launch, number)
        assert "learning_rate (0.01 there, 0.5 here)" in last_words(launch, number)


@pytest.mark.slow
def test_what_one_node_lacks_is_said_by_the_first_as_well_and_is_not_tried_again(
    cluster: Cluster, settings: dict[str, Any], tmp_path: Path
) -> None:
    place = Path(settings["tokens"])
    launch = Launch(cluster, tmp_path / "two", settings)
    nodes = [launch.start(0), launch.start(1, before=f"mount -t tmpfs none {place.parent}")]
    assert launch.end(*nodes) == [2, 2], launch.said(0) + launch.said(1)
    for number in (0, 1):
        assert f"tokens: there is no directory '{place}'" in last_words(launch, number)
