"""Mojibake repaired and lines of web pages removed, and everything else left as it is."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.corpus.batch import Batch
from llmkit.corpus.clean import Clean, repair, without_boilerplate
from llmkit.corpus.normalise import normalise

pytest.importorskip("ftfy")

GOOD = [
    "Plain text, with nothing to mend.",
    "“Curly” quotes ‘stay’, and so do ﬁgures – and … dots",
    "Ｗｉｄｅ　ｌｅｔｔｅｒｓ，１２３",
    "今天的天气很好，我们去公园吧！“真的吗？”她问——《红楼梦》……",
    "今天天氣很好；我們去公園吧。「真的嗎？」她問",
    "Größe, naïve café, Ærøskøbing, «guillemets», São Paulo, Ångström",
    "Цена: 5 €, «ёлка»",
    "日本語の文章です。カタカナ",
    "&lt;b&gt; &amp; &eacute; stay as they are",
    "SMÖRGÅSBORD À LA CARTE",
]
BROKEN = ["It’s a café", "Größe – naïve", "“quoted” text", "中文文本很好", "Привет, мир", "100 €"]


def batch(*texts: str) -> Batch:
    return Batch(list(texts), [str(i) for i in range(len(texts))], ["here"] * len(texts), [{} for _ in texts])


@pytest.mark.parametrize("text", GOOD)
def test_what_is_no_mojibake_stays_to_the_character(text: str) -> None:
    assert repair(text) == text


@pytest.mark.parametrize("text", BROKEN)
def test_mojibake_is_undone(text: str) -> None:
    # Windows-1252 leaves five bytes undefined, which browsers read as Latin-1.
    wrong = "".join(
        bytes([byte]).decode("cp1252" if byte not in (129, 141, 143, 144, 157) else "latin-1") for byte in text.encode()
    )
    assert wrong != text and repair(wrong) == text


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(min_codepoint=0x3000, max_codepoint=0x9FFF)))
def test_chinese_is_never_changed(text: str) -> None:
    assert repair(text) == text


def test_the_step_counts_what_it_did_and_passes_over_what_is_rejected() -> None:
    documents = batch("It\u00e2\u20ac\u2122s fine  \r\nRead more »\r\nbye", "clean", "\u00e2\u20ac\u2122")
    documents.reject(2, "too short")
    Clean(repair=True, boilerplate=True)(documents)
    assert documents.texts == ["It’s fine\nbye", "clean", "\u00e2\u20ac\u2122"]
    assert documents.signals["repaired"][:2].tolist() == [1, 0] and math.isnan(documents.signals["repaired"][2])
    assert documents.signals["boilerplate_lines"][:2].tolist() == [1, 0]


def test_nothing_but_normalising_is_done_unless_asked_for() -> None:
    documents = batch("It\u00e2\u20ac\u2122s fine \r\nRead more")
    Clean(repair=False, boilerplate=False)(documents)
    assert documents.texts == ["It\u00e2\u20ac\u2122s fine\nRead more"] and documents.signals == {}


@pytest.mark.parametrize(
    "line",
    [
        *("Home | About us | Contact", "Skip to main content", "READ MORE »", "← Previous post", "Log in"),
        "Share on Facebook",
        *("© 2019 Example Inc. All rights reserved.", "Copyright 2021 by the authors", "All Rights Reserved."),
        *("We use cookies to improve your experience.", "This website uses cookies.", "Click here to subscribe to our list"),
        *("Please log in to comment", "Facebook Twitter".replace(" ", "  "), "Share on: ".strip(": ") + " Twitter"),
        *("首页 > 新闻 > 服务", "分享到：微信 微博 QQ空间"),
        *("版权所有 © 2020 某某公司", "上一篇：秋天的故事", "下一篇：没有了", "点击查看更多"),
        *("扫一扫，关注我们", "【阅读全文】", "京ICP备12345678号-1", "未经授权，禁止转载"),
        *("责任编辑：张三", "返回首頁", "閱讀全文", "版權所有，翻印必究"),
    ],
)  # fmt: skip
def test_lines_of_the_page_are_removed(line: str) -> None:
    before, after = "The first paragraph of the text.", "正文的第二段。"
    assert without_boilerplate(f"{before}\n{line}\n{after}") == (f"{before}\n{after}", 1)


KEPT = [
    'def login(user):\n    if user:\n        return "log in"\n    share = 1\n    read_more\n\n    login',
    "```python\nlogin\nread more\n# Contact us\n```",
    "| Home | About |\n|---|---|\n| Log in | Contact us |\n| 分享 | 登录 |",
    "- Home\n- Log in\n- Read more\n* 分享到\n1. Sign up\n2) 返回首页",
    "# Contact us\n> Read more",
    "Home\nShare\nSearch\nHelp\nNext\n登录\n首页",
    "He told me to read more books and to log in twice.",
    "Copyright law protects authors.\nAll rights reserved to the crown were lost.",
    "版权所有者可以提起诉讼，要求赔偿。\n分享是一种美德，我们应该学会分享。",
    "分享到此为止，谢谢大家。\n关注公众号的人越来越多",
    "他点击了鼠标，查看了邮件。\n上一篇文章讲了什么，大家都忘记了。",
    "We use cookies, milk and a little sugar for the base of this cake, which then has to rest for an hour in the cold.",
]


@pytest.mark.parametrize("text", KEPT)
def test_code_tables_lists_and_sentences_survive(text: str) -> None:
    assert without_boilerplate(text) == (text, 0)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.sampled_from(["Read more", "Log in", "A sentence.", "", "    code", "```", "句子。", "分享到", "- item"]),
        max_size=12,
    )
)
def test_cleaning_twice_is_cleaning_once(lines: list[str]) -> None:
    once, removed = without_boilerplate(normalise("\n".join(lines)))
    assert without_boilerplate(once) == (once, 0)
    assert removed <= sum(line in ("Read more", "Log in", "分享到") for line in lines)
