"""Test doubles that ship with the package, because users test their chains too."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from cascadellm.answer import Answer, Piece, TokenScore, ToolCall, Usage
from cascadellm.events import CascadeEvent

__all__ = ["EventRecorder", "FakeClock", "FakeModel", "Reply"]

Reply: TypeAlias = "str | Answer | ToolCall | Exception"


@dataclass(eq=False)
class FakeModel:
    """A rule-based model that every adapter accepts as a tier and that records its calls.

    Args:
        reply: What it says: a fixed reply, a list used up in turn (the last one repeats), or
            a function of the messages. A reply is text, an `Answer`, a `ToolCall`, or an
            exception to raise.
        name: Its `model_name`.
        logprob: Log-probability of each token in nats; None = the model gives no logprobs.
        delay_s: Seconds per call, and per word in streams (awaited in async calls).
        tools: Whether it accepts tools.

    Attributes:
        calls: (messages, keyword arguments) per call, in order.
        closed: Streams closed before their end.
    """

    reply: Reply | Sequence[Reply] | Callable[..., Reply] = "ok"
    name: str = "fake"
    logprob: float | None = -0.1
    delay_s: float = 0.0
    tools: bool = True
    context_window: int = 8192
    calls: list[tuple[Any, dict[str, Any]]] = field(default_factory=list, repr=False)
    closed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def model_name(self) -> str:
        """Name of the model."""
        return self.name

    def generate(self, messages: Any, **kwargs: Any) -> Answer:
        """Answer by the rule."""
        turn = self._note(messages, kwargs)
        if self.delay_s:
            time.sleep(self.delay_s)
        return self._answer(messages, turn)

    def stream(self, messages: Any, **kwargs: Any) -> Iterator[Piece]:
        """Yield the answer word by word, `delay_s` apart, with the words' scores."""
        answer = self._answer(messages, self._note(messages, kwargs))
        finished = False
        try:
            for piece in _pieces(answer):
                if self.delay_s and piece.answer is None:
                    time.sleep(self.delay_s)
                yield piece
            finished = True
        finally:
            self.closed += not finished

    def batch(self, requests: Sequence[Any], **kwargs: Any) -> list[Answer]:
        """Answer many requests."""
        return [self.generate(messages, **kwargs) for messages in requests]

    async def agenerate(self, messages: Any, **kwargs: Any) -> Answer:
        """Answer by the rule."""
        turn = self._note(messages, kwargs)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        return self._answer(messages, turn)

    async def astream(self, messages: Any, **kwargs: Any) -> AsyncIterator[Piece]:
        """Yield the answer word by word, `delay_s` apart, with the words' scores."""
        answer = self._answer(messages, self._note(messages, kwargs))
        finished = False
        try:
            for piece in _pieces(answer):
                if piece.answer is None:
                    await asyncio.sleep(self.delay_s)
                yield piece
            finished = True
        finally:
            self.closed += not finished

    def close(self) -> None:
        """Do nothing; real local models free their device here."""

    def _note(self, messages: Any, kwargs: dict[str, Any]) -> int:
        """Record a call when it is made, so that one that is cancelled stands too."""
        with self._lock:
            self.calls.append((messages, dict(kwargs)))
            return len(self.calls) - 1

    def _answer(self, messages: Any, turn: int) -> Answer:
        reply: Any = self.reply
        if isinstance(reply, Sequence) and not isinstance(reply, str):
            reply = reply[min(turn, len(reply) - 1)]
        if callable(reply) and not isinstance(reply, (Answer, Exception, type)):
            reply = reply(messages)
        if isinstance(reply, Exception):
            raise reply
        return self._complete(reply, messages)

    def _complete(self, reply: Any, messages: Any) -> Answer:
        if isinstance(reply, ToolCall):
            named = reply if reply.id else replace(reply, id=f"call_{len(self.calls)}")
            reply = Answer(text="", tool_calls=(named,), finish_reason="tool_calls")
        elif isinstance(reply, str):
            reply = Answer(text=reply, finish_reason="stop")
        answer: Answer = reply
        tokens = answer.tokens
        if tokens is None and self.logprob is not None:
            part: Any = "answer" if answer.text else "arguments"
            words = _words(answer.text) or [str(call.arguments) for call in answer.tool_calls]
            tokens = tuple(TokenScore(word, self.logprob, part=part) for word in words)
        count = len(tokens) if tokens is not None else len(_words(answer.text))
        usage = answer.usage or Usage(len(str(messages).split()), max(1, count))
        return replace(answer, tokens=tokens, usage=usage)


def _pieces(answer: Answer) -> Iterator[Piece]:
    """Cut an answer into pieces: by its tokens where they spell its text, else by words."""
    tokens = tuple(token for token in answer.tokens or () if token.part == "answer")
    prompt = answer.usage.input_tokens if answer.usage is not None else None
    if tokens and "".join(token.token for token in tokens) == answer.text:
        for token in tokens:
            yield Piece(text=token.token, tokens=(token,), input_tokens=prompt)
    else:
        for word in _words(answer.text):
            yield Piece(text=word)
    yield Piece(answer=answer)


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+\s*$|\s*\S+", text)


@dataclass(eq=False)
class FakeClock:
    """A clock that moves only when told; hand it over as `clock=`."""

    now: float = 0.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Move on."""
        self.now += seconds


@dataclass(eq=False)
class EventRecorder:
    """A handler that keeps every event."""

    events: list[CascadeEvent] = field(default_factory=list)

    def on_event(self, event: CascadeEvent) -> None:
        """Keep the event."""
        self.events.append(event)

    def of(self, kind: type) -> list[Any]:
        """Return the events of one type."""
        return [event for event in self.events if isinstance(event, kind)]
