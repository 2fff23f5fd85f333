"""CascadeLLM: a cheap model and a large one answer as one LlamaIndex LLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    MessageRole,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection

from llamaindex_cascade.convert import field_of
from llamaindex_cascade.observe import Observed
from llamaindex_cascade.request import Prompted, public
from llamaindex_cascade.session import AsyncSession, Session
from llamaindex_cascade.structured import StructuredCascade
from llamaindex_cascade.tools import Asked, chat_arguments, selections

__all__ = ["CascadeLLM"]


class CascadeLLM(StructuredCascade):
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
        deadline_s: Seconds for the whole call, over all tiers and judges.
        handlers: Event handlers of the engine (`cascadellm.events.Handler`).
        feedback_loop: Who is told what becomes of answers; see `feedback`.
        context: Whether the announced context window is that of the tier with the least room
            (`min`) or the most (`max`); a tier whose window a prompt exceeds is skipped.
        function_calling: Whose ability to call tools counts: `last`, `any` or `all` tiers'.
        **kwargs: Fields of LlamaIndex's `LLM`: `system_prompt`, `callback_manager`, ...

    Raises:
        ConfigurationError: No tiers, equal names, or a wrong number of policies.
    """

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which the class is serialised."""
        return "CascadeLLM"

    def _asked(
        self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]
    ) -> tuple[Asked, Observed]:
        observed = Observed(messages)
        observed.start(self.to_payload, public(kwargs))
        return Prompted.asked(messages, kwargs), observed

    def _completed(
        self, prompt: str, formatted: bool, kwargs: dict[str, Any]
    ) -> tuple[Asked, Observed]:
        observed = Observed(prompt=prompt)
        observed.start(self.to_payload, public(kwargs))
        message = ChatMessage(role=MessageRole.USER, content=prompt)
        return Asked((message,), prompt=prompt, formatted=formatted), observed

    def _run(self, asked: Asked, observed: Observed, kwargs: dict[str, Any]) -> Any:
        self._wait()
        return observed.end(Session(*self._parts(asked, kwargs)).run())

    async def _arun(self, asked: Asked, observed: Observed, kwargs: dict[str, Any]) -> Any:
        await self._await()
        return observed.end(await AsyncSession(*self._parts(asked, kwargs)).run())

    def _open(self, asked: Asked, observed: Observed, kwargs: dict[str, Any]) -> Any:
        self._wait()
        return observed.relay(Session(*self._parts(asked, kwargs)).open())

    async def _aopen(self, asked: Asked, observed: Observed, kwargs: dict[str, Any]) -> Any:
        await self._await()
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
