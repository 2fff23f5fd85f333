"""Performers: who answers a plan's effects. Here and in the drivers sync and async differ.

Adapters subclass the performers and say how their framework calls a tier or a judge; the
drivers of `cascadellm.drivers` run a plan against them.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

from cascadellm.answer import Answer, Piece, Request
from cascadellm.background import TaskHandle, ThreadHandle, await_first, wait_first
from cascadellm.drivers import Done, aabandon, aadvance, abandon, adrive, advance, drive
from cascadellm.effects import (
    Await,
    Call,
    CallMany,
    Compute,
    Effect,
    Emit,
    Enter,
    Judge,
    Relay,
    Sleep,
    Start,
    Wait,
)
from cascadellm.errors import ConfigurationError
from cascadellm.events import Handler, dispatch
from cascadellm.limits import TimeLimit, with_timeout, within
from cascadellm.watching import Gate, Growing

__all__ = [
    "AsyncLocalPerformer",
    "AsyncPerformer",
    "Done",
    "LocalPerformer",
    "Performer",
    "aabandon",
    "aadvance",
    "abandon",
    "adrive",
    "advance",
    "drive",
]


class Performer:
    """Performs effects synchronously; subclasses implement `call` and `judge`.

    Args:
        handlers: Told about every event, besides the active recorders.
    """

    def __init__(self, handlers: Sequence[Handler] = ()) -> None:
        self.handlers = tuple(handlers)

    def call(self, effect: Call) -> Answer:
        """Ask a tier."""
        raise NotImplementedError

    def judge(self, effect: Judge) -> Answer:
        """Ask a model a plain-text question."""
        raise NotImplementedError

    def emit(self, event: Any) -> None:
        """Tell handlers."""
        dispatch(event, self.handlers)

    def __call__(self, effect: Effect) -> Any:
        """Perform one effect."""
        match effect:
            case Call():
                return self.call(effect)
            case Emit():
                return self.emit(effect.event)
            case Relay(source=Call() as call):
                return self.call(call)
            case Relay(source=answer):
                return answer
            case Judge():
                return self.judge(effect)
            case CallMany():
                return self.many(effect)
            case Sleep():
                return time.sleep(effect.seconds)
            case Enter():
                return self.enter(effect)
            case Compute():
                return effect.function()
            case Start():
                return self.start(effect)
            case Wait():
                return wait_first(effect)
            case Await():
                _close(effect.awaitable)
                raise ConfigurationError(
                    f"policy {effect.owner!r} is async; call the cascade with its async "
                    "methods (ainvoke, astream, achat, ...)"
                )
        raise TypeError(f"unknown effect {effect!r}")

    def enter(self, effect: Enter) -> None:
        """Wait for a place in the tier's bulkhead."""
        bulkhead = effect.tier.bulkhead
        assert bulkhead is not None
        ticket = bulkhead.enter(effect.tier.label)
        if ticket is None:
            return
        try:
            ticket.result(effect.timeout_s)
        except BaseException as error:
            bulkhead.cancel(ticket)
            if isinstance(error, TimeoutError):
                raise TimeoutError(_queued(effect)) from None
            raise

    def many(self, effect: CallMany) -> list[Answer | Exception]:
        """Ask several times in threads, each in a copy of the caller's context."""
        if len(effect.calls) == 1:
            return [_caught(lambda: self(effect.calls[0]))]
        with ThreadPoolExecutor(max_workers=min(32, len(effect.calls))) as pool:
            futures = [
                pool.submit(contextvars.copy_context().run, _caught, _bound(self, call))
                for call in effect.calls
            ]
            return [future.result() for future in futures]

    def start(self, effect: Start) -> ThreadHandle:
        """Run a plan in a thread beside this one."""
        return ThreadHandle(effect, lambda plan: drive(plan, self))


class AsyncPerformer:
    """Performs effects asynchronously; subclasses implement `call` and `judge`."""

    def __init__(self, handlers: Sequence[Handler] = ()) -> None:
        self.handlers = tuple(handlers)

    async def call(self, effect: Call) -> Answer:
        """Ask a tier."""
        raise NotImplementedError

    async def judge(self, effect: Judge) -> Answer:
        """Ask a model a plain-text question."""
        raise NotImplementedError

    def emit(self, event: Any) -> Any:
        """Tell handlers; may return an awaitable."""
        dispatch(event, self.handlers)

    async def __call__(self, effect: Effect) -> Any:
        """Perform one effect."""
        match effect:
            case Call():
                return await self.call(effect)
            case Emit():
                told = self.emit(effect.event)
                return None if told is None else await told
            case Relay(source=Call() as call):
                return await self.call(call)
            case Relay(source=answer):
                return answer
            case Judge():
                return await self.judge(effect)
            case CallMany():
                calls = (self._caught(call) for call in effect.calls)
                return list(await asyncio.gather(*calls))
            case Sleep():
                return await asyncio.sleep(effect.seconds)
            case Enter():
                return await self.enter(effect)
            case Compute():
                return await asyncio.to_thread(effect.function)
            case Start():
                return self.start(effect)
            case Wait():
                return await await_first(effect)
            case Await():
                if effect.timeout_s is None:
                    return await effect.awaitable
                return await asyncio.wait_for(effect.awaitable, effect.timeout_s)
        raise TypeError(f"unknown effect {effect!r}")

    async def enter(self, effect: Enter) -> None:
        """Wait for a place in the tier's bulkhead without blocking the loop."""
        bulkhead = effect.tier.bulkhead
        assert bulkhead is not None
        ticket = bulkhead.enter(effect.tier.label)
        if ticket is None:
            return
        # shielded: a cancelled waiter must not mark the ticket cancelled before it is given back
        waiting = asyncio.shield(asyncio.wrap_future(ticket))
        try:
            await asyncio.wait_for(waiting, effect.timeout_s)
        except BaseException as error:
            bulkhead.cancel(ticket)
            if isinstance(error, TimeoutError):
                raise TimeoutError(_queued(effect)) from None
            raise

    async def _caught(self, effect: Call | Judge) -> Answer | Exception:
        try:
            return await self(effect)  # type: ignore[no-any-return]
        except Exception as error:
            return error

    def start(self, effect: Start) -> TaskHandle:
        """Run a plan in a task beside this one."""
        return TaskHandle(effect, lambda plan: adrive(plan, self))


class LocalPerformer(Performer):
    """Calls tiers that the engine can call itself (`LocalLike`), without a framework."""

    watches = True

    def call(self, effect: Call) -> Answer:
        """Ask a local tier."""
        model, arguments = effect.tier.model, _call_arguments(effect)

        def ask() -> Answer:
            if effect.watch is None:
                return model.generate(effect.request.native, **arguments)  # type: ignore[no-any-return]
            gate = Gate(effect.watch, Growing())
            for _ in gate.through(model.stream(effect.request.native, **arguments)):
                pass
            return gate.answered()

        return with_timeout(ask, TimeLimit(effect.tier))

    def live(self, effect: Call, gate: Gate[Piece]) -> Iterator[Piece]:
        """Stream a tier through a gate; afterwards the gate has the result."""
        model, arguments = effect.tier.model, _call_arguments(effect)
        return gate.through(model.stream(effect.request.native, **arguments))

    def judge(self, effect: Judge) -> Answer:
        """Ask a local judge."""
        return self.call(_judge_call(effect))


class AsyncLocalPerformer(AsyncPerformer):
    """Async twin of `LocalPerformer`."""

    watches = True

    async def call(self, effect: Call) -> Answer:
        """Ask a local tier."""
        model, arguments = effect.tier.model, _call_arguments(effect)

        async def ask() -> Answer:
            if effect.watch is None:
                return await model.agenerate(effect.request.native, **arguments)  # type: ignore[no-any-return]
            gate = Gate(effect.watch, Growing())
            async with aclosing(self.live(effect, gate)) as pieces:
                async for _ in pieces:
                    pass
            return gate.answered()

        return await within(ask(), TimeLimit(effect.tier))

    def live(self, effect: Call, gate: Gate[Piece]) -> AsyncGenerator[Piece]:
        """Stream a tier through a gate; afterwards the gate has the result."""
        model, arguments = effect.tier.model, _call_arguments(effect)
        return gate.athrough(model.astream(effect.request.native, **arguments))

    async def judge(self, effect: Judge) -> Answer:
        """Ask a local judge."""
        return await self.call(_judge_call(effect))


def _call_arguments(effect: Call) -> dict[str, Any]:
    arguments = {**effect.request.kwargs, **effect.tier.kwargs, **effect.kwargs}
    if effect.request.tools:
        arguments.setdefault("tools", list(effect.request.tools))
    return arguments


def _judge_call(effect: Judge) -> Call:
    request = Request([{"role": "user", "content": effect.prompt}], effect.prompt)
    return Call(-1, effect.tier, request, effect.reads, effect.kwargs, effect.purpose)


def _queued(effect: Enter) -> str:
    return f"tier {effect.tier.label!r} had no free place within {effect.timeout_s:g} s"


def _bound(perform: Callable[[Any], Any], effect: Effect) -> Callable[[], Any]:
    return lambda: perform(effect)


def _caught(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:
        return error


def _close(awaitable: Any) -> None:
    if hasattr(awaitable, "close"):
        awaitable.close()
