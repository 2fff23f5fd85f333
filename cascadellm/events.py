"""Typed events of one call, the handler protocol, and the recorder.

Handlers are told; they never decide. A handler that raises is logged once per call site
and ignored: it never breaks an answer.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from cascadellm.answer import Answer, Attempt, Decision, Request, SideCall, Trace
from cascadellm.jsonl import LineFile, encode_line
from cascadellm.scrub import scrubbed_text
from cascadellm.summary import Summary, summarise, to_frame
from cascadellm.tier import Price

__all__ = [
    "Abandoned",
    "Accepted",
    "CascadeEvent",
    "Decided",
    "DriftDetected",
    "Failed",
    "Handler",
    "JsonlSink",
    "Record",
    "Recorder",
    "ShadowAnswered",
    "TierAnswered",
    "TierFailed",
    "TierSkipped",
    "TierStarted",
    "dispatch",
    "record_cascade",
]

_log = logging.getLogger("cascadellm")


@dataclass(frozen=True, slots=True)
class TierStarted:
    """A tier is about to be asked."""

    tier: int
    name: str


@dataclass(frozen=True, slots=True)
class TierAnswered:
    """A tier answered; nothing is decided yet. Time in seconds."""

    tier: int
    name: str
    answer: Answer
    latency_s: float


@dataclass(frozen=True, slots=True)
class TierSkipped:
    """A tier was passed over without being asked."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class TierFailed:
    """A tier raised or timed out."""

    attempt: Attempt
    error: Exception


@dataclass(frozen=True, slots=True)
class Decided:
    """A boundary's policy decided about a tier's answer."""

    tier: int
    name: str
    decision: Decision
    answer: Answer


@dataclass(frozen=True, slots=True)
class Accepted:
    """The call ended with an answer."""

    request: Request
    answer: Answer
    trace: Trace
    drafts: tuple[str | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The call ended without an answer; `trace.answered_by` is None."""

    request: Request
    error: Exception
    trace: Trace
    drafts: tuple[str | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The caller left: it closed a stream half way, or its task was cancelled.

    Attributes:
        answer: What had been shown of the answer; None when nothing was.
        trace: Its last attempt has the action `stopped` and the code `abandoned`;
            `answered_by` is None when nothing was shown.
    """

    request: Request
    answer: Answer | None
    trace: Trace
    drafts: tuple[str | None, ...] = ()


@dataclass(frozen=True, slots=True)
class ShadowAnswered:
    """After its answer was given, an accepted draft was checked against the last tier.

    Attributes:
        run_id: The call whose draft was checked.
        tier: Index of the last tier.
        name: Its name.
        text: What it said; None when it failed.
        loss: How far the two answers differ, in [0, 1]; None when it failed.
        call: What it cost; the record of the checked call does not hold it.
    """

    run_id: str
    tier: int
    name: str
    text: str | None
    loss: float | None
    call: SideCall


@dataclass(frozen=True, slots=True)
class DriftDetected:
    """A calibrated promise no longer holds.

    Attributes:
        target_risk: What was promised.
        observed_risk: Mean loss of all observations.
        recent_risk: Mean loss of the latest observations.
        observations: Number of observations.
        evidence: How often less likely such losses are while the promise holds.
        reason: The same as a sentence.
    """

    target_risk: float
    observed_risk: float
    recent_risk: float
    observations: int
    evidence: float
    reason: str


CascadeEvent: TypeAlias = (
    TierStarted
    | TierAnswered
    | TierSkipped
    | TierFailed
    | Decided
    | Accepted
    | Failed
    | Abandoned
    | ShadowAnswered
    | DriftDetected
)
Finished: TypeAlias = Accepted | Failed | Abandoned


class Handler(Protocol):
    """Anything that wants to be told."""

    def on_event(self, event: CascadeEvent) -> None:
        """Receive one event; called in the thread of the call."""


def dispatch(event: CascadeEvent, handlers: Iterable[Handler]) -> None:
    """Tell the given handlers and the active recorders; swallow what they raise."""
    for handler in (*handlers, *_ACTIVE.get()):
        try:
            handler.on_event(event)
        except Exception:
            _log.warning("event handler %r failed", type(handler).__name__, exc_info=True)


def observed(handlers: Iterable[Handler]) -> bool:
    """Return whether anybody listens."""
    return bool(_ACTIVE.get()) or any(True for _ in handlers)


@dataclass(frozen=True, slots=True)
class Record:
    """One finished call as the recorder keeps it.

    Attributes:
        trace: The record of the call.
        time: End of the call. Unit: seconds since the epoch.
        input: Neutral text of the request.
        output: Text of the answer, empty when the call failed.
        drafts: Text per attempt, None where the attempt has none.
        error: What the call raised, or None.
    """

    trace: Trace
    time: float
    input: str = ""
    output: str = ""
    drafts: tuple[str | None, ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data: the trace's keys and the call's own."""
        return {
            **self.trace.to_dict(),
            "time": self.time,
            "input": self.input,
            "output": self.output,
            "drafts": list(self.drafts),
            "error": self.error,
        }

    @classmethod
    def of(cls, event: Finished, *, content: bool = True) -> Record:
        """Build the record of a finished call; without `content` no text is kept."""
        answer = None if isinstance(event, Failed) else event.answer
        return cls(
            trace=event.trace,
            time=time.time(),
            input=event.request.text if content else "",
            output=answer.text if answer is not None and content else "",
            drafts=event.drafts if content else (),
            error=scrubbed_text(repr(event.error)) if isinstance(event, Failed) else None,
        )


class JsonlSink:
    """Append one JSON line per finished call to a file.

    Threads and processes may share the file. A killed process leaves whole lines: each goes
    out in one write, and a torn end is removed by the next writer.

    Args:
        path: File to append to; its folder is made when missing.
        content: Whether questions and answers are written, not only the record.
        max_bytes: Size at which the file is renamed to `<path>.1`; None = never.
        backups: Renamed files that are kept.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        content: bool = True,
        max_bytes: int | None = None,
        backups: int = 5,
    ) -> None:
        self.content = content
        self._file = LineFile(path, max_bytes=max_bytes, backups=backups)

    @property
    def path(self) -> Path:
        """The file that is appended to."""
        return self._file.path

    def on_event(self, event: CascadeEvent) -> None:
        """Write the line of a finished call."""
        if isinstance(event, Finished):
            self.write(Record.of(event, content=self.content))

    def write(self, record: Record) -> None:
        """Append one record."""
        self._file.append(encode_line(record.to_dict()))


@dataclass(slots=True, eq=False)
class Recorder:
    """Collects the records of finished calls; filled by `record_cascade()`.

    Attributes:
        records: Finished calls in order of their end.
        shadows: Shadow calls that ended, with their cost; see `FeedbackLoop`.
        drifts: Alarms that a `DriftMonitor` raised.
        sinks: Handlers that are told as well, e.g. a `JsonlSink`.
    """

    sinks: tuple[Handler, ...] = ()
    content: bool = True
    on_record: Callable[[Record], None] | None = None
    records: list[Record] = field(default_factory=list)
    shadows: list[ShadowAnswered] = field(default_factory=list)
    drifts: list[DriftDetected] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def traces(self) -> list[Trace]:
        """The traces of the finished calls."""
        return [record.trace for record in self.records]

    def summary(self, *, large_price: Price | None = None) -> Summary:
        """Add the finished calls up; `print` it for a table.

        Args:
            large_price: Price of the last tier, for its cost alone over the same calls; see
                `cascadellm.summary.summarise`.
        """
        return summarise(self._kept(), large_price=large_price)

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame with one row per call.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        return to_frame(self._kept())

    def _kept(self) -> list[Record]:
        with self._lock:
            return list(self.records)

    @property
    def shadow_cost_usd(self) -> float | None:
        """What all shadow calls cost, on top of the calls' own cost; None where one is unknown."""
        costs = [shadow.call.cost_usd for shadow in self.shadows]
        known = [cost for cost in costs if cost is not None]
        return math.fsum(known) if len(known) == len(costs) else None

    def on_event(self, event: CascadeEvent) -> None:
        """Keep the record of a finished call and tell the sinks."""
        if isinstance(event, Finished):
            record = Record.of(event, content=self.content)
            with self._lock:
                self.records.append(record)
            if self.on_record is not None:
                self.on_record(record)
        elif isinstance(event, ShadowAnswered):
            self.shadows.append(event if self.content else replace(event, text=None))
        elif isinstance(event, DriftDetected):
            self.drifts.append(event)
        for sink in self.sinks:
            sink.on_event(event)


# each context (task, copied thread context) sees the recorders that were open around it
_ACTIVE: ContextVar[tuple[Handler, ...]] = ContextVar("cascadellm_recorders", default=())


@contextmanager
def record_cascade(
    path: str | os.PathLike[str] | None = None,
    *,
    content: bool = True,
    max_bytes: int | None = None,
) -> Iterator[Recorder]:
    """Collect the records of every cascade call inside the `with` block.

    Works across chains, agents, tasks, `asyncio.to_thread` and the frameworks' own threads,
    which copy the context. A raw `threading.Thread` or an executor of your own starts with an
    empty context and sees no recorder; hand the context over with `in_this_context`:

        executor.map(in_this_context(llm.invoke), questions)

    or give the cascade a `Recorder` or `JsonlSink` as handler, which no context limits.

    Args:
        path: JSONL file to append each record to as well.
        content: Whether questions and answers are kept.
        max_bytes: Size at which the file is rotated; None = never.
    """
    sinks: tuple[Handler, ...] = ()
    if path is not None:
        sinks = (JsonlSink(path, content=content, max_bytes=max_bytes),)
    recorder = Recorder(sinks=sinks, content=content)
    token = _ACTIVE.set((*_ACTIVE.get(), recorder))
    try:
        yield recorder
    finally:
        _ACTIVE.reset(token)
