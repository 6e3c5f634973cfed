"""Stage `evaluate`: a model and a test set to metrics, predictions and baselines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from llmkit.config import StageConfig, fields_of, option
from llmkit.errors import ConfigError
from llmkit.evaluation import gate
from llmkit.tasks.registry import EvaluatedName
from llmkit.tasks.settings import Columns
from llmkit.training.finetune import dataset_marks, source_problems

if TYPE_CHECKING:
    from llmkit.pipeline.stage import Workspace


@dataclass(kw_only=True)
class LanguageModelSettings(StageConfig):
    """How a base language model is measured on documents."""

    task_name: ClassVar[Any] = "language-modeling"

    corpus: str | None = option(None, role="artefact", made_by=("preprocess", "tokenize"))
    """Instead of a file or data set: the documents of a `preprocess` or `tokenize` result, its validation split."""

    sample_by: Literal["document", "paragraph", "line"] = option("document")
    """What of a .txt file is a document: all of it, what stands between blank lines, or a line."""

    max_length: int | None = option(None)
    """Tokens that the model reads at once; None: what it takes, at most 4096."""

    stride: int | None = option(None)
    """Tokens between the beginnings of two windows over a long document; None: half of what is read at once. Shorter ones show
    more of what stands before a token, and cost more."""

    sample_prompts: list[str] | None = option(None)
    """Prompts after which the model writes a text; None: the beginnings of the first three documents."""

    sample_tokens: int = option(40)
    """Longest of these texts in tokens."""

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        for name in ("max_length", "stride", "sample_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name}: is {value}, must be at least 1"


@dataclass(kw_only=True)
class EvaluateConfig(Columns, LanguageModelSettings, StageConfig):
    """Settings of the evaluate stage."""

    model_name_or_path: str = option(role="artefact")
    """Model to measure: the directory of a `finetune` result, any model of transformers with the head of a task, or a base
    language model."""

    task: EvaluatedName | None = option(None)
    """Its task; None: as its config says. A causal model that has learned none is measured by `language-modeling` where the
    data are nothing but texts, or by `multiple-choice` if asked."""

    test_file: str | None = option(None, role="files")
    """Test examples: .csv, .tsv, .jsonl or .parquet, one a row; for language modeling documents, also .txt."""

    dataset_name: str | None = option(None)
    """Instead of a file: the name or directory of a data set that `datasets` can load, or an embedded one, such as
    `llmkit/reviews`."""

    dataset_config_name: str | None = option(None)
    """Configuration of that data set."""

    dataset_revision: str | None = option(None)
    """Commit, branch or tag of that data set on the hub; None: its newest."""

    dataset_split: str = option("test")
    """Split of that data set."""

    lm_eval: list[str] | None = option(None)
    """Instead of a test set: tasks of lm-evaluation-harness, an extra, as `tasks=one,two`. Beside it `include_path=`, a
    directory of local tasks (those of the harness are then left out), `num_fewshot=`, and `limit=`, documents of each task."""

    per_device_eval_batch_size: int = option(64)
    """Examples, or windows of documents, computed at once; of windows fewer where they are long."""

    cpu_threads: int | None = option(None, identity=False)
    """Threads on the CPU. None: as torch chooses."""

    baselines: bool = option(True)
    """Measure the baselines too; they learn from the examples that a `finetune` result was trained on."""

    selfcheck: bool = option(False)
    """Compare every metric with its reference (scikit-learn, scipy, sacrebleu, the definition of SQuAD), and count predictions
    that change with the batch size; a metric that differs ends the evaluation."""

    leakage: bool = option(True)
    """Look for the n-grams of test examples in what the model was trained on: its pretraining corpus and its fine-tuning
    examples, as the lineage has them. Takes about a minute for 2 GB of text."""

    slice_by: list[str] = option(factory=list)
    """Further columns of the test set by which its examples are sliced: numbers are cut into quarters, others may have up to
    20 values."""

    bias_probe: bool = option(True)
    """Swap words for gender, names, places and nationalities in test examples, and count what changes; at most 500 further
    predictions, by classifiers and question answerers."""

    seed: int = option(0)
    """Seed of resampling, of the baselines, and of what is drawn for the bias probe."""

    gate: list[str] | None = option(None, identity=False)
    """Conditions such as "accuracy>=0.8" or "ter<=60", in quotes: >= holds for the lower end of the 95% interval, <= for its
    upper end. Where one is not met, the result is kept all the same, and the exit code is 1."""

    def problems(self) -> Iterable[str]:
        yield from gate.problems(self.gate or [])
        yield from super().problems()
        if self.lm_eval is not None:
            yield from self._lm_eval_problems()
        elif self.corpus is None:
            yield from source_problems(self, "test_file")
        elif self.test_file or self.dataset_name:
            yield "corpus: documents are given, and others; give one of corpus, test_file and dataset_name"
        if self.lm_eval is not None:
            yield from self.unused("lm_eval")
        elif self.task is not None:
            yield from self.unused(self.task)
        for name in ("per_device_eval_batch_size", "cpu_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name}: is {value}, must be at least 1"

    def unused(self, task: str) -> Iterable[str]:
        """Settings that say nothing of a task, or of those of lm_eval, and that would be left out without a word."""
        language_modeling = LanguageModelSettings.task_name
        known = fields_of(type(self))
        if task != language_modeling:
            for name in fields_of(LanguageModelSettings):
                if getattr(self, name) != known[name].default and not (task == "lm_eval" and name == "corpus"):
                    yield f"{name}: is a setting of {language_modeling}, and the task is {task}"
        if task in (language_modeling, "lm_eval"):
            for name in ("selfcheck", "slice_by"):
                if getattr(self, name) != known[name].default:
                    yield f"{name}: is no setting of {task}"

    def _lm_eval_problems(self) -> Iterable[str]:
        given = self.lm_eval_settings()
        for word in given.keys() - {"tasks", "include_path", "num_fewshot", "limit"}:
            yield f"lm_eval: {word!r} is none of tasks=, include_path=, num_fewshot= and limit="
        words = [word.partition("=")[0] for word in self.lm_eval or []]
        for word in given:
            if words.count(word) > 1:
                yield f"lm_eval: {word}= is given twice; several tasks are named as tasks=one,two"
        if not self.lm_eval_tasks():
            yield "lm_eval: name the tasks: tasks=one,two"
        if not Path(given.get("include_path", ".")).is_dir():
            yield f"lm_eval: there is no directory {given['include_path']!r} (looked in {Path.cwd()})"
        for name in ("num_fewshot", "limit"):
            if not given.get(name, "1").isdigit():
                yield f"lm_eval: {name} is {given[name]!r}, must be a whole number"
        for name in ("task", "test_file", "dataset_name", "corpus"):
            if getattr(self, name):
                yield f"{name}: the tasks of lm_eval say what is measured; give one of the two"

    def lm_eval_settings(self) -> dict[str, str]:
        """What `lm_eval` says, by name."""
        return dict(word.partition("=")[::2] for word in self.lm_eval or [])

    def lm_eval_tasks(self) -> list[str]:
        """The names of the tasks of `lm_eval`."""
        names = (name.strip() for name in self.lm_eval_settings().get("tasks", "").split(","))
        return [name for name in names if name]

    def raw_inputs(self) -> dict[str, str]:
        marks = dataset_marks(self.dataset_name, (self.dataset_split,))
        local = self.lm_eval_settings().get("include_path")
        return marks | (dataset_marks(local, ()) if local else {})

    def result_settings(self, processes: int) -> dict[str, Any]:
        """Weights that were changed where they lie: their manifest, which stands for them else, does not know of it."""
        from llmkit.pipeline.artefact import enclosing

        place = Path(self.model_name_or_path)
        artefact = enclosing(place) if place.exists() else None
        changed = artefact.changed(".safetensors") if artefact is not None else {}
        return {"changed_weights": changed} if changed else {}


def evaluate(config: EvaluateConfig, workspace: Workspace) -> dict[str, Any]:
    """Measure the model; writes metrics.json and predictions.parquet.

    Returns:
        The headline metrics with their intervals.
    """
    if config.lm_eval is not None:
        from llmkit.evaluation.harness import evaluate_with_lm_eval

        return evaluate_with_lm_eval(config, workspace)
    from llmkit.evaluation import language_model
    from llmkit.evaluation.task_model import evaluate_task_model

    is_asked = language_model.is_asked(config)
    if unused := list(config.unused(config.task or (LanguageModelSettings.task_name if is_asked else "another"))):
        raise ConfigError(unused)
    if is_asked:
        return language_model.evaluate_language_model(config, workspace)
    return evaluate_task_model(config, workspace)
