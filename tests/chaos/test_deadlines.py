"""A call's deadline bounds tiers, retries, judges, resamples, hedges and streams alike."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

import langchain_cascade
import llamaindex_cascade
from cascadellm import DeadlineExceededError, Policy, Threshold, Tier, mean_logprob
from cascadellm.answer import Decision
from cascadellm.events import record_cascade
from cascadellm.ledger import Ledger
from cascadellm.policies import (
    Agreement,
    EarlyAbort,
    Hedge,
    Judge,
    Moment,
    PrefixCommit,
    SelfConsistency,
    SelfVerify,
)
from cascadellm.testing import FakeModel

DEADLINE_S = 0.1
SLOW_S = 4.0
DOUBT = Threshold(mean_logprob, -1.0)


class LimitedError(Exception):
    """A provider that asks for a long wait."""

    status_code = 429
    response = type("Response", (), {"status_code": 429, "headers": {"retry-after": "30"}})()


class Asks(Policy):
    """A policy that waits for a service of its own."""

    async def after(self, moment: Moment) -> Decision:
        await asyncio.sleep(SLOW_S)
        return Decision(False, self.name, code="ok", reason="late")


def small(delay_s: float = 0.0, logprob: float = -2.0) -> FakeModel:
    """A tier whose answer is doubted."""
    return FakeModel("one two three four", name="small", logprob=logprob, delay_s=delay_s)


def slow(text: str = "yes and more", name: str = "slow") -> FakeModel:
    """A model that takes longer than the deadline, by far."""
    return FakeModel(text, name=name, delay_s=SLOW_S)


CASES: dict[str, Callable[[], tuple[list[Any], Any]]] = {
    "last tier": lambda: ([small(), slow()], DOUBT),
    "live stream": lambda: ([small(), FakeModel("a b c d e f", delay_s=0.06)], DOUBT),
    "retried tier": lambda: ([Tier(slow(), retry=3), FakeModel()], DOUBT),
    "asked to wait": lambda: ([small(), Tier(FakeModel(LimitedError("slow")), retry=3)], DOUBT),
    "judge": lambda: ([small(), slow()], Judge(slow())),
    "judge's samples": lambda: ([small(), slow()], SelfVerify(k=3, model=slow())),
    "samples": lambda: ([FakeModel(["a"] * 9, delay_s=0.06), slow()], SelfConsistency(3)),
    "other models": lambda: ([small(), slow()], Agreement([slow("a"), slow("b", "slower")])),
    "hedged tier": lambda: ([small(0.02), slow()], Hedge(DOUBT, after_s=0.05)),
    "watched draft": lambda: (
        [small(0.06), slow()],
        EarlyAbort(mean_logprob, -3.0, after_tokens=9),
    ),
    "committed draft": lambda: (
        [small(0.04, -0.1), slow()],
        PrefixCommit(mean_logprob, -1.0, tokens=1),
    ),
}


async def _go(llm: Any, way: str) -> Any:
    found = getattr(llm, way)("hi")
    return await found if asyncio.iscoroutine(found) else [chunk async for chunk in found]


WAYS: dict[str, Callable[[Any, Any, dict[str, Any]], Any]] = {
    "stream": lambda tiers, policy, kw: list(
        langchain_cascade.CascadeLLM(tiers, policy, **kw).stream("hi")
    ),
    "ainvoke": lambda tiers, policy, kw: asyncio.run(
        _go(langchain_cascade.CascadeLLM(tiers, policy, **kw), "ainvoke")
    ),
    "stream_complete": lambda tiers, policy, kw: list(
        llamaindex_cascade.CascadeLLM(tiers, policy, **kw).stream_complete("hi")
    ),
    "acomplete": lambda tiers, policy, kw: asyncio.run(
        _go(llamaindex_cascade.CascadeLLM(tiers, policy, **kw), "acomplete")
    ),
}


def seconds(way: str, tiers: list[Any], policy: Any, raised: Any) -> tuple[float, Any]:
    """Make one call; return how long it took and its record."""
    begun = time.perf_counter()
    with record_cascade() as seen, pytest.raises(raised):
        WAYS[way](tiers, policy, {"deadline_s": DEADLINE_S})
    return time.perf_counter() - begun, seen.records[0]


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("case", list(CASES))
def test_everything_ends_with_the_deadline(case: str, way: str) -> None:
    """Whatever is slow, the call ends in time with an error that says why, and is recorded."""
    tiers, policy = CASES[case]()
    if "stream" not in way and case == "live stream":
        # without a stream the fake answers at once
        tiers[1].delay_s = SLOW_S
    if case == "asked to wait":
        took, record = seconds(way, tiers, policy, LimitedError)
        assert "rate_limit" == record.trace.attempts[-1].code
    else:
        took, record = seconds(way, tiers, policy, DeadlineExceededError)
    assert took < SLOW_S / 2
    assert record.trace.answered_by is None


@pytest.mark.parametrize("way", ["ainvoke", "acomplete"])
def test_a_policy_that_waits_is_cut_off(way: str) -> None:
    """An async policy's own waiting counts too."""
    took, record = seconds(way, [small(), slow()], Asks(), DeadlineExceededError)
    assert took < SLOW_S / 2
    assert "policy_error" == record.trace.attempts[0].code


def test_mutation_unlimited_side_calls_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measure fails when what a policy asks for ignores the deadline."""
    monkeypatch.setattr(Ledger, "_in_time", lambda _self, effect: effect)
    tiers, policy = [small(), slow()], Judge(FakeModel("no", delay_s=SLOW_S / 2))
    took, _ = seconds("stream", tiers, policy, DeadlineExceededError)
    assert took >= SLOW_S / 2
