"""What a LangChain call means for a local model: settings, visible tools, constraints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cascadellm.local.demand import Demand, visible_tools
from langchain_cascade.convert import openai_tools, response_schema, tool_required

__all__ = ["SETTINGS", "apart", "call_arguments"]

# provider settings that agents and chains send along and that mean nothing to a local model
_IGNORED = frozenset(
    {
        "constrain",
        "logprobs",
        "parallel_tool_calls",
        "response_format",
        "strict",
        "stream",
        "stream_options",
        "stream_usage",
        "tool_choice",
        "tools",
    }
)
SETTINGS = ("temperature", "top_k", "top_p", "repetition_penalty", "seed", "max_new_tokens")


def call_arguments(
    model: Any,
    own: Mapping[str, Any],
    stop: Sequence[str] | str | None,
    kwargs: Mapping[str, Any],
    *,
    strict: bool | None,
) -> dict[str, Any]:
    """Return the keyword arguments of a local model's call.

    Args:
        model: The local model.
        own: Settings of the chat model; None values are left to the local model.
        stop: Strings that end the answer.
        kwargs: Arguments of LangChain's call.
        strict: The chat model's own `strict`, where the call gives none.
    """
    call = {k: v for k, v in kwargs.items() if k not in _IGNORED}
    if "max_tokens" in call:
        call["max_new_tokens"] = call.pop("max_tokens")
    arguments = {k: v for k, v in {**own, **call}.items() if v is not None}
    if stop:
        arguments["stop"] = [stop] if isinstance(stop, str) else list(stop)
    choice = kwargs.get("tool_choice")
    tools = visible_tools(openai_tools(kwargs.get("tools")), choice)
    if tools:
        arguments["tools"] = tools
    given = _strict(kwargs)
    demand = Demand(
        schema=response_schema(kwargs),
        tools=tools,
        choice=choice,
        required=tool_required(choice),
        parallel=kwargs.get("parallel_tool_calls") is not False,
        strict=strict if given is None else given,
        constrain=kwargs.get("constrain"),
    )
    return {**demand.settings(model), **arguments}


def _strict(kwargs: Mapping[str, Any]) -> bool | None:
    asked = kwargs.get("response_format")
    inner = asked.get("json_schema") if isinstance(asked, Mapping) else None
    own = inner.get("strict") if isinstance(inner, Mapping) else None
    strict = kwargs.get("strict")
    return own if strict is None else strict


def apart(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[str] | None]:
    """Return call arguments without `stop`, and `stop`."""
    given = dict(arguments)
    return given, given.pop("stop", None)
