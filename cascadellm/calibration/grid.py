"""Grids of thresholds that are fixed before any label is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadellm.calibration.records import CalibrationRecords, Floats
from cascadellm.errors import CalibrationError, InsufficientDataError

__all__ = ["GRID_SIZE", "Grid", "choose_grid"]

GRID_SIZE = 101
_LEAST_FOR_QUANTILES = 20


@dataclass(frozen=True, slots=True)
class Grid:
    """Thresholds in falling order, and the records that are left for the tests.

    Attributes:
        values: Thresholds, strictly falling.
        rows: Indices of the records whose labels may be read.
        origin: Where the grid comes from, in words.
    """

    values: Floats
    rows: NDArray[np.intp]
    origin: str


def choose_grid(
    records: CalibrationRecords,
    *,
    boundary: int,
    rows: NDArray[np.intp],
    grid: ArrayLike | None = None,
    score_range: tuple[float, float] | None = None,
    grid_share: float = 0.2,
    seed: int = 0,
) -> Grid:
    """Fix the grid: the caller's, else even steps over the range, else quantiles.

    Quantiles come from records without labels if there are enough of them, else from a
    random share of the records whose labels are then never read.

    Args:
        records: The records.
        boundary: Boundary whose scores are meant.
        rows: Indices of the records that have labels.
        grid: The caller's thresholds.
        score_range: Least and largest value the score can take; what the records' score
            declares, by default.
        grid_share: Share of labelled records to set aside, in (0, 1).
        seed: Seed of the choice of that share.

    Raises:
        CalibrationError: The grid or range is unusable.
        InsufficientDataError: Too few scores are left for quantiles.
    """
    everything = rows
    labelled = np.zeros(len(records), dtype=bool)
    labelled[rows] = True
    if grid is not None:
        return Grid(_falling(grid), everything, "given by the caller")
    declared = records.score_ranges[boundary] if records.score_ranges else None
    if (score_range := score_range or declared) is not None:
        low, high = (float(v) for v in score_range)
        if not (np.isfinite([low, high]).all() and low < high):
            raise CalibrationError(
                f"score_range must be two finite numbers, low < high, got {score_range!r}"
            )
        values = np.linspace(high, low, GRID_SIZE)
        return Grid(values, everything, f"{GRID_SIZE} even steps over [{low:g}, {high:g}]")
    scores = records.scores[:, boundary]
    spare = np.flatnonzero(~labelled & ~np.isnan(scores))
    origin = f"quantiles of {len(spare)} unlabelled scores"
    if len(spare) < _LEAST_FOR_QUANTILES:
        count = max(_LEAST_FOR_QUANTILES, round(grid_share * len(everything)))
        if count >= len(everything):
            raise InsufficientDataError(
                f"{count} scores are needed to place a grid, and only {len(everything)} labelled "
                "records are given; pass score_range= or grid=, or collect more records",
                needed=2 * count,
                given=len(everything),
            )
        # a seed of its own: the order of betting tests must not depend on the grid
        picked = np.random.default_rng([seed, 1]).permutation(everything)
        spare, everything = picked[:count], np.sort(picked[count:])
        origin = f"quantiles of {count} scores set aside, whose labels are not read"
    known = scores[spare]
    known = known[~np.isnan(known)]
    if known.size == 0:
        raise CalibrationError(
            f"all {len(spare)} scores are missing (NaN); nothing can be accepted"
        )
    return Grid(_quantile_grid(known), everything, origin)


def _quantile_grid(known: Floats) -> Floats:
    levels = np.linspace(1, 0, GRID_SIZE)
    # `lower` keeps real scores, so that tied scores stay on one side of each threshold
    values = np.quantile(known, levels, method="lower")
    # the last step accepts every scored answer, also those below the scores seen here
    return _falling([*values, -np.inf])


def _falling(values: ArrayLike | Sequence[float]) -> Floats:
    array = np.asarray(values, dtype=np.float64).ravel()
    if array.size == 0 or np.isnan(array).any():
        raise CalibrationError(f"grid: expected at least one number and no NaN, got {array!r}")
    return np.unique(array)[::-1]
