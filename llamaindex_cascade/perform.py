"""Performers: the engine's effects, performed by asking LlamaIndex LLMs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index_instrumentation.span import active_span_id

from cascadellm.answer import Answer
from cascadellm.effects import Call, Judge, Shown
from cascadellm.events import Handler
from cascadellm.limits import TimeLimit, with_timeout, within
from cascadellm.perform import AsyncPerformer, Performer
from cascadellm.watching import Gate
from llamaindex_cascade.gather import Gathered
from llamaindex_cascade.spans import Spans
from llamaindex_cascade.tier import CascadeTier, TierBook
from llamaindex_cascade.tools import Asked

__all__ = ["AsyncTierPerformer", "TierPerformer", "call_kwargs", "unshown"]


def call_kwargs(effect: Call) -> dict[str, Any]:
    """Return a call's arguments: the caller's, the tier's, the policy's, in this order."""
    return {**effect.request.kwargs, **effect.tier.kwargs, **effect.kwargs}


def _asked(book: TierBook, effect: Call | Judge) -> tuple[CascadeTier, Asked, dict[str, Any]]:
    if effect.purpose == "shadow":
        # it runs beside the call, in a context of its own, when the call's span has ended
        active_span_id.set(None)
    if isinstance(effect, Call):
        tier = book.of(effect.index, effect.tier)
        return tier, effect.request.native, call_kwargs(effect)
    question = ChatMessage(role=MessageRole.USER, content=effect.prompt)
    return book.of(-1, effect.tier), Asked((question,)), {**effect.tier.kwargs, **effect.kwargs}


def _answered(
    tier: CascadeTier, asked: Asked, kwargs: dict[str, Any], effect: Call | Judge
) -> Answer:
    watch = getattr(effect, "watch", None)
    if watch is None:
        return tier.ask(asked, kwargs, effect.reads)
    gathered = Gathered(asked)
    gate: Gate[ChatResponse] = Gate(watch, gathered)
    for _ in gate.through(tier.stream(asked, kwargs, effect.reads)):
        pass
    return unshown(gate, gathered)


async def _aanswered(
    tier: CascadeTier, asked: Asked, kwargs: dict[str, Any], effect: Call | Judge
) -> Answer:
    watch = getattr(effect, "watch", None)
    if watch is None:
        return await tier.aask(asked, kwargs, effect.reads)
    gathered = Gathered(asked)
    gate: Gate[ChatResponse] = Gate(watch, gathered)
    source = await tier.astream(asked, kwargs, effect.reads)
    async with aclosing(gate.athrough(source)) as shown:
        async for _ in shown:
            pass
    return unshown(gate, gathered)


def unshown(gate: Gate[ChatResponse], gathered: Gathered) -> Answer:
    """Return the answer of a watched call of which nothing was shown."""
    if gate.answer is None:
        return gathered.answer()
    result = gate.result()
    return result.answer if isinstance(result, Shown) else result


class TierPerformer(Performer):
    """Performs effects synchronously; watched drafts can be held back."""

    watches = True

    def __init__(self, book: TierBook, spans: Spans, handlers: Sequence[Handler]) -> None:
        super().__init__(handlers)
        self._book = book
        self._spans = spans

    def emit(self, event: Any) -> None:
        """Move the spans on, then tell handlers."""
        self._spans.on_event(event)
        super().emit(event)

    def tell(self, effect: Any) -> None:
        """Tell what happens after the call has returned."""
        self.emit(effect.event)

    def call(self, effect: Call) -> Answer:
        """Ask a tier."""
        if effect.purpose == "tier":
            self._spans.asked(effect.index, effect.tier.label)
        return self._ask(effect)

    def judge(self, effect: Judge) -> Answer:
        """Ask a judge."""
        return self._ask(effect)

    def _ask(self, effect: Call | Judge) -> Answer:
        tier, asked, kwargs = _asked(self._book, effect)
        return with_timeout(
            lambda: _answered(tier, asked, kwargs, effect),
            TimeLimit(effect.tier),
        )


class AsyncTierPerformer(AsyncPerformer):
    """Performs effects asynchronously; watched drafts can be held back."""

    watches = True

    def __init__(self, book: TierBook, spans: Spans, handlers: Sequence[Handler]) -> None:
        super().__init__(handlers)
        self._book = book
        self._spans = spans

    def emit(self, event: Any) -> Any:
        """Move the spans on, then tell handlers."""
        self._spans.on_event(event)
        return super().emit(event)

    def tell(self, effect: Any) -> None:
        """Tell what happens after the call has returned."""
        self.emit(effect.event)

    async def call(self, effect: Call) -> Answer:
        """Ask a tier."""
        if effect.purpose == "tier":
            self._spans.asked(effect.index, effect.tier.label)
        return await self._ask(effect)

    async def judge(self, effect: Judge) -> Answer:
        """Ask a judge."""
        return await self._ask(effect)

    async def _ask(self, effect: Call | Judge) -> Answer:
        tier, asked, kwargs = _asked(self._book, effect)
        return await within(_aanswered(tier, asked, kwargs, effect), TimeLimit(effect.tier))
