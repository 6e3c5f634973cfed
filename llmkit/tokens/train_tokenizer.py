"""Stage `tokenizer`: documents to a tokenizer of a given vocabulary size, with a report of how well it fits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmkit.config import StageConfig, option
from llmkit.errors import DataError
from llmkit.pipeline.artefact import Artefact

if TYPE_CHECKING:
    from llmkit.pipeline.stage import Workspace

Algorithm = Literal["bpe", "unigram", "wordpiece"]


@dataclass(kw_only=True)
class TokenizerConfig(StageConfig):
    """Settings of the tokenizer stage."""

    corpus: str = option(role="artefact", made_by=("preprocess",))
    """Documents to learn from: the directory of a `preprocess` result. Only its train split is read."""

    model: Algorithm = option("bpe")
    """Algorithm: byte-level `bpe` (Sennrich et al. 2016, on bytes as in GPT-2), `unigram` (Kudo 2018) or `wordpiece`
    (Schuster & Nakajima 2012). Only byte-level BPE can write every text and give it back exactly."""

    vocab_size: int = option(8192)
    """Size of the vocabulary in tokens, special tokens included. The result may be smaller on a small corpus."""

    min_frequency: int = option(2)
    """How often a pair must occur to be merged (bpe, wordpiece)."""

    eos_token: str = option("<|endoftext|>")
    """Token that ends every document; it also begins a text and stands for an unknown piece in byte-level BPE."""

    pad_token: str = option("<|pad|>")
    """Token that fills a batch up to its longest sequence. Never the same as the EOS: a model has to learn the EOS."""

    special_tokens: list[str] = option(factory=list)
    """Further special tokens, such as those of a chat template."""

    model_max_length: int = option(1024)
    """Longest input in tokens that the tokenizer announces to those who use it."""

    max_train_characters: int = option(200_000_000)
    """Learn from at most this many characters; they are the first of the corpus."""

    report_documents: int = option(2000)
    """How many documents of each split the report measures."""

    def problems(self) -> Iterable[str]:
        reserved = 256 if self.model == "bpe" else 1
        least = reserved + 2 + len(self.special_tokens)
        if self.vocab_size <= least:
            yield f"vocab_size: {self.vocab_size} leaves nothing to learn; {self.model} needs more than {least}"
        if self.eos_token == self.pad_token:
            yield "pad_token: is the same as eos_token, so that a model could not learn where a document ends"
        for name in ("min_frequency", "model_max_length", "max_train_characters", "report_documents"):
            if getattr(self, name) < 1:
                yield f"{name}: is {getattr(self, name)}, must be at least 1"


def train_tokenizer(config: TokenizerConfig, workspace: Workspace) -> dict[str, Any]:
    """Train the tokenizer, write it as a `PreTrainedTokenizerFast`, and measure it.

    Returns:
        The tokenizer report.
    """
    from llmkit.tokens.algorithms import build_and_train
    from llmkit.tokens.tokenizer_report import report

    corpus = Artefact.open(config.corpus, "preprocess")
    tokenizer = build_and_train(config, _texts(corpus.directory, config.max_train_characters))
    tokenizer.save_pretrained(str(workspace.directory))
    measured = report(tokenizer, corpus.directory, config.report_documents)
    failures = sum(split["round_trip_failures"] for split in measured["splits"].values())
    if failures and config.model == "bpe":
        raise DataError(f"{failures} documents do not come back from byte-level BPE as they were; please report this as a bug")
    train = measured["splits"]["train"]
    workspace.say(
        f"vocabulary {measured['vocab_size']:,} tokens; {train['bytes_per_token']:.2f} bytes a token on the corpus, "
        f"{train['vocabulary_used']:.0%} of the vocabulary used, {failures} round-trip failures"
    )
    return measured


def _texts(directory: Path, limit: int) -> Iterable[str]:
    from llmkit.corpus.documents import read_batches

    seen = 0
    for batch in read_batches(directory, "train", columns=["text"]):
        for text in batch.column("text").to_pylist():
            yield text[: limit - seen]
            seen += len(text)
            if seen >= limit:
                return
