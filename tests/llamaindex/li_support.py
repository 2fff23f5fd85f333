"""What the LlamaIndex tests share: fakes in the framework's own classes, and recorders."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span.simple import SimpleSpan
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.llms.openai_like import OpenAILike
from pydantic import Field, PrivateAttr

from cascadellm.testing import FakeModel
from llamaindex_cascade import CascadeLLM, Threshold, mean_logprob
from tests.servers.openai_server import OpenAIServer

__all__ = [
    "CHOW",
    "ENDPOINTS",
    "Events",
    "SlowLLM",
    "Spans",
    "ask",
    "asked",
    "openai",
    "pair",
    "run",
    "text_of",
    "user",
]

CLIENTS: list[OpenAILike] = []
CHOW = Threshold(mean_logprob, -0.35)
ENDPOINTS = (
    "chat",
    "stream_chat",
    "achat",
    "astream_chat",
    "complete",
    "stream_complete",
    "acomplete",
    "astream_complete",
)


def user(text: str = "What is 2 + 2?") -> list[ChatMessage]:
    """Return a conversation of one user message."""
    return [ChatMessage(role=MessageRole.USER, content=text)]


def pair(
    logprob: float | None = -2.0, policy: Any = CHOW, **options: Any
) -> tuple[CascadeLLM, FakeModel, FakeModel]:
    """Return a cascade of two fakes; by default the small one is unsure."""
    small = FakeModel("Maybe five?", name="small", logprob=logprob)
    large = FakeModel("Four, I am certain.", name="large", logprob=-0.05)
    return CascadeLLM([small, large], policy, **options), small, large


async def ask(
    llm: Any, endpoint: str, question: Any = "What is 2 + 2?", **kwargs: Any
) -> list[Any]:
    """Call an endpoint; return its response, or all chunks of its stream."""
    asked = question
    if isinstance(question, str) and "complete" not in endpoint:
        asked = user(question)
    result = getattr(llm, endpoint)(asked, **kwargs)
    if endpoint.startswith("a"):
        result = await result
    if "stream" not in endpoint:
        return [result]
    return [c async for c in result] if endpoint.startswith("a") else list(result)


def openai(server: OpenAIServer, **settings: Any) -> OpenAILike:
    """Return a real OpenAI client on the local server; `run` and a fixture close it."""
    defaults: dict[str, Any] = {
        "model": "hosted",
        "api_key": "none",
        "is_chat_model": True,
        "is_function_calling_model": True,
        "max_retries": 0,
    }
    llm = OpenAILike(api_base=server.url, **{**defaults, **settings})
    CLIENTS.append(llm)
    return llm


def run(coroutine: Any) -> Any:
    """Run a coroutine and close the async clients that it used, in their own loop."""

    async def main() -> Any:
        try:
            return await coroutine
        finally:
            for llm in CLIENTS:
                if llm._aclient is not None:
                    await llm._aclient.close()
                    llm._aclient = None

    return asyncio.run(main())


def asked(llm: Any, endpoint: str, question: Any = "What is 2 + 2?", **kwargs: Any) -> list[Any]:
    """Call an endpoint from sync code."""
    return run(ask(llm, endpoint, question, **kwargs))


def text_of(response: Any) -> str:
    """Return the text of a chat or completion response."""
    return response.text if hasattr(response, "text") else response.message.content or ""


class Events(BaseEventHandler):
    """Keeps every event; never raises."""

    events: list[Any] = Field(default_factory=list)

    def handle(self, event: Any, **kwargs: Any) -> None:
        """Keep an event."""
        self.events.append(event)

    def of(self, *names: str) -> list[Any]:
        """Return the events of the named classes."""
        return [event for event in self.events if type(event).__name__ in names]


class Spans(SimpleSpanHandler):
    """Keeps every span; says where each hangs."""

    def named(self, prefix: str) -> list[SimpleSpan]:
        """Return the ended spans whose name starts like this."""
        ended = [*self.completed_spans, *self.dropped_spans]
        return [span for span in ended if span.id_.startswith(prefix)]

    def ancestors(self, span: SimpleSpan) -> list[str]:
        """Return the names of a span's ancestors, nearest first."""
        known = {s.id_: s for s in [*self.completed_spans, *self.dropped_spans]}
        known.update(self.open_spans)
        names = []
        parent = span.parent_id
        while parent is not None:
            names.append(parent.split("-")[0])
            parent = known[parent].parent_id if parent in known else None
        return names


class SlowLLM(CustomLLM):
    """A completion-only LLM whose async methods would block the loop."""

    delay_s: float = 0.0
    text: str = "slow answer"
    _threads: list[str] = PrivateAttr(default_factory=list)

    @property
    def metadata(self) -> LLMMetadata:
        """What the framework asks."""
        return LLMMetadata(model_name="slow")

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer after a while."""
        time.sleep(self.delay_s)
        return CompletionResponse(text=self.text)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        """Answer word by word."""

        def words() -> Any:
            text = ""
            for word in self.text.split():
                time.sleep(self.delay_s)
                text += word
                yield CompletionResponse(text=text, delta=word)

        return words()


def contents(messages: Sequence[ChatMessage]) -> list[tuple[str, str | None]]:
    """Return role and text of messages."""
    return [(m.role.value, m.content) for m in messages]


def last(responses: Sequence[Any]) -> ChatResponse | Any:
    """Return the last chunk."""
    return responses[-1]
