"""Tools on their way through the cascade: JSON for tracers, `BaseTool` for each tier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ToolCallBlock
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.utils import parse_partial_json

if TYPE_CHECKING:
    from llama_index.core.tools import BaseTool

__all__ = ["Asked", "ToolSpec", "chat_arguments", "selections"]


class ToolSpec(dict[str, Any]):
    """A tool in OpenAI form, with the tool itself at hand.

    Tracers dump it as the plain dict that it is; each tier prepares `tool` in its own form.
    """

    tool: BaseTool

    @classmethod
    def of(cls, tool: BaseTool) -> ToolSpec:
        """Build the specification of a tool."""
        spec = cls(tool.metadata.to_openai_tool(skip_length_check=True))
        spec.tool = tool
        return spec


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """One call as LlamaIndex made it: what `Request.native` holds.

    Attributes:
        messages: The conversation; a prompt is one user message.
        prompt: The prompt of a completion endpoint, else None.
        formatted: Whether that prompt is already formatted for the model.
        tools: The tools of the call.
        options: Tool options: `tool_required`, `tool_choice`, `allow_parallel_tool_calls`.
        output_parser: Reads the answer after the call, else None.
        output_cls: Class that a structured prediction must yield, else None.
        documents: Passages that the prompt holds, for policies that read them.
    """

    messages: tuple[ChatMessage, ...]
    prompt: str | None = None
    formatted: bool = False
    tools: tuple[ToolSpec, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    output_parser: Any = None
    output_cls: type[BaseModel] | None = None
    documents: tuple[str, ...] = ()


def chat_arguments(
    tools: Sequence[BaseTool],
    user_msg: str | ChatMessage | None,
    chat_history: Sequence[ChatMessage] | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the arguments of `chat` for a call with tools, on a new list of messages."""
    messages = list(chat_history or ())
    if isinstance(user_msg, str):
        user_msg = ChatMessage(role="user", content=user_msg)
    if user_msg is not None:
        messages.append(user_msg)
    return {"messages": messages, "tools": [ToolSpec.of(tool) for tool in tools], **options}


def selections(response: ChatResponse, *, error_on_no_tool_call: bool) -> list[ToolSelection]:
    """Return the tool calls of a response, also while their JSON is still growing."""
    blocks = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
    if not blocks and error_on_no_tool_call:
        raise ValueError("Expected at least one tool call, but got 0 tool calls.")
    return [
        ToolSelection(
            tool_id=block.tool_call_id or "",
            tool_name=block.tool_name,
            tool_kwargs=_arguments(block.tool_kwargs),
        )
        for block in blocks
    ]


def _arguments(written: dict[str, Any] | str) -> dict[str, Any]:
    if isinstance(written, dict):
        return written
    try:
        value = parse_partial_json(written)
    except (ValueError, TypeError):
        return {}
    return value if isinstance(value, dict) else {}
