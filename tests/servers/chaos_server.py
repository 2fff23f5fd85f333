"""An OpenAI-compatible server on loopback that misbehaves on purpose, by a fixed seed.

It echoes the question's number, so that an answer tells which question it belongs to, and keeps
a ledger of what it reported, so that totals on both sides can be compared.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

__all__ = ["FAULTS", "ChaosServer", "Sent", "hard", "words_of"]

FAULTS = (
    "rate_limit",
    "error_500",
    "broken_json",
    "dropped",
    "truncated",
    "no_usage",
    "slow_first_byte",
    "delay",
)
"""What may happen to a request; the last three end in an answer all the same."""

_HARMLESS = ("no_usage", "slow_first_byte", "delay")
_NUMBER = re.compile(r"question (\d+)")
_UNSURE, _SURE = -2.0, -0.05


def hard(number: int) -> bool:
    """Return whether the small model is unsure about a question."""
    return number % 3 == 0


def words_of(number: int, model: str) -> list[str]:
    """Return the answer to a question, token by token."""
    return ["echo", f" {number}", " by", f" {model}", *([" padding"] * (number % 5))]


@dataclass(frozen=True, slots=True)
class Sent:
    """One line of the ledger.

    Attributes:
        number: The question.
        model: Who was asked.
        fault: What happened, or None.
        usage: (prompt, completion) tokens reported in a whole answer; None otherwise.
    """

    number: int
    model: str
    fault: str | None
    usage: tuple[int, int] | None


@dataclass
class ChaosServer:
    """Use it as a context manager; `url` is the base URL for clients.

    Args:
        rate: Share of the requests that something happens to.
        seed: Fixes what happens to which attempt of which question.
        faults: What may happen.
        slow_s: Seconds of a slow first byte.

    Attributes:
        ledger: What was sent, in order of its end.
        open_now: Connections that are open.
    """

    rate: float = 0.1
    seed: int = 0
    faults: tuple[str, ...] = FAULTS
    slow_s: float = 0.05
    ledger: list[Sent] = field(default_factory=list)
    open_now: int = 0
    _asked: Counter[tuple[int, str]] = field(default_factory=Counter)

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos", daemon=True)
        self._thread.start()
        opening = asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=512)
        self._server = asyncio.run_coroutine_threadsafe(opening, self._loop).result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        mine = asyncio.current_task()
        rest = [task for task in asyncio.all_tasks() if task is not mine]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    @property
    def url(self) -> str:
        """Base URL, with `/v1`."""
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    def totals(self, model: str) -> tuple[int, int]:
        """Return the (prompt, completion) tokens that were reported for a model."""
        used = [one.usage for one in self.ledger if one.model == model and one.usage]
        return sum(given for given, _ in used), sum(made for _, made in used)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_now += 1
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.open_now -= 1
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection stays open."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"content-length: *(\d+)", head, re.I)[1])  # type: ignore[index]
        body = json.loads(await reader.readexactly(length))
        model = body["model"]
        number = int(_NUMBER.findall(json.dumps(body["messages"]))[-1])
        fault = self._fault(number, model)
        if fault in ("slow_first_byte", "delay"):
            await asyncio.sleep(self.slow_s if fault == "slow_first_byte" else self.slow_s / 5)
        return await self._answer(writer, body, number, model, fault)

    def _fault(self, number: int, model: str) -> str | None:
        turn = self._asked[number, model]
        self._asked[number, model] += 1
        rng = random.Random(f"{self.seed} {number} {model} {turn}")
        return rng.choice(self.faults) if rng.random() < self.rate else None

    async def _answer(
        self,
        writer: asyncio.StreamWriter,
        body: dict[str, Any],
        number: int,
        model: str,
        fault: str | None,
    ) -> bool:
        # noted before it is sent, or a client could look into the ledger first
        if fault == "dropped":
            self._note(number, model, fault, None)
            return False
        if fault in ("rate_limit", "error_500"):
            status, extra = (429, "retry-after: 0\r\n") if fault == "rate_limit" else (500, "")
            error = json.dumps({"error": {"message": "planted", "type": "planted", "code": None}})
            self._note(number, model, fault, None)
            _write(writer, status, error, extra)
            return True
        words = words_of(number, model)
        usage = None if fault == "no_usage" else (7 + number % 11, len(words))
        if body.get("stream"):
            return await self._stream(writer, words, usage, number, model, fault)
        text = json.dumps(_whole(words, usage, number, model))
        if fault == "broken_json":
            text = text[: len(text) // 2]
        if fault == "truncated":
            self._note(number, model, fault, None)
            writer.write(_head(200, len(text)) + text.encode()[:40])
            return False
        self._note(number, model, fault, None if fault == "broken_json" else usage)
        _write(writer, 200, text)
        return True

    async def _stream(
        self,
        writer: asyncio.StreamWriter,
        words: list[str],
        usage: tuple[int, int] | None,
        number: int,
        model: str,
        fault: str | None,
    ) -> bool:
        head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked"
        writer.write(f"{head}\r\n\r\n".encode())
        for place, word in enumerate(words):
            if fault == "truncated" and place == 2:
                self._note(number, model, fault, None)
                return False
            _chunk(writer, json.dumps(_part(word, number, model)))
            await asyncio.sleep(0)
        if fault == "broken_json":
            self._note(number, model, fault, None)
            _chunk(writer, '{"choices": [{"delta"')
        else:
            last = {**_envelope("chat.completion.chunk"), "usage": _usage(usage)}
            end = {"index": 0, "delta": {}, "finish_reason": "stop"}
            _chunk(writer, json.dumps({**last, "usage": None, "choices": [end]}))
            self._note(number, model, fault, usage)
            _chunk(writer, json.dumps({**last, "choices": []}))
        _chunk(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    def _note(
        self, number: int, model: str, fault: str | None, usage: tuple[int, int] | None
    ) -> None:
        self.ledger.append(Sent(number, model, fault, usage))


def _head(status: int, length: int, extra: str = "") -> bytes:
    return (
        f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{extra}"
        f"content-length: {length}\r\n\r\n"
    ).encode()


def _write(writer: asyncio.StreamWriter, status: int, text: str, extra: str = "") -> None:
    writer.write(_head(status, len(text.encode()), extra) + text.encode())


def _chunk(writer: asyncio.StreamWriter, data: str) -> None:
    line = f"data: {data}\n\n".encode()
    writer.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")


def _envelope(kind: str) -> dict[str, Any]:
    return {"id": "cmpl-1", "object": kind, "created": 1, "model": "chaos"}


def _usage(usage: tuple[int, int] | None) -> dict[str, int] | None:
    if usage is None:
        return None
    given, made = usage
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}


def _scores(words: list[str], number: int, model: str) -> dict[str, Any]:
    logprob = _UNSURE if hard(number) and model == "small" else _SURE
    content = [{"token": w, "logprob": logprob, "bytes": None, "top_logprobs": []} for w in words]
    return {"content": content, "refusal": None}


def _whole(
    words: list[str], usage: tuple[int, int] | None, number: int, model: str
) -> dict[str, Any]:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "".join(words)},
        "finish_reason": "stop",
        "logprobs": _scores(words, number, model),
    }
    return {**_envelope("chat.completion"), "choices": [choice], "usage": _usage(usage)}


def _part(word: str, number: int, model: str) -> dict[str, Any]:
    delta = {"role": "assistant", "content": word}
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    scored = {**choice, "logprobs": _scores([word], number, model)}
    return {**_envelope("chat.completion.chunk"), "choices": [scored]}
