from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    Gemma2Config,
    Gemma2ForCausalLM,
)

from llmkit.corpus.documents import Document, count, read_batches
from llmkit.errors import ArtefactError, ConfigError, DataError, LLMKitError
from llmkit.evaluation.compared import compare_runs, describe
from llmkit.evaluation.documents import Tokens, encode, read_documents
from llmkit.evaluation.evaluate import EvaluateConfig
from llmkit.evaluation.language_model import _beginning, _bin, score_windows
from llmkit.evaluation.ngrams import Trigrams
from llmkit.evaluation.strides import plan_windows
from llmkit.pipeline.artefact import Artefact
from llmkit.tasks.features import IGNORED
from llmkit.tasks.predicted import Predicted
from llmkit.tasks.token_losses import TokenScorer

ROOT = Path(__file__).resolve().parents[2]
LONG = "A sentence that says a little, and then goes on to say a little more of the same. " * 6
TEXTS = ["The quick brown fox.", "今天的天气很好，我们去公园散步。", "naïve café 🙂👩‍🚀 ok", "x", LONG, f"{LONG}今天。{LONG}"]


def write(path: Path, texts: list[str], **columns: list[str]) -> Path:
    rows = [{"text": text, **{name: values[i] for name, values in columns.items()}} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def result_of(artefact: Artefact) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    metrics = json.loads((artefact.directory / "metrics.json").read_text(encoding="utf-8"))
    return metrics, pyarrow.parquet.read_table(artefact.directory / "predictions.parquet").to_pylist()


def value(metrics: list[dict[str, Any]], name: str) -> float:
    (found,) = [item["value"] for item in metrics if item["name"] == name]
    return found


@pytest.fixture(scope="module")
def parts(base_model: Artefact) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(base_model.directory, dtype="float32").eval()
    return model, AutoTokenizer.from_pretrained(base_model.directory)


@pytest.fixture(scope="module")
def evaluated(run: Any, base_model: Artefact, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    place = tmp_path_factory.mktemp("lm")
    test = write(place / "t.jsonl", [*TEXTS, ""], source=["a", "b"] * 3 + ["b"], language=["en", "zh", "", "en", "en", "", ""])
    settings = {"model_name_or_path": base_model.directory, "test_file": test, "sample_tokens": 5, "cpu_threads": 1}
    return run("evaluate", place / "e", **settings)


def by_hand(model: Any, tokenizer: Any, text: str, context: int, stride: int) -> np.ndarray:
    """Losses of all tokens of a text, with windows as one writes them without thinking of speed."""
    ids = [tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id, *encode([text], tokenizer)[0]]
    losses: list[float] = []
    for start in range(0, len(ids), stride):
        window = torch.tensor([ids[start : start + context + 1]])
        with torch.no_grad():
            logits = model(window[:, :-1]).logits[0]
        every = torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="none").tolist()
        losses += every[len(losses) - start :]
        if start + context + 1 >= len(ids):
            break
    return np.array(losses)


# --------------------------------------------------------------------------------------------------------------------
# Windows


@given(st.lists(st.integers(0, 300), max_size=20), st.integers(1, 64), st.data())
def test_every_token_is_scored_once_with_its_left_context(lengths: list[int], context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    windows = plan_windows(np.array(lengths, dtype=np.int64), context, stride)
    scored: list[list[int]] = [[] for _ in lengths]
    for document, start, stop, first in zip(windows.document, windows.start, windows.stop, windows.first, strict=True):
        assert 0 < stop - start <= context
        assert stop <= lengths[document], "nothing behind the document is read"
        assert start == 0 or first - start >= context - stride + 1
        scored[document] += range(first, stop + 1)
    assert scored == [list(range(1, length + 1)) for length in lengths]


@pytest.mark.parametrize(("context", "stride"), [(32, 32), (32, 16), (32, 5), (7, 3)])
def test_losses_are_those_of_a_plain_loop(parts: tuple[Any, Any], tmp_path: Path, context: int, stride: int) -> None:
    model, tokenizer = parts
    tokens = Tokens(tmp_path, tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id)
    tokens.fill((Document(text, f"d:{i}", "d") for i, text in enumerate(TEXTS)), tokenizer)
    windows = plan_windows(tokens.lengths, context, stride)
    rows = np.array(score_windows(TokenScorer(model), tokens, windows, context.bit_length()))
    found = np.zeros(len(TEXTS))
    np.add.at(found, windows.document, rows[:, 0])
    expected = [by_hand(model, tokenizer, text, context, stride).sum() for text in TEXTS]
    assert found == pytest.approx(expected, rel=1e-5)
    assert rows[:, 2:].sum(axis=1) == pytest.approx(rows[:, 0])


def test_a_tokenizer_that_was_saved_with_truncation_cuts_no_document(base_model: Artefact, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_model.directory)
    expected = encode(TEXTS, tokenizer)
    tokenizer(["x"], truncation=True, max_length=4, padding="max_length")
    tokenizer.save_pretrained(tmp_path)
    assert encode(TEXTS, AutoTokenizer.from_pretrained(tmp_path)) == expected


def test_logits_are_made_for_targets_alone_and_say_the_same(parts: tuple[Any, Any]) -> None:
    model, _ = parts
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 500, (3, 12), generator=generator)
    targets = torch.where(torch.rand((3, 12), generator=generator) < 0.4, torch.randint(3, 500, (3, 12)), IGNORED)
    seen = []
    hook = model.get_output_embeddings().register_forward_hook(lambda layer, given, made: seen.append(made.shape))
    scorer = TokenScorer(model)
    seen.clear()
    losses, right = scorer(ids, targets)
    hook.remove()
    asked = int((targets != IGNORED).sum())
    assert sum(shape[0] for shape in seen if len(shape) == 2) == asked
    with torch.no_grad():
        logits = model(ids).logits[targets != IGNORED]
    expected = torch.nn.functional.cross_entropy(logits, targets[targets != IGNORED], reduction="none")
    assert losses == pytest.approx(expected.numpy(), abs=1e-5)
    assert right.tolist() == (logits.argmax(-1) == targets[targets != IGNORED]).tolist()


def test_logits_that_are_capped_after_the_output_layer_are_those_of_the_model() -> None:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}
    torch.manual_seed(0)
    config = Gemma2Config(vocab_size=40, num_key_value_heads=2, final_logit_softcapping=0.02, **shape)
    model = Gemma2ForCausalLM(config).eval()
    ids = torch.arange(2, 14).reshape(2, 6)
    targets = torch.roll(ids, -1, dims=1)
    with torch.no_grad():
        logits = model(ids).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    assert TokenScorer(model)(ids, targets)[0] == pytest.approx(expected.numpy(), abs=1e-6)


def test_a_model_that_sees_what_comes_is_refused() -> None:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match="a bert sees the tokens that it is to foretell"):
        TokenScorer(BertLMHeadModel(BertConfig(**shape)).eval())
    TokenScorer(BertLMHeadModel(BertConfig(**shape, is_decoder=True)).eval())


def test_a_model_that_gives_nan_is_told_as_one() -> None:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}
    model = BertLMHeadModel(BertConfig(**shape, is_decoder=True)).eval()
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(ConfigError, match="the model gives NaN or infinity"):
        TokenScorer(model)


def test_bins_are_powers_of_two() -> None:
    assert _bin(np.array([1, 2, 3, 4, 7, 8, 1023, 1024])).tolist() == [0, 1, 1, 2, 2, 3, 9, 10]


# --------------------------------------------------------------------------------------------------------------------
# The stage


def test_metrics_are_ratios_of_sums_over_documents(evaluated: Artefact, parts: tuple[Any, Any]) -> None:
    metrics, rows = result_of(evaluated)
    model, tokenizer = parts
    context = metrics["language_model"]["context"]
    assert (context, metrics["language_model"]["stride"]) == (32, 16)
    losses = [by_hand(model, tokenizer, text, context, 16) for text in TEXTS]
    assert [row["loss"] for row in rows] == pytest.approx([loss.sum() for loss in losses], rel=1e-5)
    assert [row["tokens"] for row in rows] == [len(loss) for loss in losses]
    assert [row["bytes"] for row in rows] == [len(text.encode()) for text in TEXTS]
    total, tokens = sum(loss.sum() for loss in losses), sum(map(len, losses))
    expected = total / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    assert value(metrics["metrics"], "bits_per_byte") == pytest.approx(expected, rel=1e-5)
    assert value(metrics["metrics"], "perplexity") == pytest.approx(math.exp(total / tokens), rel=1e-5)
    assert value(metrics["metrics"], "token_accuracy") == sum(row["right_tokens"] for row in rows) / tokens
    for metric in metrics["metrics"]:
        assert metric["low"] <= metric["value"] <= metric["high"]
    assert metrics["n"] == len(rows) == len(TEXTS)
    assert [row["n_gram"] for row in metrics["leakage"]["examples"]] == ["今天的天气很好,我们去公园散"]
    assert metrics["language_model"]["empty_documents"] == 1
    assert evaluated.manifest.metrics["bits_per_byte"]["value"] == value(metrics["metrics"], "bits_per_byte")
    assert not [path for path in evaluated.directory.iterdir() if path.name.startswith(".")], "scratch files are gone"


def test_documents_of_the_training_are_told_apart(run: Any, base_model: Artefact, tmp_path: Path) -> None:
    tokens = base_model.input("tokens")
    corpus = tokens.input("corpus") if tokens else None
    assert corpus is not None
    batch = next(read_batches(corpus.directory, "train", ("text",)))
    long = [text for text in batch.column("text").to_pylist() if len(text.split()) > 40][:3]
    texts = [
        *long,
        "A lamp that nobody has lit since the war stands at the end of the pier, and gulls nest in it.",
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"id": str(k), "text": text}) + "\n" for k, text in enumerate(texts)), encoding="utf-8")
    made = run("evaluate", tmp_path / "e", model_name_or_path=base_model.directory, test_file=path, baselines=False)
    metrics, rows = result_of(made)
    assert [row["contaminated"] for row in rows] == [True, True, True, False]
    assert metrics["leakage"]["contaminated"]["examples"] == 3
    assert [metric["n"] for metric in metrics["leakage"]["metrics"]["without"]] == [1, 1, 1]
    assert [source["name"] for source in metrics["leakage"]["sources"]] == ["pretraining"]
    page = run("report", tmp_path / "r", evaluation=made.directory).directory / "report.html"
    told = "3 documents (75.0%) stand by half of the first 2,000 characters or more in what the model was trained on."
    assert told in page.read_text(encoding="utf-8")


def test_parts_add_up_to_the_whole(evaluated: Artefact) -> None:
    metrics, rows = result_of(evaluated)
    found = metrics["language_model"]
    assert sum(item["tokens"] for item in found["positions"]) == found["tokens"]
    bits = sum(item["tokens"] * item["bits_per_token"] for item in found["positions"])
    assert bits == pytest.approx(sum(row["loss"] for row in rows) / math.log(2))
    assert {item["name"] for item in found["languages"]} == {"en", "zh", "Latin script"}
    assert {item["name"] for item in found["sources"]} == {"a", "b"}
    for part in ("sources", "languages"):
        assert sum(item["bytes"] for item in found[part]) == found["bytes"]
        assert sum(item["documents"] for item in found[part]) == len(rows)
        total = sum(item["bytes"] * item["bits_per_byte"] for item in found[part])
        assert total / found["bytes"] == pytest.approx(value(metrics["metrics"], "bits_per_byte"))
    assert len(found["samples"]) == 3
    assert all(
        sample["prompt"] and text.startswith(sample["prompt"][:1])
        for sample, text in zip(found["samples"], TEXTS[:3], strict=True)
    )


def test_baselines_are_measured_on_the_same_documents(evaluated: Artefact, parts: tuple[Any, Any]) -> None:
    metrics, rows = result_of(evaluated)
    assert [item["name"] for item in metrics["baselines"]] == ["uniform", "zlib", "trigrams"]
    uniform, _, trigrams = metrics["baselines"]
    size, tokens = sum(row["bytes"] for row in rows), sum(row["tokens"] for row in rows)
    vocabulary = len(parts[1])
    assert value(uniform["metrics"], "bits_per_byte") == pytest.approx(math.log2(vocabulary) * tokens / size)
    assert value(uniform["metrics"], "perplexity") == pytest.approx(vocabulary)
    assert value(trigrams["metrics"], "perplexity") < vocabulary
    ours = value(metrics["metrics"], "bits_per_byte")
    for baseline, comparison in zip(metrics["baselines"], metrics["comparison"], strict=True):
        assert comparison["difference"] == pytest.approx(ours - value(baseline["metrics"], "bits_per_byte"))


def test_a_text_file_and_a_held_out_split_are_documents_too(
    run: Any, base_model: Artefact, corpus: Artefact, tokens: Artefact, tmp_path: Path
) -> None:
    (tmp_path / "t.txt").write_text("One text.\n\nAnother one.\n", encoding="utf-8")
    shared = {"model_name_or_path": base_model.directory, "sample_prompts": [], "cpu_threads": 1, "baselines": False}
    whole = run("evaluate", tmp_path / "a", test_file=tmp_path / "t.txt", **shared)
    cut = run("evaluate", tmp_path / "b", test_file=tmp_path / "t.txt", sample_by="paragraph", **shared)
    assert (whole.manifest.metrics["n"], cut.manifest.metrics["n"]) == (1, 2)
    assert whole.manifest.metrics["bits_per_byte"]["low"] is None, "one document has no spread"
    made = [run("evaluate", tmp_path / item.directory.name, corpus=item.directory, **shared) for item in (corpus, tokens)]
    assert made[0].manifest.metrics == made[1].manifest.metrics
    assert made[0].manifest.metrics["n"] == count(corpus.directory, "validation")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stride": 40}, "stride: 40 is more than the context, 32"),
        ({"max_length": 64}, "max_length: 64 is more than the 32 tokens"),
        ({"stride": 0}, "stride: is 0"),
        ({"task": "text-classification", "stride": 4}, "stride: is a setting of language-modeling"),
    ],
)
def test_windows_that_cannot_be_are_refused(
    run: Any, base_model: Artefact, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    test = write(tmp_path / "t.jsonl", ["a text"])
    with pytest.raises(ConfigError, match=said):
        run("evaluate", tmp_path / "e", model_name_or_path=base_model.directory, test_file=test, **settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"selfcheck": True}, "selfcheck: is no setting of language-modeling"),
        ({"slice_by": ["source"], "task": "language-modeling"}, "slice_by: is no setting of language-modeling"),
    ],
)
def test_settings_of_other_tasks_are_refused(
    run: Any, base_model: Artefact, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    test = write(tmp_path / "t.jsonl", ["a text"])
    with pytest.raises(ConfigError, match=said):
        run("evaluate", tmp_path / "e", model_name_or_path=base_model.directory, test_file=test, **settings)


def test_a_task_model_takes_no_settings_of_windows(
    run: Any, classifier: Artefact, toy_files: tuple[Path, Path], tmp_path: Path
) -> None:
    given = {"model_name_or_path": classifier.directory, "test_file": toy_files[1], "stride": 8, "sample_by": "line"}
    with pytest.raises(ConfigError, match="stride: is a setting of language-modeling") as failure:
        run("evaluate", tmp_path / "e", **given)
    assert "sample_by: " in str(failure.value)


def test_documents_are_those_of_the_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(name: str, configuration: Any, *, revision: str, **more: Any) -> list[dict[str, str]]:
        return [{"text": f"{name} at {revision}"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    config = EvaluateConfig(model_name_or_path="m", dataset_name="some/texts", dataset_revision="v1")
    assert [document.text for document in read_documents(config)] == ["some/texts at v1"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"txt": 1}', "has no 'text'"),
        ('{"text": null}', "empty"),
        ('{"text": "\\ud800"}', "surrogate"),
        ('{"text": ""}', "nothing"),
    ],
)
def test_rows_that_are_no_documents_are_named(run: Any, base_model: Artefact, tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "t.jsonl").write_text(line + "\n")
    settings = {"model_name_or_path": base_model.directory, "test_file": tmp_path / "t.jsonl", "task": "language-modeling"}
    with pytest.raises(DataError, match=said):
        run("evaluate", tmp_path / "e", **settings)


def test_a_base_model_with_labelled_texts_is_still_told_that_it_has_learned_no_task(
    run: Any, base_model: Artefact, tmp_path: Path
) -> None:
    test = write(tmp_path / "t.jsonl", ["a", "b"], label=["x", "y"])
    with pytest.raises(LLMKitError, match="has learned no task of llmkit"):
        run("evaluate", tmp_path / "e", model_name_or_path=base_model.directory, test_file=test)


def test_documents_that_differ_behind_what_is_kept_of_them_are_not_compared(
    run: Any, base_model: Artefact, tmp_path: Path
) -> None:
    shared = {"model_name_or_path": base_model.directory, "sample_prompts": [], "cpu_threads": 1, "baselines": False}
    texts = {"a": LONG * 5, "same": LONG * 5, "other": LONG * 5 + "x"}
    for name, text in texts.items():
        test = write(tmp_path / f"{name}.jsonl", [text])
        run("evaluate", tmp_path / name, test_file=test, **shared)
    found = compare_runs([str(tmp_path / "a"), str(tmp_path / "same")])
    assert "(no interval)" in describe(found, 3), "one document has no spread"
    with pytest.raises(ArtefactError, match=r"their examples differ\. The first is number 1"):
        compare_runs([str(tmp_path / "a"), str(tmp_path / "other")])


# --------------------------------------------------------------------------------------------------------------------
# Long runs


def test_weights_that_changed_at_one_path_are_never_answered_with_old_losses(
    run: Any, base_model: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of a result change where they lie, beside a manifest that knows nothing of it."""
    place = tmp_path / "m"
    shutil.copytree(base_model.directory, place)
    shared = {"model_name_or_path": place, "test_file": write(tmp_path / "t.jsonl", TEXTS), "cpu_threads": 1}
    shared |= {"baselines": False, "sample_prompts": [], "per_device_eval_batch_size": 2}
    old = run("evaluate", tmp_path / "old", **shared)
    stop_after(monkeypatch, 3)
    with pytest.raises(Stopped):
        run("evaluate", tmp_path / "e", **shared)
    monkeypatch.undo()
    model = AutoModelForCausalLM.from_pretrained(place)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    model.save_pretrained(place)
    new = run("evaluate", tmp_path / "e", **shared)
    assert new.manifest.metrics["bits_per_byte"] != old.manifest.metrics["bits_per_byte"]
    assert new.manifest.digest == run("evaluate", tmp_path / "again", **shared).manifest.digest
    with pytest.raises(LLMKitError, match="holds a result that differs in changed_weights"):
        run("evaluate", tmp_path / "old", **shared)


def test_what_another_job_has_predicted_is_not_gone_on_with(tmp_path: Path) -> None:
    job = {"model": {"model.safetensors": "1"}, "input": "2", "settings": {}}
    for other in ({**job, "model": {"model.safetensors": "3"}}, {**job, "input": "3"}, {**job, "settings": {"stride": 1}}):
        begun = Predicted(tmp_path)
        assert begun.begin(job, force=False) == 0
        begun.append([[1.0], [2.0]])
        assert Predicted(tmp_path).begin(job, force=False) == 2
        assert list(Predicted(tmp_path).rows()) == [[1.0], [2.0]]
        assert Predicted(tmp_path).begin(other, force=False) == 0


class Stopped(Exception):
    pass


def stop_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> list[int]:
    """Have scoring save each batch, and fail before another one; the list gets the windows of each batch."""
    from llmkit.evaluation import language_model

    score, seen = language_model.score_windows, []

    def counted(scorer: Any, tokens: Any, windows: Any, bins: int) -> Any:
        if len(seen) == batches:
            raise Stopped
        seen.append(len(windows))
        return score(scorer, tokens, windows, bins)

    monkeypatch.setattr(language_model, "score_windows", counted)
    monkeypatch.setattr(language_model, "_SAVED_EVERY", -1.0)
    return seen


def test_a_run_that_stopped_goes_on_where_it_was_and_ends_the_same(
    run: Any, base_model: Artefact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = {"model_name_or_path": base_model.directory, "test_file": write(tmp_path / "t.jsonl", TEXTS), "cpu_threads": 1}
    shared |= {"sample_prompts": [], "per_device_eval_batch_size": 2}
    whole = run("evaluate", tmp_path / "whole", **shared)
    stop_after(monkeypatch, 3)
    with pytest.raises(Stopped):
        run("evaluate", tmp_path / "e", **shared)
    monkeypatch.undo()
    scored = stop_after(monkeypatch, 1000)
    made = run("evaluate", tmp_path / "e", **shared)
    windows = result_of(whole)[0]["language_model"]["windows"]
    assert f"goes on after the 6 of {windows} windows" in capsys.readouterr().out
    assert sum(scored) == windows - 6
    assert made.manifest.digest == whole.manifest.digest


@pytest.mark.slow
def test_a_killed_run_goes_on(base_model: Artefact, tmp_path: Path) -> None:
    """A real process, ended by SIGKILL once it has something on disk."""
    write(tmp_path / "t.jsonl", [f"{number} {LONG}" for number in range(100)])
    words = ["--model_name_or_path", str(base_model.directory), "--test_file", str(tmp_path / "t.jsonl"), "--no_baselines"]
    words += ["--per_device_eval_batch_size", "1", "--stride", "8", "--cpu_threads", "1", "--sample_tokens", "2"]
    command = [sys.executable, "-m", "llmkit", "evaluate", *words, "--output_dir"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen([*command, str(tmp_path / "e")], env=environment, stdout=subprocess.DEVNULL)
    kept = tmp_path / "e.partial" / ".language-model" / "predictions.jsonl"
    deadline = time.monotonic() + 120
    while not kept.exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert kept.exists() and not (tmp_path / "e").exists()
    done = subprocess.run([*command, str(tmp_path / "e")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "goes on after the" in done.stdout
    rows = pyarrow.parquet.read_table(tmp_path / "e" / "predictions.parquet").to_pylist()
    assert len(rows) == 100 and all(row["loss"] > 0 for row in rows)


def test_memory_does_not_grow_with_the_texts(parts: tuple[Any, Any], tmp_path: Path) -> None:
    import tracemalloc

    def peak(count: int) -> int:
        place = tmp_path / str(count)
        place.mkdir()
        tracemalloc.start()
        tokens = Tokens(place, 0)
        tokens.fill((Document(f"{number} {LONG}", f"d:{number}", "d") for number in range(count)), parts[1])
        assert sum(len(batch) for batch in tokens.told()) == len(tokens) == count
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(600), peak(1800)  # more than two batches, so that both hold as many texts at once
    assert many - few < 1200 * 200, "of a document only a few numbers stay"


# --------------------------------------------------------------------------------------------------------------------
# The n-gram model


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(0, 5), st.integers(0, 5))
def test_probabilities_of_trigrams_add_up_to_one(stream: list[int], before: int, last: int) -> None:
    model = Trigrams(np.array(stream), vocab_size=7, end=6)
    every = np.arange(7)
    found = model.probabilities(np.full(7, before), np.full(7, last), every)
    assert found.min() > 0
    assert found.sum() == pytest.approx(1)


def test_trigrams_know_what_they_have_seen() -> None:
    stream = np.tile([1, 2, 3, 0], 50)
    model = Trigrams(stream, vocab_size=10, end=0)
    assert model.losses(np.array([1, 2, 3])).sum() < model.losses(np.array([3, 2, 1])).sum() / 3
    assert len(model.losses(np.zeros(0, dtype=np.int64))) == 0


# --------------------------------------------------------------------------------------------------------------------
# The report


@given(st.lists(st.sampled_from("a天🙂é ٣"), min_size=1, max_size=40).map("".join))
def test_a_prompt_ends_with_a_whole_character(
    tmp_path_factory: pytest.TempPathFactory, parts: tuple[Any, Any], text: str
) -> None:
    tokens = Tokens(tmp_path_factory.mktemp("prompt"), 0)
    tokens.fill(iter([Document(text, "d:0", "d")]), parts[1])
    for length in range(1, int(tokens.lengths[0]) + 1):
        assert text.startswith(_beginning(parts[1], tokens, 0, length))


def test_the_page_and_the_card_show_it(run: Any, evaluated: Artefact, tmp_path: Path) -> None:
    made = run("report", tmp_path / "r", evaluation=evaluated.directory)
    html = (made.directory / "report.html").read_text(encoding="utf-8")
    found = result_of(evaluated)[0]["language_model"]
    assert f"{found['tokens']:,} tokens in {found['bytes']:,} bytes" in html
    for title in ("Loss by how many tokens the model has in view", "By source", "By language or script", "What it writes"):
        assert title in html
    assert "better than" in html or "worse than" in html or "not clearly different from" in html
    card = (made.directory / "model" / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-generation" in card
    assert "| zh | 1 |" in card
