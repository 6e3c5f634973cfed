"""Text from a causal language model: streamed, kept, the same for the same seed, and refused with a reason."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit import cli
from llmkit.errors import ConfigError, DataError
from llmkit.tasks.base import positions_of
from llmkit.tasks.generation import Decoding, Generation, Pieces, go_on, load, readable, seed_of

if TYPE_CHECKING:
    from llmkit.pipeline.artefact import Artefact


@pytest.fixture(scope="module")
def loaded(base_model: Artefact) -> tuple[Any, Any]:
    return load(str(base_model.directory))


def words(base_model: Artefact, *more: str) -> list[str]:
    return ["generate", "--model_name_or_path", str(base_model.directory), *more]


def test_a_seed_gives_the_same_text_again_and_another_seed_another(loaded: tuple[Any, Any]) -> None:
    texts = [go_on(*loaded, "Return the", Decoding(20), seed).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_temperature_0_takes_the_most_likely_token_each_time(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ids = tokenizer("Return the")["input_ids"]
    expected = list(ids)
    for _ in range(12):
        expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
    made = go_on(model, tokenizer, "Return the", Decoding(12, temperature=0), seed=0)
    assert "Return the" + made.text == tokenizer.decode(expected, skip_special_tokens=True)


def test_top_k_1_is_the_most_likely_token_too(loaded: tuple[Any, Any]) -> None:
    greedy, narrow = (
        go_on(*loaded, "Return the", how, seed=3) for how in (Decoding(12, temperature=0), Decoding(12, top_k=1))
    )
    assert greedy == narrow


def test_the_random_numbers_of_the_caller_stay(loaded: tuple[Any, Any]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    go_on(*loaded, "Return the", Decoding(5), seed=0)
    assert torch.equal(torch.rand(3), expected)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=st.text(st.characters(codec="utf-8"), max_size=12), seed=st.integers(0, 1 << 40))
def test_the_pieces_that_are_shown_are_the_text(loaded: tuple[Any, Any], prompt: str, seed: int) -> None:
    pieces: list[str] = []
    ids = loaded[1](prompt)["input_ids"]
    if len(ids) >= 32:
        return
    made = go_on(*loaded, prompt, Decoding(12), seed, pieces.append)
    assert "".join(pieces) == prompt + made.text


def test_pieces_come_while_the_model_writes(loaded: tuple[Any, Any]) -> None:
    steps, seen = [0], set()
    handle = loaded[0].register_forward_hook(lambda *_: steps.__setitem__(0, steps[0] + 1))
    go_on(*loaded, "Return the", Decoding(20, temperature=0), 0, lambda piece: seen.add(steps[0]) if piece else None)
    handle.remove()
    assert len(seen) > 10


CHINESE_TEXT = "今天的天气很好，我们去公园散步🌳。Then a word\n和一行。"


def test_no_half_character_is_shown(loaded: tuple[Any, Any]) -> None:
    """A byte-level tokenizer spreads a character over tokens. Fed one by one, no piece has a replacement character."""
    tokenizer = loaded[1]
    ids = tokenizer(CHINESE_TEXT)["input_ids"]
    halves = [tokenizer.decode([token]) for token in ids]
    assert any("\ufffd" in half for half in halves), "the text must have characters that are spread over tokens"
    pieces: list[str] = []
    streamer = Pieces(tokenizer, pieces.append)
    for token in ids:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert "".join(pieces) == CHINESE_TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > 25, "it comes in pieces, not all at the end"


def test_the_context_ends_a_text_and_refuses_a_longer_prompt(loaded: tuple[Any, Any]) -> None:
    assert positions_of(loaded[0].config) == 32
    made = go_on(*loaded, "Return the", Decoding(100, temperature=0), seed=0)
    assert made.ended in ("context", "eos")
    assert made.tokens + len(loaded[1]("Return the")["input_ids"]) <= 32
    assert go_on(*loaded, "Return the", Decoding(3, temperature=0), seed=0).ended == "length"
    with pytest.raises(DataError, match=r"has [\d,]+ tokens, and the context of the model 32"):
        go_on(*loaded, "Return the number of items. " * 10, Decoding(1), seed=0)


def test_a_text_ends_with_the_end_of_a_document(base_model: Artefact) -> None:
    model, tokenizer = load(str(base_model.directory))
    with torch.no_grad():  # a model that always says EOS
        model.get_output_embeddings().weight.zero_()
        model.get_output_embeddings().weight[tokenizer.eos_token_id] = 1.0
        model.model.norm.weight.fill_(1.0)
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.get_input_embeddings().weight.fill_(1.0)
    assert go_on(model, tokenizer, "Return", Decoding(10, temperature=0), seed=0) == Generation("Return", "", 1, "eos")


def test_an_empty_prompt_begins_a_document(loaded: tuple[Any, Any]) -> None:
    made = go_on(*loaded, "", Decoding(10), seed=1)
    assert made.tokens >= 1
    assert loaded[1].eos_token not in made.text


def test_what_steers_a_terminal_is_shown_as_text() -> None:
    assert readable("a\x1b[2Jb\r\n\t今") == "a\\x1b[2Jb\\x0d\n\t今"


def test_a_seed_depends_on_every_part() -> None:
    seeds = {seed_of(*parts) for parts in ((0, 0, "a"), (0, 1, "a"), (1, 0, "a"), (0, 0, "b"), (0, "0a"))}
    assert len(seeds) == 5
    assert all(0 <= seed < 1 << 56 for seed in seeds)


# The command and the stage


def test_the_command_streams_text_in_a_process_of_its_own(base_model: Artefact) -> None:
    """What comes from a pipe is a prompt a line."""
    command = [sys.executable, "-m", "llmkit", *words(base_model, "--max_new_tokens", "20", "--seed", "3")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin and process.stdout and process.stderr
    process.stdin.write("今天的天气\n\nReturn the\n".encode())
    process.stdin.close()
    out, err = process.stdout.read().decode(), process.stderr.read().decode()
    assert process.wait(timeout=60) == 0, err
    made = [
        go_on(*load(str(base_model.directory)), prompt, Decoding(20), seed_of(3, 0, prompt))
        for prompt in ("今天的天气", "Return the")
    ]
    assert out == "\n\n".join(readable(each.prompt + each.text) for each in made) + "\n"


def test_the_stage_writes_what_the_command_shows(
    base_model: Artefact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Return the"}\n{"prompt": "今天"}\n', encoding="utf-8")
    more = ("--prompt_file", str(file), "--num_return_sequences", "2", "--max_new_tokens", "8")
    assert cli.main(words(base_model, *more)) == 0
    shown = capsys.readouterr().out
    output = tmp_path / "out"
    assert cli.main(words(base_model, *more, "--output_dir", str(output))) == 0
    rows = [json.loads(line) for line in (output / "generations.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == ["Return the", "Return the", "今天", "今天"]
    assert shown == "\n\n".join(readable(row["prompt"] + row["text"]) for row in rows) + "\n"
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["metrics"]["n"] == 4
    assert manifest["metrics"]["tokens"] == sum(row["tokens"] for row in rows)
    assert manifest["metrics"]["samples"][2]["prompt"] == "今天"
    assert "model_name_or_path" in manifest["inputs"]


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.csv", "texts.jsonl"])
def test_prompts_come_from_a_file(name: str, base_model: Artefact, tmp_path: Path, run: Callable[..., Artefact]) -> None:
    content = {
        "prompts.txt": "one\n\n二\n",
        "prompts.csv": "prompt\none\n二\n",
        "texts.jsonl": '{"text":"one"}\n{"text":"二"}\n',
    }
    (tmp_path / name).write_text(content[name], encoding="utf-8")
    made = run(
        "generate", tmp_path / "out", model_name_or_path=base_model.directory, prompt_file=tmp_path / name, max_new_tokens=2
    )
    assert [sample["prompt"] for sample in made.manifest.metrics["samples"]] == ["one", "二"]


@pytest.mark.parametrize(
    ("more", "answer"),
    [
        (["--temperatur", "1"], "unknown key 'temperatur'; did you mean 'temperature'?"),
        (["--greedy"], "'greedy' is no setting: write `--temperature 0`"),
        (["--top_p", "0"], "top_p: is 0.0, must be above 0 and at most 1"),
        (["--temperature", "-1"], "temperature: is -1.0, must be at least 0"),
        (["--max_new_tokens", "0"], "max_new_tokens: is 0, must be at least 1"),
        (["--temperature", "0", "--num_return_sequences", "2"], "num_return_sequences: with temperature 0 all"),
        (["--prompt", "a", "--prompt_file", "b.txt"], "give one of the two"),
        (["--prompt_file", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--prompt", "a " * 100], "and the context of the model 32"),
    ],
)
def test_a_mistake_is_answered_with_code_2(
    more: list[str], answer: str, base_model: Artefact, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(base_model, *more)) == 2
    captured = capsys.readouterr()
    assert answer in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("./nowhere", "there is no directory './nowhere' (looked in "),
        ("no-model", "from 'no-model', which is no directory here,"),
    ],
)
def test_a_model_that_is_not_there_is_named(name: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "--model_name_or_path", name, "--prompt", "a"]) == 2
    assert answer in capsys.readouterr().err


def test_a_classifier_is_no_language_model(classifier: Artefact) -> None:
    with pytest.raises(ConfigError, match="is no causal language model"):
        load(str(classifier.directory))


def test_without_a_model_the_newest_one_here_is_named(
    base_model: Artefact, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(base_model.directory.parent.parent)
    assert cli.main(["generate", "--prompt", "a", "--runs_dir", base_model.directory.parent.name]) == 2
    err = capsys.readouterr().err
    assert "--model_name_or_path is missing" in err
    assert f"The newest here is {base_model.directory.parent.name}/{base_model.directory.name}" in err


def test_a_pretrained_model_serves_the_pipeline_of_transformers(base_model: Artefact) -> None:
    from transformers import pipeline

    generate = pipeline("text-generation", model=str(base_model.directory))
    (made,) = generate("Return the", max_new_tokens=5, do_sample=False)
    ours = go_on(*load(str(base_model.directory)), "Return the", Decoding(5, temperature=0), seed=0)
    assert made["generated_text"] == "Return the" + ours.text
