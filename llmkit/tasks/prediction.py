"""Predictions for a file of any size. `predict.py` holds the settings and stays light to import.

Rows pass through in chunks. What the model gives for a chunk is one line of `<output>.partial/predictions.jsonl`, on disk
before the next chunk begins, beside a record of the job: model, input and settings. A run that was killed goes on after the
last whole line, if its job is still the same; and since chunks are counted from the first row, what is computed together, and
so every digit, does not depend on where it was killed. When all is predicted, the rows are read once more, put together with
their predictions, and the file appears by a rename.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
from transformers.utils.logging import disable_progress_bar

from llmkit import __version__
from llmkit.errors import ArtefactError, ColumnError, ConfigError, DataError
from llmkit.pipeline import lock
from llmkit.pipeline.artefact import MANIFEST, enclosing, environment, sha256_of, sync
from llmkit.pipeline.progress import Progress
from llmkit.pipeline.stage import partial_of, writing
from llmkit.resources import display
from llmkit.tasks.base import Example, Task
from llmkit.tasks.loading import load_task_model
from llmkit.tasks.predict import STDIN, PredictConfig
from llmkit.tasks.predicted import (
    ASIDE,
    JOB,
    PREDICTED,
    TABLE,
    Predicted,
    differences,
    model_files,
    no_terminal,
    write_whole,
)
from llmkit.tasks.settings import Columns
from llmkit.tasks.tables import Row, iterate_table
from llmkit.tasks.temperature import calibrated, temperature_of
from llmkit.tasks.writers import ColumnTypes, as_json, in_blocks, record_batches, write_parquet, write_text_table

ERROR = "error"
"""The column that says why a row has no prediction."""

_LINES = "stdin.txt"
_OURS = {JOB, PREDICTED, _LINES, TABLE, ASIDE, lock.HOLDER}

# The settings that may name what the lines of a text file are, and what tasks call it else.
_LINE_SETTINGS, _LINE_COLUMNS = ("text_column", "source_column", "source_lang", "prompt_column"), ("text", "source", "prompt")


def predict_file(config: PredictConfig, say: Callable[[str], None] = print) -> None:
    """Predict; writes the output, and beside it `<output>.manifest.json`, a record of what it was made from.

    Raises:
        ConfigError: there is no such model or directory.
        DataError: the input cannot be read, has no rows, lacks a column, or has one that would be added; or no row at all can
            be predicted.
        ArtefactError: the output is there already, or begun with another job; or the disk refuses it.
        LockedError: another process is writing the same output.
    """
    output = config.output_path
    if not output.parent.is_dir():
        raise ConfigError([f"output: there is no directory {str(output.parent)!r} (looked in {Path.cwd()})"])
    if output.is_dir():
        raise ConfigError([f"output: {str(output)!r} is a directory; name a file in it"])
    if output.exists() and Path(config.input).exists() and output.samefile(config.input):
        raise ConfigError([f"output: {str(output)!r} is the input; name another file"])
    partial = partial_of(output)
    with writing(partial, "predict"), lock.hold(partial):
        strange = set(os.listdir(partial)) - _OURS
        if strange:
            raise ArtefactError(f"{partial} holds files that llmkit did not write; move them, or name another --output")
        try:
            _predict(config, output, partial, say)
        finally:
            (partial / _LINES).unlink(missing_ok=True)


def _predict(config: PredictConfig, output: Path, partial: Path, say: Callable[[str], None]) -> None:
    disable_progress_bar()
    if config.cpu_threads is not None:
        torch.set_num_threads(config.cpu_threads)
    columns = columns_of(config)
    source = Source.of(config, partial / _LINES)
    temperature = temperature_of(config.calibration, config.model_name_or_path) if config.calibration else None
    job = _job(config, columns, source, temperature)
    record = output.with_name(f"{output.name}.{MANIFEST}")
    begun = Predicted(partial)
    if not config.force and output.exists():
        if _is_finished(output, record, job):
            begun.remove()
            say(f"predict: already there, nothing to do: {display(output)}")
            return
        if not begun.is_forced(job):
            raise ArtefactError(_why_not(output, record, job))
    if not config.force:
        begun.refuse_another(job, output)
    task, model, tokenizer = load_task_model(config.model_name_or_path, config.task)
    if source.kind == ".txt":
        source.line_column = line_column(task, columns)
    survey = source.survey(output.suffix.lower() == ".parquet")
    prefix = config.prefix or ""
    survey.refuse_twice([prefix + name for name in ("prediction", ERROR)])
    done = begun.begin(job, config.force)
    if done:
        say(f"predict: goes on after the {done:,} rows that an earlier run has predicted")
    rows = islice(source.rows(), done, None)
    with Progress(done, survey.rows, say, "predict", "row") as progress:
        for chunk in in_blocks(rows, config.chunk_size):
            torch.manual_seed(done)  # where a task draws lots, they are those of the chunk, and not of what came before it
            examples = examples_of(task, survey.filled(chunk), columns)
            if not done:
                refuse_columns(examples)
            predicted = predictions(task, model, tokenizer, examples, config.batch_size)
            if temperature is not None:
                predicted = [row if isinstance(row, str) else calibrated(row, temperature) for row in predicted]
            new = dict.fromkeys(name for row in predicted if isinstance(row, dict) for name in row)
            survey.refuse_twice([prefix + name for name in new])
            begun.append(predicted)
            done += len(chunk)
            progress.add(len(chunk))
    failed, first = _failures(begun)
    if failed == survey.rows:
        begun.remove()
        raise DataError(f"none of the {failed:,} rows of {source.shown} can be predicted; the first: {first}")
    _write_table(partial / TABLE, output.suffix.lower(), source, survey, begun, prefix)
    source.refuse_change()
    sync(partial / TABLE)
    made = {
        "job": job,
        "task": task.name,
        "rows": survey.rows,
        "rows_without_prediction": failed,
        "sha256": sha256_of(partial / TABLE),
        "environment": environment(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_whole(record, made, partial)
    os.replace(partial / TABLE, output)
    sync(output.parent)
    begun.remove()
    what = f"predict: {survey.rows:,} rows" + (f", {failed:,} of them without a prediction" if failed else "")
    say(f"{what}: {display(output)}")
    if failed:
        say(f"  the column {prefix}{ERROR} says why; the first: {first}")


# --------------------------------------------------------------------------------------------------------------------
# Input


@dataclass
class Survey:
    """What there is to know of a table before its rows are used."""

    shown: str
    rows: int
    columns: list[str]
    """Of all rows: in JSON lines, each may have its own."""
    types: ColumnTypes

    def refuse_twice(self, added: list[str]) -> None:
        """Refuse to add columns that the input has.

        Raises:
            DataError: it has one.
        """
        twice = [name for name in added if name in self.columns]
        if twice:
            raise DataError(
                f"{self.shown} has a column {twice[0]!r} already; give the columns that are added names of their own with "
                f"--prefix, `--prefix new_` say"
            )

    def filled(self, chunk: list[Row]) -> list[Row]:
        """Rows that all have all columns: what a row lacks is then a fault of the row, and not of the table."""
        empty = dict.fromkeys(self.columns)
        return [Row(row.place, {**empty, **row.values}) for row in chunk]


class Source:
    """The input, which is read three times: to survey it, to predict, and to put rows and predictions together."""

    def __init__(self, path: Path, shown: str):
        """Set up.

        Args:
            shown: the input as a person knows it.
        """
        self.path, self.shown = path, shown
        self.line_column = _LINE_COLUMNS[0]
        self.kind = path.suffix.lower()
        self._stamp = self._look()
        try:
            self.sha256 = sha256_of(path)
        except OSError as failure:
            raise DataError(f"{path} cannot be read: {failure.strerror}") from None

    @classmethod
    def of(cls, config: PredictConfig, lines: Path) -> Source:
        """The input of a job; what comes from a pipe is put into the file `lines`."""
        if config.input != STDIN:
            return cls(Path(config.input), config.input)
        with lines.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        return cls(lines, "the standard input")

    def _look(self) -> tuple[int, int]:
        try:
            status = self.path.stat()
        except OSError as failure:
            raise DataError(f"{self.path} cannot be read: {failure.strerror} (looked in {Path.cwd()})") from None
        return status.st_size, status.st_mtime_ns

    def refuse_change(self) -> None:
        """Refuse an input that is no longer what it was.

        Raises:
            DataError: it has changed.
        """
        if self._look() != self._stamp:
            raise DataError(f"{self.shown} has changed while it was read; begin anew with --force")

    def rows(self) -> Iterator[Row]:
        """The rows; their places have the name of the file alone, since where it lies must not change the result."""
        shown = "stdin" if self.path.name == _LINES else self.path.name
        for row in iterate_table(self.path, self.line_column):
            yield Row(row.place.replace(str(self.path), shown, 1), row.values)

    def survey(self, wants_types: bool) -> Survey:
        """Count the rows and find the columns, so that what is broken far below is found before hours are spent.

        Args:
            wants_types: find the types of the columns as well, where the file itself does not say them.

        Raises:
            DataError: the input cannot be read, or has no rows.
        """
        found = Survey(self.shown, 0, [], ColumnTypes())
        columns: dict[str, None] = {}
        for block in in_blocks(self.rows(), 1024):
            found.rows += len(block)
            values = [row.values for row in block]
            columns.update((name, None) for row in values for name in row)
            if wants_types and self.kind != ".parquet":
                found.types.see(values)
        if not found.rows:
            raise DataError(f"{self.shown} holds no rows")
        found.columns = list(columns)
        return found


def columns_of(config: PredictConfig) -> Columns:
    """The columns that are named, and those of the fine-tuning where they are not."""
    artefact = enclosing(Path(config.model_name_or_path)) if Path(config.model_name_or_path).exists() else None
    trained = artefact.manifest.config if artefact is not None and artefact.manifest.stage == "finetune" else {}
    return Columns(**{name: getattr(config, name) or trained.get(name) for name in Columns.__dataclass_fields__})


def line_column(task: Task[Any], columns: Columns) -> str:
    """What the lines of a text file are called as a column: what a task reads that needs no other."""
    named = (getattr(columns, setting, None) for setting in _LINE_SETTINGS)
    for name in (*filter(None, named), *_LINE_COLUMNS):
        with contextlib.suppress(DataError):
            # By a copy, since what a task reads may tell it what it takes: a line, that it takes no second text.
            copy.copy(task).read([Row("", {name: "a"})], columns, is_labelled=False)
            return name
    return _LINE_COLUMNS[0]


# --------------------------------------------------------------------------------------------------------------------
# Predictions


def examples_of(task: Task[Any], rows: list[Row], columns: Columns) -> list[Example | DataError]:
    """The example of each row, or why it is none. A task refuses all rows for one, so then they are read one at a time."""
    reason: DataError
    try:
        for row in rows:
            as_json(row.values).encode()
        read = task.read(rows, columns, is_labelled=False)
        if len(read) == len(rows):
            return list(read)
        reason = DataError(f"{rows[0].place} holds {len(read)} examples, and a row with one is needed")
    except DataError as failure:
        reason = failure
    except UnicodeEncodeError as failure:
        reason = DataError(f"{rows[0].place} holds a character that is none: {failure.reason}")
    if len(rows) == 1:
        return [reason]
    return [example for row in rows for example in examples_of(task, [row], columns)]


def refuse_columns(examples: list[Example | DataError]) -> None:
    """Refuse a table of which no row has the columns that are needed.

    Raises:
        ColumnError: that of the first row.
    """
    failures = [example for example in examples if isinstance(example, ColumnError)]
    if len(failures) == len(examples):
        raise failures[0]


def predictions(
    task: Task[Any], model: Any, tokenizer: Any, examples: list[Example | DataError], batch_size: int
) -> list[dict[str, Any] | str]:
    """What the model gives for each example, or why it gives nothing."""
    given = iter(_predicted(task, model, tokenizer, [item for item in examples if isinstance(item, Example)], batch_size))
    return [next(given) if isinstance(item, Example) else str(item) for item in examples]


def _predicted(
    task: Task[Any], model: Any, tokenizer: Any, examples: list[Example], batch_size: int
) -> list[dict[str, Any] | str]:
    if not examples:
        return []
    try:
        with no_terminal():
            return list(task.predict(model, tokenizer, examples, batch_size))
    except DataError as failure:  # a prompt that leaves no room to go on, say
        if len(examples) == 1:
            return [str(failure)]
    return [row for example in examples for row in _predicted(task, model, tokenizer, [example], batch_size)]


def _failures(begun: Predicted) -> tuple[int, str]:
    """How many rows have no prediction, and why the first has none."""
    reasons = (row for row in begun.rows() if isinstance(row, str))
    first = next(reasons, None)
    return (0, "") if first is None else (1 + sum(1 for _ in reasons), first)


# --------------------------------------------------------------------------------------------------------------------
# Output


def _write_table(path: Path, kind: str, source: Source, survey: Survey, begun: Predicted, prefix: str) -> None:
    names, types = [], ColumnTypes()
    for block in in_blocks(_added(begun, prefix), 1024):
        names += [name for name in dict.fromkeys(name for row in block for name in row) if name not in names]
        types.see(block)
    names.remove(prefix + ERROR)
    names.append(prefix + ERROR)
    empty = dict.fromkeys(names)
    if kind != ".parquet":
        rows = (row.values | empty | added for row, added in zip(source.rows(), _added(begun, prefix), strict=True))
        write_text_table(path, kind, [*survey.columns, *names], rows)
    elif source.kind == ".parquet":
        with pyarrow.parquet.ParquetFile(source.path) as file:
            write_parquet(path, file.iter_batches(), file.schema_arrow, _added(begun, prefix), types, names)
    else:
        batches, schema = record_batches((row.values for row in source.rows()), survey.types, survey.columns)
        write_parquet(path, batches, schema, _added(begun, prefix), types, names)


def _added(begun: Predicted, prefix: str) -> Iterator[dict[str, Any]]:
    """The columns that each row gets."""
    for row in begun.rows():
        columns = {ERROR: row} if isinstance(row, str) else {**row, ERROR: None}
        yield {prefix + name: value for name, value in columns.items()}


# --------------------------------------------------------------------------------------------------------------------
# The job


def _job(config: PredictConfig, columns: Columns, source: Source, temperature: float | None) -> dict[str, Any]:
    """All that decides the bytes of the result, as JSON has it."""
    settings: dict[str, Any] = {
        "task": config.task,
        "prefix": config.prefix,
        "batch_size": config.batch_size,
        "chunk_size": config.chunk_size,
    }
    settings |= {} if temperature is None else {"temperature": temperature}
    return {
        "llmkit": __version__,
        "model": model_files(config.model_name_or_path),
        "input": {"sha256": source.sha256, "format": source.kind},
        "settings": {**settings, **vars(columns)},
    }


def _is_finished(output: Path, record: Path, job: dict[str, Any]) -> bool:
    made = _made(output, record)
    return made is not None and made["job"] == job


def _made(output: Path, record: Path) -> dict[str, Any] | None:
    """The record of a file, if it is of this very file."""
    try:
        made = json.loads(record.read_text(encoding="utf-8"))
        return made if made["sha256"] == sha256_of(output) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _why_not(output: Path, record: Path, job: dict[str, Any]) -> str:
    made = _made(output, record)
    what = "is there already" if made is None else f"holds predictions that differ in {differences(made['job'], job)}"
    return f"{display(output)} {what}; name another --output, or replace it with --force"
