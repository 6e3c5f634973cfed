"""Settings of the single tasks, for the stages and commands that take them. Light: imports no task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from llmkit.config import StageConfig, option
from llmkit.tasks.labels import ProblemType


@dataclass(kw_only=True)
class Columns:
    """Which columns of a table hold what; None: as in fine-tuning, or found by its usual names."""

    text_column: str | None = option(None)
    """Column of texts to classify; None: found by its name."""

    text_pair_column: str | None = option(None)
    """Column of second texts, where pairs are classified; None: found by its name, where both are usual ones, such as
    `sentence1` and `sentence2`."""

    label_column: str | None = option(None)
    """Column of labels; None: found by its name."""

    label_separator: str | None = option(None)
    """What stands between the labels of a text with several, where a table has them as one string, such as `|`."""

    question_column: str | None = option(None)
    """Column of questions; None: `question`."""

    context_column: str | None = option(None)
    """Column of the texts in which answers are looked for; None: `context`, or `passage` or `paragraph`."""

    answers_column: str | None = option(None)
    """Column of answers, each with a text and its offset in the context; None: `answers`, or `answer`."""

    choices_column: str | None = option(None)
    """Column of lists of choices; None: `choices`, `options` or `endings`."""

    source_column: str | None = option(None)
    """Column of texts to translate; None: `source`, or the one named by `source_lang`."""

    target_column: str | None = option(None)
    """Column of translations; None: `target`, or the one named by `target_lang`."""

    source_lang: str | None = option(None)
    """Language that is translated, as the columns call it (`en`); also one of the keys in a column `translation`."""

    target_lang: str | None = option(None)
    """Language of the translations, as the columns call it; BLEU divides their texts into words by it."""

    messages_column: str | None = option(None)
    """Column of conversations, lists of messages with `role` and `content`; None: `messages` or `conversations`."""

    prompt_column: str | None = option(None)
    """Column of prompts; None: found by its name, such as `prompt` or `instruction`."""

    completion_column: str | None = option(None)
    """Column of what is to be written after the prompt; None: found by its name, such as `completion` or `output`."""


@dataclass(kw_only=True)
class ClassificationSettings(StageConfig):
    """Settings of a training of text classifiers."""

    task_name: ClassVar = "text-classification"

    problem_type: ProblemType | None = option(None)
    """What labels are: one class a text, any number of classes, or numbers; None: by the data, which is said."""

    class_weights: Literal["balanced"] | dict[str, Any] | None = option(None)
    """How much the examples of a class weigh: `balanced` gives each class the same sum, a mapping names weights of labels
    (others weigh 1). Only ratios matter. Of several labels a text, how much presence weighs against absence."""

    focal_gamma: float = option(0.0)
    """Exponent of the focal loss (Lin et al. 2017), by which easy examples count less; 0: the cross-entropy."""

    class_sampling: Literal["natural", "balanced"] = option("natural")
    """Which examples a run learns from: each equally often, or those of each class equally often."""

    tune_threshold: bool | None = option(None)
    """Choose by the validation examples from which probability on a label is given; of two classes, on the probability of the
    second. None: only for several labels a text."""

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if self.focal_gamma < 0:
            yield f"focal_gamma: is {self.focal_gamma}, must be at least 0"
        if isinstance(self.class_weights, dict):
            for label, weight in self.class_weights.items():
                if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
                    yield f"class_weights: the weight of {label!r} is {weight!r}, must be a number above 0"
        if self.class_weights and self.class_sampling == "balanced":
            yield "class_sampling: balances the classes, and class_weights would do so once more; give one of them"


@dataclass(kw_only=True)
class QuestionAnsweringSettings(StageConfig):
    """Settings of a training for extractive question answering."""

    task_name: ClassVar[Any] = "question-answering"

    doc_stride: int = option(128)
    """Tokens of a long context that two neighbouring windows share; at most half of what a window holds of the context."""

    max_answer_length: int = option(30)
    """Longest answer in tokens."""

    n_best_size: int = option(20)
    """Answers that are kept and scored for each question."""

    null_score_diff_threshold: float | None = option(None)
    """No answer is given where its score (a sum of two logits) is higher by more than this than that of the best answer. None:
    chosen on the validation examples for the best F1, where training has questions without an answer."""

    question_first: bool = option(True)
    """Whether the question stands before the context; only an encoder can have it behind."""

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if self.doc_stride < 0:
            yield f"doc_stride: is {self.doc_stride}, must be at least 0"
        for name in ("max_answer_length", "n_best_size"):
            if getattr(self, name) < 1:
                yield f"{name}: is {getattr(self, name)}, must be at least 1"


@dataclass(kw_only=True)
class WritingSettings(StageConfig):
    """Settings of the tasks whose models write."""

    task_name: ClassVar[Any] = ("translation", "text-generation")

    max_new_tokens: int = option(128)
    """Longest answer in tokens, in validation and ever after."""

    num_beams: int = option(1)
    """Beams of the search for an answer; 1 takes the most likely token each time."""

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        for name in ("max_new_tokens", "num_beams"):
            if getattr(self, name) < 1:
                yield f"{name}: is {getattr(self, name)}, must be at least 1"


@dataclass(kw_only=True)
class TranslationSettings(StageConfig):
    """Settings of translation."""

    task_name: ClassVar[Any] = "translation"

    prompt_template: str | None = option(None)
    """What the model is given, with `{source}` where the text stands. None: an encoder-decoder is given the text alone, and a
    causal model goes on after the lines `Source: {source}` and `Translation:`."""

    generation_max_samples: int = option(200)
    """How many of the validation examples, from the first, are translated at each evaluation, for chrF and BLEU."""

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if self.prompt_template is not None and self.prompt_template.count("{source}") != 1:
            yield f"prompt_template: {self.prompt_template!r} must have {{source}} once"
        if self.generation_max_samples < 1:
            yield f"generation_max_samples: is {self.generation_max_samples}, must be at least 1"


@dataclass(kw_only=True)
class TextGenerationSettings(StageConfig):
    """Settings of text generation."""

    task_name: ClassVar[Any] = "text-generation"

    packing: bool = option(False)
    """Put several examples into a row of `max_length` tokens, none of which sees another, so that little is computed on
    padding; batch sizes then count rows. Refused for architectures that cannot keep them apart."""
