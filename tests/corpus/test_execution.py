"""Tasks by local processes: done once, in order, whatever dies."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.corpus.execution.run import run_tasks, usable_cores
from llmkit.corpus.execution.tasks import Task
from llmkit.errors import ConfigError, DataError
from llmkit.pipeline import progress

HERE = Path(__file__).parent


def tasks(count: int, **payload: Any) -> list[Task]:
    return [Task(f"write-{number:05}", {"number": number, **payload}, size=1000) for number in range(count)]


def files(directory: Path) -> dict[str, bytes]:
    """All that is in a directory but the traces."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix != ".trace"}


def times_done(directory: Path, number: int) -> int:
    return len(list(directory.glob(f"{number}.done-by-*")))


def pids(directory: Path) -> set[int]:
    """The processes that have begun a task."""
    return {int(path.name.split("-")[2]) for path in directory.glob("*.done-by-*")}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order_and_are_the_same_with_any_number_of_workers(workers: int, tmp_path: Path) -> None:
    expected = run_tasks("execution_work:write", tasks(7), tmp_path / "one", workers=1)
    results = run_tasks("execution_work:write", tasks(7), tmp_path / "several", workers=workers)
    assert results == expected
    assert [result["number"] for result in results] == list(range(7))
    assert files(tmp_path / "several") == files(tmp_path / "one")
    assert len(files(tmp_path / "one")) == 14
    assert (os.getpid() in pids(tmp_path / "several")) == (workers == 1)
    assert len(pids(tmp_path / "several")) <= workers


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.dictionaries(st.text(), json_values, max_size=3), max_size=4))
def test_payloads_and_results_go_through_unchanged(payloads: list[dict[str, Any]]) -> None:
    given_tasks = [Task(f"echo-{number}", payload) for number, payload in enumerate(payloads)]
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(2):  # the second time from the files
            results = run_tasks("execution_work:echo", given_tasks, Path(directory), workers=1, say=lambda _: None)
            assert [result["payload"] for result in results] == payloads


def test_only_what_is_missing_is_done(tmp_path: Path) -> None:
    first = run_tasks("execution_work:write", tasks(4), tmp_path, workers=2)
    (tmp_path / "write-00001.json").unlink()
    (tmp_path / "write-00002.json").write_text('{"made_by": {"pay', encoding="utf-8")
    said: list[str] = []
    assert run_tasks("execution_work:write", tasks(4), tmp_path, workers=2, say=said.append) == first
    assert [times_done(tmp_path, number) for number in range(4)] == [1, 2, 2, 1]
    assert said == ["tasks: 2 of 4 tasks are done already"]
    assert run_tasks("execution_work:write", tasks(4), tmp_path, workers=2) == first
    assert [times_done(tmp_path, number) for number in range(4)] == [1, 2, 2, 1]


def test_a_result_of_another_payload_function_or_version_is_made_anew(tmp_path: Path) -> None:
    run_tasks("execution_work:write", tasks(3), tmp_path, workers=1)
    changed = tasks(3)
    changed[0] = Task(changed[0].name, {"number": 0, "seconds": 0.001})
    record = json.loads((tmp_path / "write-00001.json").read_text(encoding="utf-8"))
    record["made_by"]["llmkit"] = "0.0.1"
    (tmp_path / "write-00001.json").write_text(json.dumps(record), encoding="utf-8")
    run_tasks("execution_work:write", changed, tmp_path, workers=1)
    assert [times_done(tmp_path, number) for number in range(3)] == [2, 2, 1]
    run_tasks("execution_work:die", changed, tmp_path, workers=1)
    assert [times_done(tmp_path, number) for number in range(3)] == [3, 3, 2]


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one name"):
        run_tasks("execution_work:write", tasks(1) * 2, tmp_path)


def test_a_killed_worker_costs_its_own_task_only(tmp_path: Path) -> None:
    expected = run_tasks("execution_work:write", tasks(6), tmp_path / "undisturbed", workers=1)
    given_tasks = tasks(6, seconds=0.2)
    given_tasks[1] = Task(given_tasks[1].name, {"number": 1, "deaths": 2})
    said: list[str] = []
    assert run_tasks("execution_work:die", given_tasks, tmp_path, workers=3, say=said.append) == expected
    assert [times_done(tmp_path, number) for number in range(6)] == [1] * 6
    assert said == ["tasks: the worker of write-00001 died (killed by SIGKILL); the task is done again"] * 2


def test_a_task_that_kills_its_worker_three_times_is_named(tmp_path: Path) -> None:
    given_tasks = [*tasks(1), Task("bad", {"number": 1, "deaths": 9, "inputs": ["crawl/a.warc.gz", "crawl/b.warc.gz"]})]
    with pytest.raises(DataError, match=r"bad \(crawl/a.warc.gz, crawl/b.warc.gz\).* 3 times.*SIGKILL.*--workers"):
        run_tasks("execution_work:die", given_tasks, tmp_path, workers=2)
    assert len(list(tmp_path.glob("1-*.trace"))) == 3
    until(lambda: not any(map(is_alive, pids(tmp_path))))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_user_arrives_as_it_was(workers: int, tmp_path: Path) -> None:
    long = Task("long", {"number": 9, "seconds": 600 if workers == 2 else 0})
    with pytest.raises(ConfigError) as caught:
        run_tasks("execution_work:refuse", [long, *tasks(3)], tmp_path, workers=workers)
    assert str(caught.value) == "2 problems in the payload:\n  - first 今天\n  - second"
    assert caught.value.problems == ["first 今天", "second"]
    assert {"write-00000.json", "write-00001.json"} <= set(files(tmp_path)), "what was done stays"
    assert not any(is_alive(pid) for pid in pids(tmp_path) - {os.getpid()}), "the others are stopped"


def test_a_bug_arrives_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)write-00003 failed.*in refuse\n.*KeyError: .a bug"):
        run_tasks("execution_work:refuse", [tasks(4)[3]], tmp_path, workers=2)


def test_a_function_that_is_not_there_is_an_error_and_no_death(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no_such_module"):
        run_tasks("no_such_module:function", tasks(1), tmp_path, workers=2)


def test_workers_have_one_thread_and_pipes_of_their_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    results = run_tasks("execution_work:look_around", tasks(3), tmp_path, workers=2)
    assert [(result["threads"], result["openblas"]) for result in results] == [(1, "1")] * 3
    assert capfd.readouterr().err.count("printed by a task") == 3


def script(directory: Path, function: str, body: str, how: str = "workers=2") -> list[str]:
    """A script without `if __name__ == "__main__"` that runs tasks; leaves a trace each time it is imported or run."""
    path = directory / "script.py"
    path.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        f"Path({str(directory)!r}, f'main-{{os.getpid()}}.trace').touch()\n"
        f"sys.path.append({str(HERE)!r})\n"
        "from llmkit.corpus.execution.run import run_tasks\n"
        "from llmkit.corpus.execution.tasks import Task\n"
        f"{body}\n"
        f"print(run_tasks('execution_work:{function}', tasks, Path({str(directory)!r}), {how}))\n",
        encoding="utf-8",
    )
    return [sys.executable, str(path)]


def test_a_script_without_a_guard_runs_once_and_files_beside_it_are_left_alone(tmp_path: Path) -> None:
    body = "tasks = [Task(str(number), {'number': number}) for number in range(3)]"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "json.py").write_text("raise SystemExit('a file of the user was taken for the library')", encoding="utf-8")
    done = subprocess.run(
        script(tmp_path, "look_around", body), capture_output=True, text=True, timeout=120, cwd=elsewhere, check=True
    )
    assert done.stdout.count("threads") == 3
    assert "elsewhere" not in done.stdout
    assert len(list(tmp_path.glob("main-*"))) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_the_main_process(number: signal.Signals, tmp_path: Path) -> None:
    body = "tasks = [Task(str(number), {'number': number, 'seconds': 600}) for number in range(3)]"
    main = subprocess.Popen(
        script(tmp_path, "write", body),
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's job with & ignores it
    )
    until(lambda: len(pids(tmp_path)) == 2)
    assert all(map(is_alive, pids(tmp_path)))
    main.send_signal(number)
    assert main.wait(timeout=120) != 0
    until(lambda: not any(map(is_alive, pids(tmp_path))))


def run_with_kills(directory: Path, kills: int, how: str) -> None:
    """Run forty tasks in a script of which workers and the main process are killed at random moments, until so many are."""
    generator = random.Random(kills)
    directory.mkdir()
    body = "tasks = [Task(f'write-{number:05}', {'number': number, 'seconds': 0.05}, 1000) for number in range(40)]"
    killed, rounds = 0, 0

    def kill(pid: int) -> None:
        nonlocal killed
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, signal.SIGKILL)
            killed += 1

    while killed < kills:
        rounds += 1
        assert rounds <= 2 * kills, "the script ends by itself before it is killed"
        done = sorted(directory.glob("write-*.json"))
        for path in generator.sample(done, k=len(done) // 2):
            path.unlink()  # so that there is work left
        before = pids(directory)
        words = script(directory, "write", body, how)
        with subprocess.Popen(words, stdout=subprocess.DEVNULL) as main:
            while main.poll() is None and pids(directory) == before:
                time.sleep(0.01)
            for _ in range(generator.randrange(3)):
                time.sleep(generator.random() / 5)
                alive = sorted(filter(is_alive, pids(directory)))
                if alive:
                    kill(generator.choice(alive))
            time.sleep(generator.random() / 5)
            if main.poll() is None:
                kill(main.pid)
        until(lambda: not any(map(is_alive, pids(directory))))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_twenty_kills_leave_the_output_of_an_undisturbed_run(workers: int, tmp_path: Path) -> None:
    expected = run_tasks("execution_work:write", tasks(40, seconds=0.05), tmp_path / "undisturbed", workers=1)
    run_with_kills(tmp_path / "killed", 20, f"workers={workers}")
    assert run_tasks("execution_work:write", tasks(40, seconds=0.05), tmp_path / "killed", workers=2) == expected
    (tmp_path / "killed" / "script.py").unlink()
    assert files(tmp_path / "killed") == files(tmp_path / "undisturbed")


def test_progress_counts_tasks_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SAY_EVERY", 0.0)
    given_tasks = [Task(f"write-{number}", {"number": number}, size=2_000_000) for number in range(2)]
    said: list[str] = []
    run_tasks("execution_work:write", given_tasks, tmp_path, workers=1, describe="clean", say=said.append)
    assert [line.split(" MB,")[0] for line in said] == [
        "clean: 1 of 2 tasks, 2.0 of 4.0",
        "clean: 2 of 2 tasks, 4.0 of 4.0",
    ]
    assert said[1].endswith("MB/s, 00:00 left")


def test_usable_cores_are_those_of_the_affinity(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "from llmkit.corpus.execution.run import usable_cores; print(usable_cores())"]
    core = min(os.sched_getaffinity(0))
    alone = subprocess.run(
        words, capture_output=True, text=True, check=True, preexec_fn=lambda: os.sched_setaffinity(0, {core})
    )
    assert alone.stdout == "1\n"
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))
