"""Text classification: one label a text, with any encoder or decoder of transformers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from llmkit.errors import DataError
from llmkit.tasks import base
from llmkit.tasks.base import Task, batches_of_like_length, context_length, normalised
from llmkit.tasks.features import Features, Ragged
from llmkit.tasks.tables import Row, pick_column, places

if TYPE_CHECKING:
    from transformers import PretrainedConfig

TEXT_COLUMNS = ("text", "sentence", "review", "content", "text_a")
LABEL_COLUMNS = ("label", "labels", "sentiment", "class", "category")


@dataclass(kw_only=True)
class Example(base.Example):
    """A text with its label."""

    text: str
    label: str
    """Empty where none is known."""

    def input(self) -> str:
        return self.text

    def target(self) -> str:
        return self.label


class TextClassification(Task[Example]):
    """One label a text."""

    name = "text-classification"
    title = "Text classifier"
    usage = (
        "from transformers import pipeline\n\n"
        'classify = pipeline("text-classification", model="PATH_OF_THIS_DIRECTORY")\n'
        'print(classify("Not a single dull minute."))'
    )
    auto_class = "AutoModelForSequenceClassification"
    metrics: ClassVar[dict[str, bool]] = {"f1_macro": True, "accuracy": True}

    def __init__(self, labels: list[str]):
        """Set up.

        Args:
            labels: the classes in the order of their numbers; empty until they are learned.
        """
        self.labels = labels

    @classmethod
    def of_config(cls, config: Any) -> TextClassification:
        return cls([])

    @classmethod
    def of_model(cls, stored: Mapping[str, Any], config: PretrainedConfig) -> TextClassification:
        return cls([str(config.id2label[index]) for index in range(config.num_labels)])

    # Examples

    def read(self, rows: list[Row], columns: Any, is_labelled: bool = True) -> list[Example]:
        text_name = pick_column(rows, columns.text_column, TEXT_COLUMNS, "text_column")
        label_name = pick_column(rows, columns.label_column, LABEL_COLUMNS, "label_column") if is_labelled else ""
        found, empty, unlabelled = [], [], []
        for row in rows:
            text, label = row.values.get(text_name), row.values.get(label_name) if is_labelled else ""
            if not isinstance(text, str) or not text.strip():
                empty.append(row)
            elif is_labelled and (label is None or isinstance(label, (list, dict)) or not str(label).strip()):
                unlabelled.append(row)
            else:
                identity = str(row.values.get("id", Path(row.place).name))  # where a file lies is nothing of its content
                found.append(Example(id=identity, text=text.strip(), label=str(label).strip(), place=row.place))
        if empty:
            raise DataError(f"{len(empty)} rows have no text in column {text_name!r}: {places(empty)}; remove or fill them")
        if unlabelled:
            raise DataError(f"{len(unlabelled)} rows have no single label in column {label_name!r}: {places(unlabelled)}")
        return found

    def learn(self, train: list[Example]) -> Iterator[str]:
        self.labels = label_names(train)
        yield f"labels {', '.join(self.labels)}"

    def check(self, data: list[Example], split: str) -> None:
        strange = [example for example in data if example.label not in self.labels]
        if strange:
            kinds = ", ".join(sorted({repr(example.label) for example in strange}))
            lines = places([Row(example.place, {}) for example in strange])
            there = ", ".join(self.labels)
            raise DataError(f"{split}: the label {kinds} does not occur in training (there: {there}): {lines}")

    def hold_out(self, data: list[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
        """Split off a validation set with the same share of each label, the same for the same seed.

        Equal texts stay together, so that none is in both parts; those with more than one label stay in training.
        """
        groups: dict[str, list[int]] = {}
        for index, example in enumerate(data):
            groups.setdefault(normalised(example.text), []).append(index)
        by_label: dict[str, list[list[int]]] = {}
        for group in groups.values():
            labels = {data[index].label for index in group}
            if len(labels) == 1:
                by_label.setdefault(labels.pop(), []).append(group)
        counts = Counter(example.label for example in data)
        generator = np.random.default_rng(seed)
        held: set[int] = set()
        for label in sorted(by_label):
            drawn = [by_label[label][index] for index in generator.permutation(len(by_label[label]))]
            share, count = max(1, round(counts[label] * fraction)), 0
            candidates = drawn[:-1]  # at least one text of each label stays in training
            for group in candidates:
                if count + len(group) <= share:
                    held.update(group)
                    count += len(group)
            if candidates and not count:
                smallest = min(candidates, key=len)
                held.update(smallest)
        rest = [example for index, example in enumerate(data) if index not in held]
        return rest, [data[index] for index in sorted(held)]

    # Model

    def head(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "problem_type": "single_label_classification",
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: index for index, label in enumerate(self.labels)},
        }

    def what_it_is(self) -> str:
        return f"A text classifier with the labels {', '.join(self.labels)}"

    def described(self) -> dict[str, Any]:
        return {"labels": self.labels}

    def facts(self, data: list[Example]) -> dict[str, Any]:
        counts = Counter(example.label for example in data)
        return {"labels": {label: counts[label] for label in self.labels}}

    def features(self, data: list[Example], tokenizer: Any, max_length: int) -> Features:
        encoded = tokenizer([example.text for example in data], truncation=True, max_length=max_length)
        ids = [found or [tokenizer.pad_token_id] for found in encoded["input_ids"]]
        if encoded.encodings is None:  # not a fast tokenizer; one that just fits is counted too
            truncated = sum(len(found) == max_length for found in ids)
        else:
            truncated = sum(bool(item.overflowing) for item in encoded.encodings)
        numbers = {name: index for index, name in enumerate(self.labels)}
        labels = np.array([numbers.get(example.label, -1) for example in data], dtype=np.int64)
        return Features({"input_ids": Ragged.of(ids), "labels": labels}, {"truncated": truncated})

    def loss(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        """Cross-entropy: every example of a step weighs the same.

        The loss inside transformers' models is the mean over a batch, whatever it is told of the other batches of the step,
        and Trainer takes it for a share of the mean over the step: with N processes or N accumulated batches, the gradient is
        N times too large.

        Args:
            labels: class indices of the batch.
            num_items_in_batch: examples of the whole step, on all processes; None outside of training, for the batch's own
                mean.
        """
        from torch.nn.functional import cross_entropy

        total = cross_entropy(outputs["logits"].float(), labels, reduction="sum")
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    def compute_metrics(self, data: list[Example], features: Features) -> Callable[[Any], dict[str, float]]:
        """Accuracy and macro F1. As in `llmkit evaluate`, the average is over the classes that have examples."""
        from sklearn.metrics import accuracy_score, f1_score

        def compute(prediction: Any) -> dict[str, float]:
            logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
            predicted, true = logits.argmax(axis=1), prediction.label_ids
            macro = f1_score(true, predicted, average="macro", labels=np.unique(true), zero_division=0)
            return {"accuracy": float(accuracy_score(true, predicted)), "f1_macro": float(macro)}

        return compute

    # Predictions

    def predict(self, model: Any, tokenizer: Any, data: Sequence[Example], batch_size: int) -> Iterator[dict[str, Any]]:
        """The label with the highest probability, its `score`, and the probability of every label."""
        for chances in self.probabilities(model, tokenizer, data, batch_size):
            best = int(chances.argmax())
            row: dict[str, Any] = {"prediction": self.labels[best], "score": float(chances[best])}
            yield row | {f"probability_{label}": float(chance) for label, chance in zip(self.labels, chances, strict=True)}

    def probabilities(self, model: Any, tokenizer: Any, data: Sequence[Example], batch_size: int) -> np.ndarray:
        """Class probabilities, float64 of shape [examples, classes]."""
        import torch
        from tqdm import tqdm

        features = self.features(list(data), tokenizer, context_length(model.config, tokenizer, None))
        features.columns.pop("labels")
        collate = self.collator(tokenizer)
        logits = np.empty((len(data), len(self.labels)))
        batches = list(batches_of_like_length(features.lengths(), batch_size))
        with torch.inference_mode():
            for chosen in tqdm(batches, desc="predict", unit="batch", disable=None):
                batch = {name: value.to(model.device) for name, value in collate([features[i] for i in chosen]).items()}
                logits[chosen] = model(**batch).logits.float().cpu().numpy()
        return probabilities(logits)


def label_names(train: list[Example]) -> list[str]:
    """The classes of a training set, numbers in numerical order.

    Raises:
        DataError: there is only one class.
    """
    names = {example.label for example in train}
    if len(names) < 2:
        raise DataError(f"all {len(train)} training examples have the label {names.pop()!r}; a classifier needs at least two")
    try:
        return sorted(names, key=lambda name: (int(name), name))  # `1` and `01` are two labels
    except ValueError:
        return sorted(names)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over classes; float64 of shape [examples, classes]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum(axis=1, keepdims=True)
