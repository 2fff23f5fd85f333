"""Performers: how the engine's effects become calls of LangChain Runnables."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, suppress
from contextvars import Context
from functools import partial
from typing import Any

from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_core.runnables.config import RunnableConfig

from cascadellm.answer import Answer
from cascadellm.effects import Call, Judge, Verdict
from cascadellm.limits import TimeLimit, with_timeout, within
from cascadellm.perform import AsyncPerformer, Performer
from cascadellm.watching import Gate
from langchain_cascade.calls import CascadeCall
from langchain_cascade.convert import answer_of, as_message
from langchain_cascade.owned import Owned

__all__ = ["AsyncLangChainPerformer", "Heard", "LangChainPerformer", "gate_of"]


class Heard:
    """What one streamed call has said; calls may run beside each other.

    Attributes:
        whole: The message so far.
        answer: The answer, once the stream has ended.
    """

    def __init__(self) -> None:
        self.whole: Any = None
        self.answer: Answer | None = None

    def take(self, piece: Any, effect: Call) -> None:
        """Add a chunk."""
        if self.whole is None and effect.began is not None:
            effect.began()
        self.whole = piece if self.whole is None else self.whole + piece

    def partial(self) -> Answer | None:
        """Return the answer so far."""
        return None if self.whole is None else answer_of(as_message(self.whole))


class LangChainPerformer(Performer):
    """Calls tiers as child runs of the cascade's run, synchronously."""

    watches = True

    def __init__(self, context: CascadeCall) -> None:
        super().__init__(context.handlers)
        self.context = context

    def emit(self, event: Any) -> None:
        """Tell the engine's handlers, recorders and LangChain's callbacks."""
        super().emit(event)
        if self.context.tracing is not None:
            self.context.tracing.on_event(event)

    def call(self, effect: Call) -> Answer:
        """Ask a tier."""
        if effect.watch is not None:
            gate, heard = gate_of(effect, self.context), Heard()
            for _ in gate.through(self.live(effect, heard)):
                pass
            return gate.answered(heard.answer)
        runnable, messages, arguments, config = self.context.prepare(effect)
        return self._ask(runnable, messages, arguments, config, effect)

    def judge(self, effect: Judge) -> Answer:
        """Ask a judge."""
        runnable, arguments, config = self.context.prepare_judge(effect)
        messages = [HumanMessage(effect.prompt)]
        return self._ask(runnable, messages, arguments, config, effect)

    def _ask(
        self,
        runnable: Any,
        messages: Any,
        arguments: dict[str, Any],
        config: RunnableConfig,
        effect: Call | Judge,
    ) -> Answer:
        inside = self.context.inside(config)
        ask = partial(inside.run, runnable.invoke, messages, config, **arguments)
        output = with_timeout(ask, TimeLimit(effect.tier))
        return answer_of(as_message(output))

    def live(self, effect: Call, heard: Heard) -> Iterator[AIMessageChunk]:
        """Stream a tier and note what it says."""
        runnable, messages, arguments, config = self.context.prepare(effect)
        limit = TimeLimit(effect.tier)
        inside = self.context.inside(config)
        pieces = inside.run(runnable.stream, messages, config, **arguments)
        abandoned = False
        try:
            while True:
                step = partial(inside.run, next, pieces, None)
                try:
                    piece = with_timeout(step, limit)
                except TimeoutError:
                    abandoned = limit.passed
                    raise
                if piece is None:
                    break
                heard.take(piece, effect)
                yield as_chunk(piece)
        finally:
            # a stream that timed out still runs in its own thread and cannot be closed here
            if hasattr(pieces, "close") and not abandoned:
                inside.run(pieces.close)
        heard.answer = answer_of(as_message(heard.whole))


class AsyncLangChainPerformer(AsyncPerformer):
    """Calls tiers as child runs of the cascade's run, asynchronously."""

    watches = True

    def __init__(self, context: CascadeCall) -> None:
        super().__init__(context.handlers)
        self.context = context

    def emit(self, event: Any) -> Awaitable[None] | None:
        """Tell the engine's handlers, recorders and LangChain's callbacks."""
        super().emit(event)
        tracing = self.context.tracing
        return None if tracing is None else tracing.aon_event(event)

    async def call(self, effect: Call) -> Answer:
        """Ask a tier."""
        if effect.watch is not None:
            gate, heard = gate_of(effect, self.context), Heard()
            async with aclosing(gate.athrough(self.live(effect, heard))) as pieces:
                async for _ in pieces:
                    pass
            return gate.answered(heard.answer)
        runnable, messages, arguments, config = self.context.prepare(effect)
        return await self._ask(runnable, messages, arguments, config, effect)

    async def judge(self, effect: Judge) -> Answer:
        """Ask a judge."""
        runnable, arguments, config = self.context.prepare_judge(effect)
        messages = [HumanMessage(effect.prompt)]
        return await self._ask(runnable, messages, arguments, config, effect)

    async def _ask(
        self,
        runnable: Any,
        messages: Any,
        arguments: dict[str, Any],
        config: RunnableConfig,
        effect: Call | Judge,
    ) -> Answer:
        limit = TimeLimit(effect.tier)
        if not self.context.sync_only(runnable):
            try:
                begin = partial(runnable.ainvoke, messages, config, **arguments)
                output = await _task(begin, self.context.inside(config), limit)
                return answer_of(as_message(output))
            except NotImplementedError:
                self.context.note_sync_only(runnable)
        config = self.context.as_sync(config)
        inside = self.context.inside(config)
        blocking = partial(inside.run, runnable.invoke, messages, config, **arguments)
        return answer_of(as_message(await _in_thread(blocking, limit)))

    async def live(self, effect: Call, heard: Heard) -> AsyncIterator[AIMessageChunk]:
        """Stream a tier and note what it says."""
        runnable, messages, arguments, config = self.context.prepare(effect)
        limit = TimeLimit(effect.tier)
        blocking = self.context.sync_only(runnable)
        if not blocking:
            inside = self.context.inside(config)
            pieces = Owned(runnable.astream(messages, config, **arguments))
            try:
                while True:
                    piece = await _task(partial(anext, pieces, None), inside, limit)
                    if piece is None:
                        break
                    heard.take(piece, effect)
                    yield as_chunk(piece)
            except (NotImplementedError, AttributeError):
                # a tier without async streaming says so before its first chunk
                if heard.whole is not None:
                    raise
                self.context.note_sync_only(runnable)
                blocking = True
            finally:
                await _aclose(pieces, inside)
        if blocking:
            heard.answer = await self._ask(runnable, messages, arguments, config, effect)
            yield as_chunk(heard.answer.native)
            return
        heard.answer = answer_of(as_message(heard.whole))


def gate_of(effect: Call, context: CascadeCall) -> Gate[AIMessageChunk]:
    """Return what holds a watched draft back, and marks its run before it is stopped."""
    inner, tracing = effect.watch, context.tracing
    assert inner is not None

    def watch(answer: Answer) -> Verdict:
        verdict = inner(answer)
        if verdict == "stop" and tracing is not None and answer.finish_reason is None:
            tracing.marks.interrupted(effect.index, answer)
        return verdict

    return Gate(watch, Whole(), lazy=True)


class Whole:
    """The answer so far, grown from a tier's chunks."""

    def __init__(self) -> None:
        self._whole: AIMessageChunk | None = None

    def __call__(self, chunk: AIMessageChunk) -> Answer:
        """Add a chunk; return the answer so far."""
        self._whole = chunk if self._whole is None else self._whole + chunk
        return answer_of(as_message(self._whole))


async def _task(begin: Callable[[], Any], inside: Context, limit: TimeLimit) -> Any:
    """Await a coroutine inside another context, within the tier's time."""

    async def run() -> Any:
        return await begin()

    task = asyncio.create_task(run(), context=inside)
    return await within(task, limit)


async def _in_thread(function: Callable[[], Any], limit: TimeLimit) -> Any:
    loop = asyncio.get_running_loop()
    return await within(loop.run_in_executor(None, function), limit)


async def _aclose(pieces: Any, inside: Context) -> None:
    # at the end of a loop all generators are closed at once, those below this one maybe already
    with suppress(RuntimeError):
        try:
            await asyncio.create_task(pieces.aclose(), context=inside)
        except asyncio.CancelledError:
            # cancelled again, maybe before that task had begun
            await asyncio.create_task(pieces.aclose(), context=inside)
            raise


def as_chunk(piece: Any) -> AIMessageChunk:
    """Return what a tier streamed as a message chunk."""
    if isinstance(piece, AIMessageChunk):
        return piece
    message = as_message(piece)
    return AIMessageChunk(
        content=message.content,
        additional_kwargs=message.additional_kwargs,
        response_metadata=message.response_metadata,
        usage_metadata=message.usage_metadata,
        tool_calls=message.tool_calls,
        invalid_tool_calls=message.invalid_tool_calls,
    )
