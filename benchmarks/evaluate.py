"""How fast llmkit evaluates, beside lm-evaluation-harness, `Trainer.predict` and `evaluate.evaluator`, and whether all agree.

    python benchmarks/evaluate.py --python ~/venv/bin/python --documents wiki.txt --choices dev.tsv

`--python` is the interpreter of an environment that also has lm_eval and evaluate. All sides get one model with random
weights, one tokenizer, the same texts and the same batch size. Each is a process of its own, one after the other, round
after round, every second round in the opposite order. It loads the model, scores a few texts, and then times all from
texts to metrics by the wall clock and by the processor time of its threads, which depends less on what else the machine
does. Start-up is outside, and lm-evaluation-harness draws no bootstrap.

Rolling perplexity is that of windows that do not overlap, as lm-evaluation-harness has them. It reads the last window of a
long document with all the context there is room for: documents of one window have to agree, and others nearly do.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain import working_directory
from rounds import alternating, give, log_entry, plain, ratio, take, version_elsewhere

# Python puts a script's directory first on the import path, where this file would hide the package `evaluate`.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

_AGREES = 1e-4
_NEEDS = {"lm-eval": "lm_eval", "evaluate.evaluator": "evaluate"}
_JOBS = {
    "rolling perplexity": ("llmkit", "lm-eval"),
    "two-choice scoring": ("llmkit", "lm-eval"),
    "classification": ("llmkit", "Trainer.predict", "evaluate.evaluator"),
}


def main() -> int:
    """Measure, and print the table."""
    arguments = parse()
    if arguments.side is not None:
        run_side(json.loads(Path(arguments.side[0]).read_text(encoding="utf-8")), *arguments.side[1:])
        return 0
    with working_directory(arguments.keep) as place:
        case = prepare(arguments, place)
        lines = [
            "| | to | examples/s of llmkit to it, by processor time | lowest to highest | by wall clock | examples/s "
            "(processor) of llmkit, of it | largest difference |",
            f"|{'---|' * 7}",
        ]
        for job in arguments.jobs:
            runs: dict[str, list[dict[str, Any]]] = {side: [] for side in _JOBS[job] if is_there(side, case)}
            for number, side in alternating(list(runs), arguments.rounds):
                found = take(sys.executable if side == "llmkit" else case["python"], __file__, case, job, side)
                runs[side].append(found)
                told = ", ".join(f"{name} {found[name]:.1f} s" for name in ("processor", "wall"))
                print(f"round {number + 1}: {job}, {side}: {told}", file=sys.stderr)
            lines += rows(job, runs, case)
        print("\n".join(lines))
        if arguments.log:
            peers = "".join(
                f", {name} {found}" for name in _NEEDS.values() if (found := version_elsewhere(case["python"], name))
            )
            measured = (
                f"a GPT-2 of {case['layers']} layers and width {case['width']}, context {case['context']}, a DistilBERT of "
                f"half as many layers, random weights; {len(case['documents'])} documents, {len(case['texts'])} examples; "
                f"{case['rounds']} rounds, the order turned round each time"
            )
            title = "how fast llmkit evaluates, beside lm-eval, Trainer.predict and evaluate"
            print("\n" + log_entry(title, __file__, case, measured, lines, peers))
    return 0


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line, or other words in its place."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--python", default=sys.executable, help="interpreter with lm_eval and evaluate, for the peers")
    parser.add_argument("--documents", type=Path, help="a text file; it is cut into documents of several lengths")
    parser.add_argument(
        "--choices", type=Path, help="a .tsv file with columns `sentence` and `label` (0 or 1), as SST-2 has it"
    )
    parser.add_argument("--jobs", nargs="+", choices=tuple(_JOBS), default=list(_JOBS), help="what to measure (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side (default 3)")
    parser.add_argument("--max_documents", type=int, default=100, help="documents (default 100)")
    parser.add_argument("--max_examples", type=int, default=872, help="questions and texts to classify (default 872)")
    parser.add_argument("--layers", type=int, default=4, help="layers of the models (default 4)")
    parser.add_argument("--width", type=int, default=256, help="width of the models (default 256)")
    parser.add_argument("--vocab_size", type=int, default=8000, help="tokens of the vocabulary (default 8000)")
    parser.add_argument("--context", type=int, default=512, help="tokens that the model reads at once (default 512)")
    parser.add_argument("--batch", type=int, default=16, help="examples computed at once (default 16)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each side (default 1)")
    parser.add_argument("--log", action="store_true", help="print an entry for benchmarks/LOG.md as well")
    parser.add_argument("--keep", type=Path, help="work here and leave everything (default: a temporary directory)")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.side is None:
        for job, name in (
            ("rolling perplexity", "documents"),
            ("two-choice scoring", "choices"),
            ("classification", "choices"),
        ):
            if job in arguments.jobs and getattr(arguments, name) is None:
                parser.error(f"--{name} is needed for {job}")
    return arguments


def prepare(arguments: argparse.Namespace, place: Path) -> dict[str, Any]:
    """The models, and the texts of each job."""
    documents = cut(arguments.documents, arguments.max_documents) if arguments.documents else []
    reviews: list[dict[str, str]] = []
    if arguments.choices:
        with arguments.choices.open(encoding="utf-8") as file:
            reviews = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[: arguments.max_examples]
    case = {
        **plain(arguments),
        "place": str(place),
        "device": "cpu",
        "causal": str(place / "causal"),
        "classifier": str(place / "classifier"),
        "documents": documents,
        "questions": [f"Review: {row['sentence'].strip()}\nSentiment:" for row in reviews],
        "texts": [row["sentence"].strip() for row in reviews],
        "labels": [int(row["label"]) for row in reviews],
    }
    lines = arguments.documents.read_text(encoding="utf-8").splitlines() if arguments.documents else []
    make_models([*lines, *case["questions"]], case)
    write_tasks(case)
    return case


def cut(path: Path, count: int) -> list[str]:
    """Documents of a few hundred to several thousand characters, whole lines in their order."""
    documents: list[str] = []
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        lines.append(line.strip())
        if sum(map(len, lines)) > 400 + 5000 * (len(documents) * 0.618 % 1) ** 2:  # lengths spread evenly, many short ones
            documents.append("\n".join(lines).strip())
            lines = []
            if len(documents) == count:
                break
    return documents


def make_models(texts: list[str], case: dict[str, Any]) -> None:
    """A GPT-2 and a DistilBERT with random weights, and a byte-level tokenizer of the texts."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import (
        DistilBertConfig,
        DistilBertForSequenceClassification,
        GPT2Config,
        GPT2LMHeadModel,
        PreTrainedTokenizerFast,
    )

    trained = ByteLevelBPETokenizer()
    special = ["<|endoftext|>", "<|padding|>"]
    trained.train_from_iterator(texts, vocab_size=case["vocab_size"], special_tokens=special, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,
        eos_token=special[0],
        pad_token=special[1],
        cls_token=special[0],
        model_max_length=case["context"],
    )
    torch.manual_seed(0)
    heads = max(1, case["width"] // 64)
    shape = {"n_embd": case["width"], "n_layer": case["layers"], "n_head": heads, "n_positions": case["context"]}
    ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    causal = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **ends, **shape))
    encoder = DistilBertConfig(
        vocab_size=len(tokenizer),
        dim=case["width"],
        hidden_dim=4 * case["width"],
        n_layers=max(1, case["layers"] // 2),
        n_heads=heads,
        max_position_embeddings=case["context"],
        pad_token_id=tokenizer.pad_token_id,
    )
    for model, place in ((causal, case["causal"]), (DistilBertForSequenceClassification(encoder), case["classifier"])):
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)


def write_tasks(case: dict[str, Any]) -> None:
    """The data of the causal jobs, and the tasks by which lm-evaluation-harness reads them."""
    place = Path(case["place"])
    (place / "tasks").mkdir(exist_ok=True)
    asked = zip(case["questions"], case["labels"], strict=True)
    found: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
        "documents": (
            [{"text": text} for text in case["documents"]],
            {
                "output_type": "loglikelihood_rolling",
                "doc_to_text": "",
                "doc_to_target": "{{text}}",
                "metrics": ["bits_per_byte"],
            },
        ),
        "choices": (
            [{"question": text, "choices": ["negative", "positive"], "label": label} for text, label in asked],
            {
                "output_type": "multiple_choice",
                "doc_to_text": "{{question}}",
                "doc_to_choice": "{{choices}}",
                "doc_to_target": "label",
                "metrics": ["acc", "acc_norm"],
            },
        ),
    }
    for name, (lines, settings) in found.items():
        path = place / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        metrics = [{"metric": metric} for metric in settings.pop("metrics")]
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}, "test_split": "test"}
        task = {"task": name, **source, **settings, "metric_list": metrics}
        (place / "tasks" / f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML


# ----------------------------------------------------------------------------------------------------------------------
# The sides. Each is given the case and returns a function from a number of texts, the first ones, to a score for each.

Scoring = Callable[[int], list[Any]]


def run_side(case: dict[str, Any], job: str, side: str) -> None:
    """What the process of a side does."""
    import torch

    torch.set_num_threads(case["threads"])
    score = _SIDES[job, side](case)
    count = len(case["documents"] if job == "rolling perplexity" else case["texts"])
    score(min(4, count))
    wall, processor = time.perf_counter(), time.process_time()
    values = score(count)
    give({"wall": time.perf_counter() - wall, "processor": time.process_time() - processor, "values": values})


def perplexity_of_llmkit(case: dict[str, Any]) -> Scoring:
    """As `llmkit evaluate --task language-modeling` with a stride as long as the context."""
    import tempfile

    import numpy as np

    from llmkit.corpus.documents import Document
    from llmkit.evaluation.documents import Tokens
    from llmkit.evaluation.intervals import bootstrap
    from llmkit.evaluation.language_model import batches, score_windows
    from llmkit.evaluation.strides import plan_windows
    from llmkit.tasks.generation import load
    from llmkit.tasks.token_losses import TokenScorer
    from llmkit.training.hardware import use_cpu_well

    use_cpu_well(case["threads"])
    model, tokenizer = load(case["causal"])

    def score(count: int) -> list[float]:
        with tempfile.TemporaryDirectory() as place:
            tokens = Tokens(Path(place), tokenizer.eos_token_id)
            tokens.fill((Document(text, str(number), "") for number, text in enumerate(case["documents"][:count])), tokenizer)
            windows = plan_windows(tokens.lengths, case["context"], case["context"])
            windows = windows.taken(np.argsort(-windows.lengths, kind="stable"))
            scorer, losses = TokenScorer(model), np.zeros(count)
            for batch in batches(windows.lengths, 0, case["batch"], "cpu"):
                chosen = windows.taken(batch)
                found = np.array(score_windows(scorer, tokens, chosen, case["context"].bit_length()))
                np.add.at(losses, chosen.document, found[:, 0])
            sums = np.stack([losses, np.array(tokens.text_bytes)], axis=1)
            bootstrap(sums, lambda totals: totals[:, 0] / totals[:, 1], seed=0)
            return (-losses).tolist()

    return score


def choices_of_llmkit(case: dict[str, Any]) -> Scoring:
    """As `llmkit evaluate --task multiple-choice`."""
    from llmkit.evaluation.multiple_choice import measure
    from llmkit.tasks.loading import load_task_model
    from llmkit.tasks.settings import Columns
    from llmkit.tasks.tables import read_table
    from llmkit.training.hardware import use_cpu_well

    use_cpu_well(case["threads"])
    task, model, tokenizer = load_task_model(case["causal"], "multiple-choice")

    def score(count: int) -> list[list[float]]:
        examples = task.read(read_table(Path(case["place"]) / "choices.jsonl")[:count], Columns())
        predictions = list(task.predict(model, tokenizer, examples, case["batch"]))
        measure(task, examples, predictions, 0)
        return [row["loglikelihoods"] for row in predictions]

    return score


def lm_eval(case: dict[str, Any], name: str) -> Scoring:
    """lm-evaluation-harness's own loop over a local task, without its bootstrap."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=case["causal"], device="cpu", dtype="float32", batch_size=case["batch"])
    tasks = TaskManager(include_path=str(Path(case["place"]) / "tasks"), include_defaults=False).load([name])

    def score(count: int) -> list[Any]:
        found = evaluate(model, tasks, limit=count, bootstrap_iters=0)["samples"][name]
        # Of each document the answers to its requests: a log-likelihood, or one with whether it is what greedy decoding gives.
        answers = [[response[0] for response in sample["resps"]] for sample in sorted(found, key=lambda item: item["doc_id"])]
        return [[float(pair[0]) for pair in row] if name == "choices" else float(row[0]) for row in answers]

    return score


def classes_of_llmkit(case: dict[str, Any]) -> Scoring:
    """As `llmkit evaluate` of a classifier."""
    from llmkit.tasks.loading import load_task_model
    from llmkit.tasks.text_classification import Example
    from llmkit.training.hardware import use_cpu_well

    use_cpu_well(case["threads"])
    task, model, tokenizer = load_task_model(case["classifier"], "text-classification")

    def score(count: int) -> list[float]:
        texts = case["texts"][:count]
        asked = [Example(id=str(number), place="", text=text, label="") for number, text in enumerate(texts)]
        return [row["probability_LABEL_1"] for row in task.predict(model, tokenizer, asked, case["batch"])]

    return score


def classes_of_trainer(case: dict[str, Any]) -> Scoring:
    """transformers' Trainer, with padding to the longest of a batch."""
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(case["classifier"])
    arguments = TrainingArguments(
        output_dir=f"{case['place']}/trainer",
        per_device_eval_batch_size=case["batch"],
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    model = AutoModelForSequenceClassification.from_pretrained(case["classifier"])
    trainer = Trainer(model, arguments, data_collator=DataCollatorWithPadding(tokenizer))

    def score(count: int) -> list[float]:
        encoded = tokenizer(case["texts"][:count], truncation=True)
        data = Dataset.from_dict({name: encoded[name] for name in ("input_ids", "attention_mask")})
        logits = trainer.predict(data).predictions
        return [1 / (1 + math.exp(first - second)) for first, second in logits.astype(float).tolist()]

    return score


def classes_of_evaluator(case: dict[str, Any]) -> Scoring:
    """`evaluate.evaluator`, whose pipeline gives the label; its metric here is a share, which needs no download."""
    import datasets
    import evaluate

    class Given(evaluate.Metric):
        """Keeps what it is given."""

        def _info(self) -> Any:
            kinds = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            return evaluate.MetricInfo(description="", citation="", features=datasets.Features(kinds))

        def _compute(self, predictions: list[int], references: list[int]) -> dict[str, Any]:
            return {"given": list(predictions)}

    evaluator = evaluate.evaluator("text-classification")

    def score(count: int) -> list[float]:
        data = datasets.Dataset.from_dict({"text": case["texts"][:count], "label": case["labels"][:count]})
        found = evaluator.compute(
            model_or_pipeline=case["classifier"],
            data=data,
            metric=Given(),
            tokenizer=case["classifier"],
            label_mapping={"LABEL_0": 0, "LABEL_1": 1},
        )
        return [float(label) for label in found["given"]]

    return score


_SIDES: dict[tuple[str, str], Callable[[dict[str, Any]], Scoring]] = {
    ("rolling perplexity", "llmkit"): perplexity_of_llmkit,
    ("rolling perplexity", "lm-eval"): lambda case: lm_eval(case, "documents"),
    ("two-choice scoring", "llmkit"): choices_of_llmkit,
    ("two-choice scoring", "lm-eval"): lambda case: lm_eval(case, "choices"),
    ("classification", "llmkit"): classes_of_llmkit,
    ("classification", "Trainer.predict"): classes_of_trainer,
    ("classification", "evaluate.evaluator"): classes_of_evaluator,
}


# ----------------------------------------------------------------------------------------------------------------------
# Measuring and telling


def is_there(side: str, case: dict[str, Any]) -> bool:
    """Whether the peers' interpreter has what a side needs; said where it has not."""
    module = _NEEDS.get(side)
    found = module is None or _runs(case, f"import {module}")
    if not found:
        print(f"{side}: {case['python']} has no {module}", file=sys.stderr)
    return found


def _runs(case: dict[str, Any], code: str) -> bool:
    return subprocess.run([case["python"], "-c", code], cwd=case["place"], capture_output=True).returncode == 0


def rows(job: str, runs: dict[str, list[dict[str, Any]]], case: dict[str, Any]) -> list[str]:
    """A line of the table for each peer."""
    ours, lines = runs["llmkit"], []
    count = len(ours[0]["values"])
    for side, theirs in runs.items():
        if side == "llmkit":
            continue
        ratios = {
            clock: ratio([run[clock] for run in theirs], [run[clock] for run in ours]) for clock in ("processor", "wall")
        }
        rates = [count / statistics.median(run["processor"] for run in both) for both in (ours, theirs)]
        lines.append(
            f"| {job} | {side} | {ratios['processor']} | {ratios['wall'].split(' | ')[0]} | "
            f"{rates[0]:,.1f}, {rates[1]:,.1f} | "
            f"{difference(job, side, ours[0]['values'], theirs[0]['values'], case)} |"
        )
    return lines


def difference(job: str, side: str, ours: list[Any], theirs: list[Any], case: dict[str, Any]) -> str:
    """How far the scores of two sides lie apart, in words."""
    if job == "rolling perplexity":
        sizes = [len(text.encode()) for text in case["documents"]]
        bits = [[-value / math.log(2) / size for value, size in zip(values, sizes, strict=True)] for values in (ours, theirs)]
        # Of short documents, which are one window whatever the tokenizer: a token is at least a byte.
        short = max((abs(a - b) for a, b, size in zip(*bits, sizes, strict=True) if size <= case["context"]), default=0.0)
        total = abs(sum(ours) - sum(theirs)) / math.log(2) / sum(sizes)
        return f"{short:.1e} bits per byte in documents of one window{_verdict(short)}, {total:.1e} over all"
    if side == "evaluate.evaluator":
        apart = sum((value > 0.5) != (label == 1) for value, label in zip(ours, theirs, strict=True))
        return f"{apart} other labels"
    pairs = [(a, b) for one, two in zip(ours, theirs, strict=True) for a, b in zip(_flat(one), _flat(two), strict=True)]
    largest = max(abs(a - b) for a, b in pairs)
    what = "log-likelihood" if job == "two-choice scoring" else "probability"
    return f"{largest:.1e} in {what}{_verdict(largest)}"


def _flat(value: Any) -> list[float]:
    return value if isinstance(value, list) else [value]


def _verdict(apart: float) -> str:
    return "" if apart <= _AGREES else ": NOT THE SAME"


if __name__ == "__main__":
    sys.exit(main())
