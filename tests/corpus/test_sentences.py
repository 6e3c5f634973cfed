"""Sentences of English and Chinese written by hand, and the law that nothing of a text is lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.corpus.sentences import punkt, sentences
from llmkit.errors import ConfigError

# A bar stands where a sentence ends.
ENGLISH = """
Mr. Brown met Dr. Green at noon.| They talked for an hour.| Nobody knows about what.
The U.S. economy grew by 2.5 percent.| In the U.K. it did not.
She was born in Washington, D.C. in 1950.| He came later.
"Where are you going?" she asked.| "Home," he said.
"I am tired."| He sat down.
Wait!| What was that?| I heard something.
He bought apples, pears, etc. at the market.| Then he left.
See Fig. 3 for details.| Table 2 lists the rest.
J. R. R. Tolkien wrote it.| C. S. Lewis was his friend.
The price is $3.50.| That is too much.
Well... I am not sure.| Let me think.
I thought... no, never mind.
It happened at 5 p.m. yesterday.| We were at home.
It closed at 5 p.m.| The staff went home.
Prof. Smith, Ph.D., gave the talk.| It was good.
Use tools, e.g. a hammer.| Or do not, i.e. wait.
The firm (Acme Inc.) is old.| It makes traps.
Acme Inc. was founded in 1900.| It was sold in 1950.
She works for Acme Inc.| He works for a bank.
He said (and I agree) that it is late.| (It was midnight.)| We left.
Is this the end?| No!| It is the beginning.
Version 2.0 is out.| Version 2.1 follows.
St. Paul is cold.| Mt. Everest is colder.
They won 3-2.| The crowd cheered.
Visit example.com for more.| It is free.
Smith et al. found this.| Others did not.
"Stop!"| The man ran.
No. 5 is alive.| He said no.| They laughed.
Gen. Lee and Col. Grant met.| History was made.
What?!| You cannot be serious.
He lived from ca. 1200 to 1260.| Little is known.
The meeting is on Jan. 5 in Rome.| Please come.
Yes.| No.| Maybe.
It was I.| You know it.
This is Section 3.| Section 4 is next.
"""
CHINESE = """
今天天气很好。|我们去公园吧！|你去吗？
他问：“你好吗？”|她没有回答。
“快走！”他喊道。|大家都跑了。
“你是谁？”老人问。|没有人说话。
我不知道……|也许明天会好。
我……我不是故意的。
春天来了；|花开了。
他说：「我很累。」|然後他睡了。
价格是3.5元。|太贵了！
真的吗？！|我不相信。
他读了《红楼梦》。|她读了《西游记》。
这是第一句。|这是第二句。|这是第三句。
（他笑了。）|我们也笑了。
“走吧。”|她站起来。
什么是“自由”？|没有人知道。
今天是2020.1.5。|明天是星期一。
『為什麼？』他問。|我沒有回答。
他写道：“一切都好。”|信到此为止。
你来了！|我等了很久。|坐吧。
雨停了。|太阳出来了。|孩子们在外面玩。
“好的！”的声音传来。|门开了。
别走！！|求你了。
"""
TEXTS = {"en": ENGLISH.strip().split("\n"), "zh": CHINESE.strip().split("\n")}
FLOORS = {("en", "rules"): 0.97, ("zh", "rules"): 0.97, ("en", "nltk"): 0.75, ("en", "spacy"): 0.75, ("zh", "spacy"): 0.75}


def accuracy(language: str, splitter: object) -> float:
    """How many of the sentences written by hand come out whole."""
    right = total = 0
    for marked in TEXTS[language]:
        expected = [piece.strip() for piece in marked.split("|")]
        found = [piece.strip() for piece in sentences(marked.replace("|", ""), language, splitter)]
        right += sum(piece in found for piece in expected)
        total += len(expected)
        if found != expected:
            print(f"{splitter}: {found}")
    print(f"{language}, {splitter}: {right} of {total} sentences")
    return right / total


def test_the_set_is_large_enough() -> None:
    assert sum(text.count("|") + 1 for text in TEXTS["en"]) >= 60
    assert sum(text.count("|") + 1 for text in TEXTS["zh"]) >= 40


@pytest.mark.parametrize(("language", "splitter"), FLOORS)
def test_accuracy_on_the_set_written_by_hand(language: str, splitter: str) -> None:
    if splitter != "rules":
        pytest.importorskip(splitter)
    assert accuracy(language, splitter) >= FLOORS[language, splitter]


PIECES = [
    "Mr. Fox",
    "ran",
    ". ",
    ".",
    "! ",
    "?”",
    "。",
    "……",
    "”",
    "「",
    "他说",
    "\n",
    "\n\n",
    " ",
    "3.5",
    "U.S. ",
    "1. ",
    "\u3000",
    "…",
]


@settings(deadline=None, max_examples=200)
@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=20).map("".join)))
def test_the_sentences_joined_are_the_text(text: str) -> None:
    found = sentences(text)
    assert "".join(found) == text and all(found)
    assert all(piece.strip() for piece in found[1:])


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.sampled_from(PIECES), max_size=20).map("".join),
    st.sampled_from(["nltk", "spacy"]),
    st.sampled_from(["en", "zh"]),
)
def test_other_splitters_keep_the_law(text: str, splitter: str, language: str) -> None:
    pytest.importorskip(splitter)
    found = sentences(text, language, splitter)
    assert "".join(found) == text and all(found)


def test_punkt_learns_abbreviations_from_the_texts_it_is_given() -> None:
    pytest.importorskip("nltk")
    trained = punkt([f"We met Kpt. Meier at {hour} today. He told kpt. Meier so. Then it rained." for hour in range(200)])
    assert [piece.strip() for piece in sentences("I saw kpt. Meier. He ran.", splitter=trained)] == [
        "I saw kpt. Meier.",
        "He ran.",
    ]


def test_blank_lines_end_sentences_and_line_ends_do_not() -> None:
    assert sentences("A title\n\nA wrapped\nline.\n") == ["A title\n\n", "A wrapped\nline.\n"]
    assert sentences("") == []


def test_an_unknown_splitter_is_refused() -> None:
    with pytest.raises(ConfigError, match="no splitter 'magic'"):
        sentences("A text.", splitter="magic")


@pytest.mark.parametrize("unit", [".", "!?", "...", ". ", "1. ", ".\u00a0-", "。”", "\n "])
def test_long_runs_of_marks_take_little_time(unit: str) -> None:
    """Hours where each mark of a run is looked at with all that follow it."""
    text = "x" + unit * (200_000 // len(unit)) + "x"
    assert "".join(sentences(text)) == text
