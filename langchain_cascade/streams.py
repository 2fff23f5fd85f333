"""Streams: only accepted text leaves; metadata and usage stand on the last chunk."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk

from cascadellm.answer import Answer
from cascadellm.cascade import Outcome
from cascadellm.effects import Call, Interrupted, Relay
from cascadellm.perform import Done, aadvance, advance
from langchain_cascade.calls import CascadeCall
from langchain_cascade.convert import as_message
from langchain_cascade.performing import AsyncLangChainPerformer, LangChainPerformer, gate_of

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


def stream_plan(context: CascadeCall) -> Iterator[ChatGenerationChunk]:
    """Drive a plan; yield the accepted answer's chunks, the last one with the record."""
    perform = LangChainPerformer(context)
    plan = context.plan()
    shown = False
    accepted: Answer | None = None
    try:
        step: Relay | Done[Outcome] = advance(plan, perform)
        while isinstance(step, Relay):
            if not isinstance(step.source, Call):
                accepted = step.source
                step = advance(plan, perform, send=accepted)
                continue
            gate = None if step.source.watch is None else gate_of(step.source, context)
            live = perform.live(step.source)
            try:
                for chunk in live if gate is None else gate.through(live):
                    piece = _shown(chunk)
                    if piece is not None:
                        shown = True
                        yield _generation(piece)
            except Exception as error:
                step = advance(plan, perform, throw=Interrupted(error) if shown else error)
            else:
                said = perform.answer if gate is None else gate.result(perform.answer)
                step = advance(plan, perform, send=said)
        yield from _ending(step.value, context, replay=accepted is not None)
    finally:
        plan.close()
        context.close()


async def astream_plan(context: CascadeCall) -> AsyncIterator[ChatGenerationChunk]:
    """Async twin of `stream_plan`."""
    perform = AsyncLangChainPerformer(context)
    plan = context.plan()
    shown = False
    accepted: Answer | None = None
    try:
        step: Relay | Done[Outcome] = await aadvance(plan, perform)
        while isinstance(step, Relay):
            if not isinstance(step.source, Call):
                accepted = step.source
                step = await aadvance(plan, perform, send=accepted)
                continue
            gate = None if step.source.watch is None else gate_of(step.source, context)
            live = perform.live(step.source)
            pieces = live if gate is None else gate.athrough(live)
            try:
                async for chunk in pieces:
                    piece = _shown(chunk)
                    if piece is not None:
                        shown = True
                        yield _generation(piece)
            except Exception as error:
                broken = Interrupted(error) if shown else error
                step = await aadvance(plan, perform, throw=broken)
            else:
                said = perform.answer if gate is None else gate.result(perform.answer)
                step = await aadvance(plan, perform, send=said)
            finally:
                await pieces.aclose()  # type: ignore[attr-defined]
        for generation in _ending(step.value, context, replay=accepted is not None):
            yield generation
    finally:
        plan.close()
        context.close()


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
