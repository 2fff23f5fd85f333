"""A threshold that follows feedback towards a target risk or a deferral budget."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cascadellm.answer import Answer, Decision
from cascadellm.calibration.result import Calibration
from cascadellm.effects import Plan
from cascadellm.errors import CalibrationError, ConfigurationError
from cascadellm.policies.base import Moment, Policy
from cascadellm.policies.threshold import Threshold

__all__ = ["AdaptiveThreshold"]

_SCHEMA = "cascadellm.adaptive_threshold/1"


class _State:
    """The moving threshold, shared by all calls."""

    __slots__ = ("count", "lock", "value")

    def __init__(self, value: float) -> None:
        self.value = value
        self.count = 0
        self.lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class AdaptiveThreshold(Policy):
    """A threshold policy whose threshold moves with every piece of feedback.

    The step is `rate * (loss - target)`: up (defer more) where the loss is above the target,
    down where it is below, never more than `step` and never outside `low..high`. In the long
    run the mean loss of the feedback approaches the target wherever a threshold can reach it;
    this is no certificate for a single day. Calibrate for that, and let this follow slow
    change.

    Args:
        score: The score, as in `Threshold`.
        start: Where the threshold starts: a number or a `Calibration`.
        target: Mean loss (or, with `observe_deferral`, deferral rate) to approach.
        low: Lowest threshold.
        high: Highest threshold.
        rate: How far one unit of loss moves the threshold, in the score's unit.
        step: Largest single move, in the score's unit.
        follow: What a `FeedbackLoop` steers by: the `loss` of checked calls, or the `deferral`
            of every call, towards a budget and without any label.

    Raises:
        ConfigurationError: A number is out of range.

    Source: arXiv 2106.00170 (adaptive conformal inference), the update.
    """

    score: Callable[[Answer], float | None]
    start: float
    target: float = field(kw_only=True)
    low: float = field(kw_only=True)
    high: float = field(kw_only=True)
    rate: float = field(default=0.05, kw_only=True)
    step: float = field(default=math.inf, kw_only=True)
    follow: Literal["loss", "deferral"] = field(default="loss", kw_only=True)
    _state: _State = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        begin = self.start.threshold if isinstance(self.start, Calibration) else self.start
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigurationError(
                f"low and high must be finite, low < high, got {self.low!r} and {self.high!r}"
            )
        if not 0 < self.target < 1:
            raise ConfigurationError(
                f"target must lie strictly between 0 and 1, got {self.target!r}"
            )
        if not 0 < self.rate < math.inf or not self.step > 0:
            raise ConfigurationError("rate and step must be positive")
        if self.follow not in ("loss", "deferral"):
            raise ConfigurationError(f"follow must be loss or deferral, got {self.follow!r}")
        if begin != begin:
            raise ConfigurationError("start must be a number, got NaN")
        begin = min(max(float(begin), self.low), self.high)
        object.__setattr__(self, "start", begin)
        object.__setattr__(self, "_state", _State(begin))

    @property
    def reads(self) -> frozenset[str]:
        found: frozenset[str] = getattr(self.score, "reads", frozenset())
        return found

    @property
    def threshold(self) -> float:
        """Where the threshold stands now."""
        return self._state.value

    @property
    def observations(self) -> int:
        """Pieces of feedback so far."""
        return self._state.count

    def after(self, moment: Moment) -> Decision | Plan[Decision]:
        return Threshold(self.score, self._state.value).after(moment)

    def observe(self, *, loss: float, accepted: bool = True) -> float:
        """Take feedback on one call into account and return the new threshold.

        Args:
            loss: 1 where keeping the earlier tier's answer was wrong, 0 where it was right.
            accepted: Whether that answer was kept; a deferred call has no loss.

        Raises:
            CalibrationError: The loss is outside [0, 1].
        """
        if not 0 <= loss <= 1:
            raise CalibrationError(f"a loss must lie in [0, 1], got {loss!r}")
        return self._move(float(loss) if accepted else 0.0)

    def observe_deferral(self, *, deferred: bool) -> float:
        """Steer the deferral rate instead; use either this or `observe`, not both."""
        # deferring too much must lower the threshold, the opposite of a loss
        return self._move(2 * self.target - float(deferred))

    def _move(self, value: float) -> float:
        change = min(max(self.rate * (value - self.target), -self.step), self.step)
        state = self._state
        with state.lock:
            state.value = min(max(state.value + change, self.low), self.high)
            state.count += 1
            return state.value

    def state(self) -> dict[str, Any]:
        """Return plain JSON data that `restore` continues from."""
        with self._state.lock:
            return {
                "schema": _SCHEMA,
                "threshold": self._state.value,
                "observations": self._state.count,
            }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state` data.

        Raises:
            CalibrationError: The data are of another kind.
        """
        value = state.get("threshold")
        if state.get("schema") != _SCHEMA or not isinstance(value, (int, float)):
            raise CalibrationError(f"expected the state of an adaptive threshold, got {state!r}")
        with self._state.lock:
            self._state.value = min(max(float(value), self.low), self.high)
            self._state.count = int(state.get("observations", 0))

    def save(self, path: str | Path) -> None:
        """Write the state, replacing an earlier one in one step."""
        target = Path(path)
        part = target.with_name(target.name + ".part")
        part.write_text(json.dumps(self.state(), allow_nan=False), "utf-8")
        part.replace(target)
