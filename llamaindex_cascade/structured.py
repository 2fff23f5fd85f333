"""Structured prediction: each tier by its own mechanism, an unusable object is deferred."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from typing import Any

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictInProgressEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.program.utils import process_streaming_objects
from llama_index.core.prompts import BasePromptTemplate
from llama_index_instrumentation import get_dispatcher

from cascadellm.harmless import harmless
from llamaindex_cascade.base import CascadeBase
from llamaindex_cascade.observe import Observed
from llamaindex_cascade.request import passages, public
from llamaindex_cascade.session import AsyncSession, Session
from llamaindex_cascade.spans import listened
from llamaindex_cascade.tools import Asked

__all__ = ["StructuredCascade"]

_dispatcher = get_dispatcher(__name__)
_log = logging.getLogger(__name__)


class StructuredCascade(CascadeBase):
    """Structured prediction of a cascade; see `CascadeLLM`.

    The policy decides about the answer as always, with its token scores; besides, an answer
    from which no object can be made is deferred. The last tier's failure to give one is raised.
    """

    def structured_predict(
        self,
        output_cls: type[Any],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """Return an object of `output_cls` from the cheapest tier that the policy accepts."""
        asked, kwargs = self._object_asked(output_cls, prompt, llm_kwargs, prompt_args)
        self._wait()
        return _told(_parsed(Session(*self._parts(asked, kwargs)).run(), asked))

    async def astructured_predict(
        self,
        output_cls: type[Any],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """Return an object of `output_cls` from the cheapest tier that the policy accepts."""
        asked, kwargs = self._object_asked(output_cls, prompt, llm_kwargs, prompt_args)
        await self._await()
        return _told(_parsed(await AsyncSession(*self._parts(asked, kwargs)).run(), asked))

    def stream_structured_predict(
        self,
        output_cls: type[Any],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """Decide, then return the growing objects of the accepted answer."""
        asked, kwargs = self._object_asked(output_cls, prompt, llm_kwargs, prompt_args)
        observed = self._observed(asked, kwargs)
        self._wait()
        chunks = Session(*self._parts(asked, kwargs)).open()
        return self._objects(chunks, asked, observed)

    async def astream_structured_predict(
        self,
        output_cls: type[Any],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """Decide, then return the growing objects of the accepted answer."""
        asked, kwargs = self._object_asked(output_cls, prompt, llm_kwargs, prompt_args)
        observed = self._observed(asked, kwargs)
        await self._await()
        chunks = await AsyncSession(*self._parts(asked, kwargs)).open()
        return self._aobjects(chunks, asked, observed)

    def _object_asked(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None,
        prompt_args: dict[str, Any],
    ) -> tuple[Asked, dict[str, Any]]:
        if listened():
            with harmless("event handlers miss the start of a structured prediction"):
                _dispatcher.event(
                    LLMStructuredPredictStartEvent(
                        output_cls=output_cls, template=prompt, template_args=prompt_args
                    )
                )
        messages = self._extend_messages(prompt.format_messages(llm=self, **prompt_args))
        parser = PydanticOutputParser(output_cls=output_cls)
        asked = Asked(
            tuple(messages),
            output_parser=parser,
            output_cls=output_cls,
            documents=passages(prompt, prompt_args),
        )
        return asked, {k: v for k, v in (llm_kwargs or {}).items() if k != "tool_choice"}

    def _grown(self, chunk: ChatResponse, asked: Asked, before: Any) -> Any:
        """Return the object of a growing answer; the last chunk's is the parser's own."""
        if _is_last(chunk):
            try:
                return _parsed(chunk, asked)
            except Exception:
                # the last tier may give no whole object; what there is was shown already
                _log.debug("the streamed answer is no whole object", exc_info=True)
        source: Any = chunk
        text = chunk.message.content or ""
        if not chunk.message.additional_kwargs.get("tool_calls"):
            source = CompletionResponse(text=text[max(text.find("{"), 0) :])
        output_cls: Any = asked.output_cls
        return process_streaming_objects(
            source, output_cls, cur_objects=before, flexible_mode=True, llm=self
        )

    def _observed(self, asked: Asked, kwargs: dict[str, Any]) -> Observed:
        """Tell that a stream begins; tracers end its span at the chat events that follow."""
        observed = Observed(asked.messages)
        observed.start(self.to_payload, public(kwargs))
        return observed

    def _objects(
        self, chunks: Iterator[ChatResponse], asked: Asked, observed: Observed
    ) -> Iterator[Any]:
        before: Any = None
        with closing(observed.relay(chunks)) as relayed:  # type: ignore[type-var]
            for chunk in relayed:
                before = [self._grown(chunk, asked, before)]
                yield _grew(before[0], observed.span_id, last=_is_last(chunk))

    async def _aobjects(
        self, chunks: AsyncIterator[ChatResponse], asked: Asked, observed: Observed
    ) -> AsyncIterator[Any]:
        before: Any = None
        async with aclosing(observed.arelay(chunks)) as relayed:  # type: ignore[type-var]
            async for chunk in relayed:
                before = [self._grown(chunk, asked, before)]
                yield _grew(before[0], observed.span_id, last=_is_last(chunk))


def _is_last(chunk: ChatResponse) -> bool:
    return "cascade" in chunk.additional_kwargs


def _parsed(response: ChatResponse, asked: Asked) -> Any:
    return asked.output_parser.parse(response.message.content or "")


def _told(value: Any) -> Any:
    if listened():
        with harmless("event handlers miss a structured prediction"):
            _dispatcher.event(LLMStructuredPredictEndEvent(output=value))
    return value


def _grew(value: Any, span_id: str | None, *, last: bool) -> Any:
    """Tell about a growing object; its reader stands outside of the call's span."""
    if listened():
        kinds = [LLMStructuredPredictInProgressEvent, LLMStructuredPredictEndEvent]
        with harmless("event handlers miss a growing object"):
            for kind in kinds[: 1 + last]:
                _dispatcher.event(kind(output=value, span_id=span_id))
    return value
