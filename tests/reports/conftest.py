"""Small real artefacts: every stage from raw bytes to an evaluation, written file by file with their manifests."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmkit.pipeline.artefact import MANIFEST, Artefact, FileRecord, InputRecord, Manifest, sha256_of
from llmkit.pipeline.stage import Workspace
from llmkit.reports.report import ReportConfig, report

LABELS = ["negative", "neutral", "positive"]
ENVIRONMENT = {
    "versions": {"llmkit": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"},
    "hardware": {"machine": "x86_64", "cpu": "Some CPU", "cpu_cores": 2, "memory_bytes": 8_000_000_000},
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "platform": "Linux",
}
HOSTILE = [
    "<script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\" 'text'",
    "一股刺鼻的油墨味，放阳台晾了一周还是熏得头疼。",
    "W" + "o" * 900 + "rd",
    "هذا المنتج سيئ جدا \u202eevil\u202c and more",
    "a\x00b\x1b[31m\x85 line one\nline two {{ 7*7 }} {% raw %}",
    "</blockquote></body></html><!-- ]]> --> `code` | pipe",
]

Row = tuple[str, str, str, str, float]


def safetensors(shapes: dict[str, list[int]]) -> bytes:
    """A real safetensors file of zeros."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4
        for extent in shape:
            size *= extent
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def model_files(log: str) -> dict[str, bytes | str]:
    config = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 100,
        "max_position_embeddings": 128,
        "id2label": {str(number): label for number, label in enumerate(LABELS)},
    }
    return {
        "config.json": json.dumps(config),
        "model.safetensors": safetensors({"embeddings": [100, 8], "classifier": [3, 8]}),
        "tokenizer.json": "{}",
        "tokenizer_config.json": "{}",
        "README.md": "---\nlicense: apache-2.0\n---\n\n# The card that training wrote\n",
        "metrics.jsonl": log,
    }


def ledger(steps: int, first: float, last: float, scores: bool = False) -> str:
    lines = []
    for number in range(1, 61):
        step, done = number * steps // 60, number / 60
        loss = last + (first - last) * (1 - done) ** 3 + 0.02 * first * (number % 3 - 1)
        lines.append({"step": step, "epoch": 6 * done, "loss": round(loss, 4), "learning_rate": 1e-4, "grad_norm": 0.9})
        if number % 10 == 0:
            row: dict[str, Any] = {"step": step, "epoch": 6 * done, "eval_loss": round(loss * 1.05 + 0.05 * done, 4)}
            if scores:
                row |= {"eval_accuracy": 0.4 + 0.26 * done, "eval_f1_macro": 0.3 + 0.33 * done, "eval_runtime": 0.5}
            lines.append(row)
    return "".join(json.dumps(line) + "\n" for line in lines)


def example_rows() -> list[Row]:
    """Thirty predictions, eighteen of them right; the wrong ones carry texts that try to break out of a page."""
    rows: list[Row] = []
    for number in range(30):
        label = LABELS[number % 3]
        right = number % 5 < 3
        text = f"Example {number} is fine." if right else HOSTILE[number % len(HOSTILE)]
        rows.append((f"id-{number:02d}", text, label, label if right else LABELS[(number + 1) % 3], 0.99 - number * 0.015))
    return rows


def metrics_of(rows: list[Row]) -> dict[str, Any]:
    """metrics.json as `llmkit evaluate` writes it."""
    labels = sorted({row[2] for row in rows} | {row[3] for row in rows})
    confusion = [[sum((row[2], row[3]) == (true, said) for row in rows) for said in labels] for true in labels]
    n = len(rows)
    accuracy = sum(row[2] == row[3] for row in rows) / n

    def metric(name: str, value: float, average: str | None = None, label: str | None = None) -> dict[str, Any]:
        low, high = max(0.0, value - 0.06), min(1.0, value + 0.06)
        method = "wilson" if name == "accuracy" or label else "mover"
        return {
            "name": name,
            "average": average,
            "label": label,
            "value": value,
            "low": low,
            "high": high,
            "n": n,
            "method": method,
        }

    metrics = [metric("accuracy", accuracy)]
    for name, value in (("f1", 0.59), ("precision", 0.62), ("recall", 0.58)):
        metrics += [metric(name, value, average) for average in ("macro", "weighted")]
        metrics += [{**metric(name, accuracy, "micro"), "method": "wilson"}]
        metrics += [metric(name, value - 0.05 + 0.05 * number, None, label) for number, label in enumerate(labels)]
    return {
        "task": "text-classification",
        "split": "test",
        "n": n,
        "value_is": "accuracy",
        "labels": labels,
        "interval": 0.95,
        "seed": 0,
        "dataset": "llmkit/reviews",
        "metrics": metrics,
        "confusion": confusion,
        "baselines": [
            {
                "name": "majority class",
                "detail": f"always '{labels[0]}'",
                "metrics": [metric("accuracy", 0.357), metric("f1", 0.175, "macro")],
            },
            {
                "name": "TF-IDF + logistic regression",
                "detail": "words and pairs of words",
                "metrics": [metric("accuracy", 0.575), metric("f1", 0.566, "macro")],
            },
        ],
        "comparison": [
            {
                "baseline": "majority class",
                "metric": "accuracy",
                "difference": 0.243,
                "low": 0.16,
                "high": 0.32,
                "p_value": 0.00001,
                "sentence": "The model is right more often than 'majority class' (p < 0.001).",
            },
            {
                "baseline": "TF-IDF + logistic regression",
                "metric": "accuracy",
                "difference": 0.025,
                "low": -0.03,
                "high": 0.08,
                "p_value": 0.41,
                "sentence": "No difference from 'TF-IDF + logistic regression' can be seen (p = 0.41).",
            },
        ],
    }


def write_predictions(path: Path, rows: list[Row], further: dict[str, list[Any]] | None = None) -> None:
    columns: dict[str, list[Any]] = {
        name: [row[number] for row in rows] for number, name in enumerate(("id", "text", "label", "prediction", "score"))
    }
    columns["value"] = [float(row[2] == row[3]) for row in rows]
    labels = sorted({row[2] for row in rows} | {row[3] for row in rows})
    for label in labels:
        columns[f"probability_{label}"] = [
            row[4] if row[3] == label else (1 - row[4]) / max(1, len(labels) - 1) for row in rows
        ]
    pq.write_table(pa.table(columns | (further or {})), path)


@dataclass
class Chain:
    """Artefacts in one directory, each made from the ones before."""

    root: Path
    made: dict[str, Artefact] = field(default_factory=dict)

    # Tests reach these through the fixture, so that they import nothing from here and run however pytest is started.
    HOSTILE: ClassVar[list[str]] = HOSTILE
    LABELS: ClassVar[list[str]] = LABELS
    safetensors = staticmethod(safetensors)
    model_files = staticmethod(model_files)
    ledger = staticmethod(ledger)
    example_rows = staticmethod(example_rows)
    metrics_of = staticmethod(metrics_of)

    def artefact(
        self,
        stage: str,
        files: dict[str, bytes | str],
        *,
        inputs: dict[str, str] | None = None,
        name: str | None = None,
        **manifest: Any,
    ) -> Artefact:
        """Write the files of a stage and the manifest that describes them."""
        directory = self.root / (name or stage)
        for path, content in files.items():
            target = directory / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.encode() if isinstance(content, str) else content)
        return self.commit(stage, directory, inputs or {}, **manifest)

    def commit(self, stage: str, directory: Path, inputs: dict[str, str], **given: Any) -> Artefact:
        sources = {port: self.made[earlier] for port, earlier in inputs.items()}
        paths = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST)
        values: dict[str, Any] = {
            "stage": stage,
            "stage_version": 1,
            "fingerprint": hashlib.sha256(f"{stage} {directory.name}".encode()).hexdigest(),
            "config": {},
            "origins": {},
            "inputs": {
                port: InputRecord(
                    source.manifest.stage,
                    source.manifest.fingerprint,
                    source.manifest.digest,
                    os.path.relpath(source.directory, directory),
                )
                for port, source in sources.items()
            },
            "raw_inputs": [],
            "files": [
                FileRecord(path.relative_to(directory).as_posix(), path.stat().st_size, sha256_of(path)) for path in paths
            ],
            "metrics": {},
            "environment": ENVIRONMENT,
            "command": f"llmkit {stage} --config runs/{stage}/llmkit.yaml --output_dir runs/{stage}-again",
            "created": "2026-11-24T03:25:00+00:00",
            "seconds": 83.4,
        }
        manifest = Manifest(**{**values, **given})
        (directory / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        self.made[directory.name] = Artefact(directory, manifest)
        return self.made[directory.name]

    def build(self, rows: list[Row] | None = None, **evaluation: Any) -> Artefact:
        """The whole way from raw bytes to an evaluation."""
        corpus = FileRecord("/data/corpus/reviews.txt", 1_234_567, "ab" * 32)
        self.artefact(
            "preprocess",
            {"documents-00000.parquet": b"documents"},
            raw_inputs=[corpus],
            metrics={
                "documents": 41_200,
                "read": 42_532,
                "removed": {"too_short": 310, "duplicate": 1_022},
                "output_bytes": 9_100_000,
            },
        )
        self.artefact(
            "tokenizer",
            {"tokenizer.json": "{}"},
            inputs={"corpus": "preprocess"},
            metrics={"vocab_size": 8000, "bytes_per_token": 3.71},
        )
        self.artefact(
            "tokenize",
            {"shard-00000.bin": b"tokens"},
            inputs={"corpus": "preprocess", "tokenizer": "tokenizer"},
            metrics={
                "train": {"documents": 41_200, "tokens": 2_450_112, "bytes": 9_100_000},
                "sources": {
                    "reviews.txt": {"documents": 40_000, "tokens": 2_350_007, "bytes": 9_000_000},
                    "letters.txt": {"documents": 1_200, "tokens": 100_105, "bytes": 100_000},
                },
            },
        )
        self.artefact(
            "pretrain",
            model_files(ledger(2000, 9.0, 3.1)),
            inputs={"tokens": "tokenize"},
            metrics={"train_loss": 3.31, "eval": {"loss": 3.42, "perplexity": 30.6}, "train_runtime": 912.4},
        )
        self.finetune()
        return self.evaluate(rows, **evaluation)

    def finetune(self, **given: Any) -> Artefact:
        files = model_files(ledger(300, 1.09, 0.31, scores=True))
        files["checkpoint-100/model.safetensors"] = safetensors({"weight": [2, 2]})
        files["checkpoint-100/optimizer.pt"] = b"not to be published"
        files["training_args.bin"] = b"a pickle"
        files["llmkit.yaml"] = "learning_rate: 5e-5\n"
        values = {
            "inputs": {"model_name_or_path": "pretrain"} if "pretrain" in self.made else {},
            "config": {
                "learning_rate": 5e-5,
                "num_train_epochs": 6,
                "seed": 0,
                "train_file": "/home/someone/train.jsonl",
            },
            "origins": {
                "learning_rate": "recipes/finetune/quickstart.yaml:3",
                "num_train_epochs": "command line",
                "seed": "default",
                "train_file": "command line",
            },
            "raw_inputs": [FileRecord("llmkit/reviews:train", 0, "cd" * 32)],
            "metrics": {"train_examples": 822, "eval_accuracy": 0.66, "train_loss": 0.52},
        }
        return self.artefact("finetune", files, **{**values, **given})

    def evaluate(
        self,
        rows: list[Row] | None = None,
        record: dict[str, Any] | None = None,
        model: str | None = "finetune",
        further: dict[str, list[Any]] | None = None,
        **given: Any,
    ) -> Artefact:
        rows = rows if rows is not None else example_rows()
        directory = self.root / "evaluate"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "metrics.json").write_text(json.dumps(metrics_of(rows) if record is None else record), encoding="utf-8")
        write_predictions(directory / "predictions.parquet", rows, further)
        values: dict[str, Any] = {
            "inputs": {"model_name_or_path": model} if model else {},
            "config": {"model_name_or_path": str(self.root / model) if model else "someone/some-model"},
            "raw_inputs": [FileRecord("llmkit/reviews:test", 0, "ef" * 32)],
            "metrics": {"accuracy": 0.6},
        }
        return self.commit("evaluate", directory, **{**values, **given})


@dataclass
class Written:
    """What the stage wrote and said."""

    directory: Path
    metrics: dict[str, Any]
    said: list[str]

    @property
    def html(self) -> str:
        return (self.directory / "report.html").read_text(encoding="utf-8")

    @property
    def json(self) -> dict[str, Any]:
        return json.loads((self.directory / "report.json").read_text(encoding="utf-8"))


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path / "runs")


@pytest.fixture
def write(chain: Chain) -> Callable[..., Written]:
    """Run the stage on the chain's evaluation."""

    def run(name: str = "report", **settings: Any) -> Written:
        directory = chain.root / f"{name}.partial"
        directory.mkdir(parents=True)
        said: list[str] = []
        if "runs" not in settings:
            settings["evaluation"] = str(chain.root / "evaluate")
        config = ReportConfig(**settings)
        metrics = report(config, Workspace(directory, say=said.append))
        return Written(directory, metrics, said)

    return run
