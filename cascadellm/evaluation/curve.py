"""The deferral curve: quality against the share (or cost) of answers that go on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadellm.calibration.records import CalibrationRecords, Floats
from cascadellm.errors import CalibrationError

__all__ = ["Curve", "Ordering", "Pair"]


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two tiers on the same questions.

    Attributes:
        small: Quality of the smaller tier. Shape (n,), values in [0, 1].
        large: Quality of the larger tier. Shape (n,).
        small_cost: Cost of the smaller tier's call, relative to the larger one's mean.
        large_cost: Cost of the larger tier's call, in the same unit (mean 1).
        costs_known: False when the smaller tier is counted as free for want of costs.
        rows: Indices of these questions in the records.
    """

    small: Floats
    large: Floats
    small_cost: Floats
    large_cost: Floats
    costs_known: bool
    rows: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.small)

    @classmethod
    def of(
        cls,
        records: CalibrationRecords,
        *,
        boundary: int = 0,
        tier_costs: tuple[float, float] | None = None,
    ) -> Pair:
        """Take the tier before a boundary and the last tier, where both are graded.

        Raises:
            CalibrationError: No record is graded for both tiers.
        """
        if records.correct is None:
            raise CalibrationError(
                "evaluation reads `correct` (quality per tier), which these records do not have"
            )
        small, large = records.correct[:, boundary], records.correct[:, -1]
        rows = np.flatnonzero(~np.isnan(small) & ~np.isnan(large))
        if rows.size == 0:
            raise CalibrationError(f"none of the {len(records)} records is graded for both tiers")
        cost = None if records.cost is None else records.cost[rows][:, [boundary, -1]]
        ones = np.ones(len(rows))
        known = True
        if tier_costs is not None:
            if not (tier_costs[0] >= 0 and tier_costs[1] > 0):
                raise CalibrationError(f"tier_costs must be >= 0 and > 0, got {tier_costs!r}")
            small_cost, large_cost = ones * (tier_costs[0] / tier_costs[1]), ones
        elif cost is not None and not np.isnan(cost).any() and cost[:, 1].sum() > 0:
            # one large call is the unit, so that curves of different prices compare
            unit = cost[:, 1].mean()
            small_cost, large_cost = cost[:, 0] / unit, cost[:, 1] / unit
        else:
            small_cost, large_cost, known = 0.0 * ones, ones, False
        return cls(small[rows], large[rows], small_cost, large_cost, known, rows)


@dataclass(frozen=True, slots=True, eq=False)
class Ordering:
    """Questions in the order in which a policy defers them; equal scores form one group.

    Attributes:
        order: Indices, lowest score first; missing scores come before all. Shape (n,).
        starts: Where each group of equal scores begins in `order`. Shape (groups,).
        missing: Number of missing scores; they always defer.
        thresholds: Score of each group (NaN for the missing). Shape (groups,).
    """

    order: NDArray[np.intp]
    starts: NDArray[np.intp]
    missing: int
    thresholds: Floats

    @classmethod
    def of(cls, score: Floats) -> Ordering:
        """Order by score, ties in one group."""
        missing = int(np.isnan(score).sum())
        # a missing score defers first; real -inf scores follow in a group of their own
        order = np.argsort(score, kind="stable")
        if missing:
            order = np.concatenate((order[-missing:], order[:-missing]))
        values = score[order]
        new = np.ones(len(values), dtype=bool)
        new[1:] = values[1:] != values[:-1]
        # NaN differs from NaN, yet the missing are one group
        new[1:missing] = False
        starts = np.flatnonzero(new)
        return cls(order, starts, missing, values[starts])

    def grouped(self, values: Floats) -> Floats:
        """Sum values, given in this order, over the groups. Shape (..., n) -> (..., groups)."""
        if len(self.starts) == len(self.order):
            return values
        return np.add.reduceat(values, self.starts, axis=-1)


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Nodes of a deferral curve, linear between them (ties in expectation).

    Attributes:
        share: Share of questions that go on, rising from 0 to 1. Shape (nodes,).
        quality: Mean quality. Shape (nodes,).
        cost: Mean cost relative to always asking the larger tier. Shape (nodes,).
        threshold: Deferring all scores below it reaches the node. Shape (nodes,).
    """

    share: Floats
    quality: Floats
    cost: Floats
    threshold: Floats

    @classmethod
    def of(cls, pair: Pair, ordering: Ordering) -> Curve:
        """Compute the curve of one ordering."""
        n = len(pair)
        counts = np.diff(np.append(ordering.starts, n))
        zero = np.zeros(1)
        gain = ordering.grouped((pair.large - pair.small)[ordering.order])
        extra = ordering.grouped(pair.large_cost[ordering.order])
        return cls(
            np.concatenate((zero, np.cumsum(counts) / n)),
            pair.small.mean() + np.concatenate((zero, np.cumsum(gain) / n)),
            pair.small_cost.mean() + np.concatenate((zero, np.cumsum(extra) / n)),
            np.append(ordering.thresholds, np.inf),
        )

    def quality_at(self, share: float) -> float:
        """Return the quality when this share of the questions goes on."""
        return float(np.interp(share, self.share, self.quality))

    def thinned(self, nodes: int = 400) -> Curve:
        """Return at most about this many nodes, for drawing."""
        if len(self.share) <= nodes:
            return self
        keep = np.unique(np.linspace(0, len(self.share) - 1, nodes).round().astype(int))
        return Curve(self.share[keep], self.quality[keep], self.cost[keep], self.threshold[keep])
