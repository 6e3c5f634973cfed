"""What transformers says of an architecture, read from its source.

Importing transformers with torch takes seconds; parsing the two files of one architecture takes some milliseconds, and no
model is built.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

# A model's context length has one name per family.
_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len")


@dataclass(frozen=True)
class Architecture:
    """One architecture, with the values of a config."""

    model_type: str
    values: Mapping[str, Any]
    """Fields of the config, by the names of its class."""
    names: Mapping[str, str]
    """What the class calls fields that have a usual name: {hidden_size: n_embd}."""
    known: frozenset[str]
    """Every field that a config may have, and other words of its source: what is not among them is no field."""
    layer_classes: tuple[str, ...]
    """Classes of its layers."""
    classes: frozenset[str]
    """All classes of its modules."""
    has_tensor_plan: bool
    """Whether transformers knows how to divide its matrices among processes."""
    is_gated: bool
    """Whether its feed-forward part has three matrices, and not two."""

    def get(self, name: str) -> Any:
        """A field by its usual name; None where there is none."""
        return self.values.get(self.names.get(name, name))

    def number(self, name: str) -> int:
        """A whole number by its usual name; 0 where there is none."""
        value = self.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else 0

    @property
    def key_value_heads(self) -> int:
        return self.number("num_key_value_heads") or self.number("num_attention_heads")

    @property
    def context(self) -> int:
        """The longest sample in tokens; 0 where nothing limits it."""
        return next((size for name in _CONTEXT_NAMES if (size := self.number(name))), 0)

    def with_values(self, values: Mapping[str, Any]) -> Architecture:
        """The same architecture with other values, whose names may be the usual ones."""
        own = {self.names.get(name, name): value for name, value in values.items()}
        return replace(self, values={**self.values, **own})

    def parameters(self, vocabulary: int) -> int:
        """About how many parameters the model has, norms and biases left out; 0 where its parts are not the usual ones.

        Args:
            vocabulary: size of the tables of tokens.
        """
        width, layers, heads = (self.number(f"{name}") for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
        if not (width and layers and heads):
            return 0
        head_width = self.number("head_dim") or width // heads
        attention = 2 * width * head_width * (heads + self.key_value_heads)
        inner = self.number("intermediate_size") or self.number("n_inner") or 4 * width
        experts = self.number("num_local_experts") or self.number("num_experts") or self.number("n_routed_experts")
        if experts:
            inner = (self.number("moe_intermediate_size") or inner) * experts
        feed_forward = (3 if self.is_gated else 2) * width * inner
        tables = vocabulary * width * (1 if self.get("tie_word_embeddings") else 2)
        positions = self.number("n_positions") * width
        return layers * (attention + feed_forward) + tables + positions


@cache
def read_architecture(model_type: str) -> Architecture | None:
    """An architecture with the values that transformers takes by default; None where transformers has none of that name."""
    root = _transformers()
    if root is None:
        return None
    module = _modules().get(model_type, model_type.replace("-", "_"))
    directory = root / "models" / module
    config_file, model_file = directory / f"configuration_{module}.py", directory / f"modeling_{module}.py"
    if not config_file.is_file() or not model_file.is_file():
        return None
    found = next((node for node in _classes(config_file) if _constant(node, "model_type") == model_type), None)
    if found is None:
        return None
    source = model_file.read_text(encoding="utf-8")
    models = _classes(model_file)
    base = next(node for node in _classes(root / "configuration_utils.py") if node.name == "PreTrainedConfig")
    fields = _fields(found)
    layers = next((layers for node in models if (layers := _constant(node, "_no_split_modules"))), ())
    return Architecture(
        model_type=model_type,
        values={**_fields(base), **fields},
        names=_constant(found, "attribute_map") or {},
        known=frozenset(
            (
                *re.findall(r"\w+", config_file.read_text(encoding="utf-8")),
                *re.findall(r"\bconfig(?:\.|, \")(\w+)", source),
                *_fields(base),
                *_set_by_itself(base),
            )
        ),
        layer_classes=tuple(layers),
        classes=frozenset(node.name for node in models),
        has_tensor_plan=_has_tensor_plan(found),
        is_gated=bool(re.search(r"gate_proj|gate_up_proj|\.w3\b", source)),
    )


@cache
def causal_types() -> frozenset[str]:
    """The architectures of which transformers has a causal language model."""
    root = _transformers()
    return (
        frozenset(_pairs(root / "models/auto/modeling_auto.py", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")) if root else frozenset()
    )


def of_directory(directory: Path) -> Architecture | None:
    """The architecture of a model in a directory; None where its `config.json` names none that transformers has."""
    try:
        values = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        architecture = read_architecture(str(values["model_type"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return architecture.with_values(values) if architecture else None


def parameters_in(directory: Path) -> int:
    """The number of values in the safetensors files of a directory, by their headers; 0 where there is none, or one is broken.

    A file begins with the length of its header, 8 bytes little-endian, and the header in JSON:
    https://github.com/huggingface/safetensors#format
    """
    total = 0
    for path in directory.glob("*.safetensors"):
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
        except (OSError, ValueError, KeyError, OverflowError):
            return 0
    return total


def _transformers() -> Path | None:
    spec = importlib.util.find_spec("transformers")
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


@cache
def _modules() -> dict[str, str]:
    """The modules of architectures that are not called as they are."""
    root = _transformers()
    return _pairs(root / "models/auto/auto_mappings.py", "SPECIAL_MODEL_TYPE_TO_MODULE_NAME") if root else {}


def _pairs(path: Path, name: str) -> dict[str, Any]:
    """An ordered dictionary that is written as a list of pairs."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and name in map(ast.unparse, node.targets):
            return dict(ast.literal_eval(node.value.args[0]))
    return {}


def _classes(path: Path) -> list[ast.ClassDef]:
    return [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]


def _constant(node: ast.ClassDef, name: str) -> Any:
    """What a class sets a name to, where that is a constant."""
    for statement in node.body:
        if isinstance(statement, ast.Assign) and name in map(ast.unparse, statement.targets):
            return _literal(statement.value)
    return None


def _has_tensor_plan(node: ast.ClassDef) -> bool:
    """Whether a config class has a plan, of its own or from another architecture that it builds on."""
    plans = [
        item.value
        for item in node.body
        if isinstance(item, ast.Assign) and "base_model_tp_plan" in map(ast.unparse, item.targets)
    ]
    inherits = not any(ast.unparse(base) == "PreTrainedConfig" for base in node.bases)
    return any(ast.unparse(plan) not in ("{}", "None") for plan in plans) if plans else inherits


def _fields(node: ast.ClassDef) -> dict[str, Any]:
    """The fields of a config class with their defaults, where these are constants."""
    declared = [item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
    return {ast.unparse(item.target): _literal(item.value) for item in declared}


def _set_by_itself(node: ast.ClassDef) -> set[str]:
    """Fields that a config computes from others."""
    return {item.attr for item in ast.walk(node) if isinstance(item, ast.Attribute) and ast.unparse(item.value) == "self"}


def _literal(value: ast.expr | None) -> Any:
    """The value of an expression; None where only running it would tell."""
    if isinstance(value, ast.Call):  # interval(min=0.0)(default=0.02)
        value = next((keyword.value for keyword in value.keywords if keyword.arg == "default"), None)
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:
        return None
