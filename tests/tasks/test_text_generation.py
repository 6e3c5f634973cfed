from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, pipeline

from llmkit.errors import ConfigError, DataError
from llmkit.pipeline.artefact import Artefact
from llmkit.tasks.features import IGNORED
from llmkit.tasks.language import packed
from llmkit.tasks.loading import load_task_model
from llmkit.tasks.settings import Columns
from llmkit.tasks.tables import Row
from llmkit.tasks.text_generation import CHAT_TEMPLATE, Example, TextGeneration
from llmkit.training.ledger import read_ledger

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

WORDS = ["red", "blue", "green", "big", "small", "old", "new", "dog", "cat", "house"]


def chats(count: int, seed: int) -> list[dict[str, Any]]:
    """Somebody asks for a word to be said; sometimes twice, sometimes after a system message."""
    generator, rows = random.Random(seed), []
    for number in range(count):
        messages = [{"role": "system", "content": "Be kind."}] if number % 5 == 0 else []
        for _ in range(1 + (number % 3 == 0)):
            word = generator.choice(WORDS)
            messages += [{"role": "user", "content": f"Say {word}"}, {"role": "assistant", "content": word}]
        rows.append({"messages": messages})
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("chats")
    train, validation = write(place / "train.jsonl", chats(160, 0)), write(place / "v.jsonl", chats(20, 1))
    return {"train_file": train, "validation_file": validation}


QUICK = {
    "task": "text-generation",
    "max_length": 32,
    "max_new_tokens": 8,
    "learning_rate": 5e-3,
    "num_train_epochs": 6.0,
    "per_device_train_batch_size": 8,
    "bf16": False,
    "cpu_threads": 1,
}


@pytest.fixture(scope="module")
def chatting(run: Any, base_model: Artefact, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """The tiny base model, having learned to answer."""
    place = tmp_path_factory.mktemp("chatting") / "m"
    return run("finetune", place, model_name_or_path=base_model.directory, **files, **QUICK)


def of_messages(*turns: tuple[str, str]) -> Example:
    *before, (_, completion) = turns
    return Example(
        id="1", place="f:1", messages=[{"role": role, "content": text} for role, text in before], completion=completion
    )


@pytest.fixture(scope="module")
def words(base_model: Artefact) -> Any:
    return AutoTokenizer.from_pretrained(base_model.directory)


said = st.text(st.sampled_from("ab 今。\n<|>:"), min_size=1, max_size=8).map(str.strip).filter(bool)
conversations = st.tuples(st.booleans(), st.lists(st.tuples(said, said), min_size=1, max_size=3)).map(
    lambda drawn: [
        *([("system", "Be kind.")] if drawn[0] else []),
        *(turn for asked, answered in drawn[1] for turn in (("user", asked), ("assistant", answered))),
    ]
)


@pytest.fixture(scope="module")
def tokenizers(base_model: Artefact) -> dict[str, Any]:
    """One without a chat template, and one as others have it: turns between special tokens, of which one is the EOS."""
    ours, theirs = (AutoTokenizer.from_pretrained(base_model.directory) for _ in range(2))
    theirs.add_special_tokens({"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"})
    theirs.chat_template = CHATML
    return {"ours": ours, "theirs": theirs}


@pytest.mark.parametrize("kind", ["ours", "theirs"])
@given(turns=conversations)
@settings(max_examples=60, deadline=None)
def test_what_is_learned_of_a_conversation_are_the_answers_and_their_ends(
    tokenizers: dict[str, Any], kind: str, turns: list[tuple[str, str]]
) -> None:
    tokenizer = tokenizers[kind]
    ids, labels = TextGeneration(True).sequences(of_messages(*turns), tokenizer)
    answers = [text + tokenizer.eos_token for role, text in turns if role == "assistant"]
    assert tokenizer.decode([label for label in labels if label != IGNORED]) == "".join(answers)
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
    messages = [{"role": role, "content": text} for role, text in turns]
    template = tokenizer.chat_template or CHAT_TEMPLATE
    whole = tokenizer.apply_chat_template(messages, tokenize=False, chat_template=template)
    assert whole == tokenizer.decode(ids) + "\n", "the line end after the last turn is nothing to read or learn"
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True, chat_template=template)
    assert tokenizer.decode(TextGeneration(True).prompt(of_messages(*turns), tokenizer)) == prompt


def test_transformers_finds_the_same_part_of_a_conversation(words: Any) -> None:
    turns = [("user", "a"), ("assistant", "b c"), ("user", "d"), ("assistant", "今")]
    messages = [{"role": role, "content": text} for role, text in turns]
    theirs = words.apply_chat_template(
        messages, chat_template=CHAT_TEMPLATE, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, labels = TextGeneration(True).sequences(of_messages(*turns), words)
    assert theirs["input_ids"][: len(ids)] == ids
    assert theirs["assistant_masks"][: len(ids)] == [int(label != IGNORED) for label in labels]


def test_a_template_that_rewrites_what_was_said_is_refused(words: Any) -> None:
    words.chat_template = "{{ messages | length }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    try:
        with pytest.raises(ConfigError, match="differently once it goes on"):
            TextGeneration(True).sequences(of_messages(("user", "a"), ("assistant", "b")), words)
    finally:
        words.chat_template = None


REWRITING = (
    "{% for message in messages %}{{ message['role'] + ':' }}"
    "{% if loop.last or message['role'] != 'assistant' %}{{ message['content'] }}{% endif %}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\nassistant:' }}{% endif %}"
)
"""Earlier answers are left out, as Qwen3 leaves out what was thought."""


@pytest.mark.parametrize(
    "template", [REWRITING, "{{ messages | length }}{% for message in messages %}{{ message['content'] }}{% endfor %}"]
)
def test_a_template_that_rewrites_what_was_said_costs_no_prediction(base_model: Artefact, words: Any, template: str) -> None:
    example = of_messages(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d e"))
    task, model = TextGeneration(True, max_new_tokens=4), AutoModelForCausalLM.from_pretrained(base_model.directory).eval()
    words.chat_template = template
    try:
        with pytest.raises(ConfigError, match="differently once it goes on"):
            task.sequences(example, words)
        ids, labels = task.reference(example, words)
        (row,) = task.predict(model, words, [example], 1)
        prompt = task.prompt(example, words)
    finally:
        words.chat_template = None
    assert ids[: len(prompt)] == prompt
    assert words.decode([label for label in labels if label != IGNORED]) == "d e<|endoftext|>"
    assert row["tokens"] == len(ids) - len(prompt)
    assert row["loss"] > 0


def test_predictions_are_asked_for_without_the_answers_that_rows_have() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (found,) = TextGeneration(True).read(rows({"messages": turns}), Columns(), is_labelled=False)
    assert (found.messages, found.completion) == (turns[:1], "")


def test_what_the_assistant_says_first_is_read_and_not_learned(words: Any) -> None:
    turns = [("gpt", "hello"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")]
    row = {"conversations": [{"from": name, "value": text} for name, text in turns]}
    task = TextGeneration(True)
    (example,) = task.read(rows(row), Columns())
    ids, labels = task.sequences(example, words)
    assert words.decode(ids).startswith("Assistant:\nhello<|endoftext|>\nUser:\na\n\nAssistant:\nb<|endoftext|>")
    assert words.decode([label for label in labels if label != IGNORED]) == "b<|endoftext|>d<|endoftext|>"
    assert task.facts([example]) == {"turns": 2}


def test_of_prompt_and_completion_the_completion_and_its_end_are_learned(words: Any) -> None:
    example = Example(id="1", place="f:1", prompt="Q: one\nA:", completion=" two")
    ids, labels = TextGeneration(False).sequences(example, words)
    assert words.decode(ids) == "Q: one\nA: two<|endoftext|>"
    assert words.decode([label for label in labels if label != IGNORED]) == " two<|endoftext|>"


def test_a_long_example_is_cut_and_one_without_a_learned_token_set_aside(words: Any) -> None:
    task = TextGeneration(False)
    data = [
        Example(id="1", place="f:1", prompt="word " * 30, completion="a"),
        Example(id="2", place="f:2", prompt="a", completion="word " * 30),
        Example(id="3", place="f:3", prompt="a", completion="b"),
    ]
    features = task.features(data, words, 10)
    assert len(features) == 2
    assert (features.facts["truncated"], features.facts["set_aside"]) == (2, 1)
    assert words.eos_token_id not in features[0]["labels"], "a completion that is cut does not end there"
    assert features[1]["labels"][-1] == words.eos_token_id
    with pytest.raises(DataError, match="of none of the 1 examples a token of the target lies within max_length, 10 tokens"):
        task.features(data[:1], words, 10)


@given(st.lists(st.integers(1, 90), min_size=1, max_size=12), st.floats(0.01, 0.99), st.integers(0, 10))
def test_prompts_are_held_out_as_far_as_they_fit_or_else_the_rarest(sizes: list[int], fraction: float, seed: int) -> None:
    prompts = [f"prompt {number}" for number, size in enumerate(sizes) for _ in range(size)]
    data = [Example(id=str(row), place=f"f:{row}", prompt=prompt, completion="a") for row, prompt in enumerate(prompts)]
    train, held = TextGeneration(False).hold_out(data, fraction, seed)
    assert sorted(int(item.id) for item in [*train, *held]) == list(range(len(data)))
    assert train and bool(held) == (len(sizes) > 1)
    assert not {item.prompt for item in train} & {item.prompt for item in held}
    assert len(held) <= max(1, round(len(data) * fraction), min(sizes))


def test_validation_examples_without_a_learned_token_are_counted_and_told(
    run: Any, base_model: Artefact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"Say {word}: ", "completion": word} for word in WORDS]
    files = {
        "train_file": write(tmp_path / "train.jsonl", rows),
        "validation_file": write(tmp_path / "v.jsonl", [*rows[:4], {"prompt": "Say " + "red " * 60, "completion": "red"}]),
    }
    settings = {**QUICK, "num_train_epochs": 1.0}
    made = run("finetune", tmp_path / "m", model_name_or_path=base_model.directory, **files, **settings)
    validation = made.manifest.metrics["validation"]
    assert (validation["examples"], validation["truncated"], validation["set_aside"]) == (5, 1, 1)
    told = capsys.readouterr().out
    assert "warning: 1 validation examples set aside: within 32 tokens nothing is to be learned" in told
    assert "training examples set aside" not in told


def test_packed_examples_have_the_losses_that_they_have_alone(base_model: Artefact, words: Any) -> None:
    task = TextGeneration(True)
    data = task.read([Row(f"f:{number}", row) for number, row in enumerate(chats(12, 3))], Columns())
    features = task.features(data, words, 64)
    rows = packed(features, 64)
    assert 1 < len(rows) < len(features)
    model = AutoModelForCausalLM.from_pretrained(base_model.directory).eval()
    collate = task.collator(words)

    def of_tokens(found: Any) -> list[float]:
        batch = collate([found[index] for index in range(len(found))])
        labels = batch.pop("labels")
        with torch.no_grad():
            logits = model(**batch, use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
        return sorted(losses[labels[:, 1:] != IGNORED].tolist())

    alone, together = of_tokens(features), of_tokens(rows)
    assert together == pytest.approx(alone, abs=1e-4)
    assert len(alone) == features.facts["completion_tokens"]
    assert int(rows.lengths().sum()) == int(features.lengths().sum())


def test_packing_is_refused_where_examples_would_see_each_other(run: Any, files: dict[str, Path], tmp_path: Path) -> None:
    config = {"hidden_size": 32, "num_hidden_layers": 1, "state_size": 4, "expand": 2}
    with pytest.raises(ConfigError, match="packing: mamba"):
        run(
            "finetune",
            tmp_path / "m",
            model_type="mamba",
            config_overrides=config,
            vocab_size=300,
            packing=True,
            **files,
            **QUICK,
        )


def test_a_conversation_is_answered_and_ended_as_in_transformers(chatting: Artefact, files: dict[str, Path]) -> None:
    metrics = chatting.manifest.metrics
    assert metrics["conversations"] is True
    assert metrics["validation"]["perplexity"] < 4
    task, model, tokenizer = load_task_model(str(chatting.directory))
    assert tokenizer.chat_template == CHAT_TEMPLATE
    generate = pipeline("text-generation", model=str(chatting.directory))
    for word in WORDS[:3]:
        asked = of_messages(("user", f"Say {word}"), ("assistant", ""))
        (row,) = task.predict(model, tokenizer, [asked], 1)
        assert set(row) == {"prediction", "score", "tokens_cut"}
        assert 0 < row["score"] <= 1
        theirs = generate(asked.messages, max_new_tokens=8, do_sample=False)[0]["generated_text"][-1]["content"]
        assert row["prediction"] == theirs.strip()


def test_what_the_model_makes_of_references_is_what_validation_says(chatting: Artefact, files: dict[str, Path]) -> None:
    from llmkit.tasks.tables import read_table

    task, model, tokenizer = load_task_model(str(chatting.directory))
    data = task.read(read_table(files["validation_file"]), Columns())
    rows = list(task.predict(model, tokenizer, data, 4))
    loss, tokens, right = (sum(row[name] for row in rows) for name in ("loss", "tokens", "right_tokens"))
    validation = chatting.manifest.metrics["validation"]
    assert np.exp(loss / tokens) == pytest.approx(validation["perplexity"], rel=1e-4)
    assert right / tokens == pytest.approx(validation["token_accuracy"], abs=1e-6)
    assert validation["loss"] == pytest.approx(loss / tokens, rel=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba"])
def test_what_is_written_does_not_depend_on_the_batch(kind: str, words: Any, base_model: Artefact) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(1)
    size = {"vocab_size": len(words), "bos_token_id": 0, "eos_token_id": words.eos_token_id}
    model: Any
    if kind == "llama":
        model = AutoModelForCausalLM.from_pretrained(base_model.directory)
    elif kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(**size, n_embd=32, n_layer=2, n_head=2, n_positions=64))
    else:
        model = MambaForCausalLM(MambaConfig(**size, hidden_size=32, num_hidden_layers=2, state_size=4))
    for weights in model.parameters():
        weights.data += torch.randn_like(weights) * 0.1
    task = TextGeneration(False, max_new_tokens=10)
    words.model_max_length = 64
    prompts = [words("word and other " * (number % 4 + 1) + str(number))["input_ids"] for number in range(11)]
    alone = task.generate(model.eval(), words, prompts, 1)[1]
    assert task.generate(model, words, prompts, 8)[1] == alone
    assert len({tuple(ids) for ids in alone}) > 3


@pytest.mark.parametrize("is_packed", [False, True])
def test_batches_that_are_accumulated_have_the_loss_of_one(
    run: Any, base_model: Artefact, files: dict[str, Path], tmp_path: Path, is_packed: bool
) -> None:
    settings = {**files, **QUICK, "model_name_or_path": base_model.directory, "packing": is_packed, "logging_steps": 1}
    settings |= {"global_batch_size": 8, "max_steps": 4}
    found = [
        run("finetune", tmp_path / str(at_once), **{**settings, "per_device_train_batch_size": at_once}) for at_once in (8, 2)
    ]
    whole, cut = (
        [entry["loss"] for entry in read_ledger(made.directory / "metrics.jsonl") if "loss" in entry] for made in found
    )
    assert cut == pytest.approx(whole, abs=1e-4)


def rows(*values: dict[str, Any]) -> list[Row]:
    return [Row(f"f.jsonl:{number}", value) for number, value in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("row", "input_", "target"),
    [
        ({"prompt": "a ", "completion": " b"}, "a ", " b"),
        ({"instruction": "Do", "input": "this", "output": "done"}, "user: Do\n\nthis", "done"),
        ({"instruction": "Do", "input": "", "output": "done"}, "user: Do", "done"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "user: a", "b"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "user: a", "b"),
    ],
)
def test_the_usual_shapes_are_read(row: dict[str, Any], input_: str, target: str) -> None:
    (found,) = TextGeneration(False).read(rows(row), Columns())
    assert (found.input(), found.target()) == (input_, target)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": []}, r"1 rows have in column 'messages' no messages.*f\.jsonl:1"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "no messages, each with a role"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no turn of the assistant after another's"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "no turn of the assistant after another's"),
        ({"prompt": " ", "completion": "b"}, "no text in column 'prompt'"),
        ({"prompt": "a", "completion": None}, "no text in column 'completion'"),
    ],
)
def test_rows_that_cannot_be_learned_are_named(row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        TextGeneration(False).read(rows(row), Columns())


def test_an_encoder_decoder_is_refused(run: Any, files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="transformers knows no causal language model 't5'"):
        run("finetune", tmp_path / "m", model_type="t5", **files, **QUICK)


def test_a_model_of_conversations_is_asked_in_one_whatever_the_column() -> None:
    for name in ("prompt", "question", "instruction"):
        (chat,) = TextGeneration(is_chat=True).read([Row("f:1", {name: "say hi"})], Columns(), is_labelled=False)
        assert chat.messages == [{"role": "user", "content": "say hi"}], name
    (plain,) = TextGeneration(is_chat=False).read([Row("f:1", {"prompt": "say hi"})], Columns(), is_labelled=False)
    assert (plain.messages, plain.prompt) == ([], "say hi")
