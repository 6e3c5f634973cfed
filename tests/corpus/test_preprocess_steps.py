"""What the settings of `preprocess` do to documents, from raw text to the rejects table, and trying other thresholds."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmkit.cli import main
from llmkit.config import Source, resolve
from llmkit.corpus.documents import read_batches
from llmkit.corpus.preprocess import preprocess
from llmkit.corpus.settings import PreprocessConfig
from llmkit.corpus.thresholds import try_thresholds
from llmkit.errors import ArtefactError, ConfigError, DataError

PROSE = (
    "The ferry left the harbour before sunrise, and nobody on deck had slept. A woman with a red suitcase asked the mate how "
    "long the crossing would take. He looked at the sky and said that it depended on the wind, which had turned in the night. "
    "She nodded as if that were an answer. Behind them the town grew small, and the bells of the church could still be heard."
)
CHINESE = (
    "清晨的渡船离开了港口，甲板上没有人睡过觉。一位提着红色箱子的女人问大副，这次航行需要多长时间。"
    "他看了看天空，说这要看风向，因为夜里风已经转了。她点了点头，好像这就是答案一样。身后的小镇渐渐变小，教堂的钟声还能听见。"
)
GERMAN = (
    "Die Fähre verließ den Hafen vor Sonnenaufgang, und niemand an Deck hatte geschlafen. Eine Frau mit einem roten Koffer "
    "fragte den Steuermann, wie lange die Überfahrt dauern werde. Er sah zum Himmel und sagte, das hänge vom Wind ab."
)


def run(place: Path, texts: list[str] | list[dict[str, Any]], **values: Any) -> dict[str, list[dict[str, Any]]]:
    """The rows of each table of a result, by its name."""
    path = place / "a.jsonl"
    rows = [text if isinstance(text, dict) else {"text": text} for text in texts]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    given = {"validation_fraction": 0, **values}
    if not {"sources", "train_file"} & given.keys():
        given["train_file"] = str(path)
    return tables(place, given)


def tables(place: Path, values: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    output = place / "out"
    output.mkdir()
    from llmkit.pipeline.stage import Workspace

    preprocess(resolve(PreprocessConfig, [Source(values, {})]).config, Workspace(directory=output, say=lambda _: None))
    return {
        name: [row for batch in read_batches(output, name) for row in batch.to_pylist()]
        for name in ("train", "rejects", "signals")
    }


def test_languages_are_kept_by_name(tmp_path: Path) -> None:
    found = run(tmp_path, [PROSE, CHINESE, GERMAN], languages=["en", "zh"])
    assert [json.loads(row["metadata"])["language"] for row in found["train"]] == ["en", "zh-hans"]
    (rejected,) = found["rejects"]
    assert rejected["rule"] == "language"
    assert rejected["value"].startswith("de ")


@pytest.mark.parametrize("code", ["english", "cn", "zh-tw", "jp"])
def test_a_language_that_is_never_identified_is_refused(tmp_path: Path, code: str) -> None:
    with pytest.raises(ConfigError, match=f"languages: '{code}' is no language that is identified"):
        run(tmp_path, [PROSE], languages=["en", code])


def test_a_corpus_of_nothing_but_bad_rows_says_what_is_bad(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"\n" * 1000 + bytes(range(256)) * 400)[:-60])
    with pytest.raises(DataError, match=r"no document is left(?s:.*)\n  - .*a\.txt\.gz:"):
        tables(tmp_path, {"train_file": str(tmp_path / "a.txt.gz"), "max_bad_fraction": 1})


def test_personal_data_is_replaced_or_its_document_dropped(tmp_path: Path) -> None:
    texts = [f"{PROSE} Write to anna.berg@example.org for a ticket.", CHINESE]
    replaced = run(tmp_path, texts, pii="replace")
    assert [row["text"].count("[EMAIL]") for row in replaced["train"]] == [1, 0]
    assert [row["pii_email"] for row in replaced["signals"]] == [1, 0]
    (tmp_path / "dropped").mkdir()
    dropped = run(tmp_path / "dropped", texts, pii="drop", pii_types=["email"])
    assert [(row["id"], row["rule"], row["value"]) for row in dropped["rejects"]] == [("a.jsonl:1", "pii", "email")]


def test_what_a_step_has_made_too_short_is_called_so(tmp_path: Path) -> None:
    found = run(tmp_path, [PROSE, "a.very.long.name@mail.example.com"], pii="replace", min_chars=20)
    assert [(row["id"], row["rule"]) for row in found["rejects"]] == [("a.jsonl:2", "too short")]


def test_text_is_repaired_and_cleared_of_menus(tmp_path: Path) -> None:
    damaged = PROSE.replace("harbour", "cafÃ©")
    found = run(tmp_path, [f"{damaged}\n\nShare on Facebook\nAccept all cookies"], repair_text=True, remove_boilerplate=True)
    (row,) = found["train"]
    assert "café" in row["text"]
    assert "Facebook" not in row["text"]


def test_quality_rules_name_themselves_and_what_they_saw(tmp_path: Path) -> None:
    texts = [PROSE, "Too few words.", "the people have seen that water with other eyes " * 20]
    found = run(tmp_path, texts, filters=["gopher_quality", "gopher_repetition"])
    assert [row["id"] for row in found["train"]] == ["a.jsonl:1"]
    rules = {row["id"]: (row["rule"], float(row["value"])) for row in found["rejects"]}
    assert rules["a.jsonl:2"] == ("gopher_quality.min_words", 3)
    assert rules["a.jsonl:3"][0].startswith("gopher_repetition.")
    assert [row["rule"] for row in found["signals"]] == ["", *(rule for rule, _ in rules.values())]


def test_a_piece_of_an_evaluation_set_is_kept_out(tmp_path: Path) -> None:
    (tmp_path / "tests" / "one").mkdir(parents=True)
    (tmp_path / "tests" / "README.md").write_text(GERMAN, encoding="utf-8")
    test = tmp_path / "tests" / "one" / "test.jsonl"
    test.write_text(json.dumps({"sentence": PROSE[:150]}) + "\n", encoding="utf-8")
    found = run(tmp_path, [f"{GERMAN} {PROSE}", GERMAN, CHINESE], decontaminate=[str(tmp_path / "tests")])
    (rejected,) = found["rejects"]
    assert (rejected["id"], rejected["rule"]) == ("a.jsonl:1", "contaminated")
    assert rejected["value"].endswith(" (one/test.jsonl:1 sentence)")
    test.write_text(json.dumps({"sentence": PROSE[:30]}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"none of the 1 texts in .*test\.jsonl has the 8 words"):
        run(tmp_path / "tests", [PROSE], decontaminate=[str(test)])


def test_paragraphs_that_came_before_go(tmp_path: Path) -> None:
    notice = "This page is kept by the friends of the harbour museum, who ask for nothing."
    found = run(tmp_path, [f"{PROSE}\n\n{notice}", f"{notice}\n\n{GERMAN}", notice], deduplicate_paragraphs=True)
    assert [row["text"] for row in found["train"]] == [f"{PROSE}\n\n{notice}", GERMAN]
    assert [(row["id"], row["rule"], row["text"]) for row in found["rejects"]] == [
        ("a.jsonl:3", "repeated paragraphs", notice)
    ]


def test_named_sources_with_a_weight_and_a_licence(tmp_path: Path) -> None:
    for name in ("news", "wiki"):
        (tmp_path / name).mkdir()
        for number in range(60):
            (tmp_path / name / f"{number}.txt").write_text(f"{name} text number {number}", encoding="utf-8")
    sources = {
        "news": {"files": str(tmp_path / "news"), "weight": 0.5},
        "wiki": {"files": [str(tmp_path / "wiki")], "license": "CC-BY-SA-4.0"},
    }
    found = run(tmp_path, [], sources=sources)
    kept = [row["source"] for row in found["train"]]
    assert kept.count("wiki") == 60
    assert 15 < kept.count("news") < 45
    assert {row["rule"] for row in found["rejects"]} == {"not sampled"}
    assert {json.loads(row["metadata"]).get("license") for row in found["train"]} == {"CC-BY-SA-4.0", None}


WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"numba", "py3langid", "ftfy", "fastwarc", "resiliparse", "trafilatura"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from llmkit.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("further", "needed"),
    [
        ([], ""),
        (["--pii", "replace", "--remove_boilerplate", "--deduplicate_paragraphs"], ""),
        (["--filters", "c4"], "Quality filters need numba"),
        (["--near_duplicates"], "near deduplication and decontamination need numba"),
        (["--languages", "en"], "language identification needs"),
        (["--repair_text"], "repairing mojibake needs ftfy"),
    ],
)
def test_without_the_extra_only_what_needs_it_is_refused(tmp_path: Path, further: list[str], needed: str) -> None:
    (tmp_path / "a.txt").write_text(PROSE, encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": CHINESE}) + "\n", encoding="utf-8")
    words = ["preprocess", "--input", str(tmp_path), "--output_dir", str(tmp_path / "out"), *further]
    done = subprocess.run([sys.executable, "-c", WITHOUT, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == (2 if needed else 0), done.stderr
    assert not needed or (needed in done.stderr and 'pip install "llmkit[corpus]"' in done.stderr)


def test_web_pages_become_text(tmp_path: Path) -> None:
    page = (
        f"<html><head><title>Ferry</title></head><body><nav><a href=/>Home</a></nav><article><p>{PROSE}</p></article></body>"
    )
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    found = run(tmp_path, [], train_file=str(tmp_path / "page.html"))
    assert PROSE in found["train"][0]["text"]
    assert json.loads(found["train"][0]["metadata"])["title"] == "Ferry"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"filters": ["gopher"]}, "did you mean gopher_"),
        ({"filters": ["c4"], "thresholds": {"c4": {"min_sentence": 2}}}, "did you mean min_sentences?"),
        ({"filters": ["c4"], "thresholds": {"c4": 3}}, "the thresholds of c4 are 3; write {c4: {min_"),
        ({"words": "spaces"}, "words: 'spaces' is none of unicode-run-1"),
        ({"pii": "replace", "pii_types": ["mail"]}, "pii_types: 'mail' is none of"),
        ({"sources": {"news": {"weight": 0.5}}}, "sources: 'news' has no `files`"),
        ({"sources": {"news": {"files": 5}}}, "sources: 'news' has no `files`, a path or a list of paths"),
        ({"sources": {"news": {"files": ["a.txt", 5]}}}, "sources: 'news' has no `files`, a path or a list of paths"),
        ({"input": "a.txt"}, "'input' is a name for the command line; write 'train_file'"),
        ({"minhash_bands": 0}, "minhash_bands: 0 is not a whole number from 1"),
        ({"minhash_bands": 1000}, "minhash_bands x rows: 1000 x 8 are more than 4096 hash functions"),
        ({"languages": ["english"]}, "languages: 'english' is no language that is identified"),
        ({"sources": {"news": {"files": "a.txt", "weight": 2}}}, "weight is 2; it is the share"),
        ({"workers": 0}, "workers is 0; 1 is the least"),
    ],
)
def test_settings_of_steps_that_cannot_be(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(PreprocessConfig, [Source(values, {})])
    assert sentence in str(caught.value)


# --------------------------------------------------------------------------------------------------------------------
# Other thresholds, without a second pass


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result with signals, made by the command."""
    place = tmp_path_factory.mktemp("measured")
    sentences = PROSE.split(". ")
    dice = random.Random(3)
    rows = [". ".join(dice.choice(sentences) for _ in range(1 + number % 12)) for number in range(150)]
    path = place / "a.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    words = ["preprocess", "--input", str(path), "--filters", "gopher_quality", "--validation_fraction", "0"]
    assert main([*words, "--no_deduplicate", "--output_dir", str(place / "out")]) == 0
    return place / "out"


@pytest.mark.parametrize("least", [20, 80, 120])
def test_a_trial_says_what_a_second_run_does(measured: Path, tmp_path: Path, least: int) -> None:
    trial = try_thresholds(measured, {"gopher_quality": {"min_words": least}})
    values = {"train_file": str(measured.parent / "a.jsonl"), "filters": ["gopher_quality"], "validation_fraction": 0}
    values |= {"thresholds": {"gopher_quality": {"min_words": least}}, "deduplicate": False}
    found = tables(tmp_path, values)
    assert trial.measured - trial.after.total == len(found["train"])
    removed = dict(zip((rule.name for rule in trial.after.rules), trial.after.first.tolist(), strict=True))
    for name, count in removed.items():
        assert sum(row["rule"] == name for row in found["rejects"]) == count
    assert trial.measured - trial.before.total == sum(batch.num_rows for batch in read_batches(measured, "train"))


def test_the_command_says_what_would_change(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["thresholds", str(measured), "gopher_quality.min_words=20", "gopher_quality.min_stop_words=null"]) == 0
    shown = capsys.readouterr().out
    assert "20 (was 50)" in shown
    assert "gopher_quality.min_stop_words" in shown.partition("off")[0]
    assert "150 documents were measured" in shown


def test_languages_alone_are_no_quality(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(PROSE, encoding="utf-8")
    words = [
        "preprocess",
        "--train_file",
        str(tmp_path / "a.txt"),
        "--identify_language",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert main(words) == 0
    with pytest.raises(ArtefactError, match="has no signals: it was made without `filters`"):
        try_thresholds(tmp_path / "out", {})


def test_rules_that_change_texts_are_not_tried(measured: Path) -> None:
    with pytest.raises(ConfigError, match="begin with line_ change texts"):
        try_thresholds(measured, {"c4": {"line_min_words": 1}}, ["gopher_quality", "c4"])


def test_thresholds_that_cannot_be(measured: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean min_words"):
        try_thresholds(measured, {"gopher_quality": {"min_word": 20}})
    with pytest.raises(ArtefactError):
        try_thresholds(tmp_path, {})
