"""Plans that run beside the caller's: in a thread, or in a task."""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from typing import Any

from cascadellm.answer import Answer
from cascadellm.effects import Handle, Start, Wait

__all__ = ["TaskHandle", "ThreadHandle", "await_first", "wait_first"]


class _Timed:
    """What both kinds of handle share."""

    def __init__(self, after_s: float) -> None:
        self.after_s = after_s
        self.started = False
        self.cancelled = False
        self.partial: Answer | None = None
        self._begun = 0.0
        self._ended: float | None = None

    @property
    def seconds(self) -> float:
        """How long it has run so far, or ran."""
        if not self.started:
            return 0.0
        return (time.perf_counter() if self._ended is None else self._ended) - self._begun

    def _begin(self) -> None:
        self.started, self._begun = True, time.perf_counter()

    def _end(self) -> None:
        self._ended = time.perf_counter()


class ThreadHandle(_Timed):
    """A plan in a daemon thread with a copy of the caller's context.

    A thread cannot be killed: a cancelled one is left alone after its watcher has told its
    stream to stop, and its result is dropped.
    """

    def __init__(self, effect: Start, drive: Callable[[Any], Any]) -> None:
        super().__init__(effect.after_s)
        self._wake = threading.Event()
        self.future: Future[Any] = Future()
        context = contextvars.copy_context()

        def run() -> None:
            limit = None if math.isinf(effect.after_s) else effect.after_s
            if effect.after_s > 0:
                self._wake.wait(limit)
            if self.cancelled:
                self.future.cancel()
                return
            self._begin()
            try:
                value = context.run(drive, effect.plan(self))
            except BaseException as error:  # raised again by whoever asks for the result
                self._end()
                self.future.set_exception(error)
            else:
                self._end()
                self.future.set_result(value)

        threading.Thread(target=run, daemon=True, name="cascade-beside").start()

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.future.done()

    def hurry(self) -> None:
        """Begin now."""
        self._wake.set()

    def cancel(self) -> None:
        """Call it off."""
        self.cancelled = True
        self._wake.set()

    def result(self) -> Any:
        """Return what the plan returned, or raise what it raised."""
        return self.future.result()


class TaskHandle(_Timed):
    """A plan in a task of the running loop."""

    def __init__(self, effect: Start, adrive: Callable[[Any], Coroutine[Any, Any, Any]]) -> None:
        super().__init__(effect.after_s)
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()

        async def run() -> Any:
            if effect.after_s > 0:
                limit = None if math.isinf(effect.after_s) else effect.after_s
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), limit)
            self._begin()
            try:
                return await adrive(effect.plan(self))
            finally:
                self._end()

        self.task: asyncio.Task[Any] = self._loop.create_task(run())

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.task.done()

    def hurry(self) -> None:
        """Begin now; a watcher may say so from a model's own thread."""
        self._loop.call_soon_threadsafe(self._wake.set)

    def cancel(self) -> None:
        """Call it off; its stream is closed when the loop next runs."""
        self.cancelled = True
        self.task.cancel()
        # its error is nobody's business any more, and must not be logged as never retrieved
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())

    def result(self) -> Any:
        """Return what the plan returned, or raise what it raised."""
        return self.task.result()


def wait_first(effect: Wait) -> Handle:
    """Wait for threads."""
    handles: Any = effect.handles
    wait([handle.future for handle in handles], return_when=FIRST_COMPLETED)
    return next(handle for handle in handles if handle.done)  # type: ignore[no-any-return]


async def await_first(effect: Wait) -> Handle:
    """Wait for tasks."""
    handles: Any = effect.handles
    await asyncio.wait([h.task for h in handles], return_when=asyncio.FIRST_COMPLETED)
    return next(handle for handle in handles if handle.done)  # type: ignore[no-any-return]
