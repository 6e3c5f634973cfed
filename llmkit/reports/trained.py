"""The model that a report is on: its shape, its weights, what was chosen for its training and what was logged during it."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkit.pipeline.artefact import LEDGER, SAMPLES, Artefact
from llmkit.reports import words
from llmkit.reports.charts import Series
from llmkit.reports.lineage import Node
from llmkit.reports.words import finite

MODEL_PORT = "model_name_or_path"


@dataclass
class Sample:
    """A text that a model wrote."""

    step: int
    prompt: str
    text: str
    """Without the prompt."""


@dataclass
class Curves:
    """What was logged during one training."""

    stage: str
    loss: list[Series]
    scores: list[Series]
    learning_rate: list[Series]
    rate: list[Series]
    """Tokens, or samples, a second."""
    samples: list[Sample]
    """What the model wrote after the last evaluation, if it is one that writes."""
    notes: list[str]
    operations: float | None = None
    """Floating point operations of the whole training, as transformers counts them where llmkit does not."""


@dataclass
class Model:
    """The model that a report is on."""

    name: str
    node: Node | None = None
    directory: Path | None = None
    """Where its files lie, if it is a result of ours and whole."""
    prefix: str = ""
    """That directory within its artefact: empty, or a checkpoint that was evaluated in place of the final model."""
    absent: str = ""
    """Why there is no directory."""
    config: dict[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    weight_bytes: int | None = None
    dtypes: list[str] = field(default_factory=list)


def model_of(root: Node) -> Model:
    """The model that an evaluation names, with what its files say of it."""
    assert root.artefact is not None
    given = str(root.artefact.manifest.config.get(MODEL_PORT) or "")
    node = root.at(MODEL_PORT)
    name = Path(given).name if given.startswith(("/", ".", "~")) else given
    if node is None:
        return Model(name or "unknown", absent="the model that was evaluated is not a result of llmkit")
    return model_at(node, given)


def model_at(node: Node, given: str = "") -> Model:
    """The model that a training has made, or the checkpoint of it whose path is given."""
    if node.artefact is None:
        return Model(node.directory, node, absent=f"the model ({node.directory}) is {node.problem}")
    directory, prefix = _evaluated_directory(node.artefact, given)
    model = Model(node.directory + (f"/{prefix}" if prefix else ""), node, prefix=prefix)
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        model.config = config if isinstance(config, dict) else {}
    except (OSError, ValueError):
        model.absent = f"the model ({node.directory}) has no readable config.json"
        return model
    _count_weights(model, directory)
    if model.parameters is None:
        model.absent = f"the model ({node.directory}) has no readable safetensors weights"
    elif node.problem:
        model.absent = f"the model ({node.directory}) is {node.problem}"
    else:
        model.directory = directory
    return model


def _evaluated_directory(artefact: Artefact, given: str) -> tuple[Path, str]:
    """Where the evaluated model lies: the artefact, or a checkpoint within it; both may have been moved since."""
    root = artefact.directory.resolve()
    path = Path(given)
    if path.exists() and path.resolve().is_relative_to(root):
        inner = path.resolve().relative_to(root)
    else:
        parts = path.parts
        inner = Path(*parts[parts.index(root.name) + 1 :]) if root.name in parts else Path()
    if inner.parts and (root / inner / "config.json").is_file():
        return root / inner, inner.as_posix()
    return root, ""


def is_pretrained(model: Model) -> bool:
    """Whether its weights go back to those of a `pretrain` of llmkit, with no random start on the way."""
    node, prefix = model.node, model.prefix
    while node is not None and node.artefact is not None:
        config = node.artefact.manifest.config
        if config.get("random_start") or (node.stage == "ablate" and prefix.split("/")[0] == "random"):
            return False
        node = node.at(MODEL_PORT)
        if node is not None and node.stage == "pretrain":
            return True
        if node is not None and node.artefact is not None:
            prefix = _evaluated_directory(node.artefact, str(config.get(MODEL_PORT) or ""))[1]
    return False


def _count_weights(model: Model, directory: Path) -> None:
    """Number, bytes and types of the weights, from the headers of the safetensors files alone."""
    parameters, stored, dtypes = 0, 0, set()
    files = sorted(directory.glob("*.safetensors"))
    try:
        for path in files:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > min(100_000_000, path.stat().st_size):
                    return
                header = json.loads(file.read(length))
            for name, tensor in header.items():
                if name != "__metadata__":
                    parameters += math.prod(tensor["shape"])
                    dtypes.add(str(tensor["dtype"]))
            stored += path.stat().st_size
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return
    if files:
        model.parameters, model.weight_bytes, model.dtypes = parameters, stored, sorted(dtypes)


def architecture(model: Model) -> list[tuple[str, str]]:
    """What config.json says of the shape of a model, under whichever names its architecture uses."""
    config = model.config
    facts: list[tuple[str, str]] = []
    names = [
        ("architecture", ("architectures",)),
        ("layers", ("num_hidden_layers", "n_layer", "num_layers", "n_layers")),
        ("width", ("hidden_size", "n_embd", "d_model", "dim")),
        ("attention heads", ("num_attention_heads", "n_head", "n_heads", "num_heads")),
        ("vocabulary", ("vocab_size",)),
        ("longest input in tokens", ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")),
    ]
    for title, keys in names:
        value = next((config[key] for key in keys if config.get(key) is not None), None)
        if value is not None:
            facts.append((title, words.value_of(value)))
    if model.parameters is not None:
        facts.append(("parameters", f"{model.parameters:,}"))
        facts.append(("stored as", f"{', '.join(model.dtypes)}, {words.size(model.weight_bytes or 0)}"))
    return facts


def chosen_settings(node: Node | None) -> list[tuple[str, str]]:
    """The settings of a stage that someone chose, by file or command line, with paths cut to their last part."""
    if node is None or node.artefact is None:
        return []
    manifest = node.artefact.manifest
    chosen = []
    for key, value in manifest.config.items():
        if manifest.origins.get(key, "default") == "default" or value is None:
            continue
        is_path = isinstance(value, str) and value.startswith(("/", "./", "../", "~"))
        chosen.append((key, Path(value).name if is_path else words.setting_of(value)))
    return chosen


def curves_of(model: Model) -> Iterator[Curves]:
    """What the model's trainings logged, the last training first."""
    seen = set()
    node = model.node
    while node is not None and id(node) not in seen:
        seen.add(id(node))
        if node.artefact is not None and (node.artefact.directory / LEDGER).is_file():
            yield _curves(node.stage, node.artefact.directory / LEDGER)
        node = node.at(MODEL_PORT)


def _curves(stage: str, path: Path) -> Curves:
    """Losses and scores over steps. A resumed training logs some steps again: what it logged last counts."""
    lines: dict[str, dict[float, float]] = {}
    unreadable = lost = 0
    operations = None
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            step = finite(row["step"])
        except (ValueError, TypeError, KeyError):
            unreadable += bool(line.strip())
            continue
        operations = finite(row.get("total_flos")) or operations
        for key, value in row.items():
            if step is None or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if not math.isfinite(value):
                lost += _is_loss(key) or _is_score(key)
            elif _is_loss(key) or _is_score(key) or _is_learning_rate(key) or _is_rate(key):
                lines.setdefault(key, {})[step] = float(value)
    loss = [_series(_loss_name(key), points) for key, points in lines.items() if _is_loss(key)]
    shares = {key: points for key, points in lines.items() if _is_score(key) and all(0 <= v <= 1 for v in points.values())}
    order = sorted(shares, key=lambda key: (key != "eval_accuracy", "f1" not in key, "macro" not in key, key))
    scores = [_series(score_name(key), shares[key]) for key in order]
    notes = []
    if unreadable:
        notes.append(f"{words.count(unreadable, 'line')} of {LEDGER} could not be read")
    if lost:
        notes.append(f"{words.count(lost, 'logged value')} {'was' if lost == 1 else 'were'} not a finite number")
    if len(scores) > 4:
        notes.append(f"{len(scores) - 4} further scores stand in report.json")
    return Curves(
        stage=stage,
        loss=sorted(loss, key=lambda item: item.name != "training"),
        scores=scores,
        learning_rate=[_series(key.replace("_", " "), points) for key, points in lines.items() if _is_learning_rate(key)],
        rate=[_series(key.replace("_per_second", " a second"), points) for key, points in lines.items() if _is_rate(key)],
        samples=_last_samples(path.with_name(SAMPLES)),
        notes=notes,
        operations=operations,
    )


def _last_samples(path: Path) -> list[Sample]:
    """The texts of the last evaluation; none where there is no file, or it is not what llmkit writes."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        samples = [Sample(int(row["step"]), str(row["prompt"]), str(row["text"])) for row in rows]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    return [sample for sample in samples if sample.step == samples[-1].step]


def _series(name: str, points: dict[float, float]) -> Series:
    return Series(name, sorted(points.items()))


def _is_loss(key: str) -> bool:
    return key == "loss" or (key.startswith("eval_") and key.endswith("_loss"))


def _is_learning_rate(key: str) -> bool:
    return key.startswith("learning_rate")


def _is_rate(key: str) -> bool:
    return key in ("tokens_per_second", "samples_per_second", "examples_per_second")


def _is_score(key: str) -> bool:
    count_or_rate = re.search(r"(loss|runtime|_per_second|_time|samples|steps|epoch|memory|tokens|bytes)", key)
    return key.startswith("eval_") and not count_or_rate


def score_name(key: str) -> str:
    """`eval_f1_macro` or `eval_macro_f1` to `macro F1`."""
    parts = key.removeprefix("eval_").split("_")
    average = next((part for part in parts if part in ("macro", "micro", "weighted")), None)
    return words.metric_title("_".join(part for part in parts if part != average), average)


def _loss_name(key: str) -> str:
    if key == "loss":
        return "training"
    which = key.removeprefix("eval").removesuffix("loss").strip("_").replace("_", " ")
    return f"validation ({which})" if which else "validation"
