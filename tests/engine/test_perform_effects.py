"""Performers and drivers: each effect, sync and async."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Generator
from typing import Any

import pytest

from cascadellm import Answer, ConfigurationError, Price, Request, Tier
from cascadellm.drivers import Done, aadvance, adrive, advance, drive
from cascadellm.effects import (
    Await,
    Call,
    CallMany,
    Compute,
    Emit,
    Judge,
    Relay,
    Sleep,
    Start,
    Wait,
)
from cascadellm.ledger import Ledger, Unit
from cascadellm.perform import (
    AsyncLocalPerformer,
    AsyncPerformer,
    LocalPerformer,
    Performer,
)
from cascadellm.testing import EventRecorder, FakeClock, FakeModel

REQUEST = Request("hi", "hi")


def call(reply: Any, **options: Any) -> Call:
    """Return a call of a fake."""
    return Call(0, Tier(FakeModel(reply, **options), price=Price(1, 1)), REQUEST)


def perform(effect: Any, how: str) -> Any:
    """Perform one effect."""
    if how == "sync":
        return LocalPerformer()(effect)
    return asyncio.run(AsyncLocalPerformer()(effect))


both = pytest.mark.parametrize("how", ["sync", "async"])


@both
def test_effects_when_performed(how: str) -> None:
    """Each effect has its result."""
    answer = Answer("shown")

    assert "x" == perform(call("x"), how).text
    assert answer is perform(Relay(answer), how)
    assert "y" == perform(Relay(call("y")), how).text
    assert "z" == perform(Judge(Tier(FakeModel("z")), "is it?"), how).text
    assert 3 == perform(Compute(lambda: 3), how)
    assert None is perform(Sleep(0.0), how)
    with pytest.raises(TypeError, match="unknown effect"):
        perform("nonsense", how)


@both
def test_judge_when_asked(how: str) -> None:
    """A judge receives its prompt as a user message, with the tier's and call's arguments."""
    model = FakeModel("yes")
    tier = Tier(model, kwargs={"temperature": 0, "seed": 1})
    perform(Judge(tier, "is it?", kwargs={"seed": 2}), how)

    assert [([{"role": "user", "content": "is it?"}], {"temperature": 0, "seed": 2})] == model.calls


@both
@pytest.mark.parametrize("count", [1, 3])
def test_call_many_when_some_fail(how: str, count: int) -> None:
    """Results stand in the order of the calls, errors among them."""
    calls = (call(ValueError("no")), call("b"), Judge(Tier(FakeModel("c")), "?"))[:count]
    found = perform(CallMany(calls), how)

    assert ["ValueError", "b", "c"][:count] == [
        type(one).__name__ if isinstance(one, Exception) else one.text for one in found
    ]


@both
def test_call_many_when_calls_are_slow(how: str) -> None:
    """Calls overlap."""
    begun = time.perf_counter()
    perform(CallMany(tuple(call("x", delay_s=0.15) for _ in range(4))), how)

    assert 0.4 > time.perf_counter() - begun


def test_call_many_when_the_context_is_read() -> None:
    """Each thread runs in a copy of the caller's context."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    variable.set("mine")
    found = LocalPerformer()(
        CallMany((call(lambda m: variable.get()), call(lambda m: variable.get())))
    )

    assert ["mine", "mine"] == [one.text for one in found]


async def test_compute_when_async() -> None:
    """Heavy work runs off the event loop's thread."""
    here = threading.get_ident()

    assert here != await AsyncLocalPerformer()(Compute(threading.get_ident))


async def test_await_when_async() -> None:
    """An awaitable is awaited in async calls."""

    async def seven() -> int:
        return 7

    assert 7 == await AsyncLocalPerformer()(Await(seven(), "p"))


def test_await_when_sync() -> None:
    """A sync driver refuses an awaitable and closes it."""

    async def seven() -> int:
        return 7

    coroutine = seven()
    with pytest.raises(ConfigurationError, match="policy 'p' is async"):
        LocalPerformer()(Await(coroutine, "p"))
    assert None is coroutine.cr_frame


@both
def test_emit_when_handlers_listen(how: str) -> None:
    """Events reach the performer's handlers."""
    told = EventRecorder()
    if how == "sync":
        LocalPerformer([told])(Emit("event"))
    else:
        asyncio.run(AsyncLocalPerformer([told])(Emit("event")))

    assert ["event"] == told.events


async def test_emit_when_it_returns_an_awaitable() -> None:
    """An async adapter's `emit` may be awaited."""
    seen: list[Any] = []

    class Slow(AsyncPerformer):
        def emit(self, event: Any) -> Any:
            async def told() -> None:
                seen.append(event)

            return told()

    await Slow()(Emit("event"))

    assert ["event"] == seen


def _ask(base: Any, effect: Any) -> None:
    result = base()(effect)
    if base is AsyncPerformer:
        asyncio.run(result)


@pytest.mark.parametrize("base", [Performer, AsyncPerformer])
def test_performer_when_call_and_judge_are_left_out(base: Any) -> None:
    """A performer without `call` or `judge` says so."""
    for effect in (call("x"), Judge(Tier(FakeModel()), "?")):
        with pytest.raises(NotImplementedError):
            _ask(base, effect)


# --- plans beside the plan --------------------------------------------------------------------


def asking(effect: Call) -> Any:
    """Return a plan that asks once."""

    def plan(handle: Any) -> Any:
        return (yield effect)

    return plan


def beside(*starts: Start) -> Any:
    """Start plans, wait for the first of them, and return all handles and that one."""
    handles = []
    for start in starts:
        handles.append((yield start))
    first = yield Wait(tuple(handles))
    return handles, first


def run_beside(how: str, *starts: Start) -> Any:
    """Run `beside` and return (place of the first to end, its result or error)."""

    def outcome(found: Any) -> tuple[int, Any]:
        handles, first = found
        try:
            value = first.result().text
        except Exception as error:
            value = error
        place = handles.index(first)
        for handle in handles:
            handle.cancel()
        return place, value

    if how == "sync":
        return outcome(drive(beside(*starts), LocalPerformer()))

    async def go() -> Any:
        return outcome(await adrive(beside(*starts), AsyncLocalPerformer()))

    return asyncio.run(go())


@both
@pytest.mark.parametrize(
    ("first", "second", "after_s", "place", "value"),
    [
        (("a", 0.0), ("b", 0.3), 0.0, 0, "a"),
        (("a", 0.4), ("b", 0.0), 0.0, 1, "b"),
        (("a", 0.4), ("b", 0.0), 0.05, 1, "b"),
        (("a", 0.05), ("b", 0.0), 5.0, 0, "a"),
    ],
)
def test_start_when_plans_run_beside(
    how: str, first: Any, second: Any, after_s: float, place: int, value: str
) -> None:
    """The first to end is told, whoever it is; one that waits starts after its time."""
    one, two = (call(reply, delay_s=delay) for reply, delay in (first, second))
    found = run_beside(how, Start(asking(one)), Start(asking(two), after_s))

    assert (place, value) == found
    assert (0 if after_s > 1 else 1) == len(two.tier.model.calls)


@both
def test_start_when_a_plan_fails(how: str) -> None:
    """A plan's error is raised by its handle, not by whoever waits."""
    place, error = run_beside(how, Start(asking(call(ValueError("no")))))

    assert (0, "no") == (place, str(error))


# --- drivers ----------------------------------------------------------------------------------


def plan_of(*effects: Any) -> Generator[Any, Any, list[Any]]:
    """A plan that yields effects and returns what it received, errors included."""
    seen: list[Any] = []
    for effect in effects:
        try:
            seen.append((yield effect))
        except Exception as error:
            seen.append(error)
    return seen


def failing() -> Any:
    """Raise."""
    raise ValueError("no")


def test_drive_when_an_effect_fails() -> None:
    """An effect's error is thrown into the plan, which may go on."""
    effects = (Compute(lambda: 1), Compute(failing), Compute(lambda: 2))
    here = drive(plan_of(*effects), LocalPerformer())
    there = asyncio.run(adrive(plan_of(*effects), AsyncLocalPerformer()))

    for seen in (here, there):
        assert (1, 2) == (seen[0], seen[2])
        assert isinstance(seen[1], ValueError)


async def test_advance_when_a_plan_relays() -> None:
    """`advance` stops at each relay and hands its result, or its error, back in."""
    effects = (Compute(lambda: 1), Relay(Answer("a")), Compute(failing), Relay(Answer("b")))
    here, there = plan_of(*effects), plan_of(*effects)
    for plan, step in ((here, advance), (there, aadvance)):
        perform: Any = LocalPerformer() if step is advance else AsyncLocalPerformer()

        async def go(
            plan: Any = plan, step: Any = step, perform: Any = perform, **with_: Any
        ) -> Any:
            found = step(plan, perform, **with_)
            return await found if step is aadvance else found

        assert isinstance(await go(), Relay)
        assert isinstance(await go(send="shown"), Relay)
        last = await go(throw=KeyError("broken"))
        assert isinstance(last, Done)
        assert [1, "shown"] == last.value[:2]
        assert [ValueError, KeyError] == [type(one) for one in last.value[2:]]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit])
def test_drive_when_it_is_interrupted(kind: type[BaseException]) -> None:
    """What is no Exception ends the plan and passes."""

    def stop() -> None:
        raise kind

    plan = plan_of(Compute(stop), Compute(lambda: 1))
    with pytest.raises(kind):
        drive(plan, LocalPerformer())
    assert None is plan.gi_frame


# --- the ledger -------------------------------------------------------------------------------


def charged(*effects: Any) -> Any:
    """Return the side calls that a policy's plan is charged for."""
    ledger = Ledger(FakeClock())
    drive(ledger.metered(plan_of(*effects)), LocalPerformer())
    return ledger._side


def test_metered_when_a_policy_asks() -> None:
    """Every judge and resample is charged with its purpose, failed ones too."""
    judge = Judge(Tier(FakeModel("yes", name="j"), price=Price(1, 1)), "is it right ?", "verify")
    broken = Judge(Tier(FakeModel(OSError("x"), name="k"), price=Price(1, 1)), "?")
    side = charged(judge, broken, CallMany((call("a"), call(OSError("y")))), Compute(lambda: 1))

    assert [("j", "verify"), ("k", "judge"), ("fake", "tier"), ("fake", "tier")] == [
        (one.name, one.purpose) for one in side
    ]
    assert [True, False, True, False] == [one.cost_usd is not None for one in side]
    assert ["OSError: x", "OSError: y"] == [one.error for one in side if one.error]


def test_first_token_when_a_tier_streams() -> None:
    """The first token's time is kept once per attempt."""
    clock = FakeClock()
    ledger = Ledger(clock)
    ledger.begin(Unit(0, Tier(FakeModel("x"))))
    clock.advance(2)
    ledger.first_token()
    clock.advance(3)
    ledger.first_token()

    assert 2 == ledger._first_token
    ledger.begin(Unit(0, Tier(FakeModel("x"))))
    assert None is ledger._first_token
