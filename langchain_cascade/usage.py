"""Usage on the way out: callers see the accepted tier's, handlers saw only the tiers' own."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import Any, TypeVar

from langchain_core.language_models.chat_model_stream import (
    AsyncChatModelStream,
    ChatModelStream,
)
from langchain_core.messages import AIMessage
from langchain_core.outputs import LLMResult

from langchain_cascade.calls import Box

__all__ = ["acounted", "counted", "put_back", "with_usage"]

M = TypeVar("M", bound=AIMessage)
_log = logging.getLogger("langchain_cascade")


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


def with_usage(chunk: M, box: Box) -> M:
    """Return the last chunk with the accepted tier's usage, any other one unchanged."""
    if "cascade" not in chunk.response_metadata or chunk.usage_metadata or box.outer is None:
        return chunk
    usage = box.usages.get(box.outer.run_id)
    return chunk if usage is None else chunk.model_copy(update={"usage_metadata": usage})


class _Counted(ChatModelStream):
    """A v3 stream whose message has the usage; the run ended with one that has none."""

    @property
    def output(self) -> AIMessage:
        return with_usage(super().output, self.__dict__["_cascade_box"])


class _AsyncCounted(AsyncChatModelStream):
    """Async twin of `_Counted`."""

    def _finish(self, data: Any) -> None:
        super()._finish(data)
        if self._output_message is not None:
            # what callers await; `output_message`, which the run ends with, stays as it is
            shown = with_usage(self._output_message, self.__dict__["_cascade_box"])
            self._output_proj.complete(shown)


def counted(stream: Any, box: Box) -> Any:
    """Return a v3 stream that gives its caller the accepted tier's usage."""
    try:
        stream.__dict__["_cascade_box"] = box
        stream.__class__ = _AsyncCounted if isinstance(stream, AsyncChatModelStream) else _Counted
    except Exception:
        _log.warning("the usage of a v3 stream is left out", exc_info=True)
    return stream


async def acounted(stream: Awaitable[Any], box: Box) -> Any:
    """Async twin of `counted`."""
    return counted(await stream, box)
