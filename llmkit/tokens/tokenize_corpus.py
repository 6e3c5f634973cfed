"""Stage `tokenize`: documents to token shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.config import StageConfig, option
from llmkit.errors import DataError
from llmkit.pipeline.artefact import Artefact

if TYPE_CHECKING:
    import numpy as np
    import pyarrow

    from llmkit.pipeline.stage import Workspace
    from llmkit.tokens.encoders import Encoder, StandardEncoder

_SPLITS = ("train", "validation")
_LARGE = 2 << 20  # bytes of Parquet; the fast encoder takes longer to start than less takes without it
_GROUPS, _A_GROUP = 20, 10  # row groups and documents in each that both encoders are compared on before
_COMPARED, _RECHECKED = 5_000, 2_000  # characters of a document, before and on the way


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
    """Documents encoded at once by the Rust threads of `tokenizers`, where the fast way is not taken."""

    fast: bool = option(True, identity=False)
    """Encode byte-level BPE by compiled code, several times as fast (`pip install "llmkit[corpus]"`). The ids are the same:
    both ways are compared on documents of the corpus before and while it runs, and small corpora are not worth the start."""

    def problems(self) -> Iterable[str]:
        for name in ("tokens_per_shard", "batch_documents"):
            if getattr(self, name) < 1:
                yield f"{name}: is {getattr(self, name)}, must be at least 1"


def tokenize_corpus(config: TokenizeConfig, workspace: Workspace) -> dict[str, Any]:
    """Encode both splits, an EOS after every document, and write shards with their index.

    Returns:
        Token, document and byte counts of each split and each source, and the vocabulary size.
    """
    from transformers import AutoTokenizer

    from llmkit.corpus.documents import largest
    from llmkit.tokens.encoders import StandardEncoder
    from llmkit.tokens.shards import Index, ShardWriter, tokenizer_hash

    corpus = Artefact.open(config.corpus, "preprocess")
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
    except (OSError, ValueError) as failure:
        raise DataError(f"tokenizer: {config.tokenizer!r} holds none that can be loaded: {failure}") from failure
    if tokenizer.eos_token_id is None or not tokenizer.is_fast:
        raise DataError(f"tokenizer {config.tokenizer} must be a fast one with an EOS token, to end documents with")
    standard = StandardEncoder(tokenizer, config.batch_documents)
    tokenizer.save_pretrained(workspace.directory / "tokenizer")
    metrics: dict[str, Any] = {"vocab_size": len(tokenizer), "dtype": "uint16" if len(tokenizer) <= 1 << 16 else "uint32"}
    fast, metrics["documents_compared"] = None, 0
    if config.fast:
        fast, metrics["documents_compared"] = _fast(corpus.directory, tokenizer, standard, workspace)
    metrics["encoder"] = "fast" if fast else "standard"
    splits = {}
    sources: dict[str, Counter[str]] = {}
    for split in _SPLITS:
        with ShardWriter(workspace.directory, split, metrics["dtype"], config.tokens_per_shard) as writer:
            for names, ids, lengths, text_bytes in _encoded(corpus.directory, split, standard, fast):
                writer.add_all(ids, lengths, text_bytes)
                _count(sources, names, lengths, text_bytes)
        splits[split] = writer.shards
    if not splits["train"]:
        raise DataError(f"corpus {config.corpus} has no text in its train split; there is nothing to tokenize")
    Index(
        tokenizer_sha256=tokenizer_hash(workspace.directory / "tokenizer"),
        eos_token_id=tokenizer.eos_token_id,
        vocab_size=len(tokenizer),
        dtype=metrics["dtype"],
        splits=splits,
    ).save(workspace.directory)
    for split, shards in splits.items():
        metrics[split] = {
            "tokens": sum(shard.tokens for shard in shards),
            "documents": sum(shard.documents for shard in shards),
            "bytes": sum(shard.bytes for shard in shards),
        }
        workspace.say(f"{split}: {metrics[split]['tokens']:,} tokens from {metrics[split]['documents']:,} documents")
    metrics["sources"] = largest(sources)
    return metrics


def _count(sources: dict[str, Counter[str]], names: pyarrow.Array, lengths: np.ndarray, text_bytes: np.ndarray) -> None:
    """Add the documents of a batch to what there is of each source."""
    import numpy as np

    encoded = names.dictionary_encode()
    places = encoded.indices.to_numpy()
    found = encoded.dictionary.to_pylist()
    documents = np.bincount(places, minlength=len(found))
    tokens = np.bincount(places, lengths, len(found))
    size = np.bincount(places, text_bytes, len(found))
    for number, name in enumerate(found):
        added = {"documents": documents[number], "tokens": tokens[number], "bytes": size[number]}
        sources.setdefault(name, Counter()).update({key: int(value) for key, value in added.items()})


def _fast(directory: Path, tokenizer: Any, standard: StandardEncoder, workspace: Workspace) -> tuple[Encoder | None, int]:
    """The fast encoder where it is worth its start and gives the same ids, and on how many documents that was seen."""
    from llmkit.corpus.documents import shards
    from llmkit.tokens.encoders import FastEncoder

    if sum(path.stat().st_size for split in _SPLITS for path in shards(directory, split)) < _LARGE:
        return None, 0
    try:
        fast = FastEncoder.of(tokenizer)
    except ImportError:
        workspace.say('byte-level BPE is encoded ten times as fast with numba: pip install "llmkit[corpus]"')
        return None, 0
    if fast is None:
        return None, 0
    compared = 0
    for batch in _sample(directory):
        texts, names = _beginnings(batch.column("text"), _COMPARED), batch.column("id")
        for number in range(len(texts)):
            if not _agree(fast, standard, texts.slice(number, 1)):
                workspace.say(f"the fast encoder gives other ids for document {names[number]}, and so is not used")
                return None, compared
            compared += 1
    return fast, compared


def _sample(directory: Path) -> Iterator[pyarrow.RecordBatch]:
    """Documents from row groups spread evenly over all shards, the same ones every time."""
    import numpy as np
    import pyarrow.parquet

    from llmkit.corpus.documents import shards

    paths = [path for split in _SPLITS for path in shards(directory, split)]
    groups = [(path, group) for path in paths for group in range(pyarrow.parquet.read_metadata(path).num_row_groups)]
    for place in np.unique(np.linspace(0, len(groups) - 1, _GROUPS).astype(int)):
        path, group = groups[place]
        with pyarrow.parquet.ParquetFile(path) as shard:
            rows = shard.read_row_group(group, columns=["text", "id"]).combine_chunks()
        chosen = np.unique(np.linspace(0, len(rows) - 1, _A_GROUP).astype(int))
        yield from rows.take(chosen).to_batches()


def _beginnings(texts: pyarrow.Array, characters: int) -> pyarrow.Array:
    import pyarrow.compute

    return pyarrow.compute.utf8_slice_codeunits(texts, 0, characters)


def _agree(one: Encoder, other: Encoder, texts: pyarrow.Array) -> bool:
    import numpy as np

    return all(np.array_equal(first, second) for first, second in zip(one.encode(texts), other.encode(texts), strict=True))


def _encoded(
    directory: Path, split: str, standard: StandardEncoder, fast: Encoder | None
) -> Iterator[tuple[pyarrow.Array, np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of documents: the source of each, their tokens, and how many tokens and UTF-8 bytes each has."""
    import pyarrow.compute
    from tqdm import tqdm

    from llmkit.corpus.documents import read_batches

    encoder = fast or standard
    with tqdm(desc=f"tokenize {split}", unit="B", unit_scale=True, disable=None) as progress:
        for batch in read_batches(directory, split, columns=["text", "source"]):
            texts = batch.column("text")
            if fast and not _agree(fast, standard, _beginnings(texts.slice(0, 1), _RECHECKED)):
                raise DataError(
                    f"the fast encoder gives other ids for a document of {directory}, which begins {texts[0].as_py()[:80]!r}; "
                    f"run again with --fast false, and please report this as a bug"
                )
            text_bytes = pyarrow.compute.binary_length(texts).to_numpy()
            yield (batch.column("source"), *encoder.encode(texts), text_bytes)
            progress.update(int(text_bytes.sum()))
