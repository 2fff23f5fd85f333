"""Usage on the way out: callers see the accepted tier's, handlers saw only the tiers' own."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import LLMResult

from langchain_cascade.calls import Box

__all__ = ["put_back", "with_usage"]


def put_back(result: LLMResult, box: Box) -> LLMResult:
    """Return the result with the accepted tiers' usage on its messages.

    The messages are copied: LangChain's in-memory cache holds the originals.
    """
    runs = result.run or []
    for place, run in enumerate(runs):
        generations = [
            _generation_with(generation, box.usages.get(run.run_id))
            for generation in result.generations[place]
        ]
        result.generations[place] = generations
    return result


def _generation_with(generation: Any, usage: Any) -> Any:
    message = getattr(generation, "message", None)
    if not isinstance(message, AIMessage):
        return generation
    usage = usage or recorded_usage(message)
    if usage is None:
        return generation
    copy = message.model_copy(update={"usage_metadata": usage})
    return generation.model_copy(update={"message": copy})


def recorded_usage(message: AIMessage) -> dict[str, Any] | None:
    """Return the accepted tier's token counts from the record of a cached answer.

    LangChain marks a cache hit by `total_cost` 0 and drops the counts, which programs read
    as the size of the context.
    """
    record = message.response_metadata.get("cascade")
    if not isinstance(record, dict):
        return None
    for attempt in reversed(record.get("attempts") or []):
        counted = attempt.get("input_tokens") is not None
        if attempt.get("tier") == record.get("tier") and counted:
            given, said = attempt["input_tokens"], attempt["output_tokens"] or 0
            known = dict(message.usage_metadata or {})
            counts = {"input_tokens": given, "output_tokens": said, "total_tokens": given + said}
            return {**counts, **known}
    return None


def with_usage(chunk: AIMessageChunk, box: Box) -> AIMessageChunk:
    """Return the last chunk with the accepted tier's usage, any other one unchanged."""
    if "cascade" not in chunk.response_metadata or chunk.usage_metadata or box.outer is None:
        return chunk
    usage = box.usages.get(box.outer.run_id)
    return chunk if usage is None else chunk.model_copy(update={"usage_metadata": usage})
