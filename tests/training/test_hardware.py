from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from llmkit.training.hardware import usable_cores, use_cpu_well

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.mark.parametrize(
    ("says", "cores"),
    [("max 100000", CORES), ("100000 100000", 1), ("50000 100000", 1), (f"{CORES * 300000} 100000", CORES), ("", CORES)],
)
def test_a_container_with_a_share_of_the_time_has_so_many_cores(says: str, cores: int, tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(f"{says}\n", encoding="ascii")
    assert usable_cores(quota) == cores


def test_without_control_groups_all_cores_are_usable(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "cpu.max") == CORES


@pytest.mark.parametrize(
    ("processes", "threads", "expected"),
    [(1, None, usable_cores()), (2, None, max(1, usable_cores() // 2)), (10_000, None, 1), (2, 1, 1)],
)
def test_processes_share_the_cores_whatever_omp_num_threads_says(
    processes: int, threads: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accelerate launch` sets OMP_NUM_THREADS=1."""
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    try:
        use_cpu_well(threads)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
