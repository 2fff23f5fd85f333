"""The book of one call: attempts, side calls, costs; becomes its `Trace`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from cascadellm.answer import Action, Answer, Attempt, Decision, SideCall, Trace, Usage
from cascadellm.effects import Await, Call, CallMany, Effect, Judge, Plan
from cascadellm.errors import BudgetExceededError, CascadeError, DeadlineExceededError
from cascadellm.resilience import classify, unbilled
from cascadellm.scrub import error_text, scrubbed_text
from cascadellm.tier import Tier

__all__ = ["Ledger", "Unit"]

_LEFT = "the caller left before the call had ended"


@dataclass(frozen=True, slots=True)
class Unit:
    """One place that the main flow visits: a tier, or a pair joined from two.

    Attributes:
        index: The tier's index (the upper one of a pair).
        tier: The tier.
        draft: Name of a pair's draft model, None for a plain tier.
    """

    index: int
    tier: Tier
    draft: str | None = None


@dataclass(slots=True, eq=False)
class Ledger:
    """Mutable only while its call runs; nothing outlives or shares it.

    Attributes:
        observed: Whether anybody listens to events; without it the usual ones are not built.
        run_id: Id of the call in its record, or None.
    """

    clock: Callable[[], float] = time.perf_counter
    deadline_s: float | None = None
    observed: bool = True
    run_id: str | None = None
    attempts: list[Attempt] = field(default_factory=list)
    answers: list[Answer | None] = field(default_factory=list)
    started: float = 0.0
    _begun: float = 0.0
    _side: list[SideCall] = field(default_factory=list)
    _first_token: float | None = None
    _open: Unit | None = None
    _heard: Answer | None = None

    def __post_init__(self) -> None:
        self.started = self._begun = self.clock()

    @property
    def elapsed_s(self) -> float:
        """Time since the call began."""
        return self.clock() - self.started

    @property
    def expired(self) -> bool:
        """Whether the call's deadline has passed."""
        return self.deadline_s is not None and self.elapsed_s >= self.deadline_s

    def too_late(self) -> DeadlineExceededError:
        """Return the error of a passed deadline, with the best earlier answer."""
        best = next((answer for answer in reversed(self.answers) if answer is not None), None)
        return DeadlineExceededError(
            f"the call did not end within its deadline of {self.deadline_s:g} s; raise "
            "deadline_s, or set on_exhausted='best' to get the best earlier answer",
            best,
        )

    def limited(self, tier: Tier) -> Tier:
        """Return the tier with its timeout cut to what is left of the deadline."""
        if self.deadline_s is None:
            return tier
        # no timeout may be 0
        left = max(self.deadline_s - self.elapsed_s, 1e-3)
        return tier.but(timeout_s=left if tier.timeout_s is None else min(left, tier.timeout_s))

    @property
    def left_s(self) -> float | None:
        """What is left of the deadline, never below 0; None without one."""
        return None if self.deadline_s is None else max(0.0, self.deadline_s - self.elapsed_s)

    @property
    def cost_usd(self) -> float | None:
        """Spent so far; None when a price or usage is unknown."""
        costs = [attempt.cost_usd for attempt in self.attempts if attempt.action != "skip"]
        costs += [call.cost_usd for a in self.attempts for call in a.calls]
        costs += [call.cost_usd for call in self._side]
        return None if None in costs else sum(cost for cost in costs if cost is not None)

    @property
    def calls(self) -> tuple[SideCall, ...]:
        """What policies have asked since the last finished attempt."""
        return tuple(self._side)

    @property
    def drafts(self) -> tuple[str | None, ...]:
        """Text per attempt."""
        return tuple(None if answer is None else answer.text for answer in self.answers)

    @property
    def attempt_s(self) -> float:
        """Time since the current attempt began."""
        return self.clock() - self._begun

    def begin(self, unit: Unit) -> None:
        """Start the clock of the next attempt."""
        self._begun = self.clock()
        self._first_token = None
        self._open, self._heard = unit, None

    def hear(self, answer: Answer) -> None:
        """Note that the current attempt's tier answered, before anything is decided."""
        self._heard = answer

    def leave(self, shown: Answer | None) -> Unit | None:
        """Note the attempt during which the caller left; return its tier if it was shown.

        Args:
            shown: What had been shown of its answer, or None.
        """
        unit, answer = self._open, shown if shown is not None else self._heard
        if unit is None:
            if self.attempts:
                self.attempts[-1] = replace(self.attempts[-1], code="abandoned", reason=_LEFT)
            return None
        latency = self.attempt_s
        usage = answer.usage if answer is not None else None
        cost = unit.tier.cost(usage, latency)
        decision = Decision(False, "", code="abandoned", reason=_LEFT)
        label = unit.tier.label
        attempt = self._add(unit.index, label, "stopped", decision, answer, latency, cost)
        self.attempts[-1] = replace(attempt, policy=None)
        return unit if shown is not None else None

    def first_token(self) -> None:
        """Note that the current attempt's first token arrived."""
        if self._first_token is None:
            self._first_token = self.clock() - self._begun

    def skip(self, index: int, name: str, decision: Decision) -> Attempt:
        """Note a tier that was passed over unasked."""
        return self._add(index, name, "skip", decision, None, 0.0, 0.0)

    def fail(self, unit: Unit, error: BaseException, action: Action = "error") -> Attempt:
        """Note a tier that raised."""
        code = classify(error)
        cost = 0.0 if unit.tier.price is not None and unbilled(code) else None
        latency = self.clock() - self._begun
        decision = Decision(True, "", code=code, reason=f"{type(error).__name__} at this tier")
        attempt = self._add(unit.index, unit.tier.label, action, decision, None, latency, cost)
        attempt = replace(attempt, policy=None, error=error_text(error))
        self.attempts[-1] = attempt
        return attempt

    def keep(
        self,
        unit: Unit,
        action: Action,
        answer: Answer,
        decision: Decision | None,
        latency_s: float,
    ) -> Attempt:
        """Note a tier that answered, and what was decided about it."""
        cost = unit.tier.cost(answer.usage, latency_s)
        return self._add(unit.index, unit.tier.label, action, decision, answer, latency_s, cost)

    def refuse(self, unit: Unit, answer: Answer, policy: str, error: CascadeError) -> None:
        """Note a tier that answered, and that its policy ended the call with an error."""
        code = "budget" if isinstance(error, BudgetExceededError) else "policy_error"
        decision = Decision(True, policy, code=code, reason=scrubbed_text(str(error))[:300])
        attempt = self.keep(unit, "error", answer, decision, self.attempt_s)
        self.attempts[-1] = replace(attempt, error=error_text(error))

    def _add(
        self,
        index: int,
        name: str,
        action: Action,
        decision: Decision | None,
        answer: Answer | None,
        latency_s: float,
        cost_usd: float | None,
    ) -> Attempt:
        usage = answer.usage if answer is not None else None
        attempt = Attempt(
            tier=index,
            name=name,
            action=action,
            policy=decision.policy if decision else None,
            score_name=decision.score_name if decision else None,
            score=decision.score if decision else None,
            threshold=decision.threshold if decision else None,
            code=decision.code if decision else "last",
            reason=decision.reason if decision else "the last tier's answer is accepted",
            latency_s=latency_s,
            first_token_s=self._first_token,
            input_tokens=usage.input_tokens if usage else None,
            output_tokens=usage.output_tokens if usage else None,
            cost_usd=cost_usd,
            calls=tuple(self._side),
        )
        self._side.clear()
        self._open = None
        self.attempts.append(attempt)
        self.answers.append(answer)
        return attempt

    def metered(self, plan: Plan[Any]) -> Plan[Any]:
        """Run a policy's plan and charge every call that it makes."""
        throw: Exception | None = None
        result: Any = None
        while True:
            try:
                effect = plan.throw(throw) if throw is not None else plan.send(result)
            except StopIteration as stop:
                return stop.value
            throw = None
            begun = self.clock()
            try:
                result = yield effect if self.deadline_s is None else self._in_time(effect)
            except Exception as error:
                throw = error
                self._charge(effect, error, self.clock() - begun)
            else:
                self._charge(effect, result, self.clock() - begun)

    def _in_time(self, effect: Effect) -> Effect:
        """Return what a policy asks for, cut to what is left of the deadline."""
        if isinstance(effect, (Call, Judge)):
            return replace(effect, tier=self.limited(effect.tier))
        if isinstance(effect, CallMany):
            calls = (replace(call, tier=self.limited(call.tier)) for call in effect.calls)
            return CallMany(tuple(calls))
        return replace(effect, timeout_s=self.left_s) if isinstance(effect, Await) else effect

    def _charge(self, effect: Effect, result: Any, latency_s: float) -> None:
        if isinstance(effect, CallMany):
            results = result if isinstance(result, list) else [result] * len(effect.calls)
            for call, one in zip(effect.calls, results, strict=True):
                self._charge(call, one, latency_s)
        elif isinstance(effect, (Call, Judge)):
            self.side(effect.tier, effect.purpose, result, latency_s)

    def side(self, tier: Tier, purpose: str, result: Any, latency_s: float) -> None:
        """Charge a call beside the tiers' own to the attempt being decided."""
        usage: Usage | None = result.usage if isinstance(result, Answer) else None
        failed = result if isinstance(result, BaseException) else None
        cost = tier.cost(usage, latency_s) if failed is None else None
        if failed is not None and tier.price is not None and unbilled(classify(failed)):
            cost = 0.0
        self._side.append(
            SideCall(
                name=tier.label,
                purpose=purpose,
                input_tokens=usage.input_tokens if usage else None,
                output_tokens=usage.output_tokens if usage else None,
                cost_usd=cost,
                latency_s=latency_s,
                error=None if failed is None else error_text(failed, 300),
            )
        )

    def close(self, unit: Unit | None, answer: Answer | None) -> Trace:
        """Return the trace of the finished call."""
        spans: tuple[tuple[int, int, str], ...] = ()
        passed = ("escalate", "skip", "error", "stopped")
        escalated = any(a.action in passed and a.code != "abandoned" for a in self.attempts)
        if unit is not None and answer is not None:
            spans = answer.spans or ((0, len(answer.text), unit.tier.label),)
            if unit.draft is not None:
                escalated = escalated or any(name != unit.draft for _, _, name in spans)
        return Trace(
            answered_by=None if unit is None else unit.tier.label,
            tier=None if unit is None else unit.index,
            escalated=escalated,
            attempts=tuple(self.attempts),
            latency_s=self.elapsed_s,
            cost_usd=self.cost_usd,
            tokens_by_tier=self._tokens_by_tier(),
            spans=spans,
            speculation=None if answer is None else answer.speculation,
            run_id=self.run_id,
        )

    def _tokens_by_tier(self) -> dict[str, dict[str, int]]:
        totals: dict[str, dict[str, int]] = {}
        spent: list[Attempt | SideCall] = []
        for attempt in self.attempts:
            spent += (attempt, *attempt.calls)
        for one in spent:
            if one.input_tokens is None and one.output_tokens is None:
                continue
            row = totals.setdefault(one.name, {"input": 0, "output": 0})
            row["input"] += one.input_tokens or 0
            row["output"] += one.output_tokens or 0
        return totals
