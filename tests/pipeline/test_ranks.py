"""A stage on several ranks: real processes with the environment that a launcher gives them, and no launcher."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_stages import contents, until

from llmkit.pipeline import stage as stage_module
from llmkit.pipeline.artefact import Artefact

Rank = Callable[..., "subprocess.Popen[str]"]
LEARN = ("learn", "--corpus", "corpus", "--output_dir", "out")


@pytest.fixture
def rank(start, make, tmp_path: Path) -> Rank:
    """`rank(1, "learn", ...)`: one of two ranks of a launch."""
    (tmp_path / "a.txt").write_text("one two three")
    make("gather", "corpus", train_file=["a.txt"])

    def run(number: int, *words: str, launch: str = "this") -> subprocess.Popen[str]:
        return start(*words, RANK=str(number), WORLD_SIZE="2", TORCHELASTIC_RUN_ID=launch)

    return run


def said(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_a_stage_that_is_not_launched_is_made_by_the_first_rank_alone(rank: Rank, tmp_path: Path) -> None:
    words = ("gather", "--train_file", "a.txt", "--output_dir", "out")
    assert said(rank(1, *words)) == (0, "", "")
    assert not list(tmp_path.glob("out*"))
    assert said(rank(0, *words))[0] == 0
    assert Artefact.open(tmp_path / "out", "gather").damaged(hashes=True) == []


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_two_ranks_make_one_result_and_find_it_there(rank: Rank, tmp_path: Path, order: Any, force: Any) -> None:
    first, second = (rank(number, *LEARN) for number in order)
    assert (said(first)[0], said(second)[0]) == (0, 0)
    made = Artefact.open(tmp_path / "out", "learn")
    assert {path.name for path in tmp_path.glob("out*")} == {"out"}
    assert not [record.path for record in made.manifest.files if record.path.startswith(".")]
    written = (tmp_path / "out/model.txt").stat().st_mtime_ns
    first, second = (rank(number, *LEARN, *force) for number in order)
    assert (said(first)[0], said(second)[0]) == (0, 0)
    assert Artefact.open(tmp_path / "out", "learn").manifest.digest == made.manifest.digest
    assert ((tmp_path / "out/model.txt").stat().st_mtime_ns == written) == (not force)


def test_the_processes_decide_the_result_where_the_settings_say_so(rank: Rank, make, tmp_path: Path) -> None:
    ranks = [rank(number, *LEARN, "--batch", "8") for number in (0, 1)]
    assert [said(process)[0] for process in ranks] == [0, 0]
    made = make("learn", "out", corpus="corpus", batch=16)
    assert made.manifest.config["batch"] == 8, "there is nothing to do"
    assert made.manifest.settings["global_batch"] == 16
    with pytest.raises(stage_module.ArtefactError, match=r"differs in global_batch \(16 there, 8 now\)"):
        make("learn", "out", corpus="corpus", batch=8)


def test_two_ranks_take_up_what_a_kill_left_finished_but_for_its_name(
    rank: Rank, make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage_module, "publish", killed)
        make("learn", "out", corpus="corpus")
    kept = (tmp_path / "out.partial/model.txt").stat().st_mtime_ns
    second, first = rank(1, *LEARN), rank(0, *LEARN)
    assert said(second)[0] == 0
    code, out, _ = said(first)
    assert code == 0
    assert "an earlier run had finished all but the last step" in out
    assert (tmp_path / "out/model.txt").stat().st_mtime_ns == kept


def test_a_rank_joins_its_own_launch_and_not_another_at_the_same_result(rank: Rank, make, tmp_path: Path) -> None:
    """The second launch waits for the first, finds its result, and has nothing to do, on both its ranks."""
    slowly = (*LEARN, "--pause", "0.05", "--layout", "ddp")
    first = [rank(number, *slowly, launch="first") for number in (0, 1)]
    until(lambda: list((tmp_path / "out.partial").glob(".here-1")))
    second = [rank(number, *slowly, launch="second") for number in (1, 0)]
    assert [said(process)[0] for process in (*first, *second)] == [0, 0, 0, 0]
    made = Artefact.open(tmp_path / "out", "learn")
    assert contents(made.directory) == contents(make("learn", "whole", corpus="corpus").directory)
    assert {path.name for path in tmp_path.glob("out*")} == {"out"}


def test_a_rank_that_would_make_something_else_says_so(rank: Rank) -> None:
    rank(0, *LEARN)  # waits for the other one, as in a collective operation
    code, _, err = said(rank(1, *LEARN, "--learning_rate", "0.1"))
    assert code == 2
    assert "rank 1 would make another result than the main process: learning_rate (0.5 there, 0.1 now)" in err
