"""Hedging: let the next tier start while this one is still writing or being judged."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cascadellm.answer import Answer
from cascadellm.effects import Plan, Watch
from cascadellm.errors import ConfigurationError
from cascadellm.policies.asking import check_count
from cascadellm.policies.base import Hedging, Moment, Policy, PolicyLike, as_policy
from cascadellm.scores import Score

__all__ = ["Hedge"]


@dataclass(frozen=True, slots=True)
class Hedge(Policy):
    """Decides as another policy does, and meanwhile lets the next tier run ahead.

    A deferred call then waits for the slower of (draft and decision) and the next tier, not
    for their sum. An accepted draft cancels the next tier; a next tier that answers while
    the draft is still being written ends the draft. Each cancelled call stands in the record
    with what is known of its cost. Nothing is shown before one of them is accepted.

    Async calls are cancelled; a sync call cannot be, unless the tier streams: then its
    stream is closed at the next token, else its result is dropped.

    Args:
        policy: Decides about the draft.
        after_s: Seconds after which the next tier starts; 0 = together; None = only by `when`.
        when: Score of the growing or finished draft that starts the next tier when low.
        below: Low means less than this. Unit: the score's.
        tokens: Tokens of the growing draft before its score counts.

    Raises:
        ConfigurationError: Neither `after_s` nor `when` is given, or a number is out of range.
    """

    policy: PolicyLike
    after_s: float | None = field(default=None, kw_only=True)
    when: Score | Callable[[Answer], float | None] | None = field(default=None, kw_only=True)
    below: float | None = field(default=None, kw_only=True)
    tokens: int = field(default=8, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy", as_policy(self.policy))
        if self.inner.level == "token":
            raise ConfigurationError("Hedge hedges answer-level policies only")
        if self.after_s is None and self.when is None:
            raise ConfigurationError("Hedge expects after_s= (seconds), when= (a score), or both")
        if self.after_s is not None and not 0 <= self.after_s < math.inf:
            raise ConfigurationError(f"after_s must be seconds >= 0, got {self.after_s!r}")
        if (self.when is None) != (self.below is None):
            raise ConfigurationError("Hedge needs when= and below= together")
        if self.when is not None and not callable(self.when):
            raise ConfigurationError(f"when= must be a score, got {self.when!r}")
        check_count("Hedge", "tokens", self.tokens, 1)

    @property
    def inner(self) -> Policy:
        """The policy that decides."""
        assert isinstance(self.policy, Policy)
        return self.policy

    @property
    def reads(self) -> frozenset[str]:
        wanted: frozenset[str] = getattr(self.when, "reads", frozenset())
        return self.inner.reads | wanted

    def before(self, moment: Moment) -> Any:
        return self.inner.before(moment)

    def watch(self, moment: Moment) -> Watch | None:
        return self.inner.watch(moment)

    def hedge(self, moment: Moment) -> Hedging:
        after_s = math.inf if self.after_s is None else self.after_s
        return Hedging(after_s, self.when, self.below or 0.0, self.tokens)

    def after(self, moment: Moment) -> Any | Plan[Any]:
        return self.inner.after(moment)
