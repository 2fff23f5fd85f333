"""Choose a threshold so that a budget is kept: a deferral rate, or a mean cost per call."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadellm.calibration import bounds
from cascadellm.calibration.grid import choose_grid
from cascadellm.calibration.losses import LossColumn, Walk, walk_along
from cascadellm.calibration.records import (
    CalibrationRecord,
    CalibrationRecords,
    Floats,
    as_records,
)
from cascadellm.calibration.refusals import check_enough, check_levels
from cascadellm.calibration.result import Calibration
from cascadellm.calibration.summary import summarise
from cascadellm.calibration.threshold import first_index
from cascadellm.errors import CalibrationError, NoValidThresholdError

__all__ = ["budget_index", "calibrate_budget"]


def calibrate_budget(
    records: CalibrationRecords | Iterable[CalibrationRecord],
    *,
    deferral_rate: float | None = None,
    cost_usd: float | None = None,
    confidence: float = 0.95,
    boundary: int = 0,
    tier_costs: Sequence[float] | None = None,
    cost_cap_usd: float | None = None,
    grid: ArrayLike | None = None,
    score_range: tuple[float, float] | None = None,
    grid_share: float = 0.2,
    seed: int = 0,
) -> Calibration:
    """Return the highest threshold whose budget is certified; no labels are read.

    The safe end is "defer nothing", so the walk goes upwards and stops at the first failure.

    Args:
        records: Records with scores (and costs, for a cost budget with varying costs).
        deferral_rate: Largest share of calls that may go on, in (0, 1).
        cost_usd: Largest mean cost of one call in USD; give this or `deferral_rate`.
        confidence: Probability that the budget holds, in (0, 1).
        boundary: Boundary to calibrate.
        tier_costs: Fixed cost per call of the tier and of the last one. Unit: USD.
        cost_cap_usd: Largest possible cost of one call where costs vary, for example from
            the token limits; a mean without any cap cannot be bounded.
        grid: Thresholds to try.
        score_range: Least and largest value of the score.
        grid_share: Without both, the share of records that place the grid.
        seed: Seed of that share.

    Raises:
        InsufficientDataError: Too few records to certify the rate at all.
        NoValidThresholdError: Even deferring nothing exceeds the budget.
        CalibrationError: The arguments are unusable.
    """
    data = as_records(records)
    rate = _rate(deferral_rate, cost_usd, tier_costs, confidence)
    chosen = choose_grid(
        data,
        boundary=boundary,
        rows=np.arange(len(data)),
        grid=grid,
        score_range=score_range,
        grid_share=grid_share,
        seed=seed,
    )
    target = float(deferral_rate if deferral_rate is not None else cost_usd or 0.0)
    column = _unlabelled(data.scores[chosen.rows, boundary], chosen.rows)
    walk = walk_along(column, chosen.values)
    if rate is not None:
        index, used = _rate_index(walk, len(column), rate, confidence)
    else:
        index, used = _cost_index(data, column, walk, boundary, target, cost_cap_usd, confidence)
    if index is None:
        raise _exceeded(target, float(used[-1]), column)
    method = "Clopper-Pearson" if rate is not None else "Hoeffding-Bentkus"
    result = summarise(
        data,
        column,
        chosen,
        walk,
        index,
        target_risk=target,
        confidence=confidence,
        method=f"fixed sequence from the lowest threshold, {method}",
        boundary=boundary,
        seed=seed,
    )
    return _as_budget(result, float(used[index]), deferral=deferral_rate is not None)


def _unlabelled(scores: Floats, rows: NDArray[np.intp]) -> LossColumn:
    return LossColumn("deferral", scores, np.zeros(len(scores)), rows, 0.0, True)


def _rate_index(walk: Walk, n: int, rate: float, confidence: float) -> tuple[int | None, Floats]:
    check_enough(n, rate, confidence)
    return budget_index(walk, n, rate, 1 - confidence), (n - walk.accepted) / n


def _exceeded(target: float, least: float, column: LossColumn) -> NoValidThresholdError:
    missing = int(np.isnan(column.score).sum())
    return NoValidThresholdError(
        f"the budget of {target:g} is not certified even at the lowest threshold, which uses "
        f"{least:.4g} ({missing} of {len(column)} scores are missing and always defer)",
        best_bound=least,
    )


def _as_budget(result: Calibration, used: float, *, deferral: bool) -> Calibration:
    bound = result.target_risk
    if deferral:
        deferred = result.n - result.n_accepted
        bound = float(bounds.upper_bound(deferred, result.n, result.confidence))
    return replace(
        result,
        loss="deferral" if deferral else "cost",
        risk=used,
        risk_bound=min(bound, result.target_risk),
        notes=tuple(note for note in result.notes if not note.startswith("one class")),
    )


def budget_index(walk: Walk, n: int, rate: float, level: float) -> int | None:
    """Return the index of the highest threshold with P(deferral rate <= rate) certified."""
    values = bounds.binomial_pvalue(n - walk.accepted, n, rate)
    return _from_low_end(values, level)


def _from_low_end(values: Floats, level: float) -> int | None:
    last = first_index(values[::-1], level)
    return None if last is None else len(values) - 1 - last


def _rate(
    deferral_rate: float | None,
    cost_usd: float | None,
    tier_costs: Sequence[float] | None,
    confidence: float,
) -> float | None:
    """Return the budget as a deferral rate, None where costs vary."""
    if (deferral_rate is None) == (cost_usd is None):
        raise CalibrationError("give exactly one of deferral_rate and cost_usd")
    if deferral_rate is None:
        return _fixed_rate(cost_usd, tier_costs)
    check_levels(deferral_rate, confidence)
    return deferral_rate


def _fixed_rate(cost_usd: float | None, tier_costs: Sequence[float] | None) -> float | None:
    if tier_costs is None or cost_usd is None:
        return None
    small, large = (float(c) for c in tier_costs)
    if not small < cost_usd < small + large:
        raise CalibrationError(
            f"a budget of {cost_usd:g} USD per call must lie between {small:g} (never defer) and "
            f"{small + large:g} (always defer); outside, no threshold is needed or possible"
        )
    return (cost_usd - small) / large


def _cost_index(
    data: CalibrationRecords,
    column: LossColumn,
    walk: Walk,
    boundary: int,
    budget: float,
    cap: float | None,
    confidence: float,
) -> tuple[int | None, Floats]:
    if data.cost is None or cap is None:
        raise CalibrationError(
            "a cost budget needs tier_costs=(tier, last tier), or records with costs and "
            "cost_cap_usd= (the most one call can cost)"
        )
    cost = data.cost[column.rows]
    small, large = cost[:, boundary], cost[:, -1]
    if np.isnan(small).any() or np.isnan(large).any():
        missing = int((np.isnan(small) | np.isnan(large)).sum())
        raise CalibrationError(f"{missing} of {len(cost)} records lack the cost of a tier")
    if (highest := float((small + large).max())) > cap or not 0 < budget < cap:
        raise CalibrationError(
            f"cost_cap_usd must exceed the budget {budget:g} and every recorded cost "
            f"(largest {highest:g}), got {cap:g}"
        )
    # what accepting saves is the last tier's call
    saved = replace(column, value=large)
    total = float((small + large).sum()) - walk_along(saved, walk.grid).total
    mean = total / len(column)
    values = bounds.hoeffding_bentkus_pvalue(mean / cap, len(column), budget / cap)
    index = _from_low_end(values, 1 - confidence)
    return index, mean if math.isfinite(float(mean.sum())) else np.nan_to_num(mean)
