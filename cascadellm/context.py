"""What the caller tells policies beside the prompt: retrieved passages, user, thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field, replace
from functools import wraps
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

from cascadellm.answer import Request

__all__ = ["CallContext", "call_context", "in_this_context", "text_of_document", "with_context"]

Given = ParamSpec("Given")
T = TypeVar("T")


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


def in_this_context(function: Callable[Given, T]) -> Callable[Given, T]:
    """Return the function, to be run by threads of your own as if it were called here.

    A raw thread and an executor's begin without what stands around them: recorders, traces,
    `call_context`. This hands it over, to as many threads at once as you like:

        executor.map(in_this_context(llm.invoke), questions)

    Tasks, `asyncio.to_thread` and the frameworks' own threads need no help.
    """
    here = copy_context()

    @wraps(function)
    def inside(*args: Given.args, **kwargs: Given.kwargs) -> T:
        # a context can be entered once at a time
        return here.copy().run(function, *args, **kwargs)

    return inside


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
