from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, EvalPrediction

from llmkit.errors import ConfigError, DataError
from llmkit.pipeline.artefact import Artefact
from llmkit.tasks.base import conflicting, seen
from llmkit.tasks.features import Features
from llmkit.tasks.settings import Columns
from llmkit.tasks.tables import Row
from llmkit.tasks.text_classification import Example, TextClassification, label_names, probabilities

task = TextClassification([])


def rows(*pairs: tuple[Any, Any]) -> list[Row]:
    return [Row(f"f.csv:{number}", {"text": text, "label": label}) for number, (text, label) in enumerate(pairs, start=2)]


def of_labels(labels: list[str]) -> list[Example]:
    return [
        Example(id=str(number), text=f"text {number}", label=label, place=f"f:{number}") for number, label in enumerate(labels)
    ]


def test_texts_and_labels_are_stripped_and_numbers_are_labels() -> None:
    found = task.read(rows((" a ", " x "), ("b", 3), ("c", True)), Columns())
    assert [(item.text, item.label) for item in found] == [("a", "x"), ("b", "3"), ("c", "True")]
    assert [item.place for item in found] == ["f.csv:2", "f.csv:3", "f.csv:4"]


def test_an_id_of_the_row_is_kept() -> None:
    found = task.read([Row("f:1", {"id": 7, "text": "a", "label": "x"}), Row("f:2", {"text": "b", "label": "y"})], Columns())
    assert [item.id for item in found] == ["7", "f:2"]


@pytest.mark.parametrize("empty", ["", "   ", "\n\t", None, 5])
def test_rows_without_text_are_counted_and_named(empty: Any) -> None:
    given = rows(("a", "x"), (empty, "x"), ("b", "y"), (empty, "x"))
    with pytest.raises(DataError, match=r"2 rows have no text in column 'text': f\.csv:3, f\.csv:5"):
        task.read(given, Columns())


@pytest.mark.parametrize("label", ["", " ", None, ["a", "b"], {"a": 1}])
def test_rows_without_one_label_are_counted_and_named(label: Any) -> None:
    with pytest.raises(DataError, match=r"1 rows? ha\w+ no single label in column 'label': f\.csv:3"):
        task.read(rows(("a", "x"), ("b", label)), Columns())


def test_of_many_bad_rows_the_first_few_are_named() -> None:
    with pytest.raises(DataError, match=r"f\.csv:2, f\.csv:3, f\.csv:4 and 96 more"):
        task.read(rows(*[("", "x")] * 99), Columns())


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["b", "a", "b"], ["a", "b"]),
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["²", "1"], ["1", "²"]),
        (["--1", "1"], ["--1", "1"]),
        (["-", "1"], ["-", "1"]),
        (["1.5", "10", "9"], ["1.5", "10", "9"]),
    ],
)
def test_classes_are_sorted_numbers_by_their_value(labels: list[str], expected: list[str]) -> None:
    assert label_names(of_labels(labels)) == expected


def test_a_single_class_is_refused() -> None:
    with pytest.raises(DataError, match="all 3 training examples have the label 'x'; a classifier needs at least two"):
        label_names(of_labels(["x", "x", "x"]))


def test_a_label_unseen_in_training_is_refused_with_its_rows() -> None:
    with pytest.raises(DataError) as refused:
        TextClassification(["a", "b"]).check(of_labels(["a", "c", "b", "d"]), "test")
    for words in ("test", "'c', 'd'", "a, b", "f:1, f:3"):
        assert words in str(refused.value)


@given(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=120),
    st.floats(0.01, 0.99),
    st.integers(0, 10),
)
@settings(max_examples=200, deadline=None)
def test_holding_out_is_disjoint_stratified_and_leaves_every_label_in_training(
    labels: list[str], fraction: float, seed: int
) -> None:
    data = of_labels(labels)
    train, held = task.hold_out(data, fraction, seed)
    assert sorted(item.id for item in [*train, *held]) == sorted(item.id for item in data)
    counts, kept = Counter(labels), Counter(item.label for item in held)
    assert {item.label for item in train} == set(labels)
    for label, count in counts.items():
        assert abs(kept[label] - count * fraction) <= 1
        if count > 1:
            assert kept[label] >= 1
    again = task.hold_out(data, fraction, seed)
    assert ([item.id for item in again[0]], [item.id for item in again[1]]) == (
        [item.id for item in train],
        [item.id for item in held],
    )


def test_another_seed_holds_out_others() -> None:
    data = of_labels(["a", "b"] * 100)
    first, second = ({item.id for item in task.hold_out(data, 0.2, seed)[1]} for seed in (0, 1))
    assert first != second


def of(*pairs: tuple[str, str]) -> list[Example]:
    return [Example(id=str(number), text=text, label=label, place=f"f:{number}") for number, (text, label) in enumerate(pairs)]


@given(st.lists(st.tuples(st.sampled_from([f"t{number}" for number in range(12)]), st.sampled_from("ab")), min_size=1))
@settings(max_examples=200, deadline=None)
def test_no_text_is_both_held_out_and_trained_on(pairs: list[tuple[str, str]]) -> None:
    data = of(*pairs)
    train, held = task.hold_out(data, 0.3, 0)
    assert sorted(item.id for item in [*train, *held]) == sorted(item.id for item in data)
    assert not seen(held, train).any()
    assert conflicting(held) == 0
    assert {item.label for item in train} == {item.label for item in data}
    for label in {item.label for item in data}:
        alone = {item.text for item in data if item.label == label} - {item.text for item in data if item.label != label}
        assert any(item.label == label for item in held) == (len(alone) > 1)


def test_a_text_of_most_examples_is_not_held_out() -> None:
    data = of(*[("often", "a")] * 9, ("once", "a"), *[("oft", "b")] * 9, ("rarely", "b"))
    for seed in range(8):
        assert {item.text for item in task.hold_out(data, 0.1, seed)[1]} == {"once", "rarely"}


def test_texts_are_compared_without_case_width_and_white_space() -> None:
    known = of(("Ｇｏｏｄ  film\n", "a"), ("Straße", "a"))
    data = of(("good FILM", "b"), ("goodfilm", "a"), ("STRASSE", "a"))
    assert seen(data, known).tolist() == [True, False, True]
    assert seen(data, []).tolist() == [False] * 3


def test_texts_with_several_labels_are_counted_once_each() -> None:
    assert conflicting(of(("a", "x"), ("A", "y"), ("a", "z"), ("b", "x"), ("b ", "x"))) == 1


def test_the_average_of_a_learning_curve_is_over_the_classes_with_examples() -> None:
    logits = np.array([[3.0, 0, 0], [0, 3, 0]])
    found = task.compute_metrics([], Features({}))(EvalPrediction(logits, np.array([0, 1])))
    assert found == {"accuracy": 1.0, "f1_macro": 1.0}


def test_features_are_cut_and_counted_and_padded_on_the_right(base_model: Artefact) -> None:
    tokenizer = task.load_tokenizer(str(base_model.directory))
    features = TextClassification(["a", "b"]).features(of(("word " * 50, "b"), ("x", "a")), tokenizer, max_length=12)
    assert [len(features[index]["input_ids"]) for index in range(2)] == [12, 1]
    assert [features[index]["labels"] for index in range(2)] == [1, 0]
    assert features.facts["truncated"] == 1
    batch = task.collator(tokenizer, multiple=8)([features[0], features[1]])
    assert batch["input_ids"].shape == (2, 16), "rounded up to 8"
    assert batch["input_ids"][1, 1:].unique().tolist() == [tokenizer.pad_token_id]
    assert batch["attention_mask"].sum(1).tolist() == [12, 1]


def test_only_the_head_is_new_and_a_head_of_another_size_is_too(base_model: Artefact, classifier: Artefact) -> None:
    tokenizer = task.load_tokenizer(str(base_model.directory))
    for place, labels, new in (
        (base_model, ["a", "b"], ["score.weight"]),
        (classifier, ["bad", "good"], []),
        (classifier, ["a", "b", "c"], ["score.weight"]),
    ):
        assert TextClassification(labels).load_model(str(place.directory), tokenizer, 0, None)[1] == new


def test_a_text_that_just_fits_is_not_counted_as_cut(base_model: Artefact) -> None:
    tokenizer = task.load_tokenizer(str(base_model.directory))
    length = len(tokenizer("word word")["input_ids"])
    fits = TextClassification(["a", "b"]).features(of(("word word", "a")), tokenizer, max_length=length)
    assert fits.facts["truncated"] == 0


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="has no tokenizer that can be loaded"):
        task.load_tokenizer(str(tmp_path))


def test_a_padding_token_is_made_of_eos_only_where_there_is_none(tokenizer: Artefact, tmp_path: Any) -> None:
    assert task.load_tokenizer(str(tokenizer.directory)).pad_token == "<|pad|>"
    bare = AutoTokenizer.from_pretrained(tokenizer.directory)
    bare.pad_token = None
    bare.save_pretrained(tmp_path)
    assert task.load_tokenizer(str(tmp_path)).pad_token == "<|endoftext|>"


@given(st.lists(st.lists(st.floats(-800, 800), min_size=3, max_size=3), min_size=1, max_size=5))
@settings(deadline=None)
def test_probabilities_sum_to_one_and_keep_the_order_of_logits(logits: list[list[float]]) -> None:
    chances = probabilities(np.array(logits, dtype=np.float32))
    assert np.isfinite(chances).all()
    assert chances.sum(axis=1) == pytest.approx(np.ones(len(logits)))
    assert (np.take_along_axis(chances, np.argmax(logits, axis=1)[:, None], 1)[:, 0] == chances.max(axis=1)).all()


def test_a_roberta_takes_as_many_tokens_as_it_has_positions_behind_its_padding(tokenizer: Artefact) -> None:
    import torch

    from llmkit.models.custom import custom_config, new_model
    from llmkit.tasks.base import context_length

    loaded = AutoTokenizer.from_pretrained(tokenizer.directory)
    loaded.model_max_length = 10**30
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    config = custom_config("roberta", small, loaded, 12, "AutoModelForSequenceClassification")
    assert context_length(config, loaded, None) == 12
    model = new_model(config, 0, "AutoModelForSequenceClassification").eval()
    ids = torch.full((1, 12), 7)
    assert model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.isfinite().all()
    with pytest.raises(ConfigError, match="13 is more than the 12 tokens"):
        context_length(config, loaded, 13)
