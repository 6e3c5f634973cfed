"""What the tests of several rooms share: a small real corpus, and everything the chain makes of it, each made once."""

from __future__ import annotations

import inspect
import json
import os
import string
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

settings.register_profile("llmkit", deadline=None)  # an example takes long where the machine is busy, or the first is cold
settings.load_profile("llmkit")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs the hub has forgotten something

if TYPE_CHECKING:
    from llmkit.pipeline.artefact import Artefact

Run = Callable[..., "Artefact"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-layout", action="store_true", help="run every test of launch layouts under every layout (slow)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--every-layout"):
        left_out = [item for item in items if item.get_closest_marker("every_layout")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


TINY_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}

CHINESE = (
    "今天的天气很好，我们去公园散步，看见湖边有很多人在拍照。",
    "这家书店不大，但是每一本书都是老板自己挑选的，下雨的时候可以坐在窗边看一下午。",
    "分词器把文本切成小块，每一块对应一个编号；模型看到的只有编号。",
    "火车晚点了四十分钟，站台上的广播一遍又一遍地道歉，大家都很安静。",
    "他在信里写道：“冬天来了，院子里的柿子树只剩下三个柿子。”",
    "周末我学会了做豆腐，第一次太硬，第二次太软，第三次刚刚好。",
)


def real_texts() -> list[str]:
    """Docstrings of the standard library, and a few Chinese sentences written for this test."""
    import argparse
    import collections
    import csv
    import datetime
    import difflib
    import random
    import statistics

    modules = (argparse, collections, csv, datetime, difflib, json, os, random, statistics, string, textwrap)
    documented = []
    for module in modules:
        for name, item in sorted(vars(module).items()):
            if not name.startswith("_") and (inspect.isclass(item) or inspect.isfunction(item)):
                text = inspect.getdoc(item)
                if text and len(text) > 200 and getattr(item, "__module__", "").startswith(module.__name__):
                    documented.append(f"{module.__name__}.{name}\n\n{text}")
    return [*documented, *CHINESE]


@pytest.fixture(scope="session")
def run() -> Run:
    """Run a stage as the command does: `run("pretrain", output, tokens=..., max_steps=3)`."""

    def run_it(name: str, output: Path, force: bool = False, **settings: Any) -> Artefact:
        from llmkit.config import Source, resolve
        from llmkit.pipeline.stage import run_stage
        from llmkit.stages import STAGES

        stage = STAGES[name]
        given = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
        return run_stage(stage, resolve(stage.config_class, [Source(given, {})]), Path(output), force=force)

    return run_it


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shared artefacts lie."""
    return tmp_path_factory.mktemp("shared")


def write_corpus(directory: Path, texts: list[str]) -> Path:
    """Texts as a JSON lines file for `preprocess`."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def make_corpus(run: Run) -> Callable[..., Artefact]:
    """Make a `preprocess` result from texts: `make_corpus(directory, texts, validation_fraction=0)`."""

    def make(directory: Path, texts: list[str], **settings: Any) -> Artefact:
        return run("preprocess", directory / "corpus", train_file=[str(write_corpus(directory, texts))], **settings)

    return make


@pytest.fixture(scope="session")
def corpus(make_corpus: Callable[..., Artefact], place: Path) -> Artefact:
    """A small real corpus, English with a little Chinese, with a validation split."""
    return make_corpus(place, real_texts(), validation_fraction=0.1)


@pytest.fixture(scope="session")
def tokenizer(run: Run, corpus: Artefact, place: Path) -> Artefact:
    """Byte-level BPE of 512 tokens, trained on the corpus."""
    return run("tokenizer", place / "tokenizer", corpus=corpus.directory, vocab_size=512)


@pytest.fixture(scope="session")
def tokens(run: Run, corpus: Artefact, tokenizer: Artefact, place: Path) -> Artefact:
    """The token shards of the corpus."""
    return run("tokenize", place / "tokens", corpus=corpus.directory, tokenizer=tokenizer.directory)


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """Settings of `pretrain` that take a moment: a Llama of 2 layers, in float32, on one thread."""
    return {
        "config_overrides": dict(TINY_LLAMA),
        "block_size": 32,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 0.0,
        "bf16": False,
        "cpu_threads": 1,
        "logging_steps": 1,
    }


@pytest.fixture(scope="session")
def base_model(run: Run, tokens: Artefact, tiny: dict[str, Any], place: Path) -> Artefact:
    """A tiny causal model, pretrained for a few steps."""
    return run("pretrain", place / "base", tokens=tokens.directory, max_steps=30, **tiny)


GOOD = ("lovely", "wonderful", "excellent", "delightful", "很好", "喜欢")
BAD = ("awful", "terrible", "dreadful", "horrible", "很差", "讨厌")
THINGS = ("The soup", "This book", "Our room", "The film", "那家店", "这双鞋", "The phone", "Her song")


def toy_rows(count: int, start: int = 0) -> list[dict[str, str]]:
    """Short texts whose label follows from one word."""
    rows = []
    for number in range(start, start + count):
        words, label = ((GOOD, "good"), (BAD, "bad"))[number % 2]
        text = f"{THINGS[number // 2 % len(THINGS)]} was {words[number // 3 % len(words)]} ({number})."
        rows.append({"text": text, "label": label})
    return rows


@pytest.fixture(scope="session")
def toy() -> Callable[..., list[dict[str, str]]]:
    """`toy(80)`: rows of a separable two-class problem, English and Chinese."""
    return toy_rows


@pytest.fixture(scope="session")
def quick() -> dict[str, Any]:
    """Settings of `finetune` that learn the toy problem in a moment."""
    return {
        "learning_rate": 5e-3,
        "num_train_epochs": 8.0,
        "per_device_train_batch_size": 8,
        "bf16": False,
        "cpu_threads": 1,
    }


@pytest.fixture(scope="session")
def toy_files(place: Path) -> tuple[Path, Path]:
    """Training and test examples of the toy problem as JSON lines."""
    directory = place / "toy"
    directory.mkdir()
    for name, rows in (("train", toy_rows(96)), ("test", toy_rows(40, start=101))):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return directory / "train.jsonl", directory / "test.jsonl"


@pytest.fixture(scope="session")
def classifier(run: Run, base_model: Artefact, toy_files: tuple[Path, Path], quick: dict[str, Any], place: Path) -> Artefact:
    """A classifier of the toy problem, fine-tuned from the tiny causal model."""
    settings = {"model_name_or_path": base_model.directory, "train_file": toy_files[0], **quick}
    return run("finetune", place / "classifier", **settings)
