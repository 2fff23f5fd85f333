"""Fit a gain map: the mean gain of graded records near a score, by a Gaussian kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from cascadellm.calibration.gain import GainMap
from cascadellm.calibration.records import Floats
from cascadellm.calibration.reuse import tuning_digests
from cascadellm.errors import CalibrationError, InsufficientDataError

__all__ = ["fit_gain_map"]

_LEAST = 40
_POINTS = 101
_WIDTHS = (0.02, 0.05, 0.1, 0.2, 0.4, 1.0)
_WEIGHT = 2.0
"""Records that the mean gain of all counts for, where few lie near a score."""


def fit_gain_map(
    scores: ArrayLike,
    correct: ArrayLike,
    *,
    ids: Sequence[str] | None = None,
    seed: int = 0,
) -> GainMap:
    """Fit what the larger tier gains at each score of a verifier.

    The kernel's width is the one whose maps, fitted on other records, predict gains best.

    Args:
        scores: Score per record, NaN = missing (left out). Shape (n,).
        correct: Quality of the smaller and the larger tier, in [0, 1]; NaN = not graded (left
            out). Shape (n, 2).
        ids: Names of the records.
        seed: Seed of the folds.

    Raises:
        InsufficientDataError: Fewer than 40 usable records.
        CalibrationError: Shapes disagree, or all scores are equal.

    Source: arXiv 2310.12963; with one observation the belief of its decision process is this
        posterior mean, its kernel density estimates sharing one width.
    """
    x, labels = np.asarray(scores, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if x.ndim != 1 or labels.shape != (len(x), 2):
        raise CalibrationError(
            f"expected scores of shape (n,) and correct of shape (n, 2), got {x.shape} and "
            f"{labels.shape}"
        )
    known = np.isfinite(x) & ~np.isnan(labels).any(axis=1)
    x, gain = x[known], labels[known, 1] - labels[known, 0]
    if len(x) < _LEAST:
        raise InsufficientDataError(
            f"a gain map needs at least {_LEAST} graded records with a score, got {len(x)}",
            needed=_LEAST,
            given=len(x),
        )
    spread = float(x.max() - x.min())
    if spread == 0:
        raise CalibrationError(f"all {len(x)} scores are equal ({x[0]:g}); nothing to map")
    fold = np.random.default_rng(seed).permutation(len(x)) % 5

    def error(width: float) -> float:
        made = np.empty(len(x))
        for k in range(5):
            held = fold == k
            made[held] = _mean_gain(x[held], x[~held], gain[~held], width * spread)
        return float(((made - gain) ** 2).mean())

    best = min(_WIDTHS, key=error) * spread
    found = np.unique(x)
    points = found if len(found) <= _POINTS else np.quantile(x, np.linspace(0, 1, _POINTS))
    points = np.unique(points)
    named = None if ids is None else np.asarray(ids)[known].tolist()
    used = tuning_digests(named, labels)
    gains = _mean_gain(points, x, gain, best)
    return GainMap(tuple(map(float, points)), tuple(map(float, gains)), best, len(x), used)


def _mean_gain(at: Floats, x: Floats, gain: Floats, width: float) -> Floats:
    found = np.empty(len(at))
    for i, place in enumerate(at):
        near = np.exp(-0.5 * ((x - place) / width) ** 2)
        found[i] = (near @ gain + _WEIGHT * gain.mean()) / (near.sum() + _WEIGHT)
    return found
