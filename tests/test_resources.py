"""What ships with llmkit is found by name or by path, and every shipped file is right."""

from __future__ import annotations

import difflib
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmkit import resources
from llmkit.config import Resolved, parse_arguments, read_settings_file, read_yaml, resolve
from llmkit.errors import ConfigError
from llmkit.parallel.launch import launch_words
from llmkit.pipeline.runner import load
from llmkit.stages import STAGES

RECIPES = resources.names("recipes")
PIPELINES = resources.names("pipelines")
LAYOUTS = resources.names("accelerate_configs")


def test_something_of_each_kind_is_shipped() -> None:
    assert {"pretrain/quickstart", "finetune/reviews", "evaluate/reviews"} <= set(RECIPES)
    assert {"sentiment", "base-model", "generation"} <= set(PIPELINES)
    assert {"single", "ddp", "cpu"} <= set(LAYOUTS)


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_holds_settings_of_its_stage_and_nothing_else(name: str) -> None:
    stage = STAGES[name.partition("/")[0]]
    sources = read_settings_file(resources.find("recipes", name))
    try:
        resolve(stage.config_class, sources)
    except ConfigError as failure:  # what the user or the pipeline has to give is all that may be missing
        ports = (*(f"--{port} is missing" for port in stage.ports()), "train_file, dataset_name: give one of them")
        assert all(problem.startswith(ports) for problem in failure.problems), failure


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_says_in_its_first_line_what_it_is(name: str) -> None:
    assert resources.find("recipes", name).read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("name", PIPELINES)
def test_a_shipped_pipeline_loads_with_all_its_settings(name: str) -> None:
    pipeline = load(name, STAGES)
    assert pipeline.name == name
    assert pipeline.description
    for step in pipeline.steps:
        needed = {port for port, spec in step.stage.ports().items() if spec.required}
        assert needed <= set(step.inputs), f"{step.name} lacks {needed - set(step.inputs)}"
        if step.stage.launched:
            assert launch_words(step.layout)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_shipped_layout_is_found_and_says_what_it_costs(name: str) -> None:
    path = resources.find("accelerate_configs", name)
    settings, _ = read_yaml(path)
    assert settings["compute_environment"] == "LOCAL_MACHINE"
    assert isinstance(settings["distributed_type"], str), "a bare NO is a boolean in YAML"
    assert path.read_text(encoding="utf-8").startswith("# ")
    if settings["distributed_type"] == "DEEPSPEED" and find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    words = launch_words(name)
    assert words[words.index("--config_file") + 1] == str(path)


def test_default_recipes_are_shipped() -> None:
    for stage in STAGES.values():
        if stage.default_recipe:
            assert stage.default_recipe in RECIPES
            resolved: Resolved = parse_arguments(stage.config_class, [], stage.default_recipe)
            assert set(resolved.origins.values()) != {"default"}


@pytest.mark.parametrize("written", ["pretrain/quickstart", "pretrain/quickstart.yaml", "recipes/pretrain/quickstart.yaml"])
def test_a_shipped_file_is_found_by_name_from_anywhere(written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resources.find("recipes", written).samefile(resources.shipped("recipes") / "pretrain/quickstart.yaml")


def test_a_path_wins_over_a_name_and_one_beside_the_file_over_one_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for directory in (tmp_path, tmp_path / "sub"):
        (directory / "sentiment.yaml").write_text("{}")
    assert resources.find("pipelines", "sentiment.yaml") == Path("sentiment.yaml")
    assert resources.find("pipelines", "sentiment.yaml", relative_to=tmp_path / "sub") == tmp_path / "sub/sentiment.yaml"
    assert resources.find("pipelines", "sentiment").is_relative_to(resources.shipped("pipelines"))
    assert resources.find("pipelines", str(tmp_path / "sentiment.yaml")) == tmp_path / "sentiment.yaml"


@pytest.mark.parametrize(("written", "near"), [("sentimnt", "sentiment"), ("base_model.yaml", "base-model")])
def test_a_name_that_is_not_there_is_answered_with_the_nearest(written: str, near: str) -> None:
    assert difflib.get_close_matches(near, PIPELINES, n=1) == [near]
    with pytest.raises(
        ConfigError, match=f"'{written}' is neither a file nor one of llmkit's pipelines; did you mean '{near}'"
    ):
        resources.find("pipelines", written)


@pytest.mark.parametrize("written", ["", ".", "/", "qqqqqq"])
def test_a_name_near_to_none_is_answered_with_all(written: str) -> None:
    with pytest.raises(ConfigError, match=r"shipped are: .*cpu, .*single"):
        resources.find("accelerate_configs", written)


def test_an_installed_wheel_finds_its_files_below_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "PACKAGE", tmp_path / "llmkit")
    assert resources.shipped("pipelines") == tmp_path / "pipelines", "a checkout"
    (tmp_path / "llmkit/share/pipelines").mkdir(parents=True)
    (tmp_path / "llmkit/share/pipelines/mine.yaml").write_text("{}")
    assert resources.names("pipelines") == ["mine"]
    assert resources.find("pipelines", "mine") == tmp_path / "llmkit/share/pipelines/mine.yaml"


def test_a_path_is_shown_relative_to_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    assert resources.display(tmp_path / "sub/x.yaml") == "sub/x.yaml"
    assert resources.display(Path("sub/../x.yaml")) == "x.yaml"
    assert resources.display(Path("/elsewhere/x.yaml")) == "/elsewhere/x.yaml"
