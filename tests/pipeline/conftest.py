"""A toy pipeline on disk, and the `llmkit` command on its stages, in this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import toy_stages

import llmkit.parallel.launch
import llmkit.stages
from llmkit import cli
from llmkit.config import resolve
from llmkit.parallel.launch import data_ranks
from llmkit.pipeline import runner
from llmkit.pipeline.artefact import Artefact
from llmkit.pipeline.runner import load
from llmkit.pipeline.stage import run_stage


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every test works in an empty directory, with toy stages in the place of llmkit's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(llmkit.stages, "STAGES", toy_stages.STAGES)
    monkeypatch.setattr(llmkit.parallel.launch, "launch_stage", toy_stages.launch_here)


@dataclass
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """`llmkit ...` in this process."""

    def run(*words: str | Path) -> Said:
        capsys.readouterr()
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as exit:  # argparse
            code = int(exit.code or 0)
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return run


@pytest.fixture
def start() -> Any:
    """`llmkit ...` in a process of its own, after its imports; what is still alive at the end of the test is killed."""
    processes: list[subprocess.Popen[str]] = []

    def run(*words: str | Path, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*toy_stages.PROGRAM, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, **environment},
        )
        processes.append(process)
        assert process.stderr is not None
        assert process.stderr.readline() == "started\n"
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """The toy pipeline, with two texts."""
    return toy_stages.write_pipeline(tmp_path)


@pytest.fixture
def go(pipeline: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Run the toy pipeline in `runs/toy`; gives back the names of the steps that were not skipped."""

    def run(settings: list[str] | None = None, path: Path | None = None, **options: Any) -> list[str]:
        lines: list[str] = []
        runner.run(
            load(str(path or pipeline), toy_stages.STAGES, settings),
            tmp_path / "runs" / "toy",
            toy_stages.launch_here,
            data_ranks,
            say=lines.append,
            invocation={"pipeline": str(path or pipeline), "settings": settings or []},
            **options,
        )
        return [line.split()[1].rstrip(":") for line in lines if ": running" in line]

    return run


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Artefact]:
    """Run one toy stage with settings given by name."""

    def run(name: str, output: str, force: bool = False, **settings: Any) -> Artefact:
        from llmkit.config import Source

        stage = toy_stages.STAGES[name]
        resolved = resolve(stage.config_class, [Source(settings, dict.fromkeys(settings, "test"))])
        return run_stage(stage, resolved, tmp_path / output, force=force)

    return run
