"""How fast llmkit fine-tunes, and how well, beside the example scripts of transformers.

    python benchmarks/finetune.py --scripts ~/examples --train_file train.tsv --test_file dev.tsv
    python benchmarks/finetune.py --task question-answering --scripts ~/examples --train_file train.json --test_file dev.json

`--scripts` is a folder with run_glue.py (text classification) or run_qa.py with its two helpers. All sides start from the same
encoder with random weights and one tokenizer, and learn the same examples in as many steps of as many examples, at the same
learning rate. Each is a process of its own, one after the other, round after round with another seed, every second round in
the opposite order. Rates are timed by this process's clock between the first line after the warm-up in which a side says that
it has made a number of steps, and the last; start-up, tokenisation and evaluation are outside. `llmkit evaluate` then measures
all models on the test file, so that one metric by one definition judges all.

The scripts pad every example to one length unless they are told not to, and compute in float32 unless they are told not to:
they are run as they come, and as well as they can be told to.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain import ROOT, Side, environment, measure, working_directory
from rounds import alternating, log_entry, plain, ratio

_STEP = re.compile(r"step +\d+/\d+  loss")
_LOSS = re.compile(r"'loss':")
_METRICS = {"text-classification": ("accuracy", "f1_macro"), "question-answering": ("exact_match", "f1")}


@dataclass
class Variant:
    """A side, and what its runs gave."""

    name: str
    options: list[str] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)


def main() -> int:
    """Measure, and print the table."""
    arguments = parse()
    with working_directory(arguments.keep) as place:
        case = prepare(arguments, place)
        variants = sides_of(case)
        for number, variant in alternating(variants, arguments.rounds):
            output = place / f"{variant.name.replace(' ', '-').replace(',', '')}-{number}"
            side = side_of(variant, case, output, number)
            run = measure(side, case)
            variant.rates.append(run.tokens_per_second)
            variant.seconds.append(run.seconds)
            for name, value in evaluate(case, output).items():
                variant.scores.setdefault(name, []).append(value)
            told = ", ".join(f"{name} {values[-1]:.3f}" for name, values in variant.scores.items())
            print(f"round {number + 1}: {variant.name}  {variant.rates[-1]:,.1f} examples/s, {told}", file=sys.stderr)
        lines = table(variants)
        print("\n".join(lines))
        if arguments.log:
            measured = (
                f"an encoder of {case['layers']} layers and width {case['width']} "
                f"({case['parameters'] / 1e6:.1f} M parameters), {case['examples']:,} examples, {case['batch']} a step; "
                f"{case['rounds']} seeds, the order turned round each time"
            )
            title = "how fast llmkit fine-tunes, beside the scripts of transformers"
            print("\n" + log_entry(title, __file__, case, measured, lines))
    return 0


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line, or other words in its place."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--task", choices=tuple(_METRICS), default="text-classification")
    parser.add_argument("--scripts", type=Path, help="folder with the example scripts of transformers")
    parser.add_argument("--train_file", type=Path, required=True, help="training examples")
    parser.add_argument("--test_file", type=Path, required=True, help="test examples, also those that llmkit validates on")
    parser.add_argument("--text_column", help="column of texts")
    parser.add_argument("--label_column", help="column of labels")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side, each with a seed of its own (default 3)")
    parser.add_argument("--max_train_samples", type=int, help="use only the first so many examples")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the examples (default 1)")
    parser.add_argument("--layers", type=int, default=4, help="layers of the encoder (default 4)")
    parser.add_argument("--width", type=int, default=256, help="width of the encoder (default 256)")
    parser.add_argument("--vocab_size", type=int, default=8192, help="tokens of the vocabulary (default 8192)")
    parser.add_argument("--max_length", type=int, help="longest input (default 128; for question answering 384)")
    parser.add_argument("--batch", type=int, default=32, help="examples of a step (default 32)")
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--warmup", type=int, default=10, help="first steps that are not timed (default 10)")
    parser.add_argument("--log_every", type=int, default=10, help="steps between two lines of each side (default 10)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of each side")
    parser.add_argument("--log", action="store_true", help="print an entry for benchmarks/LOG.md as well")
    parser.add_argument("--keep", type=Path, help="work here and leave everything (default: a temporary directory)")
    arguments = parser.parse_args(words)
    if arguments.max_length is None:
        arguments.max_length = 384 if arguments.task == "question-answering" else 128
    return arguments


def prepare(arguments: argparse.Namespace, place: Path) -> dict[str, Any]:
    """The encoder that all start from, and the data as either side reads them."""
    from llmkit.models.causal import parameter_counts
    from llmkit.tasks.registry import task_class
    from llmkit.tasks.settings import Columns
    from llmkit.tasks.tables import read_table
    from llmkit.training.hardware import has_fast_bf16

    columns = Columns(text_column=arguments.text_column, label_column=arguments.label_column)
    reader = task_class(arguments.task)([]) if arguments.task == "text-classification" else task_class(arguments.task)
    splits = {}
    for split, path in (("train", arguments.train_file), ("test", arguments.test_file)):
        rows = read_table(path)
        splits[split] = rows[: arguments.max_train_samples] if split == "train" else rows
    case = {
        **plain(arguments),
        "place": str(place),
        "scripts": str(arguments.scripts.resolve()) if arguments.scripts else None,
        "model": str(place / "model"),
        "device": "cpu",
        "bf16": has_fast_bf16(True),
        "block_size": 1,  # what is counted are examples
    }
    if arguments.task == "text-classification":
        examples = {split: reader.read(rows, columns) for split, rows in splits.items()}
        names = sorted({example.label for example in examples["train"]})
        texts = [example.text for example in examples["train"]]
        for split, found in examples.items():
            write_lines(place / f"{split}.json", [{"sentence": item.text, "label": names.index(item.label)} for item in found])
            write_lines(
                place / f"{split}.jsonl", [{"text": item.text, "label": str(names.index(item.label))} for item in found]
            )
    else:
        for split, rows in splits.items():
            flat = [squad_row(row.values) for row in rows]
            write_lines(place / f"{split}.jsonl", flat)
            (place / f"{split}.json").write_text(json.dumps({"data": flat}, ensure_ascii=False), encoding="utf-8")
        texts = [row.values[key] for row in splits["train"] for key in ("context", "question")]
    model = encoder(texts, case)
    case["parameters"] = parameter_counts(model)["total"]
    case["examples"] = len(splits["train"])
    return case


def squad_row(values: dict[str, Any]) -> dict[str, Any]:
    """A question as run_qa reads it: the answers in two lists."""
    answers = {key: [answer[key] for answer in values["answers"]] for key in ("text", "answer_start")}
    return {**{key: values[key] for key in ("id", "context", "question")}, "answers": answers}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def encoder(texts: list[str], case: dict[str, Any]) -> Any:
    """A BERT with random weights, and a WordPiece tokenizer of the training texts with BERT's special tokens."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=case["vocab_size"], special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=case["max_length"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(fast),
        hidden_size=case["width"],
        num_hidden_layers=case["layers"],
        num_attention_heads=max(1, case["width"] // 64),
        intermediate_size=4 * case["width"],
        max_position_embeddings=case["max_length"],
        pad_token_id=0,
    )
    model = BertModel(config)
    model.save_pretrained(case["model"])
    fast.save_pretrained(case["model"])
    return model


def sides_of(case: dict[str, Any]) -> list[Variant]:
    """llmkit, and the script as it comes and as well as it can be told to."""
    found = [Variant("llmkit")]
    if case["scripts"] is None:
        return found
    script = script_of(case)
    precision = ["--bf16"] if case["bf16"] else []
    found.append(Variant(f"{script}, its defaults"))
    if precision:
        found.append(Variant(f"{script}, bf16", precision))
    unpadded = "--pad_to_max_length=false"
    found.append(Variant(f"{script}, {'bf16, ' if precision else ''}padded to the batch", [*precision, unpadded]))
    return found


def script_of(case: dict[str, Any]) -> str:
    """The name of the script that does the task."""
    return "run_glue" if case["task"] == "text-classification" else "run_qa"


def side_of(variant: Variant, case: dict[str, Any], output: Path, seed: int) -> Side:
    """A run of a side, with a seed."""
    place = Path(case["place"])
    shared = {
        "per_device_train_batch_size": case["batch"],
        "num_train_epochs": case["epochs"],
        "learning_rate": case["learning_rate"],
        "logging_steps": case["log_every"],
        "weight_decay": 0.01,
        "warmup_steps": 0.1,
        "seed": seed,
    }
    if variant.name == "llmkit":
        settings = {
            **shared,
            "task": case["task"],
            "model_name_or_path": case["model"],
            "train_file": str(place / "train.jsonl"),
            "validation_file": str(place / "test.jsonl"),
            "max_length": case["max_length"],
            "metric_for_best_model": "loss",
            "eval_steps": 1_000_000,  # once, at the end
            "cpu_threads": case["threads"],
            "use_cpu": True,
        }
        path = place / "llmkit.yaml"
        path.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
        words = [sys.executable, "-m", "llmkit", "finetune", "--config", str(path), "--output_dir", str(output), "--force"]
        return Side("llmkit", words, _STEP.search, ROOT)  # type: ignore[arg-type]
    words = [f"--{name}={value}" for name, value in shared.items()]
    words += ["--do_train", f"--train_file={place / 'train.json'}", f"--validation_file={place / 'test.json'}"]
    words += [f"--max_seq_length={case['max_length']}", f"--model_name_or_path={case['model']}", f"--output_dir={output}"]
    words += ["--save_strategy=no", "--disable_tqdm=true", "--report_to=none", "--use_cpu", "--lr_scheduler_type=linear"]
    words += [f"--cache_dir={place / 'cache'}", *variant.options]
    script = Path(case["scripts"]) / f"{script_of(case)}.py"
    modules = place / "modules"  # they ask `evaluate`, and so the hub, for a metric that training does not use
    modules.mkdir(exist_ok=True)
    (modules / "evaluate.py").write_text("def load(*names, **options):\n    return None\n", encoding="utf-8")
    variables = {"PYTHONPATH": f"{modules}:{case['scripts']}"}
    return Side(variant.name, [sys.executable, str(script), *words], _LOSS.search, place, environment=variables)  # type: ignore[arg-type]


def evaluate(case: dict[str, Any], model: Path) -> dict[str, float]:
    """The metrics of a model on the test file, by llmkit."""
    output = model.with_name(f"{model.name}-evaluation")
    words = ["--model_name_or_path", str(model), "--test_file", str(Path(case["place"]) / "test.jsonl"), "--no_baselines"]
    command = [
        sys.executable,
        "-m",
        "llmkit",
        "evaluate",
        *words,
        "--task",
        case["task"],
        "--output_dir",
        str(output),
        "--force",
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment(case), capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stderr[-3000:]}")
    found = json.loads((output / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    return {name: found[name]["value"] for name in _METRICS[case["task"]] if name in found}


def table(variants: list[Variant]) -> list[str]:
    """Rates as ratios of llmkit's to the side's in the same round, and metrics with their spread over seeds, in Markdown."""
    names = list(variants[0].scores)
    lines = [
        f"| | examples/s of llmkit to it | lowest to highest | examples/s | whole run | {' | '.join(names)} |",
        f"|{'---|' * (5 + len(names))}",
    ]
    for variant in variants:
        scores = [
            f"{statistics.mean(values):.3f} (sd {statistics.stdev(values) if len(values) > 1 else math.nan:.3f})"
            for values in variant.scores.values()
        ]
        lines.append(
            f"| {variant.name} | {ratio(variants[0].rates, variant.rates)} | "
            f"{statistics.median(variant.rates):,.0f} | {statistics.median(variant.seconds):.0f} s | {' | '.join(scores)} |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
