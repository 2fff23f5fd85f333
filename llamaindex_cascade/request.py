"""From a LlamaIndex call to the engine's `Request`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import BasePromptTemplate

from cascadellm.answer import Request
from cascadellm.context import text_of_document
from llamaindex_cascade.convert import text_of
from llamaindex_cascade.tools import Asked, ToolSpec

__all__ = ["Prompted", "passages", "public", "request_of"]

_OPTIONS = ("tool_required", "tool_choice", "allow_parallel_tool_calls")


_CONTEXT = ("context_str", "context_msg", "existing_answer")
_BLANK_LINE = re.compile(r"\n\s*\n")


def passages(prompt: BasePromptTemplate, prompt_args: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the passages that a prompt's variables hold, as upstream's prompts name them.

    Upstream joins the retrieved nodes with blank lines. An answer that a refine step was given
    is a passage too: its own context supported it.
    """
    held = {**prompt.kwargs, **prompt_args}
    texts: list[Any] = []
    for name in _CONTEXT:
        value = held.get(name)
        texts += value if isinstance(value, (list, tuple)) else [value]
    parts = [part for text in texts if isinstance(text, str) for part in _BLANK_LINE.split(text)]
    return tuple(part.strip() for part in parts if part.strip())


class Prompted(list[ChatMessage]):
    """Messages made from a prompt, with what else the prompt says about the call.

    Args:
        messages: The messages.
        output_parser: Reads the answer; None without one.
        documents: Passages that the prompt holds.
    """

    def __init__(
        self,
        messages: Sequence[ChatMessage],
        output_parser: Any,
        documents: tuple[str, ...] = (),
    ) -> None:
        super().__init__(messages)
        self.output_parser = output_parser
        self.documents = documents

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
        documents = getattr(messages, "documents", ())
        return Asked(
            tuple(messages),
            tools=specs,
            options=options,
            output_parser=parser,
            documents=documents,
        )


def request_of(asked: Asked, kwargs: dict[str, Any]) -> Request:
    """Return the engine's request; takes the cascade's own arguments out of `kwargs`."""
    documents = (
        *asked.documents,
        *map(text_of_document, kwargs.pop("cascade_documents", ()) or ()),
    )
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
