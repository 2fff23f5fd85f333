"""Thresholds for cascades of more than two tiers: boundary by boundary, or searched jointly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadellm.calibration import bounds
from cascadellm.calibration.losses import ASSUMPTIONS
from cascadellm.calibration.records import (
    CalibrationRecord,
    CalibrationRecords,
    Floats,
    as_records,
)
from cascadellm.calibration.refusals import check_levels, check_unused, too_few
from cascadellm.calibration.result import Calibration
from cascadellm.calibration.search import answered_by, cascade_loss, labelled, search_path
from cascadellm.calibration.summary import common_assumptions, versions
from cascadellm.calibration.threshold import calibrate_threshold
from cascadellm.errors import CalibrationError, NoValidThresholdError

__all__ = ["calibrate_cascade", "search_cascade"]

T = TypeVar("T")


def calibrate_cascade(
    records: CalibrationRecords | Iterable[CalibrationRecord],
    *,
    target_risk: float,
    confidence: float = 0.95,
    loss: str = "one_sided",
    shares: Sequence[float] | None = None,
    grids: Sequence[ArrayLike] | None = None,
    score_ranges: Sequence[tuple[float, float]] | None = None,
    grid_share: float = 0.2,
    seed: int = 0,
) -> Calibration:
    """Calibrate the boundaries in turn; the promise is about the whole cascade.

    Each boundary gets a share of the risk and of the error probability. Its loss counts every
    record whose score passes, also those an earlier tier answers, so the sum bounds the
    cascade's risk whatever the other thresholds are. A boundary at which nothing can be
    certified gets the threshold `inf` (it defers everything) and a note.

    Args:
        records: Labelled records with one score per boundary.
        target_risk: Promised upper end of the cascade's risk against the last tier.
        confidence: Probability that the promise holds.
        loss: `one_sided` or `disagreement`; others need `search_cascade`.
        shares: Share of risk and level per boundary, summing to 1; even by default.
        grids: Thresholds to try, per boundary.
        score_ranges: Least and largest score, per boundary.
        grid_share: Without both, the share of records that place the grids.
        seed: Seed of that share.

    Raises:
        InsufficientDataError: Too few records for the smallest share.
        NoValidThresholdError: No boundary can be certified.
        CalibrationError: The records or arguments are unusable.
    """
    data = as_records(records)
    _check_additive(loss)
    found: list[Calibration | None] = []
    failures: dict[int, NoValidThresholdError] = {}
    for boundary, part in enumerate(_shares(shares, data.tiers - 1)):
        try:
            found.append(
                calibrate_threshold(
                    data,
                    target_risk=target_risk * part,
                    confidence=1 - (1 - confidence) * part,
                    loss=loss,
                    boundary=boundary,
                    grid=_nth(grids, boundary),
                    score_range=_nth(score_ranges, boundary),
                    grid_share=grid_share,
                    require_signal=False,
                    seed=seed,
                )
            )
        except NoValidThresholdError as error:
            # deferring everything here is safe, so the other boundaries may still be used
            found.append(None)
            failures[boundary] = error
    certified = [c for c in found if c is not None]
    if not certified:
        raise failures[0]
    return _describe(
        data,
        tuple(math.inf if c is None else c.threshold for c in found),
        certified[0],
        loss=loss,
        target_risk=target_risk,
        confidence=confidence,
        method=f"boundaries in turn; {certified[0].method}",
        notes=_turn_notes(certified, failures),
        seed=seed,
    )


def search_cascade(
    records: CalibrationRecords | Iterable[CalibrationRecord],
    *,
    target_risk: float,
    confidence: float = 0.95,
    loss: str = "one_sided",
    tier_costs: Sequence[float] | None = None,
    search_share: float = 0.5,
    seed: int = 0,
) -> Calibration:
    """Search all thresholds together on one split and certify them on the other.

    The search lowers, step by step, the threshold that saves most for the loss it adds; this
    fixes a path from "defer everything". The path is then walked on the other split, testing
    the loss of the whole cascade, up to the first failure.

    Args:
        records: Labelled records with one score per boundary.
        target_risk: Promised upper end of the cascade's risk against the last tier.
        confidence: Probability that the promise holds.
        loss: `one_sided`, `signed` or `disagreement`.
        tier_costs: Cost per call of each tier, to weigh the steps; the mean recorded costs,
            else even steps, by default. Unit: USD.
        search_share: Share of the records for the search.
        seed: Seed of the split and of the order in betting tests.

    Raises:
        InsufficientDataError: Too few records are left to certify the target.
        NoValidThresholdError: No point of the path that keeps an answer is certified.
        CalibrationError: The records or arguments are unusable.

    Source: arXiv 2210.07913 (Pareto testing): search, then fixed-sequence tests on fresh data.
    """
    given = as_records(records)
    check_levels(target_risk, confidence)
    check_unused(given)
    data = labelled(given, loss)
    searching, testing = data.split(search_share, seed=seed)
    path = search_path(searching, loss=loss, target_risk=target_risk, tier_costs=tier_costs)
    level = 1 - confidence
    if len(testing) < (needed := bounds.least_records(target_risk, confidence)):
        raise too_few(len(testing), needed, target_risk, confidence)
    # betting needs records in random order, and files are often sorted
    order = np.random.default_rng([seed, 3]).permutation(len(testing))
    best: Floats | None = None
    tested = 0
    # fixed sequence: the first failure ends the walk, whatever lies beyond
    for thresholds in path:
        values = cascade_loss(testing, answered_by(testing, thresholds), loss)[order]
        if not _whole_pvalue(values, target_risk, level, signed=loss == "signed") <= level:
            break
        best, tested = thresholds, tested + 1
    if best is None or (answered_by(testing, best) == data.tiers - 1).all():
        raise NoValidThresholdError(
            f"no thresholds that keep an answer are certified at a risk of {target_risk:g} with "
            f"{confidence:.0%} confidence ({len(testing)} records); collect more records, raise "
            "target_risk or use better scores",
            best_bound=1.0,
        )
    return _describe(
        testing,
        tuple(float(t) for t in best),
        None,
        loss=loss,
        target_risk=target_risk,
        confidence=confidence,
        method=f"joint search on {len(searching)} records, fixed sequence over {tested} points",
        notes=_left_out(given, data),
        seed=seed,
    )


def _left_out(given: CalibrationRecords, used: CalibrationRecords) -> tuple[str, ...]:
    missing = len(given) - len(used)
    if not missing:
        return ()
    return (f"{missing} of {len(given)} records lack a tier's label and were left out",)


def _turn_notes(
    certified: Sequence[Calibration], failures: Mapping[int, NoValidThresholdError]
) -> tuple[str, ...]:
    return (
        *(f"boundary {b} defers everything: {error}" for b, error in failures.items()),
        *(f"boundary {c.boundaries[0]}: {note}" for c in certified for note in c.notes),
    )


def _nth(values: Sequence[T] | None, place: int) -> T | None:
    return None if values is None else values[place]


def _check_additive(loss: str) -> None:
    if loss not in ("one_sided", "disagreement"):
        raise CalibrationError(
            f"boundaries can be calibrated in turn for one_sided and disagreement, got {loss!r}; "
            "use search_cascade, which tests the whole cascade"
        )


def _whole_pvalue(values: Floats, target_risk: float, level: float, *, signed: bool) -> float:
    n = len(values)
    if signed:
        return bounds.betting_pvalue(values, target_risk, level=level, low=-1.0)
    if ((values == 0) | (values == 1)).all():
        return float(bounds.binomial_pvalue(values.sum(), n, target_risk))
    return float(bounds.hoeffding_bentkus_pvalue(values.mean(), n, target_risk))


def _shares(shares: Sequence[float] | None, count: int) -> list[float]:
    parts = [1 / count] * count if shares is None else [float(s) for s in shares]
    if len(parts) != count or min(parts) <= 0 or abs(sum(parts) - 1) > 1e-9:
        raise CalibrationError(
            f"shares must be {count} positive numbers that sum to 1, got {shares!r}"
        )
    return parts


def _describe(
    data: CalibrationRecords,
    thresholds: tuple[float, ...],
    first: Calibration | None,
    *,
    loss: str,
    target_risk: float,
    confidence: float,
    method: str,
    notes: tuple[str, ...],
    seed: int,
) -> Calibration:
    answered = answered_by(data, np.asarray(thresholds))
    values = cascade_loss(data, answered, loss)
    known = ~np.isnan(values)
    n = int(known.sum())
    kept = int((answered[known] < data.tiers - 1).sum())
    risk = float(values[known].mean())
    cost, interval, large = _cascade_cost(data, answered)
    result = Calibration(
        thresholds=thresholds,
        loss=loss,
        target_risk=target_risk,
        confidence=confidence,
        method=method,
        risk=risk,
        risk_bound=target_risk,
        n=n if first is None else first.n,
        n_accepted=kept,
        share_kept=kept / n,
        share_kept_interval=bounds.rate_interval(kept, n),
        boundaries=tuple(range(len(thresholds))),
        score_names=data.score_names,
        cost_usd=cost,
        cost_interval=interval,
        large_cost_usd=large,
        assumptions=(ASSUMPTIONS[loss], *common_assumptions("see method")),
        notes=notes,
        seed=seed,
        fingerprint=data.fingerprint,
        ids=data.id_digests,
        versions=versions(),
    )
    return result if first is None else replace(result, assumptions=first.assumptions)


def _cascade_cost(
    data: CalibrationRecords, answered: NDArray[np.intp]
) -> tuple[float | None, tuple[float, float] | None, float | None]:
    if data.cost is None or np.isnan(data.cost).any():
        return None, None, None
    paid = np.arange(data.tiers)[None, :] <= answered[:, None]
    each = np.where(paid, data.cost, 0.0).sum(axis=1)
    mean = float(each.mean())
    half = 1.96 * float(each.std(ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else 0.0
    return mean, (mean - half, mean + half), float(data.cost[:, -1].mean())
