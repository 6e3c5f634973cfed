"""The model to be shared and its card."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import ModelCard

from llmkit.errors import ArtefactError
from llmkit.pipeline.artefact import FileRecord, sha256_of
from llmkit.reports import card, markdown

if TYPE_CHECKING:
    from tests.reports.conftest import Chain, Written


def load(written: Written) -> Any:
    return ModelCard.load(written.directory / "model" / "README.md")


def test_the_front_matter_says_what_metrics_json_says(chain: Chain, write: Callable[..., Written]) -> None:
    record = chain.metrics_of(chain.example_rows())
    chain.build(record=record)
    data = load(write(title="A model: with a colon")).data
    assert data.library_name == "transformers" and data.pipeline_tag == "text-classification"
    assert data.datasets == ["llmkit/reviews"] and data.language == ["en", "zh"] and data.license == "apache-2.0"
    assert data.model_name == "A model: with a colon" and data.metrics == ["accuracy", "f1", "precision", "recall"]
    told = {(result.metric_type, (result.metric_args or {}).get("average")): result for result in data.eval_results}
    expected = {
        (item["name"], item["average"]): item["value"]
        for item in record["metrics"]
        if item["label"] is None and item["average"] != "micro"
    }
    assert {key: result.metric_value for key, result in told.items()} == expected
    result = told["accuracy", None]
    assert (result.dataset_type, result.dataset_split, result.task_type) == ("llmkit/reviews", "test", "text-classification")


def test_a_file_is_no_data_set_of_the_hub_and_names_no_directory(chain: Chain, write: Callable[..., Written]) -> None:
    record = chain.metrics_of(chain.example_rows())
    record["dataset"] = "/home/someone/data/my tickets.jsonl"
    chain.build(record=record)
    written = write()
    data = load(written).data
    assert data.datasets is None and data.language is None
    assert data.eval_results[0].dataset_name == "my tickets.jsonl"
    assert data.eval_results[0].dataset_type == "my-tickets.jsonl"
    text = (written.directory / "model" / "README.md").read_text(encoding="utf-8")
    assert "/home/" not in text and "/data/" not in text and str(chain.root) not in text


def test_a_directory_is_no_data_set_of_the_hub(chain: Chain, write: Callable[..., Written]) -> None:
    record = chain.metrics_of(chain.example_rows())
    record["dataset"] = "tickets/"
    chain.build(record=record)
    data = load(write()).data
    assert data.datasets is None and data.eval_results[0].dataset_name == "tickets"


def test_a_model_that_the_harness_evaluated_is_a_language_model(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build(record=chain.metrics_of(chain.example_rows()) | {"task": "lm-evaluation-harness", "dataset": "parity"})
    card = load(write())
    assert card.data.pipeline_tag == "text-generation"
    assert {result.task_type for result in card.data.eval_results} == {"text-generation"}
    assert "\nA language model, trained with llmkit. It was pretrained" in card.text


def test_license_is_left_out_unless_known(chain: Chain, write: Callable[..., Written]) -> None:
    files = chain.model_files("")
    del files["README.md"]
    chain.artefact("finetune", files)
    chain.evaluate()
    assert load(write()).data.license is None


def test_the_body_tells_use_results_and_lineage(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build()
    text = load(write()).text
    for heading in (
        "What it is",
        "How to use it",
        "Training data",
        "Training settings",
        "Results",
        "Limits",
        "Lineage",
    ):
        assert f"\n## {heading}\n" in text
    assert 'pipeline("text-classification", model=' in text
    assert "| accuracy | 0.600 (0.540 to 0.660) | 0.357 (0.297 to 0.417) | 0.575 (0.515 to 0.635) |" in text
    assert "- `learning_rate`: 5e-05" in text and "`seed`" not in text
    assert chain.made["pretrain"].manifest.fingerprint[:12] in text


PRETRAINED = "It was pretrained by llmkit from raw text"


def test_only_a_model_that_goes_back_to_a_pretraining_is_called_pretrained(
    chain: Chain, write: Callable[..., Written]
) -> None:
    port = "model_name_or_path"

    def is_claimed(model: str) -> bool:
        chain.evaluate(model=model)
        return PRETRAINED in load(write(f"report-{len(list(chain.root.glob('*.partial')))}")).text

    def made(stage: str, base: str, name: str, **config: Any) -> Any:
        place = {port: str(chain.root / base), **config}
        return chain.artefact(stage, chain.model_files(""), inputs={port: base.split("/")[0]}, name=name, config=place)

    chain.finetune()
    made("quantize", "finetune", "int8")
    made("finetune", "finetune", "again")
    assert not any(map(is_claimed, ("finetune", "int8", "again"))), "the base is from the hub"
    chain.build()
    made("quantize", "finetune", "int8")
    made("finetune", "pretrain", "random", random_start=True)
    made("finetune", "random", "after-random")
    assert [is_claimed(model) for model in ("finetune", "int8", "random", "after-random")] == [True, True, False, False]

    files = {f"{start}/{name}": text for start in ("pretrained", "random") for name, text in chain.model_files("").items()}
    config = {port: str(chain.root / "pretrain"), "random_start": False}
    chain.artefact("ablate", files, inputs={port: "pretrain"}, config=config)
    for start in ("pretrained", "random"):
        made("finetune", f"ablate/{start}", "after-ablate")
        assert is_claimed("after-ablate") is (start == "pretrained")
        chain.evaluate(model="ablate", config={port: str(chain.root / "ablate" / start)})
        assert (PRETRAINED in load(write(f"ablated-{start}")).text) is (start == "pretrained")


def test_what_models_were_only_measured_on_is_no_training_data(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build()
    port, size = "model_name_or_path", 1000
    files = {f"pretrained/{name}": text for name, text in chain.model_files("").items()}
    raw = [FileRecord(f"/data/{name}.csv", size, "ab" * 32) for name in ("learned", "held_out")]
    config = {port: str(chain.root / "pretrain"), "train_file": ["/data/learned.csv"], "test_file": "/data/held_out.csv"}
    chain.artefact("ablate", files, inputs={port: "pretrain"}, config=config, raw_inputs=raw)
    measured = [FileRecord("/data/served.csv", size, "cd" * 32)]
    config = {port: str(chain.root / "ablate" / "pretrained"), "test_file": "/data/served.csv"}
    chain.artefact("quantize", chain.model_files(""), inputs={port: "ablate"}, config=config, raw_inputs=measured)
    chain.evaluate(model="quantize")
    listed = load(write("file")).text.partition("## Training data")[2].partition("\n## ")[0]
    assert "learned.csv" in listed and "held_out.csv" not in listed and "served.csv" not in listed

    raw = [FileRecord(f"/lib/llmkit/data/reviews/{name}.jsonl", size, "ab" * 32) for name in ("train", "validation", "test")]
    config = {port: str(chain.root / "pretrain"), "dataset_name": "llmkit/reviews", "test_split": "test"}
    chain.artefact("ablate", files, inputs={port: "pretrain"}, config=config, raw_inputs=raw)
    chain.evaluate(model="ablate", config={port: str(chain.root / "ablate" / "pretrained")})
    listed = load(write("split")).text.partition("## Training data")[2].partition("\n## ")[0]
    assert "train.jsonl" in listed and "validation.jsonl" in listed and "test.jsonl" not in listed


def test_the_model_is_whole_and_holds_nothing_else(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build()
    model = write().directory / "model"
    assert {path.relative_to(model).as_posix() for path in model.rglob("*")} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_weights_are_linked_and_what_people_edit_is_copied(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build()
    source, model = chain.root / "finetune", write().directory / "model"
    assert os.path.samefile(source / "model.safetensors", model / "model.safetensors")
    for name in ("README.md", "config.json", "tokenizer.json"):
        assert not os.path.samefile(source / name, model / name)
        before = sha256_of(source / name)
        (model / name).write_text("edited", encoding="utf-8")
        assert sha256_of(source / name) == before


def test_where_links_are_not_possible_weights_are_copied(
    chain: Chain, write: Callable[..., Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(card.os, "link", refuse)
    chain.build()
    model = write().directory / "model"
    assert sha256_of(model / "model.safetensors") == sha256_of(chain.root / "finetune" / "model.safetensors")
    assert not os.path.samefile(chain.root / "finetune" / "model.safetensors", model / "model.safetensors")


def test_an_evaluated_checkpoint_is_what_is_published(chain: Chain, write: Callable[..., Written]) -> None:
    files = chain.model_files("")
    inner = {f"checkpoint-5/{name}": content for name, content in files.items() if name != "metrics.jsonl"}
    inner["checkpoint-5/model.safetensors"] = chain.safetensors({"small": [7]})
    chain.artefact("finetune", {**files, **inner})
    chain.evaluate(config={"model_name_or_path": str(chain.root / "finetune" / "checkpoint-5")})
    written = write()
    assert written.json["model"]["parameters"] == 7
    published = written.directory / "model" / "model.safetensors"
    assert sha256_of(published) == sha256_of(chain.root / "finetune" / "checkpoint-5" / "model.safetensors")
    moved = chain.root.with_name("moved")
    chain.root.rename(moved)
    chain.root = moved
    assert write("again").json["model"]["parameters"] == 7


def test_weights_that_changed_since_are_not_published(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build()
    path = chain.root / "finetune" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtefactError, match=r"model\.safetensors was changed after it was made"):
        write()


def test_a_card_that_cannot_be_read_is_as_none(chain: Chain, write: Callable[..., Written]) -> None:
    files = chain.model_files("")
    files["README.md"] = "---\n- not\n- a mapping\n---\n"
    chain.artefact("finetune", files)
    chain.evaluate()
    assert load(write()).data.license is None


def test_every_sign_of_markdown_is_escaped() -> None:
    assert markdown.safe("a|b `c` *d* <e> [f](g)\n# h") == "a\\|b \\`c\\` \\*d\\* &lt;e&gt; \\[f\\](g) \\# h"


def test_the_languages_of_the_embedded_reviews_are_those_of_its_rows() -> None:
    import json

    from llmkit.resources import PACKAGE

    files = sorted((PACKAGE / "data" / "reviews").glob("*.jsonl"))
    if not files:
        pytest.skip("the embedded reviews are not here")
    lines = [line for path in files for line in Path(path).read_text(encoding="utf-8").splitlines()]
    assert {json.loads(line)["language"] for line in lines} == {"en", "zh"}
