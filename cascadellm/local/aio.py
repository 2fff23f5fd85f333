"""Running a blocking generator from asyncio: in a thread, stopped within one step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from typing import TypeVar

from cascadellm.answer import Piece
from cascadellm.local.batch import Caller

__all__ = ["run", "stream"]

Result = TypeVar("Result")

_LOOK_S = 0.5


async def run(work: Callable[[Caller], Result]) -> Result:
    """Run `work` in a thread; it is told to stop when the awaiting task is cancelled.

    Args:
        work: Takes the caller, which says whether it has left.
    """
    caller = Caller()
    try:
        return await asyncio.to_thread(work, caller)
    finally:
        caller.leave()


async def stream(make: Callable[[Caller], Iterator[Piece]]) -> AsyncIterator[Piece]:
    """Yield the pieces of an iterator that runs in a thread, at most one piece ahead.

    A thread that ran further ahead would write tokens of a draft that its reader has stopped.

    Args:
        make: Takes the caller, which says whether it has left; returns a generator.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()
    caller = Caller()
    taken = threading.Semaphore(0)

    def put(item: Piece | Exception | None) -> None:
        try:
            loop.call_soon_threadsafe(queue.put_nowait, item)
        except RuntimeError:
            # the loop was closed: nobody reads any more
            caller.leave()

    def pump() -> None:
        try:
            with closing(make(caller)) as pieces:  # type: ignore[type-var]
                for piece in pieces:
                    put(piece)
                    # looked up now and then, since a closed loop takes nothing any more
                    while not taken.acquire(timeout=_LOOK_S) and not loop.is_closed():
                        pass
            put(None)
        except Exception as error:
            put(error)

    worker = loop.run_in_executor(None, pump)
    try:
        while (item := await queue.get()) is not None:
            taken.release()
            if isinstance(item, Exception):
                raise item
            yield item
        await worker
    finally:
        caller.leave()
        taken.release()
