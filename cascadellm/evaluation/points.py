"""Operating points: what a cascade with fixed thresholds does on these records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cascadellm.calibration import bounds
from cascadellm.calibration.records import CalibrationRecords, Floats
from cascadellm.calibration.result import Calibration, Interval
from cascadellm.calibration.search import answered_by
from cascadellm.errors import CalibrationError

__all__ = ["OperatingPoint", "operating_point"]


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A cascade with fixed thresholds, measured.

    Attributes:
        name: Name of the policy.
        thresholds: One per boundary.
        n: Records.
        deferral_rate: Share of the records that go on past the first tier.
        deferral_interval: Its 95% interval (Clopper-Pearson).
        share_last: Share that reaches the last tier.
        quality: Mean quality of the cascade.
        gap: Quality of the last tier minus the cascade's (negative = the cascade is better).
        gap_interval: Its 95% interval (paired, normal).
        cost: Mean cost relative to always asking the last tier, None where costs are unknown.
        target_risk: The promise, where the thresholds carry one.
        reused: Records here that the thresholds were calibrated on.
        promise: The promise as a sentence, where there is one.
    """

    name: str
    thresholds: tuple[float, ...]
    n: int
    deferral_rate: float
    deferral_interval: Interval
    share_last: float
    quality: float
    gap: float
    gap_interval: Interval
    cost: float | None
    target_risk: float | None = None
    reused: int = 0
    promise: str = ""


def operating_point(
    records: CalibrationRecords,
    name: str,
    thresholds: Calibration | Sequence[float],
    *,
    tier_costs: Sequence[float] | None = None,
) -> OperatingPoint:
    """Measure one cascade; a boundary without threshold defers everything.

    Raises:
        CalibrationError: The thresholds do not fit, are of a score that the records do not
            have, or nothing is graded.
    """
    values, reused, target = _thresholds(records, name, thresholds)
    if isinstance(thresholds, Calibration):
        records = _of_its_score(records, name, thresholds)
    last = records.tiers - 1
    if records.correct is None:
        raise CalibrationError("an operating point reads `correct`, which is not recorded")
    answered = answered_by(records, values)
    quality = records.correct[np.arange(len(records)), answered]
    gap = records.correct[:, -1] - quality
    known = ~np.isnan(gap)
    n = int(known.sum())
    if n == 0:
        raise CalibrationError(f"none of the {len(records)} records is graded")
    deferred = int((answered[known] > 0).sum())
    half = 1.96 * float(gap[known].std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    mean = float(gap[known].mean())
    return OperatingPoint(
        name,
        tuple(float(v) for v in values),
        n,
        deferred / n,
        bounds.rate_interval(deferred, n),
        float((answered[known] == last).mean()),
        float(quality[known].mean()),
        mean,
        (mean - half, mean + half),
        _cost(records, answered, tier_costs),
        target,
        reused,
        thresholds.promise if isinstance(thresholds, Calibration) else "",
    )


def _thresholds(
    records: CalibrationRecords, name: str, thresholds: Calibration | Sequence[float]
) -> tuple[Floats, int, float | None]:
    """Return one threshold per boundary, the records used before, and the promise."""
    last = records.tiers - 1
    # a boundary that was not calibrated must not accept anything
    values = np.full(last, math.inf)
    if not isinstance(thresholds, Calibration):
        if len(thresholds) != last:
            raise CalibrationError(f"{name!r}: expected {last} threshold(s), got {thresholds!r}")
        values[:] = thresholds
        return values, 0, None
    if max(thresholds.boundaries) >= last:
        raise CalibrationError(
            f"{name!r} was calibrated for boundary {max(thresholds.boundaries)}, these records "
            f"have {records.tiers} tiers"
        )
    values[list(thresholds.boundaries)] = thresholds.thresholds
    used = set(thresholds.ids)
    reused = sum(d in used for d in records.id_digests) if used else 0
    if thresholds.fingerprint == records.fingerprint:
        reused = len(records)
    return values, reused, thresholds.target_risk


def _of_its_score(records: CalibrationRecords, name: str, made: Calibration) -> CalibrationRecords:
    """Return the records with the score that the thresholds are for."""
    scores = records.scores
    for boundary, wanted in zip(made.boundaries, made.score_names, strict=True):
        have = records.score_names[boundary]
        # records made by hand do not name their scores
        if wanted == have or "score" in (wanted.split("_")[0], have.split("_")[0]):
            continue
        if boundary != 0 or wanted not in records.columns:
            raise CalibrationError(
                f"{name!r} was calibrated for {wanted!r} at boundary {boundary}, these records "
                f"are scored by {have!r}; score them alike (CLI: --score {wanted})"
            )
        scores = scores.copy()
        scores[:, boundary] = records.columns[wanted]
    return replace(records, scores=scores)


def _cost(
    records: CalibrationRecords, answered: np.ndarray, tier_costs: Sequence[float] | None
) -> float | None:
    if tier_costs is not None:
        cost = np.tile(np.asarray(tier_costs, dtype=np.float64), (len(records), 1))
    elif records.cost is not None and not np.isnan(records.cost).any():
        cost = records.cost
    else:
        return None
    # every tier up to the one that answers has been paid
    paid = np.arange(records.tiers)[None, :] <= answered[:, None]
    large = cost[:, -1].mean()
    return float(np.where(paid, cost, 0.0).sum(axis=1).mean() / large) if large > 0 else None
