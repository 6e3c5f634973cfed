"""The fingerprint covers what can change the bytes and nothing else; a disk that refuses is a clear error."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy_stages
from toy_stages import contents

from llmkit.config import Resolved, Source, parse_arguments, read_settings_file, resolve
from llmkit.errors import ArtefactError, DataError, LockedError
from llmkit.pipeline import lock
from llmkit.pipeline import stage as stage_module
from llmkit.pipeline.artefact import Artefact, FileHashes
from llmkit.pipeline.stage import Stage, expand, identify, run_stage
from llmkit.stages import STAGES as REAL_STAGES

GATHER, MEASURE, LEARN = (toy_stages.STAGES[name] for name in ("gather", "measure", "learn"))


def fingerprint(stage: Stage, processes: int = 1, **settings: Any) -> str:
    config = resolve(stage.config_class, [Source(settings, {})]).config
    return identify(stage, config, FileHashes(Path("hashes.json")), processes=processes).fingerprint


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    (tmp_path / "b.txt").write_text("two", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("change", [{"upper": True}, {"copies": 2}, {"extra": {"a": 1}}, {"train_file": ["b.txt"]}])
def test_a_setting_or_input_that_can_change_the_bytes_moves_the_fingerprint(texts: Path, change: dict[str, Any]) -> None:
    assert fingerprint(GATHER, **{"train_file": ["a.txt"], **change}) != fingerprint(GATHER, train_file=["a.txt"])


def test_settings_without_effect_on_the_bytes_leave_the_fingerprint(texts: Path) -> None:
    assert fingerprint(GATHER, train_file=["a.txt"], pause=3.0) == fingerprint(GATHER, train_file=["a.txt"])


def test_a_default_that_is_written_out_leaves_the_fingerprint(texts: Path) -> None:
    assert fingerprint(GATHER, train_file=["a.txt"], copies=1, extra={}) == fingerprint(GATHER, train_file=["a.txt"])


def test_the_content_of_an_input_moves_the_fingerprint_and_its_return_restores_it(texts: Path) -> None:
    before = fingerprint(GATHER, train_file=["a.txt"])
    (texts / "a.txt").write_text("ONE", encoding="utf-8")
    assert fingerprint(GATHER, train_file=["a.txt"]) != before
    (texts / "a.txt").write_text("one", encoding="utf-8")
    assert fingerprint(GATHER, train_file=["a.txt"]) == before


def test_paths_and_times_leave_the_fingerprint(texts: Path) -> None:
    before = fingerprint(GATHER, train_file=["a.txt"])
    assert fingerprint(GATHER, train_file=[str(texts / "a.txt")]) == before
    os.utime(texts / "a.txt", (0, 0))
    assert fingerprint(GATHER, train_file=["a.txt"]) == before
    (texts / "moved").mkdir()
    (texts / "a.txt").rename(texts / "moved/a.txt")
    for same in ("moved/a.txt", "moved/*", "moved", str(texts / "moved/?.txt")):
        assert fingerprint(GATHER, train_file=[same]) == before


@pytest.mark.parametrize("pattern", ["data", "data/*/*", "data/**/*.txt"])
def test_a_directory_may_be_moved_as_a_whole_and_what_is_called_otherwise_in_it_counts(texts: Path, pattern: str) -> None:
    (texts / "data/sub").mkdir(parents=True)
    (texts / "a.txt").rename(texts / "data/sub/a.txt")
    before = fingerprint(GATHER, train_file=[pattern])
    (texts / "data").rename(texts / "other")
    assert fingerprint(GATHER, train_file=[pattern.replace("data", "other")]) == before
    (texts / "other/sub/a.txt").rename(texts / "other/sub/c.txt")
    assert fingerprint(GATHER, train_file=[pattern.replace("data", "other")]) != before, "ids are made of names"


def test_a_suffix_decides_how_a_file_is_read_and_moves_the_fingerprint(texts: Path) -> None:
    before = fingerprint(GATHER, train_file=["a.txt"])
    (texts / "a.txt").rename(texts / "a.jsonl")
    assert fingerprint(GATHER, train_file=["a.jsonl"]) != before


def test_files_that_are_not_read_leave_the_fingerprint_of_a_corpus(texts: Path) -> None:
    stage = REAL_STAGES["preprocess"]
    before = {pattern: fingerprint(stage, train_file=[pattern]) for pattern in (".", "*")}
    for name in ("c.pdf", "README", ".hidden.txt", ".git/d.txt", "hashes.json"):
        (texts / name).parent.mkdir(exist_ok=True)
        (texts / name).write_text("{}")
    (texts / "hashes.json").unlink()
    for pattern, mark in before.items():
        assert fingerprint(stage, train_file=[pattern]) == mark
    (texts / "c.md").write_text("read")
    for pattern, mark in before.items():
        assert fingerprint(stage, train_file=[pattern]) != mark


def test_a_directory_of_which_nothing_is_read_is_refused_with_what_would_be(texts: Path) -> None:
    (texts / "papers").mkdir()
    (texts / "papers/c.pdf").write_text("x")
    with pytest.raises(DataError, match=r"train_file: none of the files of 'papers' can be read; known are \.txt, \.md"):
        fingerprint(REAL_STAGES["preprocess"], train_file=["papers"])


def test_the_number_of_processes_counts_where_it_changes_the_result(texts: Path, make) -> None:
    make("gather", "corpus", train_file=["a.txt"])
    one = fingerprint(LEARN, processes=1, corpus="corpus", batch=32)
    assert fingerprint(LEARN, processes=2, corpus="corpus", batch=16) == one, "as many samples a step"
    assert fingerprint(LEARN, processes=2, corpus="corpus", batch=32) != one
    assert fingerprint(LEARN, processes=2, corpus="corpus") == fingerprint(LEARN, corpus="corpus")


def test_the_order_of_input_files_moves_the_fingerprint(texts: Path) -> None:
    assert fingerprint(GATHER, train_file=["a.txt", "b.txt"]) != fingerprint(GATHER, train_file=["b.txt", "a.txt"])


def test_the_stage_and_its_version_move_the_fingerprint(texts: Path) -> None:
    before = fingerprint(GATHER, train_file=["a.txt"])
    assert fingerprint(replace(GATHER, version=2), train_file=["a.txt"]) != before
    assert fingerprint(replace(GATHER, name="collect"), train_file=["a.txt"]) != before


def test_an_input_that_no_path_names_moves_the_fingerprint(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(GATHER, train_file=["a.txt"])
    monkeypatch.setattr(toy_stages.GatherConfig, "raw_inputs", lambda self: {"alphabet": "version-2"})
    assert fingerprint(GATHER, train_file=["a.txt"]) != before


def test_an_earlier_result_counts_by_its_fingerprint_and_not_by_its_place(texts: Path, make) -> None:
    make("gather", "here", train_file=["a.txt"])
    make("gather", "there", train_file=["a.txt"])
    make("gather", "other", train_file=["b.txt"])
    assert fingerprint(MEASURE, corpus="here") == fingerprint(MEASURE, corpus=str(texts / "there"))
    assert fingerprint(MEASURE, corpus="here") != fingerprint(MEASURE, corpus="other")
    (texts / "link").symlink_to("here")
    assert fingerprint(MEASURE, corpus="link") == fingerprint(MEASURE, corpus="here")


def test_a_place_inside_an_earlier_result_is_not_the_result_itself(texts: Path, make) -> None:
    make("gather", "here", train_file=["a.txt"])
    assert fingerprint(MEASURE, corpus="here/texts") != fingerprint(MEASURE, corpus="here")


def test_a_model_from_elsewhere_counts_by_its_content(texts: Path) -> None:
    for name in ("one", "two"):
        (texts / name).mkdir()
        (texts / name / "weights").write_text("1234")
    before = fingerprint(MEASURE, corpus="one")
    assert fingerprint(MEASURE, corpus="two") == before
    (texts / "two/weights").rename(texts / "two/old")
    assert fingerprint(MEASURE, corpus="two") != before
    (texts / "two/old").rename(texts / "two/weights")
    (texts / "two/weights").write_text("4321")
    assert fingerprint(MEASURE, corpus="two") != before


LOOP = Stage("loop", "", "toy_stages:LoopConfig", "toy_stages:measure", "")


def test_what_is_no_directory_counts_by_its_name_as_hub_models_do(texts: Path) -> None:
    assert fingerprint(LOOP, corpus="org/model") == fingerprint(LOOP, corpus="org/model")
    assert fingerprint(LOOP, corpus="org/model") != fingerprint(LOOP, corpus="org/other")


@pytest.mark.parametrize(("stage", "path"), [(MEASURE, "org/model"), (LOOP, "./model"), (LOOP, "/a/model"), (LOOP, "a/b/c")])
def test_a_directory_that_is_not_there_is_refused_where_a_hub_name_cannot_be_meant(
    texts: Path, stage: Stage, path: str
) -> None:
    with pytest.raises(DataError, match=f"corpus: there is no directory '{path}'"):
        fingerprint(stage, corpus=path)


def _training(*words: str) -> str:
    stage = REAL_STAGES["pretrain"]
    Path("tokens").mkdir(exist_ok=True)
    Path("tokens/index.json").write_text("{}")
    resolved = parse_arguments(stage.config_class, ["--tokens", "tokens", *words])
    return identify(stage, resolved.config, FileHashes(Path("hashes.json"))).fingerprint


@pytest.mark.parametrize(
    "words",
    ["--logging_steps 3", "--save_steps 7", "--dataloader_num_workers 2", "--report_to none", "--run_name x",
     "--cpu_threads 2", "--use_cpu true", "--gradient_checkpointing", "--ddp_timeout 60"],
)  # fmt: skip
def test_logging_workers_and_launch_layout_do_not_make_training_stale(words: str) -> None:
    assert _training(*words.split()) == _training()


@pytest.mark.parametrize("words", ["--learning_rate 1e-5", "--seed 1", "--adam_epsilon 1e-6", "--config_overrides.a 1"])
def test_what_training_computes_makes_it_stale(words: str) -> None:
    assert _training(*words.split()) != _training()


def test_expand_gives_files_sorted_once_each_and_skips_hidden_ones(tmp_path: Path) -> None:
    for name in ("d/b.txt", "d/a.txt", "d/.hidden", "d/sub/c.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [str(path) for path in expand(["d", "d/*.txt", str(tmp_path / "d/a.txt")], "x")] == [
        "d/a.txt", "d/b.txt", "d/sub/c.md", str(tmp_path / "d/a.txt"),
    ]  # fmt: skip
    assert [path.name for path in expand("d/**/*.md", "x")] == ["c.md"]
    assert [path.name for path in expand(str(tmp_path / "d/*.txt"), "x")] == ["a.txt", "b.txt"]


def test_a_file_whose_name_has_signs_of_patterns_is_found(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("x")
    assert [path.name for path in expand(["a[1].txt"], "x")] == ["a[1].txt"]


def test_the_resolved_settings_lie_beside_the_result_and_give_it_again(texts: Path, make) -> None:
    artefact = make("gather", "out", train_file=["a.txt"], extra={"名": "值\n# from x", "n": "1e5"}, copies=2)
    again = resolve(toy_stages.GatherConfig, read_settings_file(artefact.directory / "llmkit.yaml"))
    assert Resolved(again.config, again.origins).as_dict() == artefact.manifest.config
    assert again.origins == artefact.manifest.origins


# --------------------------------------------------------------------------------------------------------------------
# Resuming


def _interrupt_after(checkpoints: int, monkeypatch: pytest.MonkeyPatch) -> None:
    done = 0
    original = toy_stages.write_slowly

    def write(path: Path, *rest: Any) -> None:
        nonlocal done
        if done == checkpoints:
            raise KeyboardInterrupt
        done += 1
        original(path, *rest)

    monkeypatch.setattr(toy_stages, "write_slowly", write)


def test_a_training_stage_goes_on_where_it_was_stopped(texts: Path, make, monkeypatch: pytest.MonkeyPatch) -> None:
    make("gather", "corpus", train_file=["a.txt"])
    whole = make("learn", "whole", corpus="corpus")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _interrupt_after(4, patch)
        make("learn", "out", corpus="corpus")
    kept = (texts / "out.partial/step-3.txt").stat().st_mtime_ns
    assert Artefact.peek(texts / "out") is None
    resumed = make("learn", "out", corpus="corpus")
    assert (texts / "out/step-3.txt").stat().st_mtime_ns == kept, "made again, not resumed"
    assert contents(resumed.directory) == contents(whole.directory)
    assert resumed.manifest.digest == whole.manifest.digest


def _interrupted(make, monkeypatch: pytest.MonkeyPatch, checkpoints: int = 4, **settings: Any) -> None:
    """A run of `learn` into `out` that is stopped after some checkpoints."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _interrupt_after(checkpoints, patch)
        make("learn", "out", corpus="corpus", **settings)


def test_what_a_run_of_other_settings_has_reached_is_not_thrown_away_unasked(
    texts: Path, make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("gather", "corpus", train_file=["a.txt"])
    _interrupted(make, monkeypatch, learning_rate=0.1)
    reached = contents(texts / "out.partial")
    with pytest.raises(
        ArtefactError, match=r"an unfinished run that differs in learning_rate \(0.1 there, 0.2 now\); .*--force"
    ):
        make("learn", "out", corpus="corpus", learning_rate=0.2)
    assert contents(texts / "out.partial") == reached
    made = make("learn", "out", force=True, corpus="corpus", learning_rate=0.2)
    assert contents(made.directory) == contents(make("learn", "whole", corpus="corpus", learning_rate=0.2).directory)


def test_the_same_settings_on_other_inputs_are_another_run(texts: Path, make, monkeypatch: pytest.MonkeyPatch) -> None:
    make("gather", "corpus", train_file=["a.txt"])
    _interrupted(make, monkeypatch)
    make("gather", "corpus", force=True, train_file=["b.txt"])
    with pytest.raises(ArtefactError, match="an unfinished run that differs in its inputs"):
        make("learn", "out", corpus="corpus")


def test_a_run_of_other_settings_that_has_reached_nothing_gives_way(
    texts: Path, make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("gather", "corpus", train_file=["a.txt"])
    _interrupted(make, monkeypatch, checkpoints=0, learning_rate=0.1)
    assert (texts / "out.partial").is_dir()
    assert make("learn", "out", corpus="corpus", learning_rate=0.2).damaged() == []


def test_force_starts_from_the_beginning_and_when_stopped_goes_on_without_it(
    texts: Path, make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("gather", "corpus", train_file=["a.txt"])
    before = make("learn", "out", corpus="corpus").manifest
    for checkpoints in (4, 2):  # forced and stopped, twice
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            _interrupt_after(checkpoints, patch)
            make("learn", "out", force=True, corpus="corpus")
        assert len(list((texts / "out.partial").glob("step-*"))) == checkpoints, "nothing was kept of what was there"
    assert Artefact.open(texts / "out", "learn").manifest == before, "the old result stays until there is a new one"
    kept = (texts / "out.partial/step-1.txt").stat().st_mtime_ns
    made = make("learn", "out", corpus="corpus")
    assert (texts / "out/step-1.txt").stat().st_mtime_ns == kept, "made again, not resumed"
    assert made.manifest.digest == before.digest
    assert make("learn", "out", corpus="corpus").manifest == made.manifest, "and that was all"


def test_a_forced_run_over_a_result_of_other_settings_goes_on_without_force(
    texts: Path, make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("gather", "corpus", train_file=["a.txt"])
    make("learn", "out", corpus="corpus", learning_rate=0.1)
    _interrupted(make, monkeypatch, force=True, learning_rate=0.2)
    with pytest.raises(ArtefactError, match="a result that differs in learning_rate"):
        make("learn", "out", corpus="corpus", learning_rate=0.3)
    assert make("learn", "out", corpus="corpus", learning_rate=0.2).manifest.config["learning_rate"] == 0.2


def test_a_kill_while_an_old_run_is_discarded_leaves_nothing_to_go_on_with(
    texts: Path, make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("gather", "corpus", train_file=["a.txt"])
    _interrupted(make, monkeypatch)

    def killed(path: Path) -> None:
        path.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage_module, "_remove", killed)
        make("learn", "out", force=True, corpus="corpus")
    made = make("learn", "out", corpus="corpus")
    assert contents(made.directory) == contents(make("learn", "whole", corpus="corpus").directory)


def test_a_directory_that_only_looks_like_an_unfinished_run_is_not_emptied(texts: Path, make) -> None:
    (texts / "out.partial").mkdir()
    (texts / "out.partial/thesis.txt").write_text("mine")
    for name in ("gather", "learn"):
        settings = {"train_file": ["a.txt"]} if name == "gather" else {"corpus": "corpus"}
        make("gather", "corpus", train_file=["a.txt"])
        for force in (False, True):
            with pytest.raises(ArtefactError, match=r"out.partial holds files that llmkit did not write"):
                make(name, "out", force=force, **settings)
    assert [path.name for path in (texts / "out.partial").iterdir()] == ["thesis.txt"]


def test_a_stage_that_does_not_resume_starts_in_an_empty_directory(texts: Path, make) -> None:
    (texts / "out.partial/texts").mkdir(parents=True)
    (texts / "out.partial" / lock.HOLDER).write_text("{}")
    (texts / "out.partial/texts/9.txt").write_text("left by a kill")
    (texts / "out.partial/elsewhere").symlink_to(texts)
    made = make("gather", "out", train_file=["a.txt"])
    assert contents(made.directory).keys() == {"texts/0.txt", "extra.json"}
    assert (texts / "a.txt").read_text() == "one", "what a link points to is not ours to empty"


def test_a_kill_between_the_manifest_and_the_rename_costs_nothing(texts: Path, make, monkeypatch: pytest.MonkeyPatch) -> None:
    make("gather", "corpus", train_file=["a.txt"])

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage_module, "publish", killed)
        make("learn", "out", corpus="corpus")
    with monkeypatch.context() as patch:
        patch.setattr(toy_stages, "learn", lambda *_: pytest.fail("trained again"))
        made = make("learn", "out", corpus="corpus")
    assert made.damaged(hashes=True) == []
    assert not (texts / "out.partial").exists()
    assert {path.name for path in made.directory.iterdir()} == {Path(r.path).name for r in made.manifest.files} | {
        "manifest.json"
    }


def test_a_kill_while_the_result_is_hashed_leaves_the_checkpoints_to_resume_from(
    texts: Path, make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("gather", "corpus", train_file=["a.txt"])

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage_module, "sync", killed)
        make("learn", "out", corpus="corpus")
    kept = (texts / "out.partial/step-0.txt").stat().st_mtime_ns
    make("learn", "out", corpus="corpus")
    assert (texts / "out/step-0.txt").stat().st_mtime_ns == kept


def test_half_a_file_of_ours_that_a_kill_left_does_not_get_into_the_result(
    texts: Path, make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("gather", "corpus", train_file=["a.txt"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _interrupt_after(4, patch)
        make("learn", "out", corpus="corpus")
    for name in ("..attempt.json.17", ".llmkit.yaml.17", ".manifest.json.17"):
        (texts / "out.partial" / name).write_text("{")
    made = make("learn", "out", corpus="corpus")
    assert contents(made.directory) == contents(make("learn", "whole", corpus="corpus").directory)


def test_the_same_result_twice_at_once_is_refused_with_the_holder_named(texts: Path, make) -> None:
    with (
        lock.hold(texts / "out.partial"),
        pytest.raises(LockedError, match=rf"out.partial is in use by process {os.getpid()}"),
    ):
        make("gather", "out", train_file=["a.txt"])
    assert make("gather", "out", train_file=["a.txt"]).damaged() == []


def test_one_that_waited_for_the_same_result_takes_it(texts: Path, make, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = resolve(toy_stages.GatherConfig, [Source({"train_file": ["a.txt"]}, {})])
    hold = lock.hold

    def finished_by_another(partial: Path, **options: Any) -> Any:
        monkeypatch.setattr(lock, "hold", hold)
        make("gather", "out", train_file=["a.txt"])
        return hold(partial, **options)

    monkeypatch.setattr(lock, "hold", finished_by_another)
    made = run_stage(GATHER, resolved, texts / "out", wait=True)
    monkeypatch.setattr(toy_stages, "gather", lambda *_: pytest.fail("made twice"))
    assert made.manifest == Artefact.open(texts / "out", "gather").manifest
    assert not (texts / "out.partial").exists()


def test_one_that_waited_does_not_replace_a_result_of_other_settings(
    texts: Path, make, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = lock.hold

    def finished_by_another(partial: Path, **options: Any) -> Any:
        monkeypatch.setattr(lock, "hold", hold)
        make("gather", "out", train_file=["a.txt"], copies=2)
        return hold(partial, **options)

    monkeypatch.setattr(lock, "hold", finished_by_another)
    with pytest.raises(ArtefactError, match=r"out holds a result that differs in copies \(2 there, 1 now\)"):
        make("gather", "out", train_file=["a.txt"])
    assert Artefact.open(texts / "out", "gather").manifest.config["copies"] == 2
    assert not (texts / "out.partial").exists()


# --------------------------------------------------------------------------------------------------------------------
# Disks that refuse


def _mounted(place: Path, options: str) -> bool:
    place.mkdir(exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    return os.geteuid() == 0 and shutil.which("mount") is not None and subprocess.run(words, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 1 MB."""
    place = tmp_path / "disk"
    if not _mounted(place, "size=1m"):
        pytest.skip("a file system can be mounted only by root; the limit of a file's size is tested instead")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A directory in which nothing can be written: for root a read-only mount, for others one without permission."""
    place = tmp_path / "frozen"
    mounted = _mounted(place, "ro")
    if not mounted:
        place.chmod(0o555)
        if os.access(place, os.W_OK):
            pytest.skip("this user may write everywhere, and may mount nothing")
    yield place
    if mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)
    place.chmod(0o755)


def test_a_full_disk_is_named_and_after_making_room_the_same_command_succeeds(small_disk: Path, tmp_path, command) -> None:
    (tmp_path / "small.txt").write_text("one")
    (tmp_path / "large.txt").write_text("x" * 400_000)
    words = ["gather", "--train_file", "large.txt", "--copies", "3", "--output_dir", small_disk / "large"]
    assert command("gather", "--train_file", "small.txt", "--output_dir", small_disk / "small").code == 0
    said = command(*words)
    assert said.code == 2
    assert f"llmkit: gather: cannot write {small_disk.relative_to(tmp_path)}/large.partial: No space left" in said.err
    assert "Traceback" not in said.err
    assert Artefact.peek(small_disk / "large") is None
    assert Artefact.open(small_disk / "small", "gather").damaged(hashes=True) == []
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert command(*words).code == 0
    assert Artefact.open(small_disk / "large", "gather").damaged(hashes=True) == []


def test_a_pipeline_on_a_full_disk_keeps_what_is_finished_and_goes_on_from_there(
    small_disk: Path, tmp_path: Path, command
) -> None:
    path = toy_stages.write_pipeline(tmp_path, {"a.txt": "word " * 80_000})
    words = ["run", path, "--runs_dir", small_disk / "runs"]
    said = command(*words)  # one copy of 400 kB fits, the second does not
    assert said.code == 2
    assert "learn: cannot write" in said.err
    assert "No space left on device" in said.err
    assert toy_stages.assert_all_that_claims_to_be_complete_is(small_disk) == 2
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    said = command(*words)
    assert said.code == 0
    assert "gather: fresh, skipped" in said.out
    assert toy_stages.assert_all_that_claims_to_be_complete_is(small_disk) == 4


def test_a_disk_without_room_for_the_first_byte_is_named_as_such(small_disk: Path, tmp_path: Path, command) -> None:
    path = toy_stages.write_pipeline(tmp_path)
    (small_disk / "runs").mkdir()
    with pytest.raises(OSError, match="No space"), (small_disk / "ballast").open("wb", buffering=0) as file:
        while file.write(b"x" * 65536):
            pass
    said = command("run", path, "--runs_dir", small_disk / "runs")
    assert said.code == 2
    assert "cannot write" in said.err
    assert "No space left on device" in said.err
    (small_disk / "ballast").unlink()
    assert command("run", path, "--runs_dir", small_disk / "runs").code == 0


def test_a_read_only_place_is_named(read_only: Path, tmp_path: Path, command) -> None:
    path = toy_stages.write_pipeline(tmp_path)
    single = command("gather", "--train_file", "data", "--output_dir", read_only / "out")
    assert single.code == 2
    assert single.err.startswith("llmkit: gather: cannot write frozen/out.partial: ")
    chain = command("run", path, "--runs_dir", read_only / "runs")
    assert chain.code == 2
    assert chain.err.startswith("llmkit: pipeline toy: cannot write frozen/runs/toy: ")
    assert "Traceback" not in single.err + chain.err


def test_a_place_below_a_file_is_named(tmp_path: Path, command) -> None:
    path = toy_stages.write_pipeline(tmp_path)
    (tmp_path / "file").write_text("x")
    said = command("run", path, "--runs_dir", "file")
    assert said.code == 2
    assert said.err.startswith("llmkit: pipeline toy: cannot write file/toy: file is a file")
    assert (tmp_path / "file").read_text() == "x"


def test_a_limit_of_file_size_is_a_refusal_of_the_disk_too(tmp_path: Path) -> None:
    (tmp_path / "large.txt").write_text("x" * 400_000)
    words = [sys.executable, toy_stages.__file__, "gather", "--train_file", "large.txt", "--output_dir", "out"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(words, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "llmkit: gather: cannot write out.partial: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0


def test_an_error_that_is_not_the_disks_keeps_its_traceback(texts: Path, make, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any) -> None:
        raise FileNotFoundError(2, "a bug", "somewhere")

    monkeypatch.setattr(toy_stages, "gather", bug)
    with pytest.raises(FileNotFoundError):
        make("gather", "out", train_file=["a.txt"])


def test_a_users_error_in_a_launched_stage_is_kept_for_its_launcher_and_not_for_the_next_attempt(texts: Path, make) -> None:
    (texts / "empty.txt").write_text("")
    with pytest.raises(DataError):
        make("gather", "out", train_file=["empty.txt"])
    message = stage_module.failure_message(texts / "out")
    assert message == "train_file: all texts are empty"
    make("gather", "out", train_file=["a.txt"])
    assert stage_module.failure_message(texts / "out") is None


def test_a_directory_that_cannot_be_read_is_an_error_and_not_absent(texts: Path, make) -> None:
    (texts / "out/manifest.json").mkdir(parents=True)
    with pytest.raises(ArtefactError, match=r"out/manifest.json cannot be read"):
        make("gather", "out", train_file=["a.txt"])
