"""What policies that ask models share: tiers for judges, rendering, verdicts, clear failures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from cascadellm.answer import Answer, Decision
from cascadellm.effects import Call, CallMany, Judge, Plan
from cascadellm.errors import ConfigurationError
from cascadellm.policies.base import Moment
from cascadellm.tier import Tier

__all__ = [
    "as_tier",
    "as_tiers",
    "ask_each",
    "check_count",
    "check_fraction",
    "first_word_verdict",
    "not_asked",
    "refused",
    "rendered",
    "without_reasoning",
]

_REASONING = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_REFUSED = frozenset({"content_filter", "refusal", "safety"})
_YES = frozenset({"true", "yes", "correct", "right", "same", "equivalent", "supported", "pass"})
_NO = frozenset(
    {"false", "no", "not", "incorrect", "wrong", "different", "unsupported", "fail", "neither"}
)


def as_tier(model: Any) -> Tier:
    """Return a model as a tier, which carries its price and call arguments."""
    return model if isinstance(model, Tier) else Tier(model)


def as_tiers(owner: str, models: Any) -> tuple[Tier, ...]:
    """Return at least one model as tiers.

    Raises:
        ConfigurationError: There is none, or it is no list.
    """
    if isinstance(models, (str, bytes)) or not isinstance(models, Iterable):
        raise ConfigurationError(f"{owner} expects a list of models, got {models!r}")
    tiers = tuple(as_tier(model) for model in models)
    if not tiers:
        raise ConfigurationError(f"{owner} expects at least one model, got none")
    return tiers


def check_count(owner: str, name: str, value: Any, least: int) -> None:
    """Refuse a count that is no whole number >= `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(
            f"{owner}({name}=) must be a whole number >= {least}, got {value!r}"
        )


def check_fraction(owner: str, name: str, value: Any) -> None:
    """Refuse a number outside [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ConfigurationError(f"{owner}({name}=) must be a fraction in [0, 1], got {value!r}")


def ask_each(calls: Sequence[Call | Judge]) -> Plan[list[Answer | Exception]]:
    """Ask several models together; what one raises stands in its place."""
    if not calls:
        return []
    found: list[Answer | Exception] = yield CallMany(tuple(calls))
    return found


def rendered(answer: Answer) -> str:
    """Return an answer as a judge reads it, tool calls included."""
    calls = [
        f"{call.name}({json.dumps(call.arguments, sort_keys=True, default=str)})"
        for call in answer.tool_calls
    ]
    return "\n".join([part for part in (answer.text.strip(), *calls) if part])


def without_reasoning(text: str) -> str:
    """Drop a reasoning block that a model writes into its text."""
    return _REASONING.sub("", text).strip()


def first_word_verdict(text: str) -> bool | None:
    """Return what a verdict says by its first or its last word, None when it is unclear."""
    words = re.findall(r"[a-z]+", without_reasoning(text).lower())
    for word in (*words[:1], *words[-1:]):
        if word in _YES and not {"not", "isn", "never"} & set(words):
            return True
        if word in _NO:
            return False
    return None


def refused(answer: Answer) -> bool:
    """Return whether a provider says, in a field of its own, that the model refused."""
    return bool(answer.refusal) or answer.finish_reason in _REFUSED


def not_asked(policy: str, moment: Moment, error: Exception, what: str) -> Decision:
    """Return the deferral for a judge or sample that raised: it accepts nothing."""
    from cascadellm.resilience import classify

    code = classify(error)
    reason = f"{what} of {moment.name!r} failed: {type(error).__name__}: {error}"[:300]
    return Decision(True, policy, code=f"{what.split(maxsplit=1)[0]}_{code}", reason=reason)
