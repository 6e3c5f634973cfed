"""Extractive question answering: the piece of a text that answers a question, or none, with encoders and causal models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from llmkit.errors import ConfigError, DataError
from llmkit.tasks import answer_scores, base, spans
from llmkit.tasks.base import Task, batches_of_like_length, context_length, normalised
from llmkit.tasks.features import Features, Padding, Ragged
from llmkit.tasks.tables import Row, pick_column, places
from llmkit.tasks.windows import FOR_DECODING, frame_of, windows

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

QUESTION_COLUMNS = ("question",)
CONTEXT_COLUMNS = ("context", "passage", "paragraph")
ANSWERS_COLUMNS = ("answers", "answer")

_LENGTH = 384
"""Longest input in tokens where none is asked for (Devlin et al. 2019)."""

_SHOWN = 3
_BIDIRECTIONAL = ("xlnet",)
"""What transformers has among causal models, though every token sees all others."""


@dataclass(kw_only=True)
class Example(base.Example):
    """A question, the text in which the answer is looked for, and the answers."""

    question: str
    context: str
    answers: list[tuple[str, int]]
    """Text and offset in characters of each; none: the context does not answer the question."""

    def input(self) -> str:
        return f"{self.question}\n{self.context}"

    def target(self) -> dict[str, list[Any]]:
        """As the data sets of the hub have it."""
        return {"text": [text for text, _ in self.answers], "answer_start": [start for _, start in self.answers]}

    def score(self, prediction: str) -> tuple[float, float]:
        """Exact match and F1 of a prediction; of CMRC 2018 where the question is Chinese, of SQuAD otherwise."""
        texts = [text for text, _ in self.answers]
        return answer_scores.score(prediction, texts, answer_scores.is_chinese(self.question))


class QuestionAnswering(Task[Example]):
    """The piece of a context that answers a question."""

    name = "question-answering"
    title = "Model for extractive question answering"
    usage = (
        "from llmkit import QuestionAnswerer\n\n"
        'answer = QuestionAnswerer.from_pretrained("PATH_OF_THIS_DIRECTORY")\n'
        'print(answer(question="Where do eels spawn?", context="European eels spawn in the Sargasso Sea."))'
    )
    auto_class = "AutoModelForQuestionAnswering"
    metrics: ClassVar[dict[str, bool]] = {"f1": True, "exact_match": True}

    def __init__(
        self,
        max_length: int | None = None,
        doc_stride: int = 128,
        max_answer_length: int = 30,
        n_best_size: int = 20,
        null_score_diff_threshold: float | None = None,
        question_first: bool = True,
    ):
        """Set up; see `settings.QuestionAnsweringSettings`.

        Args:
            max_length: longest input in tokens; None: 384, or what the model takes.
            null_score_diff_threshold: None: every question is answered.
        """
        self.max_length, self.doc_stride = max_length, doc_stride
        self.max_answer_length, self.n_best_size = max_answer_length, n_best_size
        self.threshold, self.question_first = null_score_diff_threshold, question_first
        self.is_causal = self.has_types = False
        self._tunes = False

    @property
    def tunes(self) -> bool:
        return self._tunes

    @classmethod
    def of_config(cls, config: Any) -> QuestionAnswering:
        if config.training_arguments.get("label_smoothing_factor"):
            raise ConfigError(["label_smoothing_factor: is for classes and tokens of a text, not for places in one"])
        names = ("max_length", "doc_stride", "max_answer_length", "n_best_size", "null_score_diff_threshold", "question_first")
        return cls(**{name: getattr(config, name) for name in names})

    @classmethod
    def of_model(cls, stored: Mapping[str, Any], config: PretrainedConfig) -> QuestionAnswering:
        """A model that llmkit has not trained gives no answer where that has a higher score than the best one."""
        settings = {name: value for name, value in stored.items() if name not in ("task", "is_causal", "token_types")}
        task = cls(**(settings or {"null_score_diff_threshold": 0.0}))
        task._look_at(config)
        return task

    def stored(self) -> dict[str, Any]:
        return {
            "max_length": self.max_length,
            "doc_stride": self.doc_stride,
            "max_answer_length": self.max_answer_length,
            "n_best_size": self.n_best_size,
            "null_score_diff_threshold": self.threshold,
            "question_first": self.question_first,
            "is_causal": self.is_causal,
            "token_types": self.has_types,
        }

    # Examples

    def read(self, rows: list[Row], columns: Any, is_labelled: bool = True) -> list[Example]:
        question_name = pick_column(rows, columns.question_column, QUESTION_COLUMNS, "question_column")
        context_name = pick_column(rows, columns.context_column, CONTEXT_COLUMNS, "context_column")
        answers_name = pick_column(rows, columns.answers_column, ANSWERS_COLUMNS, "answers_column") if is_labelled else ""
        found, misplaced = [], list[str]()
        unusable: dict[str, list[Row]] = {}
        for row in rows:
            question, context = row.values.get(question_name), row.values.get(context_name)
            answers = _answers(row.values.get(answers_name)) if is_labelled else []
            for name, text in ((question_name, question), (context_name, context)):
                if not isinstance(text, str) or not text.strip():
                    unusable.setdefault(f"have no text in column {name!r}", []).append(row)
                    break
            else:
                assert isinstance(question, str) and isinstance(context, str)
                if answers is None:
                    wanted = (
                        f"have no answers in column {answers_name!r} (each a text and answer_start; an empty list for none)"
                    )
                    unusable.setdefault(wanted, []).append(row)
                    continue
                identity = str(row.values.get("id", Path(row.place).name))
                where = next((problem for answer in answers if (problem := _misplaced(context, *answer))), None)
                if where:
                    misplaced.append(f"{row.place}: {where}")
                found.append(
                    Example(id=identity, place=row.place, question=question.strip(), context=context, answers=answers)
                )
        for problem, those in unusable.items():
            raise DataError(f"{len(those)} rows {problem}: {places(those)}; remove or fill them")
        if misplaced:
            more = f"; and {len(misplaced) - _SHOWN} more" if len(misplaced) > _SHOWN else ""
            raise DataError(
                f"{len(misplaced)} rows have an answer that is not found at its offset, which counts the characters of the "
                f"context from 0: {'; '.join(misplaced[:_SHOWN])}{more}"
            )
        return found

    def learn(self, train: list[Example]) -> Iterator[str]:
        without = sum(not example.answers for example in train)
        if without:
            self._tunes = self.threshold is None
            self.threshold = self.threshold if self.threshold is not None else 0.0
            yield f"{without:,} of {len(train):,} training questions have no answer in their context; the model may give none"
        elif self.threshold is None:
            yield "all training questions have an answer in their context, and the model will answer every question"

    def group(self, example: Example) -> str:
        return normalised(example.context)

    # Model

    def load_tokenizer(self, name: str) -> PreTrainedTokenizerBase:
        tokenizer = super().load_tokenizer(name)
        if not tokenizer.is_fast:
            raise ConfigError([f"model_name_or_path: the tokenizer of {name!r} does not say where in a text its tokens are"])
        return tokenizer

    def head(self) -> dict[str, Any]:
        return {"num_labels": 2}  # a score as first and one as last token; a classifier's number would be taken otherwise

    def _look_at(self, config: PretrainedConfig) -> None:
        self.is_causal = is_causal(config)
        self.has_types = not self.is_causal and (getattr(config, "type_vocab_size", None) or 0) > 1

    def adapt_to(self, config: PretrainedConfig, max_length: int) -> int:
        check_head(config)
        self._look_at(config)
        if self.is_causal and not self.question_first:
            raise ConfigError(
                [
                    f"question_first: {config.model_type} is a causal model, where a token is computed from those before it: "
                    f"with the context first, answers would be chosen without the question; leave it out, or take an encoder"
                ]
            )
        self.max_length = max_length if self.max_length is not None else min(max_length, _LENGTH)
        return self.max_length

    def load_model(
        self, name: str, tokenizer: Any, seed: int, attn_implementation: str | None, **how: Any
    ) -> tuple[PreTrainedModel, list[str]]:
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(name)
        except (OSError, ValueError) as failure:
            raise ConfigError([f"model_name_or_path: {name!r} gives no model for {self.name}: {failure}"]) from failure
        check_head(config)
        renamed = renamed_weights(config)
        how |= {"key_mapping": renamed} if renamed else {}
        model, new = super().load_model(name, tokenizer, seed, attn_implementation, **how)
        if renamed:  # or the names would be changed back where the model is saved, and nobody could load it
            kept: list[Any] = [item for item in model._weight_conversions if not set(item.source_patterns) & set(renamed)]
            model._weight_conversions = kept
        return model, new

    # What is told of it

    def what_it_is(self) -> str:
        may = "" if self.threshold is None else ", and says where there is none"
        return f"A model that finds the answer to a question in a text{may}"

    def described(self) -> dict[str, Any]:
        return {"null_score_diff_threshold": self.threshold}

    def facts(self, data: list[Example]) -> dict[str, Any]:
        contexts = len({example.context for example in data})
        return {"contexts": contexts, "without_answer": sum(not example.answers for example in data)}

    # Features, loss, metrics

    def features(self, data: list[Example], tokenizer: Any, max_length: int) -> Features:
        frame = frame_of(tokenizer, self.is_causal, self.has_types)
        return windows(data, tokenizer, frame, max_length, self.doc_stride, self.question_first)

    def collator(self, tokenizer: Any, multiple: int = 1) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        return Padding(tokenizer.pad_token_id, multiple, vectors=("labels",), left_out=FOR_DECODING)

    def loss(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        """The mean of the cross-entropies of first and last token over the tokens of a window; every window weighs the same.

        Padding takes no part, as it does in the loss inside transformers' models: there a window's loss depends on the length
        of the others in its batch.

        Args:
            labels: first token, last token and number of tokens, int64 of shape [windows, 3].
            num_items_in_batch: labels of the whole step, on all processes: three a window.
        """
        import torch
        from torch.nn.functional import cross_entropy

        is_padding = torch.arange(outputs["start_logits"].shape[1], device=labels.device) >= labels[:, 2:]
        total = sum(
            cross_entropy(outputs[name].float().masked_fill(is_padding, -torch.inf), labels[:, index], reduction="sum")
            for index, name in enumerate(("start_logits", "end_logits"))
        )
        return total / (2 / 3 * (labels.numel() if num_items_in_batch is None else num_items_in_batch))

    def compute_metrics(self, data: list[Example], features: Features) -> Callable[[Any], dict[str, float]]:
        """F1 and exact match of whole questions, from 0 to 1, with the threshold that `tune` would choose."""

        def compute(prediction: Any) -> dict[str, float]:
            differences, given, none = self._worth(prediction, data, features)
            answered = differences <= self._best(differences, given, none)
            exact, f1 = np.where(answered[:, None], given, none).mean(axis=0)
            return {"f1": float(f1), "exact_match": float(exact)}

        return compute

    def _worth(self, prediction: Any, data: list[Example], features: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each validation question, the difference of `Answers`, and exact match and F1 of the best answer and of none.

        Returns:
            float64 of shapes [questions], [questions, 2] and [questions, 2].
        """
        lengths = features.lengths()
        start, end = (_flat(padded, lengths) for padded in prediction.predictions[:2])
        found = spans.decode(data, features, start, end, 1, self.max_answer_length)
        best = [answers.spans[0] if answers.spans else spans.Span(0, 0, 0.0) for answers in found]
        texts = [example.context[span.start : span.end] for example, span in zip(data, best, strict=True)]
        given = np.array([example.score(text) for example, text in zip(data, texts, strict=True)])
        none = np.array([example.score("") for example in data])
        return np.array([answers.difference for answers in found]), given, none

    def _best(self, differences: np.ndarray, given: np.ndarray, none: np.ndarray) -> float:
        if self.threshold is None:
            return np.inf
        if not self.tunes or not none[:, 1].any():  # without a question that has no answer, none given is never right
            return self.threshold
        return answer_scores.best_threshold(differences, given[:, 1], none[:, 1])

    def tune(self, prediction: Any, data: list[Example], features: Features) -> dict[str, Any]:
        """Choose the threshold of no answer that gives the best F1."""
        differences, given, none = self._worth(prediction, data, features)
        chosen = self._best(differences, given, none)
        before = np.inf if self.threshold is None else self.threshold
        f1 = [float(np.where(differences <= limit, given[:, 1], none[:, 1]).mean()) for limit in (before, chosen)]
        self.threshold = chosen
        return {"null_score_diff_threshold": chosen, "f1_before": f1[0], "f1": f1[1]}

    # Predictions

    def predict(self, model: Any, tokenizer: Any, data: Sequence[Example], batch_size: int) -> Iterator[dict[str, Any]]:
        """The best answer, empty for none, with its `score` (a probability), the character of the context where it begins, and
        `n_best` as JSON.

        `null_score` is the score of no answer minus that of the best answer, which the threshold is compared with.
        """
        for example, answers in zip(data, self.answers(model, tokenizer, data, batch_size), strict=True):
            shares, null = spans.probabilities(answers, self.threshold is not None)
            best: list[dict[str, Any]] = [
                {"text": example.context[span.start : span.end], "score": float(share), "answer_start": span.start}
                for span, share in zip(answers.spans, shares, strict=True)
            ]
            if self.threshold is not None or not best:
                none = {"text": "", "score": null, "answer_start": None}
                better = sum(item["score"] >= null for item in best)
                best.insert(0 if answers.is_none(self.threshold) else max(1, better), none)
            first = best[0]
            yield {
                "prediction": first["text"],
                "score": first["score"],
                "answer_start": first["answer_start"],
                "null_score": answers.difference,
                "n_best": json.dumps(best[: self.n_best_size], ensure_ascii=False),
            }

    def answers(self, model: Any, tokenizer: Any, data: Sequence[Example], batch_size: int) -> list[spans.Answers]:
        """The best answers to each question and the score of none."""
        import torch
        from tqdm import tqdm

        limit = context_length(model.config, tokenizer, None)
        features = self.features(list(data), tokenizer, min(limit, self.max_length or _LENGTH))
        features.columns.pop("labels")
        collate = self.collator(tokenizer)
        ids = features.columns["input_ids"]
        assert isinstance(ids, Ragged)
        logits = np.empty((2, len(ids.flat)), dtype=np.float32)
        batches = list(batches_of_like_length(features.lengths(), batch_size))
        with torch.inference_mode():
            for chosen in tqdm(batches, desc="predict", unit="batch", disable=True if len(batches) == 1 else None):
                batch = {name: value.to(model.device) for name, value in collate([features[i] for i in chosen]).items()}
                outputs = model(**batch)
                for kind, padded in enumerate((outputs.start_logits, outputs.end_logits)):
                    for row, window in zip(padded.float().cpu().numpy(), chosen, strict=True):
                        begin, stop = ids.offsets[window], ids.offsets[window + 1]
                        logits[kind, begin:stop] = row[: stop - begin]
        return spans.decode(data, features, logits[0], logits[1], self.n_best_size, self.max_answer_length)


def _flat(padded: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """What is no padding, one row after the other."""
    inside = np.arange(padded.shape[1]) < lengths[:, None]
    return padded[inside].astype(np.float32)


def _answers(value: Any) -> list[tuple[str, int]] | None:
    """Answers as files have them: lists of texts and offsets, a list of answers, a single one, or the JSON of these.

    Returns:
        None where there is nothing of the kind, or an answer lacks its text or offset.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return None
    if isinstance(value, dict) and isinstance(value.get("text"), list) and isinstance(value.get("answer_start"), list):
        texts, starts = value["text"], value["answer_start"]
    elif isinstance(value, (dict, list)):
        items = [value] if isinstance(value, dict) else value
        if not all(isinstance(item, dict) for item in items):
            return None
        texts, starts = [item.get("text") for item in items], [item.get("answer_start") for item in items]
    else:
        return None
    are_whole = all(isinstance(start, int) and not isinstance(start, bool) for start in starts)
    if len(texts) != len(starts) or not are_whole or not all(isinstance(text, str) and text.strip() for text in texts):
        return None
    return list(zip(texts, starts, strict=True))


def _misplaced(context: str, text: str, start: int) -> str | None:
    """What is wrong with an answer's offset, in words."""
    if start >= 0 and context.startswith(text, start):
        return None
    where = [index for index in range(len(context)) if context.startswith(text, index)] if text in context else []
    near = min(where, key=lambda index: abs(index - start), default=None)
    there = f"it begins at {near}" if near is not None else "the context does not have it"
    return f"{text[:40]!r} at {start}, where {context[max(0, start) :][: len(text[:40])]!r} stands ({there})"


def is_causal(config: PretrainedConfig) -> bool:
    """Whether a token of such a model is computed from those before it alone."""
    from transformers.models.auto import modeling_auto

    kind = config.model_type
    is_only_causal = (
        kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )
    return bool(getattr(config, "is_decoder", False)) or (is_only_causal and kind not in _BIDIRECTIONAL)


def check_head(config: PretrainedConfig) -> None:
    """Refuse an architecture for which transformers has no head for question answering, or none that is used here.

    Raises:
        ConfigError: naming some that have one.
    """
    from transformers import AutoModelForQuestionAnswering

    if config.is_encoder_decoder:
        raise ConfigError(
            [f"model_name_or_path: {config.model_type} is an encoder-decoder; take an encoder or a causal model"]
        )
    if type(config) not in AutoModelForQuestionAnswering._model_mapping:
        raise ConfigError(
            [
                f"model_name_or_path: transformers has no head for question answering for {config.model_type}; it has one for "
                f"bert, roberta, electra, deberta-v2, modernbert, and of causal models for llama, qwen2, qwen3, mistral, gpt2"
            ]
        )


def renamed_weights(config: PretrainedConfig) -> dict[str, str]:
    """The names of a causal model's weights, as patterns, to those that they have below the head for question answering.

    Where the two differ (Llama, Qwen and their kin: `model` and `transformer`), transformers 5 finds no weight of the base
    model and leaves them all random.
    """
    from transformers import AutoModelForCausalLM, AutoModelForQuestionAnswering

    causal, answering = (
        mapping._model_mapping.get(type(config), None) for mapping in (AutoModelForCausalLM, AutoModelForQuestionAnswering)
    )
    if causal is None or answering is None or causal.base_model_prefix == answering.base_model_prefix:
        return {}
    return {rf"^{causal.base_model_prefix}\.": f"{answering.base_model_prefix}."}
