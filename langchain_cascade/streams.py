"""Streams: only accepted text leaves; metadata and usage stand on the last chunk."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk

from cascadellm.answer import Answer
from cascadellm.cascade import Outcome
from cascadellm.effects import Call, Interrupted, Relay, Shown
from cascadellm.perform import Done, aabandon, aadvance, abandon, advance
from cascadellm.watching import Gate
from langchain_cascade.calls import CascadeCall
from langchain_cascade.convert import as_message
from langchain_cascade.owned import Owned
from langchain_cascade.performing import (
    AsyncLangChainPerformer,
    Heard,
    LangChainPerformer,
    gate_of,
)

__all__ = ["astream_plan", "final_message", "stream_plan"]

_DROPPED = frozenset({"cascade", "logprobs", "spans", "speculation", "token_usage", "usage"})
_ON_EVERY_CHUNK = ("model_provider", "output_version")
_WORDS = re.compile(r"\s*\S+\s*$|\s*\S+")


def final_message(
    outcome: Outcome, *, message_id: str | None = None, with_usage: bool = False
) -> tuple[AIMessage, Any]:
    """Return the accepted message without usage, and its usage.

    The tier's id goes, so that LangChain gives the message the cascade's; logprobs stay on
    the tier's run; the record comes in.

    Args:
        outcome: What the plan returned.
        message_id: The message's id where LangChain gives none.
        with_usage: Whether the message keeps its usage.
    """
    native = outcome.answer.native
    message = AIMessage(content=outcome.answer.text) if native is None else as_message(native)
    kept = {k: v for k, v in message.response_metadata.items() if k not in _DROPPED}
    kept["cascade"] = outcome.trace.to_dict()
    usage = message.usage_metadata
    shown = usage if with_usage else None
    update = {"id": message_id, "usage_metadata": shown, "response_metadata": kept}
    return message.model_copy(update=update), usage


class _Stream:
    """One streamed call: what is being shown, and how it is left before its end."""

    def __init__(self, context: CascadeCall, perform: Any) -> None:
        self.context, self.perform = context, perform
        self.plan = context.plan()
        self.heard = Heard()
        self.shown = False
        self.accepted: Answer | None = None
        self.gate: Gate[AIMessageChunk] | None = None
        self.pieces: Any = None
        self._index: int | None = None
        context.box.leave = self.leave

    def open(self, call: Call) -> Any:
        """Return the chunks of a call that may be shown."""
        self._index = call.index
        self.heard = Heard()
        live = self.perform.live(call, self.heard)
        self.gate = None if call.watch is None else gate_of(call, self.context)
        if isinstance(self.perform, AsyncLangChainPerformer):
            live = Owned(live)
            self.pieces = live if self.gate is None else Owned(self.gate.athrough(live))
        else:
            self.pieces = live if self.gate is None else self.gate.through(live)
        return self.pieces

    def closed(self) -> Answer | Shown:
        """Return what the call's effect results in, after its last chunk."""
        answer, self.pieces = self.heard.answer, None
        if self.gate is not None:
            return self.gate.result(answer)
        assert answer is not None
        return answer

    def _leaving(self) -> tuple[Answer | None, Any]:
        """Mark the open run before its stream is closed; return (shown, open stream)."""
        shown = self.heard.partial() if self.shown and self.pieces is not None else None
        tracing = self.context.tracing
        if tracing is not None and self._index is not None and self.pieces is not None:
            tracing.marks.interrupted(self._index, shown)
        pieces, self.pieces = self.pieces, None
        return shown, pieces

    def leave(self) -> Any:
        """Record that the caller left, unless the call has ended; safe to call again."""
        raise NotImplementedError


class _SyncStream(_Stream):
    def leave(self) -> None:
        shown, pieces = self._leaving()
        self.context.box.leave = None
        if pieces is not None:
            pieces.close()
        abandon(self.plan, self.perform, shown)
        self.context.close()


class _AsyncStream(_Stream):
    _left: asyncio.Event | None = None

    async def leave(self) -> None:
        if self._left is not None:
            # whoever came first knows what was shown
            await self._left.wait()
            return
        self._left = asyncio.Event()
        shown, pieces = self._leaving()
        try:
            if pieces is not None:
                # the loop may be closing it already, when nobody closed the chain around it
                with suppress(RuntimeError):
                    await pieces.aclose()
        finally:
            # whoever cancels the closing still gets a record
            try:
                await aabandon(self.plan, self.perform, shown)
            finally:
                self.context.close()
                self._left.set()
                self.context.box.leave = None


def stream_plan(context: CascadeCall) -> Iterator[ChatGenerationChunk]:
    """Drive a plan; yield the accepted answer's chunks, the last one with the record."""
    perform = LangChainPerformer(context)
    stream = _SyncStream(context, perform)
    plan = stream.plan
    try:
        step: Relay | Done[Outcome] = advance(plan, perform)
        while isinstance(step, Relay):
            if not isinstance(step.source, Call):
                stream.accepted = step.source
                step = advance(plan, perform, send=step.source)
                continue
            try:
                for chunk in stream.open(step.source):
                    piece = _shown(chunk)
                    if piece is not None:
                        stream.shown = True
                        yield _generation(piece)
            except Exception as error:
                broken = Interrupted(error) if stream.shown else error
                step = advance(plan, perform, throw=broken)
            else:
                step = advance(plan, perform, send=stream.closed())
        yield from _ending(step.value, context, replay=stream.accepted is not None)
    finally:
        stream.leave()


async def astream_plan(context: CascadeCall) -> AsyncIterator[ChatGenerationChunk]:
    """Async twin of `stream_plan`."""
    perform = AsyncLangChainPerformer(context)
    stream = _AsyncStream(context, perform)
    plan = stream.plan
    try:
        step: Relay | Done[Outcome] = await aadvance(plan, perform)
        while isinstance(step, Relay):
            if not isinstance(step.source, Call):
                stream.accepted = step.source
                step = await aadvance(plan, perform, send=step.source)
                continue
            try:
                async for chunk in stream.open(step.source):
                    piece = _shown(chunk)
                    if piece is not None:
                        stream.shown = True
                        yield _generation(piece)
            except Exception as error:
                await stream.pieces.aclose()
                broken = Interrupted(error) if stream.shown else error
                step = await aadvance(plan, perform, throw=broken)
            else:
                step = await aadvance(plan, perform, send=stream.closed())
        for generation in _ending(step.value, context, replay=stream.accepted is not None):
            yield generation
    finally:
        await stream.leave()


def _ending(
    outcome: Outcome, context: CascadeCall, *, replay: bool
) -> Iterator[ChatGenerationChunk]:
    message, usage = final_message(outcome)
    context.box.usages[context.outer.run_id] = usage
    if replay:
        for chunk in _replayed(message):
            yield _generation(chunk)
    yield _generation(
        AIMessageChunk(
            content="" if isinstance(message.content, str) else [],
            response_metadata=message.response_metadata,
            chunk_position="last",
        )
    )


def _generation(chunk: AIMessageChunk) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=chunk)


def _shown(chunk: AIMessageChunk) -> AIMessageChunk | None:
    """Return what may leave of a tier's chunk: no id, usage or metadata; None if nothing."""
    if not (chunk.content or chunk.tool_call_chunks or chunk.additional_kwargs):
        return None
    return chunk.model_copy(
        update={
            "id": None,
            "usage_metadata": None,
            "chunk_position": None,
            "response_metadata": _provider(chunk.response_metadata),
        }
    )


def _provider(metadata: dict[str, Any]) -> dict[str, Any]:
    """Keep what selects the content-block translator; merging leaves these keys alone."""
    return {key: metadata[key] for key in _ON_EVERY_CHUNK if key in metadata}


def _replayed(message: AIMessage) -> Iterator[AIMessageChunk]:
    """Yield an accepted draft in several chunks."""
    provider = _provider(message.response_metadata)
    whole = message.content
    words: list[Any] = _WORDS.findall(whole) if isinstance(whole, str) else [whole] * bool(whole)
    if isinstance(whole, str) and "".join(words) != whole:
        words = [whole] if whole else []
    for word in words:
        yield AIMessageChunk(content=word, response_metadata=provider)
    if message.tool_calls or message.invalid_tool_calls or message.additional_kwargs:
        yield AIMessageChunk(
            content="" if isinstance(whole, str) else [],
            additional_kwargs=message.additional_kwargs,
            tool_calls=message.tool_calls,
            invalid_tool_calls=message.invalid_tool_calls,
            response_metadata=provider,
        )
