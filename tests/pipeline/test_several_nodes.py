"""What ranks on several nodes tell each other: real processes with the environment that a launcher gives them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Rank = Callable[..., "subprocess.Popen[str]"]

PRELUDE = """
import sys
from pathlib import Path
import llmkit
from llmkit.errors import LLMKitError

def agreed(**facts):
    from llmkit.pipeline import ranks
    try:
        ranks.agree(Path(sys.argv[1]) / "out", **facts)
    except LLMKitError as failure:
        sys.exit(f"{failure.exit_code}: {failure}")
"""


@pytest.fixture
def rank(tmp_path: Path) -> Rank:
    """`rank(1, "agreed()")`: code that runs as one of two ranks, each on a node of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def start(number: int, code: str, directory: Path = tmp_path) -> subprocess.Popen[str]:
        place = {"RANK": str(number), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2"}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}
        words = [sys.executable, "-c", PRELUDE + code, str(directory)]
        variables = {**os.environ, **place, **meeting, "LLMKIT_NODE_WAIT": "60", "TORCH_CPP_LOG_LEVEL": "FATAL"}
        return subprocess.Popen(words, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def said(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=120)[1].strip()


@pytest.mark.slow
def test_ranks_that_agree_go_on_and_leave_nothing_behind(rank: Rank, tmp_path: Path) -> None:
    both = [rank(number, "agreed(settings={'a': (1, 2)}); agreed(settings={'a': (3,)})") for number in (1, 0)]
    assert [(said(process), process.returncode) for process in both] == [("", 0), ("", 0)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_another_version_is_named_on_both(rank: Rank) -> None:
    both = [rank(0, "agreed()"), rank(1, "llmkit.__version__ = '0.0.1'; agreed()")]
    for process in both:
        assert "has llmkit 0.0.1, the main process on" in said(process)


@pytest.mark.slow
def test_other_facts_are_named_on_both(rank: Rank) -> None:
    both = [rank(number, f"agreed(settings={{'a': 1, 'b': {number}}})") for number in (0, 1)]
    for process in both:
        assert said(process).endswith("settings: b (0 there, 1 here)")


@pytest.mark.slow
def test_a_rank_that_waits_for_a_main_process_that_has_ended_says_so_and_may_be_started_again(rank: Rank) -> None:
    waits = """
from llmkit.pipeline import ranks
agreed()
ranks._FAREWELL = 1.0
try:
    while True:
        ranks.pause(0.05)
except LLMKitError as failure:
    sys.exit(f"{failure.exit_code}: {failure}")
"""
    first, second = rank(0, "agreed()"), rank(1, waits)
    assert said(first) == ""
    assert said(second) == "1: rank 1: the main process, on 127.0.0.1, has ended"
