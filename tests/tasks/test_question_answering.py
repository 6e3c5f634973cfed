from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    T5Config,
    XLNetConfig,
)

from llmkit.errors import ConfigError, DataError
from llmkit.pipeline.artefact import Artefact
from llmkit.tasks.question_answering import Example, QuestionAnswering, check_head, is_causal
from llmkit.tasks.settings import Columns
from llmkit.tasks.tables import Row, read_table
from llmkit.tasks.windows import frame_of, windows

task = QuestionAnswering()


def row(number: int, **values: Any) -> Row:
    given = {"question": "Who?", "context": "Ada wrote it.", "answers": {"text": ["Ada"], "answer_start": [0]}, **values}
    return Row(f"f.jsonl:{number}", given)


# Rows


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["Ada", "Ada"], "answer_start": [0, 0]},
        [{"text": "Ada", "answer_start": 0}, {"text": "Ada", "answer_start": 0, "answer_id": 7}],
        '{"text": ["Ada", "Ada"], "answer_start": [0, 0]}',
    ],
)
def test_answers_are_read_in_the_forms_that_files_have(answers: Any) -> None:
    (found,) = task.read([row(1, answers=answers)], Columns())
    assert found.answers == [("Ada", 0), ("Ada", 0)]
    assert found.target() == {"text": ["Ada", "Ada"], "answer_start": [0, 0]}


def test_a_single_answer_and_none_are_answers_too_and_names_of_columns_can_be_given() -> None:
    rows = [Row("f:1", {"q": "Who?", "p": "Ada wrote it.", "a": {"text": "Ada", "answer_start": 0}})]
    columns = Columns(question_column="q", context_column="p", answers_column="a")
    assert task.read(rows, columns)[0].answers == [("Ada", 0)]
    for none in ([], {"text": [], "answer_start": []}):
        assert task.read([row(1, answers=none)], Columns())[0].answers == []
    assert task.read([Row("f:1", {"question": "Who?", "context": "Ada."})], Columns(), is_labelled=False)[0].answers == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"question": " "}, "1 rows have no text in column 'question': f.jsonl:2"),
        ({"context": None}, "1 rows have no text in column 'context': f.jsonl:2"),
        ({"answers": None}, "1 rows have no answers in column 'answers' .*: f.jsonl:2"),
        ({"answers": ["Ada"]}, "1 rows have no answers"),
        ({"answers": {"text": ["Ada"], "answer_start": []}}, "1 rows have no answers"),
        ({"answers": {"text": [" "], "answer_start": [3]}}, "1 rows have no answers"),
        ({"answers": {"text": ["Ada"], "answer_start": ["0"]}}, "1 rows have no answers"),
        (
            {"answers": {"text": ["wrote"], "answer_start": [3]}},
            r"1 rows have an answer that is not found at its offset.*f.jsonl:2: 'wrote' at 3, where ' wrot' stands",
        ),
        (
            {"answers": {"text": ["Bob"], "answer_start": [0]}},
            r"'Bob' at 0, where 'Ada' stands \(the context does not have it",
        ),
        ({"answers": {"text": ["."], "answer_start": [-1]}}, r"'\.' at -1, where 'A' stands \(it begins at 12"),
    ],
)
def test_bad_rows_are_named_with_what_is_wrong(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        task.read([row(1), row(2, **bad)], Columns())


def squad_json(place: Path, **changes: Any) -> Path:
    good = {"id": "q1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]}
    none = {"id": "q2", "question": "When?", "answers": [], "plausible_answers": [], "is_impossible": True}
    content = {
        "version": "v2.0",
        "data": [{"title": "Ada", "paragraphs": [{"context": "Ada wrote it.", "qas": [good, none]}]}],
    }
    place.write_text(json.dumps(content | changes, indent=1), encoding="utf-8")
    return place


def test_nested_squad_is_read_with_article_and_id_as_place(tmp_path: Path) -> None:
    path = squad_json(tmp_path / "squad.json")
    found = task.read(read_table(path), Columns())
    assert [(item.place, item.id, item.answers) for item in found] == [
        (f"{path}: Ada / q1", "q1", [("Ada", 0)]),
        (f"{path}: Ada / q2", "q2", []),
    ]


def test_json_of_rows_is_read_below_data_and_a_line_each(tmp_path: Path) -> None:
    first = row(1).values
    path = squad_json(tmp_path / "flat.json", data=[first])
    assert [(item.place, item.values) for item in read_table(path)] == [(f"{path}: entry 1", first)]
    (tmp_path / "lines.json").write_text(json.dumps(first) + "\n" + json.dumps(first) + "\n")
    assert len(read_table(tmp_path / "lines.json")) == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"title": "Ada", "paragraphs": {}}], "Ada has no list of objects 'paragraphs'"),
        ([{"title": "Ada", "paragraphs": [{"context": "x"}]}], "Ada, a paragraph has no list of objects 'qas'"),
        (["Ada"], "entry 1 of `data` is no object"),
    ],
)
def test_broken_squad_is_refused_with_its_place(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(squad_json(tmp_path / "squad.json", data=data))


def test_questions_about_one_context_are_held_out_together() -> None:
    rows = [row(number, question=f"Who {number}?", context=f"Ada wrote {number % 5}.") for number in range(30)]
    train, held = task.hold_out(task.read(rows, Columns()), 0.2, 0)
    assert len(held) == 6
    assert not {example.context for example in train} & {example.context for example in held}


# Models

SMALL = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
LLAMA = {**SMALL, "num_key_value_heads": 2}
GPT2 = {"vocab_size": 512, "n_embd": 32, "n_layer": 2, "n_head": 2}

CAUSAL = [
    LlamaConfig(**LLAMA),
    Qwen2Config(**LLAMA),
    Qwen3Config(**LLAMA, head_dim=16),
    MistralConfig(**LLAMA, sliding_window=None),
    GPT2Config(**GPT2),
]
ENCODERS = [
    BertConfig(**SMALL),
    RobertaConfig(**SMALL),
    XLNetConfig(vocab_size=512, d_model=32, n_layer=2, n_head=2, d_inner=64),
]


def kind(config: PreTrainedConfig) -> str:
    return config.model_type


@pytest.mark.parametrize("config", CAUSAL, ids=kind)
def test_a_head_stands_on_all_weights_of_a_causal_model_and_is_saved_so_that_anybody_can_load_it(
    config: PreTrainedConfig, tokenizer: Artefact, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config)
    base.save_pretrained(tmp_path / "base")
    tools = QuestionAnswering().load_tokenizer(str(tokenizer.directory))
    model, new = QuestionAnswering().load_model(str(tmp_path / "base"), tools, 0, None)
    assert new == ["qa_outputs.bias", "qa_outputs.weight"]
    for name, weight in base.base_model.state_dict().items():
        assert torch.equal(model.base_model.state_dict()[name], weight), name
    model.save_pretrained(tmp_path / "saved")
    again, loading = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    assert QuestionAnswering().load_model(str(tmp_path / "saved"), tools, 0, None)[1] == []


@pytest.mark.parametrize("config", [*CAUSAL, *ENCODERS], ids=kind)
def test_which_models_are_causal_is_what_a_change_of_the_last_token_shows(config: PreTrainedConfig) -> None:
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_config(config).eval()
    ids = torch.arange(5, 17)[None]
    other = ids.clone()
    other[0, -1] = 400
    with torch.no_grad():
        same = torch.equal(model(ids).start_logits[0, :-1], model(other).start_logits[0, :-1])
    assert is_causal(config) == same


def test_models_without_a_head_are_refused() -> None:
    check_head(LlamaConfig())
    with pytest.raises(ConfigError, match="no head for question answering for mamba; it has one for bert"):
        check_head(MambaConfig())
    with pytest.raises(ConfigError, match="t5 is an encoder-decoder"):
        check_head(T5Config())


def test_a_causal_model_whose_context_comes_first_is_refused_and_an_encoder_is_not() -> None:
    with pytest.raises(ConfigError, match="question_first: llama is a causal model"):
        QuestionAnswering(question_first=False).adapt_to(LlamaConfig(), 512)
    QuestionAnswering(question_first=False).adapt_to(BertConfig(), 512)


def test_inputs_are_384_tokens_long_unless_more_is_asked_for_or_less_is_taken() -> None:
    assert QuestionAnswering().adapt_to(BertConfig(), 512) == 384
    assert QuestionAnswering().adapt_to(BertConfig(), 128) == 128
    assert QuestionAnswering(max_length=500).adapt_to(BertConfig(), 500) == 500


def test_the_null_slot_and_the_context_of_a_causal_model_know_the_question(base_model: Artefact) -> None:
    """And with the context first, or with token 0 as the null slot, they would not: what run_qa.py does."""
    tokenizer = AutoTokenizer.from_pretrained(base_model.directory)
    model, _ = QuestionAnswering().load_model(str(base_model.directory), tokenizer, 0, None)
    frame = frame_of(tokenizer, is_causal=True, has_types=False)

    def logits(question: str, context: str, question_first: bool = True) -> tuple[torch.Tensor, Any]:
        example = Example(id="1", place="f:1", question=question, context=context, answers=[])
        window = windows([example], tokenizer, frame, 32, 4, question_first)[0]
        with torch.no_grad():
            return model.eval()(torch.tensor(window["input_ids"].astype(np.int64))[None]).start_logits[0], window

    (one, first), (other, second) = logits("Is it a?", "He is it."), logits("Is it b?", "He is it.")
    assert first["null"] == second["null"] == len(one) - 1
    assert (one != other)[torch.from_numpy(first["char_start"] >= 0)].all(), "the context knows the question"
    assert one[first["null"]] != other[first["null"]]
    assert one[first["null"]] != logits("Is it a?", "He is at.")[0][first["null"]], "no answer depends on the context"
    assert one[0] == other[0], "token 0 does not"
    (one, first), (other, _) = (logits(question, "He is it.", False) for question in ("Is it a?", "Is it b?"))
    assert torch.equal(*(scores[torch.from_numpy(first["char_start"] >= 0)] for scores in (one, other)))


def test_a_loss_in_parts_is_the_loss_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = {name: torch.randn(6, 9, generator=generator) for name in ("start_logits", "end_logits")}
    lengths = torch.tensor([[4], [5], [6], [7], [8], [9]])
    labels = torch.cat([torch.randint(0, 4, (6, 2), generator=generator), lengths], dim=1)
    whole = task.loss(outputs, labels)
    parts = [  # the first with less padding than in the whole
        task.loss({name: logits[part, :width] for name, logits in outputs.items()}, labels[part], labels.numel())
        for part, width in ((slice(0, 1), 4), (slice(1, 4), 9), (slice(4, 6), 9))
    ]
    assert sum(parts).item() == pytest.approx(whole.item())
    by_hand = [
        -torch.log_softmax(outputs[name][row, : 4 + row], 0)[labels[row, index]]
        for row in range(6)
        for index, name in enumerate(("start_logits", "end_logits"))
    ]
    assert whole.item() == pytest.approx(torch.stack(by_hand).mean().item())


def test_what_a_model_keeps_makes_the_same_task_again() -> None:
    made = QuestionAnswering(None, 40, 11, 7, -1.25, True)
    made.adapt_to(AutoConfig.for_model("bert"), 256)
    again = QuestionAnswering.of_model(json.loads(json.dumps({"task": made.name, **made.stored()})), BertConfig())
    assert again.stored() == made.stored()
    assert again.has_types and not again.is_causal
    assert QuestionAnswering.of_model({}, LlamaConfig()).threshold == 0, "a model that others have trained"


def test_the_threshold_is_learned_where_training_has_questions_without_an_answer(base_model: Artefact) -> None:
    data = task.read([row(1), row(2, question="When?", answers=[])], Columns())
    fixed, learned, never = QuestionAnswering(null_score_diff_threshold=3.0), QuestionAnswering(), QuestionAnswering()
    for made, given in ((fixed, data), (learned, data), (never, data[:1])):
        list(made.learn(given))
    assert (fixed.threshold, fixed.tunes) == (3.0, False)
    assert (learned.threshold, learned.tunes) == (0.0, True)
    assert (never.threshold, never.tunes) == (None, False)
    learned.adapt_to(AutoConfig.from_pretrained(base_model.directory), 64)
    tokenizer = learned.load_tokenizer(str(base_model.directory))
    features = learned.features(data, tokenizer, 64)
    width = int(features.lengths().max())
    start, end = (np.full((2, width), -100.0, dtype=np.float32) for _ in range(2))
    for window, null in enumerate((3.0, 5.0)):  # "Ada" is the best answer to both, with 2 + 0
        length, at = features.lengths()[window], int((features[window]["char_start"] == 0).argmax())
        start[window, :length], end[window, :length] = -9, -9
        start[window, at], end[window, [i for i in range(length) if features[window]["char_end"][i] == 3][-1]] = 2, 0
        start[window, features[window]["null"]], end[window, features[window]["null"]] = null, 0
    prediction = SimpleNamespace(predictions=(start, end))
    assert learned.compute_metrics(data, features)(prediction) == {"f1": 1.0, "exact_match": 1.0}
    tuned = learned.tune(prediction, data, features)
    assert tuned == {"null_score_diff_threshold": 2.0, "f1_before": 0.5, "f1": 1.0}, "between 3 - 2 and 5 - 2"
    assert learned.stored()["null_score_diff_threshold"] == 2.0
