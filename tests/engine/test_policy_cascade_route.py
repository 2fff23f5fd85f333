"""Cascade routing: the choice against enumeration, and the policy inside a cascade."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from typing import Any

import pytest

from cascadellm import (
    Answer,
    Cascade,
    CascadeRoute,
    ConfigurationError,
    Policy,
    Price,
    Request,
    Threshold,
    Tier,
    mean_logprob,
)
from cascadellm.answer import TokenScore
from cascadellm.calibration import RoutingPlan, routing
from cascadellm.calibration.features import Column, Head
from cascadellm.calibration.routing import Estimate, best_next
from cascadellm.errors import CalibrationError
from cascadellm.testing import FakeModel
from tests.engine.running import MODES, run

modes = pytest.mark.parametrize("mode", MODES)


Case = tuple[list[float], list[list[float]], list[float], list[int], list[int], float]


def enumerated(case: Case, can_stop: bool) -> int | None:
    """Return the best next tier in exact numbers, by trying every way on.

    A way on asks a set of tiers whatever they say, or one tier and then, for each of the ways in
    which it may turn out, stops or asks one more.
    """
    quality, revisions, costs, answered, ahead, price = case
    pay = [Fraction(price) * Fraction(cost) for cost in costs]

    def best(row: list[float], tiers: set[int]) -> Fraction:
        values = [Fraction(quality[t]) + Fraction(row[t]) for t in tiers]
        return max(min(max(value, Fraction(0)), Fraction(1)) for value in values)

    found: dict[int | None, Fraction] = {}

    def tried(first: int | None, value: Fraction) -> None:
        found[first] = max(found.get(first, value), value)

    for mask in range(1 << len(quality)):
        chosen = {tier for tier in range(len(quality)) if mask >> tier & 1}
        if chosen <= set(ahead) and (chosen or (can_stop and answered)):
            total = sum((best(row, {*answered, *chosen}) for row in revisions), Fraction(0))
            spent = sum((pay[tier] for tier in chosen), Fraction(0))
            tried(min(chosen, default=None), total / len(revisions) - spent)
    for first in ahead:
        onward = [None, *(tier for tier in ahead if tier > first)]
        for rule in product(onward, repeat=len(revisions)):
            total = Fraction(0)
            for row, tier in zip(revisions, rule, strict=True):
                stays = best(row, {*answered, first})
                total += stays if tier is None else Fraction(quality[tier]) - pay[tier]
            tried(first, total / len(revisions) - pay[first])
    most = max(found.values(), default=Fraction(0))
    if None in found and found[None] == most:
        return None
    return min((tier for tier in found if tier is not None and found[tier] == most), default=None)


def check_choices(choose: Callable[..., tuple[int | None, float]]) -> None:
    """Check a way of choosing against enumeration on many small cases."""
    draw = random.Random(5)
    seen = set()
    for _ in range(600):
        tiers = draw.randint(2, 4)
        # eighths: every sum is exact, and ties occur
        eighths = [[draw.randint(0, 8) / 8 for _ in range(tiers)] for _ in range(2)]
        draws = draw.choice([1, 2, 4])
        moved = [[draw.randint(-3, 3) / 8 for _ in range(tiers)] for _ in range(draws)]
        after = draw.randint(-1, tiers - 2)
        answered = [t for t in range(after + 1) if t == after or draw.random() < 0.5]
        can_stop = after >= 0 and draw.random() < 0.8
        ahead, price = list(range(after + 1, tiers)), draw.choice([0.0, 0.25, 0.5, 1.0, 2.0])
        case: Case = (eighths[0], moved, eighths[1], answered, ahead, price)
        following, _ = choose(*case, can_stop=can_stop)
        assert enumerated(case, can_stop) == following
        seen.add(following)
    assert {None, 0, 1, 2, 3} == seen


def test_choice_when_every_set_is_tried() -> None:
    """The choice is that of enumerating all ways on in exact numbers, ties included."""
    check_choices(best_next)


def wrong(kind: str) -> Callable[..., tuple[int | None, float]]:
    """Return a way of choosing that has a fault."""

    def choose(quality: Any, moved: Any, costs: Any, answered: Any, ahead: Any, price: float,
               *, can_stop: bool) -> tuple[int | None, float]:  # fmt: skip
        if kind == "always the first":
            return ahead[0], 0.0
        if kind == "errors are left out":
            moved = [[0.0] * len(quality)]
        if kind == "money does not matter":
            price = 0.0
        if kind == "errors are independent":
            columns = [sorted(row[t] for row in moved) for t in range(len(quality))]
            moved = [list(row) for row in zip(*columns, strict=True)]
        if kind == "every set is asked whole":
            monkey = routing._as_needed
            routing._as_needed = lambda *_: -math.inf
            try:
                return best_next(quality, moved, costs, answered, ahead, price, can_stop=can_stop)
            finally:
                routing._as_needed = monkey
        if kind == "single tiers only":
            values = {
                t: best_next(quality, moved, costs, answered, [t], price, can_stop=True)[1]
                for t in ahead
            }
            best = max(values, key=lambda t: values[t])
            return (best if values[best] > 0 or not (can_stop and answered) else None), 0.0
        return best_next(quality, moved, costs, answered, ahead, price, can_stop=can_stop)

    return choose


@pytest.mark.parametrize(
    "kind",
    [
        "always the first",
        "errors are left out",
        "errors are independent",
        "every set is asked whole",
        "money does not matter",
        "single tiers only",
    ],
)
def test_choice_when_it_is_wrong(kind: str) -> None:
    """The check has power: each of these ways of choosing is noticed."""
    with pytest.raises(AssertionError):
        check_choices(wrong(kind))


def chance(value: float) -> Head:
    """Return a chance that nothing changes."""
    return Head((0.0, 0.0), math.log(value / (1 - value)))


def sure(value: float) -> Head:
    """Return a chance before anything is known."""
    return Head((), math.log(value / (1 - value)))


def plan(first: tuple[float, float, float], price: float = 10.0) -> RoutingPlan:
    """Return a plan of three tiers; before any answer their chances are `first`."""
    none = Estimate(
        (), tuple(sure(v) for v in first), ((-0.3, -0.2, 0), (0.3, 0.2, 0))
    )  # fmt: skip
    # the small tier is right iff its score is high; the middle one where the small one is not
    score = Column("score_0", -1.0, 1.0, (), True)
    small = Estimate(
        (score,),
        (Head((4.0, 0.0), 0.0), chance(0.6), chance(0.9)),
        ((0.0, -0.2, 0.0), (0.0, 0.2, 0.0)),
    )
    middle = Estimate(
        (Column("score_1", -1.0, 1.0, (), True),),
        (chance(0.3), Head((4.0, 0.0), 0.0), chance(0.9)),
        ((0.0, 0.0, 0.0),),
    )
    both = Estimate(
        (score,), (Head((4.0, 0.0), 0.0), chance(0.1), chance(0.15)), ((0.0, 0.0, 0.0),)
    )
    return RoutingPlan(
        (none, small, middle, both), ((0.001, 0.0), (0.01, 0.0), (0.04, 0.0)), (price, price)
    )


def said(text: str, logprob: float) -> Answer:
    """Return an answer of one token."""
    return Answer(text, tokens=(TokenScore(text, logprob),), finish_reason="stop")


def cascade(policy: Policy, small: float, middle: float = -0.5, **options: Any) -> Cascade:
    """Return three tiers whose answers have these scores."""
    replies = {"small": said("s", small), "middle": said("m", middle), "large": said("l", -0.1)}
    return Cascade(
        [Tier(FakeModel(r, name=n, logprob=None), price=Price(1, 1)) for n, r in replies.items()],
        policy,
        **options,
    )


@modes
def test_call_when_the_draft_is_likely_right(mode: str) -> None:
    """It stops where no further tier is worth its price, and says what it expected."""
    trace = run(cascade(CascadeRoute(plan((0.6, 0.6, 0.7)), mean_logprob), 0.0), mode).trace

    assert ["accept"] == [a.action for a in trace.attempts]
    first = trace.attempts[0]
    assert ("CascadeRoute", "minus_expected_gain", 0.0) == (
        first.policy,
        first.score_name,
        first.threshold,
    )
    assert first.score is not None
    assert first.score > 0
    assert "small 0.98" in first.reason


@modes
def test_call_when_a_tier_is_passed_over(mode: str) -> None:
    """A later tier is asked at once, before the first or after it, where that is best."""
    at_once = run(cascade(CascadeRoute(plan((0.02, 0.02, 0.98)), mean_logprob), 0.0), mode).trace
    assert ["skip", "skip", "accept"] == [a.action for a in at_once.attempts]

    after = run(cascade(CascadeRoute(plan((0.6, 0.6, 0.7), 3.0), mean_logprob), -9.0), mode).trace
    assert ["small", "large"] == [a.name for a in after.attempts]
    assert "large" == after.answered_by


@modes
def test_call_when_an_earlier_answer_is_best(mode: str) -> None:
    """When it stops it keeps the answer that is expected to be best, and names its writer."""
    # the middle tier costs nothing and might have been better
    costs = ((0.001, 0.0), (0.0, 0.0), (9.0, 0.0))
    unsure = RoutingPlan(plan((0.6, 0.6, 0.7)).estimates, costs, (1.0, 1.0))
    found = run(cascade(CascadeRoute(unsure, mean_logprob), -0.788), mode)

    assert ["escalate", "accept"] == [a.action for a in found.trace.attempts]
    assert "s" == found.answer.text
    assert (("small",),) == tuple((name,) for _, _, name in found.trace.spans)
    assert "'small' is kept" in found.trace.attempts[1].reason


@modes
def test_call_when_a_tier_fails(mode: str) -> None:
    """A tier that raises is no answer: the plan decides among those that are left."""
    broken = Tier(FakeModel(RuntimeError("down"), name="small"), price=Price(1, 1))
    tiers = [broken, *cascade(Threshold(mean_logprob, 0), 0.0).tiers[1:]]
    made = Cascade(tiers, CascadeRoute(plan((0.6, 0.6, 0.7)), mean_logprob))
    trace = run(made, mode).trace

    assert "error" == trace.attempts[0].action
    assert trace.answered_by in ("middle", "large")


def test_share_when_two_ways_are_mixed() -> None:
    """The question's text decides which of two prices holds, in the shares of the plan."""
    one = plan((0.6, 0.6, 0.7))
    mixed = RoutingPlan(one.estimates, one.costs, (0.0, 1e6), 0.3)
    ways = [mixed.choose({0: -9.0}, f"question {i}", after=0).following for i in range(4000)]

    assert {None, 2} >= set(ways) - {1}
    assert 0.3 == pytest.approx(sum(way is not None for way in ways) / 4000, abs=0.03)
    assert ways[:50] == [
        mixed.choose({0: -9.0}, f"question {i}", after=0).following for i in range(50)
    ]


def test_policy_when_it_is_written_down(tmp_path: Any) -> None:
    """A policy and its plan are plain data; a plan with a hole is refused."""
    policy = CascadeRoute(plan((0.6, 0.6, 0.7)), (mean_logprob, mean_logprob))
    assert Policy.from_config(policy.to_config()) == policy
    assert frozenset({"logprobs"}) == policy.reads
    path = policy.plan.save(tmp_path / "plan.json")
    assert RoutingPlan.load(path) == policy.plan
    with pytest.raises(CalibrationError, match="exists"):
        policy.plan.save(path)
    with pytest.raises(CalibrationError, match="cannot read"):
        RoutingPlan.load(tmp_path / "absent.json")
    config = policy.plan.to_config()
    with pytest.raises(CalibrationError, match="do not fit"):
        RoutingPlan.from_config({**config, "estimates": config["estimates"][:2]})
    with pytest.raises(CalibrationError, match="incomplete"):
        RoutingPlan.from_config({**config, "prices": [1.0]})
    with pytest.raises(CalibrationError, match="schema"):
        RoutingPlan.from_config({})


def test_policy_when_arguments_are_wrong() -> None:
    """Arguments of the wrong kind, and a cascade of another size, are named at once."""
    with pytest.raises(ConfigurationError, match="RoutingPlan of fit_cascade_routing"):
        CascadeRoute(0.5, mean_logprob)
    with pytest.raises(ConfigurationError, match="one score, or 2"):
        CascadeRoute(plan((0.6, 0.6, 0.7)), (mean_logprob,))
    two = Cascade(
        [FakeModel("a", name="a"), FakeModel("b", name="b")],
        CascadeRoute(plan((0.6, 0.6, 0.7)), mean_logprob),
    )
    with pytest.raises(ConfigurationError, match="fitted on 3 tiers, the cascade has 2"):
        run(two, "invoke", Request("q", "q"))
