"""Pipelines: stages joined by their artefacts, run once, and only where something changed.

A pipeline keeps its artefacts in `runs/<pipeline>/artefacts/<step>-<fingerprint>`, so that another setting never overwrites
what was made with the first, and going back to the first costs nothing. `runs/<pipeline>/<step>` links to the newest.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkit import resources
from llmkit.config import Resolved, Source, StageConfig, read_command_line, read_settings_file, read_yaml, resolve
from llmkit.errors import ConfigError, LLMKitError, PipelineError
from llmkit.pipeline import lock
from llmkit.pipeline.artefact import Artefact, FileHashes, write_synced
from llmkit.pipeline.stage import (
    Attempt,
    Identity,
    Stage,
    changed_settings,
    identify,
    is_fresh,
    partial_of,
    run_stage,
    was_forced,
    writing,
)
from llmkit.resources import display

LAST_RUN = "last-run.json"
_ARTEFACTS = "artefacts"
_STEP_KEYS = ("stage", "inputs", "accelerate_config", "config")
_DEFAULT_LAYOUT = "single"

Launcher = Callable[[Stage, Resolved[Any], Path, str, bool], Artefact]
DataRanks = Callable[[str], int]
Say = Callable[[str], None]


@dataclass
class Step:
    """One stage of a pipeline, with its place in it."""

    name: str
    stage: Stage
    inputs: dict[str, str]
    """Input port to the name of the step whose artefact goes in."""
    layout: str
    sources: list[Source] = field(default_factory=list)


@dataclass
class Pipeline:
    """Steps in an order in which they can run."""

    name: str
    path: Path
    description: str
    steps: list[Step]

    def step(self, name: str) -> Step:
        for step in self.steps:
            if step.name == name:
                return step
        raise PipelineError(f"pipeline {self.name!r} has no stage {name!r}; {_nearest(name, [s.name for s in self.steps])}")

    def ancestors(self, name: str) -> set[str]:
        """A step and everything it is made from."""
        found = {name}
        for step in reversed(self.steps):
            if step.name in found:
                found.update(step.inputs.values())
        return found

    def descendants(self, name: str) -> set[str]:
        """A step and everything that is made from it."""
        found = {name}
        for step in self.steps:
            if found.intersection(step.inputs.values()):
                found.add(step.name)
        return found


@dataclass
class Plan:
    """What a step would make, and whether that is there already."""

    step: Step
    resolved: Resolved[Any]
    identity: Identity
    output: Path
    fresh: bool
    reason: str


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"


# --------------------------------------------------------------------------------------------------------------------
# Reading a pipeline


def load(name: str, registry: Mapping[str, Stage], settings: list[str] | None = None) -> Pipeline:
    """Read a pipeline by name or path.

    Args:
        registry: the stages there are, by name.
        settings: `step.key=value`, as `--set` takes them.

    Raises:
        ConfigError, PipelineError: with every problem found, settings of all steps included.
    """
    path = resources.find("pipelines", name)
    content, lines = read_yaml(path)
    where = f"pipeline {resources.display(path)}"
    problems = [f"unknown key {key!r}" for key in content if key not in ("description", "stages")]
    entries = content.get("stages")
    if not isinstance(entries, dict) or not entries:
        raise ConfigError([*problems, "holds no `stages:`"], where)
    steps = {}
    for step_name, entry in entries.items():
        origins = _Origins(resources.display(path), lines, f"stages.{step_name}")
        step = _read_step(str(step_name), {} if entry is None else entry, registry, list(entries), path, origins, problems)
        if step is not None:
            steps[step.name] = step
    for item in settings or []:
        _apply_setting(item, steps, problems)
    problems += _misjoined(steps)
    for step in steps.values():
        stand_ins = Source(dict.fromkeys(step.stage.ports().keys() & step.inputs.keys(), "."), {})
        try:
            resolve(step.stage.config_class, [*step.sources, stand_ins])
        except ConfigError as failure:
            problems += [f"{step.name}: {problem}" for problem in failure.problems]
    if problems:
        raise ConfigError(problems, where)
    return Pipeline(path.stem, path, str(content.get("description", "")), _in_order(list(steps.values())))


@dataclass(frozen=True)
class _Origins:
    """Where the lines of one step stand in the pipeline's file."""

    file: str
    lines: dict[str, int]
    prefix: str

    def of(self, key: str) -> str:
        line = self.lines.get(f"{self.prefix}.{key}")
        return f"{self.file}:{line}" if line else self.file


def _misjoined(steps: dict[str, Step]) -> list[str]:
    """Inputs that come from a stage that makes something else."""
    wrong = []
    for step in steps.values():
        for port, spec in step.stage.ports().items():
            source = steps.get(step.inputs.get(port, ""))
            if source is not None and spec.made_by and source.stage.name not in spec.made_by:
                wanted = " or ".join(spec.made_by)
                wrong.append(
                    f"{step.name}: its input {port!r} is a result of {wanted}, {source.name!r} is {source.stage.name}"
                )
    return wrong


def _read_step(
    name: str,
    entry: Any,
    registry: Mapping[str, Stage],
    names: list[str],
    path: Path,
    origins: _Origins,
    problems: list[str],
) -> Step | None:
    if not re.fullmatch(r"\w[\w-]*", name) or name == _ARTEFACTS:  # it becomes the name of a directory beside that one
        problems.append(f"{name}: a stage cannot be called that; letters, digits, - and _ make a name")
    if not isinstance(entry, dict):
        problems.append(f"{name}: holds no `key: value` lines")
        return None
    for key in entry:
        if key not in _STEP_KEYS:
            problems.append(f"{origins.of(key)}: {name}: unknown key {key!r}; {_nearest(str(key), list(_STEP_KEYS))}")
    if not isinstance(entry.get("inputs") or {}, dict):
        problems.append(f"{origins.of('inputs')}: {name}: write `inputs: {{setting: stage}}`")
        return None
    kind = str(entry.get("stage", name))
    stage = registry.get(kind)
    if stage is None:
        problems.append(f"{name}: there is no stage {kind!r}; {_nearest(kind, list(registry))}")
        return None
    inputs = {str(port): str(source) for port, source in (entry.get("inputs") or {}).items()}
    ports = stage.ports()
    for port, source in inputs.items():
        if port not in ports:
            problems.append(f"{name}: stage {kind!r} has no input {port!r}; {_nearest(port, list(ports))}")
        if source not in names:
            problems.append(f"{name}: its input {port!r} comes from {source!r}, which is not a stage of this pipeline")
    try:
        sources = _step_sources(entry.get("config") or {}, path, origins)
    except ConfigError as failure:
        problems += [f"{name}: {problem}" for problem in failure.problems]
        return None
    return Step(name, stage, inputs, str(entry.get("accelerate_config", _DEFAULT_LAYOUT)), sources)


def _step_sources(config: Any, path: Path, origins: _Origins) -> list[Source]:
    if isinstance(config, str):
        config = {"extends": config}
    if not isinstance(config, dict):
        raise ConfigError([f"{origins.of('config')}: config is neither settings nor the name of a settings file"])
    values = dict(config)
    base: list[Source] = []
    if "extends" in values:
        try:
            file = resources.find("recipes", str(values.pop("extends")), relative_to=path.parent)
        except ConfigError as failure:
            raise ConfigError([f"{origins.of('config')}: {problem}" for problem in failure.problems]) from None
        base = read_settings_file(file)
    return [*base, Source(values, {key: origins.of(f"config.{key}") for key in values})]


def _apply_setting(item: str, steps: dict[str, Step], problems: list[str]) -> None:
    target, sign, value = item.partition("=")
    name, dot, key = target.partition(".")
    if not (sign and dot and key):
        problems.append(f"--set {item}: write it as stage.key=value")
    elif name not in steps:
        problems.append(f"--set {item}: there is no stage {name!r}; {_nearest(name, list(steps))}")
    elif key == "accelerate_config":
        steps[name].layout = value
    else:
        source, wrong = read_command_line(steps[name].stage.config_class, [f"--{key}={value}"])
        source.origins = dict.fromkeys(source.values, f"--set {target}")
        for port in source.values.keys() & steps[name].inputs.keys():
            made_by = steps[name].inputs[port]
            wrong.append(f"--set {item}: {port} is what stage {made_by!r} makes; another one needs another pipeline")
        steps[name].sources.append(source)
        problems += wrong


def _in_order(steps: list[Step]) -> list[Step]:
    """The steps so that each comes after those it needs; as in the file where there is a choice."""
    ordered: list[Step] = []
    waiting = list(steps)
    while waiting:
        done = {step.name for step in ordered}
        ready = next((step for step in waiting if done.issuperset(step.inputs.values())), None)
        if ready is None:
            circle = " -> ".join(_circle({step.name: step for step in waiting}))
            raise PipelineError(f"these stages need each other in a circle, so none can run first: {circle}")
        waiting.remove(ready)
        ordered.append(ready)
    return ordered


def _circle(waiting: dict[str, Step]) -> list[str]:
    """A way from a step back to itself, in the order in which data would flow."""
    walked = [next(iter(waiting))]
    while True:
        needed = next(source for source in waiting[walked[-1]].inputs.values() if source in waiting)
        if needed in walked:
            return [needed, *reversed(walked[walked.index(needed) :])]
        walked.append(needed)


# --------------------------------------------------------------------------------------------------------------------
# Planning and running


def make_plan(pipeline: Pipeline, directory: Path, data_ranks: DataRanks) -> list[Plan]:
    """What every step would make and whether it is there; runs nothing."""
    hashes = FileHashes(directory / ".hashes.json")
    plans: dict[str, Plan] = {}
    for step in pipeline.steps:
        plans[step.name] = _plan_step(step, directory, plans, hashes, data_ranks)
    hashes.save()
    return list(plans.values())


def _plan_step(step: Step, directory: Path, plans: dict[str, Plan], hashes: FileHashes, data_ranks: DataRanks) -> Plan:
    before = {port: plans[source] for port, source in step.inputs.items()}
    given = Source(
        {port: str(plan.output) for port, plan in before.items()},
        {port: f"stage {plan.step.name}" for port, plan in before.items()},
    )
    resolved: Resolved[StageConfig] = resolve(step.stage.config_class, [*step.sources, given])
    to_be_made = {port: plan.identity.fingerprint for port, plan in before.items() if not plan.fresh}
    processes = data_ranks(step.layout) if step.stage.launched else 1
    identity = identify(step.stage, resolved.config, hashes, planned=to_be_made, processes=processes)
    output = directory / _ARTEFACTS / f"{step.name}-{identity.fingerprint[:12]}"
    existing = Artefact.peek(output)
    changed = [plan.step.name for plan in before.values() if not plan.fresh]
    if changed:
        return Plan(step, resolved, identity, output, False, f"after {', '.join(changed)}")
    if was_forced(step.stage, output, identity):
        return Plan(step, resolved, identity, output, False, "a forced run of it was stopped")
    if is_fresh(existing, identity):
        return Plan(step, resolved, identity, output, True, "fresh")
    return Plan(step, resolved, identity, output, False, _why_stale(existing, directory / step.name, identity))


def _why_stale(existing: Artefact | None, link: Path, identity: Identity) -> str:
    if existing is not None:
        damaged = existing.damaged()
        return damaged[0] if damaged else "its input was made again"
    with_other_settings = Artefact.peek(link)
    if with_other_settings is None:
        return "not made yet"
    differing = changed_settings(with_other_settings.manifest.settings, identity.settings)
    return f"changed: {', '.join(differing)}" if differing else "changed: its input files or the code"


def run(
    pipeline: Pipeline,
    directory: Path,
    launcher: Launcher,
    data_ranks: DataRanks,
    *,
    first: str | None = None,
    last: str | None = None,
    force: tuple[str, ...] = (),
    dry_run: bool = False,
    wait: bool = False,
    invocation: dict[str, Any] | None = None,
    say: Say = print,
) -> dict[str, Artefact]:
    """Run what is not fresh, in order.

    Args:
        directory: where the pipeline's artefacts lie, usually `runs/<pipeline>`.
        launcher: starts a stage under a layout.
        data_ranks: how many processes of a layout have samples of their own.
        first: run this step again, and everything made from it.
        last: stop after this step; what it does not need is not run.
        force: run these steps again, from their start.
        wait: wait for another run of this pipeline to finish, instead of giving up.
        invocation: what `status` needs to load the pipeline again.

    Returns:
        The artefacts, by step.

    Raises:
        LockedError: another run of this pipeline is at work.
    """
    again = set(force) | (pipeline.descendants(first) if first else set())
    wanted = pipeline.ancestors(last) if last else {step.name for step in pipeline.steps}
    for name in [*force, *(name for name in (first, last) if name)]:
        pipeline.step(name)
    if dry_run:
        for plan in make_plan(pipeline, directory, data_ranks):
            if plan.step.name in wanted:
                forced = plan.step.name in again
                verdict = "would run (forced)" if forced else "fresh" if plan.fresh else f"would run ({plan.reason})"
                say(f"{plan.step.name:12} {verdict}")
        return {}
    with writing(directory, f"pipeline {pipeline.name}"), lock.hold(directory, wait=wait, say=say):
        if invocation is not None:
            write_synced(directory / LAST_RUN, json.dumps(invocation, indent=1))
        return _run_steps(pipeline, directory, launcher, data_ranks, wanted, again, say)


def _run_steps(
    pipeline: Pipeline,
    directory: Path,
    launcher: Launcher,
    data_ranks: DataRanks,
    wanted: set[str],
    again: set[str],
    say: Say,
) -> dict[str, Artefact]:
    hashes = FileHashes(directory / ".hashes.json")
    plans: dict[str, Plan] = {}
    artefacts: dict[str, Artefact] = {}
    steps = [step for step in pipeline.steps if step.name in wanted]
    ran = 0
    for number, step in enumerate(steps, start=1):
        plan = _plan_step(step, directory, plans, hashes, data_ranks)
        hashes.save()
        forced = step.name in again
        head = f"[{number}/{len(steps)}] {step.name}"
        if plan.fresh and not forced:
            say(f"{head}: fresh, skipped")
            artefact = Artefact.peek(plan.output)
            assert artefact is not None
        else:
            how = f"accelerate launch, layout {step.layout}" if step.stage.launched else "in this process"
            say(f"{head}: running ({'forced' if forced else plan.reason}; {how})")
            if step.stage.launched:
                artefact = launcher(step.stage, plan.resolved, plan.output, step.layout, forced)
            else:
                artefact = run_stage(step.stage, plan.resolved, plan.output, force=forced, wait=True)
            say(f"{head}: done in {artefact.manifest.seconds:.1f} s")
            plan = Plan(step, plan.resolved, plan.identity, plan.output, True, "fresh")
            ran += 1
        plans[step.name] = plan
        artefacts[step.name] = artefact
        _link(directory / step.name, plan.output)
    if not ran:
        say(f"nothing to do: all {len(steps)} stages are fresh")
    return artefacts


def check_results(pipeline: Pipeline, artefacts: Mapping[str, Artefact]) -> int:
    """Hold the results of a run, made by it or before, against the settings of their steps.

    Returns:
        The exit code.
    """
    codes = [0]
    for step in (step for step in pipeline.steps if step.stage.check and step.name in artefacts):
        given = Source(dict.fromkeys(step.inputs, "."), {})  # what was put in makes no difference to this
        config = resolve(step.stage.config_class, [*step.sources, given]).config
        codes.append(step.stage.check_result(config, artefacts[step.name]))
    return max(codes)


def _link(link: Path, target: Path) -> None:
    """Point `runs/<pipeline>/<step>` at the newest artefact; a convenience, so a file system without links may refuse."""
    relative = os.path.relpath(target, link.parent)
    aside = link.with_name(f".{link.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        if link.is_symlink() and os.readlink(link) == relative:
            return
        aside.unlink(missing_ok=True)
        aside.symlink_to(relative, target_is_directory=True)
        os.replace(aside, link)


# --------------------------------------------------------------------------------------------------------------------
# Status


def status(runs: Path, registry: Mapping[str, Stage], data_ranks: DataRanks, say: Say = print) -> None:
    """Say of every pipeline below `runs` which stages are fresh, stale, missing or running; and what else is unfinished."""
    records = sorted(runs.glob(f"*/{LAST_RUN}"))
    others = {*runs.glob("*.partial"), *runs.glob(f"*/{_ARTEFACTS}/*.partial")}
    for record in records:
        others -= _pipeline_status(record, registry, data_ranks, say)
    for partial in sorted(others):
        attempt = Attempt.peek(partial)
        if lock.is_held(partial):
            say(f"{display(partial)}; running: {lock.holder_of(partial)}")
        elif attempt is not None:
            say(f"{display(partial)}: unfinished; go on with: {attempt.command}")
    if not records and not others:
        say(f"no pipeline has run below {runs}; try `llmkit run sentiment`")


def _pipeline_status(record: Path, registry: Mapping[str, Stage], data_ranks: DataRanks, say: Say) -> set[Path]:
    """Say it of one pipeline; gives back the unfinished directories that were spoken of."""
    invocation = json.loads(record.read_text(encoding="utf-8"))
    directory = record.parent
    running = f"; running: {lock.holder_of(directory)}" if lock.is_held(directory) else ""
    say(f"{directory}{running}")
    try:
        pipeline = load(invocation["pipeline"], registry, invocation["settings"])
        plans = make_plan(pipeline, directory, data_ranks)
    except LLMKitError as failure:  # of one pipeline; the others are shown all the same
        say(f"  cannot be told: {failure}")
        return set()
    for plan in plans:
        artefact = Artefact.peek(plan.output)
        partial = partial_of(plan.output)
        if plan.fresh and artefact is not None:
            state = f"fresh    {artefact.manifest.created}  {artefact.manifest.seconds:8.1f} s  {display(plan.output)}"
        elif partial.is_dir() and lock.is_held(partial):
            state = f"running  {lock.holder_of(partial)}"
        elif partial.is_dir():
            how = "goes on with it" if plan.step.stage.goes_on else "makes it anew"
            state = f"begun    unfinished; the next run {how}"
        else:
            state = f"stale    {plan.reason}"
        say(f"  {plan.step.name:12} {state}")
    return {partial_of(plan.output) for plan in plans}
