"""What a policy can see when it decides, and when the next tier may start beside this one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from cascadellm.answer import Answer, Attempt, Request, SideCall
from cascadellm.errors import ConfigurationError
from cascadellm.tier import Tier

__all__ = ["Hedging", "Meter", "Moment"]


class Meter(Protocol):
    """What a call has taken by now, judges of the decision under way included."""

    @property
    def elapsed_s(self) -> float:
        """Time since the call began."""

    @property
    def cost_usd(self) -> float | None:
        """Spent by now; None when unknown."""

    @property
    def calls(self) -> tuple[SideCall, ...]:
        """What policies have asked since the last finished attempt."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What a policy can see.

    Attributes:
        request: What was asked.
        tier: Index of the tier at this boundary.
        name: Its name.
        tiers: All tiers of the cascade, cheap to costly.
        answer: The tier's answer; None in `before`.
        attempts: What happened earlier in this call.
        answers: Earlier answers of this call, by attempt; None where there is none.
        elapsed_s: Time since the call began, up to this moment.
        cost_usd: Spent before this tier's own answer and decision; None when unknown.
        asked: The tier itself, or the pair that stands for two tiers.
        meter: What the call has taken by now; it moves on while the policy asks models.
    """

    request: Request
    tier: int
    name: str
    tiers: tuple[Tier, ...]
    answer: Answer | None = None
    attempts: tuple[Attempt, ...] = ()
    answers: tuple[Answer | None, ...] = ()
    elapsed_s: float = 0.0
    cost_usd: float | None = 0.0
    asked: Tier | None = None
    meter: Meter | None = field(default=None, compare=False, repr=False)

    @property
    def draft(self) -> Answer:
        """The answer, where the moment has one."""
        if self.answer is None:
            raise ConfigurationError("there is no answer before the tier was asked")
        return self.answer


@dataclass(frozen=True, slots=True)
class Hedging:
    """When the next tier starts while this one is still being asked or judged.

    Attributes:
        after_s: Seconds after the start of this tier; infinity = only by the score.
        score: Start it as soon as this score of the growing or finished draft is low, or None.
        below: Low means less than this.
        tokens: Tokens of a growing draft before its score counts.
    """

    after_s: float
    score: Callable[[Answer], float | None] | None = None
    below: float = 0.0
    tokens: int = 1

    def wanted(self, answer: Answer) -> bool:
        """Return whether this draft's score is low."""
        if self.score is None or len(answer.over("answer").tokens or ()) < self.tokens:
            return False
        value = self.score(answer.over("answer"))
        return value is not None and value < self.below
