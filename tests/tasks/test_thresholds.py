from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import f1_score

from llmkit.tasks.thresholds import FEWEST, best_f1, best_macro_f1, per_class

chances = arrays(np.float64, 30, elements=st.floats(0, 1).map(lambda value: round(value, 2)))
truths = arrays(np.bool_, 30)


@given(chances, truths)
@settings(max_examples=25, deadline=None)
def test_no_other_threshold_that_some_have_has_a_higher_f1(probabilities: np.ndarray, true: np.ndarray) -> None:
    others = [value for value in np.linspace(-0.005, 0.995, 21) if value <= probabilities.max()]
    for found, average, classes in (
        (best_f1(probabilities, true), "binary", None),
        (best_macro_f1(probabilities, true), "macro", [False, True]),
    ):
        first, *rest = (
            f1_score(true, probabilities >= value, average=average, labels=classes, zero_division=0)
            for value in (found, *others)
        )
        assert first >= max(rest) - 1e-9


def test_where_nothing_is_gained_it_stays_at_one_half() -> None:
    assert best_f1(np.array([0.1, 0.9, 0.2, 0.8]), np.array([False, True, False, True])) == 0.5
    assert best_f1(np.array([0.3, 0.4]), np.array([False, False])) == 0.5


def test_a_class_with_few_positives_shares_the_threshold_of_all() -> None:
    generator = np.random.default_rng(0)
    true = np.zeros((100, 3), dtype=bool)
    true[:40, 0], true[20:60, 1], true[: FEWEST - 1, 2] = True, True, True
    probabilities = np.clip(true * 0.2 + generator.random((100, 3)) * 0.3, 0, 1)
    found = per_class(probabilities, true)
    assert found[2] == best_f1(probabilities.reshape(-1), true.reshape(-1))
    assert [found[0], found[1]] == [best_f1(probabilities[:, index], true[:, index]) for index in range(2)]
    assert per_class(probabilities[:, 2:], true[:, 2:]) == pytest.approx([0.5]), "nothing has enough to go by"
