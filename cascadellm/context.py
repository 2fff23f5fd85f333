"""What the caller tells policies beside the prompt: retrieved passages, user, thread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from cascadellm.answer import Request

__all__ = ["CallContext", "call_context", "text_of_document", "with_context"]


@dataclass(frozen=True, slots=True)
class CallContext:
    """What is set around a call.

    Attributes:
        documents: Retrieved passages as text.
        metadata: The caller's own keys (`user`, `thread`, ...).
    """

    documents: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


_AROUND: ContextVar[CallContext] = ContextVar("cascadellm_context", default=CallContext())


@contextmanager
def call_context(
    *, documents: Sequence[Any] = (), metadata: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Hand documents and metadata to the policies of every cascade call inside.

    The prompt is not changed. Works in both frameworks, in tasks and in the frameworks' own
    threads; nested blocks add to each other.

    Args:
        documents: Passages: strings, LangChain documents (`page_content`) or LlamaIndex nodes
            (`get_content()`).
        metadata: Your own keys, e.g. `{"user": "u1"}` for budgets.
    """
    outer = _AROUND.get()
    texts = tuple(text_of_document(document) for document in documents)
    inner = CallContext(
        (*outer.documents, *texts), MappingProxyType({**outer.metadata, **(metadata or {})})
    )
    token = _AROUND.set(inner)
    try:
        yield
    finally:
        _AROUND.reset(token)


def with_context(request: Request) -> Request:
    """Return the request with what is set around it; the cascade does this once per call."""
    around = _AROUND.get()
    if not around.documents and not around.metadata:
        return request
    return replace(
        request,
        documents=(*request.documents, *around.documents),
        metadata={**around.metadata, **request.metadata},
    )


def text_of_document(document: Any) -> str:
    """Return the text of a passage: a string, a LangChain document or a LlamaIndex node."""
    if isinstance(document, str):
        return document
    content = getattr(document, "page_content", None)
    if isinstance(content, str):
        return content
    getter = getattr(document, "get_content", None)
    return str(getter()) if callable(getter) else str(document)
