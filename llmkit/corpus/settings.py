"""The settings of the stage `preprocess`. Light to import: the command line reads them before it knows what to do."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from llmkit.config import StageConfig, option
from llmkit.corpus.duplicates.settings import DuplicateSettings
from llmkit.corpus.embedded import STDLIB, embedded_version, unknown_packages
from llmkit.corpus.readers import ENDINGS
from llmkit.errors import ConfigError

_WORDS = ("unicode-run-1", "whitespace-1", "spacy")
EVALUATION_KINDS = (".jsonl", ".csv", ".tsv", ".parquet", ".txt")
_SOURCE_KEYS = ("files", "weight", "license")


@dataclass
class PreprocessConfig(StageConfig):
    """Settings of `llmkit preprocess`."""

    aliases: ClassVar[Mapping[str, str]] = {"input": "train_file"}

    train_file: list[str] | None = option(default=None, role="files", kinds=ENDINGS)
    """Files, directories or patterns of raw text (`input` is another name for it): .txt, .md, .html, .jsonl, .json (one object
    a line), .csv, .tsv, .warc, .wet, MediaWiki's .xml (each also .gz, most also .zst) and .parquet."""
    validation_file: list[str] | None = option(default=None, role="files", kinds=ENDINGS)
    """The same for the validation split; without it, a share of the documents is set aside (`validation_fraction`)."""
    sources: dict[str, Any] = option(factory=dict, identity=False)
    """Several sources by name: `{news: {files: news/, weight: 0.5, license: CC-BY-4.0}, wiki: {files: [wiki.xml.bz2]}}`. The
    name becomes the `source` of the documents. Of a source with a weight below 1, that share of its documents is kept, chosen
    by a hash of the id."""
    dataset_name: str | None = None
    """A data set for `datasets`: its name on the hub, or a local directory. May be combined with files."""
    dataset_config_name: str | None = None
    """The configuration of that data set, where it has several."""
    dataset_split: str = "train"
    """The split of that data set to read."""
    embedded_packages: list[str] | None = None
    """Documentation of this Python environment as a corpus that needs no download: `stdlib`, `installed` (everything
    that is installed, llmkit aside) or names of distributions. It is `stdlib` when nothing else is given."""
    text_column: str = "text"
    """The column (JSON key) that holds the text; the others become the document's metadata."""
    sample_by: Literal["document", "paragraph", "line"] = "document"
    """What of a .txt file is a document: all of it, what stands between blank lines, or a line."""
    markup: Literal["none", "wikitext"] = "none"
    """Markup of .txt and .tokens files: with `wikitext` each article (`= Title =`) is a document, and `@-@` is undone."""
    encoding: str = "utf-8"
    """The encoding of text, JSON and CSV files, for example gb18030 or latin-1, or `auto` to detect that of each file; a byte
    order mark is left out."""
    extractor: Literal["resiliparse", "trafilatura", "plain"] = "resiliparse"
    """What takes the main text out of HTML; `plain` takes all of it. trafilatura is slower and an extra of its own."""
    max_document_chars: int = 1_000_000
    """A document of a .txt or .md file is cut at a line end so that no part is longer, in characters."""

    repair_text: bool = False
    """Whether text that was decoded wrongly somewhere on its way (`schÃ¶n`) is put right, with ftfy."""
    remove_boilerplate: bool = False
    """Whether short lines of navigation, cookie notices, sharing buttons and the like are removed."""
    identify_language: bool = False
    """Whether the language of each document is identified (`languages` does so, too)."""
    languages: list[str] | None = None
    """Keep documents in these languages only: ISO 639-1 codes; `zh` is both `zh-hans` and `zh-hant`."""
    min_language_score: float = 0.5
    """The least probability of the language for a document to be kept, where `languages` are given."""
    remove_foreign_paragraphs: bool = False
    """Whether paragraphs in another language are removed from documents that are kept for their `languages`."""
    pii: Literal["keep", "replace", "drop"] = "keep"
    """Personal data (e-mail, phone and card numbers, keys): kept, replaced by typed placeholders, or the document dropped."""
    pii_types: list[str] | None = None
    """The types of personal data to look for; all by default."""
    filters: list[str] = option(factory=list)
    """Sets of quality rules, in order: gopher_repetition, gopher_quality, c4 (removes lines, too), fineweb."""
    thresholds: dict[str, Any] = option(factory=dict)
    """Other thresholds for their rules, `{gopher_quality: {min_words: 20, max_hash_ratio: null}}`; null switches one off."""
    words: str = "unicode-run-1"
    """What a word is for the quality rules: unicode-run-1, whitespace-1, or spacy (an extra, and slow)."""
    min_chars: int = 1
    """A document with fewer characters after normalisation is rejected (1: only empty ones are)."""
    deduplicate: bool = True
    """Whether a document whose normalised text came before is rejected."""
    deduplicate_paragraphs: bool = False
    """Whether a paragraph that came before in the corpus is removed from the documents that repeat it."""
    near_duplicates: bool = False
    """Whether documents that are nearly the same as an earlier one (MinHash) are rejected."""
    minhash_bands: int = 14
    """Bands of the MinHash signature; more find less similar documents."""
    minhash_rows: int = 8
    """Rows of a band; more ask for more similar documents. 14 bands of 8 rows find half of the pairs of Jaccard 0.72."""
    decontaminate: list[str] | None = option(default=None, role="files", kinds=EVALUATION_KINDS)
    """Evaluation files, directories or patterns; a document that shares a run of 13 words with one is rejected."""

    validation_fraction: float = 0.02
    """The share of documents that go to the validation split, chosen by a hash of their text; 0 for none."""
    seed: int = 0
    """Chooses other documents for validation."""
    max_bad_fraction: float = option(default=0.01, identity=False)
    """The share of rows that may be unusable (broken JSON, wrong encoding, no text) before the stage stops."""
    task_bytes: int = 64 << 20
    """About how much input one task reads, in bytes; larger files are cut."""
    executor: Literal["local", "ray", "slurm"] = option(default="local", identity=False)
    """What runs the tasks: processes of this machine, a Ray cluster, or a Slurm array. The result is the same."""
    workers: int | None = option(default=None, identity=False)
    """Processes at once; as many as there are cores by default."""

    def problems(self) -> Iterator[str]:
        for name, low, high in (("validation_fraction", 0, 0.5), ("max_bad_fraction", 0, 1), ("min_language_score", 0, 1)):
            if not low <= getattr(self, name) <= high:
                yield f"{name} is {getattr(self, name)}; it is a share between {low} and {high}"
        least = {"max_document_chars": 100, "min_chars": 1, "seed": 0, "task_bytes": 1 << 12, "workers": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                yield f"{name} is {value}; {low} is the least"
        if self.min_chars > self.max_document_chars:
            yield f"min_chars ({self.min_chars}) is above max_document_chars ({self.max_document_chars})"
        if self.encoding != "auto":
            yield from _encoding_problem(self.encoding)
        train = self.train_file or self.sources or self.dataset_name
        if self.validation_file and self.embedded_packages is None and not train:
            yield "validation_file is given, but nothing to train on: add train_file, dataset_name or embedded_packages"
        elif not (train or self.packages()):
            yield "there is nothing to read: give train_file, dataset_name or embedded_packages"
        if self.dataset_config_name and not self.dataset_name:
            yield "dataset_config_name is given without dataset_name"
        yield from unknown_packages(self.packages())
        yield from self._source_problems()
        if self.filters or self.thresholds:
            from llmkit.corpus.quality.rules import problems

            yield from problems(self.filters, self.thresholds)
        if self.pii_types is not None:
            from llmkit.corpus.pii import TYPES

            for name in self.pii_types:
                if name not in TYPES:
                    yield f"pii_types: {name!r} is none of {', '.join(TYPES)}"
        if self.pii_types is not None and self.pii == "keep":
            yield "pii_types are given, but pii is keep; say --pii replace or --pii drop"
        if self.languages:
            from llmkit.corpus.languages import CODES

            for code in self.languages:
                if code.lower() not in CODES:
                    known = ", ".join(sorted(CODES))
                    yield f"languages: {code!r} is no language that is identified; known are {known}"
        if self.remove_foreign_paragraphs and not self.languages:
            yield "remove_foreign_paragraphs is given without languages"
        try:
            self.duplicates()
        except ConfigError as failure:
            yield from (f"minhash_{problem}" for problem in failure.problems)
        if self.words not in _WORDS:
            yield f"words: {self.words!r} is none of {', '.join(_WORDS)}"

    def _source_problems(self) -> Iterator[str]:
        for name, source in self.sources.items():
            files = source.get("files") if isinstance(source, dict) else None
            files = [files] if isinstance(files, str) else files
            if not files or not isinstance(files, list) or not all(isinstance(item, str) for item in files):
                yield f"sources: {name!r} has no `files`, a path or a list of paths; write {{{name}: {{files: path}}}}"
                continue
            for key in source.keys() - set(_SOURCE_KEYS):
                yield f"sources: {name}: unknown key {key!r}; known are {', '.join(_SOURCE_KEYS)}"
            weight = source.get("weight", 1)
            if not isinstance(weight, (int, float)) or isinstance(weight, bool) or not 0 < weight <= 1:
                yield (
                    f"sources: {name}: weight is {weight!r}; it is the share of documents to keep, above 0 and at most 1 (a "
                    f"source is seen more than once by its weight in the mixture of `llmkit pretrain`)"
                )

    def duplicates(self) -> DuplicateSettings:
        """What is taken for a duplicate."""
        return DuplicateSettings(
            documents=self.deduplicate,
            paragraphs=self.deduplicate_paragraphs,
            near=self.near_duplicates,
            bands=self.minhash_bands,
            rows=self.minhash_rows,
        )

    def packages(self) -> list[str]:
        """What is read of the embedded corpus."""
        if self.embedded_packages is not None:
            return self.embedded_packages
        return [] if self.train_file or self.sources or self.dataset_name else [STDLIB]

    def source_files(self) -> dict[str, list[str]]:
        """The files of each named source."""
        files = {name: source["files"] for name, source in self.sources.items()}
        return {name: [item] if isinstance(item, str) else list(item) for name, item in files.items()}

    def raw_inputs(self) -> dict[str, str]:
        marks = {f"embedded:{name}": embedded_version([name]) for name in self.packages()}
        path = Path(self.dataset_name).expanduser() if self.dataset_name else None
        if path is not None and path.is_dir():
            marks[f"dataset:{path.name}"] = _files_mark(path)
        return marks

    def file_inputs(self) -> dict[str, tuple[list[str], tuple[str, ...]]]:
        return {f"sources.{name}": (files, ENDINGS) for name, files in self.source_files().items()}

    def result_settings(self, processes: int) -> dict[str, Any]:
        """Of the sources all but the paths, in their order, which is that of the documents."""
        told = [[name, source.get("weight", 1), source.get("license")] for name, source in self.sources.items()]
        return {"sources": told} if told else {}


def _encoding_problem(encoding: str) -> Iterator[str]:
    try:
        newline = "\n".encode(encoding)
        codecs.getincrementaldecoder(encoding)
    except LookupError:
        yield f"encoding: {encoding!r} is unknown to Python; examples: utf-8, gb18030, big5, shift_jis, cp1252, latin-1, auto"
        return
    if newline != b"\n":
        other = "utf-8" if encoding.lower().replace("_", "-").startswith("utf-8") else None
        hint = f"write {other}" if other else f"convert the files with `iconv -f {encoding} -t UTF-8`"
        yield f"encoding: lines cannot be found in {encoding!r}; {hint}"


def _files_mark(directory: Path) -> str:
    """A hash of the names, sizes and times of the files in a directory: changes when one of them is written."""
    digest = hashlib.sha256()
    for file in sorted(item for item in directory.rglob("*") if item.is_file()):
        status = file.stat()
        digest.update(f"{file.relative_to(directory)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "replace"))
    return digest.hexdigest()
