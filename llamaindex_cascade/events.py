"""Instrumentation events of a cascade, and a handler with one method per event.

Every event carries the id of the cascade's own span. Add a handler to
`llama_index.core.instrumentation.get_dispatcher("llamaindex_cascade")`, or to the root.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent

from cascadellm import events as engine
from cascadellm.scrub import scrubbed_text

__all__ = [
    "CascadeAbandonedEvent",
    "CascadeDecisionEvent",
    "CascadeDriftEvent",
    "CascadeEndEvent",
    "CascadeEventHandler",
    "CascadeFailedEvent",
    "CascadeShadowEvent",
    "CascadeTierAnsweredEvent",
    "CascadeTierFailedEvent",
    "CascadeTierSkippedEvent",
    "CascadeTierStartedEvent",
    "instrumentation_event",
]


class _CascadeEvent(BaseEvent):
    @classmethod
    def class_name(cls) -> str:
        """Return the event's name."""
        return cls.__name__


class CascadeTierStartedEvent(_CascadeEvent):
    """A tier is about to be asked."""

    tier: int
    name: str


class CascadeTierAnsweredEvent(_CascadeEvent):
    """A tier answered; nothing is decided yet. Time in seconds."""

    tier: int
    name: str
    text: str
    latency_s: float


class CascadeTierSkippedEvent(_CascadeEvent):
    """A tier was passed over unasked; `attempt` is its record."""

    tier: int
    name: str
    attempt: dict[str, Any]


class CascadeTierFailedEvent(_CascadeEvent):
    """A tier raised or timed out; `attempt` is its record."""

    tier: int
    name: str
    attempt: dict[str, Any]


class CascadeDecisionEvent(_CascadeEvent):
    """A boundary's policy decided about a tier's answer."""

    tier: int
    name: str
    defer: bool
    policy: str | None
    score_name: str | None
    score: float | str | None
    threshold: float | str | None
    code: str | None
    reason: str | None
    latency_s: float


class CascadeEndEvent(_CascadeEvent):
    """The call ended with an answer; `trace` is its record as plain data."""

    trace: dict[str, Any]


class CascadeFailedEvent(_CascadeEvent):
    """The call ended without an answer."""

    trace: dict[str, Any]
    error: str


class CascadeAbandonedEvent(_CascadeEvent):
    """The caller left a stream half way, or was cancelled; `trace` says how far it got."""

    trace: dict[str, Any]


class CascadeShadowEvent(_CascadeEvent):
    """After its answer was given, an accepted draft was checked against the last tier.

    `loss` is None when the last tier failed; `call` is what it cost.
    """

    run_id: str
    tier: int
    name: str
    text: str | None
    loss: float | None
    call: dict[str, Any]


class CascadeDriftEvent(_CascadeEvent):
    """A calibrated promise no longer holds."""

    target_risk: float
    observed_risk: float
    recent_risk: float
    observations: int
    evidence: float
    reason: str


def instrumentation_event(event: engine.CascadeEvent, span_id: str | None) -> BaseEvent:
    """Return an engine event as the event that LlamaIndex dispatches."""
    match event:
        case engine.TierStarted():
            return CascadeTierStartedEvent(span_id=span_id, tier=event.tier, name=event.name)
        case engine.TierAnswered():
            return CascadeTierAnsweredEvent(
                span_id=span_id,
                tier=event.tier,
                name=event.name,
                text=event.answer.text,
                latency_s=event.latency_s,
            )
        case engine.Decided():
            decision = event.decision.to_dict()
            return CascadeDecisionEvent(
                span_id=span_id, tier=event.tier, name=event.name, **decision
            )
        case engine.TierSkipped() | engine.TierFailed():
            attempt = event.attempt
            skipped = isinstance(event, engine.TierSkipped)
            kind = CascadeTierSkippedEvent if skipped else CascadeTierFailedEvent
            return kind(
                span_id=span_id, tier=attempt.tier, name=attempt.name, attempt=attempt.to_dict()
            )
        case engine.Accepted():
            return CascadeEndEvent(span_id=span_id, trace=event.trace.to_dict())
        case engine.Abandoned():
            return CascadeAbandonedEvent(span_id=span_id, trace=event.trace.to_dict())
        case engine.Failed():
            trace = event.trace.to_dict()
            return CascadeFailedEvent(
                span_id=span_id, trace=trace, error=scrubbed_text(repr(event.error))
            )
        case engine.ShadowAnswered():
            return CascadeShadowEvent(span_id=span_id, **asdict(event))
        case engine.DriftDetected():
            return CascadeDriftEvent(span_id=span_id, **asdict(event))
    raise TypeError(f"unknown event {event!r}")


class CascadeEventHandler(BaseEventHandler):
    """Override the methods for the events of interest, then add an instance to a dispatcher."""

    @classmethod
    def class_name(cls) -> str:
        """Return the handler's name."""
        return cls.__name__

    def handle(self, event: BaseEvent, **kwargs: Any) -> Any:
        """Call the method of the event's type; other events pass by."""
        match event:
            case CascadeTierStartedEvent():
                self.on_tier_started(event)
            case CascadeTierAnsweredEvent():
                self.on_tier_answered(event)
            case CascadeTierSkippedEvent():
                self.on_tier_skipped(event)
            case CascadeTierFailedEvent():
                self.on_tier_failed(event)
            case CascadeDecisionEvent():
                self.on_decision(event)
            case CascadeEndEvent():
                self.on_accepted(event)
            case CascadeFailedEvent():
                self.on_failed(event)
            case CascadeAbandonedEvent():
                self.on_abandoned(event)
            case CascadeShadowEvent():
                self.on_shadow_answered(event)
            case CascadeDriftEvent():
                self.on_drift_detected(event)

    def on_tier_started(self, event: CascadeTierStartedEvent) -> None:
        """Handle a tier that is about to be asked."""

    def on_tier_answered(self, event: CascadeTierAnsweredEvent) -> None:
        """Handle a tier's answer."""

    def on_tier_skipped(self, event: CascadeTierSkippedEvent) -> None:
        """Handle a tier passed over."""

    def on_tier_failed(self, event: CascadeTierFailedEvent) -> None:
        """Handle a tier that raised."""

    def on_decision(self, event: CascadeDecisionEvent) -> None:
        """Handle a decision."""

    def on_accepted(self, event: CascadeEndEvent) -> None:
        """Handle the end of a call that has an answer."""

    def on_failed(self, event: CascadeFailedEvent) -> None:
        """Handle the end of a call without an answer."""

    def on_abandoned(self, event: CascadeAbandonedEvent) -> None:
        """Handle a caller that left before the end."""

    def on_shadow_answered(self, event: CascadeShadowEvent) -> None:
        """Handle the check of an accepted draft, after its answer was given."""

    def on_drift_detected(self, event: CascadeDriftEvent) -> None:
        """Handle a calibrated promise that no longer holds."""
