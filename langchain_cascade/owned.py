"""Async generators that belong to another one, which closes them itself."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Generic, TypeVar

__all__ = ["Owned"]

T = TypeVar("T")


class Owned(AsyncIterator[T], Generic[T]):
    """An async generator that the event loop does not know.

    A loop that ends closes all generators that it knows at once. One that is being closed by its
    owner at that moment would be called an error, and its clean-up would be cut short.

    Args:
        pieces: The generator, not yet begun; whoever makes this closes it.
    """

    def __init__(self, pieces: AsyncIterator[T]) -> None:
        self._pieces: Any = pieces
        self._begun = False

    def __anext__(self) -> Awaitable[T]:
        """Return the next piece."""
        if self._begun:
            return self._next()
        self._begun = True
        hooks = sys.get_asyncgen_hooks()
        # the hooks are this thread's, and asked once, here
        sys.set_asyncgen_hooks(None, None)
        try:
            return self._next()
        finally:
            sys.set_asyncgen_hooks(*hooks)

    def _next(self) -> Awaitable[T]:
        step: Awaitable[T] = self._pieces.__anext__()
        return step

    async def aclose(self) -> None:
        """Close the generator."""
        if hasattr(self._pieces, "aclose"):
            await self._pieces.aclose()
