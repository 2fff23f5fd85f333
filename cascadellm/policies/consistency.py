"""Self-consistency: does the tier say the same when it is asked again?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cascadellm.answer import Answer, Decision
from cascadellm.effects import Call, Plan
from cascadellm.errors import ConfigurationError
from cascadellm.policies.asking import as_tier, ask_each, check_count, check_fraction, not_asked
from cascadellm.policies.base import Moment, Policy
from cascadellm.policies.votes import check_key, cluster, semantic_entropy

__all__ = ["SelfConsistency", "SemanticEntropy"]

_SAMPLED: Mapping[str, Any] = {"temperature": 0.7}


def resample(moment: Moment, count: int, kwargs: Mapping[str, Any]) -> list[Call]:
    """Return calls that ask the moment's tier again."""
    tier = moment.asked or moment.tiers[moment.tier]
    call = Call(moment.tier, tier, moment.request, kwargs=dict(kwargs), purpose="resample")
    return [call] * count


@dataclass(frozen=True, slots=True)
class SelfConsistency(Policy):
    """Asks the tier again and accepts iff a large enough share of the votes agrees.

    The draft is the first vote. When the largest group does not hold the draft, its first
    member is kept as the answer. A sample that fails is a vote for nothing.

    Args:
        n: Votes, the draft included.
        threshold: Least share of the n votes in the largest group.
        key: When two answers are the same: `exact`, `normalised`, `numeric`, `embedding`,
            `judge`, or a function from an `Answer` to a hashable key (None = like no other).
        together: Samples asked at once; after each round the asking stops as soon as the
            vote is decided.
        keep: `majority`, or `draft` to accept only while the draft is in the largest group.
        kwargs: Call arguments of the samples; without randomness all votes are equal.
        embed: Embedding model, for `embedding`.
        judge: Model that compares answers, for `judge`.
        similarity: Least cosine of two answers that are the same, for `embedding`.

    Raises:
        ConfigurationError: An argument is out of range or lacks its model.

    Source: arXiv 2203.11171; as a deferral signal arXiv 2310.03094.
    """

    n: int = 5
    threshold: float = 0.6
    key: str | Callable[[Answer], Any] = field(default="normalised", kw_only=True)
    together: int = field(default=2, kw_only=True)
    keep: Literal["majority", "draft"] = field(default="majority", kw_only=True)
    kwargs: Mapping[str, Any] = field(
        default_factory=lambda: dict(_SAMPLED), kw_only=True, hash=False
    )
    embed: Any = field(default=None, kw_only=True, hash=False)
    judge: Any = field(default=None, kw_only=True, hash=False)
    similarity: float = field(default=0.9, kw_only=True)

    def __post_init__(self) -> None:
        check_count("SelfConsistency", "n", self.n, 2)
        check_count("SelfConsistency", "together", self.together, 1)
        check_fraction("SelfConsistency", "threshold", self.threshold)
        check_fraction("SelfConsistency", "similarity", self.similarity)
        check_key("SelfConsistency", self.key, self.embed, self.judge)
        if self.keep not in ("majority", "draft"):
            raise ConfigurationError(f"keep must be 'majority' or 'draft', got {self.keep!r}")
        object.__setattr__(self, "kwargs", dict(self.kwargs))
        if self.judge is not None:
            object.__setattr__(self, "judge", as_tier(self.judge))

    def after(self, moment: Moment) -> Plan[Decision]:
        answers, asked, failure = [moment.draft], 1, None
        while True:
            try:
                places = yield from _grouped(self, moment, answers)
            except Exception as error:
                return not_asked(self.name, moment, error, "judge of samples")
            best, largest = _largest(places)
            left = self.n - asked
            if largest / self.n >= self.threshold or (
                (largest + left) / self.n < self.threshold or not left
            ):
                break
            calls = resample(moment, min(self.together, left), self.kwargs)
            found = yield from ask_each(calls)
            asked += len(calls)
            answers += [one for one in found if isinstance(one, Answer)]
            failure = next((one for one in found if isinstance(one, Exception)), failure)
        if failure is not None and len(answers) == 1:
            return not_asked(self.name, moment, failure, "resample")
        return self._decision(answers, places, best, largest, asked)

    def _decision(
        self, answers: list[Answer], places: list[int], best: int, largest: int, asked: int
    ) -> Decision:
        # stopped early, the share is a bound on the threshold's own side
        share = (largest + self.n - asked) / self.n
        if largest / self.n >= self.threshold:
            share = largest / self.n
        defer = share < self.threshold
        code = "score"
        reason = f"{largest} of {asked} votes agree ({self.n} at most)"
        if not defer and self.keep == "draft" and best != 0:
            defer, code = True, "outvoted"
            reason += ", but not with the draft"
        kept = None if best == 0 or defer else answers[places.index(best)]
        return Decision(
            defer,
            self.name,
            score_name="vote_share",
            score=share,
            threshold=self.threshold,
            code=code,
            reason=reason,
            answer=kept,
        )


@dataclass(frozen=True, slots=True)
class SemanticEntropy(Policy):
    """Accepts iff the samples scatter little over groups of the same meaning.

    The score is minus the entropy of the groups' shares, so 0 is full agreement and -ln n no
    agreement at all.

    Args:
        threshold: Least score. Unit: nats; at most 0.
        n: Votes, the draft included.
        key: As in `SelfConsistency`.
        kwargs: Call arguments of the samples.
        embed: Embedding model, for `embedding`.
        judge: Model that compares answers, for `judge`.
        similarity: As in `SelfConsistency`.

    Raises:
        ConfigurationError: An argument is out of range or lacks its model.

    Source: arXiv 2302.09664.
    """

    threshold: float = -0.7
    n: int = 5
    key: str | Callable[[Answer], Any] = field(default="normalised", kw_only=True)
    kwargs: Mapping[str, Any] = field(
        default_factory=lambda: dict(_SAMPLED), kw_only=True, hash=False
    )
    embed: Any = field(default=None, kw_only=True, hash=False)
    judge: Any = field(default=None, kw_only=True, hash=False)
    similarity: float = field(default=0.9, kw_only=True)

    def __post_init__(self) -> None:
        check_count("SemanticEntropy", "n", self.n, 2)
        check_fraction("SemanticEntropy", "similarity", self.similarity)
        check_key("SemanticEntropy", self.key, self.embed, self.judge)
        if not isinstance(self.threshold, (int, float)) or not self.threshold <= 0:
            raise ConfigurationError(
                f"SemanticEntropy(threshold) is minus an entropy, so at most 0 nats, "
                f"got {self.threshold!r}"
            )
        object.__setattr__(self, "kwargs", dict(self.kwargs))
        if self.judge is not None:
            object.__setattr__(self, "judge", as_tier(self.judge))

    def after(self, moment: Moment) -> Plan[Decision]:
        found = yield from ask_each(resample(moment, self.n - 1, self.kwargs))
        failures = [one for one in found if isinstance(one, Exception)]
        if failures and len(failures) == len(found):
            return not_asked(self.name, moment, failures[0], "resample")
        answers = [moment.draft, *(one for one in found if isinstance(one, Answer))]
        try:
            places = yield from _grouped(self, moment, answers)
        except Exception as error:
            return not_asked(self.name, moment, error, "judge of samples")
        # a failed sample agrees with nothing: it is a group of its own
        places += [max(places) + 1 + i for i in range(len(failures))]
        score = -semantic_entropy(places)
        sign = "<" if score < self.threshold else ">="
        return Decision(
            score < self.threshold,
            self.name,
            score_name="minus_semantic_entropy",
            score=score,
            threshold=self.threshold,
            reason=f"{len(set(places))} meanings in {self.n} votes: "
            f"{score:.3g} {sign} {self.threshold:g} nats",
        )


def _grouped(
    policy: SelfConsistency | SemanticEntropy, moment: Moment, answers: list[Answer]
) -> Plan[list[int]]:
    return cluster(
        answers,
        question=lambda: moment.request.text,
        key=policy.key,
        embed=policy.embed,
        judge=policy.judge,
        similarity=policy.similarity,
    )


def _largest(places: list[int]) -> tuple[int, int]:
    """Return the largest group and its size; the earliest one of equals."""
    counts = [places.count(place) for place in range(max(places) + 1)]
    size = max(counts)
    return counts.index(size), size
