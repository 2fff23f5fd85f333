"""CascadeLLM: a cascade of models as one LangChain chat model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Literal
from uuid import UUID

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config
from langchain_core.utils.uuid import uuid7
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr

from cascadellm.cascade import Outcome
from cascadellm.perform import adrive, drive
from langchain_cascade import identity
from langchain_cascade.calls import BOUND, BOX, Box, CallContext, visible
from langchain_cascade.engine import Engine
from langchain_cascade.performing import AsyncLangChainPerformer, LangChainPerformer
from langchain_cascade.streams import astream_plan, final_message, stream_plan
from langchain_cascade.tracing import Outer
from langchain_cascade.usage import put_back, with_usage

__all__ = ["CascadeLLM"]


class CascadeLLM(BaseChatModel):
    """Tiers, cheap to costly, with one deferral policy per boundary, as one chat model.

    The record of each call stands in `response_metadata["cascade"]`. Calls of tiers are child
    runs of the cascade's run; `usage_metadata` is that of the tier that answered.

    Args:
        tiers: Chat models or other Runnables, `LocalModel`s, `Tier`s, or strings: `hf:<name>`
            for a local model, else what LangChain's `init_chat_model` knows.
        policy: One policy for all boundaries or one per boundary; a policy's config is
            accepted too. A single tier needs none.
        on_tier_error: `escalate` past a tier that raises, or `raise`.
        on_exhausted: When the last tier fails: `raise` its error, or give the `best` draft.
        handlers: Event handlers (see `cascadellm.events`).
        tier_callbacks: Whether callbacks see the tiers' runs.
        stop: Strings that end the answer, unless a call gives its own.
        temperature: Accepted and not passed on, as are `max_tokens`, `timeout`,
            `max_retries`, `api_key` and `streaming`; set these on the tiers.

    Raises:
        ConfigurationError: The arguments describe no cascade.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    tiers: Any = Field(repr=False, exclude=True)
    policy: Any = Field(default=None, exclude=True)
    on_tier_error: Literal["escalate", "raise"] = "escalate"
    on_exhausted: Literal["raise", "best"] = "raise"
    handlers: Any = Field(default=(), repr=False, exclude=True)
    tier_callbacks: bool = True
    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    temperature: float | None = None
    max_tokens: int | None = None
    timeout: float | None = None
    max_retries: int | None = None
    api_key: SecretStr | None = Field(default=None, repr=False, exclude=True)
    streaming: bool | None = None

    _engine: Engine | None = PrivateAttr(default=None)
    _built_from: tuple[Any, ...] = PrivateAttr(default=())

    def __init__(self, tiers: Any = (), policy: Any = None, **options: Any) -> None:
        if "stop" in options:
            options.setdefault("stop_sequences", options.pop("stop"))
        known = ("on_tier_error", "on_exhausted", "handlers", "tier_callbacks")
        # built before pydantic validates, which would turn our errors into its own
        engine = Engine(tiers, policy, **{k: options[k] for k in known if k in options})
        super().__init__(**{**options, "tiers": engine.tiers, "policy": policy})
        self._engine, self._built_from = engine, self._sources()

    def _sources(self) -> tuple[Any, ...]:
        return (
            self.tiers,
            self.policy,
            self.on_tier_error,
            self.on_exhausted,
            self.handlers,
            self.tier_callbacks,
        )

    @property
    def engine(self) -> Engine:
        """The engine, rebuilt when a field was changed."""
        sources = self._sources()
        same = zip(sources, self._built_from, strict=False)
        if self._engine is None or not all(new is old for new, old in same):
            tiers, policy, on_tier_error, on_exhausted, handlers, tier_callbacks = sources
            self._engine = Engine(
                tiers,
                policy,
                on_tier_error=on_tier_error,
                on_exhausted=on_exhausted,
                handlers=handlers,
                tier_callbacks=tier_callbacks,
            )
            self._built_from = sources
        return self._engine

    def __repr__(self) -> str:
        names = ", ".join(tier.label for tier in self.engine.tiers)
        return f"CascadeLLM([{names}], policy={self.policy!r})"

    def __str__(self) -> str:
        return repr(self)

    # --- what LangChain asks about a model ---

    @property
    def _llm_type(self) -> str:
        return "cascade-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return identity.identifying_params(self.engine)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return identity.ls_params(self.engine, stop or self.stop, kwargs.get("model"))

    def _get_invocation_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        return super()._get_invocation_params(stop=stop or self.stop, **visible(kwargs))

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        return super()._get_llm_string(stop=stop or self.stop, **visible(kwargs))

    def _resolve_model_profile(self) -> Any:
        # called while pydantic validates, before the engine is attached
        return identity.profile([tier.model for tier in self.tiers])

    def get_token_ids(self, text: str) -> list[int]:
        """Return token ids as the last tier counts them."""
        return identity.counter(self.engine).get_token_ids(text)

    def get_num_tokens(self, text: str) -> int:
        """Count tokens as the last tier does."""
        return identity.counter(self.engine).get_num_tokens(text)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Count a conversation's tokens as the last tier does."""
        return identity.counter(self.engine).get_num_tokens_from_messages(messages, tools)

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Bind tools to every tier, each in its own provider's format.

        Raises:
            ConfigurationError: A tier cannot bind tools; names the tier.
        """
        options = {"tool_choice": tool_choice, **kwargs}
        bound = self.engine.bind_tools(tools, options)
        known = ("parallel_tool_calls", "strict", "response_format", "ls_structured_output_format")
        shown = {key: kwargs[key] for key in known if key in kwargs}
        if tool_choice is not None:
            shown["tool_choice"] = tool_choice
        return self.bind(tools=bound.tools, **{BOUND: bound}, **shown)

    def to_config(self) -> dict[str, Any]:
        """Return plain data for `from_config`: policies, names, prices; no models, no keys."""
        return identity.to_config(self.engine)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        tiers: Mapping[str, Any] | Sequence[Any],
        *,
        allow: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> CascadeLLM:
        """Build a cascade from `to_config` data and the models, by name or in order.

        Args:
            config: The data.
            tiers: The models: tier name -> model, or all of them in order.
            allow: Functions that the policies name, see `Policy.from_config`.
            **options: Further arguments of the class.

        Raises:
            ConfigurationError: A model is missing or a policy is unknown.
        """
        return cls(**identity.from_config(config, tiers, allow), **options)

    # --- entry points: the run's parent is fixed here, and usage is put back on the way out ---

    def invoke(
        self,
        input: LanguageModelInput,  # noqa: A002 - the name that LangChain calls it by
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """Answer once."""
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
        config = ensure_config(config)
        kwargs[BOX] = _box(kwargs, config)
        return await super().ainvoke(input, config, stop=stop, **kwargs)

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
        box = kwargs.setdefault(BOX, _box(kwargs, {}))
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
        box = kwargs.setdefault(BOX, _box(kwargs, {}))
        manager = self._configured(AsyncCallbackManager, callbacks, tags, metadata)
        box.outer = Outer.of(manager, None)
        result = await super().agenerate(
            messages, stop, manager, run_name=run_name, run_id=run_id, **kwargs
        )
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
        for chunk in super().stream(input, config, stop=stop, **kwargs):
            yield with_usage(chunk, box)

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
        async for chunk in super().astream(input, config, stop=stop, **kwargs):
            yield with_usage(chunk, box)

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
        return cls.configure(
            callbacks, self.callbacks, self.verbose, tags, self.tags, metadata, self.metadata
        )

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
        kwargs[BOX] = self._box_at(kwargs, run_manager)
        return await super()._agenerate_with_cache(messages, stop, run_manager, **kwargs)

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
    ) -> CallContext:
        box: Box | None = kwargs.pop(BOX, None)
        if box is None or box.outer is None:
            box = self._box_at({BOX: box}, run_manager)
        ending = stop if stop is not None else self.stop
        return CallContext(self.engine, messages, ending, box, kwargs, asynchronous=asynchronous)

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
        chunks = astream_plan(context)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()  # type: ignore[attr-defined]


def _box(kwargs: Mapping[str, Any], config: Mapping[str, Any]) -> Box:
    structured = kwargs.get("ls_structured_output_format")
    structured = structured or kwargs.get("structured_output_format")
    return Box(structured=structured, configurable=config.get("configurable") or {})


def _result(outcome: Outcome, context: CallContext) -> ChatResult:
    message, usage = final_message(outcome)
    context.box.usages[context.outer.run_id] = usage
    return ChatResult(generations=[ChatGeneration(message=message)])
