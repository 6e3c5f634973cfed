from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from llmkit.errors import ConfigError, DataError
from llmkit.pipeline.artefact import Artefact
from llmkit.tasks.pairs import give_pair_form
from llmkit.tasks.settings import Columns
from llmkit.tasks.tables import Row
from llmkit.tasks.text_classification import Example, TextClassification


def pair(first: str, second: str, label: str = "a") -> Example:
    return Example(id="", place="", text=first, text_pair=second, label=label)


@pytest.fixture
def bert() -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "three"]
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)})


@pytest.mark.parametrize(
    ("names", "settings", "columns"),
    [
        (("sentence1", "sentence2"), {}, ("sentence1", "sentence2")),
        (("premise", "hypothesis"), {}, ("premise", "hypothesis")),
        (("text", "text_pair"), {}, ("text", "text_pair")),
        (("one", "two"), {"text_column": "two", "text_pair_column": "one"}, ("two", "one")),
        (("premise", "hypothesis"), {"text_pair_column": "hypothesis"}, ("premise", "hypothesis")),
        (("text", "other"), {"text_pair_column": "other"}, ("text", "other")),
        (("text", "text_pair"), {"text_column": "text_pair"}, ("text_pair", None)),
    ],
)
def test_columns_of_pairs_are_those_named_or_the_usual_ones(names: Any, settings: dict[str, str], columns: Any) -> None:
    task = TextClassification([])
    row = Row("f:1", {**{name: f"in {name}" for name in names}, "label": "x"})
    (found,) = task.read([row], Columns(**settings))
    assert (found.text, found.text_pair) == tuple(name and f"in {name}" for name in columns)
    assert task.is_pair == (columns[1] is not None)


def test_a_model_of_pairs_is_given_pairs_and_one_of_single_texts_is_not() -> None:
    rows = [Row("f:1", {"text": "x", "other": "y", "label": "a"})]
    with pytest.raises(DataError, match="the model takes two texts, and f:1 has: text, other, label"):
        TextClassification(["a", "b"], is_pair=True).read(rows, Columns())
    with pytest.raises(DataError, match="text_pair_column: is 'other', and the model takes single texts"):
        TextClassification(["a", "b"], is_pair=False).read(rows, Columns(text_pair_column="other"))
    assert TextClassification(["a", "b"], is_pair=False).read(rows, Columns())[0].text_pair is None


def test_an_empty_second_text_is_named_by_its_row() -> None:
    rows = [
        Row("f:1", {"premise": "x", "hypothesis": "y", "label": "a"}),
        Row("f:2", {"premise": "x", "hypothesis": " ", "label": "b"}),
    ]
    with pytest.raises(DataError, match="1 rows have no text in column 'hypothesis': f:2"):
        TextClassification([]).read(rows, Columns())


def test_a_pair_is_not_the_same_as_its_texts_divided_elsewhere() -> None:
    assert pair("a b", "c").input() != pair("a", "b c").input()


def test_a_causal_model_sees_a_separator_between_the_texts_and_has_its_say_at_the_last_token(tokenizer: Artefact) -> None:
    task = TextClassification(["a", "b"], is_pair=True)
    loaded = task.load_tokenizer(str(tokenizer.directory))
    features = task.features([pair("The soup", "was good"), pair("x", "y")], loaded, 100)
    first, second = (loaded(text)["input_ids"] for text in ("The soup", "was good"))
    assert features[0]["input_ids"].tolist() == [*first, loaded.eos_token_id, *second]
    batch = task.collator(loaded)([features[0], features[1]])
    assert batch["attention_mask"][1].tolist() == [1, 1, 1, *[0] * (len(first) + len(second) - 2)], "filled up on the right"


def test_the_separator_is_saved_with_the_tokenizer(tokenizer: Artefact, tmp_path: Path) -> None:
    loaded = TextClassification([], is_pair=True).load_tokenizer(str(tokenizer.directory))
    loaded.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("one", "two")["input_ids"] == loaded("one", "two")["input_ids"]
    assert again("one")["input_ids"] == AutoTokenizer.from_pretrained(tokenizer.directory)("one")["input_ids"]


def test_of_a_pair_that_is_too_long_the_longer_text_is_cut_and_the_separator_stays(tokenizer: Artefact) -> None:
    task = TextClassification(["a", "b"], is_pair=True)
    loaded = task.load_tokenizer(str(tokenizer.directory))
    short = loaded("not at all")["input_ids"]
    for texts in (("word " * 60, "not at all"), ("not at all", "word " * 60)):
        features = task.features([pair(*texts)], loaded, max_length=20)
        ids = features[0]["input_ids"].tolist()
        assert len(ids) == 20
        assert features.facts["truncated"] == 1
        at = ids.index(loaded.eos_token_id)
        assert short in (ids[:at], ids[at + 1 :]), "the shorter text is whole"


def test_an_encoder_keeps_its_own_form_with_token_types(bert: BertTokenizer) -> None:
    task = TextClassification(["a", "b"], is_pair=True)
    features = task.features([pair("one two", "three"), pair("one", "two")], bert, 100)
    assert bert.decode(features[0]["input_ids"]) == "[CLS] one two [SEP] three [SEP]"
    batch = task.collator(bert)([features[0], features[1]])
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]]
    single = TextClassification(["a", "b"]).features([Example(id="", place="", text="one", label="a")], bert, 100)
    assert set(single.columns) == {"input_ids", "labels"}


def test_tokens_around_a_single_text_stay_around_a_pair(tokenizer: Artefact) -> None:
    from tokenizers.processors import TemplateProcessing

    loaded: Any = AutoTokenizer.from_pretrained(tokenizer.directory)
    eos, number = loaded.eos_token, loaded.eos_token_id
    template = TemplateProcessing(single=[eos, "$A"], pair=[eos, "$A", "$B"], special_tokens=[(eos, number)])
    loaded.backend_tokenizer.post_processor = template
    give_pair_form(loaded)
    give_pair_form(loaded)
    a, b = (loaded(text, add_special_tokens=False)["input_ids"] for text in ("one", "two"))
    assert loaded("one", "two")["input_ids"] == [number, *a, number, *b]
    assert loaded("one")["input_ids"] == [number, *a]


def test_a_tokenizer_without_a_token_to_divide_by_is_refused(tokenizer: Artefact) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer.directory / "tokenizer.json"))
    with pytest.raises(ConfigError, match="no form for two texts"):
        give_pair_form(bare)
