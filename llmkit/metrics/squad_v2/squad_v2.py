"""SQuAD's exact match and F1 for `evaluate`, for questions with and without answers."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np

from llmkit.evaluation.question_answering import mean_score
from llmkit.metrics import face
from llmkit.tasks.answer_scores import is_chinese, score


class SquadV2(face.Face):
    """Exact match and F1 of SQuAD v1.1 and v2.0, and of CMRC 2018 where answers are Chinese, from 0 to 100, with their
    intervals; of all questions, and of those with (HasAns) and without an answer (NoAns) where there are both."""

    kinds = [
        {
            "predictions": {"id": datasets.Value("string"), "prediction_text": datasets.Value("string")},
            "references": {
                "id": datasets.Value("string"),
                "answers": datasets.Sequence({"text": datasets.Value("string"), "answer_start": datasets.Value("int32")}),
            },
        }
    ]

    def _compute(self, predictions: Any, references: Any, seed: int = 0) -> dict[str, Any]:
        given = {row["id"]: row["prediction_text"] for row in predictions}
        missing = [row["id"] for row in references if row["id"] not in given]
        if missing:
            raise ValueError(f"{len(missing)} questions have no prediction, {missing[0]} for one; give an empty one for none")
        answers = [list(row["answers"]["text"]) for row in references]
        scores = np.array(
            [
                score(given[row["id"]], texts, is_chinese("".join(texts)))
                for row, texts in zip(references, answers, strict=True)
            ]
        )
        has_answer = np.array([bool(texts) for texts in answers])
        parts: list[tuple[str | None, np.ndarray]] = [(None, np.ones(len(scores), dtype=bool))]
        if has_answer.any() and not has_answer.all():
            parts += [("HasAns", has_answer), ("NoAns", ~has_answer)]
        found = [
            mean_score(name, scores[chosen, place], seed, np.arange(chosen.sum()), label)
            for label, chosen in parts
            for place, name in enumerate(("exact", "f1"))
        ]
        return face.told(found, 100.0)
