"""Tests and confidence bounds for a mean loss: exact binomial, Hoeffding-Bentkus, betting.

Every test is of "the risk is above `risk`"; a small value lets us reject that.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from scipy import special

from cascadellm.calibration.records import Floats

__all__ = [
    "Method",
    "betting_pvalue",
    "binomial_pvalue",
    "hoeffding_bentkus_pvalue",
    "least_records",
    "lower_bound",
    "rate_interval",
    "records_needed",
    "upper_bound",
]

Method = Literal["auto", "binomial", "hoeffding_bentkus", "betting"]


def binomial_pvalue(errors: Any, n: Any, risk: float) -> Floats:
    """Return P(Bin(n, risk) <= errors), the exact test for a 0/1 loss.

    Args:
        errors: Number of losses, floored to an integer.
        n: Number of records; 0 gives 1.
        risk: Tested risk in (0, 1).

    Source: arXiv 2110.01052; equals inverting the Clopper-Pearson bound.
    """
    k = np.floor(np.asarray(errors, dtype=np.float64))
    size = np.asarray(n, dtype=np.float64)
    return np.where(size > 0, special.bdtr(np.minimum(k, size), size.astype(int), risk), 1.0)


def hoeffding_bentkus_pvalue(mean: Any, n: Any, risk: float) -> Floats:
    """Return the Hoeffding-Bentkus p-value for a loss in [0, 1].

    Args:
        mean: Mean loss.
        n: Number of records; 0 gives 1.
        risk: Tested risk in (0, 1).

    Source: arXiv 2110.01052, section 3.
    """
    size = np.asarray(n, dtype=np.float64)
    average = np.asarray(mean, dtype=np.float64)
    low = np.minimum(average, risk)
    entropy = special.rel_entr(low, risk) + special.rel_entr(1 - low, 1 - risk)
    hoeffding = np.exp(-size * entropy)
    # ceil of a float product: 3.0000000000000004 must stay 3
    count = np.ceil(np.round(size * average, 9))
    bentkus = math.e * special.bdtr(np.minimum(count, size), size.astype(int), risk)
    return np.where(size > 0, np.minimum(np.minimum(hoeffding, bentkus), 1.0), 1.0)


def betting_pvalue(
    losses: Floats, risk: float, *, level: float, low: float = 0.0, high: float = 1.0
) -> float:
    """Return the p-value of a betting martingale for a loss in [low, high].

    The gambler bets that the mean is below `risk`; capital above 1/level rejects. The bets
    use past values only, so the records must be in random order.

    Args:
        losses: One loss per record, in random order. Shape (n,).
        risk: Tested risk, between low and high.
        level: Level at which the test is used; it tunes the bets, not the validity.
        low: Least possible loss.
        high: Largest possible loss.

    Source: arXiv 2010.09686 (Waudby-Smith and Ramdas), predictable plug-in bets.
    """
    n = len(losses)
    if n == 0:
        return 1.0
    mean0 = (risk - low) / (high - low)
    values = (losses - low) / (high - low)
    steps = np.arange(1, n + 1)
    mean = (0.5 + np.cumsum(values)) / (steps + 1)
    variance = (0.25 + np.cumsum((values - mean) ** 2)) / (steps + 1)
    # a bet may use the past only, else the capital is no martingale
    before = np.concatenate(([0.25], variance[:-1]))
    bets = np.minimum(np.sqrt(2 * math.log(1 / level) / (n * before)), 0.9 / max(1 - mean0, 1e-12))
    capital = np.cumsum(np.log1p(bets * (mean0 - values)))
    return float(min(1.0, math.exp(-max(0.0, float(capital.max())))))


def upper_bound(errors: Any, n: Any, confidence: float) -> Floats:
    """Return the one-sided Clopper-Pearson upper bound on a rate."""
    k = np.asarray(errors, dtype=np.float64)
    size = np.asarray(n, dtype=np.float64)
    inside = special.betaincinv(np.minimum(k, size - 1) + 1, np.maximum(size - k, 1), confidence)
    return np.where(k >= size, 1.0, inside)


def lower_bound(errors: Any, n: Any, confidence: float) -> Floats:
    """Return the one-sided Clopper-Pearson lower bound on a rate."""
    size = np.asarray(n, dtype=np.float64)
    return 1.0 - upper_bound(size - np.asarray(errors, dtype=np.float64), size, confidence)


def rate_interval(count: int, n: int, coverage: float = 0.95) -> tuple[float, float]:
    """Return the two-sided Clopper-Pearson interval of a rate."""
    tail = 1 - (1 - coverage) / 2
    return float(lower_bound(count, n, tail)), float(upper_bound(count, n, tail))


def least_records(risk: float, confidence: float) -> int:
    """Return the least number of records that can certify `risk` when no loss occurs."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-risk) - 1e-9)


def records_needed(mean: float, risk: float, confidence: float) -> int | None:
    """Return about how many records would certify `risk` at this observed mean, or None."""
    if mean >= risk:
        return None
    low, high = 1, 10_000_000
    while low < high:
        middle = (low + high) // 2
        passed = binomial_pvalue(round(mean * middle), middle, risk) <= 1 - confidence
        low, high = (low, middle) if passed else (middle + 1, high)
    return low if low < 10_000_000 else None
