"""A routing plan: which tier to ask next, or to stop, by estimated quality and cost.

Applying a plan needs the standard library only; fitting one is in `routing_fit`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from cascadellm.calibration.features import Column, Head
from cascadellm.errors import CalibrationError

__all__ = ["Choice", "Estimate", "RoutingPlan", "best_next", "subsets"]

_SCHEMA = "cascadellm.routing_plan/1"


@dataclass(frozen=True, slots=True)
class Choice:
    """What a plan chooses.

    Attributes:
        following: Index of the tier to ask next; None = stop.
        best: The answered tier of greatest expected quality; None when none has answered.
        quality: Expected quality of each tier's answer, in [0, 1].
        gain: Value of the best way on minus that of stopping; 0 where nothing can be compared.
    """

    following: int | None
    best: int | None
    quality: tuple[float, ...]
    gain: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is known of every tier's quality once some tiers have answered.

    Attributes:
        columns: Inputs: the length of the question, and the scores of those tiers.
        heads: Chance that each tier is right. Shape (tiers,).
        revisions: How the chances of tiers that have not answered moved in records once their
            own scores were known, record by record, so that what moves together stays together.
            Shape (draws, tiers).
    """

    columns: tuple[Column, ...]
    heads: tuple[Head, ...]
    revisions: tuple[tuple[float, ...], ...]

    def quality(self, features: Mapping[str, float | None]) -> tuple[float, ...]:
        """Return the expected quality of each tier."""
        inputs = [x for c in self.columns for x in c.expand(features.get(c.name))]
        return tuple(head(inputs) for head in self.heads)


@dataclass(frozen=True, slots=True)
class RoutingPlan:
    """Quality and cost of every tier, estimated from records; asked by `CascadeRoute`.

    Attributes:
        estimates: One per set of tiers that have answered; tier i has weight 2**i in the index.
        costs: Per tier, cost of a call and of each further character of the question. Unit: USD.
        prices: Quality that a dollar must bring, at the dearer and at the cheaper of two mixed
            ways. Unit: quality per USD.
        share: Share of questions that go the dearer way, so that the mean cost meets a budget.
        seed: Seed of that choice, which the question's text decides.
        name: Name in records.
        tuned_on: Digests of the records it was fitted on.
        cross_fitted: Quality and cost that estimates fitted on other records had reached.
        versions: Versions of the packages that fitted it.
    """

    estimates: tuple[Estimate, ...] = field(repr=False)
    costs: tuple[tuple[float, float], ...]
    prices: tuple[float, float]
    share: float = 1.0
    seed: int = 0
    name: str = "cascade_routing"
    tuned_on: tuple[str, ...] = field(default=(), repr=False)
    cross_fitted: Mapping[str, float] = field(default_factory=dict, hash=False)
    versions: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)

    @property
    def tiers(self) -> int:
        """Number of tiers."""
        return len(self.costs)

    def choose(
        self,
        scores: Mapping[int, float | None],
        text: str,
        *,
        after: int = -1,
        can_stop: bool = True,
    ) -> Choice:
        """Return which tier to ask next, or to stop.

        Args:
            scores: Score of each tier that has answered; None or NaN = missing.
            text: The question.
            after: Only tiers after this one can still be asked.
            can_stop: Whether an answer may be kept.
        """
        estimate = self.estimates[sum(1 << tier for tier in scores)]
        features = {f"score_{tier}": score for tier, score in scores.items()}
        features["log_prompt"] = math.log1p(len(text))
        quality = estimate.quality(features)
        costs = [fixed + each * len(text) for fixed, each in self.costs]
        price = self.prices[0] if self._drawn(text) < self.share else self.prices[1]
        ahead = range(after + 1, self.tiers)
        following, gain = best_next(
            quality, estimate.revisions, costs, scores, ahead, price, can_stop=can_stop
        )
        # the later of two equals: it stands already
        best = max(scores, key=lambda tier: (quality[tier], tier), default=None)
        return Choice(following, best, quality, gain)

    def _drawn(self, text: str) -> float:
        # not by chance: every way of calling must take the same decision
        digest = hashlib.blake2b(f"{self.seed}:{text}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) / 2**64

    def to_config(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return json.loads(json.dumps({"schema": _SCHEMA, **asdict(self)}))  # type: ignore[no-any-return]

    @classmethod
    def from_config(cls, data: Mapping[str, Any]) -> RoutingPlan:
        """Build from `to_config` data.

        Raises:
            CalibrationError: The data are not those of a routing plan.
        """
        if not isinstance(data, Mapping) or data.get("schema") != _SCHEMA:
            raise CalibrationError(f"expected a routing plan with schema {_SCHEMA!r}")
        try:
            values = {key: value for key, value in data.items() if key != "schema"}
            values["estimates"] = tuple(_estimate(one) for one in data["estimates"])
            values["costs"] = tuple((float(a), float(b)) for a, b in data["costs"])
            dear, cheap = data["prices"]
            values["prices"] = (float(dear), float(cheap))
            values["tuned_on"] = tuple(data.get("tuned_on") or ())
            made = cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"the routing plan is incomplete: {error}") from error
        sizes = {len(row) for one in made.estimates for row in (one.heads, *one.revisions)}
        if sizes != {made.tiers} or len(made.estimates) != 2 ** (made.tiers - 1):
            raise CalibrationError("the routing plan's estimates and costs do not fit together")
        return made

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write as JSON.

        Raises:
            CalibrationError: The file exists and `overwrite` is False.
        """
        target = Path(path)
        if target.exists() and not overwrite:
            raise CalibrationError(f"{target} exists; choose another path or pass overwrite=True")
        target.write_text(json.dumps(self.to_config(), allow_nan=False) + "\n", "utf-8")
        return target

    @classmethod
    def load(cls, path: str | Path) -> RoutingPlan:
        """Read a saved plan.

        Raises:
            CalibrationError: The file is absent or not a routing plan.
        """
        try:
            return cls.from_config(json.loads(Path(path).read_text("utf-8")))
        except OSError as error:
            raise CalibrationError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise CalibrationError(f"{path} is not JSON: {error}") from error


def best_next(
    quality: Sequence[float],
    revisions: Sequence[Sequence[float]],
    costs: Sequence[float],
    answered: Collection[int],
    ahead: Sequence[int],
    price: float,
    *,
    can_stop: bool = True,
) -> tuple[int | None, float]:
    """Choose the tier to ask next among those that still can be, or to stop.

    The value of a tier is the better of two ways on, in expected best quality minus price times
    cost: to ask it and a set of later ones whatever they say, for all such sets, or to ask it and
    then stop or ask one more, as its answer turns out. Of equals the earlier tier is taken, and
    stopping before asking.

    Args:
        quality: Expected quality of each tier.
        revisions: Draws of how far each may still move. Shape (draws, tiers).
        costs: Cost of asking each tier. Unit: USD.
        answered: Tiers that have answered.
        ahead: Tiers that can still be asked, in order.
        price: Quality that a dollar must bring. Unit: quality per USD.
        can_stop: Whether the empty set is allowed.

    Returns:
        The next tier or None, and the value of the best way on minus that of stopping (0 where
        one of them is not possible).

    Source: arXiv 2410.10347. There errors follow a normal law and every set is asked whole.
    """
    moved = [[_chance(q + e) for q, e in zip(quality, row, strict=True)] for row in revisions]
    best: int | None = None
    most = -math.inf
    for place, first in enumerate(ahead):
        later = ahead[place + 1 :]
        value = max(
            _as_needed(quality, moved, costs, (*answered, first), later, price),
            *(
                _expected_best(moved, (*answered, first, *more))
                - price * sum(costs[t] for t in more)
                for more in subsets(later)
            ),
        )
        value -= price * costs[first]
        if value > most:
            best, most = first, value
    if not (can_stop and answered):
        return best, 0.0
    if best is None:
        return None, 0.0
    gain = most - _expected_best(moved, answered)
    return (best if gain > 0 else None), gain


def subsets(tiers: Sequence[int]) -> list[tuple[int, ...]]:
    """Return all sets of tiers, small ones first."""
    return [one for size in range(len(tiers) + 1) for one in combinations(tiers, size)]


def _as_needed(
    quality: Sequence[float],
    moved: Sequence[Sequence[float]],
    costs: Sequence[float],
    asked: Collection[int],
    later: Sequence[int],
    price: float,
) -> float:
    onward = max((quality[tier] - price * costs[tier] for tier in later), default=-math.inf)
    return math.fsum(max(onward, *(row[t] for t in asked)) for row in moved) / len(moved)


def _expected_best(moved: Sequence[Sequence[float]], tiers: Collection[int]) -> float:
    return math.fsum(max(row[tier] for tier in tiers) for row in moved) / len(moved)


def _chance(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _estimate(data: Mapping[str, Any]) -> Estimate:
    columns = tuple(Column(**{**c, "knots": tuple(c["knots"])}) for c in data["columns"])
    heads = tuple(Head(tuple(h["weights"]), float(h["intercept"])) for h in data["heads"])
    return Estimate(columns, heads, tuple(tuple(map(float, row)) for row in data["revisions"]))
