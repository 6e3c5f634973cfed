"""Pipelines: every stage once, only what something changed for, and every mistake in the file told at once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import toy_stages
from toy_stages import assert_all_that_claims_to_be_complete_is, contents, until

from llmkit.errors import ConfigError, DataError, LockedError, PipelineError, StageStopped
from llmkit.pipeline import lock
from llmkit.pipeline.artefact import Artefact
from llmkit.pipeline.runner import load

ALL = ["gather", "measure", "learn", "combine"]


def test_a_first_run_makes_everything_and_links_each_result(go, tmp_path: Path) -> None:
    assert go() == ALL
    for name in ALL:
        artefact = Artefact.open(tmp_path / "runs/toy" / name, name)
        assert artefact.damaged(hashes=True) == []
    combined = Artefact.open(tmp_path / "runs/toy/combine", "combine")
    assert (combined.directory / "report.html").read_text() == "<h1>combined</h1>120 0.16666666666666666"
    assert {port: record.stage for port, record in combined.manifest.inputs.items()} == {"left": "measure", "right": "learn"}


def test_a_second_run_does_nothing_and_says_so(command, pipeline: Path, tmp_path: Path) -> None:
    assert command("run", pipeline).code == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs/toy/artefacts").rglob("*")}
    said = command("run", pipeline)
    assert said.code == 0
    assert said.out.splitlines() == [
        "[1/4] gather: fresh, skipped",
        "[2/4] measure: fresh, skipped",
        "[3/4] learn: fresh, skipped",
        "[4/4] combine: fresh, skipped",
        "nothing to do: all 4 stages are fresh",
        "result: runs/toy/combine/report.html",
    ]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs/toy/artefacts").rglob("*")} == before


@pytest.mark.parametrize(
    ("setting", "runs"),
    [
        ("gather.copies=2", ALL),
        ("measure.unit=characters", ["measure", "combine"]),
        ("learn.learning_rate=1e-4", ["learn", "combine"]),
        ("combine.title=new", ["combine"]),
        ("learn.pause=0.0001", []),
        ("learn.accelerate_config=ddp", []),
        ("learn.learning_rate=0.5", []),
    ],
)
def test_a_setting_re_runs_only_what_depends_on_it_and_going_back_costs_nothing(go, setting: str, runs: list[str]) -> None:
    go()
    assert go([setting]) == runs
    assert go([setting]) == []
    assert go() == []


def test_going_back_points_the_links_back(go, tmp_path: Path) -> None:
    go()
    first = (tmp_path / "runs/toy/learn").resolve()
    go(["learn.learning_rate=0.1"])
    assert (tmp_path / "runs/toy/learn").resolve() != first
    go()
    assert (tmp_path / "runs/toy/learn").resolve() == first


def test_a_link_is_set_though_a_kill_left_a_half_made_one(go, tmp_path: Path) -> None:
    (tmp_path / "runs/toy").mkdir(parents=True)
    (tmp_path / f"runs/toy/.gather.{os.getpid()}").symlink_to("nowhere")  # in a container every run has the same number
    go()
    assert Artefact.open(tmp_path / "runs/toy/gather", "gather")


def test_a_changed_input_file_re_runs_what_is_made_from_it(go, tmp_path: Path) -> None:
    go()
    (tmp_path / "data/a.txt").write_text("four five six\n" * 20, encoding="utf-8")
    assert go() == ALL
    (tmp_path / "data/a.txt").write_text("one two three\n" * 20, encoding="utf-8")
    assert go() == []


def test_a_damaged_result_is_made_again_and_nothing_else(go, tmp_path: Path) -> None:
    go()
    (tmp_path / "runs/toy/learn/model.txt").unlink()
    assert go() == ["learn"]
    assert_all_that_claims_to_be_complete_is(tmp_path / "runs")
    assert go() == []


def test_a_result_that_comes_out_the_same_when_made_again_leaves_what_follows_fresh(go) -> None:
    go()
    assert go(force=("gather",)) == ["gather"]
    assert go(force=("gather", "learn")) == ["gather", "learn"]


def test_a_result_that_comes_out_different_when_made_again_re_runs_what_follows(
    go, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    go()
    original = toy_stages.measure

    def unsteady(config: Any, workspace: Any) -> dict[str, Any]:
        (workspace.directory / "luck").write_text("7")
        return original(config, workspace)

    monkeypatch.setattr(toy_stages, "measure", unsteady)
    assert go(force=("measure",)) == ["measure", "combine"]
    assert go() == []


def test_from_re_runs_a_stage_and_all_that_is_made_from_it(go) -> None:
    go()
    assert go(first="learn") == ["learn", "combine"]
    assert go(first="gather") == ALL


def test_until_runs_a_stage_and_only_what_it_needs(go) -> None:
    assert go(last="learn") == ["gather", "learn"]
    assert go() == ["measure", "combine"]


def test_from_and_until_together(go) -> None:
    go()
    assert go(first="gather", last="measure") == ["gather", "measure"]


@pytest.mark.parametrize("options", [{"first": "lern"}, {"last": "lern"}, {"force": ("lern",)}])
@pytest.mark.parametrize("dry_run", [False, True])
def test_an_unknown_stage_in_an_option_is_refused_with_the_nearest(go, options: Any, dry_run: bool, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no stage 'lern'; did you mean 'learn'"):
        go(**options, dry_run=dry_run)
    assert not (tmp_path / "runs/toy/artefacts").exists()


def test_a_dry_run_tells_what_would_run_and_why_and_runs_nothing(command, pipeline: Path, tmp_path: Path) -> None:
    said = command("run", pipeline, "--dry_run")
    assert said.code == 0
    assert [line.split()[:3] for line in said.out.splitlines()] == [[name, "would", "run"] for name in ALL]
    assert not list((tmp_path / "runs").rglob("manifest.json"))
    assert not (tmp_path / "runs/toy/last-run.json").exists()
    command("run", pipeline)
    said = command("run", pipeline, "--dry-run", "--set", "learn.learning_rate=0.1", "--force", "gather")
    assert [line.split(maxsplit=1) for line in said.out.splitlines()] == [
        ["gather", "would run (forced)"],
        ["measure", "fresh"],
        ["learn", "would run (changed: learning_rate)"],
        ["combine", "would run (after learn)"],
    ]


def test_the_reason_of_a_run_names_what_changed_and_not_what_does_not_matter(command, pipeline: Path) -> None:
    command("run", pipeline)
    said = command("run", pipeline, "--set", "learn.learning_rate=0.1", "--set", "learn.pause=0.0001")
    assert "learn: running (changed: learning_rate; " in said.out


def test_stages_need_no_order_in_the_file(go, tmp_path: Path) -> None:
    head, *rest = re.split(r"(?m)^(?=  \w+:$)", toy_stages.PIPELINE)
    backwards = toy_stages.write_pipeline(tmp_path / "other", pipeline=head + "".join(reversed(rest)))
    assert [step.name for step in load(str(backwards), toy_stages.STAGES).steps] == ["gather", "learn", "measure", "combine"]
    assert sorted(go(path=backwards)) == sorted(ALL)


def test_one_stage_can_stand_in_a_pipeline_under_several_names(go, tmp_path: Path) -> None:
    path = toy_stages.write_pipeline(
        tmp_path,
        pipeline=toy_stages.PIPELINE
        + """\
  characters:
    stage: measure
    inputs: {{corpus: gather}}
    config: {{unit: characters}}
""",
    )
    assert go(path=path) == [*ALL, "characters"]
    assert Artefact.open(tmp_path / "runs/toy/characters", "measure").manifest.config["unit"] == "characters"


# --------------------------------------------------------------------------------------------------------------------
# Mistakes in the file and on the command line


def problems_of(tmp_path: Path, text: str, settings: list[str] | None = None) -> list[str]:
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data/a.txt").write_text("one")
    with pytest.raises(ConfigError) as caught:
        load(str(path), toy_stages.STAGES, settings)
    return caught.value.problems


@pytest.mark.parametrize("name", ["../gather", "a/b", "..", ".hidden", "a.b", "", "artefacts", "a b"])
def test_a_name_that_would_lead_out_of_the_directory_of_a_pipeline_is_refused(tmp_path: Path, name: str) -> None:
    text = f"stages:\n  {name!r}:\n    stage: gather\n    config: {{train_file: [data]}}\n"
    assert f"{name}: a stage cannot be called that; letters, digits, - and _ make a name" in problems_of(tmp_path, text)


GATHER = "  gather:\n    config: {train_file: [data]}\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("stages:\n  gahter: {}\n", "gahter: there is no stage 'gahter'; did you mean 'gather'?"),
        ("stages:\n  x:\n    stage: lern\n", "x: there is no stage 'lern'; did you mean 'learn'?"),
        ("stages:\n  gather:\n    confg: {}\n", "wrong.yaml:3: gather: unknown key 'confg'; did you mean 'config'?"),
        ("stages:\n  gather: 3\n", "gather: holds no `key: value` lines"),
        ("stages:\n  gather: []\n", "gather: holds no `key: value` lines"),
        ("stages:\n  gather:\n    config: [a]\n", "gather: wrong.yaml:3: config is neither settings nor the name of a"),
        ("stages:\n  gather:\n    config: 3\n", "gather: wrong.yaml:3: config is neither settings nor the name of a"),
        ("stages:\n  measure:\n    inputs: [gather]\n", "wrong.yaml:3: measure: write `inputs: {setting: stage}`"),
        ("stages:\n  measure:\n    inputs: gather\n", "wrong.yaml:3: measure: write `inputs: {setting: stage}`"),
        ("stages:\n  gather:\n    config: nowhere\n", "gather: wrong.yaml:3: 'nowhere' is neither a file nor one of"),
        ("stages:\n  gather:\n    config:\n      extends: nowhere\n", "gather: wrong.yaml:3: 'nowhere' is neither a file"),
        (f"stages:\n{GATHER}  measure:\n    inputs: {{corpsu: gather}}\n", "no input 'corpsu'; did you mean 'corpus'?"),
        ("stages:\n  measure:\n    inputs: {corpus: gather}\n", "'corpus' comes from 'gather', which is not a stage of"),
        ("stages:\n  measure: {}\n", "measure: --corpus is missing: A result of `gather`."),
        ("stages:\n", "holds no `stages:`"),
        ("stages: [gather]\n", "holds no `stages:`"),
        ("{}", "holds no `stages:`"),
        (f"stagse: 1\nstages:\n{GATHER}", "unknown key 'stagse'"),
        (f"stages:\n{GATHER}  gather: {{}}\n", "wrong.yaml:4: 'gather' stands twice"),
        ("stages:\n  gather:\n    config: {copies: 2, copies: 3}\n", "wrong.yaml:3: 'copies' stands twice"),
        ("stages: {gather: {config: {copies: two}}}", "gather: wrong.yaml:1: copies: 'two' is not a whole number"),
        (
            f"stages:\n{GATHER}  measure:\n    inputs: {{corpus: gather}}\n"
            "  combine:\n    inputs: {left: measure, right: measure}\n",
            "combine: its input 'right' is a result of learn, 'measure' is measure",
        ),
    ],
)  # fmt: skip
def test_a_mistake_in_a_pipeline_is_named(tmp_path: Path, text: str, problem: str) -> None:
    found = problems_of(tmp_path, text)
    assert any(problem in item.replace(f"{tmp_path}/", "") for item in found), found


def test_all_mistakes_of_all_stages_are_told_at_once(tmp_path: Path) -> None:
    text = """\
stages:
  gather:
    config:
      train_file: [data]
      copeis: 2
      upper: perhaps
  measure:
    inputs: {corpus: gather}
    config:
      units: words
  learn:
    inputs: {corpus: gahter}
    config:
      steps: 1.5
  combine:
    inputs: {left: measure, right: learn}
    config:
      title: ''
"""
    found = problems_of(tmp_path, text, ["learn.learning_rate=fast", "lern.steps=2", "gather", "combine.titel=x"])
    expected = [
        "gather: wrong.yaml:5: unknown key 'copeis'; did you mean 'copies'?",
        "gather: wrong.yaml:6: upper: 'perhaps' is not true or false",
        "measure: wrong.yaml:10: unknown key 'units'; did you mean 'unit'?",
        "learn: its input 'corpus' comes from 'gahter', which is not a stage of this pipeline",
        "learn: wrong.yaml:14: steps: 1.5 is not a whole number",
        "learn: --set learn.learning_rate: learning_rate: 'fast' is not a number",
        "--set lern.steps=2: there is no stage 'lern'; did you mean 'learn'?",
        "--set gather: write it as stage.key=value",
        "combine: --set combine.titel: unknown key 'titel'; did you mean 'title'?",
    ]
    assert sorted(found) == sorted(expected)


def test_stages_that_need_each_other_are_named_as_a_circle_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "circle.yaml"
    path.write_text(
        "stages:\n"
        "  after: {stage: loop, inputs: {corpus: one}}\n"
        "  one: {stage: loop, inputs: {corpus: two}}\n"
        "  two: {stage: loop, inputs: {corpus: one}}\n"
    )
    loop = toy_stages.Stage("loop", "", "toy_stages:LoopConfig", "toy_stages:measure", "")
    with pytest.raises(PipelineError) as caught:
        load(str(path), {"loop": loop})
    assert str(caught.value).endswith((": one -> two -> one", ": two -> one -> two"))


def test_a_stage_that_needs_itself_is_a_circle(tmp_path: Path) -> None:
    path = tmp_path / "self.yaml"
    path.write_text("stages:\n  loop: {inputs: {corpus: loop}}\n")
    loop = toy_stages.Stage("loop", "", "toy_stages:LoopConfig", "toy_stages:measure", "")
    with pytest.raises(PipelineError, match=r"circle.*: loop -> loop"):
        load(str(path), {"loop": loop})


def test_a_setting_of_what_another_stage_makes_is_refused_and_not_lost(pipeline: Path) -> None:
    with pytest.raises(ConfigError, match=r"--set measure.corpus=elsewhere: corpus is what stage 'gather' makes"):
        load(str(pipeline), toy_stages.STAGES, ["measure.corpus=elsewhere"])


def test_a_pipeline_that_is_not_there_is_named_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"'sentimnt' is neither a file nor one of llmkit's pipelines; did you mean 'sentiment'"
    ):
        load("sentimnt", toy_stages.STAGES)


def test_settings_of_a_pipeline_come_from_a_file_and_what_stands_beside_it_wins(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/base.yaml").write_text("copies: 5\nupper: true\n")
    path = toy_stages.write_pipeline(
        tmp_path / "sub",
        pipeline="stages:\n  gather:\n    config:\n      extends: base.yaml\n      copies: 7\n      train_file: [{data}]\n",
    )
    step = load(str(path), toy_stages.STAGES, ["gather.extra.a.b=1e-3"]).steps[0]
    from llmkit.config import resolve

    resolved = resolve(toy_stages.GatherConfig, step.sources)
    assert (resolved.config.copies, resolved.config.upper, resolved.config.extra) == (7, True, {"a": {"b": 1e-3}})
    assert resolved.origins["copies"] == "sub/toy.yaml:5"
    assert resolved.origins["upper"] == "sub/base.yaml:2"
    assert resolved.origins["extra"] == "--set gather.extra.a.b"


def test_a_missing_raw_input_is_an_error_with_no_traceback_and_nothing_is_lost(
    command, pipeline: Path, tmp_path: Path
) -> None:
    command("run", pipeline)
    for path in (tmp_path / "data").iterdir():
        path.rename(tmp_path / path.name)
    said = command("run", pipeline)
    assert said.code == 2
    assert "llmkit: train_file: " in said.err
    assert "is an empty directory" in said.err
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).rename(tmp_path / "data" / name)
    assert command("run", pipeline).out.count("fresh, skipped") == 4


def test_an_error_of_a_stage_keeps_what_was_finished_before_it(go, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any) -> None:
        raise DataError("no such unit")

    with monkeypatch.context() as patch, pytest.raises(DataError, match="no such unit"):
        patch.setattr(toy_stages, "combine", refuse)
        go()
    assert_all_that_claims_to_be_complete_is(tmp_path / "runs")
    assert not lock.is_held(tmp_path / "runs/toy")
    assert go() == ["combine"]


# --------------------------------------------------------------------------------------------------------------------
# Two runs at once, and what `status` says


@pytest.fixture
def busy(start, pipeline: Path, tmp_path: Path) -> subprocess.Popen[str]:
    """A run that is in its third stage and will be for a minute."""
    process = start("run", pipeline, "--set", "learn.pause=60")
    until(lambda: list((tmp_path / "runs/toy/artefacts").glob("learn-*.partial/writing")))
    return process


def test_a_second_run_at_the_same_time_is_refused_with_the_holder_named(busy, command, pipeline: Path) -> None:
    said = command("run", pipeline)
    assert said.code == 2
    assert said.err.startswith(f"llmkit: runs/toy is in use by process {busy.pid} on ")
    assert "toy_stages.py run" in said.err, "the holder's command"
    assert busy.poll() is None


def test_a_run_that_waits_goes_on_when_the_first_one_ends(start, go, pipeline: Path, tmp_path: Path) -> None:
    start("run", pipeline, "--set", "learn.pause=0.01")
    until(lambda: lock.is_held(tmp_path / "runs/toy"))
    assert go(wait=True) == []


def test_a_run_after_a_killed_one_goes_on_with_it(busy, go, tmp_path: Path) -> None:
    with pytest.raises(LockedError):
        go()
    busy.send_signal(signal.SIGKILL)
    busy.wait()
    assert go() == ["learn", "combine"]


def test_an_interrupt_ends_with_130_and_the_next_run_goes_on(busy, go) -> None:
    busy.send_signal(signal.SIGINT)
    _, err = busy.communicate(timeout=30)
    assert busy.returncode == 130
    assert err == "llmkit: interrupted; the same command goes on where this one stopped\n"
    assert go() == ["learn", "combine"]


def states(said: Any) -> dict[str, str]:
    lines = [line.split() for line in said.out.splitlines() if line.startswith("  ")]
    return {words[0]: words[1] for words in lines}


def test_status_where_nothing_has_run_says_what_to_do(command, tmp_path: Path) -> None:
    said = command("status")
    assert said.code == 0
    assert said.out == "no pipeline has run below runs; try `llmkit run sentiment`\n"
    assert not (tmp_path / "runs").exists()


def test_status_names_what_is_fresh_and_what_is_stale(command, pipeline: Path, tmp_path: Path) -> None:
    command("run", pipeline, "--until", "measure")
    assert states(command("status")) == {"gather": "fresh", "measure": "fresh", "learn": "stale", "combine": "stale"}
    command("run", pipeline)
    said = command("status")
    assert set(states(said).values()) == {"fresh"}
    assert "runs/toy/artefacts/combine-" in said.out
    (tmp_path / "data/a.txt").write_text("new")
    said = command("status")
    assert set(states(said).values()) == {"stale"}
    assert "changed: its input files or the code" in said.out
    assert "measure      stale    after gather" in said.out


def test_status_remembers_the_settings_of_the_last_run(command, pipeline: Path) -> None:
    command("run", pipeline, "--set", "learn.learning_rate=0.1")
    assert set(states(command("status")).values()) == {"fresh"}


def test_status_of_a_run_at_work_names_its_process(busy, command) -> None:
    said = command("status")
    assert states(said) == {"gather": "fresh", "measure": "fresh", "learn": "running", "combine": "stale"}
    assert said.out.splitlines()[0].startswith(f"runs/toy; running: process {busy.pid} on ")
    assert busy.poll() is None


def test_status_after_a_kill_says_what_was_begun(busy, command) -> None:
    busy.send_signal(signal.SIGKILL)
    busy.wait()
    said = command("status")
    assert states(said)["learn"] == "begun"
    assert "the next run goes on with it" in said.out
    assert "running" not in said.out


def test_status_of_a_stage_that_was_stopped_says_whether_it_goes_on(
    command, pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for resumes, how in ((False, "makes it anew"), (True, "goes on with it")):
        with monkeypatch.context() as patch:
            patch.setitem(toy_stages.STAGES, "measure", toy_stages.toy("measure", resumes=resumes))
            patch.setattr(toy_stages, "measure", interrupted)
            command("run", pipeline)
            assert f"the next run {how}" in command("status").out


def test_status_after_a_kill_names_what_is_no_part_of_a_pipeline_too(
    command, make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("one")
    make("gather", "corpus", train_file=["a.txt"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(toy_stages, "learn", interrupted)
        make("learn", "runs/mine", corpus="corpus", steps=3)
    said = command("status")
    start = "runs/mine.partial: unfinished; go on with: llmkit "
    assert said.out.startswith(start)
    assert command(*said.out.removeprefix(start).split()).code == 0
    assert Artefact.open(tmp_path / "runs/mine", "learn").manifest.config["steps"] == 3
    assert command("status").out == "no pipeline has run below runs; try `llmkit run sentiment`\n"


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_forced_stage_that_was_stopped_is_gone_on_with(go, command, monkeypatch: pytest.MonkeyPatch) -> None:
    go()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(toy_stages, "learn", interrupted)
        go(force=("learn",))
    assert states(command("status")) == {"gather": "fresh", "measure": "fresh", "learn": "begun", "combine": "stale"}
    assert go() == ["learn"]
    assert go() == []


def test_a_stage_that_is_told_to_end_ends_the_pipeline_with_its_exit_code(
    command, pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise StageStopped(signal.SIGTERM, "stopped after step 7")

    with monkeypatch.context() as patch:
        patch.setattr(toy_stages, "learn", stopped)
        said = command("run", pipeline)
    assert said.code == 143
    assert said.err == "llmkit: stopped after step 7\n"
    assert command("run", pipeline).code == 0


def test_the_processes_of_a_layout_make_a_step_stale_where_they_change_its_result(
    go, command, pipeline: Path, tmp_path: Path
) -> None:
    go(["learn.batch=8"])
    (tmp_path / "two.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 2\n")

    def planned(batch: int) -> str:
        words = ("--set", f"learn.batch={batch}", "--set", "learn.accelerate_config=two.yaml")
        return command("run", pipeline, "--dry_run", *words).out.splitlines()[2]

    assert planned(8) == "learn        would run (changed: global_batch)"
    assert planned(4) == "learn        fresh"


def test_status_shows_the_other_pipelines_though_one_cannot_be_read(command, pipeline: Path, tmp_path: Path) -> None:
    other = tmp_path / "another.yaml"
    other.write_text(pipeline.read_text())
    command("run", pipeline)
    command("run", other)
    other.unlink()
    said = command("status")
    assert said.code == 0
    assert f"'{other}' is neither a file nor one of llmkit's pipelines" in said.out
    assert set(states(said)) >= set(ALL)


def test_what_two_settings_made_lies_side_by_side(go, tmp_path: Path) -> None:
    go()
    one = contents((tmp_path / "runs/toy/learn").resolve())
    go(["learn.learning_rate=0.1"])
    two = contents((tmp_path / "runs/toy/learn").resolve())
    assert one != two
    assert len(list((tmp_path / "runs/toy/artefacts").glob("learn-*"))) == 2
