"""Settings: dataclass default < YAML < command line, strict, with the origin of every value.

A stage's settings are a dataclass whose fields each have a docstring under them (meaning and unit). Here the fields are
read, YAML files and command lines are turned into values of the declared types, and every problem is collected before one
`ConfigError` names them all. Nothing is read from environment variables.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import json
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar, Union

import yaml

from llmkit import resources
from llmkit.errors import ConfigError

Role = Literal["setting", "files", "artefact"]
ConfigT = TypeVar("ConfigT", bound="StageConfig")
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_UNSET: Any = dataclasses.MISSING
_ORIGIN_COMMENT = "  # from "
_RESOLVED_MARK = "#  (llmkit: the origin of each value stands behind it)"

COMMAND_OPTIONS = ("config", "output_dir", "runs_dir", "force", "accelerate_config", "dry_run")
"""Options of the command itself, beside the settings of its stage."""


def option(
    default: Any = _UNSET,
    *,
    factory: Any = _UNSET,
    role: Role = "setting",
    identity: bool = True,
    made_by: tuple[str, ...] = (),
    kinds: tuple[str, ...] = (),
    positional: bool = False,
) -> Any:
    """A dataclass field with what llmkit needs to know about it.

    Args:
        default, factory: as in `dataclasses.field`; neither makes the setting required.
        role: `files` is a path or pattern whose *content* counts; `artefact` is the directory of an earlier stage's result
            (or of any model), whose fingerprint counts; in a list each item is one, in a mapping each key, and the values are
            settings.
        identity: whether the value can change the bytes of the result, and so belongs to the fingerprint.
        made_by: the stages whose results an `artefact` may be.
        kinds: the endings of the `files` that are read where a directory or a pattern is given; empty for all.
        positional: whether words of the command line that stand before any `--key` are its values; it is a list.
    """
    metadata = {"role": role, "identity": identity, "made_by": made_by, "kinds": kinds, "positional": positional}
    return field(default=default, default_factory=factory, metadata=metadata)


@dataclass(frozen=True)
class FieldSpec:
    """What is known of one setting."""

    name: str
    type: Any
    default: Any
    doc: str
    role: Role = "setting"
    identity: bool = True
    made_by: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    positional: bool = False

    @property
    def required(self) -> bool:
        return self.default is _UNSET


@dataclass(kw_only=True)
class StageConfig:
    """Base of every stage's settings."""

    renamed: ClassVar[Mapping[str, str]] = {}
    """Keys that people know from older releases, with what to write instead."""

    aliases: ClassVar[Mapping[str, str]] = {}
    """Other names that the command line takes for settings."""

    voids: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Settings of an earlier source that mean nothing once a later one changes another: a new `model_type` has fields of its
    own, and not the `config_overrides` that a recipe gave for the old one."""

    passed_on: ClassVar[str | None] = None
    """The name of the dict field that takes the further settings listed by `further_settings`, if there are any."""

    @classmethod
    def further_settings(cls) -> dict[str, FieldSpec]:
        """Settings that are accepted beside the fields and handed on to a library."""
        return {}

    @classmethod
    def derived(cls, given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """Values of settings that follow from the given ones, which win over them, and the origin to name for them.

        Raises:
            ConfigError: nothing follows from what is given.
        """
        return {}, ""

    def problems(self) -> Iterable[str]:
        """Values that do not fit together, one sentence each."""
        return ()

    def file_inputs(self) -> dict[str, tuple[list[str], tuple[str, ...]]]:
        """Files that are named inside other settings: by a name, their patterns and the endings that count (none: all)."""
        return {}

    def raw_inputs(self) -> dict[str, str]:
        """Inputs that no path names, such as embedded data: a name to the sha256 (or version) of its content."""
        return {}

    def result_settings(self, processes: int) -> dict[str, Any]:
        """What follows from the settings and the number of processes, and decides the result; the fingerprint covers it."""
        return {}


@dataclass
class Resolved(Generic[ConfigT]):
    """Settings with the origin of each value."""

    config: ConfigT
    origins: dict[str, str] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The settings flat, as they stand in a YAML file."""
        return flat(self.config)

    def to_yaml(self, header: str) -> str:
        """A YAML file that gives these settings again, with the origin of each value in a comment."""
        lines = [f"# {header}", _RESOLVED_MARK]
        for key, value in self.as_dict().items():
            # In flow style, with line ends escaped, every value fits on its line.
            text = yaml.dump([value], Dumper=_Dumper, default_flow_style=True, width=float("inf"), allow_unicode=True)
            lines.append(f"{key}: {text.strip()[1:-1]}{_ORIGIN_COMMENT}{self.origins.get(key, 'default')}")
        return "\n".join(lines) + "\n"


def flat(config: StageConfig) -> dict[str, Any]:
    """The settings as one flat mapping: fields, then what is handed on to a library."""
    values = {spec.name: getattr(config, spec.name) for spec in fields_of(type(config)).values()}
    if config.passed_on:
        values.update(values.pop(config.passed_on))
    return values


# --------------------------------------------------------------------------------------------------------------------
# Reading the declarations


def _remembered(function: FunctionT) -> FunctionT:
    """`functools.cache`, whose own types allow no class as an argument."""
    return typing.cast(FunctionT, cache(function))


@_remembered
def fields_of(cls: type[StageConfig]) -> dict[str, FieldSpec]:
    """The settings a dataclass declares, in order, with the docstring under each field."""
    hints = typing.get_type_hints(cls)
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            docs.update(_field_docs(base))
    specs = {}
    for item in dataclasses.fields(cls):
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        specs[item.name] = FieldSpec(
            name=item.name,
            type=hints[item.name],
            default=default,
            doc=docs.get(item.name, ""),
            **item.metadata,
        )
    return specs


def _field_docs(cls: type) -> dict[str, str]:
    """The string under each annotated name of a class body."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
    docs = {}
    for statement, following in itertools.pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            docs[statement.target.id] = inspect.cleandoc(following.value.value)
    return docs


def accepted(cls: type[StageConfig]) -> dict[str, FieldSpec]:
    """Every key that may stand in a YAML file or on the command line."""
    specs = {name: spec for name, spec in fields_of(cls).items() if name != cls.passed_on}
    return {**cls.further_settings(), **specs}


def type_name(kind: Any) -> str:
    """A type as a person would write it: `int`, `float or none`, `sgd | adamw`, `list of str`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " | ".join(str(arg) for arg in args)
    if origin in (Union, types.UnionType):
        return " or ".join("none" if arg is type(None) else type_name(arg) for arg in args)
    if origin is list:
        return f"list of {type_name(args[0])}"
    if origin is dict:
        return "mapping"
    return "any" if kind is Any else kind.__name__


# --------------------------------------------------------------------------------------------------------------------
# Values of the declared types


def convert(value: Any, kind: Any) -> Any:
    """Turn a YAML value or a command line word into a value of the declared type.

    Raises:
        ValueError: the value is not of that type; the message says what it is.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        if type(None) in args and (value is None or (isinstance(value, str) and value.lower() in ("none", "null"))):
            return None
        return _convert_union(value, [arg for arg in args if arg is not type(None)])
    if value is None:
        raise ValueError("is empty")
    if origin is Literal:
        for choice in args:
            if str(value) == str(choice):
                return choice
        raise ValueError(f"is not one of {', '.join(str(choice) for choice in args)}")
    if origin is list:
        return _convert_list(value, args[0])
    if origin is dict:
        return _convert_dict(value)
    if kind is bool:
        return _convert_bool(value)
    if kind in (int, float):
        return _convert_number(value, kind)
    if kind is str and isinstance(value, (str, int)) and not isinstance(value, bool):
        return str(value)
    if kind is str and isinstance(value, (bool, float)):  # `no`, 1.10 or 1e5: how it was written is lost
        raise ValueError("is not text; put it in quotes")
    raise ValueError(f"is not {type_name(kind)}")


def _convert_union(value: Any, kinds: list[Any]) -> Any:
    failures = []
    for kind in kinds:
        try:
            return convert(value, kind)
        except ValueError as failure:
            failures.append(str(failure))
    raise ValueError(" and ".join(failures))


def _convert_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if isinstance(value, (str, int)) and str(value).lower() in words:
        return words[str(value).lower()]
    raise ValueError("is not true or false")


def _convert_number(value: Any, kind: type) -> int | float:
    name = {int: "a whole number", float: "a number"}[kind]
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"is not {name}")
    if kind is int and isinstance(value, int):
        return value  # by way of a float, a number of more than 53 bits would change
    try:
        if kind is int and isinstance(value, str) and re.fullmatch(r"[+-]?[\d_]+", value):
            return int(value)
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"is not {name}") from None
    if kind is float and number == number:
        return number
    if number != number or number in (float("inf"), float("-inf")) or number != int(number):
        raise ValueError(f"is not {name}")
    return int(number)


def _convert_list(value: Any, kind: Any) -> list[Any]:
    if isinstance(value, str):
        value = value.split(",") if kind in (int, float) else [value]
    elif not isinstance(value, (list, tuple)):
        value = [value]
    return [convert(item, kind) for item in value]


def _convert_dict(value: Any) -> dict[str, Any]:
    """A mapping, JSON or YAML in braces, or `key=value,key=value` as transformers' run_clm takes it."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, str):
        raise ValueError("is not a mapping")
    if value.lstrip().startswith("{"):
        with suppress(json.JSONDecodeError):
            return json.loads(value)
        try:
            return yaml.load(value, _Loader)
        except (yaml.YAMLError, ValueError):
            raise ValueError("is neither JSON nor YAML, as {hidden_size: 256, num_hidden_layers: 4} is") from None
    pairs = {}
    for part in filter(None, value.split(",")):
        key, sign, item = part.partition("=")
        if not sign:
            raise ValueError(f"{part!r} is not key=value")
        pairs[key.strip()] = yaml_scalar(item)
    return pairs


# --------------------------------------------------------------------------------------------------------------------
# YAML


class _Loader(yaml.SafeLoader):
    """YAML with the numbers people write, as in YAML 1.2: `2e-5` is a number; `010`, `12:30` and dates are text."""


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back: text that looks like a number is quoted, line ends are escaped."""


_YAML_INT = "tag:yaml.org,2002:int"
_YAML_FLOAT = "tag:yaml.org,2002:float"
_YAML_STR = "tag:yaml.org,2002:str"
_NUMBERS = [
    (_YAML_INT, re.compile(r"^[-+]?(0|[1-9][0-9_]*)$")),
    (
        _YAML_FLOAT,
        re.compile(
            r"^[-+]?((0|[1-9][0-9_]*)\.[0-9_]*|\.[0-9][0-9_]*|(0|[1-9][0-9_]*)(?=[eE]))([eE][-+]?[0-9]+)?$"
            r"|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
        ),
    ),
]
_REPLACED_TAGS = {_YAML_INT, _YAML_FLOAT, "tag:yaml.org,2002:timestamp"}
_RESOLVERS: dict[str, list[Any]] = {
    first: [item for item in resolvers if item[0] not in _REPLACED_TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _first in "-+.0123456789":
    _RESOLVERS[_first] = [*_NUMBERS, *_RESOLVERS.get(_first, [])]
_Loader.yaml_implicit_resolvers = _RESOLVERS
_Dumper.yaml_implicit_resolvers = _RESOLVERS


def _represent_str(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    has_line_end = any(sign in text for sign in "\n\r\x85\u2028\u2029")
    return dumper.represent_scalar(_YAML_STR, text, style='"' if has_line_end else None)


_Dumper.add_representer(str, _represent_str)


def yaml_scalar(text: str) -> Any:
    """The value that a word has in YAML: `64` a number, `true` a boolean, anything else itself."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError):
        return text


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Read a mapping from a YAML file. Its top-level keys are text, as they are written (`on` is no boolean there).

    Returns:
        The mapping, and the line (from 1) of each key, nested ones with dots: `stages.pretrain.config`.

    Raises:
        ConfigError: not readable, not YAML, not a mapping, or a key stands twice (at any depth), with file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        raise ConfigError([f"{path} cannot be read: {failure}"], "command") from None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return {}, {}
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError([f"{path}: holds no `key: value` lines at its top level"], "settings file")
        problems = [f"{path}:{line}: {problem}" for line, problem in _wrong_keys(node)]
        if problems:
            raise ConfigError(problems, "settings file")
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                key.tag = _YAML_STR
        lines = _key_lines(node)
        return loader.construct_document(node), lines
    except yaml.YAMLError as failure:
        mark = getattr(failure, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError([f"{where}: not YAML: {getattr(failure, 'problem', failure)}"], "settings file") from None


def _wrong_keys(node: yaml.Node) -> Iterable[tuple[int, str]]:
    """Keys that stand twice, or are no text."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                yield line, "a key is a list or a mapping; put braces and brackets that are text in quotes"
                continue
            if key.value in seen:
                yield line, f"{key.value!r} stands twice"
            seen.add(key.value)
            yield from _wrong_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _wrong_keys(item)


def _key_lines(node: yaml.Node, prefix: str = "") -> dict[str, int]:
    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":  # `<<: *base`: what is merged in is where it stands in the base
                lines = {**_key_lines(value, prefix), **lines}
            else:
                lines[f"{prefix}{key.value}"] = key.start_mark.line + 1
                lines.update(_key_lines(value, f"{prefix}{key.value}."))
    elif isinstance(node, yaml.SequenceNode) and not prefix:
        for item in node.value:  # `<<: [*one, *two]`
            lines = {**_key_lines(item), **lines}
    return lines


@dataclass
class Source:
    """Settings from one place: a YAML file, a pipeline's stage, the command line."""

    values: dict[str, Any]
    origins: dict[str, str]


def read_settings_file(path: Path, _chain: tuple[Path, ...] = ()) -> list[Source]:
    """Read a settings file and what it `extends:`, the base first.

    Raises:
        ConfigError: as `read_yaml`; or the files extend each other in a circle.
    """
    if path.resolve() in _chain:
        raise ConfigError([f"{path} extends itself, by way of {_chain[-1]}"], "settings file")
    values, lines = read_yaml(path)
    shown = resources.display(path)
    sources = []
    if "extends" in values:
        try:
            base = resources.find("recipes", str(values.pop("extends")), relative_to=path.parent)
        except ConfigError as failure:
            place = f"{shown}:{lines['extends']}: extends: "
            raise ConfigError([place + problem for problem in failure.problems], "settings file") from None
        sources = read_settings_file(base, (*_chain, path.resolve()))
    origins = {key: f"{shown}:{lines[key]}" if key in lines else shown for key in values}
    text = path.read_text(encoding="utf-8").splitlines()
    if _RESOLVED_MARK in text[:2]:  # what an earlier run wrote: its values come from where it had them
        for key in values:
            _, comment, origin = text[lines[key] - 1].rpartition(_ORIGIN_COMMENT)
            if comment:
                origins[key] = origin
    return [*sources, Source(values, origins)]


# --------------------------------------------------------------------------------------------------------------------
# Command line


def read_command_line(cls: type[StageConfig], words: list[str]) -> tuple[Source, list[str]]:
    """Read `--key value`, `--key=value`, `--flag` and `--no_flag`, and before these the values of the positional setting.

    `--key=` empties a list.

    Returns:
        The settings, and the problems found.
    """
    specs = accepted(cls)
    values: dict[str, Any] = {}
    problems: list[str] = []
    position = 0
    positional = positional_of(cls)
    if positional:
        first = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
        values |= {positional.name: first} if first else {}
        position = len(first)
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith("--") or word == "--":
            problems.append(f"{word!r} stands where a --key is expected")
            continue
        key, sign, value = word[2:].partition("=")
        key, dot, inner = key.replace("-", "_").partition(".")
        key = cls.aliases.get(key, key)
        items: list[str] = [value] if sign else []
        while not sign and position < len(words) and not words[position].startswith("--"):
            items.append(words[position])
            position += 1
        spec = specs.get(key)
        if spec is None and key.startswith("no_") and _is_bool(specs.get(key[3:])) and not items:
            values[key[3:]] = False
        elif not items and _is_bool(spec):
            values[key] = True
        elif not items:
            problems.append(f"--{key}{dot}{inner} needs a value" if spec else unknown_key(cls, key, "command line"))
        elif spec is None:
            values[key] = items[0]
        elif len(items) > 1 and not _is_list(spec):
            problems.append(f"--{key}{dot}{inner} takes one value, got {len(items)}: {' '.join(items)}")
        elif dot and not _is_mapping(spec):
            problems.append(f"--{key}.{inner}: {key} is {type_name(spec.type)}, and has no parts")
        elif _is_mapping(spec):
            try:
                part = _nested(inner, yaml_scalar(items[0])) if dot else convert(items[0], spec.type)
            except ValueError as failure:
                problems.append(f"command line: {key}: {items[0]!r} {failure}")
                continue
            earlier = values.get(key)
            values[key] = merged(earlier, part) if isinstance(earlier, dict) and isinstance(part, dict) else part
        elif _is_list(spec) and key in values:
            problems.append(f"--{key} stands twice; write all its values after one --{key}")
        else:
            emptied = _is_list(spec) and items == [""]
            values[key] = [] if emptied else items if len(items) > 1 else items[0]
    return Source(values, dict.fromkeys(values, "command line")), problems


def positional_of(cls: type[StageConfig]) -> FieldSpec | None:
    """The setting whose values need no `--key`, if there is one."""
    return next((spec for spec in fields_of(cls).values() if spec.positional), None)


def _is_bool(spec: FieldSpec | None) -> bool:
    return spec is not None and (spec.type is bool or bool in typing.get_args(spec.type))


def _is_list(spec: FieldSpec) -> bool:
    return _is_made_of(spec, list)


def _is_mapping(spec: FieldSpec) -> bool:
    return _is_made_of(spec, dict)


def _is_made_of(spec: FieldSpec, container: type) -> bool:
    kinds = (spec.type, *typing.get_args(spec.type))
    return any(typing.get_origin(kind) is container for kind in kinds)


def _nested(dotted: str, value: Any) -> dict[str, Any]:
    """`a.b` and 1 to `{a: {b: 1}}`."""
    for key in reversed(dotted.split(".")):
        if not key:
            raise ValueError("has no name before or after a dot")
        value = {key: value}
    return value


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Two mappings key by key, at every depth; the second wins."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def unknown_key(cls: type[StageConfig], key: str, where: str) -> str:
    """The sentence for a key that does not exist: its new name, the nearest name, or how to list them."""
    if key in cls.renamed:
        return f"{where}: {key!r} is no setting: {cls.renamed[key]}"
    if key in cls.aliases:
        return f"{where}: {key!r} is a name for the command line; write {cls.aliases[key]!r}"
    if key in COMMAND_OPTIONS:
        return f"{where}: {key!r} is no setting; give it on the command line: --{key}"
    options = COMMAND_OPTIONS if where == "command line" else ()
    near = difflib.get_close_matches(key, [*accepted(cls), *options], n=1, cutoff=0.6)
    return f"{where}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "; --help lists the keys")


# --------------------------------------------------------------------------------------------------------------------
# Putting it together


def resolve(cls: type[ConfigT], sources: list[Source], problems: list[str] | None = None) -> Resolved[ConfigT]:
    """Merge sources, later ones winning, into checked settings.

    Mappings given by several sources are merged key by key, at every depth.

    Raises:
        ConfigError: with every problem: unknown keys, wrong types, missing settings, values that do not fit together.
    """
    problems = list(problems or [])
    specs = accepted(cls)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for source in sources:
        for key, dependent in cls.voids.items():
            if key in source.values and source.values[key] != values.get(key):
                for void in dependent:
                    values.pop(void, None)
                    origins.pop(void, None)
        for key, raw in source.values.items():
            where = source.origins.get(key, "settings")
            spec = specs.get(key)
            if spec is None:
                problems.append(unknown_key(cls, str(key), where))
                continue
            try:
                value = convert(raw, spec.type)
            except ValueError as failure:
                problems.append(f"{where}: {key}: {raw!r} {failure}")
                continue
            if isinstance(value, dict) and isinstance(values.get(key), dict):
                value = merged(values[key], value)
            values[key], origins[key] = value, where
    if not problems:
        try:
            derived, origin = cls.derived(values)
        except ConfigError as failure:
            raise ConfigError(failure.problems) from None
        for key, value in derived.items():
            if key not in values:
                values[key], origins[key] = value, origin
            elif isinstance(value, dict) and merged(value, values[key]) != values[key]:
                values[key], origins[key] = merged(value, values[key]), f"{origin}, changed by {origins[key]}"
    fields = fields_of(cls)
    for spec in fields.values():
        if spec.required and spec.name not in values and not any(spec.name in problem for problem in problems):
            problems.append(f"--{spec.name} is missing: {spec.doc}")
    if problems:
        raise ConfigError(problems)
    own = {key: value for key, value in values.items() if key in fields}
    if cls.passed_on:
        own[cls.passed_on] = {key: value for key, value in values.items() if key not in fields}
    config = cls(**own)
    conflicts = list(config.problems())
    if conflicts:
        raise ConfigError(conflicts)
    return Resolved(config, {key: origins.get(key, "default") for key in flat(config)})


def parse_arguments(cls: type[ConfigT], words: list[str], default_recipe: str | None = None) -> Resolved[ConfigT]:
    """Settings from a command line, `--config FILE` read first.

    Args:
        default_recipe: the shipped settings that serve when no `--config` is given.
    """
    file, rest = _take_config(words)
    sources, problems = [], []
    if file or default_recipe:
        try:
            sources = read_settings_file(resources.find("recipes", file or default_recipe or ""))
        except ConfigError as failure:
            problems += failure.problems
    given, more = read_command_line(cls, rest)
    return resolve(cls, [*sources, given], problems + more)


def _take_config(words: list[str]) -> tuple[str | None, list[str]]:
    rest, file = [], None
    position = 0
    while position < len(words):
        word = words[position]
        is_config = word == "--config" or word.startswith("--config=")
        if is_config and file is not None:
            raise ConfigError(["--config stands twice; a settings file can build on another with `extends:`"], "command")
        if word.startswith("--config="):
            file = word.partition("=")[2]
        elif word == "--config":
            position += 1
            if position == len(words):
                raise ConfigError(["--config needs the path or name of a YAML file"], "command")
            file = words[position]
        else:
            rest.append(word)
        position += 1
    return file, rest


def help_text(cls: type[StageConfig]) -> str:
    """The settings with their types, defaults, meanings and units."""
    blocks = []
    inherited = {name for base in cls.__mro__[1:] if issubclass(base, StageConfig) for name in fields_of(base)}
    specs = [spec for spec in fields_of(cls).values() if spec.name != cls.passed_on]
    for spec in sorted(specs, key=lambda spec: spec.name in inherited):  # what is the stage's own comes first
        default = "required" if spec.required else f"default {_shown(spec.default)}"
        doc = textwrap.fill(
            spec.doc,
            width=100,
            initial_indent="      ",
            subsequent_indent="      ",
            break_on_hyphens=False,
            break_long_words=False,
        )
        blocks.append(f"  --{spec.name}  ({type_name(spec.type)}; {default})\n{doc}")
    text = "\n".join(blocks)
    further = [name for name in cls.further_settings() if name not in fields_of(cls)]
    if further:
        listing = textwrap.fill(", ".join(further), width=100, initial_indent="  ", subsequent_indent="  ")
        text += f"\n\nand every other field of transformers.TrainingArguments:\n{listing}"
    return text


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
