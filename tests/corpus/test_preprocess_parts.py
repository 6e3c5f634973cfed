"""The stage `preprocess` in several parts: killed, in several processes and on Ray, the result is the same, byte for byte."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.config import Source, resolve
from llmkit.corpus import parts
from llmkit.corpus.documents import read_batches, shards
from llmkit.corpus.plan import make_plan, payload
from llmkit.corpus.preprocess import SCRATCH, _within, preprocess
from llmkit.corpus.settings import PreprocessConfig
from llmkit.errors import DataError
from llmkit.pipeline.stage import Workspace

KILLS = 20


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def corpus(path: Path, documents: int = 1200) -> str:
    """Documents of which some repeat others, exactly, nearly or in a paragraph, over many parts."""
    words = ["river", "stone", "morning", "light", "market", "train", "window", "paper", "letter", "garden", "春天", "河流"]
    dice = random.Random(7)
    rows: list[dict[str, Any]] = []
    for number in range(documents):
        text = " ".join(dice.choice(words) for _ in range(dice.randrange(5, 120)))
        if number % 10 == 3:
            text = rows[dice.randrange(len(rows))]["text"]
        elif number % 10 == 5:
            text = f"{rows[dice.randrange(len(rows))]['text']} once more"
        elif number % 10 == 7:
            text += "\n\nAll rights are with the people of the village, and have been for ever.\n\n" + text[::-1]
        rows.append({"text": text, "number": number, "mail": "a@example.com"})
    return write(path, rows)


SETTINGS: dict[str, Any] = {
    "task_bytes": 65_536,
    "near_duplicates": True,
    "deduplicate_paragraphs": True,
    "filters": ["gopher_repetition"],
    "validation_fraction": 0.1,
}


def command(train_file: str, output: Path, **more: Any) -> list[str]:
    words = [sys.executable, "-m", "llmkit", "preprocess", "--train_file", train_file, "--output_dir", str(output)]
    for name, value in {**SETTINGS, **more}.items():
        words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return words


def contents(directory: Path) -> dict[str, bytes]:
    """What must not depend on how the work was done: all but the manifest, which tells of it, and the settings."""
    apart = ("manifest.json", "llmkit.yaml", "report.html", "datasheet.md")
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.name not in apart}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, bytes]]:
    """The input, and what one process makes of it."""
    place = tmp_path_factory.mktemp("undisturbed")
    path = corpus(place / "corpus.jsonl")
    subprocess.run(command(path, place / "out", workers=1), check=True, cwd=place, capture_output=True)
    found = contents(place / "out")
    assert {"train-00001.parquet", "validation-00001.parquet", "rejects-00000.parquet", "signals-00000.parquet"} <= set(found)
    metrics = json.loads((place / "out" / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    assert {"exact duplicate", "near duplicate"} <= set(metrics["removed"])
    return path, found


@pytest.mark.slow
def test_two_workers_give_the_same_bytes(undisturbed: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    path, expected = undisturbed
    subprocess.run(command(path, tmp_path / "out", workers=2), check=True, cwd=tmp_path, capture_output=True)
    assert contents(tmp_path / "out") == expected


@pytest.mark.slow
def test_killed_twenty_times(undisturbed: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    """At any moment: the whole command, or a single worker, which costs no more than the part it was at."""
    path, expected = undisturbed
    words = command(path, tmp_path / "out", workers=2)
    started = time.monotonic()
    subprocess.run(words, check=True, cwd=tmp_path, capture_output=True)
    seconds = time.monotonic() - started
    shutil.rmtree(tmp_path / "out")
    dice = random.Random(1)
    kills, until = 0, started + 600
    while kills < KILLS:
        assert time.monotonic() < until, f"only {kills} kills met a process"
        process = subprocess.Popen(
            words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        if ended_within(process, dice.uniform(0.3, 1.0) * seconds):
            seconds *= 0.9  # the machine was busier when it was measured: come earlier, or no kill would ever meet it
        elif (workers := children(process.pid)) and dice.random() < 0.5:
            os.kill(dice.choice(workers), signal.SIGKILL)
            kills += 1
            ended_within(process, dice.uniform(0, 0.3) * seconds)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors.decode()
        if process.returncode == 0:
            assert contents(tmp_path / "out") == expected
            shutil.rmtree(tmp_path / "out")
    subprocess.run(words, check=True, cwd=tmp_path, capture_output=True)
    assert contents(tmp_path / "out") == expected


def ended_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def children(parent: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.name))
        except (OSError, IndexError):  # it has ended meanwhile
            continue
    return found


@pytest.mark.slow
def test_ray_gives_the_same_bytes(undisturbed: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    path, expected = undisturbed
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    words = command(path, tmp_path / "out", executor="ray")
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "out") == expected


# --------------------------------------------------------------------------------------------------------------------
# Laws


ROW = st.sampled_from(["{", '{"text": 1}', '{"text": ""}', '{"text": "a"}', '{"text": "a a"}']) | (
    st.lists(st.sampled_from(["one", "two", "three", "四", "五"]), max_size=12).map(
        lambda words: json.dumps({"text": " ".join(words)})
    )
)


@settings(max_examples=15, deadline=None)
@given(files=st.lists(st.lists(ROW, max_size=8), max_size=5), near=st.booleans(), fraction=st.sampled_from([0, 0.3]))
def test_every_row_ends_in_one_place(files: list[list[str]], near: bool, fraction: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        for number, rows in enumerate([['{"text": "always kept"}'], *files]):
            Path(name, f"{number}.jsonl").write_text("".join(row + "\n" for row in rows), encoding="utf-8")
        values = {"near_duplicates": near, "validation_fraction": fraction, "max_bad_fraction": 1, "workers": 1}
        values |= {"train_file": name, "task_bytes": 4096}
        output = Path(name, "out")
        output.mkdir()
        config = resolve(PreprocessConfig, [Source(values, {})]).config
        metrics = preprocess(config, Workspace(directory=output, say=lambda _: None))
        rows = {split: [row for batch in read_batches(output, split) for row in batch.to_pylist()] for split in SPLITS}
        expected = [f"{number}.jsonl:{line + 1}" for number, rows in enumerate([[""], *files]) for line in range(len(rows))]
        assert sorted(row["id"] for split in rows.values() for row in split) == sorted(expected)
        assert metrics["read"] == len(expected) == metrics["kept"] + metrics["rejected"] + metrics["merged"]
        assert metrics["kept"] == len(rows["train"]) + len(rows["validation"])
        assert Counter(row["rule"] for row in rows["rejects"]) == Counter(metrics["removed"])
        kept = {row["id"] for split in ("train", "validation") for row in rows[split]}
        assert all(row["value"] in kept for row in rows["rejects"] if "duplicate" in row["rule"])
        assert len({row["text"] for split in ("train", "validation") for row in rows[split]}) == len(kept)


SPLITS = ("train", "validation", "rejects")


def test_shards_are_numbered_on(tmp_path: Path) -> None:
    """However many parts there are, and also where a run was killed while its shards were being moved."""
    for number in range(3):
        write(tmp_path / f"{number}.jsonl", [{"text": f"text {number}"}])
    values = {"train_file": str(tmp_path / "*.jsonl"), "task_bytes": 4096, "validation_fraction": 0, "workers": 1}
    config = resolve(PreprocessConfig, [Source(values, {})]).config
    output = tmp_path / "out"
    output.mkdir()
    preprocess(config, Workspace(directory=output, say=lambda _: None))
    names = ["train-00000.parquet", "train-00001.parquet", "train-00002.parquet"]
    assert [path.name for path in shards(output, "train")] == names
    # As if it had been killed before the last one was moved.
    (output / names[2]).replace(output / SCRATCH / "shards-00002" / "train-00000.parquet")
    preprocess(config, Workspace(directory=output, say=lambda _: None))
    assert [path.name for path in shards(output, "train")] == names
    texts = [pyarrow.parquet.read_table(path)["text"].to_pylist() for path in shards(output, "train")]
    assert texts == [["text 0"], ["text 1"], ["text 2"]]


def staged(output: Path, files: list[str], **values: Any) -> dict[str, Any]:
    """The metrics of a run into a directory that may hold what an earlier one left."""
    output.mkdir(exist_ok=True)
    given = {"train_file": files, "task_bytes": 4096, "validation_fraction": 0, "workers": 1, **values}
    config = resolve(PreprocessConfig, [Source(given, {})]).config
    return preprocess(config, Workspace(directory=output, say=lambda _: None))


def texts_of(output: Path, split: str = "train") -> list[str]:
    return [text for batch in read_batches(output, split, columns=["text"]) for text in batch["text"].to_pylist()]


def test_nothing_is_left_of_another_llmkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that made more of the same input, and was killed when all but the last step was done."""
    files = [write(tmp_path / f"{number}.jsonl", [{"text": f"{number} {word}"} for word in "abc"]) for number in range(3)]
    staged(tmp_path / "out", files, deduplicate=False)
    write(tmp_path / "0.jsonl", [])
    write(tmp_path / "2.jsonl", [{"text": "2 a"}, {"text": "2 a"}])
    for module in ("llmkit.corpus.execution.tasks", "llmkit.corpus.duplicates.layout"):
        monkeypatch.setattr(f"{module}.__version__", "999")
    metrics = staged(tmp_path / "out", files, deduplicate=False)
    assert (metrics["read"], metrics["kept"]) == (5, 5)
    assert texts_of(tmp_path / "out") == ["1 a", "1 b", "1 c", "2 a", "2 a"]
    assert len(shards(tmp_path / "out", "train")) == 2


def test_more_bad_rows_are_allowed_and_what_is_done_stays(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{number}.jsonl", [{"text": f"text {number}"}, {"body": "?"}]) for number in range(3)]
    with pytest.raises(DataError, match="3 of 6 rows"):
        staged(tmp_path / "out", files)
    made = [(tmp_path / "out" / SCRATCH / f"part-{number:05d}.parquet").stat().st_ino for number in (1, 2)]
    assert staged(tmp_path / "out", files, max_bad_fraction=0.5)["kept"] == 3
    assert [(tmp_path / "out" / SCRATCH / f"part-{number:05d}.parquet").stat().st_ino for number in (1, 2)] == made


def test_what_a_task_is_told_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    def told(count: int) -> int:
        files = [write(tmp_path / f"{number:03d}.jsonl", [{"text": "x"}]) for number in range(count)]
        sources = {f"{number:03d}": {"files": path} for number, path in enumerate(files)}
        config = resolve(PreprocessConfig, [Source({"train_file": files, "sources": sources, "task_bytes": 4096}, {})]).config
        return max(len(json.dumps(payload(0, part, config))) for part in make_plan(config).parts)

    assert told(100) == told(10)


def test_surrogates_in_metadata_are_put_down_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"text": "x", "url": "https://a.b/\\ud800", "\\uDFFF": ["\\ud83d\\ude00", "\\\\ud800"]}\n', encoding="utf-8"
    )
    staged(tmp_path / "out", [str(path)])
    (batch,) = read_batches(tmp_path / "out", "train")
    expected = {"url": "https://a.b/\\ud800", "\\udfff": ["\U0001f600", "\\ud800"]}
    assert json.loads(batch["metadata"][0].as_py()) == expected


# Texts of several kinds, so that each step finds something to do in some of them.
TEXTS = st.sampled_from(
    [
        "",
        "Mail me at jane.doe@example.com, or call +1 212 555 0187 tomorrow morning.",
        "The quick brown fox jumps over the lazy dog, and the dog does not mind it at all. It sleeps.",
        "The quick brown fox jumps over the lazy dog, and the dog does not mind it at all. It wakes.",
        "A paragraph that comes again and again.\n\nThe quick brown fox jumps over the lazy dog.",
        "A paragraph that comes again and again.\n\n渡船离开了港口，甲板上没有人睡过觉。一位提着红色箱子的女人问大副。",
        "Die Fähre verließ den Hafen vor Sonnenaufgang, und niemand an Deck hatte geschlafen. schÃ¶n",
        "Accept cookies\nShare this page\n{ javascript }\nThe bells of the church could still be heard.\n- a\n- b ...",
        "清晨的渡船离开了港口，甲板上没有人睡过觉。一位提着红色箱子的女人问大副，这次航行需要多长时间。",
        "x" * 400,
        "🙂 🙂 \u200d\u0301",
    ]
)
KEPT = (
    "The ferry left the harbour before sunrise, and nobody on deck had slept. A woman with a red suitcase asked the mate how "
    "long it would take. He looked at the sky and said that it depended on the wind. She nodded as if that were an answer to "
    "her question. Behind them the town grew small, and the bells of the church could still be heard. When the coast was out "
    "of sight, the cook brought coffee to those who were awake."
)
CHOICES: dict[str, list[Any]] = {
    "repair_text": [False, True],
    "remove_boilerplate": [False, True],
    "identify_language": [False, True],
    "languages": [None, ["en"], ["zh", "en"]],
    "pii": ["keep", "replace", "drop"],
    "filters": [[], ["c4"], ["gopher_repetition", "fineweb"], ["gopher_quality", "c4", "fineweb"]],
    "deduplicate": [False, True],
    "deduplicate_paragraphs": [False, True],
    "near_duplicates": [False, True],
    "min_chars": [1, 60],
    "validation_fraction": [0, 0.4],
}


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(TEXTS.map(lambda text: json.dumps({"text": text})) | st.just("{"), min_size=1, max_size=12),
    values=st.fixed_dictionaries({name: st.sampled_from(some) for name, some in CHOICES.items()}),
    at_once=st.integers(1, 3),
)
def test_how_the_rows_are_cut_makes_no_difference(rows: list[str], values: dict[str, Any], at_once: int) -> None:
    """To parts or to groups, whatever the steps; where no row of a group is kept, its columns are those of other groups."""

    def tables(name: str, task_bytes: int) -> dict[str, list[dict[str, Any]]]:
        output = Path(directory, name)
        staged(output, files, task_bytes=task_bytes, max_bad_fraction=1, **values)
        return {
            table: [row for batch in read_batches(output, table) for row in batch.to_pylist()]
            for table in (*SPLITS, "signals")
        }

    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        files, lines = [], [*rows, json.dumps({"text": KEPT})]
        for start in range(0, len(lines), 4):
            files.append(str(Path(directory, f"{start:02d}.jsonl")))
            Path(files[-1]).write_text("".join(line + "\n" for line in lines[start : start + 4]), encoding="utf-8")
        expected = tables("together", 1 << 20)
        patch.setattr(parts, "GROUP_DOCUMENTS", at_once)
        assert json.dumps(tables("apart", 4096)) == json.dumps(expected)  # NaN is no number, and the same text
        places = [row["id"] for table in SPLITS for row in expected[table]]
        ids = [f"{number // 4 * 4:02d}.jsonl:{number % 4 + 1}" for number in range(len(lines))]
        assert sorted(places) == ids
        if values["filters"] or values["identify_language"] or values["languages"]:
            assert [row["id"] for row in expected["signals"]] == ids


@pytest.mark.slow
def test_killed_between_any_two_writes(tmp_path: Path) -> None:
    """Also while a part is written again for a split that would be empty, and while shards are moved to their place."""
    shared = {"text": "A text that stands in all of the files, and which is long enough."}
    files = [
        write(tmp_path / f"{number}.jsonl", [{"text": f"{number} {word}"} for word in "abc"] + [shared]) for number in "02"
    ]
    files.append(write(tmp_path / "1.jsonl", []))

    def run(name: str, at: int) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, str(Path(__file__).with_name("killed_between_writes.py")), str(tmp_path / name), str(at)]
        return subprocess.run([*words, *files], cwd=tmp_path, capture_output=True, text=True)

    changes = int(run("undisturbed", 0).stdout.split()[-1])
    expected = contents(tmp_path / "undisturbed")
    assert {"train-00001.parquet", "validation-00000.parquet", "rejects-00000.parquet"} <= set(expected)
    dice = random.Random(changes)
    for at in sorted(dice.sample(range(1, changes + 1), KILLS // 2)):
        assert run(str(at), at).returncode == 9
        assert run(str(at), 0).returncode == 0
        assert contents(tmp_path / str(at)) == expected


def test_the_sample_of_near_duplicates_is_bounded_in_characters() -> None:
    read: list[int] = []
    texts = (read.append(number) or "x" * 10 for number in range(100))  # type: ignore[func-returns-value]
    assert _within(texts, 35) == ["x" * 10] * 3
    assert len(read) == 4
