"""Rows from the JSON of SQuAD: articles, their paragraphs, and the questions about each (Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmkit.errors import DataError


def rows_of(path: Path, data: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Places and values, one a question: id, title, context, question and answers; of v2.0, no answers where it is impossible.

    Entries that are no articles, as `datasets` writes them under the same key, are rows as they stand.

    Args:
        data: what stands under `data` in the file.

    Raises:
        DataError: an article, a paragraph or a question lacks what makes it one.
    """
    for number, article in enumerate(data, start=1):
        if not isinstance(article, dict):
            raise DataError(f"{path}: entry {number} of `data` is no object")
        if "paragraphs" not in article:
            yield f"{path}: entry {number}", article
            continue
        title = str(article.get("title") or f"article {number}")
        for paragraph in _objects(article, "paragraphs", f"{path}: {title}"):
            for count, question in enumerate(_objects(paragraph, "qas", f"{path}: {title}, a paragraph"), start=1):
                identity = str(question.get("id", f"question {count}"))
                values = {"id": identity, "title": title, "context": paragraph.get("context"), **question}
                if question.get("is_impossible"):
                    values["answers"] = []
                yield f"{path}: {title} / {identity}", values


def _objects(parent: Any, name: str, place: str) -> list[dict[str, Any]]:
    found = parent.get(name)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise DataError(f"{place} has no list of objects {name!r}, which SQuAD's JSON has")
    return found
