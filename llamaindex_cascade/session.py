"""One call of the cascade, run to its end or up to the first chunk of its answer.

Everything before the first chunk runs eagerly: drafts, decisions and their spans are done in
the caller's context before there is a generator.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, closing
from typing import Any

from llama_index.core.base.llms.types import ChatResponse

from cascadellm import Cascade, Outcome
from cascadellm.answer import Answer
from cascadellm.effects import Call, Interrupted, Plan, Relay
from cascadellm.events import Handler
from cascadellm.perform import Done, aadvance, adrive, advance, drive
from cascadellm.resilience import with_timeout
from llamaindex_cascade.gather import Gathered, partial, replay, shown
from llamaindex_cascade.objects import as_object_text
from llamaindex_cascade.perform import AsyncTierPerformer, TierPerformer, call_kwargs, timed
from llamaindex_cascade.spans import Spans
from llamaindex_cascade.tier import TierBook
from llamaindex_cascade.tools import Asked

__all__ = ["AsyncSession", "Session"]

_END: Any = object()


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
                try:
                    chunks, first = self._start(source)
                except Exception as error:
                    step = advance(plan, perform, throw=error)
                    continue
                # recorders open around the call are told, wherever the stream is read
                context = contextvars.copy_context()
                return _live(source, chunks, first, plan, perform, context)
        finally:
            self._spans.close(sys.exception())
        return replay(step.value.answer, step.value.trace)

    def _start(self, call: Call) -> tuple[Iterator[ChatResponse], ChatResponse]:
        begun = time.perf_counter()
        tier, name = self._book.of(call.index, call.tier), call.tier.label
        chunks = tier.stream(call.request.native, call_kwargs(call), call.reads)
        first = with_timeout(lambda: next(chunks, _END), call.tier.timeout_s, name)
        self._spans.live(call.index, name, time.perf_counter() - begun)
        return chunks, first


def _live(
    call: Call,
    chunks: Any,
    chunk: ChatResponse,
    plan: Plan[Outcome],
    perform: TierPerformer,
    context: contextvars.Context,
) -> Iterator[ChatResponse]:
    gathered = Gathered()
    with closing(plan), closing(chunks):
        try:
            while chunk is not _END:
                gathered.add(chunk)
                yield partial(chunk, call.index, call.tier.label)
                chunk = next(chunks, _END)
        except Exception as error:
            context.run(advance, plan, perform, throw=Interrupted(error))
            raise
        done = context.run(advance, plan, perform, send=_whole(gathered, call))
        yield _last(done)


def _whole(gathered: Gathered, call: Call) -> Answer:
    asked: Asked = call.request.native
    answer = gathered.answer()
    return answer if asked.output_cls is None else as_object_text(answer)


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
                try:
                    chunks, first = await self._start(source)
                except Exception as error:
                    step = await aadvance(plan, perform, throw=error)
                    continue
                context = contextvars.copy_context()
                return _alive(source, chunks, first, plan, perform, context)
        finally:
            self._spans.close(sys.exception())
        return _areplay(step.value)

    async def _start(self, call: Call) -> tuple[AsyncIterator[ChatResponse], ChatResponse]:
        begun = time.perf_counter()
        tier, name = self._book.of(call.index, call.tier), call.tier.label
        chunks: Any = None

        async def first() -> Any:
            nonlocal chunks
            chunks = await tier.astream(call.request.native, call_kwargs(call), call.reads)
            return await anext(chunks, _END)

        chunk = await timed(first(), call)
        self._spans.live(call.index, name, time.perf_counter() - begun)
        return chunks, chunk


async def _alive(
    call: Call,
    chunks: Any,
    chunk: ChatResponse,
    plan: Plan[Outcome],
    perform: AsyncTierPerformer,
    context: contextvars.Context,
) -> AsyncIterator[ChatResponse]:
    gathered = Gathered()
    with closing(plan):
        async with aclosing(chunks):
            try:
                while chunk is not _END:
                    gathered.add(chunk)
                    yield partial(chunk, call.index, call.tier.label)
                    chunk = await anext(chunks, _END)
            except Exception as error:
                await _within(context, aadvance(plan, perform, throw=Interrupted(error)))
                raise
            answer = _whole(gathered, call)
            yield _last(await _within(context, aadvance(plan, perform, send=answer)))


async def _within(context: contextvars.Context, coroutine: Any) -> Any:
    return await asyncio.get_running_loop().create_task(coroutine, context=context)


async def _areplay(outcome: Outcome) -> AsyncIterator[ChatResponse]:
    for chunk in replay(outcome.answer, outcome.trace):
        yield chunk
