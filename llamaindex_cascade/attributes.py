"""The decision as OpenTelemetry attributes, on spans that mirror the cascade's own.

Names are those of the LangChain adapter's run metadata, so that one filter finds both.
opentelemetry is never imported here: without it loaded there is no span to write to.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from cascadellm.answer import Attempt, Trace
from cascadellm.harmless import harmless

__all__ = ["OtelSpan", "attempt_attributes", "record_values", "trace_attributes"]

_LANGSMITH = "langsmith.metadata."
_LANGFUSE = "langfuse.observation.metadata."
_TAGS = "langsmith.span.tags"
_LONGEST = 250
_OF_ATTEMPT = ("tier", "name", "action", "score", "threshold", "policy")


class OtelSpan:
    """The OpenTelemetry span that mirrors one LlamaIndex span."""

    __slots__ = ("_span",)

    def __init__(self, span: Any) -> None:
        self._span = span

    @classmethod
    def current(cls, span_id: str | None) -> OtelSpan | None:
        """Return the current OpenTelemetry span if it mirrors the LlamaIndex span `span_id`.

        Without a LlamaIndex instrumentor the current span is the user's own, which must not
        be written to; mirrors carry the LlamaIndex span's name.
        """
        trace = sys.modules.get("opentelemetry.trace")
        if trace is None or span_id is None:
            return None
        with harmless("a span could not be found; it lacks the cascade's attributes"):
            span = trace.get_current_span()
            # instrumentors attach a stand-in that points elsewhere once the span has returned
            span = getattr(span, "__wrapped__", span)
            named = getattr(span, "name", None) == span_id.partition("-")[0]
            return cls(span) if named and span.is_recording() else None
        return None

    def set(self, attributes: Mapping[str, Any]) -> None:
        """Write attributes while the span records."""
        if self._span.is_recording():
            self._span.set_attributes(dict(attributes))


def _named(values: Mapping[str, Any], tags: list[str]) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for name, value in values.items():
        if value is None:
            continue
        attributes[f"cascade.{name}"] = value
        attributes[f"{_LANGSMITH}cascade_{name}"] = value
        attributes[f"{_LANGFUSE}cascade_{name}"] = value
    attributes[_TAGS] = ",".join(tags)
    return attributes


def record_values(trace: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a filter asks of a call's record, without the values that are unknown."""
    attempts = trace["attempts"]
    scored: Mapping[str, Any] = next((a for a in reversed(attempts) if a["policy"] is not None), {})
    values = {
        "answered_by": trace["answered_by"],
        "tier": trace["tier"],
        "escalated": trace["escalated"],
        "n_calls": sum(attempt["action"] != "skip" for attempt in attempts),
        "score": scored.get("score"),
        "threshold": scored.get("threshold"),
        "policy": scored.get("policy"),
        "reason": (scored.get("reason") or "")[:_LONGEST] or None,
        "cost_usd": trace["cost_usd"],
    }
    return {name: value for name, value in values.items() if value is not None}


def trace_attributes(trace: Trace) -> dict[str, Any]:
    """Return the attributes of the cascade's own span."""
    tags = [] if trace.answered_by is None else [f"cascade:answered_by:{trace.answered_by}"]
    if trace.escalated:
        tags.append("cascade:escalated")
    if trace.abandoned:
        tags.append("cascade:abandoned")
    return _named(record_values(trace.to_dict()), tags)


def attempt_attributes(attempt: Attempt) -> dict[str, Any]:
    """Return the attributes of an attempt's span."""
    data = attempt.to_dict()
    values = {name: data[name] for name in _OF_ATTEMPT}
    values["reason"] = (data["reason"] or "")[:_LONGEST] or None
    return _named(values, [f"cascade:tier:{attempt.tier}"])
