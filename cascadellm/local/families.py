"""How the models of a family write tool calls, told apart by their chat template.

- the tokenizer's own form: whatever its `response_template` declares
- Mistral, where the template holds `[TOOL_CALLS]`: `[TOOL_CALLS][{"name": ..., "arguments": ...}]`
  or `[TOOL_CALLS]name[ARGS]{...}`
- Llama 3, where it holds `<|python_tag|>` or `ipython`: `{"name": ..., "parameters": {...}}` as the
  whole answer
- Hermes and Qwen, otherwise: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from cascadellm.answer import ToolCall
from cascadellm.errors import ConfigurationError
from cascadellm.local.sections import (
    TAGS,
    Chunk,
    Sections,
    TagSections,
    TemplateSections,
    open_suffix,
)
from cascadellm.local.toolcalls import hermes_call, schema_call

__all__ = [
    "VISIBLE",
    "Family",
    "LlamaSections",
    "MistralSections",
    "family_of",
    "sections_for",
]

_CALLS, _ARGS, _ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_PYTHON = "<|python_tag|>"

Family = Literal["hermes", "llama", "mistral-list", "mistral", "mistral-ids"]
"""How calls are written; `mistral-list` is the JSON list, the other two have `[ARGS]`."""

VISIBLE = (*TAGS, _CALLS, _ARGS, _ID, _PYTHON)
"""Tags that must stay in the text although tokenizers call them special."""


def sections_for(
    template: str, declared: Any, prompt: str, tools: Sequence[Mapping[str, Any]], *, thinking: bool
) -> Sections:
    """Return what splits the answers of a model.

    Args:
        template: Its chat template.
        declared: Its tokenizer's `response_template`, or None.
        prompt: The rendered prompt.
        tools: Tools of the request; without any, nothing is read as a call.
        thinking: Whether the prompt ends inside a reasoning block.
    """
    if declared is not None:
        return TemplateSections(declared, prompt, tools)
    family = family_of(template) if tools else "hermes"
    if family == "llama":
        return LlamaSections(tools)
    if family != "hermes":
        return MistralSections()
    return TagSections(tools=bool(tools), thinking=thinking)


def family_of(template: str, declared: Any = None) -> Family:
    """Return how a model writes tool calls.

    Raises:
        ConfigurationError: Its tokenizer declares a form that is none of these.
    """
    if declared is not None:
        fields = str(declared)
        if "<tool_call>" in fields and "'json'" in fields:
            return "hermes"
        raise ConfigurationError(
            "constrain_tools knows how Hermes, Qwen, Llama 3 and Mistral models write tool calls, "
            "but this tokenizer declares another form; ask without constrain_tools"
        )
    if _CALLS in template:
        if _ARGS not in template:
            return "mistral-list"
        return "mistral-ids" if _ID in template else "mistral"
    return "llama" if _PYTHON in template or "ipython" in template else "hermes"


class MistralSections:
    """Reads `[TOOL_CALLS]`; everything after it is calls, up to the end."""

    def __init__(self) -> None:
        self._held = ""
        self._body: str | None = None
        self.calls: list[ToolCall] = []

    def feed(self, text: str) -> list[Chunk]:
        """Take new characters; return those whose part is now certain."""
        if self._body is not None:
            self._body += text
            return [("arguments", text)] if text else []
        text = self._held + text
        before, tag, after = text.partition(_CALLS)
        if tag:
            self._held, self._body = "", after
            chunks: list[Chunk] = [("answer", before), ("other", tag), ("arguments", after)]
        else:
            cut = len(text) - open_suffix(text, [_CALLS])
            self._held = text[cut:]
            chunks = [("answer", text[:cut])]
        return [chunk for chunk in chunks if chunk[1]]

    def finish(self) -> list[Chunk]:
        """Return the rest and read the calls."""
        if self._body is None:
            return [("answer", self._held)] if self._held else []
        rest = self._body
        while rest:
            rest = self._take(rest)
        return []

    def _take(self, written: str) -> str:
        """Read what one `[TOOL_CALLS]` announced; return what follows the next one."""
        head, tag, tail = written.partition(_ARGS)
        listed = not tag or _CALLS in head or head.lstrip().startswith(("[", "{"))
        if listed:
            head, tail = "", written
        name, _, call_id = head.partition(_ID)
        try:
            value, end = json.JSONDecoder().raw_decode(tail.lstrip())
        except ValueError:
            raw, _, rest = tail.partition(_CALLS)
            self.calls.append(ToolCall(name.strip(), None, id=call_id.strip(), raw=raw.strip()))
            return rest
        raw, rest = tail.lstrip()[:end], tail.lstrip()[end:].lstrip()
        if not rest.startswith(_CALLS) and rest:
            # more text where a call should end: the whole is no call that anyone can run
            value, raw = None, tail.partition(_CALLS)[0].strip()
        if listed and value is not None:
            self.calls.extend(schema_call(value, raw))
        else:
            found = value if isinstance(value, dict) else None
            self.calls.append(ToolCall(name.strip(), found, id=call_id.strip(), raw=raw))
        return rest.partition(_CALLS)[2]


class LlamaSections:
    """Reads an answer that is nothing but a call; anything else is text.

    A text that starts like JSON is held back until its end, because only then it is known
    whether it calls one of the tools.

    Args:
        tools: The tools that may be called.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        self._names = {tool.get("function", tool).get("name") for tool in tools}
        self._held = ""
        self._text = False
        self.calls: list[ToolCall] = []

    def feed(self, text: str) -> list[Chunk]:
        """Take new characters; return those whose part is now certain."""
        if self._text:
            return [("answer", text)] if text else []
        self._held += text
        start = self._held.lstrip()
        may_call = not start or start.startswith("{") or _PYTHON.startswith(start[: len(_PYTHON)])
        if may_call:
            return []
        held, self._held, self._text = self._held, "", True
        return [("answer", held)]

    def finish(self) -> list[Chunk]:
        """Return the rest: a call of a known tool, a call marked as such, or text."""
        held, self._held = self._held, ""
        if not held:
            return []
        lead, tag, body = "", "", held
        if held.lstrip().startswith(_PYTHON):
            lead, tag, body = held.partition(_PYTHON)
        calls = [hermes_call(part) for part in _objects(body)]
        if tag or all(call.name in self._names for call in calls):
            self.calls.extend(calls)
            chunks: list[Chunk] = [("other", lead + tag), ("arguments", body)]
            return [chunk for chunk in chunks if chunk[1]]
        return [("answer", held)]


def _objects(body: str) -> list[str]:
    """Split `{...}; {...}` at the separators between objects, not inside them."""
    parts: list[str] = []
    rest = body.strip()
    decoder = json.JSONDecoder()
    while rest:
        try:
            end = decoder.raw_decode(rest)[1]
        except ValueError:
            return [*parts, rest]
        parts.append(rest[:end])
        rest = rest[end:].lstrip("; \n")
    return parts or [""]
