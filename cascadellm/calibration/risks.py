"""Several promises about one threshold: all of them hold together, with one confidence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from cascadellm.calibration import bounds
from cascadellm.calibration.budget import budget_index
from cascadellm.calibration.grid import choose_grid
from cascadellm.calibration.losses import LossColumn, Walk, loss_column, walk_along
from cascadellm.calibration.records import (
    CalibrationRecord,
    CalibrationRecords,
    Floats,
    as_records,
)
from cascadellm.calibration.refusals import check_levels, check_unused, nothing_certified, too_few
from cascadellm.calibration.result import Calibration
from cascadellm.calibration.summary import summarise
from cascadellm.calibration.threshold import restrict, test_loss
from cascadellm.errors import CalibrationError, NoValidThresholdError

__all__ = ["Risk", "calibrate_risks"]


@dataclass(frozen=True, slots=True)
class Risk:
    """One promise: a loss and the upper end of its risk.

    Attributes:
        loss: `one_sided`, `signed`, `selective` or `disagreement`.
        target_risk: Promised upper end, in (0, 1).
    """

    loss: str
    target_risk: float


def calibrate_risks(
    records: CalibrationRecords | Iterable[CalibrationRecord],
    risks: Sequence[Risk],
    *,
    deferral_rate: float | None = None,
    confidence: float = 0.95,
    prefer: Literal["cost", "quality"] = "cost",
    boundary: int = 0,
    grid: ArrayLike | None = None,
    score_range: tuple[float, float] | None = None,
    grid_share: float = 0.2,
    seed: int = 0,
) -> Calibration:
    """Return one threshold at which every promise is certified.

    A threshold passes when the test of every risk passes at the full level (an
    intersection-union test needs no correction); the walk stops where the first one fails. A
    budget is walked from the opposite end, so the level is split in two, and the two walks
    leave an interval of thresholds that may be empty.

    Args:
        records: Labelled records.
        risks: The promises about quality.
        deferral_rate: Largest share of calls that may go on, or None.
        confidence: Probability that all promises hold.
        prefer: With a budget, which end of the interval: the cheapest or the best threshold.
        boundary: Boundary to calibrate.
        grid: Thresholds to try.
        score_range: Least and largest value of the score.
        grid_share: Without both, the share of records that place the grid.
        seed: Seed of every random choice.

    Raises:
        InsufficientDataError: Too few records for one of the promises.
        NoValidThresholdError: No threshold meets all of them.
        CalibrationError: The records or arguments are unusable.
    """
    data = as_records(records)
    level = _level(data, risks, deferral_rate, confidence)
    columns = [loss_column(data, risk.loss, boundary) for risk in risks]
    rows = columns[0].rows
    for column in columns[1:]:
        rows = np.intersect1d(rows, column.rows)
    chosen = choose_grid(
        data,
        boundary=boundary,
        rows=rows,
        grid=grid,
        score_range=score_range,
        grid_share=grid_share,
        seed=seed,
    )
    columns = [restrict(column, chosen.rows) for column in columns]
    index = _last_passing(columns, risks, chosen.values, level, seed)
    walk = walk_along(columns[0], chosen.values)
    targets = [(risk.loss, risk.target_risk) for risk in risks]
    if deferral_rate is not None:
        highest = _within_budget(walk, len(columns[0]), deferral_rate, level, index)
        index = index if prefer == "cost" else highest
        targets.append(("deferral", deferral_rate))
    result = summarise(
        data,
        columns[0],
        chosen,
        walk,
        index,
        target_risk=risks[0].target_risk,
        confidence=confidence,
        method=f"fixed sequence, all of {len(targets)} promises at every threshold",
        boundary=boundary,
        seed=seed,
    )
    return replace(result, loss="+".join(name for name, _ in targets), targets=tuple(targets))


def _level(
    data: CalibrationRecords,
    risks: Sequence[Risk],
    deferral_rate: float | None,
    confidence: float,
) -> float:
    if not risks:
        raise CalibrationError("expected at least one Risk(loss, target_risk), got none")
    check_unused(data)
    for risk in risks:
        check_levels(risk.target_risk, confidence)
    if deferral_rate is None:
        return 1 - confidence
    check_levels(deferral_rate, confidence)
    # two walks from opposite ends may both err
    return (1 - confidence) / 2


def _last_passing(
    columns: Sequence[LossColumn], risks: Sequence[Risk], grid: Floats, level: float, seed: int
) -> int:
    """Return the index of the last threshold at which the walk of every risk passes."""
    n = len(columns[0])
    needed = max(bounds.least_records(r.target_risk, 1 - level) for r in risks)
    if n < needed:
        raise too_few(n, needed, min(r.target_risk for r in risks), 1 - level)
    ends = []
    for risk, column in zip(risks, columns, strict=True):
        tested = test_loss(column, grid, risk.target_risk, level, "auto", seed)
        if tested.index is None or tested.walk.accepted[tested.index] == 0:
            raise nothing_certified(column, tested.walk, risk.target_risk, 1 - level)
        ends.append(tested.index)
    return min(ends)


def _within_budget(walk: Walk, n: int, rate: float, level: float, index: int) -> int:
    """Return the highest threshold that keeps the budget, if quality allows that one."""
    highest = budget_index(walk, n, rate, level)
    if highest is None or highest > index:
        share = float(1 - walk.accepted[index] / n)
        raise NoValidThresholdError(
            "the promises about quality and the budget exclude each other: quality needs "
            f"{share:.1%} of the calls to go on, the budget certifies at most {rate:.1%}",
            best_bound=share,
        )
    return highest
