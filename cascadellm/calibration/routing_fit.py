"""Fit a routing plan: cross-fitted estimates of quality, and the price that meets a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import sklearn
from numpy.typing import NDArray

from cascadellm.calibration.features import Column, Head
from cascadellm.calibration.fit import columns_of, expanded, fit_head, predict
from cascadellm.calibration.records import (
    CalibrationRecord,
    CalibrationRecords,
    Floats,
    as_records,
)
from cascadellm.calibration.routing import Estimate, RoutingPlan, subsets
from cascadellm.calibration.summary import versions
from cascadellm.errors import CalibrationError, InsufficientDataError

__all__ = ["FittedRouting", "fit_cascade_routing"]

_LEAST = 40
_MOST_TIERS = 5
_DRAWS = 64
_STRENGTH = 0.01
_HALVINGS = 60
_APART = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class FittedRouting:
    """A plan and what its way of deciding had reached on records its estimates had not seen.

    Attributes:
        plan: The plan, its estimates fitted on all records.
        quality: Mean quality, mixed as the plan mixes.
        cost_usd: Mean cost of a question, likewise; the budget, where money can be spent.
    """

    plan: RoutingPlan
    quality: float
    cost_usd: float


def fit_cascade_routing(
    records: CalibrationRecords | Iterable[CalibrationRecord],
    *,
    budget_usd: float | None = None,
    price: float | None = None,
    tier_costs: Sequence[float] | None = None,
    with_length: bool = True,
    folds: int = 5,
    name: str = "cascade_routing",
    seed: int = 0,
) -> FittedRouting:
    """Fit what every tier is likely worth, before it is asked and as scores come in.

    Args:
        records: Graded records with one score per boundary, and costs.
        budget_usd: Mean cost of a question. The plan mixes two prices so that, on these records,
            exactly that is spent. Unit: USD.
        price: Quality that a dollar must bring; give this or the budget. Unit: quality per USD.
        tier_costs: Cost of a call of each tier in place of the recorded ones. Unit: USD.
        with_length: Whether the length of the question is an input, where records have it.
        folds: Folds of the cross-fitting.
        name: Name of the plan in records.
        seed: Seed of folds, draws and mixing.

    Raises:
        InsufficientDataError: Fewer than 40 records that are graded at every tier.
        CalibrationError: The arguments are unusable, costs are unknown, or the budget is below
            what the cheapest way costs.

    Source: arXiv 2410.10347.
    """
    data = as_records(records)
    _check(data, budget_usd, price)
    world = _World.of(data, tier_costs, with_length, folds, seed)
    if price is not None:
        prices, share = (price, price), 1.0
    else:
        prices, share = _mixed(world, float(budget_usd or 0.0))
    dear, cheap = (world.spends(one) for one in prices)
    quality, cost = (share * a + (1 - share) * b for a, b in zip(dear, cheap, strict=True))
    plan = RoutingPlan(
        world.estimates,
        tuple((float(a), float(b)) for a, b in world.lines),
        prices,
        share,
        seed,
        name,
        data.id_digests,
        {"quality": quality, "cost_usd": cost},
        {**versions(), "scikit-learn": sklearn.__version__},
    )
    return FittedRouting(plan, quality, cost)


@dataclass(frozen=True, slots=True, eq=False)
class _World:
    """Records with out-of-fold estimates, so that a price can be tried out.

    Attributes:
        correct: Quality per tier. Shape (n, tiers).
        cost: Cost per tier. Shape (n, tiers).
        lines: Cost of a call and of each character, per tier. Shape (tiers, 2).
        guessed: Cost that the lines say. Shape (n, tiers).
        quality: Per set of answered tiers, quality expected by models that had not seen the
            record. Each of shape (n, tiers).
        estimates: The same from all records.
        values: Per set and next tier, best quality by draw; filled on first use.
    """

    correct: Floats
    cost: Floats
    lines: Floats
    guessed: Floats
    quality: tuple[Floats, ...]
    estimates: tuple[Estimate, ...]
    values: dict[tuple[int, int], list[Floats]]

    @classmethod
    def of(
        cls,
        data: CalibrationRecords,
        tier_costs: Sequence[float] | None,
        with_length: bool,
        folds: int,
        seed: int,
    ) -> _World:
        assert data.correct is not None
        known = ~np.isnan(data.correct).any(axis=1)
        if known.sum() < _LEAST:
            raise InsufficientDataError(
                f"cascade routing needs at least {_LEAST} records that are graded at every tier, "
                f"{int(known.sum())} are given",
                needed=_LEAST,
                given=int(known.sum()),
            )
        data = data.take(np.flatnonzero(known))
        cost = _costs(data, tier_costs)
        length = data.prompt_length if with_length else None
        lines = _lines(cost, length)
        table = {f"score_{i}": data.scores[:, i] for i in range(data.tiers - 1)}
        if length is not None:
            table["log_prompt"] = np.log1p(length)
            guessed = lines[:, 0] + length[:, None] * lines[:, 1]
        else:
            guessed = np.broadcast_to(lines[:, 0], cost.shape)
        assert data.correct is not None
        quality = _cross_fit(table, data.correct, folds, seed)
        estimates = _estimates(table, data.correct, quality, seed)
        return cls(data.correct, cost, lines, guessed, quality, estimates, {})

    def spends(self, price: float) -> tuple[float, float]:
        """Return the mean quality and the mean cost of deciding at a price."""
        n, tiers = self.correct.shape
        state = np.zeros(n, dtype=np.intp)
        final = np.full(n, -1, dtype=np.intp)
        spent = np.zeros(n)
        for place in range(tiers):
            for answered in range(1 << place):
                rows = np.flatnonzero((final < 0) & (state == answered))
                # a set is met once, at the tier after its last
                if not rows.size or answered.bit_length() != place:
                    continue
                following = self._following(answered, rows, price)
                stop = following < 0
                final[rows[stop]] = self._best(answered, rows[stop])
                asked, those = following[~stop], rows[~stop]
                spent[those] += self.cost[those, asked]
                last = asked == tiers - 1
                final[those[last]] = tiers - 1
                state[those[~last]] |= 1 << asked[~last]
        return float(self.correct[np.arange(n), final].mean()), float(spent.mean())

    def _following(self, answered: int, rows: NDArray[np.intp], price: float) -> NDArray[np.intp]:
        """Return what `best_next` chooses for each of these records, -1 = stop."""
        tiers, here = self.correct.shape[1], answered.bit_length()
        quality, cost = self.quality[answered][rows], self.guessed[rows]
        value = np.full((len(rows), tiers + 1), -np.inf)
        if answered:
            value[:, 0] = quality[:, _members(answered)].max(axis=1)
        for first in range(here, tiers):
            together = self._together(answered, first)
            later = range(first + 1, tiers)
            onward = np.full(len(rows), -np.inf)
            for tier in later:
                onward = np.maximum(onward, quality[:, tier] - price * cost[:, tier])
            # stop after the first, or ask one more, as each draw has it
            best = np.maximum(together[0][rows], onward[:, None]).mean(axis=1)
            for more, draws in zip(subsets(later), together, strict=True):
                spent = cost[:, list(more)].sum(axis=1)
                best = np.maximum(best, draws[rows].mean(axis=1) - price * spent)
            value[:, first + 1] = best - price * cost[:, first]
        # the first of equals, as `best_next` takes it
        return np.asarray(np.argmax(value, axis=1) - 1, dtype=np.intp)

    def _together(self, answered: int, first: int) -> list[Floats]:
        """Return the best quality of a tier and each set of later ones, draw by draw."""
        if (answered, first) not in self.values:
            draws = np.asarray(self.estimates[answered].revisions)
            moved = np.clip(self.quality[answered][:, :, None] + draws.T[None], 0.0, 1.0)
            self.values[answered, first] = [
                moved[:, [*_members(answered), first, *more]].max(axis=1)
                for more in subsets(range(first + 1, self.correct.shape[1]))
            ]
        return self.values[answered, first]

    def _best(self, answered: int, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        # the later of equals, as the plan takes it
        here = _members(answered)[::-1]
        best = np.argmax(self.quality[answered][rows][:, here], axis=1) if here else rows * 0
        return np.asarray(here or [0], dtype=np.intp)[best]


def _members(answered: int) -> list[int]:
    return [tier for tier in range(answered.bit_length()) if answered >> tier & 1]


def _mixed(world: _World, budget: float) -> tuple[tuple[float, float], float]:
    """Return two prices and the share of the first, so that the budget is spent exactly."""
    if world.spends(0.0)[1] <= budget:
        # more money than even quality for nothing takes
        return (0.0, 0.0), 1.0
    low, high = 0.0, 1.0 / float(world.cost.mean() or 1.0)
    while (least := world.spends(high)[1]) > budget:
        low, high = high, high * 4
        if high * float(world.cost.mean()) > 1e12:
            raise CalibrationError(
                f"a budget of {budget:g} USD per question is below what the cheapest way costs, "
                f"{least:.4g} USD; raise it, or leave a tier out"
            )
    for _ in range(_HALVINGS):
        if high - low <= _APART * high:
            # nearer than this, rounding could take both for the same price
            break
        middle = (low + high) / 2
        low, high = (middle, high) if world.spends(middle)[1] > budget else (low, middle)
    dear, cheap = world.spends(low)[1], world.spends(high)[1]
    return (low, high), (budget - cheap) / (dear - cheap)


def _cross_fit(
    table: Mapping[str, Floats], correct: Floats, folds: int, seed: int
) -> tuple[Floats, ...]:
    n, tiers = correct.shape
    fold = np.random.default_rng(seed).permutation(n) % folds
    found = tuple(np.zeros((n, tiers)) for _ in range(1 << (tiers - 1)))
    for k in range(folds):
        train, held = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        for answered, quality in enumerate(found):
            seen = _seen(table, answered)
            columns, heads = _models(seen, correct, train)
            quality[held] = _chances(columns, heads, seen, held)
    return found


def _estimates(
    table: Mapping[str, Floats], correct: Floats, quality: Sequence[Floats], seed: int
) -> tuple[Estimate, ...]:
    n, tiers = correct.shape
    rows = np.random.default_rng([seed, 1]).permutation(n)[:_DRAWS]
    found = []
    for answered in range(len(quality)):
        columns, heads = _models(_seen(table, answered), correct, np.arange(n))
        moved = np.zeros((len(rows), tiers))
        for tier in range(tiers - 1):
            if not answered >> tier & 1:
                change = quality[answered | 1 << tier][:, tier] - quality[answered][:, tier]
                # news has mean zero; what is left of it is noise of folds and draws
                moved[:, tier] = change[rows] - change[rows].mean()
        draws = tuple(tuple(map(float, row)) for row in moved)
        found.append(Estimate(columns, heads, draws))
    return tuple(found)


def _models(
    seen: Mapping[str, Floats], correct: Floats, rows: NDArray[np.intp]
) -> tuple[tuple[Column, ...], tuple[Head, ...]]:
    """Fit the chance that each tier is right on what is seen of these rows."""
    try:
        columns = columns_of(seen, rows)
    except CalibrationError:
        # nothing is seen yet, or it never varies: the mean alone
        columns = ()
    if not columns:
        means = np.clip(correct[rows].mean(axis=0), 1e-4, 1 - 1e-4)
        return (), tuple(Head((), math.log(mean / (1 - mean))) for mean in means)
    inputs = expanded(columns, seen, rows)
    return columns, tuple(
        fit_head(inputs, correct[rows, tier], _STRENGTH) for tier in range(correct.shape[1])
    )


def _chances(
    columns: Sequence[Column],
    heads: Sequence[Head],
    seen: Mapping[str, Floats],
    rows: NDArray[np.intp],
) -> Floats:
    inputs = expanded(columns, seen, rows) if columns else np.zeros((len(rows), 0))
    return np.column_stack([predict(head, inputs) for head in heads])


def _seen(table: Mapping[str, Floats], answered: int) -> dict[str, Floats]:
    scores = {f"score_{tier}" for tier in _members(answered)}
    return {k: v for k, v in table.items() if k in scores or k == "log_prompt"}


def _lines(cost: Floats, length: Floats | None) -> Floats:
    """Return the cost of a call and of each character, per tier, by least squares."""
    lines = np.column_stack([cost.mean(axis=0), np.zeros(cost.shape[1])])
    if length is None or np.isnan(length).any() or np.ptp(length) == 0:
        return lines
    inputs = np.column_stack([np.ones(len(length)), length])
    for tier, (fixed, each) in enumerate(np.linalg.lstsq(inputs, cost, rcond=None)[0].T):
        # a line that falls, or starts below nothing, is no price list
        if fixed >= 0 and each >= 0:
            lines[tier] = fixed, each
    return lines


def _costs(data: CalibrationRecords, tier_costs: Sequence[float] | None) -> Floats:
    if tier_costs is not None:
        given = np.asarray(tier_costs, dtype=np.float64)
        if given.shape != (data.tiers,) or not (given >= 0).all() or not np.isfinite(given).all():
            raise CalibrationError(
                f"tier_costs must be {data.tiers} numbers >= 0, got {tier_costs!r}"
            )
        return np.broadcast_to(given, (len(data), data.tiers))
    if data.cost is None or np.isnan(data.cost).any():
        raise CalibrationError(
            "cascade routing weighs quality against cost, and costs are unknown; give "
            "tier_costs=, or records of tiers with prices"
        )
    return data.cost


def _check(data: CalibrationRecords, budget_usd: float | None, price: float | None) -> None:
    if data.correct is None:
        raise CalibrationError("cascade routing reads `correct`; grade the records first")
    if data.tiers > _MOST_TIERS:
        raise CalibrationError(
            f"cascade routing compares all sets of tiers and takes at most {_MOST_TIERS}, got "
            f"{data.tiers}"
        )
    given = [one for one in (budget_usd, price) if one is not None]
    if len(given) != 1 or not 0 <= given[0] < math.inf:
        raise CalibrationError(
            "give one of budget_usd= (dollars per question) and price= (quality per dollar), a "
            f"number >= 0; got {budget_usd!r} and {price!r}"
        )
