"""Artefacts: complete or absent, and whatever is wrong with one is found and named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import toy_stages
from toy_stages import contents

from llmkit.errors import ArtefactError, DataError
from llmkit.pipeline import stage as stage_module
from llmkit.pipeline.artefact import Artefact, FileHashes, enclosing, sha256_of, write_synced
from llmkit.pipeline.stage import publish


@pytest.fixture
def artefact(make, tmp_path: Path) -> Artefact:
    (tmp_path / "a.txt").write_text("one two three", encoding="utf-8")
    return make("gather", "out/gather", train_file=["a.txt"], copies=2)


def test_the_manifest_says_everything_and_reads_back_equal(artefact: Artefact) -> None:
    again = Artefact.open(artefact.directory, "gather")
    assert again.manifest == artefact.manifest
    manifest = again.manifest
    assert manifest.schema_version == 1
    assert (manifest.stage, manifest.stage_version) == ("gather", 1)
    assert manifest.config == {"pause": 0.0, "train_file": ["a.txt"], "upper": False, "copies": 2, "extra": {}}
    assert manifest.origins["copies"] == "test"
    assert manifest.origins["upper"] == "default"
    assert {record.path for record in manifest.files} == {"texts/0.txt", "texts/1.txt", "extra.json", "llmkit.yaml"}
    for record in manifest.files:
        path = artefact.directory / record.path
        assert (record.size, record.sha256) == (path.stat().st_size, sha256_of(path))
    assert [(record.path, record.sha256) for record in manifest.raw_inputs] == [
        ("a.txt", sha256_of(Path("a.txt"))),
        ("alphabet", "version-1"),
    ]
    assert manifest.metrics == {"texts": {"count": 2}, "characters": 26}
    assert {"llmkit", "python"} <= set(manifest.environment["versions"])
    assert manifest.environment["hardware"]["cpu_cores"] == os.cpu_count()


def test_the_command_in_the_manifest_makes_the_same_bytes(artefact: Artefact, command) -> None:
    words = artefact.manifest.command.split()
    assert words[:2] == ["llmkit", "gather"]
    said = command(*words[1:])
    assert said.code == 0
    again = Artefact.open(f"runs/gather-{artefact.manifest.fingerprint[:12]}", "gather")
    assert f"runs/gather-{artefact.manifest.fingerprint[:12]}\nnext: after gather: runs/gather-" in said.out
    assert again.manifest.digest == artefact.manifest.digest
    assert again.manifest.fingerprint == artefact.manifest.fingerprint
    assert contents(again.directory) == contents(artefact.directory)
    assert again.manifest.origins == artefact.manifest.origins


def _shorter(directory: Path) -> None:
    (directory / "texts/1.txt").write_text("one", encoding="utf-8")


def _removed(directory: Path) -> None:
    (directory / "texts/1.txt").unlink()


@pytest.mark.parametrize(("damage", "words"), [(_shorter, "has 3 bytes, the manifest says 13"), (_removed, "is missing")])
def test_a_file_that_is_gone_or_of_another_size_is_found_on_opening(artefact: Artefact, damage, words: str) -> None:
    damage(artefact.directory)
    assert artefact.damaged() == [f"texts/1.txt {words}"]
    with pytest.raises(ArtefactError, match=rf"out/gather is damaged: texts/1.txt {words}.*--force"):
        Artefact.open(artefact.directory, "gather")


def test_a_file_of_the_same_size_with_other_bytes_is_found_by_its_hash(artefact: Artefact) -> None:
    (artefact.directory / "texts/0.txt").write_text("one two thrEE", encoding="utf-8")
    assert artefact.damaged() == []
    assert artefact.damaged(hashes=True) == ["texts/0.txt has another sha256 than the manifest says"]


def test_a_directory_with_no_manifest_is_absent(artefact: Artefact) -> None:
    (artefact.directory / "manifest.json").unlink()
    assert Artefact.peek(artefact.directory) is None
    with pytest.raises(ArtefactError, match=r"no finished result.*make it with `llmkit gather`"):
        Artefact.open(artefact.directory, "gather")


def test_a_result_of_another_stage_is_refused_with_both_named(artefact: Artefact) -> None:
    with pytest.raises(ArtefactError, match=r"is a result of 'gather'; a result of 'measure' is needed"):
        Artefact.open(artefact.directory, "measure")


@pytest.mark.parametrize(
    "content",
    [
        b'{"name": "My page", "start_url": "/"}',
        b"[]",
        b'"text"',
        b"",
        b'{"stage": ',
        '{"stage": "gather"}'.encode("utf-16"),
        json.dumps({"inputs": {"a": 1}, "raw_inputs": [], "files": []}).encode(),
    ],
)
def test_a_foreign_manifest_is_a_clear_error_that_says_what_to_do(tmp_path: Path, make, content: bytes) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "page").mkdir()
    (tmp_path / "page/manifest.json").write_bytes(content)
    with pytest.raises(ArtefactError, match=r"page/manifest.json is not a manifest of llmkit.*delete it"):
        make("gather", "page", train_file=["a.txt"])
    assert (tmp_path / "page/manifest.json").read_bytes() == content
    assert enclosing(tmp_path / "page") is None


def test_a_manifest_of_a_later_llmkit_is_refused(artefact: Artefact) -> None:
    path = artefact.directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 2, "news": 1}))
    with pytest.raises(ArtefactError, match=r"schema 1"):
        Artefact.peek(artefact.directory)


def test_a_directory_of_someone_else_is_refused_and_left_alone(tmp_path: Path, make) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("precious")
    for force in (False, True):
        with pytest.raises(ArtefactError, match=r"mine holds files that llmkit did not write; name another"):
            make("gather", "mine", force=force, train_file=["a.txt"])
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    assert not (tmp_path / "mine.partial").exists()


def test_an_empty_output_directory_serves(tmp_path: Path, make) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "empty").mkdir()
    make("gather", "empty", train_file=["a.txt"])
    assert Artefact.open(tmp_path / "empty", "gather").damaged(hashes=True) == []


def test_an_output_that_is_a_file_is_refused(tmp_path: Path, make) -> None:
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(ArtefactError, match=r"a.txt is a file; name a directory"):
        make("gather", "a.txt", train_file=["a.txt"])
    assert (tmp_path / "a.txt").read_text() == "one"


def test_an_output_below_a_file_is_refused_with_the_file_named(tmp_path: Path, make) -> None:
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(ArtefactError, match=r"cannot write a.txt/below.partial: \S*a.txt is a file"):
        make("gather", "a.txt/below", train_file=["a.txt"])


def test_a_result_of_other_settings_is_refused_with_the_difference_and_replaced_by_force(artefact: Artefact, make) -> None:
    before = contents(artefact.directory)
    with pytest.raises(ArtefactError) as caught:
        make("gather", "out/gather", train_file=["a.txt"], copies=3, upper=True)
    assert "differs in upper (False there, True now), copies (2 there, 3 now)" in str(caught.value)
    assert "--force" in str(caught.value)
    assert contents(artefact.directory) == before
    replaced = make("gather", "out/gather", force=True, train_file=["a.txt"], copies=3, upper=True)
    assert replaced.manifest.metrics["texts"]["count"] == 3
    assert Artefact.open(artefact.directory, "gather").damaged(hashes=True) == []
    assert {path.name for path in artefact.directory.parent.iterdir()} - {".hashes.json"} == {"gather"}


def test_a_result_of_other_inputs_is_refused_as_such(artefact: Artefact, make, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("other text", encoding="utf-8")
    with pytest.raises(ArtefactError, match="differs in its inputs"):
        make("gather", "out/gather", train_file=["a.txt"], copies=2)


def test_a_result_of_another_stage_in_the_output_is_refused(artefact: Artefact, make) -> None:
    with pytest.raises(ArtefactError, match="differs in its stage"):
        make("measure", "out/gather", corpus=str(artefact.directory))


def test_the_same_again_does_nothing_and_says_so(artefact: Artefact, make, capsys: pytest.CaptureFixture[str]) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in artefact.directory.rglob("*")}
    again = make("gather", "out/gather", train_file=["a.txt"], copies=2, pause=0.001)
    assert "already there, nothing to do: out/gather" in capsys.readouterr().out
    assert again.manifest == artefact.manifest
    assert {path: path.stat().st_mtime_ns for path in artefact.directory.rglob("*")} == stamps


def test_a_damaged_result_is_made_again(artefact: Artefact, make) -> None:
    before = contents(artefact.directory)
    (artefact.directory / "texts/1.txt").unlink()
    make("gather", "out/gather", train_file=["a.txt"], copies=2)
    assert contents(artefact.directory) == before


def test_a_stage_that_fails_leaves_no_result_and_the_older_one_untouched(artefact: Artefact, make, tmp_path: Path) -> None:
    before = contents(artefact.directory)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="all texts are empty"):
        make("gather", "out/gather", force=True, train_file=["empty.txt"])
    with pytest.raises(DataError, match="all texts are empty"):
        make("gather", "out/other", train_file=["empty.txt"])
    assert contents(artefact.directory) == before
    assert Artefact.peek(tmp_path / "out/other") is None


def test_a_missing_raw_file_is_named_with_where_it_was_looked_for(make, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=rf"train_file: 'gone-\*.txt' is no file.*{tmp_path}"):
        make("gather", "out", train_file=["gone-*.txt"])
    with pytest.raises(DataError, match="train_file: 'nothing' is an empty directory"):
        make("gather", "out", train_file=["nothing"])


def test_the_manifest_is_written_after_every_other_file_and_before_the_rename(
    make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("one")
    order: list[str] = []

    def written(path: Path, text: str) -> None:
        if path.name == "manifest.json":
            listed = {record["path"] for record in json.loads(text)["files"]}
            order.append("manifest" if all((path.parent / name).is_file() for name in listed) else "manifest too early")
            assert path.parent.name == "out.partial"
            assert not (tmp_path / "out").exists()
        write_synced(path, text)

    def published(partial: Path, output: Path, scratch: tuple[str, ...] = ()) -> None:
        order.append("publish")
        publish(partial, output, scratch)

    monkeypatch.setattr(stage_module, "write_synced", written)
    monkeypatch.setattr(stage_module, "publish", published)
    make("gather", "out", train_file=["a.txt"])
    assert order == ["manifest", "publish"]


def test_every_file_is_synced_before_the_manifest(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("one")
    synced: list[str] = []
    monkeypatch.setattr(stage_module, "sync", lambda path: synced.append(path.name))
    before_manifest: list[str] = []

    def written(path: Path, text: str) -> None:
        if path.name == "manifest.json":
            before_manifest.extend(synced)
        write_synced(path, text)

    monkeypatch.setattr(stage_module, "write_synced", written)
    artefact = make("gather", "out", train_file=["a.txt"])
    assert {Path(record.path).name for record in artefact.manifest.files} <= set(before_manifest)
    assert {"out.partial", "texts"} <= set(synced) - set(before_manifest)


def test_results_can_be_moved_together_and_still_find_each_other(artefact: Artefact, make, tmp_path: Path) -> None:
    make("measure", "out/measure", corpus=str(artefact.directory))
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    moved = Artefact.open(tmp_path / "elsewhere/measure", "measure")
    earlier = moved.input("corpus")
    assert earlier is not None
    assert earlier.directory == tmp_path / "elsewhere/gather"


def test_an_input_that_was_made_again_with_other_bytes_is_no_longer_the_input(artefact: Artefact, make) -> None:
    measured = make("measure", "out/measure", corpus=str(artefact.directory))
    assert measured.input("corpus") is not None
    make("gather", "out/gather", force=True, train_file=["a.txt"], copies=1)
    assert measured.input("corpus") is None
    assert measured.input("no_such_port") is None


def test_the_nearest_artefact_above_a_file_is_its_own(artefact: Artefact, tmp_path: Path) -> None:
    found = enclosing(artefact.directory / "texts/0.txt")
    assert found is not None
    assert found.directory == artefact.directory
    assert enclosing(tmp_path) is None


def test_a_file_changed_at_once_with_size_and_time_kept_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    hashes = FileHashes(tmp_path / "hashes.json")
    path.write_text("one")
    first, status = hashes.record(path), path.stat()
    path.write_text("two")
    monkeypatch.setattr(Path, "stat", lambda *_, **__: status)  # as under a clock with steps of two seconds
    assert hashes.record(path).sha256 == sha256_of(path) != first.sha256


def _aged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clock of the hashes run an hour ahead, so that the file is no longer new."""
    monkeypatch.setattr("llmkit.pipeline.artefact.time.time_ns", lambda: path.stat().st_ctime_ns + 3600 * 10**9)


def test_a_file_that_is_as_it_was_is_not_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    _aged(path, monkeypatch)
    hashes = FileHashes(tmp_path / "below/hashes.json")
    first = hashes.record(path)
    hashes.save()
    monkeypatch.setattr("llmkit.pipeline.artefact.sha256_of", lambda _: pytest.fail("hashed again"))
    assert FileHashes(tmp_path / "below/hashes.json").record(path) == first


def test_a_remembered_file_with_other_bytes_is_hashed_again_though_size_and_time_were_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    os.utime(path, ns=(10**18, 10**18))
    _aged(path, monkeypatch)
    hashes = FileHashes(tmp_path / "hashes.json")
    first = hashes.record(path)
    other = tmp_path / "b.txt"  # as rsync -t, tar and cp -p do
    other.write_text("two")
    os.utime(other, ns=(10**18, 10**18))
    os.replace(other, path)
    assert hashes.record(path).sha256 == sha256_of(path) != first.sha256


@pytest.mark.parametrize("content", ["", "[1]", "{", "null"])
def test_a_broken_memory_of_hashes_is_only_forgotten(tmp_path: Path, content: str) -> None:
    (tmp_path / "hashes.json").write_text(content)
    (tmp_path / "a.txt").write_text("one")
    assert FileHashes(tmp_path / "hashes.json").record(tmp_path / "a.txt").sha256 == sha256_of(tmp_path / "a.txt")


def test_the_toys_are_loaded_once(artefact: Artefact) -> None:
    """`Stage.config` names a module; were it loaded a second time, isinstance checks on settings would fail."""
    assert toy_stages.STAGES["gather"].config_class is toy_stages.GatherConfig
