"""Random cascades in both frameworks against a model of a cascade in the plainest words.

Drawn are the tiers' answers, scores, prices and failures, the policy, its budget, and the tier
during which the caller leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.base.llms.types import ChatMessage

import langchain_cascade
import llamaindex_cascade
from cascadellm import Answer, Price, Record, Threshold, Tier, Usage, Valid, mean_logprob
from cascadellm.events import record_cascade
from cascadellm.policies import Budget
from cascadellm.testing import FakeModel
from tests.chaos.chaos_support import size

pytestmark = pytest.mark.chaos
READ, WRITTEN = 10, 3
"""Tokens of every call, as many as an answer's scores, so that both frameworks cost the same."""
MICRO = 1e-6


class RefusedError(Exception):
    """A provider's refusal before any work, which costs nothing."""

    status_code = 429


class BrokenError(Exception):
    """A provider's failure, after which nobody knows what the call costs."""

    status_code = 500


@dataclass(frozen=True)
class Drawn:
    """What a tier does: text or an error, token score, USD per million tokens."""

    says: Any
    logprob: float | None
    price: int | None

    @property
    def failed(self) -> bool:
        return isinstance(self.says, type)


@dataclass(frozen=True)
class Rules:
    """The policy of every boundary."""

    threshold: float
    valid: bool
    budget: float | None

    def policy(self) -> Any:
        found: Any = Threshold(mean_logprob, self.threshold)
        if self.valid:
            found = found | Valid()
        return found if self.budget is None else Budget(self.budget) & found


@dataclass(frozen=True)
class Expected:
    """What must happen: who answers, what happens at each tier, and the cost."""

    place: int | None
    actions: list[str]
    cost: float | None


DRAWN = st.builds(
    Drawn,
    says=st.sampled_from(["a fine answer", "some other words", "", RefusedError, BrokenError]),
    logprob=st.sampled_from([None, -2.0, -0.5, -0.1]),
    price=st.sampled_from([None, 0, 1, 4]),
)
STACKS = st.lists(DRAWN, min_size=1, max_size=4)
RULES = st.builds(
    Rules,
    threshold=st.sampled_from([-float("inf"), -1.0, -0.5, 0.0, float("inf")]),
    valid=st.booleans(),
    budget=st.sampled_from([None, 0.0, 20 * MICRO, 70 * MICRO, 1.0]),
)


def expected(stack: list[Drawn], rules: Rules) -> Expected:
    """Run the cascade in the plainest words."""
    actions: list[str] = []
    spent: float | None = 0.0
    for place, tier in enumerate(stack):
        if tier.failed:
            actions.append("error")
            free = tier.says is RefusedError and tier.price is not None
            spent = spent if free else None
            continue
        own = None if tier.price is None else tier.price * (READ + WRITTEN) * MICRO
        spent = None if spent is None or own is None else spent + own
        last = place == len(stack) - 1
        unscored = tier.logprob is None or tier.says == ""
        doubted = unscored or tier.logprob < rules.threshold or (rules.valid and tier.says == "")
        if last or not doubted or not _affords(stack[place + 1], spent, rules.budget):
            return Expected(place, [*actions, "accept"], spent)
        actions.append("escalate")
    return Expected(None, actions, spent)


def _affords(following: Drawn, spent: float | None, budget: float | None) -> bool:
    if budget is None:
        return True
    least = (following.price or 0) * READ * MICRO
    return spent is not None and spent < budget and spent + least <= budget


def tiers(stack: list[Drawn], waits: int | None = None) -> list[Tier]:
    """Build the tiers; the one in which the caller leaves never ends."""
    return [
        Tier(
            FakeModel(
                drawn.says("no")
                if drawn.failed
                else Answer(drawn.says, usage=Usage(READ, WRITTEN)),
                logprob=drawn.logprob,
                delay_s=60.0 if place == waits else 0.0,
            ),
            name=f"t{place}",
            price=None if drawn.price is None else Price(drawn.price, drawn.price),
        )
        for place, drawn in enumerate(stack)
    ]


async def _read(stream: Any) -> Any:
    return [chunk async for chunk in stream]


async def _opened(opening: Any) -> Any:
    return await _read(await opening)


SYNC: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "invoke": (langchain_cascade, lambda llm: llm.invoke("hi")),
    "stream": (langchain_cascade, lambda llm: list(llm.stream("hi"))),
    "batch": (langchain_cascade, lambda llm: llm.batch(["hi", "hi"])),
    "complete": (llamaindex_cascade, lambda llm: llm.complete("hi")),
    "stream_chat": (
        llamaindex_cascade,
        lambda llm: list(llm.stream_chat([ChatMessage(content="hi")])),
    ),
}
ASYNC: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "ainvoke": (langchain_cascade, lambda llm: llm.ainvoke("hi")),
    "astream": (langchain_cascade, lambda llm: _read(llm.astream("hi"))),
    "abatch": (langchain_cascade, lambda llm: llm.abatch(["hi", "hi"])),
    "achat": (llamaindex_cascade, lambda llm: llm.achat([ChatMessage(content="hi")])),
    "astream_complete": (llamaindex_cascade, lambda llm: _opened(llm.astream_complete("hi"))),
}


def run(package: Any, call: Callable[[Any], Any], stack: list[Drawn], rules: Rules) -> list[Record]:
    """Make one call and return its records."""
    with record_cascade() as seen, contextlib.suppress(RefusedError, BrokenError):
        found = call(package.CascadeLLM(tiers(stack), rules.policy()))
        if asyncio.iscoroutine(found):
            asyncio.run(found)
    return list(seen.records)


def check(record: Record, stack: list[Drawn], wanted: Expected, way: str) -> None:
    """Compare a record with what must happen."""
    trace = record.trace
    assert wanted.actions == [attempt.action for attempt in trace.attempts], way
    assert (None if wanted.place is None else f"t{wanted.place}") == trace.answered_by, way
    assert trace.cost_usd == (wanted.cost if wanted.cost is None else pytest.approx(wanted.cost)), (
        way
    )
    if wanted.place is not None:
        assert stack[wanted.place].says == record.output, way


@settings(max_examples=size(500, 60), deadline=None, derandomize=True)
@given(STACKS, RULES)
def test_every_way_does_what_the_plain_model_says(stack: list[Drawn], rules: Rules) -> None:
    """Sync, async, streamed and batched calls of both frameworks decide, answer and cost alike."""
    wanted = expected(stack, rules)
    for way, (package, call) in {**SYNC, **ASYNC}.items():
        records = run(package, call, stack, rules)
        assert records, way
        for record in records:
            check(record, stack, wanted, way)


async def leave(llm: Any, call: Callable[[Any], Any], waiting: FakeModel) -> None:
    """Cancel a call once the tier that never ends is asked."""
    task = asyncio.ensure_future(call(llm))
    while not task.done() and not waiting.calls:  # noqa: ASYNC110 - a fake has no event
        await asyncio.sleep(0.0005)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, RefusedError, BrokenError):
        await task


@settings(max_examples=size(300, 40), deadline=None, derandomize=True)
@given(STACKS, RULES, st.integers(0, 3))
def test_a_cancelled_call_is_recorded_wherever_it_stood(
    stack: list[Drawn], rules: Rules, waits: int
) -> None:
    """The record holds what was done, the tier that ran is stopped, no later one is asked."""
    waits %= len(stack)
    stack[waits] = Drawn("a fine answer", stack[waits].logprob, stack[waits].price)
    wanted = expected(stack, rules)
    reached = len(wanted.actions) > waits
    for way, (package, call) in ASYNC.items():
        if way == "abatch":
            continue
        built = tiers(stack, waits)
        with record_cascade() as seen:
            asyncio.run(leave(package.CascadeLLM(built, rules.policy()), call, built[waits].model))
        (record,) = seen.records
        if not reached:
            check(record, stack, wanted, way)
            continue
        assert record.trace.abandoned, way
        actions = [attempt.action for attempt in record.trace.attempts]
        assert [*wanted.actions[:waits], "stopped"] == actions, way
        assert record.trace.answered_by is None, way
        assert [0] * (len(stack) - waits - 1) == [len(t.model.calls) for t in built[waits + 1 :]]


def test_mutation_an_ignored_budget_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain model disagrees with a cascade whose budget allows everything."""
    stack = [Drawn("some other words", -2.0, 4), Drawn("a fine answer", -0.1, 4)]
    rules = Rules(0.0, valid=False, budget=20 * MICRO)
    package, call = SYNC["invoke"]
    check(run(package, call, stack, rules)[0], stack, expected(stack, rules), "invoke")
    monkeypatch.setattr(Budget, "_over", lambda *_, **__: None)
    with pytest.raises(AssertionError):
        check(run(package, call, stack, rules)[0], stack, expected(stack, rules), "invoke")
