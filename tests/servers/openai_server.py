"""A small OpenAI-compatible server on loopback, for the real client libraries.

It answers chat completions and completions, streamed or not, with logprobs whose sampled token
need not be the likeliest, tool calls in deltas, usage, refusals and errors, and plain requests of
the Responses API. It records requests.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

__all__ = ["OpenAIServer", "Said"]


@dataclass(frozen=True)
class Said:
    """What the server says to one request.

    Attributes:
        tokens: (text, logprob, alternatives) per token; alternatives as (text, logprob), the
            likeliest first, need not hold the token itself.
        tool_calls: (id, name, arguments as written).
        finish_reason: As OpenAI names it; derived when not given.
        refusal: The provider's own refusal.
        reasoning: Reasoning text (`reasoning_content`).
        status: HTTP status; not 200 = an error.
        usage: (prompt tokens, completion tokens); None = not reported.
        delay_s: Seconds before each chunk, or before the answer.
        break_after: Close the connection after this many chunks.
    """

    tokens: Sequence[tuple[str, float, Sequence[tuple[str, float]]]] = ()
    tool_calls: Sequence[tuple[str, str, str]] = ()
    finish_reason: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    status: int = 200
    usage: tuple[int, int] | None = (11, 7)
    delay_s: float = 0.0
    break_after: int | None = None

    @classmethod
    def text(cls, text: str, logprob: float = -0.1, **settings: Any) -> Said:
        """Say a text, word by word, each token as likely as the others."""
        words = [word if place == 0 else f" {word}" for place, word in enumerate(text.split(" "))]
        return cls(tokens=[(w, logprob, [(w, logprob), ("~", -9.0)]) for w in words], **settings)

    @property
    def content(self) -> str:
        """The whole text."""
        return "".join(token for token, _, _ in self.tokens)

    @property
    def end(self) -> str:
        """The finish reason."""
        return self.finish_reason or ("tool_calls" if self.tool_calls else "stop")


@dataclass
class OpenAIServer:
    """Use it as a context manager; `url` is the base URL for clients.

    Args:
        reply: A `Said`, a list used up in turn (the last one repeats), or a function of the
            request's JSON.

    Attributes:
        requests: JSON bodies in order of arrival, with the path under `"path"`.
        chunks_sent: Stream chunks written so far.
        hung_up: Streams that the client closed before their end.
    """

    reply: Said | Sequence[Said] | Callable[[dict[str, Any]], Said]
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    chunks_sent: int = 0
    hung_up: int = 0

    def __enter__(self) -> Self:
        server = self

        class Handler(_Handler):
            owner = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)

    @property
    def url(self) -> str:
        """Base URL, with `/v1`."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def said(self, request: dict[str, Any]) -> Said:
        """Return the reply to a request, and keep the request."""
        turn = len(self.requests)
        self.requests.append(request)
        if callable(self.reply):
            return self.reply(request)
        if isinstance(self.reply, Said):
            return self.reply
        return self.reply[min(turn, len(self.reply) - 1)]


class _Handler(BaseHTTPRequestHandler):
    owner: OpenAIServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Keep quiet."""

    def do_POST(self) -> None:
        """Answer a completion request."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.owner.headers.append(dict(self.headers))
        said = self.owner.said({**body, "path": self.path})
        if said.status != 200:
            error = {"message": f"status {said.status}", "type": "error", "code": None}
            self._json(said.status, {"error": error})
            return
        if self.path.endswith("/responses"):
            self._json(200, _response(body, said))
            return
        chat = self.path.endswith("/chat/completions")
        if body.get("stream"):
            self._stream(body, said, chat=chat)
            return
        time.sleep(said.delay_s)
        self._json(200, _whole(body, said, chat=chat))

    def _json(self, status: int, data: Any) -> None:
        payload = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def _stream(self, body: dict[str, Any], said: Said, *, chat: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            for place, chunk in enumerate(_pieces(body, said, chat=chat)):
                if place == said.break_after:
                    return
                time.sleep(said.delay_s)
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
                self.wfile.flush()
                self.owner.chunks_sent += 1
            self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            self.owner.hung_up += 1


def _envelope(body: dict[str, Any], kind: str, choices: list[Any]) -> dict[str, Any]:
    return {
        "id": "cmpl-1",
        "object": kind,
        "created": 1,
        "model": body.get("model", "fake"),
        "choices": choices,
    }


def _response(body: dict[str, Any], said: Said) -> dict[str, Any]:
    """Return an answer of the Responses API, without streams and logprobs."""
    text = {"type": "output_text", "text": said.content, "annotations": []}
    message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
    prompt, made = said.usage or (0, 0)
    usage = {"input_tokens": prompt, "output_tokens": made, "total_tokens": prompt + made}
    details = {
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": body.get("model", "fake"),
        "status": "completed",
        "output": [{**message, "content": [text]}],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {**usage, **details},
    }


def _usage(said: Said) -> dict[str, int] | None:
    if said.usage is None:
        return None
    prompt, made = said.usage
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def _entry(token: tuple[str, float, Sequence[tuple[str, float]]], top: int) -> dict[str, Any]:
    text, logprob, others = token
    return {
        "token": text,
        "logprob": logprob,
        "bytes": list(text.encode()),
        "top_logprobs": [
            {"token": other, "logprob": value, "bytes": list(other.encode())}
            for other, value in others[:top]
        ],
    }


def _logprobs(body: dict[str, Any], said: Said, tokens: Sequence[Any], *, chat: bool) -> Any:
    wanted = body.get("logprobs")
    if not wanted or said.tool_calls:
        return None
    if chat:
        top = int(body.get("top_logprobs") or 0)
        return {"content": [_entry(token, top) for token in tokens], "refusal": None}
    return {
        "tokens": [token for token, _, _ in tokens],
        "token_logprobs": [logprob for _, logprob, _ in tokens],
        "top_logprobs": [dict(others[: int(wanted)]) for _, _, others in tokens],
        "text_offset": [0] * len(tokens),
    }


def _calls(said: Said) -> list[dict[str, Any]]:
    return [
        {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
        for id_, name, arguments in said.tool_calls
    ]


def _whole(body: dict[str, Any], said: Said, *, chat: bool) -> dict[str, Any]:
    logprobs = _logprobs(body, said, said.tokens, chat=chat)
    choice: dict[str, Any] = {"index": 0, "finish_reason": said.end, "logprobs": logprobs}
    if chat:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": said.content or None,
            "refusal": said.refusal,
        }
        if said.tool_calls:
            message["tool_calls"] = _calls(said)
        if said.reasoning:
            message["reasoning_content"] = said.reasoning
        choice["message"] = message
    else:
        choice["text"] = said.content
    kind = "chat.completion" if chat else "text_completion"
    return {**_envelope(body, kind, [choice]), "usage": _usage(said)}


def _deltas(said: Said) -> Iterator[tuple[dict[str, Any], Sequence[Any]]]:
    yield {"role": "assistant", "content": ""}, ()
    if said.reasoning:
        yield {"reasoning_content": said.reasoning}, ()
    for token in said.tokens:
        yield {"content": token[0]}, (token,)
    for index, (id_, name, arguments) in enumerate(said.tool_calls):
        start = {"index": index, "id": id_, "type": "function"}
        yield {"tool_calls": [{**start, "function": {"name": name, "arguments": ""}}]}, ()
        for place in range(0, len(arguments), 4):
            part = {"arguments": arguments[place : place + 4]}
            yield {"tool_calls": [{"index": index, "function": part}]}, ()


def _pieces(body: dict[str, Any], said: Said, *, chat: bool) -> Iterator[dict[str, Any]]:
    kind = "chat.completion.chunk" if chat else "text_completion"
    for delta, tokens in _deltas(said):
        logprobs = _logprobs(body, said, tokens, chat=chat) if tokens else None
        choice: dict[str, Any] = {"index": 0, "finish_reason": None, "logprobs": logprobs}
        choice |= {"delta": delta} if chat else {"text": delta.get("content", "")}
        yield _envelope(body, kind, [choice])
    last: dict[str, Any] = {"index": 0, "finish_reason": said.end, "logprobs": None}
    last |= {"delta": {}} if chat else {"text": ""}
    yield _envelope(body, kind, [last])
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {**_envelope(body, kind, []), "usage": _usage(said)}
