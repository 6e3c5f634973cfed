"""Settings: default < YAML < command line, strict, every problem at once, and what is written reads back the same."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit import config as config_module
from llmkit.config import (
    FieldSpec,
    Resolved,
    StageConfig,
    accepted,
    convert,
    fields_of,
    flat,
    help_text,
    option,
    parse_arguments,
    read_settings_file,
    read_yaml,
    resolve,
    yaml_scalar,
)
from llmkit.errors import ConfigError
from llmkit.stages import STAGES, stage_help
from llmkit.training import arguments
from llmkit.training.arguments import RENAMED, transformers_fields
from llmkit.training.pretrain import PretrainConfig


@dataclass(kw_only=True)
class Plain(StageConfig):
    """Settings of every type."""

    renamed: ClassVar = {"lr": "write `learning_rate`"}

    learning_rate: float = option(1e-3)
    """Step size."""

    max_steps: int = option(10)
    """Steps."""

    bf16: bool | None = option(None)
    """Precision."""

    shuffle: bool = option(True)
    """Whether the order is random."""

    name: str | None = option(None)
    """A name."""

    kind: Literal["bpe", "unigram"] = option("bpe")
    """Algorithm."""

    train_file: list[str] | None = option(None)
    """Files."""

    sizes: list[int] = option(factory=list)
    """Sizes."""

    overrides: dict[str, Any] = option(factory=dict)
    """Anything."""

    def problems(self) -> Iterable[str]:
        if self.max_steps < 1:
            yield f"max_steps: is {self.max_steps}, must be at least 1"
        if self.learning_rate <= 0:
            yield f"learning_rate: is {self.learning_rate}, must be above 0"


@dataclass(kw_only=True)
class Needs(Plain):
    corpus: str = option(role="artefact")
    """Where the documents are."""

    tokenizer: str = option(role="artefact")
    """Where the tokenizer is."""


@dataclass(kw_only=True)
class PassesOn(Plain):
    """Hands further settings on to a library."""

    passed_on: ClassVar = "further"

    @classmethod
    def further_settings(cls) -> dict[str, FieldSpec]:
        return {"epsilon": FieldSpec("epsilon", float | None, None, ""), "anything": FieldSpec("anything", Any, None, "")}

    further: dict[str, Any] = option(factory=dict)
    """For the library."""


def from_yaml(directory: Path, text: str, cls: type = Plain, name: str = "a.yaml") -> Resolved[Any]:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return resolve(cls, read_settings_file(path))


def problems_of(function: Any, *given_: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        function(*given_)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --------------------------------------------------------------------------------------------------------------------
# Precedence


def test_a_default_yields_to_yaml_and_yaml_to_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("learning_rate: 2e-5\nmax_steps: 20\n")
    resolved = parse_arguments(Plain, ["--config", "a.yaml", "--max_steps", "30"])
    config = resolved.config
    assert (config.learning_rate, config.max_steps, config.shuffle) == (2e-5, 30, True)
    assert resolved.origins["learning_rate"] == "a.yaml:1"
    assert resolved.origins["max_steps"] == "command line"
    assert resolved.origins["shuffle"] == "default"
    assert set(resolved.origins) == set(flat(config))


@pytest.mark.parametrize("words", [["--config", "a.yaml"], ["--config=a.yaml"]])
def test_the_settings_file_may_stand_anywhere_and_still_yields(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "a.yaml").write_text("max_steps: 20\nname: x\n")
    for order in (["--max_steps", "30", *words], [*words, "--max_steps", "30"]):
        config = parse_arguments(Plain, order).config
        assert (config.max_steps, config.name) == (30, "x")


def test_a_settings_file_builds_on_another_beside_it_and_that_on_a_third(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/third.yaml").write_text("max_steps: 3\nname: third\nlearning_rate: 3\noverrides: {a: 1, n: {x: 1}}\n")
    (tmp_path / "sub/second.yaml").write_text("extends: third.yaml\nmax_steps: 2\nname: second\n")
    resolved = from_yaml(
        tmp_path / "sub", "name: first\nextends: second.yaml\noverrides: {b: 2, n: {y: 2}}\n", name="first.yaml"
    )
    assert (resolved.config.name, resolved.config.max_steps, resolved.config.learning_rate) == ("first", 2, 3.0)
    assert resolved.config.overrides == {"a": 1, "b": 2, "n": {"x": 1, "y": 2}}
    assert resolved.origins["name"] == "sub/first.yaml:1"
    assert resolved.origins["max_steps"] == "sub/second.yaml:2"
    assert resolved.origins["learning_rate"] == "sub/third.yaml:3"


def test_a_settings_file_builds_on_a_shipped_one(tmp_path: Path) -> None:
    resolved = from_yaml(tmp_path, "extends: pretrain/quickstart\nmax_steps: 7\n", PretrainConfig)
    assert resolved.config.max_steps == 7
    assert resolved.config.config_overrides["num_hidden_layers"] == 4
    assert "quickstart.yaml:" in resolved.origins["learning_rate"]


def test_settings_files_that_extend_each_other_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    assert "extends itself, by way of" in problems_of(from_yaml, tmp_path, "extends: b.yaml\n")[0]
    assert "extends itself" in problems_of(from_yaml, tmp_path, "extends: a.yaml\n")[0]


def test_a_base_that_is_not_there_is_named_with_the_line_and_the_nearest(tmp_path: Path) -> None:
    assert problems_of(from_yaml, tmp_path, "max_steps: 1\nextends: pretrain/quikstart\n") == [
        "a.yaml:2: extends: 'pretrain/quikstart' is neither a file nor one of llmkit's recipes; "
        "did you mean 'pretrain/quickstart'?"
    ]


def test_mappings_of_several_places_are_merged_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("overrides: {a: 1, rope: {kind: x, theta: 1}}\n")
    words = ["--config", "a.yaml", "--overrides.rope.theta", "1e4", "--overrides", "b=2,c=true"]
    assert parse_arguments(Plain, words).config.overrides == {
        "a": 1, "rope": {"kind": "x", "theta": 10000.0}, "b": 2, "c": True,
    }  # fmt: skip


def test_a_list_replaces_the_list_before_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("train_file: [a, b]\n")
    assert parse_arguments(Plain, ["--config", "a.yaml", "--train_file", "c"]).config.train_file == ["c"]


def test_environment_variables_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LEARNING_RATE", "learning_rate", "LLMKIT_LEARNING_RATE"):
        monkeypatch.setenv(name, "7")
    assert parse_arguments(Plain, []).config.learning_rate == 1e-3


def test_defaults_are_not_shared_between_two_settings() -> None:
    one, two = parse_arguments(Plain, []).config, parse_arguments(Plain, []).config
    one.overrides["a"] = 1
    one.sizes.append(3)
    assert (two.overrides, two.sizes) == ({}, [])


# --------------------------------------------------------------------------------------------------------------------
# Values


@pytest.mark.parametrize("text", ["2e-5", "2E-5", "2.0e-5", ".00002", "0.00002", "+2e-5"])
def test_a_small_number_is_a_number_in_yaml_and_on_the_command_line(tmp_path: Path, text: str) -> None:
    assert from_yaml(tmp_path, f"learning_rate: {text}").config.learning_rate == 2e-5
    assert parse_arguments(Plain, ["--learning_rate", text]).config.learning_rate == 2e-5
    assert from_yaml(tmp_path, f"overrides: {{x: {text}}}").config.overrides == {"x": 2e-5}
    assert parse_arguments(Plain, ["--overrides", f"x={text}"]).config.overrides == {"x": 2e-5}


@pytest.mark.parametrize(
    ("text", "number"), [("1e5", 100000), ("1_000", 1000), ("5.0", 5), ("-1", -1), ("010", 10), ("+3", 3)]
)
def test_a_whole_number_may_be_written_in_several_ways(tmp_path: Path, text: str, number: int) -> None:
    for value in (
        from_yaml(tmp_path, f"sizes: [{text}]").config.sizes[0],
        parse_arguments(Plain, ["--sizes", text]).config.sizes[0],
        parse_arguments(Plain, [f"--sizes={text}"]).config.sizes[0],
    ):
        assert value == number
        assert type(value) is int


@pytest.mark.parametrize("text", ["1.5", "ten", "nan", "inf", "1e-5", "", "1e400", "true", "12:30", "0x1f"])
def test_what_is_no_whole_number_is_refused(tmp_path: Path, text: str) -> None:
    assert "is not a whole number" in problems_of(parse_arguments, Plain, [f"--max_steps={text}"])[0]
    if text:
        assert "a.yaml:1: max_steps: " in problems_of(from_yaml, tmp_path, f"max_steps: {text}")[0]


@pytest.mark.parametrize("text", ["nan", ".nan", "fast", "1,5", "true", "1e-4x"])
def test_what_is_no_number_is_refused(tmp_path: Path, text: str) -> None:
    assert "is not a number" in problems_of(parse_arguments, Plain, ["--learning_rate", text])[0]
    assert "is not a number" in problems_of(from_yaml, tmp_path, f"learning_rate: {text}")[0]


@pytest.mark.parametrize("number", [2**53 + 1, 2**64 - 1, -(2**70)])
def test_a_whole_number_of_any_size_stays_exact(tmp_path: Path, number: int) -> None:
    assert from_yaml(tmp_path, f"max_steps: {abs(number)}").config.max_steps == abs(number)
    assert parse_arguments(Plain, [f"--sizes={number}"]).config.sizes == [number]


def test_a_whole_number_too_large_for_a_float_is_refused_as_one(tmp_path: Path) -> None:
    assert "is not a number" in problems_of(from_yaml, tmp_path, f"learning_rate: 1{'0' * 400}")[0]


def test_infinity_is_a_number_for_limits_that_are_off(tmp_path: Path) -> None:
    assert from_yaml(tmp_path, "learning_rate: .inf").config.learning_rate == float("inf")
    assert parse_arguments(Plain, ["--learning_rate", "inf"]).config.learning_rate == float("inf")


@pytest.mark.parametrize(("word", "value"), [("true", True), ("Yes", True), ("on", True), ("1", True),
                                             ("False", False), ("no", False), ("off", False), ("0", False)])  # fmt: skip
def test_true_and_false_may_be_written_as_people_do(tmp_path: Path, word: str, value: bool) -> None:
    assert parse_arguments(Plain, ["--shuffle", word]).config.shuffle is value
    assert from_yaml(tmp_path, f"shuffle: {word}").config.shuffle is value
    assert from_yaml(tmp_path, f"bf16: '{word}'").config.bf16 is value


def test_a_flag_alone_is_true_and_with_no_before_it_false() -> None:
    assert parse_arguments(Plain, ["--bf16", "--no_shuffle"]).config.bf16 is True
    assert parse_arguments(Plain, ["--bf16", "--no_shuffle"]).config.shuffle is False
    assert parse_arguments(Plain, ["--no-shuffle"]).config.shuffle is False


@pytest.mark.parametrize("word", ["maybe", "2", "", "ja"])
def test_what_is_neither_true_nor_false_is_refused(word: str) -> None:
    assert "is not true or false" in problems_of(parse_arguments, Plain, [f"--shuffle={word}"])[0]


def test_none_is_nothing_where_nothing_is_allowed(tmp_path: Path) -> None:
    for word in ("none", "None", "null"):
        config = parse_arguments(Plain, ["--name", word, "--bf16", word, "--train_file", word]).config
        assert (config.name, config.bf16, config.train_file) == (None, None, None)
    assert from_yaml(tmp_path, "name: null\nbf16: ~\ntrain_file:\n").config == Plain()
    assert "max_steps: None is empty" in problems_of(from_yaml, tmp_path, "max_steps:\n")[0]


def test_lists_are_words_on_the_command_line_and_numbers_may_be_joined_by_commas(tmp_path: Path) -> None:
    config = parse_arguments(Plain, ["--train_file", "a,b.txt", "c d.txt", "--sizes", "1,2", "--max_steps", "3"]).config
    assert (config.train_file, config.sizes, config.max_steps) == (["a,b.txt", "c d.txt"], [1, 2], 3)
    assert parse_arguments(Plain, ["--sizes", "1", "2"]).config.sizes == [1, 2]
    assert parse_arguments(Plain, ["--sizes="]).config.sizes == []
    assert from_yaml(tmp_path, "train_file: a.txt\nsizes: 3").config.train_file == ["a.txt"]


def test_a_list_that_stands_twice_on_the_command_line_is_refused_and_not_half_lost() -> None:
    assert problems_of(parse_arguments, Plain, ["--train_file", "a", "--train_file", "b"]) == [
        "--train_file stands twice; write all its values after one --train_file"
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["--overrides.a", "1", "--overrides.b.c", "x"],
        ["--overrides", "{a: 1, b: {c: x}}"],
        ["--overrides", '{"a": 1, "b": {"c": "x"}}'],
        ["--overrides", '{"b": {"c": "x"}}', "--overrides.a", "1"],
        ["--overrides.a=1", "--overrides", '{"b": {"c": "x"}}'],
        ["--overrides", "a=1", "--overrides.b.c=x"],
    ],
)
def test_a_mapping_may_be_given_in_parts_as_json_or_as_pairs(words: list[str]) -> None:
    assert parse_arguments(Plain, words).config.overrides == {"a": 1, "b": {"c": "x"}}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--overrides", '{"a": '], "is neither JSON nor YAML"),
        (["--overrides", "a"], "'a' is not key=value"),
        (["--overrides.a", "1", "2"], "--overrides.a takes one value, got 2: 1 2"),
        (["--overrides.a"], "--overrides.a needs a value"),
        (["--overrides.", "1"], "has no name before or after a dot"),
        (["--max_steps.a", "1"], "max_steps is int, and has no parts"),
        (["--max_steps", "1", "2"], "--max_steps takes one value, got 2: 1 2"),
        (["--max_steps"], "--max_steps needs a value"),
        (["stray"], "'stray' stands where a --key is expected"),
        (["--", "1"], "'--' stands where a --key is expected"),
        (["--kind", "bep"], "kind: 'bep' is not one of bpe, unigram"),
        (["--config"], "--config needs the path or name of a YAML file"),
        (["--config", "a.yaml", "--config=b.yaml"], "--config stands twice"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(words: list[str], problem: str) -> None:
    assert any(problem in item for item in problems_of(parse_arguments, Plain, words))


def test_keys_may_be_written_with_dashes() -> None:
    assert parse_arguments(Plain, ["--learning-rate=1", "--max-steps", "2"]).config == Plain(learning_rate=1.0, max_steps=2)


@pytest.mark.parametrize("text", ["010", "12:30", "2024-01-01", "2024-13-45", "0x1f", "1e", "--x", "yes sir", "C:\\x"])
def test_text_that_looks_like_something_else_stays_as_it_is_written(tmp_path: Path, text: str) -> None:
    assert from_yaml(tmp_path, f"name: {text}").config.name == text


@pytest.mark.parametrize("text", ["1.10", "1e5", "no", "true", "[a]", "{a: 1}"])
def test_a_value_whose_spelling_would_be_lost_as_text_is_refused(tmp_path: Path, text: str) -> None:
    """`name: 1.10` must not become 1.1."""
    assert "a.yaml:1: name: " in problems_of(from_yaml, tmp_path, f"name: {text}")[0]
    assert from_yaml(tmp_path, f"name: '{text}'").config.name == text
    assert parse_arguments(Plain, [f"--name={text}"]).config.name == text


def test_a_long_number_is_fine_as_text(tmp_path: Path) -> None:
    assert from_yaml(tmp_path, "name: 20220301").config.name == "20220301"


def test_a_word_has_the_value_it_has_in_yaml() -> None:
    words = ["64", "1e-3", "true", "text", "[1, 2]", "{{ x }}", "2024-13-45", "'", "null"]
    assert [yaml_scalar(word) for word in words] == [64, 1e-3, True, "text", [1, 2], "{{ x }}", "2024-13-45", "'", None]


def test_a_union_takes_the_first_type_that_fits() -> None:
    assert convert("7", int | str) == 7
    assert convert("seven", int | str) == "seven"
    assert convert("none", int | str | None) is None
    with pytest.raises(ValueError, match="is not a whole number and is not a number"):
        convert("seven", int | float)


# --------------------------------------------------------------------------------------------------------------------
# Problems


def test_every_problem_of_every_place_is_told_at_once_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("# a comment\nmax_step: 5\nshuffle: perhaps\n")
    (tmp_path / "a.yaml").write_text("extends: base.yaml\n\nlearning_rte: 2\nlr: 1\nkind: bep\n")
    words = ["--config", "a.yaml", "--learning_rat", "3", "--sizes", "1,x", "--zzzzzz", "1", "--max_steps"]
    found = problems_of(parse_arguments, Needs, words)
    assert sorted(found) == sorted(
        [
            "base.yaml:2: unknown key 'max_step'; did you mean 'max_steps'?",
            "base.yaml:3: shuffle: 'perhaps' is not true or false",
            "a.yaml:3: unknown key 'learning_rte'; did you mean 'learning_rate'?",
            "a.yaml:4: 'lr' is no setting: write `learning_rate`",
            "a.yaml:5: kind: 'bep' is not one of bpe, unigram",
            "command line: unknown key 'learning_rat'; did you mean 'learning_rate'?",
            "command line: sizes: '1,x' is not a whole number",
            "command line: unknown key 'zzzzzz'; --help lists the keys",
            "--max_steps needs a value",
            "--corpus is missing: Where the documents are.",
            "--tokenizer is missing: Where the tokenizer is.",
        ]
    )


def test_values_that_do_not_fit_are_all_told(tmp_path: Path) -> None:
    assert problems_of(parse_arguments, Plain, ["--max_steps", "0", "--learning_rate", "-1"]) == [
        "max_steps: is 0, must be at least 1",
        "learning_rate: is -1.0, must be above 0",
    ]


def test_a_file_that_cannot_be_read_does_not_hide_the_problems_of_the_command_line(tmp_path: Path) -> None:
    found = problems_of(parse_arguments, Plain, ["--config", "nowhere", "--lr", "1"])
    assert "'nowhere' is neither a file nor one of llmkit's recipes" in found[0]
    assert found[1] == "command line: 'lr' is no setting: write `learning_rate`"


@pytest.mark.parametrize("key", ["output_dir", "runs_dir", "force", "accelerate_config", "config"])
def test_an_option_of_the_command_in_a_settings_file_is_told_where_it_belongs(tmp_path: Path, key: str) -> None:
    assert problems_of(from_yaml, tmp_path, f"{key}: x") == [
        f"a.yaml:1: {key!r} is no setting; give it on the command line: --{key}"
    ]


def test_a_typo_in_an_option_of_the_command_is_answered_with_it() -> None:
    assert problems_of(parse_arguments, Plain, ["--output_dri", "x"]) == [
        "command line: unknown key 'output_dri'; did you mean 'output_dir'?"
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: [1\nc: 2\n", "a.yaml:3: not YAML"),
        ("a: 1\n- b\n", "a.yaml:2: not YAML"),
        ("a: 'x\n", "a.yaml:2: not YAML"),
        ("a: 1\n\tb: 2\n", "a.yaml:2: not YAML"),
        ("max_steps: 1\nname: x\nmax_steps: 2\n", "a.yaml:3: 'max_steps' stands twice"),
        ("overrides:\n  a: 1\n  b: [{c: 1, c: 2}]\n", "a.yaml:3: 'c' stands twice"),
        ("- a\n- b\n", "a.yaml: holds no `key: value` lines"),
        ("just text\n", "a.yaml: holds no `key: value` lines"),
        ("learning_rate: {{ lr }}\n", "a.yaml:1: a key is a list or a mapping; put braces"),
        ("? [a]\n: 1\n", "a.yaml:1: a key is a list or a mapping"),
        ("name: !python/object x\n", "a.yaml:1: not YAML: could not determine a constructor"),
        ("name: !!python/object/apply:os.system [ls]\n", "a.yaml:1: not YAML: could not determine a constructor"),
        ("name: *nothing\n", "a.yaml:1: not YAML: found undefined alias"),
        ("1: x\n", "a.yaml:1: unknown key '1'"),
        ("on: x\n", "a.yaml:1: unknown key 'on'"),
        ("a: 1\n---\nb: 2\n", "a.yaml:2: not YAML"),
        ("name: \x00\n", "a.yaml: not YAML"),
    ],
)
def test_a_mistake_in_yaml_is_named_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    found = problems_of(from_yaml, tmp_path, text)
    assert any(item.replace(f"{tmp_path}/", "").startswith(problem) for item in found), found


def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("name: é".encode("latin-1"))
    assert "a.yaml cannot be read" in problems_of(read_settings_file, tmp_path / "a.yaml")[0]


def test_an_empty_file_holds_no_settings(tmp_path: Path) -> None:
    assert from_yaml(tmp_path, "# nothing\n").config == Plain()


def test_lines_of_nested_keys_are_known(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a:\n  b: 1\n  c: {d: 2}\ne: 3\n")
    assert read_yaml(tmp_path / "a.yaml") == (
        {"a": {"b": 1, "c": {"d": 2}}, "e": 3},
        {"a": 1, "a.b": 2, "a.c": 3, "a.c.d": 3, "e": 4},
    )


def test_merge_keys_of_yaml_work(tmp_path: Path) -> None:
    text = "overrides: &base {a: 1}\nname: x\n"
    assert from_yaml(tmp_path, text).config.overrides == {"a": 1}
    (tmp_path / "b.yaml").write_text("one: &base {name: x, max_steps: 3}\n<<: *base\n")
    values, lines = read_yaml(tmp_path / "b.yaml")
    assert values["name"] == "x"
    assert lines["name"] == 1


# --------------------------------------------------------------------------------------------------------------------
# Training arguments


@pytest.fixture(scope="module")
def installed_fields() -> set[str]:
    """The fields of transformers.TrainingArguments as the installed class has them."""
    program = (
        "import dataclasses, transformers;"
        "print(*(field.name for field in dataclasses.fields(transformers.TrainingArguments) if field.init))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_fields_read_from_the_source_are_those_of_the_class(installed_fields: set[str]) -> None:
    assert set(transformers_fields()) == installed_fields - set(arguments._OURS)


def test_every_renamed_key_is_really_gone(installed_fields: set[str]) -> None:
    assert set(RENAMED) & installed_fields == set()
    for stage in STAGES.values():
        assert set(stage.config_class.renamed) & set(accepted(stage.config_class)) == set()


def test_every_replacement_that_a_renamed_key_names_is_there() -> None:
    import re

    for stage in STAGES.values():
        own = set(accepted(stage.config_class))
        for key, advice in stage.config_class.renamed.items():
            for name in re.findall(r"write `(\w+)", advice):
                assert name in own or key == "tokenizer_name", f"{stage.name}: {key}: {advice}"


@pytest.mark.parametrize("key", ["warmup_ratio", "evaluation_strategy", "no_cuda", "overwrite_output_dir", "adafactor"])
def test_a_key_that_transformers_renamed_is_refused_with_its_new_name(tmp_path: Path, key: str) -> None:
    assert problems_of(parse_arguments, PretrainConfig, [f"--{key}", "1"]) == [
        f"command line: {key!r} is no setting: {PretrainConfig.renamed[key]}"
    ]
    assert problems_of(from_yaml, tmp_path, f"{key}: 1", PretrainConfig) == [
        f"a.yaml:1: {key!r} is no setting: {PretrainConfig.renamed[key]}"
    ]


def test_further_training_arguments_are_taken_with_their_types(tmp_path: Path) -> None:
    words = "--adam_epsilon 1e-7 --optim_args eps=1 --dataloader_num_workers 2 --torch_compile --label_smoothing_factor .1"
    resolved = parse_arguments(PretrainConfig, words.split())
    assert resolved.config.training_arguments == {
        "adam_epsilon": 1e-7,
        "optim_args": "eps=1",
        "dataloader_num_workers": 2,
        "torch_compile": True,
        "label_smoothing_factor": 0.1,
    }
    assert resolved.origins["adam_epsilon"] == "command line"
    again = from_yaml(tmp_path, resolved.to_yaml("x"), PretrainConfig)
    assert (again.config, again.origins) == (resolved.config, resolved.origins)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--adam_epsilon", "tiny"], "adam_epsilon: 'tiny' is not a number"),
        (["--dataloader_num_workers", "1.5"], "dataloader_num_workers: '1.5' is not a whole number"),
        (["--adam_epsilonn", "1"], "unknown key 'adam_epsilonn'; did you mean 'adam_epsilon'?"),
        (["--training_arguments", "a=1"], "unknown key 'training_arguments'"),
    ],
)
def test_a_wrong_further_training_argument_is_refused(words: list[str], problem: str) -> None:
    assert problem in problems_of(parse_arguments, PretrainConfig, words)[0]


# --------------------------------------------------------------------------------------------------------------------
# Help


@pytest.mark.parametrize("name", STAGES)
def test_every_setting_of_every_stage_says_what_it_means(name: str) -> None:
    for spec in fields_of(STAGES[name].config_class).values():
        assert spec.doc.endswith((".", "`)", ":")) or len(spec.doc) > 10, f"{name}.{spec.name} has no docstring: {spec.doc!r}"
        assert spec.doc.strip()


@pytest.mark.parametrize("name", STAGES)
def test_help_shows_every_setting_with_type_default_and_meaning(name: str) -> None:
    cls = STAGES[name].config_class
    text = help_text(cls)
    squeezed = " ".join(text.split())
    for spec in fields_of(cls).values():
        if spec.name == cls.passed_on:
            assert f"--{spec.name} " not in text
            continue
        line = next(line for line in text.splitlines() if line.startswith(f"  --{spec.name}  ("))
        assert "required" in line if spec.required else "default " in line
        if isinstance(spec.default, (int, float)) and not isinstance(spec.default, bool):
            assert f"default {spec.default}" in line
        assert " ".join(spec.doc.split()) in squeezed
    for further in cls.further_settings():
        assert further in text
    assert text in stage_help(STAGES[name])
    for option_ in ("--config FILE", "--output_dir", "--runs_dir", "--force"):
        assert option_ in stage_help(STAGES[name])


def test_help_names_types_as_people_do() -> None:
    text = help_text(Needs)
    for line in (
        "--learning_rate  (float; default 0.001)",
        "--bf16  (bool or none; default none)",
        "--shuffle  (bool; default true)",
        "--kind  (bpe | unigram; default bpe)",
        "--train_file  (list of str or none; default none)",
        "--overrides  (mapping; default {})",
        "--corpus  (str; required)",
    ):
        assert line in text
    assert text.index("--corpus") < text.index("--learning_rate"), "what is the stage's own comes first"


def test_a_subclass_may_give_a_setting_another_default_and_meaning() -> None:
    @dataclass(kw_only=True)
    class Sub(Plain):
        max_steps: int = option(99)
        """Other steps."""

    spec = fields_of(Sub)["max_steps"]
    assert (spec.default, spec.doc) == (99, "Other steps.")
    assert fields_of(Sub)["name"].doc == "A name."


# --------------------------------------------------------------------------------------------------------------------
# The resolved settings read back

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
SPECIAL = st.sampled_from(
    [
        *["2e-5", "1e5", "1_000", "010", "0x1f", "12:30", "2024-01-01", ".inf", ".5", "1.", "-", "---", "..."],
        *["true", "no", "null", "~", "none", "None", "=", "<<", "{", "[", "*a", "&a", "!a", "%", "@", "`", "a: b", "- a"],
        *["中文“引号”", "😀", "'", '"', "'x'", "\"'\n", "\\n", "", " ", "x  # from y", "# from "],
        *["a\nb", "a\r\nb", "a\x85b\n", "\u2028", "\u2029", "\ufeff", "\t", "\x00", "\x7f", "\r", " a\n b \n\n"],
    ]
)
WORDS = TEXT | SPECIAL
NUMBERS = st.integers() | st.floats(allow_nan=False)
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
ORIGIN = st.sampled_from(["default", "command line", "a.yaml:3", "recipes/pretrain/quickstart.yaml:12", "stage tokenize"])


def _not_none_word(text: str) -> bool:
    return text.lower() not in ("none", "null")  # for a setting that may be empty, these words mean that it is


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.none() | WORDS.filter(_not_none_word),
    train_file=st.none() | st.lists(WORDS, max_size=3),
    sizes=st.lists(st.integers(), max_size=3),
    overrides=st.dictionaries(WORDS, ANYTHING, max_size=3),
    rate=st.floats(min_value=1e-300, allow_nan=False),
    further=st.fixed_dictionaries({}, optional={"epsilon": st.floats(allow_nan=False), "anything": ANYTHING}),
    bf16=st.none() | st.booleans(),
    origins=st.lists(ORIGIN, min_size=11, max_size=11),
)
def test_the_resolved_yaml_gives_the_same_settings_and_origins(
    tmp_path_factory: pytest.TempPathFactory,
    name: str | None,
    train_file: list[str] | None,
    sizes: list[int],
    overrides: dict[str, Any],
    rate: float,
    further: dict[str, Any],
    bf16: bool | None,
    origins: list[str],
) -> None:
    config = PassesOn(
        name=name, train_file=train_file, sizes=sizes, overrides=overrides, learning_rate=rate, bf16=bf16, further=further
    )
    resolved = Resolved(config, dict(zip(flat(config), origins, strict=False)))
    path = tmp_path_factory.getbasetemp() / "resolved.yaml"
    path.write_text(resolved.to_yaml("header"), encoding="utf-8")
    again = resolve(PassesOn, read_settings_file(path))
    assert again.config == config
    assert again.origins == resolved.origins


def test_the_resolved_yaml_can_be_read_by_people(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: 中文\noverrides: {b: 2, a: [1, 2]}\n")
    lines = parse_arguments(Plain, ["--config", "a.yaml", "--max_steps", "3"]).to_yaml("Settings").splitlines()
    assert lines[0] == "# Settings"
    assert "name: 中文  # from a.yaml:1" in lines
    assert "overrides: {a: [1, 2], b: 2}  # from a.yaml:2" in lines
    assert "max_steps: 3  # from command line" in lines
    assert "learning_rate: 0.001  # from default" in lines


def test_a_comment_that_a_person_writes_is_no_origin(tmp_path: Path) -> None:
    resolved = from_yaml(tmp_path, "max_steps: 5  # from the paper\nname: 'x  # from y'\n")
    assert resolved.origins["max_steps"] == "a.yaml:1"
    assert resolved.origins["name"] == "a.yaml:2"
    assert problems_of(from_yaml, tmp_path, "max_steps: five  # from the paper\n")[0].startswith("a.yaml:1: max_steps: ")


def test_settings_need_no_third_library_to_be_declared() -> None:
    assert {field.name for field in dataclasses.fields(Plain)} == set(fields_of(Plain))
    assert config_module.fields_of(Plain) is config_module.fields_of(Plain)
