"""A real `ChatOpenAI` client over an in-process transport that answers by rule."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from langchain_openai import ChatOpenAI

__all__ = ["OpenAIFake", "chat_openai"]


class OpenAIFake:
    """Answers chat completions, streamed or not, and keeps the requests' bodies.

    Args:
        text: The answer.
        logprob: Log-probability of each token, sent when the request asks for logprobs.
        tool_call: (name, arguments) to call instead of saying the text.
        status: HTTP status; other than 200 is an error.
    """

    def __init__(
        self,
        text: str = "one two three four five",
        *,
        logprob: float = -0.1,
        tool_call: tuple[str, dict[str, Any]] | None = None,
        status: int = 200,
    ) -> None:
        self.text = text
        self.logprob = logprob
        self.tool_call = tool_call
        self.status = status
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        body = json.loads(request.content)
        self.bodies.append(body)
        if self.status != 200:
            return httpx.Response(self.status, json={"error": {"message": "planted", "code": "x"}})
        if body.get("stream"):
            lines = "".join(f"data: {json.dumps(event)}\n\n" for event in self._events(body))
            return httpx.Response(
                200, text=lines + "data: [DONE]\n\n", headers={"content-type": "text/event-stream"}
            )
        return httpx.Response(200, json=self._whole(body))

    @property
    def _words(self) -> list[str]:
        first, *rest = self.text.split(" ")
        return [first, *(f" {word}" for word in rest)]

    def _logprobs(self, words: list[str], body: dict[str, Any]) -> dict[str, Any] | None:
        if not body.get("logprobs"):
            return None
        items = [
            {"token": w, "logprob": self.logprob, "bytes": list(w.encode()), "top_logprobs": []}
            for w in words
        ]
        return {"content": items, "refusal": None}

    @property
    def _usage(self) -> dict[str, int]:
        count = len(self._words)
        return {"prompt_tokens": 9, "completion_tokens": count, "total_tokens": 9 + count}

    def _calls(self) -> list[dict[str, Any]]:
        name, arguments = self.tool_call or ("", {})
        function = {"name": name, "arguments": json.dumps(arguments)}
        return [{"index": 0, "id": "call_1", "type": "function", "function": function}]

    def _whole(self, body: dict[str, Any]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.tool_call:
            message = {"role": "assistant", "content": None, "tool_calls": self._calls()}
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": "tool_calls" if self.tool_call else "stop",
            "logprobs": None if self.tool_call else self._logprobs(self._words, body),
        }
        return {**self._head("chat.completion"), "choices": [choice], "usage": self._usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": "gpt-fake"}

    def _events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        deltas: list[tuple[dict[str, Any], Any]] = []
        if self.tool_call:
            deltas.append(({"role": "assistant", "tool_calls": self._calls()}, None))
        else:
            deltas += [
                ({"role": "assistant", "content": word}, self._logprobs([word], body))
                for word in self._words
            ]
        head = self._head("chat.completion.chunk")
        for delta, logprobs in deltas:
            choice = {"index": 0, "delta": delta, "finish_reason": None, "logprobs": logprobs}
            yield {**head, "choices": [choice]}
        reason = "tool_calls" if self.tool_call else "stop"
        yield {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
        yield {**head, "choices": [], "usage": self._usage}


def chat_openai(answer: Callable[[httpx.Request], httpx.Response], **options: Any) -> ChatOpenAI:
    """Return a `ChatOpenAI` whose requests are answered in process."""

    async def asynchronous(request: httpx.Request) -> httpx.Response:
        return answer(request)

    return ChatOpenAI(
        model=options.pop("model", "gpt-fake"),
        api_key=options.pop("api_key", "sk-none"),
        base_url="http://127.0.0.1:9/v1",
        max_retries=0,
        http_client=httpx.Client(transport=httpx.MockTransport(answer)),
        http_async_client=httpx.AsyncClient(transport=httpx.MockTransport(asynchronous)),
        stream_usage=True,
        **options,
    )
