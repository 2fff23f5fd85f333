"""LocalChatModel: a local model as a LangChain chat model, with token scores in its answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from cascadellm.errors import ConfigurationError
from cascadellm.tier import LocalLike
from langchain_cascade.convert import chat_dicts, local_message, openai_tools
from langchain_cascade.local_arguments import SETTINGS, apart, call_arguments
from langchain_cascade.local_chunks import Chunks
from langchain_cascade.structured import structured_output

__all__ = ["LocalChatModel"]


class LocalChatModel(BaseChatModel):
    """A chat model over a local model.

    Logprobs stand in `response_metadata["logprobs"]` in OpenAI's shape, the reasoning block
    in `additional_kwargs["reasoning_content"]`. Settings not given are the model's own; each
    may also be given per call.

    Args:
        model: A `LocalModel`, a `SpeculativePair`, a fake model, or a path or hub name, which
            is loaded at once.
        model_kwargs: Arguments of `LocalModel` where `model` is a path.
        strict: Whether tool calls and structured answers are made to fit their schemas: True
            demands it (the extra `structured`), False leaves them free, None constrains where
            that is possible. A call may say otherwise.
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
    strict: bool | None = None
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
        own = {**self._settings(), "strict": self.strict}
        return {"model_name": self.model_name, **{k: v for k, v in own.items() if v is not None}}

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

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*SETTINGS, "top_logprobs")}

    def _arguments(self, stop: list[str] | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of the local model's call."""
        ending = stop if stop is not None else self.stop
        return call_arguments(self.model, self._settings(), ending, kwargs, strict=self.strict)

    def _message(self, answer: Any, kwargs: Mapping[str, Any]) -> AIMessage:
        message = local_message(answer, self.model_name)
        if not kwargs.get("logprobs", self.logprobs):
            message.response_metadata.pop("logprobs", None)
        return message

    def answer(self, messages: Sequence[BaseMessage], arguments: Mapping[str, Any]) -> AIMessage:
        """Answer without a run of its own; `arguments` are a call's, `stop` included."""
        given, stop = apart(arguments)
        answer = self.model.generate(chat_dicts(messages), **self._arguments(stop, given))
        return self._message(answer, given)

    async def aanswer(
        self, messages: Sequence[BaseMessage], arguments: Mapping[str, Any]
    ) -> AIMessage:
        """Answer without a run of its own; `arguments` are a call's, `stop` included."""
        given, stop = apart(arguments)
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
        chunks = self._chunks(kwargs)
        try:
            for piece in pieces:
                for chunk in chunks.of(piece):
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
        chunks = self._chunks(kwargs)
        try:
            async for piece in pieces:
                for chunk in chunks.of(piece):
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(str(chunk.message.content), chunk=chunk)
                    yield chunk
        finally:
            if hasattr(pieces, "aclose"):
                await pieces.aclose()

    def _chunks(self, kwargs: Mapping[str, Any]) -> Chunks:
        scores = kwargs.get("logprobs", self.logprobs)
        return Chunks(scores=scores, message=lambda answer: self._message(answer, kwargs))

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Bind tools; the chat template shows them to the model.

        Where xgrammar is installed every call names one of them, with arguments that fit, and a
        choice of `any` or of a tool is obeyed. `strict=True` demands that, `strict=False`
        switches it off. A named tool is the only one that the model sees; `none` hides all.
        """
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        return self.bind(tools=list(openai_tools(tools)), **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: str | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Return a model that answers with objects of a schema.

        `function_calling`, the default, shows the schema to the model as a tool;
        `json_schema` and `json_mode` shape the text alone and need the extra `structured`
        unless `strict=False`.

        Raises:
            ConfigurationError: The method is unknown.
        """
        strict = self.strict if strict is None else strict
        shaped = method not in (None, "function_calling")
        return structured_output(
            self,
            schema,
            method=method,
            include_raw=include_raw,
            strict=strict,
            rest=kwargs,
            bound={"constrain": "must"} if shaped else {},
        )

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


def _result(message: AIMessage) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=message)])


def _close(pieces: Any) -> None:
    if hasattr(pieces, "close"):
        pieces.close()
