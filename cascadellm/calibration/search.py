"""Search over several thresholds at once, and what a cascade with given thresholds does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cascadellm.calibration.records import CalibrationRecords, Floats
from cascadellm.errors import CalibrationError

__all__ = ["answered_by", "cascade_loss", "labelled", "search_path"]

_STEPS = 50
_ROWS = 20_000
_OVERSHOOT = 2.0


def answered_by(records: CalibrationRecords, thresholds: Floats) -> NDArray[np.intp]:
    """Return the index of the tier that answers each record: the first whose score passes.

    Shape:
        thresholds (tiers - 1,) -> (n,).
    """
    # a comparison with NaN is false, so a missing score defers
    passes = records.scores >= np.asarray(thresholds)[None, :]
    last = np.ones((len(records), 1), dtype=bool)
    answered: NDArray[np.intp] = np.argmax(np.hstack([passes, last]), axis=1)
    return answered


def cascade_loss(records: CalibrationRecords, answered: NDArray[np.intp], loss: str) -> Floats:
    """Return the loss of the whole cascade against its last tier. Shape (n,).

    Raises:
        CalibrationError: The loss is unknown, or the records lack what it reads.
    """
    rows = np.arange(len(records))
    if loss == "disagreement":
        if records.agree is None:
            raise CalibrationError("loss 'disagreement' reads `agree`, which is not recorded")
        agree = np.hstack([records.agree, np.ones((len(records), 1))])
        return 1.0 - agree[rows, answered]
    if loss not in ("one_sided", "signed"):
        raise CalibrationError(
            f"the loss of a whole cascade is one_sided, signed or disagreement, got {loss!r}"
        )
    if records.correct is None:
        raise CalibrationError(f"loss {loss!r} reads `correct`, which is not recorded")
    gap = records.correct[:, -1] - records.correct[rows, answered]
    return gap if loss == "signed" else np.maximum(0.0, gap)


def labelled(records: CalibrationRecords, loss: str) -> CalibrationRecords:
    """Return the records whose loss is known whichever tier answers.

    Raises:
        CalibrationError: No record has all the labels that the loss reads.
    """
    needed = records.agree if loss == "disagreement" else records.correct
    if needed is None:
        # what is missing altogether is named where the loss is computed
        return records
    known = ~np.isnan(needed).any(axis=1)
    if not known.any():
        raise CalibrationError(
            f"none of the {len(records)} records is labelled for every tier, which a joint search "
            f"for the loss {loss!r} needs; grade them, or calibrate one boundary"
        )
    return records if known.all() else records.take(np.flatnonzero(known))


def search_path(
    records: CalibrationRecords,
    *,
    loss: str,
    target_risk: float,
    tier_costs: Sequence[float] | None = None,
) -> list[Floats]:
    """Return thresholds from "defer everything" on, each lowering one of them by one step.

    The next step is the one that saves most for the loss it adds, on these records. The path
    ends where the loss is well beyond the target.

    Raises:
        CalibrationError: No score is present, or the costs do not fit the tiers.
    """
    # the search only proposes a path, so a part of many records is enough
    data = records.take(np.arange(min(len(records), _ROWS)))
    cost = _costs(data, tier_costs)
    ladders = [_ladder(data.scores[:, b]) for b in range(data.tiers - 1)]
    place = [0] * len(ladders)
    path = [np.full(len(ladders), np.inf)]
    loss_now, cost_now = _measure(data, path[0], loss, cost)
    while True:
        best: tuple[float, int, Floats, float, float] | None = None
        for b, ladder in enumerate(ladders):
            if place[b] == len(ladder):
                continue
            trial = path[-1].copy()
            trial[b] = ladder[place[b]]
            trial_loss, trial_cost = _measure(data, trial, loss, cost)
            # a step that adds no loss ranks by what it saves
            ratio = (cost_now - trial_cost) / max(trial_loss - loss_now, 1e-6)
            if best is None or ratio > best[0]:
                best = (ratio, b, trial, trial_loss, trial_cost)
        if best is None:
            return path
        _, b, trial, loss_now, cost_now = best
        place[b] += 1
        path.append(trial)
        if loss_now > _OVERSHOOT * target_risk + 0.02:
            return path


def _measure(
    data: CalibrationRecords, thresholds: Floats, loss: str, cost: Floats
) -> tuple[float, float]:
    answered = answered_by(data, thresholds)
    return float(np.nanmean(cascade_loss(data, answered, loss))), float(cost[answered].mean())


def _ladder(scores: Floats) -> Floats:
    known = scores[~np.isnan(scores)]
    if known.size == 0:
        raise CalibrationError(f"all {len(scores)} scores of a boundary are missing (NaN)")
    values = np.quantile(known, np.linspace(1, 0, _STEPS + 1), method="lower")
    return np.unique([*values, -np.inf])[::-1]


def _costs(data: CalibrationRecords, tier_costs: Sequence[float] | None) -> Floats:
    """Return what a record answered by each tier costs, the earlier tiers included."""
    if tier_costs is not None:
        single = np.asarray(tier_costs, dtype=np.float64)
    elif data.cost is not None and not np.isnan(data.cost).any():
        single = data.cost.mean(axis=0)
    else:
        single = np.ones(data.tiers)
    if single.shape != (data.tiers,):
        raise CalibrationError(f"expected {data.tiers} tier costs, got {tier_costs!r}")
    return np.cumsum(single)
