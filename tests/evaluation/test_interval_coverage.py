"""Intervals that need no probabilities hold the truth as often as they say: 1,000 draws of about 200 examples each."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from llmkit.evaluation.classification import measure
from llmkit.evaluation.intervals import bootstrap, mean_metric, resampled, wilson
from llmkit.evaluation.measured import Measured

DRAWS, N, RESAMPLES = 1000, 200, 400


@pytest.mark.parametrize("share", [0.1, 0.5, 0.85, 0.95])
def test_wilson_holds_a_share(share: float) -> None:
    """Summed over all counts there are, so that nothing is drawn."""
    limits = [wilson(hits, N) for hits in range(N + 1)]
    held = [low <= share <= high for low, high in limits]
    assert 0.93 <= stats.binom.pmf(np.arange(N + 1), N, share)[held].sum() <= 0.97


def test_mover_and_transformed_intervals_hold_averages_and_classes() -> None:
    cells = np.array([[0.36, 0.03, 0.01], [0.04, 0.25, 0.03], [0.02, 0.04, 0.22]])
    names = ["a", "b", "c"]
    truth = {(metric.key, metric.label): metric.value for metric in measure(np.rint(cells * 1e8).astype(np.int64), names)}
    held = dict.fromkeys(truth, 0)
    for counts in np.random.default_rng(2).multinomial(N, cells.reshape(-1), size=DRAWS).reshape(-1, 3, 3):
        for metric in measure(counts, names):
            key = metric.key, metric.label
            held[key] += metric.low <= truth[key] <= metric.high  # type: ignore[operator]
    shares = {key: count / DRAWS for key, count in held.items()}
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares


@pytest.mark.slow
def test_the_bootstrap_holds_a_mean_and_a_ratio() -> None:
    generator = np.random.default_rng(0)
    held = {"mean": 0, "ratio": 0}
    for _ in range(DRAWS):
        scores = np.where(generator.random(N) < 0.5, 1.0, generator.beta(0.5, 1.0, N))  # the F1 of answers, say
        low, high = bootstrap(np.stack([scores, np.ones(N)], axis=1), lambda x: x[:, 0] / x[:, 1], 0, resamples=RESAMPLES)
        held["mean"] += low <= 0.5 + 0.5 / 3 <= high
        tokens = generator.integers(5, 60, N).astype(np.float64)
        losses = tokens * generator.gamma(9, 1 / 3, N)  # each token costs 3
        low, high = bootstrap(np.stack([losses, tokens], axis=1), lambda x: x[:, 0] / x[:, 1], 0, resamples=RESAMPLES)
        held["ratio"] += low <= 3 <= high
    assert all(0.93 <= count / DRAWS <= 0.97 for count in held.values()), held


@pytest.mark.slow
def test_the_cluster_bootstrap_holds_a_mean_where_the_plain_one_does_not() -> None:
    """80 contexts of five questions, whose scores depend on the context."""
    generator = np.random.default_rng(3)
    groups = np.repeat(np.arange(80), 5)
    held: dict[str, list[bool]] = {"clusters": [], "examples": []}
    for draw in range(DRAWS):
        ease = generator.beta(2, 1, 80)[groups]
        scores = (generator.random(400) < ease).astype(np.float64)
        sums = np.stack([scores, np.ones(400)], axis=1)
        for name, of in (("clusters", groups), ("examples", None)):
            if of is not None or draw < 200:
                low, high = bootstrap(sums, lambda x: x[:, 0] / x[:, 1], 0, of, resamples=RESAMPLES)
                held[name].append(low <= 2 / 3 <= high)
    shares = {name: float(np.mean(values)) for name, values in held.items()}
    assert 0.93 <= shares["clusters"] <= 0.97 and shares["examples"] < 0.93, shares


def test_what_does_not_vary_is_not_taken_for_certain() -> None:
    one_text = mean_metric("f1", np.array([0.2, 0.9, 0.4]), 0, np.zeros(3, dtype=np.int64))
    assert (one_text.low, one_text.high) == (None, None), "of how texts differ one says nothing"
    for values, ends in ((np.ones(3), wilson(3, 3)), (np.zeros(3), wilson(0, 3))):
        whole = mean_metric("f1", values, 0)
        assert (whole.low, whole.high) == ends
    of_hundred = mean_metric("chrf", np.full(4, 100.0), 0, perfect=100.0)
    assert (of_hundred.low, of_hundred.high) == tuple(100 * end for end in wilson(4, 4))
    for value in (0.0, 0.1, 1 / 3):
        errors = mean_metric("mse", np.full(7, value), 0, perfect=None)
        assert (errors.low, errors.high) == (None, None), "an error has no upper end to be near to"
        assert (errors.value, errors.method) == (pytest.approx(value), "none")


def test_what_is_no_mean_is_not_taken_for_certain_either() -> None:
    def ratio(totals: np.ndarray) -> np.ndarray:
        return totals[:, 0] / totals[:, 1]

    one, alike = np.array([[2.0, 4.0]]), np.array([[1.0, 3.0], [0.1, 0.3], [7.0, 21.0]])
    for sums, value in ((one, 0.5), (alike, 1 / 3)):
        found = resampled("m", value, sums, ratio, 0, perfect=1.0)
        assert (found.value, found.low, found.high, found.n, found.method) == (value, None, None, len(sums), "none")
    right = np.array([[3.0, 3.0], [5.0, 5.0]])
    whole = resampled("m", 1.0, right, ratio, 0, perfect=1.0)
    assert (whole.low, whole.high, whole.method) == (*wilson(2, 2), "wilson")
    assert resampled("m", 1.0, right, ratio, 0).low is None, "Wilson's interval is that of a share"
    varied = resampled("m", 0.5, np.array([[1.0, 4.0], [3.0, 4.0]]), ratio, 0)
    assert (varied.low, varied.high, varied.method) == (0.25, 0.75, "bootstrap")


@pytest.mark.parametrize(
    ("settings", "expected"), [({}, True), ({"perfect": 100.0}, False), ({"lower_is_better": True}, False)]
)
def test_a_share_is_of_right_predictions_alone(settings: dict[str, object], expected: bool) -> None:
    assert Measured([], [], np.array([0.0, 1.0]), "m", **settings).is_share is expected  # type: ignore[arg-type]
