"""Numbers read off a deferral curve, for the questions given and for resampled ones.

Definitions: `area` is under quality over the share that goes on. `apgr` puts the small tier
at 0 and the large one at 1 (random routing: 0.5). `norm` puts random at 0 and the oracle that
knows both tiers' qualities at 1; it is comparable between pairs of tiers, `apgr` is not.
`cpt50`, `cpt80`: share that must go on to recover 50% or 80% of the gap. `qnc`: least cost,
relative to always asking the larger tier, at which quality is within a margin of it. `peak`:
best quality on the curve. `error_auc`: chance that a right small answer outranks a wrong one.
`ibc_lift`: gain per cost at the point of `qnc`, in percent above that of always asking the
larger tier (arXiv 2310.12963).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from cascadellm.calibration.records import Floats
from cascadellm.evaluation.curve import Ordering, Pair

__all__ = ["METRICS", "MIN_GAP", "Metrics", "Sample", "measure"]

MIN_GAP = 0.01
"""Least gap between the tiers at which `apgr`, `cpt` and `ibc_lift` are given at all."""


@dataclass(frozen=True, slots=True, eq=False)
class Metrics:
    """One value per resample. Shape of each: (resamples,)."""

    area: Floats
    norm: Floats
    apgr: Floats
    cpt50: Floats
    cpt80: Floats
    qnc: Floats
    peak: Floats
    peak_share: Floats
    error_auc: Floats
    ibc_lift: Floats

    @classmethod
    def joined(cls, parts: list[Metrics]) -> Metrics:
        """Join the resamples of several batches."""
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)))


METRICS: tuple[str, ...] = tuple(f.name for f in fields(Metrics))


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """How often each question occurs in each resample, and what follows for the pair.

    Attributes:
        weights: Counts. Shape (resamples, n).
        small: Mean quality of the smaller tier. Shape (resamples,).
        large: Mean quality of the larger tier. Shape (resamples,).
        oracle_area: Area of the oracle's curve. Shape (resamples,).
    """

    weights: Floats
    small: Floats
    large: Floats
    oracle_area: Floats

    @classmethod
    def of(cls, pair: Pair, weights: Floats, oracle: Ordering) -> Sample:
        """Compute what every policy needs once."""
        n = len(pair)
        small, large = weights @ pair.small / n, weights @ pair.large / n
        nodes = _Nodes.of(pair, oracle, weights, small)
        return cls(weights, small, large, _area(nodes.share, nodes.quality))


@dataclass(frozen=True, slots=True, eq=False)
class _Nodes:
    """The curve's nodes and the group sums behind them, per resample."""

    counts: Floats
    share: Floats
    quality: Floats
    drawn: Floats

    @classmethod
    def of(cls, pair: Pair, ordering: Ordering, weights: Floats, small: Floats) -> _Nodes:
        n = len(pair)
        zero = np.zeros((len(weights), 1))
        # gathering is what costs time, so it is done once
        drawn = weights[:, ordering.order]
        counts = ordering.grouped(drawn)
        gain = ordering.grouped(drawn * (pair.large - pair.small)[ordering.order])
        share = np.hstack((zero, np.cumsum(counts, axis=1) / n))
        quality = small[:, None] + np.hstack((zero, np.cumsum(gain, axis=1) / n))
        return cls(counts, share, quality, drawn)


def measure(pair: Pair, ordering: Ordering, sample: Sample, margin: float) -> Metrics:
    """Return all metrics of one policy on every resample."""
    nodes = _Nodes.of(pair, ordering, sample.weights, sample.small)
    share, quality = nodes.share, nodes.quality
    n = len(pair)
    area = _area(share, quality)
    random = (sample.small + sample.large) / 2
    gap = sample.large - sample.small
    # a ratio to a gap near zero says nothing about the policy
    wide = np.where(np.abs(gap) >= MIN_GAP, gap, np.nan)
    oracle_gain = sample.oracle_area - random
    # the first maximum, so the peak is reached at the least share
    best = quality.argmax(axis=1)
    rows = np.arange(len(best))
    place = _crossing(quality, sample.large - margin)
    cost = _costs(pair, ordering, sample, nodes)
    qnc = _at(cost, place)
    with np.errstate(divide="ignore", invalid="ignore"):
        norm = np.where(oracle_gain > 1e-12, (area - random) / oracle_gain, np.nan)
        apgr = (area - sample.small) / wide
        base = wide / (sample.weights @ (pair.large_cost - pair.small_cost) / n)
        spent = qnc - sample.weights @ pair.small_cost / n
        lift = 100 * ((_at(quality, place) - sample.small) / spent - base) / base
    positive = wide > 0
    return Metrics(
        area=area,
        norm=norm,
        apgr=apgr,
        cpt50=_share_for(share, quality, sample.small + 0.5 * gap, positive),
        cpt80=_share_for(share, quality, sample.small + 0.8 * gap, positive),
        qnc=qnc,
        peak=quality[rows, best],
        peak_share=share[rows, best],
        error_auc=_auc(pair, ordering, nodes),
        ibc_lift=np.where(np.isfinite(lift) & positive, lift, np.nan),
    )


def _costs(pair: Pair, ordering: Ordering, sample: Sample, nodes: _Nodes) -> Floats:
    n = len(pair)
    first = sample.weights @ pair.small_cost / n
    each = pair.large_cost[0]
    # constant prices are the usual case and need no second gathering
    if (pair.large_cost == each).all():
        flat: Floats = (first[:, None] + each * nodes.share) / each
        return flat
    extra = np.cumsum(ordering.grouped(nodes.drawn * pair.large_cost[ordering.order]), axis=1) / n
    unit = (sample.weights @ pair.large_cost / n)[:, None]
    cost: Floats = (first[:, None] + np.hstack((np.zeros((len(first), 1)), extra))) / unit
    return cost


def _area(share: Floats, quality: Floats) -> Floats:
    area: Floats = (np.diff(share, axis=1) * (quality[:, 1:] + quality[:, :-1])).sum(axis=1) / 2
    return area


def _crossing(quality: Floats, target: Floats) -> Floats:
    """Return the fractional node at which the curve first reaches the target, NaN if never."""
    # running sums differ from the exact mean in the last digits
    reached = quality >= target[:, None] - 1e-12
    node = reached.argmax(axis=1)
    rows = np.arange(len(node))
    before = np.maximum(node - 1, 0)
    low, high = quality[rows, before], quality[rows, node]
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(high > low, (target - low) / (high - low), 1.0)
    place = np.where(node == 0, 0.0, before + np.clip(part, 0, 1))
    return np.where(reached.any(axis=1), place, np.nan)


def _at(values: Floats, place: Floats) -> Floats:
    known = np.nan_to_num(place)
    low = np.floor(known).astype(int)
    high = np.minimum(low + 1, values.shape[1] - 1)
    rows = np.arange(len(place))
    part = known - low
    found = values[rows, low] * (1 - part) + values[rows, high] * part
    return np.where(np.isnan(place), np.nan, found)


def _share_for(
    share: Floats, quality: Floats, target: Floats, positive: NDArray[np.bool_]
) -> Floats:
    return np.where(positive, _at(share, _crossing(quality, target)), np.nan)


def _auc(pair: Pair, ordering: Ordering, nodes: _Nodes) -> Floats:
    if not ((pair.small == 0) | (pair.small == 1)).all():
        return np.full(len(nodes.counts), np.nan)
    right = ordering.grouped(nodes.drawn * pair.small[ordering.order])
    wrong = nodes.counts - right
    # half of a tie counts as in order
    below = np.cumsum(wrong, axis=1) - wrong / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        auc: Floats = (right * below).sum(axis=1) / (right.sum(axis=1) * wrong.sum(axis=1))
    return auc
