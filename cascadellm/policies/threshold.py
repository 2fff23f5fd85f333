"""The threshold policy: accept iff score >= threshold."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from cascadellm.answer import Answer, Decision
from cascadellm.effects import Compute, Plan
from cascadellm.errors import ConfigurationError, ScoreUnavailableError
from cascadellm.policies.base import Moment, Policy
from cascadellm.scores import Score

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["Threshold"]

_FEW = 512


@dataclass(frozen=True, slots=True)
class Threshold(Policy):
    """Accepts an answer iff its score is at least the threshold (Chow's rule).

    Args:
        score: A `Score` such as `mean_logprob`, or a function from an `Answer` to a number
            (None or NaN = missing).
        threshold: In the unit of the score; -inf accepts and +inf defers every scored answer.
        missing: What a missing score does: `defer`, `accept` or `raise`.
        over: Which tokens are scored: `answer` (all outside the reasoning block),
            `arguments` (of tool calls) or `all`.

    Raises:
        ConfigurationError: A number or a choice is out of range.
    """

    score: Score | Callable[[Answer], float | None]
    threshold: float
    missing: Literal["defer", "accept", "raise"] = field(default="defer", kw_only=True)
    over: Literal["answer", "arguments", "all"] = field(default="answer", kw_only=True)

    def __post_init__(self) -> None:
        if not callable(self.score):
            raise ConfigurationError(
                f"Threshold(score, threshold) expects a score first, got {self.score!r}; "
                "e.g. Threshold(mean_logprob, -0.35)"
            )
        number = self.threshold
        if isinstance(number, bool) or not isinstance(number, (int, float)) or number != number:
            raise ConfigurationError(f"threshold must be a number, not NaN, got {number!r}")
        if self.missing not in ("defer", "accept", "raise"):
            raise ConfigurationError(
                f"missing must be 'defer', 'accept' or 'raise', got {self.missing!r}"
            )
        if self.over not in ("answer", "arguments", "all"):
            raise ConfigurationError(
                f"over must be 'answer', 'arguments' or 'all', got {self.over!r}"
            )
        object.__setattr__(self, "threshold", float(number))

    @classmethod
    def from_calibration(
        cls,
        calibration: Any,
        score: Score | Callable[[Answer], float | None] | None = None,
        **options: Any,
    ) -> Threshold:
        """Build the policy from a `Calibration` or the path of its JSON file.

        Args:
            calibration: A `cascadellm.calibration.Calibration`, or a path.
            score: The score it was calibrated on; by default the one it names.
            **options: `missing` and `over`.
        """
        from cascadellm.calibration.result import Calibration
        from cascadellm.scores import score_from_config

        if not isinstance(calibration, Calibration):
            calibration = Calibration.load(Path(cast("str | PathLike[str]", calibration)))
        if score is None:
            if not calibration.score:
                raise ConfigurationError(
                    "the calibration does not say which score it belongs to; pass score="
                )
            score = score_from_config(_score_config(calibration.score))
        return cls(score, float(calibration.threshold), **options)

    @property
    def reads(self) -> frozenset[str]:
        default = frozenset() if not isinstance(self.score, Score) else self.score.reads
        return cast("frozenset[str]", getattr(self.score, "reads", default))

    @property
    def score_name(self) -> str:
        """Name of the score in records."""
        return score_label(self.score)

    def after(self, moment: Moment) -> Decision | Plan[Decision]:
        # the project's own scores of a short answer take microseconds; a thread takes more
        if isinstance(self.score, Score) and len(moment.draft.tokens or ()) <= _FEW:
            return self._decision(moment, self._value(moment))
        return self._elsewhere(moment)

    def _elsewhere(self, moment: Moment) -> Plan[Decision]:
        return self._decision(moment, (yield Compute(lambda: self._value(moment))))

    def _value(self, moment: Moment) -> float | None:
        try:
            return self.score(moment.draft.over(self.over))
        except ScoreUnavailableError:
            return None

    def _decision(self, moment: Moment, value: float | None) -> Decision:
        if value is None or math.isnan(value):
            return self._missing(moment)
        value = float(value)
        defer = value < self.threshold
        sign = "<" if defer else ">="
        return Decision(
            defer,
            self.name,
            score_name=self.score_name,
            score=value,
            threshold=self.threshold,
            code="score",
            reason=f"{self.score_name} {value:.4g} {sign} {self.threshold:.4g}",
        )

    def _missing(self, moment: Moment) -> Decision:
        absent = "logprobs" in self.reads and moment.draft.over(self.over).tokens is None
        what = "no token logprobs" if absent else f"no value of {self.score_name}"
        if self.missing == "raise":
            raise ScoreUnavailableError(
                f"tier {moment.name!r} gave {what}, which {self.score_name} reads; switch "
                "logprobs on for this tier (local models always give them, OpenAI-compatible "
                "servers with logprobs=True), use another score, or set missing='defer'"
            )
        return Decision(
            self.missing == "defer",
            self.name,
            score_name=self.score_name,
            threshold=self.threshold,
            code="no_logprobs" if absent else "no_score",
            reason=f"{what}: {'deferred' if self.missing == 'defer' else 'accepted'} unscored",
        )


def score_label(score: Any) -> str:
    """Return the name of a score or of a function that scores."""
    named = getattr(score, "name", None) or getattr(score, "__name__", None)
    return str(named or type(score).__name__)


def _score_config(name: str) -> dict[str, Any]:
    if name.startswith("quantile_logprob("):
        return {"type": "quantile_logprob", "level": float(name[17:-1])}
    return {"type": name}
