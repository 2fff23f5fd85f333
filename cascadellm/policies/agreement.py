"""Agreement: do several small models say the same?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cascadellm.answer import Answer, Decision
from cascadellm.effects import Call, Plan
from cascadellm.policies.asking import (
    as_tier,
    as_tiers,
    ask_each,
    check_fraction,
    not_asked,
)
from cascadellm.policies.base import Moment, Policy
from cascadellm.policies.votes import check_key, cluster

__all__ = ["Agreement"]


@dataclass(frozen=True, slots=True)
class Agreement(Policy):
    """Asks further models and accepts the best supported answer if enough of them agree.

    All are asked together, each once, with the call's own messages. The tier's draft is one
    vote; of equal groups the one with the draft, then the one named first, is kept. A model
    that fails is a vote for nothing.

    Args:
        models: The further models: anything that the adapter takes as a tier.
        threshold: Least share of all votes, the draft's included, in the largest group;
            1 = all must agree.
        key: When two answers are the same; see `SelfConsistency`.
        kwargs: Call arguments for the further models.
        embed: Embedding model, for `embedding`.
        judge: Model that compares answers, for `judge`.
        similarity: Least cosine of two answers that are the same, for `embedding`.

    Raises:
        ConfigurationError: An argument is out of range or lacks its model.
    """

    models: Any = field(hash=False)
    threshold: float = 1.0
    key: str | Callable[[Answer], Any] = field(default="normalised", kw_only=True)
    kwargs: Mapping[str, Any] = field(default_factory=dict, kw_only=True, hash=False)
    embed: Any = field(default=None, kw_only=True, hash=False)
    judge: Any = field(default=None, kw_only=True, hash=False)
    similarity: float = field(default=0.9, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", as_tiers("Agreement", self.models))
        check_fraction("Agreement", "threshold", self.threshold)
        check_fraction("Agreement", "similarity", self.similarity)
        check_key("Agreement", self.key, self.embed, self.judge)
        object.__setattr__(self, "kwargs", dict(self.kwargs))
        if self.judge is not None:
            object.__setattr__(self, "judge", as_tier(self.judge))

    def after(self, moment: Moment) -> Plan[Decision]:
        calls = [
            Call(-1, tier, moment.request, kwargs=self.kwargs, purpose="agreement")
            for tier in self.models
        ]
        found = yield from ask_each(calls)
        voters = [
            (tier.label, one)
            for tier, one in zip(self.models, found, strict=True)
            if isinstance(one, Answer)
        ]
        answers = [moment.draft, *(one for _, one in voters)]
        failures = [one for one in found if isinstance(one, Exception)]
        if len(failures) == len(found):
            return not_asked(self.name, moment, failures[0], "agreement of models")
        try:
            places = yield from cluster(
                answers,
                question=lambda: moment.request.text,
                key=self.key,
                embed=self.embed,
                judge=self.judge,
                similarity=self.similarity,
            )
        except Exception as error:
            return not_asked(self.name, moment, error, "judge of agreement")
        counts = [places.count(place) for place in range(max(places) + 1)]
        largest = max(counts)
        best = counts.index(largest)
        place = places.index(best)
        share = largest / (1 + len(self.models))
        defer = share < self.threshold
        reason = f"{largest} of {1 + len(self.models)} models agree"
        kept = None
        if not defer and place != 0:
            writer = voters[place - 1][0]
            reason += f"; the answer of {writer!r} is kept"
            # the tier did not write this answer, and the record must not say so
            kept = replace(answers[place], spans=((0, len(answers[place].text), writer),))
        return Decision(
            defer,
            self.name,
            score_name="agreement",
            score=share,
            threshold=self.threshold,
            reason=reason,
            answer=kept,
        )
