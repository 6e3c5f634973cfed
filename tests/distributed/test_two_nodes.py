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
@pytest.mark.parametrize("layout", ["multi_node", "zero2"])
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
