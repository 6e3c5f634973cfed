"""What the tasks have in common whose models write: the loss of targets, and batches of greedy or beam search.

A causal model learns a sequence of prompt and target, of which the target alone has labels; an encoder-decoder reads the one
and learns the other.
"""

from __future__ import annotations

import copy
import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from llmkit.errors import ConfigError, DataError
from llmkit.tasks import base
from llmkit.tasks.base import Task, batches_of_like_length, context_length, positions_of
from llmkit.tasks.features import IGNORED, Features, Padding, Ragged

if TYPE_CHECKING:
    from transformers import PretrainedConfig

E = TypeVar("E", bound=base.Example)


class LanguageTask(Task[E]):
    """A task whose answer is text of any length."""

    auto_class = "AutoModelForCausalLM"

    def __init__(self, max_new_tokens: int, num_beams: int, label_smoothing: float = 0.0):
        """Set up.

        Args:
            max_new_tokens: longest answer in tokens.
            num_beams: beams of the search; 1 is greedy.
            label_smoothing: share of the probability that training gives to all tokens alike (Szegedy et al. 2016).
        """
        self.max_new_tokens, self.num_beams, self.label_smoothing = max_new_tokens, num_beams, label_smoothing
        self.is_encoder_decoder = False
        self.decoder_start: int | None = None
        """The token that an encoder-decoder's answer begins with."""

    def stored(self) -> dict[str, Any]:
        return {
            "architecture": "encoder-decoder" if self.is_encoder_decoder else "causal",
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
        }

    def adapt_to(self, config: PretrainedConfig, max_length: int) -> int:
        self.is_encoder_decoder = bool(config.is_encoder_decoder)
        self.decoder_start = getattr(config, "decoder_start_token_id", None) if self.is_encoder_decoder else None
        if self.is_encoder_decoder and self.decoder_start is None:
            raise ConfigError(
                [f"model_name_or_path: the config of this {config.model_type} has no decoder_start_token_id; set it there"]
            )
        return max_length

    def load_tokenizer(self, name: str) -> Any:
        """As `Task.load_tokenizer`, with an EOS: SEP where there is none of its own, as in Chinese models with BERT's.

        Raises:
            ConfigError: there is neither.
        """
        tokenizer = super().load_tokenizer(name)
        if tokenizer.eos_token is None and tokenizer.sep_token is None:
            raise ConfigError([f"model_name_or_path: the tokenizer of {name!r} has neither EOS nor SEP to end an answer with"])
        if tokenizer.eos_token is None:
            tokenizer.eos_token = tokenizer.sep_token
        return tokenizer

    # What is learned

    @abstractmethod
    def sequences(self, example: E, tokenizer: Any) -> tuple[list[int], list[int]]:
        """What the model reads and what of it is learned, uncut.

        Returns:
            Token ids, and labels: of the same length, with `IGNORED` for what is not learned; for an encoder-decoder the
            target by itself.
        """

    def reference(self, example: E, tokenizer: Any) -> tuple[list[int], list[int]]:
        """As `sequences`, to see what a trained model makes of a known target."""
        return self.sequences(example, tokenizer)

    def features(self, data: list[E], tokenizer: Any, max_length: int) -> Features:
        """Examples cut at the end; one of which no learned token is left is set aside and counted.

        Raises:
            DataError: none is left.
        """
        inputs, labels = [], []
        truncated = set_aside = 0
        for example in data:
            ids, learned = self.sequences(example, tokenizer)
            truncated += max(len(ids), len(learned)) > max_length
            learned = learned[:max_length]
            if all(label == IGNORED for label in learned):
                set_aside += 1
                continue
            inputs.append(self.cut(ids, max_length))
            labels.append(learned)
        if not inputs:
            raise DataError(
                f"of none of the {len(data)} examples a token of the target lies within max_length, {max_length} tokens"
            )
        return Features(
            {"input_ids": Ragged.of(inputs), "labels": Ragged.of(labels)}, {"truncated": truncated, "set_aside": set_aside}
        )

    def cut(self, ids: list[int], max_length: int) -> list[int]:
        """What the model reads of a longer sequence; an encoder needs its last token, which says that it ends there."""
        return [*ids[: max_length - 1], ids[-1]] if self.is_encoder_decoder and len(ids) > max_length else ids[:max_length]

    def collator(self, tokenizer: Any, multiple: int = 1) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        return _Collator(tokenizer.pad_token_id, multiple, self.decoder_start)

    def targets_per_example(self, features: Features) -> float:
        return _learned(features) / len(features)

    def loss(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        """Cross-entropy of the targets: every learned token of a step weighs the same.

        Args:
            labels: int64 of shape [examples, tokens].
            num_items_in_batch: learned tokens of the whole step, on all processes; None outside of training, where nothing is
                smoothed, for the batch's own mean.
        """
        from torch.nn.functional import cross_entropy

        logits, targets = self._aligned(outputs["logits"], labels)
        smoothing = 0.0 if num_items_in_batch is None else self.label_smoothing
        total = cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing
        )
        return total / ((targets != IGNORED).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)

    def _aligned(self, logits: Any, labels: Any) -> tuple[Any, Any]:
        """Each logit beside the label that it is to predict; a decoder's own inputs are already moved on by one."""
        return (logits, labels) if self.is_encoder_decoder else (logits[:, :-1], labels[:, 1:])

    def summary(self, logits: Any, labels: Any) -> Any:
        """Of each example the sum of negative log-likelihoods, the number of learned tokens, and how many of them the model
        would have written; float32 of shape [examples, 3]."""
        import torch
        from torch.nn.functional import cross_entropy

        logits, targets = self._aligned(logits[0] if isinstance(logits, tuple) else logits, labels)
        losses = cross_entropy(logits.transpose(1, 2).float(), targets, ignore_index=IGNORED, reduction="none")
        right = (logits.argmax(dim=-1) == targets) & (targets != IGNORED)
        return torch.stack([losses.sum(1), (targets != IGNORED).sum(1), right.sum(1)], dim=1).float()

    def compute_metrics(self, data: list[E], features: Features) -> Callable[[Any], dict[str, float]]:
        """Perplexity and accuracy over the learned tokens."""

        def compute(prediction: Any) -> dict[str, float]:
            loss, tokens, right = np.asarray(prediction.predictions, dtype=np.float64).sum(axis=0)
            return {"perplexity": perplexity(loss, tokens), "token_accuracy": float(right / tokens)}

        return compute

    # What is written

    @abstractmethod
    def prompt(self, example: E, tokenizer: Any) -> list[int]:
        """The token ids from which the model goes on; those that an encoder reads."""

    def samples_written(self, data: list[E]) -> list[E]:
        """The validation examples that a model in training writes answers to, for `written_metrics`; none if that measures
        nothing."""
        return []

    def written_metrics(self, data: list[E], texts: list[str]) -> dict[str, float]:
        """What the answers to examples are worth."""
        return {}

    def context(self, config: PretrainedConfig, tokenizer: Any) -> int:
        """The most tokens that a model reads: as many as it has positions for. The tokenizer is asked only where there is no
        such limit, since its length may be that of a training, whose texts hold the answers too."""
        return positions_of(config) or context_length(config, tokenizer, None)

    def room(self, config: PretrainedConfig, tokenizer: Any) -> tuple[int, int]:
        """The longest prompt and the longest answer in tokens. A causal model's context holds both, and an answer gets half of
        it at most."""
        context = self.context(config, tokenizer)
        if self.is_encoder_decoder:
            return context, min(self.max_new_tokens, context - 1)
        answer = min(self.max_new_tokens, context // 2)
        return context - answer, answer

    def generate(
        self, model: Any, tokenizer: Any, prompts: Sequence[list[int]], batch_size: int
    ) -> tuple[list[list[int]], list[list[int]]]:
        """What the model writes for each prompt.

        It does not depend on what else is in a batch: an encoder is padded on the right and masks it; a causal model is padded
        on the left, which positions and mask make up for; an architecture that takes no positions gets batches of one length.

        Returns:
            The prompts as far as the model's context has room for them, without their ends for an encoder and without their
            beginnings otherwise; and the tokens that follow, the EOS included.
        """
        import torch
        from tqdm import tqdm

        longest, answer = self.room(model.config, tokenizer)
        settings = copy.deepcopy(model.generation_config)
        ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
        ends = sorted({*ends, tokenizer.eos_token_id} - {None})  # a config may have no other than its architecture's default
        settings.update(
            max_new_tokens=answer,
            max_length=None,
            num_beams=self.num_beams,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=ends,
        )
        taken = [self.cut(ids, longest) if self.is_encoder_decoder else ids[-longest:] for ids in prompts]
        written: list[list[int]] = [[] for _ in prompts]
        lengths = np.array([len(ids) for ids in taken])
        pads = self.is_encoder_decoder or "position_ids" in inspect.signature(model.forward).parameters
        batches = list(batches_of_like_length(lengths, batch_size) if pads else _of_equal_length(lengths, batch_size))
        with torch.no_grad():
            for chosen in tqdm(batches, desc="generate", unit="batch", disable=None, leave=False):
                width = int(lengths[chosen].max())
                ids = np.full((len(chosen), width), tokenizer.pad_token_id, dtype=np.int64)
                mask = np.zeros_like(ids)
                for row, index in enumerate(chosen):
                    place = slice(0, lengths[index]) if self.is_encoder_decoder else slice(width - lengths[index], width)
                    ids[row, place], mask[row, place] = taken[index], 1
                made = model.generate(
                    torch.from_numpy(ids).to(model.device),
                    attention_mask=torch.from_numpy(mask).to(model.device),
                    generation_config=settings,
                )
                for index, row in zip(chosen, made[:, 1 if self.is_encoder_decoder else width :].tolist(), strict=True):
                    end = next((number + 1 for number, token in enumerate(row) if token in ends), len(row))
                    written[index] = row[:end]
        return taken, written

    def write(self, model: Any, tokenizer: Any, data: Sequence[E], batch_size: int) -> list[str]:
        """What the model answers to each example, as text."""
        prompts = [self.prompt(example, tokenizer) for example in data]
        return [_text(tokenizer, ids) for ids in self.generate(model, tokenizer, prompts, batch_size)[1]]

    def predict(self, model: Any, tokenizer: Any, data: Sequence[E], batch_size: int) -> Iterator[dict[str, Any]]:
        """The text that the model writes; as `score` the geometric mean of the probabilities of its tokens; and `tokens_cut`,
        those of the prompt that had no room. Where targets are known, what it makes of them: `loss`, the sum over the learned
        `tokens`, of which it would have written `right_tokens`."""
        prompts = [self.prompt(example, tokenizer) for example in data]
        taken, written = self.generate(model, tokenizer, prompts, batch_size)
        own = [
            (ids, made) if self.is_encoder_decoder else (ids + made, [IGNORED] * len(ids) + made)
            for ids, made in zip(taken, written, strict=True)
        ]
        chances = self.sums(model, tokenizer, own, batch_size)
        rows: list[dict[str, Any]] = [
            {
                "prediction": _text(tokenizer, made),
                "score": float(np.exp(-loss / max(tokens, 1))),
                "tokens_cut": len(asked) - len(ids),
            }
            for asked, ids, made, (loss, tokens, _) in zip(prompts, taken, written, chances, strict=True)
        ]
        if all(example.target() for example in data):
            targets = [self.reference(example, tokenizer) for example in data]
            for row, (loss, tokens, right) in zip(rows, self.sums(model, tokenizer, targets, batch_size), strict=True):
                row |= {"loss": float(loss), "tokens": int(tokens), "right_tokens": int(right)}
        yield from rows

    def sums(
        self, model: Any, tokenizer: Any, sequences: Sequence[tuple[list[int], list[int]]], batch_size: int
    ) -> np.ndarray:
        """As `summary`, of each of `sequences`; zeros where no learned token fits. float64 of shape [sequences, 3]."""
        import torch

        context = self.context(model.config, tokenizer)
        found: list[dict[str, Any]] = [
            {"input_ids": np.array(self.cut(ids, context)), "labels": np.array(labels[:context])} for ids, labels in sequences
        ]
        collate, sums = self.collator(tokenizer), np.zeros((len(found), 3))
        lengths = np.array([max(map(len, item.values())) for item in found])
        with torch.no_grad():
            for chosen in batches_of_like_length(lengths, batch_size):
                batch = {name: value.to(model.device) for name, value in collate([found[i] for i in chosen]).items()}
                labels = batch.pop("labels")
                sums[chosen] = self.summary(model(**batch).logits, labels).cpu().numpy()
        return sums


def _text(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()


class _Collator(Padding):
    def __init__(self, pad_token_id: int, multiple: int, decoder_start: int | None):
        super().__init__(pad_token_id, multiple)
        self.decoder_start = decoder_start

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """As `Padding`. An encoder-decoder is given the targets moved on by one, which it makes of labels only where it
        computes its own loss. A packed row has positions and no mask: transformers makes one that keeps examples apart."""
        batch = super().__call__(examples)
        if self.decoder_start is not None:
            moved = batch["labels"].roll(1, dims=1)
            moved[:, 0] = self.decoder_start
            batch["decoder_input_ids"] = moved.masked_fill(moved == IGNORED, self.values["input_ids"])
        if "position_ids" in batch:  # what fills up has position 0, and so stands alone
            del batch["attention_mask"]
        return batch


def packed(features: Features, max_length: int) -> Features:
    """Examples of a causal model put together into rows of at most `max_length` tokens, as many as fit, with positions that
    begin anew with each, so that none sees another."""
    from llmkit.tokens.best_fit import best_fit_decreasing

    ids, labels = features.columns["input_ids"], features.columns["labels"]
    assert isinstance(ids, Ragged)
    lengths = ids.lengths()
    row_of = best_fit_decreasing(lengths, max_length)
    by_row = np.argsort(row_of, kind="stable")
    ends = np.cumsum(np.bincount(row_of))
    rows = np.split(by_row, ends[:-1])
    joined = {
        "input_ids": [np.concatenate([ids[index] for index in row]) for row in rows],
        "labels": [np.concatenate([labels[index] for index in row]) for row in rows],
        "position_ids": [np.concatenate([np.arange(lengths[index]) for index in row]) for row in rows],
    }
    columns = {name: Ragged.of(cast(Any, sequences)) for name, sequences in joined.items()}
    return Features(columns, {**features.facts, "packed_into": len(rows)})


def perplexity(loss: float, tokens: float) -> float:
    """From a sum of negative log-likelihoods; infinite where it is beyond what a number can hold."""
    return math.exp(loss / tokens) if loss / tokens < 700 else math.inf


def _learned(features: Features) -> int:
    labels = features.columns["labels"]
    assert isinstance(labels, Ragged)
    return int((labels.flat != IGNORED).sum())


def _of_equal_length(lengths: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    for length in np.unique(lengths)[::-1]:
        indices = np.flatnonzero(lengths == length)
        yield from (indices[start : start + batch_size] for start in range(0, len(indices), batch_size))


def smoothing_of(config: Any) -> float:
    """The `label_smoothing_factor` of a training, which Trainer itself leaves to those who bring their own loss."""
    return float(config.training_arguments.get("label_smoothing_factor") or 0.0)


def without_end(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """What a tokenizer makes of a text, without the token that it may put at its end."""
    marks = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    return list(ids[:-1]) if len(ids) and ids[-1] in marks else list(ids)


def told(stored: Mapping[str, Any]) -> dict[str, Any]:
    """How a model has been told to write."""
    return {name: stored[name] for name in ("max_new_tokens", "num_beams") if name in stored}
