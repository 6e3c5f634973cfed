"""The model repository to be shared, and its card."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any, get_args

from llmkit.errors import ArtefactError, ConfigError
from llmkit.pipeline.artefact import Artefact, FileRecord, sha256_of, write_synced
from llmkit.reports import facts, lineage, sections, trained, words
from llmkit.reports.facts import Told, Traced
from llmkit.reports.lineage import Node
from llmkit.reports.markdown import code, items, pairs, safe, table, with_interval
from llmkit.reports.origins import Table, origins_of
from llmkit.reports.trained import Model
from llmkit.tasks.registry import TaskName
from llmkit.tasks.tables import EMBEDDED

CARD = "README.md"
_HARNESS = "lm-evaluation-harness"
_HUB_TASKS = dict.fromkeys(("language-modeling", "multiple-choice", _HARNESS), "text-generation")
"""What the hub calls those tasks that have another name here."""
_MAX_CLASSES = 40
_PUBLISHED = {".json", ".safetensors", ".txt", ".model", ".jinja"}
"""Configuration, weights and tokenizer; no pickles, no logs, no optimizer."""
_RECORDS = {
    "manifest.json",
    "trainer_state.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
    "predict_results.json",
}
_LINKED = ".safetensors"
"""Weights are linked. The rest is small and copied: people edit it, and an edit must not reach the artefact."""


def publish(told: Told, target: Path) -> list[str]:
    """Write the model's files and its card into a directory, and return the names of the files.

    The artefact is only read: nothing is ever written through a link.

    Raises:
        ArtefactError: a file of the model is not the one that its manifest describes.
    """
    model = told.model
    assert model.node is not None and model.node.artefact is not None and model.directory is not None
    records = _files(model, model.node.artefact)
    root = model.node.artefact.directory
    for record in records:
        if sha256_of(root / record.path) != record.sha256:
            raise ArtefactError(
                f"{root / record.path} was changed after it was made (its sha256 is another now), so this may "
                f"not be the model that was evaluated; run `llmkit {model.node.stage}` again with --force"
            )
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    names = []
    for record in records:
        name = record.path.removeprefix(f"{model.prefix}/")
        (target / name).parent.mkdir(exist_ok=True)
        _place(root / record.path, target / name)
        names.append(name)
    write_synced(target / CARD, write(told))
    return [*names, CARD]


def _files(model: Model, artefact: Artefact) -> list[FileRecord]:
    """The files of a model repository, without what lies in checkpoints below it."""
    chosen = []
    for record in artefact.manifest.files:
        if model.prefix and not record.path.startswith(f"{model.prefix}/"):
            continue
        path = Path(record.path.removeprefix(f"{model.prefix}/"))
        here = len(path.parts) == 1 or path.parts[:-1] == ("additional_chat_templates",)
        if here and path.suffix in _PUBLISHED and path.name not in _RECORDS:
            chosen.append(record)
    return chosen


def _place(source: Path, target: Path) -> None:
    if source.suffix == _LINKED:
        try:
            os.link(source.resolve(), target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)


# --------------------------------------------------------------------------------------------------------------------
# The card


def write(told: Told) -> str:
    """The card: YAML front matter that the Hugging Face hub reads, and what a person needs to know."""
    from huggingface_hub import ModelCard

    parts = [
        f"# {safe(told.title)}",
        safe(told.verdict),
        _what(told),
        _use(told),
        training_data(told),
        settings(told),
        cost(told),
        results(told),
        *sections.markdown(told),
        limits(told),
        lineage_part(told),
    ]
    body = "\n\n".join(part for part in parts if part)
    card = ModelCard(f"---\n{_front_matter(told)}\n---\n\n{body}\n")  # refuses front matter that is not valid
    return str(card)


def _front_matter(told: Told) -> str:
    from huggingface_hub import ModelCardData

    known = _known(told.model)
    is_hub = words.is_hub_name(told.dataset)
    data = ModelCardData(
        language=["en", "zh"] if told.dataset in EMBEDDED else known.get("language"),
        license=known.get("license"),
        base_model=known.get("base_model"),
        library_name="transformers",
        pipeline_tag=_HUB_TASKS.get(told.task, told.task),
        tags=list(dict.fromkeys(["llmkit", told.task])),
        datasets=[told.dataset] if is_hub else None,
        metrics=list(dict.fromkeys(score.name for score in told.scores)),
        model_name=words.clean(told.title),
        eval_results=_eval_results(told),
    )
    return data.to_yaml()


def _eval_results(told: Told) -> Any:
    from huggingface_hub import EvalResult

    name = words.clean(words.short(told.dataset)) or "unnamed"
    return [
        EvalResult(
            task_type=_HUB_TASKS.get(told.task, told.task),
            task_name=told.task.replace("-", " ").capitalize(),
            dataset_type=name if words.is_hub_name(told.dataset) else re.sub(r"[^\w.-]+", "-", name),
            dataset_name=name,
            dataset_split=told.split or None,
            metric_type=score.name,
            metric_name=score.title[0].upper() + score.title[1:],
            metric_value=score.value,
            metric_args={"average": score.average} if score.average else None,
        )
        for score in facts.shown_scores(told.scores)
        if score.value is not None
    ] or None


def _known(model: Model) -> dict[str, Any]:
    """What the training stage's own card says of language, license and base model; nothing where it says nothing."""
    from huggingface_hub import ModelCard

    assert model.directory is not None
    path = model.directory / CARD
    if not path.is_file():
        return {}
    try:
        data = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    except Exception:  # any card that cannot be read is as good as none
        return {}
    known = {key: data[key] for key in ("language", "license", "base_model") if data.get(key)}
    if model.node is None or model.node.inputs or not words.is_hub_name(str(known.get("base_model", ""))):
        known.pop("base_model", None)  # a directory of ours: no one else can look it up
    return known


def _what(told: Told) -> str:
    assert told.model.node is not None
    rows = [f"- {name}: {safe(text)}" for name, text in trained.architecture(told.model)]
    if told.labels:
        rows.append(f"- labels: {', '.join(safe(label) for label in told.labels[:_MAX_CLASSES])}")
        if len(told.labels) > _MAX_CLASSES:
            rows[-1] += f" and {len(told.labels) - _MAX_CLASSES} more (see config.json)"
    origin = ""
    if trained.is_pretrained(told.model):
        origin = " It was pretrained by llmkit from raw text and then trained for this task; the whole way is under Lineage."
    kind = "A language model" if told.task == _HARNESS else f"A model for {safe(told.task.replace('-', ' '))}"
    return f"## What it is\n\n{kind}, trained with llmkit.{origin}\n\n" + "\n".join(rows)


def _use(told: Told) -> str:
    from transformers import AutoConfig

    from llmkit.tasks.registry import SECTION, task_class

    if told.task not in get_args(TaskName):
        return ""
    if "I8" in told.model.dtypes:
        return (
            "## How to use it\n\nThe weights are int8, which transformers does not read by itself:\n\n```python\n"
            "from llmkit.tasks.loading import load_task_model\n\n"
            'task, model, tokenizer = load_task_model("path/to/this/directory")\n```'
        )
    try:
        config = AutoConfig.from_pretrained(str(told.model.directory))
        noted = getattr(config, SECTION, None) or {}
        usage = task_class(told.task).of_model(noted if noted.get("task") == told.task else {}, config).usage
    except (OSError, ValueError, ConfigError):
        return ""
    return f"## How to use it\n\n```python\n{usage.replace('PATH_OF_THIS_DIRECTORY', 'path/to/this/directory')}\n```"


def training_data(told: Traced) -> str:
    """Raw inputs by the stage that read them; file names only, so that the card names no one's directories."""
    rows = []
    for node in told.nodes:
        if node.artefact is None or node.stage in ("evaluate", "quantize"):  # what these read they only measure on
            continue
        records = [record for record in node.artefact.manifest.raw_inputs if not _is_test_set(node, record)]
        for record in records[:10]:
            held = f", {words.size(record.size)}" if record.size else ""
            name = Path(record.path).name if record.size else record.path  # what has no size is no file
            rows.append(f"- {safe(node.stage)}: `{code(name)}`{held}, sha256 `{record.sha256[:12]}`")
        if len(records) > 10:
            rows.append(f"- {safe(node.stage)}: {len(records) - 10} more files")
    if any(node.problem for node in told.nodes):
        rows.append("- Part of the lineage can no longer be followed, so this list may be incomplete.")
    listed = "\n".join(rows) or "No raw input is recorded."
    found = origins_of(told.nodes, told.curves)
    tables = [_captioned(part) for part in (*found.data, *found.data_sources, found.tokenizer) if part]
    parts = [f"## Training data\n\nRaw inputs, with the stage that read them:\n\n{listed}", *tables, safe(found.vocabulary)]
    return "\n\n".join(part for part in parts if part)


def _is_test_set(node: Node, record: FileRecord) -> bool:
    """Whether `ablate` read an input only to measure both of its models on it."""
    if node.stage != "ablate" or node.artefact is None:
        return False
    config, path = node.artefact.manifest.config, Path(record.path)
    if config.get("test_file"):
        return path == Path(config["test_file"]).expanduser()
    return config.get("dataset_name") in EMBEDDED and path.name == "test.jsonl"


def cost(told: Traced) -> str:
    found = origins_of(told.nodes, told.curves)
    return "\n\n".join(["## Cost", _captioned(found.cost), items(found.cost_notes)]) if found.cost else ""


def _captioned(part: Table) -> str:
    return f"{safe(part.caption)}:\n\n{table(part.head, part.rows)}"


def settings(told: Traced) -> str:
    parts = []
    node = told.model.node
    while node is not None:
        chosen = trained.chosen_settings(node)
        if chosen:
            parts.append(f"Chosen for `{code(node.stage)}` (all others at their defaults):\n\n{pairs(chosen, as_code=True)}")
        node = node.at(trained.MODEL_PORT)
    return "## Training settings\n\n" + "\n\n".join(parts) if parts else ""


def results(told: Told) -> str:
    level = f"{100 * told.interval:g}%"
    where = f"{words.count(told.n, 'example')}" + (f" of the {safe(told.split)} split" if told.split else "")
    head = ["Metric", f"This model ({level} interval)", *(item.name for item in told.baselines)]
    rows = [
        [
            score.title,
            with_interval(score),
            *(with_interval(facts.matching(item.scores, score)) for item in told.baselines),
        ]
        for score in facts.shown_scores(told.scores)
    ]
    parts = [
        f"## Results\n\nOn {where}" + (f" of {safe(words.short(told.dataset))}" if told.dataset else "") + ".",
        table(head, rows),
    ]
    details = [f"- {safe(item.name)}: {safe(item.detail)}" for item in told.baselines if item.detail]
    if details:
        parts.append("\n".join(details))
    if told.comparisons:
        head = ["Model against", "Metric", f"Difference ({level} interval)", "p", "The model is"]
        rows = [
            [
                item.baseline,
                item.title,
                words.difference(item.difference, item.low, item.high),
                words.p_value(item.p_value),
                item.standing,
            ]
            for item in told.comparisons
        ]
        parts.append(table(head, rows))
    if 0 < len(told.classes) <= _MAX_CLASSES:
        names = facts.class_metrics(told.classes)
        head = ["Class", *(words.metric_title(name) for name in names), "Examples"]
        rows = [
            [
                row.label,
                *(with_interval(row.scores.get(name)) for name in names),
                str(row.support if row.support is not None else words.MISSING),
            ]
            for row in told.classes
        ]
        parts.append(table(head, rows))
    return "\n\n".join(parts)


def limits(told: Traced) -> str:
    notices = [f"- {safe(notice)}" for notice in told.notices]
    return "## Limits\n\n" + "\n".join([*notices, *(f"- {safe(limit)}" for limit in told.limits)])


def lineage_part(told: Traced) -> str:
    rows = [
        [
            node.stage,
            node.fingerprint[:12],
            _made_from(node),
            node.problem or "",
        ]
        for node in told.nodes
    ]
    versions = [
        f"- {safe(words.listing(stages))}: "
        + ", ".join(f"{safe(str(name))} {safe(str(version))}" for name, version in (environment.get("versions") or {}).items())
        + (f"; commit `{code(str(environment['git_commit']))}`" if environment.get("git_commit") else "")
        for stages, environment in lineage.environments(told.nodes)
    ]
    return "\n\n".join(
        [
            "## Lineage",
            table(["Stage", "Fingerprint", "Made from", "Note"], rows),
            "Versions:\n\n" + "\n".join(versions),
        ]
    )


def _made_from(node: Node) -> str:
    if node.artefact is None:
        return words.MISSING
    earlier = [f"{item.stage} {item.fingerprint[:12]}" for item in node.inputs.values()]
    return ", ".join([*earlier, *(["raw bytes"] if node.artefact.manifest.raw_inputs else [])])
