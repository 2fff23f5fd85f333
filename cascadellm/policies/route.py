"""Routing: decide from the request alone, before any token is paid for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cascadellm.answer import Decision, Request
from cascadellm.effects import Compute, Plan
from cascadellm.errors import ConfigurationError
from cascadellm.policies.base import Moment, Policy
from cascadellm.policies.threshold import score_label
from cascadellm.tier import Tier

__all__ = ["ContextFits", "NeedsTools", "Route"]

_CHARACTERS_PER_TOKEN = 3
"""Low for most languages and tokenizers, so that a guess errs on the large side."""

_WINDOWS = ("context_window", "max_input_tokens")
_ABILITIES = ("supports_tools", "tools", "is_function_calling_model", "tool_calling")
_WRAPPERS = 8

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Route(Policy):
    """Skips tiers that a score of the request finds too weak for it.

    With thresholds t1 > t2 > ..., a score of at least t1 asks this tier, one below t1 the
    next, one below t2 the one after it, and so on. The score runs off the event loop.

    Args:
        score: From a `Request` to a number, higher = more trust in this tier; a function of
            your own, or a learned router's. None or NaN = unknown.
        thresholds: One number, or several that fall.
        missing: What an unknown score, or a score that raises, does: `ask` this tier or
            `skip` it.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    score: Callable[[Request], float | None]
    thresholds: float | tuple[float, ...]
    missing: str = field(default="ask", kw_only=True)

    def __post_init__(self) -> None:
        if not callable(self.score):
            raise ConfigurationError(
                f"Route(score, thresholds) expects a function of the request first, got "
                f"{self.score!r}"
            )
        given = self.thresholds
        steps = tuple(given) if isinstance(given, Sequence) else (given,)
        numbers = all(isinstance(t, (int, float)) and not math.isnan(t) for t in steps)
        if not steps or not numbers or list(steps) != sorted(set(steps), reverse=True):
            raise ConfigurationError(
                f"Route(thresholds) must be one number or several that fall, got {given!r}"
            )
        if self.missing not in ("ask", "skip"):
            raise ConfigurationError(f"missing must be 'ask' or 'skip', got {self.missing!r}")
        object.__setattr__(self, "thresholds", tuple(float(t) for t in steps))

    @property
    def score_name(self) -> str:
        """Name of the score in records."""
        return score_label(self.score)

    def before(self, moment: Moment) -> Plan[Decision | None]:
        steps = self.thresholds
        assert isinstance(steps, tuple)
        why = "it gave none"
        try:
            value = yield Compute(lambda: self.score(moment.request))
        except Exception as error:
            value, why = None, f"it raised {type(error).__name__}: {error}"
        if value is None or math.isnan(value):
            if self.missing == "ask":
                return None
            reason = f"no value of {self.score_name}: {why}"[:300]
            return Decision(True, self.name, self.score_name, code="no_score", reason=reason)
        below = sum(value < step for step in steps)
        if below == 0:
            return None
        return Decision(
            True,
            self.name,
            score_name=self.score_name,
            score=float(value),
            threshold=steps[below - 1],
            code="route",
            reason=f"{self.score_name} {value:.4g} < {steps[below - 1]:.4g}",
            goto=moment.tier + below,
        )


@dataclass(frozen=True, slots=True)
class ContextFits(Policy):
    """Skips to the first tier whose context window holds the prompt and its answer.

    Models say their window themselves: `context_window` (local models, LlamaIndex), or
    `max_input_tokens` of a LangChain model's profile. A tier whose window is unknown is taken
    to fit; when none fits, the last one is asked.

    Args:
        reserve: Tokens kept free for the answer.
        windows: Tier name -> context window, for models that do not say theirs.
        count: From a `Request` to its tokens; by default `Request.input_tokens`, else a guess
            from the number of characters.

    Raises:
        ConfigurationError: A number is out of range.
    """

    reserve: int = 512
    windows: Mapping[str, int] = field(default_factory=dict, kw_only=True, hash=False)
    count: Callable[[Request], int] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", dict(self.windows))
        for value in (self.reserve, *self.windows.values()):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigurationError(f"ContextFits expects token counts >= 0, got {value!r}")

    def before(self, moment: Moment) -> Plan[Decision | None]:
        if self._window(moment.tiers[moment.tier]) is None:
            return None
        tokens, about = yield Compute(lambda: self._tokens(moment.request))
        needed = tokens + self.reserve
        fits = [window is None or window >= needed for window in map(self._window, moment.tiers)]
        if fits[moment.tier]:
            return None
        ahead = [i for i in range(moment.tier + 1, len(fits)) if fits[i]]
        window = self._window(moment.tiers[moment.tier])
        return Decision(
            True,
            self.name,
            code="context_window",
            reason=f"{about}{tokens} prompt tokens and {self.reserve} for the answer exceed "
            f"the window of {window}",
            goto=ahead[0] if ahead else len(fits) - 1,
        )

    def _tokens(self, request: Request) -> tuple[int, str]:
        if self.count is not None:
            return self.count(request), ""
        if request.input_tokens is not None:
            return request.input_tokens, ""
        return math.ceil(len(request.text) / _CHARACTERS_PER_TOKEN), "about "

    def _window(self, tier: Tier) -> int | None:
        if tier.label in self.windows:
            return self.windows[tier.label]
        window = _stated(tier.model, _WINDOWS, int)
        return window if window is not None and window > 0 else None


@dataclass(frozen=True, slots=True)
class NeedsTools(Policy):
    """Skips to the first tier that can call tools when the request has some.

    Args:
        able: Names of the tiers that can; None = what the models say of themselves
            (`supports_tools`, `is_function_calling_model`, `tool_calling` of a LangChain
            model's profile, ...), able where they say nothing.
    """

    able: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.able is not None:
            object.__setattr__(self, "able", tuple(self.able))

    def before(self, moment: Moment) -> Decision | None:
        if not moment.request.tools or self._can(moment.tiers[moment.tier]):
            return None
        places = range(moment.tier + 1, len(moment.tiers))
        ahead = [i for i in places if self._can(moment.tiers[i])]
        return Decision(
            True,
            self.name,
            code="no_tools",
            reason=f"{moment.name!r} cannot call the {len(moment.request.tools)} bound tools",
            goto=ahead[0] if ahead else len(moment.tiers) - 1,
        )

    def _can(self, tier: Tier) -> bool:
        if self.able is not None:
            return tier.label in self.able
        said = _stated(tier.model, _ABILITIES, bool)
        return True if said is None else said


def _stated(model: Any, names: Sequence[str], kind: type[T]) -> T | None:
    """Return what a model says of itself: directly, in its metadata or in its profile."""
    for _ in range(_WRAPPERS):
        for holder in (model, _part(model, "metadata"), _part(model, "profile")):
            for name in names:
                value = _part(holder, name)
                # True is an int, and no number of tokens
                if type(value) is kind:
                    return value
        # a LangChain model that is bound or has fallbacks stands inside another Runnable
        model = _part(model, "bound") or _part(model, "runnable")
        if model is None:
            break
    return None


def _part(holder: Any, name: str) -> Any:
    if isinstance(holder, Mapping):
        return holder.get(name)
    try:
        return getattr(holder, name, None)
    except Exception:
        # a property that fails states nothing
        return None
