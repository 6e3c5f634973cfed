"""The page in a real browser: it asks for nothing and its console stays empty."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.reports.conftest import Chain, Written

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed"),
]


@contextmanager
def served(directory: Path) -> Iterator[tuple[str, list[str]]]:
    """A server on this machine, and the paths that were asked of it."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(directory)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def visit(url: str, profile: Path) -> tuple[str, list[str]]:
    """Open a page; return its document as the browser sees it, and the lines of its console."""
    assert CHROMIUM is not None
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
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--enable-logging=stderr",
        "--v=0",
        "--virtual-time-budget=2000",
        "--dump-dom",
        url,
    ]
    result = subprocess.run(words, capture_output=True, timeout=120, check=False)
    lines = result.stderr.decode(errors="replace").splitlines()
    return result.stdout.decode(errors="replace"), [line for line in lines if "CONSOLE" in line]


def test_the_page_asks_for_nothing_and_says_nothing(chain: Chain, write: Callable[..., Written], tmp_path: Path) -> None:
    chain.build()
    written = write()
    with served(written.directory) as (url, asked):
        document, console = visit(f"{url}/report.html", tmp_path / "profile")
    assert "</html>" in document and document.count("<blockquote") == 12 and "<script" not in document
    assert console == []
    assert asked == ["/report.html"]


def test_the_browser_would_have_told(tmp_path: Path) -> None:
    """The same look at a page that does load and does complain, so that the test above can be believed."""
    page = (
        '<!DOCTYPE html><img src="/leak.png"><img src="http://elsewhere.invalid/x.png"><script>console.log("hello")</script>'
    )
    (tmp_path / "bad.html").write_text(page, encoding="utf-8")
    with served(tmp_path) as (url, asked):
        _, console = visit(f"{url}/bad.html", tmp_path / "profile")
    assert "/leak.png" in asked
    assert any("hello" in line for line in console)
