"""Any file or number leads back to the raw bytes; what was changed on the way is said, and the exit code tells."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from llmkit.errors import ArtefactError
from llmkit.pipeline.artefact import Artefact, sha256_of
from llmkit.pipeline.trace import find_number, trace, walk

REPORT = "runs/toy/combine/report.html"


@pytest.fixture(autouse=True)
def made(go) -> None:
    go()


def test_a_file_leads_back_to_the_raw_bytes_through_every_stage(command, tmp_path: Path) -> None:
    said = command("trace", REPORT)
    assert said.code == 0
    assert said.err == ""
    lines = said.out.splitlines()
    assert lines[0] == f"{REPORT}: sha256 {sha256_of(tmp_path / REPORT)[:16]} as recorded"
    order = re.findall(r"(?m)^ *(?:\w+: )?(\w+) [0-9a-f]{12}  runs/", said.out)
    assert order == ["combine", "measure", "gather", "learn"]
    for name in ("combine", "measure", "learn", "gather"):
        artefact = Artefact.open(tmp_path / "runs/toy" / name, name)
        assert sum(f"{name} {artefact.manifest.fingerprint[:12]}" in line for line in lines) == 1, "each once"
        assert artefact.manifest.command in said.out
    for name in ("a.txt", "b.txt"):
        assert f"{tmp_path}/data/{name}  sha256 {sha256_of(tmp_path / 'data' / name)[:16]}  as recorded" in said.out
    assert "alphabet  sha256 version-1  recorded by version" in said.out


@pytest.mark.parametrize("target", ["runs/toy/combine", "runs/toy/combine/manifest.json", "runs/toy/gather/texts"])
def test_a_directory_or_manifest_can_be_traced(command, target: str) -> None:
    said = command("trace", target)
    assert said.code == 0
    assert "data/a.txt" in said.out


def test_a_changed_file_is_found(command, tmp_path: Path) -> None:
    path = tmp_path / REPORT
    path.write_text(path.read_text().replace("120", "999"))
    said = command("trace", REPORT)
    assert said.code == 1
    assert said.out.splitlines()[0].endswith("is NOT that of the file: it was changed since")
    assert "DAMAGED: report.html has another sha256 than the manifest says" in said.out


def test_a_changed_file_of_an_earlier_stage_is_found_from_the_end_of_the_chain(command, tmp_path: Path) -> None:
    (tmp_path / "runs/toy/gather/texts/0.txt").write_text("forged")
    said = command("trace", REPORT)
    assert said.code == 1
    assert "DAMAGED: texts/0.txt has 6 bytes" in said.out


def test_a_changed_raw_file_is_found(command, tmp_path: Path) -> None:
    (tmp_path / "data/b.txt").write_text("other")
    said = command("trace", REPORT)
    assert said.code == 1
    assert f"{tmp_path}/data/b.txt" in said.out
    assert [line.rsplit(maxsplit=1)[1] for line in said.out.splitlines() if "/data/" in line] == ["recorded", "changed"]


def test_a_raw_file_that_is_gone_is_said(command, tmp_path: Path) -> None:
    (tmp_path / "data/b.txt").unlink()
    said = command("trace", REPORT)
    assert said.code == 1, "it cannot be checked"
    assert "no longer there" in next(line for line in said.out.splitlines() if "data/b.txt" in line)


def test_an_earlier_result_that_was_removed_is_named(command, tmp_path: Path) -> None:
    removed = (tmp_path / "runs/toy/learn").resolve()
    fingerprint = Artefact.open(removed, "learn").manifest.fingerprint
    shutil.rmtree(removed)
    said = command("trace", REPORT)
    assert said.code == 1
    assert f"  right: learn {fingerprint[:12]} is gone or was made again since" in said.out
    assert "data/a.txt" in said.out, "the other way back is still walked"


def test_an_earlier_result_that_was_made_again_with_other_bytes_is_named(command, tmp_path: Path) -> None:
    path = (tmp_path / "runs/toy/learn").resolve() / "manifest.json"
    manifest = json.loads(path.read_text())
    next(record for record in manifest["files"] if record["path"] == "model.txt")["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    said = command("trace", REPORT)
    assert said.code == 1
    assert "is gone or was made again since" in said.out


def test_a_file_that_no_stage_wrote_is_not_vouched_for(command, tmp_path: Path) -> None:
    (tmp_path / "runs/toy/combine/notes.txt").write_text("mine")
    said = command("trace", "runs/toy/combine/notes.txt")
    assert said.code == 1
    assert "not a file that the stage wrote" in said.out


@pytest.mark.parametrize(
    ("number", "shown"), [("train.total", "120"), ("mean", "60.0"), ("train.mean", "60.0"), ("test.total", "0")]
)
def test_a_number_is_looked_up_by_its_name_or_its_last_part(command, number: str, shown: str) -> None:
    said = command("trace", "runs/toy/measure", number)
    assert said.code == 0
    assert f"{number} = {shown}  (recorded in runs/toy/artefacts/measure-" in said.out


@pytest.mark.parametrize("number", ["total", "accuracy", "train", ""])
def test_a_number_that_is_not_there_or_not_the_only_one_is_refused_with_those_there_are(command, number: str) -> None:
    said = command("trace", "runs/toy/measure", number)
    assert said.code == 2
    assert f"measure has no single number {number!r}; it has: train.total, " in said.err
    assert "test.total" in said.err
    assert "Traceback" not in said.err


def test_a_target_that_is_no_result_is_refused(command, tmp_path: Path) -> None:
    assert command("trace", "nowhere").err == "llmkit: nowhere does not exist\n"
    said = command("trace", "data/a.txt")
    assert said.code == 2
    assert "data/a.txt lies in no result of llmkit" in said.err


def test_results_that_were_moved_are_still_walked_to_the_end(tmp_path: Path) -> None:
    shutil.move(tmp_path / "runs", tmp_path / "archive")
    lines: list[str] = []
    assert trace(tmp_path / "archive/toy/combine/report.html", say=lines.append)
    assert not [line for line in lines if "gone" in line]


def test_a_walk_gives_each_result_once_nearest_first(tmp_path: Path) -> None:
    nodes = list(walk(Artefact.open(tmp_path / "runs/toy/combine", "combine")))
    assert [(depth, port, node.manifest.stage) for depth, port, node in nodes] == [
        (0, "", "combine"),
        (1, "left", "measure"),
        (2, "corpus", "gather"),
        (1, "right", "learn"),
    ]


def test_a_result_without_numbers_says_so(tmp_path: Path) -> None:
    artefact = Artefact.open(tmp_path / "runs/toy/combine", "combine")
    artefact.manifest.metrics = {}
    with pytest.raises(ArtefactError, match="it has: none"):
        find_number(artefact, "score")
