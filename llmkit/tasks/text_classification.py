"""Text classification: one label a text, with any encoder or decoder of transformers.

The shape of every task file: the columns it needs, how an example becomes features, the model head, the collator, how
outputs become predictions, and its metrics.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.errors import ConfigError, DataError
from llmkit.tasks.tables import Row, pick_column, places

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXT_COLUMNS = ("text", "sentence", "review", "content", "text_a")
LABEL_COLUMNS = ("label", "labels", "sentiment", "class", "category")


@dataclass
class Example:
    """A text with its label, and where it stands."""

    id: str
    text: str
    label: str
    place: str


# Columns


def examples(rows: list[Row], text_column: str | None, label_column: str | None) -> list[Example]:
    """Checked examples from rows.

    Raises:
        DataError: a column is missing, or rows without text or label (named by their lines).
    """
    text_name = pick_column(rows, text_column, TEXT_COLUMNS, "text_column")
    label_name = pick_column(rows, label_column, LABEL_COLUMNS, "label_column")
    found, empty, unlabelled = [], [], []
    for row in rows:
        text, label = row.values.get(text_name), row.values.get(label_name)
        if not isinstance(text, str) or not text.strip():
            empty.append(row)
        elif label is None or isinstance(label, (list, dict)) or not str(label).strip():
            unlabelled.append(row)
        else:
            identity = str(row.values.get("id", Path(row.place).name))  # where a file lies is nothing of its content
            found.append(Example(identity, text.strip(), str(label).strip(), row.place))
    if empty:
        raise DataError(f"{len(empty)} rows have no text in column {text_name!r}: {places(empty)}; remove or fill them")
    if unlabelled:
        raise DataError(f"{len(unlabelled)} rows have no single label in column {label_name!r}: {places(unlabelled)}")
    return found


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


def check_labels(data: list[Example], labels: list[str], split: str) -> None:
    """Refuse labels that the model cannot predict.

    Raises:
        DataError: naming the labels and the rows.
    """
    strange = [example for example in data if example.label not in labels]
    if strange:
        kinds = ", ".join(sorted({repr(example.label) for example in strange}))
        lines = places([Row(example.place, {}) for example in strange])
        raise DataError(f"{split}: the label {kinds} does not occur in training (there: {', '.join(labels)}): {lines}")


# Texts that stand in the data more than once


def normalised(text: str) -> str:
    """A text as it is compared with others: compatibility forms, letter case and white space make no difference."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def seen(data: Iterable[Example], known: Iterable[Example]) -> np.ndarray:
    """Whether the text of each example is also that of a known one; bool of shape [examples]."""
    texts = {normalised(example.text) for example in known}
    return np.array([normalised(example.text) in texts for example in data], dtype=bool)


def conflicting(data: Iterable[Example]) -> int:
    """How many texts stand there with more than one label."""
    labels: dict[str, set[str]] = {}
    for example in data:
        labels.setdefault(normalised(example.text), set()).add(example.label)
    return sum(len(found) > 1 for found in labels.values())


def hold_out(data: list[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
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


def digest(data: list[Example]) -> str:
    """One hash of all texts and labels in their order: equal digests mean the same examples."""
    text = json.dumps([[example.text, example.label] for example in data])
    return hashlib.sha256(text.encode()).hexdigest()


# Features


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer, set up for classification.

    Raises:
        ConfigError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as failure:
        raise ConfigError([f"model_name_or_path: {name!r} has no tokenizer that can be loaded: {failure}"]) from failure
    # A causal model classifies at its last token that is not padding; padding on the right keeps that token in its place.
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ConfigError([f"model_name_or_path: the tokenizer of {name!r} has neither a padding nor an EOS token"])
    return tokenizer


class Features:
    """Examples as model inputs; a torch map-style data set."""

    def __init__(self, data: list[Example], tokenizer: Any, labels: list[str], max_length: int):
        numbers = {name: index for index, name in enumerate(labels)}
        encoded = tokenizer([example.text for example in data], truncation=True, max_length=max_length)
        self.items: list[dict[str, Any]] = [
            {
                "input_ids": input_ids if input_ids else [tokenizer.pad_token_id],
                "attention_mask": mask if mask else [1],
                "labels": numbers[example.label],
            }
            for example, input_ids, mask in zip(data, encoded["input_ids"], encoded["attention_mask"], strict=True)
        ]
        if encoded.encodings is None:  # not a fast tokenizer; one that just fits is counted too
            self.truncated = sum(len(item["input_ids"]) == max_length for item in self.items)
        else:
            self.truncated = sum(bool(item.overflowing) for item in encoded.encodings)

    def fingerprint(self) -> str:
        """One sha256 of all examples as the model sees them."""
        return hashlib.sha256(json.dumps(self.items, sort_keys=True).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]


def collator(tokenizer: Any) -> Any:
    """Pads a batch to its longest example, rounded up to 8 for the matrix units."""
    from transformers import DataCollatorWithPadding

    return DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)


# Head


def load_model(
    name: str, labels: list[str], tokenizer: Any, seed: int, attn_implementation: str | None, **how: Any
) -> tuple[PreTrainedModel, list[str]]:
    """The model with a classification head for these labels, in float32; a new head is drawn from the seed.

    Args:
        how: further arguments of `from_pretrained`.

    Returns:
        The model, and the names of the weights that are new.

    Raises:
        ConfigError: the model has no such head in transformers, or cannot be loaded.
    """
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that the head is missing is as it should be; the caller tells it in a line
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                name,
                num_labels=len(labels),
                problem_type="single_label_classification",
                id2label=dict(enumerate(labels)),
                label2id={label: index for index, label in enumerate(labels)},
                dtype="float32",
                attn_implementation=attn_implementation,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **how,
            )
        except (OSError, ValueError, ImportError) as failure:
            raise ConfigError([f"model_name_or_path: {name!r} gives no text classifier: {failure}"]) from failure
        finally:
            logging.set_verbosity(verbosity)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})


def loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    """Cross-entropy, as `Trainer` takes a `compute_loss_func`: every example of a step weighs the same.

    The loss inside transformers' models is the mean over a batch, whatever it is told of the other batches of the step, and
    Trainer takes it for a share of the mean over the step: with N processes or N accumulated batches, the gradient is N times
    too large.

    Args:
        labels: class indices of the batch.
        num_items_in_batch: examples of the whole step, on all processes; None outside of training, for the batch's own mean.
    """
    from torch.nn.functional import cross_entropy

    total = cross_entropy(outputs["logits"].float(), labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def context_length(model: PreTrainedModel, tokenizer: Any, asked: int | None) -> int:
    """Longest input in tokens: the one asked for, or what model and tokenizer allow."""
    limits = [getattr(model.config, name, None) for name in ("max_position_embeddings", "n_positions")]
    known = [limit for limit in [*limits, tokenizer.model_max_length] if isinstance(limit, int) and 0 < limit < 1_000_000]
    if asked is not None and known and asked > min(known):
        raise ConfigError([f"max_length: {asked} is more than the {min(known)} tokens that the model takes"])
    return asked or min(known, default=512)


# Predictions and metrics


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over classes; float64 of shape [examples, classes]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def compute_metrics(prediction: Any) -> dict[str, float]:
    """Accuracy and macro F1 of a `transformers.EvalPrediction`, for learning curves and the choice of the best checkpoint.

    As in `llmkit evaluate`, the average is over the classes that have examples.
    """
    from sklearn.metrics import accuracy_score, f1_score

    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    predicted, true = logits.argmax(axis=1), prediction.label_ids
    macro = f1_score(true, predicted, average="macro", labels=np.unique(true), zero_division=0)
    return {"accuracy": float(accuracy_score(true, predicted)), "f1_macro": float(macro)}


def label_counts(data: list[Example], labels: list[str]) -> dict[str, int]:
    """How many examples each label has."""
    counts = Counter(example.label for example in data)
    return {label: counts[label] for label in labels}
