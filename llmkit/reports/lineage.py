"""From an artefact back to the raw bytes: every stage on the way, once, and what can no longer be checked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkit.errors import ArtefactError
from llmkit.pipeline.artefact import Artefact, FileRecord

PURPOSE = {
    "preprocess": "raw text to clean documents",
    "tokenizer": "documents to a tokenizer",
    "tokenize": "documents to token shards",
    "pretrain": "token shards to a base model",
    "finetune": "base model to a task model",
    "quantize": "classifier to int8 weights",
    "ablate": "base model to what pretraining is worth",
    "evaluate": "task model to predictions and metrics",
}


@dataclass
class Node:
    """One result on the way from the raw bytes, or the record of one that cannot be read any more."""

    stage: str
    fingerprint: str
    directory: str
    """Relative to the directory that holds the evaluation, so that a published page names no home directory."""
    artefact: Artefact | None
    problem: str | None = None
    inputs: dict[str, Node] = field(default_factory=dict)

    @property
    def purpose(self) -> str:
        return PURPOSE.get(self.stage, "")

    def at(self, port: str) -> Node | None:
        return self.inputs.get(port)

    def ancestors(self) -> Iterator[Node]:
        """Everything this was made from and then this, each once and always after its own inputs."""
        yield from _after_inputs(self, set())

    def as_dict(self) -> dict[str, Any]:
        manifest = self.artefact.manifest if self.artefact else None
        values: dict[str, Any] = {
            "stage": self.stage,
            "fingerprint": self.fingerprint,
            "directory": self.directory,
            "problem": self.problem,
            "inputs": {port: node.fingerprint for port, node in self.inputs.items()},
        }
        if manifest:
            values.update(
                created=manifest.created,
                seconds=manifest.seconds,
                command=manifest.command,
                config=manifest.config,
                metrics=manifest.metrics,
                environment=manifest.environment,
                raw_inputs=[vars(record) for record in manifest.raw_inputs],
            )
        return values


def _after_inputs(node: Node, seen: set[int]) -> Iterator[Node]:
    if id(node) in seen:
        return
    seen.add(id(node))
    for earlier in node.inputs.values():
        yield from _after_inputs(earlier, seen)
    yield node


def walk(artefact: Artefact) -> Node:
    """Follow every input of every manifest back to where nothing was made by llmkit any more."""
    base = artefact.directory.resolve().parent
    known: dict[Path, Node] = {}

    def visit(current: Artefact, place: Path) -> Node:
        damage = current.damaged()
        node = Node(
            current.manifest.stage,
            current.manifest.fingerprint,
            os.path.relpath(place, base),
            current,
            f"damaged: {damage[0]}" if damage else None,
        )
        known[place] = node
        for port, record in current.manifest.inputs.items():
            there = (place / record.path).resolve()
            earlier, problem = _input(current, port, there)
            if earlier is None:
                node.inputs[port] = Node(record.stage, record.fingerprint, os.path.relpath(there, base), None, problem)
            else:
                node.inputs[port] = known[there] if there in known else visit(earlier, there)
        return node

    return visit(artefact, artefact.directory.resolve())


def _input(artefact: Artefact, port: str, there: Path) -> tuple[Artefact | None, str | None]:
    """The earlier result, or why it cannot be followed."""
    try:
        earlier = artefact.input(port)
        if earlier is not None:
            return earlier, None
        return None, "made again since, with other content" if Artefact.peek(there) else "not there any more"
    except ArtefactError:
        return None, "its manifest cannot be read"


def raw_inputs(nodes: list[Node]) -> list[tuple[Node, FileRecord]]:
    """The bytes that came from outside, with the stage that read them."""
    return [(node, record) for node in nodes if node.artefact for record in node.artefact.manifest.raw_inputs]


def environments(nodes: list[Node]) -> list[tuple[list[str], dict[str, Any]]]:
    """The environments in which the stages ran; stages that ran in the same one stand together."""
    groups: list[tuple[list[str], dict[str, Any]]] = []
    for node in nodes:
        if node.artefact is None:
            continue
        mine = node.artefact.manifest.environment
        for stages, environment in groups:
            if environment == mine:
                stages.append(node.stage)
                break
        else:
            groups.append(([node.stage], mine))
    return groups
