"""The wheel and the source archive: what travels in them, and that the wheel works outside a checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("recipes", "pipelines", "accelerate_configs")
_LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "runs", "build", "dist", "__pycache__", ".*_cache", ".hypothesis", "tests", "*.partial"
)

pytestmark = pytest.mark.slow


def backend(source: Path, hook: str, target: Path) -> Path:
    """Call a hook of the build back end, as `pip wheel --no-build-isolation` and `python -m build` do; needs no network."""
    target.mkdir()
    code = f"import sys; from hatchling import build; print(build.{hook}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(target)], cwd=source, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout."""
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("copy") / "llmkit", ignore=_LEFT_OUT)


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return backend(source, "build_wheel", tmp_path_factory.mktemp("build") / "wheel")


@pytest.fixture(scope="module")
def archive(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return backend(source, "build_sdist", tmp_path_factory.mktemp("build") / "sdist")


def files_to_ship() -> set[str]:
    """Every file of the package and of what travels with it, by its path in the wheel."""

    def below(directory: str) -> list[Path]:
        return [path for path in (ROOT / directory).rglob("*") if path.is_file() and not _is_hidden(path)]

    package = {path.relative_to(ROOT).as_posix() for path in below("llmkit")}
    shared = {f"llmkit/share/{path.relative_to(ROOT).as_posix()}" for kind in SHIPPED for path in below(kind)}
    return package | shared


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(ROOT).parts)


def test_wheel_holds_everything(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert not files_to_ship() - names
    reports = [f"llmkit/reports/{name}" for name in ("page.html.j2", "examples.js", "schema.json")]
    for name in ("llmkit/share/recipes/pretrain.py", "llmkit/data/reviews/train.jsonl", *reports):
        assert name in names
    top = {name.split("/")[0] for name in names}
    assert top == {"llmkit", next(name for name in top if name.endswith(".dist-info"))}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_source_archive_builds_the_same_wheel(archive: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(archive) as file:
        if sys.version_info >= (3, 12):
            file.extractall(tmp_path, filter="data")
        else:
            file.extractall(tmp_path)
    again = backend(next(tmp_path.iterdir()), "build_wheel", tmp_path / "wheel")
    ours, theirs = zipfile.ZipFile(wheel), zipfile.ZipFile(again)
    assert {item.filename: item.CRC for item in ours.infolist()} == {item.filename: item.CRC for item in theirs.infolist()}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, which sees the packages of this one, but not this checkout.

    Returns:
        The directory of its commands.
    """
    home = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True, timeout=120)
    python = home / "bin" / "python"
    place = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(wheel) as file:
        file.extractall(place.stdout.strip())
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    Path(place.stdout.strip(), "others.pth").write_text("\n".join(others) + "\n", encoding="utf-8")
    command = home / "bin" / "llmkit"  # what an installer makes of `[project.scripts]`
    command.write_text(f"#!{python}\nimport sys\nfrom llmkit.cli import main\nsys.exit(main())\n", encoding="utf-8")
    command.chmod(0o755)
    return command.parent


def call(installed: Path, directory: Path, *words: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [installed / "llmkit", *words],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_installed_package_is_the_wheel(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [installed / "python", "-c", "import llmkit; print(llmkit.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).is_relative_to(installed.parent)


def test_help_outside_a_checkout(installed: Path, tmp_path: Path) -> None:
    text = call(installed, tmp_path, "--help")
    for name in ("sentiment", "base-model", "pretrain/quickstart", "single", "ddp"):
        assert name in text
    assert "--max_steps" in call(installed, tmp_path, "pretrain", "--help")


def test_pipeline_is_found_outside_a_checkout(installed: Path, tmp_path: Path) -> None:
    plan = call(installed, tmp_path, "run", "sentiment", "--dry_run").splitlines()
    assert [line.split()[0] for line in plan] == [
        "preprocess",
        "tokenizer",
        "tokenize",
        "pretrain",
        "finetune",
        "evaluate",
        "report",
    ]


def test_a_stage_runs_outside_a_checkout(installed: Path, tmp_path: Path) -> None:
    text = "The quick brown fox jumps over the lazy dog, and nobody has ever asked the dog.\n\n狐狸跳过去了，狗没有动。"
    (tmp_path / "one.txt").write_text(text, encoding="utf-8")
    call(installed, tmp_path, "preprocess", "--train_file", "one.txt", "--sample_by", "paragraph", "--output_dir", "documents")
    assert (tmp_path / "documents" / "manifest.json").is_file()
