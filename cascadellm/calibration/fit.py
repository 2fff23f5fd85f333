"""Fit a learned score: two logistic models on hinge features, cross-fitted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import sklearn
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression

from cascadellm.calibration.features import Column, Head, LearnedScore
from cascadellm.calibration.records import CalibrationRecords, Floats
from cascadellm.calibration.reuse import tuning_digests
from cascadellm.calibration.summary import versions
from cascadellm.errors import CalibrationError, InsufficientDataError

__all__ = [
    "Fitted",
    "apply_to",
    "columns_of",
    "expanded",
    "fit_head",
    "fit_learned_score",
    "predict",
]

_STRENGTHS = (0.003, 0.03, 0.3)
_LEAST = 40
_WIDE = 300


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A learned score and what it says about records that it was not fitted on.

    Attributes:
        score: The score, fitted on all records.
        out_of_fold: Score of each record from a model that has not seen it; for judging the
            score, not for calibrating a threshold of `score`. Shape (n,).
    """

    score: LearnedScore
    out_of_fold: Floats


def fit_learned_score(
    features: Mapping[str, ArrayLike],
    correct: ArrayLike,
    *,
    target: Literal["correct", "gain"] = "correct",
    ids: Sequence[str] | None = None,
    folds: int = 5,
    name: str = "learned",
    seed: int = 0,
) -> Fitted:
    """Fit the chances that each tier is right.

    Args:
        features: Name -> one value per record (NaN = missing).
        correct: Quality of the smaller and the larger tier, in [0, 1]. Shape (n, 2).
        target: `correct` (defer where the smaller tier is likely wrong), or `gain` (defer where
            escalating gains most: less bias, more variance).
        ids: Names of the records, so that calibration can refuse them.
        folds: Folds of the cross-fitting.
        name: Name of the score in records.
        seed: Seed of the folds.

    Raises:
        InsufficientDataError: Fewer than 40 graded records.
        CalibrationError: Shapes disagree, or no feature has two values.

    Source: arXiv 2307.02764 (post-hoc deferral), arXiv 2404.10136 (features).
    """
    table = {k: np.asarray(v, dtype=np.float64) for k, v in features.items()}
    labels = np.asarray(correct, dtype=np.float64)
    n = len(labels)
    if labels.ndim != 2 or labels.shape[1] != 2 or any(v.shape != (n,) for v in table.values()):
        raise CalibrationError(
            f"expected correct of shape (n, 2) and features of shape (n,), got {labels.shape} and "
            f"{sorted({v.shape for v in table.values()})}"
        )
    known = ~np.isnan(labels).any(axis=1) & ~_all_missing(table, n)
    if known.sum() < _LEAST:
        raise InsufficientDataError(
            f"a learned score needs at least {_LEAST} graded records with features, "
            f"{int(known.sum())} are given",
            needed=_LEAST,
            given=int(known.sum()),
        )
    rows = np.flatnonzero(known)
    chances = _cross_fit(table, labels, rows, folds, seed)
    # chosen on chances that no model saw, as everything else that is reported
    best = min(_STRENGTHS, key=lambda s: _log_loss(chances[s][rows], labels[rows]))
    columns = columns_of(table, rows)
    inputs = expanded(columns, table, rows)
    small, large = (fit_head(inputs, labels[rows, tier], best) for tier in (0, 1))
    out = chances[best][:, 0] - (chances[best][:, 1] if target == "gain" else 0.0)
    score = LearnedScore(
        columns,
        small,
        large,
        target,
        name,
        tuned_on=tuning_digests(ids, labels),
        cross_fitted={"log_loss": _log_loss(chances[best][rows], labels[rows]), "l2": best},
        versions={**versions(), "scikit-learn": sklearn.__version__},
    )
    return Fitted(score, out)


def _cross_fit(
    table: Mapping[str, Floats],
    labels: Floats,
    rows: NDArray[np.intp],
    folds: int,
    seed: int,
) -> dict[float, Floats]:
    """Return, per strength, each record's chances from models that have not seen it."""
    fold = np.random.default_rng(seed).permutation(len(rows)) % folds
    chances = {s: np.full((len(labels), 2), np.nan) for s in _STRENGTHS}
    for k in range(folds):
        train, held = rows[fold != k], rows[fold == k]
        columns = columns_of(table, train)
        inputs, outside = expanded(columns, table, train), expanded(columns, table, held)
        for strength in _STRENGTHS:
            for tier in (0, 1):
                head = fit_head(inputs, labels[train, tier], strength)
                chances[strength][held, tier] = predict(head, outside)
    return chances


def apply_to(
    score: LearnedScore, records: CalibrationRecords, features: Mapping[str, ArrayLike]
) -> CalibrationRecords:
    """Return the records with this score, marked with what the score was tuned on.

    Raises:
        CalibrationError: The records have more than two tiers.
    """
    if records.tiers != 2:
        raise CalibrationError(f"expected records of two tiers, got {records.tiers}")
    n = len(records)
    table = {k: np.asarray(v, dtype=np.float64) for k, v in features.items()}
    absent = np.full(n, np.nan)
    table = {c.name: table.get(c.name, absent) for c in score.columns}
    inputs = expanded(score.columns, table, np.arange(n))
    small = predict(score.small, inputs)
    value = small if score.target == "correct" else small - predict(score.large, inputs)
    value = np.where(_all_missing(table, n), np.nan, value)
    return replace(
        records,
        scores=value[:, None],
        score_names=(score.name,),
    ).described([score])


def _all_missing(table: Mapping[str, Floats], n: int) -> NDArray[np.bool_]:
    if not table:
        raise CalibrationError("expected at least one feature, got none")
    missing = np.isnan(np.column_stack(list(table.values())))
    return np.asarray(missing.all(axis=1)).reshape(n)


def columns_of(table: Mapping[str, Floats], rows: NDArray[np.intp]) -> tuple[Column, ...]:
    """Return how features enter a model of these rows.

    Raises:
        CalibrationError: No feature takes two values there.
    """
    found = []
    for name, values in table.items():
        part = values[rows]
        known = part[~np.isnan(part)]
        if known.size < 2 or not (spread := float(known.std())) > 1e-12:
            continue
        center = float(known.mean())
        knots = np.unique(np.quantile((known - center) / spread, (0.1, 0.25, 0.5, 0.75, 0.9)))
        missing = bool(known.size < part.size)
        found.append(Column(name, center, spread, tuple(float(k) for k in knots), missing))
    if not found:
        raise CalibrationError("no feature takes two different values; nothing can be learned")
    return tuple(found)


def expanded(
    columns: Sequence[Column], table: Mapping[str, Floats], rows: NDArray[np.intp]
) -> Floats:
    """Return the inputs of a model, one row per record."""
    parts = []
    for column in columns:
        values = table[column.name][rows]
        missing = np.isnan(values)
        z = np.where(missing, 0.0, (values - column.center) / column.scale)
        # an outlier must not reach where the training said nothing
        z = np.clip(z, -8, 8)
        parts.append(z)
        parts += [np.maximum(0.0, z - knot) for knot in column.knots]
        if column.can_miss:
            parts.append(missing.astype(float))
    return np.column_stack(parts)


def fit_head(inputs: Floats, labels: Floats, strength: float) -> Head:
    """Return a logistic model of quality in [0, 1]; `strength` is its L2 penalty per record."""
    mean = float(np.clip(labels.mean(), 1e-4, 1 - 1e-4))
    if labels.min() == labels.max():
        return Head((0.0,) * inputs.shape[1], math.log(mean / (1 - mean)))
    # a graded quality enters as a right and a wrong answer, weighted
    both = np.vstack((inputs, inputs))
    target = np.repeat((1, 0), len(labels))
    weight = np.concatenate((labels, 1 - labels))
    keep = weight > 0
    # Newton's matrix grows with the square of the inputs, and an embedding has many
    solver = "newton-cholesky" if inputs.shape[1] <= _WIDE else "lbfgs"
    model = LogisticRegression(C=1 / (strength * len(labels)), solver=solver, max_iter=200)
    model.fit(both[keep], target[keep], sample_weight=weight[keep])
    return Head(tuple(float(w) for w in model.coef_[0]), float(model.intercept_[0]))


def predict(head: Head, inputs: Floats) -> Floats:
    """Return the chance of each row of inputs. Shape (n,)."""
    value = head.intercept + inputs @ np.asarray(head.weights)
    chance: Floats = 1 / (1 + np.exp(-np.clip(value, -40, 40)))
    return chance


def _log_loss(chances: Floats, labels: Floats) -> float:
    safe = np.clip(chances, 1e-6, 1 - 1e-6)
    return float(-(labels * np.log(safe) + (1 - labels) * np.log(1 - safe)).mean())
