"""Performers: the engine's effects, performed by asking LlamaIndex LLMs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from llama_index.core.base.llms.types import ChatMessage, MessageRole

from cascadellm.answer import Answer
from cascadellm.effects import Call, Judge
from cascadellm.events import Handler
from cascadellm.perform import AsyncPerformer, Performer
from cascadellm.resilience import timeout_message, with_timeout
from llamaindex_cascade.spans import Spans
from llamaindex_cascade.tier import CascadeTier, TierBook
from llamaindex_cascade.tools import Asked

__all__ = ["AsyncTierPerformer", "TierPerformer", "call_kwargs", "timed"]

T = TypeVar("T")


def call_kwargs(effect: Call) -> dict[str, Any]:
    """Return a call's arguments: the caller's, the tier's, the policy's, in this order."""
    return {**effect.request.kwargs, **effect.tier.kwargs, **effect.kwargs}


def _asked(book: TierBook, effect: Call | Judge) -> tuple[CascadeTier, Asked, dict[str, Any]]:
    if isinstance(effect, Call):
        tier = book.of(effect.index, effect.tier)
        return tier, effect.request.native, call_kwargs(effect)
    question = ChatMessage(role=MessageRole.USER, content=effect.prompt)
    return book.of(-1, effect.tier), Asked((question,)), {**effect.tier.kwargs, **effect.kwargs}


class TierPerformer(Performer):
    """Performs effects synchronously."""

    def __init__(self, book: TierBook, spans: Spans, handlers: Sequence[Handler]) -> None:
        super().__init__(handlers)
        self._book = book
        self._spans = spans

    def emit(self, event: Any) -> None:
        """Move the spans on, then tell handlers."""
        self._spans.on_event(event)
        super().emit(event)

    def call(self, effect: Call) -> Answer:
        """Ask a tier."""
        return self._ask(effect)

    def judge(self, effect: Judge) -> Answer:
        """Ask a judge."""
        return self._ask(effect)

    def _ask(self, effect: Call | Judge) -> Answer:
        tier, asked, kwargs = _asked(self._book, effect)
        return with_timeout(
            lambda: tier.ask(asked, kwargs, effect.reads),
            effect.tier.timeout_s,
            effect.tier.label,
        )


class AsyncTierPerformer(AsyncPerformer):
    """Performs effects asynchronously."""

    def __init__(self, book: TierBook, spans: Spans, handlers: Sequence[Handler]) -> None:
        super().__init__(handlers)
        self._book = book
        self._spans = spans

    def emit(self, event: Any) -> Any:
        """Move the spans on, then tell handlers."""
        self._spans.on_event(event)
        return super().emit(event)

    async def call(self, effect: Call) -> Answer:
        """Ask a tier."""
        return await self._ask(effect)

    async def judge(self, effect: Judge) -> Answer:
        """Ask a judge."""
        return await self._ask(effect)

    async def _ask(self, effect: Call | Judge) -> Answer:
        tier, asked, kwargs = _asked(self._book, effect)
        return await timed(tier.aask(asked, kwargs, effect.reads), effect)


async def timed(awaitable: Awaitable[T], effect: Call | Judge) -> T:
    """Await a tier's call within its `timeout_s`.

    Raises:
        TimeoutError: It took longer; the message names the tier.
    """
    limit = effect.tier.timeout_s
    if limit is None:
        return await awaitable
    deadline = asyncio.timeout(limit)
    try:
        async with deadline:
            return await awaitable
    except TimeoutError as error:
        if not deadline.expired():
            raise
        raise TimeoutError(timeout_message(effect.tier.label, limit)) from error
