"""A bulkhead: bounded concurrency per tier, with a bounded queue."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future

from cascadellm.errors import ConfigurationError, TierBusyError

__all__ = ["Bulkhead"]


class Bulkhead:
    """Lets at most `limit` calls run at once; `queue` more may wait in order.

    One object serves threads and event loops alike; hand the same one to every tier that
    shares a device or a quota.

    Args:
        limit: Calls that may run at once.
        queue: Calls that may wait; further ones are refused.
    """

    def __init__(self, limit: int, *, queue: int = 100) -> None:
        if not isinstance(limit, int) or limit < 1:
            raise ConfigurationError(f"Bulkhead(limit) must be an integer >= 1, got {limit!r}")
        if not isinstance(queue, int) or queue < 0:
            raise ConfigurationError(f"Bulkhead(queue) must be an integer >= 0, got {queue!r}")
        self.limit = limit
        self.queue = queue
        self._lock = threading.Lock()
        self._running = 0
        self._waiting: deque[Future[None]] = deque()

    def __repr__(self) -> str:
        return f"Bulkhead({self.limit}, queue={self.queue})"

    @property
    def running(self) -> int:
        """Calls that hold a place now."""
        return self._running

    def enter(self, name: str) -> Future[None] | None:
        """Take a place, or a ticket that resolves when one is free.

        Raises:
            TierBusyError: The queue is full.
        """
        with self._lock:
            if self._running < self.limit:
                self._running += 1
                return None
            if len(self._waiting) >= self.queue:
                raise TierBusyError(
                    f"tier {name!r} runs {self.limit} calls and {self.queue} wait; "
                    "raise Bulkhead(limit, queue=...) or slow the callers down"
                )
            ticket: Future[None] = Future()
            self._waiting.append(ticket)
            return ticket

    def cancel(self, ticket: Future[None]) -> None:
        """Give a ticket back that was never used, or its place if it came meanwhile."""
        with self._lock:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                return
        self.leave()

    def leave(self) -> None:
        """Give the place to the longest-waiting call."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set_result(None)
            else:
                self._running -= 1
