"""Runs one policy between two tiers and returns what it decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cascadellm import Answer, Attempt, Cascade, Outcome, Policy, Price, Request, Tier
from cascadellm.testing import FakeModel
from tests.engine.running import run

PAID = Price(1, 1)
ASKED = Request([{"role": "user", "content": "What is 6 x 7?"}], "What is 6 x 7?")


@dataclass(frozen=True)
class Decided:
    """One decision, with what was said and paid around it."""

    outcome: Outcome
    small: FakeModel
    large: FakeModel

    @property
    def first(self) -> Attempt:
        """The attempt that the policy decided."""
        return self.outcome.trace.attempts[0]

    @property
    def defer(self) -> bool:
        """Whether the policy deferred."""
        return self.first.action != "accept"

    @property
    def answer(self) -> Answer:
        """The accepted answer."""
        return self.outcome.answer


def decide(
    policy: Policy,
    reply: Any = "The answer is 42.",
    *,
    mode: str = "invoke",
    request: Request = ASKED,
    handlers: Sequence[Any] = (),
    **small: Any,
) -> Decided:
    """Ask a small fake, let the policy decide, and return everything."""
    first = FakeModel(reply, name="small", **small)
    last = FakeModel("from large", name="large")
    tiers = [Tier(first, price=PAID), Tier(last, price=PAID)]
    return Decided(run(Cascade(tiers, policy), mode, request, handlers), first, last)


def model(reply: Any, name: str = "judge", **options: Any) -> Tier:
    """Return a priced fake."""
    return Tier(FakeModel(reply, name=name, **options), price=PAID)
