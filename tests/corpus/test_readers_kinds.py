"""Kinds of files beyond text and tables, and files that are made to do harm."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from llmkit.corpus.documents import Document
from llmkit.corpus.readers import SET_ASIDE, BadRow, ReadOptions, Row, find_files, lines, read, streams
from llmkit.corpus.readers.markup import plain_text
from llmkit.corpus.readers.wikitext import spelled
from llmkit.errors import DataError

WIKITEXT = Path("/work/shared/data/wikitext-2/wiki.valid.tokens")


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(path: Path, **options: Any) -> list[Row]:
    found = find_files([str(path)], "train_file").files
    return [row for file in found for row in read(file.whole(), ReadOptions(**options), lambda count: None)]


def about(row: Row) -> dict[str, Any]:
    assert isinstance(row, Document), row
    found: dict[str, Any] = json.loads(row.metadata)
    return found


# --------------------------------------------------------------------------------------------------------------------
# WikiText


def test_wikitext_articles(tmp_path: Path) -> None:
    source = (
        " \n = Robert Boulter ( actor ) = \n \n Robert Boulter is an English film , television and theatre actor .\n"
        " He had a guest @-@ starring role ; it cost $ 1 @,@ 000 ( 0 @.@ 5 % ) . \n \n = = Career = = \n \n"
        " = = = 2000 – 2005 = = = \n \n He 's in the \" Big <unk> \" , isn 't he ? \n \n = Next = \n \n Text . \n"
    )
    first, second = rows(write(tmp_path / "wiki.tokens", source), markup="wikitext")
    assert first.text == (
        "Robert Boulter (actor)\n\nRobert Boulter is an English film, television and theatre actor.\n"
        "He had a guest-starring role; it cost $1,000 (0.5%).\n\nCareer\n\n2000 – 2005\n\n"
        "He's in the \"Big <unk>\", isn't he?"
    )
    assert (about(first)["title"], first.id, second.id) == ("Robert Boulter (actor)", "wiki.tokens:2", "wiki.tokens:13")
    assert second.text == "Next\n\nText."


def test_a_line_of_signs_is_no_title(tmp_path: Path) -> None:
    source = " \n = Title = \n \n A formula : \n = x = \n \n goes on : \n \n = y = \n and on . \n"
    (row,) = rows(write(tmp_path / "a.txt", source), markup="wikitext")
    assert row.text.startswith("Title\n")
    assert row.text.endswith("and on.")


def test_without_the_setting_tokens_are_text(tmp_path: Path) -> None:
    (row,) = rows(write(tmp_path / "a.tokens", " = Title = \n"))
    assert row.text == " = Title = \n"


def test_only_spaces_that_are_not_in_doubt_are_put_right() -> None:
    assert spelled('an odd " quote , and 5 – 6 / 7') == 'an odd " quote, and 5 – 6 / 7'
    assert spelled("they 've 10 @-@ year @-@ old don 't") == "they've 10-year-old don't"
    assert spelled("<unk> , <unk>") == "<unk>, <unk>"


@pytest.mark.skipif(not WIKITEXT.is_file(), reason=f"{WIKITEXT} is not there")
def test_real_wikitext() -> None:
    found = rows(WIKITEXT, markup="wikitext")
    assert len(found) == 60  # the number of articles in the paper's Table 1
    text = "".join(row.text for row in found)
    assert not any(sign in text for sign in (" @-@ ", " @,@ ", " @.@ "))
    assert " ," not in text
    assert text.count("<unk>") == WIKITEXT.read_text(encoding="utf-8").count("<unk>")


# --------------------------------------------------------------------------------------------------------------------
# MediaWiki


def dump(*pages: str) -> str:
    head = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/"><siteinfo><sitename>W</sitename></siteinfo>'
    return head + "".join(pages) + "</mediawiki>"


def page(number: int, title: str, text: str, namespace: int = 0, extra: str = "") -> str:
    return (
        f"<page><title>{title}</title><ns>{namespace}</ns><id>{number}</id>{extra}<revision><id>9</id>"
        f"<timestamp>2020-01-01T00:00:00Z</timestamp><model>wikitext</model><text>{text}</text></revision></page>\n"
    )


def test_dumps(tmp_path: Path) -> None:
    pytest.importorskip("resiliparse")
    source = dump(
        page(12, "Anarchism", "'''Anarchism''' is a [[political philosophy|philosophy]]."),
        page(13, "Moved", "#REDIRECT [[Anarchism]]", extra='<redirect title="Anarchism" />'),
        page(14, "Talk:Anarchism", "Hello", namespace=1),
        page(15, "数学", "[[File:a.png|thumb|A [[link]]]]数学是研究[[数量]]的学科。&lt;ref&gt;x&lt;/ref&gt;"),
    )
    for path in (
        write(tmp_path / "a.xml", source),
        write(tmp_path / "a.xml.gz", gzip.compress(source.encode())),
        write(tmp_path / "a.xml.bz2", bz2.compress(source.encode())),
    ):
        found = rows(path)
        assert [row.id for row in found] == [f"{path.name}:{number}" for number in (12, 13, 14, 15)]
        assert [row.text for row in found if isinstance(row, Document)] == [
            "Anarchism is a philosophy.",
            "数学是研究数量的学科。",
        ]
        aside = [row for row in found if isinstance(row, BadRow)]
        assert all(row.reason in SET_ASIDE for row in aside)
        assert [(row.reason, row.detail, row.expected) for row in aside] == [
            ("wiki redirect", "Anarchism", True),
            ("wiki namespace", "1", True),
        ]
        assert about(found[0]) == {"title": "Anarchism", "date": "2020-01-01T00:00:00Z"}


def test_damaged_dumps(tmp_path: Path) -> None:
    source = dump(*(page(number, "Title", f"text {number}") for number in range(2000)))
    found = rows(write(tmp_path / "a.xml", source[: len(source) // 2]))
    assert len(found) > 900
    assert isinstance(found[-1], BadRow) and "not XML from here on" in found[-1].reason and not found[-1].expected
    declared = b'<?xml version="1.0" encoding="gbk"?>' + (source if isinstance(source, bytes) else source.encode())
    (only,) = rows(write(tmp_path / "b.xml", declared))
    assert isinstance(only, BadRow) and "multi-byte encodings are not supported" in only.reason
    found = rows(write(tmp_path / "b.xml.bz2", bz2.compress(source.encode())[:-200]))
    assert isinstance(found[-1], BadRow) and "cut short" in found[-1].reason
    (row,) = rows(write(tmp_path / "c.xml", "<rss></rss>"))
    assert isinstance(row, BadRow) and "holds no page" in row.reason
    laughs = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(12))
    source = f'<!DOCTYPE x [<!ENTITY l0 "lol">{laughs}]>' + dump(page(1, "&l12;", "x"))
    assert isinstance(rows(write(tmp_path / "d.xml", source))[-1], BadRow)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a '''bold''' and ''leaning'' and '''''both'''''", "a bold and leaning and both"),
        ("{{Infobox|a={{b|{{c}}}}\n|d=e}}Text {{lang|la|x}}here.", "Text here."),
        ('before\n{| class="x"\n|-\n| a {{b}} || c\n{|\n| inner\n|}\n|}\nafter', "before\n\nafter"),
        ("[[Cat]]s, [[Dog (animal)|]], [[a|b]], [[:Category:X]], [[Category:X]], [[de:Katze]]", "Cats, Dog, b, Category:X, ,"),
        ("[[File:x.jpg|thumb|A [[cat]] on [[mat|a mat]]]]Text", "Text"),
        ("x<ref name=a>y</ref> z<ref name=b /> w<ref>{{cite|u}}</ref>.", "x z w."),
        ("== History ==\nText\n=== Early ===\nMore", "History\n\nText\n\nEarly\n\nMore"),
        ("* one\n** two\n# three\n:indented\n;term", "• one\n  • two\n• three\nindented\nterm"),
        ("see [https://a.org the site] and [https://b.org] now", "see the site and now"),
        ("a<br/>b &amp; &lt;c&gt;<!-- hidden\n --> __NOTOC____TOC__d<nowiki>[[x]]</nowiki>", "a\nb & <c> d[[x]]"),
        ('<syntaxhighlight lang="py">\ndef f():\n    return {{1}}\n</syntaxhighlight>', "def f():\n    return {{1}}"),
        ("名字（{{lang|en|x}}）是-{zh-hans:计算机; zh-hant:電腦}-。", "名字是计算机。"),
        ("-{H|zh-cn:博客;zh-tw:部落格}-正文-{T|zh-cn:题}-", "正文"),
        ("用-{zh-tw:軟體;zh-hk:軟件}-写", "用軟體写"),
        ("在-{A|zh-cn:网络;zh-tw:網路}-上", "在网络上"),
        ("open {{never closed [[nor this", "open {{never closed [[nor this"),
        ("a <ref>never closed b<ref>x</ref> c", "a never closed b c"),
        ("closed}} and ]] |}", "closed}} and ]] |}"),
    ],
)
def test_markup(source: str, expected: str) -> None:
    assert plain_text(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{" * 200_000,
        "[[" * 200_000,
        "{{a}}" * 100_000,
        "''" * 200_000,
        "<ref>" * 50_000,
        "{|\n" * 100_000,
        "=" * 100_000,
        "=" + " " * 100_000 + "x",
        "[//" * 100_000,
        "[[" + "(" * 200_000 + "|]]",
        "<pre>x" * 100_000,
    ],
)
def test_markup_of_any_length_takes_little_time(source: str) -> None:
    assert isinstance(plain_text(source), str)


# --------------------------------------------------------------------------------------------------------------------
# HTML, encodings


def test_html_files(tmp_path: Path) -> None:
    pytest.importorskip("resiliparse")
    source = (
        '<html lang="zh-CN"><head><meta charset="gbk"><meta name="robots" content="noai"><title>天气</title></head>'
        "<body><p>今天天气很好，我们去公园散步。</p></body></html>"
    )
    (row,) = rows(write(tmp_path / "a.html", source.encode("gb18030")))
    assert row.text == "今天天气很好，我们去公园散步。"
    assert about(row) == {"charset": "gb18030", "title": "天气", "declared_language": "zh-CN", "opt_out": ["noai"]}
    assert isinstance(rows(write(tmp_path / "b.htm.gz", gzip.compress(source.encode())[:-9]))[0], BadRow)


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16", "utf-16-le", "utf-8-sig"])
def test_encodings_are_found_out(tmp_path: Path, encoding: str) -> None:
    pytest.importorskip("resiliparse")
    text = ("\ufeff" if encoding == "utf-16-le" else "") + "今天天气很好，我们去公园散步。\n" * 50
    found = rows(write(tmp_path / "a.txt", text.encode(encoding)), encoding="auto", sample_by="line")
    assert [row.text for row in found] == ["今天天气很好，我们去公园散步。\n"] * 50
    table = "text\n今天天气很好，我们去公园散步。\n".encode(encoding if encoding != "utf-16-le" else "utf-16")
    assert [row.text for row in rows(write(tmp_path / "a.csv", table), encoding="auto")] == ["今天天气很好，我们去公园散步。"]


def test_broken_utf16_is_a_bad_row(tmp_path: Path) -> None:
    content = "\ufeffone\n".encode("utf-16-le") + b"\x00\xd8\n\x00" + "three\n".encode("utf-16-le") + b"x"
    found = rows(write(tmp_path / "a.txt", content), encoding="utf-16", sample_by="line")
    assert [type(row) for row in found] == [Document, BadRow, Document, BadRow]


# --------------------------------------------------------------------------------------------------------------------
# Harm


def test_a_compressed_file_that_expands_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BOMB_BYTES", 8 << 20)
    good = b'{"text": "good"}\n'
    for suffix, compressed in ((".gz", gzip.compress), (".bz2", bz2.compress)):
        found = rows(write(tmp_path / f"a.jsonl{suffix}", compressed(good + bytes(100 << 20))))
        assert found[0].text == "good"
        assert isinstance(found[-1], BadRow)
        assert "more than 200 times as many" in found[-1].reason
        assert len(found) <= 3


def test_text_that_compresses_well_is_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BOMB_BYTES", 1 << 20)
    content = b"".join(b'{"text": "%d%s"}\n' % (number, b" and so on" * 20) for number in range(50_000))
    found = rows(write(tmp_path / "a.jsonl.gz", gzip.compress(content)))
    assert len(found) == 50_000


def test_a_line_that_is_too_long_is_one_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LONGEST_ROW", 1000)
    content = '{"text": "a"}\n{"text": "' + "长" * 5000 + '"}\n{"text": "b"}\n'
    found = rows(write(tmp_path / "a.jsonl", content))
    assert [(row.id, type(row)) for row in found] == [("a.jsonl:1", Document), ("a.jsonl:2", BadRow), ("a.jsonl:3", Document)]
    assert found[1].reason == "longer than 1,000 bytes"  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_line_of_200_mb_takes_little_memory(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl"):
        with (tmp_path / name).open("wb") as file:
            for _ in range(200):
                file.write(b"0123456789" * 100_000)
            file.write(b"\n{}\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    options = ReadOptions()
    (file,) = find_files([str(tmp_path / "a.txt")], "train_file").files
    assert sum(len(row.text) for row in read(file.whole(), options, lambda count: None)) == 200_000_004
    (file,) = find_files([str(tmp_path / "a.jsonl")], "train_file").files
    with pytest.raises(DataError, match="has no 'text'"):
        for row in read(file.whole(), options, lambda count: None):
            assert isinstance(row, BadRow)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 450_000  # kilobytes


def test_links_that_lead_out_of_a_directory_are_not_followed(tmp_path: Path) -> None:
    secret = write(tmp_path / "outside" / "secret.txt", "secret")
    write(tmp_path / "in" / "sub" / "a.txt", "text")
    (tmp_path / "in" / "out.txt").symlink_to(secret)
    (tmp_path / "in" / "dots.txt").symlink_to("../outside/secret.txt")
    (tmp_path / "in" / "inside.txt").symlink_to("sub/a.txt")
    (tmp_path / "in" / "directory").symlink_to(tmp_path / "outside", target_is_directory=True)
    (tmp_path / "in" / "same").symlink_to("sub", target_is_directory=True)
    found = find_files([str(tmp_path / "in")], "train_file")
    assert [file.name for file in found.files] == ["inside.txt", "sub/a.txt"]
    assert (found.outside, found.skipped) == (3, 3)
    assert len(find_files([str(tmp_path / "in" / "out.txt")], "train_file").files) == 1
    assert len(find_files([str(tmp_path / "in" / "*.txt")], "train_file").files) == 3
    os.remove(tmp_path / "in" / "inside.txt")
    (tmp_path / "in" / "sub" / "a.txt").unlink()
    with pytest.raises(DataError, match="links that lead out of it"):
        find_files([str(tmp_path / "in")], "train_file")


def test_an_empty_directory_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="an empty directory"):
        find_files([str(tmp_path)], "train_file")
    assert rows(write(tmp_path / "a.warc", b"")) == []
    assert isinstance(rows(write(tmp_path / "a.xml", b""))[0], BadRow)
    assert [row.text for row in rows(write(tmp_path / "a.html", b""))] == [""]
