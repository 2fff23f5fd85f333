"""Any LlamaIndex LLM or local model as an engine tier, asked in its own form."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
)
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM

from cascadellm.answer import Answer
from cascadellm.errors import ConfigurationError
from cascadellm.tier import LocalLike, Tier
from llamaindex_cascade.chat_dicts import flatten_tools
from llamaindex_cascade.convert import answer_from, chat_from_completion, copied
from llamaindex_cascade.history import readable
from llamaindex_cascade.huggingface import with_scores, written_here
from llamaindex_cascade.local import LocalLLM, local_model
from llamaindex_cascade.logprobs import scoring_kwargs, usage_kwargs
from llamaindex_cascade.objects import (
    as_object_text,
    native_call,
    object_arguments,
    route,
    wrapped_object,
)
from llamaindex_cascade.retries import without_retries
from llamaindex_cascade.tools import Asked

__all__ = ["CascadeTier", "TierBook", "engine_tier"]

_END = object()


def engine_tier(value: Any) -> Tier:
    """Return a tier of the engine from what a user may put into `tiers`.

    Raises:
        ConfigurationError: It is no LLM, local model, `Tier`, or `"hf:..."` string.
        MissingDependencyError: A local model is named and torch is not installed.
    """
    tier = value if isinstance(value, Tier) else Tier(value)
    model = tier.model
    if isinstance(model, str):
        if not model.startswith("hf:"):
            raise ConfigurationError(
                f"a tier given as text names a local model, e.g. 'hf:Qwen/Qwen3-0.6B', got "
                f"{model!r}; for a hosted model pass the LlamaIndex LLM itself"
            )
        model = local_model(model)
    elif not isinstance(model, (LLM, LocalLike)):
        raise ConfigurationError(
            "a tier is a LlamaIndex LLM, a local model, a Tier around one, or 'hf:<model>', got "
            f"{type(model).__name__}"
        )
    if tier.retry is not None:
        model = without_retries(model)
    return tier if model is tier.model else tier.but(model=model)


class TierBook:
    """Finds the LLM that speaks for a tier, a pair, or a judge."""

    def __init__(self) -> None:
        self._llms: dict[int, LLM] = {}
        self._managers: list[CallbackManager] = []

    def share(self, manager: CallbackManager) -> None:
        """Take over a callback manager, in place of those shared before."""
        self._managers = [*self._managers[-1:], manager]

    def tell(self, llm: LLM) -> None:
        """Give the shared callback manager to an LLM that has no handlers of its own."""
        if not self._managers:
            return
        mine = any(llm.callback_manager is manager for manager in self._managers)
        if mine or not llm.callback_manager.handlers:
            llm.callback_manager = self._managers[-1]

    def enter(self, value: Any) -> Tier:
        """Return the engine's tier for what a user gave, and remember its LLM.

        A `LocalLLM` is entered as its local model, so that token-level policies can pair it.
        """
        tier = engine_tier(value)
        if isinstance(tier.model, LocalLLM):
            wrapper, model = tier.model, tier.model.model
            self._llms[id(model)] = wrapper
            tier = tier.but(model=model)
        self.llm(tier.model)
        return tier

    def llm(self, model: Any) -> LLM:
        """Return the LLM of a tier's model."""
        if isinstance(model, LLM):
            return model
        found = self._llms.get(id(model))
        if found is None:
            # the wrapper holds the model, so its id stays taken
            found = self._llms.setdefault(id(model), LocalLLM(model))
        return found

    def of(self, index: int, tier: Tier) -> CascadeTier:
        """Return a tier as the cascade asks it."""
        llm = self.llm(tier.model)
        if index < 0:
            # a judge comes by with its policy and is not among the tiers
            self.tell(llm)
        return CascadeTier(index, tier, llm)


class CascadeTier:
    """One tier as the cascade asks it.

    Args:
        index: Its place in the cascade.
        tier: The engine's tier.
        llm: The LLM that speaks for it.
    """

    def __init__(self, index: int, tier: Tier, llm: LLM) -> None:
        self.index = index
        self.tier = tier
        self.llm = llm

    def __repr__(self) -> str:
        return f"CascadeTier({self.index}, {self.tier.label!r})"

    def ask(
        self, asked: Asked, kwargs: Mapping[str, Any], reads: frozenset[str] = frozenset()
    ) -> Answer:
        """Ask once."""
        method, arguments = self._prepared(asked, kwargs, reads)
        response = getattr(self.llm, method)(**arguments)
        if written_here(self.llm):
            response = with_scores(self.llm, response, arguments, reads)
        return self._finished(response, asked)

    async def aask(
        self, asked: Asked, kwargs: Mapping[str, Any], reads: frozenset[str] = frozenset()
    ) -> Answer:
        """Ask once without blocking the event loop."""
        if self._blocks():
            return await asyncio.to_thread(self.ask, asked, kwargs, reads)
        method, arguments = self._prepared(asked, kwargs, reads)
        response = await getattr(self.llm, f"a{method}")(**arguments)
        return self._finished(response, asked)

    def stream(
        self, asked: Asked, kwargs: Mapping[str, Any], reads: frozenset[str] = frozenset()
    ) -> Iterator[ChatResponse]:
        """Ask, and yield the answer as it grows."""
        method, arguments = self._streamed(asked, kwargs, reads)
        return _as_chat(getattr(self.llm, f"stream_{method}")(**arguments))

    async def astream(
        self, asked: Asked, kwargs: Mapping[str, Any], reads: frozenset[str] = frozenset()
    ) -> AsyncIterator[ChatResponse]:
        """Ask, and yield the answer as it grows, without blocking the event loop."""
        method, arguments = self._streamed(asked, kwargs, reads)
        if self._blocks():
            chunks = await asyncio.to_thread(getattr(self.llm, f"stream_{method}"), **arguments)
            return _as_achat(_pumped(chunks))
        return _as_achat(await getattr(self.llm, f"astream_{method}")(**arguments))

    def _streamed(
        self, asked: Asked, kwargs: Mapping[str, Any], reads: frozenset[str]
    ) -> tuple[str, dict[str, Any]]:
        method, arguments = self._prepared(asked, kwargs, reads)
        if method in ("chat", "complete"):
            arguments = {**usage_kwargs(self.llm), **arguments}
        return method, arguments

    def _blocks(self) -> bool:
        """Return whether the LLM's async methods would run its sync ones on the loop."""
        owner = next(cls for cls in type(self.llm).__mro__ if "achat" in vars(cls))
        return owner is CustomLLM

    def _prepared(
        self, asked: Asked, kwargs: Mapping[str, Any], reads: frozenset[str]
    ) -> tuple[str, dict[str, Any]]:
        """Return the endpoint to call and its arguments, none of them shared with anyone."""
        metadata = self.llm.metadata
        merged = {**kwargs, **scoring_kwargs(self.llm, reads)}
        plain = asked.output_cls is None and not (asked.tools or metadata.is_chat_model)
        if plain and asked.prompt is not None and not self.llm.system_prompt:
            return "complete", {"prompt": asked.prompt, "formatted": asked.formatted, **merged}
        messages = self.render(asked.messages)
        if asked.output_cls is not None:
            if route(self.llm) == "native":
                return "structured_predict", native_call(asked.output_cls, messages, kwargs)
            return "chat", object_arguments(self.llm, asked.output_cls, messages, merged)
        if asked.tools and isinstance(self.llm, FunctionCallingLLM):
            tools = [spec.tool for spec in asked.tools]
            options = {k: v for k, v in asked.options.items() if v is not None}
            prepared = self.llm._prepare_chat_with_tools_compat(  # noqa: SLF001 - their hook
                tools, chat_history=messages, **options, **merged
            )
            return "chat", prepared
        if metadata.is_chat_model:
            return "chat", {"messages": messages, **merged}
        to_prompt: Any = self.llm.messages_to_prompt
        return "complete", {"prompt": to_prompt(messages), "formatted": True, **merged}

    def render(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        """Return the conversation as this tier must see it, as deep copies.

        The tier's own system prompt comes first, system messages take the role that the
        provider expects, other providers' thoughts are left out, and a tier without tools reads
        earlier tool calls as text.
        """
        metadata = self.llm.metadata
        own = [copied(message) for message in messages]
        if self.llm.system_prompt:
            first = ChatMessage(role=MessageRole.SYSTEM, content=self.llm.system_prompt)
            own = own if own[:1] == [first] else [first, *own]
        if not metadata.is_function_calling_model:
            own = flatten_tools(own)
        own = readable(own, self.llm)
        if metadata.system_role != MessageRole.SYSTEM:
            for message in own:
                if message.role == MessageRole.SYSTEM:
                    message.role = metadata.system_role
        return own

    def _finished(self, response: Any, asked: Asked) -> Answer:
        chat = _chat(response)
        if asked.output_cls is not None:
            return as_object_text(answer_from(chat))
        if asked.tools and isinstance(self.llm, FunctionCallingLLM):
            tools = [spec.tool for spec in asked.tools]
            parallel = bool(asked.options.get("allow_parallel_tool_calls"))
            chat = self.llm._validate_chat_with_tools_response(  # noqa: SLF001 - their hook
                chat, tools, allow_parallel_tool_calls=parallel
            )
        return answer_from(chat)


def _chat(response: Any) -> ChatResponse:
    if isinstance(response, ChatResponse):
        return response
    if isinstance(response, CompletionResponse):
        return chat_from_completion(response)
    return wrapped_object(response)


def _as_chat(chunks: Any) -> Iterator[ChatResponse]:
    with closing(chunks):
        for chunk in chunks:
            yield _chat(chunk)


async def _as_achat(chunks: Any) -> AsyncIterator[ChatResponse]:
    async with aclosing(chunks):
        async for chunk in chunks:
            yield _chat(chunk)


async def _pumped(chunks: Any) -> AsyncIterator[Any]:
    """Advance a sync generator in threads, one step at a time, always in one context."""
    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    step = None
    try:
        while True:
            step = loop.run_in_executor(None, lambda: context.run(next, chunks, _END))
            chunk = await asyncio.shield(step)
            if chunk is _END:
                return
            yield chunk
    finally:
        if step is not None and not step.done():
            # a generator cannot be closed while a thread is inside it
            step.add_done_callback(lambda _: chunks.close())
        else:
            chunks.close()
