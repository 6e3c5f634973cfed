"""What is taken for a duplicate."""

from __future__ import annotations

from dataclasses import dataclass

from llmkit.errors import ConfigError

_MOST_HASHES = 4096


@dataclass(frozen=True)
class DuplicateSettings:
    """Which duplicates go, and how alike texts have to be. Raises ConfigError with every problem."""

    documents: bool
    """Whether a text that an earlier document has goes. Training texts that stand in validation go in any case."""
    paragraphs: bool
    """Whether a paragraph that an earlier document (or the same one) has goes out of its text."""
    near: bool
    """Whether a text that is nearly that of an earlier document goes."""
    bands: int = 14
    """Bands of MinHash values; two texts are alike where one band agrees. 14 bands of 8 rows: FineWeb (Penedo et al. 2024)."""
    rows: int = 8
    """MinHash values in a band."""
    ngram: int = 5
    """Words in a run; texts are compared as sets of such runs."""
    seed: int = 0
    """Of the hash functions."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {getattr(self, name)} is not a whole number from {least}"
            for name, least in (("bands", 1), ("rows", 1), ("ngram", 1), ("seed", 0))
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least
        ]
        if not problems and self.bands * self.rows > _MOST_HASHES:
            problems = [f"bands x rows: {self.bands} x {self.rows} are more than {_MOST_HASHES} hash functions"]
        if problems:
            raise ConfigError(problems, "settings of deduplication")
