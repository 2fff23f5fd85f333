"""What a feedback loop tells, to whom, and when a shadow call can be compared."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cascadellm.answer import Answer, SideCall
from cascadellm.calibration.adaptive import AdaptiveThreshold
from cascadellm.calibration.calls import KeptCall
from cascadellm.calibration.grading import same_text
from cascadellm.cascade import Cascade
from cascadellm.errors import CalibrationError, ConfigurationError
from cascadellm.policies.base import AllOf, AnyOf, Not, Policy

__all__ = [
    "Feedback",
    "adaptive_in",
    "as_loss",
    "check_comparable",
    "differ",
    "side_call",
    "tell_monitor",
]

_log = logging.getLogger("cascadellm")


@dataclass(frozen=True, slots=True)
class Feedback:
    """What is known about one checked call.

    Attributes:
        run_id: The call.
        accepted: Whether a policy kept an earlier tier's answer.
        loss: Loss of keeping it, in [0, 1]; 0 where it was not kept.
        score: Score of the last decision, None when it had none.
        threshold: Threshold of that decision.
        correct: What was said of the answer; None for a shadow call.
        source: Where it comes from: `feedback` or `shadow`.
    """

    run_id: str
    accepted: bool
    loss: float
    score: float | None
    threshold: float | None
    correct: float | None
    source: str


def check_comparable(monitors: Sequence[Any]) -> None:
    """Refuse monitors of promises that shadow calls without `compare=` do not measure.

    Raises:
        ConfigurationError: A monitor's calibration is about another loss than disagreement.
    """
    for monitor in monitors:
        loss = getattr(monitor, "loss", None)
        # answers may differ and both be right: disagreement overstates the other losses
        if getattr(monitor, "calibrated", False) and loss != "disagreement":
            raise ConfigurationError(
                f"shadow calls measure disagreement, and the monitor's calibration promises "
                f"{loss!r}, so it would raise the alarm too early; calibrate with "
                "loss='disagreement', or give compare= that grades both answers"
            )


def tell_monitor(monitor: Any, told: Feedback) -> Any:
    """Tell a monitor; one that raises breaks no answer and no other monitor."""
    try:
        if hasattr(monitor, "observe"):
            loss = told.loss
            if getattr(monitor, "loss", None) == "selective" and told.correct is not None:
                # an error rate does not ask whether the last tier errs too
                loss = 1.0 - told.correct
            return monitor.observe(accepted=told.accepted, loss=loss)
        return monitor(told)
    except Exception:
        _log.warning("monitor %r failed", type(monitor).__name__, exc_info=True)
        return None


def side_call(tier: Any, answer: Answer | None, error: str | None, latency_s: float) -> SideCall:
    """Return what a shadow call cost; unknown where it failed."""
    usage = None if answer is None else answer.usage
    paid = SideCall(tier.label, "shadow", latency_s=latency_s, error=error)
    if usage is not None:
        paid = replace(paid, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)
    return replace(paid, cost_usd=None if answer is None else tier.cost(usage, latency_s))


def as_loss(value: Any) -> float:
    """Return a comparison's result as a loss.

    Raises:
        CalibrationError: It is outside [0, 1].
    """
    loss = float(value)
    if not 0 <= loss <= 1:
        raise CalibrationError(f"compare must return a loss in [0, 1], got {value!r}")
    return loss


def differ(draft: Answer, reference: Answer) -> float:
    """Return 1 where two answers differ in more than form, else 0."""
    return float(not same_text(draft, reference))


def adaptive_in(cascade: Cascade, call: KeptCall) -> Iterator[tuple[AdaptiveThreshold, bool]]:
    """Yield the adaptive thresholds that decided in a call, and whether each accepted."""
    for unit, policy in zip(cascade.units, cascade.boundaries, strict=False):
        if unit.index in call.decided:
            for one in _within(policy):
                yield one, call.decided[unit.index]


def _within(policy: Policy) -> Iterator[AdaptiveThreshold]:
    if isinstance(policy, AdaptiveThreshold):
        yield policy
    elif isinstance(policy, (AnyOf, AllOf)):
        for part in policy.parts:
            yield from _within(part)
    elif isinstance(policy, Not):
        yield from _within(policy.part)
