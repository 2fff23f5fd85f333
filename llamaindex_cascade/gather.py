"""What a stream adds up to, and the responses that the caller sees."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    MessageRole,
    TextBlock,
    ThinkingBlock,
)

from cascadellm.answer import Answer, TokenScore, Trace, Usage
from cascadellm.logprobs import part_of
from llamaindex_cascade.convert import (
    USAGE_KEYS,
    answer_from,
    field_of,
    finish_reason,
    own_message,
    reasoning_of,
    tool_calls,
    usage_dict,
    usage_from,
)
from llamaindex_cascade.logprobs import chunk_scores
from llamaindex_cascade.objects import as_object_text
from llamaindex_cascade.tools import Asked

__all__ = ["Gathered", "event_copy", "partial", "replay", "shown"]


class Gathered:
    """Adds up the chunks of one stream; chunks are cumulative, their raw data is not."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._last: ChatResponse | None = None
        self._prompt: int | None = None
        self._scores: list[TokenScore] = []
        self._usage: dict[str, int] = {}
        self._finish: str | None = None

    def add(self, chunk: ChatResponse) -> None:
        """Take in a chunk."""
        self._last = chunk
        self._scores += chunk_scores(chunk.raw) or ()
        self._usage = usage_dict(usage_from(chunk)) or self._usage
        self._finish = finish_reason(chunk.raw) or self._finish
        piece = field_of(chunk.raw, "piece")
        self._prompt = field_of(piece, "input_tokens") or self._prompt

    def __call__(self, chunk: ChatResponse) -> Answer:
        """Take in a chunk; return the answer so far."""
        self.add(chunk)
        return self.answer()

    def answer(self) -> Answer:
        """Return the answer so far."""
        answer = self._answer()
        return answer if self._asked.output_cls is None else as_object_text(answer)

    def _answer(self) -> Answer:
        last = self._last
        if last is None:
            last = ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=""))
        response = last.model_copy(
            update={"delta": None, "additional_kwargs": {**_kept(last), **self._usage}}
        )
        if isinstance(field_of(response.raw, "answer"), Answer):
            return answer_from(response)
        text = response.message.content or ""
        reasoning, calls = reasoning_of(response.message), tool_calls(response.message)
        scores = part_of(tuple(self._scores), text, reasoning, bool(calls))
        return Answer(
            text=text,
            tokens=scores or None,
            tool_calls=calls,
            usage=usage_from(response) or self._counted(),
            finish_reason=self._finish,
            reasoning=reasoning,
            native=response,
        )

    def _counted(self) -> Usage | None:
        """Return the tokens so far, where a local model counts them while it writes."""
        if self._prompt is None or not self._scores:
            return None
        return Usage(self._prompt, len(self._scores))


def _kept(chunk: ChatResponse) -> dict[str, Any]:
    return {k: v for k, v in chunk.additional_kwargs.items() if k != "thinking_delta"}


def partial(chunk: ChatResponse, tier: int, name: str) -> ChatResponse:
    """Return a chunk of a live stream for the caller; it says who writes, and no more."""
    return ChatResponse(
        message=own_message(chunk.message),
        delta=chunk.delta,
        raw={"cascade": {"tier": tier, "answered_by": name}, "response": chunk.raw},
        logprobs=chunk.logprobs,
        additional_kwargs=dict(chunk.additional_kwargs),
    )


def shown(answer: Answer, trace: Trace, *, delta: str | None = None) -> ChatResponse:
    """Return the accepted answer for the caller, with the record of the call.

    The record stands in `additional_kwargs["cascade"]` and in `raw`, never in the message,
    whose extra data providers would be sent back.
    """
    record = trace.to_dict()
    native = answer.native
    if not isinstance(native, ChatResponse) or (native.message.content or "") != answer.text:
        message = ChatMessage(role=MessageRole.ASSISTANT, content=answer.text)
        native = ChatResponse(message=message, additional_kwargs=usage_dict(answer.usage))
    return ChatResponse(
        message=own_message(native.message),
        delta=delta,
        raw={"cascade": record, "response": native.raw},
        logprobs=native.logprobs,
        additional_kwargs={**native.additional_kwargs, "cascade": record},
    )


def replay(answer: Answer, trace: Trace) -> Iterator[ChatResponse]:
    """Show an accepted draft word by word; the last chunk is the whole response."""
    whole = shown(answer, trace)
    name = {"tier": trace.tier, "answered_by": trace.answered_by}
    text = whole.message.content or ""
    thoughts = [b for b in whole.message.blocks if isinstance(b, ThinkingBlock)]
    pieces = re.findall(r"\s*\S+\s*$|\s*\S+", text) or [text]
    written = ""
    for place, piece in enumerate(pieces[:-1]):
        written += piece
        blocks = [*(b.model_copy(deep=True) for b in thoughts), TextBlock(text=written)]
        first = {"thinking_delta": answer.reasoning} if place == 0 and answer.reasoning else {}
        yield ChatResponse(
            message=ChatMessage(role=whole.message.role, blocks=blocks),
            delta=piece,
            raw={"cascade": name},
            additional_kwargs=first,
        )
    whole.delta = pieces[-1]
    yield whole


def event_copy(response: Any) -> Any:
    """Return a response without token counts: the tiers' own spans report them."""
    kept: Mapping[str, Any] = {
        key: value for key, value in response.additional_kwargs.items() if key not in USAGE_KEYS
    }
    record = field_of(response.raw, "cascade")
    return response.model_copy(update={"additional_kwargs": kept, "raw": {"cascade": record}})
