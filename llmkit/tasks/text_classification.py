"""Text classification: texts or pairs of texts to one class, several classes, or a number, with any encoder or decoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.errors import ConfigError, DataError
from llmkit.tasks import base, thresholds
from llmkit.tasks.base import Task, batches_of_like_length, context_length, drawn, normalised
from llmkit.tasks.classification_loss import ClassificationLoss, class_weights
from llmkit.tasks.features import IGNORED, Features, Ragged
from llmkit.tasks.labels import MULTI, REGRESSION, SINGLE, WANTED, Label, ProblemType, classes_of, detect, label_of
from llmkit.tasks.pairs import give_pair_form
from llmkit.tasks.registry import SECTION
from llmkit.tasks.tables import Row, pick_column, places

if TYPE_CHECKING:
    from transformers import PretrainedConfig

TEXT_COLUMNS = ("text", "sentence", "review", "content", "text_a")
PAIR_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text", "text_pair"),
    ("text_a", "text_b"),
)
LABEL_COLUMNS = ("label", "labels", "sentiment", "class", "category")


@dataclass(kw_only=True)
class Example(base.Example):
    """A text, or two, with what it is to be classified as."""

    text: str
    text_pair: str | None = None
    label: Label
    """Empty where none is known."""

    def input(self) -> str:
        return self.text if self.text_pair is None else f"{self.text} || {self.text_pair}"

    def target(self) -> Label:
        return self.label


class TextClassification(Task[Example]):
    """One class a text, several, or a number; which of them it is, the data says."""

    name = "text-classification"
    title = "Text classifier"
    auto_class = "AutoModelForSequenceClassification"

    def __init__(
        self,
        labels: list[str],
        problem_type: ProblemType | None = None,
        thresholds: Mapping[str, float] | None = None,
        is_pair: bool | None = None,
        settings: Any = None,
    ):
        """Set up.

        Args:
            labels: the classes in the order of their numbers, or the name of the number; empty until they are learned.
            problem_type: None until it is detected.
            thresholds: from which probability on a label is given; of two exclusive classes that of the second.
            is_pair: whether inputs are two texts; None until it is detected.
            settings: of a training (`ClassificationSettings` and those of transformers).
        """
        self.labels, self.problem_type, self.is_pair = labels, problem_type, is_pair
        self.thresholds = dict(thresholds or {})
        self._settings, self._why = settings, ""
        self._loss: ClassificationLoss | None = None

    @property
    def kind(self) -> ProblemType:
        return self.problem_type or SINGLE

    @property
    def usage(self) -> str:
        asked = (
            '{"text": "Not a single dull minute.", "text_pair": "It was good."}'
            if self.is_pair
            else '"Not a single dull minute."'
        )
        if self.kind == MULTI:
            asked += ", top_k=None"
        lines = [
            "from transformers import pipeline\n",
            'classify = pipeline("text-classification", model="PATH_OF_THIS_DIRECTORY")',
            f"print(classify({asked}))",
        ]
        if self.thresholds:
            lines.append(f"print(classify.model.config.{SECTION}['thresholds'])  # from which probability on a label is given")
        return "\n".join(lines)

    @property
    def metrics(self) -> dict[str, bool]:
        if self.kind == MULTI:
            return {"f1_micro": True, "f1_macro": True, "exact_match": True}
        if self.kind == REGRESSION:
            return {"pearson": True, "spearman": True, "mse": False}
        return {"f1_macro": True, "accuracy": True}

    @classmethod
    def of_config(cls, config: Any) -> TextClassification:
        return cls([], config.problem_type, settings=config)

    @classmethod
    def of_model(cls, stored: Mapping[str, Any], config: PretrainedConfig) -> TextClassification:
        labels = [str(config.id2label[index]) for index in range(config.num_labels)]
        # As transformers has it: a model with one output and no other word for it gives a number.
        kind = config.problem_type or (REGRESSION if len(labels) == 1 else SINGLE)
        return cls(labels, kind, stored.get("thresholds"), stored.get("is_pair"))

    def stored(self) -> dict[str, Any]:
        stored: dict[str, Any] = {"is_pair": bool(self.is_pair)}
        return stored | ({"thresholds": self.thresholds} if self.thresholds else {})

    # Examples

    def read(self, rows: list[Row], columns: Any, is_labelled: bool = True) -> list[Example]:
        names = [name for name in self._text_columns(rows, columns) if name is not None]
        label_name = pick_column(rows, columns.label_column, LABEL_COLUMNS, "label_column") if is_labelled else ""
        separator = columns.label_separator
        if is_labelled and self.problem_type is None:
            self.problem_type, self._why = detect([row.values.get(label_name) for row in rows], separator)
        if is_labelled and self.kind == REGRESSION and not self.labels:
            self.labels = [label_name]
        found, unlabelled = [], []
        empty: dict[str, list[Row]] = {}
        for row in rows:
            texts = [row.values.get(name) for name in names]
            label = label_of(row.values.get(label_name), self.kind, separator) if is_labelled else ""
            missing = [name for name, text in zip(names, texts, strict=True) if not isinstance(text, str) or not text.strip()]
            if missing:
                empty.setdefault(missing[0], []).append(row)
            elif label is None:
                unlabelled.append(row)
            else:
                identity = str(row.values.get("id", Path(row.place).name))  # where a file lies is nothing of its content
                first, second = (*[str(text).strip() for text in texts], None)[:2]
                found.append(Example(id=identity, place=row.place, text=str(first), text_pair=second, label=label))
        for name, those in empty.items():
            raise DataError(f"{len(those)} rows have no text in column {name!r}: {places(those)}; remove or fill them")
        if unlabelled:
            wanted = f"{len(unlabelled)} rows have no {WANTED[self.kind]} in column {label_name!r}: {places(unlabelled)}"
            raise DataError(wanted + (f" ({self._why}; problem_type overrides it)" if self._why else ""))
        return found

    def _text_columns(self, rows: list[Row], columns: Any) -> tuple[str, str | None]:
        """The column of texts, and that of second texts where there are pairs."""
        there = rows[0].values
        if columns.text_column is None and columns.text_pair_column is None and self.is_pair is not False:
            for first, second in PAIR_COLUMNS:
                if first in there and second in there:
                    self.is_pair = True
                    return first, second
        if columns.text_pair_column is None:
            if self.is_pair:
                raise DataError(
                    f"text_pair_column: the model takes two texts, and {rows[0].place} has: {', '.join(there)}; name both "
                    f"with --text_column and --text_pair_column"
                )
            self.is_pair = False
            return pick_column(rows, columns.text_column, TEXT_COLUMNS, "text_column"), None
        second = pick_column(rows, columns.text_pair_column, (), "text_pair_column")
        if self.is_pair is False:
            raise DataError(f"text_pair_column: is {second!r}, and the model takes single texts")
        self.is_pair = True
        usual = (*TEXT_COLUMNS, *(first for first, other in PAIR_COLUMNS if other == second))
        return pick_column(rows, columns.text_column, tuple(dict.fromkeys(usual)), "text_column"), second

    def learn(self, train: list[Example]) -> Iterator[str]:
        if self.kind == REGRESSION:
            values = {example.label for example in train}
            if len(values) < 2:
                raise DataError(
                    f"all {len(train)} training examples have the number {values.pop()}; there is nothing to learn"
                )
        else:
            self.labels = label_names(train)
        if self._settings is not None:
            self._loss = self._loss_of(self._settings, train)
        yield self._why or f"problem_type is {self.kind}"
        if self.is_pair:
            yield "inputs are pairs of texts"
        if self.kind != REGRESSION:
            yield f"labels {', '.join(self.labels)}"

    def _loss_of(self, settings: Any, train: list[Example]) -> ClassificationLoss:
        smoothing = settings.training_arguments.get("label_smoothing_factor") or 0.0
        problems = []
        if self.kind == REGRESSION:
            given = {
                "class_weights": settings.class_weights,
                "focal_gamma": settings.focal_gamma,
                "label_smoothing_factor": smoothing,
            }
            problems += [f"{name}: is for classes, and the labels are numbers" for name, value in given.items() if value]
        if settings.class_sampling == "balanced" and self.kind != SINGLE:
            problems.append(
                "class_sampling: needs one class a text"
                + ("; class_weights balances classes of which a text has several" if self.kind == MULTI else "")
            )
        if settings.tune_threshold and not self._has_thresholds:
            problems.append("tune_threshold: is for two classes, or several labels a text")
        if isinstance(settings.class_weights, dict):
            unknown = sorted({str(label) for label in settings.class_weights} - set(self.labels))
            if unknown:
                problems.append(f"class_weights: no label {', '.join(map(repr, unknown))}; there are {', '.join(self.labels)}")
        if problems:
            raise ConfigError(problems)
        weights = None
        if settings.class_weights:
            asked = settings.class_weights
            named = {str(label): weight for label, weight in asked.items()} if isinstance(asked, dict) else asked
            counts = [int(count) for count in self._counts(train)]
            weights = class_weights(named, self.labels, counts, len(train), self.kind)
        return ClassificationLoss(self.kind, weights, settings.focal_gamma, smoothing)

    @property
    def _has_thresholds(self) -> bool:
        return self.kind == MULTI or (self.kind == SINGLE and len(self.labels) == 2)

    def _counts(self, data: list[Example]) -> np.ndarray:
        """Examples of each class, int64 of shape [classes]."""
        return (self.targets(data).sum(axis=0) if self.kind == MULTI else np.bincount(self.targets(data))).astype(np.int64)

    def check(self, data: list[Example], split: str) -> None:
        if self.kind == REGRESSION:
            return
        strange = [(example, name) for example in data for name in classes_of(example.label) if name not in self.labels]
        if strange:
            kinds = ", ".join(sorted({repr(name) for _, name in strange}))
            lines = places([Row(place, {}) for place in dict.fromkeys(example.place for example, _ in strange)])
            there = ", ".join(self.labels)
            raise DataError(f"{split}: the label {kinds} does not occur in training (there: {there}): {lines}")

    def sampling_groups(self, data: list[Example]) -> list[np.ndarray] | None:
        if self._settings is None or self._settings.class_sampling != "balanced":
            return None
        numbers = self.targets(data)
        return [found for index in range(len(self.labels)) if len(found := np.flatnonzero(numbers == index))]

    def hold_out(self, data: list[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
        """Split off a validation set with the same share of each label, the same for the same seed.

        Equal texts stay together, so that none is in both parts; those with more than one label stay in training, and so does
        at least one text of each label.
        """
        if self.kind == REGRESSION:
            return super().hold_out(data, fraction, seed)
        if self.kind == MULTI:
            return self._hold_out_several(data, fraction, seed)
        groups: dict[str, list[int]] = {}
        for index, example in enumerate(data):
            groups.setdefault(normalised(example.input()), []).append(index)
        by_label: dict[str, list[list[int]]] = {}
        for group in groups.values():
            labels = {str(data[index].label) for index in group}
            if len(labels) == 1:
                by_label.setdefault(labels.pop(), []).append(group)
        counts = Counter(str(example.label) for example in data)
        generator = np.random.default_rng(seed)
        held: set[int] = set()
        for label in sorted(by_label):
            held |= drawn(by_label[label], max(1, round(counts[label] * fraction)), generator)
        rest = [example for index, example in enumerate(data) if index not in held]
        return rest, [data[index] for index in sorted(held)]

    def _hold_out_several(self, data: list[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
        """The same for texts with several labels: of rare labels first, as Sechidis et al. 2011 (ECML PKDD) have it.

        A group is held out where none of its labels then has more than its share, and none is lost in training.
        """
        groups: dict[str, list[int]] = {}
        for index, example in enumerate(data):
            groups.setdefault(normalised(example.input()), []).append(index)
        members = list(groups.values())
        labels = [Counter(name for index in group for name in classes_of(data[index].label) or [""]) for group in members]
        total: Counter[str] = sum(labels, Counter())
        share = {name: max(1, round(count * fraction)) if count > 1 else 0 for name, count in total.items()}
        held: set[int] = set()
        kept = Counter(total)
        order = np.random.default_rng(seed).permutation(len(members)).tolist()
        for name in sorted(total, key=lambda name: (total[name], name)):
            for number in order:
                group = labels[number]
                fits = all(total[other] - kept[other] + count <= share[other] for other, count in group.items())
                stays = all(kept[other] > count or other == "" for other, count in group.items())
                if name in group and members[number][0] not in held and fits and stays:
                    held.update(members[number])
                    kept -= group
        return [item for index, item in enumerate(data) if index not in held], [data[index] for index in sorted(held)]

    # Model

    def load_tokenizer(self, name: str) -> Any:
        tokenizer = super().load_tokenizer(name)
        if self.is_pair:
            give_pair_form(tokenizer)
        return tokenizer

    def head(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "problem_type": self.kind,
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: index for index, label in enumerate(self.labels)},
        }

    def what_it_is(self) -> str:
        of = "pairs of texts" if self.is_pair else "texts"
        if self.kind == REGRESSION:
            return f"A model that gives {of} a number, {self.labels[0]}"
        several = ", any number of them," if self.kind == MULTI else ""
        return f"A classifier of {of} with the labels{several} {', '.join(self.labels)}"

    def described(self) -> dict[str, Any]:
        return {"problem_type": self.kind, "labels": self.labels}

    def facts(self, data: list[Example]) -> dict[str, Any]:
        if self.kind == REGRESSION:
            values = self.targets(data).astype(np.float64)
            return {"mean": float(values.mean()), "standard_deviation": float(values.std())}
        counts = Counter(name for example in data for name in classes_of(example.label))
        without = sum(not example.label for example in data)
        found: dict[str, Any] = {"labels": {label: counts[label] for label in self.labels}}
        return found | ({"without_labels": without} if self.kind == MULTI else {})

    def targets(self, data: Sequence[Example]) -> np.ndarray:
        """Labels as the loss takes them: class numbers, int64 of shape [examples]; for several classes float32 of shape
        [examples, classes], 1 where a text has one; numbers, float32 of shape [examples]."""
        if self.kind == REGRESSION:
            values = np.array([example.label or 0.0 for example in data], dtype=np.float32)
            # Trainer counts labels of -100 as none at all, and would divide by too few examples.
            return np.where(values == IGNORED, np.nextafter(values, np.float32(0)), values)
        numbers = {name: index for index, name in enumerate(self.labels)}
        if self.kind == SINGLE:
            return np.array([numbers.get(str(example.label), -1) for example in data], dtype=np.int64)
        several = np.zeros((len(data), len(self.labels)), dtype=np.float32)
        for row, example in zip(several, data, strict=True):
            row[[numbers[name] for name in classes_of(example.label) if name in numbers]] = 1
        return several

    def features(self, data: list[Example], tokenizer: Any, max_length: int) -> Features:
        pairs = [example.text_pair for example in data] if data and data[0].text_pair is not None else None
        if pairs:
            give_pair_form(tokenizer)
        encoded = tokenizer([example.text for example in data], pairs, truncation=True, max_length=max_length)
        ids = [found or [tokenizer.pad_token_id] for found in encoded["input_ids"]]
        if encoded.encodings is None:  # not a fast tokenizer; one that just fits is counted too
            truncated = sum(len(found) == max_length for found in ids)
        else:
            truncated = sum(bool(item.overflowing) for item in encoded.encodings)
        columns: dict[str, Ragged | np.ndarray] = {"input_ids": Ragged.of(ids), "labels": self.targets(data)}
        if any(map(any, encoded.get("token_type_ids", []))):  # all 0 is what a model takes without
            columns["token_type_ids"] = Ragged.of(encoded["token_type_ids"])
        return Features(columns, {"truncated": truncated})

    def loss(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        """See `ClassificationLoss`."""
        loss = self._loss or ClassificationLoss(self.kind)
        if num_items_in_batch is None:  # outside of training, where nothing is smoothed
            loss = replace(loss, smoothing=0.0)
        return loss(outputs, labels, num_items_in_batch)

    def compute_metrics(self, data: list[Example], features: Features) -> Callable[[Any], dict[str, float]]:
        def compute(prediction: Any) -> dict[str, float]:
            return self._measured(_logits(prediction), prediction.label_ids)

        return compute

    def _measured(self, logits: np.ndarray, true: np.ndarray) -> dict[str, float]:
        """The metrics of a learning curve, before thresholds are tuned; macro averages are over the classes with examples, as
        in `llmkit evaluate`."""
        from sklearn.metrics import accuracy_score, f1_score

        if self.kind == REGRESSION:
            return correlations(logits[:, 0].astype(np.float64), true.astype(np.float64))
        if self.kind == MULTI:
            given, present = logits > 0, np.flatnonzero(true.any(axis=0))
            micro = f1_score(true, given, average="micro", zero_division=0)
            macro = f1_score(true, given, average="macro", labels=present, zero_division=0) if len(present) else 0.0
            exact = (given == true).all(axis=1).mean()
            return {"f1_micro": float(micro), "f1_macro": float(macro), "exact_match": float(exact)}
        predicted = logits.argmax(axis=1)
        macro = f1_score(true, predicted, average="macro", labels=np.unique(true), zero_division=0)
        return {"accuracy": float(accuracy_score(true, predicted)), "f1_macro": float(macro)}

    # Thresholds

    @property
    def tunes(self) -> bool:
        wanted = None if self._settings is None else self._settings.tune_threshold
        return self._has_thresholds and (self.kind == MULTI if wanted is None else wanted)

    def tune(self, prediction: Any, data: list[Example], features: Features) -> dict[str, Any]:
        """Thresholds that suit the validation examples: of each class for its F1, or of the second of two for macro F1."""
        from sklearn.metrics import f1_score

        chances, true = self.chances(_logits(prediction).astype(np.float64)), prediction.label_ids
        if self.kind == MULTI:
            found = thresholds.per_class(chances, true > 0)
            given, before = chances >= found, chances >= 0.5
            averages = ["micro", "macro"]
            own = dict(zip(self.labels, ((true > 0).sum(axis=0) >= thresholds.FEWEST).tolist(), strict=True))
        else:
            found = np.array([thresholds.best_macro_f1(chances[:, 1], true == 1)])
            given, before = chances[:, 1] >= found[0], chances[:, 1] > 0.5
            averages, own = ["macro"], {}
        names = self.labels if self.kind == MULTI else self.labels[1:]
        self.thresholds = {name: float(value) for name, value in zip(names, found, strict=True)}
        gains = {
            f"f1_{average}": {
                "at_0.5": float(f1_score(true, before, average=average, zero_division=0)),
                "tuned": float(f1_score(true, given, average=average, zero_division=0)),
            }
            for average in averages
        }
        shared = [name for name, is_own in own.items() if not is_own]
        return {"thresholds": self.thresholds, **gains} | ({"too_rare_for_their_own": shared} if shared else {})

    # Predictions

    def predict(self, model: Any, tokenizer: Any, data: Sequence[Example], batch_size: int) -> Iterator[dict[str, Any]]:
        """The class, the classes or the number of each example.

        Of classes also the probability of each, and a `score`: the probability of what was given; of several, of just this set
        if they were independent.
        """
        for row in self.probabilities(model, tokenizer, data, batch_size):
            if self.kind == REGRESSION:
                yield {"prediction": float(row[0])}
                continue
            if self.kind == MULTI:
                given = row >= [self.thresholds.get(name, 0.5) for name in self.labels]
                prediction: Any = sorted(name for name, there in zip(self.labels, given, strict=True) if there)
                score = float(np.where(given, row, 1 - row).prod())
            else:
                best = int(row.argmax())
                if self.thresholds and len(self.labels) == 2:
                    best = int(row[1] >= next(iter(self.thresholds.values())))
                prediction, score = self.labels[best], float(row[best])
            chances = {f"probability_{label}": float(chance) for label, chance in zip(self.labels, row, strict=True)}
            yield {"prediction": prediction, "score": score} | chances

    def probabilities(self, model: Any, tokenizer: Any, data: Sequence[Example], batch_size: int) -> np.ndarray:
        """Class probabilities, or numbers; float64 of shape [examples, labels]."""
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
        return self.chances(logits)

    def chances(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities of the classes, or the numbers themselves; of the shape of the logits."""
        if self.kind == REGRESSION:
            return logits
        return 0.5 * (1 + np.tanh(0.5 * logits)) if self.kind == MULTI else probabilities(logits)


def _logits(prediction: Any) -> np.ndarray:
    return prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions


def correlations(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Pearson's and Spearman's correlation (0 where one side does not vary) and the mean squared error."""
    from scipy.stats import rankdata

    found = {"mse": float(((predicted - true) ** 2).mean())}
    for name, x, y in (("pearson", predicted, true), ("spearman", rankdata(predicted), rankdata(true))):
        varies = np.ptp(x) > 0 and np.ptp(y) > 0
        found[name] = float(np.corrcoef(x, y)[0, 1]) if varies else 0.0
    return found


def label_names(train: list[Example]) -> list[str]:
    """The classes of a training set, numbers in numerical order.

    Raises:
        DataError: there is only one class.
    """
    names = {name for example in train for name in classes_of(example.label)}
    if len(names) < 2:
        which = f"the label {names.pop()!r}" if names else "no label"
        raise DataError(f"all {len(train)} training examples have {which}; a classifier needs at least two")
    try:
        return sorted(names, key=lambda name: (int(name), name))  # `1` and `01` are two labels
    except ValueError:
        return sorted(names)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over classes; float64 of shape [examples, classes]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum(axis=1, keepdims=True)
