"""`llmkit tokens verify`: whole shards pass, and every kind of damage is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit import cli
from llmkit.pipeline.artefact import Artefact
from llmkit.tokens.shards import Index
from llmkit.tokens.verify import faults


@pytest.fixture
def shards(run: Any, corpus: Artefact, tokenizer: Artefact, place: Path, tmp_path: Path) -> Path:
    """Several shards to a split, to be damaged."""
    made = place / "cut-tokens"
    if not made.exists():
        run("tokenize", made, corpus=corpus.directory, tokenizer=tokenizer.directory, tokens_per_shard=20_000)
    return Path(shutil.copytree(made, tmp_path / "shards"))


def without_manifest(shards: Path) -> Path:
    (shards / "manifest.json").unlink()
    return shards


def change_index(shards: Path, **values: Any) -> None:
    path = shards / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_offsets(shards: Path, name: str, change: Any) -> None:
    path = shards / f"{name}.offsets.npy"
    offsets = np.load(path)
    np.save(path, change(offsets))


def test_whole_shards_pass(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(Index.load(shards).splits["train"]) > 1
    assert cli.main(["tokens", "verify", str(shards)]) == 0
    assert "every token, boundary and hash" in capsys.readouterr().out
    assert list(faults(without_manifest(shards))) == []


def test_whole_shards_pass_a_few_tokens_at_a_time(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.tokens.verify._AT_ONCE", 3)
    assert list(faults(shards)) == []


def test_one_flipped_bit_is_found(shards: Path) -> None:
    path = shards / "train-00001.bin"
    content = bytearray(path.read_bytes())
    content[1001] ^= 64  # of the upper byte: an id far outside
    path.write_bytes(content)
    found = list(faults(shards))
    assert len(found) == 2
    assert found[0].startswith("train-00001.bin has another sha256 than the index says")
    assert found[1] == "train-00001.bin: ids outside the vocabulary of 512: 1, the first is token 500"


def test_a_cut_file_is_found(shards: Path) -> None:
    with (shards / "train-00000.bin").open("rb+") as file:
        file.truncate(1001)
    found = list(faults(shards))
    assert any(fault.startswith("train-00000.bin has 1,001 bytes, the index says") for fault in found)
    assert any("documents that do not end with the EOS" in fault for fault in found)


def test_a_missing_file_is_found_and_the_others_are_still_checked(shards: Path) -> None:
    without_manifest(shards)
    (shards / "train-00000.bin").unlink()
    (shards / "train-00001.offsets.npy").unlink()
    (shards / "validation-00000.offsets.npy").write_bytes(b"not an array")
    found = list(faults(shards))
    assert found[:2] == ["train-00000.bin is missing", "train-00001.offsets.npy is missing"]
    assert found[2].startswith("validation-00000.offsets.npy cannot be read")
    assert len(found) == 3


def test_another_tokenizer_is_found_with_both_hashes(shards: Path) -> None:
    path = without_manifest(shards) / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"].pop()
    path.write_text(json.dumps(content))
    found = list(faults(shards))
    assert len(found) == 1
    assert found[0].startswith("tokenizer: its hash is ")
    assert found[0].endswith(Index.load(shards).tokenizer_sha256[:16])
    shutil.rmtree(shards / "tokenizer")
    assert "tokenizer.json cannot be read" in next(faults(shards))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda offsets: np.concatenate([[0], offsets[2:3], offsets[1:2], offsets[3:]]),
            "documents that end where they start, or before: 1",
        ),
        (
            lambda offsets: np.concatenate([[0], offsets[1:2] - 1, offsets[2:]]),
            "documents that do not end with the EOS, token 0: 1",
        ),
        (lambda offsets: np.concatenate([offsets[:-1], offsets[-1:] + 9]), "the index says from 0 to"),
        (lambda offsets: np.concatenate([offsets[:1] + 1, offsets[1:]]), "goes from 1 to"),
        (lambda offsets: offsets[1:], "documents need int64 of shape"),
        (lambda offsets: offsets.astype(np.int32), "holds int32"),
    ],
)
def test_damaged_boundaries_are_found_by_what_is_wrong_with_them(shards: Path, change: Any, says: str) -> None:
    change_offsets(without_manifest(shards), "train-00000", change)
    assert any(says in fault and "train-00000" in fault for fault in faults(shards))


def test_boundaries_that_make_sense_but_are_not_those_written_are_found_by_the_manifest(shards: Path) -> None:
    path = shards / "train-00000.offsets.npy"
    with path.open("ab") as file:
        file.write(b"\0")
    assert [fault for fault in faults(shards) if fault.startswith(path.name)]


def test_an_index_that_cannot_be_right_is_found(shards: Path) -> None:
    without_manifest(shards)
    change_index(shards, eos_token_id=512)
    assert "index.json: eos_token_id is 512, outside the vocabulary of 512" in list(faults(shards))
    change_index(shards, dtype="float32")
    assert list(faults(shards)) == ["index.json: dtype is 'float32', must be uint16 or uint32"]


def test_the_command_names_every_fault_and_ends_with_2(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shards / "train-00000.bin").unlink()
    (shards / "llmkit.yaml").unlink()
    assert cli.main(["tokens", "verify", str(shards)]) == 2
    said = capsys.readouterr().err
    assert "has 2 faults" in said
    assert "train-00000.bin is missing" in said
    assert "llmkit.yaml is missing" in said
    assert cli.main(["tokens", "verify", str(shards / "nowhere")]) == 2
    assert "is not an index of token shards" in capsys.readouterr().err
