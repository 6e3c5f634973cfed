"""Hyperparameter search with optuna: each trial is a whole fine-tuning by our Trainer, with settings that optuna proposes.

`Trainer.hyperparameter_search` is not used: it sets fields of the arguments of one Trainer, and what follows from settings
before there is a Trainer (steps, data order, schedule, low-rank updates) would stay as it was.

What optuna proposes is a function of the seed, the number of the trial and the trials before it. So `search.json` is all that
a resume needs: finished trials are not repeated, and the one that was going on has the same settings, and its checkpoints.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.config import Source, flat, resolve
from llmkit.errors import ConfigError
from llmkit.pipeline.artefact import write_synced
from llmkit.pipeline.ranks import rank
from llmkit.pipeline.stage import Workspace

if TYPE_CHECKING:
    from llmkit.training.finetune import FinetuneConfig

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
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {"trials": []}
    trials, count = found["trials"], config.search_trials or 0
    if trials:
        workspace.say(f"search: {len(trials)} of {count} trials were finished by an earlier attempt")
    while len(trials) < count:
        number = len(trials)
        values = _propose(config, trials, number, found.get("greater_is_better", True))
        place = Workspace(workspace.directory / _PLACE / str(number), say=_silent)
        place.directory.mkdir(parents=True, exist_ok=True)
        metric, greater, value = _value_of(with_settings(config, values), place)
        found |= {"metric": metric, "greater_is_better": greater}
        trials.append({"number": number, "params": values, "value": value})
        write_synced(record, json.dumps(found, indent=1) + "\n")
        shutil.rmtree(place.directory)
        workspace.say(f"search: trial {number + 1} of {count}: {metric} {value:.4f} with {_in_words(values)}")
    shutil.rmtree(workspace.directory / _PLACE, ignore_errors=True)
    best = (max if found["greater_is_better"] else min)(trials, key=lambda trial: trial["value"])
    workspace.say(f"search: trial {best['number'] + 1} is the best, {found['metric']} {best['value']:.4f}; training with it")
    return with_settings(config, best["params"]), {**found, "best": best}


def _propose(config: FinetuneConfig, trials: list[dict[str, Any]], number: int, greater_is_better: bool) -> dict[str, Any]:
    """The settings of a trial, by the tree-structured Parzen estimator (Bergstra et al. 2011)."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {name: _distribution(span) for name, span in config.search_space.items()}
    seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(seed=seed)
    study = optuna.create_study(direction="maximize" if greater_is_better else "minimize", sampler=sampler)
    for trial in trials:
        kept = {"params": trial["params"], "distributions": distributions, "value": trial["value"]}
        study.add_trial(optuna.trial.create_trial(**kept))
    return study.ask(distributions).params


def _distribution(span: dict[str, Any]) -> Any:
    from optuna import distributions

    if "choices" in span:
        return distributions.CategoricalDistribution(span["choices"])
    whole = isinstance(span["low"], int) and isinstance(span["high"], int)
    kind = distributions.IntDistribution if whole else distributions.FloatDistribution
    return kind(span["low"], span["high"], log=bool(span.get("log")))


def with_settings(config: FinetuneConfig, values: dict[str, Any]) -> FinetuneConfig:
    """The settings of a trial: those given, with some in place of theirs, and no further search.

    Raises:
        ConfigError: they do not fit together.
    """
    changed = {**flat(config), **values, "search_trials": None, "search_space": {}}
    return resolve(type(config), [Source(changed, dict.fromkeys(values, "search_space"))]).config


def _value_of(config: FinetuneConfig, workspace: Workspace) -> tuple[str, bool, float]:
    """Train with the settings of a trial; the metric, whether more of it is better, and its best value on validation."""
    from llmkit.training.finetuning import new_trainer, prepare

    trainer = new_trainer(config, workspace, prepare(replace(config, seeds=None), workspace))
    trainer.run(config.resume if config.resume == "never" else "auto")
    metric = str(trainer.args.metric_for_best_model)
    value = trainer.final_evaluation()[f"eval_{metric.removeprefix('eval_')}"]
    return metric, bool(trainer.args.greater_is_better), value


def _in_words(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


def _silent(_: str) -> None:
    pass
