"""The page in a real browser: it asks for nothing, its console stays empty, and its examples can be searched.

Chromium is driven over its DevTools protocol by a pipe, with real mouse and key events, from a `file://` address.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.reports.conftest import Chain, Row, Written

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None and "CI" not in os.environ, reason="no chromium is installed; the tests in CI do have one"
    ),
]


class Browser:
    """A headless Chromium with one page."""

    def __init__(self, profile: Path):
        assert CHROMIUM is not None, "CI has to install chromium"
        words = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            f"--user-data-dir={profile}",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--remote-debugging-pipe",
            "about:blank",
        ]
        (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
        # Chromium reads from descriptor 3 and writes to 4; the ends are lifted above these before they are put there.
        high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs_in, theirs_out)]

        def place() -> None:
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self._process = subprocess.Popen(words, close_fds=False, preexec_fn=place, stderr=subprocess.DEVNULL)
        for end in (theirs_in, theirs_out, *high):
            os.close(end)
        self._out, self._in, self._buffer, self._number = ours_out, ours_in, b"", 0
        self.events: list[dict[str, Any]] = []
        self._session = ""
        target = next(item for item in self.call("Target.getTargets")["targetInfos"] if item["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        until = time.monotonic() + 60
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._in, 1 << 20)
            assert part, "the browser has gone"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path) -> None:
        """Load a file and wait for it."""
        self.events = []
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives on the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of an element."""
        place = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            f"const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def press(self, key: str, code: int, text: str = "", modifiers: int = 0) -> None:
        """Press a key and let it go."""
        given = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **given)
        self.call("Input.dispatchKeyEvent", type="keyUp", **given)

    def write(self, text: str) -> None:
        for char in text:
            self.call("Input.dispatchKeyEvent", type="keyDown", key=char, text=char)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=char)

    def screen(self, width: int, height: int, scheme: str = "light") -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def complaints(self) -> list[Any]:
        """Everything that went to the console: messages, errors, refusals of the policy."""
        self.value("0")  # what came before is here then
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for event in self.events if event.get("method") in kinds]

    def requests(self) -> list[str]:
        asked = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in asked]

    def close(self) -> None:
        os.close(self._out)
        os.close(self._in)
        self._process.terminate()
        self._process.wait(timeout=30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def desk(browser: Browser) -> None:
    browser.screen(1000, 900)


def shown(browser: Browser) -> list[str]:
    return browser.value("[...document.querySelectorAll('#found blockquote')].map((quote) => quote.textContent)")


def count(browser: Browser) -> str:
    return browser.value("document.getElementById('count').textContent")


def choose(browser: Browser, selector: str, value: str) -> None:
    """Choose from a list with the keyboard, as a person without a mouse does."""
    options = browser.value(f"[...document.querySelector('{selector}').options].map((option) => option.value)")
    browser.value(f"document.querySelector('{selector}').focus()")
    browser.press("Home", 36)
    for _ in range(options.index(value)):
        browser.press("ArrowDown", 40)
    assert browser.value(f"document.querySelector('{selector}').value") == value


def many_rows(count: int, text: str = "") -> list[Row]:
    labels = ["bad", "good"]
    return [
        (
            f"id-{n:05d}",
            f"Text number {n}. {text}",
            labels[n % 2],
            labels[n % 2 if n % 4 else 1],
            0.5 + (n * 37 % count) / count / 2,
        )
        for n in range(count)
    ]


def test_the_page_asks_for_nothing_and_says_nothing(chain: Chain, write: Callable[..., Written], browser: Browser) -> None:
    chain.build()
    page = write().directory / "report.html"
    browser.open(page)
    assert browser.value("document.querySelectorAll('#found blockquote').length") == 20
    assert browser.value("document.getElementById('worst')") is None
    browser.click("#next")
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]


def test_the_browser_would_have_told(tmp_path: Path, browser: Browser) -> None:
    """The same look at a page that does load and does complain, so that the test above can be believed."""
    text = (
        '<!DOCTYPE html><meta http-equiv="Content-Security-Policy" content="script-src \'none\'">'
        '<img src="leak.png"><img src="http://elsewhere.invalid/x.png"><script>console.log("hello")</script>'
    )
    (tmp_path / "bad.html").write_text(text, encoding="utf-8")
    browser.open(tmp_path / "bad.html")
    assert any(url.endswith("/leak.png") for url in browser.requests())
    assert any("violates the following Content Security Policy" in json.dumps(item) for item in browser.complaints())


def test_without_scripts_the_worst_errors_stand_there(chain: Chain, write: Callable[..., Written], browser: Browser) -> None:
    chain.build()
    page = write().directory / "report.html"
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page)
        document = browser.call("DOM.getDocument")["root"]["nodeId"]
        found = browser.call("DOM.querySelectorAll", nodeId=document, selector="#worst blockquote")["nodeIds"]
        hidden = browser.call("DOM.querySelector", nodeId=document, selector="#browser[hidden]")["nodeId"]
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert len(found) == 12 and hidden


def test_documents_have_no_label_and_no_prediction(chain: Chain, write: Callable[..., Written], browser: Browser) -> None:
    rows = [(f"d{n}", f"Document {n}.", "", "", 0.5) for n in range(3)]
    record = {"task": "language-modeling", "n": 3, "value_is": "bits_per_byte", "lower_is_better": True, "metrics": []}
    chain.build(rows, record=record, further={"value": [1.0, 2.0, 3.0]})
    browser.open(write().directory / "report.html")
    assert shown(browser) == ["Document 2.", "Document 1.", "Document 0."]
    keys = browser.value("[...document.querySelectorAll('#found .key')].map((key) => key.textContent)")
    assert len(keys) == 3 and not any("true: " in key or "predicted: " in key for key in keys)


def test_search_filters_order_and_pages(chain: Chain, write: Callable[..., Written], browser: Browser) -> None:
    rows = many_rows(100, "Ｆｕｌｌ　width Straße")
    chain.build(rows, record=chain.metrics_of(rows))
    browser.open(write().directory / "report.html")
    assert count(browser) == "1 to 20 of 100 examples"

    browser.click("#search")
    browser.write("NUMBER 4")
    wanted = {f"Text number {n}." for n in (4, *range(40, 50))}
    assert {text[: text.index(".") + 1] for text in shown(browser)} == wanted
    assert count(browser) == "1 to 11 of 11 examples"
    browser.press("Escape", 27)
    assert count(browser) == "1 to 20 of 100 examples"
    browser.write("full width")
    assert count(browser) == "1 to 20 of 100 examples"
    browser.press("Escape", 27)

    wrong = [row for row in rows if row[2] != row[3]]
    choose(browser, "#outcome", "errors")
    assert count(browser) == f"1 to 20 of {len(wrong)} examples"
    choose(browser, "#outcome", "=right")
    assert count(browser) == f"1 to 20 of {100 - len(wrong)} examples"
    choose(browser, "#outcome", "")
    choose(browser, "#label", "=bad")
    choose(browser, "#prediction", "=good")
    assert count(browser) == f"1 to 20 of {sum(row[2] == 'bad' and row[3] == 'good' for row in rows)} examples"
    choose(browser, "#label", "=good")
    choose(browser, "#prediction", "=bad")
    assert count(browser) == "0 examples" and shown(browser) == []
    choose(browser, "#label", "")
    choose(browser, "#prediction", "")

    for order, by in (("surest", lambda row: -row[4]), ("least-sure", lambda row: row[4])):
        choose(browser, "#order", order)
        assert shown(browser) == [row[1] for row in sorted(rows, key=by)[:20]]
    browser.click("#next")
    assert count(browser) == "21 to 40 of 100 examples"
    assert shown(browser) == [row[1] for row in sorted(rows, key=lambda row: row[4])[20:40]]
    for _ in range(6):  # the button keeps the focus, and is harmless at the end
        browser.press("Enter", 13, "\r")
    assert count(browser) == "81 to 100 of 100 examples"
    assert browser.value("document.activeElement.id") == "next"
    browser.press("Tab", 9, modifiers=8)
    assert browser.value("document.activeElement.id") == "previous"
    browser.press(" ", 32, " ")
    assert count(browser) == "61 to 80 of 100 examples"
    assert browser.complaints() == []


def test_everything_is_reached_by_the_keyboard(chain: Chain, write: Callable[..., Written], browser: Browser) -> None:
    chain.build()
    browser.open(write().directory / "report.html")
    reached = set()
    for _ in range(80):
        browser.press("Tab", 9)
        reached.add(browser.value("document.activeElement.id"))
    assert {"search", "outcome", "label", "prediction", "order", "previous", "next"} <= reached


def test_hostile_texts_are_shown_as_text(chain: Chain, write: Callable[..., Written], browser: Browser) -> None:
    hostile = [
        *chain.HOSTILE,
        "</script><script>document.title = 'broken'</script>",
        "<!--<script>" + "\u2028\u2029\x00 \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\u202eright to left\u202c \u2066isolate",
        "long " + "x" * 100_000 + " end",
        "--> ]]> &lt;b&gt; \\u003c ${title} `",
    ]
    rows: list[Row] = [
        (f"{text[:40]}{n}", text, chain.LABELS[n % 3], chain.LABELS[(n + 1) % 3], 0.9 - n / 100)
        for n, text in enumerate(hostile)
    ]
    chain.build(rows)
    browser.open(write().directory / "report.html")
    texts = shown(browser)
    assert len(texts) == len(hostile)
    for given, text in zip(hostile, texts, strict=True):
        clean = given.replace("\x00", "\ufffd").replace("\x1b", "\ufffd").replace("\x85", "\ufffd")
        assert text == clean if len(given) < 800 else text.startswith(clean[:400]) and "more characters" in text
    assert browser.value("document.title") == "Text classification on llmkit/reviews"
    assert browser.value("document.scripts.length") == 2
    assert browser.value("document.querySelectorAll('#found img, #found script').length") == 0
    browser.click("#search")
    browser.write("long xxx")
    browser.click("#found button.cut")
    assert browser.value("document.querySelector('#found span[tabindex]').textContent.length") == 9_200
    assert shown(browser)[0].endswith("… (90,009 more characters) ")
    assert browser.complaints() == []


def asked(chain: Chain) -> None:
    """An evaluation of questions on one long context, with a true answer, a predicted one, and one of both."""
    context = "Start. " + "Filling words. " * 200 + "Eels <b>spawn</b> in the Sargasso Sea. " + "More of them. " * 200
    begin = context.index("the Sargasso")
    answers = [("the Sargasso Sea", begin), ("Sargasso", begin + 4), ("Start", 0), ("", None)]
    rows: list[Row] = [
        (f"q{n}", f"Where do <i>eels</i> spawn ({n})?\n{context}", "the Sargasso Sea", said, 0.9 - n / 10)
        for n, (said, _) in enumerate(answers)
    ]
    further = {
        "value": [1.0, 0.5, 0.0, 0.0],
        "context_start": [row[1].index("\n") + 1 for row in rows],
        "answer_start": [start for _, start in answers],
        "answer_spans": [[[begin, begin + 16]]] * 4,
    }
    record = {"task": "question-answering", "n": 4, "value_is": "f1", "metrics": [{"name": "f1", "value": 0.375}]}
    chain.build(rows, record=record, further=further)


def test_answers_are_marked_in_their_contexts(chain: Chain, write: Callable[..., Written], browser: Browser) -> None:
    asked(chain)
    browser.open(write().directory / "report.html")
    choose(browser, "#outcome", "=partly right")
    marks = "[...document.querySelectorAll('#found mark')].map((mark) => [mark.className, mark.textContent])"
    assert browser.value(marks) == [["true", "the "], ["both", "Sargasso"], ["true", " Sea"]]
    assert browser.value("document.querySelector('#found .question').textContent") == "Where do <i>eels</i> spawn (1)?"
    before = shown(browser)[0]
    assert "Eels <b>spawn</b> in the Sargasso Sea." in before and "Start. Filling" not in before
    browser.click("#found button.cut")
    assert "Start. Filling" in shown(browser)[0] and len(shown(browser)[0]) > len(before) + 2000
    choose(browser, "#outcome", "=wrong answer")
    assert browser.value(marks) == [["predicted", "Start"], ["true", "the Sargasso Sea"]]
    choose(browser, "#outcome", "=abstained")
    assert browser.value(marks) == [["true", "the Sargasso Sea"]]
    choose(browser, "#outcome", "")
    choose(browser, "#order", "highest")
    assert browser.value("document.querySelector('#found small').textContent").startswith(
        "confidence 0.900F1 1.000right answer"
    )
    assert browser.complaints() == []


def test_a_phone_needs_no_scrolling_sideways(chain: Chain, write: Callable[..., Written], browser: Browser) -> None:
    chain.build()
    pages = [write().directory]
    write_more = {
        "training": [str(chain.root / "pretrain")],
        "runs": [str(chain.root / name) for name in ("pretrain", "finetune")],
    }
    pages += [write(name, runs=runs).directory for name, runs in write_more.items()]
    browser.screen(390, 844)
    for page in pages:
        browser.open(page / "report.html")
        browser.value("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        assert browser.value("document.documentElement.scrollWidth") <= 390, page.name
        assert browser.complaints() == []


def test_it_can_be_printed(chain: Chain, write: Callable[..., Written], browser: Browser) -> None:
    chain.build()
    browser.open(write().directory / "report.html")
    pdf = base64.b64decode(browser.call("Page.printToPDF", printBackground=True)["data"])
    assert pdf.startswith(b"%PDF") and len(pdf) > 20_000
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.value("getComputedStyle(document.querySelector('.controls')).display") == "none"
    assert browser.value("document.querySelectorAll('#found blockquote').length") == 20
    browser.call("Emulation.setEmulatedMedia", media="")


# The ratio of WCAG 2.1 (2018), section 1.4.3, of every text to the nearest background that is painted.
_CONTRASTS = """
(() => {
  const parts = (colour) => { const n = colour.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const linear = (x) => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4;
  const light = (rgb) => { const [r, g, b] = rgb.map((x) => linear(x / 255)); return .2126 * r + .7152 * g + .0722 * b; };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || element.closest("script, style, title, desc, [hidden], svg")) continue;
    let behind = element;
    while (behind && parts(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
    const back = behind ? parts(getComputedStyle(behind).backgroundColor).slice(0, 3) : [255, 255, 255];
    const [a, b] = [light(parts(getComputedStyle(element).color).slice(0, 3)), light(back)].sort((x, y) => y - x);
    found.push([(a + .05) / (b + .05), element.tagName, element.className, walker.currentNode.textContent.slice(0, 40)]);
  }
  return found;
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out(scheme: str, chain: Chain, write: Callable[..., Written], browser: Browser) -> None:
    asked(chain)
    browser.screen(1000, 900, scheme)
    browser.open(write().directory / "report.html")
    contrasts = browser.value(_CONTRASTS)
    assert len(contrasts) > 150 and any(item[2] == "both" for item in contrasts)
    assert [item for item in contrasts if item[0] < 4.5] == []
    paper = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize(("rows", "limit"), [(500, 500_000), (10_000, 3_000_000), (12_000, 3_000_000)])
def test_many_examples_fit(rows: int, limit: int, chain: Chain, write: Callable[..., Written], browser: Browser) -> None:
    given = many_rows(rows, "0123456789 & <b> " * 100)
    chain.build(given, record=chain.metrics_of(given))
    written = write()
    assert 0.5 * limit < written.metrics["html_bytes"] < limit
    browser.open(written.directory / "report.html")
    shown_at_most = min(rows, 10_000)
    assert count(browser) == f"1 to 20 of {shown_at_most:,} examples"
    choose(browser, "#outcome", "errors")
    assert count(browser) == f"1 to 20 of {sum(row[2] != row[3] for row in given):,} examples"
    browser.click("#search")
    browser.write("number 40")
    assert all("number 40" in text for text in shown(browser)) and shown(browser)
    assert browser.complaints() == []
