"""Small real stages: they read real files, write real files (slowly, if told to), and take no part of the rooms.

    python toy_stages.py run PIPELINE ...      the `llmkit` command on these stages, in a process of its own

pytest puts this directory on the import path; a child process gets it by being started with this file.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.config import StageConfig, option
from llmkit.errors import DataError
from llmkit.pipeline.artefact import Artefact
from llmkit.pipeline.stage import Stage, Workspace, expand, rank, run_stage

PROGRAM = [sys.executable, str(Path(__file__).resolve())]
"""The `llmkit` command on these stages, in a process of its own."""

PIPELINE = """\
description: A toy chain with every shape of join.
stages:
  gather:
    config:
      train_file: [{data}]
  measure:
    inputs: {{corpus: gather}}
  learn:
    inputs: {{corpus: gather}}
  combine:
    inputs: {{left: measure, right: learn}}
"""


@dataclass(kw_only=True)
class Paced(StageConfig):
    pause: float = option(0.0, identity=False)
    """How long it waits between two pieces that it writes, in seconds."""


@dataclass(kw_only=True)
class GatherConfig(Paced):
    train_file: list[str] = option(role="files")
    """Texts."""

    upper: bool = option(False)
    """Whether the texts are written in capitals."""

    copies: int = option(1)
    """How often each text is written."""

    extra: dict[str, Any] = option(factory=dict)
    """Anything, written beside the texts."""

    def problems(self) -> Iterable[str]:
        if self.copies < 1:
            yield f"copies: is {self.copies}, must be at least 1"

    def raw_inputs(self) -> dict[str, str]:
        return {"alphabet": "version-1"}


@dataclass(kw_only=True)
class MeasureConfig(Paced):
    corpus: str = option(role="artefact", made_by=("gather",))
    """A result of `gather`."""

    unit: str = option("words")
    """What is counted: words or characters."""


@dataclass(kw_only=True)
class LoopConfig(StageConfig):
    corpus: str = option(role="artefact")
    """A result of any stage, itself included."""


@dataclass(kw_only=True)
class LearnConfig(Paced):
    corpus: str = option(role="artefact", made_by=("gather",))
    """A result of `gather`."""

    learning_rate: float = option(0.5)
    """Written into each step."""

    steps: int = option(6)
    """Steps, each with a checkpoint."""

    batch: int | None = option(None, identity=False)
    """Samples that one process learns at once."""

    def result_settings(self, processes: int) -> dict[str, Any]:
        return {"global_batch": self.batch * processes} if self.batch else {}


@dataclass(kw_only=True)
class CombineConfig(Paced):
    left: str = option(role="artefact", made_by=("measure",))
    """A result of `measure`."""

    right: str = option(role="artefact", made_by=("learn",))
    """A result of `learn`."""

    title: str = option("combined")
    """Heads the report."""

    def problems(self) -> Iterable[str]:
        if not self.title:
            yield "title: is empty"


def write_slowly(path: Path, text: str, pause: float, pieces: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = max(1, -(-len(text) // pieces))
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, len(text), size):
            file.write(text[start : start + size])
            file.flush()
            end = time.monotonic() + pause
            while (rest := end - time.monotonic()) > 0:
                time.sleep(min(rest, 0.05))  # a signal that comes just before a long sleep would wait for its end


def gather(config: GatherConfig, workspace: Workspace) -> dict[str, Any]:
    texts = [path.read_text(encoding="utf-8") for path in expand(config.train_file, "train_file")]
    if not any(texts):
        raise DataError("train_file: all texts are empty")
    for number, text in enumerate(text for text in texts for _ in range(config.copies)):
        write_slowly(workspace.directory / f"texts/{number}.txt", text.upper() if config.upper else text, config.pause)
    write_slowly(workspace.directory / "extra.json", json.dumps(config.extra), config.pause)
    return {"texts": {"count": len(texts) * config.copies}, "characters": sum(map(len, texts)) * config.copies}


def measure(config: MeasureConfig, workspace: Workspace) -> dict[str, Any]:
    corpus = Artefact.open(config.corpus, "gather")
    texts = [path.read_text(encoding="utf-8") for path in sorted((corpus.directory / "texts").iterdir())]
    counts = [len(text.split()) if config.unit == "words" else len(text) for text in texts]
    write_slowly(workspace.directory / "counts.json", json.dumps(counts), config.pause)
    return {"train": {"total": sum(counts), "mean": sum(counts) / len(counts)}, "test": {"total": 0}}


def _meet(workspace: Workspace) -> None:
    """What a collective operation does: no rank goes on before all are there."""
    this, ranks = rank()
    if ranks > 1:
        (workspace.directory / f".here-{this}").touch()
        until(lambda: len(list(workspace.directory.glob(".here-*"))) == ranks)


def learn(config: LearnConfig, workspace: Workspace) -> dict[str, Any]:
    """Goes on from the newest checkpoint of an earlier attempt, as training does."""
    _meet(workspace)
    if not workspace.is_main:
        return {}
    corpus = Artefact.open(config.corpus, "gather")
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((corpus.directory / "texts").iterdir()))
    done = list(workspace.directory.glob("step-*.txt"))
    for step in range(len(done), config.steps):
        aside = workspace.directory / "writing"
        write_slowly(aside, f"{step} {config.learning_rate} {text[step :: config.steps]}", config.pause)
        os.replace(aside, workspace.directory / f"step-{step}.txt")
    (workspace.directory / "writing").unlink(missing_ok=True)
    write_slowly(workspace.directory / "model.txt", f"{config.learning_rate} {text}", config.pause)
    return {"loss": 1 / config.steps}


def combine(config: CombineConfig, workspace: Workspace) -> dict[str, Any]:
    left, right = Artefact.open(config.left, "measure"), Artefact.open(config.right, "learn")
    page = f"<h1>{config.title}</h1>{left.manifest.metrics['train']['total']} {right.manifest.metrics['loss']}"
    write_slowly(workspace.directory / "report.html", page, config.pause)
    return {"score": left.manifest.metrics["train"]["total"]}


def toy(name: str, **more: Any) -> Stage:
    return Stage(
        name=name,
        summary=f"toy stage {name}",
        config=f"toy_stages:{name.capitalize()}Config",
        function=f"toy_stages:{name}",
        next=f"after {name}: {{output}}",
        **more,
    )


STAGES = {
    stage.name: stage
    for stage in (
        toy("gather"),
        toy("measure"),
        toy("learn", launched=True, checkpoints="step-*.txt", scratch=(".here-*",)),
        toy("combine"),
    )
}


def launch_here(stage: Stage, resolved: Any, output: Path, layout: str, force: bool = False) -> Artefact:
    """In the place of `accelerate launch`: the same stage function, in this process."""
    return run_stage(stage, resolved, output, force=force, layout=layout)


def write_pipeline(directory: Path, texts: dict[str, str] | None = None, pipeline: str = PIPELINE) -> Path:
    """A pipeline and its data on disk."""
    data = directory / "data"
    data.mkdir(parents=True, exist_ok=True)
    for name, text in (texts or {"a.txt": "one two three\n" * 20, "b.txt": "四 五 六\n" * 20}).items():
        (data / name).write_text(text, encoding="utf-8")
    path = directory / "toy.yaml"
    path.write_text(pipeline.format(data=data), encoding="utf-8")
    return path


def contents(directory: Path) -> dict[str, bytes]:
    """All files of an artefact that its settings and inputs decide."""
    records = {"manifest.json", "llmkit.yaml"}
    files = (path for path in directory.rglob("*") if path.is_file() and path.name not in records)
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def assert_all_that_claims_to_be_complete_is(runs: Path) -> int:
    """Below `runs`, every directory with a manifest has exactly what the manifest says. Returns how many there are."""
    manifests = sorted(runs.rglob("manifest.json"))
    for path in manifests:
        artefact = Artefact.peek(path.parent)
        assert artefact is not None
        assert artefact.damaged(hashes=True) == []
        if not path.parent.name.endswith(".partial"):
            written = {item.relative_to(path.parent).as_posix() for item in path.parent.rglob("*") if item.is_file()}
            assert written == {record.path for record in artefact.manifest.files} | {"manifest.json"}
    return len(manifests)


def until(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def _die_at(instant: int, below: Path) -> None:
    """Kill this process, as kill -9 does, just before the n-th time that it changes something below a directory."""
    seen = 0
    changing = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.truncate", "shutil.rmtree"}

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == "open":
            writes = isinstance(arguments[1], str) and any(sign in arguments[1] for sign in "wax+")
            if not writes:
                return
        elif event not in changing:
            return
        if not any(isinstance(word, (str, os.PathLike)) and os.fspath(word).startswith(str(below)) for word in arguments):
            return
        seen += 1
        if seen == instant:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def run_and_die_at_every_instant(pipeline: Path, runs: Path) -> None:
    """Run a pipeline again and again, each time in a fork and a new directory, killed one change later than before."""
    import contextlib

    from llmkit.parallel.launch import data_ranks
    from llmkit.pipeline import runner
    from llmkit.pipeline.artefact import environment

    loaded = runner.load(str(pipeline), STAGES)
    environment()  # asks git once, so that the forks need not
    for instant in range(1, 1000):
        directory = runs / f"{instant:03}"
        child = os.fork()
        if child == 0:
            with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
                _die_at(instant, directory)
                runner.run(loaded, directory, launch_here, data_ranks)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            print(f"{instant} {status}")
            return


def main() -> int:
    import llmkit.parallel.launch
    import llmkit.stages
    from llmkit import cli

    module = sys.modules["__main__"]
    sys.modules["toy_stages"] = module  # the stages name this module; it is not loaded a second time
    llmkit.stages.STAGES.clear()
    llmkit.stages.STAGES.update(STAGES)
    llmkit.parallel.launch.launch_stage = launch_here
    if sys.argv[1] == "die":
        run_and_die_at_every_instant(Path(sys.argv[2]), Path(sys.argv[3]))
        return 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell turns it off for what it runs with `&`
    print("started", file=sys.stderr, flush=True)
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
