"""What a call leaves in callbacks and traces: child runs, decision runs, events, marks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import Token
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackManager, CallbackManager
from langchain_core.language_models.base import LangSmithParams
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import _set_config_context, var_child_runnable_config
from langchain_core.tracers.langchain import LangChainTracer
from langsmith.run_helpers import _set_tracing_context

from cascadellm.answer import Decision
from cascadellm.events import Abandoned, Accepted, Decided, Failed, TierAnswered, TierFailed
from cascadellm.harmless import harmless
from cascadellm.policies import Policy
from cascadellm.tier import Tier
from langchain_cascade.engine import Engine
from langchain_cascade.guard import OuterTracer, for_tiers
from langchain_cascade.marks import Marks
from langchain_cascade.muting import hooked, muted

__all__ = ["DECISION", "Outer", "Tracing", "payload"]

DECISION = "cascade_decision"
"""Name of the decision run and of the custom event."""


_OF_A_TIER = ("cascade_tier", "cascade_name", "cascade_purpose")


@dataclass(slots=True, eq=False)
class Outer:
    """The cascade's own run, as its children need to see it.

    Attributes:
        run_id: Its id.
        handlers: Handlers that see the run itself.
        inheritable_handlers: Handlers that see the runs below it.
        tags: Tags for the runs below.
        metadata: Metadata for the runs below.
        hidden: Metadata names of the cascade that no run below may show.
        sides: (purpose, name) -> model whose calls beside the tiers' own have a cost of ours.
    """

    run_id: UUID | None
    handlers: list[Any] = field(default_factory=list)
    inheritable_handlers: list[Any] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()
    sides: dict[tuple[str, str], Tier] = field(default_factory=dict)

    @classmethod
    def of(cls, manager: Any, run_id: UUID | None, hidden: Iterable[str] = ()) -> Outer:
        """Read a callback manager or run manager."""
        return cls(
            run_id=run_id,
            handlers=list(manager.handlers),
            inheritable_handlers=list(manager.inheritable_handlers),
            tags=list(manager.inheritable_tags),
            metadata=dict(manager.inheritable_metadata),
            hidden=frozenset(hidden),
        )

    @property
    def watched(self) -> bool:
        """Whether any handler listens."""
        return bool(self.handlers or self.inheritable_handlers)

    def child_handlers(self, trace_logprobs: bool) -> list[Any]:
        """Return the handlers of the runs below: no draft tokens, no cascade parameters."""
        cleaned = [self._clean(handler) for handler in self.inheritable_handlers]
        return muted(for_tiers(handler, trace_logprobs, self.sides) for handler in cleaned)

    def tracers(self, trace_logprobs: bool) -> list[Any]:
        """Return LangSmith's tracers for a run that begins after the cascade's has ended."""
        found = self.child_handlers(trace_logprobs)
        return [handler for handler in found if isinstance(handler, LangChainTracer)]

    def end_open(self, run_id: UUID | None, error: BaseException) -> None:
        """End a run that LangChain left open."""
        for handler in self.handlers:
            if isinstance(handler, OuterTracer):
                with harmless("the cascade's run stays open in a trace"):
                    handler.end_open(run_id, error)

    def _clean(self, handler: Any) -> Any:
        if not self.hidden or not isinstance(handler, LangChainTracer):
            return handler
        with harmless("the runs below a cascade may show its parameters in a trace"):
            copy = handler.copy_with_metadata_defaults()
            if copy.tracing_metadata:
                kept = {k: v for k, v in copy.tracing_metadata.items() if k not in self.hidden}
                copy.tracing_metadata = kept
            return copy
        return handler

    def child_manager(self, asynchronous: bool, *, trace_logprobs: bool = True) -> Any:
        """Return a manager whose runs are children of the cascade's run."""
        cls = AsyncCallbackManager if asynchronous else CallbackManager
        manager: Any = cls(handlers=[], parent_run_id=self.run_id)
        manager.set_handlers(self.child_handlers(trace_logprobs))
        # a cascade that is itself a tier does not hand its own place down to its tiers
        mine = f"cascade:{self.metadata.get('cascade_purpose')}"
        places = ("cascade:tier:", mine)
        manager.add_tags([tag for tag in self.tags if not tag.startswith(places)])
        own = LangSmithParams.__annotations__
        manager.add_metadata(
            {k: v for k, v in self.metadata.items() if k not in own and k not in _OF_A_TIER}
        )
        return manager


class Tracing:
    """Opens and closes the decision runs of one call and marks the cascade's run.

    A decision run is open from a tier's answer to the decision, so that whatever the policy
    asks in between, with or without a config, nests below it.
    """

    def __init__(
        self, engine: Engine, outer: Outer, manager: Any, boundaries: Mapping[int, Policy]
    ) -> None:
        self.engine = engine
        self.outer = outer
        self.marks = Marks(engine, outer.handlers, outer.run_id)
        self._cost: float | None = None
        # configured once more where handlers from context variables are to see decisions too
        self.manager = type(manager).configure(manager) if hooked() else manager
        self.boundaries = boundaries
        self.decision: Any = None
        self._token: Token[Any] | None = None
        self._before: dict[str, Any] | None = None

    @property
    def parent(self) -> Any:
        """Manager for judges and resamples: below the open decision run, if any."""
        return self.manager if self.decision is None else self.decision.get_child()

    def on_event(self, event: Any) -> None:
        """Tell the sync handlers about an event of the engine."""
        if isinstance(event, TierAnswered) and event.tier in self.boundaries:
            inputs = _inputs(event, self.boundaries[event.tier])
            self.enter(self.manager.on_chain_start(None, inputs, name=DECISION))
        elif isinstance(event, Decided) and self.decision is not None:
            decision = self.leave()
            data = payload(event)
            decision.on_chain_end(data)
            self.manager.on_custom_event(DECISION, data, run_id=self.outer.run_id)
        elif isinstance(event, Failed) and self.decision is not None:
            self.leave().on_chain_error(event.error)
        with harmless("what became of a call could not be marked in a trace"):
            self._mark(event)

    async def aon_event(self, event: Any) -> None:
        """Tell the async handlers about an event of the engine."""
        if isinstance(event, TierAnswered) and event.tier in self.boundaries:
            inputs = _inputs(event, self.boundaries[event.tier])
            self.enter(await self.manager.on_chain_start(None, inputs, name=DECISION))
        elif isinstance(event, Decided) and self.decision is not None:
            decision = self.leave()
            data = payload(event)
            await decision.on_chain_end(data)
            await self.manager.on_custom_event(DECISION, data, run_id=self.outer.run_id)
        elif isinstance(event, Failed) and self.decision is not None:
            await self.leave().on_chain_error(event.error)
        with harmless("what became of a call could not be marked in a trace"):
            self._mark(event)

    def enter(self, decision: Any) -> None:
        """Make the decision run the parent of calls made without a config."""
        self.decision = decision
        with harmless("a policy's own calls may be missing below its decision run"):
            config = RunnableConfig(callbacks=decision.get_child(), tags=["nostream"])
            self._token, self._before = _set_config_context(config)

    def leave(self) -> Any:
        """Undo `enter` and return the decision run."""
        token, before, decision = self._token, self._before, self.decision
        self._token, self._before, self.decision = None, None, None
        with harmless("the context of a decision run could not be left"):
            if token is not None:
                var_child_runnable_config.reset(token)
            if before is not None:
                _set_tracing_context(before)
        return decision

    def close(self) -> None:
        """Leave what a cancelled call left open."""
        if self.decision is not None:
            self.leave()
        self.marks.release()

    def _mark(self, event: Any) -> None:
        if isinstance(event, TierAnswered):
            tier = self.engine.asked(event.tier, event.name)
            own = self.marks.prices(tier)
            self._cost = tier.cost(event.answer.usage, event.latency_s) if own else None
            if event.tier not in self.boundaries:
                self.marks.tier(event.tier, "accept", cost_usd=self._cost)
        elif isinstance(event, Decided):
            action = "escalate" if event.decision.defer else "accept"
            self.marks.tier(event.tier, action, decision=event.decision, cost_usd=self._cost)
        elif isinstance(event, TierFailed):
            self.marks.tier(event.attempt.tier, "error", error=event.attempt.error)
        elif isinstance(event, (Accepted, Failed)):
            self.marks.outer(event.trace)
        elif isinstance(event, Abandoned):
            left = event.trace.attempts[-1] if event.trace.attempts else None
            if left is not None and left.action == "stopped":
                own = self.marks.prices(self.engine.asked(left.tier, left.name))
                cost = left.cost_usd if own else None
                self.marks.tier(left.tier, "stopped", cost_usd=cost)
            self.marks.outer(event.trace)


def _inputs(event: TierAnswered, policy: Policy) -> dict[str, Any]:
    return {
        "tier": event.tier,
        "name": event.name,
        "draft": event.answer.text,
        "policy": policy.name,
        "threshold": getattr(policy, "threshold", None),
    }


def payload(event: Decided) -> dict[str, Any]:
    """Return a decision as it stands in events and decision runs."""
    decision: Decision = event.decision
    return {"tier": event.tier, "name": event.name, **decision.to_dict()}
