"""Between LlamaIndex responses and the engine's `Answer`, without upstream's conversions.

Core's own conversions drop logprobs and write token counts into the message in place, so
nothing here uses them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from cascadellm.answer import Answer, ToolCall, Usage
from llamaindex_cascade.fields import field_of
from llamaindex_cascade.logprobs import token_scores

__all__ = [
    "USAGE_KEYS",
    "answer_from",
    "chat_from_completion",
    "completion_from_chat",
    "copied",
    "field_of",
    "finish_reason",
    "logprob_lists",
    "own_message",
    "text_of",
    "usage_dict",
    "usage_from",
]

USAGE_KEYS = frozenset(
    {
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "prompt_tokens_details",
        "completion_tokens_details",
        "input_tokens",
        "output_tokens",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "prompt_token_count",
        "candidates_token_count",
        "total_token_count",
        "usage",
        "usage_metadata",
    }
)
"""Keys under which tracers look for token counts."""

_COUNTS = (
    ("prompt_tokens", "completion_tokens"),
    ("input_tokens", "output_tokens"),
    ("prompt_token_count", "candidates_token_count"),
)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, Sequence) and value else None


def text_of(messages: Sequence[ChatMessage]) -> str:
    """Return a conversation as neutral text, as the LangChain adapter does.

    One message is its text; several are a line each, `role: text`.
    """
    if len(messages) == 1:
        return messages[0].content or ""
    return "\n".join(f"{message.role.value}: {message.content or ''}" for message in messages)


def own_message(message: ChatMessage) -> ChatMessage:
    """Return a deep copy of a message without token counts or cascade data in it."""
    kept = {
        key: copy.deepcopy(value)
        for key, value in message.additional_kwargs.items()
        if key not in USAGE_KEYS and key != "cascade"
    }
    return ChatMessage(role=message.role, blocks=_blocks(message), additional_kwargs=kept)


def copied(message: ChatMessage) -> ChatMessage:
    """Return a deep copy of a message."""
    if type(message) is not ChatMessage:
        return message.model_copy(deep=True)
    kept = copy.deepcopy(message.additional_kwargs) if message.additional_kwargs else {}
    return message.model_copy(update={"blocks": _blocks(message), "additional_kwargs": kept})


def _blocks(message: ChatMessage) -> list[Any]:
    # a text block holds nothing that two copies could share
    return [block.model_copy(deep=type(block) is not TextBlock) for block in message.blocks]


def usage_from(response: ChatResponse) -> Usage | None:
    """Return the tokens that the provider reports, None when it reports none."""
    raw = response.raw
    for place in (
        response.additional_kwargs,
        field_of(raw, "usage"),
        field_of(raw, "usage_metadata"),
        response.message.additional_kwargs,
    ):
        if not place:
            continue
        for given, made in _COUNTS:
            counts = field_of(place, given), field_of(place, made)
            if all(isinstance(count, int) for count in counts):
                return Usage(*counts)
    return None


def usage_dict(usage: Usage | None) -> dict[str, int]:
    """Return usage under the keys that LlamaIndex integrations use."""
    if usage is None:
        return {}
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }


def finish_reason(raw: Any) -> str | None:
    """Return why the provider ended the answer, None when it does not say."""
    choice = _first(field_of(raw, "choices"))
    for place in (choice, raw):
        for name in ("finish_reason", "stop_reason", "done_reason"):
            value = field_of(place, name)
            if isinstance(value, str) and value:
                return value
    return None


def _refusal(raw: Any) -> str | None:
    value = field_of(field_of(_first(field_of(raw, "choices")), "message"), "refusal")
    return value if isinstance(value, str) and value else None


def tool_calls(message: ChatMessage) -> tuple[ToolCall, ...]:
    """Return the tool calls of a message; unparsable arguments stay unparsed."""
    calls = []
    for block in message.blocks:
        if isinstance(block, ToolCallBlock):
            written = block.tool_kwargs
            arguments = written if isinstance(written, dict) else _object(written)
            raw = written if isinstance(written, str) else json.dumps(written, default=str)
            calls.append(ToolCall(block.tool_name, arguments, id=block.tool_call_id or "", raw=raw))
    return tuple(calls)


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def reasoning_of(message: ChatMessage) -> str | None:
    """Return the text of a message's thinking blocks, None when there is none."""
    parts = [b.content for b in message.blocks if isinstance(b, ThinkingBlock) and b.content]
    return "\n".join(parts) or None


def answer_from(response: ChatResponse) -> Answer:
    """Return a tier's response as an `Answer`; the response travels along as `native`."""
    kept = field_of(response.raw, "answer")
    if isinstance(kept, Answer):
        return replace(kept, native=response)
    text = response.message.content or ""
    reasoning = reasoning_of(response.message)
    calls = tool_calls(response.message)
    return Answer(
        text=text,
        tokens=token_scores(response, text=text, reasoning=reasoning, calls=bool(calls)),
        tool_calls=calls,
        usage=usage_from(response),
        finish_reason=finish_reason(response.raw),
        refusal=_refusal(response.raw),
        reasoning=reasoning,
        native=response,
    )


def chat_from_completion(response: CompletionResponse) -> ChatResponse:
    """Return a completion as a chat response, keeping logprobs, with a clean message."""
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, blocks=[TextBlock(text=response.text)]),
        raw=response.raw,
        delta=response.delta,
        logprobs=response.logprobs,
        additional_kwargs=dict(response.additional_kwargs),
    )


def completion_from_chat(response: ChatResponse) -> CompletionResponse:
    """Return a chat response as a completion, leaving the message untouched."""
    return CompletionResponse(
        text=response.message.content or "",
        raw=response.raw,
        delta=response.delta,
        logprobs=response.logprobs,
        additional_kwargs={**response.message.additional_kwargs, **response.additional_kwargs},
    )


def logprob_lists(answer: Answer) -> list[list[LogProb]] | None:
    """Return token scores in LlamaIndex's form: per token the chosen one, then alternatives."""
    if answer.tokens is None:
        return None
    lists = []
    for token in answer.tokens:
        chosen = LogProb(token=token.token, logprob=token.logprob)
        others = [LogProb(token=t, logprob=v) for t, v in token.top if t != token.token]
        lists.append([chosen, *others])
    return lists
