"""Fit a learned router: two logistic models on embeddings, with scikit-learn, cross-fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import sklearn
from numpy.typing import ArrayLike, NDArray

from cascadellm.calibration.features import Head
from cascadellm.calibration.fit import fit_head, predict
from cascadellm.calibration.records import Floats
from cascadellm.calibration.reuse import tuning_digests
from cascadellm.calibration.router import LearnedRouter, name_of_embedder
from cascadellm.calibration.summary import versions
from cascadellm.errors import CalibrationError, InsufficientDataError
from cascadellm.policies.grounded import nearest_embedder

__all__ = ["FittedRouter", "fit_router"]

_STRENGTHS = (1e-4, 1e-3, 0.01, 0.1, 1.0)
_LEAST = 40
_FURTHEST = 8.0
_TOGETHER = 256
_TINY = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class FittedRouter:
    """A router and what it says about records that it was not fitted on.

    Attributes:
        router: The router, fitted on all records.
        out_of_fold: Score of each record from a model that has not seen it; for judging the
            router, not for calibrating a threshold of `router`. Shape (n,).
    """

    router: LearnedRouter
    out_of_fold: Floats


def fit_router(
    texts: Sequence[str],
    correct: ArrayLike,
    *,
    embed: Any,
    lengths: ArrayLike | None = None,
    with_length: bool = True,
    target: Literal["gain", "correct"] = "gain",
    ids: Sequence[str] | None = None,
    folds: int = 5,
    name: str = "router",
    seed: int = 0,
) -> FittedRouter:
    """Fit the chances that each of two tiers answers a question rightly.

    Args:
        texts: The questions, as `Request.text` gives them.
        correct: Quality of the smaller and the larger tier, in [0, 1]; NaN = not graded (left
            out). Shape (n, 2).
        embed: Embedding model: a function from texts to vectors, an embedding model of either
            framework, or a `LocalModel`, whose hidden states are then read.
        lengths: Length of each question in characters where `texts` stand for longer ones.
        with_length: Whether the length is an input beside the embedding.
        target: `gain` (send on where the larger tier helps most) or `correct` (where the
            smaller one is likely wrong).
        ids: Names of the records, so that calibration can refuse them.
        folds: Folds of the cross-fitting.
        name: Name of the score in records.
        seed: Seed of the folds.

    Raises:
        InsufficientDataError: Fewer than 40 graded records.
        CalibrationError: Shapes disagree, or the inputs are all equal.
    """
    labels = np.asarray(correct, dtype=np.float64)
    counts = np.asarray([len(t) for t in texts] if lengths is None else lengths, dtype=np.float64)
    if labels.shape != (len(texts), 2) or counts.shape != (len(texts),):
        raise CalibrationError(
            f"expected correct of shape ({len(texts)}, 2) and as many lengths, got "
            f"{labels.shape} and {counts.shape}"
        )
    rows = np.flatnonzero(~np.isnan(labels).any(axis=1))
    if len(rows) < _LEAST:
        raise InsufficientDataError(
            f"a router needs at least {_LEAST} graded records, {len(rows)} are given",
            needed=_LEAST,
            given=len(rows),
        )
    vectors = _embedded(embed, [str(text) for text in texts])
    inputs = np.column_stack((vectors, np.log1p(counts))) if with_length else vectors
    if not (inputs[rows].std(axis=0) > _TINY).any():
        raise CalibrationError("all questions look alike to this embedding; nothing to learn")
    scores, errors = _cross_fit(inputs, labels, rows, folds, seed, target)
    best = min(errors, key=lambda strength: errors[strength])
    centers, scales = _measures(inputs[rows])
    small, large = _heads(_standard(inputs[rows], centers, scales), labels[rows], best)
    router = LearnedRouter(
        tuple(map(float, centers)),
        tuple(map(float, scales)),
        small,
        large,
        embed,
        target,
        with_length,
        name_of_embedder(embed),
        name,
        tuning_digests(ids, labels),
        {"squared_error": errors[best], "l2": best},
        {**versions(), "scikit-learn": sklearn.__version__},
    )
    return FittedRouter(router, scores[best])


def _embedded(embed: Any, texts: list[str]) -> Floats:
    ask = nearest_embedder(embed)
    parts = [ask(texts[i : i + _TOGETHER]) for i in range(0, len(texts), _TOGETHER)]
    try:
        vectors = np.asarray([v for part in parts for v in part], dtype=np.float64)
    except ValueError as error:
        raise CalibrationError(f"the embeddings are no vectors of one length: {error}") from error
    if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
        raise CalibrationError(
            f"expected {len(texts)} finite embeddings of one length, got shape {vectors.shape}"
        )
    return vectors


def _cross_fit(
    inputs: Floats,
    labels: Floats,
    rows: NDArray[np.intp],
    folds: int,
    seed: int,
    target: str,
) -> tuple[dict[float, Floats], dict[float, float]]:
    """Return, per strength, each record's score from models without it, and its mean error."""
    fold = np.random.default_rng(seed).permutation(len(rows)) % folds
    scores = {strength: np.full(len(labels), np.nan) for strength in _STRENGTHS}
    for k in range(folds):
        train, held = rows[fold != k], rows[fold == k]
        centers, scales = _measures(inputs[train])
        seen, unseen = (_standard(inputs[part], centers, scales) for part in (train, held))
        for strength in _STRENGTHS:
            small, large = _heads(seen, labels[train], strength)
            chance = predict(small, unseen)
            scores[strength][held] = (
                chance if target == "correct" else (chance - predict(large, unseen))
            )
    truth = labels[rows, 0] - (labels[rows, 1] if target == "gain" else 0.0)
    errors = {s: float(((found[rows] - truth) ** 2).mean()) for s, found in scores.items()}
    return scores, errors


def _measures(inputs: Floats) -> tuple[Floats, Floats]:
    spread = inputs.std(axis=0)
    return inputs.mean(axis=0), np.where(spread > _TINY, spread, 1.0)


def _standard(inputs: Floats, centers: Floats, scales: Floats) -> Floats:
    return np.clip((inputs - centers) / scales, -_FURTHEST, _FURTHEST)


def _heads(inputs: Floats, labels: Floats, strength: float) -> tuple[Head, Head]:
    return fit_head(inputs, labels[:, 0], strength), fit_head(inputs, labels[:, 1], strength)
