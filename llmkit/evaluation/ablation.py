"""What pretraining is worth to a task: fine-tuning from its weights and from random ones, paired by seed.

`ablate.py` holds the settings and stays light to import.
"""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from llmkit.evaluation.seeds import TestSet
from llmkit.tasks.registry import task_class
from llmkit.tasks.settings import Columns
from llmkit.tasks.tables import Split, read_dataset, read_table, source_name
from llmkit.training.examples import load_examples
from llmkit.training.finetune import FinetuneConfig
from llmkit.training.finetuning import train_task
from llmkit.training.seeds import discard_scratch, in_words, mean_interval, over_seeds, seed_directory

if TYPE_CHECKING:
    from llmkit.evaluation.ablate import AblateConfig
    from llmkit.pipeline.stage import Workspace

STARTS = ("pretrained", "random")
"""The two starts, and the directories of what is trained from them."""

RECORD = "ablation.json"


def compare_starts(config: AblateConfig, workspace: Workspace) -> dict[str, Any]:
    """Train from both starts with all seeds, and compare; see `ablate.ablate`."""
    seeds = config.seeds or []
    common = FinetuneConfig(**{field.name: getattr(config, field.name) for field in fields(FinetuneConfig)})
    data, where = _test(config)
    if data is not None:
        _check_test(common, data)
    found: dict[str, dict[str, list[float]]] = {}
    for start in STARTS:
        place = replace(workspace, directory=workspace.directory / start)
        place.directory.mkdir(exist_ok=True)
        workspace.say(f"from the {start} weights:")
        unset_hf_deepspeed_config()  # of the start before: under ZeRO-3 it changes how transformers creates models
        trained = train_task(replace(common, random_start=start == "random"), place)
        of_seeds = trained["seeds"]["validation"]
        found[start] = {name: [metric["values"][str(seed)] for seed in seeds] for name, metric in of_seeds.items()}
    if not workspace.is_main:
        return {}
    if data is not None:
        unset_hf_deepspeed_config()  # this process is alone from here on
        for start in STARTS:
            found[start] = _on_test(config, data, workspace.directory / start, seeds)
    compared = compare(seeds, found["pretrained"], found["random"])
    result = {"measured_on": where, **compared, "limits": _limits(config, seeds, data)}
    text = json.dumps(result, indent=1, ensure_ascii=False)
    (workspace.directory / RECORD).write_text(text + "\n", encoding="utf-8")
    for start in STARTS:  # only now: until then it says that all is trained, and where
        discard_scratch(workspace.directory / start)
    for line in _summary(result):
        workspace.say(line)
    examples = {split: trained[split] for split in ("train", "validation")}  # the same for both; `evaluate` compares them
    return {**{key: result[key] for key in ("measured_on", "seeds", "metrics")}, **examples}


def _test(config: AblateConfig) -> tuple[Split | None, str]:
    if config.test_file:
        return Split(read_table(config.test_file)), source_name(config.test_file)
    name = config.dataset_name or ""
    if config.test_split:
        data = read_dataset(name, config.dataset_config_name, config.test_split, config.dataset_revision)
        return data, f"split {config.test_split} of {source_name(name)}"
    return None, "the validation examples"


def _check_test(config: FinetuneConfig, data: Split) -> None:
    """Refuse test examples that do not fit now, and not when all is trained."""
    task = task_class(config.task).of_config(config)
    list(task.learn(load_examples(config, task).train))
    task.check(task.read(data.rows, config), "test")


def _on_test(config: AblateConfig, data: Split, place: Path, seeds: list[int]) -> dict[str, list[float]]:
    columns = Columns(**{field.name: getattr(config, field.name) for field in fields(Columns)})
    test = TestSet(data, columns, config.task, config.per_device_eval_batch_size, config.seed)
    found = [test.headline(seed_directory(place, seed, seeds)) for seed in seeds]
    return {name: [values[name] for values in found] for name in found[0] if all(name in values for values in found)}


def compare(seeds: list[int], pretrained: dict[str, list[float]], random: dict[str, list[float]]) -> dict[str, Any]:
    """Each metric from both starts, and the mean of its differences, seed by seed, with Student's 95% interval.

    Args:
        pretrained, random: a value of each metric for each seed, in the order of the seeds.
    """
    metrics = {}
    for name in (name for name in pretrained if name in random):
        differences = [ours - theirs for ours, theirs in zip(pretrained[name], random[name], strict=True)]
        found = {"values": dict(zip(map(str, seeds), differences, strict=True)), **mean_interval(differences)}
        metrics[name] = {
            "pretrained": over_seeds(seeds, {name: pretrained[name]})[name],
            "random": over_seeds(seeds, {name: random[name]})[name],
            "difference": found,
            "sentence": _sentence(name, found, len(seeds)),
        }
    return {"seeds": seeds, "metrics": metrics}


def _sentence(name: str, found: dict[str, Any], count: int) -> str:
    interval = f"({found['low']:+.3f} to {found['high']:+.3f}, {count} seeds)"
    if found["low"] <= 0 <= found["high"]:
        return f"No evidence of a difference in {name} between the starts: {found['mean']:+.3f} {interval}."
    kind = "higher" if found["mean"] > 0 else "lower"
    return f"From the pretrained weights {name} is {kind} by {abs(found['mean']):.3f} {interval}."


def _limits(config: AblateConfig, seeds: list[int], data: Split | None) -> list[str]:
    """What the numbers cannot show, in sentences."""
    said = [
        f"The interval says how the difference varies with the seed (new weights, order of examples, dropout), by "
        f"{len(seeds)} of them, on these very examples; other examples would give other values, and those intervals are "
        f"what `llmkit evaluate` shows.",
    ]
    if config.search_trials:
        said.append("Each start had the settings that a search has found best for it; see search.json of each.")
    else:
        rate = " but for the learning rate, five times as high from random weights" if config.learning_rate is None else ""
        said.append(
            f"Both starts had the same settings{rate}, and a random one may want other ones and more epochs: with "
            f"--search_trials each is given the best that is found for it."
        )
    if len(seeds) < 5:
        said.append(
            "So few seeds show a difference only where it is several times as large as it varies; that none was shown does "
            "not mean that there is none."
        )
    if data is None:
        said.append("The validation examples chose the checkpoints, so both starts look a little too good; give a test set.")
    return said


def _summary(result: dict[str, Any]) -> list[str]:
    lines = [f"measured on {result['measured_on']}, mean over seeds (95% interval):"]
    for name, metric in result["metrics"].items():
        lines += [f"  {name:10} {start:10} {in_words(metric[start])}" for start in STARTS]
        lines.append(f"  {metric['sentence']}")
    return [*lines, *(f"  {sentence}" for sentence in result["limits"])]
