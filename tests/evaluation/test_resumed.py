from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmkit.evaluation import resumed
from llmkit.pipeline.artefact import Artefact
from llmkit.tasks.text_classification import TextClassification


class Stopped(Exception):
    pass


def test_an_evaluation_that_stopped_goes_on_with_the_same_predictions(
    run: Any,
    classifier: Artefact,
    toy: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [{**row, "text": row["text"] * (1 + number % 7)} for number, row in enumerate(toy(90, start=101))]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setattr(resumed, "_BATCHES", 4)
    shared = {"model_name_or_path": classifier.directory, "test_file": tmp_path / "t.jsonl", "cpu_threads": 1}
    shared |= {"per_device_eval_batch_size": 5, "baselines": False}
    whole = run("evaluate", tmp_path / "whole", **shared)
    predict, asked = TextClassification.predict, []

    def until(self: Any, model: Any, tokenizer: Any, data: Any, batch_size: int) -> Any:
        if len(asked) == 2:
            raise Stopped
        asked.append([len(example.text) for example in data])
        return predict(self, model, tokenizer, data, batch_size)

    with monkeypatch.context() as patch:
        patch.setattr(TextClassification, "predict", until)
        with pytest.raises(Stopped):
            run("evaluate", tmp_path / "e", **shared)
    assert min(asked[0]) >= max(asked[1]), "the longest come first"
    capsys.readouterr()
    made = run("evaluate", tmp_path / "e", **shared)
    assert "goes on after the 40 of 90 examples" in capsys.readouterr().out
    assert made.manifest.digest == whole.manifest.digest
    assert not (made.directory / resumed.SCRATCH).exists()
