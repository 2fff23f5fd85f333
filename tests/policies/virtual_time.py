"""An event loop whose time jumps to the next timer, so that waiting is exact and takes no time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

_THREADS_S = 0.005
"""Real seconds in which threads may report before the time jumps."""


class _Jumping(selectors.SelectSelector):
    """Jumps instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        found = super().select(_THREADS_S)
        if not found:
            self.now += timeout
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop in virtual time."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._jumping.now


def virtual_seconds(work: Coroutine[Any, Any, Any]) -> tuple[Any, float]:
    """Run a coroutine; return its result and how long it took in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        begun = runner.get_loop().time()
        result = runner.run(work)
        return result, runner.get_loop().time() - begun
