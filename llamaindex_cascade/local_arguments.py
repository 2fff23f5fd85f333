"""What a LlamaIndex call means for a local model: settings, visible tools, constraints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cascadellm.local.demand import Demand, visible_tools

__all__ = ["call_arguments"]

_IGNORED = frozenset(
    {
        "allow_parallel_tool_calls",
        "formatted",
        "output_schema",
        "parallel_tool_calls",
        "strict",
        "tool_choice",
        "tool_required",
    }
)


def call_arguments(model: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of a local model's call.

    Args:
        model: The local model.
        kwargs: Arguments of LlamaIndex's call; `output_schema` is the schema of an object that
            is asked for in the prompt, `strict` as in `LocalLLM`.
    """
    arguments = {k: v for k, v in kwargs.items() if k not in _IGNORED and v is not None}
    if "max_tokens" in arguments:
        arguments["max_new_tokens"] = arguments.pop("max_tokens")
    choice = kwargs.get("tool_choice")
    tools = visible_tools(arguments.pop("tools", ()), choice)
    if tools:
        arguments["tools"] = tools
    demand = Demand(
        schema=kwargs.get("output_schema"),
        tools=tools,
        choice=choice,
        required=bool(kwargs.get("tool_required")) or choice in ("any", "required"),
        parallel=bool(kwargs.get("allow_parallel_tool_calls")),
        strict=kwargs.get("strict"),
    )
    return {**demand.settings(model), **arguments}
