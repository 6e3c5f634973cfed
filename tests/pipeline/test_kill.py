"""kill -9 at any instant leaves nothing that claims to be complete and is not, and the next run finishes the work."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy_stages
from toy_stages import PROGRAM, assert_all_that_claims_to_be_complete_is, contents

from llmkit.parallel.launch import data_ranks
from llmkit.pipeline import lock, runner
from llmkit.pipeline.artefact import Artefact
from llmkit.pipeline.runner import load

ALL = ("gather", "measure", "learn", "combine")
KILLS = 20
RUNS_A_PIPELINE = 6


@pytest.fixture
def memory_disk() -> Iterator[Path]:
    """A directory in memory where there is one: a hundred runs wait for a disk many times each."""
    place = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="llmkit-", dir=place if place.is_dir() else None))
    yield root
    shutil.rmtree(root)


def results(directory: Path) -> dict[str, dict[str, bytes]]:
    """The bytes of every step's newest result."""
    return {name: contents(directory / name) for name in ALL}


def finish(pipeline: Path, directory: Path) -> dict[str, Artefact]:
    loaded = load(str(pipeline), toy_stages.STAGES)
    return runner.run(loaded, directory, toy_stages.launch_here, data_ranks, say=lambda _: None)


def test_kill_9_at_random_instants_of_a_real_process_harms_nothing(start, pipeline: Path, tmp_path: Path) -> None:
    """Killed, gone on with and killed again, until it is through; then the same anew."""
    whole = finish(pipeline, tmp_path / "whole/toy")
    chance = random.Random(20)
    kills, number, in_this_one = 0, 0, 0
    steps_seen: set[int] = set()
    longest = 0.35
    while kills < KILLS:
        runs = tmp_path / f"runs{number}"
        process: subprocess.Popen[str] = start("run", pipeline, "--runs_dir", runs, *slowly())
        time.sleep(chance.uniform(0.0, longest))
        ended = process.poll()
        process.send_signal(signal.SIGKILL)
        process.wait()
        if ended is None:
            kills += 1
            in_this_one += 1
            steps_seen.add(assert_all_that_claims_to_be_complete_is(runs) if runs.exists() else 0)
            longest *= 1.0 if max(steps_seen) else 1.2  # a slow machine has not come to the second stage
            # A child of the killed one, `git describe` say, has its lock too, from its birth until it starts its program.
            toy_stages.until(lambda runs=runs: not lock.is_held(runs / "toy"))
        else:
            assert ended == 0
        if ended is not None or in_this_one == RUNS_A_PIPELINE:
            made = finish(pipeline, runs / "toy")
            assert results(runs / "toy") == results(tmp_path / "whole/toy")
            assert [artefact.manifest.digest for artefact in made.values()] == [
                artefact.manifest.digest for artefact in whole.values()
            ]
            assert_no_litter(runs / "toy")
            number, in_this_one = number + 1, 0
    assert len(steps_seen) > 1, "all kills struck the same stage: the instants were not spread"


def slowly() -> list[str]:
    return [word for name in ALL for word in ("--set", f"{name}.pause=0.01")]


def assert_no_litter(directory: Path) -> None:
    """What is left over lies beside the results in name only: each directory is a result."""
    for path in (directory / "artefacts").iterdir():
        assert path.is_file() or Artefact.peek(path) is not None, path


def test_kill_9_before_every_single_change_on_disk_harms_nothing(memory_disk: Path) -> None:
    """The pipeline is killed just before its first change on disk, in another directory before its second, and so on."""
    pipeline = toy_stages.write_pipeline(memory_disk)
    finish(pipeline, memory_disk / "whole")
    expected = results(memory_disk / "whole")
    done = subprocess.run(
        [*PROGRAM, "die", str(pipeline), str(memory_disk / "runs")], capture_output=True, text=True, check=True
    )
    instants, status = map(int, done.stdout.split())
    assert status == 0, "the last one was not killed, and succeeded"
    assert instants > 80, "the changes on disk were not seen"
    killed = [memory_disk / f"runs/{instant:03}" for instant in range(1, instants)]
    complete: set[int] = set()
    for directory in killed:
        if directory.exists():
            complete.add(assert_all_that_claims_to_be_complete_is(directory))
    assert complete >= {0, 1, 2, 3, 4}
    for directory in killed:
        finish(pipeline, directory)
        assert results(directory) == expected, directory.name
        assert_no_litter(directory)


def test_kill_9_while_a_result_is_replaced_never_loses_both(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two renames of a replacement the old one stands aside and the new one is whole: it is taken up."""
    (tmp_path / "a.txt").write_text("one")
    make("gather", "out", train_file=["a.txt"])
    import llmkit.pipeline.stage as stage_module

    replace = stage_module.os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target).name == "out":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage_module.os, "replace", killed)
        make("gather", "out", force=True, train_file=["a.txt"], copies=2)
    assert not (tmp_path / "out").exists()
    with monkeypatch.context() as patch:
        patch.setattr(toy_stages, "gather", lambda *_: pytest.fail("made again"))
        made = make("gather", "out", train_file=["a.txt"], copies=2)
    assert made.damaged(hashes=True) == []
    make("gather", "out", force=True, train_file=["a.txt"])
    assert {path.name for path in tmp_path.glob("out*")} == {"out"}, "what stood aside is gone"
