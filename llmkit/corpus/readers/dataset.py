"""Data sets of the `datasets` library to rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmkit.corpus.readers.rows import Progress, Row, no_column, row
from llmkit.corpus.readers.unit import Unit, printable
from llmkit.errors import DataError


class DatasetReader:
    """The rows of a data set by its hub name or local path, streamed by `datasets`."""

    size = None
    skipped = 0

    def __init__(self, name: str, config_name: str | None, split: str, text_column: str, revision: str | None = None):
        self._name, self._config_name, self._split, self._column = name, config_name, split, text_column
        self._revision = revision

    def describe(self) -> str:
        return f"the split {self._split!r} of the data set {self._name}"

    def rows(self, progress: Progress) -> Iterator[Row]:
        rows = iter(self._load())
        unit = Unit(self._name, printable(Path(*Path(self._name).parts[-2:]).as_posix()), "dataset")
        number = 0
        while True:
            number += 1
            try:
                values = next(rows, None)
            except Exception as failure:
                where = f"{self.describe()} cannot be read at row {number}"
                raise DataError(f"{where}: {_first_line(failure)}") from failure
            if values is None:
                return
            if self._column not in values:
                raise DataError(f"{self.describe()} {no_column(self._column, values)}")
            yield row(unit, number, values, self._column)

    def _load(self) -> Any:
        import datasets

        path = Path(self._name).expanduser()
        try:
            if (path / "dataset_dict.json").is_file():
                return datasets.load_from_disk(str(path))[self._split]
            if (path / "state.json").is_file():
                return datasets.load_from_disk(str(path))
            given = {"split": self._split, "revision": self._revision}
            return datasets.load_dataset(self._name, self._config_name, streaming=True, **given)
        except Exception as failure:  # whatever a hub, a file system or a builder may raise
            raise DataError(f"dataset_name: {self.describe()} cannot be loaded: {_first_line(failure)}") from failure


def _first_line(failure: Exception) -> str:
    lines = str(failure).strip().splitlines()
    return f"{type(failure).__name__}: {lines[0] if lines else 'no message'}"
