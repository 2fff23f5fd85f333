"""OpenInference learns the cascade's events; without this it logs a warning for each.

Decisions are readable from spans alone. Registered, they also become span events, and the
record joins the span's `metadata`, where Phoenix filters. The registry is private to
OpenInference, so whatever is not as expected leaves everything as it was.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.events.llm import LLMStructuredPredictInProgressEvent

from cascadellm.errors import MissingDependencyError
from llamaindex_cascade import events
from llamaindex_cascade.attributes import record_values

__all__ = ["instrument_openinference"]

_log = logging.getLogger("llamaindex_cascade")

_NAMES: dict[Any, str] = {
    events.CascadeTierStartedEvent: "cascade_tier_started",
    events.CascadeTierAnsweredEvent: "cascade_tier_answered",
    events.CascadeTierSkippedEvent: "cascade_tier_skipped",
    events.CascadeTierFailedEvent: "cascade_tier_failed",
    events.CascadeDecisionEvent: "cascade_decision",
    events.CascadeEndEvent: "cascade_end",
    events.CascadeFailedEvent: "cascade_failed",
    events.CascadeAbandonedEvent: "cascade_abandoned",
    events.CascadeShadowEvent: "cascade_shadow",
    events.CascadeDriftEvent: "cascade_drift",
}
_SHOWN = ("tier", "name", "defer", "policy", "score_name", "score", "threshold", "code", "reason")


def instrument_openinference() -> bool:
    """Teach OpenInference's LlamaIndex instrumentor the cascade's events.

    Safe to call again. Call it besides `LlamaIndexInstrumentor().instrument(...)`, before or
    after; `to_phoenix`, `to_otlp` and `to_langsmith` call it themselves.

    Returns: Whether it was possible with the installed version.

    Raises:
        MissingDependencyError: OpenInference is not installed.
    """
    try:
        from openinference.instrumentation.llama_index import _handler
    except ImportError as error:
        package = "openinference-instrumentation-llama-index"
        raise MissingDependencyError.for_extra(package, "trace") from error
    try:
        register = _handler._Span.__dict__["_process_event"].register  # noqa: SLF001
        for kind in _NAMES:
            register(kind, _process)
        register(LLMStructuredPredictInProgressEvent, _pass)
        register(ExceptionEvent, _process_exception)
    except Exception:
        _log.warning(
            "this version of OpenInference does not take the cascade's events; decisions are "
            "in the spans, and it will log a warning for each event",
            exc_info=True,
        )
        return False
    return True


def _pass(span: Any, event: Any) -> None:
    """Take a growing object in silence; the finished one is the span's output."""


def _process(span: Any, event: Any) -> None:
    try:
        attributes = {name: getattr(event, name, None) for name in _SHOWN}
        shown = {f"cascade.{k}": v for k, v in attributes.items() if v is not None}
        span._otel_span.add_event(_NAMES[type(event)], attributes=shown)  # noqa: SLF001
        if hasattr(event, "trace"):
            span["metadata"] = json.dumps({**_metadata(span), **_record(event.trace)})
    except Exception:
        # a tracer's private parts moved: the answer matters more than its span
        _log.debug("a cascade event could not be shown", exc_info=True)


def _process_exception(span: Any, event: Any) -> None:
    """End a tier's stream that was closed as what it is: no failure."""
    try:
        left = isinstance(event.exception, (GeneratorExit, asyncio.CancelledError))
        if left and span.waiting_for_streaming and _at_a_tier(span):
            span._otel_span.add_event("cascade_stream_closed")  # noqa: SLF001
            span.end()
    except Exception:
        _log.debug("a closed stream could not be shown", exc_info=True)


def _at_a_tier(span: Any) -> bool:
    while span is not None:
        if span._otel_span.name.startswith("CascadeTier."):  # noqa: SLF001
            return True
        span = span._parent  # noqa: SLF001
    return False


def _record(trace: dict[str, Any]) -> dict[str, Any]:
    flat = {f"cascade_{name}": value for name, value in record_values(trace).items()}
    return {**flat, "cascade": trace}


def _metadata(span: Any) -> dict[str, Any]:
    """Return metadata that the user's own context put on the span."""
    given = (span._otel_span.attributes or {}).get("metadata")  # noqa: SLF001
    kept = json.loads(given) if isinstance(given, str) else {}
    return kept if isinstance(kept, dict) else {}
