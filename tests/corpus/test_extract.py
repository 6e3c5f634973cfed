"""Main text of web pages, and bytes of unknown encoding to text."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.corpus.encoding import declared_in_html, decode, detect
from llmkit.corpus.extract import Extracted, extract, robots_tokens

pytest.importorskip("resiliparse")

ARTICLES = Path("/work/shared/data/html-articles")

PAGE = """<!doctype html><html lang="en-GB"><head><title>Snow &amp;
 ice</title></head><body>
<nav><ul><li><a href=/>Home</a></li><li><a href=/b>About us</a></li></ul></nav>
<article><h1>Snow</h1><p>First paragraph with <b>bold</b>  words and a <a href=x>link</a>, and enough of them.</p>
<ul><li>one item</li><li>two <a href="https://a.org/x">item</a>, <a href=y>with</a> some links in between the words
<ul><li>nested item</li></ul></li></ul><ol><li>first</li><li>second</li></ol>
<table><tr><th>Name</th><th>Age</th><th>City</th></tr><tr><td>Ann</td><td></td><td>Bern</td></tr></table>
<pre><code>def f(x):
    if x:
\t\treturn 1

    return 2
</code></pre><p>Use <code>a_b</code> here<br>and there.</p></article>
<div class="share-buttons">Share this</div><footer>Copyright 2020</footer><script>var x = "<div>";</script></body></html>"""


def test_code_tables_and_lists_survive() -> None:
    page = extract(PAGE)
    assert page.title == "Snow & ice"
    assert page.language == "en-GB"
    for part in (
        "Snow\n\nFirst paragraph with bold words and a link, and enough of them.",
        "  • one item\n  • two item, with some links in between the words\n    • nested item\n  1. first\n  2. second",
        "Name\tAge\tCity\nAnn\t\tBern",
        "def f(x):\n    if x:\n\t\treturn 1\n\n    return 2\n",
        "Use a_b here\nand there.",
    ):
        assert part in page.text
    for part in ("Home", "Share this", "Copyright", "var x"):
        assert part not in page.text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<p>想知道更多的事情，请参见<a href=x>北京</a>的<a href=y>大学</a>。</p>", "想知道更多的事情，请参见北京的大学。"),
        ("<p>我们<ruby>北京<rt>Běijīng</rt></ruby>人</p>", "我们北京Běijīng人"),
        ("<h1>一</h1><ul><li>甲</li><li> 乙\n</li></ul>", "一\n\n  • 甲\n  • 乙"),
        ("<p>It costs <b>5</b> €, <b>he</b> — <i>or she</i>… <b>said</b></p>", "It costs 5 €, he — or she… said"),
        ("<p>text <b>more</b>›<b>text</b></p>", "text moretext"),
    ],
)
def test_a_letter_or_mark_alone_between_tags_is_text(source: str, text: str) -> None:
    assert extract(f"<html><body><article>{source}</article></body></html>").text == text


def test_plain_keeps_all_visible_text() -> None:
    text = extract(PAGE, "plain").text
    assert all(part in text for part in ("Home", "Share this", "Copyright 2020", "nested item"))
    assert "var x" not in text


def test_trafilatura_where_it_can_be_imported() -> None:
    pytest.importorskip("trafilatura", exc_type=ImportError)
    page = extract(PAGE, "trafilatura", "http://a.org/")
    assert "First paragraph with bold" in page.text
    assert page.title == "Snow & ice"


def test_an_article_that_is_not_the_text_is_not_taken_for_it() -> None:
    paragraphs = "".join(
        f"<p>Paragraph {number} of the text that matters, with a good many words.</p>" for number in range(20)
    )
    text = extract(f"<body><article>A teaser.</article><div>{paragraphs}</div></body>").text
    assert "Paragraph 19" in text
    wrapped = extract(f'<body><div class="promo-wide">{paragraphs}</div></body>').text
    assert "Paragraph 19" in wrapped


pieces = [
    *("<p>", "</p>", "<ul><li>", "</ul>", "<table><tr><td>", "text ", "<pre>", "中文", "<b>", "</div>", "<div>"),
    *("&amp;", "<", "\0", "<!--", "<script>"),
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(pieces), max_size=30))
def test_any_page_gives_text(parts: list[str]) -> None:
    for extractor in ("resiliparse", "plain"):
        page = extract("".join(parts), extractor)  # type: ignore[arg-type]
        assert isinstance(page, Extracted)
        assert page.text == page.text.strip("\n")


@pytest.mark.parametrize(
    "source",
    [
        "<div>" * 200_000 + "deep",
        "<b>" * 100_000 + "deep" + "</b>" * 100_000,
        "<ul><li>" * 50_000 + "deep",
        "<p>deep" + "<script>" * 100_000,
    ],
)
def test_pages_of_endless_depth_take_no_endless_time(source: str) -> None:
    start = time.process_time()
    assert "deep" in extract(source).text
    assert time.process_time() - start < 60  # without a bound: hours


def test_robots() -> None:
    assert robots_tokens("NOINDEX, nofollow , noai") == ["noai", "noindex"]
    assert robots_tokens("googlebot: none") == ["noindex"]
    assert robots_tokens("index, follow, max-snippet:-1") == []


@pytest.mark.skipif(not ARTICLES.is_dir(), reason=f"{ARTICLES} is not there")
def test_real_articles_are_found() -> None:
    """Words of the article that are found, and words found that are of the article; the benchmark has the exact figures."""
    truth = json.loads((ARTICLES / "ground-truth.json").read_text(encoding="utf-8"))
    found = expected = shared = 0
    for name, page in truth.items():
        html = gzip.decompress((ARTICLES / "html" / f"{name}.html.gz").read_bytes())
        words, wanted = extract(html).text.split(), page["articleBody"].split()
        rest = list(words)
        common = sum(1 for word in wanted if word in rest and not rest.remove(word))  # type: ignore[func-returns-value]
        found, expected, shared = found + len(words), expected + len(wanted), shared + common
    assert shared / expected > 0.95
    assert shared / found > 0.88


# --------------------------------------------------------------------------------------------------------------------
# Encodings

CHINESE = "今天天气很好，我们去公园散步。"


@pytest.mark.parametrize(
    ("data", "declared", "expected"),
    [
        (CHINESE.encode(), None, "utf-8"),
        (CHINESE.encode("gb18030"), None, "gb18030"),
        (CHINESE.encode("gb18030"), "GB2312", "gb18030"),
        ("㐀 and 朱镕基".encode("gb18030"), "gb2312", "gb18030"),  # characters that GB2312 does not have
        (CHINESE.encode(), "gb2312", "utf-8"),
        (CHINESE.encode("utf-16"), None, "utf-16-le"),
        (CHINESE.encode("utf-8-sig"), "gbk", "utf-8"),
        ("“smart” – café".encode("cp1252"), "iso-8859-1", "cp1252"),
        ("café".encode(), "latin-1", "utf-8"),
        ("Привет, как дела? Всё хорошо".encode("cp1251"), None, "cp1251"),
        ("今日は天気がいいので散歩に行きます。①".encode("cp932"), "Shift_JIS", "cp932"),
        ("안녕하세요 똠방각하".encode("cp949"), "EUC-KR", "cp949"),
        ("今天天氣很好，我們去公園散步。".encode("big5"), "Big5", "big5hkscs"),
        (b"plain ASCII", "no such encoding", "utf-8"),
        (b"", None, "utf-8"),
    ],
)
def test_encodings(data: bytes, declared: str | None, expected: str) -> None:
    text, encoding = decode(data, declared)
    if encoding == "utf-8" and expected == "utf-8" and "café" in text:
        assert text == "café"
    assert encoding == expected
    assert text.encode(encoding) == data.removeprefix(b"\xff\xfe").removeprefix(b"\xef\xbb\xbf")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.sampled_from([None, "utf-8", "gbk", "latin-1", "shift_jis", "utf-16", "x"]))
def test_any_bytes_give_text(data: bytes, declared: str | None) -> None:
    text, encoding = decode(data, declared)
    text.encode("utf-8")
    assert "".encode(encoding) is not None


def test_a_declaration_holds_where_a_few_bytes_are_damaged() -> None:
    data = (CHINESE * 20).encode("gb18030") + b"\xff" + CHINESE.encode("gb18030")
    text, encoding = decode(data, "gbk")
    assert encoding == "gb18030"
    assert text.count("\ufffd") == 1
    assert CHINESE in text


def test_declarations_in_pages() -> None:
    assert declared_in_html(b'<meta http-equiv="Content-Type" content="text/html; charset=GBK">') == "GBK"
    assert declared_in_html(b"<meta charset='big5'>") == "big5"
    assert declared_in_html(b'<?xml version="1.0" encoding="windows-1251"?>') == "windows-1251"
    assert declared_in_html(b'<meta charset="utf-16">') == "utf-8"
    assert declared_in_html(b"<p>charset=gbk") is None


def test_a_file_may_be_cut_inside_a_character() -> None:
    assert detect(CHINESE.encode()[:-1], cut=True) == "utf-8"
    assert detect((CHINESE * 9).encode("gb18030")[:-1], cut=True) == "gb18030"


def test_of_declared_encodings_the_first_that_exists_counts() -> None:
    assert decode("中文".encode("gbk"), "none", None, "gb2312", "big5") == ("中文", "gb18030")
    assert decode("中文".encode("big5"), "big5", "gb2312") == ("中文", "big5hkscs")
