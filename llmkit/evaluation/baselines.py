"""Two baselines of text classification that cost nothing, measured on the same split."""

from __future__ import annotations

import re

import numpy as np

from llmkit.evaluation.measured import Baseline
from llmkit.tasks.text_classification import Example

# A word of a script with spaces, or one character of a script without (Han, kana, Thai): Chinese runs of characters are
# no words, and counted as such they would make the baseline look weaker than it is.
_TOKEN = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\u0e00-\u0e7f]|[^\W\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\u0e00-\u0e7f]+"
)


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text) or text.split()  # a text of signs alone, an emoji say, is what it is


def majority(train: list[Example], test: list[Example]) -> Baseline:
    """Always the most frequent training label (the first by name among equals)."""
    labels, counts = np.unique([example.label for example in train], return_counts=True)
    label = str(labels[counts.argmax()])
    return Baseline("majority class", f"always {label!r}", [{"prediction": label}] * len(test))


def tfidf(train: list[Example], test: list[Example], seed: int) -> Baseline:
    """TF-IDF of words and word pairs with logistic regression, its strength chosen by cross-validation on the training set."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from threadpoolctl import threadpool_limits

    vectors = TfidfVectorizer(lowercase=True, tokenizer=_tokens, token_pattern=None, ngram_range=(1, 2), sublinear_tf=True)
    model = make_pipeline(vectors, LogisticRegression(max_iter=1000))
    texts, labels = [example.text for example in train], [example.label for example in train]
    folds = int(min(5, np.unique(labels, return_counts=True)[1].min()))
    strength = "C = 1"
    if folds >= 2:
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
        model = GridSearchCV(model, {"logisticregression__C": [0.3, 1.0, 3.0, 10.0, 30.0]}, cv=splitter, scoring="f1_macro")
    with threadpool_limits(1):  # L-BFGS on vectors this small: threads of BLAS only wait for each other, up to 20 times longer
        model.fit(texts, labels)
    if folds >= 2:
        strength = f"C = {model.best_params_['logisticregression__C']:g} by {folds}-fold cross-validation"
    detail = f"words (single Han characters) and pairs, {strength}, trained on the same {len(train):,} examples"
    predictions = [{"prediction": str(label)} for label in model.predict([example.text for example in test])]
    return Baseline("TF-IDF + logistic regression", detail, predictions)
