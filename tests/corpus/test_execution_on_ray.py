"""Tasks on a Ray cluster that is started for the test."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_execution import files, is_alive, pids, run_with_kills, tasks, times_done, until

from llmkit.corpus.execution import on_ray
from llmkit.corpus.execution.run import run_tasks
from llmkit.corpus.execution.tasks import Job, Task
from llmkit.errors import ConfigError, DataError

ray = pytest.importorskip("ray")

pytestmark = pytest.mark.slow


def processes_of_ray() -> set[int]:
    """The processes of Ray on this machine."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if any(name in words for name in (b"raylet", b"gcs_server", b"ray::", b"default_worker.py")):
            found.add(int(path.parent.name))
    return found


def test_without_a_cluster_it_is_said_what_to_do(tmp_path: Path) -> None:
    """In a process of its own, and before the cluster of the other tests is started."""
    if processes_of_ray():
        pytest.skip("a Ray cluster runs on this machine")
    call = f"run_tasks('execution_work:write', [Task('a', {{}})], Path({str(tmp_path)!r}), executor='ray')"
    body = (
        "from pathlib import Path; from llmkit.corpus.execution.run import run_tasks;"
        f" from llmkit.corpus.execution.tasks import Task; {call}"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["RAY_TMPDIR"] = str(tmp_path)  # where Ray notes the last cluster of this machine, even a dead one
    done = subprocess.run([sys.executable, "-c", body], env=environment, capture_output=True, text=True, timeout=120)
    assert "DataError: --executor ray found no Ray cluster at 'auto'" in done.stderr
    assert "ray start --head" in done.stderr


def test_a_local_cluster_is_started_where_it_is_asked_for_and_gone_afterwards(tmp_path: Path) -> None:
    before = processes_of_ray()
    words = [
        "import sys; from pathlib import Path; from llmkit.corpus.execution.run import run_tasks",
        "from llmkit.corpus.execution.tasks import Task",
        f"sys.path.append({str(Path(__file__).parent)!r})",
        "tasks = [Task(str(number), {'number': number}) for number in range(3)]",
        f"print(run_tasks('execution_work:write', tasks, Path({str(tmp_path)!r}), executor='ray', workers=2))",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(words)],
        env={**os.environ, "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("'number'") == 3
    assert len(pids(tmp_path)) >= 1
    until(lambda: not any(map(is_alive, processes_of_ray() - before)))


def test_twenty_kills_on_a_running_cluster_leave_the_output_of_an_undisturbed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster is one that `ray start` has started; the workers and the process that gives the tasks are killed."""
    expected = run_tasks("execution_work:write", tasks(40, seconds=0.05), tmp_path / "undisturbed", workers=1)
    before = processes_of_ray()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    ray_directory = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: there are sockets in it
    words = ["start", "--head", "--block", f"--port={address.split(':')[1]}", "--node-ip-address=127.0.0.1", "--num-cpus=2"]
    words += ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={ray_directory}"]
    with subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as head:
        try:
            until(lambda: is_answered(address), seconds=60)
            run_with_kills(tmp_path / "killed", 20, "executor='ray'")
            subprocess.run([sys.executable, str(tmp_path / "killed" / "script.py")], check=True, timeout=120)
        finally:
            for pid in [*descendants(head.pid), head.pid]:  # Ray itself would take half a minute, and leave some
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            shutil.rmtree(ray_directory, ignore_errors=True)
    assert run_tasks("execution_work:write", tasks(40, seconds=0.05), tmp_path / "killed") == expected
    (tmp_path / "killed" / "script.py").unlink()
    assert files(tmp_path / "killed") == files(tmp_path / "undisturbed")
    until(lambda: not any(map(is_alive, processes_of_ray() - before)))


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    except OSError:
        return []
    return [found for child in children for found in (int(child), *descendants(int(child)))]


def is_answered(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as caller:
        return caller.connect_ex((host, int(port))) == 0


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of two cores on this machine, connected to; gone afterwards, with all its processes."""
    before = processes_of_ray()
    os.environ["RAY_ADDRESS"] = "local"
    try:
        with on_ray._connected(ray, workers=2):
            yield
    finally:
        del os.environ["RAY_ADDRESS"]
    until(lambda: not any(map(is_alive, processes_of_ray() - before)))


def run(function: str, given: list[Task], directory: Path, **more: Any) -> list[dict[str, Any]]:
    return run_tasks(f"execution_work:{function}", given, directory, executor="ray", **more)


def test_a_cluster_gives_what_local_processes_give(cluster: None, tmp_path: Path) -> None:
    expected = run_tasks("execution_work:write", tasks(7), tmp_path / "local", workers=2)
    assert run("write", tasks(7), tmp_path / "ray") == expected
    assert files(tmp_path / "ray") == files(tmp_path / "local")
    (tmp_path / "ray" / "write-00002.json").unlink()
    assert run("write", tasks(7), tmp_path / "ray") == expected
    assert [times_done(tmp_path / "ray", number) for number in range(7)] == [1, 1, 2, 1, 1, 1, 1]


def test_a_killed_worker_costs_its_own_task_only(cluster: None, tmp_path: Path) -> None:
    said: list[str] = []
    given = [*tasks(4, seconds=0.1), Task("bad", {"number": 9, "deaths": 2})]
    assert [result["number"] for result in run("die", given, tmp_path, say=said.append)] == [0, 1, 2, 3, 9]
    assert [times_done(tmp_path, number) for number in range(4)] == [1] * 4
    assert said == ["tasks: the worker of bad died (WorkerCrashedError); the task is done again"] * 2


def test_a_task_that_kills_its_worker_three_times_is_named(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"bad \(crawl/a.warc.gz\).* 3 times"):
        run("die", [Task("bad", {"number": 1, "deaths": 9, "inputs": "crawl/a.warc.gz"})], tmp_path)
    assert len(list(tmp_path.glob("1-*.trace"))) == 3


def test_errors_arrive_as_they_were_and_the_others_are_stopped(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run("refuse", [Task("long", {"number": 9, "seconds": 600}), *tasks(3)], tmp_path)
    assert caught.value.problems == ["first 今天", "second"]
    long = {int(path.name.split("-")[2]) for path in tmp_path.glob("9.done-by-*")}
    until(lambda: not any(map(is_alive, long)))
    with pytest.raises(RuntimeError, match=r"(?s)write-00003 failed.*KeyError"):
        run("refuse", [tasks(4)[3]], tmp_path)


def test_workers_have_one_thread(cluster: None, tmp_path: Path) -> None:
    assert [(result["threads"], result["openblas"]) for result in run("look_around", tasks(2), tmp_path)] == [(1, "1")] * 2


def test_a_result_that_does_not_arrive_here_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "_PATIENCE", 0.0)
    with pytest.raises(DataError, match="file system that all machines of the cluster share"):
        on_ray._await_file(Job("execution_work:write", tmp_path), tasks(1)[0])
