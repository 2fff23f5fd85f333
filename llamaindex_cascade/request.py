"""From a LlamaIndex call to the engine's `Request`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage

from cascadellm.answer import Request
from llamaindex_cascade.convert import text_of
from llamaindex_cascade.tools import Asked, ToolSpec

__all__ = ["Prompted", "public", "request_of"]

_OPTIONS = ("tool_required", "tool_choice", "allow_parallel_tool_calls")


class Prompted(list[ChatMessage]):
    """Messages made from a prompt, with the parser that will read the answer."""

    def __init__(self, messages: Sequence[ChatMessage], output_parser: Any) -> None:
        super().__init__(messages)
        self.output_parser = output_parser

    @staticmethod
    def asked(messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> Asked:
        """Return a chat call; takes the tool arguments out of `kwargs`."""
        tools = kwargs.get("tools") or ()
        options: dict[str, Any] = {}
        specs: tuple[ToolSpec, ...] = ()
        # tools in a provider's own form came past us and stay call arguments
        if tools and all(isinstance(tool, ToolSpec) for tool in tools):
            specs = tuple(kwargs.pop("tools"))
        elif not tools:
            kwargs.pop("tools", None)
        if not tools or specs:
            options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
        parser = getattr(messages, "output_parser", None)
        return Asked(tuple(messages), tools=specs, options=options, output_parser=parser)


def request_of(asked: Asked, kwargs: dict[str, Any]) -> Request:
    """Return the engine's request; takes the cascade's own arguments out of `kwargs`."""
    documents = tuple(kwargs.pop("cascade_documents", ()) or ())
    metadata = dict(kwargs.pop("cascade_metadata", None) or {})
    given = asked.tools or kwargs.get("tools") or ()
    tools: tuple[Mapping[str, Any], ...] = tuple(t for t in given if isinstance(t, Mapping))
    parser = asked.output_parser
    return Request(
        native=asked,
        text_source=lambda: text_of(asked.messages),
        tools=tools,
        tool_required=bool(asked.options.get("tool_required")),
        parser=None if parser is None else parser.parse,
        documents=documents,
        metadata=metadata,
        kwargs=kwargs,
    )


def public(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return call arguments without the cascade's own, as events show them."""
    return {key: value for key, value in kwargs.items() if not key.startswith("cascade_")}
