"""One agent's turn as each LLM class records it: thought, two calls, results, answer."""

from __future__ import annotations

import json
from typing import Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitationBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from openai.types.chat import ChatCompletionMessageToolCall
from openai.types.responses import ResponseFunctionToolCall

__all__ = ["ANSWER", "SAID", "THOUGHT", "WRITERS", "history", "open_turn"]

THOUGHT = "I wonder about the weather"
SAID = "Let me look."
ANSWER = "Rain is wet and 2+3 is 5."
_CALLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("lookup", {"word": "rain"}),
    ("calc", {"x": "2+3"}),
)


def _blocks(ids: tuple[Any, Any], *, written: bool) -> list[ToolCallBlock]:
    return [
        ToolCallBlock(
            tool_call_id=call_id, tool_name=name, tool_kwargs=json.dumps(args) if written else args
        )
        for (name, args), call_id in zip(_CALLS, ids, strict=True)
    ]


def _openai(ids: tuple[Any, Any]) -> ChatMessage:
    calls = [
        ChatCompletionMessageToolCall.model_validate(
            {
                "id": call_id,
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(args)},
            }
        )
        for (name, args), call_id in zip(_CALLS, ids, strict=True)
    ]
    return ChatMessage(
        role="assistant",
        blocks=[TextBlock(text=SAID), *_blocks(ids, written=True)],
        additional_kwargs={"tool_calls": calls},
    )


def _responses(ids: tuple[Any, Any]) -> ChatMessage:
    marks = {"id": "rs_68a1", "type": "reasoning", "encrypted_content": "gAAAAABo", "status": None}
    calls = [
        ResponseFunctionToolCall(
            id=f"fc_68a{place}",
            call_id=call_id,
            name=name,
            arguments=json.dumps(args),
            type="function_call",
        )
        for place, ((name, args), call_id) in enumerate(zip(_CALLS, ids, strict=True))
    ]
    return ChatMessage(
        role="assistant",
        blocks=[
            ThinkingBlock(content=THOUGHT, additional_information=marks),
            TextBlock(text=SAID),
            *_blocks(ids, written=True),
        ],
        additional_kwargs={"tool_calls": calls},
    )


def _anthropic(ids: tuple[Any, Any]) -> ChatMessage:
    signed = {"signature": "EqQBCgIYAhIM", "type": "thinking"}
    cited = CitationBlock(
        cited_content=TextBlock(text="c"), source="s", title="t", additional_location_info={}
    )
    return ChatMessage(
        role="assistant",
        blocks=[
            ThinkingBlock(content=THOUGHT, additional_information=signed),
            TextBlock(text=SAID),
            cited,
            *_blocks(ids, written=False),
        ],
    )


def _local(ids: tuple[Any, Any]) -> ChatMessage:
    calls = [
        {"id": i, "type": "function", "function": {"name": name, "arguments": json.dumps(args)}}
        for (name, args), i in zip(_CALLS, ids, strict=True)
    ]
    return ChatMessage(
        role="assistant",
        blocks=[
            ThinkingBlock(content=THOUGHT),
            TextBlock(text=SAID),
            *_blocks(ids, written=False),
        ],
        additional_kwargs={"tool_calls": calls},
    )


WRITERS: dict[str, tuple[Any, tuple[Any, Any]]] = {
    "openai": (_openai, ("call_Rain0000000000000000001", "call_Calc0000000000000000002")),
    "openai-responses": (_responses, ("call_Rain0000000000000000003", "call_Calc000000000000004")),
    "anthropic": (_anthropic, ("toolu_01RainAAAAAAAAAAAAAAAAAA", "toolu_01CalcBBBBBBBBBBBBBBBBBB")),
    "local": (_local, ("call_0123456789abcdef", "call_fedcba9876543210")),
    "strange ids": (_local, ("functions.lookup:0", "x" * 64)),
    "no ids": (_local, (None, None)),
}
"""Provider -> what its class records, and identifiers of calls as it makes them."""


def open_turn(writer: str) -> list[ChatMessage]:
    """Return a conversation in the middle of an agent's turn: calls and results."""
    make, ids = WRITERS[writer]
    results = [
        ChatMessage(
            role="tool",
            content=text,
            additional_kwargs={"name": name} if call_id is None else {"tool_call_id": call_id},
        )
        for (name, _), call_id, text in zip(_CALLS, ids, ("wet", "5"), strict=True)
    ]
    asked = [TextBlock(text="How is rain, and what is 2+3?")]
    marks = [CachePoint(cache_control={"type": "ephemeral"})] if writer == "anthropic" else []
    return [
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", blocks=[*asked, *marks]),
        make(ids),
        *results,
    ]


def history(writer: str) -> list[ChatMessage]:
    """Return a conversation after an agent's turn, with the next question."""
    return [
        *open_turn(writer),
        ChatMessage(role="assistant", content=ANSWER),
        ChatMessage(role="user", content="Thanks. And snow?"),
    ]
