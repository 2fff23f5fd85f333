"""Streams under upstream's LLM decorators that close what they stream from.

Upstream's wrapper leaves the inner generator to the garbage collector, and a handler that
keeps its exception event keeps the generator alive: a local model would go on generating.
It also calls a stream that is closed early or cancelled a failure; here such a stream ends with
what it had written and counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import aclosing, closing, suppress
from typing import Any

from cascadellm.answer import Usage
from llamaindex_cascade.convert import field_of, usage_dict

__all__ = ["atold", "told"]


def told(
    decorator: Callable[[], Any],
    stream: Iterator[Any],
    llm: Any,
    asked: Any,
    kwargs: dict[str, Any],
    source: Iterator[Any] | None = None,
) -> Generator[Any, None, None]:
    """Return a stream whose events upstream's decorator emits.

    Args:
        decorator: `llm_chat_callback` or `llm_completion_callback`.
        stream: What is streamed.
        llm: The LLM whose endpoint this is.
        asked: Messages or prompt.
        kwargs: The call's arguments.
        source: The generator to close at the end, where `stream` is derived from it.
    """

    def endpoint(_llm: Any, _asked: Any, **_kwargs: Any) -> Any:
        return stream

    state = _State()
    source = stream if source is None else source
    stream = _until_left(stream, state)
    outer = decorator()(endpoint)(llm, asked, **kwargs)
    return _relay(outer, source, state)


class _State:
    """What is known of a stream when its reader leaves."""

    def __init__(self) -> None:
        self.left = False
        self.gone: asyncio.CancelledError | None = None
        self._read: int | None = None
        self._written = 0

    def take(self, chunk: Any) -> None:
        """Count a chunk."""
        piece = field_of(chunk.raw, "piece")
        self._read = field_of(piece, "input_tokens") or self._read
        self._written += len(field_of(piece, "tokens") or ())

    def last(self, chunk: Any) -> Any:
        """Return a chunk with the usage so far, as the end of the stream."""
        if self._read is None or not self._written:
            return chunk
        usage = usage_dict(Usage(self._read, self._written))
        return chunk.model_copy(update={"additional_kwargs": usage, "raw": {"usage": usage}})


def _until_left(stream: Iterator[Any], state: _State) -> Iterator[Any]:
    for chunk in stream:
        state.take(chunk)
        yield chunk
        if state.left:
            yield state.last(chunk)
            return


def _relay(outer: Any, source: Any, state: _State) -> Generator[Any, None, None]:
    with closing(source), closing(outer):
        try:
            for chunk in outer:  # noqa: UP028 - `yield from` would close it at once
                yield chunk
        except GeneratorExit:
            state.left = True
            with suppress(Exception):
                for _ in outer:
                    pass
            raise


async def atold(
    decorator: Callable[[], Any],
    stream: AsyncIterator[Any],
    llm: Any,
    asked: Any,
    kwargs: dict[str, Any],
    source: AsyncIterator[Any] | None = None,
) -> AsyncGenerator[Any, None]:
    """Async twin of `told`."""

    async def endpoint(_llm: Any, _asked: Any, **_kwargs: Any) -> Any:
        return stream

    state = _State()
    source = stream if source is None else source
    stream = _auntil_left(stream, state)
    outer = await decorator()(endpoint)(llm, asked, **kwargs)
    return _arelay(outer, source, state)


async def _auntil_left(stream: AsyncIterator[Any], state: _State) -> AsyncIterator[Any]:
    chunk = None
    try:
        async for chunk in stream:
            state.take(chunk)
            yield chunk
            if state.left:
                yield state.last(chunk)
                return
    except asyncio.CancelledError as gone:
        if chunk is None:
            raise
        # upstream tells of the end with what was counted; `_arelay` raises it then
        state.gone = gone
        yield state.last(chunk)


async def _arelay(outer: Any, source: Any, state: _State) -> AsyncGenerator[Any, None]:
    async with aclosing(source), aclosing(outer):
        try:
            async for chunk in outer:
                if state.gone is None:
                    yield chunk
            if state.gone is not None:
                raise state.gone
        except GeneratorExit:
            state.left = True
            with suppress(Exception):
                async for _ in outer:
                    pass
            raise
