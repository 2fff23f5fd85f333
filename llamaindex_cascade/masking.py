"""Credentials taken out of spans; imported only where OpenInference is installed.

OpenInference shows a call's arguments, headers among them, and OpenTelemetry the text and the
stack of an exception, in which an HTTP client may quote a header.
"""

from __future__ import annotations

import json
from typing import Any

from openinference.instrumentation import TraceConfig
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.trace import Status

from cascadellm.scrub import scrubbed, scrubbed_text

__all__ = ["Masked", "Scrubbing"]

_ARGUMENTS = frozenset({"input.value", "llm.invocation_parameters"})
_CONTENT = frozenset({"messages", "prompt"})


class Masked(TraceConfig):
    """OpenInference's settings; a call's arguments lose the values of names that hold secrets."""

    def mask(self, key: str, value: Any, **options: Any) -> Any:
        """Return the value that a span shows."""
        shown = super().mask(key, value, **options)
        if key in _ARGUMENTS and isinstance(shown, str) and shown.startswith("{"):
            return _without_secrets(shown)
        return shown


def _without_secrets(text: str) -> str:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        return text
    kept = {k: v if k in _CONTENT else scrubbed(v) for k, v in given.items()}
    return text if kept == given else json.dumps(kept, ensure_ascii=False)


class Scrubbing(SpanProcessor):
    """Hands spans on to another processor, exceptions without what looks like a credential.

    Args:
        inner: What exports the spans.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Tell the inner processor that a span begins."""
        self.inner.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        """Hand a finished span on."""
        self.inner.on_end(_told(span) if span.status.description or span.events else span)

    def shutdown(self) -> None:
        """Stop the inner processor."""
        self.inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Send what is waiting."""
        return bool(self.inner.force_flush(timeout_millis))


def _told(span: ReadableSpan) -> ReadableSpan:
    events = tuple(_event(event) for event in span.events)
    said = span.status.description
    description = None if said is None else scrubbed_text(said)
    if description == said and all(a is b for a, b in zip(events, span.events, strict=True)):
        return span
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=span.attributes,
        events=events,
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code, description),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _event(event: Event) -> Event:
    given = event.attributes or {}
    texts = {k: scrubbed_text(v) for k, v in given.items() if isinstance(v, str)}
    if event.name != "exception" or all(given[k] == text for k, text in texts.items()):
        return event
    return Event(event.name, {**given, **texts}, event.timestamp)
