"""Raw files and data sets to rows, as a stream: each row is a `Document` or a `BadRow`, and none is dropped.

    .txt .tokens .md        text, whole or cut by paragraph or line (`sample_by`), or by WikiText article (`markup`)
    .jsonl .json            one JSON object a line
    .csv .tsv               with a header line
    .parquet
    .html .htm              web pages
    .warc .wet .wat         web archives, compressed by record or as a whole
    .xml                    dumps of MediaWiki
    all but .parquet also with .gz, .zst or .bz2 after them

Text is read as bytes and decoded line by line, so that a wrong byte has an address and no file is ever in memory. `units`
cuts large files into parts that are read apart from each other.
"""

from llmkit.corpus.readers.dataset import DatasetReader
from llmkit.corpus.readers.files import ENDINGS, KINDS, Found, InputFile, find_files, make_names_distinct
from llmkit.corpus.readers.lines import LONGEST_ROW
from llmkit.corpus.readers.plan import UNIT_BYTES, units
from llmkit.corpus.readers.read import FileReader, read
from llmkit.corpus.readers.rows import SET_ASIDE, BadRow, Markup, Progress, ReadOptions, Row, SampleBy
from llmkit.corpus.readers.streams import COMPRESSIONS
from llmkit.corpus.readers.tables import ROWS_BEFORE_GIVING_UP
from llmkit.corpus.readers.unit import Unit, printable

__all__ = [
    "COMPRESSIONS",
    "ENDINGS",
    "KINDS",
    "LONGEST_ROW",
    "ROWS_BEFORE_GIVING_UP",
    "SET_ASIDE",
    "UNIT_BYTES",
    "BadRow",
    "DatasetReader",
    "FileReader",
    "Found",
    "InputFile",
    "Markup",
    "Progress",
    "ReadOptions",
    "Row",
    "SampleBy",
    "Unit",
    "find_files",
    "make_names_distinct",
    "printable",
    "read",
    "units",
]
