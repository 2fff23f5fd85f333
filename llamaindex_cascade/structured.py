"""Structured prediction: each tier by its own mechanism, an unusable object is deferred."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from typing import Any

from llama_index.core.base.llms.types import ChatResponse
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

from llamaindex_cascade.base import CascadeBase
from llamaindex_cascade.session import AsyncSession, Session
from llamaindex_cascade.spans import listened
from llamaindex_cascade.tools import Asked

__all__ = ["StructuredCascade"]

_dispatcher = get_dispatcher(__name__)


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
        return self._objects(Session(*self._parts(asked, kwargs)).open(), output_cls)

    async def astream_structured_predict(
        self,
        output_cls: type[Any],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """Decide, then return the growing objects of the accepted answer."""
        asked, kwargs = self._object_asked(output_cls, prompt, llm_kwargs, prompt_args)
        chunks = await AsyncSession(*self._parts(asked, kwargs)).open()
        return self._aobjects(chunks, output_cls)

    def _object_asked(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None,
        prompt_args: dict[str, Any],
    ) -> tuple[Asked, dict[str, Any]]:
        if listened():
            _dispatcher.event(
                LLMStructuredPredictStartEvent(
                    output_cls=output_cls, template=prompt, template_args=prompt_args
                )
            )
        messages = self._extend_messages(prompt.format_messages(llm=self, **prompt_args))
        parser = PydanticOutputParser(output_cls=output_cls)
        asked = Asked(tuple(messages), output_parser=parser, output_cls=output_cls)
        return asked, {k: v for k, v in (llm_kwargs or {}).items() if k != "tool_choice"}

    def _grown(self, chunk: ChatResponse, output_cls: type[BaseModel], before: Any) -> Any:
        return process_streaming_objects(
            chunk, output_cls, cur_objects=before, flexible_mode=True, llm=self
        )

    def _objects(
        self, chunks: Iterator[ChatResponse], output_cls: type[BaseModel]
    ) -> Iterator[Any]:
        before: Any = None
        with closing(chunks):  # type: ignore[type-var]
            for chunk in chunks:
                value = self._grown(chunk, output_cls, before)
                before = [value]
                yield _told(value, progress=True)
        _told(before[0] if before else None)

    async def _aobjects(
        self, chunks: AsyncIterator[ChatResponse], output_cls: type[BaseModel]
    ) -> AsyncIterator[Any]:
        before: Any = None
        async with aclosing(chunks):  # type: ignore[type-var]
            async for chunk in chunks:
                value = self._grown(chunk, output_cls, before)
                before = [value]
                yield _told(value, progress=True)
        _told(before[0] if before else None)


def _parsed(response: ChatResponse, asked: Asked) -> Any:
    return asked.output_parser.parse(response.message.content or "")


def _told(value: Any, *, progress: bool = False) -> Any:
    if listened():
        kind = LLMStructuredPredictInProgressEvent if progress else LLMStructuredPredictEndEvent
        _dispatcher.event(kind(output=value))
    return value
