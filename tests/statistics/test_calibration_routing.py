"""Plans of cascade routing: budgets, the choice that was fitted, and what it gains."""

from __future__ import annotations

import csv
import gzip
import os
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascadellm.calibration import (
    CalibrationRecords,
    RoutingPlan,
    fit_cascade_routing,
    routing_fit,
)
from cascadellm.calibration.routing_fit import _World
from cascadellm.errors import CalibrationError, InsufficientDataError

DATA = Path(os.environ.get("CASCADELLM_DATA", "")) / "replay" / "frugalml_rafdb.csv.gz"


def world(n: int = 1200, seed: int = 0) -> CalibrationRecords:
    """Return three tiers whose hard questions are longer, and whose scores know how hard."""
    rng = np.random.default_rng(seed)
    hard = rng.random(n)
    length = np.round(20 + 200 * hard * rng.random(n))
    chance = np.column_stack([1 - hard, 1 - 0.6 * hard, 1 - 0.25 * hard])
    return CalibrationRecords.of(
        np.column_stack([-hard + 0.2 * rng.normal(size=n) for _ in range(2)]),
        (rng.random((n, 3)) < chance).astype(float),
        cost=np.column_stack([1 + 0 * length, 4 + 0.01 * length, 20 + 0.05 * length]) * 1e-4,
        prompt_length=length,
        ids=[f"{seed}-{i}" for i in range(n)],
        score_names=("first", "second"),
    )


def walked(plan: RoutingPlan, records: CalibrationRecords) -> tuple[float, float]:
    """Return the mean quality and cost of asking the plan itself, question by question."""
    assert records.correct is not None
    assert records.cost is not None
    assert records.prompt_length is not None
    quality, spent = 0.0, 0.0
    for row in range(len(records)):
        # the text decides which price holds, so each question has its own
        text = f"{row:06d}" + "x" * (int(records.prompt_length[row]) - 6)
        scores: dict[int, float | None] = {}
        choice = plan.choose(scores, text, can_stop=False)
        while choice.following is not None:
            tier = choice.following
            spent += records.cost[row, tier]
            if tier == plan.tiers - 1:
                break
            scores[tier] = float(records.scores[row, tier])
            choice = plan.choose(scores, text, after=tier)
        final = plan.tiers - 1 if choice.following is not None else choice.best
        assert final is not None
        quality += records.correct[row, final]
    return quality / len(records), spent / len(records)


@pytest.mark.parametrize("budget", [2e-4, 5e-4, 1e-3, 1.5e-3])
def test_budget_when_two_prices_are_mixed(budget: float) -> None:
    """On the records it was fitted on exactly the budget is spent, between two pure ways."""
    fitted = fit_cascade_routing(world(), budget_usd=budget)

    assert budget == pytest.approx(fitted.cost_usd, rel=1e-9)
    assert 0 < fitted.plan.share < 1
    assert fitted.plan.prices[0] < fitted.plan.prices[1]


def test_budget_when_nothing_is_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check has power: one price alone misses the budget."""
    mixed = routing_fit._mixed
    monkeypatch.setattr(routing_fit, "_mixed", lambda *a: (mixed(*a)[0], 1.0))
    records = CalibrationRecords.of(
        np.repeat([0.2, 0.8], 100), np.column_stack([np.repeat([0, 1], 100), np.ones(200)])
    )
    fitted = fit_cascade_routing(records, budget_usd=0.4, tier_costs=(0.1, 1.0))
    assert 0.4 != pytest.approx(fitted.cost_usd, rel=0.05)


def test_budget_when_it_is_more_than_enough() -> None:
    """Money that buys nothing is not spent; less than the cheapest way costs is refused."""
    fitted = fit_cascade_routing(world(), budget_usd=1.0)
    assert fitted.cost_usd < 3e-3
    assert (0.0, 0.0) == fitted.plan.prices
    with pytest.raises(CalibrationError, match=r"below what the cheapest way costs, 0.0001 USD"):
        fit_cascade_routing(world(), budget_usd=5e-5)


def test_choice_when_the_plan_is_asked() -> None:
    """The plan decides about a question as the search for its price did, to the last one."""
    records = world(300)
    fitted = fit_cascade_routing(records, budget_usd=6e-4)
    made = _World.of(records, None, True, 5, 0)
    seen = []
    assert records.prompt_length is not None
    for answered, estimate in enumerate(fitted.plan.estimates):
        rows = []
        for row in range(len(records)):
            here = {
                f"score_{t}": float(records.scores[row, t]) for t in range(2) if answered >> t & 1
            }
            here["log_prompt"] = float(np.log1p(records.prompt_length[row]))
            rows.append(estimate.quality(here))
        seen.append(np.array(rows))
    in_sample = replace(made, quality=tuple(seen), values={})

    for price in fitted.plan.prices:
        pure = replace(fitted.plan, prices=(price, price))
        assert walked(pure, records) == pytest.approx(in_sample.spends(price), abs=1e-12)
    # mixed by each question's text, near the budget
    assert 6e-4 == pytest.approx(walked(fitted.plan, records)[1], rel=0.12)


def test_two_tiers_when_every_rule_is_tried() -> None:
    """On two tiers no rule on the score does better with the same money, mixtures included."""
    rng = np.random.default_rng(4)
    level = np.tile(np.arange(6), 200)
    correct = np.column_stack([rng.random(1200) < level / 6, rng.random(1200) < 0.9]).astype(float)
    records = CalibrationRecords.of(level / 5.0, correct)
    points = []
    for rule in product([False, True], repeat=6):
        defers = np.array(rule)[level]
        points.append((0.01 + defers.mean(), np.where(defers, correct[:, 1], correct[:, 0]).mean()))
    for budget in (0.1, 0.3, 0.45, 0.6, 0.8):
        fitted = fit_cascade_routing(records, budget_usd=budget, tier_costs=(0.01, 1.0))
        best = max(_between(one, other, budget) for one in points for other in points)
        assert budget == pytest.approx(fitted.cost_usd)
        # each fold has estimates, and so a rule, of its own
        assert best == pytest.approx(fitted.quality, abs=0.005)


def _between(one: tuple[float, float], other: tuple[float, float], budget: float) -> float:
    """Return the quality of mixing two rules to a budget, nothing where they cannot meet it."""
    if not one[0] <= budget < other[0]:
        return 0.0
    part = (budget - one[0]) / (other[0] - one[0])
    return one[1] + part * (other[1] - one[1])


def _cascaded(records: CalibrationRecords, small: int, large: int, cost: float) -> float:
    """Return the quality of the best threshold between two tiers, chosen with hindsight."""
    assert records.correct is not None
    assert records.cost is not None
    right, paid = records.correct, records.cost
    points = []
    for threshold in np.quantile(records.scores[:, small], np.linspace(0, 1, 101)):
        defers = records.scores[:, small] < threshold
        spent = paid[:, small] + defers * paid[:, large]
        points.append((spent.mean(), np.where(defers, right[:, large], right[:, small]).mean()))
    return max(_between(one, other, cost) for one in points for other in points)


def test_fresh_records_when_money_is_scarce() -> None:
    """On fresh records it does as well as the best pair of tiers, whichever that is."""
    fresh = world(3000, seed=9)
    assert fresh.correct is not None
    assert fresh.cost is not None
    for budget in (5e-4, 1.2e-3, 1.6e-3):
        quality, cost = walked(fit_cascade_routing(world(), budget_usd=budget).plan, fresh)
        singles = list(zip(fresh.cost.mean(axis=0), fresh.correct.mean(axis=0), strict=True))
        mixed = max(_between(a, b, cost) for a in singles for b in singles)
        pairs = [_cascaded(fresh, a, b, cost) for a, b in ((0, 1), (0, 2), (1, 2))]
        assert budget == pytest.approx(cost, rel=0.12)
        assert quality > max(mixed, *pairs) - 0.015


def test_signal_when_there_is_none() -> None:
    """Scores that say nothing gain nothing on fresh records."""
    rng = np.random.default_rng(3)

    def noise(n: int) -> CalibrationRecords:
        correct = (rng.random((n, 2)) < (0.6, 0.9)).astype(float)
        cost = np.broadcast_to((0.01, 1.0), (n, 2))
        return CalibrationRecords.of(
            rng.normal(size=n), correct, cost=cost, prompt_length=np.full(n, 40.0)
        )

    quality, cost = walked(fit_cascade_routing(noise(800), budget_usd=0.5).plan, noise(4000))
    assert quality < 0.6 + 0.3 * cost + 0.025


@pytest.mark.skipif(not DATA.is_file(), reason="set CASCADELLM_DATA")
def test_published_when_a_third_tier_is_at_hand() -> None:
    """On FrugalML RAFDB the third and fourth tier beat the best two-tier cascade."""
    with gzip.open(DATA, "rt") as lines:
        rows = list(csv.DictReader(lines))
    order = ["GitHub(CNN)", "FacePP", "Microsoft", "Google"]
    column: Any = lambda kind, name: [float(row[f"{name}|{kind}"]) for row in rows]  # noqa: E731
    correct = np.column_stack([column("reward", name) for name in order])
    scores = np.column_stack([column("confidence", name) for name in order])[:, :3]
    half = np.random.default_rng(0).permutation(len(rows))
    fitted = fit_cascade_routing(
        CalibrationRecords.of(scores[half[:7669]], correct[half[:7669]]),
        budget_usd=10e-4,
        tier_costs=(1e-7, 5e-4, 10e-4, 15e-4),
    )
    held = CalibrationRecords.of(
        scores[half[7669:9669]],
        correct[half[7669:9669]],
        cost=np.broadcast_to((1e-7, 5e-4, 10e-4, 15e-4), (2000, 4)),
        prompt_length=np.full(2000, 40.0),
    )
    quality, cost = walked(fitted.plan, held)
    # two tiers reach .726 at their best, the best single service .717
    assert quality > 0.726
    assert 10e-4 == pytest.approx(cost, rel=0.08)


def test_arguments_when_they_are_wrong() -> None:
    """What cannot be fitted is refused with what to do."""
    ungraded = CalibrationRecords.of([0.1] * 50)
    with pytest.raises(CalibrationError, match="grade the records"):
        fit_cascade_routing(ungraded, price=1.0)
    with pytest.raises(CalibrationError, match=r"budget_usd= .* and price="):
        fit_cascade_routing(world(50), budget_usd=1.0, price=1.0)
    free = CalibrationRecords.of([0.1] * 50, np.ones((50, 2)))
    with pytest.raises(CalibrationError, match="tier_costs="):
        fit_cascade_routing(free, price=1.0)
    with pytest.raises(CalibrationError, match="2 numbers >= 0"):
        fit_cascade_routing(free, price=1.0, tier_costs=(1.0,))
    with pytest.raises(InsufficientDataError, match="at least 40"):
        fit_cascade_routing(world(39), price=1.0)
    six = CalibrationRecords.of(np.zeros((50, 5)), np.ones((50, 6)))
    with pytest.raises(CalibrationError, match="at most 5"):
        fit_cascade_routing(six, price=1.0, tier_costs=[1.0] * 6)
