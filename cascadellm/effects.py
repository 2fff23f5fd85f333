"""What a plan may ask of the outside world.

A plan is a generator that yields effects and receives their results; the cascade is one,
and every policy may be one. An adapter performs effects; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from cascadellm.answer import Answer, Request
from cascadellm.tier import Tier

__all__ = [
    "Await",
    "Call",
    "CallMany",
    "Compute",
    "Effect",
    "Emit",
    "Enter",
    "Handle",
    "Interrupted",
    "Judge",
    "Left",
    "Plan",
    "Relay",
    "Shown",
    "Sleep",
    "Start",
    "Verdict",
    "Wait",
    "Watch",
]

Verdict = Literal["go_on", "enough", "stop", "commit"]
"""What a growing draft's watcher says: go on, go on without asking me again, stop it, or
show it from now on."""

Watch: TypeAlias = Callable[[Answer], Verdict]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """Ask a tier. Result: its `Answer`; the tier's own exception if it fails.

    Attributes:
        index: The tier's place in the cascade (position of a pair: its upper tier).
        tier: The tier.
        request: What is asked.
        reads: What the answer must carry: `logprobs`, `top_logprobs`.
        kwargs: Call arguments on top of the request's and the tier's.
        purpose: `tier` for the cascade's own call, else `resample`, ...
        watch: Called with the growing draft, where the tier can stream.
        began: Called when the first part of a streamed answer arrives.
    """

    index: int
    tier: Tier
    request: Request
    reads: frozenset[str] = frozenset()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    purpose: str = "tier"
    watch: Watch | None = None
    began: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class CallMany:
    """Ask several times, together where possible. Result: list of `Answer | Exception`."""

    calls: tuple[Call | Judge, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """Ask any model a plain-text question. Result: its `Answer`.

    Attributes:
        tier: The model, with its name and price.
        prompt: The whole question.
        purpose: Name in records: `judge`, `verify`, ...
        reads: As in `Call`.
        kwargs: Call arguments.
    """

    tier: Tier
    prompt: str
    purpose: str = "judge"
    reads: frozenset[str] = frozenset()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


class Handle(Protocol):
    """A plan that runs beside the caller's; see `Start`.

    Attributes:
        partial: What its tier had said when it was last heard of, or None.
    """

    partial: Answer | None

    @property
    def started(self) -> bool:
        """Whether it has begun."""

    @property
    def seconds(self) -> float:
        """How long it has run so far, or ran."""

    @property
    def done(self) -> bool:
        """Whether it has ended."""

    @property
    def cancelled(self) -> bool:
        """Whether it was called off."""

    def hurry(self) -> None:
        """Begin now, not only after the wait."""

    def cancel(self) -> None:
        """Call it off: a stream is closed, a call that cannot be stopped is dropped."""

    def result(self) -> Any:
        """Return what the plan returned, or raise what it raised."""


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Run another plan beside this one. Result: its `Handle`, at once.

    Attributes:
        plan: Makes the plan; its tier's watcher may ask the handle whether it was called off.
        after_s: Seconds to wait first; infinity = until `Handle.hurry()`.
    """

    plan: Callable[[Handle], Plan[Any]]
    after_s: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Wait:
    """Wait until one of several has ended. Result: the first of them that has."""

    handles: tuple[Handle, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """Result of a `Relay` whose draft was committed to and shown while it grew."""

    answer: Answer


@dataclass(frozen=True, slots=True, eq=False)
class Relay:
    """Show an answer: an accepted draft, or the live stream of a call.

    Result: the whole `Answer`. A driver that does not stream performs the call or hands
    the answer back. A call with a watcher is held back until the watcher commits to it; its
    result is `Shown` if it was shown. Only performers with `watches = True` are handed one.
    """

    source: Answer | Call


@dataclass(frozen=True, slots=True, eq=False)
class Emit:
    """Tell handlers what happened (see `cascadellm.events`). Result: None."""

    event: Any


@dataclass(frozen=True, slots=True, eq=False)
class Sleep:
    """Wait before the next attempt. Result: None."""

    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Enter:
    """Wait for a place in a tier's bulkhead. Result: None, holding the place.

    Attributes:
        tier: The tier; its `bulkhead` is not None.
        timeout_s: Most seconds to wait, None = no limit.
    """

    tier: Tier
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Compute:
    """Run heavy Python code off the event loop. Result: what `function` returns."""

    function: Callable[[], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Await:
    """Await a coroutine of an async policy. A sync driver refuses, naming the policy.

    Attributes:
        awaitable: What the policy waits for.
        owner: Name of the policy.
        timeout_s: Most seconds to wait, None = no limit.
    """

    awaitable: Awaitable[Any]
    owner: str
    timeout_s: float | None = None


Effect: TypeAlias = (
    Call | CallMany | Judge | Start | Wait | Relay | Emit | Enter | Sleep | Compute | Await
)

T = TypeVar("T")
Plan: TypeAlias = Generator[Effect, Any, T]


class Interrupted(Exception):  # noqa: N818 - a signal between driver and plan, never shown
    """A live stream broke after text was shown, so nothing may be asked again."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Left(BaseException):
    """The caller is gone: it closed a stream half way, or its task was cancelled.

    No `Exception`, so that neither a retry nor a policy takes it for a failure.

    Attributes:
        answer: What had been shown, or None.
    """

    def __init__(self, answer: Answer | None = None) -> None:
        super().__init__()
        self.answer = answer
