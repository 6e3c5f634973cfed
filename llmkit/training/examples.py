"""The examples that a task model is trained and validated on; evaluation reads them again, to know what the model has met."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.errors import DataError
from llmkit.tasks.base import Task
from llmkit.tasks.tables import read_dataset, read_table, source_name, validation_split

if TYPE_CHECKING:
    from llmkit.training.finetune import FinetuneConfig


@dataclass
class Examples:
    """What a model learns from and is validated on."""

    train: list[Any]
    validation: list[Any]
    validation_from: str
    """Where the validation examples come from, in words."""
    revision: str | None = None
    """The commit of a data set of the hub."""


def load_examples(config: FinetuneConfig, task: Task[Any]) -> Examples:
    """Training and validation examples.

    Raises:
        DataError: see `tables.read_table` and `Task.read`; or there is too little to hold out.
    """
    held_out, source, revision = None, "", None
    if config.train_file:
        rows = read_table(config.train_file)
        if config.validation_file:
            held_out, source = read_table(config.validation_file), Path(config.validation_file).name
    else:
        data = (config.dataset_name or "", config.dataset_config_name)
        training = read_dataset(*data, "train", config.dataset_revision)
        rows, revision = training.rows, training.revision
        split = validation_split(*data, config.dataset_revision)
        if split is not None:
            held_out = read_dataset(*data, split, config.dataset_revision).rows
            source = f"split {split} of {source_name(data[0])}"
    train = task.read(rows, config)
    if held_out is None:
        source = f"held out, {config.validation_fraction:.0%} of the training examples"
        train, validation = task.hold_out(train, config.validation_fraction, config.seed)
        if not validation:
            raise DataError(
                f"{len(train)} training examples leave none to hold out for validation, as equal ones stay together; "
                f"add examples, or give --validation_file"
            )
    else:
        validation = task.read(held_out, config)
    if config.max_train_samples is not None and config.max_train_samples < len(train):
        chosen = np.random.default_rng(config.seed).permutation(len(train))[: config.max_train_samples]
        train = [train[index] for index in sorted(chosen)]
    return Examples(train, validation, source, revision)
