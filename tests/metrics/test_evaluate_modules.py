"""The folders that `evaluate.load` takes, loaded as a user without a network loads them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
from sklearn import metrics as reference

from llmkit import metrics
from llmkit.errors import ConfigError

pytest.importorskip("evaluate")

TRUE = [0, 1, 1, 0, 1, 2, 2, 0, 1, 2, 1, 0]
SAID = [0, 1, 0, 0, 1, 2, 1, 0, 1, 2, 1, 2]
TWO = [value % 2 for value in TRUE]
SCORES = [0.1, 0.9, 0.4, 0.3, 0.7, 0.2, 0.5, 0.2, 0.6, 0.5, 0.8, 0.1]
WRITTEN = ["the cat sat on the mat", "it rains in the north today", "a b c d"]
MEANT = ["the cat sat on a mat", "it rained in the north today", "a b c d"]
ASKED = [
    {"id": "a", "answers": {"text": ["the cat", "cat"], "answer_start": [0, 4]}},
    {"id": "b", "answers": {"text": [], "answer_start": []}},
    {"id": "c", "answers": {"text": ["北京市"], "answer_start": [0]}},
]
ANSWERED = [
    {"id": "c", "prediction_text": "北京"},
    {"id": "a", "prediction_text": "A cat."},
    {"id": "b", "prediction_text": "something"},
]
LABELS = {"predictions": SAID, "references": TRUE}
CALLS: dict[str, dict[str, Any]] = {
    "accuracy": LABELS,
    "mcc": LABELS,
    **{name: {**LABELS, "average": "macro"} for name in ("f1", "precision", "recall")},
    "roc_auc": {"prediction_scores": SCORES, "references": TWO},
    "bleu": {"predictions": WRITTEN, "references": [[text] for text in MEANT]},
    "chrf": {"predictions": WRITTEN, "references": MEANT},
    "rouge": {"predictions": WRITTEN, "references": MEANT},
    "squad_v2": {"predictions": ANSWERED, "references": ASKED},
}
PROGRAM = """
import json, sys
import evaluate
from llmkit import metrics

calls = json.load(sys.stdin)
found = {name: evaluate.load(metrics.path(name)).compute(**given) for name, given in calls.items()}
named = evaluate.load(metrics.path("f1")).compute(predictions=["no", "yes"], references=["yes", "yes"], pos_label="yes")
both = evaluate.combine([evaluate.load(metrics.path(name)) for name in ("accuracy", "mcc")])
print(json.dumps({"found": found, "named": named, "both": both.compute(predictions=[0, 1, 1], references=[0, 1, 0])}))
"""


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("home")
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "PYTHONPATH": str(root)}
    made = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(CALLS), capture_output=True, text=True, env=environment, cwd=home
    )
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout.splitlines()[-1])


def test_every_folder_is_tried() -> None:
    assert metrics.names() == sorted(CALLS)
    with pytest.raises(ConfigError, match="no metric 'f2'; there are accuracy, bleu"):
        metrics.path("f2")


def test_values_are_those_of_the_references_and_have_limits_and_n(computed: dict[str, Any]) -> None:
    expected = {
        "accuracy": reference.accuracy_score(TRUE, SAID),
        "mcc": reference.matthews_corrcoef(TRUE, SAID),
        "f1": reference.f1_score(TRUE, SAID, average="macro"),
        "precision": reference.precision_score(TRUE, SAID, average="macro"),
        "recall": reference.recall_score(TRUE, SAID, average="macro"),
        "roc_auc": reference.roc_auc_score(TWO, SCORES),
        "bleu": sacrebleu.corpus_bleu(WRITTEN, [MEANT]).score,
        "chrf": sacrebleu.corpus_chrf(WRITTEN, [MEANT]).score,
    }
    for name, value in expected.items():
        found = computed["found"][name]
        assert found[name] == pytest.approx(value, rel=1e-9)
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"] and found["n"] == len(CALLS[name]["references"])
    assert computed["found"]["bleu"]["signature"].startswith("nrefs:1|")
    rouge = computed["found"]["rouge"]
    assert rouge["rouge_1"] == pytest.approx((10 / 12 + 10 / 12 + 1) / 3) and rouge["n"] == 3


def test_answers_are_scored_as_squad_and_cmrc_have_it(computed: dict[str, Any]) -> None:
    found = computed["found"]["squad_v2"]
    assert (found["exact"], found["HasAns_exact"], found["NoAns_exact"]) == pytest.approx((100 / 3, 50, 0))
    assert found["HasAns_f1"] == pytest.approx(100 * (1 + 0.8) / 2) and found["NoAns_f1"] == 0
    assert found["NoAns_f1_high"] > 0 and found["n"] == 3


def test_names_serve_as_classes_and_metrics_go_together(computed: dict[str, Any]) -> None:
    assert computed["named"]["f1"] == pytest.approx(2 / 3)
    assert computed["both"]["accuracy"] == pytest.approx(2 / 3) and computed["both"]["mcc"] == pytest.approx(0.5)
