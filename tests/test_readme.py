"""What README and the guides say: their commands parse, their files exist, and both languages say the same."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmkit import cli, resources, stages
from llmkit.corpus import thresholds
from llmkit.evaluation import compared, gate
from llmkit.parallel import launch
from llmkit.parallel.verify import Verdict, Verification
from llmkit.pipeline import trace
from llmkit.stages import STAGES
from llmkit.tasks import generate, prediction
from llmkit.tokens import verify
from llmkit.training import replay

if TYPE_CHECKING:
    from llmkit.pipeline.artefact import Artefact

ROOT = Path(__file__).resolve().parents[1]
REVIEWS = ROOT / "llmkit" / "data" / "reviews"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    REVIEWS / "README.md",
    ROOT / "benchmarks" / "LOG.md",
]

# The reader's own files, as the guides call them. YAML blocks become files as well, by the name in their first line.
PLACEHOLDERS = (
    "my_corpus/one.txt",
    "novels/one.txt",
    "crawl/CC-MAIN.warc.gz",
    "news/one.txt",
    "dump.xml.bz2",
    "articles.jsonl.gz",
    "train.csv",
    "dev.csv",
    "test.csv",
    "train.json",
    "dev.json",
    "test.json",
    "prompts.txt",
    "my_dataset/data.jsonl",
    "my_base_model/config.json",
    "runs/three/config.json",
)
# What earlier commands of the guides have made, and what has to be read.
MADE = {
    "my_model/config.json": '{"model_type": "llama", "num_hidden_layers": 2}\n',
    "runs/sentiment/finetune/llmkit.yaml": "model_name_or_path: MODEL\ndataset_name: llmkit/reviews\n",
    "runs/sentiment/pretrain/config.json": "{}\n",
    "runs/instruct/finetune/config.json": "{}\n",
    "runs/my/tokens-again/index.json": "{}\n",
    "accelerate_configs/ddp.yaml": "distributed_type: MULTI_GPU\n",
    "docs/layouts.md": "<!-- llmkit verify --all --write -->\n<!-- end -->\n",
}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")


@dataclass
class Block:
    """A fenced block of a page."""

    language: str
    text: str

    def commands(self) -> list[list[str]]:
        """Its command lines as words, comments left out."""
        joined = self.text.replace("\\\n", " ")
        return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def blocks(page: Path, language: str | None = None) -> list[Block]:
    found = [Block(*match) for match in _FENCE.findall(page.read_text(encoding="utf-8"))]
    return [block for block in found if language in (None, block.language)]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


COMMANDS = [
    pytest.param(page, words, id=f"{name_of(page)}: {shlex.join(words)}")
    for page in PAGES
    for block in blocks(page, "bash")
    for words in block.commands()
]


# --------------------------------------------------------------------------------------------------------------------
# Commands


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the reader's files."""
    for name, text in {**dict.fromkeys(PLACEHOLDERS, "placeholder\n"), **MADE}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages and walks that a command would start, in place of starting them."""
    names: list[str] = []

    def run_stage(stage: Any, resolved: Any, output: Path, *_: Any, **__: Any) -> None:
        names.append(stage.name)

    def launch_stage(stage: Any, resolved: Any, output: Path, layout: str, *_: Any) -> None:
        resources.find("accelerate_configs", layout)
        names.append(stage.name)

    def replay_it(checkpoint: Path, step: int) -> None:
        names.append("replay")

    def launch_command(layout: str, words: list[str]) -> int:
        resources.find("accelerate_configs", layout)
        names.append(words[0])
        return 0

    def trace_it(target: Path, number: str | None = None) -> bool:
        names.append("trace")
        return True

    monkeypatch.setattr(stages, "run_stage", run_stage)
    monkeypatch.setattr(launch, "launch_stage", launch_stage)
    monkeypatch.setattr(stages, "prepare_tokens", lambda resolved, runs: resolved)
    monkeypatch.setattr(stages, "finished_line", lambda stage, artefact: "")
    monkeypatch.setattr(trace, "trace", trace_it)
    monkeypatch.setattr(generate, "show", lambda config: names.append("generate") or 0)
    monkeypatch.setattr(prediction, "predict_file", lambda config: names.append("predict"))
    monkeypatch.setattr(compared, "compare_runs", lambda runs: names.append("compare") or {})
    monkeypatch.setattr(compared, "describe", lambda found, show: "")
    monkeypatch.setattr(thresholds, "try_thresholds", lambda *_: None)
    monkeypatch.setattr(thresholds, "describe", lambda trial: "")
    monkeypatch.setattr(gate, "check", lambda config, artefact: 0)
    monkeypatch.setattr(replay, "replay", replay_it)
    monkeypatch.setattr(launch, "launch_command", launch_command)
    monkeypatch.setattr(verify, "faults", lambda directory: iter(()))
    monkeypatch.setattr(
        Verification, "verify", lambda self, layout, *_: Verdict(layout, self.against, "llama", "fp32", 2, 20, 16, [])
    )
    return names


@pytest.mark.parametrize(("page", "words"), COMMANDS)
def test_every_command_parses(
    page: Path, words: list[str], desk: Path, started: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for block in blocks(page, "yaml"):
        (desk / block.text.splitlines()[0].removeprefix("# ")).write_text(block.text, encoding="utf-8")
    words = list(dropwhile(re.compile("[A-Z_]+=").match, words))  # variables of the environment
    program, *arguments = words
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(arguments) <= set(targets)
    elif program == "llmkit":
        check_llmkit(arguments, started, capsys)
    elif words[:2] == ["accelerate", "launch"]:
        check_launch(arguments[1:], started, capsys)
    elif program == "python":
        parse = runpy.run_path(str(ROOT / arguments[0]))["parse"]
        parse(arguments[1:])
    elif program in ("sbatch", "sky"):
        assert any((ROOT / argument).is_file() for argument in arguments)
    else:
        assert words in (["source", ".venv/bin/activate"], [".ci/run"]), "a command that this test does not know"


def check_llmkit(words: list[str], started: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The command gets as far as starting its stage, or for a pipeline as far as its plan."""
    status = cli.main([*words, "--dry_run"] if words[0] == "run" else words)
    assert status == 0 or (words[0] == "check" and status == 1), capsys.readouterr().err  # a page shows what it finds
    if "--help" not in words:
        starts = (words[0] in STAGES and "--dry_run" not in words) or words[0] in ("trace", "replay", "predict", "compare")
        assert started == ([words[0]] if starts else [])


def check_launch(words: list[str], started: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """accelerate knows the options before the script, the stage those after it."""
    from accelerate.commands.launch import launch_command_parser

    given = launch_command_parser().parse_args(words)
    script = ROOT / given.training_script
    assert script.is_file()
    assert given.config_file is None or (ROOT / given.config_file).is_file()
    status = cli.guarded(lambda: stages.run_from_command_line(script.stem, given.training_script_args))
    assert status == 0, capsys.readouterr().err
    assert started == [script.stem]


def test_a_wrong_command_is_found(desk: Path, started: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["finetune", "--learning_rte", "1"], ["run", "sentiment", "--set", "pretrain.stepps=3"], ["pretrian"]):
        with pytest.raises(AssertionError, match="did you mean"):
            check_llmkit(words, started, capsys)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=name_of)
def test_every_settings_file_is_used_by_a_command(page: Path) -> None:
    said = {word for block in blocks(page, "bash") for words in block.commands() for word in words}
    for block in blocks(page, "yaml"):
        name = block.text.splitlines()[0].removeprefix("# ")
        assert name.endswith(".yaml")
        assert said & {name, f"--config={name}"}


@pytest.fixture(scope="module")
def answering(base_model: Artefact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a head for question answering that has learned nothing."""
    from llmkit.tasks.question_answering import QuestionAnswering

    task, place = QuestionAnswering(), tmp_path_factory.mktemp("answering")
    tokenizer = task.load_tokenizer(str(base_model.directory))
    model, _ = task.load_model(str(base_model.directory), tokenizer, 0, None)
    task.note(model)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_runs(page: Path, base_model: Artefact, answering: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = {"runs/base-model/pretrain": base_model.directory, "runs/question-answering/finetune": answering}
    for block in blocks(page, "python"):
        code = block.text
        for name, place in made.items():
            code = code.replace(name, str(place))
        tree = ast.parse(code)
        exec(compile(tree, name_of(page), "exec"), {})
        assert capsys.readouterr().out.strip()


# --------------------------------------------------------------------------------------------------------------------
# Pages


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page: Path) -> None:
    for target in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{name_of(page)} links to {target}, which is not there"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_shipped_names_exist(page: Path) -> None:
    """Paths in running text that look like ones of this repository."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for name in re.findall(r"`((?:llmkit|recipes|pipelines|accelerate_configs|docs|benchmarks|\.ci)/[\w./-]+)`", text):
        assert (ROOT / name).exists() or name == "llmkit/reviews", f"{name_of(page)} names {name}, which is not there"


def test_both_languages_say_the_same() -> None:
    english, chinese = ROOT / "README.md", ROOT / "README.zh.md"
    assert [block.language for block in blocks(english)] == [block.language for block in blocks(chinese)]
    for ours, theirs in zip(blocks(english), blocks(chinese), strict=True):
        assert ours.commands() == theirs.commands()

    def skeleton(page: Path) -> list[str]:
        """Headings by their depth, table rows and list items, in order."""
        text = _FENCE.sub("", page.read_text(encoding="utf-8"))
        return re.findall(r"^(#+ |\| `|- \[|\*\*|!\[)", text, re.MULTILINE)

    assert skeleton(english) == skeleton(chinese)
    ours, theirs = (_LINK.findall(page.read_text(encoding="utf-8")) for page in (english, chinese))
    assert ours[1:] == theirs[1:]
    assert (ours[0], theirs[0]) == (chinese.name, english.name)


def test_the_data_card_counts_right() -> None:
    rows = [
        (split, json.loads(line))
        for split in ("train", "validation", "test")
        for line in (REVIEWS / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    counts = Counter((row["language"], row["label"], split) for split, row in rows)
    card = (REVIEWS / "README.md").read_text(encoding="utf-8")
    for language, label in sorted({key[:2] for key in counts}):
        shares = [counts[language, label, split] for split in ("train", "validation", "test")]
        assert f"| {language} | {label} | {' | '.join(map(str, [*shares, sum(shares)]))} |" in card
    assert f"{len(rows):,} short reviews" in card
    for subject in {row["subject"] for _, row in rows}:
        assert subject in card
    for language, name in (("en", "in English"), ("zh", "in Chinese")):
        sizes = [len(row["text"]) for _, row in rows if row["language"] == language]
        assert f"{min(sizes)} to {max(sizes)}" in card, name


def test_no_page_or_lock_names_a_package_index() -> None:
    """Where packages come from is the reader's choice."""
    for path in (*PAGES, ROOT / "Makefile", ROOT / "requirements-lock.txt", ROOT / "pyproject.toml", ROOT / ".ci" / "run"):
        assert not re.search(r"--(extra-)?index-url|--find-links|simple/", path.read_text(encoding="utf-8")), path


def test_lock_has_every_dependency() -> None:
    """Exact pins only, one for each Python, for all that pyproject.toml asks for."""
    from packaging.requirements import Requirement

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "requirements-lock.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert all(len(pin.specifier) == 1 and next(iter(pin.specifier)).operator == "==" for pin in pins)
    for python in ("3.10", "3.11", "3.12", "3.13"):
        here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate({"python_version": python})]
        pinned = {pin.name: next(iter(pin.specifier)).version for pin in here}
        assert len(pinned) == len(here), f"a package is pinned twice for Python {python}"
        for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
            wanted = Requirement(text)
            assert pinned[wanted.name] in wanted.specifier, f"Python {python}: {text}, the lock has {pinned[wanted.name]}"


def test_placeholders_are_named_by_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in PLACEHOLDERS:
        assert name.partition("/")[0] in text
