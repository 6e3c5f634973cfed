"""Rules over signals: settings to rules, problems in words, verdicts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.corpus.quality.lines import LineRules
from llmkit.corpus.quality.measure import SETS as NAMES
from llmkit.corpus.quality.rules import SETS, Rule, failing, judge, line_rules_of, problems, rules_of
from llmkit.corpus.quality.signals import SIGNALS


def test_every_rule_has_a_signal_of_its_set_and_every_signal_a_definition() -> None:
    assert tuple(SETS) == NAMES
    for name, rules in SETS.items():
        for rule in rules:
            assert rule.name.startswith(f"{name}.") and rule.bound in ("least", "most") and rule.source
            assert SIGNALS[rule.signal].group in (name, "")
    assert all(signal.definition and signal.unit and signal.source for signal in SIGNALS.values())
    used = {rule.signal for rules in SETS.values() for rule in rules}
    assert set(SIGNALS) - used == {"unspaced_share", "kept_lines"}


def test_a_threshold_can_be_changed_and_a_rule_switched_off() -> None:
    (words, *_) = rules_of(["gopher_quality"], {"gopher_quality": {"min_words": 20, "max_hash_ratio": None}})
    assert (words.name, words.threshold) == ("gopher_quality.min_words", 20)
    names = [rule.name for rule in rules_of(["gopher_quality"], {"gopher_quality": {"max_hash_ratio": None}})]
    assert "gopher_quality.max_hash_ratio" not in names and "gopher_quality.max_ellipsis_ratio" in names


def test_sets_are_tried_in_the_order_in_which_they_are_given() -> None:
    names = [rule.name.partition(".")[0] for rule in rules_of(["c4", "gopher_quality"])]
    assert list(dict.fromkeys(names)) == ["c4", "gopher_quality"]


def test_line_rules_are_among_the_thresholds_of_c4_and_are_no_rules() -> None:
    thresholds = {"c4": {"line_min_words": 5, "line_policy": None, "min_sentences": 3}}
    assert problems(["c4"], thresholds) == []
    assert line_rules_of(thresholds) == LineRules(line_min_words=5, line_policy=None)
    assert [rule.threshold for rule in rules_of(["c4"], thresholds)] == [0, 0, 3]


def test_problems_name_what_is_near() -> None:
    found = problems(
        ["gopher_qualitty", "c4", "c4"],
        {"gopher_quality": {"min_word": 3, "max_words": "x"}, "cfour": {}, "c4": {"line_javascript": 2, "line_min_words": -1}},  # type: ignore[dict-item]
    )
    assert found == [
        "there are no quality filters 'gopher_qualitty'; did you mean gopher_quality?",
        "the quality filters 'c4' are given twice",
        "thresholds are given for gopher_quality, which is not among the filters",
        "gopher_quality has no rule 'min_word'; did you mean min_words?",
        "the threshold gopher_quality.max_words is 'x'; it has to be a number, or null to switch the rule off",
        "thresholds are given for the quality filters 'cfour', which there are not; there are "
        "gopher_repetition, gopher_quality, c4, fineweb",
        "c4.line_javascript is 2; it can only be 0, or null to switch the rule off",
        "c4.line_min_words is -1; it cannot be below 0",
    ]


def test_documents_are_judged_by_the_rules_of_their_own_script_unless_words_are_those_of_others() -> None:
    signals = {"characters": np.ones(2), "unspaced_share": np.array([0.2, 0.9]), "mean_word_length": np.array([2.0, 1.0])}
    rules = [rule for rule in rules_of(["gopher_quality"]) if rule.signal == "mean_word_length"]
    assert failing(rules, signals).tolist() == [[True, False], [False, False]]
    rules = [rule for rule in rules_of(["gopher_quality"], words="spacy") if rule.signal == "mean_word_length"]
    assert failing(rules, signals).tolist() == [[True, True], [False, False]]
    assert not any("unspaced" in rule.name for rule in rules_of(NAMES, words="whitespace-1"))


def test_a_signal_at_its_threshold_or_without_a_value_fails_nothing() -> None:
    signals = {"characters": np.ones(3), "words": np.array([50.0, np.nan, 49.0])}
    assert failing([Rule("a.b", "words", "least", 50, "")], signals).tolist() == [[False, False, True]]
    assert failing([], signals).shape == (0, 3)


numbers = st.floats(-2, 2) | st.just(np.nan)


@given(
    st.lists(st.tuples(numbers, numbers), max_size=5), st.lists(st.tuples(st.sampled_from("ab"), st.floats(-2, 2)), max_size=4)
)
def test_the_first_rule_that_fails_is_the_one_that_counts(
    documents: list[tuple[float, float]], thresholds: list[tuple[str, float]]
) -> None:
    table = np.array(documents, dtype=np.float64).reshape(-1, 2)
    signals = {"characters": np.ones(len(table)), "a": table[:, 0], "b": table[:, 1]}
    rules = [Rule(f"s.{number}", name, "least", value, "") for number, (name, value) in enumerate(thresholds)]
    found, values = judge(rules, signals)
    assert found.dtype == np.int16 and values.dtype == np.float64
    for number, document in enumerate(documents):
        fails = [position for position, (name, value) in enumerate(thresholds) if document["ab".index(name)] < value]
        assert found[number] == (fails[0] if fails else -1)
        np.testing.assert_equal(values[number], document["ab".index(thresholds[fails[0]][0])] if fails else np.nan)


@pytest.mark.parametrize("name", NAMES)
def test_a_looser_threshold_removes_less(name: str) -> None:
    generator = np.random.default_rng(0)
    signals = {signal: generator.random(50) * 3 for signal in SIGNALS}
    for rule in SETS[name]:
        looser = Rule(
            rule.name, rule.signal, rule.bound, rule.threshold + (-0.1 if rule.bound == "least" else 0.1), "", rule.script
        )
        assert not (looser.fails(signals) & ~rule.fails(signals)).any()
