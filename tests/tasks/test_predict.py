"""`llmkit predict`: every row comes back in its place, and a kill at any instant costs a chunk at most."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    pipeline,
)

from llmkit import cli
from llmkit.errors import ArtefactError, ColumnError, ConfigError, DataError
from llmkit.tasks import prediction
from llmkit.tasks.predict import PredictConfig
from llmkit.tasks.prediction import Source, predict_file
from llmkit.tasks.tables import read_table
from llmkit.tasks.writers import write_text_table

if TYPE_CHECKING:
    from llmkit.pipeline.artefact import Artefact

KINDS = (".csv", ".tsv", ".jsonl", ".parquet")
BLANK = ("", " ", "\u3000")

Predict = Callable[..., list[dict[str, Any]]]


def values(path: Path) -> list[dict[str, Any]]:
    return [row.values for row in read_table(path)]


def put(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as a file of any kind."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        write_text_table(path, path.suffix, list(rows[0]), rows)
    return path


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def predict(classifier: Artefact) -> Predict:
    """Predict a file with the toy classifier; gives the rows of the output."""

    def run(source: Path, output: Path | None = None, **settings: Any) -> list[dict[str, Any]]:
        given = {"model_name_or_path": str(classifier.directory), "chunk_size": 4, "batch_size": 3, **settings}
        config = PredictConfig(input=str(source), output=str(output) if output else None, **given)
        assert list(config.problems()) == []
        predict_file(config, say=lambda _: None)
        return values(config.output_path)

    return run


@pytest.fixture(scope="module")
def foreign(tokenizer: Artefact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three classes with random weights, as somebody else would have saved it."""
    place = tmp_path_factory.mktemp("foreign")
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=512,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        id2label={0: "red", 1: "green", 2: "deep blue"},
        label2id={"red": 0, "green": 1, "deep blue": 2},
        initializer_range=1.0,
    )
    BertForSequenceClassification(config).save_pretrained(place)
    AutoTokenizer.from_pretrained(tokenizer.directory).save_pretrained(place)
    return place


# --------------------------------------------------------------------------------------------------------------------
# What is predicted


@pytest.mark.parametrize("kind", ["llmkit", "foreign"])
def test_the_pipeline_of_transformers_gives_the_same_labels_and_scores(
    classifier: Artefact, foreign: Path, predict: Predict, toy: Any, tmp_path: Path, kind: str
) -> None:
    model = str(classifier.directory if kind == "llmkit" else foreign)
    texts = [row["text"] for row in toy(30, start=500)]
    ours = predict(put(tmp_path / "a.jsonl", [{"text": text} for text in texts]), model_name_or_path=model)
    classify: Any = pipeline("text-classification", model=model)
    for row, theirs in zip(ours, classify(texts, top_k=None), strict=True):
        assert row["prediction"] == theirs[0]["label"]
        assert row["score"] == pytest.approx(theirs[0]["score"], abs=1e-4)
        chances = {name.removeprefix("probability_"): value for name, value in row.items() if name.startswith("probability_")}
        assert chances == pytest.approx({item["label"]: item["score"] for item in theirs}, abs=1e-4)
        assert row["error"] is None
    assert len({row["prediction"] for row in ours}) > 1


words = st.text(st.characters(categories=("L", "N", "P", "Zs")), max_size=12) | st.sampled_from(BLANK)


@given(st.lists(words, min_size=1, max_size=14), st.sampled_from(KINDS), st.sampled_from(KINDS), st.integers(1, 6))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_comes_back_in_its_place_with_its_columns(
    predict: Predict, texts: list[str], kind: str, wanted: str, chunk_size: int
) -> None:
    rows = [{"number": str(number), "text": text, "note": "a, b"} for number, text in enumerate([*texts, "so good"])]
    with tempfile.TemporaryDirectory() as place:
        source = put(Path(place) / f"in{kind}", rows)
        found = predict(source, Path(place) / f"out{wanted}", chunk_size=chunk_size)
        assert names(Path(place)) == {source.name, f"out{wanted}", f"out{wanted}.manifest.json"}
    assert [{name: row[name] for name in ("number", "text", "note")} for row in found] == rows
    assert list(found[0]) == [*rows[0], "prediction", "score", "probability_bad", "probability_good", "error"]
    for row in found:
        if row["text"].strip():
            assert row["prediction"] in ("good", "bad")
            assert float(row["score"]) == float(row[f"probability_{row['prediction']}"]) >= 0.5
            assert not row["error"]
        else:
            assert not any(row[name] for name in ("prediction", "score", "probability_bad", "probability_good"))
            assert "no text in column 'text'" in row["error"]


def test_what_cannot_be_predicted_is_counted_and_named(
    predict: Predict, classifier: Artefact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": "fine"}, {"text": ""}, {"other": 1}, {"text": 7}, {"text": "half \ud83d"}, {"text": "也很好"}]
    put(tmp_path / "a.jsonl", rows)
    assert cli.main(["predict", "--model", str(classifier.directory), "--input", str(tmp_path / "a.jsonl")]) == 0
    found = values(tmp_path / "a.predictions.jsonl")
    assert [row["prediction"] is None for row in found] == [False, True, True, True, True, False]
    assert [{name: row[name] for name in given} for row, given in zip(found, rows, strict=True)] == rows
    assert found[1]["error"] == "1 rows have no text in column 'text': a.jsonl:2; remove or fill them"
    assert "a.jsonl:5 holds a character that is none" in found[4]["error"]
    said = capsys.readouterr().out
    assert f"predict: 6 rows, 4 of them without a prediction: {tmp_path}/a.predictions.jsonl" in said
    assert "the column error says why; the first: 1 rows have no text in column 'text': a.jsonl:2" in said
    record = json.loads((tmp_path / "a.predictions.jsonl.manifest.json").read_text())
    assert (record["rows"], record["rows_without_prediction"], record["task"]) == (6, 4, "text-classification")


def test_labels_are_kept_and_not_asked_for_and_columns_may_have_any_name(predict: Predict, toy: Any, tmp_path: Path) -> None:
    rows = toy(10)
    plain = predict(put(tmp_path / "a.csv", [{"text": row["text"]} for row in rows]))
    labelled = predict(put(tmp_path / "b.csv", rows))
    renamed = predict(put(tmp_path / "c.csv", [{"what": row["text"], "text": "x"} for row in rows]), text_column="what")
    assert [row["label"] for row in labelled] == [row["label"] for row in rows]
    scores = [[row["score"] for row in table] for table in (plain, labelled, renamed)]
    assert scores[0] == scores[1] == scores[2]


def test_columns_are_those_of_the_fine_tuning_where_none_are_named(
    run: Any, base_model: Artefact, quick: dict[str, Any], toy: Any, predict: Predict, tmp_path: Path
) -> None:
    rows = [{"what": row["text"], "text": "x", "stars": row["label"]} for row in toy(24)]
    settings = {"text_column": "what", "label_column": "stars", **quick, "num_train_epochs": 1.0}
    train = put(tmp_path / "a.csv", rows)
    made = run("finetune", tmp_path / "m", model_name_or_path=base_model.directory, train_file=train, **settings)
    model = str(made.directory)
    found = predict(train, tmp_path / "out.jsonl", model_name_or_path=model)
    assert len({row["score"] for row in found}) > 1, "the column `text` says the same everywhere"
    (tmp_path / "a.txt").write_text("".join(row["what"] + "\n" for row in rows))
    lines = predict(tmp_path / "a.txt", model_name_or_path=model)
    assert [(row["what"], row["score"]) for row in lines] == [(row["what"], row["score"]) for row in found]
    with pytest.raises(ColumnError, match="has no column 'what', it has: text"):
        predict(put(tmp_path / "b.csv", toy(3)), model_name_or_path=model)


@pytest.mark.parametrize("columns", [("question", "sentence"), ("text", "text_pair"), ("premise", "hypothesis")])
def test_second_texts_are_found_for_a_model_of_others(
    predict: Predict, foreign: Path, toy: Any, tmp_path: Path, columns: tuple[str, str]
) -> None:
    rows = [{columns[0]: row["text"], columns[1]: row["label"]} for row in toy(6)]
    found = predict(put(tmp_path / "a.csv", rows), model_name_or_path=str(foreign))
    named = {"text_column": columns[0], "text_pair_column": columns[1]}
    asked = predict(put(tmp_path / "b.csv", rows), model_name_or_path=str(foreign), **named)
    assert [row["score"] for row in found] == [row["score"] for row in asked]


def test_a_causal_classifier_of_others_without_padding_takes_batches(
    predict: Predict, tokenizer: Artefact, toy: Any, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    size = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "num_labels": 3, "initializer_range": 1.0}
    config = GPT2Config(vocab_size=512, bos_token_id=0, eos_token_id=0, **size)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "m")
    bare = AutoTokenizer.from_pretrained(tokenizer.directory)
    bare.pad_token = None
    bare.save_pretrained(tmp_path / "m")
    rows = put(tmp_path / "a.csv", [{"text": row["text"] * (1 + number % 3)} for number, row in enumerate(toy(6))])
    alone, together = (
        predict(rows, tmp_path / f"{size}.jsonl", model_name_or_path=str(tmp_path / "m"), batch_size=size) for size in (1, 4)
    )
    assert [row["score"] for row in together] == pytest.approx([row["score"] for row in alone], abs=1e-5)


def test_lines_of_a_text_file_and_of_a_pipe_are_rows(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\ufeffgood\r\n\nbad\u2028still the same line\n最后一行".encode()
    (tmp_path / "a.txt").write_bytes(text)
    found = predict(tmp_path / "a.txt")
    assert [row["text"] for row in found] == ["good", "", "bad\u2028still the same line", "最后一行"]
    assert [bool(row["error"]) for row in found] == [False, True, False, False]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    piped = predict(Path("-"), tmp_path / "b.jsonl")
    assert "stdin:2" in piped[1].pop("error")
    found[1].pop("error")
    assert piped == found
    assert names(tmp_path) == {
        f"{name}{end}" for name in ("a.predictions.jsonl", "b.jsonl") for end in ("", ".manifest.json")
    } | {"a.txt"}


def test_what_the_input_calls_by_the_same_name_is_not_replaced(predict: Predict, tmp_path: Path) -> None:
    once = predict(put(tmp_path / "a.csv", [{"text": "good"}, {"text": "bad"}]), tmp_path / "b.csv")
    with pytest.raises(DataError, match=r"b\.csv has a column 'prediction' already.*--prefix"):
        predict(tmp_path / "b.csv", tmp_path / "c.csv")
    twice = predict(tmp_path / "b.csv", tmp_path / "c.csv", prefix="new_")
    assert [row["new_score"] for row in twice] == [row["score"] for row in once] == [row["score"] for row in twice]
    put(tmp_path / "d.csv", [{"text": "good", "probability_bad": "1"}])
    with pytest.raises(DataError, match="has a column 'probability_bad' already"):
        predict(tmp_path / "d.csv")


def test_rows_of_a_large_file_are_never_all_in_memory(tmp_path: Path) -> None:
    peaks = []
    for count in (4_000, 40_000):
        path = put(tmp_path / f"{count}.jsonl", [{"text": f"{number} " * 20} for number in range(count)])
        tracemalloc.start()
        assert Source(path, "it").survey(wants_types=True).rows == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


# --------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"input": "a.xlsx"}, r"input: 'a\.xlsx' does not end in one of \.csv"),
        ({"output": "a.txt"}, r"output: 'a\.txt' does not end in one of \.csv"),
        ({"input": "-"}, "output: name a file"),
        ({"batch_size": 0}, "batch_size: is 0"),
        ({"chunk_size": 0}, "chunk_size: is 0"),
        ({"cpu_threads": 0}, "cpu_threads: is 0"),
        ({"output": "nowhere/a.csv"}, "output: there is no directory 'nowhere'"),
        ({"output": "folder.csv"}, r"output: 'folder\.csv' is a directory"),
        ({"output": "a.csv"}, r"output: 'a\.csv' is the input"),
        ({"input": "nowhere.csv"}, r"nowhere\.csv cannot be read: No such file"),
        ({"input": "empty.csv"}, r"empty\.csv holds no rows"),
        ({"input": "latin.csv"}, r"latin\.csv:3 is not UTF-8"),
        ({"input": "broken.jsonl"}, r"broken\.jsonl:2 is not a JSON object"),
        ({"input": "blank.csv"}, "none of the 2 rows of blank.csv can be predicted; the first: 1 rows have no text"),
        ({"input": "twice.csv"}, r"twice\.csv:1 names a column twice: 'text'"),
        ({"text_column": "txet"}, r"text_column: a\.csv:2 has no column 'txet', it has: text; did you mean 'text'\?"),
        ({"model_name_or_path": "./nowhere"}, r"there is no directory './nowhere'"),
        ({"model_name_or_path": "folder.csv"}, r"model_name_or_path: 'folder.csv' is no model"),
    ],
)
def test_a_mistake_is_answered_with_code_2_and_leaves_nothing(
    classifier: Artefact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, Any],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.csv").mkdir()
    Path("a.csv").write_text("text\nfine\n")
    Path("empty.csv").write_text("text\n")
    Path("latin.csv").write_bytes(b"text\nfine\nch\xe8re\n")
    Path("broken.jsonl").write_text('{"text": "fine"}\n{"text"\n')
    Path("blank.csv").write_text('text,n\n,1\n" ",2\n')
    Path("twice.csv").write_text("text,text\na,b\n")
    before = names(tmp_path)
    given = {"model_name_or_path": classifier.directory, "input": "a.csv", **settings}
    assert cli.main(["predict", *(f"--{name}={value}" for name, value in given.items())]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert "Traceback" not in error
    assert names(tmp_path) == before


def test_weights_that_were_cut_short_are_named(predict: Predict, classifier: Artefact, toy: Any, tmp_path: Path) -> None:
    shutil.copytree(classifier.directory, tmp_path / "model")
    os.truncate(tmp_path / "model" / "model.safetensors", 5_000)
    with pytest.raises(ConfigError, match="gives no model for text classification: Error while deserializing header"):
        predict(put(tmp_path / "a.csv", toy(2)), model_name_or_path=str(tmp_path / "model"))


def test_a_finished_file_is_made_once_and_replaced_only_when_told(
    predict: Predict, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = put(tmp_path / "a.csv", toy(10)), tmp_path / "out.csv"
    first = predict(source, output)
    with monkeypatch.context() as patch:
        patch.setattr(prediction, "load_task_model", lambda *_: pytest.fail("predicted again"))
        assert predict(source, output) == first
    with pytest.raises(ArtefactError, match=r"holds predictions that differ in batch_size \(3 there, 2 now\); name another"):
        predict(source, output, batch_size=2)
    put(source, toy(12))
    with pytest.raises(ArtefactError, match="holds predictions that differ in the input; name another"):
        predict(source, output)
    assert values(output) == first
    assert len(predict(source, output, force=True)) == 12
    output.write_text("mine\n")
    with pytest.raises(ArtefactError, match="is there already; name another --output, or replace it with --force"):
        predict(source, output)
    assert output.read_text() == "mine\n"


def test_files_of_others_in_the_way_are_left_alone(predict: Predict, toy: Any, tmp_path: Path) -> None:
    source = put(tmp_path / "a.csv", toy(4))
    (tmp_path / "out.csv.partial").mkdir()
    (tmp_path / "out.csv.partial" / "mine").write_text("x")
    with pytest.raises(ArtefactError, match="holds files that llmkit did not write"):
        predict(source, tmp_path / "out.csv", force=True)
    (tmp_path / "b.csv.partial").write_text("x")
    with pytest.raises(ArtefactError, match=r"b\.csv\.partial is a file"):
        predict(source, tmp_path / "b.csv")
    assert (tmp_path / "out.csv.partial" / "mine").read_text() == (tmp_path / "b.csv.partial").read_text() == "x"


# --------------------------------------------------------------------------------------------------------------------
# Killed and gone on with


class Stopped(Exception):
    """In the place of a kill."""


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Stop the next prediction once so many chunks are on disk."""

    def set_up(chunks: int) -> None:
        append, count = prediction.Predicted.append, 0

        def appended(self: Any, predicted: Any) -> None:
            nonlocal count
            append(self, predicted)
            count += 1
            if count == chunks:
                monkeypatch.setattr(prediction.Predicted, "append", append)
                raise Stopped

        monkeypatch.setattr(prediction.Predicted, "append", appended)

    return set_up


def test_a_file_that_ends_at_any_byte_is_gone_on_with_to_the_same_bytes(
    predict: Predict, toy: Any, tmp_path: Path, stop_after: Any
) -> None:
    source, output = put(tmp_path / "a.csv", [*toy(21), {"text": "", "label": ""}]), tmp_path / "out.csv"
    predict(source, tmp_path / "whole.csv")
    stop_after(5)
    with pytest.raises(Stopped):
        predict(source, output)
    shutil.copytree(tmp_path / "out.csv.partial", tmp_path / "kept")
    size = (tmp_path / "kept" / "predictions.jsonl").stat().st_size

    @given(st.integers(0, size), st.booleans())
    @settings(max_examples=20, deadline=None)
    def law(kept: int, is_zeroed: bool) -> None:
        output.unlink(missing_ok=True)
        shutil.copytree(tmp_path / "kept", tmp_path / "out.csv.partial", dirs_exist_ok=True)
        lines = tmp_path / "out.csv.partial" / "predictions.jsonl"
        os.truncate(lines, kept)
        if is_zeroed:  # after a power cut, a file may be longer than what was written into it
            os.truncate(lines, size)
        predict(source, output)
        assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()
        assert not (tmp_path / "out.csv.partial").exists()

    law()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_size": 2}, r"batch_size \(3 there, 2 now\)"),
        ({"chunk_size": 5}, r"chunk_size \(4 there, 5 now\)"),
        ({"text_column": "text"}, r"text_column \(None there, text now\)"),
        ({"model_name_or_path": "foreign"}, r"the model \(.*model\.safetensors.*\)"),
        ({"input": "b.csv"}, "the input"),
        ({"version": "0.0"}, r"the version of llmkit \(.* there, 0\.0 now\)"),
    ],
)
def test_another_job_does_not_go_on_with_what_was_begun(
    predict: Predict,
    toy: Any,
    foreign: Path,
    tmp_path: Path,
    stop_after: Any,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    said: str,
) -> None:
    source, output = put(tmp_path / "a.csv", toy(21)), tmp_path / "out.csv"
    stop_after(2)
    with pytest.raises(Stopped):
        predict(source, output)
    begun = (tmp_path / "out.csv.partial" / "predictions.jsonl").read_bytes()
    other = {name: str(foreign) if value == "foreign" else value for name, value in change.items()}
    if other.pop("version", None):
        monkeypatch.setattr(prediction, "__version__", "0.0")
    source = put(tmp_path / other.pop("input", "a.csv"), toy(21, start=0 if "input" not in change else 50))
    with pytest.raises(ArtefactError, match=rf"out\.csv was begun with another job, which differs in {said}; take another"):
        predict(source, output, **other)
    assert (tmp_path / "out.csv.partial" / "predictions.jsonl").read_bytes() == begun
    anew = predict(source, output, force=True, **other)
    assert anew == predict(source, tmp_path / "new.csv", **other)


def test_a_job_that_replaces_a_file_is_gone_on_with_without_force(
    predict: Predict, toy: Any, tmp_path: Path, stop_after: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = put(tmp_path / "a.csv", toy(21)), tmp_path / "out.csv"
    output.write_text("old\n")
    stop_after(2)
    with pytest.raises(Stopped):
        predict(source, output, force=True)
    assert output.read_text() == "old\n"
    with pytest.raises(ArtefactError, match="is there already"):
        predict(source, output, batch_size=2)
    stop_after(1)
    with pytest.raises(Stopped):
        predict(source, output)
    assert len((tmp_path / "out.csv.partial" / "predictions.jsonl").read_text().splitlines()) == 3
    assert predict(source, output) == predict(source, tmp_path / "whole.csv")


def test_what_was_begun_in_vain_stands_in_nobodys_way(predict: Predict, toy: Any, tmp_path: Path) -> None:
    """A wrong column, no row that can be predicted: nothing of it is worth keeping."""
    put(tmp_path / "a.csv", [{"text": "", "what": "good"}] * 6)
    with pytest.raises(DataError, match="none of the 6 rows"):
        predict(tmp_path / "a.csv")
    with pytest.raises(DataError, match="has no column 'wat'"):
        predict(tmp_path / "a.csv", text_column="wat")
    assert names(tmp_path) == {"a.csv"}
    assert all(row["prediction"] for row in predict(tmp_path / "a.csv", text_column="what"))


def test_an_input_that_changes_meanwhile_is_refused(
    predict: Predict, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = put(tmp_path / "a.csv", toy(8))
    survey = Source.survey

    def changed(self: Source, wants_types: bool) -> Any:
        found = survey(self, wants_types)
        put(source, toy(8, start=100))
        return found

    monkeypatch.setattr(Source, "survey", changed)
    with pytest.raises(DataError, match="has changed while it was read; begin anew with --force"):
        predict(source)
    assert not (tmp_path / "a.predictions.csv").exists()


def test_a_full_disk_loses_nothing(predict: Predict, toy: Any, tmp_path: Path) -> None:
    """A limit of the size of a file, which the disk reports as it does a lack of room."""
    source, output = put(tmp_path / "a.csv", toy(60)), tmp_path / "out.csv"
    predict(source, tmp_path / "whole.csv")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, hard))
    try:
        with pytest.raises(ArtefactError, match=r"predict: cannot write .*out\.csv\.partial: File too large\. Nothing"):
            predict(source, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert not output.exists()
    assert (tmp_path / "out.csv.partial" / "predictions.jsonl").stat().st_size > 1_000
    predict(source, output)
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()


DIE = """
import os, signal, sys
from pathlib import Path
import torch
from llmkit.tasks.predict import PredictConfig
from llmkit.tasks import prediction, text_classification
import transformers.models.llama.modeling_llama

torch.set_num_threads(1)
model, source, place = sys.argv[1:]

def die_at(instant, below):
    seen = 0
    changing = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
    def watch(event, arguments):
        nonlocal seen
        if event == "open":
            if not (isinstance(arguments[1], str) and any(sign in arguments[1] for sign in "wax+")):
                return
        elif event not in changing:
            return
        if any(isinstance(word, (str, os.PathLike)) and os.fspath(word).startswith(below) for word in arguments):
            seen += 1
            if seen == instant:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)

for instant in range(1, 1000):
    directory = Path(place) / f"{instant:03}"
    directory.mkdir()
    config = PredictConfig(
        model_name_or_path=model, input=source, output=str(directory / "out.csv"), chunk_size=4, batch_size=3
    )
    child = os.fork()
    if child == 0:
        die_at(instant, str(directory))
        prediction.predict_file(config, say=lambda _: None)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        print(instant, status)
        break
"""


@pytest.mark.slow
def test_kill_9_before_every_single_change_on_disk_harms_nothing(
    classifier: Artefact, predict: Predict, toy: Any, tmp_path: Path
) -> None:
    source = put(tmp_path / "a.csv", toy(10))
    predict(source, tmp_path / "whole.csv")
    (tmp_path / "runs").mkdir()
    words = [sys.executable, "-c", DIE, str(classifier.directory), str(source), str(tmp_path / "runs")]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    instants, status = map(int, done.stdout.split())
    assert status == 0, "the last one was not killed, and succeeded"
    assert instants > 12, "the changes on disk were not seen"
    for instant in range(1, instants):
        directory = tmp_path / "runs" / f"{instant:03}"
        output = directory / "out.csv"
        if output.exists():
            assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()
        predict(source, output)
        assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()
        assert names(directory) == {"out.csv", "out.csv.manifest.json"}


@pytest.mark.slow
def test_kill_9_of_the_command_at_several_instants_harms_nothing(
    classifier: Artefact, predict: Predict, toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = put(tmp_path / "a.jsonl", toy(200)), tmp_path / "out.parquet"
    predict(source, tmp_path / "whole.parquet", chunk_size=2, batch_size=2)
    settings = {"model": classifier.directory, "input": source, "output": output, "chunk_size": 2, "batch_size": 2}
    words = [sys.executable, "-m", "llmkit", "predict", "--cpu_threads=1", *(f"--{k}={v}" for k, v in settings.items())]
    lines = tmp_path / "out.parquet.partial" / "predictions.jsonl"
    reached = 0
    for _ in range(2):
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        before, deadline = reached, time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline and reached < before + 15:
            reached = lines.read_bytes().count(b"\n") if lines.exists() else 0
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert before < reached < 100
        assert not output.exists()
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "predict: goes on after the " in done.stdout
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert cli.main(words[3:]) == 0
    assert f"predict: already there, nothing to do: {output}\n" in capsys.readouterr().out
