"""Compare deferral policies on the same records, always beside random, oracle and length."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cascadellm.calibration.records import (
    CalibrationRecord,
    CalibrationRecords,
    Floats,
    as_records,
)
from cascadellm.calibration.result import Calibration, Interval
from cascadellm.errors import CalibrationError
from cascadellm.evaluation.curve import Curve, Ordering, Pair
from cascadellm.evaluation.describe import notes_on, plain, policy_data
from cascadellm.evaluation.metrics import METRICS, Metrics, Sample, measure
from cascadellm.evaluation.points import OperatingPoint, operating_point
from cascadellm.evaluation.words import sentence

__all__ = ["Evaluation", "PolicyResult", "evaluate"]

Scores = str | ArrayLike | Callable[[CalibrationRecords], ArrayLike]
_BATCH = 200_000
BASELINES = ("random", "oracle", "prompt length")


@dataclass(frozen=True, slots=True, eq=False)
class PolicyResult:
    """One policy on these records.

    Attributes:
        name: Name of the policy.
        baseline: Whether it is one of the baselines that are always drawn.
        curve: Its deferral curve.
        missing: Number of records without a score; they always defer.
        values: Metric -> value (NaN where it is not defined).
        intervals: Metric -> 95% interval of the paired bootstrap; empty without bootstrap.
        against: Other policy -> 95% interval of the difference in `norm`, on the same resamples.
    """

    name: str
    baseline: bool
    curve: Curve = field(repr=False)
    missing: int
    values: Mapping[str, float]
    intervals: Mapping[str, Interval]
    against: Mapping[str, Interval]

    @property
    def beats_chance(self) -> bool | None:
        """Whether `norm` is above 0 by more than its interval; None without bootstrap."""
        if "norm" not in self.intervals:
            return None
        return self.intervals["norm"][0] > 0


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Several policies on the same records.

    Attributes:
        results: Policies in the order given, then the baselines.
        points: Cascades with fixed thresholds.
        n: Records graded for both tiers.
        small: Mean quality of the smaller tier.
        large: Mean quality of the larger tier.
        union: Mean quality of the better of both on each question.
        margin: Margin of `qnc`, in quality.
        costs_known: False when the smaller tier was counted as free for want of costs.
        notes: What a reader should know.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap resamples.
        fingerprint: Digest of the records.
    """

    results: tuple[PolicyResult, ...]
    points: tuple[OperatingPoint, ...]
    n: int
    small: float
    large: float
    union: float
    margin: float
    costs_known: bool
    notes: tuple[str, ...]
    seed: int
    resamples: int
    fingerprint: str

    def __getitem__(self, name: str) -> PolicyResult:
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(f"no policy {name!r}; there are {[r.name for r in self.results]}")

    @property
    def best(self) -> PolicyResult:
        """The policy (no baseline) with the highest `norm`."""
        mine = [r for r in self.results if not r.baseline]
        return max(mine, key=lambda r: (not math.isnan(r.values["norm"]), r.values["norm"]))

    @property
    def sentence(self) -> str:
        """The finding as one sentence for somebody who does not read the table."""
        return sentence(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; undefined values are null. Curves are thinned to 200 nodes."""
        return {
            "n": self.n,
            "small": self.small,
            "large": self.large,
            "union": self.union,
            "margin": self.margin,
            "costs_known": self.costs_known,
            "sentence": self.sentence,
            "notes": list(self.notes),
            "seed": self.seed,
            "resamples": self.resamples,
            "fingerprint": self.fingerprint,
            "policies": [policy_data(r) for r in self.results],
            "points": [plain(asdict(p)) for p in self.points],
        }


def evaluate(
    records: CalibrationRecords | Iterable[CalibrationRecord],
    policies: Mapping[str, Scores] | Sequence[str] | None = None,
    *,
    thresholds: Mapping[str, Calibration | Sequence[float]] | None = None,
    boundary: int = 0,
    margin: float = 0.01,
    tier_costs: Sequence[float] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Evaluate deferral policies on graded records.

    Questions are deferred lowest score first; equal scores defer together, in expectation;
    missing scores defer before all others.

    Args:
        records: Records graded for the tier before the boundary and for the last one.
        policies: Name -> scores: an array, the name of a score or column of the records, or a
            function of the records. A sequence of names; None = every score and column there is.
        thresholds: Name -> fixed thresholds (a `Calibration`, or one number per boundary),
            measured as operating points.
        boundary: Boundary whose policy is judged.
        margin: Quality below the larger tier that still counts as equal, for `qnc`.
        tier_costs: Cost per call of each tier; the recorded costs by default.
        resamples: Bootstrap resamples of the questions, shared by all policies; 0 = none.
        seed: Seed of the bootstrap.

    Raises:
        CalibrationError: A policy's scores do not fit, or nothing is graded.
    """
    data = as_records(records)
    pair = Pair.of(data, boundary=boundary, tier_costs=_two_costs(tier_costs, boundary, data))
    named = _scores(data, policies, boundary)
    scores = {name: values[pair.rows] for name, values in named.items()}
    mine = len(scores)
    # one group of equal scores is random deferral in expectation: the chord
    scores["random"] = np.zeros(len(pair))
    scores["oracle"] = pair.small - pair.large
    if data.prompt_length is not None:
        scores["prompt length"] = -data.prompt_length[pair.rows]
    orders = {name: Ordering.of(values) for name, values in scores.items()}
    exact = _measure_all(pair, orders, np.ones((1, len(pair))), margin)
    boot = _bootstrap(pair, orders, margin, resamples, seed) if resamples else {}
    results = _results(pair, orders, exact, boot, list(orders)[mine:], margin)
    points = tuple(
        operating_point(data, name, value, tier_costs=tier_costs)
        for name, value in (thresholds or {}).items()
    )
    return Evaluation(
        results,
        points,
        len(pair),
        float(pair.small.mean()),
        float(pair.large.mean()),
        float(np.maximum(pair.small, pair.large).mean()),
        margin,
        pair.costs_known,
        notes_on(data, pair, results, points),
        seed,
        resamples,
        data.fingerprint,
    )


def _results(
    pair: Pair,
    orders: Mapping[str, Ordering],
    exact: Mapping[str, Metrics],
    boot: Mapping[str, Metrics],
    baselines: Sequence[str],
    margin: float,
) -> tuple[PolicyResult, ...]:
    return tuple(
        PolicyResult(
            name,
            name in baselines,
            Curve.of(pair, order),
            order.missing,
            {m: float(getattr(exact[name], m)[0]) for m in METRICS},
            _intervals(boot.get(name), margin),
            _differences(name, boot, baselines),
        )
        for name, order in orders.items()
    )


def _scores(
    data: CalibrationRecords, policies: Mapping[str, Scores] | Sequence[str] | None, boundary: int
) -> dict[str, Floats]:
    known: dict[str, Floats] = {data.score_names[boundary]: data.scores[:, boundary]}
    known.update(data.columns)
    if policies is None:
        return known
    given: Mapping[str, Any] = (
        policies if isinstance(policies, Mapping) else {name: name for name in policies}
    )
    if not given:
        raise CalibrationError("expected at least one policy to evaluate, got none")
    found = {}
    for name, value in given.items():
        if name in BASELINES:
            raise CalibrationError(f"{name!r} is the name of a baseline; choose another name")
        if isinstance(value, str):
            if value not in known:
                raise CalibrationError(f"no score {value!r}; the records have {sorted(known)}")
            scores = known[value]
        else:
            scores = np.asarray(value(data) if callable(value) else value, dtype=np.float64)
        if scores.shape != (len(data),):
            raise CalibrationError(
                f"policy {name!r}: expected {len(data)} scores, got shape {scores.shape}"
            )
        found[name] = scores
    return found


def _two_costs(
    tier_costs: Sequence[float] | None, boundary: int, data: CalibrationRecords
) -> tuple[float, float] | None:
    if tier_costs is None:
        return None
    if len(tier_costs) != data.tiers:
        raise CalibrationError(f"expected {data.tiers} tier costs, got {tier_costs!r}")
    return float(tier_costs[boundary]), float(tier_costs[-1])


def _measure_all(
    pair: Pair, orders: Mapping[str, Ordering], weights: Floats, margin: float
) -> dict[str, Metrics]:
    sample = Sample.of(pair, weights, orders["oracle"])
    return {name: measure(pair, order, sample, margin) for name, order in orders.items()}


def _bootstrap(
    pair: Pair, orders: Mapping[str, Ordering], margin: float, resamples: int, seed: int
) -> dict[str, Metrics]:
    rng = np.random.default_rng(seed)
    n = len(pair)
    size = max(1, min(resamples, _BATCH // n))
    parts: dict[str, list[Metrics]] = {name: [] for name in orders}
    done = 0
    while done < resamples:
        batch = min(size, resamples - done)
        # one draw serves all policies, which is what makes the differences paired
        drawn = rng.integers(0, n, size=(batch, n)) + n * np.arange(batch)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=n * batch).reshape(batch, n)
        for name, value in _measure_all(pair, orders, counts.astype(float), margin).items():
            parts[name].append(value)
        done += batch
    return {name: Metrics.joined(values) for name, values in parts.items()}


def _interval(values: Floats) -> Interval:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _intervals(metrics: Metrics | None, margin: float) -> dict[str, Interval]:
    if metrics is None:
        return {}
    # where a curve touches the larger tier's quality itself, resamples say nothing of the truth
    unsaid = () if margin > 0 else ("qnc", "ibc_lift")
    # an interval over the resamples in which a metric is defined would be too narrow
    columns = ((m, getattr(metrics, m)) for m in METRICS)
    return {m: _interval(v) for m, v in columns if m not in unsaid and np.isfinite(v).all()}


def _differences(
    name: str, boot: Mapping[str, Metrics], baselines: Sequence[str]
) -> dict[str, Interval]:
    if name not in boot or name in baselines:
        return {}
    found = {}
    for other, metrics in boot.items():
        difference = boot[name].norm - metrics.norm
        # random and oracle have norm 0 and 1 by definition
        if other not in (name, "random", "oracle") and np.isfinite(difference).all():
            found[other] = _interval(difference)
    return found
