"""A small server on loopback that speaks Anthropic's Messages API, for the real client library.

It answers whole and streamed, in words or with tool calls, with usage, and records requests.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from cascadellm import ToolCall

__all__ = ["AnthropicServer"]


@dataclass
class AnthropicServer:
    """Use it as a context manager; `url` is the base URL for clients.

    Args:
        reply: A rule from the request's messages to text or a tool call.

    Attributes:
        requests: JSON bodies in order of arrival.
    """

    reply: Callable[[list[dict[str, Any]]], str | ToolCall]
    requests: list[dict[str, Any]] = field(default_factory=list)

    def __enter__(self) -> Self:
        server = self

        class Handler(_Handler):
            owner = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    owner: AnthropicServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Keep quiet."""

    def do_POST(self) -> None:
        """Answer a request for a message."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.owner.requests.append(body)
        said = self.owner.reply(body["messages"])
        if body.get("stream"):
            kind = "text/event-stream"
            events = _events(said)
            payload = "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events)
        else:
            kind = "application/json"
            payload = json.dumps({**_head(said), "content": [_block(said)], **_end(said)})
        content = payload.encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        # the client keeps its connections beyond an event loop
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)


def _count(said: str | ToolCall) -> int:
    return len(said.split()) if isinstance(said, str) else 5


def _head(said: str | ToolCall) -> dict[str, Any]:
    return {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-fake",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 9, "output_tokens": _count(said)},
    }


def _end(said: str | ToolCall) -> dict[str, Any]:
    return {"stop_reason": "end_turn" if isinstance(said, str) else "tool_use"}


def _block(said: str | ToolCall) -> dict[str, Any]:
    if isinstance(said, str):
        return {"type": "text", "text": said}
    return {
        "type": "tool_use",
        "id": said.id or "toolu_01",
        "name": said.name,
        "input": dict(said.arguments or {}),
    }


def _events(said: str | ToolCall) -> Iterator[dict[str, Any]]:
    head = _head(said)
    yield {
        "type": "message_start",
        "message": {**head, "usage": {**head["usage"], "output_tokens": 0}},
    }
    block = _block(said)
    if isinstance(said, str):
        yield {"type": "content_block_start", "index": 0, "content_block": {**block, "text": ""}}
        for place, word in enumerate(said.split(" ")):
            text = word if place == 0 else f" {word}"
            delta = {"type": "text_delta", "text": text}
            yield {"type": "content_block_delta", "index": 0, "delta": delta}
    else:
        yield {"type": "content_block_start", "index": 0, "content_block": {**block, "input": {}}}
        written = json.dumps(block["input"])
        for place in range(0, len(written), 6):
            delta = {"type": "input_json_delta", "partial_json": written[place : place + 6]}
            yield {"type": "content_block_delta", "index": 0, "delta": delta}
    yield {"type": "content_block_stop", "index": 0}
    usage = {"output_tokens": _count(said)}
    yield {"type": "message_delta", "delta": {**_end(said), "stop_sequence": None}, "usage": usage}
    yield {"type": "message_stop"}
