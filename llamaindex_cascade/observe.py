"""The cascade's own LLM events, without token counts and without a legacy LLM callback.

Upstream's decorators would count every call twice: once at the tier, once here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatInProgressEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
    LLMCompletionInProgressEvent,
    LLMCompletionStartEvent,
)
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.span import active_span_id

from cascadellm.harmless import harmless
from llamaindex_cascade.convert import completion_from_chat
from llamaindex_cascade.gather import event_copy
from llamaindex_cascade.spans import listened

__all__ = ["Observed"]

_dispatcher = get_dispatcher(__name__)


class Observed:
    """Tells listeners about one call of one endpoint; silent when nobody listens.

    Args:
        messages: The conversation, for chat endpoints.
        prompt: The prompt, for completion endpoints.

    Attributes:
        span_id: The span in which the call was made, None without one.
    """

    def __init__(
        self, messages: Sequence[ChatMessage] | None = None, prompt: str | None = None
    ) -> None:
        self._on = listened()
        self.span_id = active_span_id.get()
        self._messages = list(messages or ())
        self._prompt = prompt

    def start(self, payload: Callable[[], dict[str, Any]], kwargs: Mapping[str, Any]) -> None:
        """Tell that the call begins."""
        if not self._on:
            return
        with harmless("event handlers miss the start of a cascade"):
            shared: dict[str, Any] = {
                "model_dict": payload(),
                "additional_kwargs": dict(kwargs),
                "span_id": self.span_id,
            }
            if self._prompt is None:
                _dispatcher.event(LLMChatStartEvent(messages=self._messages, **shared))
            else:
                _dispatcher.event(LLMCompletionStartEvent(prompt=self._prompt, **shared))

    def converted(self, response: ChatResponse) -> Any:
        """Return a response in the endpoint's form."""
        return response if self._prompt is None else completion_from_chat(response)

    def end(self, response: ChatResponse) -> Any:
        """Tell that the call ended; return the response in the endpoint's form."""
        result = self.converted(response)
        self._told(result, LLMChatEndEvent, LLMCompletionEndEvent)
        return result

    def _told(self, result: Any, chat: Any, completion: Any) -> None:
        if not self._on:
            return
        with harmless("event handlers miss an answer of a cascade"):
            copy = event_copy(result)
            if self._prompt is None:
                event = chat(messages=self._messages, response=copy, span_id=self.span_id)
            else:
                event = completion(prompt=self._prompt, response=copy, span_id=self.span_id)
            _dispatcher.event(event)

    def _chunk(self, chunk: ChatResponse) -> Any:
        result = self.converted(chunk)
        self._told(result, LLMChatInProgressEvent, LLMCompletionInProgressEvent)
        return result

    def _closed(self, last: Any, error: Exception | None) -> None:
        if not self._on:
            return
        if error is not None:
            _dispatcher.event(ExceptionEvent(exception=error, span_id=self.span_id))
        elif last is not None:
            # also after an early close, which is no failure
            self._told(last, LLMChatEndEvent, LLMCompletionEndEvent)

    def relay(self, chunks: Iterator[ChatResponse]) -> Iterator[Any]:
        """Pass a stream on, telling about each chunk; closing it closes the source."""
        last, error = None, None
        try:
            # closed before the end is told: the record of a stream that is left comes first
            with closing(chunks):  # type: ignore[type-var]
                for chunk in chunks:
                    last = self._chunk(chunk)
                    yield last
        except Exception as raised:
            error = raised
            raise
        finally:
            self._closed(last, error)

    async def arelay(self, chunks: AsyncIterator[ChatResponse]) -> AsyncIterator[Any]:
        """Async twin of `relay`."""
        last, error = None, None
        try:
            async with aclosing(chunks):  # type: ignore[type-var]
                async for chunk in chunks:
                    last = self._chunk(chunk)
                    yield last
        except Exception as raised:
            error = raised
            raise
        finally:
            self._closed(last, error)
