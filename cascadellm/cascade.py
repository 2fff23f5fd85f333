"""The main flow: for each tier, skip it or ask it; decide; record; accept or go on.

Written once, as a generator of effects. `invoke`, `ainvoke`, `stream`, `astream`, `batch`
of both frameworks drive the same generator, so they take the same decision.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from cascadellm.answer import Action, Answer, Decision, Request, Trace
from cascadellm.assembly import join_pairs, listed, one_of, per_boundary
from cascadellm.context import with_context
from cascadellm.effects import Call, Emit, Interrupted, Left, Plan, Relay
from cascadellm.errors import CascadeError, ConfigurationError
from cascadellm.events import (
    Abandoned,
    Accepted,
    Decided,
    Failed,
    TierAnswered,
    TierFailed,
    TierSkipped,
    TierStarted,
)
from cascadellm.hedging import Ahead, Said
from cascadellm.ledger import Ledger, Unit
from cascadellm.policies.base import Moment, Policy, PolicyLike, resolve
from cascadellm.resilience import retrying
from cascadellm.scrub import error_text
from cascadellm.tier import Tier, named
from cascadellm.watching import STOPPED

__all__ = ["Admit", "Cascade", "Outcome"]

_log = logging.getLogger("cascadellm")

Admit: TypeAlias = Callable[[Tier, Request], tuple[str, str] | None]
"""Says why a tier cannot take a request, as (code, sentence); None = it can."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The accepted answer and the record of the call."""

    answer: Answer
    trace: Trace


@dataclass(frozen=True, slots=True, init=False)
class Cascade:
    """Tiers, cheap to costly, with one deferral policy per boundary.

    Args:
        tiers: One or more tiers.
        policy: One policy for all boundaries, or one per boundary; a single tier needs none.
        on_tier_error: `escalate` past a tier that raises, or `raise`.
        on_exhausted: When the last tier fails or the deadline passes: `raise`, or answer
            with the `best` (latest) earlier answer.
        deadline_s: Seconds for the whole call; every tier's and judge's own timeout shrinks
            to what is left of it.
        clock: Seconds; replaced in tests.

    Raises:
        ConfigurationError: No tiers, equal names, or a wrong number of policies.
    """

    tiers: tuple[Tier, ...]
    policies: tuple[Policy, ...]
    on_tier_error: Literal["escalate", "raise"]
    on_exhausted: Literal["raise", "best"]
    deadline_s: float | None
    clock: Callable[[], float] = field(repr=False, compare=False)
    units: tuple[Unit, ...] = field(repr=False, compare=False)
    boundaries: tuple[Policy, ...] = field(repr=False, compare=False)

    def __init__(
        self,
        tiers: Sequence[Any],
        policy: PolicyLike | Sequence[PolicyLike] | None = None,
        *,
        on_tier_error: Literal["escalate", "raise"] = "escalate",
        on_exhausted: Literal["raise", "best"] = "raise",
        deadline_s: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        one_of("on_tier_error", on_tier_error, ("escalate", "raise"))
        one_of("on_exhausted", on_exhausted, ("raise", "best"))
        if deadline_s is not None and not 0 < deadline_s < float("inf"):
            raise ConfigurationError(
                f"deadline_s must be a positive number of seconds or None, got {deadline_s!r}"
            )
        ready = named([t if isinstance(t, Tier) else Tier(t) for t in listed(tiers)])
        for tier in ready:
            retrying(tier.retry)
        policies = per_boundary(policy, len(ready))
        units, boundaries = join_pairs(ready, policies)
        for name, value in (
            ("tiers", ready),
            ("policies", policies),
            ("on_tier_error", on_tier_error),
            ("on_exhausted", on_exhausted),
            ("deadline_s", deadline_s),
            ("clock", clock),
            ("units", units),
            ("boundaries", boundaries),
        ):
            object.__setattr__(self, name, value)

    def with_policy(self, policy: PolicyLike | Sequence[PolicyLike]) -> Cascade:
        """Return the same tiers under another policy."""
        return Cascade(
            self.tiers,
            policy,
            on_tier_error=self.on_tier_error,
            on_exhausted=self.on_exhausted,
            deadline_s=self.deadline_s,
            clock=self.clock,
        )

    def reads(self, place: int) -> frozenset[str]:
        """Return what the answers of unit `place` must carry for its boundary's policy."""
        return self.boundaries[place].reads if place < len(self.boundaries) else frozenset()

    def plan(
        self,
        request: Request,
        *,
        pin: str | None = None,
        start: str | None = None,
        admit: Admit | None = None,
        observed: bool = True,
        run_id: str | None = None,
    ) -> Plan[Outcome]:
        """Return the plan of one call.

        Args:
            request: What is asked.
            pin: Name of the only tier to ask.
            start: Name of the tier to begin at; its policy and those after it decide as ever.
            admit: Says which tiers cannot take the request; the last one is always asked.
            observed: Whether anybody listens to events.
            run_id: Id of the call for its record, or None.
        """
        request = with_context(request)
        ledger = Ledger(self.clock, self.deadline_s, observed, run_id)
        units = self.units if pin is None else (self._pinned(pin),)
        # a name inside a pair, which is no place of its own, begins at the pair
        place = 0 if start is None or pin is not None else self._place(self._pinned(start))
        try:
            unit, answer = yield from self._climb(request, units, place, ledger, admit)
        except Exception as error:
            trace = ledger.close(None, None)
            yield Emit(Failed(request, error, trace, ledger.drafts))
            raise
        except Left as gone:
            trace = ledger.close(ledger.leave(gone.answer), gone.answer)
            yield Emit(Abandoned(request, gone.answer, trace, ledger.drafts))
            raise
        trace = ledger.close(unit, answer)
        if observed:
            yield Emit(Accepted(request, answer, trace, ledger.drafts))
        return Outcome(answer, trace)

    def _climb(
        self,
        request: Request,
        units: tuple[Unit, ...],
        place: int,
        ledger: Ledger,
        admit: Admit | None,
    ) -> Plan[tuple[Unit, Answer]]:
        ahead = Ahead(ledger)
        try:
            while True:
                if ledger.expired:
                    return (yield from self._exhausted(ledger.too_late(), units, ledger))
                unit, last = units[place], place == len(units) - 1
                policy = None if last else self.boundaries[place]
                if policy is not None and (admit or type(policy).before is not Policy.before):
                    route = yield from self._before(policy, unit, request, ledger, admit)
                    if route is not None:
                        place = yield from self._skip(route, units, place, ledger)
                        continue
                if ledger.observed:
                    yield Emit(TierStarted(unit.index, unit.tier.label))
                ledger.begin(unit)
                try:
                    said = yield from self._ask(units, place, request, ledger, ahead)
                except Exception as error:
                    place = yield from self._failed(error, units, place, ledger)
                    if place < 0:
                        return (yield from self._exhausted(error, units, ledger))
                    continue
                answer = said.answer
                ledger.hear(answer)
                latency_s = ledger.attempt_s if said.latency_s is None else said.latency_s
                if ledger.observed:
                    yield Emit(TierAnswered(unit.index, unit.tier.label, answer, latency_s))
                if policy is None:
                    ledger.keep(unit, "accept", answer, None, latency_s)
                    return unit, (answer if said.shown else (yield Relay(answer)))
                decision = yield from self._decide(policy, unit, request, said, ledger)
                if ledger.observed:
                    yield Emit(Decided(unit.index, unit.tier.label, decision, answer))
                target = _target(decision, units, place)
                if not decision.defer or target != place + 1:
                    ahead.call_off()
                ledger.keep(unit, _action(decision, answer), answer, decision, latency_s)
                if not decision.defer:
                    return unit, answer if said.shown else (yield Relay(decision.answer or answer))
                place = target
        finally:
            ahead.close()

    def _ask(
        self,
        units: tuple[Unit, ...],
        place: int,
        request: Request,
        ledger: Ledger,
        ahead: Ahead,
    ) -> Plan[Said]:
        unit, last = units[place], place == len(units) - 1
        policy = None if last else self.boundaries[place]
        call = self._call(unit, policy, request, ledger)
        if policy is not None and ahead.unit is None and type(policy).hedge is not Policy.hedge:
            hedging = policy.hedge(self._moment(unit, request, None, ledger))
            if hedging is not None:
                after = None if place + 2 == len(units) else self.boundaries[place + 1]
                following = self._call(units[place + 1], after, request, ledger)
                race = ahead.race(call, following, units[place + 1], hedging, policy.name)
                return (yield from race)
        return (yield from ahead.ask(call, unit, live=last or call.watch is not None))

    def _failed(
        self, error: Exception, units: tuple[Unit, ...], place: int, ledger: Ledger
    ) -> Plan[int]:
        """Record a tier that raised; return the next place, -1 when there is none."""
        cause = error.cause if isinstance(error, Interrupted) else error
        attempt = ledger.fail(units[place], cause)
        yield Emit(TierFailed(attempt, cause))
        if isinstance(error, Interrupted):
            late = ledger.expired and isinstance(cause, TimeoutError)
            raise (ledger.too_late() if late else cause) from None
        if place == len(units) - 1 or self.on_tier_error == "raise":
            return -1
        return place + 1

    def _call(self, unit: Unit, policy: Policy | None, request: Request, ledger: Ledger) -> Call:
        if policy is None:
            return Call(unit.index, unit.tier, request, began=ledger.first_token)
        watch = None
        if type(policy).watch is not Policy.watch:
            watch = policy.watch(self._moment(unit, request, None, ledger))
        began = ledger.first_token
        return Call(unit.index, unit.tier, request, reads=policy.reads, watch=watch, began=began)

    def _moment(
        self, unit: Unit, request: Request, answer: Answer | None, ledger: Ledger
    ) -> Moment:
        return Moment(
            request=request,
            tier=unit.index,
            name=unit.tier.label,
            tiers=self.tiers,
            answer=answer,
            attempts=tuple(ledger.attempts),
            answers=tuple(ledger.answers),
            elapsed_s=ledger.elapsed_s,
            cost_usd=ledger.cost_usd,
            asked=unit.tier,
            meter=ledger,
        )

    def _before(
        self, policy: Policy, unit: Unit, request: Request, ledger: Ledger, admit: Admit | None
    ) -> Plan[Decision | None]:
        refusal = admit(unit.tier, request) if admit is not None else None
        if refusal is not None:
            return Decision(True, "admission", code=refusal[0], reason=refusal[1])
        if type(policy).before is Policy.before:
            return None
        try:
            plan = resolve(policy.before(self._moment(unit, request, None, ledger)), policy.name)
            route = yield from ledger.metered(plan)
        except CascadeError:
            raise
        except Exception:
            # a route that breaks skips nothing: the tier is asked and its answer decided
            _log.warning(
                "policy %r failed before tier %r", policy.name, unit.tier.label, exc_info=True
            )
            return None
        return route if route is not None and route.defer else None

    def _skip(
        self, route: Decision, units: tuple[Unit, ...], place: int, ledger: Ledger
    ) -> Plan[int]:
        target = _target(route, units, place)
        for passed in units[place:target]:
            attempt = ledger.skip(passed.index, passed.tier.label, route)
            yield Emit(TierSkipped(attempt))
        return target

    def _decide(
        self, policy: Policy, unit: Unit, request: Request, said: Said, ledger: Ledger
    ) -> Plan[Decision]:
        if said.decision is not None:
            return said.decision
        begun = self.clock()
        moment = self._moment(unit, request, said.answer, ledger)
        try:
            decision = policy.after(moment)
            if type(decision) is not Decision:
                decision = yield from ledger.metered(resolve(decision, policy.name))
        except CascadeError as error:
            # the answer is paid for, so it stands in the record of the failed call
            ledger.refuse(unit, said.answer, policy.name, error)
            raise
        except Exception as error:
            # a policy that breaks must not accept silently
            reason = f"the policy raised {error_text(error)}"[:300]
            decision = Decision(True, policy.name, code="policy_error", reason=reason)
        if decision is None:
            decision = Decision(False, policy.name, code="accept", reason="nothing to object")
        elif not isinstance(decision, Decision):
            raise ConfigurationError(
                f"policy {policy.name!r} must return a Decision or None, got {decision!r}"
            )
        decision = _binding(decision, said)
        return replace(decision, latency_s=self.clock() - begun) if ledger.observed else decision

    def _exhausted(
        self, error: Exception, units: tuple[Unit, ...], ledger: Ledger
    ) -> Plan[tuple[Unit, Answer]]:
        earlier = [
            (attempt, answer)
            for attempt, answer in zip(ledger.attempts, ledger.answers, strict=True)
            if answer is not None and answer.finish_reason != STOPPED
        ]
        if self.on_exhausted == "best" and earlier:
            attempt, answer = earlier[-1]
            shown = yield Relay(answer)
            return next(u for u in units if u.index == attempt.tier), shown
        if ledger.expired and isinstance(error, TimeoutError):
            error = ledger.too_late()
        if not ledger.attempts:
            raise error
        failed = ledger.attempts[-1]
        error.add_note(f"raised by tier {failed.name!r} (index {failed.tier}) of the cascade")
        for attempt in ledger.attempts[:-1]:
            what = attempt.error or f"{attempt.action}: {attempt.reason}"
            error.add_note(f"earlier tier {attempt.name!r}: {what}")
        raise error

    def _pinned(self, pin: str) -> Unit:
        for unit in (*self.units, *(Unit(i, tier) for i, tier in enumerate(self.tiers))):
            if unit.tier.label == pin:
                return unit
        names = ", ".join(repr(tier.label) for tier in self.tiers)
        raise ConfigurationError(f"no tier is named {pin!r}; tiers: {names}")

    def _place(self, unit: Unit) -> int:
        return max(place for place, one in enumerate(self.units) if one.index <= unit.index)


def _binding(decision: Decision, said: Said) -> Decision:
    """Hold a decision to what has already happened: shown stays, cut short never stands."""
    if said.shown and decision.defer:
        reason = f"already shown; {decision.reason}"
        return replace(decision, defer=False, code="committed", reason=reason)
    if said.answer.finish_reason == STOPPED and not decision.defer:
        reason = f"the draft was stopped early; {decision.reason}"
        return replace(decision, defer=True, code="stopped", reason=reason, answer=None)
    return decision


def _action(decision: Decision, answer: Answer) -> Action:
    if not decision.defer:
        return "accept"
    return "stopped" if answer.finish_reason == STOPPED else "escalate"


def _target(decision: Decision, units: tuple[Unit, ...], place: int) -> int:
    """Return the place of the next unit; a `goto` never leads back or past the end."""
    if decision.goto is None:
        return place + 1
    ahead = [i for i, unit in enumerate(units) if unit.index >= decision.goto and i > place]
    return ahead[0] if ahead else len(units) - 1
