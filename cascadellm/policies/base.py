"""What a deferral policy is: up to three moments, and how policies combine.

A policy implements the moments that it needs:

- `before` sees only the request and may skip a tier or go straight to a later one;
- `watch` sees a growing draft and may stop it or commit to it;
- `after` sees the finished answer and accepts or defers.

Each moment returns its result directly, or is a generator (a plan) that may ask a judge or
a tier through effects, or is a coroutine, which only async calls can await.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias, cast

from cascadellm.answer import Answer, Decision
from cascadellm.effects import Await, Compute, Plan, Verdict, Watch
from cascadellm.errors import ConfigurationError
from cascadellm.policies.moment import Hedging, Moment

__all__ = [
    "AllOf",
    "AnyOf",
    "Custom",
    "Hedging",
    "Moment",
    "Not",
    "Policy",
    "PolicyLike",
    "as_policy",
    "resolve",
]


Result: TypeAlias = Decision | Plan[Any] | Awaitable[Any] | None


class Policy:
    """Base of the deferral policies: frozen, comparable, printable values.

    Subclasses are frozen slotted dataclasses whose fields are their configuration.
    """

    __slots__ = ()

    level: ClassVar[Literal["answer", "token"]] = "answer"

    @property
    def name(self) -> str:
        """Name in records and traces."""
        return type(self).__name__

    @property
    def reads(self) -> frozenset[str]:
        """What answers must carry for this policy: `logprobs`, `top_logprobs`."""
        return frozenset()

    def before(self, moment: Moment) -> Result:
        """Return a deferring `Decision` to skip the tier unasked, else None."""
        return None

    def watch(self, moment: Moment) -> Watch | None:
        """Return a watcher of the growing draft, or None."""
        return None

    def hedge(self, moment: Moment) -> Hedging | None:
        """Say when the next tier starts beside this one, None = when it is asked."""
        return None

    def after(self, moment: Moment) -> Result:
        """Decide about the finished answer; None accepts it."""
        return None

    def to_config(self) -> dict[str, Any]:
        """Return plain data (JSON, YAML) that `from_config` turns into an equal policy.

        Raises:
            ConfigurationError: A field holds something that is no plain data.
        """
        from cascadellm.policies.config import policy_to_config

        return policy_to_config(self)

    @staticmethod
    def from_config(config: Mapping[str, Any], *, allow: Mapping[str, Any] | None = None) -> Policy:
        """Build a policy from `to_config` data.

        Args:
            config: The data.
            allow: Names the caller allows for things that are not plain data (functions,
                models), e.g. `{"my_score": my_score}`. Nothing else is ever imported.
        """
        from cascadellm.policies.config import policy_from_config

        return policy_from_config(config, allow=allow)

    def __or__(self, other: PolicyLike) -> Policy:
        return AnyOf((self, as_policy(other)))

    def __ror__(self, other: PolicyLike) -> Policy:
        return AnyOf((as_policy(other), self))

    def __and__(self, other: PolicyLike) -> Policy:
        return AllOf((self, as_policy(other)))

    def __rand__(self, other: PolicyLike) -> Policy:
        return AllOf((as_policy(other), self))

    def __invert__(self) -> Policy:
        return Not(self)


PolicyLike: TypeAlias = Policy | Callable[[Answer], Any]


def as_policy(value: PolicyLike) -> Policy:
    """Return a policy: itself, or a plain callable `Answer -> bool | Decision` wrapped.

    Raises:
        ConfigurationError: The value is neither.
    """
    if isinstance(value, Policy):
        return value
    if isinstance(value, type) and issubclass(value, Policy):
        raise ConfigurationError(
            f"a policy object is expected, got the class {value.__name__}; "
            f"write {value.__name__}(...)"
        )
    if callable(value):
        return Custom(value)
    raise ConfigurationError(
        "a policy is a Policy or a function from an Answer to True (defer) or False, "
        f"got {type(value).__name__}"
    )


def resolve(result: Any, owner: str) -> Plan[Any]:
    """Turn what a moment returned into its value: direct, plan or coroutine."""
    if isinstance(result, Generator):
        return (yield from result)
    if inspect.isawaitable(result):
        return (yield Await(result, owner))
    return result


def _decided(policy: Policy, moment: Moment) -> Plan[Decision]:
    decision = yield from resolve(policy.after(moment), policy.name)
    if decision is None:
        return Decision(False, policy.name, code="accept", reason="nothing to object")
    if not isinstance(decision, Decision):
        raise ConfigurationError(f"policy {policy.name!r} must return a Decision, got {decision!r}")
    return decision


@dataclass(frozen=True, slots=True)
class Custom(Policy):
    """A plain function as an *after* policy: `Answer -> bool` (True = defer) or `Decision`.

    In async calls it runs in a thread, because it may be slow; an `async def` is awaited.
    """

    function: Callable[[Answer], Any]

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def after(self, moment: Moment) -> Plan[Decision]:
        called: Any
        if inspect.iscoroutinefunction(self.function):
            called = self.function(moment.draft)
        else:
            called = yield Compute(lambda: self.function(moment.draft))
        value = yield from resolve(called, self.name)
        if isinstance(value, Decision):
            return value
        if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
            verb = "defers" if value else "accepts"
            return Decision(bool(value), self.name, code="custom", reason=f"{self.name} {verb}")
        raise ConfigurationError(
            f"policy {self.name!r} must return True (defer), False (accept) or a Decision, "
            f"got {value!r}; a function that returns a number belongs in "
            f"Threshold({self.name}, threshold)"
        )


def _merged_reads(parts: tuple[Policy, ...]) -> frozenset[str]:
    return frozenset().union(*(part.reads for part in parts))


def _watch_all(parts: tuple[Policy, ...], moment: Moment, alone: Verdict) -> Watch | None:
    """Watch for all parts: `alone` is the verdict that one part may give for all."""
    watchers = [part.watch(moment) for part in parts]
    if not any(watchers):
        return None
    verdicts: list[Verdict] = ["enough" if watcher is None else "go_on" for watcher in watchers]

    def watch(answer: Answer) -> Verdict:
        for place, watcher in enumerate(watchers):
            if watcher is not None and verdicts[place] == "go_on":
                verdicts[place] = watcher(answer)
        if alone in verdicts:
            return alone
        if "go_on" in verdicts:
            return "go_on"
        # the other verdict needs every part: one of them might still decide otherwise
        return verdicts[0] if len(set(verdicts)) == 1 else "enough"

    return watch


def _first_hedge(parts: tuple[Policy, ...], moment: Moment) -> Hedging | None:
    return next((found for part in parts if (found := part.hedge(moment)) is not None), None)


def _check_parts(name: str, parts: Any) -> tuple[Policy, ...]:
    ready = tuple(as_policy(part) for part in parts)
    if not ready:
        raise ConfigurationError(f"{name} needs at least one policy")
    for part in ready:
        if part.level == "token":
            raise ConfigurationError(
                f"{part.name} decides per token and cannot be combined with answer-level "
                "policies; give it a boundary of its own"
            )
    return ready


@dataclass(frozen=True, slots=True)
class AnyOf(Policy):
    """Defers when any part defers (`a | b`); parts are asked in order until one does."""

    parts: tuple[Policy, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _check_parts("AnyOf", self.parts))

    @property
    def reads(self) -> frozenset[str]:
        return _merged_reads(self.parts)

    def before(self, moment: Moment) -> Plan[Decision | None]:
        for part in self.parts:
            route = yield from resolve(part.before(moment), part.name)
            if route is not None and route.defer:
                return cast("Decision", route)
        return None

    def watch(self, moment: Moment) -> Watch | None:
        return _watch_all(self.parts, moment, "stop")

    def hedge(self, moment: Moment) -> Hedging | None:
        return _first_hedge(self.parts, moment)

    def after(self, moment: Moment) -> Plan[Decision]:
        decision = None
        for part in self.parts:
            following = yield from _decided(part, moment)
            if following.defer:
                return following
            # the score shown for an accepted answer is that of the part that has one
            if decision is None or decision.score is None:
                decision = following
        return cast("Decision", decision)


@dataclass(frozen=True, slots=True)
class AllOf(Policy):
    """Defers when every part defers (`a & b`); parts are asked until one accepts."""

    parts: tuple[Policy, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _check_parts("AllOf", self.parts))

    @property
    def reads(self) -> frozenset[str]:
        return _merged_reads(self.parts)

    def before(self, moment: Moment) -> Plan[Decision | None]:
        route = None
        for part in self.parts:
            route = yield from resolve(part.before(moment), part.name)
            if route is None or not route.defer:
                return None
        return route

    def watch(self, moment: Moment) -> Watch | None:
        return _watch_all(self.parts, moment, "commit")

    def hedge(self, moment: Moment) -> Hedging | None:
        return _first_hedge(self.parts, moment)

    def after(self, moment: Moment) -> Plan[Decision]:
        decision = None
        for part in self.parts:
            decision = yield from _decided(part, moment)
            if not decision.defer:
                return decision
        return cast("Decision", decision)


@dataclass(frozen=True, slots=True)
class Not(Policy):
    """Inverts a policy (`~a`)."""

    part: Policy

    def __post_init__(self) -> None:
        object.__setattr__(self, "part", _check_parts("Not", (self.part,))[0])

    @property
    def reads(self) -> frozenset[str]:
        return self.part.reads

    def after(self, moment: Moment) -> Plan[Decision]:
        decision = yield from _decided(self.part, moment)
        return replace(
            decision,
            defer=not decision.defer,
            policy=f"not {decision.policy}",
            reason=f"not: {decision.reason}",
            goto=None,
        )


def config_fields(policy: Policy) -> list[str]:
    """Return the names of a policy's configuration fields."""
    # a state that moves is no setting
    return [f.name for f in fields(policy) if f.init] if is_dataclass(policy) else []
