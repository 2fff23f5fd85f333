"""Verification: a model says whether the answer is right.

A verdict that cannot be read, a refusal, a time-out and an error all defer and say why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cascadellm import effects
from cascadellm.answer import Answer, Decision
from cascadellm.effects import Plan
from cascadellm.errors import ConfigurationError
from cascadellm.policies.asking import (
    as_tier,
    ask_each,
    check_count,
    check_fraction,
    first_word_verdict,
    not_asked,
    refused,
    rendered,
    without_reasoning,
)
from cascadellm.policies.base import Moment, Policy
from cascadellm.tier import Tier

__all__ = ["Judge", "PTrue", "SelfVerify", "score_in"]

VERIFY = (
    "Question:\n{question}\n\nProposed answer:\n{answer}\n\n"
    "Is the proposed answer right? Answer True or False."
)
"""The question of `SelfVerify` and `PTrue`; `{question}` and `{answer}` are filled in."""

RUBRIC = "Is the answer correct, complete, and an answer to this question?"

_RATE = (
    "You grade an answer.\n\nQuestion:\n{question}\n\nAnswer:\n{answer}\n\n"
    "Criterion: {rubric}\n\n"
    "Give a whole number from {low:g} (worst) to {high:g} (best). "
    "End with a line of the form\nScore: <number>"
)
_NUMBER = r"(-?\d+(?:\.\d+)?)"
# what judges write, from the clearest form to the barest; the last match of the first counts
_FORMS = (
    re.compile(rf"\[\[\s*{_NUMBER}\s*\]\]"),
    re.compile(rf"\W(?:score|rating|grade|verdict)\W*?(?:is|of)?\W*?{_NUMBER}", re.IGNORECASE),
    re.compile(rf"{_NUMBER}\s*(?:/|out of)\s*\d+", re.IGNORECASE),
)


def _prompt(template: str, moment: Moment) -> str:
    # replaced in one pass: an answer that holds "{question}" must stay as it is
    parts = {"question": moment.request.text, "answer": rendered(moment.draft)}
    return re.sub(r"\{(question|answer)\}", lambda found: parts[found[1]], template)


def _check_template(owner: str, template: Any) -> None:
    if not isinstance(template, str) or "{answer}" not in template:
        raise ConfigurationError(
            f"{owner}(prompt=) must be text with {{answer}} and {{question}}, got {template!r}"
        )


def _verifier(model: Any, moment: Moment) -> Tier:
    return model or moment.asked or moment.tiers[moment.tier]


def _unclear(policy: str, answer: Answer, **fields: Any) -> Decision:
    if refused(answer):
        code, what = "judge_refused", "the judge refused"
    else:
        code, what = "judge_unclear", f"no verdict in {without_reasoning(answer.text)[:60]!r}"
    return Decision(True, policy, code=code, reason=f"{what}: deferred", **fields)


@dataclass(frozen=True, slots=True)
class SelfVerify(Policy):
    """Asks whether the draft is right, several times, and accepts iff enough say so.

    Args:
        threshold: Least share of verdicts that say "right".
        k: Verdicts.
        model: The verifier; None = the tier that wrote the draft.
        prompt: The question, with `{question}` and `{answer}`.
        kwargs: Call arguments of the verifier.

    Raises:
        ConfigurationError: An argument is out of range.

    Source: arXiv 2310.12963 (AutoMix): 8 samples at temperature 1, share judged correct.
    """

    threshold: float = 0.5
    k: int = 8
    model: Any = field(default=None, kw_only=True, hash=False)
    prompt: str = field(default=VERIFY, kw_only=True)
    kwargs: Mapping[str, Any] = field(
        default_factory=lambda: {"temperature": 1.0}, kw_only=True, hash=False
    )

    def __post_init__(self) -> None:
        check_fraction("SelfVerify", "threshold", self.threshold)
        check_count("SelfVerify", "k", self.k, 1)
        _check_template("SelfVerify", self.prompt)
        object.__setattr__(self, "kwargs", dict(self.kwargs))
        if self.model is not None:
            object.__setattr__(self, "model", as_tier(self.model))

    def after(self, moment: Moment) -> Plan[Decision]:
        prompt = _prompt(self.prompt, moment)
        tier = _verifier(self.model, moment)
        one = effects.Judge(tier, prompt, purpose="verify", kwargs=self.kwargs)
        found = yield from ask_each([one] * self.k)
        failures = [answer for answer in found if isinstance(answer, Exception)]
        if len(failures) == len(found):
            return not_asked(self.name, moment, failures[0], "judge")
        said = [answer for answer in found if isinstance(answer, Answer)]
        # a verifier may reason at length before its verdict
        verdicts: list[bool | None] = yield effects.Compute(
            lambda: [first_word_verdict(answer.text) for answer in said]
        )
        if all(verdict is None for verdict in verdicts):
            return _unclear(
                self.name, said[0], score_name="verified_share", threshold=self.threshold
            )
        # a verdict that is missing or unclear counts as "not right"
        right = sum(verdict is True for verdict in verdicts)
        share = right / self.k
        return Decision(
            share < self.threshold,
            self.name,
            score_name="verified_share",
            score=share,
            threshold=self.threshold,
            reason=f"{right} of {self.k} verdicts say that the draft is right",
        )


@dataclass(frozen=True, slots=True)
class PTrue(Policy):
    """Accepts iff the probability of "True" for the draft is large enough.

    Read from the token log-probabilities of the first verdict token: where the alternatives
    are known, true against false among them; else the probability of the token chosen.

    Args:
        threshold: Least probability.
        model: The verifier; None = the tier that wrote the draft. It must give logprobs.
        prompt: The question, with `{question}` and `{answer}`.
        kwargs: Call arguments of the verifier.

    Raises:
        ConfigurationError: An argument is out of range.

    Source: arXiv 2207.05221.
    """

    threshold: float = 0.5
    model: Any = field(default=None, kw_only=True, hash=False)
    prompt: str = field(default=VERIFY, kw_only=True)
    kwargs: Mapping[str, Any] = field(default_factory=dict, kw_only=True, hash=False)

    def __post_init__(self) -> None:
        check_fraction("PTrue", "threshold", self.threshold)
        _check_template("PTrue", self.prompt)
        object.__setattr__(self, "kwargs", dict(self.kwargs))
        if self.model is not None:
            object.__setattr__(self, "model", as_tier(self.model))

    def after(self, moment: Moment) -> Plan[Decision]:
        try:
            verdict = yield effects.Judge(
                _verifier(self.model, moment),
                _prompt(self.prompt, moment),
                purpose="p_true",
                reads=frozenset({"logprobs", "top_logprobs"}),
                kwargs=self.kwargs,
            )
        except Exception as error:
            return not_asked(self.name, moment, error, "judge")
        fields: dict[str, Any] = {"score_name": "true_probability", "threshold": self.threshold}
        if not verdict.tokens:
            reason = "the verifier gave no token logprobs: deferred unscored"
            return Decision(True, self.name, code="no_logprobs", reason=reason, **fields)
        score = true_probability(verdict)
        if score is None:
            return _unclear(self.name, verdict, **fields)
        sign = "<" if score < self.threshold else ">="
        return Decision(
            score < self.threshold,
            self.name,
            score=score,
            reason=f'probability of "True" {score:.3g} {sign} {self.threshold:g}',
            **fields,
        )


def true_probability(verdict: Answer) -> float | None:
    """Return the probability of "True" at the first verdict token, None without one."""
    for token in verdict.over("answer").tokens or ():
        said = first_word_verdict(token.token)
        if said is None or math.isnan(token.logprob):
            continue
        alternatives = dict(token.top) or {}
        alternatives.setdefault(token.token, token.logprob)
        sums = {True: 0.0, False: 0.0}
        for text, logprob in alternatives.items():
            means = first_word_verdict(text)
            if means is not None:
                sums[means] += math.exp(logprob)
        if sums[True] and sums[False]:
            return sums[True] / (sums[True] + sums[False])
        # only one side is known: all that is missing counts against it
        return min(1.0, sums[True]) if said else max(0.0, 1.0 - sums[False])
    return None


@dataclass(frozen=True, slots=True)
class Judge(Policy):
    """Asks a model to grade the draft and accepts iff the grade is high enough.

    Args:
        model: The judge: anything that the adapter takes as a tier.
        rubric: What the grade is about.
        threshold: Least grade.
        scale: Worst and best grade.
        prompt: A prompt of your own with `{question}` and `{answer}`, in place of the rubric;
            the judge's reply must hold a grade.
        kwargs: Call arguments of the judge.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    model: Any = field(hash=False)
    rubric: str = RUBRIC
    threshold: float = field(default=7.0, kw_only=True)
    scale: tuple[float, float] = field(default=(1.0, 10.0), kw_only=True)
    prompt: str | None = field(default=None, kw_only=True)
    kwargs: Mapping[str, Any] = field(default_factory=dict, kw_only=True, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", as_tier(self.model))
        object.__setattr__(self, "kwargs", dict(self.kwargs))
        low, high = self.scale
        if not low < high:
            raise ConfigurationError(f"Judge(scale=) must rise, got {self.scale!r}")
        object.__setattr__(self, "scale", (float(low), float(high)))
        if not low <= self.threshold <= high:
            raise ConfigurationError(
                f"Judge(threshold=) must lie on the scale {low:g} to {high:g}, "
                f"got {self.threshold!r}"
            )
        if self.prompt is not None:
            _check_template("Judge", self.prompt)

    def after(self, moment: Moment) -> Plan[Decision]:
        low, high = self.scale
        template = self.prompt
        if template is None:
            template = _RATE.replace("{rubric}", self.rubric)
            template = template.replace("{low:g}", f"{low:g}").replace("{high:g}", f"{high:g}")
        prompt = _prompt(template, moment)
        try:
            verdict = yield effects.Judge(self.model, prompt, purpose="judge", kwargs=self.kwargs)
        except Exception as error:
            return not_asked(self.name, moment, error, "judge")
        fields: dict[str, Any] = {"score_name": "grade", "threshold": self.threshold}
        grade = score_in(verdict.text, self.scale)
        if grade is None:
            return _unclear(self.name, verdict, **fields)
        sign = "<" if grade < self.threshold else ">="
        return Decision(
            grade < self.threshold,
            self.name,
            score=grade,
            reason=f"{self.model.label} grades {grade:g} {sign} {self.threshold:g}",
            **fields,
        )


def score_in(text: str, scale: tuple[float, float]) -> float | None:
    """Return the grade in a judge's reply, None when it holds none or one off the scale.

    Reads `[[7]]`, `Score: 7`, `"score": 7`, `7/10`, or a reply that is nothing but a number;
    the last of a form counts, because judges reason before they grade.
    """
    text = without_reasoning(text)
    found: list[str] = []
    for form in _FORMS:
        found = form.findall(f" {text}")
        if found:
            break
    else:
        bare = re.fullmatch(rf"\W*{_NUMBER}\W*", text)
        found = [bare[1]] if bare else []
    if not found:
        return None
    grade = float(found[-1])
    return grade if scale[0] <= grade <= scale[1] else None
