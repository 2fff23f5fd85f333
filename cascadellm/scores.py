"""Scores: from an answer to a number, higher = more trust.

A score reads token logprobs and returns None when they are missing; a missing score never
accepts silently (see `Threshold`). Token-uncertainty scores after arXiv 2404.10136.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from cascadellm.answer import Answer, TokenScore
from cascadellm.errors import ConfigurationError

__all__ = [
    "SCORES",
    "Score",
    "margin",
    "mean_entropy",
    "mean_logprob",
    "min_logprob",
    "quantile_logprob",
    "score_from_config",
    "sum_logprob",
]


@dataclass(frozen=True, slots=True)
class Score:
    """A named score; call it with an answer.

    Attributes:
        name: Name in records and configs.
        function: The computation; None = missing.
        unit: What the number counts.
        low: Least possible value.
        high: Greatest possible value.
        reads: What the answer must carry: `logprobs`, `top_logprobs`.
        level: The quantile's level, for `quantile_logprob`.
    """

    name: str
    function: Callable[[Answer], float | None]
    unit: str = "nats"
    low: float = -math.inf
    high: float = 0.0
    reads: frozenset[str] = frozenset({"logprobs"})
    level: float | None = None

    def __call__(self, answer: Answer) -> float | None:
        """Return the score, None when the answer lacks what it reads."""
        value = self.function(answer)
        return None if value is None or value != value else float(value)

    def __repr__(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Score):
            return NotImplemented
        # two quantile scores of one level hold different closures, and are one score
        known = self.name in SCORES or self.level is not None
        same = known or self.function is other.function
        return same and (self.name, self.level) == (other.name, other.level)

    def __hash__(self) -> int:
        return hash((self.name, self.level))

    def __reduce__(self) -> tuple[Any, ...]:
        # the named scores hold closures, which travel to other processes by name
        if self.level is not None or SCORES.get(self.name) is self:
            return score_from_config, (self.to_config(),)
        state = (self.name, self.function, self.unit, self.low, self.high, self.reads, self.level)
        return Score, state

    def to_config(self) -> dict[str, Any]:
        """Return plain data for `score_from_config`."""
        if self.level is not None:
            return {"type": "quantile_logprob", "level": self.level}
        return {"type": self.name}


def _tokens(answer: Answer) -> tuple[TokenScore, ...] | None:
    """Return the scored tokens, None when absent or evidently truncated."""
    tokens = answer.tokens
    if not tokens or any(math.isnan(token.logprob) for token in tokens):
        return None
    return tokens


def _over_logprobs(reduce: Callable[[list[float]], float]) -> Callable[[Answer], float | None]:
    def score(answer: Answer) -> float | None:
        tokens = _tokens(answer)
        return None if tokens is None else reduce([token.logprob for token in tokens])

    return score


def _quantile(values: list[float], level: float) -> float:
    """Linear interpolation between order statistics, as numpy's default."""
    ordered = sorted(values)
    place = level * (len(ordered) - 1)
    low = math.floor(place)
    high = math.ceil(place)
    if low == high or ordered[low] == ordered[high]:
        return ordered[low]
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _mean_entropy(answer: Answer) -> float | None:
    tokens = _tokens(answer)
    if tokens is None or any(token.entropy is None for token in tokens):
        return None
    return -sum(token.entropy or 0.0 for token in tokens) / len(tokens)


def _margin(answer: Answer) -> float | None:
    tokens = _tokens(answer)
    if tokens is None or any(len(token.top) < 2 for token in tokens):
        return None
    gaps = [math.exp(token.top[0][1]) - math.exp(token.top[1][1]) for token in tokens]
    return sum(gaps) / len(gaps)


mean_logprob = Score("mean_logprob", _over_logprobs(lambda v: sum(v) / len(v)))
"""Mean token log-probability (Chow-Average). Unit: nats per token."""

sum_logprob = Score("sum_logprob", _over_logprobs(math.fsum))
"""Log-probability of the whole answer (Chow-Sum); favours short answers. Unit: nats."""

min_logprob = Score("min_logprob", _over_logprobs(min))
"""Least token log-probability. Unit: nats."""

mean_entropy = Score("mean_entropy", _mean_entropy, reads=frozenset({"logprobs", "top_logprobs"}))
"""Minus the mean entropy of the full next-token laws; missing where a provider gives
only the top alternatives. Unit: nats per token."""

margin = Score(
    "margin",
    _margin,
    unit="probability",
    low=0.0,
    high=1.0,
    reads=frozenset({"logprobs", "top_logprobs"}),
)
"""Mean gap between the two likeliest tokens' probabilities. Unit: probability."""


def quantile_logprob(level: float) -> Score:
    """Return the score that is the `level` quantile of the token log-probabilities.

    Args:
        level: In [0, 1]; 0 is the minimum, 0.5 the median.

    Source: arXiv 2404.10136, Chow-Quantile.
    """
    if not isinstance(level, (int, float)) or not 0 <= level <= 1:
        raise ConfigurationError(f"quantile_logprob(level) expects level in [0, 1], got {level!r}")
    name = f"quantile_logprob({level:g})"
    return Score(name, _over_logprobs(lambda v: _quantile(v, level)), level=float(level))


SCORES: Mapping[str, Score] = MappingProxyType(
    {s.name: s for s in (mean_logprob, sum_logprob, min_logprob, mean_entropy, margin)}
)
"""The named scores without parameters."""


def score_from_config(config: Mapping[str, Any]) -> Score:
    """Build a score from `Score.to_config()` data.

    Raises:
        ConfigurationError: The name is unknown.
    """
    kind = str(config.get("type"))
    if kind == "quantile_logprob":
        return quantile_logprob(config["level"])
    if kind in SCORES:
        return SCORES[kind]
    raise ConfigurationError(
        f"unknown score {kind!r}; known: {', '.join(sorted(SCORES))}, quantile_logprob"
    )
