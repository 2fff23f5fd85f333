"""A law of questions whose risks are known exactly, to check promises against."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy import special

from cascadellm.calibration.records import CalibrationRecords
from cascadellm.errors import NoValidThresholdError

GRID = np.linspace(0.995, 0, 81)
_NODES = (np.arange(4000) + 0.5) / 4000
_WEIGHTS = 12 * _NODES * (1 - _NODES) ** 2 / 4000


def _small(d):
    return 1 / (1 + np.exp(8 * (d - 0.55)))


def _middle(d):
    return 1 / (1 + np.exp(7 * (d - 0.7)))


def _large(d):
    return 1 / (1 + np.exp(6 * (d - 0.85)))


def _score(skill, rng):
    logit = np.log((skill + 1e-3) / (1 - skill + 1e-3))
    return 1 / (1 + np.exp(-(logit + 0.8 * rng.normal(size=len(skill)))))


def draw(n, rng, *, tiers=2, useless=False, overconfident=0.0):
    """Draw records; `overconfident` thins the small tier's right answers at the same score."""
    d = rng.beta(2, 3, n)
    ps = _small(d)
    small = rng.random(n) < ps
    if overconfident:
        small &= rng.random(n) >= overconfident
    right = rng.random(n) < np.minimum(1, _large(d) + 0.08)
    other = rng.random(n) < np.maximum(0, _large(d) - 0.12)
    large = np.where(small, right, other)
    agree = np.where(small == large, np.where(small, 1, rng.random(n) < 0.4), 0)
    score = rng.random(n) if useless else _score(ps, rng)
    if tiers == 2:
        return CalibrationRecords.of(score, np.column_stack([small, large]), agree=agree)
    middle = rng.random(n) < _middle(d)
    scores = np.column_stack([score, _score(_middle(d), rng)])
    same = np.where(middle == large, np.where(middle, 1, rng.random(n) < 0.4), 0)
    return CalibrationRecords.of(
        scores, np.column_stack([small, middle, large]), agree=np.column_stack([agree, same])
    )


def accepted(threshold, skill=_small):
    """Return P(score >= threshold) at every difficulty."""
    if threshold <= 0:
        return np.ones_like(_NODES)
    if threshold >= 1:
        return np.zeros_like(_NODES)
    ps = skill(_NODES)
    logit = np.log((ps + 1e-3) / (1 - ps + 1e-3))
    return special.ndtr((logit - np.log(threshold / (1 - threshold))) / 0.8)


def _large_right(wrong_small):
    after = np.maximum(0, _large(_NODES) - 0.12)
    if wrong_small:
        return after
    return _small(_NODES) * np.minimum(1, _large(_NODES) + 0.08) + (1 - _small(_NODES)) * after


def _disagree():
    ps, right, other = _small(_NODES), np.minimum(1, _large(_NODES) + 0.08), _large_right(True)
    return ps * (1 - right) + (1 - ps) * other + (1 - ps) * (1 - other) * 0.6


def true_risk(threshold, loss, *, useless=False):
    """Return the exact risk of a threshold."""
    keep = np.full_like(_NODES, 1 - threshold) if useless else accepted(threshold)
    ps = _small(_NODES)
    values = {
        "one_sided": (1 - ps) * _large_right(True),
        "signed": _large_right(False) - ps,
        "disagreement": _disagree(),
        "selective": 1 - ps,
        "deferral": np.ones_like(ps),
    }[loss]
    risk = float((_WEIGHTS * keep * values).sum())
    share = float((_WEIGHTS * keep).sum())
    if loss == "deferral":
        return 1 - share
    return risk / max(share, 1e-12) if loss == "selective" else risk


def true_share(threshold):
    """Return the exact share of answers kept."""
    return float((_WEIGHTS * accepted(threshold)).sum())


def true_risk_of_three(first, second, loss="one_sided"):
    """Return the exact risk and share kept of a cascade of three tiers."""
    keep0 = accepted(first)
    keep1 = (1 - keep0) * accepted(second, _middle)
    large, middle = _large_right(False), _middle(_NODES)
    wrong = middle * (1 - large) + (1 - middle) * large + (1 - middle) * (1 - large) * 0.6
    each = {
        "one_sided": ((1 - _small(_NODES)) * _large_right(True), (1 - middle) * large),
        "signed": (large - _small(_NODES), large - middle),
        "disagreement": (_disagree(), wrong),
    }[loss]
    risk = float((_WEIGHTS * (keep0 * each[0] + keep1 * each[1])).sum())
    return risk, float((_WEIGHTS * (keep0 + keep1)).sum())


@lru_cache(maxsize=4)
def _drawn(n, sets, seed, law):
    """Draw the sets once for all the losses that are checked on them."""
    rng = np.random.default_rng(seed)
    return [draw(n, rng, **dict(law)) for _ in range(sets)]


def repeat(
    calibrate: Callable[[CalibrationRecords], float],
    risk: Callable[[float], float],
    *,
    n: int,
    target: float,
    sets: int = 1000,
    seed: int = 7,
    **law,
):
    """Calibrate on fresh sets; return the violation rate and the thresholds (inf = none)."""
    thresholds = []
    for records in _drawn(n, sets, seed, tuple(sorted(law.items()))):
        try:
            thresholds.append(calibrate(records))
        except NoValidThresholdError:
            thresholds.append(np.inf)
    cache: dict[float, float] = {}
    for value in set(thresholds):
        cache[value] = 0.0 if value == np.inf else risk(value)
    rates = np.array([cache[t] for t in thresholds])
    return float((rates > target).mean()), np.array(thresholds)


def most_violations(level, sets=1000):
    """Return the violation rate that a valid method exceeds once in twenty runs."""
    return level + 1.65 * np.sqrt(level * (1 - level) / sets)
