"""The errors that a user can cause.

Each says what is wrong, where (file, line or key) and what to do. The command prints the message without a traceback and
exits with 2 (a stopped stage with 128 and the signal's number, as a shell counts); anything else that escapes is a bug of
llmkit and keeps its traceback.
"""

from __future__ import annotations


class LLMKitError(Exception):
    """Base of all errors that a user can cause and mend."""

    exit_code = 2

    reported = False
    """Whether the message has been printed already, by the process in which it arose."""


class ConfigError(LLMKitError):
    """Settings that cannot be used; carries every problem found, not only the first."""

    def __init__(self, problems: list[str], where: str = "settings"):
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{count} in the {where}:\n" + "\n".join(f"  - {problem}" for problem in problems))


class DataError(LLMKitError):
    """Data that cannot be used: missing, empty, unreadable, or with too many bad rows."""


class ColumnError(DataError):
    """A column that is not there, or that has to be named: a fault of the whole table, and not of a row."""


class ArtefactError(LLMKitError):
    """A directory that is not the artefact it should be, or must not be written to."""


class PipelineError(LLMKitError):
    """A pipeline that cannot be run: a cycle, an unknown stage, a missing input."""


class LockedError(LLMKitError):
    """Another process is writing to the same place; the message names it."""


class StageFailed(LLMKitError):
    """A stage started by `accelerate launch` ended with an error that is not the user's to mend."""


class StageStopped(LLMKitError):
    """A signal ended a stage after it had saved what it needs to go on: 143 after SIGTERM, 130 after SIGINT."""

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + signal_number
