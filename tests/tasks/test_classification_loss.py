from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from llmkit.tasks.classification_loss import ClassificationLoss, class_weights
from llmkit.tasks.labels import MULTI, REGRESSION, SINGLE
from llmkit.tasks.text_classification import Example, TextClassification

CLASSES = 3
WEIGHTS = (0.2, 1.0, 3.0)


def batch(kind: str, size: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(size, 1 if kind == REGRESSION else CLASSES, generator=generator)
    if kind == SINGLE:
        return logits, torch.randint(0, CLASSES, (size,), generator=generator)
    if kind == MULTI:
        return logits, torch.randint(0, 2, (size, CLASSES), generator=generator).float()
    return logits, torch.randn(size, generator=generator)


@given(
    st.sampled_from([SINGLE, MULTI, REGRESSION]),
    st.sampled_from([None, WEIGHTS]),
    st.sampled_from([0.0, 0.5, 2.0]),
    st.sampled_from([0.0, 0.1]),
    st.lists(st.integers(1, 11), max_size=4, unique=True).map(sorted),
)
@settings(max_examples=30, deadline=None)
def test_accumulated_batches_of_any_sizes_give_loss_and_gradient_of_one_large_batch(
    kind: Any, weights: Any, gamma: float, smoothing: float, cuts: list[int]
) -> None:
    loss = ClassificationLoss(kind, weights, gamma, smoothing)
    logits, labels = batch(kind)
    whole = logits.clone().requires_grad_()
    loss({"logits": whole}, labels).backward()
    parts = logits.clone().requires_grad_()
    total = 0.0
    for some, of_some in zip(parts.tensor_split(cuts), labels.tensor_split(cuts), strict=True):
        part = loss({"logits": some}, of_some, num_items_in_batch=torch.tensor(labels.numel()))
        part.backward(retain_graph=True)
        total += part.item()
    assert total == pytest.approx(loss({"logits": logits}, labels).item(), rel=1e-5)
    assert whole.grad is not None and parts.grad is not None
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-4, atol=1e-7)


@given(st.integers(0, 50), st.sampled_from([0.0, 0.1, 0.3]))
@settings(max_examples=20, deadline=None)
def test_with_gamma_0_it_is_the_cross_entropy_of_torch(seed: int, smoothing: float) -> None:
    logits, labels = batch(SINGLE, seed=seed)
    expected = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert ClassificationLoss(SINGLE, smoothing=smoothing)({"logits": logits}, labels) == pytest.approx(
        expected.item(), rel=1e-5
    )
    weight = torch.tensor(WEIGHTS)
    expected = functional.cross_entropy(logits, labels, weight, reduction="sum", label_smoothing=smoothing) / len(labels)
    found = ClassificationLoss(SINGLE, WEIGHTS, smoothing=smoothing)({"logits": logits}, labels)
    assert found == pytest.approx(expected.item(), rel=1e-5)
    logits, labels = batch(MULTI, seed=seed)
    expected = functional.binary_cross_entropy_with_logits(
        logits, labels * (1 - smoothing) + smoothing / 2, pos_weight=torch.tensor(WEIGHTS)
    )
    found = ClassificationLoss(MULTI, WEIGHTS, smoothing=smoothing)({"logits": logits}, labels)
    assert found == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_the_focal_loss_is_that_of_its_paper(gamma: float) -> None:
    logits, labels = batch(SINGLE)
    right = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    expected = (-((1 - right) ** gamma) * right.log()).mean()
    assert ClassificationLoss(SINGLE, focal_gamma=gamma)({"logits": logits}, labels) == pytest.approx(
        expected.item(), rel=1e-4
    )
    logits, labels = batch(MULTI)
    right = torch.where(labels > 0, logits.sigmoid(), 1 - logits.sigmoid())
    expected = (-((1 - right) ** gamma) * right.log()).mean()
    assert ClassificationLoss(MULTI, focal_gamma=gamma)({"logits": logits}, labels) == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("kind", [SINGLE, MULTI])
def test_certain_predictions_have_finite_gradients(kind: Any) -> None:
    logits = torch.tensor([[200.0, -200.0, -200.0]], requires_grad=True)
    labels = torch.tensor([0]) if kind == SINGLE else torch.tensor([[1.0, 0.0, 1.0]])
    ClassificationLoss(kind, focal_gamma=0.5)({"logits": logits}, labels).backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


@given(st.lists(st.integers(1, 50), min_size=2, max_size=6))
def test_balanced_weights_give_every_class_the_same_sum_and_have_a_mean_of_1(counts: list[int]) -> None:
    labels, n = [str(index) for index in range(len(counts))], sum(counts)
    sums = np.array(class_weights("balanced", labels, counts, n, SINGLE)) * counts
    assert sums == pytest.approx(np.full(len(counts), n / len(counts)))
    of_presence = np.array(class_weights("balanced", labels, counts, n, MULTI)) * counts
    assert of_presence == pytest.approx(n - np.array(counts))


def test_of_named_weights_only_the_ratios_matter_and_others_weigh_one() -> None:
    once = class_weights({"a": 2.0}, ["a", "b"], [10, 30], 40, SINGLE)
    assert once == class_weights({"a": 4.0, "b": 2.0}, ["a", "b"], [10, 30], 40, SINGLE)
    assert once[0] / once[1] == 2.0
    assert class_weights({"a": 2.0}, ["a", "b"], [10, 30], 40, MULTI) == [2.0, 1.0]


def test_a_number_of_minus_100_is_a_label_all_the_same() -> None:
    task = TextClassification(["score"], REGRESSION)
    data = [Example(id="", place="", text="x", label=value) for value in (-100.0, 2.0)]
    targets = torch.from_numpy(task.targets(data))
    assert targets.ne(-100).sum() == 2, "as Trainer counts them"
    assert targets.tolist() == pytest.approx([-100.0, 2.0])
