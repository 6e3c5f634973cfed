"""The page: well formed, closed to the outside, true to its inputs, and whole whatever is missing or hostile."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest

from llmkit.errors import ArtefactError, ConfigError, DataError
from llmkit.evaluation.intervals import Method
from llmkit.pipeline.artefact import sha256_of
from llmkit.reports.report import ReportConfig

if TYPE_CHECKING:
    from tests.reports.conftest import Chain, Row, Written

VOID = {"meta", "link", "br", "img", "hr", "input", "col", "wbr"}


class Reader(HTMLParser):
    """Checks that tags are balanced and collects what a test asks for."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text: list[str] = []
        self.quotes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "blockquote":
            self.quotes.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if "script" not in self.open:
            self.text.append(data)
        if "blockquote" in self.open:
            self.quotes[-1] += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def shown(html: str) -> str:
    return " ".join("".join(read(html).text).split())


def test_the_page_is_balanced_and_small_and_tells_the_numbers(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build()
    written = write()
    text = shown(written.html)
    assert written.metrics["accuracy"] == pytest.approx(0.6)
    assert written.metrics["macro_f1"] == pytest.approx(0.59)
    assert written.metrics["html_bytes"] == (written.directory / "report.html").stat().st_size < 500_000
    assert (
        "On 30 test examples of llmkit/reviews, 60.0% of the predictions are right (95% interval 54.0% to 66.0%) and the "
        "macro F1 is 0.590 (0.530 to 0.650); in accuracy, the model is better than “majority class” and not clearly "
        "different from “TF-IDF + logistic regression”." in text
    )
    for node in chain.made.values():
        assert node.manifest.fingerprint[:12] in text
    for sha256 in ("ab" * 32, "cd" * 32, "ef" * 32):
        assert sha256 in text
    assert "micro F1" not in text and "Micro averages are left out" in text
    assert "41,200" in text and "824" in text and "llmkit pretrain --config" in text
    assert "2 sources of the corpus, in tokens" in text and "letters.txt1,200100,105100 kB" in text
    assert any(str(chain.root.parent / "runs" / "report" / "report.html") in line for line in written.said)


def test_nothing_is_loaded_from_anywhere(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build()
    html = write().html
    reader = read(html)
    assert not {"img", "iframe", "object", "embed", "form", "base", "video", "audio", "use"} & set(reader.tags)
    loading = [
        value for _, name, value in reader.attributes if name in ("src", "href", "xlink:href", "action", "srcset", "data")
    ]
    assert loading and all(value and (value.startswith("#") or value == "data:,") for value in loading)
    assert not [name for _, name, _ in reader.attributes if name.startswith("on")]
    assert "url(" not in html and "@import" not in html and "@font-face" not in html and "http:" not in html
    script = html.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    assert reader.tags.count("script") == 2 and len(script) > 1000
    assert ("meta", "content", policy) in reader.attributes
    anchors = {value for _, name, value in reader.attributes if name == "id"}
    assert all(value[1:] in anchors for value in loading if value and value.startswith("#"))
    ids = [value for _, name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_hostile_text_is_shown_as_text(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build()
    quotes = read(write().html).quotes
    joined = "\n".join(quotes)
    for text in (chain.HOSTILE[0], chain.HOSTILE[1], chain.HOSTILE[3], chain.HOSTILE[5]):
        assert text in joined
    assert "W" + "o" * 400 in joined and "more characters)" in joined
    assert "a\ufffdb\ufffd[31m\ufffd line one\nline two {{ 7*7 }} {% raw %}" in joined


def test_hostile_names_are_shown_as_text(chain: Chain, write: Callable[..., Written]) -> None:
    evil = '"><script>alert(1)</script>&amp;\ud800'
    record = chain.metrics_of(chain.example_rows())
    for key in ("task", "split", "dataset"):
        record[key] = f"{key}{evil}"
    record["labels"] = [label + evil for label in record["labels"]]
    record["baselines"][0]["name"] = record["baselines"][0]["detail"] = f"baseline{evil}"
    record["comparison"][0].update(baseline=f"baseline{evil}", metric=f"metric{evil}")
    record["metrics"][1].update(average=f"average{evil}", method=f"method{evil}")
    chain.build(record=record)
    mild = evil.replace("\ud800", "")  # a manifest with half of a surrogate pair cannot be written
    chain.finetune(
        metrics={mild: {mild: mild}}, config={mild: mild}, origins={mild: "x"}, command=mild, environment={mild: mild}
    )
    chain.evaluate(record=record)
    written = write(title=f"title{evil}")
    reader = read(written.html)
    assert reader.tags.count("script") == 2
    assert 'baseline"><script>alert(1)</script>&amp;\ufffd' in "".join(reader.text)
    card = (written.directory / "model" / "README.md").read_text(encoding="utf-8")
    assert "<script>" not in re.sub(r"`[^`\n]*`", "", card.partition("\n---\n")[2])  # between backticks it is no tag


def test_equal_inputs_give_equal_bytes(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build()
    first, second = write("one"), write("two")
    assert first.html == second.html
    assert first.json == second.json
    assert (first.directory / "model" / "README.md").read_bytes() == (second.directory / "model" / "README.md").read_bytes()


def test_a_moved_directory_gives_the_same_page(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build()
    before = write("one").html
    moved = chain.root.with_name("elsewhere")
    shutil.move(chain.root, moved)
    chain.root = moved
    assert write("two").html == before


@pytest.mark.parametrize("gone", ["preprocess", "tokenizer", "tokenize", "pretrain", "finetune"])
def test_a_missing_stage_is_said_and_the_page_is_made(gone: str, chain: Chain, write: Callable[..., Written]) -> None:
    chain.build()
    fingerprint = chain.made[gone].manifest.fingerprint
    shutil.rmtree(chain.root / gone)
    written = write()
    text = shown(written.html)
    assert f"{gone} ({gone}): not there any more" in text
    assert fingerprint[:12] in text
    assert "Part of the lineage can no longer be followed" in text
    assert (written.directory / "model").is_dir() == (gone != "finetune")
    if gone == "finetune":
        assert "No copy of the model lies beside this page: the model (finetune) is not there any more." in text
        assert any("no model/ was written" in line for line in written.said)


def test_a_changed_stage_is_not_followed(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build()
    chain.artefact("pretrain", {"new": b"other"}, inputs={"tokens": "tokenize"}, fingerprint="77" * 32)
    text = shown(write().html)
    assert "pretrain (pretrain): made again since, with other content" in text
    assert "777777777777" not in text


def test_an_unreadable_manifest_and_a_damaged_stage_are_said(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build()
    (chain.root / "tokenizer" / "manifest.json").write_text("{", encoding="utf-8")
    (chain.root / "tokenize" / "shard-00000.bin").unlink()
    text = shown(write().html)
    assert "tokenizer (tokenizer): its manifest cannot be read" in text
    assert "tokenize (tokenize): damaged: shard-00000.bin is missing" in text


def test_a_model_from_elsewhere(chain: Chain, write: Callable[..., Written]) -> None:
    chain.evaluate(model=None)
    written = write()
    text = shown(written.html)
    assert "someone/some-model" in text
    assert "the model that was evaluated is not a result of llmkit" in text
    assert "The model is not a result of llmkit, so what it was trained on is not known here" in text
    assert not (written.directory / "model").exists()
    assert not any("url" in name for name in written.metrics)


def test_a_model_that_was_not_pretrained_by_us(chain: Chain, write: Callable[..., Written]) -> None:
    chain.finetune()
    chain.evaluate()
    written = write()
    assert "Pretraining" not in written.html and "Fine-tuning" in written.html
    assert (written.directory / "model" / "model.safetensors").is_file()


def test_unknown_and_odd_metrics_break_nothing(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build()
    odd = {
        "nested": {"deep": {"deeper": {"deepest": {"and": {"more": 1}}}}},
        "nan": float("nan"),
        "infinite": float("-inf"),
        "nothing": None,
        "truth": True,
        "list": [1, 2.5, "three"],
        "long list": list(range(1000)),
        "rows": [{"a": 1}],
        "empty": {},
        "text": "x" * 5000,
        "eval_samples_per_second": 12.5,
        "tiny": 1e-9,
        "huge": 1e30,
        **{f"number {index}": index for index in range(200)},
    }
    chain.finetune(metrics=odd)
    chain.evaluate()
    text = shown(write().html)
    assert "further numbers in report.json" in text and "not a number" in text


def test_odd_logs_are_counted_and_a_resumed_step_counts_once(chain: Chain, write: Callable[..., Written]) -> None:
    log = chain.ledger(100, 2.0, 1.0) + '{"step": 100, "loss": 0.5}\n{"step": 101, "loss": NaN}\nnot json\n[1]\n{"loss": 3}\n'
    chain.artefact("finetune", chain.model_files(log))
    chain.evaluate()
    written = write()
    assert "3 lines of metrics.jsonl could not be read; 1 logged value was not a finite number." in shown(written.html)
    training = written.json["curves"][0]["loss"][0]
    assert training["name"] == "training" and training["points"][-1] == [100, 0.5] and len(training["points"]) == 60


def test_a_training_shows_its_learning_rate_throughput_and_last_texts(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build()
    log = "".join(
        json.dumps({"step": step, "loss": 3.0, "learning_rate": step * 1e-5, "tokens_per_second": 5000.0 + step}) + "\n"
        for step in range(1, 31)
    )
    samples = [
        (step, prompt, text) for step in (10, 30) for prompt, text in zip(("a prompt", "今天"), chain.HOSTILE, strict=False)
    ]
    rows = "".join(
        json.dumps({"step": step, "prompt": prompt, "text": f"at {step} {text}"}) + "\n" for step, prompt, text in samples
    )
    chain.artefact("pretrain", {**chain.model_files(log), "samples.jsonl": rows}, inputs={"tokens": "tokenize"})
    chain.finetune()
    chain.evaluate()
    written = write()
    page = read(written.html)
    assert "Learning rate" in shown(written.html) and "Throughput" in shown(written.html)
    assert "Pretraining: learning rate by step" in shown(written.html)
    curves = written.json["curves"][1]
    assert curves["learning_rate"][0]["points"][-1] == [30, pytest.approx(3e-4)]
    assert curves["rate"][0]["name"] == "tokens a second"
    assert [sample["step"] for sample in curves["samples"]] == [30, 30]
    quotes = [quote for quote in page.quotes if quote.startswith("at 30")]
    assert len(quotes) == 2 and "<script>alert('x')</script>" in quotes[0]
    assert not any("at 10" in quote for quote in page.quotes)


def test_samples_that_cannot_be_read_are_left_out(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build()
    chain.artefact("pretrain", {**chain.model_files(chain.ledger(9, 2.0, 1.0)), "samples.jsonl": '{"step": 1}\n'})
    chain.finetune()
    chain.evaluate()
    written = write()
    assert "after fixed prompts" not in shown(written.html) and written.json["curves"][1]["samples"] == []


@pytest.mark.parametrize(
    "dropped", ["labels", "confusion", "baselines", "comparison", "dataset", "split", "seed", "interval", "task"]
)
def test_what_the_evaluation_does_not_say_is_left_out(dropped: str, chain: Chain, write: Callable[..., Written]) -> None:
    record = chain.metrics_of(chain.example_rows())
    del record[dropped]
    chain.build(record=record)
    written = write()
    read(written.html)
    if dropped == "comparison":
        assert "the model is not tested against “majority class” and “TF-IDF + logistic regression”" in shown(written.html)


def test_values_that_could_not_be_computed(chain: Chain, write: Callable[..., Written]) -> None:
    record = chain.metrics_of(chain.example_rows())
    for metric in record["metrics"]:
        metric.update(value=None, low=None, high=None)
    record["metrics"][0]["value"] = float("nan")
    chain.build(record=record)
    assert "no metric has a value" in shown(write().html)


def test_another_task_has_a_page_too(chain: Chain, write: Callable[..., Written]) -> None:
    bleu = {"name": "bleu", "value": 23.4, "low": 21.0, "high": 25.5, "method": "bootstrap"}
    chain.build(record={"task": "translation", "n": 30, "split": "validation", "dataset": "multi30k", "metrics": [bleu]})
    text = shown(write().html)
    assert "the BLEU is 23.40 (95% interval 21.00 to 25.50)" in text
    assert "The examples are the validation split." in text
    assert "Nothing here says how the examples of multi30k were chosen" in text


def test_no_errors_no_predictions_and_no_rows(chain: Chain, write: Callable[..., Written]) -> None:
    right: list[Row] = [(f"id-{number}", "text", label, label, 0.9) for number, label in enumerate(chain.LABELS)]
    chain.build(right)
    assert "0 predictions of 3 are wrong" in shown(write("one").html)
    (chain.root / "evaluate" / "predictions.parquet").unlink()
    chain.commit("evaluate", chain.root / "evaluate", {"model_name_or_path": "finetune"})
    assert "the evaluation kept no predictions.parquet" in shown(write("two").html)


def test_numbers_that_contradict_each_other_are_said(chain: Chain, write: Callable[..., Written]) -> None:
    record = chain.metrics_of(chain.example_rows())
    record["metrics"][0]["value"] = 0.99
    record["confusion"][0][0] += 1
    chain.build(record=record)
    text = shown(write().html)
    assert "predictions.parquet gives an accuracy of 0.6000, metrics.json says 0.9900" in text
    assert "the confusion matrix counts 31 examples, the evaluation 30" in text


def test_the_worst_errors_come_first_and_as_many_as_asked(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build()
    for number in (0, 5):
        written = write(f"report-{number}", worst_errors=number)
        assert len(read(written.html).quotes) == number
    scores = [error["score"] for error in written.json["predictions"]["worst"]]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == max(row[4] for row in chain.example_rows() if row[2] != row[3])


def test_a_page_of_very_much_stays_below_its_limit(chain: Chain, write: Callable[..., Written]) -> None:
    labels = [f"标签 {number} " + "&" * 200 for number in range(120)]
    rows: list[Row] = [
        (f"id-{n}" + "&" * 500, "&<" * 5000, labels[n % 120], labels[(n + 1 + n % 7) % 120], 0.5 + n / 5000)
        for n in range(500)
    ]
    record = chain.metrics_of(rows)
    record["baselines"] *= 20
    chain.build(rows, record=record)
    files = chain.model_files(
        "".join(json.dumps({"step": n, "loss": 1 + n % 7, "eval_accuracy": 0.5}) + "\n" for n in range(1, 20_000))
    )
    chain.artefact("finetune", files, metrics={f"{'<' * 300}{n}": "&" * 1000 for n in range(500)}, inputs={})
    chain.evaluate(rows, record)
    written = write(worst_errors=200)
    assert written.metrics["html_bytes"] < 500_000
    assert "further baselines in report.json" in shown(written.html)


def test_the_json_is_strict_and_has_the_metrics(chain: Chain, write: Callable[..., Written]) -> None:
    record = chain.metrics_of(chain.example_rows())
    chain.build(record=record)
    chain.finetune(metrics={"nan": float("nan")})
    chain.evaluate(record=record)
    written = write()
    text = (written.directory / "report.json").read_text(encoding="utf-8")
    values = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert values["metrics"] == record
    assert [node["stage"] for node in values["lineage"]] == [
        "preprocess",
        "tokenizer",
        "tokenize",
        "pretrain",
        "finetune",
        "evaluate",
    ]
    assert values["findings"][0]["finding"] == "better"


@pytest.mark.parametrize(
    ("low", "high", "p_value", "finding"),
    [
        (0.1, 0.3, 0.001, "better"),
        (0.1, 0.3, 0.2, "no clear difference"),
        (-0.1, 0.3, 0.001, "no clear difference"),
        (0.1, 0.3, None, "better"),
        (None, None, 0.001, "better"),
        (None, None, None, "not tested"),
        (-0.3, -0.1, 0.001, "worse"),
    ],
)
def test_a_difference_counts_only_where_interval_and_test_agree(
    low: float | None, high: float | None, p_value: float | None, finding: str, chain: Chain, write: Callable[..., Written]
) -> None:
    record = chain.metrics_of(chain.example_rows())
    difference = -0.2 if finding == "worse" else 0.2
    record["comparison"][0].update(difference=difference, low=low, high=high, p_value=p_value)
    chain.build(record=record)
    assert write().json["findings"][0]["finding"] == finding


def test_limits_claim_only_what_the_data_supports(chain: Chain, write: Callable[..., Written]) -> None:
    record = chain.metrics_of(chain.example_rows())
    record["dataset"] = "/home/someone/secret/tickets.jsonl"
    chain.build(record=record)
    limits = " ".join(write("one").json["limits"])
    assert "tickets.jsonl" in limits and "/home/someone" not in limits
    assert "a few authors" not in limits
    assert "Whether test texts also occur in the training data was not checked." in limits
    record["overlap_unknown"] = "they are <gone>"
    chain.build(record=record)
    written = write("two")
    assert "was not checked: they are <gone>." in " ".join(written.json["limits"])
    assert "was not checked: they are <gone>." in shown(written.html)


def overlapping(train: int, validation: int, value: float | None) -> dict[str, Any]:
    rest = {"name": "accuracy", "value": value, "low": 0.4, "high": 0.7, "n": 30 - train - validation, "method": "wilson"}
    parts = {"train": train, "validation": validation, "either": train + validation}
    return {**{name: {"examples": count, "share": count / 30} for name, count in parts.items()}, "without": rest}


def test_test_texts_that_were_met_in_training_are_in_the_verdict(chain: Chain, write: Callable[..., Written]) -> None:
    record = chain.metrics_of(chain.example_rows())
    record["overlap"] = overlapping(0, 0, 0.6)
    chain.build(record=record)
    written = write("none")
    assert "Warning" not in written.json["verdict"]
    assert "Test texts that are also in training: 0; in validation: 0." in shown(written.html)
    assert "Texts that are only alike were not looked for." in shown(written.html)
    record["overlap"] = overlapping(3, 2, 0.56)
    chain.build(record=record)
    written = write("some")
    warning = (
        "Warning: 5 examples (16.7%) had a text that had been met in training or validation; of the predictions for the "
        "others 56.0% are right (95% interval 40.0% to 70.0%)."
    )
    assert warning in shown(written.html) and warning in written.json["verdict"]
    card = (written.directory / "model" / "README.md").read_text(encoding="utf-8")
    assert "Warning: 5 examples (16.7%)" in card
    for name, claim in (("accuracy", "for the others 56.0% are right"), ("chrf", "on the others chrF is 0.560")):
        record["overlap"] = overlapping(27, 2, 0.56)
        record["overlap"]["without"] |= {"name": name, "low": None, "high": None}
        chain.build(record=record)
        assert f"{claim}." in write(f"one-{name}").json["verdict"]
    record["overlap"] = overlapping(30, 0, None)
    chain.build(record=record)
    assert "Warning: the texts of all 30 examples (100.0%) had been met" in shown(write("all").html)
    record["overlap"] = {"train": "?"}
    chain.build(record=record)
    with pytest.raises(DataError, match=r"`overlap` in metrics\.json is not what"):
        write("odd")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("accuracy", "; of the predictions for the others 56.0% are right."),
        ("squared_error", "; on the others squared error is 0.560."),
    ],
)
def test_where_one_example_remains_no_interval_is_told(
    name: str, said: str, chain: Chain, write: Callable[..., Written]
) -> None:
    overlap = overlapping(29, 0, 0.56)
    overlap["without"] |= {"name": name, "low": None, "high": None, "method": "none"}
    chain.build(record=chain.metrics_of(chain.example_rows()) | {"overlap": overlap})
    assert write().json["verdict"].endswith(f"met in training or validation{said}")


@pytest.mark.parametrize("method", get_args(Method))
def test_how_every_interval_came_about_is_explained(method: str, chain: Chain, write: Callable[..., Written]) -> None:
    record = chain.metrics_of(chain.example_rows())
    chain.build(record=record | {"metrics": [record["metrics"][0] | {"method": method}]})
    assert ("How the intervals came about:" in write().html) == (method != "none")


def test_why_there_are_no_baselines_is_said(chain: Chain, write: Callable[..., Written]) -> None:
    record = chain.metrics_of(chain.example_rows())
    record |= {"baselines": [], "comparison": [], "baselines_left_out": "train.tsv is <gone>"}
    chain.build(record=record)
    assert "it was compared with no baseline: train.tsv is <gone>." in shown(write().html)


def test_a_class_without_test_examples_is_said(chain: Chain, write: Callable[..., Written]) -> None:
    rows = [row for row in chain.example_rows() if row[2] != "neutral"]
    record = chain.metrics_of(rows)
    for metric in record["metrics"]:
        if metric["label"] == "neutral" and metric["name"] != "precision":
            metric.update(value=None, low=None, high=None, n=0)
    chain.build(rows, record=record)
    text = shown(write().html)
    assert "Macro averages are over the 2 classes with test examples, of 3." in text
    assert "Class “neutral” has no test example: how well it is recognised is not known." in text
    assert text.count("undefined") == 2


def test_the_evaluation_must_be_there_and_unchanged(chain: Chain, write: Callable[..., Written]) -> None:
    with pytest.raises(ArtefactError, match="holds no finished result"):
        write("one")
    chain.build()
    path = chain.root / "evaluate" / "metrics.json"
    path.write_text(path.read_text(encoding="utf-8").replace("0.59", "0.95"), encoding="utf-8")
    with pytest.raises(ArtefactError, match=r"metrics\.json has another sha256"):
        write("two")
    chain.commit("evaluate", chain.root / "evaluate", {})
    path.write_text('{"n": "many"}', encoding="utf-8")
    chain.commit("evaluate", chain.root / "evaluate", {})
    with pytest.raises(DataError, match="`metrics` is not a list; `n`, the number of examples"):
        write("three")


def test_the_inputs_are_not_changed(chain: Chain, write: Callable[..., Written]) -> None:
    chain.build()

    def hashes() -> dict[Path, str]:
        stages = [path for stage in chain.made for path in (chain.root / stage).rglob("*") if path.is_file()]
        return {path: sha256_of(path) for path in stages}

    before = hashes()
    write()
    assert hashes() == before


def test_the_runner_commits_it_and_knows_it_again(chain: Chain) -> None:
    from llmkit.config import Source, resolve
    from llmkit.pipeline.stage import Stage, run_stage

    chain.build()
    stage = Stage(
        "report", "", "llmkit.reports.report:ReportConfig", "llmkit.reports.report:report", "open {output}/report.html"
    )
    resolved = resolve(ReportConfig, [Source({"evaluation": str(chain.root / "evaluate")}, {})])
    made = run_stage(stage, resolved, chain.root / "report")
    assert made.damaged(hashes=True) == []
    assert made.manifest.metrics["accuracy"] == pytest.approx(0.6)
    assert {record.path for record in made.manifest.files} >= {"report.html", "report.json", "model/model.safetensors"}
    assert made.input("evaluation") is not None
    before = (made.directory / "report.html").stat().st_mtime_ns
    run_stage(stage, resolved, chain.root / "report")
    assert (made.directory / "report.html").stat().st_mtime_ns == before
    assert chain.made["finetune"].damaged(hashes=True) == []


def test_settings_are_checked_and_documented() -> None:
    from llmkit.config import Source, fields_of, resolve

    with pytest.raises(ConfigError, match="worst_errors is 500"):
        resolve(ReportConfig, [Source({"evaluation": "x", "worst_errors": 500}, {})])
    assert all(re.fullmatch(r"[A-Z].*\.", spec.doc, re.DOTALL) for spec in fields_of(ReportConfig).values())


def test_several_seeds_are_told_with_their_mean_and_interval(chain: Chain, write: Callable[..., Written]) -> None:
    record = chain.metrics_of(chain.example_rows())
    found = {"values": {"0": 0.6, "1": 0.7, "7": 0.5}, "mean": 0.6, "sd": 0.1, "low": 0.352, "high": 0.848}
    record["seeds"] = {"of": [0, 1, 7], "metrics": {"accuracy": found}}
    chain.build(record=record)
    text = shown(write().html)
    assert "Over 3 seeds" in text and "0.600 0.352 to 0.848" in text and "Seed 7" in text
    assert "3 models were evaluated, trained alike with other seeds" in text and "One trained model" not in text
