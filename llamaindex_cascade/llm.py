"""CascadeLLM: a cheap model and a large one answer as one LlamaIndex LLM."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr, field_serializer
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM, ToolSelection
from llama_index.core.prompts import BasePromptTemplate

from cascadellm import Cascade, Tier
from cascadellm.answer import Request
from cascadellm.errors import ConfigurationError
from cascadellm.policies.base import PolicyLike
from llamaindex_cascade.convert import field_of
from llamaindex_cascade.logprobs import can_score
from llamaindex_cascade.metadata import cascade_metadata, refuses
from llamaindex_cascade.observe import Observed
from llamaindex_cascade.request import Prompted, request_of
from llamaindex_cascade.session import AsyncSession, Session
from llamaindex_cascade.tier import TierBook
from llamaindex_cascade.tools import Asked, chat_arguments, selections

__all__ = ["CascadeLLM"]


class CascadeLLM(FunctionCallingLLM):
    """A cascade of models as one LLM: each tier is asked only if the one before defers.

    The record of a call stands in `response.additional_kwargs["cascade"]` and in
    `response.raw["cascade"]`; the accepted tier's own raw data in `response.raw["response"]`.
    Streams show an answer only when it is accepted: drafts are buffered, the last tier and a
    token-level pair stream as they write.

    Call arguments of every endpoint, besides the tiers' own: `cascade_policy` (another policy
    for this call), `cascade_tier` (name of the only tier to ask), `cascade_documents` and
    `cascade_metadata` (for policies that read them).

    Args:
        tiers: LLMs, local models, `Tier`s around them, or `"hf:<model>"`, cheap to costly.
        policy: One deferral policy for all boundaries, or one per boundary.
        on_tier_error: `escalate` past a tier that raises, or `raise`.
        on_exhausted: When the last tier fails: `raise`, or answer with the `best` earlier one.
        handlers: Event handlers of the engine (`cascadellm.events.Handler`).
        context: Whether the announced context window is that of the tier with the least room
            (`min`) or the most (`max`); a tier whose window a prompt exceeds is skipped.
        function_calling: Whose ability to call tools counts: `last`, `any` or `all` tiers'.
        **kwargs: Fields of LlamaIndex's `LLM`: `system_prompt`, `callback_manager`, ...

    Raises:
        ConfigurationError: No tiers, equal names, or a wrong number of policies.
    """

    tiers: Any = Field(repr=False, description="Tiers, cheap to costly.")
    policy: Any = Field(default=None, description="Deferral policy per boundary.")
    on_tier_error: Literal["escalate", "raise"] = "escalate"
    on_exhausted: Literal["raise", "best"] = "raise"
    context: Literal["min", "max"] = "min"
    function_calling: Literal["last", "any", "all"] = "last"
    handlers: Any = Field(default=(), exclude=True, repr=False)

    _cascade: Cascade = PrivateAttr()
    _book: TierBook = PrivateAttr()
    _shared: CallbackManager | None = PrivateAttr(default=None)

    def __init__(
        self,
        tiers: Sequence[Any],
        policy: PolicyLike | Sequence[PolicyLike] | None = None,
        *,
        on_tier_error: Literal["escalate", "raise"] = "escalate",
        on_exhausted: Literal["raise", "best"] = "raise",
        handlers: Sequence[Any] = (),
        context: Literal["min", "max"] = "min",
        function_calling: Literal["last", "any", "all"] = "last",
        **kwargs: Any,
    ) -> None:
        _check("context", context, ("min", "max"))
        _check("function_calling", function_calling, ("last", "any", "all"))
        book = TierBook()
        if isinstance(tiers, (list, tuple)):
            tiers = [book.enter(tier) for tier in tiers]
        cascade = Cascade(tiers, policy, on_tier_error=on_tier_error, on_exhausted=on_exhausted)
        super().__init__(
            tiers=cascade.tiers,
            policy=policy,
            on_tier_error=on_tier_error,
            on_exhausted=on_exhausted,
            handlers=tuple(handlers),
            context=context,
            function_calling=function_calling,
            **kwargs,
        )
        self._cascade, self._book = cascade, book
        self._share_callbacks(self.callback_manager)
        _warn_unscored(cascade, book)

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which the class is serialised."""
        return "CascadeLLM"

    def __repr__(self) -> str:
        names = ", ".join(tier.label for tier in self._cascade.tiers)
        return f"CascadeLLM(tiers=[{names}], policy={self.policy!r})"

    __str__ = __repr__

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "callback_manager":
            self._share_callbacks(value)

    def _share_callbacks(self, manager: CallbackManager) -> None:
        """Hand a callback manager to the tiers that have no handlers of their own.

        LlamaIndex assigns managers after construction and counts tokens through them.
        """
        private = self.__pydantic_private__ or {}
        if private.get("_book") is None or not manager.handlers:
            return
        for llm in self._llms():
            if not llm.callback_manager.handlers or llm.callback_manager is self._shared:
                llm.callback_manager = manager
        self._shared = manager

    def _llms(self) -> list[LLM]:
        return [self._book.llm(tier.model) for tier in self._cascade.tiers]

    @field_serializer("tiers")
    def _tiers_payload(self, tiers: Any) -> list[dict[str, Any]]:
        # tiers hold credentials; what leaves the process is their public description
        return [{"name": tier.label, **self._book.llm(tier.model).to_payload()} for tier in tiers]

    @field_serializer("policy")
    def _policy_payload(self, policy: Any) -> list[str]:
        return [repr(one) for one in self._cascade.policies]

    def to_payload(self) -> dict[str, Any]:
        """Return a description without credentials, for events and traces."""
        return {
            "class_name": self.class_name(),
            **self.metadata.model_dump(),
            "tiers": self._tiers_payload(self._cascade.tiers),
            "policy": self._policy_payload(None),
        }

    @property
    def metadata(self) -> LLMMetadata:
        """What holds whichever tier answers; see the `context` and `function_calling` options."""
        return cascade_metadata(
            self._llms(),
            [tier.label for tier in self._cascade.tiers],
            context=self.context,
            function_calling=self.function_calling,
        )

    def with_policy(self, policy: PolicyLike | Sequence[PolicyLike]) -> CascadeLLM:
        """Return a cheap copy under another policy; tiers are shared."""
        other = self.model_copy()
        other._cascade = self._cascade.with_policy(policy)
        other.policy = policy
        return other

    # -- one call --

    def _parts(self, asked: Asked, kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return what a session needs; takes the cascade's own arguments out of `kwargs`."""
        cascade = self._cascade
        policy = kwargs.pop("cascade_policy", None)
        if policy is not None:
            cascade = cascade.with_policy(policy)
        pin = kwargs.pop("cascade_tier", None)
        request = request_of(asked, kwargs)
        plan = cascade.plan(request, pin=pin, admit=self._admit)
        return cascade, plan, self._book, self.handlers

    def _admit(self, tier: Tier, request: Request) -> tuple[str, str] | None:
        return refuses(self._book.llm(tier.model), request)

    def _asked(
        self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]
    ) -> tuple[Asked, Observed]:
        observed = Observed(messages)
        observed.start(self.to_payload, _public(kwargs))
        return Prompted.asked(messages, kwargs), observed

    def _completed(
        self, prompt: str, formatted: bool, kwargs: dict[str, Any]
    ) -> tuple[Asked, Observed]:
        observed = Observed(prompt=prompt)
        observed.start(self.to_payload, _public(kwargs))
        message = ChatMessage(role=MessageRole.USER, content=prompt)
        return Asked((message,), prompt=prompt, formatted=formatted), observed

    def _run(self, asked: Asked, observed: Observed, kwargs: dict[str, Any]) -> Any:
        if self.rate_limiter is not None:
            self.rate_limiter.acquire()
        return observed.end(Session(*self._parts(asked, kwargs)).run())

    async def _arun(self, asked: Asked, observed: Observed, kwargs: dict[str, Any]) -> Any:
        if self.rate_limiter is not None:
            await self.rate_limiter.async_acquire()
        return observed.end(await AsyncSession(*self._parts(asked, kwargs)).run())

    def _open(self, asked: Asked, observed: Observed, kwargs: dict[str, Any]) -> Any:
        if self.rate_limiter is not None:
            self.rate_limiter.acquire()
        return observed.relay(Session(*self._parts(asked, kwargs)).open())

    async def _aopen(self, asked: Asked, observed: Observed, kwargs: dict[str, Any]) -> Any:
        if self.rate_limiter is not None:
            await self.rate_limiter.async_acquire()
        return observed.arelay(await AsyncSession(*self._parts(asked, kwargs)).open())

    # -- the eight endpoints --

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation."""
        with self.callback_manager.as_trace("chat"):
            response: ChatResponse = self._run(*self._asked(messages, kwargs), kwargs)
            return response

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Decide, then return the stream of the accepted answer."""
        with self.callback_manager.as_trace("chat"):
            chunks: ChatResponseGen = self._open(*self._asked(messages, kwargs), kwargs)
            return chunks

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation."""
        with self.callback_manager.as_trace("chat"):
            response: ChatResponse = await self._arun(*self._asked(messages, kwargs), kwargs)
            return response

    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Decide, then return the stream of the accepted answer."""
        with self.callback_manager.as_trace("chat"):
            chunks: ChatResponseAsyncGen = await self._aopen(*self._asked(messages, kwargs), kwargs)
            return chunks

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt; chat tiers read it as one user message."""
        with self.callback_manager.as_trace("completion"):
            response: CompletionResponse = self._run(
                *self._completed(prompt, formatted, kwargs), kwargs
            )
            return response

    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Decide, then return the stream of the accepted answer."""
        with self.callback_manager.as_trace("completion"):
            chunks: CompletionResponseGen = self._open(
                *self._completed(prompt, formatted, kwargs), kwargs
            )
            return chunks

    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Answer a prompt; chat tiers read it as one user message."""
        with self.callback_manager.as_trace("completion"):
            response: CompletionResponse = await self._arun(
                *self._completed(prompt, formatted, kwargs), kwargs
            )
            return response

    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Decide, then return the stream of the accepted answer."""
        with self.callback_manager.as_trace("completion"):
            chunks: CompletionResponseAsyncGen = await self._aopen(
                *self._completed(prompt, formatted, kwargs), kwargs
            )
            return chunks

    # -- tools and prompts --

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[Any],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        options = {
            "allow_parallel_tool_calls": allow_parallel_tool_calls,
            "tool_required": tool_required,
            **kwargs,
        }
        return chat_arguments(tools, user_msg, chat_history, options)

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Return the tool calls of a response, as the tier that wrote it reads them."""
        index = field_of(field_of(response.raw, "cascade"), "tier")
        if isinstance(index, int) and 0 <= index < len(self._cascade.tiers):
            llm = self._book.llm(self._cascade.tiers[index].model)
            if isinstance(llm, FunctionCallingLLM):
                own = response.model_copy(update={"raw": field_of(response.raw, "response")})
                return llm.get_tool_calls_from_response(
                    own, error_on_no_tool_call=error_on_no_tool_call, **kwargs
                )
        return selections(response, error_on_no_tool_call=error_on_no_tool_call)

    def _get_messages(self, prompt: BasePromptTemplate, **prompt_args: Any) -> list[ChatMessage]:
        messages = super()._get_messages(prompt, **prompt_args)
        return Prompted(messages, prompt.output_parser or self.output_parser)


def _public(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if not key.startswith("cascade_")}


def _check(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigurationError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _warn_unscored(cascade: Cascade, book: TierBook) -> None:
    for place, unit in enumerate(cascade.units):
        if "logprobs" not in cascade.reads(place):
            continue
        if can_score(book.llm(unit.tier.model)) is False:
            warnings.warn(
                f"tier {unit.tier.label!r} gives no token logprobs, which its policy "
                f"{cascade.boundaries[place].name!r} reads; its answers count as unscored",
                stacklevel=3,
            )
