"""The stages there are, and how each is started from a command line."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmkit.config import Resolved, Source, help_text, parse_arguments, positional_of, resolve
from llmkit.errors import ArtefactError, ConfigError
from llmkit.pipeline import runner
from llmkit.pipeline.artefact import Artefact, FileHashes
from llmkit.pipeline.ranks import on_several_nodes
from llmkit.pipeline.stage import Stage, finished_line, identify, load_target, rank, run_stage
from llmkit.pipeline.stage import data_ranks as ranks_with_samples
from llmkit.training.arguments import SCRATCH as _TRAINING_SCRATCH

STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            name="preprocess",
            summary="raw text to clean documents",
            config="llmkit.corpus.settings:PreprocessConfig",
            function="llmkit.corpus.preprocess:preprocess",
            version=2,
            resumes=True,
            scratch=(".work",),
            page="llmkit.reports.corpus:write",
            next="llmkit tokenizer --corpus {output}",
        ),
        Stage(
            name="tokenizer",
            summary="documents to a tokenizer",
            config="llmkit.tokens.train_tokenizer:TokenizerConfig",
            function="llmkit.tokens.train_tokenizer:train_tokenizer",
            next="llmkit tokenize --corpus DOCUMENTS --tokenizer {output}",
        ),
        Stage(
            name="tokenize",
            summary="documents to token shards",
            config="llmkit.tokens.tokenize_corpus:TokenizeConfig",
            function="llmkit.tokens.tokenize_corpus:tokenize_corpus",
            next="llmkit pretrain --tokens {output}",
        ),
        Stage(
            name="pretrain",
            summary="token shards (or a corpus) to a causal language model",
            config="llmkit.training.pretrain:PretrainConfig",
            function="llmkit.training.pretrain:pretrain",
            next="llmkit finetune --model_name_or_path {output} --dataset_name llmkit/reviews",
            launched=True,
            checkpoints="checkpoint-*",
            scratch=_TRAINING_SCRATCH,
            default_recipe="pretrain/quickstart",
            prepare="llmkit.stages:prepare_tokens",
            plan="llmkit.training.plan:plan_pretraining",
        ),
        Stage(
            name="generate",
            summary="a causal language model and prompts to text",
            config="llmkit.tasks.generate:GenerateConfig",
            function="llmkit.tasks.generate:generate",
            next="open {output}/generations.jsonl",
            show="llmkit.tasks.generate:show",
        ),
        Stage(
            name="finetune",
            summary="a base model and examples to a task model",
            config="llmkit.training.finetune:FinetuneConfig",
            function="llmkit.training.finetune:finetune",
            version=2,
            next="llmkit evaluate --model_name_or_path {output} --test_file TEST",
            launched=True,
            checkpoints="checkpoint-*",
            scratch=_TRAINING_SCRATCH,
        ),
        Stage(
            name="ablate",
            summary="a base model and examples to what its pretraining is worth",
            config="llmkit.evaluation.ablate:AblateConfig",
            function="llmkit.evaluation.ablate:ablate",
            version=2,
            next="llmkit evaluate --model_name_or_path {output}/pretrained --test_file TEST",
            launched=True,
            checkpoints="*/checkpoint-*",
            scratch=(*_TRAINING_SCRATCH, ".features"),
        ),
        Stage(
            name="evaluate",
            summary="a model and a test set to metrics with intervals",
            config="llmkit.evaluation.evaluate:EvaluateConfig",
            function="llmkit.evaluation.evaluate:evaluate",
            version=3,
            next="llmkit report {output}",
            check="llmkit.evaluation.gate:check",
            resumes=True,
            scratch=(".*",),
        ),
        Stage(
            name="quantize",
            summary="a classifier to int8 weights for serving on CPUs",
            config="llmkit.evaluation.quantize:QuantizeConfig",
            function="llmkit.evaluation.quantize:quantize",
            next="llmkit evaluate --model_name_or_path {output} --test_file TEST (or --dataset_name llmkit/reviews)",
        ),
        Stage(
            name="report",
            summary="an evaluation, a training, or several side by side, to an HTML report and a model card",
            config="llmkit.reports.report:ReportConfig",
            function="llmkit.reports.report:report",
            version=3,
            next="open {output}/report.html",
        ),
    )
}

_PREPARING = "base-model"


def stage_help(stage: Stage) -> str:
    """What `llmkit <stage> --help` prints."""
    recipe = f"default: the shipped settings {stage.default_recipe!r}" if stage.default_recipe else "default: none"
    place = "none: the result is shown, and not kept" if stage.show else f"default runs/{stage.name}-<fingerprint>"
    common = [
        f"  --config FILE  (path or shipped name; {recipe})\n      Settings in YAML; the command line wins over them.",
        f"  --output_dir DIRECTORY  (path; {place})\n      Where the result goes.",
        "  --runs_dir DIRECTORY  (path; default runs)\n      Where results go that have no place of their own.",
        "  --force  (flag)\n      Run from the start though the result is there or begun, and replace one of other settings.",
    ]
    if stage.launched:
        common.append(
            "  --accelerate_config NAME  (path or shipped name; default: one process)\n"
            "      Launch layout, started with `accelerate launch`."
        )
    if stage.plan:
        common.append("  --dry_run  (flag)\n      Say what would be made, how and why; make nothing.")
    positional = positional_of(stage.config_class)
    words = f" [{positional.name.upper()} ...]" if positional else ""
    usage = f"usage: llmkit {stage.name}{words} [--config FILE] [--key value ...]\n\n{stage.summary}\n"
    return "\n".join([usage, *common, "", help_text(stage.config_class)])


def _one_process(_: str) -> int:
    return 1


def run_from_command_line(
    name: str,
    words: list[str],
    run_with_layout: runner.Launcher | None = None,
    data_ranks: runner.DataRanks = _one_process,
    several_nodes: Callable[[str], bool] = lambda layout: False,
    refuse: Callable[[str, Resolved[Any], Path, str], None] | None = None,
) -> int:
    """Run one stage from command line words; what `llmkit <stage>` and `recipes/<stage>.py` do.

    Args:
        run_with_layout: starts the stage under `--accelerate_config`; None inside a launch.
        data_ranks: how many processes of a layout have samples of their own.
        several_nodes: whether a layout is started on more than this machine.
        refuse: refuses a launch that would go wrong, before inputs are made for it; the launcher does so once more.
    """
    stage = STAGES[name]
    if "--help" in words or "-h" in words:
        print(stage_help(stage))
        return 0
    if rank()[0] != 0 and not stage.launched:
        return 0  # it is the work of one process; the launcher ends with the exit code of that one
    options, rest = take_options(words, ("output_dir", "runs_dir", "accelerate_config", "layout"), ("force", "dry_run"))
    layout = options.get("accelerate_config")
    if layout and run_with_layout is None:
        raise ConfigError(["--accelerate_config: inside a launch the layout is `accelerate launch --config_file`"], "command")
    runs = Path(options.get("runs_dir") or "runs")
    try:
        resolved = parse_arguments(stage.config_class, rest, stage.default_recipe)
    except ConfigError as failure:
        hints = [_candidate(name, problem, runs) for problem in failure.problems]
        if not any(hints):
            raise
        raise ConfigError([problem + hint for problem, hint in zip(failure.problems, hints, strict=True)]) from None
    if "dry_run" in options:
        if stage.plan is None:
            raise ConfigError(
                [f"--dry_run: {name} has no plan to show; `llmkit run --dry_run` says what a pipeline would do"], "command"
            )
        if rank()[0] == 0:
            print(load_target(stage.plan)(resolved))
        return 0
    if stage.show and not options.get("output_dir"):
        return stage.show_result(resolved.config)
    if stage.prepare and not resolved.config.sources():  # type: ignore[attr-defined]
        if on_several_nodes() or (layout and several_nodes(layout)):
            raise ConfigError(
                ["tokens: on several nodes name token shards; make them on one: `llmkit run base-model --until tokenize`"]
            )
        if layout and refuse:
            refuse(name, resolved, runs, layout)
        resolved = prepare_tokens(resolved, runs)
    processes = data_ranks(layout) if layout else ranks_with_samples()
    output = Path(options["output_dir"]) if options.get("output_dir") else _default_output(stage, resolved, runs, processes)
    force = "force" in options
    if layout and run_with_layout:
        artefact = run_with_layout(stage, resolved, output, layout, force)
    else:
        # Started by a pipeline or another command, it may meet the process of an earlier one that was killed, still at work.
        artefact = run_stage(stage, resolved, output, force=force, layout=options.get("layout"), wait="layout" in options)
    if rank()[0] == 0 and not options.get("layout"):  # else the process that launched this one says it
        print(finished_line(stage, artefact))
        return stage.check_result(resolved.config, artefact)
    return 0


# The stage whose result is the usual `model_name_or_path` of another.
_USUAL_MODEL = {"generate": "pretrain", "finetune": "pretrain", "evaluate": "finetune", "quantize": "finetune"}


def _candidate(name: str, problem: str, runs: Path) -> str:
    """For a model that is missing, the newest result that would serve, as the end of the sentence."""
    if name not in _USUAL_MODEL or not problem.startswith("--model_name_or_path is missing"):
        return ""
    found = []
    for manifest in [*runs.glob("*/manifest.json"), *runs.glob("*/*/manifest.json")]:
        with contextlib.suppress(ArtefactError):
            artefact = Artefact.peek(manifest.parent)
            if artefact is not None and artefact.manifest.stage == _USUAL_MODEL[name]:
                found.append((artefact.manifest.created, str(manifest.parent)))
    return f" The newest here is {max(found)[1]}" if found else ""


def _default_output(stage: Stage, resolved: Resolved[Any], runs: Path, processes: int) -> Path:
    hashes = FileHashes(runs / ".hashes.json")
    fingerprint = identify(stage, resolved.config, hashes, processes=processes).fingerprint
    hashes.save()
    return runs / f"{stage.name}-{fingerprint[:12]}"


def take_options(words: list[str], valued: tuple[str, ...], flags: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """Options of the command itself, apart from the stage's settings."""
    options: dict[str, str] = {}
    rest: list[str] = []
    position = 0
    while position < len(words):
        key, sign, value = words[position].removeprefix("--").partition("=")
        key = key.replace("-", "_")
        is_option = words[position].startswith("--")
        position += 1
        if is_option and key in flags and not sign:
            options[key] = "true"
        elif is_option and key in valued:
            if not sign:
                if position == len(words):
                    raise ConfigError([f"--{key} needs a value"], "command")
                value = words[position]
                position += 1
            options[key] = value
        else:
            rest.append(words[position - 1])
    return options, rest


# What `pretrain` is told of a corpus, and the step and setting of the preparing pipeline that takes it.
_CORPUS_SETTINGS = {
    "train_file": ("preprocess", "train_file"),
    "validation_file": ("preprocess", "validation_file"),
    "dataset_name": ("preprocess", "dataset_name"),
    "dataset_config_name": ("preprocess", "dataset_config_name"),
    "text_column": ("preprocess", "text_column"),
    "vocab_size": ("tokenizer", "vocab_size"),
}


def prepare_tokens(resolved: Resolved[Any], runs: Path) -> Resolved[Any]:
    """Make corpus, tokenizer and token shards for a `pretrain` that was given none, where they are not there yet.

    The stages are those of the shipped pipeline `base-model`, and their results lie in `runs/base-model`. On several ranks
    the main process makes them and the others wait for the files: no collective operation can time out meanwhile.
    """
    config = resolved.config
    pipeline = runner.load(_PREPARING, STAGES)
    for name, (step, key) in _CORPUS_SETTINGS.items():
        value = getattr(config, name)
        if value is not None:
            pipeline.step(step).sources.append(Source({key: value}, {key: resolved.origins[name]}))
    directory = runs / _PREPARING
    if rank()[0] == 0:
        artefacts = runner.run(pipeline, directory, _never_launched, _one_process, last="tokenize", wait=True)
        tokens = artefacts["tokenize"].directory
    else:
        tokens = _wait_for_tokens(pipeline, directory)
    values = {**resolved.as_dict(), "tokens": str(tokens), **dict.fromkeys(_CORPUS_SETTINGS)}
    origins = {**resolved.origins, "tokens": f"made by pipeline {_PREPARING}"}
    return resolve(type(config), [Source(values, origins)])


def _wait_for_tokens(pipeline: runner.Pipeline, directory: Path) -> Path:
    while True:
        plan = next(plan for plan in runner.make_plan(pipeline, directory, _one_process) if plan.step.name == "tokenize")
        if plan.fresh:
            return plan.output
        time.sleep(0.5)  # if the main process fails, the launcher ends this one


def _never_launched(stage: Stage, *_: Any) -> Artefact:
    raise AssertionError(f"{stage.name} is no training stage")


def main(name: str) -> int:
    """Entry point of `recipes/<stage>.py`."""
    from llmkit.cli import guarded

    # Python puts a script's directory first on the import path, where recipes/evaluate.py would hide the package `evaluate`.
    recipes = Path(sys.argv[0]).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != recipes]
    code = guarded(lambda: run_from_command_line(name, sys.argv[1:]), launched="--layout" in sys.argv)
    if rank()[1] > 1:
        leave(code)
    return code


def leave(code: int) -> None:
    """End this rank without taking Python apart.

    A thread of a process group that still holds a tensor then aborts the process (pytorch/pytorch#179291), and a launch that
    has done all its work counts as failed: seen once in CI, with gloo.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
