"""Deciding while a draft is still growing: stop a hopeless one, show a good one.

Both policies read the first tokens only, so the finished answer gets the same decision as
the growing one: a tier that cannot stream, or gives no scores while it writes, only loses
the time that stopping early would have saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from cascadellm.answer import Answer, Decision
from cascadellm.effects import Verdict, Watch
from cascadellm.errors import ConfigurationError
from cascadellm.policies.asking import check_count
from cascadellm.policies.base import Moment, Policy
from cascadellm.policies.threshold import score_label
from cascadellm.scores import Score

__all__ = ["EarlyAbort", "PrefixCommit"]


def _check(owner: str, score: Any, threshold: Any) -> None:
    if not callable(score):
        raise ConfigurationError(f"{owner} expects a score first, got {score!r}")
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
        raise ConfigurationError(f"{owner} expects a number as threshold, got {threshold!r}")
    if math.isnan(threshold):
        raise ConfigurationError(f"{owner} expects a number as threshold, got NaN")


def _prefix(answer: Answer, count: int) -> Answer | None:
    """Return the answer with its first tokens only, None while it has fewer."""
    tokens = answer.over("answer").tokens or ()
    return replace(answer, tokens=tokens[:count]) if len(tokens) >= count else None


def _scored(score: Callable[[Answer], float | None], answer: Answer) -> float | None:
    value = score(answer)
    return None if value is None or math.isnan(value) else float(value)


@dataclass(frozen=True, slots=True)
class EarlyAbort(Policy):
    """Stops a draft whose first tokens score low, and defers; accepts any other draft.

    Join it with the policy that decides about finished drafts:
    `EarlyAbort(mean_logprob, -1.5, after_tokens=8) | Threshold(mean_logprob, -0.35)`.

    Args:
        score: A `Score`, or a function from an `Answer` to a number.
        threshold: Least score of the first tokens. Unit: the score's.
        after_tokens: How many tokens are scored; a shorter draft is never stopped.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    score: Score | Callable[[Answer], float | None]
    threshold: float
    after_tokens: int = field(default=16, kw_only=True)

    def __post_init__(self) -> None:
        _check("EarlyAbort", self.score, self.threshold)
        check_count("EarlyAbort", "after_tokens", self.after_tokens, 1)
        object.__setattr__(self, "threshold", float(self.threshold))

    @property
    def reads(self) -> frozenset[str]:
        return getattr(self.score, "reads", frozenset())

    def watch(self, moment: Moment) -> Watch:
        def watch(answer: Answer) -> Verdict:
            prefix = _prefix(answer, self.after_tokens)
            if prefix is None:
                return "go_on"
            value = _scored(self.score, prefix)
            return "stop" if value is not None and value < self.threshold else "enough"

        return watch

    def after(self, moment: Moment) -> Decision:
        prefix = _prefix(moment.draft, self.after_tokens)
        value = None if prefix is None else _scored(self.score, prefix)
        defer = value is not None and value < self.threshold
        if prefix is None:
            reason = f"fewer than {self.after_tokens} scored tokens: not stopped"
        elif value is None:
            reason = f"no value of {score_label(self.score)} for the first tokens: not stopped"
        else:
            reason = (
                f"{score_label(self.score)} of the first {self.after_tokens} tokens "
                f"{value:.4g} {'<' if defer else '>='} {self.threshold:.4g}"
            )
        return Decision(
            defer,
            self.name,
            # an accepted draft was not scored as a whole, so no score is claimed for it
            score_name=score_label(self.score) if defer else None,
            score=value if defer else None,
            threshold=self.threshold if defer else None,
            code="early_abort" if defer else "not_stopped",
            reason=reason,
        )


@dataclass(frozen=True, slots=True)
class PrefixCommit(Policy):
    """Decides by the first tokens alone: shows a good draft live from there on, or stops it.

    The decision is final: what is shown is never taken back, also when the rest turns out
    badly. A draft that may become a tool call (any call with tools bound) is never shown
    before it is finished.

    Args:
        score: A `Score`, or a function from an `Answer` to a number.
        threshold: Least score of the first tokens. Unit: the score's.
        tokens: How many tokens are scored; a shorter answer is scored as a whole.
        missing: What a missing score does, `defer` or `accept`; nothing is shown live then.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    score: Score | Callable[[Answer], float | None]
    threshold: float
    tokens: int = field(default=16, kw_only=True)
    missing: Literal["defer", "accept"] = field(default="defer", kw_only=True)

    def __post_init__(self) -> None:
        _check("PrefixCommit", self.score, self.threshold)
        check_count("PrefixCommit", "tokens", self.tokens, 1)
        if self.missing not in ("defer", "accept"):
            raise ConfigurationError(f"missing must be 'defer' or 'accept', got {self.missing!r}")
        object.__setattr__(self, "threshold", float(self.threshold))

    @property
    def reads(self) -> frozenset[str]:
        return getattr(self.score, "reads", frozenset())

    def watch(self, moment: Moment) -> Watch:
        may_call = bool(moment.request.tools)

        def watch(answer: Answer) -> Verdict:
            prefix = _prefix(answer, self.tokens)
            if prefix is None:
                return "go_on"
            value = _scored(self.score, prefix)
            if value is None:
                return "enough"
            if value < self.threshold:
                return "stop"
            return "enough" if may_call or answer.tool_calls else "commit"

        return watch

    def after(self, moment: Moment) -> Decision:
        draft = moment.draft
        prefix = _prefix(draft, self.tokens)
        value = _scored(self.score, draft.over("answer") if prefix is None else prefix)
        name = score_label(self.score)
        if value is None:
            accepts = self.missing == "accept"
            return Decision(
                not accepts,
                self.name,
                score_name=name,
                threshold=self.threshold,
                code="no_logprobs" if draft.tokens is None else "no_score",
                reason=f"no value of {name}: {'accepted' if accepts else 'deferred'} unscored",
            )
        sign = "<" if value < self.threshold else ">="
        return Decision(
            value < self.threshold,
            self.name,
            score_name=name,
            score=value,
            threshold=self.threshold,
            code="prefix",
            reason=f"{name} of the first {self.tokens} tokens {value:.4g} {sign} "
            f"{self.threshold:.4g}",
        )
