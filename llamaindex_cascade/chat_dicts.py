"""LlamaIndex messages as the chat dicts that local models' templates read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitationBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from cascadellm.errors import ConfigurationError
from llamaindex_cascade.convert import field_of

__all__ = ["calls_of", "chat_dicts", "flatten_tools"]

_READ = (TextBlock, ThinkingBlock, ToolCallBlock, CachePoint, CitationBlock)
_ROLES = {
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.DEVELOPER: "system",
    MessageRole.FUNCTION: "tool",
}


def chat_dicts(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Return messages as chat dicts: `role`, `content`, `tool_calls`, `tool_call_id`.

    Raises:
        ConfigurationError: A message holds something that is not text.
    """
    return [_chat_dict(message) for message in messages]


def _chat_dict(message: ChatMessage) -> dict[str, Any]:
    role = _ROLES.get(message.role, str(getattr(message.role, "value", message.role)))
    for block in message.blocks:
        if not isinstance(block, _READ):
            raise ConfigurationError(
                f"local models read text only, got a {type(block).__name__}; put a tier that "
                "takes it in this place, or remove it from the messages"
            )
    result: dict[str, Any] = {"role": role, "content": message.content or ""}
    # thoughts with a signature or number are another provider's
    own = [b for b in message.blocks if isinstance(b, ThinkingBlock) and b.content]
    if own and not any(block.additional_information for block in own):
        result["reasoning_content"] = "\n".join(block.content or "" for block in own)
    calls = calls_of(message)
    if calls:
        result["tool_calls"] = calls
    for name in ("tool_call_id", "name"):
        if name in message.additional_kwargs:
            result[name] = message.additional_kwargs[name]
    return result


def calls_of(message: ChatMessage) -> list[dict[str, Any]]:
    """Return a message's tool calls in OpenAI form, arguments as objects."""
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    if blocks:
        return [_call(b.tool_call_id, b.tool_name, b.tool_kwargs) for b in blocks]
    calls = []
    for call in message.additional_kwargs.get("tool_calls") or ():
        function = field_of(call, "function")
        name, arguments = field_of(function, "name"), field_of(function, "arguments")
        calls.append(_call(field_of(call, "id"), name, arguments))
    return calls


def _call(call_id: str | None, name: Any, arguments: Any) -> dict[str, Any]:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = {"arguments": arguments}
    function = {"name": str(name), "arguments": arguments or {}}
    return {"id": call_id or "", "type": "function", "function": function}


def flatten_tools(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Return messages with tool calls and results as text, for tiers without tools.

    Such tiers render a tool call as an empty message, and the history loses it.
    """
    names: dict[str, str] = {}
    flat = []
    for message in messages:
        calls = calls_of(message)
        names.update({call["id"]: call["function"]["name"] for call in calls})
        if calls:
            lines = [message.content] if message.content else []
            for call in calls:
                arguments = json.dumps(call["function"]["arguments"], default=str)
                lines.append(f"Called tool {call['function']['name']} with {arguments}")
            flat.append(ChatMessage(role=MessageRole.ASSISTANT, content="\n".join(lines)))
        elif message.role in (MessageRole.TOOL, MessageRole.FUNCTION):
            name = names.get(str(message.additional_kwargs.get("tool_call_id", "")), "the tool")
            flat.append(
                ChatMessage(role=MessageRole.USER, content=f"Result of {name}: {message.content}")
            )
        else:
            flat.append(message)
    return flat
