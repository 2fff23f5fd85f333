"""What a model wrote as a tool call, read into `ToolCall`; a malformed call stays visible."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from cascadellm.answer import ToolCall

__all__ = ["hermes_call", "schema_call"]


def hermes_call(body: str) -> ToolCall:
    """Read the inside of a `<tool_call>` block: `{"name": ..., "arguments": {...}}`.

    Returns:
        The call; `arguments` is None and `raw` the text as written when it is not such an object.
    """
    raw = body.strip()
    try:
        data = json.loads(raw)
    except ValueError:
        return ToolCall(name=_name_in(raw), arguments=None, raw=raw)
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        return ToolCall(name="", arguments=None, raw=raw)
    given = data.get("arguments", data.get("parameters", {}))
    arguments = _object(given)
    written = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    return ToolCall(name=data["name"], arguments=arguments, raw=written)


def schema_call(value: Any, body: str) -> Iterator[ToolCall]:
    """Read what a tokenizer's response template made of one block, which may hold several calls."""
    for item in value if isinstance(value, list) else [value]:
        function = item.get("function", item) if isinstance(item, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            yield ToolCall(name="", arguments=None, raw=body.strip())
            continue
        given = function.get("arguments", {})
        written = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        call_id = item.get("id")
        yield ToolCall(
            name=function["name"],
            arguments=_object(given),
            id=call_id if isinstance(call_id, str) else "",
            raw=written,
        )


def _object(given: Any) -> dict[str, Any] | None:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return None
    return given if isinstance(given, dict) else None


def _name_in(raw: str) -> str:
    """Return the tool's name from a call whose JSON is broken later on, else nothing."""
    _, found, rest = raw.partition('"name"')
    quoted = rest.partition(":")[2].lstrip()
    if not found or not quoted.startswith('"'):
        return ""
    try:
        name, _ = json.JSONDecoder().raw_decode(quoted)
    except ValueError:
        return ""
    return name if isinstance(name, str) else ""
