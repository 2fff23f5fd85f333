"""A conversation as one tier's provider accepts it, whoever wrote the turns before.

A provider's own messages pass untouched. Of other providers' answers it gets the text and the
tool calls: reasoning blocks are signed or numbered by the one that made them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.messages.tool import tool_call

__all__ = ["own_arguments", "readable"]

_FAMILY = {"azure": "openai", "azure_openai": "openai"}
# block types that one provider alone writes, for messages that do not name their provider
_SIGNS = {
    "redacted_thinking": "anthropic",
    "thinking": "anthropic",
    "tool_use": "anthropic",
    "function_call": "openai",
}
# call arguments that one provider alone understands; middleware sends them to every tier
_PRIVATE = {
    "anthropic": frozenset({"betas", "cache_control", "container", "mcp_servers"}),
    "openai": frozenset(
        {
            "previous_response_id",
            "prompt_cache_key",
            "prompt_cache_retention",
            "store",
            "truncation",
            "verbosity",
        }
    ),
}
_HOSTED = frozenset({"include", "reasoning", "reasoning_effort", "service_tier", "thinking"})
_NO_CACHE_MARKS = ("groq", "mistralai", "openai")
_LONGEST_ID = 40
_PLAIN_ID = re.compile(r"[a-zA-Z0-9_-]+")


def own_arguments(model: Any, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return call arguments without those that only another provider understands."""
    private = _HOSTED.union(*_PRIVATE.values())
    if not private & arguments.keys():
        return arguments
    reader = provider_of(model)
    if reader is None:
        return arguments
    foreign = frozenset[str]().union(*(n for owner, n in _PRIVATE.items() if owner != reader))
    foreign |= _HOSTED if reader == "local" else frozenset()
    return {key: value for key, value in arguments.items() if key not in foreign}


def provider_of(model: Any) -> str | None:
    """Return the provider that a chat model says it is, None when it does not say."""
    describe = getattr(model, "_get_ls_params", None)
    if describe is None or not _knows_provider(model):
        return None
    try:
        name: str | None = describe().get("ls_provider")
    except Exception:
        # a third party's method; without it the messages pass as they are
        return None
    return None if name is None else _FAMILY.get(name, name)


def _knows_provider(model: Any) -> bool:
    """Return whether the class itself names its provider; LangChain's default is a guess."""
    owner = next(cls for cls in type(model).__mro__ if "_get_ls_params" in vars(cls))
    return owner.__module__.partition(".")[0] != "langchain_core"


def readable(messages: Sequence[BaseMessage], model: Any) -> Sequence[BaseMessage]:
    """Return messages that a tier's chat model accepts; the very same where nothing is foreign.

    Args:
        messages: The conversation.
        model: The tier's chat model.
    """
    if all(isinstance(message.content, str) and message.type == "human" for message in messages):
        return messages
    reader = provider_of(model)
    if reader is None or reader == "local":
        # local models read chat dicts, which are made for them
        return messages
    answered = {m.tool_call_id for m in messages if isinstance(m, ToolMessage)}
    view = _View(reader, _unthinkable(messages, model, reader), answered)
    found = [new for message in messages if (new := view.of(message)) is not None]
    same = len(found) == len(messages) and all(
        new is old for new, old in zip(found, messages, strict=True)
    )
    return messages if same else found


@dataclass(frozen=True, slots=True)
class _View:
    """How one provider sees a conversation.

    Attributes:
        reader: The provider.
        told: Identifiers of tool calls that it is told of as text.
        answered: Identifiers of tool calls that have a result.
    """

    reader: str
    told: frozenset[str]
    answered: set[str]

    def of(self, message: BaseMessage) -> BaseMessage | None:
        """Return a message as the provider sees it, None where nothing is left of it."""
        if isinstance(message, AIMessage):
            return self._answer(message)
        if isinstance(message, ToolMessage):
            return self._result(message)
        return self._uncached(message)

    def _answer(self, message: AIMessage) -> AIMessage | None:
        writer = _writer(message)
        if writer is None or writer == self.reader:
            return _with_ids(message)
        calls = [
            tool_call(name=c["name"], args=c["args"], id=_plain_id(c["id"]))
            for c in (*message.tool_calls, *self._broken(message))
            if c["id"] not in self.told
        ]
        text = message.content if isinstance(message.content, str) else str(message.text)
        told = [c for c in message.tool_calls if c["id"] in self.told]
        lines = [f"Called tool {c['name']} with {c['args']}" for c in told]
        text = "\n".join([text, *lines] if text else lines)
        if not text and not calls:
            return None
        return AIMessage(content=text, tool_calls=calls, name=message.name)

    def _broken(self, message: AIMessage) -> list[Any]:
        """Return malformed calls that were answered all the same, as calls."""
        return [
            {"name": c["name"] or "", "args": {"arguments": c["args"] or ""}, "id": c["id"]}
            for c in message.invalid_tool_calls
            if c["id"] in self.answered
        ]

    def _result(self, message: ToolMessage) -> BaseMessage:
        if message.tool_call_id in self.told:
            return HumanMessage(f"Result of the tool: {message.text}")
        plain = _plain_id(message.tool_call_id)
        changed = self._uncached(message)
        if plain == message.tool_call_id:
            return changed
        return changed.model_copy(update={"tool_call_id": plain})

    def _uncached(self, message: BaseMessage) -> BaseMessage:
        """Drop Anthropic's cache marks from blocks that another provider reads."""
        content = message.content
        if isinstance(content, str) or self.reader not in _NO_CACHE_MARKS:
            return message
        if not any(isinstance(b, dict) and "cache_control" in b for b in content):
            return message
        bare = [
            {k: v for k, v in b.items() if k != "cache_control"} if isinstance(b, dict) else b
            for b in content
        ]
        return message.model_copy(update={"content": bare})


def _writer(message: AIMessage) -> str | None:
    named = message.response_metadata.get("model_provider")
    if isinstance(named, str):
        return _FAMILY.get(named, named)
    if isinstance(message.content, str):
        return None
    types = [block.get("type") for block in message.content if isinstance(block, dict)]
    return next((_SIGNS[kind] for kind in types if kind in _SIGNS), None)


def _with_ids(message: AIMessage) -> AIMessage:
    """Return a message whose calls have identifiers that every provider takes."""
    if all(_plain_id(call["id"]) == call["id"] for call in message.tool_calls):
        return message
    calls = [{**call, "id": _plain_id(call["id"])} for call in message.tool_calls]
    return message.model_copy(update={"tool_calls": calls})


def _plain_id(call_id: str | None) -> str | None:
    """Return an identifier of at most 40 letters, digits, `_` and `-`."""
    if not call_id or (len(call_id) <= _LONGEST_ID and _PLAIN_ID.fullmatch(call_id)):
        return call_id
    return f"call_{hashlib.sha256(call_id.encode()).hexdigest()[:24]}"


def _unthinkable(messages: Sequence[BaseMessage], model: Any, reader: str) -> frozenset[str]:
    """Return the calls of this turn that a thinking Claude cannot be shown as calls.

    With thinking on, Anthropic wants its own signed thought before the calls of a turn that is
    not over.
    """
    thinking = getattr(model, "thinking", None)
    if reader != "anthropic" or not isinstance(thinking, Mapping):
        return frozenset()
    if thinking.get("type") in (None, "disabled"):
        return frozenset()
    told: set[str] = set()
    for message in reversed(messages):
        if isinstance(message, HumanMessage):
            break
        if isinstance(message, AIMessage) and _writer(message) not in (None, reader):
            told.update(call["id"] for call in message.tool_calls if call["id"])
    return frozenset(told)
