"""`llmkit compare` on evaluations of real tiny models, and on what becomes of their predictions when some are changed."""

from __future__ import annotations

import copy
import html
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from llmkit import cli
from llmkit.errors import ArtefactError
from llmkit.evaluation import compared
from llmkit.evaluation.compared import Pair, Run, compare_runs, describe
from llmkit.pipeline.artefact import Artefact
from llmkit.tasks.question_answering import QuestionAnswering

Evaluate = Callable[..., str]


@pytest.fixture(scope="module")
def evaluate(run: Any, toy_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Evaluate:
    """Evaluate a model on the toy problem; gives back where."""

    def evaluate_it(model: Path, **given: Any) -> str:
        asked = {"test_file": toy_files[1], "baselines": False, **given}
        return str(run("evaluate", tmp_path_factory.mktemp("compare") / "e", model_name_or_path=model, **asked).directory)

    return evaluate_it


@pytest.fixture(scope="module")
def asked(base_model: Artefact, toy_files: tuple[Path, Path], quick: dict[str, Any]) -> dict[str, Any]:
    return {"model_name_or_path": base_model.directory, "train_file": toy_files[0], **quick}


@pytest.fixture(scope="module")
def trained(evaluate: Evaluate, classifier: Artefact) -> str:
    return evaluate(classifier.directory)


@pytest.fixture(scope="module")
def untrained(evaluate: Evaluate, tokenizer: Artefact, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A classifier of random weights."""
    loaded, place = AutoTokenizer.from_pretrained(tokenizer.directory), tmp_path_factory.mktemp("untrained")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(loaded),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=loaded.pad_token_id,
        id2label={0: "bad", 1: "good"},
        label2id={"bad": 0, "good": 1},
    )
    LlamaForSequenceClassification(config).save_pretrained(place)
    loaded.save_pretrained(place)
    return evaluate(place)


@pytest.fixture(scope="module")
def several(run: Any, evaluate: Evaluate, asked: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Evaluations of two trainings with the same two seeds, a short one and a long one."""
    made = [
        run("finetune", tmp_path_factory.mktemp("several") / "m", **{**asked, "num_train_epochs": epochs}, seeds=[0, 1])
        for epochs in (0.5, 2.0)
    ]
    return evaluate(made[0].directory), evaluate(made[1].directory)


def rows(name: str) -> list[dict[str, Any]]:
    columns = Run.open(name).columns
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_a_trained_model_is_better_than_an_untrained_one_by_so_much(
    trained: str, untrained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", untrained, trained, "--output", str(tmp_path / "c.json"), "--show", "2"]) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    (pair,) = found["comparisons"]
    ours, theirs = (np.array([row["value"] for row in rows(name)]) for name in (trained, untrained))
    assert pair["difference"] == pytest.approx(ours.mean() - theirs.mean()) and pair["difference"] > 0.2
    points = 100 * pair["difference"]
    assert pair["finding"] == "better"
    assert pair["sentence"].startswith(f"{trained} is better than {untrained} in accuracy: {points:+.1f} points (+")
    assert pair["sentence"] in said
    table, fixed, broken = pair["table"], int((ours > theirs).sum()), int((ours < theirs).sum())
    assert (table["only_run"], table["only_reference"], sum(table.values())) == (fixed, broken, 40)
    assert pair["p_value"] == pair["p_corrected"] == pytest.approx(stats.binomtest(fixed, fixed + broken).pvalue)
    assert pair["differs_in"].keys() == {"evaluate.model_name_or_path"} or not pair["differs_in"]
    assert 0 < pair["detectable"]["difference"] < pair["difference"]
    assert f"better in {trained}, 2 of {fixed}:" in said
    assert f"{100 * pair['detectable']['difference']:.1f} points" in said


def test_fixed_and_broken_examples_are_those_that_one_has_right(trained: str, untrained: str) -> None:
    (pair,) = compare_runs([untrained, trained])["comparisons"]
    expected: dict[str, list[str]] = {"fixes": [], "breaks": []}
    for ours, theirs in zip(rows(trained), rows(untrained), strict=True):
        right, was_right = ours["prediction"] == ours["label"], theirs["prediction"] == theirs["label"]
        if right != was_right:
            expected["fixes" if right else "breaks"].append(ours["text"])
    assert {kind: [item["text"] for item in pair[kind]] for kind in expected} == expected
    for item in pair["fixes"]:
        assert item["prediction"] == item["label"] != item["reference_prediction"]
        assert (item["value"], item["reference_value"]) == (1, 0)


def test_macro_f1_is_that_of_scikit_learn_with_the_interval_of_drawn_examples(trained: str, untrained: str) -> None:
    (pair,) = compare_runs([untrained, trained])["comparisons"]
    found = pair["metrics"]["f1_macro"]
    ours, theirs = rows(trained), rows(untrained)
    true = np.array([row["label"] for row in ours])
    given = [np.array([row["prediction"] for row in item]) for item in (ours, theirs)]
    values = [f1_score(true, item, average="macro") for item in given]
    assert (found["value"], found["reference_value"]) == pytest.approx(tuple(values))
    assert found["difference"] == pytest.approx(values[0] - values[1])
    generator, drawn = np.random.default_rng(0), []
    for places in generator.integers(0, len(true), (300, len(true))):
        scores = [f1_score(true[places], item[places], average="macro", zero_division=0) for item in given]
        drawn.append(scores[0] - scores[1])
    assert (found["low"], found["high"]) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.05)
    assert "f1_macro" not in pair["not_compared"] and "recall_macro" in pair["not_compared"]


@pytest.mark.slow
def test_two_seeds_of_one_setting_show_no_evidence_of_a_difference(
    run: Any, evaluate: Evaluate, trained: str, asked: dict[str, Any], tmp_path: Path
) -> None:
    other = evaluate(run("finetune", tmp_path / "m", **asked, seed=1).directory, per_device_eval_batch_size=7, seed=5)
    found = compare_runs([trained, other])
    (pair,) = found["comparisons"]
    assert pair["finding"] == "no evidence"
    assert pair["sentence"].startswith(f"No evidence of a difference between {other} and {trained} in accuracy: ")
    assert pair["differs_in"]["finetune.seed"] == [0, 1]
    assert pair["differs_in"]["evaluate.per_device_eval_batch_size"] == [64, 7]
    assert found["correction"] is None


def test_a_run_does_not_differ_from_itself(trained: str) -> None:
    (pair,) = compare_runs([trained, trained])["comparisons"]
    assert (pair["difference"], pair["p_value"], pair["better"], pair["worse"]) == (0, 1, 0, 0)
    assert pair["metrics"]["f1_macro"]["low"] == pair["metrics"]["f1_macro"]["high"] == 0
    assert pair["finding"] == "no evidence" and pair["fixes"] == pair["breaks"] == []


def test_what_is_found_changes_its_sign_with_the_order(trained: str, untrained: str) -> None:
    (there,), (back,) = (compare_runs(names)["comparisons"] for names in ([trained, untrained], [untrained, trained]))
    for key, other in (("difference", "difference"), ("low", "high"), ("high", "low")):
        assert there[key] == pytest.approx(-back[other])
        assert there["metrics"]["f1_macro"][key] == pytest.approx(-back["metrics"]["f1_macro"][other], abs=0.02)
    assert there["p_value"] == back["p_value"]
    assert [item["id"] for item in there["fixes"]] == [item["id"] for item in back["breaks"]]
    assert (there["finding"], back["finding"]) == ("worse", "better")


@given(st.data())
@settings(max_examples=12, deadline=None)
def test_any_values_obey_the_same_laws(trained: str, data: Any) -> None:
    base = Run.open(trained)
    kind = data.draw(st.sampled_from([st.sampled_from([0.0, 1.0]), st.floats(0, 1)]))
    values = [data.draw(st.lists(kind, min_size=base.n, max_size=base.n)) for _ in range(2)]
    record = {**base.record, "lower_is_better": data.draw(st.booleans())}
    first, second = (replace(base, record=record, columns={**base.columns, "value": item}) for item in values)
    there, back = (Pair(*pair, False, 0).told(1.0, 1) for pair in ((first, second), (second, first)))
    assert there["difference"] == pytest.approx(-back["difference"])
    assert (there["low"], there["high"]) == pytest.approx((-back["high"], -back["low"]))
    assert there["p_value"] == back["p_value"]
    assert (there["better"], there["worse"], there["equal"]) == (back["worse"], back["better"], back["equal"])
    assert there["detectable"] == back["detectable"]
    gains = [item["value"] - item["reference_value"] for item in there["fixes"]]
    assert gains == sorted(gains, reverse=not record["lower_is_better"])


def test_several_runs_are_held_against_the_first_with_corrected_p_values(
    trained: str, untrained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare_runs([untrained, trained, untrained])
    first, second = found["comparisons"]
    assert (first["reference"], second["reference"]) == (untrained, untrained)
    assert (first["p_corrected"], second["p_corrected"]) == (2 * first["p_value"], 1)
    assert "p corrected for 2 tests" in first["sentence"]
    assert first["detectable"]["alpha"] == pytest.approx(0.025) and found["correction"] == "holm"
    assert "Holm 1979" in describe(found, 0)


@pytest.mark.slow
def test_seeds_are_taken_into_account_where_all_have_several(several: tuple[str, str], trained: str) -> None:
    short, long = (Run.open(name) for name in several)
    record = short.record["seeds"]
    values = np.array(short.columns["mean_over_seeds"])
    assert record["value"]["of"] == "accuracy"
    assert values.mean() == pytest.approx(record["value"]["mean"]) == pytest.approx(record["metrics"]["accuracy"]["mean"])
    assert record["value"]["sd"] == pytest.approx(record["metrics"]["accuracy"]["sd"])
    found = compare_runs(list(several))
    (pair,) = found["comparisons"]
    assert found["over_seeds"] and found["runs"][0]["seeds"] == [0, 1]
    assert pair["difference"] == pytest.approx(long.record["seeds"]["value"]["mean"] - record["value"]["mean"])
    assert pair["table"] is None and pair["metrics"] == {}
    differences = np.array(long.columns["mean_over_seeds"]) - values
    assert pair["high"] - pair["difference"] >= stats.t.ppf(0.975, 39) * stats.sem(differences) - 1e-9
    assert "mean over seeds 0, 1" in describe(found, 3)
    mixed = compare_runs([several[1], trained])
    assert not mixed["over_seeds"] and any("several seeds" in sentence for sentence in mixed["limits"])


def test_perplexities_are_compared_where_both_count_the_same_tokens(trained: str) -> None:
    generator = np.random.default_rng(0)
    tokens, losses = generator.integers(5, 30, 40), generator.uniform(1, 3, (2, 40))
    first, second = (changed(trained, loss=(loss * tokens).tolist(), tokens=tokens.tolist()) for loss in losses)
    found = Pair(first, second, False, 0).told(1.0, 1)["metrics"]["perplexity"]
    values = [np.exp(np.average(loss, weights=tokens)) for loss in losses]
    assert (found["reference_value"], found["value"]) == pytest.approx(tuple(values))
    drawn = []
    for places in generator.integers(0, 40, (2000, 40)):
        ours, theirs = (np.exp(np.average(loss[places], weights=tokens[places])) for loss in reversed(losses))
        drawn.append(ours - theirs)
    assert (found["low"], found["high"]) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.25)
    other = changed(trained, loss=second.columns["loss"], tokens=(tokens + 1).tolist())
    assert "perplexity" not in Pair(first, other, False, 0).told(1.0, 1)["metrics"]


def test_documents_weigh_as_many_bytes_as_they_have(trained: str) -> None:
    generator = np.random.default_rng(1)
    size, values = generator.integers(50, 5000, 40), generator.uniform(1, 3, (2, 40))
    first, second = (changed(trained, value=item.tolist(), bytes=size.tolist()) for item in values)
    for run, item in ((first, values[0]), (second, values[1])):
        metric = {"name": "bits_per_byte", "value": np.average(item, weights=size), "low": 1.0, "high": 3.0}
        run.record.update(value_is="bits_per_byte", lower_is_better=True, metrics=[metric])
    pair = Pair(first, second, False, 0)
    found, differences = pair.told(pair.found.p_value, 1), values[1] - values[0]
    assert found["difference"] == pytest.approx(np.average(differences, weights=size))
    drawn = [np.average(differences[places], weights=size[places]) for places in generator.integers(0, 40, (2000, 40))]
    assert (found["low"], found["high"]) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.05)
    assert found["detectable"]["difference"] == pytest.approx(2.8 * np.std(drawn), rel=0.15)
    told = compared._told_run(first, False, 0)
    assert told["value"] == pytest.approx(np.average(values[0], weights=size)) and told["high"] == 3.0


def changed(name: str, **columns: Any) -> Run:
    run = Run.open(name)
    return replace(run, record=copy.deepcopy(run.record), columns={**run.columns, **columns})


def test_runs_that_are_not_comparable_are_refused_with_the_reason(
    trained: str, evaluate: Evaluate, classifier: Artefact, toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = toy(40, start=101)
    other[3] = {**other[3], "text": "The tea was \x1b[31mcold."}
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other), encoding="utf-8")
    assert cli.main(["compare", trained, evaluate(classifier.directory, test_file=tmp_path / "t.jsonl")]) == 2
    said = capsys.readouterr().err
    assert "their examples differ. The first is number 4, id " in said and "'The tea was [31mcold.' in " in said
    (tmp_path / "copy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy(40, start=101)), encoding="utf-8")
    assert cli.main(["compare", trained, evaluate(classifier.directory, test_file=tmp_path / "copy.jsonl")]) == 0
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy(38, start=101)), encoding="utf-8")
    assert cli.main(["compare", trained, evaluate(classifier.directory, test_file=tmp_path / "t.jsonl")]) == 2
    assert "has 40 of them" in capsys.readouterr().err
    assert cli.main(["compare", trained, str(classifier.directory)]) == 2
    assert "is a result of 'finetune'; a result of 'evaluate' is needed" in capsys.readouterr().err
    assert cli.main(["compare", trained, str(tmp_path / "nowhere")]) == 2
    assert cli.main(["compare", trained, trained, "--output", str(tmp_path / "nowhere" / "c.json")]) == 2
    assert "c.json cannot be written: No such file or directory" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", trained])
    assert ended.value.code == 2 and "name two results or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("task", "question-answering", "of different tasks (text-classification and question-answering)"),
        ("value_is", "f1", "measured by different metrics (accuracy and f1)"),
        ("lower_is_better", True, "what is better differs"),
        ("perfect", 100.0, "have different scales"),
        ("signatures", {"chrf": "nrefs:1"}, "have different signatures"),
        ("split", "validation", "of different splits (test and validation)"),
    ],
)
def test_other_tasks_metrics_and_splits_are_refused(trained: str, key: str, value: Any, said: str) -> None:
    other = changed(trained)
    other.record[key] = value
    with pytest.raises(ArtefactError) as failure:
        compared._check_comparable(Run.open(trained), other)
    assert said in str(failure.value)


def test_another_label_is_another_example(trained: str) -> None:
    labels = Run.open(trained).columns["label"]
    other = changed(trained, label=[*labels[:7], "neither", *labels[8:]])
    with pytest.raises(ArtefactError, match=r"The first is number 8, .*: its label is '(bad|good)' in .*, 'neither' in "):
        compared._check_comparable(Run.open(trained), other)


def test_an_evaluation_without_values_is_named(trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = json.loads((Path(trained) / "metrics.json").read_text(encoding="utf-8"))
    del broken["value_is"]
    real = Path.read_text

    def read(path: Path, *args: Any, **more: Any) -> str:
        return json.dumps(broken) if path.name == "metrics.json" else real(path, *args, **more)

    monkeypatch.setattr(Path, "read_text", read)
    with pytest.raises(ArtefactError, match="has no value_is that could be compared"):
        compare_runs([trained, trained])


def test_hostile_text_is_shown_on_one_line_without_what_a_terminal_obeys(trained: str, untrained: str) -> None:
    text = "a\x1b[2J\nb‮c\x00" + "x" * 100_000
    found = compare_runs([untrained, trained])
    found["comparisons"][0]["fixes"][0]["text"] = text
    lines = describe(found, 1).splitlines()
    (line,) = [line for line in lines if "a [2J b c x" in line]
    assert len(line) < 300 and line.isprintable()


def test_questions_on_one_text_are_resampled_together(run: Any, base_model: Artefact, tmp_path: Path) -> None:
    """Two models that have learned nothing, by heads of two seeds."""
    contexts = [f"Text {number} tells of a {'cat' if number % 2 else 'dog'} and of more." for number in range(8)]
    asked = [
        {
            "question": f"What is {number}?",
            "context": context,
            "answers": {"text": [context[:-13]], "answer_start": [0]},
        }
        for context in contexts
        for number in range(3)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    names = []
    for seed in (0, 1):
        task, place = QuestionAnswering(), tmp_path / f"m{seed}"
        tokenizer = task.load_tokenizer(str(base_model.directory))
        model, _ = task.load_model(str(base_model.directory), tokenizer, seed, None)
        task.note(model)
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        test = {"test_file": tmp_path / "t.jsonl", "baselines": False}
        made = run("evaluate", tmp_path / f"e{seed}", model_name_or_path=place, **test)
        names.append(str(made.directory))
    found = compare_runs(names)
    (pair,) = found["comparisons"]
    groups = np.array(Run.open(names[0]).columns["group"])
    assert found["groups"] == len(set(groups)) == len(contexts) == 8
    ours, theirs = (Run.open(name).columns for name in reversed(names))
    assert pair["difference"] == pytest.approx(np.mean(ours["f1"]) - np.mean(theirs["f1"]))
    assert pair["table"] is None and pair["method"] == "paired bootstrap, sign-flip test"
    assert np.ptp(np.array(ours["f1"]) - np.array(theirs["f1"])) > 0 and pair["better"] + pair["worse"] > 0
    exact = pair["metrics"]["exact_match"]
    assert exact["difference"] == pytest.approx(np.mean(ours["exact_match"]) - np.mean(theirs["exact_match"]))
    describe(found, 5)


@pytest.mark.slow
def test_the_page_tells_training_and_sampling_apart(run: Any, several: tuple[str, str], tmp_path: Path) -> None:
    made = run("report", tmp_path / "r", evaluation=several[0])
    page = " ".join(re.sub(r"<[^>]+>", " ", (made.directory / "report.html").read_text(encoding="utf-8")).split())
    found = Run.open(several[0]).record["seeds"]["value"]
    assert html.escape(found["sentence"], quote=False) in page
    assert "Over examples too" in page and f"{found['low']:.3f} to {found['high']:.3f}" in page


@pytest.mark.parametrize("void", [None, math.nan])
def test_predictions_without_a_value_are_no_evidence(trained: str, void: float | None) -> None:
    values = [void, *Run.open(trained).columns["value"][1:]]
    with pytest.raises(ArtefactError, match=r"cannot be compared: 1 of \d+ examples have no value"):
        compared._check_comparable(Run.open(trained), changed(trained, value=values))
