"""Web archives: every record is a row, whatever is wrong with the file."""

from __future__ import annotations

import gzip
import json
import resource
import zlib
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit.corpus.documents import Document, read_batches
from llmkit.corpus.preprocess import preprocess
from llmkit.corpus.readers import SET_ASIDE, BadRow, ReadOptions, Row, find_files, http, read, streams, units, warc
from llmkit.corpus.settings import PreprocessConfig
from llmkit.pipeline.stage import Workspace

pytest.importorskip("resiliparse")

SAMPLES = Path("/work/shared/data/commoncrawl-sample")
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"{SAMPLES} is not there")

PAGE = (
    '<!doctype html><html lang="en"><head><title>A page</title></head><body><article><h1>A page</h1>'
    "<p>The text of a page, which is long enough to be taken for one.</p></article></body></html>"
)


def record(kind: str, content: bytes, length: int | None = None, version: str = "1.0", **headers: str) -> bytes:
    lines = [f"WARC/{version}", f"WARC-Type: {kind}", "WARC-Date: 2024-05-18T01:58:10Z"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(content) if length is None else length}", "", ""]
    return "\r\n".join(lines).encode() + content + b"\r\n\r\n"


def conversion(text: str, **settings: object) -> bytes:
    return record("conversion", text.encode(), Content_Type="text/plain", WARC_Target_URI="http://a.org/", **settings)  # type: ignore[arg-type]


def response(body: bytes | str, *headers: str, status: int = 200, media_type: str = "text/html", **more: str) -> bytes:
    lines = [f"HTTP/1.1 {status} OK", *([f"Content-Type: {media_type}"] if media_type else []), *headers, "", ""]
    content = "\r\n".join(lines).encode() + (body.encode() if isinstance(body, str) else body)
    more = {"Content_Type": "application/http; msgtype=response", "WARC_Target_URI": "http://www.a.org/b", **more}
    return record("response", content, **more)  # type: ignore[arg-type]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def rows(path: Path, size: int = 1 << 40) -> list[Row]:
    files = find_files([str(path)], "train_file").files
    return [row for unit in units(files, ReadOptions(), size) for row in read(unit, ReadOptions(), lambda count: None)]


def told(found: list[Row]) -> list[str]:
    """Each row in a word or two: its text, why it was set aside and what was seen, or what is wrong."""
    return [row.text if isinstance(row, Document) else _why(row) for row in found]


def _why(row: BadRow) -> str:
    assert row.expected == (row.reason in SET_ASIDE)
    return f"{row.reason}: {row.detail}" if row.expected else f"BAD {row.reason}"


def read_plain(tmp_path: Path, *records: bytes) -> list[Row]:
    """The rows of an archive, which must be the same when it is compressed by record."""
    plain = rows(write(tmp_path / "a.warc", b"".join(records)))
    compressed = rows(write(tmp_path / "b.warc.gz", b"".join(map(gzip.compress, records))))
    assert told(plain) == told(compressed)
    return plain


def about(row: Row) -> dict[str, object]:
    assert isinstance(row, Document), row
    found: dict[str, object] = json.loads(row.metadata)
    return found


# --------------------------------------------------------------------------------------------------------------------
# Records


def test_text_of_conversion_records_is_kept_as_it_is(tmp_path: Path) -> None:
    source = "int main() { return 0; }\n\\begin{document}\n中文\r\n\r\nWARC/1.0\r\nnot a record"
    found = read_plain(tmp_path, record("warcinfo", b"software: x\r\n"), conversion(source), conversion(""))
    assert told(found) == ["warc record type: warcinfo", source, ""]
    assert about(found[1]) == {
        "url": "http://a.org/",
        "date": "2024-05-18T01:58:10Z",
        "host": "a.org",
        "content_type": "text/plain",
        "charset": "utf-8",
    }
    assert found[1].source == "a.warc"
    assert int(found[1].id.removeprefix("a.warc:")) == len(record("warcinfo", b"software: x\r\n"))


@pytest.mark.parametrize("version", ["0.17", "0.18", "1.0", "1.1"])
def test_versions_and_angle_brackets(tmp_path: Path, version: str) -> None:
    content = record("conversion", b"text", version=version, WARC_Target_URI="<http://www.a.org:80/x>")
    (row,) = read_plain(tmp_path, content)
    assert (row.text, about(row)["url"], about(row)["host"]) == ("text", "http://www.a.org:80/x", "www.a.org")


def test_pages_become_text_with_what_they_say_of_themselves(tmp_path: Path) -> None:
    (row,) = read_plain(tmp_path, response(PAGE, WARC_Truncated="length"))
    assert row.text == "A page\n\nThe text of a page, which is long enough to be taken for one."
    expected = {
        "title": "A page",
        "declared_language": "en",
        "content_type": "text/html",
        "status": 200,
        "truncated": "length",
    }
    assert {name: about(row)[name] for name in expected} == expected


def test_other_records_are_set_aside_each_with_its_reason(tmp_path: Path) -> None:
    found = read_plain(
        tmp_path,
        record("request", b"GET / HTTP/1.1\r\n\r\n"),
        record("metadata", b'{"Container": {}}', Content_Type="application/json"),
        record("revisit", b""),
        record("resource", b"<html>", Content_Type="text/html"),
        record("response", b"1.2.3.4", Content_Type="text/dns"),
        response(PAGE, status=404),
        response("P6", media_type="image/png"),
        response("%PDF-1.4", media_type="text/html"),
        response(PAGE, media_type="text/html", WARC_Identified_Payload_Type="application/pdf"),
        response("what", media_type="???" * 100),
        response("what", media_type=""),
    )
    assert told(found) == [
        "warc record type: request",
        "warc record type: metadata",
        "warc record type: revisit",
        "warc record type: resource",
        "warc content type: text/dns",
        "http status: 404",
        "media type: image/png",
        "binary body: text/html",
        "media type: application/pdf",
        "media type: " + "?" * 100,
        "media type: none",
    ]


def test_records_set_aside_are_rejected_by_few_rules_and_a_language_is_only_declared(tmp_path: Path) -> None:
    pytest.importorskip("ftfy")
    path = write(tmp_path / "a.warc", response(PAGE) + response(PAGE, status=302) + response("x", media_type="image/png"))
    workspace = Workspace(directory=tmp_path / "out", say=lambda _: None)
    workspace.directory.mkdir()
    preprocess(PreprocessConfig(train_file=[str(path)], validation_fraction=0), workspace)
    rejects = [row for batch in read_batches(workspace.directory, "rejects") for row in batch.to_pylist()]
    assert [(row["rule"], row["value"]) for row in rejects] == [("http status", "302"), ("media type", "image/png")]
    (kept,) = [row for batch in read_batches(workspace.directory, "train") for row in batch.to_pylist()]
    metadata = json.loads(kept["metadata"])
    assert metadata["declared_language"] == "en" and "language" not in metadata


def test_pages_are_known_without_a_media_type_and_plain_text_stays(tmp_path: Path) -> None:
    found = read_plain(tmp_path, response(PAGE, media_type=""), response("a <b>", media_type="text/plain; charset=utf-8"))
    assert told(found) == ["A page\n\nThe text of a page, which is long enough to be taken for one.", "a <b>"]


@pytest.mark.parametrize(
    ("headers", "meta", "expected"),
    [
        (["X-Robots-Tag: noai, NoImageAI"], "", ["noai", "noimageai"]),
        (["X-Robots-Tag: googlebot: noindex", "X-Robots-Tag: nofollow"], "", ["noindex"]),
        (["TDM-Reservation: 1"], '<meta name="robots" content="none">', ["noindex", "tdm-reservation"]),
        ([], '<meta name="tdm-reservation" content="1"><META NAME=Robots CONTENT="NOAI">', ["noai", "tdm-reservation"]),
        (["TDM-Reservation: 0"], '<meta name="robots" content="index, follow">', None),
    ],
)
def test_signals_against_reuse(tmp_path: Path, headers: list[str], meta: str, expected: list[str] | None) -> None:
    (row,) = read_plain(tmp_path, response(PAGE.replace("<title>", meta + "<title>"), *headers))
    assert about(row).get("opt_out") == expected


def test_pages_of_many_comments_are_known_in_little_time(tmp_path: Path) -> None:
    found = read_plain(tmp_path, response("<!-- x -->" * 400 + "what", media_type=""))
    assert told(found) == ["media type: none"]


@pytest.mark.parametrize("suffix", [".zst", ".bz2"])
def test_archives_compressed_as_a_whole(tmp_path: Path, suffix: str) -> None:
    content = b"".join(conversion(f"text {number}") for number in range(50))
    codec = {".zst": "zstd", ".bz2": "bz2"}[suffix]
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, codec) as file:
        file.write(content)
    path = write(tmp_path / f"a.wet{suffix}", sink.getvalue().to_pybytes())
    assert told(rows(path, 10)) == [f"text {number}" for number in range(50)]
    found = told(rows(write(path, path.read_bytes()[:-30])))
    assert found[-1].startswith("BAD")


# --------------------------------------------------------------------------------------------------------------------
# Bodies


def chunked(body: bytes, size: int = 50) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x;x=y\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


def test_bodies_are_decoded(tmp_path: Path) -> None:
    page, expected = PAGE.encode(), "A page\n\nThe text of a page, which is long enough to be taken for one."
    found = read_plain(
        tmp_path,
        response(gzip.compress(page), "Content-Encoding: gzip"),
        response(chunked(gzip.compress(page)), "Content-Encoding: gzip", "Transfer-Encoding: chunked"),
        response(zlib.compress(page), "content-encoding: deflate"),
        response(raw_deflate(page), "Content-Encoding: deflate"),
        # Decoded by the crawler, which left the headers as they were.
        *(response(page, f"Content-Encoding: {coding}", "Transfer-Encoding: chunked") for coding in ("gzip", "br", "deflate")),
    )
    assert told(found) == [expected] * 7


def test_brotli(tmp_path: Path) -> None:
    brotli = pytest.importorskip("brotli")
    pytest.importorskip("fastwarc")
    packed = brotli.compress(PAGE.encode())
    found = read_plain(tmp_path, response(packed, "Content-Encoding: br"), response(packed[:-20], "Content-Encoding: br"))
    assert found[0].text.startswith("A page")
    assert isinstance(found[1], BadRow)
    assert not found[1].expected


def test_damaged_bodies_are_bad_rows(tmp_path: Path) -> None:
    packed = gzip.compress(PAGE.encode())
    found = read_plain(
        tmp_path,
        response(packed[:-30], "Content-Encoding: gzip"),
        response(packed[:40] + b"\xff\xff" + packed[42:], "Content-Encoding: gzip"),
        response(chunked(PAGE.encode())[:-90], "Transfer-Encoding: chunked"),
        record("response", b"nothing of HTTP", Content_Type="application/http"),
        record("response", b"HTTP/1.1 200 OK\r\nno end", Content_Type="application/http"),
    )
    assert told(found)[0] == "BAD http: the compressed body is cut short"
    assert told(found)[1].startswith("BAD http: the body is damaged")
    assert told(found)[2] == "BAD http: the body is cut short in a chunk"
    assert told(found)[3] == "BAD http: does not begin with an HTTP status line"
    assert told(found)[4] == "BAD http: the HTTP header does not end"


def test_a_body_that_expands_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LONGEST_BODY", 100_000)
    bomb = gzip.compress(b"<html>" + bytes(10_000_000))
    found = read_plain(tmp_path, response(bomb, "Content-Encoding: gzip"), conversion("after"))
    assert told(found)[1] == "after"
    assert isinstance(found[0], BadRow)
    assert found[0].expected
    assert (found[0].reason, found[0].detail) == ("body too long", "more than 67,108,864 bytes")


# --------------------------------------------------------------------------------------------------------------------
# Encodings


def test_mixed_encodings_in_one_archive(tmp_path: Path) -> None:
    page = "<html><head>{}<title>題目</title></head><body><p>今天天气很好，我们去公园散步。</p></body></html>"
    meta = page.format('<meta charset="gb2312">')
    found = read_plain(
        tmp_path,
        response(page.format("").encode("gb18030"), media_type="text/html; charset=GBK"),
        response(meta.encode("gb18030")),
        response(page.format("").encode(), media_type="text/html; charset=iso-8859-1"),
        response(b"\xff\xfe" + page.format("").encode("utf-16-le")),
        response("<p>déjà vu “quoted”</p>".encode("cp1252"), media_type="text/html; charset=latin1"),
    )
    assert ["今天天气很好" in text for text in told(found)] == [True] * 4 + [False]
    assert found[4].text == "déjà vu “quoted”"
    assert [about(row)["charset"] for row in found] == ["gb18030", "gb18030", "utf-8", "utf-16-le", "cp1252"]


# --------------------------------------------------------------------------------------------------------------------
# Faults


@pytest.mark.parametrize("length", [0, 5, 2000, 10**9])
def test_a_wrong_length_loses_nothing_of_what_follows(tmp_path: Path, length: int) -> None:
    texts = ["one", "a text of the wrong length", "three", "four"]
    records = [conversion(text, **({"length": length} if number == 1 else {})) for number, text in enumerate(texts)]
    for path in (
        write(tmp_path / "a.warc", b"".join(records)),
        write(tmp_path / "b.warc.gz", b"".join(map(gzip.compress, records))),
        write(tmp_path / "c.warc.gz", gzip.compress(b"".join(records))),
    ):
        found = rows(path)
        good = [row.text for row in found if isinstance(row, Document)]
        assert [text for text in good if text in texts] == ["one", "three", "four"], path
        assert any(isinstance(row, BadRow) and not row.expected for row in found)


def test_a_missing_length_and_bytes_between_records(tmp_path: Path) -> None:
    without = conversion("lost").replace(b"Content-Length", b"Content-Breadth")
    path = write(tmp_path / "a.warc", conversion("one") + b"rubbish\r\n" + without + conversion("two") + b"rubbish at the end")
    assert told(rows(path)) == [
        "one",
        "BAD no WARC record begins here",
        "BAD has no Content-Length",
        "two",
        "BAD no WARC record begins here",
    ]


def test_every_cut_file_says_that_it_is_cut(tmp_path: Path) -> None:
    content = conversion("first text") + conversion("second text, which is longer")
    start = len(conversion("first text"))
    for end in range(start + 1, len(content) - 4):
        found = rows(write(tmp_path / "a.warc", content[:end]))
        assert found[0].text == "first text", end
        assert len(found) == 2
        assert isinstance(found[1], BadRow) and not found[1].expected, end
        assert found[1].id == f"a.warc:{start}"


def test_every_cut_compressed_file_says_that_it_is_cut(tmp_path: Path) -> None:
    first, second = gzip.compress(conversion("first text")), gzip.compress(conversion("second text"))
    for end in range(len(first) + 1, len(first + second)):
        found = rows(write(tmp_path / "a.warc.gz", (first + second)[:end]))
        assert [row.id for row in found] == ["a.warc.gz:0", f"a.warc.gz:{len(first)}"], end
        assert told(found)[0] == "first text"
        assert isinstance(found[1], BadRow) and not found[1].expected, end


def test_any_damaged_byte_costs_no_other_record(tmp_path: Path) -> None:
    members = [gzip.compress(conversion(f"text number {number}")) for number in range(3)]
    content, start = b"".join(members), len(members[0])
    for at in range(start, start + len(members[1])):
        changed = bytearray(content)
        changed[at] ^= 0xFF
        found = told(rows(write(tmp_path / "a.warc.gz", bytes(changed))))
        assert "text number 0" in found and "text number 2" in found, at
        assert "text number 1" in found or any(row.startswith("BAD") for row in found), at


def test_members_that_are_not_records(tmp_path: Path) -> None:
    whole = b"".join(conversion(f"text {number} " * 20) for number in range(20))
    expected = [f"text {number} " * 20 for number in range(20)]
    one = write(tmp_path / "one.warc.gz", gzip.compress(whole))
    assert told(rows(one)) == expected
    blocks = write(
        tmp_path / "blocks.warc.gz", b"".join(gzip.compress(whole[at : at + 97]) for at in range(0, len(whole), 97))
    )
    assert told(rows(blocks)) == expected
    assert len({row.id for row in rows(blocks)}) == 20
    filled = write(tmp_path / "filled.warc.gz", gzip.compress(whole) + bytes(5000) + gzip.compress(whole) + bytes(3000))
    assert told(rows(filled)) == expected * 2
    assert told(rows(write(tmp_path / "no.warc.gz", b"no gzip at all")))[0] == "BAD no gzip member begins here"
    assert rows(write(tmp_path / "empty.warc.gz", b"")) == rows(write(tmp_path / "empty.warc", b"")) == []


def test_headers_that_are_cut_or_say_no_length_cost_no_other_record(tmp_path: Path) -> None:
    headers = (b"WARC/1.0\r\n", b"WARC/1.0\r\nWARC-Type: conversion\r\n", b"WARC/1.0\r\nWARC-Type: conversion\r\n\r\n")
    found = told(rows(write(tmp_path / "a.warc", b"".join(header + conversion("text") for header in headers))))
    assert found[1::2] == ["text"] * 3
    assert found[::2] == [*["BAD the header of the record does not end"] * 2, "BAD has no Content-Length"]


def test_very_many_headers_that_do_not_end(tmp_path: Path) -> None:
    """Takes minutes where the end of each is looked for behind the next."""
    assert len(rows(write(tmp_path / "a.warc", b"WARC/1.0\r\n" * 20_000))) == 20_000


def test_a_record_that_is_too_long_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warc, "LONGEST_RECORD", 10_000)
    found = read_plain(tmp_path, conversion("before"), conversion("x" * 3_000_000), conversion("after"))
    assert told(found) == ["before", "record too long: longer than 10,000 bytes", "after"]


def test_a_bomb_is_refused_and_the_next_record_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BOMB_BYTES", 4 << 20)
    bomb = gzip.compress(b"WARC/1.0\r\nContent-Length: 99999999999\r\n\r\n" + bytes(30 << 20))
    found = told(
        rows(write(tmp_path / "a.warc.gz", gzip.compress(conversion("before")) + bomb + gzip.compress(conversion("after"))))
    )
    assert [found[0], found[-1], len(found)] == ["before", "after", 3]
    assert "more than 200 times as many" in found[1]


@pytest.mark.slow
def test_a_bomb_of_gigabytes_takes_little_memory(tmp_path: Path) -> None:
    packer = zlib.compressobj(1, wbits=31)
    with (tmp_path / "a.warc.gz").open("wb") as file:
        file.write(packer.compress(b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 1300000000\r\n\r\n"))
        for _ in range(1300):
            file.write(packer.compress(bytes(1_000_000)))
        file.write(packer.flush() + gzip.compress(conversion("after")))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = told(rows(tmp_path / "a.warc.gz"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes
    assert found[-1] == "after"
    assert "more than 200 times as many" in found[0]


# --------------------------------------------------------------------------------------------------------------------
# Units

law = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
some_records = st.lists(
    st.one_of(
        st.text("ab \r\n中", max_size=60).map(conversion),
        st.integers(0, 300).map(lambda length: conversion("a text of any length", length=length)),
        st.sampled_from(
            [
                record("request", b"GET /"),
                response(PAGE),
                conversion("quoted:\r\n\r\nWARC/1.0\r\nContent-Length: 5\r\n\r\nquoted"),
                conversion("x")[:-4],
                b"rubbish\r\n",
                b"WARC/1.0\r\nWARC-Type: x\r\n\r\n",
            ]
        ),
    ),
    max_size=12,
)


@law
@given(records=some_records, size=st.integers(1, 500))
def test_units_of_plain_archives(tmp_path: Path, records: list[bytes], size: int) -> None:
    path = write(tmp_path / "a.warc", b"".join(records))
    assert rows(path, size) == rows(path)


@law
@given(
    records=some_records,
    size=st.integers(1, 500),
    damage=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=2),
)
def test_units_of_compressed_archives(
    tmp_path: Path, records: list[bytes], size: int, damage: list[tuple[float, int]]
) -> None:
    content = bytearray(b"".join(map(gzip.compress, records)))
    for place, change in damage:
        if content:
            content[int(place * (len(content) - 1))] ^= change
    path = write(tmp_path / "a.warc.gz", bytes(content))
    assert rows(path, size) == rows(path)


def test_an_archive_within_an_archive_is_not_cut_in_silence(tmp_path: Path) -> None:
    inner = b"".join(gzip.compress(conversion(f"inner {number}")) for number in range(20))
    outer = [conversion("before"), record("resource", inner), conversion("after")]
    path = write(tmp_path / "a.warc.gz", b"".join(gzip.compress(item, 0) for item in outer))
    assert told(rows(path)) == ["before", "warc record type: resource", "after"]
    found = told(rows(path, 1000))
    assert [text for text in found if text in told(rows(path))] == told(rows(path))
    assert "BAD the file was cut here, inside a record that holds an archive of its own" in found


def test_a_large_archive_is_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wet.gz", b"".join(gzip.compress(conversion(f"text {number}")) for number in range(200)))
    parts = units(find_files([str(path)], "train_file").files, ReadOptions(), 2000)
    assert len(parts) > 10
    assert all(2000 <= part.size < 2500 for part in parts[:-1])
    assert told(rows(path, 2000)) == [f"text {number}" for number in range(200)]


# --------------------------------------------------------------------------------------------------------------------
# Real archives


@needs_samples
@pytest.mark.parametrize(
    ("name", "documents", "aside", "broken"),
    [
        ("whirlwind.warc", 1, 3, 0),
        ("whirlwind.warc.gz", 1, 3, 0),
        ("whirlwind.warc.wet", 1, 1, 0),
        ("whirlwind.warc.wet.gz", 1, 1, 0),
        ("whirlwind.warc.wat", 0, 2, 0),
        ("dolma-sample-0000.warc.gz", 22, 26, 0),
        ("iana.warc.gz", 16, 327, 0),
        ("warcio-example.warc", 1, 5, 0),
        ("warcio-example.warc.gz", 1, 5, 0),
        ("warcio-example-iana.org-chunked.warc", 1, 2, 0),
        ("warcio-example-trunc.warc", 0, 3, 1),
    ],
)
def test_samples(name: str, documents: int, aside: int, broken: int) -> None:
    found = rows(SAMPLES / name)
    counts = Counter("document" if isinstance(row, Document) else "aside" if row.expected else "broken" for row in found)
    assert (counts["document"], counts["aside"], counts["broken"]) == (documents, aside, broken)
    assert found == rows(SAMPLES / name, 500)
    assert all(row.text for row in found if isinstance(row, Document))


@needs_samples
def test_records_are_those_that_fastwarc_finds() -> None:
    fastwarc = pytest.importorskip("fastwarc.warc")
    for path in sorted(SAMPLES.glob("*.warc*")):
        if "bad" in path.name or "trunc" in path.name:
            continue
        with path.open("rb") as stream:
            expected = [item.stream_pos for item in fastwarc.ArchiveIterator(stream, parse_http=False)]
        assert [int(row.id.rpartition(":")[2]) for row in rows(path)] == expected
