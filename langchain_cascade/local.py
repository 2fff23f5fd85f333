"""LocalChatModel: a local model as a LangChain chat model, with token scores in its answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import ConfigDict, Field, SecretStr

from cascadellm.answer import Answer, Piece, TokenScore, Usage
from cascadellm.errors import ConfigurationError
from cascadellm.tier import LocalLike
from langchain_cascade.convert import chat_dicts, local_message, openai_tools
from langchain_cascade.logprobs import openai_shape

__all__ = ["LocalChatModel"]

# provider settings that agents and chains send along and that mean nothing to a local model
_IGNORED = frozenset(
    {
        "logprobs",
        "parallel_tool_calls",
        "response_format",
        "strict",
        "stream",
        "stream_options",
        "stream_usage",
        "tool_choice",
    }
)
_SETTINGS = ("temperature", "top_k", "top_p", "repetition_penalty", "seed", "max_new_tokens")


class LocalChatModel(BaseChatModel):
    """A chat model over a local model.

    Logprobs stand in `response_metadata["logprobs"]` in OpenAI's shape, the reasoning block
    in `additional_kwargs["reasoning_content"]`. Settings not given are the model's own; each
    may also be given per call.

    Args:
        model: A `LocalModel`, a `SpeculativePair`, a fake model, or a path or hub name, which
            is loaded at once.
        model_kwargs: Arguments of `LocalModel` where `model` is a path.
        timeout: Accepted and of no effect, as are `max_retries` and `api_key`.

    Raises:
        ConfigurationError: `model` is nothing of this kind.
        MissingDependencyError: torch or transformers is not installed.
    """

    model_config = ConfigDict(extra="forbid")

    model: Any = Field(repr=False, exclude=True)
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    max_new_tokens: int | None = Field(default=None, alias="max_tokens")
    stop: list[str] | str | None = None
    logprobs: bool = True
    top_logprobs: int | None = None
    timeout: float | None = Field(default=None, exclude=True)
    max_retries: int | None = Field(default=None, exclude=True)
    api_key: SecretStr | None = Field(default=None, repr=False, exclude=True)
    streaming: bool | None = None

    def __init__(
        self, model: Any, *, model_kwargs: Mapping[str, Any] | None = None, **settings: Any
    ) -> None:
        if "max_new_tokens" in settings:
            settings.setdefault("max_tokens", settings.pop("max_new_tokens"))
        super().__init__(**{**settings, "model": _loaded(model, model_kwargs or {})})

    def __repr__(self) -> str:
        model = self.__dict__.get("model")
        return f"LocalChatModel({getattr(model, 'model_name', None)!r})"

    @property
    def model_name(self) -> str:
        """Short name of the model."""
        return str(self.model.model_name)

    @property
    def context_window(self) -> int:
        """Most tokens of prompt plus answer; routing policies read it."""
        return int(self.model.context_window)

    @property
    def _llm_type(self) -> str:
        return "local-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.model_name, **self._settings({})}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = LangSmithParams(
            ls_provider="local",
            ls_model_name=kwargs.get("model") or self.model_name,
            ls_model_type="chat",
        )
        temperature = kwargs.get("temperature", self.temperature)
        if temperature is not None:
            params["ls_temperature"] = temperature
        if stop:
            params["ls_stop"] = stop
        return params

    def _resolve_model_profile(self) -> Any:
        return {
            "max_input_tokens": int(self.model.context_window),
            "text_inputs": True,
            "text_outputs": True,
            "image_inputs": False,
            "audio_inputs": False,
            "tool_calling": True,
            "structured_output": False,
        }

    def _settings(self, call: Mapping[str, Any]) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in (*_SETTINGS, "top_logprobs")}
        return {k: v for k, v in {**own, **call}.items() if v is not None}

    def _arguments(self, stop: list[str] | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of the local model's call."""
        call = {k: v for k, v in kwargs.items() if k not in _IGNORED and k != "tools"}
        if "max_tokens" in call:
            call["max_new_tokens"] = call.pop("max_tokens")
        arguments = self._settings(call)
        ending = stop if stop is not None else self.stop
        if ending:
            arguments["stop"] = [ending] if isinstance(ending, str) else list(ending)
        tools = _chosen(openai_tools(kwargs.get("tools")), kwargs.get("tool_choice"))
        if tools:
            arguments["tools"] = tools
        return arguments

    def _message(self, answer: Any, kwargs: Mapping[str, Any]) -> AIMessage:
        message = local_message(answer, self.model_name)
        if not kwargs.get("logprobs", self.logprobs):
            message.response_metadata.pop("logprobs", None)
        return message

    def answer(self, messages: Sequence[BaseMessage], arguments: Mapping[str, Any]) -> AIMessage:
        """Answer without a run of its own; `arguments` are a call's, `stop` included."""
        given, stop = _apart(arguments)
        answer = self.model.generate(chat_dicts(messages), **self._arguments(stop, given))
        return self._message(answer, given)

    async def aanswer(
        self, messages: Sequence[BaseMessage], arguments: Mapping[str, Any]
    ) -> AIMessage:
        """Answer without a run of its own; `arguments` are a call's, `stop` included."""
        given, stop = _apart(arguments)
        answer = await self.model.agenerate(chat_dicts(messages), **self._arguments(stop, given))
        return self._message(answer, given)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        answer = self.model.generate(chat_dicts(messages), **self._arguments(stop, kwargs))
        return _result(self._message(answer, kwargs))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        arguments = self._arguments(stop, kwargs)
        answer = await self.model.agenerate(chat_dicts(messages), **arguments)
        return _result(self._message(answer, kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        pieces = self.model.stream(chat_dicts(messages), **self._arguments(stop, kwargs))
        sent = _Sent(scores=kwargs.get("logprobs", self.logprobs))
        try:
            for piece in pieces:
                for chunk in self._chunks(piece, kwargs, sent):
                    if run_manager is not None:
                        run_manager.on_llm_new_token(str(chunk.message.content), chunk=chunk)
                    yield chunk
        finally:
            _close(pieces)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        pieces = self.model.astream(chat_dicts(messages), **self._arguments(stop, kwargs))
        sent = _Sent(scores=kwargs.get("logprobs", self.logprobs))
        try:
            async for piece in pieces:
                for chunk in self._chunks(piece, kwargs, sent):
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(str(chunk.message.content), chunk=chunk)
                    yield chunk
        finally:
            if hasattr(pieces, "aclose"):
                await pieces.aclose()

    def _chunks(
        self, piece: Piece, kwargs: Mapping[str, Any], sent: _Sent
    ) -> list[ChatGenerationChunk]:
        chunks = []
        sent.take(piece)
        if piece.text or piece.reasoning:
            extra = {"reasoning_content": piece.reasoning} if piece.reasoning else {}
            chunks.append(
                AIMessageChunk(content=piece.text, additional_kwargs=extra, **sent.marks())
            )
        if piece.answer is not None:
            whole = self._message(sent.rest(piece.answer), kwargs)
            extra = {k: v for k, v in whole.additional_kwargs.items() if k != "reasoning_content"}
            chunks.append(
                AIMessageChunk(
                    content="",
                    additional_kwargs=extra,
                    response_metadata=whole.response_metadata,
                    usage_metadata=whole.usage_metadata,
                    tool_calls=whole.tool_calls,
                    invalid_tool_calls=whole.invalid_tool_calls,
                    chunk_position="last",
                )
            )
        return [ChatGenerationChunk(message=chunk) for chunk in chunks]

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Bind tools; the chat template shows them to the model.

        A choice cannot force the model to call; a named tool is the only one it sees, and
        `none` hides them all.
        """
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        return self.bind(tools=list(openai_tools(tools)), **kwargs)

    def get_token_ids(self, text: str) -> list[int]:
        """Return token ids by the model's own tokenizer, else one per byte."""
        tokenizer = getattr(self.model, "tokenizer", None)
        if tokenizer is None:
            return list(text.encode())
        return list(tokenizer.encode(text, add_special_tokens=False))

    def get_num_tokens(self, text: str) -> int:
        """Count tokens by the model's own tokenizer, approximately without one."""
        if getattr(self.model, "tokenizer", None) is None:
            return count_tokens_approximately([("user", text)])
        return len(self.get_token_ids(text))

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Count the tokens of a conversation: the rendered prompt where there is a template."""
        if hasattr(self.model, "prompt"):
            return int(self.model.prompt(chat_dicts(messages), openai_tools(tools)).length)
        return count_tokens_approximately(messages, tools=list(openai_tools(tools)) or None)


def _loaded(model: Any, options: Mapping[str, Any]) -> LocalLike:
    if isinstance(model, str):
        from cascadellm.local import LocalModel

        return LocalModel(model, **options)
    if not isinstance(model, LocalLike):
        raise ConfigurationError(
            "LocalChatModel(model) expects a LocalModel, a SpeculativePair or a path, got "
            f"{type(model).__name__}"
        )
    if options:
        raise ConfigurationError("model_kwargs belong to a path; this model is loaded already")
    return model


class _Sent:
    """What a stream has given of scores and usage: each count stands once, so they add up."""

    def __init__(self, *, scores: Any) -> None:
        self._wanted = bool(scores)
        self._waiting: tuple[TokenScore, ...] = ()
        self._prompt: int | None = None
        self._given = Usage(0, 0)

    def take(self, piece: Piece) -> None:
        """Take a piece's scores; they go out with its text, or with the next one's."""
        self._waiting += piece.tokens
        self._prompt = piece.input_tokens

    def marks(self) -> dict[str, Any]:
        """Return the waiting scores, and their usage, as fields of a chunk."""
        if not self._waiting or self._prompt is None:
            return {}
        given, self._waiting = self._waiting, ()
        read = self._prompt - self._given.input_tokens
        self._given = Usage(self._prompt, self._given.output_tokens + len(given))
        marks: dict[str, Any] = {"usage_metadata": _usage(Usage(read, len(given)))}
        if self._wanted:
            marks["response_metadata"] = {"logprobs": openai_shape(given)}
        return marks

    def rest(self, answer: Answer) -> Answer:
        """Return the finished answer with the scores and the usage still to be given."""
        usage, given = answer.usage, self._given
        if usage is not None:
            usage = Usage(
                usage.input_tokens - given.input_tokens, usage.output_tokens - given.output_tokens
            )
        tokens = None if answer.tokens is None else answer.tokens[given.output_tokens :]
        return replace(answer, tokens=tokens, usage=usage)


def _usage(usage: Usage) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        total_tokens=usage.total_tokens,
    )


def _chosen(tools: Sequence[dict[str, Any]], choice: Any) -> list[dict[str, Any]]:
    """Return the tools that a `tool_choice` leaves visible."""
    if choice == "none":
        return []
    name = choice
    if isinstance(choice, Mapping):
        name = (choice.get("function") or choice).get("name")
    named = [tool for tool in tools if tool["function"]["name"] == name]
    return named or list(tools)


def _apart(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[str] | None]:
    given = dict(arguments)
    return given, given.pop("stop", None)


def _result(message: AIMessage) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=message)])


def _close(pieces: Any) -> None:
    if hasattr(pieces, "close"):
        pieces.close()
