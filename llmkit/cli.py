"""The `llmkit` command. Imports nothing heavy before it knows what to do."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmkit import __version__
from llmkit.errors import LLMKitError, StageStopped

# Seconds. What one rank meets, the first one mostly meets as well; the launcher then ends all, so it is said once.
_MAIN_SPEAKS = 5.0


def guarded(command: Callable[[], int], launched: bool = False) -> int:
    """Run a command; a user's error is printed without a traceback and gives exit code 2.

    Args:
        launched: whether another process of llmkit has started this one, and speaks for it when it is interrupted.
    """
    try:
        code = command()
        sys.stdout.flush()
        return code
    except LLMKitError as failure:
        is_said = failure.reported
        if not _is_first():
            is_said = isinstance(failure, StageStopped)  # all ranks agree to stop, and the first one says it
            time.sleep(0 if is_said else _MAIN_SPEAKS)
        if not is_said:
            print(f"llmkit: {failure}", file=sys.stderr)
        return failure.exit_code
    except KeyboardInterrupt:
        if not launched:
            again = "the same command without --force" if "--force" in sys.argv else "the same command"
            print(f"llmkit: interrupted; {again} goes on where this one stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 0


def _is_first() -> bool:
    """Whether this process speaks for those that were started with it: on several nodes, one on each."""
    from llmkit.pipeline.ranks import on_several_nodes, rank

    return os.environ.get("LOCAL_RANK") == "0" if on_several_nodes() else rank()[0] == 0


def main(words: list[str] | None = None) -> int:
    """Entry point of the console script."""
    given = sys.argv[1:] if words is None else words
    return guarded(lambda: _dispatch(given))


def _dispatch(words: list[str]) -> int:
    from llmkit.stages import STAGES

    command = words[0] if words else "--help"
    if command in ("--help", "-h", "help"):
        print(_help())
        return 0
    if command in ("--version", "version"):
        print(f"llmkit {__version__}")
        return 0
    if command in _COMMANDS:
        return _COMMANDS[command](words[1:])
    if command in STAGES:
        return _run_stage(command, words[1:])
    import difflib

    near = difflib.get_close_matches(command, [*_COMMANDS, *STAGES], n=1, cutoff=0.5)
    raise LLMKitError(f"no command {command!r}" + (f"; did you mean {near[0]!r}?" if near else "; see `llmkit --help`"))


def _help() -> str:
    import textwrap

    from llmkit import resources
    from llmkit.stages import STAGES

    lines = ["usage: llmkit COMMAND [options]   (llmkit COMMAND --help tells more)", "", "pipelines:"]
    lines += [
        "  run         run a pipeline, only what is not fresh",
        "  status      what is fresh, stale, missing or running",
        "  trace       walk a file or a number back to the raw bytes",
        "  replay      make one step of a pretraining run again, and show what it was made of",
        "  tokens      verify token shards, byte by byte",
        "  thresholds  what other thresholds of the quality rules would keep of a corpus",
        "  plan        memory, speed and cost of every launch layout, before a model is built",
        "  check       what would go wrong with a launch, before it is made",
        "  verify      prove that a launch layout computes what one process computes",
        "  predict     a task model and a file to the same rows with predictions",
        "  compare     two evaluations or more on the same examples, with what their size could show",
        "",
        "stages, in the order data flows through them:",
    ]
    lines += [f"  {stage.name:11} {stage.summary}" for stage in STAGES.values()]
    lines += ["", "shipped:"]
    for kind in ("pipelines", "recipes", "accelerate_configs"):
        named = f"{kind}: {', '.join(resources.names(kind))}"
        lines += textwrap.wrap(named, 100, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)


def _run_stage(name: str, words: list[str]) -> int:
    from llmkit.parallel.launch import data_ranks, default_layout, launch_stage, refuse, several_nodes
    from llmkit.stages import STAGES, run_from_command_line

    layout = default_layout() if STAGES[name].launched else None
    if layout and not any(word.startswith("--accelerate_config") for word in words):
        words = [*words, "--accelerate_config", layout]
    return run_from_command_line(name, words, launch_stage, data_ranks, several_nodes, refuse)


def _run(words: list[str]) -> int:
    from llmkit.parallel.launch import data_ranks, launch_stage
    from llmkit.pipeline import runner
    from llmkit.stages import STAGES

    parser = argparse.ArgumentParser(prog="llmkit run", description="Run a pipeline, only what is not fresh.")
    parser.add_argument("pipeline", help="name of a shipped pipeline, or path of a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.KEY=VALUE", help="change a setting")
    parser.add_argument("--from", dest="first", metavar="STAGE", help="run this stage again, and all that is made from it")
    parser.add_argument("--until", dest="last", metavar="STAGE", help="stop after this stage")
    parser.add_argument("--force", action="append", default=[], metavar="STAGE", help="run this stage again")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="say what would run, and run nothing")
    parser.add_argument("--runs_dir", default="runs", help="where results go (default: runs)")
    given = parser.parse_args(words)
    pipeline = runner.load(given.pipeline, STAGES, given.set)
    directory = Path(given.runs_dir) / pipeline.name
    artefacts = runner.run(
        pipeline,
        directory,
        launch_stage,
        data_ranks,
        first=given.first,
        last=given.last,
        force=tuple(given.force),
        dry_run=given.dry_run,
        invocation={"pipeline": given.pipeline, "settings": given.set},
    )
    if artefacts:
        _say_results(pipeline, artefacts, directory)
    return runner.check_results(pipeline, artefacts)


def _say_results(pipeline: Any, artefacts: dict[str, Any], directory: Path) -> None:
    from llmkit.resources import display

    name, artefact = list(artefacts.items())[-1]
    stage = pipeline.step(name).stage
    shown = display(directory) + f"/{name}"
    pages = [record.path for record in artefact.manifest.files if record.path.endswith(".html")]
    print(f"result: {shown}/{pages[0] if pages else ''}")
    if not pages:
        print(f"next: {stage.next.format(output=shown)}")


def _status(words: list[str]) -> int:
    from llmkit.parallel.launch import data_ranks
    from llmkit.pipeline import runner
    from llmkit.stages import STAGES

    parser = argparse.ArgumentParser(prog="llmkit status", description="What is fresh, stale, missing or running.")
    parser.add_argument("--runs_dir", default="runs", help="where results are (default: runs)")
    runner.status(Path(parser.parse_args(words).runs_dir), STAGES, data_ranks)
    return 0


def _trace(words: list[str]) -> int:
    from llmkit.pipeline.trace import trace

    parser = argparse.ArgumentParser(prog="llmkit trace", description="Walk a file or a number back to the raw bytes.")
    parser.add_argument("target", type=Path, help="a file or directory of a result")
    parser.add_argument("number", nargs="?", help="a number of its metrics, such as accuracy.value")
    given = parser.parse_args(words)
    return 0 if trace(given.target, given.number) else 1


def _replay(words: list[str]) -> int:
    from llmkit.parallel.launch import launch_command
    from llmkit.pipeline.stage import rank

    parser = argparse.ArgumentParser(prog="llmkit replay", description="Make one step of a pretraining run again.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint of the run, from before the step")
    parser.add_argument("--step", type=int, required=True, help="the step, as metrics.jsonl counts: the first is 1")
    parser.add_argument("--output", type=Path, help="a JSON file for all that is found")
    parser.add_argument("--accelerate_config", metavar="NAME", help="launch layout of the run (default: one process)")
    given = parser.parse_args(words)
    if given.accelerate_config and rank()[1] == 1:
        kept = ["--checkpoint", str(given.checkpoint), "--step", str(given.step)]
        kept += ["--output", str(given.output)] if given.output else []
        return launch_command(given.accelerate_config, ["replay", *kept])
    from llmkit.training.replay import describe, replay

    found = replay(given.checkpoint, given.step)
    if found is not None:
        print(describe(found))
        if given.output:
            given.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if rank()[1] > 1:
        from llmkit.stages import leave

        leave(0)
    return 0


def _tokens(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="llmkit tokens", description="Look into token shards.")
    actions = parser.add_subparsers(dest="action", required=True)
    verify = actions.add_parser("verify", help="check every byte against the index, and name every fault")
    verify.add_argument("directory", type=Path, help="a result of `llmkit tokenize`")
    directory = parser.parse_args(words).directory

    from llmkit.errors import ArtefactError
    from llmkit.tokens.verify import faults

    found = list(faults(directory))
    if found:
        count = "1 fault" if len(found) == 1 else f"{len(found)} faults"
        listed = "\n".join(f"  - {fault}" for fault in found)
        raise ArtefactError(f"{directory} has {count}; make it again with `llmkit tokenize`:\n{listed}")
    print(f"{directory}: every token, boundary and hash is as its index says")
    return 0


def _plan(words: list[str]) -> int:
    from llmkit.parallel.plan import plan_command

    return plan_command(words)


def _check(words: list[str]) -> int:
    from llmkit.parallel.check import run

    return run(words)


def _verify(words: list[str]) -> int:
    from llmkit.parallel.verify import main as verify

    return verify(words)


def _predict(words: list[str]) -> int:
    from llmkit.tasks.predict import main as predict

    return predict(words)


def _thresholds(words: list[str]) -> int:
    from llmkit.corpus.thresholds import main as thresholds

    return thresholds(words)


def _compare(words: list[str]) -> int:
    from llmkit.evaluation.compare import main as compare

    return compare(words)


_COMMANDS = {
    "run": _run,
    "status": _status,
    "trace": _trace,
    "replay": _replay,
    "tokens": _tokens,
    "thresholds": _thresholds,
    "plan": _plan,
    "check": _check,
    "verify": _verify,
    "predict": _predict,
    "compare": _compare,
}


if __name__ == "__main__":
    sys.exit(main())
