"""A rule-based model that can do what the standard suites ask: tools, schemas, JSON, talk."""

from __future__ import annotations

import json
import re
from typing import Any

from cascadellm.answer import ToolCall
from cascadellm.testing import FakeModel

__all__ = ["rule_model"]


class RuleModel(FakeModel):
    """Calls the first tool with arguments that satisfy its schema, else talks."""

    def _answer(self, messages: Any, turn: int) -> Any:
        tools = self.calls[turn][1].get("tools") or []
        return self._complete(_reply(messages, tools), messages)


def rule_model(name: str, logprob: float = -0.1) -> RuleModel:
    """Return a model of this name; `logprob` sets how sure it is."""
    return RuleModel(name=name, logprob=logprob)


def _reply(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> Any:
    last = messages[-1]
    if not tools and "as a JSON with" in str(last["content"]):
        return json.dumps(dict.fromkeys(re.findall(r"'(\w+)'", str(last["content"])), "so"))
    if last["role"] == "tool" or not tools:
        return f"I am a model and this is my answer to: {str(last['content'])[:80]}"
    function = tools[0]["function"]
    arguments = _example(function["parameters"], str(last["content"]))
    return ToolCall(function["name"], arguments, raw=json.dumps(arguments))


def _example(schema: dict[str, Any], text: str) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return _example(schema["anyOf"][0], text)
    kind = schema.get("type")
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: _example(inner, text) for name, inner in properties.items()}
    if kind == "array":
        return [_example(schema.get("items", {}), text)]
    numbers = [int(word) for word in text.replace("?", " ").split() if word.isdigit()]
    return {"integer": (numbers or [3])[0], "number": 3.0, "boolean": True}.get(kind, text[:40])
