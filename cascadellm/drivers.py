"""Drivers: run a plan against a performer, to its end or to its next `Relay`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cascadellm.answer import Answer
from cascadellm.effects import Effect, Emit, Left, Plan, Relay
from cascadellm.watching import is_watched

__all__ = ["Done", "aabandon", "aadvance", "abandon", "adrive", "advance", "drive"]

_log = logging.getLogger("cascadellm")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """The plan has ended with this value."""

    value: T


def _streams(effect: Relay, perform: Any) -> bool:
    """Return whether the streaming driver gets this relay.

    A watched draft may turn out hopeless; a performer that cannot hold it back is not asked
    to show it.
    """
    return not is_watched(effect.source) or bool(getattr(perform, "watches", False))


def advance(
    plan: Plan[T],
    perform: Callable[[Effect], Any],
    *,
    send: Any = None,
    throw: Exception | None = None,
) -> Relay | Done[T]:
    """Run a plan up to its next `Relay` or its end.

    Args:
        plan: The plan, fresh or stopped at a `Relay`.
        perform: Performs the other effects.
        send: Result of the `Relay` it stopped at.
        throw: What the `Relay` raised instead.
    """
    result, error = send, throw
    while True:
        try:
            effect = plan.throw(error) if error is not None else plan.send(result)
        except StopIteration as stop:
            return Done(stop.value)
        error = None
        if isinstance(effect, Relay) and _streams(effect, perform):
            return effect
        try:
            result = perform(effect)
        except Exception as raised:
            error = raised


def drive(plan: Plan[T], perform: Callable[[Effect], Any]) -> T:
    """Run a plan to its end."""
    result: Any = None
    error: Exception | None = None
    try:
        while True:
            effect = plan.throw(error) if error is not None else plan.send(result)
            error = None
            try:
                result = perform(effect)
            except Exception as raised:
                error = raised
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        plan.close()


async def aadvance(
    plan: Plan[T],
    perform: Callable[[Effect], Any],
    *,
    send: Any = None,
    throw: Exception | None = None,
) -> Relay | Done[T]:
    """Async twin of `advance`."""
    result, error = send, throw
    while True:
        try:
            effect = plan.throw(error) if error is not None else plan.send(result)
        except StopIteration as stop:
            return Done(stop.value)
        error = None
        if isinstance(effect, Relay) and _streams(effect, perform):
            return effect
        try:
            result = await perform(effect)
        except Exception as raised:
            error = raised


async def adrive(plan: Plan[T], perform: Callable[[Effect], Any]) -> T:
    """Async twin of `drive`."""
    result: Any = None
    error: Exception | None = None
    try:
        while True:
            effect = plan.throw(error) if error is not None else plan.send(result)
            error = None
            try:
                result = await perform(effect)
            except Exception as raised:
                error = raised
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    except asyncio.CancelledError:
        await aabandon(plan, perform)
        raise
    finally:
        plan.close()


def abandon(
    plan: Plan[Any], perform: Callable[[Effect], Any], answer: Answer | None = None
) -> None:
    """Tell a plan that its caller is gone, and handlers what the plan says to that.

    Nothing else is performed, and a plan that has ended says nothing. Never raises.

    Args:
        plan: The plan, at whatever effect it stopped.
        perform: Performs its `Emit` effects.
        answer: What had been shown, or None.
    """
    try:
        effect = plan.throw(Left(answer))
        while True:
            effect = plan.send(perform(effect) if isinstance(effect, Emit) else None)
    except (Left, StopIteration):
        return
    except Exception:
        _log.warning("an abandoned call could not be recorded", exc_info=True)


async def aabandon(
    plan: Plan[Any], perform: Callable[[Effect], Any], answer: Answer | None = None
) -> None:
    """Async twin of `abandon`."""
    try:
        effect = plan.throw(Left(answer))
        while True:
            effect = plan.send(await perform(effect) if isinstance(effect, Emit) else None)
    except (Left, StopIteration):
        return
    except Exception:
        _log.warning("an abandoned call could not be recorded", exc_info=True)
