"""What would go wrong with a launch, found before it is made: settings, layout, model, data and machine against each other.

Each check is a small generator of problems. None of them imports torch, builds a model or starts a process.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from llmkit import resources
from llmkit.config import Resolved, accepted, parse_arguments, read_settings_file
from llmkit.errors import ConfigError, LLMKitError
from llmkit.parallel import launch_checks, layout_checks
from llmkit.parallel.launch import default_layout
from llmkit.parallel.layout import read_layout
from llmkit.parallel.machine import Machine
from llmkit.parallel.subject import Problem, Subject, counted
from llmkit.stages import STAGES, take_options
from llmkit.training.arguments import TrainingConfig

USAGE = """usage: llmkit check RECIPE [--accelerate_config NAME] [--json FILE] [--key value ...]

What would go wrong with a launch, all at once, before anything is launched.

  RECIPE  (path or shipped name, such as pretrain/quickstart; or a stage: pretrain, finetune)
      The settings; those on the command line win over them.
  --accelerate_config NAME  (path or shipped name; default: one process, or ddp where there are several GPUs)
      Launch layout.
  --output_dir DIRECTORY, --runs_dir DIRECTORY  (path; default runs)
      Where the result would go.
  --json FILE
      The answer for a program.

Exit code: 0 when nothing is wrong, 1 when something is, 2 when it cannot be checked."""


def problems(subject: Subject) -> list[Problem]:
    """Everything that is wrong, in the order of the checks: the layout, the settings, the model, its data, the machine."""
    found = [problem for check in layout_checks.CHECKS for problem in check(subject.layout, subject.machine)]
    found += [problem for check in launch_checks.CHECKS for problem in check(subject)]
    return list(dict.fromkeys(found))


def arithmetic(subject: Subject) -> str:
    """The samples of a step, in one line."""
    assert subject.batch is not None, "a check says so before"
    at_once, accumulated, ranks = subject.batch
    together = f", {subject.layout.model_ranks} to a model" if subject.layout.model_ranks > 1 else ""
    samples = f"{at_once} samples at once x {accumulated} accumulated x {ranks} data-parallel"
    return f"{counted(subject.processes, 'process')}{together}; {samples} = {at_once * accumulated * ranks} samples a step"


# --------------------------------------------------------------------------------------------------------------------
# The command, and the launch


def refuse_broken(stage: str, resolved: Resolved[Any], output: Path, layout: str) -> None:
    """Refuse a launch on one machine that would go wrong, before a process is started.

    Raises:
        ConfigError: with everything that is wrong.
    """
    found = read_layout(layout)
    if found.machines > 1:
        return  # the nodes would wait for one that ended here; their ranks find it when they meet, and all say it
    # On one machine the launcher takes a free port, whatever the layout says.
    wrong = problems(Subject(stage, resolved.config, found, Machine.at_hand(output, None), output))
    if wrong:
        raise ConfigError([str(problem) for problem in wrong], f"launch of {stage} under {layout}")


def run(words: list[str]) -> int:
    """`llmkit check`: print what is wrong.

    Returns:
        0 when nothing is wrong, 1 when something is.

    Raises:
        LLMKitError: there is no such recipe, stage or layout.
    """
    if not words or "--help" in words or "-h" in words:
        print(USAGE)
        return 0
    options, rest = take_options(words, ("output_dir", "runs_dir", "accelerate_config", "json"), ("force", "dry_run"))
    name, rest = _stage_of(rest)
    stage = STAGES[name]
    called = options.get("accelerate_config") or default_layout() or "single"
    layout = read_layout(called)
    output = Path(options.get("output_dir") or options.get("runs_dir") or "runs")
    machine = Machine.at_hand(output, layout.settings.get("main_process_port"))
    subject = None
    try:
        resolved = parse_arguments(stage.config_class, rest, stage.default_recipe)
        subject = Subject(name, cast(TrainingConfig, resolved.config), layout, machine, output)
        found = [*problems(subject), *launch_checks.memory_problems(subject)]
    except ConfigError as failure:
        found = [Problem(sentence) for sentence in failure.problems]
        found += [problem for check in layout_checks.CHECKS for problem in check(layout, machine)]
    title = f"{name} under {called}"
    if found:
        print(f"{title}: {counted(len(found), 'problem')}")
        for problem in found:
            print(f"  - {problem.what}" + (f"\n      {problem.remedy}" if problem.remedy else ""))
        if subject is None:
            print("  The settings have to be right before they can be held against the layout, the model and the machine.")
    else:
        assert subject is not None
        print(f"nothing is wrong: {title}: {arithmetic(subject)}")
    if options.get("json"):
        answer = {"stage": name, "layout": called, "problems": [asdict(problem) for problem in found]}
        Path(options["json"]).write_text(json.dumps(answer, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if found else 0


def _stage_of(words: list[str]) -> tuple[str, list[str]]:
    """The stage that a command line is about, and its settings."""
    launched = [stage.name for stage in STAGES.values() if stage.launched]
    first, *rest = words
    if first in launched:
        return first, rest
    if first in STAGES or first.startswith("--"):
        raise LLMKitError(f"check: {first!r} is nothing that is launched; give a recipe, or one of {', '.join(launched)}")
    path = resources.find("recipes", first)
    if path.resolve().parent.name in launched:
        return path.resolve().parent.name, ["--config", first, *rest]
    keys = {key for source in read_settings_file(path) for key in source.values}
    unknown = {name: len(keys - accepted(STAGES[name].config_class).keys()) for name in launched}
    best = [name for name in launched if unknown[name] == min(unknown.values())]
    # Who takes all that another one takes, and more, is not who is meant.
    kinds = {name: STAGES[name].config_class for name in best}
    best = [name for name in best if not any(issubclass(kinds[name], kinds[other]) for other in best if other != name)]
    if len(best) > 1:
        raise LLMKitError(
            f"check: {first} could be settings of {' and of '.join(best)}; write llmkit check {best[0]} --config {first}"
        )
    return best[0], ["--config", first, *rest]
