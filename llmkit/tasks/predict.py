"""Command `predict`: a task model and a file to the same rows with predictions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from llmkit.config import StageConfig, help_text, option, parse_arguments
from llmkit.tasks.registry import TaskName
from llmkit.tasks.settings import Columns

STDIN = "-"

_INPUTS = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt")
_OUTPUTS = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(kw_only=True)
class PredictConfig(Columns, StageConfig):
    """Settings of the predict command."""

    renamed: ClassVar = {
        "input_file": "write `input`",
        "test_file": "write `input`",
        "output_file": "write `output`",
        "output_dir": "write `output`, a file",
        "per_device_eval_batch_size": "write `batch_size`",
    }

    model_name_or_path: str = option(role="artefact")
    """Model to ask (--model for short): the directory of a `finetune` result, or any model of transformers with the head of a
    task."""

    input: str = option(role="files")
    """Rows to predict: .csv, .tsv, .jsonl or .parquet; .txt, a text a line; or - for such lines from a pipe."""

    output: str | None = option(None)
    """File for the rows with their predictions: .csv, .tsv, .jsonl or .parquet. None: beside the input, as
    NAME.predictions.jsonl for a text file, and with the ending of the input for others."""

    task: TaskName | None = option(None)
    """Task of the model; None: as its config says."""

    calibration: str | None = option(None, role="artefact", made_by=("evaluate",))
    """Result of `llmkit evaluate` of this very model: the temperature that it has fitted on validation examples makes the
    probabilities as sure as they may be. Predictions stay as they are."""

    prefix: str | None = option(None)
    """Put before the names of the columns that are added, where the input has such names already."""

    batch_size: int = option(32)
    """Examples computed at once. Part of the job: in another batch the last digits of a number may differ."""

    chunk_size: int = option(512)
    """Rows after which what is predicted is on disk. Within so many, texts of like length are computed together."""

    cpu_threads: int | None = option(None, identity=False)
    """Threads on the CPU. None: as torch chooses."""

    force: bool = option(False, identity=False)
    """Begin anew though predictions are there or begun, and replace a file that is there."""

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if self.input == STDIN:
            if self.output is None:
                yield "output: name a file for what is predicted of lines from a pipe"
        elif Path(self.input).suffix.lower() not in _INPUTS:
            yield f"input: {self.input!r} does not end in one of {', '.join(_INPUTS)}"
        if self.output is not None and Path(self.output).suffix.lower() not in _OUTPUTS:
            yield f"output: {self.output!r} does not end in one of {', '.join(_OUTPUTS)}"
        for name in ("batch_size", "chunk_size", "cpu_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name}: is {value}, must be at least 1"

    @property
    def output_path(self) -> Path:
        """Where the result goes."""
        if self.output is not None:
            return Path(self.output)
        path = Path(self.input)
        kind = path.suffix if path.suffix.lower() in _OUTPUTS else ".jsonl"
        return path.with_name(f"{path.stem}.predictions{kind}")


def predict_help() -> str:
    """What `llmkit predict --help` prints."""
    return (
        "usage: llmkit predict --model MODEL --input FILE [--output FILE] [--key value ...]\n\n"
        "a task model and a file to the same rows, in the same order, with predictions\n\n"
        "  A run that was stopped goes on where it stopped when the same command is given again.\n\n"
        "  --config FILE  (path; default: none)\n      Settings in YAML; the command line wins over them.\n"
        + help_text(PredictConfig)
    )


def main(words: list[str]) -> int:
    """The command.

    Returns:
        The exit code.
    """
    if "--help" in words or "-h" in words:
        print(predict_help())
        return 0
    spelt = [f"--model_name_or_path{word[7:]}" if word.partition("=")[0] == "--model" else word for word in words]
    config = parse_arguments(PredictConfig, spelt).config

    from llmkit.tasks import prediction

    prediction.predict_file(config)
    return 0
