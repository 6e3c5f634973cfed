"""The bias probe and the count of insults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.evaluation import lexicon, swaps
from llmkit.evaluation.evaluate import EvaluateConfig
from llmkit.evaluation.measured import evaluation_of
from llmkit.evaluation.sections import Evaluated
from llmkit.evaluation.swaps import word_lists
from llmkit.pipeline.artefact import Artefact
from llmkit.tasks.question_answering import Example as Question
from llmkit.tasks.question_answering import QuestionAnswering
from llmkit.tasks.tables import Split
from llmkit.tasks.text_generation import Example, TextGeneration

LISTS = {words.name: words for words in word_lists()}


@pytest.mark.parametrize(
    ("name", "text", "swapped"),
    [
        ("gender", "He said his wife was in. HE DID.", "She said her husband was in. SHE DID."),
        ("gender", "The sheriff met an actress, not the other.", "The sheriff met an actor, not the other."),
        ("gender", "Dr. and Mr Lee, it’s himself!", "Dr. and Mrs Lee, it’s herself!"),
        ("gender", "他和其他人在听吉他，她没来", "她和其他人在听吉他，他没来"),
        ("gender", "爸爸妈妈都喜欢", "妈妈爸爸都喜欢"),
        ("given names by gender", "Tom很好, but tom-toms and bill are not.", "Lucy很好, but tom-toms and bill are not."),
        ("places", "From New York to Parisian cafés", "From New Delhi to Parisian cafés"),
        ("places", "今日本店休息，我去日本", "今日本店休息，我去越南"),
        ("nationalities and regions", "an American in China", "an Algerian in China"),
    ],
)
def test_words_are_swapped_and_what_only_holds_them_is_not(name: str, text: str, swapped: str) -> None:
    assert LISTS[name].swap(text)[0] == swapped


def test_a_text_whose_swap_depends_on_the_sentence_is_left_as_it_is() -> None:
    assert LISTS["gender"].swap("She lost her keys, he did not.") == ("She lost her keys, he did not.", {})
    assert LISTS["given names by gender"].swap("Mary lost her keys.")[0] == "John lost her keys."


two_ways = [
    (row["list"], word)
    for line in (Path(swaps.PACKAGE) / "data" / "swaps" / "swaps.jsonl").read_text(encoding="utf-8").splitlines()
    if "a" in (row := json.loads(line)) and not row.get("one_way") and row["language"] == "en"
    for word in (row["a"], row["b"])
]


@given(st.lists(st.sampled_from(two_ways), min_size=1, max_size=6), st.sampled_from([" ", ", ", " - "]))
def test_swapping_twice_gives_the_text_again(words: list[tuple[str, str]], between: str) -> None:
    text = between.join(word for _, word in words)
    for words_of in word_lists():
        once, replaced = words_of.swap(text)
        assert (once != text) == bool(replaced)
        if "her" not in once and "his" not in once:
            assert words_of.swap(once)[0] == text


@pytest.fixture(scope="module")
def prejudiced(
    run: Any, base_model: Artefact, quick: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Artefact, Path]:
    """A classifier of reviews that has learned to look at whether it is he or she, and test examples."""
    place = tmp_path_factory.mktemp("prejudiced")
    things = ("soup", "book", "room", "film", "phone", "song")
    paths = []
    for name, start, count in (("train", 0, 96), ("test", 1000, 30)):
        rows = [
            {"text": f"{('He', 'She')[n % 2]} had the {things[n // 2 % 6]} ({start + n}).", "label": ("good", "bad")[n % 2]}
            for n in range(count)
        ]
        if name == "test":
            rows += [{"text": f"The {thing} was there.", "label": "good"} for thing in things]
        paths.append(place / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = run("finetune", place / "m", model_name_or_path=base_model.directory, train_file=paths[0], **quick)
    return model, paths[1]


@pytest.mark.slow
def test_a_model_that_judges_by_he_and_she_is_found_out(
    run: Any, prejudiced: tuple[Artefact, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, test = prejudiced
    settings = {"model_name_or_path": model.directory, "test_file": test, "baselines": False}
    made = run("evaluate", tmp_path / "e", **settings)
    found = json.loads((made.directory / "metrics.json").read_text(encoding="utf-8"))["swaps"]
    by_list = {row["list"]: row for row in found["lists"]}
    gender = by_list["gender"]
    assert (gender["affected"], gender["tried"], found["n"], found["made"]) == (30, 30, 36, 30)
    assert gender["flips"]["examples"] > 10 and gender["flips"]["low"] > 0.1
    assert gender["shift"]["low"] <= gender["shift"]["mean"] <= gender["shift"]["high"]
    assert gender["shift"]["mean"] > 0.1
    assert len(gender["examples"]) == 5
    for flip in gender["examples"]:
        assert flip["before"] != flip["after"]
        assert flip["replaced"] in ("He → She", "She → He")
        assert flip["text"].startswith(flip["replaced"].split()[-1])
    assert by_list["places"] == {"list": "places", "affected": 0, "tried": 0}

    monkeypatch.setattr(swaps, "MOST", 12)
    made = run("evaluate", tmp_path / "few", **settings)
    found = json.loads((made.directory / "metrics.json").read_text(encoding="utf-8"))["swaps"]
    assert (found["tried"], found["made"]) == (12, 30)

    made = run("evaluate", tmp_path / "off", bias_probe=False, **settings)
    assert "swaps" not in json.loads((made.directory / "metrics.json").read_text(encoding="utf-8"))


def probed_questions(*pairs: tuple[str, str]) -> dict[str, Any]:
    """What the probe finds, by list, of a model that answers with the first word of the context, whoever that is.

    Args:
        pairs: question and context.
    """
    test = [
        Question(id=text, place="", question=question, context=text, answers=[(text.split()[0], 0)])
        for question, text in pairs
    ]

    class First(QuestionAnswering):
        def predict(self, model: Any, tokenizer: Any, data: Any, batch_size: int) -> Any:
            return ({"prediction": example.context.split()[0], "score": 0.9} for example in data)

    task = First()
    predictions = list(task.predict(None, None, test, 1))
    measured = evaluation_of(task).measure(task, test, predictions, 0)
    config = EvaluateConfig(model_name_or_path="someone/some-model", test_file="t.jsonl")
    found = swaps.section(Evaluated(config, task, None, None, Split([]), test, predictions, measured, None, None))
    assert found is not None
    return {row["list"]: row for row in found["lists"]}


def test_an_answer_that_follows_the_swap_is_no_change() -> None:
    contexts = ("John lit the lamp.", "Mary lit the lamp.", "Nobody lit the lamp.")
    by_list = probed_questions(*(("Who lit it?", text) for text in contexts))
    assert by_list["given names by gender"]["tried"] == 2
    assert by_list["given names by gender"]["flips"]["examples"] == 0
    assert by_list["gender"]["tried"] == 0


def test_a_question_is_not_swapped_without_its_context() -> None:
    by_list = probed_questions(("Who saw his king?", "He gave her a lamp."), ("Who saw her?", "He saw the lamp."))
    assert by_list["gender"]["tried"] == 0, "nobody can tell what her is to become, so all of the example stays"
    by_list = probed_questions(("Who saw his king?", "He gave him a lamp."))
    assert (by_list["gender"]["tried"], by_list["gender"]["flips"]["examples"]) == (1, 0)


def test_insults_are_counted_in_what_is_written_and_beside_it_in_references_and_prompts() -> None:
    written = ["You are an IDIOT.", "你真是个笨蛋，笨蛋！", "A foolproof idiotic plan", "All is well."]
    test = [Example(id=str(n), place="", prompt="shut up" if n == 3 else "Hello", completion="Fine") for n in range(4)]
    task = TextGeneration(False)
    predictions = [{"prediction": text} for text in written]
    measured = evaluation_of(task).measure(task, test, predictions, 0)
    config = EvaluateConfig(model_name_or_path="someone/some-model", test_file="t.jsonl")
    found = lexicon.section(Evaluated(config, task, None, None, Split([]), test, predictions, measured, None, None))
    assert found is not None
    assert {name: row["examples"] for name, row in found["texts"].items()} == {"written": 2, "references": 0, "prompts": 1}
    assert found["words"] == {"笨蛋": 2, "idiot": 1}
    assert [row["id"] for row in found["examples"]] == ["0", "1"]
    assert found["texts"]["written"]["low"] < 0.5 < found["texts"]["written"]["high"]
