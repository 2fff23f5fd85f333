"""CascadeCallbackHandler: the engine's typed events through LangChain's callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import BaseCallbackHandler

from cascadellm.events import (
    Abandoned,
    Accepted,
    CascadeEvent,
    Decided,
    DriftDetected,
    Failed,
    ShadowAnswered,
    TierAnswered,
    TierFailed,
    TierSkipped,
    TierStarted,
)
from langchain_cascade.muting import Muted

if TYPE_CHECKING:
    from langchain_cascade.tracing import Outer

__all__ = ["CascadeCallbackHandler", "listeners"]


class CascadeCallbackHandler(BaseCallbackHandler):
    """Receives what happens inside a cascade, typed; override the methods you need.

    Pass it like any callback handler, in the constructor or in a call's config; it is told
    in the thread of the call, and what it raises is logged and never breaks an answer.
    """

    def on_event(self, event: CascadeEvent) -> None:
        """Receive any event; the default calls the method of its type."""
        match event:
            case TierStarted():
                self.on_tier_started(event)
            case TierAnswered():
                self.on_tier_answered(event)
            case TierSkipped():
                self.on_tier_skipped(event)
            case TierFailed():
                self.on_tier_failed(event)
            case Decided():
                self.on_decided(event)
            case Accepted():
                self.on_accepted(event)
            case Failed():
                self.on_failed(event)
            case Abandoned():
                self.on_abandoned(event)
            case ShadowAnswered():
                self.on_shadow_answered(event)
            case DriftDetected():
                self.on_drift_detected(event)

    def on_tier_started(self, event: TierStarted) -> None:
        """Receive that a tier is about to be asked."""

    def on_tier_answered(self, event: TierAnswered) -> None:
        """Receive a tier's answer, before anything is decided."""

    def on_tier_skipped(self, event: TierSkipped) -> None:
        """Receive that a tier was passed over unasked."""

    def on_tier_failed(self, event: TierFailed) -> None:
        """Receive that a tier raised or timed out."""

    def on_decided(self, event: Decided) -> None:
        """Receive a policy's decision."""

    def on_accepted(self, event: Accepted) -> None:
        """Receive the accepted answer and the record of the call."""

    def on_failed(self, event: Failed) -> None:
        """Receive that the call ended without an answer."""

    def on_abandoned(self, event: Abandoned) -> None:
        """Receive that the caller left a stream half way, or was cancelled."""

    def on_shadow_answered(self, event: ShadowAnswered) -> None:
        """Receive that an accepted draft was checked, after its answer was given."""

    def on_drift_detected(self, event: DriftDetected) -> None:
        """Receive that a calibrated promise no longer holds."""


def listeners(outer: Outer | None) -> Sequence[Any]:
    """Return the handlers of a run that want typed events."""
    if outer is None:
        return ()
    seen = [h.handler if isinstance(h, Muted) else h for h in outer.handlers]
    return [handler for handler in seen if isinstance(handler, CascadeCallbackHandler)]
