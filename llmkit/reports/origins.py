"""What a result was made from and what that cost: the corpus, the tokenizer and the trainings, as far as the lineage has them.

Shapes: each part is a list of rows of texts, ready to be shown, and empty where nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from llmkit.reports import words
from llmkit.reports.lineage import Node
from llmkit.reports.trained import Curves
from llmkit.reports.words import finite

_SOURCES_SHOWN = 20
_TRAININGS = ("pretrain", "finetune", "ablate")


@dataclass
class Table:
    """Rows of texts below a head; the columns after the first are numbers."""

    head: list[str]
    rows: list[list[str]]
    caption: str = ""


@dataclass
class Origins:
    """Where a result comes from."""

    data: list[Table] = field(default_factory=list)
    data_sources: list[Table] = field(default_factory=list)
    tokenizer: Table | None = None
    tokenizer_sources: Table | None = None
    vocabulary: str = ""
    """Its size and how much of it is in use, as a sentence."""
    cost: Table | None = None
    cost_notes: list[str] = field(default_factory=list)


def origins_of(nodes: list[Node], curves: list[Curves]) -> Origins:
    """Read what the manifests of a lineage record of its data, its tokenizer and its cost."""
    found = Origins()
    for node in nodes:
        if node.artefact is None:
            continue
        metrics = node.artefact.manifest.metrics
        if node.stage == "preprocess":
            _corpus(found, metrics)
        elif node.stage == "tokenizer":
            _tokenizer(found, metrics)
        elif node.stage == "tokenize":
            _tokens(found, metrics)
        elif node.stage == "finetune":
            _examples(found, metrics)
    _cost(found, nodes, curves)
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any, key: str = "") -> str:
    return words.MISSING if finite(value) is None else words.value_of(value, key)


# --------------------------------------------------------------------------------------------------------------------
# Data


def _corpus(found: Origins, metrics: Mapping[str, Any]) -> None:
    rows = [["rows read", _number(metrics.get("read"))]] if "read" in metrics else []
    removed = _mapping(metrics.get("removed"))
    rows += [[f"removed: {rule.replace('_', ' ')}", _number(count)] for rule, count in removed.items()]
    rows += [] if removed or "read" not in metrics else [["removed", "0"]]
    rows += [["documents kept", _number(metrics.get("documents"))]]
    found.data.append(Table(["Corpus", "Documents"], rows, "What was read for the corpus, and what became of it"))
    splits = _amounts("Split", _mapping(metrics.get("splits")), "What is left of the corpus, normalised")
    if splits:
        found.data.append(splits)
    _sources(found, metrics, "characters", "The sources of the corpus, the largest first")


def _sources(found: Origins, metrics: Mapping[str, Any], unit: str, caption: str) -> None:
    table = _amounts("Source", _mapping(metrics.get("sources")), caption, unit)
    if table:
        found.data_sources.append(table)


def _amounts(title: str, parts: Mapping[str, Any], caption: str, unit: str = "characters") -> Table | None:
    names = ("documents", unit, "bytes")
    rows = [
        [words.fit(str(name), 80), *(_number(_mapping(part).get(key), key) for key in names)] for name, part in parts.items()
    ]
    return Table([title, "Documents", unit.capitalize(), "Size"], rows[:_SOURCES_SHOWN], caption) if rows else None


def _tokens(found: Origins, metrics: Mapping[str, Any]) -> None:
    splits = {split: metrics[split] for split in ("train", "validation") if _mapping(metrics.get(split))}
    shards = _amounts("Token shards", splits, "What a model is pretrained on", "tokens")
    if shards:
        found.data.append(shards)
    _sources(found, metrics, "tokens", "The tokens of each source, with the one that ends each document")


def _examples(found: Origins, metrics: Mapping[str, Any]) -> None:
    rows = []
    for split in ("train", "validation"):
        part = _mapping(metrics.get(split))
        if "examples" in part:
            doubtful = part.get("also_in_training") if split == "validation" else part.get("texts_with_several_labels")
            rows.append([split, _number(part["examples"]), _number(part.get("truncated")), _number(doubtful)])
    if rows:
        head = ["Fine-tuning", "Examples", "Cut to fit", "Contradicting (train), also in train (validation)"]
        found.data.append(Table(head, rows, "The examples that the model has learned its task from"))


# --------------------------------------------------------------------------------------------------------------------
# Tokenizer

_MEASURES = (
    ("documents", "Documents"),
    ("bytes_per_token", "Bytes a token"),
    ("tokens_per_word", "Tokens a word"),
    ("tokens_per_han_character", "Tokens a Han character"),
    ("round_trip_failures", "Changed by a round trip"),
)


def _tokenizer(found: Origins, metrics: Mapping[str, Any]) -> None:
    splits = _mapping(metrics.get("splits"))
    rows = [[str(split), *_measured(_mapping(part))] for split, part in splits.items()]
    sources = [
        [f"{split}: {words.fit(str(name), 80)}" if len(splits) > 1 else words.fit(str(name), 80), *_measured(_mapping(part))]
        for split, of_split in splits.items()
        for name, part in _mapping(_mapping(of_split).get("sources")).items()
    ]
    titles = [title for _, title in _MEASURES]
    if rows:
        found.tokenizer = _dense(Table(["Split", *titles], rows, "Measured on documents of the corpus"))
    if sources:
        found.tokenizer_sources = _dense(Table(["Source", *titles], sources[: 2 * _SOURCES_SHOWN], "Measured by source"))
    if finite(metrics.get("vocab_size")) is not None:
        used = finite(_mapping(splits.get("train")).get("vocabulary_used"))
        share = (
            f", of which {words.percent(used)} occur in the training documents that were measured" if used is not None else ""
        )
        found.vocabulary = f"The vocabulary has {words.count(metrics['vocab_size'], 'token')}{share}."


def _dense(table: Table) -> Table:
    """Without the columns in which nothing was measured: tokens a Han character of an English corpus, say."""
    kept = [place for place in range(len(table.head)) if any(row[place] != words.MISSING for row in table.rows)]
    return Table([table.head[place] for place in kept], [[row[place] for place in kept] for row in table.rows], table.caption)


def _measured(part: Mapping[str, Any]) -> list[str]:
    return [_number(part.get(key)) for key, _ in _MEASURES]


# --------------------------------------------------------------------------------------------------------------------
# Cost


def _cost(found: Origins, nodes: list[Node], curves: list[Curves]) -> None:
    known = [node for node in nodes if node.artefact is not None]
    rows = list(_trainings(known, curves))
    if not rows:
        return
    head = ["Training", "Time taken", "Steps", "Learned from", "Rate", "Operations", "MFU"]
    found.cost = _dense(Table(head, rows, "What the trainings cost"))
    seconds = sum(node.artefact.manifest.seconds for node in known if node.artefact)
    found.cost_notes = [
        f"All {words.count(len(known), 'stage')} of the lineage took {words.duration(seconds)}.",
        *_places([node for node in known if node.stage in _TRAININGS]),
    ]
    formulas = [_mapping(node.artefact.manifest.metrics.get("throughput")) for node in known if node.artefact]
    for described in formulas:
        if described.get("formula"):
            convention = f"; {described['convention']}" if described.get("convention") else ""
            found.cost_notes.append(f"Operations of a token: {described['formula']}{convention}.")
            break
    if any(row[-1] != words.MISSING for row in rows):
        found.cost_notes.append("MFU is the share of the operations a second that the hardware was measured to do.")


def _trainings(nodes: list[Node], curves: list[Curves]) -> Iterator[list[str]]:
    for node in nodes:
        if node.stage not in _TRAININGS or node.artefact is None:
            continue
        metrics = node.artefact.manifest.metrics
        measured = _mapping(metrics.get("throughput"))
        tokens, per_token = finite(metrics.get("tokens_learned")), finite(measured.get("flops_per_token"))
        examples = finite(_mapping(metrics.get("train")).get("examples"))
        logged = next((item for item in curves if item.stage == node.stage), None)
        spent = tokens * per_token if tokens is not None and per_token is not None else logged.operations if logged else None
        learned = words.MISSING
        if tokens is not None:
            learned = f"{tokens:,.0f} tokens"
        elif examples is not None:
            learned = f"{examples:,.0f} examples"
        yield [
            node.stage,
            words.duration(node.artefact.manifest.seconds),
            _number(metrics.get("steps")),
            learned,
            _rate(measured, logged),
            words.MISSING if spent is None else operations(spent),
            words.percent(finite(measured.get("mfu"))),
        ]


def _rate(measured: Mapping[str, Any], curves: Curves | None) -> str:
    """Of the whole run where it was measured, and else the median of what was logged."""
    for key in ("tokens_per_second", "samples_per_second"):
        if finite(measured.get(key)) is not None:
            return f"{measured[key]:,.0f} {key.split('_')[0]}/s"
    for line in curves.rate if curves else []:
        values = [value for _, value in line.points]
        if values:
            return f"{median(values):,.0f} {line.name.split()[0]}/s"
    return words.MISSING


def operations(count: float) -> str:
    """A number of floating point operations, such as `3.21e12 FLOP`, with the unit that fits."""
    for power, unit in ((18, "EFLOP"), (15, "PFLOP"), (12, "TFLOP"), (9, "GFLOP")):
        if count >= 10**power:
            return f"{count / 10**power:,.3g} {unit}" if count < 1000 * 10**power else f"{count / 10**power:,.0f} {unit}"
    return f"{count:,.0f} FLOP"


def _places(trainings: list[Node]) -> Iterator[str]:
    """The hardware of the trainings, in a sentence for all that ran alike."""
    stages: dict[str, list[str]] = {}
    for node in trainings:
        stages.setdefault(_where(node), []).append(node.stage)
    for where, names in stages.items():
        yield words.clean(f"{words.listing(names)} ran {where}.")


def _where(node: Node) -> str:
    assert node.artefact is not None
    manifest = node.artefact.manifest
    hardware = _mapping(manifest.environment.get("hardware"))
    gpus = hardware.get("gpus")
    device = f"{len(gpus)} × {gpus[0]}" if isinstance(gpus, list) and gpus else str(hardware.get("cpu") or "unknown hardware")
    processes = finite(manifest.metrics.get("processes"))
    ran = f"in {words.count(int(processes), 'process', 'processes')} " if processes is not None else ""
    precision = f" in {manifest.metrics['precision']}" if isinstance(manifest.metrics.get("precision"), str) else ""
    return f"{ran}on {device}{precision}"
