"""One writer per directory; the lock names its holder and dies with it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkit.errors import ArtefactError, LockedError
from llmkit.pipeline import lock

HOLD = """
import sys
from pathlib import Path
from llmkit.pipeline import lock
with lock.hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds `runs` until it is told to stop."""
    words = [sys.executable, "-c", HOLD, str(tmp_path / "runs")]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_held_directory_is_refused_and_the_holder_named(holder, tmp_path: Path) -> None:
    assert lock.is_held(tmp_path / "runs")
    with pytest.raises(LockedError) as caught, lock.hold(tmp_path / "runs"):
        pytest.fail("held twice")
    assert f"process {holder.pid} on " in str(caught.value)
    assert str(tmp_path / "runs") in str(caught.value)
    assert lock.is_held(tmp_path / "runs"), "the refused one must not free it"
    assert f"process {holder.pid} " in lock.holder_of(tmp_path / "runs")


def test_one_that_waits_names_the_holder_once_and_gets_it(holder, tmp_path: Path) -> None:
    said: list[str] = []

    def let_go(words: str) -> None:
        said.append(words)
        holder.stdin.write("stop\n")
        holder.stdin.flush()

    with lock.hold(tmp_path / "runs", wait=True, say=let_go):
        assert f"process {os.getpid()} " in lock.holder_of(tmp_path / "runs")
    assert len(said) == 1
    assert f"waiting for process {holder.pid} " in said[0]


def test_the_lock_of_a_killed_process_is_free(holder, tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "runs" / lock.HOLDER).exists(), "the killed one could not clean up"
    assert not lock.is_held(tmp_path / "runs")
    with lock.hold(tmp_path / "runs"):
        assert f"process {os.getpid()} " in lock.holder_of(tmp_path / "runs")


def test_a_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    with lock.hold(tmp_path / "a/b"):
        assert lock.is_held(tmp_path / "a/b")
    assert not lock.is_held(tmp_path / "a/b")
    assert not (tmp_path / "a/b").exists(), "it was made for the lock alone"


def test_a_lock_leaves_what_was_written_under_it(tmp_path: Path) -> None:
    with lock.hold(tmp_path / "a"):
        (tmp_path / "a/file").touch()
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a/file"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc, in which nothing can be made")
def test_a_directory_that_cannot_be_made_is_no_reason_to_wait() -> None:
    with (
        pytest.raises(ArtefactError, match="/proc/nothere/out cannot be made: No such file"),
        lock.hold(Path("/proc/nothere/out")),
    ):
        pass


def test_an_error_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock.hold(tmp_path / "runs"):
        raise ZeroDivisionError
    assert not lock.is_held(tmp_path / "runs")


def test_a_directory_that_was_renamed_while_held_is_not_touched_under_its_old_name(tmp_path: Path) -> None:
    with lock.hold(tmp_path / "partial"):
        os.replace(tmp_path / "partial", tmp_path / "final")
        with lock.hold(tmp_path / "partial"):  # the next one makes it anew
            assert lock.is_held(tmp_path / "partial")
    assert not lock.is_held(tmp_path / "partial")
    assert not lock.is_held(tmp_path / "final")


def test_what_is_not_there_is_not_held(tmp_path: Path) -> None:
    assert not lock.is_held(tmp_path / "nothing")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "null"])
def test_a_torn_holder_file_still_gives_a_name(tmp_path: Path, content: str) -> None:
    (tmp_path / lock.HOLDER).write_text(content)
    assert lock.holder_of(tmp_path) == "another process"


def test_looking_whether_it_is_held_refuses_nobody(tmp_path: Path) -> None:
    """`is_held` takes the lock for an instant; `llmkit status` beside `llmkit run` must not make the run fail."""
    (tmp_path / "runs").mkdir()
    looking = os.open(tmp_path / "runs", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_EX)
    threading.Timer(0.03, os.close, [looking]).start()
    with lock.hold(tmp_path / "runs"):
        assert lock.is_held(tmp_path / "runs")


def test_a_directory_renamed_between_opening_and_locking_is_not_taken_for_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def after_a_commit(handle: int, how: int) -> None:
        monkeypatch.setattr(lock.fcntl, "flock", flock)
        os.replace(tmp_path / "partial", tmp_path / "final")
        flock(handle, how)

    monkeypatch.setattr(lock.fcntl, "flock", after_a_commit)
    with lock.hold(tmp_path / "partial"):
        assert lock.is_held(tmp_path / "partial")
        assert not lock.is_held(tmp_path / "final")
        assert list((tmp_path / "final").iterdir()) == []


def test_two_processes_never_hold_it_at_once(tmp_path: Path) -> None:
    """Four processes add to a number, each reading and writing it under the lock."""
    program = """
import sys
from pathlib import Path
from llmkit.pipeline import lock
path = Path(sys.argv[1]) / "number"
for _ in range(25):
    with lock.hold(Path(sys.argv[1]) / "runs", wait=True, say=lambda _: None):
        number = int(path.read_text())
        path.write_text(str(number + 1))
"""
    (tmp_path / "number").write_text("0")
    words = [sys.executable, "-c", program, str(tmp_path)]
    processes = [subprocess.Popen(words) for _ in range(4)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0, 0]
    assert (tmp_path / "number").read_text() == "100"
