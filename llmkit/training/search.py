"""Hyperparameter search with optuna: each trial is a whole fine-tuning by our Trainer, with settings that optuna proposes.

`Trainer.hyperparameter_search` is not used: it sets fields of the arguments of one Trainer, and what follows from settings
before there is a Trainer (steps, data order, schedule, low-rank updates) would stay as it was.

What optuna proposes is a function of the seed, the number of the trial and the trials before it. So `search.json` is all that
a resume needs: finished trials are not repeated, and the one that was going on has the same settings, and its checkpoints.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import typing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.config import Source, accepted, flat, resolve
from llmkit.errors import ConfigError
from llmkit.pipeline.artefact import write_synced
from llmkit.pipeline.ranks import rank
from llmkit.pipeline.stage import Workspace
from llmkit.training.instability import Diverged

if TYPE_CHECKING:
    from llmkit.training.finetune import FinetuneConfig
    from llmkit.training.trainer import LLMKitTrainer

RECORD = "search.json"
_PLACE = "trials"


def check_search() -> None:
    """Refuse to begin where optuna is missing, or in several processes.

    Raises:
        ConfigError: says which, and what to do.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(["search_trials: a search needs the package optuna; install it with `pip install 'llmkit[search]'`"])
    if rank()[1] > 1:
        raise ConfigError(
            ["search_trials: a search runs in one process; search there, and train with the best settings under the layout"]
        )


def searched(config: FinetuneConfig, workspace: Workspace) -> tuple[FinetuneConfig, dict[str, Any]]:
    """Search, and give back the settings to train with.

    Returns:
        The settings with the best values in place, and what the manifest says of the search.
    """
    check_search()
    record = workspace.directory / RECORD
    found: dict[str, Any] = {"trials": []}
    if config.resume == "never":
        shutil.rmtree(workspace.directory / _PLACE, ignore_errors=True)
    elif record.exists():
        found = json.loads(record.read_text(encoding="utf-8"))
    trials, count = found["trials"], config.search_trials or 0
    if trials:
        workspace.say(f"search: {len(trials)} of {count} trials were finished by an earlier attempt")
    while len(trials) < count:
        number = len(trials)
        values = _propose(config, trials, number, found.get("greater_is_better", True))
        place = Workspace(workspace.directory / _PLACE / str(number), say=_silent)
        place.directory.mkdir(parents=True, exist_ok=True)
        trainer = _trainer(with_settings(config, values), place)
        metric = str(trainer.args.metric_for_best_model).removeprefix("eval_")
        found |= {"metric": metric, "greater_is_better": bool(trainer.args.greater_is_better)}
        value = _value_of(trainer, metric)
        trials.append({"number": number, "params": values, "value": value})
        write_synced(record, json.dumps(found, indent=1) + "\n")
        shutil.rmtree(place.directory)
        told = "has diverged" if value is None else f"{metric} {value:.4f}"
        workspace.say(f"search: trial {number + 1} of {count}: {told} with {_in_words(values)}")
    shutil.rmtree(workspace.directory / _PLACE, ignore_errors=True)
    learned = [trial for trial in trials if trial["value"] is not None]
    if not learned:
        raise ConfigError([f"search_space: all {count} trials have diverged; search smaller learning rates"])
    best = (max if found["greater_is_better"] else min)(learned, key=lambda trial: trial["value"])
    workspace.say(f"search: trial {best['number'] + 1} is the best, {found['metric']} {best['value']:.4f}; training with it")
    return with_settings(config, best["params"]), {**found, "best": best}


def _propose(config: FinetuneConfig, trials: list[dict[str, Any]], number: int, greater_is_better: bool) -> dict[str, Any]:
    """The settings of a trial, by the tree-structured Parzen estimator (Bergstra et al. 2011)."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = accepted(type(config))
    distributions = {name: _distribution(span, settings[name].type) for name, span in config.search_space.items()}
    seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(seed=seed)
    study = optuna.create_study(direction="maximize" if greater_is_better else "minimize", sampler=sampler)
    for trial in trials:
        state = optuna.trial.TrialState.COMPLETE if trial["value"] is not None else optuna.trial.TrialState.FAIL
        kept = {"params": trial["params"], "distributions": distributions, "value": trial["value"]}
        study.add_trial(optuna.trial.create_trial(state=state, **kept))
    return study.ask(distributions).params


def _distribution(span: dict[str, Any], kind: Any) -> Any:
    """What is proposed for a setting of a type: whole numbers where it takes no others, however the bounds are written."""
    from optuna import distributions

    if "choices" in span:
        return distributions.CategoricalDistribution(span["choices"])
    kinds = {kind, *typing.get_args(kind)}
    given = {key: span[key] for key in ("low", "high", "log", "step") if key in span}
    if int in kinds and float not in kinds:
        return distributions.IntDistribution(**{key: int(value) for key, value in given.items()})
    return distributions.FloatDistribution(**given)


def with_settings(config: FinetuneConfig, values: dict[str, Any]) -> FinetuneConfig:
    """The settings of a trial: those given, with some in place of theirs, and no further search.

    Raises:
        ConfigError: they do not fit together.
    """
    changed = {**flat(config), **values, "search_trials": None, "search_space": {}}
    return resolve(type(config), [Source(changed, dict.fromkeys(values, "search_space"))]).config


def _trainer(config: FinetuneConfig, workspace: Workspace) -> LLMKitTrainer:
    """The Trainer of a trial."""
    from llmkit.training.finetuning import new_trainer, prepare

    config = replace(config, seeds=None)
    return new_trainer(config, workspace, prepare(config, workspace))


def _value_of(trainer: LLMKitTrainer, metric: str) -> float | None:
    """Train; the best value of the metric on the validation set, or None where training has diverged."""
    try:
        trainer.run("auto")
    except Diverged:
        return None
    value = float(trainer.final_evaluation()[f"eval_{metric}"])
    trainer.accelerator.free_memory()
    return value if math.isfinite(value) else None


def _in_words(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


def _silent(_: str) -> None:
    pass
