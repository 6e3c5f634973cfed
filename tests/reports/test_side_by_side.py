"""Several results on one page: what differs, and what may be compared at all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from llmkit.errors import ArtefactError, ConfigError
from llmkit.evaluation.compared import compare_runs
from llmkit.evaluation.comparison import compare_accuracy
from llmkit.reports.report import ReportConfig
from llmkit.reports.side_by_side import distinct_names

if TYPE_CHECKING:
    from tests.reports.conftest import Chain, Row, Written


def second(chain: Chain, rows: list[Row], record: dict[str, Any] | None = None, **given: Any) -> list[str]:
    """Keep the evaluation that is there and make another one; the places of both."""
    (chain.root / "evaluate").rename(chain.root / "first")
    chain.evaluate(rows, record, **given)
    return [str(chain.root / "first"), str(chain.root / "evaluate")]


def mended(rows: list[Row], every: int) -> list[Row]:
    return [(a, b, label, label if n % every == 0 else said, score) for n, (a, b, label, said, score) in enumerate(rows)]


def test_the_same_examples_are_compared_one_by_one(chain: Chain, write: Callable[..., Written]) -> None:
    rows, better = chain.example_rows(), mended(chain.example_rows(), 2)
    chain.build(rows)
    written = write(runs=second(chain, better))
    right = [np.array([row[2] == row[3] for row in item]) for item in (rows, better)]
    expected = compare_accuracy(right[1], right[0], "first")
    (found,) = written.json["differences"]
    assert found["difference"] == expected.difference == pytest.approx(0.2)
    assert (found["low"], found["high"], found["p_value"]) == (expected.low, expected.high, expected.p_value)
    assert found["run"] == "evaluate" and found["baseline"] == "first" and found["finding"] == "better"
    assert "All were measured on the same 30 examples" in written.html
    assert written.json["verdict"].startswith("evaluate is better than first in accuracy: +20.0 points (")
    assert "| accuracy | 0.600 (0.540 to 0.660) | 0.800 (0.740 to 0.860) |" in (written.directory / "report.md").read_text()


KEYS = ("difference", "low", "high", "p_value", "p_corrected")


def same_as_compared(found: list[dict[str, Any]], places: list[str]) -> bool:
    expected = compare_runs(places)["comparisons"]
    return [[item[key] for key in KEYS] for item in found] == [[item[key] for key in KEYS] for item in expected]


def test_questions_on_one_context_are_no_independent_examples(chain: Chain, write: Callable[..., Written]) -> None:
    rows = [(f"q{n}", f"Question {n}?\nContext {n // 3}.", "x", "x", 0.5) for n in range(30)]
    values = [[(n * 7 + shift) % 11 / 10 for n in range(30)] for shift in (0, 3)]
    record = {"task": "question-answering", "n": 30, "value_is": "f1", "metrics": []}
    groups = [n // 3 for n in range(30)]
    chain.build(rows, record=record, further={"value": values[0], "group": groups})
    places = second(chain, rows, record, further={"value": values[1], "group": groups})
    assert same_as_compared(write(runs=places).json["differences"], places)


def test_documents_count_by_their_bytes(chain: Chain, write: Callable[..., Written]) -> None:
    rows = [(f"d{n:02d}", f"Document {n}.", "", "", 0.5) for n in range(30)]
    sizes = np.arange(1, 31)
    bits = [np.linspace(1, 2, 30), np.linspace(0.95, 1.8, 30)]
    record = {"task": "language-modeling", "n": 30, "value_is": "bits_per_byte", "lower_is_better": True, "metrics": []}
    further = {"bytes": sizes, "text_sha256": [name for name, *_ in rows]}
    chain.build(rows, record=record, further={"value": bits[0], **further})
    places = second(chain, rows, record, further={"value": bits[1], **further})
    found = write(runs=places).json["differences"]
    assert found[0]["difference"] == pytest.approx(((bits[1] - bits[0]) * sizes).sum() / sizes.sum())
    assert found[0]["finding"] == "better" and found[0]["difference"] < 0
    assert same_as_compared(found, places)


def test_p_values_of_several_are_corrected_for_their_number(chain: Chain, write: Callable[..., Written]) -> None:
    """Six of thirty are mended: evidence by itself (p = 0.031), and none as one of two tests."""
    rows = chain.example_rows()
    chain.build(rows)
    places = second(chain, mended(rows, 2))
    assert write("pair", runs=places).json["differences"][0]["finding"] == "better"
    (chain.root / "evaluate").rename(chain.root / "other")
    chain.evaluate(rows)
    places.insert(1, str(chain.root / "other"))
    written = write(runs=places)
    found = written.json["differences"]
    assert same_as_compared(found, places)
    assert (found[0]["p_value"], found[0]["p_corrected"]) == (0.03125, 0.0625)
    assert found[0]["finding"] == "no clear difference" and "p corrected for 2 tests = 0.062" in found[0]["sentence"]
    assert "p corrected for 2 tests</th>" in written.html and "0.062" in (written.directory / "report.md").read_text()


def test_means_over_seeds_are_compared_where_all_have_several(chain: Chain, write: Callable[..., Written]) -> None:
    rows = chain.example_rows()
    seeds = {"of": [0, 1, 2], "metrics": {}, "value": {"low": 0.5, "high": 0.7, "sd_training": 0.01}}
    record = {**chain.metrics_of(rows), "seeds": seeds}
    means = [[(n * 7 + shift) % 4 / 3 for n in range(30)] for shift in (0, 1)]
    chain.build(rows, record=record, further={"mean_over_seeds": means[0]})
    places = second(chain, rows, record, further={"mean_over_seeds": means[1]})
    written = write(runs=places)
    assert same_as_compared(written.json["differences"], places)
    assert written.json["differences"][0]["difference"] == pytest.approx(np.mean(means[1]) - np.mean(means[0])) != 0
    assert "means over the seeds of each" in written.html
    chain.evaluate(rows)
    mixed = write("mixed", runs=places).json
    assert mixed["differences"][0]["difference"] == 0 and "the first is compared" in " ".join(mixed["limits"])


def test_documents_are_neither_right_nor_wrong(chain: Chain, write: Callable[..., Written]) -> None:
    rows = [(f"d{n:02d}", f"Document {n}.", "", "", 0.5) for n in range(30)]
    record = {"task": "language-modeling", "n": 30, "value_is": "bits_per_byte", "lower_is_better": True, "metrics": []}
    chain.build(rows, record=record, further={"value": [1.0 + n / 10 for n in range(30)]})
    page = write().html.partition("<script")[0]
    assert "30 texts with their bits per byte." in page and "wholly right" not in page and "predicted: " not in page
    assert "data-judged" not in page  # by which the script knows whether to tell labels and predictions
    assert page.index("Document 29.") < page.index("Document 28.")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"examples": 29}, "has 30 of them, "),
        ({"task": "translation"}, "different tasks (text-classification and translation)."),
        ({"value_is": "f1"}, "measured by different metrics (accuracy and f1)."),
    ],
)
def test_what_cannot_be_compared_is_said(
    change: dict[str, Any], reason: str, chain: Chain, write: Callable[..., Written]
) -> None:
    rows = chain.example_rows()
    chain.build(rows)
    others = rows[: change.pop("examples", len(rows))]
    places = second(chain, others, {**chain.metrics_of(others), **change})
    written = write(runs=places)
    with pytest.raises(ArtefactError, match=re.escape(reason.rstrip("."))) as refusal:
        compare_runs(places)
    assert written.json["comparability"] == f"{refusal.value}." and written.json["differences"] == []
    assert "No difference was tested" in " ".join(written.json["limits"])


def test_copies_of_the_same_examples_are_compared(chain: Chain, write: Callable[..., Written]) -> None:
    rows = chain.example_rows()
    chain.build(rows)
    assert write(runs=second(chain, [("other", *row[1:]) for row in rows])).json["differences"]


def test_what_was_set_otherwise_is_listed(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build()
    kept = {"learning_rate": 5e-5, "seed": 0}
    first = chain.artefact("finetune", chain.model_files(chain.ledger(60, 1.0, 0.5)), name="one", config=kept)
    chain.artefact(
        "finetune", chain.model_files(chain.ledger(60, 1.0, 0.4)), name="two", config={**kept, "learning_rate": 1e-4}
    )
    written = write(runs=[str(first.directory), str(chain.root / "two")])
    assert written.json["settings"] == {"finetune: learning_rate": {"one": "5e-05", "two": "0.0001"}}
    assert written.html.count('<polyline class="line l1"') == 2  # losses of training and validation
    assert "Fine-tuning: validation loss" in written.html


def test_losses_are_compared_on_the_same_held_out_data_alone(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build()

    def comparability(name: str, *trainings: dict[str, Any]) -> str:
        files = chain.model_files(chain.ledger(60, 1.0, 0.5))
        made = [chain.artefact(item.pop("stage"), files, name=f"{name}{n}", **item) for n, item in enumerate(trainings)]
        return write(f"{name}-report", runs=[str(item.directory) for item in made]).json["comparability"]

    def tuned(task: str, sha256: str | None) -> dict[str, Any]:
        return {"stage": "finetune", "metrics": {"task": task, "validation": {"loss": 1.0, "sha256": sha256}}}

    pretrained = {"stage": "pretrain", "inputs": {"tokens": "tokenize"}}
    assert "same token shards" in comparability("a", dict(pretrained), dict(pretrained))
    chain.artefact("tokenize", {"other.bin": b"other"}, name="other")
    assert "cannot be compared" in comparability("b", dict(pretrained), {"stage": "pretrain", "inputs": {"tokens": "other"}})
    assert "same validation examples" in comparability("c", tuned("a", "11"), tuned("a", "11"))
    assert "cannot be compared" in comparability("d", tuned("a", "11"), tuned("a", "22"))
    assert "cannot be compared" in comparability("e", tuned("a", "11"), tuned("b", "11"))
    assert "cannot be compared" in comparability("f", tuned("a", None), tuned("a", None))
    assert "cannot be compared" in comparability("g", dict(pretrained), tuned("a", "11"))


def test_runs_are_named_by_what_tells_them_apart() -> None:
    places = [Path("/r/seed-0/evaluate"), Path("/r/seed-1/evaluate"), Path("/r/other/deep/evaluate")]
    assert distinct_names(places) == ["seed-0", "seed-1", "other/deep"]
    assert distinct_names([Path("/r/a"), Path("/r/a/b")]) == ["a", "a/b"]
    with pytest.raises(ConfigError, match="stands there twice"):
        distinct_names([Path("/r/a"), Path("/r/a")])


def test_evaluations_and_trainings_do_not_go_together(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build()
    with pytest.raises(ConfigError, match="nothing in common"):
        write(runs=[str(chain.root / "evaluate"), str(chain.root / "pretrain")])


def test_a_training_by_itself(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build()
    throughput = {"tokens_per_second": 5120.4, "flops_per_token": 6e6, "mfu": 0.42, "formula": "6 N", "convention": "no remat"}
    metrics = {
        "steps": 2000,
        "train_loss": 3.31,
        "tokens_learned": 1_000_000,
        "epochs": 2.5,
        "validation": {"loss": 3.42, "perplexity": 30.6, "bits_per_byte": 1.234, "tokens": 50_000, "set_aside": 3},
        "throughput": throughput,
        "processes": 2,
        "precision": "bf16",
    }
    part = {"documents": 10, "bytes_per_token": 3.5, "tokens_per_word": 1.25, "round_trip_failures": 0, "vocabulary_used": 0.9}
    tokenizer = {"vocab_size": 8000, "splits": {"train": {**part, "sources": {"<books>": part}}}}
    chain.artefact("tokenizer", {"tokenizer.json": "{}"}, inputs={"corpus": "preprocess"}, metrics=tokenizer)
    inputs = {"tokenizer": "tokenizer", "corpus": "preprocess"}
    chain.artefact(
        "tokenize", {"a.bin": b"t"}, inputs=inputs, metrics={"train": {"tokens": 77, "documents": 10, "bytes": 300}}
    )
    files = chain.model_files(chain.ledger(2000, 9.0, 3.1))
    chain.artefact("pretrain", files, inputs={"tokens": "tokenize"}, metrics=metrics)
    written = write(runs=[str(chain.root / "pretrain")])
    assert written.json["kind"] == "training" and written.metrics["validation_bits_per_byte"] == 1.234
    assert written.json["verdict"] == (
        "A bert model of 824 parameters was trained on 1,000,000 tokens, 2.5 times the corpus, in 2,000 steps; on 50,000 "
        "held-out tokens its validation loss is 3.420, its validation perplexity is 30.600 and its validation bits per "
        "byte is 1.234."
    )
    for text in ("6 TFLOP", "42.0%", "5,120 tokens/s", "removed: too short", "1,022", "&lt;books&gt;", "90.0%", "2 processes"):
        assert text in written.html, text
    document = (written.directory / "report.md").read_text(encoding="utf-8")
    assert "6 TFLOP" in document and "## Lineage" in document and "## Limits" in document
    assert not (written.directory / "model").exists()


def test_what_a_fine_tuning_has_logged_of_its_cost_is_shown(chain: Chain, write: Callable[..., Written]) -> None:
    log = "".join(json.dumps({"step": n, "loss": 1.0, "examples_per_second": 10.0 * n}) + "\n" for n in (1, 2, 9))
    log += '{"step": 9, "train_loss": 1.0, "total_flos": 2904319721472.0}\n'
    chain.artefact("finetune", chain.model_files(log), metrics={"steps": 9, "train": {"examples": 822, "truncated": 1}})
    page = write(runs=[str(chain.root / "finetune")]).html
    for text in ("20 examples/s", "2.9 TFLOP", "822 examples", "examples a second", "finetune ran on Some CPU."):
        assert text in page, text


def test_the_directory_of_a_pipeline_stands_for_its_last_evaluation(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build()
    assert ReportConfig(runs=[str(chain.root)]).runs == [str(chain.root / "evaluate")]
    chain.artefact("evaluate", {"metrics.json": "{}"}, name="later", created="2026-11-25T03:25:00+00:00")
    assert ReportConfig(runs=[str(chain.root)]).runs == [str(chain.root / "later")]
    chain.root.rename(chain.root.with_name("pipeline"))
    above = ReportConfig(runs=[str(chain.root.parent)])
    assert f"it holds those of pipeline: name one, as {chain.root.parent}/pipeline" in " ".join(above.problems())
    chain.root.with_name("pipeline").rename(chain.root)
    with pytest.raises(ArtefactError, match="is a result of 'tokenize', which has no report"):
        write(runs=[str(chain.root / "tokenize")])
    with pytest.raises(ArtefactError, match="holds no finished result"):
        write("other", runs=[str(chain.root / "nothing")])


def test_the_command_takes_results_by_position(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    from llmkit.cli import main

    chain.build()
    output = chain.root / "page"
    assert main(["report", str(chain.root), "--title", "A title", "--output_dir", str(output)]) == 0
    assert json.loads((output / "report.json").read_text(encoding="utf-8"))["title"] == "A title"
    assert (output / "report.md").read_text(encoding="utf-8").startswith("# A title\n")
    capsys.readouterr()
    assert main(["report"]) == 2
    assert "`llmkit report RUN`" in capsys.readouterr().err
    assert main(["report", "--help"]) == 0
    assert "usage: llmkit report [RUNS ...]" in capsys.readouterr().out
    assert main(["status", "--runs_dir", str(chain.root)]) == 0


def test_results_by_position_make_the_same_page_as_by_name(chain: Chain, tmp_path: Path) -> None:
    from llmkit.cli import main
    from llmkit.pipeline.artefact import Artefact

    chain.build()
    places = [str(chain.root / name) for name in ("pretrain", "finetune")]
    assert main(["report", *places, "--output_dir", str(tmp_path / "a")]) == 0
    assert main(["report", "--runs", *places, "--output_dir", str(tmp_path / "b")]) == 0
    made = [Artefact.open(tmp_path / name, "report") for name in "ab"]
    assert made[0].manifest.fingerprint == made[1].manifest.fingerprint
    assert list(made[0].manifest.inputs) == ["runs.0", "runs.1"]
    assert main(["report", *reversed(places), "--output_dir", str(tmp_path / "c")]) == 0
    assert Artefact.open(tmp_path / "c", "report").manifest.fingerprint != made[0].manifest.fingerprint
