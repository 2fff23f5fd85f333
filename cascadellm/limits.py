"""Time limits: what is left of a call's deadline, and of one tier's time."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from cascadellm.tier import Tier

__all__ = ["Deadline", "TimeLimit", "with_timeout", "within"]

T = TypeVar("T")
_LEAST_S = 1e-3


class Deadline(Protocol):
    """The deadline of a whole call."""

    @property
    def left_s(self) -> float | None:
        """Seconds left, never below 0; None without a deadline."""

    def limited(self, tier: Tier) -> Tier:
        """Return the tier with its timeout cut to what is left."""


class TimeLimit:
    """What is left of a tier's `timeout_s`, counted from when this is made.

    Args:
        tier: The tier that is asked.
    """

    def __init__(self, tier: Tier) -> None:
        self.timeout_s = tier.timeout_s
        self.label = tier.label
        self._begun = time.monotonic()

    def left(self) -> float | None:
        """Return the seconds left, None without a limit; never 0, which no timeout may be."""
        if self.timeout_s is None:
            return None
        return max(_LEAST_S, self.timeout_s - (time.monotonic() - self._begun))

    @property
    def passed(self) -> bool:
        """Whether the time is up."""
        left = self.left()
        return left is not None and left <= _LEAST_S

    def error(self) -> TimeoutError:
        """Return the time-out's error, which names the tier."""
        return TimeoutError(
            f"tier {self.label!r} did not answer within {self.timeout_s:g} s (its timeout_s)"
        )


def with_timeout(function: Callable[[], T], limit: TimeLimit) -> T:
    """Call a function, giving up when the tier's time is up.

    The abandoned call runs to its end in a daemon thread, because a sync call of a
    provider cannot be cancelled; its result is dropped.

    Raises:
        TimeoutError: The function took longer; the message names the tier.
    """
    left = limit.left()
    if left is None:
        return function()
    outcome: list[tuple[T | None, BaseException | None]] = []
    done = threading.Event()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            outcome.append((context.run(function), None))
        except BaseException as error:  # handed to the waiting thread below
            outcome.append((None, error))
        done.set()

    threading.Thread(target=run, daemon=True, name=f"cascade-{limit.label}").start()
    if not done.wait(left):
        raise limit.error()
    value, error = outcome[0]
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


async def within(awaitable: Awaitable[T], limit: TimeLimit) -> T:
    """Await a tier's call, giving up when the tier's time is up.

    Raises:
        TimeoutError: It took longer; the message names the tier.
    """
    left = limit.left()
    if left is None:
        return await awaitable
    waiting = asyncio.timeout(left)
    try:
        async with waiting:
            return await awaitable
    except TimeoutError:
        if not waiting.expired():
            raise
        raise limit.error() from None
