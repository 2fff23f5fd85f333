"""One call of the cascade, run to its end or up to the first chunk of its answer.

Everything before the first chunk runs eagerly: drafts, decisions and their spans are done in
the caller's context before there is a generator.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import time
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, closing
from typing import Any, TypeVar

from llama_index.core.base.llms.types import ChatResponse

from cascadellm import Cascade, Outcome
from cascadellm.answer import Answer
from cascadellm.effects import Call, Interrupted, Plan, Relay, Shown
from cascadellm.events import Handler
from cascadellm.limits import TimeLimit, with_timeout, within
from cascadellm.perform import Done, aabandon, aadvance, abandon, adrive, advance, drive
from cascadellm.watching import Gate
from llamaindex_cascade.gather import Gathered, partial, replay, shown
from llamaindex_cascade.perform import (
    AsyncTierPerformer,
    TierPerformer,
    call_kwargs,
    unshown,
)
from llamaindex_cascade.spans import Spans
from llamaindex_cascade.tier import TierBook

__all__ = ["AsyncSession", "Session"]

_END: Any = object()
T = TypeVar("T")


class Session:
    """A sync call.

    Args:
        cascade: The cascade that runs.
        plan: Its plan for this call.
        book: Finds the LLM of a tier.
        handlers: The engine's event handlers.
    """

    def __init__(
        self,
        cascade: Cascade,
        plan: Plan[Outcome],
        book: TierBook,
        handlers: Sequence[Handler],
    ) -> None:
        self._plan = plan
        self._book = book
        self._spans = Spans(cascade, book, is_async=False)
        self._perform = TierPerformer(book, self._spans, handlers)

    def run(self) -> ChatResponse:
        """Return the accepted answer."""
        try:
            outcome = drive(self._plan, self._perform)
        finally:
            self._spans.close(sys.exception())
        return shown(outcome.answer, outcome.trace)

    def open(self) -> Iterator[ChatResponse]:
        """Run up to the first chunk and return the stream of the answer."""
        plan, perform = self._plan, self._perform
        try:
            step = advance(plan, perform)
            while isinstance(step, Relay):
                source = step.source
                if not isinstance(source, Call):
                    step = advance(plan, perform, send=source)
                    continue
                flow = _Flow(source)
                try:
                    chunk = self._start(flow)
                except Exception as error:
                    step = advance(plan, perform, throw=error)
                    continue
                if chunk is _END and flow.watched:
                    step = advance(plan, perform, send=unshown(flow.gate, flow.gathered))
                    continue
                # recorders open around the call are told, wherever the stream is read
                context = contextvars.copy_context()
                live = _live(flow, chunk, plan, perform, context)
                return _watched_over(live, flow, plan, perform, context)
        finally:
            self._spans.close(sys.exception())
        return replay(step.value.answer, step.value.trace)

    def _start(self, flow: _Flow) -> ChatResponse:
        begun, call = time.perf_counter(), flow.call
        tier, name = self._book.of(call.index, call.tier), call.tier.label
        source = tier.stream(call.request.native, call_kwargs(call), call.reads)
        flow.chunks = flow.gate.through(source) if flow.watched else source
        first = flow.next()
        if call.began is not None:
            call.began()
        if first is not _END or not flow.watched:
            self._spans.live(call.index, name, time.perf_counter() - begun)
        return first


class _Flow:
    """The stream of one call, through a gate where its draft is watched."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.gathered = Gathered(call.request.native)
        self.watched = call.watch is not None
        self.gate: Gate[ChatResponse] = Gate(call.watch, self.gathered)
        self.chunks: Any = None
        self.begun = False
        self.limit = TimeLimit(call.tier)
        self.running_on = False

    def next(self) -> ChatResponse:
        """Return the next chunk within the tier's time, `_END` after the last one."""
        try:
            chunk: ChatResponse = with_timeout(lambda: next(self.chunks, _END), self.limit)
        except TimeoutError:
            self.running_on = self.limit.passed
            raise
        return chunk

    async def anext(self) -> ChatResponse:
        """Async twin of `next`."""
        return await within(anext(self.chunks, _END), self.limit)

    def close(self) -> None:
        """Close the stream; a step that timed out still runs in its own thread."""
        if not self.running_on:
            self.chunks.close()

    def partial(self) -> Answer | None:
        """Return what has been shown, None when nothing was."""
        return self.gathered.answer() if self.begun else None

    def took(self, chunk: ChatResponse) -> ChatResponse:
        """Note a chunk that is about to be shown; return it as the caller sees it."""
        self.begun = True
        if not self.watched:
            self.gathered.add(chunk)
        return partial(chunk, self.call.index, self.call.tier.label)

    def result(self) -> Answer | Shown:
        """Return what the plan is told when the stream has ended."""
        return self.gate.result() if self.watched else self.gathered.answer()


def _live(
    flow: _Flow,
    chunk: ChatResponse,
    plan: Plan[Outcome],
    perform: TierPerformer,
    context: contextvars.Context,
) -> Iterator[ChatResponse]:
    try:
        with closing(flow):
            try:
                while chunk is not _END:
                    yield flow.took(chunk)
                    chunk = flow.next()
            except Exception as error:
                context.run(advance, plan, perform, throw=Interrupted(error))
                raise
            last = _last(context.run(advance, plan, perform, send=flow.result()))
        yield last
    finally:
        _left(flow, plan, perform, context)


def _left(flow: _Flow, plan: Plan[Outcome], perform: Any, context: contextvars.Context) -> None:
    """Record that the caller left; says nothing when the plan has ended."""
    context.run(abandon, plan, perform.tell, flow.partial())


def _watched_over(stream: T, *leaving: Any) -> T:
    """Record a stream that is dropped unread, too: it runs no code of its own."""
    weakref.finalize(stream, _left, *leaving).atexit = False
    return stream


def _last(done: Relay | Done[Outcome]) -> ChatResponse:
    assert isinstance(done, Done), "an answer was shown twice"
    return shown(done.value.answer, done.value.trace, delta="")


class AsyncSession:
    """An async call; arguments as for `Session`."""

    def __init__(
        self,
        cascade: Cascade,
        plan: Plan[Outcome],
        book: TierBook,
        handlers: Sequence[Handler],
    ) -> None:
        self._plan = plan
        self._book = book
        self._spans = Spans(cascade, book, is_async=True)
        self._perform = AsyncTierPerformer(book, self._spans, handlers)

    async def run(self) -> ChatResponse:
        """Return the accepted answer."""
        try:
            outcome = await adrive(self._plan, self._perform)
        finally:
            self._spans.close(sys.exception())
        return shown(outcome.answer, outcome.trace)

    async def open(self) -> AsyncIterator[ChatResponse]:
        """Run up to the first chunk and return the stream of the answer."""
        plan, perform = self._plan, self._perform
        try:
            step = await aadvance(plan, perform)
            while isinstance(step, Relay):
                source = step.source
                if not isinstance(source, Call):
                    step = await aadvance(plan, perform, send=source)
                    continue
                flow = _Flow(source)
                try:
                    chunk = await self._start(flow)
                except Exception as error:
                    step = await aadvance(plan, perform, throw=error)
                    continue
                if chunk is _END and flow.watched:
                    answer = unshown(flow.gate, flow.gathered)
                    step = await aadvance(plan, perform, send=answer)
                    continue
                context = contextvars.copy_context()
                live = _alive(flow, chunk, plan, perform, context)
                return _watched_over(live, flow, plan, perform, context)
        except asyncio.CancelledError:
            await aabandon(plan, perform)
            raise
        finally:
            self._spans.close(sys.exception())
        return _areplay(step.value)

    async def _start(self, flow: _Flow) -> ChatResponse:
        begun = time.perf_counter()
        call = flow.call
        tier = self._book.of(call.index, call.tier)

        async def first() -> Any:
            source = await tier.astream(call.request.native, call_kwargs(call), call.reads)
            flow.chunks = flow.gate.athrough(source) if flow.watched else source
            return await anext(flow.chunks, _END)

        try:
            chunk: ChatResponse = await within(first(), flow.limit)
        except BaseException:
            if flow.chunks is not None:
                await flow.chunks.aclose()
            raise
        if call.began is not None:
            call.began()
        if chunk is not _END or not flow.watched:
            self._spans.live(call.index, call.tier.label, time.perf_counter() - begun)
        return chunk


async def _alive(
    flow: _Flow,
    chunk: ChatResponse,
    plan: Plan[Outcome],
    perform: AsyncTierPerformer,
    context: contextvars.Context,
) -> AsyncIterator[ChatResponse]:
    try:
        async with aclosing(flow.chunks):
            try:
                while chunk is not _END:
                    yield flow.took(chunk)
                    chunk = await flow.anext()
            except Exception as error:
                await _within(context, aadvance(plan, perform, throw=Interrupted(error)))
                raise
            last = _last(await _within(context, aadvance(plan, perform, send=flow.result())))
        yield last
    finally:
        _left(flow, plan, perform, context)


async def _within(context: contextvars.Context, coroutine: Any) -> Any:
    return await asyncio.get_running_loop().create_task(coroutine, context=context)


async def _areplay(outcome: Outcome) -> AsyncIterator[ChatResponse]:
    for chunk in replay(outcome.answer, outcome.trace):
        yield chunk
