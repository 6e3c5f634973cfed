"""Which node this is, as schedulers say it, and that the scripts for them are what the shell and YAML can read."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from llmkit.errors import ConfigError
from llmkit.parallel import launch
from llmkit.parallel.nodes import _VARIABLES, node_count, read_nodes

CLUSTER = Path(__file__).resolve().parents[2] / "docs" / "cluster"


@pytest.fixture(autouse=True)
def no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in _VARIABLES.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("said", "place"),
    [
        ({"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1234"}, (2, 1, "a:1234")),
        ({"PET_NNODES": "3", "PET_NODE_RANK": "0", "PET_MASTER_ADDR": "a", "NNODES": "9"}, (3, 0, "a:29500")),
        (
            {"SLURM_STEP_NUM_NODES": "4", "SLURM_NODEID": "3", "SLURM_STEP_NODELIST": "gpu-[007-009,12],big1"},
            (4, 3, "gpu-007:29500"),
        ),
        ({"SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "0", "SLURM_STEP_NODELIST": "n1,n2"}, (2, 0, "n1:29500")),
        (
            {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8"},
            (2, 1, "10.0.0.7:29500"),
        ),
        ({"NNODES": "2", "JOB_COMPLETION_INDEX": "1", "MASTER_ADDR": "job-0.job"}, (2, 1, "job-0.job:29500")),
    ],
)
def test_a_node_knows_its_place_from_what_schedulers_say(
    said: dict[str, str], place: tuple[int, int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    nodes = read_nodes({"num_machines": 1, "machine_rank": 0, "main_process_port": 0}, {})
    assert (nodes.count, nodes.rank, nodes.place) == place


def test_options_win_over_variables_and_those_over_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = {"num_machines": 5, "main_process_ip": "from-layout"}
    assert node_count(layout) == 5
    monkeypatch.setenv("NNODES", "3")
    monkeypatch.setenv("NODE_RANK", "1")
    assert read_nodes(layout, {"machine_rank": 2}).rank == 2
    nodes = read_nodes(layout, {"num_machines": None, "main_process_ip": None})
    assert (nodes.count, nodes.rank, nodes.address) == (3, 1, "from-layout")


def test_one_node_needs_neither_rank_nor_address() -> None:
    assert read_nodes({}, {}).count == 1


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"NNODES": "2", "MASTER_ADDR": "a"}, "the rank of this node among 2 is not said: set NODE_RANK"),
        (
            {"NNODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "a"},
            "the rank of this node among 2 is 2: set NODE_RANK, or --machine_rank, from 0 to 1",
        ),
        ({"NNODES": "2", "NODE_RANK": "0"}, "the address of the first of the 2 nodes is not said: set MASTER_ADDR"),
        ({"NNODES": "1:2", "NODE_RANK": "0"}, "num_machines is '1:2', which is no whole number"),
        ({"LLMKIT_NODE_WAIT": "soon"}, "LLMKIT_NODE_WAIT is 'soon'"),
    ],
)
def test_what_is_missing_or_wrong_is_named(said: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=words):
        read_nodes({}, {})


@pytest.mark.parametrize(
    ("layout", "gpus", "nodes", "count"),
    [
        ("distributed_type: MULTI_GPU", 8, 4, 32),
        ("distributed_type: MULTI_GPU", 0, 2, 2),
        ("distributed_type: MULTI_GPU", 0, 3, 3),
        ("distributed_type: DEEPSPEED\nnum_processes: 4", 8, 2, 4),
        ("distributed_type: MULTI_GPU\nparallelism_config: {parallelism_config_tp_size: 4}", 6, 2, 4),
        ("distributed_type: MULTI_GPU\nparallelism_config: {parallelism_config_tp_size: 4}", 3, 2, 4),
        ("distributed_type: 'NO'", 8, 2, 1),
    ],
)
def test_each_node_has_as_many_processes(
    layout: str, gpus: int, nodes: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "gpu_count", lambda: gpus)
    monkeypatch.setenv("NNODES", str(nodes))
    (tmp_path / "layout.yaml").write_text(layout)
    assert launch.process_count(str(tmp_path / "layout.yaml")) == count


def test_the_scripts_for_schedulers_can_be_read() -> None:
    subprocess.run(["bash", "-n", str(CLUSTER / "slurm.sbatch")], check=True)
    task = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text(encoding="utf-8"))
    subprocess.run(["bash", "-n", "-c", task["run"]], check=True)
    assert set(task["envs"]) == {"LAYOUT", "TOKENS", "OUTPUT"}
