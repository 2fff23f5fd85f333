"""When calibration refuses, and the sentence it refuses with."""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from cascadellm.calibration import bounds
from cascadellm.calibration.losses import LossColumn, Walk
from cascadellm.calibration.records import CalibrationRecords
from cascadellm.calibration.reuse import reused
from cascadellm.errors import CalibrationError, InsufficientDataError, NoValidThresholdError

__all__ = [
    "check_enough",
    "check_levels",
    "check_unused",
    "no_signal",
    "nothing_certified",
    "signal_pvalue",
    "too_few",
]

_SIGNAL_LEVEL = 0.05
_SIGNAL_ROWS = 100_000


def check_levels(target_risk: float, confidence: float) -> None:
    """Refuse levels outside (0, 1).

    Raises:
        CalibrationError: A level is out of range.
    """
    for name, value in (("target_risk", target_risk), ("confidence", confidence)):
        if not (isinstance(value, (int, float)) and 0 < value < 1):
            raise CalibrationError(f"{name} must lie strictly between 0 and 1, got {value!r}")


def check_unused(records: CalibrationRecords) -> None:
    """Refuse records that the score was tuned on.

    Raises:
        CalibrationError: Some records were used for tuning.
    """
    if used := reused(records):
        raise CalibrationError(
            f"{used} of {len(records)} records were used to tune the score; a promise needs "
            "records that the score has never seen, so split them before fitting"
        )


def check_enough(given: int, target_risk: float, confidence: float) -> None:
    """Refuse fewer records than could ever certify the target.

    Raises:
        InsufficientDataError: There are too few.
    """
    needed = bounds.least_records(target_risk, confidence)
    if given < needed:
        raise too_few(given, needed, target_risk, confidence)


def too_few(
    given: int, needed: int, target_risk: float, confidence: float
) -> InsufficientDataError:
    """Return the error for fewer records than could ever certify the target."""
    return InsufficientDataError(
        f"{needed} labelled records are needed to certify a risk of {target_risk:g} with "
        f"{confidence:.0%} confidence even if no loss occurs; {given} are given, "
        f"{needed - given} are missing",
        needed=needed,
        given=given,
    )


def nothing_certified(
    column: LossColumn, walk: Walk, target_risk: float, confidence: float
) -> NoValidThresholdError:
    """Return the error for a walk that certifies no threshold that accepts something."""
    selective = column.name == "selective"
    useful = np.flatnonzero(walk.accepted > 0)
    if useful.size == 0:
        return NoValidThresholdError(
            "no threshold of the grid accepts any record (scores missing, or all below the "
            "grid); deferring everything stays the safe choice",
            best_bound=1.0,
        )
    n = walk.accepted[useful] if selective else np.full(useful.size, len(column))
    total = np.clip(walk.total[useful], 0, None)
    uppers = bounds.upper_bound(np.ceil(np.round(total, 9)), n, confidence)
    best = int(np.argmin(uppers))
    mean = float(total[best] / n[best])
    more = bounds.records_needed(mean, target_risk, confidence)
    if more is not None and more > n[best]:
        extra = math.ceil(more * (len(column) / n[best] if selective else 1)) - len(column)
        advice = f"at the observed risk about {extra} more labelled records would be needed"
    elif more is not None:
        advice = "an earlier threshold of the walk fails; use a score that orders losses better"
    else:
        advice = "more records would not help; raise target_risk or use a better score"
    return NoValidThresholdError(
        f"no threshold that accepts something is certified at a risk of {target_risk:g} with "
        f"{confidence:.0%} confidence ({len(column)} records); the best one observes a risk of "
        f"{mean:.4g}, bounded by {uppers[best]:.4g}; {advice}",
        best_bound=float(uppers[best]),
    )


def signal_pvalue(column: LossColumn) -> float | None:
    """Return the one-sided rank test of "losses have lower scores", None if one class is empty."""
    present = np.flatnonzero(~np.isnan(column.score))
    # evenly spaced rows suffice for a rank test, and ranking millions is slow
    present = present[:: max(1, len(present) // _SIGNAL_ROWS)]
    lossy = column.value[present] > 0
    score = column.score[present]
    ones, zeros = int(lossy.sum()), int((~lossy).sum())
    if ones == 0 or zeros == 0 or bool((score == score[0]).all()):
        return None
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    # tied scores share the mean of their ranks
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    statistic = float(ranks[~lossy].sum()) - zeros * (zeros + 1) / 2
    n = ones + zeros
    ties = float((counts.astype(float) ** 3 - counts).sum()) / (n * (n - 1))
    spread = math.sqrt(ones * zeros / 12 * (n + 1 - ties))
    return float(special.ndtr((ones * zeros / 2 - statistic) / spread))


def no_signal(column: LossColumn) -> None:
    """Refuse a score that does not put the losses below the rest.

    Raises:
        NoValidThresholdError: The score is constant, or no better than chance.
    """
    present = column.score[~np.isnan(column.score)]
    if len(column) and (column.value > 0).all():
        raise NoValidThresholdError(
            f"one class only: all {len(column)} records would be a loss if accepted; a threshold "
            "would only choose how many. Use another smaller tier",
            best_bound=1.0,
        )
    value = signal_pvalue(column)
    if value is None:
        if present.size and (present == present[0]).all() and (column.value > 0).any():
            raise NoValidThresholdError(
                f"all {present.size} scores are equal ({present[0]:g}), so no threshold can tell "
                "answers apart",
                best_bound=float(np.clip(column.value, 0, None).mean()),
            )
        return
    if value > _SIGNAL_LEVEL:
        raise NoValidThresholdError(
            f"the score does not order the {int((column.value > 0).sum())} losses among "
            f"{len(column)} records better than chance (rank test {value:.2f}); a threshold "
            "would only choose at random. Use another score, or require_signal=False",
            best_bound=float(np.clip(column.value, 0, None).mean()),
        )
