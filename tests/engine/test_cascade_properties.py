"""Random cascades against a small model of what a cascade is."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadellm import Cascade, Price, Request, Threshold, Tier, Valid, mean_logprob
from cascadellm.answer import Answer, Trace
from cascadellm.effects import Call
from cascadellm.perform import (
    AsyncPerformer,
    Done,
    LocalPerformer,
    aadvance,
    adrive,
    advance,
    drive,
)
from cascadellm.testing import FakeModel

ASKED = Request([{"role": "user", "content": "hi"}], "hi")


class AsyncLocal(AsyncPerformer):
    """The async twin of the engine's own performer."""

    async def call(self, effect: Call) -> Answer:
        return await effect.tier.model.agenerate(effect.request.native)


@dataclass(frozen=True)
class Plan:
    """One tier as drawn: what it says (None = it raises), its score, its price."""

    text: str | None
    logprob: float | None
    price: int | None


PLANS = st.builds(
    Plan,
    text=st.sampled_from(["fine answer", "other", "", None]),
    logprob=st.sampled_from([None, -2.0, -0.5, -0.1]),
    price=st.sampled_from([None, 0, 3]),
)
STACKS = st.lists(PLANS, min_size=1, max_size=4)
THRESHOLDS = st.sampled_from([-math.inf, -1.0, -0.5, -0.1, 0.0, math.inf])


def build(stack: list[Plan], threshold: float, valid: bool, **options) -> Cascade:
    tiers = [
        Tier(
            FakeModel(
                RuntimeError(f"tier {i}") if plan.text is None else plan.text, logprob=plan.logprob
            ),
            name=f"t{i}",
            price=None if plan.price is None else Price(plan.price, plan.price),
        )
        for i, plan in enumerate(stack)
    ]
    policy = Threshold(mean_logprob, threshold)
    boundary = policy | Valid() if valid else policy
    return Cascade(tiers, boundary if len(tiers) > 1 else None, **options)


def expected(stack: list[Plan], threshold: float, valid: bool) -> tuple[int | None, list[str]]:
    """Say which tier answers and what happens at each, in the plainest words."""
    actions = []
    for i, plan in enumerate(stack):
        last = i == len(stack) - 1
        if plan.text is None:
            actions.append("error")
            continue
        unscored = plan.logprob is None or plan.text == ""
        defers = unscored or plan.logprob < threshold or (valid and plan.text == "")
        if last or not defers:
            return i, [*actions, "accept"]
        actions.append("escalate")
    return None, actions


def summary(trace: Trace) -> tuple:
    """Everything of a trace but the times."""
    return (
        trace.answered_by,
        trace.escalated,
        trace.cost_usd,
        trace.spans,
        tuple(sorted((k, tuple(v.items())) for k, v in trace.tokens_by_tier.items())),
        tuple((a.tier, a.action, a.code, a.score, a.reason, a.cost_usd) for a in trace.attempts),
    )


def run_all(stack: list[Plan], threshold: float, valid: bool) -> list:
    """Run one cascade in every way; return (answer, summary) or the error per way."""

    def sync():
        outcome = drive(build(stack, threshold, valid).plan(ASKED), LocalPerformer())
        return outcome.answer.text, summary(outcome.trace)

    def streamed():
        plan, perform = build(stack, threshold, valid).plan(ASKED), LocalPerformer()
        state = advance(plan, perform)
        while not isinstance(state, Done):
            try:
                shown = perform(state)
            except Exception as error:
                state = advance(plan, perform, throw=error)
            else:
                state = advance(plan, perform, send=shown)
        return state.value.answer.text, summary(state.value.trace)

    async def plain():
        outcome = await adrive(build(stack, threshold, valid).plan(ASKED), AsyncLocal())
        return outcome.answer.text, summary(outcome.trace)

    async def astreamed():
        plan, perform = build(stack, threshold, valid).plan(ASKED), AsyncLocal()
        state = await aadvance(plan, perform)
        while not isinstance(state, Done):
            try:
                shown = await perform(state)
            except Exception as error:
                state = await aadvance(plan, perform, throw=error)
            else:
                state = await aadvance(plan, perform, send=shown)
        return state.value.answer.text, summary(state.value.trace)

    results = []
    for way in (sync, streamed, lambda: asyncio.run(plain()), lambda: asyncio.run(astreamed())):
        try:
            results.append(way())
        except RuntimeError as error:
            results.append(("error", str(error)))
    return results


@settings(max_examples=120, deadline=None)
@given(STACKS, THRESHOLDS, st.booleans())
def test_sync_async_and_streamed_runs_agree_with_the_model(stack, threshold, valid) -> None:
    """Whatever the stack, all four drivers do what the plain description says."""
    results = run_all(stack, threshold, valid)
    assert all(result == results[0] for result in results)
    index, actions = expected(stack, threshold, valid)
    if index is None:
        assert ("error", f"tier {len(stack) - 1}") == results[0]
        return
    text, (answered_by, escalated, cost, spans, _, attempts) = results[0]
    assert (stack[index].text, f"t{index}") == (text, answered_by)
    assert actions == [attempt[1] for attempt in attempts]
    assert escalated == (index > 0)
    assert ((0, len(text), f"t{index}"),) == spans
    unknown = any(stack[a[0]].price is None or (a[1] == "error") for a in attempts)
    assert (cost is None) == unknown


@settings(max_examples=60, deadline=None)
@given(STACKS.filter(lambda s: s[0].text), st.sampled_from([-0.05, -5.0]), PLANS)
def test_a_tier_that_is_never_reached_changes_nothing(stack, logprob, extra) -> None:
    """Appending a tier behind an accepting one leaves answer, cost and record alone."""
    first = Plan(stack[0].text, -0.05, stack[0].price)
    short = build([first, extra], -1.0, False)
    longer = build([first, extra, *stack], -1.0, False)
    one = drive(short.plan(ASKED), LocalPerformer())
    two = drive(longer.plan(ASKED), LocalPerformer())
    assert (one.answer.text, summary(one.trace)) == (two.answer.text, summary(two.trace))


@pytest.mark.parametrize(
    ("threshold", "answered_by", "paid"),
    [(-math.inf, "t0", ["t0"]), (math.inf, "t1", ["t0", "t1"])],
)
def test_infinite_thresholds_are_the_single_models(threshold, answered_by, paid) -> None:
    """-inf is the small model alone and +inf pays both and answers with the large one."""
    stack = [Plan("small text", -0.3, 1), Plan("big", -0.1, 3)]
    outcome = drive(build(stack, threshold, False).plan(ASKED), LocalPerformer())
    assert answered_by == outcome.trace.answered_by
    assert stack[int(answered_by[1])].text == outcome.answer.text
    alone = {
        f"t{i}": drive(build([plan], threshold, False).plan(ASKED), LocalPerformer()).trace.cost_usd
        for i, plan in enumerate(stack)
    }
    # a single tier is named t0 whatever it is, so its cost stands under its place here
    assert sum(alone[name] for name in paid) == pytest.approx(outcome.trace.cost_usd, rel=1e-12)


def test_flipping_the_threshold_is_noticed() -> None:
    """Mutation: a threshold with its sign flipped disagrees with the model of the cascade."""
    stack = [Plan("fine answer", -0.5, 0), Plan("other", -0.1, 0)]
    right = drive(build(stack, -0.1, False).plan(ASKED), LocalPerformer())
    index, _ = expected(stack, -0.1, False)
    assert f"t{index}" == right.trace.answered_by
    flipped = Threshold(lambda answer: -(mean_logprob(answer) or 0.0), -0.1)
    wrong = drive(build(stack, -0.1, False).with_policy(flipped).plan(ASKED), LocalPerformer())
    assert f"t{index}" != wrong.trace.answered_by
