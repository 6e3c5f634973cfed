"""What evaluation found beside its metrics, on the page, on the card and among the limits."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.reports.conftest import Chain, Written

HOSTILE = "<script>alert(1)</script>\u202e {{ 7*7 }}"


def shown(page: str) -> str:
    """The text of a page, without tags and superfluous white space."""
    text = re.sub(r"<(style|svg)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def accuracy(n: int, value: float) -> list[dict[str, Any]]:
    metric = {"name": "accuracy", "average": None, "label": None, "method": "wilson"}
    return [{**metric, "n": n, "value": value, "low": value - 0.1, "high": value + 0.1}]


def leakage() -> dict[str, Any]:
    found = {
        "source": "pretraining",
        "part": "text",
        "share": 0.75,
        "found_in": f"corpus.jsonl:7 {HOSTILE}",
        "n_gram": HOSTILE,
    }
    read = {"detail": "812 documents of preprocess 0123", "low": 0.03, "high": 0.25, "mostly": 2, "parts": {"text": 3}}
    return {
        "n_gram": 13,
        "least_words": 8,
        "too_short": 4,
        "complete": False,
        "sources": [
            {"name": "pretraining", "examples": 3, "share": 0.1, **read},
            {"name": "fine-tuning", "unknown": f"train.csv is gone {HOSTILE}"},
        ],
        "contaminated": {"examples": 3, "share": 0.1},
        "examples": [{"id": f"id-0{number}", **found} for number in range(3)],
        "not_listed": 0,
        "metrics": {"all": accuracy(30, 0.6), "without": accuracy(27, 0.56), "contaminated": accuracy(3, 1.0)},
    }


def part(by: str, name: str, difference: float, p_holm: float) -> dict[str, Any]:
    value = {"value": 0.4, "low": 0.3, "high": 0.5, "difference": difference, "p_value": p_holm / 10, "p_holm": p_holm}
    return {"by": by, "part": name, "n": 21, **value, "difference_low": difference - 0.1, "difference_high": difference + 0.1}


def slices(*parts: dict[str, Any]) -> dict[str, Any]:
    found = {"metric": "accuracy", "lower_is_better": False, "least": 20, "left_out": ["label"]}
    return {**found, "tests": len(parts), "parts": list(parts)}


def probe(flips: int, tried: int) -> dict[str, Any]:
    flip = {"id": "id-03", "replaced": f"he → she {HOSTILE}", "text": HOSTILE, "before": "positive", "after": ["negative"]}
    change = {"examples": flips, "share": flips / max(1, tried), "low": 0.02, "high": 0.3}
    shift = {"mean": 0.125, "low": 0.1, "high": 0.2, "most": 0.5}
    gender = {"list": "gender", "affected": tried, "tried": tried}
    if tried:
        gender |= {"flips": change, "shift": shift, "examples": [flip] * flips}
    lists = [gender, {"list": "places", "affected": 0, "tried": 0}]
    return {"lists": lists, "most": 500, "tried": tried, "made": tried, "n": 30, "flips": True}


def test_leakage_is_told_with_what_it_was_met_in_and_warned_of(chain: Chain, write: Callable[..., Written]) -> None:
    record = chain.metrics_of(chain.example_rows())
    chain.build(record={**record, "leakage": leakage()})
    written = write()
    text = shown(written.html)
    assert (
        "Warning: 3 examples (10.0%) share a run of words with what the model was trained on; on the others accuracy is 0.560 "
        "(95% interval 0.460 to 0.660)." in written.json["verdict"]
    )
    assert "3 test examples (10.0%) share a run of 13 words with the part of its training texts that could be read." in text
    assert "Without the contaminated 27 0.560 0.460 to 0.660" in text
    assert "id-02" in text and "75.0% of its runs of words were found" in text
    assert "not known: train.csv is gone" in text
    assert "<script>alert" not in written.html
    limits = " ".join(written.json["limits"])
    assert "4 test examples with fewer than 8 words were not looked for" in limits
    assert "Leakage from fine-tuning is not known: train.csv is gone" in limits
    card = (written.directory / "model" / "README.md").read_text(encoding="utf-8")
    assert "## Leakage" in card
    found = leakage()
    found["metrics"]["without"][0] |= {"low": None, "high": None}
    chain.build(record={**record, "leakage": found})
    assert "on the others accuracy is 0.560." in write("one").json["verdict"]


def test_of_one_clean_example_no_interval_is_told(chain: Chain, write: Callable[..., Written]) -> None:
    found = leakage()
    found["contaminated"] = {"examples": 29, "share": 29 / 30}
    found["metrics"]["without"] = [{**accuracy(1, 0.5)[0], "name": "f1", "low": None, "high": None, "method": "none"}]
    chain.build(record={**chain.metrics_of(chain.example_rows()), "leakage": found})
    assert write().json["verdict"].endswith("; on the others F1 is 0.500.")


def test_without_a_leak_there_is_no_warning(chain: Chain, write: Callable[..., Written]) -> None:
    found = leakage()
    found |= {"contaminated": {"examples": 0, "share": 0.0}, "examples": [], "metrics": {"all": accuracy(30, 0.6)}}
    found |= {"complete": True, "sources": found["sources"][:1]}
    record = chain.metrics_of(chain.example_rows())
    zero = {"examples": 0, "share": 0.0}
    overlap = {"train": zero, "validation": zero, "either": zero, "without": accuracy(30, 0.6)[0]}
    chain.build(record={**record, "leakage": found, "overlap": overlap})
    written = write()
    assert "No test example shares a run of 13 words with what the model was trained on." in shown(written.html)
    assert "Warning" not in written.json["verdict"]
    limits = " ".join(written.json["limits"])
    assert "only alike" not in limits and "Those that share runs of words are told under Leakage." in limits


def test_where_nothing_could_be_read_it_is_said(chain: Chain, write: Callable[..., Written]) -> None:
    found = {
        key: value for key, value in leakage().items() if key not in ("contaminated", "examples", "not_listed", "metrics")
    }
    found["sources"] = found["sources"][1:]
    chain.build(record={**chain.metrics_of(chain.example_rows()), "leakage": found})
    written = write()
    assert "whether it has met test examples is not known" in shown(written.html)
    assert "Warning" not in written.json["verdict"]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            [("language", "zh", -0.3, 0.001), ("subject", HOSTILE, 0.2, 0.01)],
            "1 is clearly worse than the rest: “zh” (language)",
        ),
        ([("language", "zh", -0.05, 0.001)], "none is clearly worse"),
        ([("language", "zh", -0.3, 0.06)], "none is clearly worse"),
    ],
)
def test_the_worst_slices_are_named(
    chain: Chain, write: Callable[..., Written], parts: list[tuple[str, str, float, float]], said: str
) -> None:
    chain.build(record={**chain.metrics_of(chain.example_rows()), "slices": slices(*(part(*item) for item in parts))})
    written = write()
    assert said in shown(written.html)
    assert "<script>alert" not in written.html
    limits = " ".join(written.json["limits"])
    assert "Bias was not analysed: slices compare only the parts that the test set names" in limits
    assert "No part is large enough by: label." in limits


def test_many_slices_are_folded(chain: Chain, write: Callable[..., Written]) -> None:
    found = slices(*(part("subject", f"s{number:03d}", number / 1000, 1.0) for number in range(130)))
    chain.build(record={**chain.metrics_of(chain.example_rows()), "slices": found})
    text = shown(write().html)
    assert "90 further parts" in text and "30 further parts in report.json." in text
    assert "s099" in text and "s100" not in text


def test_what_swapped_words_change_is_shown(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build(record={**chain.metrics_of(chain.example_rows()), "swaps": probe(2, 18)})
    written = write()
    text = shown(written.html)
    assert "Of 18 swapped texts, 2 predictions changed." in text
    assert "11.1% 2.0% to 30.0%" in text and "he → she" in text
    assert "<script>alert" not in written.html
    limits = " ".join(written.json["limits"])
    assert "Bias was not analysed" not in limits
    assert "That nothing changes does not show that a model is fair" in limits
    assert "so little is known of them: gender and places" in limits


def test_a_probe_without_a_listed_word_says_so(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build(record={**chain.metrics_of(chain.example_rows()), "swaps": probe(0, 0)})
    assert "No test example has a word of the lists, so nothing was swapped." in shown(write().html)


def test_insults_are_counted_on_the_page(chain: Chain, write: Callable[..., Written]) -> None:
    share = {"examples": 1, "share": 1 / 30, "low": 0.006, "high": 0.17}
    none = {"examples": 0, "share": 0.0, "low": 0.0, "high": 0.11}
    examples = [{"id": "id-01", "words": ["idiot"], "text": f"You idiot. {HOSTILE}"}]
    texts = {"written": share, "references": none, "prompts": none}
    found = {"n": 30, "texts": texts, "words": {"idiot": 1}, "examples": examples}
    chain.build(record={**chain.metrics_of(chain.example_rows()), "lexicon": found})
    written = write()
    assert "1 of 30 texts that the model wrote has a word of a list of insults." in shown(written.html)
    assert "Written by the model 1 3.3% 0.6% to 17.0%" in shown(written.html)
    assert "<script>alert" not in written.html
    assert "It knows no context" in " ".join(written.json["limits"])
