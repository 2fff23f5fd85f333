"""Streams under upstream's LLM decorators that close what they stream from.

Upstream's wrapper leaves the inner generator to the garbage collector, and a handler that
keeps its exception event keeps the generator alive: a local model would go on generating.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import aclosing, closing
from typing import Any

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

    outer = decorator()(endpoint)(llm, asked, **kwargs)
    return _relay(outer, stream if source is None else source)


def _relay(outer: Any, source: Any) -> Generator[Any, None, None]:
    with closing(source), closing(outer):
        yield from outer


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

    outer = await decorator()(endpoint)(llm, asked, **kwargs)
    return _arelay(outer, stream if source is None else source)


async def _arelay(outer: Any, source: Any) -> AsyncGenerator[Any, None]:
    async with aclosing(source), aclosing(outer):
        async for chunk in outer:
            yield chunk
