"""Tasks as a Slurm array. There is no Slurm here: its script is run by bash, and a small stand-in for sbatch runs the elements
as real processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_execution import files, is_alive, pids, script, tasks, times_done, until

from llmkit.corpus.execution import slurm
from llmkit.corpus.execution.run import run_tasks
from llmkit.corpus.execution.tasks import Task
from llmkit.errors import ConfigError, DataError


def elements(script: Path) -> range:
    first, last = re.search(r"--array=(\d+)-(\d+)", script.read_text(encoding="utf-8")).groups()  # type: ignore[union-attr]
    return range(int(first), int(last) + 1)


def run_by_hand(script: Path) -> list[int]:
    """The exit code of each element, run as Slurm does."""
    return [
        subprocess.run(["bash", str(script)], env={**os.environ, "SLURM_ARRAY_TASK_ID": str(element)}, check=False).returncode
        for element in elements(script)
    ]


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


SBATCH = """#!{python}
# Runs each element of an array as a process of this machine; the job is in the queue while this one lives.
import os, re, subprocess, sys
from pathlib import Path
here = Path(__file__).parent
script = sys.argv[-1]
if sys.argv[1] == "--parsable":
    job = subprocess.Popen([sys.executable, __file__, "elements", script], start_new_session=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with (here / "jobs").open("a") as jobs:
        print(job.pid, file=jobs)
    print(f"{{job.pid}};cluster")
else:
    first, last = map(int, re.search(r"--array=(\\d+)-(\\d+)", Path(script).read_text()).groups())
    for element in range(first, last + 1):
        subprocess.run(["bash", script], env={{**os.environ, "SLURM_ARRAY_TASK_ID": str(element)}})
"""

SQUEUE = """#!/bin/bash
state=$(ps -o stat= -p "${@: -1}")
if [[ -z "$state" || "$state" == Z* ]]; then echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; fi
echo "$state"
"""

SCANCEL = """#!/bin/bash
kill -9 -- "-$1"
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stand-ins, on PATH; `jobs` in it has a line for each submitted job."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH.format(python=sys.executable)), ("squeue", SQUEUE), ("scancel", SCANCEL)):
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def jobs(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "jobs").read_text(encoding="utf-8").split()]


def results(directory: Path) -> dict[str, bytes]:
    """What tasks have written, without what belongs to Slurm."""
    return {name: content for name, content in files(directory).items() if Path(name).suffix in (".json", ".part")}


@pytest.mark.parametrize("longest", [1000, 3])
def test_without_sbatch_the_script_is_left_to_the_user(
    longest: int, no_slurm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "_ELEMENTS", longest)
    expected = run_tasks("execution_work:write", tasks(7), tmp_path / "local", workers=2)
    directory = tmp_path / "a folder's"
    with pytest.raises(DataError, match=r"no `sbatch`.*write.sbatch does the 7 tasks.*same command") as caught:
        run_tasks("execution_work:write", tasks(7), directory, executor="slurm", workers=4)
    place = directory / "write.sbatch"
    assert str(place) in str(caught.value)
    assert f"#SBATCH --array=0-{min(7, longest) - 1}%4\n" in place.read_text(encoding="utf-8")
    assert run_by_hand(place) == [0] * min(7, longest)
    assert run_tasks("execution_work:write", tasks(7), directory, executor="slurm") == expected
    assert results(directory) == results(tmp_path / "local")
    assert [times_done(directory, number) for number in range(7)] == [1] * 7


def test_relative_paths_are_those_of_the_caller(no_slurm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the script is submitted, and wherever a Ray cluster was started."""
    for place in ("here", "elsewhere"):
        (tmp_path / place).mkdir()
    (tmp_path / "here" / "input.txt").write_text("found", encoding="utf-8")
    given = [Task("read-0", {"path": "input.txt"})]
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(DataError, match="no `sbatch`"):
        run_tasks("execution_work:read", given, tmp_path / "work", executor="slurm")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run_by_hand(tmp_path / "work" / "read.sbatch") == [0]
    assert run_tasks("execution_work:read", given, tmp_path / "work") == [{"content": "found"}]


def test_what_an_element_has_met_is_told_by_the_next_run_and_then_tried_again(no_slurm: None, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(DataError, match="no `sbatch`"):
            run_tasks("execution_work:refuse", tasks(3), tmp_path, executor="slurm")
        assert 1 in run_by_hand(tmp_path / "refuse.sbatch")
        with pytest.raises(ConfigError) as caught:
            run_tasks("execution_work:refuse", tasks(3), tmp_path, executor="slurm")
        assert caught.value.problems == ["first 今天", "second"]
    assert [times_done(tmp_path, number) for number in range(2)] == [1, 1]


def test_an_array_is_submitted_and_waited_for(stand_in: Path, tmp_path: Path) -> None:
    expected = run_tasks("execution_work:write", tasks(5), tmp_path / "local", workers=1)
    said: list[str] = []
    assert run_tasks("execution_work:write", tasks(5), tmp_path / "slurm", executor="slurm", say=said.append) == expected
    assert results(tmp_path / "slurm") == results(tmp_path / "local")
    assert len(jobs(stand_in)) == 1
    assert said == [f"tasks: submitted {tmp_path / 'slurm' / 'write.sbatch'} as job {jobs(stand_in)[0]}"]


def test_an_array_that_is_done_is_not_taken_for_the_next_one(stand_in: Path, tmp_path: Path) -> None:
    """The queue lists an array for a while after its last result."""
    lingering = SBATCH.format(python=sys.executable) + "    import time; time.sleep(5)\n"
    (stand_in / "sbatch").write_text(lingering, encoding="utf-8")
    said: list[str] = []
    for first in (0, 3):
        some = [Task(f"write-{number:05}", {"number": number}, 1000) for number in range(first, first + 3)]
        run_tasks("execution_work:write", some, tmp_path / "slurm", executor="slurm", say=said.append)
    assert len(jobs(stand_in)) == 2
    assert not any("submitted again" in line for line in said)


def test_what_dies_in_an_array_is_submitted_again(stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "_ELEMENTS", 2)
    given_tasks = [Task("bad", {"number": 9, "deaths": 2}), *tasks(4)]
    found = run_tasks("execution_work:die", given_tasks, tmp_path, executor="slurm")
    assert [result["number"] for result in found] == [9, 0, 1, 2, 3]
    assert len(jobs(stand_in)) == 3
    given_tasks = [Task("bad", {"number": 8, "deaths": 9, "inputs": "crawl/a.warc.gz"}), *tasks(4)]
    with pytest.raises(DataError, match=r"bad \(crawl/a.warc.gz\).*3 arrays"):
        run_tasks("execution_work:die", given_tasks, tmp_path, executor="slurm")
    assert len(jobs(stand_in)) == 6


def test_a_user_s_error_in_an_array_arrives_and_the_array_is_cancelled(stand_in: Path, tmp_path: Path) -> None:
    given_tasks = [*tasks(3), Task("long", {"number": 9, "seconds": 600})]
    with pytest.raises(ConfigError) as caught:
        run_tasks("execution_work:refuse", given_tasks, tmp_path, executor="slurm")
    assert caught.value.problems == ["first 今天", "second"]
    until(lambda: not any(map(is_alive, [*jobs(stand_in), *pids(tmp_path)])))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_wait_that_was_interrupted_is_taken_up_again(number: signal.Signals, stand_in: Path, tmp_path: Path) -> None:
    directory = tmp_path / "output"
    directory.mkdir()
    body = "tasks = [Task(f'write-{number:05}', {'number': number, 'seconds': 0.5}, 1000) for number in range(4)]"
    words = script(directory, "write", body, "executor='slurm'")
    main = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until(lambda: pids(directory))
    main.send_signal(number)
    main.wait(timeout=30)
    found = run_tasks("execution_work:write", tasks(4, seconds=0.5), directory, executor="slurm")
    assert [result["number"] for result in found] == [0, 1, 2, 3]
    assert len(jobs(stand_in)) == 1
    assert [times_done(directory, number) for number in range(4)] == [1] * 4


def test_what_sbatch_says_against_the_script_is_passed_on(stand_in: Path, tmp_path: Path) -> None:
    (stand_in / "sbatch").write_text("#!/bin/bash\necho 'error: invalid partition' >&2\nexit 1\n", encoding="utf-8")
    with pytest.raises(DataError, match="invalid partition"):
        run_tasks("execution_work:write", tasks(1), tmp_path, executor="slurm")
