from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from llmkit.errors import ConfigError, DataError
from llmkit.pipeline.artefact import Artefact
from llmkit.tasks.features import IGNORED
from llmkit.tasks.loading import load_task_model
from llmkit.tasks.settings import Columns
from llmkit.tasks.tables import Row
from llmkit.tasks.translation import Example, Translation
from llmkit.training.ledger import read_ledger
from tests.conftest import TINY_LLAMA

task = Translation("en", "de")

SMALL: dict[str, dict[str, Any]] = {
    "marian": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
    "bart": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
    "t5": {"d_model": 32, "num_layers": 1, "d_ff": 64, "num_heads": 2, "d_kv": 16, "dropout_rate": 0.0},
}
for family in ("marian", "bart"):
    SMALL[family] |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0, "init_std": 0.1}


def toy(count: int, seed: int) -> list[dict[str, str]]:
    """Letters and the same letters in capitals: a language of its own, word by word."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        letters = generator.sample("abcdefgh", generator.randint(1, 3))
        rows.append({"en": " ".join(letters), "de": " ".join(letters).upper()})
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("toy")
    return {"train_file": write(place / "train.jsonl", toy(400, 0)), "validation_file": write(place / "v.jsonl", toy(24, 1))}


QUICK = {
    "task": "translation",
    "source_lang": "en",
    "target_lang": "de",
    "vocab_size": 300,
    "max_length": 24,
    "max_new_tokens": 12,
    "learning_rate": 3e-3,
    "num_train_epochs": 16.0,
    "eval_steps": 200,
    "bf16": False,
    "cpu_threads": 1,
}


@pytest.fixture(scope="module")
def translators(run: Any, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artefact]:
    """A trained model of a family, made once."""
    place, made = tmp_path_factory.mktemp("translators"), dict[str, Artefact]()

    def of(family: str) -> Artefact:
        if family not in made:
            made[family] = run("finetune", place / family, model_type=family, config_overrides=SMALL[family], **files, **QUICK)
        return made[family]

    return of


@pytest.mark.parametrize("family", ["marian", "bart", "t5"])
def test_encoder_decoders_of_three_families_learn_from_random_weights(
    translators: Callable[[str], Artefact], family: str
) -> None:
    made = translators(family)
    assert made.manifest.metrics["validation"]["chrf"] > 70
    assert made.manifest.metrics["validation"]["perplexity"] < 1.5
    loaded, model, tokenizer = load_task_model(str(made.directory))
    assert type(model).__name__.lower().startswith(family)
    (written,) = loaded.write(model, tokenizer, [asked("a c e")], 1)
    assert sorted(written.split()) == ["A", "C", "E"]


def asked(source: str, translation: str = "") -> Example:
    return Example(id="1", place="f:1", source=source, translation=translation)


@pytest.mark.parametrize("family", ["marian", "bart", "t5"])
def test_decoders_are_given_what_the_model_itself_would_make_of_the_labels(
    translators: Callable[[str], Artefact], family: str
) -> None:
    place = translators(family).directory
    loaded, _, tokenizer = load_task_model(str(place))
    model = AutoModelForSeq2SeqLM.from_pretrained(place).eval()
    features = loaded.features([asked("a", "A"), asked("a b c", "A B C")], tokenizer, 24)
    batch = loaded.collator(tokenizer)([features[0], features[1]])
    assert batch["labels"][:, -1].tolist() == [IGNORED, tokenizer.eos_token_id]
    theirs = model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
    assert batch["decoder_input_ids"].tolist() == theirs.tolist()
    with torch.no_grad():
        own = model(**{name: value for name, value in batch.items() if name != "decoder_input_ids"}).loss
        labels = batch.pop("labels")
        ours = loaded.loss(model(**batch), labels)
    assert ours.item() == pytest.approx(own.item(), abs=1e-5)


def test_a_causal_model_translates_after_a_prompt_and_learns_the_translation_alone(
    run: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    settings = {**QUICK, "max_length": 32, "prompt_template": "{source} = "}
    made = run("finetune", tmp_path / "m", model_type="llama", config_overrides=TINY_LLAMA, **files, **settings)
    assert made.manifest.metrics["validation"]["chrf"] > 70
    loaded, model, tokenizer = load_task_model(str(made.directory))
    assert (loaded.prompt_template, loaded.target_lang) == ("{source} = ", "de")
    assert loaded.write(model, tokenizer, [asked("a c e")], 1) == ["A C E"]
    ids, labels = loaded.sequences(asked("a c", "A C"), tokenizer)
    assert tokenizer.decode(ids) == "a c = A C<|endoftext|>"
    assert tokenizer.decode([label for label in labels if label != IGNORED]) == "A C<|endoftext|>"


@pytest.mark.parametrize(
    ("family", "overrides", "context"),
    [
        ("llama", {**TINY_LLAMA, "max_position_embeddings": 64}, 64),
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}, 1024),  # as the new tokenizer says
    ],
)
def test_prompts_have_the_room_that_the_model_has_and_not_that_of_the_training(
    run: Any,
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    family: str,
    overrides: dict[str, Any],
    context: int,
) -> None:
    long = "a b c d e f g h " * 10
    data = {**files, "validation_file": write(tmp_path / "v.jsonl", [*toy(3, 1), {"en": long, "de": "A"}])}
    settings = {**QUICK, "prompt_template": "{source} = ", "max_steps": 1}
    made = run("finetune", tmp_path / "m", model_type=family, config_overrides=overrides, **data, **settings)
    loaded, model, tokenizer = load_task_model(str(made.directory))
    prompts = [loaded.prompt(asked(text), tokenizer) for text in (long[:60], long)]
    assert QUICK["max_length"] < len(prompts[0]) < context - 12
    cut = max(0, len(prompts[1]) - (context - 12))
    found = list(loaded.predict(model, tokenizer, [asked(long[:60]), asked(long)], 2))
    assert [row["tokens_cut"] for row in found] == [0, cut]
    said = f"warning: 1 of 4 validation prompts are cut to {context - 12} tokens when the model writes"
    assert (said in capsys.readouterr().out) == (cut > 0)
    measured = run("evaluate", tmp_path / "e", model_name_or_path=made.directory, test_file=data["validation_file"])
    result = json.loads((measured.directory / "metrics.json").read_text())
    assert result.get("prompts_cut", 0) == (cut > 0)
    assert ("1 prompts were longer than the model has room for, and cut" in capsys.readouterr().out) == (cut > 0)


@pytest.fixture
def without_eos(tmp_path: Path) -> Path:
    """A causal model with a tokenizer of BERT, as Chinese ones have it. What it writes is token 0 whatever it reads, SEP; the
    EOS that its config has by default is beyond its vocabulary."""
    words = ["[SEP]", "[PAD]", "[CLS]", "[UNK]", "[MASK]", "=", "今", "天", *"abcdefghABCDEFGH"]
    place = tmp_path / "base"
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}, do_lower_case=False).save_pretrained(place)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(words), n_embd=16, n_layer=1, n_head=2, n_positions=64))
    model.transformer.wte.weight.data.zero_()
    model.save_pretrained(place)
    return place


def test_a_tokenizer_without_eos_ends_with_its_sep(
    without_eos: Path, run: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    causal = Translation("en", "de", "{source} =", max_new_tokens=8)
    tokenizer = causal.load_tokenizer(str(without_eos))
    ids, labels = causal.sequences(asked("今 天", "A C"), tokenizer)
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "今", "天", "=", "A", "C", "[SEP]"]
    assert [label for label in labels if label != IGNORED] == ids[4:]
    model = GPT2LMHeadModel.from_pretrained(without_eos).eval()
    assert causal.generate(model, tokenizer, [ids[:4]], 1)[1] == [[tokenizer.sep_token_id]]
    settings = {**{name: value for name, value in QUICK.items() if name != "vocab_size"}, "max_steps": 1}
    made = run("finetune", tmp_path / "m", model_name_or_path=without_eos, prompt_template="{source} =", **files, **settings)
    assert load_task_model(str(made.directory))[2].eos_token == "[SEP]"


def test_a_tokenizer_with_neither_eos_nor_sep_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has neither EOS nor SEP to end an answer with"):
        task.load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", ["marian", "t5"])
def test_what_is_written_does_not_depend_on_the_batch(translators: Callable[[str], Artefact], family: str, beams: int) -> None:
    loaded, model, tokenizer = load_task_model(str(translators(family).directory))
    loaded.num_beams = beams
    torch.manual_seed(0)
    for weights in model.parameters():  # an untrained model, which decides narrowly
        weights.data += torch.randn_like(weights) * 0.05
    prompts = [loaded.prompt(asked(row["en"] * (number % 3 + 1)), tokenizer) for number, row in enumerate(toy(17, 5))]
    alone = loaded.generate(model, tokenizer, prompts, 1)[1]
    assert loaded.generate(model, tokenizer, prompts, 8)[1] == alone
    assert len({tuple(ids) for ids in alone}) > 3


def test_the_best_checkpoint_is_taken_without_a_word_on_tied_weights(
    run: Any, files: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quick = {**QUICK, "max_steps": 4, "eval_steps": 2}
    logger = logging.getLogger("transformers")  # its records do not reach the root
    logger.addHandler(caplog.handler)
    try:
        run("finetune", tmp_path / "m", model_type="marian", config_overrides=SMALL["marian"], **files, **quick)
    finally:
        logger.removeHandler(caplog.handler)
    assert not [record for record in caplog.messages if "missing keys" in record]


def test_batches_that_are_accumulated_have_the_loss_of_one(run: Any, files: dict[str, Path], tmp_path: Path) -> None:
    settings = {**files, **QUICK, "model_type": "marian", "config_overrides": SMALL["marian"], "logging_steps": 1}
    settings |= {"global_batch_size": 8, "max_steps": 4, "label_smoothing_factor": 0.1}
    found = [run("finetune", tmp_path / str(at_once), **settings, per_device_train_batch_size=at_once) for at_once in (8, 2)]
    whole, cut = (
        [entry["loss"] for entry in read_ledger(made.directory / "metrics.jsonl") if "loss" in entry] for made in found
    )
    assert cut == pytest.approx(whole, abs=1e-4)


def test_the_validation_loss_weighs_every_token_the_same(translators: Callable[[str], Artefact]) -> None:
    validation = translators("marian").manifest.metrics["validation"]
    assert np.exp(validation["loss"]) == pytest.approx(validation["perplexity"], rel=1e-4)


def rows(*values: dict[str, Any]) -> list[Row]:
    return [Row(f"f.jsonl:{number}", value) for number, value in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"en": "a", "de": "b", "fr": "c"}, Columns(source_lang="en", target_lang="de")),
        ({"source": "a", "target": "b"}, Columns()),
        ({"here": "a", "there": "b"}, Columns(source_column="here", target_column="there")),
        ({"translation": {"fr": "c", "en": "a", "de": "b"}}, Columns(source_lang="en", target_lang="de")),
    ],
)
def test_source_and_target_are_found(row: dict[str, Any], columns: Columns) -> None:
    found = Translation(None, None).read(rows(row), columns)
    assert [(item.source, item.translation) for item in found] == [("a", "b")]


@pytest.mark.parametrize(
    ("row", "columns", "said"),
    [
        ({"translation": {"en": "a", "de": "b"}}, Columns(), "has the languages en, de; say with --source_lang"),
        ({"en": "a", "de": "b"}, Columns(), "which column"),
        ({"en": "a", "de": " "}, Columns(source_lang="en", target_lang="de"), r"no text as its translation: f\.jsonl:1"),
        ({"en": None, "de": "b"}, Columns(source_lang="en", target_lang="de"), r"no text to translate: f\.jsonl:1"),
    ],
)
def test_rows_that_cannot_be_learned_are_named(row: dict[str, Any], columns: Columns, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Translation(None, None).read(rows(row), columns)


def test_predictions_are_asked_for_without_translations() -> None:
    (found,) = task.read(rows({"en": "a"}), Columns(source_lang="en", target_lang="de"), is_labelled=False)
    assert (found.source, found.translation) == ("a", "")


def test_a_long_source_keeps_the_token_that_ends_it(translators: Callable[[str], Artefact]) -> None:
    place = translators("marian").directory
    loaded, _, tokenizer = load_task_model(str(place))
    features = loaded.features([asked("a b c d e f g h", "A"), asked("a", "A")], tokenizer, 5)
    assert len(features[0]["input_ids"]) == 5
    assert features[0]["input_ids"][-1] == tokenizer.eos_token_id
    assert features.facts["truncated"] == 1


def test_an_encoder_decoder_that_does_not_say_how_its_decoder_begins_is_refused() -> None:
    from transformers import T5Config

    config = T5Config()
    with pytest.raises(ConfigError, match="no decoder_start_token_id"):
        Translation("en", "de").adapt_to(config, 8)


def test_the_tokenizer_knows_both_sides(translators: Callable[[str], Artefact]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(translators("marian").directory)
    assert {" a", " A"} <= {tokenizer.decode([index]) for index in range(len(tokenizer))}


def test_chinese_is_divided_into_characters_whatever_its_column_is_called() -> None:
    from llmkit.tasks.translation_metrics import bleu, language_for

    references = ["今天天气很好。", "我们去公园散步。"]
    for named in ("zh", "chinese", "cn", None):
        metric = bleu(language_for(named, references))
        metric.corpus_score(references, [references])
        assert metric.get_signature().info["tok"] == "zh", named
    assert language_for("de", ["Ein Hund läuft."]) == "de"
