from __future__ import annotations

import ast
import sys
import sysconfig
from pathlib import Path

import pytest

from llmkit.corpus.documents import Document
from llmkit.corpus.embedded import EmbeddedReader, _documentation, embedded_version, unknown_packages


def read(*packages: str) -> list[Document]:
    return list(EmbeddedReader(list(packages)).rows(lambda size: None))


@pytest.fixture(scope="module")
def stdlib() -> list[Document]:
    return read("stdlib")


def test_the_standard_library_is_a_corpus(stdlib: list[Document]) -> None:
    assert sum(len(document.text.encode()) for document in stdlib) > 1_500_000
    assert {document.source for document in stdlib} == {"stdlib", "topics"}
    ids = [document.id for document in stdlib]
    assert len(ids) == len(set(ids))
    assert {"stdlib:json.decoder", "stdlib:asyncio.events", "stdlib:argparse"} < set(ids)
    assert not any(".test" in id or "idle_test" in id for id in ids)


def test_a_document_has_heading_signatures_and_docstrings(stdlib: list[Document]) -> None:
    text = next(document.text for document in stdlib if document.id == "stdlib:textwrap")
    assert text.startswith("textwrap\n========\n\nText wrapping and filling.")
    assert "\n\ndef textwrap.dedent(text)\n\nRemove any common leading whitespace" in text
    assert "\n\nclass textwrap.TextWrapper\n\n" in text
    assert "_fix_sentence_endings" not in text


def test_nothing_of_this_machine_is_in_the_texts(stdlib: list[Document]) -> None:
    places = [f"{sysconfig.get_path('stdlib')}/", f"{Path(__file__).parent}/"]
    assert not [(document.id, place) for document in stdlib for place in places if place in document.text]


def test_it_is_the_same_twice_and_no_module_is_run(stdlib: list[Document], capsys: pytest.CaptureFixture[str]) -> None:
    before = set(sys.modules)
    assert read("stdlib") == stdlib
    assert set(sys.modules) == before
    assert "this" not in sys.modules  # `import this` prints
    assert capsys.readouterr().out == ""
    assert "stdlib:this" not in {document.id for document in stdlib}  # has no docstring


def test_distributions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that would fail if it were run, with a test directory, a broken file and a missing one."""
    function = 'def shout(text: str = "x", *, times: int = 2) -> str:\n    """Say it loud."""\n'
    source = f'"""Tools."""\nraise SystemExit\n{function}'
    for name, content in {
        "shouting/__init__.py": source,
        "shouting/old.py": "print 'python 2'\n",
        "shouting/bare.py": "x = 1\n",
        "shouting/tests/test_it.py": '"""A test."""\n',
        "shouting-1.5.dist-info/METADATA": "Metadata-Version: 2.1\nName: Shouting\nVersion: 1.5\n",
        "shouting-1.5.dist-info/RECORD": "shouting/__init__.py,,\nshouting/old.py,,\nshouting/bare.py,,\n"
        "shouting/gone.py,,\nshouting/tests/test_it.py,,\nshouting-1.5.dist-info/METADATA,,\n../../bin/shout.py,,\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    reader = EmbeddedReader(["Shouting"])
    document, old, gone = sorted(reader.rows(lambda size: None), key=lambda row: not isinstance(row, Document))
    assert document.id == "shouting:shouting"
    signature = "def shouting.shout(text: str='x', *, times: int=2) -> str"
    assert document.text == f"shouting\n========\n\nTools.\n\n{signature}\n\nSay it loud."
    assert {row.id for row in (old, gone)} == {"shouting:shouting.old", "shouting:shouting.gone"}
    assert all(row.reason == "no Python source" and row.expected for row in (old, gone))
    assert list(unknown_packages(["shouting", "stdlib", "installed"])) == []
    (sentence,) = unknown_packages(["shoutin"])
    assert "did you mean 'shouting'?" in sentence
    assert "shouting" in {module.package for module in EmbeddedReader(["installed"])._modules}


def test_installed_leaves_llmkit_out() -> None:
    packages = {module.package for module in EmbeddedReader(["installed"])._modules}
    assert {"numpy", "pyyaml"} <= packages
    assert "llmkit" not in packages


def test_methods_conditional_definitions_and_private_names() -> None:
    tree = ast.parse(
        "if True:\n  class A(B):\n    'The A.'\n    async def run(self, *a): 'Runs.'\n    def _hidden(self): 'No.'\n"
        "class _Private:\n  'No.'\n  def public(self): 'No.'\n"
    )
    text = _documentation("m", tree)
    assert text == "m\n=\n\nclass m.A(B)\n\nThe A.\n\nasync def m.A.run(self, *a)\n\nRuns."


def test_version_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = [embedded_version([name]) for name in ("stdlib", "installed", "numpy")]
    assert len(set(marks)) == 3
    assert embedded_version(["numpy", "stdlib"]) == embedded_version(["stdlib", "numpy"])
    monkeypatch.setattr("platform.python_version", lambda: "3.99.0")
    assert embedded_version(["stdlib"]) != marks[0]
