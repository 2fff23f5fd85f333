"""A cascade's spans: one per attempt, one per decision, on classes that are no LLMs.

    CascadeLLM.<method>        the LLM span that LlamaIndex opens; no tokens
      CascadeTier.attempt      what the tier did and what came of it
        <Tier>.chat            the tier's own LLM span, with its tokens
        DeferralPolicy.decide  why; calls of judges nest here

A tier that a hedge asks ahead has its attempt beside the one under way; where its answer is not
needed the attempt ends as `stopped`. Async spans are `aattempt` and `adecide`. Without a span
handler nothing is built.
"""

from __future__ import annotations

import inspect
import threading
import time
import uuid
from collections.abc import Sequence
from contextvars import Token
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.bridge.pydantic import BaseModel
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.dispatcher import Dispatcher, active_instrument_tags
from llama_index_instrumentation.event_handlers import NullEventHandler
from llama_index_instrumentation.events.span import SpanDropEvent
from llama_index_instrumentation.span import active_span_id
from llama_index_instrumentation.span_handlers import NullSpanHandler

from cascadellm import Cascade, events
from cascadellm.answer import Attempt, Decision, Trace
from cascadellm.harmless import harmless
from cascadellm.policies.base import Policy
from cascadellm.scrub import scrubbed_text
from llamaindex_cascade.attributes import OtelSpan, attempt_attributes, trace_attributes
from llamaindex_cascade.events import instrumentation_event
from llamaindex_cascade.tier import TierBook

__all__ = ["AttemptResult", "DecisionResult", "DeferralPolicy", "Spans", "announce", "listened"]

_dispatcher = get_dispatcher(__name__)


class AttemptResult(BaseModel):
    """Output of an attempt's span."""

    tier: int
    name: str
    action: str
    policy: str | None
    score_name: str | None
    score: float | str | None
    threshold: float | str | None
    code: str | None
    reason: str | None
    latency_s: float


class DecisionResult(BaseModel):
    """Output of a decision's span."""

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


@dataclass(frozen=True, slots=True)
class DeferralPolicy:
    """The policy of one boundary, as its decision's span shows it."""

    policy: Policy


@dataclass(slots=True, eq=False)
class _Open:
    id_: str
    bound: inspect.BoundArguments
    instance: Any
    token: Token[str | None]
    otel: OtelSpan | None
    begun: float = field(default_factory=time.perf_counter)


def _handlers(dispatcher: Dispatcher) -> tuple[bool, bool]:
    spans = events_ = False
    current: Dispatcher | None = dispatcher
    while current is not None:
        spans = spans or any(not isinstance(h, NullSpanHandler) for h in current.span_handlers)
        events_ = events_ or any(
            not isinstance(h, NullEventHandler) for h in current.event_handlers
        )
        current = current.parent if current.propagate else None
    return spans, events_


def listened() -> bool:
    """Return whether any event handler is attached."""
    return _handlers(_dispatcher)[1]


def announce(event: events.CascadeEvent, handlers: Sequence[events.Handler]) -> None:
    """Tell of an event that belongs to no call that runs."""
    events.dispatch(event, handlers)
    if listened():
        _dispatcher.event(instrumentation_event(event, None))


class Spans:
    """Opens and closes the spans of one call as the engine's events come by.

    Args:
        cascade: The cascade that the call runs.
        book: Finds the LLM of a tier.
        is_async: Whether span names take their async form.
    """

    def __init__(self, cascade: Cascade, book: TierBook, *, is_async: bool) -> None:
        self._cascade = cascade
        self._book = book
        self._prefix = "a" if is_async else ""
        self._spans, self._events = _handlers(_dispatcher)
        self._open: list[_Open] = []
        self._ahead: dict[int, _Open] = {}
        self._tiers: dict[str, int] = {}
        self._lock = threading.RLock()
        self._ended = False
        self.span_id = active_span_id.get()
        self._otel = OtelSpan.current(self.span_id) if self._spans else None

    def on_event(self, event: events.CascadeEvent) -> None:
        """Open or close a span, then dispatch the event."""
        if self._spans:
            with harmless("a cascade's spans are incomplete"):
                self._trace(event)
        if self._events:
            with harmless("event handlers miss an event of a cascade"):
                _dispatcher.event(instrumentation_event(event, self.span_id))

    def _trace(self, event: events.CascadeEvent) -> None:
        match event:
            case events.TierStarted():
                self._begin(event.tier, event.name)
            case events.TierAnswered():
                policy = self._policy(event.tier)
                if policy is None:
                    self._accepted(event)
                elif self._open:
                    draft = event.answer.text
                    self._enter(
                        DeferralPolicy(policy),
                        "decide",
                        tier=event.tier,
                        name=event.name,
                        policy=repr(policy),
                        draft=draft,
                    )
            case events.Decided():
                self._decided(event)
            case events.TierSkipped():
                self._begin(event.attempt.tier, event.attempt.name)
                self._exit(_attempt_result(event.attempt), event.attempt)
            case events.TierFailed():
                self._drop(event.error)
            case events.Accepted():
                self._finish(event.trace)
            case events.Failed():
                self._finish(event.trace)
                self.close(event.error)
            case events.Abandoned():
                self._finish(event.trace)
                self._left(event.trace)

    def _policy(self, tier: int) -> Policy | None:
        if len(self._cascade.units) == 1:
            return None
        for place, unit in enumerate(self._cascade.units):
            if unit.index == tier and place < len(self._cascade.boundaries):
                return self._cascade.boundaries[place]
        return None

    def _begin(self, index: int, name: str) -> None:
        with self._lock:
            span = self._ahead.pop(index, None)
            if span is None:
                span = self._attempt(index, name)
            else:
                span.token = active_span_id.set(span.id_)
            self._open.append(span)

    def _attempt(self, index: int, name: str) -> _Open:
        units = self._cascade.units
        tier = next((u.tier for u in units if u.index == index), self._cascade.tiers[index])
        span = self._opened(self._book.of(index, tier), "attempt", tier=index, name=name)
        self._tiers[span.id_] = index
        return span

    def asked(self, index: int, name: str) -> None:
        """Make a tier's attempt the parent of its call, which a hedge makes before its turn."""
        if not self._spans or self._tiers.get(active_span_id.get() or "", index) == index:
            return
        with harmless("a tier's call is missing below its attempt"), self._lock:
            # beside the attempt that is under way, not below it
            active_span_id.set(self.span_id)
            mine = next((id_ for id_, tier in self._tiers.items() if tier == index), None)
            if mine is None and not self._ended:
                self._ahead[index] = self._attempt(index, name)
            elif mine is not None:
                active_span_id.set(mine)

    def _called_off(self) -> None:
        """End the attempts that were asked ahead and not needed."""
        with self._lock:
            self._ended = True
            unneeded, self._ahead = self._ahead, {}
        for index, span in unneeded.items():
            attempt = Attempt(
                index,
                self._cascade.tiers[index].label,
                "stopped",
                code="hedge",
                reason="it was asked ahead and not needed",
                latency_s=time.perf_counter() - span.begun,
            )
            self._open.append(span)
            self._exit(_attempt_result(attempt), attempt)

    def _accepted(self, event: events.TierAnswered) -> None:
        if self._open:
            attempt = Attempt(
                event.tier,
                event.name,
                "accept",
                code="last",
                reason="the last tier's answer is accepted",
                latency_s=event.latency_s,
            )
            self._exit(_attempt_result(attempt), attempt)

    def live(self, index: int, name: str, first_token_s: float) -> None:
        """End the attempt's span when the last tier's stream begins to flow.

        An open span would be closed by the tier's stream in some tracers, and take the
        cascade's own span with it.
        """
        if not self._open:
            return
        with harmless("an attempt's span is left open"):
            attempt = Attempt(
                index,
                name,
                "accept",
                code="last",
                reason="the last tier's answer is streamed as it is written",
                latency_s=first_token_s,
            )
            self._exit(_attempt_result(attempt), attempt)

    def _decided(self, event: events.Decided) -> None:
        if not self._open:
            return
        decision = event.decision
        data = decision.to_dict()
        self._exit(DecisionResult(tier=event.tier, name=event.name, **data), None)
        attempt = _judged(event.tier, event.name, decision)
        self._exit(_attempt_result(attempt), attempt)

    def _finish(self, trace: Trace) -> None:
        self._called_off()
        if self._otel is not None:
            with harmless("a cascade's span lacks its attributes"):
                self._otel.set(trace_attributes(trace))

    def _left(self, trace: Trace) -> None:
        """End the attempt that a cancelled call left open, with what the record says of it."""
        left = trace.attempts[-1] if trace.attempts else None
        while self._open and left is not None:
            self._exit(_attempt_result(left), left)

    def _enter(self, instance: Any, method: str, **inputs: Any) -> None:
        self._open.append(self._opened(instance, method, **inputs))

    def _opened(self, instance: Any, method: str, **inputs: Any) -> _Open:
        id_ = f"{type(instance).__name__}.{self._prefix}{method}-{uuid.uuid4()}"
        kind = inspect.Parameter.KEYWORD_ONLY
        signature = inspect.Signature([inspect.Parameter(name, kind) for name in inputs])
        bound = signature.bind(**inputs)
        parent = active_span_id.get()
        token = active_span_id.set(id_)
        _dispatcher.span_enter(
            id_=id_,
            bound_args=bound,
            instance=instance,
            parent_id=parent,
            tags=active_instrument_tags.get(),
        )
        return _Open(id_, bound, instance, token, OtelSpan.current(id_))

    def _exit(self, result: BaseModel, attempt: Attempt | None) -> None:
        span = self._open.pop()
        if span.otel is not None and attempt is not None:
            with harmless("an attempt's span lacks its attributes"):
                span.otel.set(attempt_attributes(attempt))
        _dispatcher.span_exit(
            id_=span.id_, bound_args=span.bound, instance=span.instance, result=result
        )
        _reset(span.token)

    def _drop(self, error: Exception) -> None:
        if not self._open:
            return
        span = self._open.pop()
        with harmless("event handlers miss a failure of a cascade"):
            _dispatcher.event(SpanDropEvent(span_id=span.id_, err_str=scrubbed_text(str(error))))
        _dispatcher.span_drop(
            id_=span.id_, bound_args=span.bound, instance=span.instance, err=error
        )
        _reset(span.token)

    def close(self, error: BaseException | None) -> None:
        """Drop what an error or a cancellation left open."""
        with harmless("the span of an unneeded attempt is left open"):
            self._called_off()
        while self._open:
            self._drop(error if isinstance(error, Exception) else RuntimeError(repr(error)))


def _reset(token: Token[str | None]) -> None:
    try:
        active_span_id.reset(token)
    except ValueError:
        # a cancelled call may be cleaned up in another context, which ends with it
        return


def _judged(tier: int, name: str, decision: Decision) -> Attempt:
    return Attempt(
        tier,
        name,
        "escalate" if decision.defer else "accept",
        policy=decision.policy,
        score_name=decision.score_name,
        score=decision.score,
        threshold=decision.threshold,
        code=decision.code,
        reason=decision.reason,
        latency_s=decision.latency_s,
    )


def _attempt_result(attempt: Attempt) -> AttemptResult:
    data = attempt.to_dict()
    return AttemptResult(**{name: data[name] for name in AttemptResult.model_fields})
