"""Marks on finished runs: what became of a tier's answer is known only after its run ended."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from langchain_core.tracers.langchain import LangChainTracer

from cascadellm.answer import Answer, Attempt, Decision, Trace
from cascadellm.harmless import harmless
from cascadellm.tier import Tier
from langchain_cascade.engine import Engine
from langchain_cascade.guard import INTERRUPTED, OuterTracer, forgive, held
from langchain_cascade.local import LocalChatModel
from langchain_cascade.scrub import scrub
from langchain_cascade.tier import base_model

__all__ = ["Marks", "outer_marks"]

_LONGEST = 250
_HIDDEN_DRAFT = "ls_message_view_exclude"


class Marks:
    """Writes the record onto the runs of one call, in every tracer that keeps runs.

    LangSmith's tracer sends a tier's run only then; other tracers keep theirs in memory.
    Whatever fails here is logged and never reaches the caller.
    """

    def __init__(self, engine: Engine, handlers: Iterable[Any], run_id: UUID | None) -> None:
        self.engine = engine
        self.run_id = run_id
        self.tracers = [handler for handler in handlers if _keeps_runs(handler)]
        # kept, because tracers forget a run when it ends
        self._runs = {id(tracer): self._now(tracer) for tracer in self.tracers}
        for tracer in self.tracers:
            if isinstance(tracer, OuterTracer) and run_id is not None:
                tracer.hold(run_id)

    def tier(
        self,
        index: int,
        action: str,
        *,
        decision: Decision | None = None,
        cost_usd: float | None = None,
        error: str | None = None,
    ) -> None:
        """Mark the latest run of a tier with what became of its answer."""
        metadata: dict[str, Any] = {"cascade_action": action}
        if decision is not None and decision.score is not None:
            metadata["cascade_score"] = decision.to_dict()["score"]
        if action == "escalate":
            metadata[_HIDDEN_DRAFT] = True
        for tracer, run in self._each(index):
            with harmless("a tier's run could not be marked"):
                forgive(run)
                if run.error is not None and metadata.items() <= (run.metadata or {}).items():
                    continue
                if error is not None:
                    # a tier that took too long was cancelled, and that is its failure
                    run.error = run.error or error
                elif (run.metadata or {}).get(INTERRUPTED):
                    metadata["cascade_action"] = "stopped"
                _mark(run, _with_cost(run, metadata, cost_usd), [])
                _send(tracer, run)

    def interrupted(self, index: int, answer: Answer | None) -> None:
        """Mark a tier's run whose stream is closed, with what it has used so far.

        A cancelled run has ended by itself before, and waits to be sent.
        """
        metadata: dict[str, Any] = {INTERRUPTED: True}
        if answer is not None and answer.usage is not None:
            metadata["usage_metadata"] = {
                "input_tokens": answer.usage.input_tokens,
                "output_tokens": answer.usage.output_tokens,
                "total_tokens": answer.usage.total_tokens,
            }
        for _, run in self._each(index):
            with harmless("a stopped run could not be marked"):
                cut_short = INTERRUPTED in (run.metadata or {})
                if run.end_time is None or cut_short:
                    _mark(run, metadata, [])

    def release(self) -> None:
        """Send the runs of tiers whose answers nobody decided about, or nobody needs any more.

        The cascade's own run may end from now on.
        """
        for tracer in self.tracers:
            for run, parent in _below(self._own(tracer)):
                with harmless("a tier's run could not be sent"):
                    if run.end_time is not None and not held(run, parent):
                        continue
                    # the call of a hedge may still run; its end is sent when it comes
                    left = {INTERRUPTED: True} if run.end_time is None else {}
                    action = {"cascade_action": "stopped"} if held(run, parent) else {}
                    _mark(run, {**action, **left}, [])
                    _send(tracer, run)
            if isinstance(tracer, OuterTracer) and self.run_id is not None:
                with harmless("the cascade's run stays open in a trace"):
                    tracer.let_go(self.run_id)

    def outer(self, trace: Trace) -> None:
        """Mark the cascade's own run, which goes out with its end."""
        metadata, tags = outer_marks(trace)
        for tracer in self.tracers:
            run = self._own(tracer)
            with harmless("the cascade's run could not be marked"):
                if run is None or metadata.items() <= (run.metadata or {}).items():
                    continue
                _mark(run, metadata, tags)
                if self.engine.trace_feedback and isinstance(tracer, LangChainTracer):
                    _feedback(tracer, run, trace.decided)

    def prices(self, tier: Tier) -> bool:
        """Return whether a tier's cost is ours to tell; a provider's LangSmith knows itself."""
        return isinstance(base_model(self.engine.runnable(tier)), LocalChatModel)

    def _own(self, tracer: Any) -> Any:
        return self._now(tracer) or self._runs[id(tracer)]

    def _now(self, tracer: Any) -> Any:
        with harmless("a tracer does not show its runs"):
            return tracer.run_map.get(str(self.run_id))
        return None

    def _each(self, index: int) -> Iterable[tuple[Any, Any]]:
        tag = f"cascade:tier:{index}"
        found: dict[int, tuple[Any, Any]] = {}
        for tracer in self.tracers:
            below = getattr(self._own(tracer), "child_runs", ())
            children = [run for run in below if tag in (run.tags or ())]
            if children:
                found.setdefault(id(children[-1]), (tracer, children[-1]))
        return found.values()


def _keeps_runs(handler: Any) -> bool:
    with harmless("a tracer does not show its runs"):
        return hasattr(handler, "run_map")
    return False


def _below(run: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (run, parent) for all runs below one, the lowest first."""
    for child in list(getattr(run, "child_runs", ())):
        yield from _below(child)
        yield child, run


def _with_cost(run: Any, metadata: dict[str, Any], cost_usd: float | None) -> dict[str, Any]:
    used = (run.metadata or {}).get("usage_metadata")
    if cost_usd is None or not isinstance(used, dict):
        return metadata
    return {**metadata, "usage_metadata": {**used, "total_cost": cost_usd}}


def _send(tracer: Any, run: Any) -> None:
    if run.end_time is None:
        # LangChain never ends the run of a call that was cancelled
        run.end_time = datetime.now(UTC)
    if isinstance(tracer, LangChainTracer) and not run.extra.get("__disabled"):
        scrub(run)
        run.patch()


def _mark(run: Any, metadata: dict[str, Any], tags: list[str]) -> None:
    # replaced, not changed: LangChain shares these between the runs of one batch
    run.extra = {**(run.extra or {}), "metadata": {**(run.metadata or {}), **metadata}}
    run.tags = [*(run.tags or ()), *tags]


def _feedback(tracer: Any, run: Any, decided: Attempt | None) -> None:
    # LangSmith takes no infinite score
    if decided is None or decided.score is None or not math.isfinite(decided.score):
        return
    tracer.client.create_feedback(
        run_id=run.id,
        trace_id=run.trace_id,
        key="cascade_score",
        session_id=getattr(run, "session_id", None),
        score=decided.score,
        comment=decided.reason,
    )


def outer_marks(trace: Trace) -> tuple[dict[str, Any], list[str]]:
    """Return the metadata and tags of the cascade's run."""
    # as in the record: a policy's own numbers may be of any type
    decided = {} if trace.decided is None else trace.decided.to_dict()
    metadata = {
        "cascade_answered_by": trace.answered_by,
        "cascade_tier": trace.tier,
        "cascade_escalated": trace.escalated,
        "cascade_n_calls": sum(attempt.action != "skip" for attempt in trace.attempts),
        "cascade_score": decided.get("score"),
        "cascade_threshold": decided.get("threshold"),
        "cascade_policy": decided.get("policy"),
        "cascade_reason": (decided.get("reason") or "")[:_LONGEST] or None,
        "cascade_cost_usd": trace.cost_usd,
    }
    tags = [] if trace.answered_by is None else [f"cascade:answered_by:{trace.answered_by}"]
    if trace.escalated:
        tags.append("cascade:escalated")
    if trace.abandoned:
        tags.append("cascade:abandoned")
    return {k: v for k, v in metadata.items() if v is not None}, tags
