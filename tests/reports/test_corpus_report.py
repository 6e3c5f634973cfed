"""The data report of a corpus and its datasheet: the numbers are there, data stays text, and a browser has nothing to say."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import DatasetCard

from llmkit.corpus.embedded import STDLIB, EmbeddedReader
from llmkit.corpus.readers import BadRow
from llmkit.corpus.statistics import Statistics
from llmkit.errors import DataError
from llmkit.reports import corpus, corpus_facts
from llmkit.reports.corpus_charts import Columns, Part, column_chart, part_chart
from llmkit.reports.corpus_facts import effective

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)> </blockquote> {{ 7*7 }} & | `x` \x00\u202e"
WIKITEXT = Path("/work/shared/data/wikitext-2/wiki.train.tokens")


def statistics_of(rows: list[dict[str, Any]]) -> Statistics:
    found = Statistics()
    columns = {name: [row.get(name, "") for row in rows] for name in ("text", "source", "split", "rule", "value")}
    found.add_rows(
        columns["text"],
        [row.get("id", f"{row['source']}:{number}") for number, row in enumerate(rows)],
        columns["source"],
        [json.dumps(row.get("metadata", {})) for row in rows],
        columns["split"],
        columns["rule"],
        columns["value"],
        {"pii_email": np.array([float(row["text"].count("@")) for row in rows])} if len(rows) > 1 else None,
    )
    return found


def many_rows() -> list[dict[str, Any]]:
    """Two hundred documents of three sources and two languages, every fourth removed."""
    rows: list[dict[str, Any]] = []
    for number in range(200):
        chinese = number % 5 == 0
        text = (
            "今天天气很好，我们去公园。" * 10
            if chinese
            else f"Document {number} has some words and a@b.org. " * (1 + number % 9)
        )
        row: dict[str, Any] = {
            "text": text,
            "source": HOSTILE if number % 50 == 1 else f"source-{number % 2}",
            "metadata": {
                "language": "zh-hans" if chinese else "en",
                "url": f"https://www.site{number % 3}.org/",
                "date": f"{2000 + number % 20}",
            },
        }
        if number % 4 == 3:
            row |= {"rule": "near duplicate" if number % 8 == 3 else "gopher_quality.min_words", "value": HOSTILE}
            row |= {"text": HOSTILE + text, "id": f"{HOSTILE}{number}"}
        else:
            row |= {"split": "validation" if number % 20 == 0 else "train"}
            row["metadata"] |= {"license": "cc-by-4.0", "opt_out": number == 1}
        rows.append(row)
    return rows


METRICS = {
    "read": 200,
    "kept": 150,
    "merged": 25,
    "rejected": 25,
    "bad_rows": 0,
    "duplicates": {
        "by_rule": {"near duplicate": 25},
        "curve": [[0.0, 0.0], [0.5, 0.1], [1.0, 1.0]],
        "sample": {
            "documents": 1200,
            "recall": 0.93,
            "precision": 1.0,
            "by_jaccard": [{"low": 0.5, "pairs": 9, "found": 1}, {"low": 0.6, "pairs": 0, "found": 0}],
        },
        "clusters": {"2": 20, "6": 1},
    },
}


def write(directory: Path, rows: list[dict[str, Any]], metrics: dict[str, Any], settings: dict[str, Any]) -> tuple[str, str]:
    directory.mkdir(parents=True, exist_ok=True)
    values = {**statistics_of(rows).to_json(), "metrics": metrics}
    (directory / "statistics.json").write_text(json.dumps(values), encoding="utf-8")
    corpus.write(directory, settings, metrics)
    return tuple((directory / name).read_text(encoding="utf-8") for name in ("report.html", "datasheet.md"))  # type: ignore[return-value]


def plain(html: str) -> str:
    """The text of a page, without its style."""
    body = html[html.index("<body>") :]
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", "", body))


def sections(html: str) -> list[str]:
    return re.findall('<section id="([a-z]+)">', html)


def test_everything_that_is_known_is_told(tmp_path: Path) -> None:
    html, _ = write(tmp_path, many_rows(), METRICS, {"train_file": ["one.txt"], "seed": 0})
    text = plain(html)
    assert "200 read = 150 kept + 25 merged + 25 rejected." in text
    assert "Of 200 documents read, 150 were kept (75.0%)" in text
    assert "on a sample (documents 1,200): recall 93.0% and precision 100.0%." in text and "0.111 (0.020 to 0.435)" in html
    assert "The marks in the chart are its pairs" in text
    assert "1 kept document carries an opt-out" in text
    assert "English (en)" in text and "Chinese, simplified (zh-hans)" in text and "site1.org" in text
    assert "train_file" in text and "1 setting at the default" in text
    assert sections(html) == [
        *(
            "accounting",
            "representativeness",
            "composition",
            "removed",
            "duplicates",
            "pii",
            "vocabulary",
            "overlap",
            "rights",
        ),
        *("lineage", "limits"),
    ]
    for link in re.findall('<a href="#([a-z]+)">', html):
        assert link in sections(html)
    assert write(tmp_path / "again", many_rows(), METRICS, {"train_file": ["one.txt"], "seed": 0})[0] == html


def test_rows_that_can_be_no_document_are_told_apart(tmp_path: Path) -> None:
    kept = {"text": "some words", "source": "a.warc", "split": "train"}
    aside = {"text": "", "source": "a.warc", "rule": "warc record type", "value": "request"}
    lost = {"text": "x", "source": "a.warc", "rule": "too short", "value": "1"}
    metrics = {"read": 5, "kept": 1, "merged": 0, "rejected": 4}
    html, card = write(tmp_path, [kept, aside, aside, aside, lost], metrics, {"pii": "replace"})
    told = "Of 5 rows read, 3 hold no document (requests, images, redirects); of the other 2, 1 were kept (50.0%)"
    assert told in plain(html) and told in plain(f"<body>{card}")
    assert "replaced by placeholders" in plain(html) and "replaced by placeholders" in card
    assert "<bdi>empty</bdi></th>" in html


def test_the_datasheet_names_the_inputs_and_no_other_settings(tmp_path: Path) -> None:
    settings = {"dataset_name": None, "dataset_split": "train", "embedded_packages": ["stdlib"]}
    _, card = write(tmp_path, many_rows(), METRICS, settings)
    collection = card[card.index("## Collection") : card.index("## Preprocessing")]
    assert "`embedded_packages`" in collection and "`dataset_split`" not in collection


def test_settings_that_cannot_change_the_result_do_not_change_the_pages(tmp_path: Path) -> None:
    settings = {"train_file": ["one.txt"], "max_bad_fraction": 0.01}
    some = write(tmp_path / "a", many_rows(), METRICS, settings)
    assert write(tmp_path / "b", many_rows(), METRICS, {**settings, "max_bad_fraction": 0.5}) == some
    assert write(tmp_path / "c", many_rows(), METRICS, {**settings, "train_file": ["other.txt"]}) != some


def test_missing_parts_are_left_out(tmp_path: Path) -> None:
    rows = [{"text": "a few words", "source": "one", "split": "train"}]
    html, card = write(tmp_path, rows, {"read": 1, "kept": 1, "merged": 0, "rejected": 0}, {})
    assert sections(html) == ["accounting", "representativeness", "composition", "vocabulary", "lineage", "limits"]
    assert "The language of the documents was not recorded." in plain(html)
    assert "no validation split" in plain(html)
    assert DatasetCard(card).data.to_dict() == {
        "size_categories": ["n<1K"],
        "task_categories": ["text-generation"],
        "tags": ["llmkit"],
    }


def test_nothing_at_all(tmp_path: Path) -> None:
    html, card = write(tmp_path, [], {"read": 0, "kept": 0, "merged": 0, "rejected": 0}, {})
    assert sections(html) == ["accounting", "representativeness", "composition", "lineage", "limits"]
    assert "## Maintenance" in card


def test_text_of_data_stays_text(tmp_path: Path) -> None:
    html, card = write(tmp_path, many_rows(), METRICS, {"train_file": [HOSTILE]})
    assert "<script" not in html and "<img" not in html and "49" not in re.findall(r"\{\{ (.*?) \}\}", html)
    assert html.count("</blockquote>") == html.count("<blockquote")
    assert "\x00" not in html
    body = card.split("---", 2)[2]
    assert "<script" not in body and "<img" not in body and "\x00" not in body


def test_the_collision_curve_follows_from_the_settings(tmp_path: Path) -> None:
    metrics: dict[str, Any] = {**METRICS, "duplicates": {"documents": 175}}
    settings = {"near_duplicates": True, "minhash_bands": 14, "minhash_rows": 8}
    assert "Jaccard similarity" in plain(write(tmp_path, many_rows(), metrics, settings)[0])
    assert "Jaccard similarity" not in plain(write(tmp_path, many_rows(), metrics, {**settings, "near_duplicates": False})[0])
    metrics["duplicates"] = {"documents": 175, "sample": {"by_jaccard": [{"low": 0.5, "pairs": 0, "found": 0}]}}
    text = plain(write(tmp_path, many_rows(), metrics, settings)[0])
    assert "no pair is alike" in text and "The marks in the chart" not in text
    metrics["duplicates"] = {"curve": [{"jaccard": 0.0, "probability": 0.0}, {"jaccard": 1.0, "probability": 1.0}]}
    assert "Jaccard similarity" in plain(write(tmp_path, many_rows(), metrics, {})[0])


def test_accounts_that_do_not_add_up_are_told(tmp_path: Path) -> None:
    html, _ = write(tmp_path, many_rows(), {**METRICS, "rejected": 24}, {})
    assert "200 documents were read, but 199 are accounted for" in plain(html)


def test_the_datasheet_has_all_parts_and_asks_for_the_rest(tmp_path: Path) -> None:
    _, card = write(tmp_path, many_rows(), METRICS, {"train_file": ["one.txt"]})
    titles = re.findall("^## (.*)$", card, re.MULTILINE)
    assert titles == [
        "Motivation",
        "Composition",
        "Collection process",
        "Preprocessing, cleaning and labelling",
        "Uses",
        "Distribution",
        "Maintenance",
    ]
    for part in card.split("\n## ")[1:]:
        if not part.startswith("Preprocessing"):
            assert "not known: say it here" in part
    data = DatasetCard(card).data.to_dict()
    assert sorted(data["language"]) == ["en", "zh"]
    assert data["license"] == ["cc-by-4.0"] and data["size_categories"] == ["n<1K"]
    assert "| train | 140 |" in card


def test_signals_are_drawn_with_their_thresholds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Rule:
        def __init__(self, signal: str, bound: str, threshold: float, script: str = "any"):
            self.signal, self.bound, self.threshold, self.script = signal, bound, threshold, script

    rules = [
        Rule("words", "least", 50),
        Rule("words", "least", 80, "unspaced"),
        Rule("words", "most", 100_000),
        Rule("hash_ratio", "most", 0.1),
        Rule("gone", "most", 1),
    ]
    monkeypatch.setattr(corpus_facts, "_rules", lambda settings: rules)
    signals = {
        "id": [str(number) for number in range(300)],
        "rule": [""] * 300,
        "words": [float(3 + number**2) for number in range(300)],
        "hash_ratio": [float("nan")] * 100 + [0.001 * number for number in range(200)],
    }
    tmp_path.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(signals), tmp_path / "signals-00000.parquet")
    html, _ = write(tmp_path, many_rows(), METRICS, {"filters": ["gopher_quality"]})
    text = plain(html)
    assert "signals" in sections(html)
    assert "Words (300 documents)" in text and "Hash ratio (200 documents)" in text
    assert "at least 80 (unspaced)" in text
    assert "at least 50" in text and "at most 100,000" in text and "at most 0.1" in text


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}'])
def test_statistics_that_cannot_be_read_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "statistics.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"statistics\.json has no statistics"):
        corpus.write(tmp_path, {}, {})


def test_sources_of_equal_size_count_fully() -> None:
    assert effective([5, 5, 5, 5]) == pytest.approx(4)
    assert effective([100, 0]) == pytest.approx(1)
    assert 1 < effective([99, 1]) < 1.1
    assert effective([]) == 0


def test_charts_are_well_formed_and_escape() -> None:
    drawn = [
        part_chart([Part("a & <b>", 5, "5 < 6"), Part("none", 0, "0")], key="x", title="t & <u>"),
        column_chart(Columns([1, 0, 3], [(0.0, "<0>")], [(1.5, "at & most")]), key="y", title="t & <u>", x_label="<x>"),
    ]
    for chart in drawn:
        root = ET.fromstring(chart)
        assert root.get("role") == "img" and root[0].tag == "title" and root[1].text
    assert len(list(ET.fromstring(drawn[1]).iter("rect"))) == 2
    assert part_chart([], key="x", title="t") == "" and column_chart(Columns([0, 0], []), key="x", title="t") == ""


# --------------------------------------------------------------------------------------------------------------------
# In a browser


def browser_module() -> Any:
    """The driver of the browser, from the test beside this one, however pytest was started."""
    spec = importlib.util.spec_from_file_location("driver", Path(__file__).with_name("test_browser.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = browser_module()
    if driver.CHROMIUM is None and "CI" not in os.environ:
        pytest.skip("no chromium is installed; the tests in CI do have one")
    opened = driver.Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def embedded_rows() -> list[dict[str, Any]]:
    found = [row for row in EmbeddedReader([STDLIB]).rows(lambda size: None) if not isinstance(row, BadRow)]
    return [{"text": row.text, "source": row.source, "id": row.id, "split": "train"} for row in found]


def wikitext_rows() -> list[dict[str, Any]]:
    if not WIKITEXT.is_file():
        pytest.skip(f"{WIKITEXT} is not on this machine")
    articles = re.split(r"\n(?= = [^=])", WIKITEXT.read_text(encoding="utf-8"))
    return [{"text": text, "source": "wikitext-2", "split": "train", "metadata": {"language": "en"}} for text in articles]


@pytest.mark.slow
@pytest.mark.parametrize("rows", [many_rows, embedded_rows, wikitext_rows])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_asks_for_nothing_and_says_nothing(tmp_path: Path, browser: Any, rows: Any, scheme: str) -> None:
    some = rows()
    kept = sum("rule" not in row for row in some)
    metrics = {"read": len(some), "kept": kept, "merged": 0, "rejected": len(some) - kept}
    write(tmp_path, some, metrics, {"train_file": ["one.txt"]})
    page = tmp_path / "report.html"
    for width in (1000, 380):
        browser.screen(width, 900, scheme)
        browser.open(page)
        assert browser.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert browser.complaints() == []
        assert browser.requests() == [page.as_uri()]
    unnamed = "[...document.querySelectorAll('table')].filter((one) => !one.caption || !one.querySelector('th[scope=row]'))"
    assert browser.value(f"{unnamed}.length") == 0
