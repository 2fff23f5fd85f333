"""Breakers, bulkheads, deadlines, retries: a tier in trouble never hurts the call."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
import tenacity

from cascadellm import (
    Breaker,
    Bulkhead,
    Cascade,
    CircuitOpenError,
    ConfigurationError,
    DeadlineExceededError,
    Never,
    Request,
    Threshold,
    Tier,
    TierBusyError,
    mean_logprob,
)
from cascadellm.answer import Answer
from cascadellm.effects import Call
from cascadellm.perform import AsyncPerformer, LocalPerformer, adrive, drive
from cascadellm.resilience import classify, retrying
from cascadellm.testing import FakeClock, FakeModel

ASKED = Request([{"role": "user", "content": "hi"}], "hi")


class AsyncLocal(AsyncPerformer):
    """The async twin of the engine's own performer."""

    async def call(self, effect: Call) -> Answer:
        async with asyncio.timeout(effect.tier.timeout_s):
            return await effect.tier.model.agenerate(effect.request.native)


def test_breaker_opens_after_consecutive_failures_and_probes_after_the_pause() -> None:
    """A tier that fails twice is spared, probed once after the pause, and trusted again."""
    clock = FakeClock()
    breaker = Breaker(2, 10, clock=clock)
    broken = FakeModel([ConnectionError("down"), ConnectionError("down"), "back"], name="small")
    cascade = Cascade([Tier(broken, breaker=breaker), FakeModel("large", name="large")], Never())
    codes = []
    for _ in range(3):
        codes.append(drive(cascade.plan(ASKED), LocalPerformer()).trace.attempts[0].code)
    assert ["connection", "connection", "circuit_open"] == codes
    assert 2 == len(broken.calls)
    clock.advance(10)
    assert "half_open" == breaker.state
    assert "small" == drive(cascade.plan(ASKED), LocalPerformer()).trace.answered_by
    assert "closed" == breaker.state


def test_breaker_reopens_when_the_probe_fails() -> None:
    """One failed probe opens the circuit for another pause."""
    clock = FakeClock()
    breaker = Breaker(1, 10, clock=clock)
    breaker.leave("server")
    clock.advance(10)
    breaker.enter("t")
    with pytest.raises(CircuitOpenError, match="until its probe ends"):
        breaker.enter("t")
    breaker.leave("server")
    with pytest.raises(CircuitOpenError, match="is not asked for another 10 s"):
        breaker.enter("t")


def test_breaker_ignores_failures_that_are_the_requests_fault() -> None:
    """A bad request never opens the circuit."""
    breaker = Breaker(1)
    breaker.leave("bad_request")
    assert "closed" == breaker.state


def test_breaker_shared_by_two_cascades_protects_both() -> None:
    """What one cascade learns, the other knows."""
    tier = Tier(FakeModel(ConnectionError("x"), name="small"), breaker=Breaker(1, 60))
    first = Cascade([tier, FakeModel("l", name="large")], Never())
    second = Cascade([tier, FakeModel("l", name="large")], Never())
    drive(first.plan(ASKED), LocalPerformer())
    trace = drive(second.plan(ASKED), LocalPerformer()).trace
    assert "circuit_open" == trace.attempts[0].code


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_bulkhead_bounds_concurrency(mode: str) -> None:
    """Never more than `limit` calls run at once, whoever calls."""
    running, peak, lock = 0, 0, threading.Lock()

    def enter() -> None:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)

    def leave() -> None:
        nonlocal running
        with lock:
            running -= 1

    class Counting(FakeModel):
        def generate(self, messages, **kwargs):
            enter()
            time.sleep(0.01)
            leave()
            return super().generate(messages)

        async def agenerate(self, messages, **kwargs):
            enter()
            await asyncio.sleep(0.01)
            leave()
            return await super().agenerate(messages)

    bulkhead = Bulkhead(3)
    cascade = Cascade([Tier(Counting("x", name="t"), bulkhead=bulkhead)])
    if mode == "sync":
        calls = (asyncio.to_thread(drive, cascade.plan(ASKED), LocalPerformer()) for _ in range(12))
        await asyncio.gather(*calls)
    else:
        await asyncio.gather(*(adrive(cascade.plan(ASKED), AsyncLocal()) for _ in range(12)))
    assert 3 == peak
    assert 0 == bulkhead.running


async def test_bulkhead_refuses_when_its_queue_is_full_and_cancelled_waiters_leave() -> None:
    """A full queue is a clear error; a cancelled waiter gives its place back."""
    bulkhead = Bulkhead(1, queue=1)
    cascade = Cascade([Tier(FakeModel("x", name="t", delay_s=0.5), bulkhead=bulkhead)])
    first = asyncio.create_task(adrive(cascade.plan(ASKED), AsyncLocal()))
    await asyncio.sleep(0)
    second = asyncio.create_task(adrive(cascade.plan(ASKED), AsyncLocal()))
    await asyncio.sleep(0)
    with pytest.raises(TierBusyError, match="runs 1 calls and 1 wait"):
        await adrive(cascade.plan(ASKED), AsyncLocal())
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    await first
    assert 0 == bulkhead.running
    assert "x" == (await adrive(cascade.plan(ASKED), AsyncLocal())).answer.text


def test_deadline_bounds_the_whole_call() -> None:
    """A call never lasts longer than its deadline, and the best earlier answer is kept."""
    small = FakeModel("draft", name="small", logprob=-1.0)
    slow = FakeModel("late", name="large", delay_s=5.0)
    policy = Threshold(mean_logprob, -0.1)
    begun = time.perf_counter()
    with pytest.raises(DeadlineExceededError, match=r"deadline of 0\.1 s") as caught:
        drive(Cascade([small, slow], policy, deadline_s=0.1).plan(ASKED), LocalPerformer())
    assert time.perf_counter() - begun < 2
    assert "draft" == caught.value.best.text
    best = Cascade([small, slow], policy, deadline_s=0.1, on_exhausted="best")
    trace = drive(best.plan(ASKED), LocalPerformer()).trace
    assert ("small", "timeout") == (trace.answered_by, trace.attempts[1].code)


def test_deadline_is_checked_before_each_tier() -> None:
    """A tier is not asked once the deadline has passed."""
    clock = FakeClock()
    small = FakeModel(lambda _: clock.advance(9) or "draft", name="small", logprob=-1.0)
    large = FakeModel("l", name="large")
    cascade = Cascade([small, large], Threshold(mean_logprob, 0.0), deadline_s=5, clock=clock)
    with pytest.raises(DeadlineExceededError):
        drive(cascade.plan(ASKED), LocalPerformer())
    assert [] == large.calls


class HttpError(Exception):
    """An error shaped like a provider's."""

    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"HTTP {status}")
        self.status_code = status
        self.response = type("R", (), {"status_code": status, "headers": headers or {}})()


def test_retry_waits_as_long_as_the_provider_asks() -> None:
    """Retry-After decides the wait where the error carries it."""
    policy = retrying(3)
    state = tenacity.RetryCallState(policy, None, (), {})
    try:
        raise HttpError(429, {"retry-after": "7"})
    except HttpError as error:
        state.set_exception((type(error), error, error.__traceback__))
    assert 7.0 == policy.wait(state)


@pytest.mark.parametrize(
    ("status", "code", "calls"),
    [(429, "rate_limit", 3), (500, "server", 3), (401, "auth", 1), (400, "bad_request", 1)],
)
def test_retry_repeats_only_what_may_pass(status: int, code: str, calls: int) -> None:
    """Auth and request errors are not asked again."""
    model = FakeModel(HttpError(status), name="t")
    retry = retrying(3)
    retry.wait = tenacity.wait_none()
    with pytest.raises(HttpError):
        drive(Cascade([Tier(model, retry=retry)]).plan(ASKED), LocalPerformer())
    assert calls == len(model.calls)
    assert code == classify(HttpError(status))


@pytest.mark.parametrize("bad", [0, -1, 1.5, "x"])
def test_limits_reject_bad_numbers(bad: object) -> None:
    """Nonsense is refused where the object is built."""
    with pytest.raises(ConfigurationError, match="Breaker"):
        Breaker(bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="Bulkhead"):
        Bulkhead(bad)  # type: ignore[arg-type]
    if bad != 1.5:
        with pytest.raises(ConfigurationError, match="deadline_s"):
            Cascade([FakeModel()], deadline_s=bad if bad != "x" else float("nan"))  # type: ignore[arg-type]
