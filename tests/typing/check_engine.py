"""Types of the engine as a user sees them: checked by mypy, never run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_type

from cascadellm import (
    Answer,
    Cascade,
    Decision,
    Outcome,
    Policy,
    Price,
    Request,
    Threshold,
    Tier,
    Trace,
    Valid,
    mean_logprob,
    quantile_logprob,
)
from cascadellm.effects import Plan
from cascadellm.perform import LocalPerformer, drive
from cascadellm.testing import FakeModel


def deferral_policies_combine() -> None:
    """Operators between policies and plain functions give policies."""
    policy = Threshold(mean_logprob, -0.35)
    assert_type(policy | Valid(), Policy)
    assert_type(policy & short, Policy)
    assert_type(~policy, Policy)
    assert_type(policy.to_config(), dict[str, Any])
    assert_type(Policy.from_config(policy.to_config()), Policy)


def short(answer: Answer) -> bool:
    """Defer short answers."""
    return len(answer.text) < 3


def scores_return_a_number_or_nothing(answer: Answer) -> None:
    """A score says None where the answer lacks what it reads."""
    assert_type(mean_logprob(answer), float | None)
    assert_type(quantile_logprob(0.1)(answer), float | None)


def a_cascade_is_driven_to_an_outcome() -> None:
    """One plan, one outcome."""
    small = Tier(FakeModel("4"), name="small", price=Price(input=0.1, output=0.2))
    cascade = Cascade([small, FakeModel("4")], policy=short)
    plan = cascade.plan(Request("2 + 2?"))
    assert_type(plan, Plan[Outcome])
    outcome = drive(plan, LocalPerformer())
    assert_type(outcome, Outcome)
    assert_type(outcome.trace, Trace)
    assert_type(outcome.trace.answered_by, str | None)
    assert_type(outcome.trace.cost_usd, float | None)
    assert_type(outcome.trace.to_dict(), dict[str, Any])


def a_decision_is_frozen(decision: Decision) -> None:
    """Values cannot be changed."""
    decision.defer = True  # type: ignore[misc]


def wrong_uses_are_errors(function: Callable[[int], str]) -> None:
    """The checker finds what would fail at run time."""
    Cascade([FakeModel()], on_tier_error="ignore")  # type: ignore[arg-type]
    Threshold(mean_logprob, -0.35, missing="skip")  # type: ignore[arg-type]
    Cascade([FakeModel(), FakeModel()], policy=function)  # type: ignore[arg-type]
    Tier(FakeModel(), price=0.1)  # type: ignore[arg-type]
