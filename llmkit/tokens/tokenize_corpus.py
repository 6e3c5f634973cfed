"""Stage `tokenize`: documents to token shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.config import StageConfig, option
from llmkit.errors import DataError
from llmkit.pipeline.artefact import Artefact

if TYPE_CHECKING:
    from llmkit.pipeline.stage import Workspace


@dataclass(kw_only=True)
class TokenizeConfig(StageConfig):
    """Settings of the tokenize stage."""

    corpus: str = option(role="artefact", made_by=("preprocess",))
    """Documents: the directory of a `preprocess` result."""

    tokenizer: str = option(role="artefact", made_by=("tokenizer",))
    """Tokenizer: the directory of a `tokenizer` result, or of any model with a fast tokenizer that has an EOS token."""

    tokens_per_shard: int = option(100_000_000)
    """Size of a shard file in tokens."""

    batch_documents: int = option(256, identity=False)
    """Documents encoded at once by the Rust threads of `tokenizers`."""

    def problems(self) -> Iterable[str]:
        for name in ("tokens_per_shard", "batch_documents"):
            if getattr(self, name) < 1:
                yield f"{name}: is {getattr(self, name)}, must be at least 1"


def tokenize_corpus(config: TokenizeConfig, workspace: Workspace) -> dict[str, Any]:
    """Encode both splits, an EOS after every document, and write shards with their index.

    Returns:
        Token, document and byte counts of each split, and the vocabulary size.
    """
    from transformers import AutoTokenizer

    from llmkit.tokens.shards import Index, ShardWriter, tokenizer_hash

    corpus = Artefact.open(config.corpus, "preprocess")
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
    except (OSError, ValueError) as failure:
        raise DataError(f"tokenizer: {config.tokenizer!r} holds none that can be loaded: {failure}") from failure
    if tokenizer.eos_token_id is None or not tokenizer.is_fast:
        raise DataError(f"tokenizer {config.tokenizer} must be a fast one with an EOS token, to end documents with")
    # `<|endoftext|>` in a text is six or so ordinary tokens: only we may end a document.
    tokenizer.backend_tokenizer.encode_special_tokens = True
    tokenizer.backend_tokenizer.no_truncation()  # a tokenizer is saved with how it was last called
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(workspace.directory / "tokenizer")
    dtype = "uint16" if len(tokenizer) <= 1 << 16 else "uint32"
    splits = {}
    for split in ("train", "validation"):
        with ShardWriter(workspace.directory, split, dtype, config.tokens_per_shard) as writer:
            for ids, text_bytes in _encoded(corpus.directory, split, tokenizer, config.batch_documents):
                writer.add(ids, text_bytes)
        splits[split] = writer.shards
    if not splits["train"]:
        raise DataError(f"corpus {config.corpus} has no text in its train split; there is nothing to tokenize")
    Index(
        tokenizer_sha256=tokenizer_hash(workspace.directory / "tokenizer"),
        eos_token_id=tokenizer.eos_token_id,
        vocab_size=len(tokenizer),
        dtype=dtype,
        splits=splits,
    ).save(workspace.directory)
    metrics: dict[str, Any] = {"vocab_size": len(tokenizer), "dtype": dtype}
    for split, shards in splits.items():
        metrics[split] = {
            "tokens": sum(shard.tokens for shard in shards),
            "documents": sum(shard.documents for shard in shards),
            "bytes": sum(shard.bytes for shard in shards),
        }
        workspace.say(f"{split}: {metrics[split]['tokens']:,} tokens from {metrics[split]['documents']:,} documents")
    return metrics


def _encoded(directory: Path, split: str, tokenizer: Any, batch_documents: int) -> Iterator[tuple[list[int], int]]:
    from tqdm import tqdm

    from llmkit.corpus.documents import read_batches

    backend, eos = tokenizer.backend_tokenizer, tokenizer.eos_token_id
    with tqdm(desc=f"tokenize {split}", unit="B", unit_scale=True, disable=None) as progress:
        for batch in read_batches(directory, split, columns=["text"]):
            texts = batch.column("text").to_pylist()
            for start in range(0, len(texts), batch_documents):
                chunk = texts[start : start + batch_documents]
                for text, encoding in zip(chunk, backend.encode_batch_fast(chunk, add_special_tokens=False), strict=True):
                    size = len(text.encode("utf-8"))
                    progress.update(size)
                    yield [*encoding.ids, eos], size
