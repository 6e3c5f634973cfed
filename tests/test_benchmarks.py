from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.pipeline.artefact import Artefact

ROOT = Path(__file__).resolve().parents[1]
PRETRAIN = ROOT / "benchmarks" / "pretrain.py"


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize(("asked", "parameters"), [("2M", 2e6), ("12M", 12e6), ("124M", 124e6), ("1B", 1e9)])
def test_a_model_of_the_benchmark_has_about_the_size_asked_for(asked: str, parameters: float, model_type: str) -> None:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    overrides = runpy.run_path(str(PRETRAIN))["shape"](asked, model_type, 8192)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](vocab_size=8192, **overrides))
    assert sum(weights.numel() for weights in model.parameters()) == pytest.approx(parameters, rel=0.15)


@pytest.mark.slow
def test_the_benchmark_of_pretraining_prints_its_table(tokens: Artefact, tmp_path: Path) -> None:
    words = ["--quick", "--rounds", "1", "--num_params", "0.2M", "--steps", "15", "--warmup", "2", "--threads", "1", "--log"]
    done = subprocess.run(
        [sys.executable, str(PRETRAIN), *words, "--tokens", str(tokens.directory), "--keep", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {cells[1]: cells for line in done.stdout.splitlines() if len(cells := [c.strip() for c in line.split("|")]) > 6}
    assert rows["bare loop"][2] == "1.000"
    assert float(rows["llmkit"][2]) > 0
    assert rows["nanoGPT"][2] == rows["run_clm"][2] == "not given"
    assert "MiB" in rows["llmkit"][6]
    assert "- hardware:" in done.stdout


@pytest.mark.slow
def test_the_benchmark_of_layouts_prints_its_table(tokens: Artefact) -> None:
    words = ["--quick", "--num_params", "0.2M", "--steps", "6", "--warmup", "2", "--layouts", "single", "ddp", "--log"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "layouts.py"), *words, "--tokens", str(tokens.directory)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {cells[1]: cells for line in done.stdout.splitlines() if len(cells := [c.strip() for c in line.split("|")]) > 6}
    assert rows["single"][2:4] == ["1", "1.00"]
    assert rows["ddp"][2] == "2"
    assert float(rows["ddp"][3]) > 0 and "MiB" in rows["ddp"][7]
    assert "- measured: `python benchmarks/layouts.py --quick" in done.stdout


@pytest.mark.slow
def test_the_benchmark_of_fine_tuning_prints_its_table(toy_files: tuple[Path, Path], tmp_path: Path) -> None:
    """A script in place of run_glue.py, which is not ours to carry: it says as much, and leaves the model it began with."""
    script = (
        "import sys\n"
        "given = dict(word[2:].split('=', 1) for word in sys.argv[1:] if '=' in word)\n"
        "for _ in range(4):\n    print({'loss': 1.0}, flush=True)\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
        "AutoModelForSequenceClassification.from_pretrained(given['model_name_or_path']).save_pretrained(given['output_dir'])\n"
        "AutoTokenizer.from_pretrained(given['model_name_or_path']).save_pretrained(given['output_dir'])\n"
    )
    (tmp_path / "run_glue.py").write_text(script)
    words = ["--train_file", str(toy_files[0]), "--test_file", str(toy_files[1]), "--rounds", "1", "--threads", "1", "--log"]
    words += ["--layers", "1", "--width", "64", "--vocab_size", "300", "--batch", "8", "--warmup", "2", "--log_every", "2"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "finetune.py"), "--scripts", str(tmp_path), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {cells[1]: cells for line in done.stdout.splitlines() if len(cells := [c.strip() for c in line.split("|")]) > 6}
    assert rows["llmkit"][2] == "1.00"
    assert 0 <= float(rows["llmkit"][6].split()[0]) <= 1
    assert 0 <= float(rows["run_glue, its defaults"][6].split()[0]) <= 1
    assert "- hardware:" in done.stdout


@pytest.mark.slow
def test_the_benchmark_of_evaluation_prints_its_table_and_finds_the_same_numbers(tmp_path: Path) -> None:
    """Beside Trainer.predict; the other peers where they are installed."""
    rows = "".join(f"The number {number} is {'odd' if number % 2 else 'even'}.\t{number % 2}\n" for number in range(20))
    (tmp_path / "dev.tsv").write_text(f"sentence\tlabel\n{rows}")
    words = ["--choices", str(tmp_path / "dev.tsv"), "--jobs", "classification", "--rounds", "1", "--layers", "2", "--log"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "evaluate.py"), *words, "--width", "64", "--vocab_size", "300"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = {cells[2]: cells for line in done.stdout.splitlines() if len(cells := [c.strip() for c in line.split("|")]) > 6}
    assert float(found["Trainer.predict"][3]) > 0
    assert "in probability" in found["Trainer.predict"][7] and "NOT THE SAME" not in done.stdout
    assert "- hardware:" in done.stdout


@pytest.mark.slow
def test_the_benchmark_of_tokenisation_prints_its_table_and_finds_the_same_tokens(corpus: Artefact, tmp_path: Path) -> None:
    """Of llmkit's two ways; beside datatrove where it is installed."""
    words = ["--corpus", str(corpus.directory), "--vocab_size", "400", "--rounds", "2", "--keep", str(tmp_path), "--log"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "corpus_tokens.py"), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {cells[1]: cells for line in done.stdout.splitlines() if len(cells := [c.strip() for c in line.split("|")]) > 6}
    assert rows["llmkit"][3] == "1.00"
    assert rows["llmkit --fast false"][9] == "the same" and float(rows["llmkit --fast false"][7]) > 0
    assert "- measured: `python benchmarks/corpus_tokens.py --corpus" in done.stdout


@pytest.mark.slow
def test_the_benchmark_of_near_duplicates_runs_the_sides_of_llmkit(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(
        "\n".join(f"This is sentence {number} of a text that has many." for number in range(2000)), encoding="utf-8"
    )
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "corpus_minhash.py"), "--text", str(text), "--growth", "0.1"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].startswith("| 0.1 |")
