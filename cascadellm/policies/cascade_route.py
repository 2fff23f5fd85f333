"""Cascade routing: the next tier, a later one, or stop, by estimated quality and cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from cascadellm.answer import Answer, Decision
from cascadellm.effects import Compute, Plan
from cascadellm.errors import ConfigurationError, ScoreUnavailableError
from cascadellm.policies.base import Moment, Policy
from cascadellm.scores import Score

__all__ = ["CascadeRoute"]


class _Chosen(Protocol):
    following: int | None
    best: int | None
    quality: tuple[float, ...]
    gain: float


@dataclass(frozen=True, slots=True)
class CascadeRoute(Policy):
    """Asks the tier that records say is worth it next, and stops when none is.

    Before the first tier it may pass tiers over, as a router does; after an answer it may stop,
    go on, or pass tiers over, as a cascade does. It never goes back to a tier that it has passed,
    and when it stops it keeps the answer that is expected to be best. Give it to the whole
    cascade: `CascadeLLM(tiers=[...], policy=CascadeRoute(plan, mean_logprob))`.

    Args:
        plan: A `RoutingPlan` of `cascadellm.calibration.fit_cascade_routing`.
        scores: The score of the records that it was fitted on; one, or one per boundary.

    Raises:
        ConfigurationError: An argument is of the wrong kind, or the numbers of tiers differ.

    Source: arXiv 2410.10347 (cascade routing).
    """

    plan: Any
    scores: Score | Callable[[Answer], float | None] | tuple[Any, ...]

    def __post_init__(self) -> None:
        if not callable(getattr(self.plan, "choose", None)):
            raise ConfigurationError(
                "CascadeRoute(plan, scores) expects a RoutingPlan of fit_cascade_routing first, "
                f"got {self.plan!r}"
            )
        boundaries = self.plan.tiers - 1
        one = not isinstance(self.scores, Sequence)
        given: tuple[Any, ...] = (self.scores,) * boundaries if one else tuple(self.scores)  # type: ignore[arg-type]
        if len(given) != boundaries or not all(callable(score) for score in given):
            raise ConfigurationError(
                f"CascadeRoute(scores) expects one score, or {boundaries} for the "
                f"{self.plan.tiers} tiers of its plan, got {self.scores!r}"
            )
        object.__setattr__(self, "scores", given)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset().union(*(getattr(score, "reads", ()) for score in self._each))

    @property
    def _each(self) -> tuple[Any, ...]:
        assert isinstance(self.scores, tuple)
        return self.scores

    def before(self, moment: Moment) -> Plan[Decision | None]:
        self._check(moment)
        chosen: _Chosen = yield Compute(lambda: self._chosen(moment, moment.tier - 1))
        if chosen.following is None or chosen.following <= moment.tier:
            return None
        name = moment.tiers[chosen.following].label
        return Decision(
            True,
            self.name,
            code="route",
            reason=f"{name!r} is worth asking at once: {self._told(moment, chosen)}",
            goto=chosen.following,
        )

    def after(self, moment: Moment) -> Plan[Decision]:
        self._check(moment)
        chosen: _Chosen = yield Compute(lambda: self._chosen(moment, moment.tier))
        defer = chosen.following is not None
        sign = ">" if defer else "<="
        kept = None
        reason = f"going on gains {chosen.gain:.3g} {sign} 0; {self._told(moment, chosen)}"
        if not defer and chosen.best is not None and chosen.best != moment.tier:
            writer = moment.tiers[chosen.best].label
            reason += f"; the answer of {writer!r} is kept"
            earlier = _answers(moment)[chosen.best]
            kept = replace(earlier, spans=((0, len(earlier.text), writer),))
        return Decision(
            defer,
            self.name,
            score_name="minus_expected_gain",
            score=-chosen.gain,
            threshold=0.0,
            code="cascade_route",
            reason=reason,
            goto=chosen.following,
            answer=kept,
        )

    def _check(self, moment: Moment) -> None:
        if len(moment.tiers) != self.plan.tiers:
            raise ConfigurationError(
                f"CascadeRoute's plan was fitted on {self.plan.tiers} tiers, the cascade has "
                f"{len(moment.tiers)}; fit a plan on records of these tiers"
            )

    def _chosen(self, moment: Moment, after: int) -> _Chosen:
        answers = _answers(moment)
        scores = {tier: _value(self._each[tier], answer) for tier, answer in answers.items()}
        can_stop = moment.answer is not None
        chosen: _Chosen = self.plan.choose(
            scores, moment.request.text, after=after, can_stop=can_stop
        )
        return chosen

    def _told(self, moment: Moment, chosen: _Chosen) -> str:
        pairs = zip(moment.tiers, chosen.quality, strict=True)
        return "expected " + ", ".join(f"{tier.label} {quality:.2f}" for tier, quality in pairs)


def _answers(moment: Moment) -> dict[int, Answer]:
    """Return the answers that could be kept, by tier."""
    found = {
        attempt.tier: answer
        for attempt, answer in zip(moment.attempts, moment.answers, strict=True)
        if answer is not None and attempt.action == "escalate"
    }
    return found if moment.answer is None else {**found, moment.tier: moment.answer}


def _value(score: Any, answer: Answer) -> float | None:
    try:
        value = score(answer.over("answer"))
    except ScoreUnavailableError:
        return None
    return None if value is None else float(value)
