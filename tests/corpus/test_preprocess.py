from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.config import Source, fields_of, resolve
from llmkit.corpus.documents import Document, read_batches
from llmkit.corpus.normalise import normalise
from llmkit.corpus.preprocess import preprocess
from llmkit.corpus.settings import PreprocessConfig
from llmkit.errors import ConfigError, DataError
from llmkit.pipeline.artefact import FileHashes
from llmkit.pipeline.stage import Workspace, identify
from llmkit.stages import STAGES


@dataclass
class Result:
    """What a run of the stage left."""

    directory: Path
    metrics: dict[str, Any]
    said: list[str] = field(default_factory=list)

    @property
    def train(self) -> list[Document]:
        return self._split("train")

    @property
    def validation(self) -> list[Document]:
        return self._split("validation")

    def _split(self, split: str) -> list[Document]:
        return [Document(**row) for batch in read_batches(self.directory, split) for row in batch.to_pylist()]

    @property
    def documents(self) -> list[Document]:
        return self.train + self.validation

    @property
    def texts(self) -> list[str]:
        return sorted(document.text for document in self.documents)

    @property
    def rejects(self) -> list[dict[str, str]]:
        return [row for batch in read_batches(self.directory, "rejects") for row in batch.to_pylist()]


def run_stage(directory: Path, **settings: Any) -> Result:
    """Run `preprocess` into a new directory."""
    directory.mkdir(parents=True)
    config = resolve(PreprocessConfig, [Source(settings, {})]).config
    said: list[str] = []
    metrics = preprocess(config, Workspace(directory=directory, say=said.append))
    return Result(directory, metrics, said)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    return lambda **settings: run_stage(tmp_path / "out", **settings)


Run = Callable[..., Result]


def lines(path: Path, rows: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# --------------------------------------------------------------------------------------------------------------------
# What is kept and what is not


def test_documents_rejects_and_figures(run: Run, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", ["你好，世界。", "hello ", "hello", "  ", "bye"])
    result = run(train_file=path, validation_fraction=0)
    assert [(row.id, row.text) for row in result.train] == [
        ("a.jsonl:1", "你好，世界。"),
        ("a.jsonl:2", "hello"),
        ("a.jsonl:5", "bye"),
    ]
    assert [(row["id"], row["rule"], row["value"]) for row in result.rejects] == [
        ("a.jsonl:3", "exact duplicate", "a.jsonl:2"),
        ("a.jsonl:4", "too short", "0"),
    ]
    expected = {"documents": 3, "characters": 14, "bytes": 26}
    assert {key: result.metrics[key] for key in expected} == expected
    assert result.metrics["splits"] == {"train": expected, "validation": {"documents": 0, "characters": 0, "bytes": 0}}
    assert result.metrics["sources"] == {"a.jsonl": expected}
    assert result.metrics["removed"] == {"exact duplicate": 1, "too short": 1}
    accounted = {"read": 5, "kept": 3, "rejected": 1, "merged": 1}
    assert {key: result.metrics[key] for key in accounted} == accounted
    assert result.metrics["bad_rows"] == result.metrics["skipped_files"] == 0
    assert json.loads((result.directory / "statistics.json").read_text(encoding="utf-8"))["metrics"] == result.metrics
    assert "kept 3 of 5 rows" in result.said[0]
    assert "exact duplicate 1, too short 1" in result.said[0]
    assert not (result.directory / "validation-00000.parquet").exists()


def test_duplicates_may_stay(run: Run, tmp_path: Path) -> None:
    result = run(train_file=lines(tmp_path / "a.jsonl", ["x", "x", "y"]), deduplicate=False)
    assert result.texts == ["x", "x", "y"]


def test_min_chars(run: Run, tmp_path: Path) -> None:
    result = run(train_file=lines(tmp_path / "a.jsonl", ["他走了。", "他", "went"]), min_chars=4)
    assert result.texts == ["went", "他走了。"]


def test_the_default_corpus_needs_nothing(run: Run) -> None:
    result = run()
    assert set(result.metrics["sources"]) == {"stdlib", "topics"}
    assert result.metrics["splits"]["train"]["bytes"] > 1_500_000
    assert 5 <= result.metrics["splits"]["validation"]["documents"] <= 50


def test_sources_can_be_combined(run: Run, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "b.txt").write_text("some text\n", encoding="utf-8")
    pattern = str(tmp_path / "text*" / "*.txt")
    result = run(train_file=[lines(tmp_path / "a.jsonl", ["x", "y"]), pattern], embedded_packages=["pyyaml"])
    assert set(result.metrics["sources"]) == {"a.jsonl", "b.txt", "pyyaml"}


def test_many_sources_are_added_up(run: Run, tmp_path: Path) -> None:
    for number in range(130):
        (tmp_path / f"{number}.txt").write_text(f"text {number}", encoding="utf-8")
    sources = run(train_file=str(tmp_path)).metrics["sources"]
    assert len(sources) == 101
    assert sources["(30 smaller sources)"]["documents"] == 30


# --------------------------------------------------------------------------------------------------------------------
# Bad rows


def test_bad_rows_are_set_aside(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "bro\n{"text": "\\ud800"}\n{"text": "fine"}\n{"text": "well"}\n', encoding="utf-8")
    result = run(train_file=str(path), max_bad_fraction=0.5)
    assert result.texts == ["fine", "well"]
    assert result.metrics["bad_rows"] == 2
    assert [(row["id"], row["rule"]) for row in result.rejects] == [("a.jsonl:1", "bad row"), ("a.jsonl:2", "bad row")]
    assert result.rejects[1]["value"] == "a lone surrogate (\\ud800) at character 0"
    assert any(f"{path}:1: not JSON" in line for line in result.said)


def test_too_many_bad_rows_name_the_first_three(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + "broken\n" * 4, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        run(train_file=str(path))
    message = str(caught.value)
    assert message.startswith("4 of 5 rows cannot be used, more than max_bad_fraction (0.01)")
    assert [f"{path}:{line}: not JSON" in message for line in (2, 3, 4, 5)] == [True, True, True, False]


def test_too_many_bad_rows_stop_a_long_run_early(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' * 900 + "broken\n" * 50_000, encoding="utf-8")
    with pytest.raises(DataError, match=r"^901 of 1,801 rows cannot be used, more than max_bad_fraction \(0\.01\)"):
        run(train_file=str(path))


def test_bad_rows_are_judged_by_their_share_of_all(run: Run, tmp_path: Path) -> None:
    """And not by that of the file or the thousand rows that they stand in."""
    path = tmp_path / "a.jsonl"
    path.write_text("broken\n" * 40 + '{"text": "fine"}\n' * 5_000, encoding="utf-8")
    assert run(train_file=str(path), task_bytes=1 << 15).metrics["bad_rows"] == 40


def test_a_file_in_another_encoding_stops_with_the_hint(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("中文".encode("gb18030"))
    with pytest.raises(DataError, match=r"a\.txt:1: line 1: not utf-8 at byte 0 .*--encoding gb18030"):
        run(train_file=str(path))


def test_an_empty_corpus_says_what_was_read(run: Run, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", ["", " "])
    with pytest.raises(DataError, match=r"no document is left for train: 2 rows were read from .*a\.jsonl; .*short 2"):
        run(train_file=path)


# --------------------------------------------------------------------------------------------------------------------
# The validation split


def test_one_document_is_for_training_and_that_is_said(run: Run, tmp_path: Path) -> None:
    result = run(train_file=lines(tmp_path / "a.jsonl", ["x"]))
    assert (len(result.train), len(result.validation)) == (1, 0)
    assert any("the validation split is empty, since there is only one document" in line for line in result.said)
    chosen = run_stage(tmp_path / "chosen", train_file=lines(tmp_path / "a.jsonl", ["x", "y"]), validation_fraction=0)
    assert len(chosen.train) == 2
    assert not any("warning" in line for line in chosen.said)


def test_the_choice_depends_on_text_and_seed_only(tmp_path: Path) -> None:
    rows = [f"document {number}" for number in range(500)]
    first = run_stage(tmp_path / "1", train_file=lines(tmp_path / "a.jsonl", rows), validation_fraction=0.1)
    other = run_stage(tmp_path / "2", train_file=lines(tmp_path / "b.jsonl", rows[:250:-1]), validation_fraction=0.1)
    chosen = {row.text for row in first.validation}
    assert 20 < len(chosen) < 90
    assert {row.text for row in other.validation} == chosen & set(rows[251:])
    seeded = run_stage(tmp_path / "3", train_file=str(tmp_path / "a.jsonl"), validation_fraction=0.1, seed=1)
    assert {row.text for row in seeded.validation} != chosen


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 6), st.sampled_from([0.0, 1e-9, 0.5]), st.integers(0, 50), st.randoms())
def test_both_splits_have_a_document(documents: int, fraction: float, seed: int, random: Any) -> None:
    """Whatever the hashes say, and whatever the order is; each document lies in a part of its own."""
    with tempfile.TemporaryDirectory() as name:
        rows = [f"text {number}" for number in range(documents + 1)]
        splits = []
        for turn in range(2):
            files = [lines(Path(name, f"{turn}-{number}.jsonl"), [row]) for number, row in enumerate(rows)]
            settings = {"validation_fraction": fraction, "seed": seed, "task_bytes": 4096, "workers": 1}
            kept = run_stage(Path(name, str(turn)), train_file=files, **settings)
            splits.append(({row.text for row in kept.train}, {row.text for row in kept.validation}))
            random.shuffle(rows)
        assert splits[0] == splits[1]
        assert splits[0][0] | splits[0][1] == set(rows)
        assert splits[0][0]
        assert bool(splits[0][1]) == bool(documents and fraction)


def test_a_validation_file_is_kept_out_of_training(run: Run, tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    train = lines(tmp_path / "a.jsonl", ["x", "y ", "z", "z"])
    validation = lines(tmp_path / "held" / "a.jsonl", ["y", "w", "w"])
    result = run(train_file=train, validation_file=validation)
    assert [row.text for row in result.validation] == ["y", "w"]
    assert [row.text for row in result.train] == ["x", "z"]
    rejects = [(row["rule"], row["id"], row["value"]) for row in result.rejects]
    name = f"{tmp_path.name}/a.jsonl"
    assert rejects == [
        ("exact duplicate", "held/a.jsonl:3", "held/a.jsonl:2"),
        ("in validation", f"{name}:2", "held/a.jsonl:1"),
        ("exact duplicate", f"{name}:4", f"{name}:3"),
    ]


def test_a_validation_file_is_kept_out_also_when_duplicates_stay(run: Run, tmp_path: Path) -> None:
    train, validation = lines(tmp_path / "a.jsonl", ["x", "x", "y"]), lines(tmp_path / "b.jsonl", ["y", "y"])
    result = run(train_file=train, validation_file=validation, deduplicate=False)
    assert [row.text for row in result.train] == ["x", "x"]
    assert [row.text for row in result.validation] == ["y", "y"]


def test_training_on_the_validation_file_leaves_nothing(run: Run, tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", ["x", "y"])
    with pytest.raises(DataError, match=r"no document is left for train: 4 rows .*in validation 2"):
        run(train_file=path, validation_file=path)
    with pytest.raises(DataError, match=r"no document is left for validation"):
        run_stage(tmp_path / "2", train_file=path, validation_file=lines(tmp_path / "b.jsonl", [""]))


# --------------------------------------------------------------------------------------------------------------------
# Nothing is lost, and the same gives the same


ROW = st.sampled_from(
    ["{", '{"text": 1}', '{"text": ""}', '{"text": "\\udc00"}', '{"text": "a"}', '{"text": "b\\u0000 "}']
) | (st.text(max_size=8).map(lambda text: json.dumps({"text": text})))


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(ROW, max_size=25), deduplicate=st.booleans(), min_chars=st.integers(1, 3))
def test_every_row_is_kept_rejected_or_bad(rows: list[str], deduplicate: bool, min_chars: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "a.jsonl")
        path.write_text("".join(row + "\n" for row in ['{"text": "always kept"}', *rows]), encoding="utf-8")
        settings = {"train_file": str(path), "max_bad_fraction": 1, "deduplicate": deduplicate, "min_chars": min_chars}
        result = run_stage(Path(name, "out"), **settings)
        kept, removed = result.documents, result.rejects
        ids = [document.id for document in kept] + [row["id"] for row in removed]
        assert sorted(ids) == sorted(f"a.jsonl:{line}" for line in range(1, len(rows) + 2))
        metrics = result.metrics
        assert metrics["read"] == metrics["kept"] + metrics["rejected"] + metrics["merged"] == len(rows) + 1
        assert Counter(row["rule"] for row in removed) == Counter(metrics["removed"])
        assert metrics["removed"].get("bad row", 0) == metrics["bad_rows"]
        assert all(normalise(document.text) == document.text and len(document.text) >= min_chars for document in kept)
        if deduplicate:
            assert len({document.text for document in kept}) == len(kept)


def test_the_same_settings_give_the_same_bytes(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [f"document {number % 700}" for number in range(2000)])
    results = [run_stage(tmp_path / name, train_file=path) for name in ("1", "2")]
    files = [{file.name: file.read_bytes() for file in result.directory.iterdir() if file.is_file()} for result in results]
    assert files[0] == files[1]
    assert set(files[0]) == {
        "train-00000.parquet",
        "validation-00000.parquet",
        "rejects-00000.parquet",
        "statistics.json",
    }


def test_its_own_result_can_be_read_again(tmp_path: Path) -> None:
    first = run_stage(tmp_path / "1", train_file=lines(tmp_path / "a.jsonl", ["x", "y", "z"]))
    again = run_stage(tmp_path / "2", train_file=str(tmp_path / "1" / "*-*.parquet"))
    assert again.texts == first.texts
    table = pyarrow.parquet.read_table(tmp_path / "2" / "train-00000.parquet")
    assert table.schema.field("metadata").type == pyarrow.string()


# --------------------------------------------------------------------------------------------------------------------
# Settings


def config(**values: Any) -> PreprocessConfig:
    return resolve(PreprocessConfig, [Source(values, {})]).config


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"validation_fraction": 2}, "validation_fraction is 2.0; it is a share"),
        ({"max_bad_fraction": -0.1}, "max_bad_fraction is -0.1"),
        ({"min_chars": 0}, "min_chars is 0; 1 is the least"),
        ({"max_document_chars": 5}, "max_document_chars is 5"),
        ({"encoding": "utf8mb4"}, "encoding: 'utf8mb4' is unknown"),
        ({"encoding": "base64"}, "encoding: 'base64' is unknown"),
        ({"encoding": "utf-16"}, "iconv -f utf-16 -t UTF-8"),
        ({"encoding": "utf-8-sig"}, "write utf-8"),
        ({"validation_file": "a.txt"}, "nothing to train on"),
        ({"embedded_packages": []}, "there is nothing to read"),
        ({"embedded_packages": ["numpi"]}, "did you mean 'numpy'?"),
        ({"dataset_config_name": "en"}, "without dataset_name"),
        ({"sample_by": "sentence"}, "is not one of document, paragraph, line"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**values)
    assert sentence in str(caught.value)


def test_every_setting_is_explained() -> None:
    assert [name for name, spec in fields_of(PreprocessConfig).items() if not spec.doc] == []


def test_raw_inputs(tmp_path: Path) -> None:
    assert set(config().raw_inputs()) == {"embedded:stdlib"}
    assert config(train_file="a.txt").raw_inputs() == {}
    assert set(config(train_file="a.txt", embedded_packages=["numpy"]).raw_inputs()) == {"embedded:numpy"}
    (tmp_path / "data.jsonl").write_text("{}", encoding="utf-8")
    before = config(dataset_name=str(tmp_path)).raw_inputs()
    (tmp_path / "data.jsonl").write_text("{} ", encoding="utf-8")
    assert config(dataset_name=str(tmp_path)).raw_inputs() != before


def test_what_makes_a_result_another(tmp_path: Path) -> None:
    """Of named sources: content, names, order, weights and licences do, and not where they lie or when they were written."""
    for place in ("here", "there"):
        (tmp_path / place / "a").mkdir(parents=True)
        (tmp_path / place / "a" / "x.txt").write_text("one", encoding="utf-8")
        (tmp_path / place / "b.txt").write_text("two", encoding="utf-8")
    os.utime(tmp_path / "there" / "b.txt", (1, 1))

    def mark(place: str = "here", order: str = "ab", **of_a: Any) -> str:
        found = {"a": {"files": str(tmp_path / place / "a"), **of_a}, "b": {"files": [str(tmp_path / place / "b.txt")]}}
        made = config(sources={name: found[name] for name in order})
        return identify(STAGES["preprocess"], made, FileHashes(tmp_path / "hashes")).fingerprint

    before = mark()
    assert before == mark() == mark("there") == mark(weight=1)
    others = [mark(order="ba"), mark(order="a"), mark(weight=0.5), mark(license="MIT")]
    (tmp_path / "here" / "b.txt").write_text("2wo", encoding="utf-8")
    assert len({before, mark(), *others}) == 6


def test_what_makes_no_difference_to_a_result(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    (tmp_path / "b.txt").write_text("a test", encoding="utf-8")

    def mark(**values: Any) -> str:
        made = config(train_file=str(tmp_path / "a.txt"), **values)
        return identify(STAGES["preprocess"], made, FileHashes(tmp_path / "hashes")).fingerprint

    assert mark() == mark(workers=3, executor="ray", max_bad_fraction=0.5)
    held_out = mark(decontaminate=str(tmp_path / "b.txt"))
    assert held_out != mark()
    (tmp_path / "b.txt").write_text("another", encoding="utf-8")
    assert mark(decontaminate=str(tmp_path / "b.txt")) != held_out


def test_the_settings_are_light_to_read() -> None:
    """The command line reads this class before it knows what to do."""
    heavy = "('pyarrow', 'numpy', 'torch', 'datasets', 'transformers', 'pandas')"
    code = f"import sys, llmkit.corpus.settings; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
