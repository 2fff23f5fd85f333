"""Choose one threshold so that the risk is certified: fixed-sequence testing on a grid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadellm.calibration import bounds
from cascadellm.calibration.grid import choose_grid
from cascadellm.calibration.losses import LossColumn, Walk, loss_column, walk_along
from cascadellm.calibration.records import (
    CalibrationRecord,
    CalibrationRecords,
    Floats,
    as_records,
)
from cascadellm.calibration.refusals import (
    check_enough,
    check_levels,
    check_unused,
    no_signal,
    nothing_certified,
)
from cascadellm.calibration.result import Calibration
from cascadellm.calibration.summary import summarise
from cascadellm.errors import CalibrationError

__all__ = ["Tested", "calibrate_threshold", "first_index", "pvalues_along", "restrict", "test_loss"]


def calibrate_threshold(
    records: CalibrationRecords | Iterable[CalibrationRecord],
    *,
    target_risk: float,
    confidence: float = 0.95,
    loss: str = "one_sided",
    boundary: int = 0,
    method: str = "auto",
    grid: ArrayLike | None = None,
    score_range: tuple[float, float] | None = None,
    grid_share: float = 0.2,
    require_signal: bool = True,
    seed: int = 0,
) -> Calibration:
    """Return the lowest certified threshold: P(risk <= target_risk) >= confidence.

    The grid is fixed before labels are read, walked from "defer everything" downwards, and
    the walk stops at the first threshold whose test does not pass. An answer is accepted iff
    score >= threshold; a missing score (NaN) is never accepted.

    Args:
        records: Labelled records, in any order.
        target_risk: Promised upper end of the risk, in (0, 1).
        confidence: Probability that the promise holds, in (0, 1).
        loss: `one_sided` (wrong where the last tier is right), `signed` (the exact quality
            gap), `selective` (error rate of accepted answers), or `disagreement` (no labels).
        boundary: Boundary to calibrate; the tier before it is compared with the last tier.
        method: `auto`, or one of `binomial`, `hoeffding_bentkus`, `betting`.
        grid: Thresholds to try. Overrides `score_range`.
        score_range: Least and largest value of the score: 101 even steps between them. By
            default what the score declares, where both ends are finite.
        grid_share: Without both, the share of labelled records set aside to place the grid.
        require_signal: Refuse a score that does not order the losses better than chance.
        seed: Seed of the set-aside share and of the order in betting tests.

    Raises:
        InsufficientDataError: Fewer records than could certify the target without any loss.
        NoValidThresholdError: No threshold that accepts something can be certified.
        CalibrationError: The records or arguments are unusable.

    Source: arXiv 2110.01052 (Learn then Test), fixed-sequence testing.
    """
    data = as_records(records)
    check_levels(target_risk, confidence)
    check_unused(data)
    column = loss_column(data, loss, boundary)
    check_enough(len(column), target_risk, confidence)
    chosen = choose_grid(
        data,
        boundary=boundary,
        rows=column.rows,
        grid=grid,
        score_range=score_range,
        grid_share=grid_share,
        seed=seed,
    )
    column = restrict(column, chosen.rows)
    check_enough(len(column), target_risk, confidence)
    tested = test_loss(column, chosen.values, target_risk, 1 - confidence, method, seed)
    if tested.index is None or tested.walk.accepted[tested.index] == 0:
        raise nothing_certified(column, tested.walk, target_risk, confidence)
    # accepting everything needs no order, so a useless score does no harm there
    kept_all = tested.walk.accepted[tested.index] == tested.walk.accepted[-1]
    if require_signal and not kept_all:
        no_signal(column)
    return summarise(
        data,
        column,
        chosen,
        tested.walk,
        tested.index,
        target_risk=target_risk,
        confidence=confidence,
        method=f"fixed sequence, {tested.method.replace('_', '-')} test",
        boundary=boundary,
        seed=seed,
    )


@dataclass(frozen=True, slots=True)
class Tested:
    """A walk along the grid and where it ended: `index` is the last certified threshold."""

    walk: Walk
    index: int | None
    method: str


def test_loss(
    column: LossColumn, grid: Floats, target_risk: float, level: float, method: str, seed: int
) -> Tested:
    """Test every threshold from the safe end until the first failure."""
    method = _method(column, method)
    walk = walk_along(column, grid)
    start = 0
    if column.name == "selective":
        start = _selective_start(walk, target_risk, 1 - level)
        if start == len(grid):
            return Tested(walk, None, method)
    if method == "betting":
        return Tested(walk, _betting_walk(column, walk, start, target_risk, level, seed), method)
    values = pvalues_along(column, walk, target_risk, method)
    return Tested(walk, first_index(values, level, start), method)


def _selective_start(walk: Walk, target_risk: float, confidence: float) -> int:
    """Return where the walk begins, chosen from accepted counts alone, never from labels.

    The least count that can pass needs zero errors, so one unlucky label would end the walk;
    the count that passes at half the target risk is used where the records allow it.
    """
    least = bounds.least_records(target_risk, confidence)
    roomy = bounds.records_needed(target_risk / 2, target_risk, confidence) or least
    count = roomy if roomy <= walk.accepted[-1] / 2 else least
    return int(np.searchsorted(walk.accepted, count))


def pvalues_along(column: LossColumn, walk: Walk, target_risk: float, method: str) -> Floats:
    """Return the p-value of every threshold (binomial or Hoeffding-Bentkus)."""
    n = walk.accepted if column.name == "selective" else np.full(len(walk.grid), len(column))
    if method == "binomial":
        # running sums of 0/1 losses are whole numbers up to rounding
        return bounds.binomial_pvalue(np.round(walk.total), n, target_risk)
    mean = walk.total / np.maximum(n, 1)
    return bounds.hoeffding_bentkus_pvalue(mean, n, target_risk)


def first_index(values: Floats, level: float, start: int = 0) -> int | None:
    """Return the last index before the first p-value above the level, None if there is none."""
    # a p-value that is NaN must not pass
    failed = np.flatnonzero(~(values[start:] <= level))
    end = start + int(failed[0]) if failed.size else len(values)
    return end - 1 if end > start else None


def _betting_walk(
    column: LossColumn, walk: Walk, start: int, target_risk: float, level: float, seed: int
) -> int | None:
    order = np.random.default_rng([seed, 2]).permutation(len(column))
    score, value = column.score[order], column.value[order]
    index = None
    # lazily, because one betting test reads all records
    for j in range(start, len(walk.grid)):
        accepted = score >= walk.grid[j]
        losses = value[accepted] if column.name == "selective" else np.where(accepted, value, 0.0)
        if not bounds.betting_pvalue(losses, target_risk, level=level, low=column.low) <= level:
            break
        index = j
    return index


def _method(column: LossColumn, method: str) -> str:
    if method == "auto":
        if column.name == "signed":
            return "betting"
        return "binomial" if column.binary else "hoeffding_bentkus"
    if method not in ("binomial", "hoeffding_bentkus", "betting"):
        raise CalibrationError(
            f"method must be auto, binomial, hoeffding_bentkus or betting, got {method!r}"
        )
    if method == "binomial" and (not column.binary or column.name == "signed"):
        raise CalibrationError(
            "method 'binomial' needs losses of 0 and 1; these are graded or signed, "
            "use method='auto'"
        )
    if method == "hoeffding_bentkus" and column.name == "signed":
        raise CalibrationError("a signed loss needs method='betting', got 'hoeffding_bentkus'")
    return method


def restrict(column: LossColumn, rows: NDArray[np.intp]) -> LossColumn:
    """Keep the given records only."""
    if len(rows) == len(column.rows):
        return column
    keep = np.isin(column.rows, rows)
    return LossColumn(
        column.name,
        column.score[keep],
        column.value[keep],
        column.rows[keep],
        column.low,
        column.binary,
    )
