"""The flow of one call through LangChain's entry points, down to the engine and back.

LangChain calls `_stream` without a run manager on most paths, so the run's parent is fixed
before its own code runs, and travels down in one private argument.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from langchain_core.utils.uuid import uuid7

from cascadellm.cascade import Outcome
from cascadellm.perform import adrive, drive
from langchain_cascade import direct
from langchain_cascade.calls import BOX, Box, CascadeCall, visible
from langchain_cascade.engine import Engine
from langchain_cascade.guard import for_outer
from langchain_cascade.owned import Owned
from langchain_cascade.performing import AsyncLangChainPerformer, LangChainPerformer
from langchain_cascade.streams import astream_plan, final_message, stream_plan
from langchain_cascade.tracing import Outer
from langchain_cascade.usage import acounted, counted, put_back, with_usage

__all__ = ["CascadeFlow"]

_TRACE_ONLY = ("ls_structured_output_format", "structured_output_format")


class CascadeFlow(BaseChatModel):
    """A chat model whose answers come from an engine's plan; `CascadeLLM` adds what it is."""

    stop: list[str] | None = None
    streaming: bool | None = None

    @property
    def engine(self) -> Engine:
        """The engine."""
        raise NotImplementedError

    def _get_invocation_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        shown = {"_type": self._llm_type, **self.engine.shown, "stop": stop or self.stop}
        return {**shown, **visible(kwargs)}

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # only a cache pays for the digest of every tier's settings
        params = self._get_invocation_params(stop=stop, **kwargs)
        return str(sorted({**self._identifying_params, **params}.items()))

    def invoke(
        self,
        input: LanguageModelInput,  # noqa: A002 - the name that LangChain calls it by
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """Answer once."""
        engine = self.engine
        if direct.unseen(self, engine, config, kwargs):
            messages = direct.messages_of(input)
            if messages is not None:
                call = self._direct_call(engine, messages, stop, config, kwargs)
                perform = direct.DirectPerformer(call)
                return direct.answered(drive(perform.plan(), perform), config)
        config = ensure_config(config)
        kwargs[BOX] = _box(kwargs, config)
        return super().invoke(input, config, stop=stop, **kwargs)

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002 - the name that LangChain calls it by
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """Answer once."""
        engine = self.engine
        if direct.unseen(self, engine, config, kwargs):
            messages = direct.messages_of(input)
            if messages is not None:
                call = self._direct_call(engine, messages, stop, config, kwargs)
                perform = direct.AsyncDirectPerformer(call)
                return direct.answered(await adrive(perform.plan(), perform), config)
        config = ensure_config(config)
        kwargs[BOX] = _box(kwargs, config)
        return await super().ainvoke(input, config, stop=stop, **kwargs)

    def _direct_call(
        self,
        engine: Engine,
        messages: list[BaseMessage],
        stop: list[str] | None,
        config: RunnableConfig | None,
        kwargs: dict[str, Any],
    ) -> CascadeCall:
        box = _box(kwargs, config or {})
        ending = stop if stop is not None else self.stop
        own = {key: value for key, value in kwargs.items() if key not in _TRACE_ONLY}
        return CascadeCall(engine, messages, ending, box, own, asynchronous=False)

    def generate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Any = None,
        *,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        run_name: str | None = None,
        run_id: UUID | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answer several conversations."""
        box = kwargs.setdefault(BOX, _box(kwargs, {"metadata": metadata}))
        manager = self._configured(CallbackManager, callbacks, tags, metadata)
        box.outer = Outer.of(manager, None)
        result = super().generate(
            messages, stop, manager, run_name=run_name, run_id=run_id, **kwargs
        )
        return put_back(result, box)

    async def agenerate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Any = None,
        *,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        run_name: str | None = None,
        run_id: UUID | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answer several conversations."""
        box = kwargs.setdefault(BOX, _box(kwargs, {"metadata": metadata}))
        manager = self._configured(AsyncCallbackManager, callbacks, tags, metadata)
        box.outer = Outer.of(manager, None)
        run_id = run_id or uuid7()
        try:
            result = await super().agenerate(
                messages, stop, manager, run_name=run_name, run_id=run_id, **kwargs
            )
        except asyncio.CancelledError as gone:
            for run in (run_id, *box.usages):
                box.outer.end_open(run, gone)
            raise
        return put_back(result, box)

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002 - the name that LangChain calls it by
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """Answer in chunks: an accepted draft is replayed, the last tier streams live."""
        config, box = self._stream_config(CallbackManager, config, kwargs)
        chunks = super().stream(input, config, stop=stop, **kwargs)
        try:
            for chunk in chunks:
                yield with_usage(chunk, box)
        finally:
            # before LangChain ends the run: it would call a stream that is left a failure
            if box.leave is not None:
                box.leave()

    async def astream(
        self,
        input: LanguageModelInput,  # noqa: A002 - the name that LangChain calls it by
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """Answer in chunks: an accepted draft is replayed, the last tier streams live."""
        config, box = self._stream_config(AsyncCallbackManager, config, kwargs)
        chunks = Owned(super().astream(input, config, stop=stop, **kwargs))
        try:
            async for chunk in chunks:
                yield with_usage(chunk, box)
        finally:
            await _closed(chunks, box)

    def stream_events(self, input: Any, config: Any = None, **kwargs: Any) -> Any:  # noqa: A002
        """Stream events; v3 opens the run by itself and is handed the cascade's."""
        if kwargs.get("version") == "v3":
            config, box = self._stream_config(CallbackManager, config, kwargs)
            return counted(super().stream_events(input, config, **kwargs), box)
        return super().stream_events(input, config, **kwargs)

    def astream_events(self, input: Any, config: Any = None, **kwargs: Any) -> Any:  # noqa: A002
        """Stream events; v3 opens the run by itself and is handed the cascade's."""
        if kwargs.get("version") == "v3":
            config, box = self._stream_config(AsyncCallbackManager, config, kwargs)
            return acounted(super().astream_events(input, config, **kwargs), box)
        return super().astream_events(input, config, **kwargs)

    def _stream_config(
        self, cls: Any, config: RunnableConfig | None, kwargs: dict[str, Any]
    ) -> tuple[RunnableConfig, Box]:
        config = ensure_config(config)
        box = kwargs[BOX] = _box(kwargs, config)
        run_id = config.get("run_id") or uuid7()
        manager = self._configured(
            cls, config.get("callbacks"), config.get("tags"), config.get("metadata")
        )
        box.outer = Outer.of(manager, run_id)
        fixed = {**config, "callbacks": manager, "run_id": run_id, "tags": [], "metadata": {}}
        return RunnableConfig(**fixed), box  # type: ignore[typeddict-item]

    def _configured(self, cls: Any, callbacks: Any, tags: Any, metadata: Any) -> Any:
        manager = cls.configure(
            callbacks, self.callbacks, self.verbose, tags, self.tags, metadata, self.metadata
        )
        manager.handlers = [for_outer(handler) for handler in manager.handlers]
        return manager

    # --- one call ---

    def _generate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        kwargs[BOX] = self._box_at(kwargs, run_manager)
        return super()._generate_with_cache(messages, stop, run_manager, **kwargs)

    async def _agenerate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        box = kwargs[BOX] = self._box_at(kwargs, run_manager)
        try:
            return await super()._agenerate_with_cache(messages, stop, run_manager, **kwargs)
        except asyncio.CancelledError as gone:
            if box.leave is not None:
                # it was telling a handler about a token, and its stream is still open
                await box.leave()
            if run_manager is not None:
                # LangChain itself leaves the run of a cancelled call open
                await run_manager.on_llm_error(gone)
            raise

    def _box_at(self, kwargs: dict[str, Any], run_manager: Any) -> Box:
        box: Box = kwargs.pop(BOX, None) or Box()
        if run_manager is None:
            return box
        if box.outer is None:
            # LangChain's v3 events open the run without passing through our entry points
            box.outer = Outer.of(run_manager, None, self._get_invocation_params())
        return box.at(run_manager.run_id)

    def _context(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: Any,
        kwargs: dict[str, Any],
        *,
        asynchronous: bool,
    ) -> CascadeCall:
        box: Box | None = kwargs.pop(BOX, None)
        if box is None or box.outer is None:
            box = self._box_at({BOX: box}, run_manager)
        ending = stop if stop is not None else self.stop
        return CascadeCall(self.engine, messages, ending, box, kwargs, asynchronous=asynchronous)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        context = self._context(messages, stop, run_manager, kwargs, asynchronous=False)
        try:
            return _result(drive(context.plan(), LangChainPerformer(context)), context)
        finally:
            context.close()

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        context = self._context(messages, stop, run_manager, kwargs, asynchronous=True)
        try:
            return _result(await adrive(context.plan(), AsyncLangChainPerformer(context)), context)
        finally:
            context.close()

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        context = self._context(messages, stop, run_manager, kwargs, asynchronous=False)
        yield from stream_plan(context)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        context = self._context(messages, stop, run_manager, kwargs, asynchronous=True)
        chunks = Owned(astream_plan(context))
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            with suppress(RuntimeError):
                await chunks.aclose()


async def _closed(chunks: Owned[Any], box: Box) -> None:
    """Record a stream that is left before LangChain ends its run; each step is owed."""
    try:
        if box.leave is not None:
            await box.leave()
    finally:
        try:
            await chunks.aclose()
        finally:
            if box.outer is not None:
                box.outer.end_open(box.outer.run_id, asyncio.CancelledError())


def _box(kwargs: Mapping[str, Any], config: Mapping[str, Any]) -> Box:
    structured = kwargs.get("ls_structured_output_format")
    structured = structured or kwargs.get("structured_output_format")
    return Box(
        structured=structured,
        configurable=config.get("configurable") or {},
        metadata=config.get("metadata") or {},
    )


def _result(outcome: Outcome, context: CascadeCall) -> ChatResult:
    message, usage = final_message(outcome)
    context.box.usages[context.outer.run_id] = usage
    return ChatResult(generations=[ChatGeneration(message=message)])
