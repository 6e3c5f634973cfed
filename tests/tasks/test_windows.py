from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmkit.errors import ConfigError
from llmkit.pipeline.artefact import Artefact
from llmkit.tasks.question_answering import Example
from llmkit.tasks.windows import Frame, frame_of, window_starts, windows


@pytest.fixture(scope="module")
def plain(tokenizer: Artefact) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as causal models have it: no form of a pair."""
    return AutoTokenizer.from_pretrained(tokenizer.directory)


@pytest.fixture(scope="module")
def paired(tokenizer: Artefact, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """The same with CLS and SEP, as BERT has them."""
    made = AutoTokenizer.from_pretrained(tokenizer.directory)
    made.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
    backend = made.backend_tokenizer
    special = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    place: Path = tmp_path_factory.mktemp("paired")
    made.save_pretrained(place)
    return AutoTokenizer.from_pretrained(place)


def asked(question: str, context: str, *answers: tuple[str, int]) -> Example:
    return Example(id="1", place="f:1", question=question, context=context, answers=list(answers))


@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 20))
def test_windows_cover_a_context_and_share_what_they_should(length: int, room: int, shared: int) -> None:
    shared = min(shared, room // 2)
    starts = window_starts(length, room, shared)
    covered = {token for start in starts for token in range(start, min(start + room, length))}
    assert covered == set(range(length))
    assert all(start + room < length for start in starts[:-1]), "none begins after the end was reached"
    assert {later - earlier for earlier, later in pairwise(starts)} <= {room - shared}


texts = st.text(st.sampled_from("ab .,é字答\n\u00a0🙂e\u0301"), min_size=1, max_size=80).filter(
    lambda text: bool(text.strip())
)


@given(texts, texts, st.integers(16, 40), st.integers(0, 12), st.booleans(), st.booleans(), st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_token_of_the_context_is_in_a_window_at_its_characters_and_labels_find_the_answer(
    plain: Any, paired: Any, question: str, context: str, length: int, stride: int, is_causal: bool, first: bool, data: Any
) -> None:
    begin = data.draw(st.integers(0, len(context) - 1))
    text = context[begin : data.draw(st.integers(begin + 1, len(context)))]
    tokenizer = plain if is_causal else paired
    frame = frame_of(tokenizer, is_causal, has_types=not is_causal)
    first = first or is_causal
    found = windows([asked(question, context, (text, begin))], tokenizer, frame, length, stride, first)
    whole = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)
    tokens = [(token, start) for token, (start, _) in zip(whole["input_ids"], whole["offset_mapping"], strict=True)]
    met: dict[int, tuple[int, int]] = {}
    place, labelled = 0, []
    for window in (found[index] for index in range(len(found))):
        ids, begins, ends = (window[name].tolist() for name in ("input_ids", "char_start", "char_end"))
        assert len(ids) <= length
        inside = [index for index, at in enumerate(begins) if at >= 0]
        while [(ids[index], begins[index]) for index in inside] != tokens[place : place + len(inside)]:
            place += 1  # never beyond the end, or a token of the window is not of the context
            assert place < len(tokens)
        met |= {place + number: (begins[index], ends[index]) for number, index in enumerate(inside)}
        low, high, size = window["labels"].tolist()
        assert size == len(ids)
        is_null = low == window["null"]
        assert not is_null or high == low
        if not is_null:
            assert begins[low] <= begin < ends[low] and begins[high] < begin + len(text) <= ends[high]
        labelled.append((range(place, place + len(inside)), is_null))
    assert sorted(met) == list(range(len(tokens)))
    answer = {number for number, (start, stop) in met.items() if start < begin + len(text) and stop > begin}
    for there, is_null in labelled:
        assert is_null == (not answer or not answer <= set(there)), "an answer that is whole in a window is its label"
    assert found.facts["windows_without_answer"] == sum(is_null for _, is_null in labelled)


def test_an_encoder_takes_the_form_of_its_tokenizer_and_cls_is_the_null_slot(paired: Any) -> None:
    frame = frame_of(paired, is_causal=False, has_types=True)
    window = windows([asked("why?", "because of it")], paired, frame, 64, 8, True)[0]
    whole = paired("why?", "because of it", return_token_type_ids=True)
    assert window["input_ids"].tolist() == whole["input_ids"]
    assert window["token_type_ids"].tolist() == whole["token_type_ids"]
    assert window["null"] == 0 and window["labels"].tolist() == [0, 0, len(window["input_ids"])]
    assert frame_of(paired, is_causal=False, has_types=False).types is None


def test_the_context_of_an_encoder_may_stand_first(paired: Any) -> None:
    frame = frame_of(paired, is_causal=False, has_types=True)
    window = windows([asked("why?", "because of it", ("because", 0))], paired, frame, 64, 8, False)[0]
    assert window["input_ids"].tolist() == paired("because of it", "why?")["input_ids"]
    assert window["char_start"][window["labels"][0]] == 0 and window["char_end"][window["labels"][1]] == 7


def test_a_causal_model_takes_question_line_break_context_and_eos_which_is_the_null_slot(plain: Any, paired: Any) -> None:
    for tokenizer in (plain, paired):
        frame = frame_of(tokenizer, is_causal=True, has_types=False)
        window = windows([asked("why?", "because of it")], tokenizer, frame, 64, 8, True)[0]
        ids = tokenizer("why?\nbecause of it", add_special_tokens=False)["input_ids"]
        before = [tokenizer.cls_token_id] if tokenizer is paired else []
        assert window["input_ids"].tolist() == [*before, *ids, tokenizer.eos_token_id]
        assert window["null"] == len(window["input_ids"]) - 1
        assert window["labels"].tolist() == [window["null"]] * 2 + [len(window["input_ids"])]


def test_long_questions_are_cut_to_half_and_counted(plain: Any) -> None:
    frame = frame_of(plain, is_causal=True, has_types=False)
    found = windows([asked("why " * 50, "because"), asked("why?", "because")], plain, frame, 22, 8, True)
    assert found.facts["truncated"] == 1
    assert (found[0]["input_ids"] == plain("\n")["input_ids"][0]).argmax() == 10


def test_no_room_for_a_context_is_refused(plain: Any) -> None:
    with pytest.raises(ConfigError, match="max_length: 3 tokens have no room for a question and a context"):
        windows([asked("why?", "because")], plain, frame_of(plain, True, False), 3, 1, True)


def test_a_tokenizer_without_an_end_is_refused(plain: Any, tokenizer: Artefact) -> None:
    bare = AutoTokenizer.from_pretrained(tokenizer.directory)
    bare.eos_token = None
    with pytest.raises(ConfigError, match="no EOS token, the place where `no answer` is scored"):
        frame_of(bare, is_causal=True, has_types=False)


def test_a_null_slot_may_be_the_last_token_of_a_pair(plain: Any) -> None:
    frame = Frame([], [5], [6, 7], None, -2)
    found = windows([asked("why?", "because")], plain, frame, 32, 4, True)[0]
    assert found["input_ids"][found["null"]] == 6
    assert isinstance(found["labels"], np.ndarray)
