"""A conversation as one tier's LLM accepts it, whoever wrote the turns before.

Thinking blocks are signed or numbered by the provider that made them, and only that provider
takes them back; tool calls keep an identifier that every provider accepts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitationBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms.llm import LLM

from llamaindex_cascade.chat_dicts import calls_of, flatten_tools
from llamaindex_cascade.convert import field_of

__all__ = ["readable"]

Reader = Literal["anthropic", "openai", "openai-responses", "local", "other"]
_LONGEST_ID = 40
_PLAIN_ID = re.compile(r"[a-zA-Z0-9_-]+")
_RESULTS = (MessageRole.TOOL, MessageRole.FUNCTION)


def readable(messages: list[ChatMessage], llm: LLM) -> list[ChatMessage]:
    """Return messages that an LLM accepts.

    Args:
        messages: Deep copies, which may be changed.
        llm: The tier's LLM.
    """
    if all(m.role in (MessageRole.USER, MessageRole.SYSTEM) for m in messages):
        return messages
    reader = _reader(llm)
    _with_ids(messages)
    if reader == "other":
        return [_seen(message, reader) for message in messages]
    if reader == "anthropic" and _thinks(llm) and _unsigned(messages):
        messages = flatten_tools(messages)
    seen = [_seen(message, reader) for message in messages]
    return [m for m in seen if m.role != MessageRole.ASSISTANT or m.blocks or m.additional_kwargs]


def _reader(llm: LLM) -> Reader:
    for cls in type(llm).__mro__:
        module = cls.__module__
        if module.startswith("llama_index.llms.anthropic"):
            return "anthropic"
        if module.startswith("llama_index.llms.openai"):
            return "openai-responses" if cls.__name__ == "OpenAIResponses" else "openai"
        if module.startswith("llamaindex_cascade"):
            return "local"
    return "other"


def _with_ids(messages: Sequence[ChatMessage]) -> None:
    """Give every call and its result one identifier that all providers take."""
    nameless: list[str] = []
    for place, message in enumerate(messages):
        if message.role in _RESULTS:
            extra = message.additional_kwargs
            given = extra.get("tool_call_id") or extra.pop("call_id", None)
            given = given or (nameless.pop(0) if nameless else f"{place}")
            extra["tool_call_id"] = _plain_id(str(given))
            continue
        blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
        for number, block in enumerate(blocks):
            if not block.tool_call_id:
                block.tool_call_id = f"call_{place}_{number}"
                nameless.append(block.tool_call_id)
            block.tool_call_id = _plain_id(block.tool_call_id)


def _plain_id(call_id: str) -> str:
    """Return an identifier of at most 40 letters, digits, `_` and `-`."""
    if len(call_id) <= _LONGEST_ID and _PLAIN_ID.fullmatch(call_id):
        return call_id
    return f"call_{hashlib.sha256(call_id.encode()).hexdigest()[:24]}"


def _seen(message: ChatMessage, reader: Reader) -> ChatMessage:
    """Return a message with the blocks that a reader takes."""
    if message.role != MessageRole.ASSISTANT:
        if reader not in ("anthropic", "other"):
            message.blocks = [b for b in message.blocks if not isinstance(b, CachePoint)]
        return message
    extra = message.additional_kwargs
    blocks = [block for block in message.blocks if _taken(block, reader)]
    called = any(isinstance(block, ToolCallBlock) for block in blocks)
    if not called and reader in ("anthropic", "openai-responses"):
        blocks += _as_blocks(message)
    if any(isinstance(block, ToolCallBlock) for block in blocks) and not _own(extra, reader):
        extra = {k: v for k, v in extra.items() if k not in ("tool_calls", "function_call")}
    if reader == "anthropic":
        blocks = [_with_object(block) for block in blocks]
    return ChatMessage(role=message.role, blocks=blocks, additional_kwargs=extra)


def _taken(block: Any, reader: Reader) -> bool:
    if isinstance(block, ThinkingBlock):
        marks = block.additional_information
        signed = bool(marks.get("signature"))
        numbered = str(marks.get("id", "")).startswith("rs_")
        return {
            "anthropic": signed,
            "openai": False,
            "openai-responses": numbered,
            "local": not marks,
            # another provider knows its own marks
            "other": bool(marks) and not numbered and set(marks) - {"type"} != {"signature"},
        }[reader]
    if isinstance(block, TextBlock):
        return bool(block.text) or reader == "other"
    return reader in ("anthropic", "other") or not isinstance(block, (CachePoint, CitationBlock))


def _own(extra: dict[str, Any], reader: Reader) -> bool:
    """Return whether the provider's entry beside the blocks is the reader's own."""
    calls = extra.get("tool_calls") or ()
    kind = "function_call" if reader == "openai-responses" else None
    return bool(calls) and kind is not None and all(field_of(c, "type") == kind for c in calls)


def _as_blocks(message: ChatMessage) -> list[ToolCallBlock]:
    """Return the calls that stand only beside the blocks."""
    if _own(message.additional_kwargs, "openai-responses"):
        return []
    return [
        ToolCallBlock(
            tool_call_id=_plain_id(call["id"] or "call"),
            tool_name=call["function"]["name"],
            tool_kwargs=call["function"]["arguments"],
        )
        for call in calls_of(message)
    ]


def _with_object(block: Any) -> Any:
    """Return a call whose arguments are an object, as Anthropic demands."""
    if not isinstance(block, ToolCallBlock) or isinstance(block.tool_kwargs, dict):
        return block
    try:
        value = json.loads(block.tool_kwargs or "{}")
    except ValueError:
        value = None
    arguments = value if isinstance(value, dict) else {"arguments": block.tool_kwargs}
    return block.model_copy(update={"tool_kwargs": arguments})


def _thinks(llm: Any) -> bool:
    return (getattr(llm, "thinking_dict", None) or {}).get("type") not in (None, "disabled")


def _unsigned(messages: Sequence[ChatMessage]) -> bool:
    """Return whether the turn that is not over holds calls without a signed thought.

    With thinking on, Anthropic wants its own thought before the calls of such a turn.
    """
    for message in reversed(messages):
        if message.role == MessageRole.USER:
            return False
        if message.role == MessageRole.ASSISTANT and calls_of(message):
            return not any(
                isinstance(b, ThinkingBlock) and _taken(b, "anthropic") for b in message.blocks
            )
    return False
