"""Tracers that give LangSmith the right shape, and fall back to LangChain's own on surprise.

The cascade's run goes out as a `chain` without usage, so that neither its tokens nor its
latency are counted as one more model call; LangSmith adds up the tiers' `llm` runs below it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from uuid import UUID

from langchain_core.tracers.langchain import LangChainTracer

from cascadellm.answer import Usage
from cascadellm.scrub import scrubbed
from cascadellm.tier import Tier
from langchain_cascade.scrub import scrub

__all__ = ["INTERRUPTED", "OuterTracer", "TierTracer", "for_outer", "for_tiers", "forgive", "held"]

INTERRUPTED = "ls_is_error_interrupt"
"""Metadata name by which LangSmith tells a run that was stopped from one that failed."""

_LEFT = ("GeneratorExit(", "CancelledError(")

_PRIVATE = ("_persist_run_single", "_update_run_single", "_get_run", "_on_llm_end", "_on_llm_error")
"""What the tracers below override of LangChain's own."""

_log = logging.getLogger("langchain_cascade")


class OuterTracer(LangChainTracer):
    """Sees the cascade's own run alone."""

    _origin: Any = None
    _ends: dict[UUID, Callable[[], Any] | None] | None = None

    def __eq__(self, other: object) -> bool:
        # LangChain adds a model's own callbacks twice and skips those that are there already
        return other is self or (self._origin is not None and other is self._origin)

    def __hash__(self) -> int:
        return id(self)

    def hold(self, run_id: UUID) -> None:
        """Let the failed end of a run wait until its call is recorded (`let_go`).

        LangChain ends a run before it closes the stream below, whose marks would come too late.
        """
        if self._ends is not None:
            self._ends.setdefault(run_id, None)

    def let_go(self, run_id: UUID) -> None:
        """End a run that was held, if LangChain has called it a failure by now."""
        end = None if self._ends is None else self._ends.pop(run_id, None)
        if end is not None:
            end()

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> Any:
        """End a run that failed or was left, now or when its call is recorded."""
        end = partial(super().on_llm_error, error, run_id=run_id, **kwargs)
        if self._ends is None or run_id not in self._ends:
            return end()
        self._ends[run_id] = end
        return self.run_map.get(str(run_id))

    def end_open(self, run_id: UUID | None, error: BaseException) -> None:
        """End a run that LangChain left open: it was cancelled while a handler was told."""
        if run_id is not None and str(run_id) in self.run_map:
            self.on_llm_error(error, run_id=run_id)

    def copy_with_metadata_defaults(self, **defaults: Any) -> LangChainTracer:
        """Return LangChain's copy for one run, which holds the same ends."""
        copy = super().copy_with_metadata_defaults(**defaults)
        copy.__dict__["_ends"] = self._ends
        return copy

    def _as_chain(self, run: Any) -> None:
        run.run_type = "chain"

    def _persist_run_single(self, run: Any) -> None:
        try:
            self._as_chain(run)
        except Exception:
            _log.warning("the cascade's run is sent as an llm run", exc_info=True)
        _scrub(self, run)
        super()._persist_run_single(run)

    def _get_run(self, run_id: UUID, run_type: str | set[str] | None = None) -> Any:
        # LangChain expects the type that it started the run with
        return super()._get_run(run_id, None)

    def _on_llm_end(self, run: Any) -> None:
        self._update_run_single(run)

    def _on_llm_error(self, run: Any) -> None:
        forgive(run)
        super()._on_llm_error(run)

    def _update_run_single(self, run: Any) -> None:  # type: ignore[override]
        scrub(run)
        super()._update_run_single(run)


class TierTracer(LangChainTracer):
    """Sees the runs below the cascade's.

    A tier's finished run is held back until its answer was decided about, so that one update
    carries the outcome; `Marks` sends it.
    """

    without_logprobs = False
    sides: Mapping[tuple[str, str], Tier] = {}
    """(purpose, name) -> the local model that judges, resamples, ... and what it costs."""

    def copy_with_metadata_defaults(self, **defaults: Any) -> LangChainTracer:
        """Return LangChain's copy for one run, which knows the side calls too."""
        copy = super().copy_with_metadata_defaults(**defaults)
        copy.__dict__["sides"] = self.sides
        return copy

    def _persist_run_single(self, run: Any) -> None:
        _scrub(self, run)
        super()._persist_run_single(run)

    def _on_llm_end(self, run: Any) -> None:
        if self.without_logprobs:
            try:
                _drop_logprobs(run.outputs)
            except Exception:
                _log.warning("logprobs could not be left out of a trace", exc_info=True)
        super()._on_llm_end(run)

    def _on_llm_error(self, run: Any) -> None:
        forgive(run)
        if run.error is not None and _of_a_tier(run):
            # also where the tier is asked again, which is no event of its own
            run.extra = {**run.extra, "metadata": {**run.metadata, "cascade_action": "error"}}
        super()._on_llm_error(run)

    def _update_run_single(self, run: Any) -> None:  # type: ignore[override]
        parent = self.run_map.get(str(run.parent_run_id))
        if not held(run, parent):
            self._priced(run)
            # defaults of the tracer may have come in since the start
            scrub(run)
            super()._update_run_single(run)

    def _priced(self, run: Any) -> None:
        """Add the cost of a call beside the tiers' own, which has no outcome to wait for."""
        try:
            metadata = run.metadata or {}
            used = metadata.get("usage_metadata")
            tier = self.sides.get((str(metadata.get("cascade_purpose")), run.name))
            if tier is None or not isinstance(used, dict) or run.end_time is None:
                return
            usage = Usage(used["input_tokens"], used["output_tokens"])
            cost = tier.cost(usage, (run.end_time - run.start_time).total_seconds())
            if cost is not None:
                counted = {**metadata, "usage_metadata": {**used, "total_cost": cost}}
                run.extra = {**run.extra, "metadata": counted}
        except Exception:
            _log.warning("the cost of a side call is left out of a trace", exc_info=True)


class BareTierTracer(TierTracer):
    """The same without logprobs."""

    without_logprobs = True


class NestedTracer(OuterTracer, TierTracer):
    """Sees the run of a cascade that is itself a tier: a `chain` that waits for its outcome."""


def _scrub(tracer: LangChainTracer, run: Any) -> None:
    # LangChain adds the tracer's own defaults to a run only when it sends it
    tracer.tracing_metadata = scrubbed(tracer.tracing_metadata)
    scrub(run)


def forgive(run: Any) -> None:
    """Take the error off a run whose stream was closed or whose task was cancelled.

    LangChain ends such a run with that exception, and LangSmith would count a failure.
    """
    if not str(run.error or "").startswith(_LEFT):
        return
    run.error = None
    metadata = {**((run.extra or {}).get("metadata") or {}), INTERRUPTED: True}
    run.extra = {**(run.extra or {}), "metadata": metadata}


def held(run: Any, parent: Any) -> bool:
    """Return whether a tier's run waits for its outcome."""
    if run.error is not None or parent is None or "cascade_action" in (run.metadata or {}):
        return False
    return _of_a_tier(run) and (parent.metadata or {}).get("ls_provider") == "cascade"


def _of_a_tier(run: Any) -> bool:
    return any(str(tag).startswith("cascade:tier:") for tag in run.tags or ())


def _drop_logprobs(outputs: Any) -> None:
    for batch in (outputs or {}).get("generations") or ():
        for generation in batch:
            for holder in (
                generation.get("generation_info"),
                (generation.get("message") or {}).get("kwargs", {}).get("response_metadata"),
            ):
                if isinstance(holder, dict):
                    holder.pop("logprobs", None)


def for_outer(handler: Any) -> Any:
    """Return the handler for the cascade's own run; LangSmith's tracer is exchanged."""
    if type(handler) in (TierTracer, BareTierTracer):
        return _holding(_changed(handler, NestedTracer))
    if type(handler) is not LangChainTracer:
        return handler
    changed = _changed(handler, OuterTracer)
    if changed is not handler:
        changed.__dict__["_origin"] = handler
    return _holding(changed)


def _holding(tracer: Any) -> Any:
    if isinstance(tracer, OuterTracer):
        tracer.__dict__["_ends"] = {}
    return tracer


def for_tiers(
    handler: Any, trace_logprobs: bool, sides: Mapping[tuple[str, str], Tier] | None = None
) -> Any:
    """Return the handler for the runs below; LangSmith's tracer is exchanged."""
    if not isinstance(handler, TierTracer) and type(handler) is not LangChainTracer:
        return handler
    # what an enclosing cascade leaves out stays out
    bare = not trace_logprobs or getattr(handler, "without_logprobs", False)
    changed = _changed(handler, BareTierTracer if bare else TierTracer)
    if changed is not handler and sides is not None:
        changed.__dict__["sides"] = sides
    return changed


def _changed(tracer: LangChainTracer, cls: Any) -> Any:
    """Return a copy of another class.

    The constructor's arguments differ between versions, and `copy.copy` gives a tracer itself.
    """
    gone = [name for name in _PRIVATE if not hasattr(LangChainTracer, name)]
    if gone:
        _log.warning("LangSmith's tracer has no %s and is used unchanged", " ".join(gone))
        return tracer
    try:
        changed = cls.__new__(cls)
        changed.__dict__.update(vars(tracer))
    except Exception:
        _log.warning("LangSmith's tracer is used unchanged", exc_info=True)
        return tracer
    return changed
