"""LocalLLM: a model on this machine as a LlamaIndex LLM."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any, cast

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
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection

from cascadellm.answer import Answer, Piece
from cascadellm.errors import ConfigurationError
from cascadellm.tier import LocalLike
from llamaindex_cascade.chat_dicts import chat_dicts
from llamaindex_cascade.convert import completion_from_chat, logprob_lists, usage_dict
from llamaindex_cascade.local_arguments import call_arguments
from llamaindex_cascade.told import atold, told
from llamaindex_cascade.tools import chat_arguments, selections

__all__ = ["LocalLLM", "local_model"]


def local_model(model: str | LocalLike, **options: Any) -> LocalLike:
    """Return a local model: the one given, or one loaded from a path or hub name.

    Raises:
        ConfigurationError: The model is neither.
        MissingDependencyError: A path is given and torch is not installed.
    """
    if isinstance(model, str):
        from cascadellm.local import LocalModel

        return cast("LocalLike", LocalModel(model.removeprefix("hf:"), **options))
    if isinstance(model, LocalLike):
        return model
    raise ConfigurationError(
        "LocalLLM(model=...) expects a LocalModel, another local model, or the path or hub name "
        f"of one, got {type(model).__name__}"
    )


class LocalLLM(FunctionCallingLLM):
    """A local model behind LlamaIndex's interface, with logprobs in one decode pass.

    `ChatResponse.logprobs` lists per token the chosen one first, then alternatives; the
    neutral `cascadellm.Answer` stays in `raw["answer"]`. Token counts stand in
    `additional_kwargs`. Async calls do not block the event loop; a closed stream stops the
    model.

    Args:
        model: A `cascadellm.local.LocalModel`, any other local model, or a path or hub name.
        generate_kwargs: Defaults of every call: `temperature`, `max_new_tokens`, `stop`, ...
        strict: Whether tool calls and predicted objects are made to fit their schemas: True
            demands it (the extra `structured`), False leaves them free, None constrains where
            that is possible. A call may say otherwise.
        **kwargs: Fields of LlamaIndex's `LLM`, e.g. `system_prompt`.
    """

    model: Any = Field(exclude=True, repr=False)
    generate_kwargs: dict[str, Any] = Field(default_factory=dict)
    strict: bool | None = None
    _local: LocalLike = PrivateAttr()

    def __init__(
        self,
        model: str | LocalLike,
        *,
        generate_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        ready = local_model(model)
        super().__init__(model=ready, generate_kwargs=dict(generate_kwargs or {}), **kwargs)
        self._local = ready

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which the class is serialised."""
        return "LocalLLM"

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> LocalLLM:
        """Return a copy that shares the loaded model."""
        return self.model_copy(update={"generate_kwargs": dict(self.generate_kwargs)})

    @property
    def model_name(self) -> str:
        """Short name of the model."""
        return self._local.model_name

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex asks about a model."""
        return LLMMetadata(
            context_window=self._local.context_window,
            num_output=self._most_new_tokens(),
            is_chat_model=True,
            is_function_calling_model=bool(getattr(self._local, "tools", True)),
            model_name=self._local.model_name,
        )

    def _most_new_tokens(self) -> int:
        given = self.generate_kwargs.get("max_new_tokens")
        settings = getattr(self._local, "settings", None)
        if given is None and callable(settings):
            given = settings().max_new_tokens
        return given if isinstance(given, int) else -1

    def _arguments(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        merged = {"strict": self.strict, **self.generate_kwargs, **kwargs}
        return call_arguments(self._local, merged)

    # -- endpoints --

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation."""
        return _response(self._local.generate(chat_dicts(messages), **self._arguments(kwargs)))

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer a conversation as it is written; closing the generator stops the model."""
        chunks = _chunks(self._local.stream(chat_dicts(messages), **self._arguments(kwargs)))
        return told(llm_chat_callback, chunks, self, messages, kwargs)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation without blocking the event loop."""
        arguments = self._arguments(kwargs)
        return _response(await self._local.agenerate(chat_dicts(messages), **arguments))

    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Answer as it is written, without blocking the event loop."""
        chunks = _achunks(self._local.astream(chat_dicts(messages), **self._arguments(kwargs)))
        return await atold(llm_chat_callback, chunks, self, messages, kwargs)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt, as one user message."""
        arguments = self._arguments(kwargs)
        return completion_from_chat(_response(self._local.generate(_one(prompt), **arguments)))

    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Answer a prompt as it is written; closing the generator stops the model."""
        chunks = _chunks(self._local.stream(_one(prompt), **self._arguments(kwargs)))
        completions = (completion_from_chat(chunk) for chunk in chunks)
        return told(llm_completion_callback, completions, self, prompt, kwargs, chunks)

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Answer a prompt without blocking the event loop."""
        arguments = self._arguments(kwargs)
        answer = await self._local.agenerate(_one(prompt), **arguments)
        return completion_from_chat(_response(answer))

    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Answer a prompt as it is written, without blocking the event loop."""
        chunks = _achunks(self._local.astream(_one(prompt), **self._arguments(kwargs)))
        completions = (completion_from_chat(chunk) async for chunk in chunks)
        return await atold(llm_completion_callback, completions, self, prompt, kwargs, chunks)

    # -- tools --

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
        """Return the tool calls of a response."""
        return selections(response, error_on_no_tool_call=error_on_no_tool_call)


def _one(prompt: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}]


def _message(text: str, reasoning: str | None, answer: Answer | None = None) -> ChatMessage:
    blocks: list[Any] = [ThinkingBlock(content=reasoning)] if reasoning else []
    calls = answer.tool_calls if answer is not None else ()
    if text or not calls:
        blocks.append(TextBlock(text=text))
    written = []
    for call in calls:
        arguments = dict(call.arguments) if call.arguments is not None else call.raw
        # results refer to it, and hosted tiers refuse calls without one
        call_id = call.id or f"call_{uuid.uuid4().hex[:16]}"
        blocks.append(
            ToolCallBlock(tool_call_id=call_id, tool_name=call.name, tool_kwargs=arguments)
        )
        function = {"name": call.name, "arguments": call.raw or arguments}
        written.append({"id": call_id, "type": "function", "function": function})
    # streamed structured output looks for calls under this key only
    extra = {"tool_calls": written} if written else {}
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=extra)


def _response(answer: Answer, delta: str | None = None) -> ChatResponse:
    raw: dict[str, Any] = {"answer": answer, "finish_reason": answer.finish_reason}
    if answer.usage is not None:
        raw["usage"] = usage_dict(answer.usage)
    return ChatResponse(
        message=_message(answer.text, answer.reasoning, answer),
        raw=raw,
        delta=delta,
        logprobs=logprob_lists(answer),
        additional_kwargs=usage_dict(answer.usage),
    )


def _grown(piece: Piece, text: str, reasoning: str) -> ChatResponse:
    if piece.answer is not None:
        return _response(piece.answer, delta=piece.text)
    extra = {"thinking_delta": piece.reasoning} if piece.reasoning else {}
    return ChatResponse(
        message=_message(text, reasoning or None),
        raw={"piece": piece},
        delta=piece.text,
        additional_kwargs=extra,
    )


def _chunks(pieces: Iterator[Piece]) -> ChatResponseGen:
    text = reasoning = ""
    with closing(cast("Any", pieces)):
        for piece in pieces:
            text, reasoning = text + piece.text, reasoning + piece.reasoning
            yield _grown(piece, text, reasoning)


async def _achunks(pieces: AsyncIterator[Piece]) -> ChatResponseAsyncGen:
    text = reasoning = ""
    async with aclosing(cast("Any", pieces)):
        async for piece in pieces:
            text, reasoning = text + piece.text, reasoning + piece.reasoning
            yield _grown(piece, text, reasoning)
