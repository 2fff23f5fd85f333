"""A circuit breaker: a tier that keeps failing is not asked for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

from cascadellm.errors import CircuitOpenError, ConfigurationError

__all__ = ["Breaker"]


class Breaker:
    """Opens after consecutive failures, probes after a pause, closes on success.

    The state belongs to the object: hand the same `Breaker` (or the same `Tier`) to every
    cascade that should share it.

    Args:
        failures: Consecutive failures that open it.
        reset_s: Seconds until one call is let through as a probe.
        codes: Failure codes that count; by default those that say the tier is unwell, not
            that the request was wrong.
        clock: Seconds; replaced in tests.

    Raises:
        ConfigurationError: A number is out of range.
    """

    def __init__(
        self,
        failures: int = 5,
        reset_s: float = 30.0,
        *,
        codes: frozenset[str] = frozenset(
            {"rate_limit", "timeout", "connection", "server", "out_of_memory", "error"}
        ),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not isinstance(failures, int) or failures < 1:
            raise ConfigurationError(f"Breaker(failures) must be an integer >= 1, got {failures!r}")
        if not 0 < reset_s < float("inf"):
            raise ConfigurationError(f"Breaker(reset_s) must be positive seconds, got {reset_s!r}")
        self.failures = failures
        self.reset_s = reset_s
        self.codes = frozenset(codes)
        self._clock = clock
        self._lock = threading.Lock()
        self._count = 0
        self._opened: float | None = None
        self._probing = False

    def __repr__(self) -> str:
        return f"Breaker(failures={self.failures}, reset_s={self.reset_s:g}, state={self.state!r})"

    @property
    def state(self) -> Literal["closed", "open", "half_open"]:
        """What the next call meets."""
        with self._lock:
            if self._opened is None:
                return "closed"
            return "half_open" if self._clock() - self._opened >= self.reset_s else "open"

    def enter(self, name: str) -> None:
        """Let a call through, or refuse it.

        Raises:
            CircuitOpenError: The circuit is open, or another call is probing already.
        """
        with self._lock:
            if self._opened is None:
                return
            left = self.reset_s - (self._clock() - self._opened)
            if left > 0 or self._probing:
                wait = f"for another {left:.3g} s" if left > 0 else "until its probe ends"
                raise CircuitOpenError(
                    f"tier {name!r} failed {self._count} times in a row and is not asked {wait}"
                )
            self._probing = True

    def leave(self, code: str | None) -> None:
        """Note how a call ended: None = it answered, else its failure code."""
        with self._lock:
            self._probing = False
            if code is None:
                self._count, self._opened = 0, None
            elif code in self.codes:
                self._count += 1
                if self._count >= self.failures or self._opened is not None:
                    self._opened = self._clock()

    def abandon(self) -> None:
        """Note that a call was cancelled: neither a success nor a failure."""
        with self._lock:
            self._probing = False
