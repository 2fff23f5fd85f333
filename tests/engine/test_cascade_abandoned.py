"""A caller that leaves before the end: what the record says, and what it must not say."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from cascadellm import Always, Answer, Price, Request, Tier, Usage, record_cascade
from cascadellm.breaker import Breaker
from cascadellm.cascade import Cascade
from cascadellm.drivers import Done, abandon, advance, drive
from cascadellm.effects import Left, Relay
from cascadellm.events import Abandoned, Accepted, Failed, TierFailed
from cascadellm.perform import AsyncLocalPerformer, LocalPerformer, adrive
from cascadellm.summary import summarise
from cascadellm.testing import EventRecorder, FakeModel

ASKED = Request([{"role": "user", "content": "q"}], "q")
SHOWN = Answer("half of", usage=Usage(5, 2))


def cascade(**large: Any) -> Cascade:
    """Return a cascade whose large tier would be streamed live."""
    small = Tier(FakeModel("draft", name="small", logprob=-1.0), price=Price(1.0, 1.0))
    return Cascade([small, Tier(FakeModel("x", name="large"), **large)], Always())


def left(plan: Any, shown: Answer | None = SHOWN) -> tuple[EventRecorder, Any]:
    """Run a plan to its live stream and leave it there; return (events, records)."""
    told = EventRecorder()
    perform = LocalPerformer([told])
    with record_cascade() as recorder:
        assert isinstance(advance(plan, perform), Relay)
        abandon(plan, perform, shown)
    return told, recorder.records


def test_abandoned_stream_is_recorded_with_what_it_cost_so_far() -> None:
    """The record names the tier that wrote, says `abandoned`, and counts the usage so far."""
    plan = cascade(price=Price(10.0, 10.0)).plan(ASKED)
    told, (record,) = left(plan)
    (event,) = told.of(Abandoned)
    trace = record.trace
    last = trace.attempts[-1]

    assert trace is event.trace
    assert ("large", 1, True) == (trace.answered_by, trace.tier, trace.abandoned)
    assert ("stopped", "abandoned", None) == (last.action, last.code, last.error)
    assert (5, 2, 7e-5) == (last.input_tokens, last.output_tokens, pytest.approx(last.cost_usd))
    assert ("half of", None) == (record.output, record.error)
    assert ((0, 7, "large"),) == trace.spans
    assert not [*told.of(Accepted), *told.of(Failed), *told.of(TierFailed)]


def test_abandoned_stream_of_unknown_usage_costs_an_unknown_sum() -> None:
    """A provider that counts at the end only leaves an unknown cost, never zero."""
    _, (record,) = left(cascade(price=Price(1.0, 1.0)).plan(ASKED), Answer("half of"))
    assert record.trace.cost_usd is None


def test_abandoned_before_anything_was_shown_has_no_answer() -> None:
    """A call that nobody was shown anything of was answered by nobody, and did not fail."""
    _, (record,) = left(cascade().plan(ASKED), None)
    summary = summarise([record])

    assert (None, True) == (record.trace.answered_by, record.trace.abandoned)
    assert (1, 0) == (summary.abandoned, summary.failed)
    assert "1 abandoned" in str(summary)


def test_abandoned_says_nothing_after_the_end() -> None:
    """A plan that has ended, or never began, is left without a word."""
    told = EventRecorder()
    perform = LocalPerformer([told])
    plan = cascade().plan(ASKED)
    step = advance(plan, perform)
    assert isinstance(advance(plan, perform, send=SHOWN), Done)
    assert isinstance(step, Relay)
    abandon(plan, perform, SHOWN)
    abandon(cascade().plan(ASKED), perform)
    assert 1 == len(told.of(Accepted))
    assert not told.of(Abandoned)


def test_abandoned_is_no_failure_for_retry_and_breaker() -> None:
    """Leaving neither asks a tier again nor counts against its health."""
    breaker = Breaker(failures=1)
    plan = cascade(retry=5, breaker=breaker).plan(ASKED)
    left(plan)
    assert "closed" == breaker.state
    with pytest.raises(StopIteration):
        next(plan)


def test_abandoned_would_be_noticed_as_a_failure() -> None:
    """The check has power: a signal that is an ordinary exception is retried (mutation)."""
    large = FakeModel("x", name="large")
    plan = Cascade([FakeModel("d", name="small"), Tier(large, retry=2)], Always()).plan(ASKED)
    perform = LocalPerformer()
    advance(plan, perform)
    assert not isinstance(Left(), Exception)
    step = advance(plan, perform, throw=RuntimeError("left"))
    assert isinstance(step, Relay)


def test_cancelled_call_is_recorded() -> None:
    """A cancelled task leaves a record of what was paid, and the cancellation passes."""
    told = EventRecorder()
    slow = FakeModel("late", name="large", delay_s=30)
    plan = Cascade([FakeModel("draft", name="small"), slow], Always()).plan(ASKED)

    async def run() -> None:
        task = asyncio.create_task(adrive(plan, AsyncLocalPerformer([told])))
        await asyncio.sleep(0.05)
        assert slow.calls
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    (event,) = told.of(Abandoned)
    assert ["escalate", "stopped"] == [a.action for a in event.trace.attempts]
    assert event.trace.attempts[0].input_tokens is not None


def test_first_token_time_is_recorded_for_a_live_stream() -> None:
    """A driver that streams tells when the first part arrived; others leave it out."""
    plan = cascade().plan(ASKED)
    perform = LocalPerformer()
    step = advance(plan, perform)
    assert isinstance(step, Relay)
    call: Any = step.source
    call.began()
    done = advance(plan, perform, send=SHOWN)
    assert isinstance(done, Done)
    first = done.value.trace.attempts[-1].first_token_s
    assert first is not None
    assert 0 <= first <= done.value.trace.attempts[-1].latency_s
    assert drive(cascade().plan(ASKED), perform).trace.attempts[-1].first_token_s is None


def test_a_handler_that_raises_does_not_stop_the_leaving() -> None:
    """What a handler raises on the last event never reaches the one who left."""

    class Raises:
        def on_event(self, event: Any) -> None:
            raise RuntimeError("handler")

    def steps() -> Iterator[Any]:
        plan = cascade().plan(ASKED)
        perform = LocalPerformer([Raises()])
        yield advance(plan, perform)
        abandon(plan, perform, SHOWN)

    assert 1 == len(list(steps()))
