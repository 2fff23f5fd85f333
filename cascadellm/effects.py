"""What a plan may ask of the outside world.

A plan is a generator that yields effects and receives their results; the cascade is one,
and every policy may be one. An adapter performs effects; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

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
    "Interrupted",
    "Judge",
    "Plan",
    "Race",
    "Relay",
    "Sleep",
    "Verdict",
    "Watch",
]

Verdict = Literal["go_on", "stop", "commit"]
"""What a growing draft's watcher says: go on, stop it, or show it from now on."""

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
    """

    index: int
    tier: Tier
    request: Request
    reads: frozenset[str] = frozenset()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    purpose: str = "tier"
    watch: Watch | None = None


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


@dataclass(frozen=True, slots=True, eq=False)
class Race:
    """Run `first`; start `second` after `after_s` seconds and cancel the loser.

    Result: `(index of the winner, Answer, seconds)`; see the hedging policy.
    """

    first: Call
    second: Call
    after_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Relay:
    """Show an answer: an accepted draft, or the live stream of a call.

    Result: the whole `Answer`. A driver that does not stream performs the call or hands
    the answer back.
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
    """Await a coroutine of an async policy. A sync driver refuses, naming the policy."""

    awaitable: Awaitable[Any]
    owner: str


Effect: TypeAlias = (
    Call | CallMany | Judge | Race | Relay | Emit | Enter | Sleep | Compute | Await
)

T = TypeVar("T")
Plan: TypeAlias = Generator[Effect, Any, T]


class Interrupted(Exception):  # noqa: N818 - a signal between driver and plan, never shown
    """A live stream broke after text was shown, so nothing may be asked again."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause
