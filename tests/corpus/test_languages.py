"""The language of documents and paragraphs, and the two ways to write Chinese."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from llmkit.corpus.batch import Batch
from llmkit.corpus.chinese import script, simplified_share
from llmkit.corpus.languages import CODES as KNOWN
from llmkit.corpus.languages import Languages, identify, sample
from llmkit.errors import ConfigError

UDHR = Path("/work/shared/data/udhr")
CODES = {
    **{"arb": "ar", "cmn_hans": "zh-hans", "cmn_hant": "zh-hant", "deu_1901": "de", "eng": "en", "fra": "fr"},
    **{"hin": "hi", "jpn": "ja", "por_BR": "pt", "rus": "ru", "spa": "es", "tur": "tr"},
}
ENGLISH = "The committee met on Tuesday to talk about the plan for the new library, which the town had wanted for many years."
FRENCH = (
    "Le comité s'est réuni mardi pour parler du projet de la nouvelle bibliothèque que la ville souhaitait depuis longtemps."
)
SIMPLIFIED = "委员会在星期二开会，讨论新图书馆的计划，这个城镇已经盼望了很多年，大家都很高兴能够参与这项工作。"
TRADITIONAL = "委員會在星期二開會，討論新圖書館的計劃，這個城鎮已經盼望了很多年，大家都很高興能夠參與這項工作。"
JAPANESE = "委員会は火曜日に会議を開き、町が長年望んでいた新しい図書館の計画について話し合いました。"

pytest.importorskip("py3langid")
pytest.importorskip("numba")


def batch(*texts: str) -> Batch:
    return Batch(list(texts), [str(i) for i in range(len(texts))], ["here"] * len(texts), [{} for _ in texts])


@pytest.mark.skipif(not UDHR.is_dir(), reason="the declarations of human rights are not here")
@pytest.mark.parametrize("name", CODES)
def test_every_long_paragraph_of_the_declarations_is_told(name: str) -> None:
    lines = [line.strip() for line in (UDHR / f"{name}.txt").read_text(encoding="utf-8").split("\n")]
    long = [line for line in lines if len(line) >= (30 if name[:3] in ("cmn", "jpn") else 100)]
    assert len(long) >= 30
    assert [line for line in long if identify(line)[0] != CODES[name]] == []


def test_labels_and_probabilities_are_those_of_py3langid() -> None:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    peer = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    for text in (ENGLISH, FRENCH, SIMPLIFIED, JAPANESE, ENGLISH.upper(), "Straße", FRENCH[:40] + ENGLISH[:40]):
        language, probability = peer.classify(text)
        assert identify(text)[0].split("-")[0] == language
        assert identify(text)[1] == pytest.approx(probability, abs=2e-3)
    assert identify("") == ("und", 0.0)
    assert identify("\ud800")[1] <= 1


def test_simplified_and_traditional_are_told_apart() -> None:
    assert simplified_share(SIMPLIFIED) == 1 and simplified_share(TRADITIONAL) == 0
    assert (script(SIMPLIFIED), script(TRADITIONAL)) == ("zh-hans", "zh-hant")
    assert math.isnan(simplified_share("一二三 and no more")) and script("一二三") == "zh-hans"
    assert identify(JAPANESE)[0] == "ja"


def test_documents_of_other_languages_are_rejected_with_what_they_are() -> None:
    documents = batch(ENGLISH, FRENCH, SIMPLIFIED, TRADITIONAL, "gone")
    documents.reject(4, "too short")
    Languages(keep=["en", "zh-hant"])(documents)
    assert documents.rules == ["", "language", "language", "", "too short"]
    assert documents.values[1].startswith("fr ") and documents.values[2].startswith("zh-hans ")
    assert documents.metadata[3]["language"] == "zh-hant" and documents.metadata[4] == {}
    assert documents.signals["language_score"][0] == documents.metadata[0]["language_score"] > 0.9
    assert math.isnan(documents.signals["language_score"][4])


def test_zh_keeps_both_and_thresholds_are_tried_without_reading_again() -> None:
    documents = batch(SIMPLIFIED, TRADITIONAL, JAPANESE)
    Languages(keep=["zh"]).measure(documents)
    documents.texts = ["", "", ""]
    Languages(keep=["zh"]).judge(documents)
    assert documents.rules == ["", "", "language"]
    documents.rules = ["", "", ""]
    documents.metadata[0]["language_score"] = 0.3
    Languages(least=0.5).judge(documents)
    assert documents.rules == ["language score", "", ""] and documents.values[0] == 0.3


def test_long_paragraphs_of_other_languages_are_removed_and_short_ones_stay() -> None:
    documents = batch("\n".join([ENGLISH, FRENCH, "Bonjour", SIMPLIFIED, ENGLISH]))
    Languages(keep=["en"], paragraphs=True)(documents)
    assert documents.texts == ["\n".join([ENGLISH, "Bonjour", ENGLISH])]
    assert documents.signals["foreign_paragraphs"].tolist() == [2]


def test_a_long_document_is_read_at_its_start_and_middle() -> None:
    text = "".join(chr(0x4E00 + place % 5000) for place in range(5000))
    assert sample(text) == text[:1500] + "\n" + text[2250:2750]
    assert sample(text[:2000]) == text[:2000]


def test_impossible_settings_are_refused_together() -> None:
    with pytest.raises(ConfigError, match="2 problems"):
        Languages(keep=[], least=2)
    with pytest.raises(ConfigError, match="only where keep"):
        Languages(paragraphs=True)


def test_the_codes_that_settings_may_name_are_those_of_the_model() -> None:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    classes = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True).nb_classes
    assert {*classes, "zh-hans", "zh-hant", "und"} == KNOWN
