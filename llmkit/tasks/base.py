"""The shape of every task: what fine-tuning, evaluation and prediction have to know of it, and nothing of how they go.

The order in which the methods are called: `read` the rows, `learn` from the training examples, `load_tokenizer`, `adapt_to`
the model's config, `features`, `load_model`, then training with `collator`, `loss` and `compute_metrics`, and `tune` on the
validation examples. A model that is evaluated or asked for predictions brings what was learned and tuned in its config
(`stored`), and begins with `of_model`.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np

from llmkit.errors import ConfigError
from llmkit.tasks.features import Features, Padding
from llmkit.tasks.registry import SECTION
from llmkit.tasks.tables import Row

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(kw_only=True)
class Example:
    """What a model learns from or is asked."""

    id: str
    place: str
    """Where it stands: `file:line`, or `data set[row]`."""

    def input(self) -> str:
        """What the model is given, as text: two examples of equal input are one and the same question."""
        raise NotImplementedError

    def target(self) -> Any:
        """What the model is to give, as JSON has it."""
        raise NotImplementedError


E = TypeVar("E", bound=Example)


def normalised(text: str) -> str:
    """A text as it is compared with others: compatibility forms, letter case and white space make no difference."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


class Task(ABC, Generic[E]):
    """One task, with what it has learned from its data."""

    name: ClassVar[str]

    title: ClassVar[str]
    """What a model of this task is called on its card."""

    auto_class: ClassVar[str]
    """The class of transformers that gives a model its head."""

    @property
    @abstractmethod
    def usage(self) -> str:
        """The Python lines on its card that use it; PATH_OF_THIS_DIRECTORY stands for the place."""

    @property
    def tunes(self) -> bool:
        """Whether `tune` has something to decide on the validation examples."""
        return False

    @property
    @abstractmethod
    def metrics(self) -> dict[str, bool]:
        """The names that `compute_metrics` gives, and whether more of it is better; the first chooses the best checkpoint."""

    @classmethod
    @abstractmethod
    def of_config(cls, config: Any) -> Task[E]:
        """The task by the settings of a training (`FinetuneConfig`)."""

    @classmethod
    @abstractmethod
    def of_model(cls, stored: Mapping[str, Any], config: PretrainedConfig) -> Task[E]:
        """The task of a model that has learned it.

        Args:
            stored: what `stored` gave; empty for a model that llmkit has not trained.
        """

    def stored(self) -> dict[str, Any]:
        """What the model's config has to keep for `of_model`, as JSON has it."""
        return {}

    # Examples

    @abstractmethod
    def read(self, rows: list[Row], columns: Any, is_labelled: bool = True) -> list[E]:
        """Checked examples from rows.

        Args:
            columns: the settings that name columns (`settings.Columns`).
            is_labelled: whether targets are wanted; predictions are asked for without.

        Raises:
            ColumnError: a column is missing.
            DataError: rows without what is needed (named by their places).
        """

    def learn(self, train: list[E]) -> Iterator[str]:
        """Take from the training examples what the model has to know, its labels say; yields what it found, in sentences.

        Raises:
            DataError: there is nothing to be learned from them.
        """
        yield from ()

    def check(self, data: list[E], split: str) -> None:
        """Refuse examples that a model of this task cannot be measured on.

        Raises:
            DataError: naming the rows.
        """

    def group(self, example: E) -> str:
        """Examples of one group stay in one part when examples are held out; by default those of equal input."""
        return normalised(example.input())

    def hold_out(self, data: list[E], fraction: float, seed: int) -> tuple[list[E], list[E]]:
        """Split off validation examples, the same for the same seed; a group is never divided, see `drawn`."""
        groups: dict[str, list[int]] = {}
        for index, example in enumerate(data):
            groups.setdefault(self.group(example), []).append(index)
        held = drawn(list(groups.values()), max(1, round(len(data) * fraction)), np.random.default_rng(seed))
        return [item for index, item in enumerate(data) if index not in held], [data[index] for index in sorted(held)]

    def sampling_groups(self, data: list[E]) -> list[np.ndarray] | None:
        """The groups of training examples that a run learns from equally often; None: each example equally often.

        Returns:
            Indices of features, int64, each in one group.
        """
        return None

    # Model

    def load_tokenizer(self, name: str) -> PreTrainedTokenizerBase:
        """The model's tokenizer, set up for the task: sequences are filled up on the right.

        A causal model has its say at its last token that is no padding, and padding on the right keeps that token in place.

        Raises:
            ConfigError: there is none, or it has neither a padding nor an EOS token.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as failure:
            raise ConfigError([f"model_name_or_path: {name!r} has no tokenizer that can be loaded: {failure}"]) from failure
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.pad_token is None:
            raise ConfigError([f"model_name_or_path: the tokenizer of {name!r} has neither a padding nor an EOS token"])
        return tokenizer

    def head(self) -> dict[str, Any]:
        """Entries of the model's config that shape its head, such as `num_labels`."""
        return {}

    def auto_class_of(self, config: PretrainedConfig) -> str:
        """The class of transformers that gives a model of this config its head."""
        return self.auto_class

    def load_model(
        self, name: str, tokenizer: Any, seed: int, attn_implementation: str | None, **how: Any
    ) -> tuple[PreTrainedModel, list[str]]:
        """The model with the head of the task, in float32; new weights are drawn from the seed.

        Args:
            how: further arguments of `from_pretrained`.

        Returns:
            The model, and the names of the weights that are new.

        Raises:
            ConfigError: the model has no such head in transformers, or cannot be loaded.
        """
        import torch
        import transformers
        from safetensors import SafetensorError
        from transformers.utils import logging

        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # that the head is missing is as it should be; the caller tells it in a line
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                auto_class = self.auto_class_of(transformers.AutoConfig.from_pretrained(name))
                model, loading = getattr(transformers, auto_class).from_pretrained(
                    name,
                    dtype="float32",
                    attn_implementation=attn_implementation,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                    **self.head(),
                    **how,
                )
            except (OSError, ValueError, ImportError, SafetensorError) as failure:
                problem = f"model_name_or_path: {name!r} gives no model for {self.name}: {failure}"
                raise ConfigError([problem]) from failure
            finally:
                logging.set_verbosity(verbosity)
        model.config.pad_token_id = tokenizer.pad_token_id
        return model, sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})

    def note(self, model: PreTrainedModel) -> None:
        """Put what the model has to know for later into its config."""
        setattr(model.config, SECTION, {"task": self.name, **self.stored()})

    def new_config(self, tokenizer: Any, config: PretrainedConfig) -> dict[str, Any]:
        """Entries that the config of a new model needs beside its head, the token that decoding starts with say.

        Args:
            config: of its architecture, with nothing but defaults.
        """
        return {}

    # What is told of it

    def what_it_is(self) -> str:
        """The model in words, for its card."""
        return f"A model for {self.name.replace('-', ' ')}"

    def described(self) -> dict[str, Any]:
        """What it has learned from its data, for the manifest."""
        return {}

    def facts(self, data: list[E]) -> dict[str, Any]:
        """What there is to count in examples, for the manifest: how many each label has, say."""
        return {}

    # Features, loss, metrics

    def adapt_to(self, config: PretrainedConfig, max_length: int) -> int:
        """Take from the model's config what features depend on.

        Args:
            max_length: longest input in tokens, as it is asked for, or else what the model takes.

        Returns:
            The longest input for this task.

        Raises:
            ConfigError: such a model cannot serve with these settings.
        """
        return max_length

    @abstractmethod
    def features(self, data: list[E], tokenizer: Any, max_length: int) -> Features:
        """Examples as the model takes them in training and validation; its facts say how many texts were `truncated`."""

    def collator(self, tokenizer: Any, multiple: int = 1) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Makes a batch of features; `multiple` is what lengths are rounded up to."""
        return Padding(tokenizer.pad_token_id, multiple)

    def loss(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        """The loss, as `Trainer` takes a `compute_loss_func`: every example (or learned token) of a step weighs the same.

        Args:
            num_items_in_batch: how many there are in the whole step, on all processes; None outside of training, for the mean
                over the batch.
        """
        raise NotImplementedError

    def targets_per_example(self, features: Features) -> float | None:
        """Learned tokens of a validation example in the mean, where the loss is a mean over tokens; None where it is one over
        examples."""
        return None

    def summary(self, logits: Any, labels: Any) -> Any:
        """What `compute_metrics` needs of the logits of a batch; those over a vocabulary are too many to be kept."""
        return logits

    @abstractmethod
    def compute_metrics(self, data: list[E], features: Features) -> Callable[[Any], dict[str, float]]:
        """What Trainer calls with a `transformers.EvalPrediction` for these validation examples; gives `metrics`."""

    def tune(self, prediction: Any, data: list[E], features: Features) -> dict[str, Any]:
        """Decide on the validation examples what is left to decide, a threshold say, once the model is trained.

        Returns:
            What was decided and what it gained, for the manifest.
        """
        return {}

    # Predictions

    @abstractmethod
    def predict(self, model: Any, tokenizer: Any, data: Sequence[E], batch_size: int) -> Iterator[dict[str, Any]]:
        """What the model gives for each example, in their order, as columns of a table: `prediction` and what belongs to it,
        such as `score`. It is computed in batches of like length.

        Raises:
            DataError: nothing can be predicted for one of the examples; `llmkit predict` then asks for each by itself.
        """


def drawn(groups: Sequence[list[int]], share: int, generator: np.random.Generator) -> set[int]:
    """The members of groups that are drawn while they fit into a share; where none fits, those of the smallest.

    One group at least is not drawn.

    Args:
        share: how many members there may be.
    """
    order = [groups[number] for number in generator.permutation(len(groups))]
    held = set[int]()
    for group in order[:-1]:
        if len(held) + len(group) <= share:
            held.update(group)
    if len(order) > 1 and not held:
        smallest = min(order, key=len)
        held.update(smallest)
    return held


def seen(data: Iterable[E], known: Iterable[E]) -> np.ndarray:
    """Whether the input of each example is also that of a known one; bool of shape [examples]."""
    inputs = {normalised(example.input()) for example in known}
    return np.array([normalised(example.input()) in inputs for example in data], dtype=bool)


def digest(data: Iterable[E]) -> str:
    """One hash of all inputs and targets in their order: equal digests mean the same examples."""
    text = json.dumps([[example.input(), example.target()] for example in data])
    return hashlib.sha256(text.encode()).hexdigest()


def repeated(data: Iterable[E]) -> int:
    """How many inputs stood there before."""
    inputs = [normalised(example.input()) for example in data]
    return len(inputs) - len(set(inputs))


def conflicting(data: Iterable[E]) -> int:
    """How many inputs stand there with more than one target."""
    targets: dict[str, set[str]] = {}
    for example in data:
        targets.setdefault(normalised(example.input()), set()).add(json.dumps(example.target()))
    return sum(len(found) > 1 for found in targets.values())


def positions_of(config: PretrainedConfig) -> int | None:
    """The most tokens that a model has positions for; None where it has no limit, as recurrent ones."""
    from llmkit.models.custom import CONTEXT_NAMES, POSITIONS_AFTER_PADDING

    text = config.get_text_config()
    limits = (getattr(text, name, None) for name in CONTEXT_NAMES)
    known = [limit for limit in limits if isinstance(limit, int) and limit > 0]  # XLNet's is -1: no limit
    before = (text.pad_token_id or 0) + 1 if text.model_type in POSITIONS_AFTER_PADDING else 0
    return min(known) - before if known else None


def context_length(config: PretrainedConfig, tokenizer: Any, asked: int | None) -> int:
    """Longest input in tokens: the one asked for, or what model and tokenizer allow.

    Raises:
        ConfigError: more is asked for than they allow.
    """
    limits = (positions_of(config), tokenizer.model_max_length)
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 1_000_000]
    if asked is not None and known and asked > min(known):
        raise ConfigError([f"max_length: {asked} is more than the {min(known)} tokens that the model takes"])
    return asked or min(known, default=512)


def batches_of_like_length(lengths: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Indices of at most `batch_size` examples each, the longest first: what does not fit into memory fails at once."""
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
