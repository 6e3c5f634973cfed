"""The runs that layouts are compared with, each made once."""

from __future__ import annotations

import pytest

from llmkit.parallel.verify import Verification


@pytest.fixture(scope="session")
def verification(tmp_path_factory: pytest.TempPathFactory) -> Verification:
    """What `llmkit verify` does, with one thread a process."""
    return Verification(tmp_path_factory.mktemp("verification"), cpu_threads=1)
