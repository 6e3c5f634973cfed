from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from llmkit.errors import DataError
from llmkit.pipeline.artefact import Artefact
from llmkit.tasks import multiple_choice
from llmkit.tasks.features import IGNORED
from llmkit.tasks.multiple_choice import Example, MultipleChoice
from llmkit.tasks.settings import Columns
from llmkit.tasks.tables import Row

TASK = MultipleChoice(8, 1)
QUESTIONS = [
    ("The sky is", ["blue", "square", "a very long way above the ground"]),
    ("Return the", ["value", "values of it"]),
    ("今天的天气", ["很好", "很差", "🙂"]),
    ("x", ["y", "z"]),
    ("A question that is longer than the others are, and goes on", ["for a while.", "!"]),
    ("It ends in a space ", ["one", "two"]),
]


def examples() -> list[Example]:
    return [
        Example(id=str(number), place=f"f:{number}", question=question, choices=choices, answer=0)
        for number, (question, choices) in enumerate(QUESTIONS)
    ]


@pytest.fixture(scope="module", name="vocabulary")
def loaded_tokenizer(base_model: Artefact) -> Any:
    return TASK.load_tokenizer(str(base_model.directory))


def model_of(kind: str, base_model: Artefact, size: int) -> Any:
    torch.manual_seed(0)
    if kind == "llama":
        return AutoModelForCausalLM.from_pretrained(base_model.directory, dtype="float32").eval()
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=16, n_layer=2, n_head=2, n_positions=32)).eval()
    return MambaForCausalLM(MambaConfig(vocab_size=size, hidden_size=16, num_hidden_layers=2, state_size=4)).eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_what_is_shared_between_choices_changes_no_likelihood(
    base_model: Artefact, vocabulary: Any, kind: str, batch_size: int
) -> None:
    model = model_of(kind, base_model, len(vocabulary))
    assert multiple_choice._can_share(model) == (kind != "mamba")
    found = list(TASK.predict(model, vocabulary, examples(), batch_size))
    for row, example in zip(found, examples(), strict=True):
        expected = [by_hand(model, vocabulary, example.question, choice) for choice in example.choices]
        assert row["loglikelihoods"] == pytest.approx(expected, abs=1e-4)
        assert row["choice"] == int(np.argmax(expected))
        sizes = [len(choice.encode()) for choice in example.choices]
        assert row["choice_bytes"] == int(np.argmax(np.array(expected) / sizes))
        assert row["prediction"] == example.choices[row["choice"]]
        assert 0 < row["score"] <= 1


def by_hand(model: Any, tokenizer: Any, question: str, choice: str) -> float:
    """The sum of the log-likelihoods of what stands behind the question, with all before it read anew."""
    before = tokenizer(question.rstrip(), add_special_tokens=False)["input_ids"]
    whole = tokenizer(f"{question.rstrip()} {choice}", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([whole])[:, -(32 + 1) :]
    with torch.no_grad():
        chances = model(ids[:, :-1]).logits.log_softmax(-1)[0]
    every = chances.gather(1, ids[0, 1:, None])[:, 0]
    return float(every[-(len(whole) - len(before)) :].sum())


def test_the_shared_part_is_read_once(base_model: Artefact, vocabulary: Any) -> None:
    model = model_of("llama", base_model, len(vocabulary))
    read: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda layer, given, made: read.append(given[0].numel()))
    asked = Example(id="1", place="f:1", question="A rather long beginning that both share", choices=["yes", "no"], answer=0)
    before = len(vocabulary(asked.question)["input_ids"])
    list(TASK.predict(model, vocabulary, [asked], 1))
    hook.remove()
    shared, rests = read[-2:]
    assert shared == before
    rest = max(len(vocabulary(f"{asked.question} {choice}")["input_ids"]) for choice in asked.choices) - before
    assert rests == 2 * (rest - 1)


def test_what_is_learned_is_the_right_choice(vocabulary: Any) -> None:
    example = Example(id="1", place="f:1", question="The sky is", choices=["square", "blue"], answer=1)
    ids, labels = TASK.sequences(example, vocabulary)
    assert vocabulary.decode(ids) == "The sky is blue"
    assert vocabulary.decode([label for label in labels if label != IGNORED]) == " blue"


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ({"question": "q", "choices": ["a", "b"], "label": 1}, 1),
        ({"question": "q", "choices": ["a", "b"], "answer": "b"}, 1),
        ({"question": "q", "choices": ["1", "0"], "answer": "0"}, 1),
        ({"question": "q", "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]}, "answerKey": "C"}, 2),
        ({"question": "q", "choices": ["a", "b"], "answer": "B"}, 1),
        ({"ctx": "q", "endings": ["a", "b", "c", "d"], "label": "3"}, 3),
        ({"context": "q", "options": '["a", "b"]', "gold": 0}, 0),
        ({"question": "q", "choices": ["4", "1", "2", "0"], "answer": 0}, 0),
        ({"question": "q", "choices": ["4", "1", "2", "0"], "answer": 2.0}, 2),
        ({"question": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answer": 1}, 0),
    ],
)
def test_rows_are_read_as_data_sets_have_them(values: dict[str, Any], answer: int) -> None:
    (example,) = TASK.read([Row("f:1", values)], Columns())
    assert (example.question, example.answer) == ("q", answer)


def test_a_context_stands_before_the_question() -> None:
    row = Row("f:1", {"context": "Some text.", "question": "What?", "choices": ["a", "b"], "label": 0})
    assert TASK.read([row], Columns())[0].question == "Some text.\nWhat?"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"question": "q", "choices": ["a"], "label": 0}, "no list of two or more texts"),
        ({"question": " ", "choices": ["a", "b"], "label": 0}, "no text in column 'question'"),
        ({"question": "q", "choices": ["a", "b"], "label": 2}, "neither the number"),
        *(
            ({"question": "q", "choices": ["a", "b"], "label": label}, "neither the number")
            for label in (None, True, ["a"], {"a": 1}, math.inf, math.nan, 0.7, -1)
        ),
    ],
)
def test_rows_that_ask_nothing_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=f"1 rows .*{said}.*f:1"):
        TASK.read([Row("f:1", values)], Columns())


def test_a_base_model_is_measured_beside_chance(run: Any, base_model: Artefact, tmp_path: Path) -> None:
    asked = [(f"{question} ({number})", choices) for number in range(4) for question, choices in QUESTIONS]
    rows = [{"question": question, "choices": choices, "label": n % 2} for n, (question, choices) in enumerate(asked)]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {"model_name_or_path": base_model.directory, "test_file": path, "task": "multiple-choice"}
    made = run("evaluate", tmp_path / "e", per_device_eval_batch_size=4, **settings)
    metrics = json.loads((made.directory / "metrics.json").read_text(encoding="utf-8"))
    assert [item["name"] for item in metrics["metrics"]] == ["accuracy", "accuracy_norm", "accuracy_bytes"]
    assert [item["name"] for item in metrics["baselines"]] == ["by lot", "longest choice"]
    assert metrics["chance"] == pytest.approx(np.mean([1 / len(row["choices"]) for row in rows]))
    longest = [max(range(len(row["choices"])), key=lambda i: len(row["choices"][i])) == row["label"] for row in rows]
    assert metrics["baselines"][1]["metrics"][0]["value"] == pytest.approx(np.mean(longest))
