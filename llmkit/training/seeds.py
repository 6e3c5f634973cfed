"""Several seeds: one model for each, in one result, and what they have in common.

The result is the model of the first seed, which is chosen before anything is known of it, so that its metrics are not better
than those of any other. The others lie in `seeds/<seed>/`. Until all are trained, `.seeds.json` says which are finished: a
killed run goes on with the seed and at the step where it was.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmkit.pipeline.artefact import write_synced
from llmkit.pipeline.stage import Workspace
from llmkit.training.arguments import SCRATCH

if TYPE_CHECKING:
    from llmkit.training.finetune import FinetuneConfig
    from llmkit.training.finetuning import Prepared

RECORD = ".seeds.json"

_LEVEL = 0.95


def train_seeds(config: FinetuneConfig, workspace: Workspace, prepared: Prepared) -> dict[str, Any]:
    """Train a model for each of the seeds; those that an earlier attempt has finished are not trained again.

    Returns:
        The metrics of the first, and under `seeds` the validation metrics of all with mean and interval.
    """
    from llmkit.training.finetuning import start_of, train

    seeds = config.seeds or []
    record = workspace.directory / RECORD
    # Read once: the other ranks read it before they take part in the first training, and it is written after that.
    finished: dict[str, Any] = {}
    if record.exists() and config.resume != "never":
        finished = json.loads(record.read_text(encoding="utf-8"))
    # All before the first training: under ZeRO-3 that changes how transformers creates models.
    starts = {seed: start_of(replace(config, seed=seed), workspace, prepared.task, prepared.tokenizer) for seed in seeds}
    for seed, (start, new_weights) in starts.items():
        if str(seed) in finished:
            workspace.say(f"seed {seed}: finished by an earlier attempt")
            continue
        workspace.say(f"seed {seed}:")
        place = replace(workspace, directory=seed_directory(workspace.directory, seed, seeds))
        place.directory.mkdir(parents=True, exist_ok=True)
        ours = replace(prepared, task=copy.deepcopy(prepared.task), start=start, new_weights=list(new_weights))
        finished[str(seed)] = train(replace(config, seed=seed, seeds=None), place, ours)
        if workspace.is_main:
            write_synced(record, json.dumps(finished, indent=1) + "\n")
    if workspace.is_main:
        for seed in seeds[1:]:
            discard_scratch(seed_directory(workspace.directory, seed, seeds))
    validation = {name: [finished[str(seed)]["validation"][name] for seed in seeds] for name in prepared.task.metrics}
    summary = over_seeds(seeds, validation)
    for name, found in summary.items():
        workspace.say(f"validation, {len(seeds)} seeds: {name} {in_words(found)}")
    return {**finished[str(seeds[0])], "seeds": {"of": seeds, "validation": summary}}


def seed_directory(result: Path, seed: int, seeds: list[int]) -> Path:
    """Where the model of a seed lies in a result."""
    return result if seed == seeds[0] else result / "seeds" / str(seed)


def over_seeds(seeds: list[int], values: Mapping[str, list[float]]) -> dict[str, dict[str, Any]]:
    """What the models of several seeds have in common.

    Args:
        values: of each metric, a value for each seed.

    Returns:
        Of each metric its `values`, `mean`, standard deviation `sd`, and `low` and `high`, the ends of Student's 95% interval
        of the mean over seeds.
    """
    return {name: {"values": dict(zip(map(str, seeds), of, strict=True)), **mean_interval(of)} for name, of in values.items()}


def mean_interval(values: list[float]) -> dict[str, float]:
    """Mean, standard deviation (of a sample), and Student's 95% interval of the mean; of two values or more."""
    from scipy import stats

    found = np.array(values, dtype=np.float64)
    mean, sd = float(found.mean()), float(found.std(ddof=1))
    half = float(stats.t.ppf((1 + _LEVEL) / 2, len(found) - 1)) * sd / float(np.sqrt(len(found)))
    return {"mean": mean, "sd": sd, "low": mean - half, "high": mean + half}


def in_words(found: Mapping[str, Any]) -> str:
    """A mean with its interval and standard deviation."""
    return f"{found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f}, sd {found['sd']:.3f})"


def discard_scratch(directory: Path) -> None:
    """Remove what only a resume needs."""
    for pattern in SCRATCH:
        for path in directory.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
