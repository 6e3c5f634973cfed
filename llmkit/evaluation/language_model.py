"""The evaluation of a base language model on documents. `evaluate.py` holds the settings.

Documents are read, tokenised and laid out as windows; the longest windows are scored first, so that what does not fit into
memory fails at once. Each window gives a few sums, which are on disk soon after they are computed: a run that was killed goes
on there. All metrics are ratios of sums over documents, and so are their intervals: documents are resampled.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from transformers import AutoConfig
from transformers.utils.logging import disable_progress_bar

from llmkit import __version__
from llmkit.errors import ArtefactError, ConfigError, DataError
from llmkit.evaluation import gate, leakage, ngrams
from llmkit.evaluation.comparison import compare_means
from llmkit.evaluation.documents import Names, Tokens, read_documents
from llmkit.evaluation.intervals import LEVEL, Metric, resampled
from llmkit.evaluation.strides import Windows, plan_windows
from llmkit.evaluation.task_model import with_interval
from llmkit.pipeline.artefact import enclosing
from llmkit.pipeline.progress import Progress
from llmkit.tasks.base import positions_of
from llmkit.tasks.features import IGNORED
from llmkit.tasks.generation import Decoding, go_on, load, seed_of
from llmkit.tasks.predicted import Predicted, code_digest, model_files
from llmkit.tasks.registry import SECTION, task_of
from llmkit.tasks.tables import iterate_table, source_name
from llmkit.tasks.token_losses import TokenScorer
from llmkit.tasks.writers import in_blocks
from llmkit.tokens.shards import TokenStream
from llmkit.training.hardware import use_cpu_well

if TYPE_CHECKING:
    from llmkit.evaluation.evaluate import EvaluateConfig
    from llmkit.pipeline.stage import Workspace

NAME = "language-modeling"
SCRATCH = ".language-model"

_LONGEST_CONTEXT = 4096  # tokens, where the settings say nothing and the model takes more
_TOKENS_AT_ONCE = {"cpu": 8192}  # of a batch: more is no faster there
_TOKENS_ON_ACCELERATORS = 65_536
_SAVED_EVERY = 1.0  # seconds
_DOCUMENTS_AT_ONCE = 4096
_NAMED = 40  # sources, or languages, with figures of their own; the smaller ones are added up
_PROMPTS, _PROMPT_TOKENS = 3, 16
_METRICS = ("bits_per_byte", "perplexity", "token_accuracy")
_BESIDE_TEXT = {"id", "source", "metadata", "language", "lang", "url", "title"}
_TEXT_FILES = (".txt", ".md", ".gz", ".zst")


def is_asked(config: EvaluateConfig) -> bool:
    """Whether settings ask for a language model's losses on documents: they say so, or a causal model that has learned no task
    of llmkit meets data with nothing but texts."""
    if config.task is not None or config.corpus is not None:
        return config.task in (None, NAME)
    try:
        model = AutoConfig.from_pretrained(config.model_name_or_path)
    except (OSError, ValueError):  # whoever loads the model says what is wrong with it
        return False
    if hasattr(model, SECTION) or task_of(model) != "text-generation" or config.test_file is None:
        return False
    if config.test_file.lower().endswith(_TEXT_FILES):
        return True
    try:
        first = next(iterate_table(config.test_file), None)
    except DataError:
        return False
    text = config.text_column or "text"
    return first is not None and text in first.values and set(first.values) <= {text, *_BESIDE_TEXT}


def evaluate_language_model(config: EvaluateConfig, workspace: Workspace) -> dict[str, Any]:
    """Measure a language model; see `evaluate.evaluate`.

    Raises:
        ConfigError: the gate names a metric that there is not, or windows are not such that the model takes them.
    """
    gate.check_names(config.gate or [], _METRICS)
    disable_progress_bar()
    if not torch.accelerator.is_available():
        use_cpu_well(config.cpu_threads or torch.get_num_threads())
    model, tokenizer = load(config.model_name_or_path)
    model = model.float()
    context, stride = _window(config, model, tokenizer)
    scratch = workspace.directory / SCRATCH
    scratch.mkdir(exist_ok=True)
    tokens = Tokens(scratch, _first_token(config.model_name_or_path, tokenizer))
    tokens.fill(read_documents(config), tokenizer)
    workspace.say(
        f"documents: {len(tokens):,}, tokens: {tokens.lengths.sum():,}, bytes: {sum(tokens.text_bytes):,}; "
        f"context {context:,}, stride {stride:,}"
    )
    windows = plan_windows(tokens.lengths, context, stride)
    windows = windows.taken(np.argsort(-windows.lengths, kind="stable"))
    sums = _scored(config, model, tokens, windows, context, stride, workspace)
    measured = _Measured(tokens, sums, config.seed)
    metrics = measured.metrics()
    result: dict[str, Any] = {
        "task": NAME,
        "dataset": source_name(config.test_file or config.dataset_name or config.corpus or ""),
        "split": config.dataset_split if config.dataset_name else "validation" if config.corpus else "test",
        "n": len(tokens),
        "interval": LEVEL,
        "seed": config.seed,
        "metrics": [metric.as_dict() for metric in metrics],
        "headline": ["bits_per_byte", "perplexity"],
        "value_is": "bits_per_byte",
        "lower_is_better": True,
        "perfect": 0.0,
        "overlap": None,
        "baselines": [],
        "comparison": [],
        "language_model": {
            "context": context,
            "stride": stride,
            "begins_after": tokenizer.convert_ids_to_tokens(tokens.first),
            "tokens": int(sums.tokens.sum()),
            "bytes": int(sum(tokens.text_bytes)),
            "unknown_tokens": tokens.unknown,
            "windows": len(windows),
            "empty_documents": tokens.empty,
            "positions": measured.positions(),
            "sources": measured.by(tokens.sources),
            "languages": measured.by(tokens.languages),
            "samples": list(_samples(config, model, tokenizer, tokens)),
        },
    }
    if config.baselines:
        for name, detail, losses in _baselines(config, tokens, len(tokenizer), result):
            _add_baseline(result, measured, name, detail, losses)
    else:
        result["baselines_left_out"] = "the setting `baselines` is off"
    contaminated = None
    if config.leakage:
        result["leakage"], contaminated = leakage.of_documents(config.model_name_or_path, tokens.beginnings())
        if contaminated is not None:
            result["leakage"]["metrics"] = _with_and_without(measured, contaminated)
    text = json.dumps(result, indent=1, ensure_ascii=False)
    (workspace.directory / "metrics.json").write_text(text + "\n", encoding="utf-8")
    _write_predictions(workspace.directory / "predictions.parquet", tokens, sums, contaminated)
    for line in _summary(metrics, result):
        workspace.say(line)
    overall = {metric.key: with_interval(metric) for metric in metrics}
    return {"task": NAME, "n": len(tokens), "tokens": int(sums.tokens.sum()), **overall}


def _window(config: EvaluateConfig, model: Any, tokenizer: Any) -> tuple[int, int]:
    """Context and stride in tokens."""
    takes = positions_of(model.config) or tokenizer.model_max_length
    if config.max_length is not None and config.max_length > takes:
        raise ConfigError([f"max_length: {config.max_length:,} is more than the {takes:,} tokens that the model takes"])
    context = config.max_length or min(takes, _LONGEST_CONTEXT)
    stride = config.stride or max(1, context // 2)
    if stride > context:
        raise ConfigError([f"stride: {stride:,} is more than the context, {context:,} tokens; tokens would be left out"])
    return context, stride


def _first_token(name: str, tokenizer: Any) -> int:
    """The token that documents begin after: the BOS, or else the EOS, as in training one document follows another."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise ConfigError([f"model_name_or_path: the tokenizer of {name!r} has neither a BOS nor an EOS token to begin with"])
    return int(first)


# --------------------------------------------------------------------------------------------------------------------
# Scores


@dataclass
class Sums:
    """What is added up of each document."""

    loss: np.ndarray
    """Nats, float64 of shape [documents]."""
    right: np.ndarray
    """Tokens that are the most likely ones."""
    tokens: np.ndarray
    position_loss: np.ndarray
    """Of shape [documents, bins]: a bin for tokens that have 1, 2 to 3, 4 to 7, ... tokens in view."""
    position_tokens: np.ndarray


def _scored(
    config: EvaluateConfig, model: Any, tokens: Tokens, windows: Windows, context: int, stride: int, workspace: Workspace
) -> Sums:
    """Score all windows, or those that an earlier run of the very same job has not."""
    begun = Predicted(workspace.directory / SCRATCH)
    settings = {"context": context, "stride": stride, "batch_size": config.per_device_eval_batch_size}
    job = {
        "llmkit": __version__,
        "code": code_digest(),
        "model": model_files(config.model_name_or_path),
        "input": tokens.sha256,
        "first": tokens.first,
        "settings": settings,
    }
    done, bins = begun.begin(job, force=False), context.bit_length()
    targets = windows.targets
    if done:
        workspace.say(f"goes on after the {done:,} of {len(windows):,} windows that an earlier run has scored")
    scorer = TokenScorer(model)
    pending: list[list[float]] = []
    saved = time.monotonic()
    with Progress(int(targets[:done].sum()), int(targets.sum()), workspace.say, "evaluate", "token") as progress:
        for batch in batches(windows.lengths, done, config.per_device_eval_batch_size, model.device.type):
            pending += score_windows(scorer, tokens, windows.taken(batch), bins)
            if time.monotonic() - saved > _SAVED_EVERY or batch[-1] == len(windows) - 1:
                begun.append(pending)
                pending, saved = [], time.monotonic()
            progress.add(int(targets[batch].sum()))
    return _added_up(begun, tokens, windows, bins)


def batches(lengths: np.ndarray, done: int, batch_size: int, device: str) -> Iterator[np.ndarray]:
    """Windows from number `done` on that are computed at once; lengths do not rise."""
    limit = _TOKENS_AT_ONCE.get(device, _TOKENS_ON_ACCELERATORS)
    while done < len(lengths):
        size = max(1, min(batch_size, limit // int(lengths[done]), len(lengths) - done))
        yield np.arange(done, done + size)
        done += size


def score_windows(scorer: TokenScorer, tokens: Tokens, windows: Windows, bins: int) -> list[list[float]]:
    """Of each window the sum of losses, how many tokens are the most likely ones, and the losses by position."""
    count, width = len(windows), int(windows.lengths.max())
    ids = np.full((count, width), tokens.first, dtype=np.int64)
    asked = np.full((count, width), IGNORED, dtype=np.int64)
    places = []
    for row, (document, start, stop, first) in enumerate(
        zip(*map(np.ndarray.tolist, (windows.document, windows.start, windows.stop, windows.first)), strict=True)
    ):
        whole = tokens.read(document, start, stop + 1)
        ids[row, : stop - start] = whole[:-1]
        asked[row, first - start - 1 : stop - start] = whole[first - start :]
        places.append(np.arange(first - start, stop - start + 1))
    losses, right = scorer(torch.from_numpy(ids), torch.from_numpy(asked), use_cache=False)
    ends = np.cumsum(windows.targets)[:-1]
    return [
        [float(loss.sum()), float(hits.sum()), *np.bincount(_bin(place), weights=loss, minlength=bins).tolist()]
        for place, loss, hits in zip(places, np.split(losses, ends), np.split(right, ends), strict=True)
    ]


def _bin(seen: np.ndarray) -> np.ndarray:
    """The bin of a token by how many tokens it has in view: 1, 2 to 3, 4 to 7, ..."""
    return np.frexp(seen)[1] - 1


def _added_up(begun: Predicted, tokens: Tokens, windows: Windows, bins: int) -> Sums:
    count = len(tokens)
    loss, right, scored = np.zeros(count), np.zeros(count), np.zeros(count)
    sums = Sums(loss, right, scored, np.zeros((count, bins)), np.zeros((count, bins)))
    np.add.at(sums.tokens, windows.document, windows.targets)
    for number in range(bins):
        low, high = np.maximum(windows.first - windows.start, 1 << number), np.minimum(windows.lengths, (2 << number) - 1)
        np.add.at(sums.position_tokens[:, number], windows.document, np.maximum(high - low + 1, 0))
    start = 0
    for block in in_blocks(begun.rows(), _DOCUMENTS_AT_ONCE):
        rows, documents = np.array(block), windows.document[start : start + len(block)]
        np.add.at(sums.loss, documents, rows[:, 0])
        np.add.at(sums.right, documents, rows[:, 1])
        np.add.at(sums.position_loss, documents, rows[:, 2:])
        start += len(block)
    return sums


# --------------------------------------------------------------------------------------------------------------------
# Metrics


def _bits_per_byte(totals: np.ndarray) -> np.ndarray:
    return totals[:, 0] / totals[:, 1] / math.log(2)


def _perplexity(totals: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(totals[:, 0] / totals[:, 1], 700))


def _share(totals: np.ndarray) -> np.ndarray:
    return totals[:, 0] / totals[:, 1]


class _Measured:
    """Metrics as ratios of sums over documents."""

    def __init__(self, tokens: Tokens, sums: Sums, seed: int):
        self.sums, self.seed = sums, seed
        self.bytes = np.array(tokens.text_bytes, dtype=np.float64)

    def ratio(self, name: str, parts: list[np.ndarray], statistic: Any) -> Metric:
        """A statistic of sums with its interval, if there is one."""
        columns = np.stack(parts, axis=1)
        value = float(statistic(columns.sum(axis=0)[None])[0])
        return resampled(name, value, columns, statistic, self.seed, perfect=1.0 if statistic is _share else None)

    def metrics(self, chosen: Any = slice(None)) -> list[Metric]:
        """Of all documents, or of some, bool of shape [documents]."""
        loss, right, tokens = (part[chosen] for part in (self.sums.loss, self.sums.right, self.sums.tokens))
        bits_per_byte, perplexity, token_accuracy = _METRICS
        return [
            self.ratio(bits_per_byte, [loss, self.bytes[chosen]], _bits_per_byte),
            self.ratio(perplexity, [loss, tokens], _perplexity),
            self.ratio(token_accuracy, [right, tokens], _share),
        ]

    def of(self, losses: np.ndarray) -> list[Metric]:
        """Of losses of another model, in nats a document."""
        return [
            self.ratio("bits_per_byte", [losses, self.bytes], _bits_per_byte),
            self.ratio("perplexity", [losses, self.sums.tokens], _perplexity),
        ]

    def positions(self) -> list[dict[str, Any]]:
        """The loss by how many tokens a token has in view, in bits a token."""
        found = []
        for number in range(self.sums.position_loss.shape[1]):
            counts = self.sums.position_tokens[:, number]
            if counts.any():
                chosen = counts > 0
                parts = [self.sums.position_loss[chosen, number], counts[chosen]]
                metric = self.ratio("loss", parts, _bits_per_byte)  # bits: nats by something, over log 2
                bounds = {"from": 1 << number, "to": (2 << number) - 1, "tokens": int(counts.sum())}
                found.append({**bounds, "bits_per_token": metric.value, "low": metric.low, "high": metric.high})
        return found

    def by(self, names: Names) -> list[dict[str, Any]]:
        """Metrics of the documents of each source, or language: the largest ones, and the others together."""
        sizes = {name: float(self.bytes[names.documents(name)].sum()) for name in names.numbers}
        ranked = sorted(sizes, key=lambda name: (-sizes[name], name))
        groups = [(name, names.documents(name)) for name in ranked[:_NAMED]]
        if ranked[_NAMED:]:
            others = np.logical_or.reduce([names.documents(name) for name in ranked[_NAMED:]])
            groups.append((f"{len(ranked) - _NAMED:,} others", others))
        return [{"name": name, **self._of_documents(chosen)} for name, chosen in groups]

    def _of_documents(self, chosen: np.ndarray) -> dict[str, Any]:
        loss, tokens, size = self.sums.loss[chosen], self.sums.tokens[chosen], self.bytes[chosen]
        metric = self.ratio("bits_per_byte", [loss, size], _bits_per_byte)
        return {
            "documents": int(chosen.sum()),
            "tokens": int(tokens.sum()),
            "bytes": int(size.sum()),
            "bits_per_byte": metric.value,
            "low": metric.low,
            "high": metric.high,
            "perplexity": float(_perplexity(np.array([[loss.sum(), tokens.sum()]]))[0]),
        }


# --------------------------------------------------------------------------------------------------------------------
# What is simpler


def _baselines(
    config: EvaluateConfig, tokens: Tokens, vocab_size: int, result: dict[str, Any]
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Name, detail, and the loss of each document in nats."""
    yield "uniform", f"all {vocab_size:,} tokens are as likely", tokens.lengths * math.log(vocab_size)
    detail = "bits that DEFLATE makes of each document by itself, at level 9"
    yield "zlib", detail, np.array(tokens.compressed) * 8 * math.log(2)
    seen, reason = _training_tokens(config.model_name_or_path)
    if seen is None:
        result["trigrams_left_out"] = reason
        return
    stream, end = seen
    model = ngrams.Trigrams(stream, vocab_size, end)
    losses = [model.losses(tokens.read(number, 1, int(length) + 1)).sum() for number, length in enumerate(tokens.lengths)]
    detail = f"interpolated Kneser-Ney, of {len(stream):,} of the tokens that the model was trained on"
    yield "trigrams", detail, np.array(losses)


def _training_tokens(name: str) -> tuple[tuple[np.ndarray, int] | None, str]:
    """Tokens that a model was trained on and the one that ends documents, or why they cannot be had."""
    artefact = enclosing(Path(name)) if Path(name).exists() else None
    if artefact is None or artefact.manifest.stage != "pretrain":
        return None, "the model is not a result of `llmkit pretrain`, so the tokens that it was trained on are not known"
    ports = [port for port in artefact.manifest.inputs if port == "tokens" or port.startswith("mixture.")]
    found = [artefact.input(port) for port in ports]
    if None in found or not found:
        return None, "the token shards that the model was trained on are no longer there"
    try:
        streams = [TokenStream(item.directory, "train", Path(name)) for item in found if item is not None]
    except (ArtefactError, DataError) as failure:
        return None, str(failure)
    read = [stream.read(0, ngrams.MOST_TOKENS // len(streams)) for stream in streams]
    return (np.concatenate(read), streams[0].index.eos_token_id), ""


def _add_baseline(result: dict[str, Any], measured: _Measured, name: str, detail: str, losses: np.ndarray) -> None:
    metrics = measured.of(losses)[: 1 if name == "zlib" else 2]  # it knows no tokens
    result["baselines"].append({"name": name, "detail": detail, "metrics": [metric.as_dict() for metric in metrics]})
    ours, theirs = (loss / math.log(2) / measured.bytes for loss in (measured.sums.loss, losses))
    comparison = compare_means(
        ours, theirs, name, "bits_per_byte", measured.seed, lower_is_better=True, weights=measured.bytes
    )
    result["comparison"].append(asdict(comparison))


# --------------------------------------------------------------------------------------------------------------------
# Texts


def _samples(config: EvaluateConfig, model: Any, tokenizer: Any, tokens: Tokens) -> Iterator[dict[str, Any]]:
    """How the model goes on after prompts, with the most likely tokens and with ones that are drawn."""
    prompts = config.sample_prompts
    if prompts is None:  # the beginnings of the first documents
        lengths = [min(_PROMPT_TOKENS, max(1, int(length) // 2)) for length in tokens.lengths[:_PROMPTS]]
        prompts = [_beginning(tokenizer, tokens, number, length) for number, length in enumerate(lengths)]
    for prompt in prompts:
        greedy = go_on(model, tokenizer, prompt, Decoding(config.sample_tokens, temperature=0), 0)
        sampled = go_on(model, tokenizer, prompt, Decoding(config.sample_tokens), seed_of(config.seed, prompt))
        yield {"prompt": prompt, "greedy": greedy.text, "sampled": sampled.text}


def _beginning(tokenizer: Any, tokens: Tokens, number: int, length: int) -> str:
    """The first tokens of a document as text, and up to three more where they end within a character of four bytes at most."""
    ends = range(length, min(length + 3, int(tokens.lengths[number])) + 1)
    texts = [tokenizer.decode(tokens.read(number, 1, end + 1)) for end in ends]
    return next((text for text in texts if not text.endswith("\ufffd")), texts[0])


def _with_and_without(measured: _Measured, contaminated: np.ndarray) -> dict[str, list[dict[str, Any]]]:
    """The metrics of all documents, of those that the model has not met, and of those that it has."""
    sets = {"all": np.ones_like(contaminated)}
    if contaminated.any():
        sets |= {"without": ~contaminated, "contaminated": contaminated}
    return {name: [metric.as_dict() for metric in measured.metrics(chosen)] for name, chosen in sets.items() if chosen.any()}


def _write_predictions(path: Path, tokens: Tokens, sums: Sums, contaminated: np.ndarray | None) -> None:
    """A row a document, its text cut, with the hash of all of it; written as it is read."""
    columns = {
        "value": sums.loss / math.log(2) / np.array(tokens.text_bytes),
        "loss": sums.loss,
        "tokens": sums.tokens.astype(np.int64),
        "right_tokens": sums.right.astype(np.int64),
        "bytes": np.array(tokens.text_bytes, dtype=np.int64),
    }
    if contaminated is not None:
        columns["contaminated"] = contaminated
    named = {"source": tokens.sources, "language": tokens.languages}
    writer, start = None, 0
    for batch in tokens.told():
        part = slice(start, start + len(batch))
        names = {}
        for column, found in named.items():
            known = list(found.numbers)
            names[column] = [known[number] for number in found.of_document[part]]
        empty = [""] * len(batch)  # there is no label
        told = {name: batch[name] for name in batch.schema.names}
        rows = {**told, "label": empty, "prediction": empty, **names}
        table = pyarrow.table(rows | {name: values[part] for name, values in columns.items()})
        writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
        start += len(batch)
    if writer is not None:
        writer.close()


def _summary(metrics: list[Metric], result: dict[str, Any]) -> Iterator[str]:
    """The result in a few lines for a terminal."""
    yield f"{result['dataset']} ({result['split']}), documents: {result['n']:,}, 95% intervals:"
    for metric in metrics:
        between = "" if metric.low is None else f"  ({metric.low:.4f} to {metric.high:.4f})"
        yield f"  {metric.key:14} {metric.value:.4f}{between}"
    yield from (f"  {item['sentence']}" for item in result["comparison"])
    if leaked := leakage.warning(result.get("leakage", {})):
        yield leaked
    for key, name in (
        ("baselines_left_out", "baselines"),
        ("trigrams_left_out", "trigrams as a baseline"),
    ):
        if key in result:
            yield f"  no {name}: {result[key]}"
