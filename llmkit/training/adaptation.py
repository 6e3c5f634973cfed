"""Settings of how a model is adapted to a task: what of it is trained, how often, from which teacher. Light to import."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from llmkit.config import StageConfig, accepted, convert, option

# What a search must not change: which examples there are, what is measured on them, and the search itself.
_FIXED = (
    "task",
    "seed",
    "seeds",
    "resume",
    "max_train_samples",
    "validation_fraction",
    "metric_for_best_model",
    "generation_max_samples",
    "problem_type",
    "label_separator",
    "source_lang",
    "target_lang",
    "search_trials",
    "search_space",
)


@dataclass(kw_only=True)
class AdaptationSettings(StageConfig):
    """Which weights are trained, from which start, with which seeds and settings, and what they learn from."""

    peft: Literal["lora"] | None = option(None)
    """lora: train low-rank updates of the linear layers and the head, and nothing else (Hu et al. 2022). The result is the
    model with the updates added, and beside it in `adapter/` the updates alone. None: train all weights."""

    lora_r: int = option(8)
    """Rank of the updates."""

    lora_alpha: float = option(16.0)
    """The updates are scaled by lora_alpha / lora_r."""

    lora_dropout: float = option(0.0)
    """Dropout on what goes into the updates."""

    lora_target_modules: list[str] | None = option(None)
    """Names of the linear layers that are updated, such as q_proj; None: all but those of the head."""

    freeze: list[str] | None = option(None)
    """What is not trained: `embeddings` (all tables), `layers:N` (the N lowest layers, of encoder and decoder each), or names
    of modules as in the model, with * for any characters (`model.layers.*.mlp`)."""

    random_start: bool = option(False)
    """Start from random weights of the base model's architecture, with its tokenizer: what pretraining is compared with."""

    seeds: list[int] | None = option(None)
    """Train one model for each of these seeds: `0,1,2`. New weights, the order of examples and dropout depend on it; which
    examples are held out depends on `seed`. None: one model, with `seed`."""

    search_trials: int | None = option(None)
    """Trials of a hyperparameter search, before a model is trained with the best settings found; None: no search."""

    search_space: dict[str, Any] = option(factory=dict)
    """What is searched: a mapping from settings to {low, high} (with `log: true` on a logarithmic scale) or {choices}."""

    teacher: str | None = option(None, role="artefact")
    """A model that has learned the task, to learn from beside the labels (Hinton et al. 2015): a `finetune` result or any
    other with the same tokenizer and, of classes, the same labels."""

    distillation_temperature: float = option(2.0)
    """What the logits of teacher and student are divided by, where they are compared."""

    distillation_alpha: float = option(0.5)
    """Weight of the teacher in the loss, from 0 to 1; the labels have the rest."""

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        for name in ("lora_r", "lora_alpha", "distillation_temperature"):
            if getattr(self, name) <= 0:
                yield f"{name}: is {getattr(self, name)}, must be above 0"
        if not 0 <= self.lora_dropout < 1:
            yield f"lora_dropout: is {self.lora_dropout}, must lie between 0 and 1"
        if not 0 <= self.distillation_alpha <= 1:
            yield f"distillation_alpha: is {self.distillation_alpha}, must lie between 0 and 1"
        yield from self._without("peft", ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"))
        yield from self._without("teacher", ("distillation_temperature", "distillation_alpha"))
        for name in ("peft", "freeze"):
            if getattr(self, name) and (self.random_start or getattr(self, "model_type", None)):
                yield f"{name}: leaves random weights as they are; it goes with a base model and its weights"
        if self.peft and self.freeze:
            yield "freeze: with peft everything but the updates and the head is frozen already"
        if self.random_start and getattr(self, "model_type", None):
            yield "random_start: is that of a base model; a model_type has random weights anyway"
        if self.teacher and getattr(self, "packing", False):
            yield "packing: a teacher does not keep the examples of a row apart; leave one of the two out"
        if self.seeds is not None and (len(self.seeds) < 2 or len(set(self.seeds)) < len(self.seeds)):
            yield "seeds: give two or more, each once; for one model write `seed`"
        if (self.seeds or self.search_trials) and getattr(self, "resume", "auto") not in ("auto", "never"):
            yield "resume: a checkpoint is one of a single training, and there are several; write auto or never"
        yield from self._search_problems()

    def _without(self, owner: str, names: tuple[str, ...]) -> Iterable[str]:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in names:
            if not getattr(self, owner) and getattr(self, name) != defaults[name]:
                yield f"{name}: goes with {owner}"

    def _search_problems(self) -> Iterable[str]:
        if bool(self.search_trials) != bool(self.search_space):
            yield "search_trials, search_space: go together; say how many trials, and of what"
        if self.search_trials is not None and self.search_trials < 1:
            yield f"search_trials: is {self.search_trials}, must be at least 1"
        if getattr(self, "metric_for_best_model", None) in ("loss", "eval_loss"):
            for name in sorted({"class_weights", "focal_gamma"} & set(self.search_space)):
                yield f"search_space: {name} changes what the loss measures; give another metric_for_best_model"
        known = accepted(type(self))
        for name, span in self.search_space.items():
            spec = known.get(name)
            if spec is None:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
                yield f"search_space: there is no setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            elif spec.role != "setting" or name in _FIXED or name.endswith("_column") or name.startswith("dataset_"):
                yield f"search_space: {name} is no setting to be searched: it decides what is learned or compared"
            else:
                yield from _span_problems(name, span, spec.type)


def _span_problems(name: str, span: Any, kind: Any) -> Iterable[str]:
    keys = set(span) if isinstance(span, dict) else set()
    if keys != {"choices"} and not {"low", "high"} <= keys <= {"low", "high", "log", "step"}:
        yield (
            f"search_space: {name}: give {{low, high}}, {{low, high, step}}, {{low, high, log: true}} or {{choices: [...]}}"
        )
        return
    values = span["choices"] if "choices" in keys else [span[key] for key in ("low", "high", "step") if key in keys]
    if not isinstance(values, list) or not values:
        yield f"search_space: {name}: choices is no list of values"
        return
    for value in values:
        try:
            convert(value, kind)
        except ValueError as failure:
            yield f"search_space: {name}: {value!r} {failure}"
    if "choices" in keys:
        return
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        yield f"search_space: {name}: low and high are numbers; give choices"
    elif "step" in keys and (span.get("log") or span["step"] <= 0):
        yield f"search_space: {name}: step must be above 0, and is not for a logarithmic scale"
    elif span["low"] >= span["high"] or (span.get("log") and span["low"] <= 0):
        yield f"search_space: {name}: low must be less than high, and above 0 on a logarithmic scale"
