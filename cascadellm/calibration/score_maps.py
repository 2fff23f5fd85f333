"""Fit maps from scores to probabilities, and measure how honest probabilities are."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from cascadellm.calibration.probability import ScoreMap
from cascadellm.calibration.records import Floats
from cascadellm.calibration.reuse import tuning_digests
from cascadellm.errors import CalibrationError, InsufficientDataError

__all__ = ["Reliability", "fit_score_map", "reliability", "save_reliability_plot"]

_LEAST = 20


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """How probabilities compare with what happened.

    Attributes:
        error: Expected calibration error, the mean distance weighted by bin size.
        brier: Mean squared error of the probabilities.
        said: Mean probability per bin. Shape (bins,).
        seen: Share right per bin. Shape (bins,).
        counts: Answers per bin. Shape (bins,).
    """

    error: float
    brier: float
    said: Floats
    seen: Floats
    counts: Floats


def fit_score_map(
    scores: ArrayLike,
    correct: ArrayLike,
    *,
    kind: Literal["platt", "isotonic"] = "platt",
    ids: Sequence[str] | None = None,
) -> ScoreMap:
    """Fit a map from a score to the probability that the answer is right.

    Args:
        scores: Score per record, NaN = missing (left out). Shape (n,).
        correct: Quality in [0, 1], NaN = not graded (left out). Shape (n,).
        kind: `platt` needs few records; `isotonic` fits any rising shape.
        ids: Names of the records, so that threshold calibration can refuse them.

    Raises:
        InsufficientDataError: Fewer than 20 usable records.
        CalibrationError: All are right or all are wrong, or all scores are equal.
    """
    x, y = (np.asarray(v, dtype=np.float64) for v in (scores, correct))
    if x.ndim != 1 or x.shape != y.shape:
        raise CalibrationError(
            f"expected scores and correct of one shape (n,), got {x.shape} and {y.shape}"
        )
    known = np.isfinite(x) & ~np.isnan(y)
    given = y
    x, y = x[known], y[known]
    if len(x) < _LEAST:
        raise InsufficientDataError(
            f"a score map needs at least {_LEAST} graded records with a score, got {len(x)}",
            needed=_LEAST,
            given=len(x),
        )
    if y.min() == y.max():
        raise CalibrationError(
            f"one class only: all {len(y)} records have quality {y[0]:g}, so there is nothing "
            "to map"
        )
    if x.min() == x.max():
        raise CalibrationError(f"all {len(x)} scores are equal ({x[0]:g}); there is nothing to map")
    named = None if ids is None else np.asarray(ids)[known].tolist()
    used = tuning_digests(named, given)
    if kind == "isotonic":
        model = IsotonicRegression(y_min=0, y_max=1).fit(x, y)
        points = tuple(float(v) for v in model.X_thresholds_)
        chances = tuple(float(v) for v in model.y_thresholds_)
        return ScoreMap("isotonic", points, chances, len(x), used)
    if kind != "platt":
        raise CalibrationError(f"kind must be 'platt' or 'isotonic', got {kind!r}")
    slope, intercept = _platt(x, y)
    return ScoreMap("platt", (slope, intercept), (), len(x), used)


def reliability(chances: ArrayLike, correct: ArrayLike, *, bins: int = 10) -> Reliability:
    """Compare probabilities with what happened, in bins of equal size.

    Args:
        chances: Probability per record, NaN = missing (left out). Shape (n,).
        correct: Quality in [0, 1]. Shape (n,).
        bins: Number of bins; equal probabilities stay in one bin.

    Raises:
        CalibrationError: Shapes disagree, nothing is known, or a probability is out of range.
    """
    said, seen = (np.asarray(v, dtype=np.float64) for v in (chances, correct))
    if said.ndim != 1 or said.shape != seen.shape:
        raise CalibrationError(f"expected one shape (n,), got {said.shape} and {seen.shape}")
    known = ~np.isnan(said) & ~np.isnan(seen)
    said, seen = said[known], seen[known]
    if said.size == 0:
        raise CalibrationError("no record has both a probability and a grade")
    if ((said < 0) | (said > 1)).any():
        raise CalibrationError(
            "a probability lies outside [0, 1]; map the score with fit_score_map first"
        )
    edges = np.unique(np.quantile(said, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, said, side="left")
    counts = np.bincount(place, minlength=len(edges) + 1).astype(float)
    kept = counts > 0
    mean_said = np.bincount(place, said, len(edges) + 1)[kept] / counts[kept]
    mean_seen = np.bincount(place, seen, len(edges) + 1)[kept] / counts[kept]
    weight = counts[kept] / counts.sum()
    return Reliability(
        float((weight * np.abs(mean_said - mean_seen)).sum()),
        float(((said - seen) ** 2).mean()),
        mean_said,
        mean_seen,
        counts[kept],
    )


def save_reliability_plot(
    found: dict[str, Reliability], path: str | Path, *, title: str = "Reliability"
) -> Path:
    """Draw probabilities against what happened; the name's ending chooses the format."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(5, 5), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots()
    axes.plot((0, 1), (0, 1), ls="--", color="0.6", label="honest")
    for name, one in found.items():
        axes.plot(one.said, one.seen, "o-", label=f"{name} (ECE {one.error:.3f})")
    axes.set(xlabel="probability said", ylabel="share right", title=title)
    axes.legend(fontsize="small")
    target = Path(path)
    drawn.savefig(target, dpi=150)
    return target


def _platt(x: Floats, y: Floats) -> tuple[float, float]:
    # standardised, so that the solver sees scores of every unit alike
    center, scale = float(x.mean()), float(x.std())
    z = np.concatenate(((x - center) / scale,) * 2)[:, None]
    target = np.repeat((1, 0), len(y))
    # Platt's targets keep a separable sample from an infinite slope
    ones, zeros = y.sum(), (1 - y).sum()
    soft = y * (ones + 1) / (ones + 2) + (1 - y) / (zeros + 2)
    weight = np.concatenate((soft, 1 - soft))
    model = LogisticRegression(C=1e6, solver="newton-cholesky", max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(z, target, sample_weight=weight)
    slope = float(model.coef_[0, 0]) / scale
    return slope, float(model.intercept_[0]) - slope * center
