"""Running a blocking generator from asyncio: in a thread, stopped within one step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from typing import TypeVar

from cascadellm.answer import Piece

__all__ = ["run", "stream"]

Result = TypeVar("Result")
Check = Callable[[], bool]


async def run(work: Callable[[Check], Result]) -> Result:
    """Run `work` in a thread; it is told to stop when the awaiting task is cancelled.

    Args:
        work: Takes a function that says whether the caller has gone.
    """
    gone = threading.Event()
    try:
        return await asyncio.to_thread(work, gone.is_set)
    finally:
        gone.set()


async def stream(make: Callable[[Check], Iterator[Piece]]) -> AsyncIterator[Piece]:
    """Yield the pieces of an iterator that runs in a thread.

    Args:
        make: Takes a function that says whether the caller has gone; returns a generator.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()
    gone = threading.Event()

    def put(item: Piece | Exception | None) -> None:
        try:
            loop.call_soon_threadsafe(queue.put_nowait, item)
        except RuntimeError:
            # the loop was closed: nobody reads any more
            gone.set()

    def pump() -> None:
        try:
            with closing(make(gone.is_set)) as pieces:  # type: ignore[type-var]
                for piece in pieces:
                    put(piece)
            put(None)
        except Exception as error:
            put(error)

    worker = loop.run_in_executor(None, pump)
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
        await worker
    finally:
        gone.set()
