"""Baselines of text classification that cost nothing, measured on the same split."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import numpy as np

from llmkit.corpus.words import words
from llmkit.evaluation.measured import Baseline
from llmkit.tasks import thresholds
from llmkit.tasks.labels import classes_of
from llmkit.tasks.text_classification import Example

# Chinese runs of characters are no words, and counted as such they would make the baseline look weaker than it is.
_WORDS = "words (single Han characters) and pairs"


def _vectors() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(lowercase=True, tokenizer=words, token_pattern=None, ngram_range=(1, 2), sublinear_tf=True)


def majority(train: list[Example], test: list[Example]) -> Baseline:
    """Always the most frequent training label (the first by name among equals)."""
    labels, counts = np.unique([example.label for example in train], return_counts=True)
    label = str(labels[counts.argmax()])
    return Baseline("majority class", f"always {label!r}", [{"prediction": label}] * len(test))


def tfidf(train: list[Example], test: list[Example], seed: int) -> Baseline:
    """TF-IDF of words and word pairs with logistic regression, its strength chosen by cross-validation on the training set."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from threadpoolctl import threadpool_limits

    model = make_pipeline(_vectors(), LogisticRegression(max_iter=1000))
    texts, labels = [example.input() for example in train], [example.label for example in train]
    folds = int(min(5, np.unique(labels, return_counts=True)[1].min()))
    strength = "C = 1"
    if folds >= 2:
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
        model = GridSearchCV(model, {"logisticregression__C": [0.3, 1.0, 3.0, 10.0, 30.0]}, cv=splitter, scoring="f1_macro")
    with threadpool_limits(1):  # L-BFGS on vectors this small: threads of BLAS only wait for each other, up to 20 times longer
        model.fit(texts, labels)
    if folds >= 2:
        strength = f"C = {model.best_params_['logisticregression__C']:g} by {folds}-fold cross-validation"
    detail = f"{_WORDS}, {strength}, trained on the same {len(train):,} examples"
    predictions = [{"prediction": str(label)} for label in model.predict([example.input() for example in test])]
    return Baseline("TF-IDF + logistic regression", detail, predictions)


def most_frequent_set(train: list[Example], test: list[Example]) -> Baseline:
    """Always the set of labels that training has most often (the first by name among equals)."""
    counts = Counter(tuple(classes_of(example.label)) for example in train)
    most = min(counts, key=lambda labels: (-counts[labels], labels))
    return Baseline("most frequent labels", f"always {list(most)}", [{"prediction": list(most)}] * len(test))


def tfidf_several(train: list[Example], test: list[Example], seed: int) -> Baseline:
    """TF-IDF with a logistic regression for each label; strength and thresholds by cross-validation on the training set."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MultiLabelBinarizer
    from threadpoolctl import threadpool_limits

    binariser = MultiLabelBinarizer()
    true = binariser.fit_transform([classes_of(example.label) for example in train])
    texts = [example.input() for example in train]
    folds = KFold(min(5, len(train)), shuffle=True, random_state=seed)
    tried = []
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Label .* is present in all")  # a rare label that a fold has not
        for strength in (0.3, 1.0, 3.0, 10.0, 30.0):
            model = make_pipeline(_vectors(), OneVsRestClassifier(LogisticRegression(C=strength, max_iter=1000)))
            chances = cross_val_predict(model, texts, true, cv=folds, method="predict_proba")
            chosen = thresholds.per_class(chances, true > 0)
            score = f1_score(true, chances >= chosen, average="micro", zero_division=0)
            tried.append((score, -strength, model, chosen))
        _, strength, model, chosen = max(tried, key=lambda item: item[:2])
        given = model.fit(texts, true).predict_proba([example.input() for example in test]) >= chosen
    detail = (
        f"{_WORDS}, a regression for each label, C = {-strength:g} and thresholds by {folds.n_splits}-fold cross-validation, "
        f"trained on the same {len(train):,} examples"
    )
    predictions = [{"prediction": sorted(binariser.classes_[row])} for row in given]
    return Baseline("TF-IDF + logistic regression", detail, predictions)


def mean(train: list[Example], test: list[Example]) -> Baseline:
    """Always the mean of the training labels."""
    value = float(np.mean([float(example.label) for example in train]))  # type: ignore[arg-type]
    return Baseline("mean of training", f"always {value:.4g}", [{"prediction": value}] * len(test))


def tfidf_ridge(train: list[Example], test: list[Example], seed: int) -> Baseline:
    """TF-IDF with ridge regression, its strength chosen by cross-validation on the training set."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, KFold
    from sklearn.pipeline import make_pipeline

    folds = KFold(min(5, len(train)), shuffle=True, random_state=seed)
    strengths = {"ridge__alpha": [0.03, 0.1, 0.3, 1.0, 3.0, 10.0]}
    model = GridSearchCV(make_pipeline(_vectors(), Ridge()), strengths, cv=folds, scoring="neg_mean_squared_error")
    model.fit([example.input() for example in train], [float(example.label) for example in train])  # type: ignore[arg-type]
    strength = f"alpha = {model.best_params_['ridge__alpha']:g} by {folds.n_splits}-fold cross-validation"
    detail = f"{_WORDS}, {strength}, trained on the same {len(train):,} examples"
    found = model.predict([example.input() for example in test])
    return Baseline("TF-IDF + ridge regression", detail, [{"prediction": float(value)} for value in found])
