"""A local model's pieces as LangChain chunks whose scores and usage add up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGenerationChunk

from cascadellm.answer import Answer, Piece, TokenScore, Usage
from cascadellm.logprobs import openai_shape

__all__ = ["Chunks"]


class Chunks:
    """What a stream has given of scores and usage: each count stands once, so they add up.

    Args:
        scores: Whether token scores are wanted.
        message: Turns the finished answer into a message.
    """

    def __init__(self, *, scores: Any, message: Callable[[Answer], AIMessage]) -> None:
        self._wanted = bool(scores)
        self._message = message
        self._waiting: tuple[TokenScore, ...] = ()
        self._prompt: int | None = None
        self._given = Usage(0, 0)

    def of(self, piece: Piece) -> list[ChatGenerationChunk]:
        """Return a piece's chunks; its scores go out with its text, or with the next one's."""
        self._waiting += piece.tokens
        self._prompt = piece.input_tokens
        chunks = []
        if piece.text or piece.reasoning:
            extra = {"reasoning_content": piece.reasoning} if piece.reasoning else {}
            chunks.append(
                AIMessageChunk(content=piece.text, additional_kwargs=extra, **self._marks())
            )
        if piece.answer is not None:
            chunks.append(self._last(piece.answer))
        return [ChatGenerationChunk(message=chunk) for chunk in chunks]

    def _last(self, answer: Answer) -> AIMessageChunk:
        whole = self._message(self._rest(answer))
        extra = {k: v for k, v in whole.additional_kwargs.items() if k != "reasoning_content"}
        return AIMessageChunk(
            content="",
            additional_kwargs=extra,
            response_metadata=whole.response_metadata,
            usage_metadata=whole.usage_metadata,
            tool_calls=whole.tool_calls,
            invalid_tool_calls=whole.invalid_tool_calls,
            chunk_position="last",
        )

    def _marks(self) -> dict[str, Any]:
        """Return the waiting scores, and their usage, as fields of a chunk."""
        if not self._waiting or self._prompt is None:
            return {}
        given, self._waiting = self._waiting, ()
        read = self._prompt - self._given.input_tokens
        self._given = Usage(self._prompt, self._given.output_tokens + len(given))
        usage = Usage(read, len(given))
        counts = UsageMetadata(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            total_tokens=usage.total_tokens,
        )
        marks: dict[str, Any] = {"usage_metadata": counts}
        if self._wanted:
            marks["response_metadata"] = {"logprobs": openai_shape(given)}
        return marks

    def _rest(self, answer: Answer) -> Answer:
        """Return the finished answer with the scores and the usage still to be given."""
        usage, given = answer.usage, self._given
        if usage is not None:
            usage = Usage(
                usage.input_tokens - given.input_tokens, usage.output_tokens - given.output_tokens
            )
        tokens = None if answer.tokens is None else answer.tokens[given.output_tokens :]
        return replace(answer, tokens=tokens, usage=usage)
