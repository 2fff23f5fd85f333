"""How many tokens to draft: a fixed number, or the number that has paid best so far."""

from __future__ import annotations

from typing import Protocol

__all__ = ["AdaptiveGamma", "FixedGamma", "GammaChooser", "expected_tokens", "predicted_gain"]

_LONGEST = 31
_FORGET = 0.95
_FIRST = 5


def expected_tokens(rate: float, gamma: int) -> float:
    """Return the expected tokens per verify call, (1 - a^(gamma+1)) / (1 - a).

    Args:
        rate: Acceptance probability a per drafted token, taken as constant.
        gamma: Drafted tokens per verify call.

    Source: arXiv 2211.17192, equation 1. Where acceptance varies between blocks the true
    number is larger.
    """
    if rate >= 1:
        return gamma + 1.0
    return float((1 - rate ** (gamma + 1)) / (1 - rate))


def predicted_gain(rate: float, gamma: int, cost: float, *, lossless: bool) -> float:
    """Return the predicted speed relative to the target alone.

    Args:
        rate: Acceptance probability per drafted token.
        gamma: Drafted tokens per verify call.
        cost: Time of a draft step over the time of a verify call.
        lossless: Whether the token after a fully accepted block comes from the target's row;
            otherwise it takes one more draft step (at temperature 0 often none).
    """
    steps = gamma if lossless else gamma + rate**gamma
    return expected_tokens(rate, gamma) / (steps * cost + 1)


class GammaChooser(Protocol):
    """Chooses how many tokens the next round drafts."""

    def next(self) -> int:
        """Return gamma for the next round."""

    def record(
        self, *, tested: int, kept: int, steps: int, draft_s: float, verify_s: float, verified: int
    ) -> None:
        """Learn from a round; times in seconds."""


class FixedGamma:
    """Always the same number.

    Args:
        gamma: Drafted tokens per verify call.
    """

    def __init__(self, gamma: int) -> None:
        self._gamma = gamma

    def next(self) -> int:
        """Return the number."""
        return self._gamma

    def record(
        self, *, tested: int, kept: int, steps: int, draft_s: float, verify_s: float, verified: int
    ) -> None:
        """Learn nothing."""


class AdaptiveGamma:
    """The number with the best predicted tokens per second, from what earlier rounds measured.

    Acceptance, the time of a draft step and the time of a verify call (a line in the number
    of verified tokens) are running means that forget. The law of the text does not depend on
    gamma; which random numbers are used does, so a seed fixes sampled text only with a fixed
    gamma.

    Args:
        lossless: Whether the rule needs no draft step after a fully accepted block.
    """

    def __init__(self, *, lossless: bool) -> None:
        self._lossless = lossless
        self._tested, self._kept = 2.0, 1.5
        self._steps, self._draft_s = 0.0, 0.0
        self._fit = [0.0] * 5

    def next(self) -> int:
        """Return gamma for the next round."""
        if self._fit[0] < 2 or not self._steps:
            return _FIRST
        rate = self._kept / self._tested
        step = self._draft_s / self._steps
        fixed, slope = self._verify_line()

        def speed(gamma: int) -> float:
            steps = gamma if self._lossless else gamma + rate**gamma
            return expected_tokens(rate, gamma) / (steps * step + fixed + slope * (gamma + 1))

        return max(range(1, _LONGEST + 1), key=speed)

    def record(
        self, *, tested: int, kept: int, steps: int, draft_s: float, verify_s: float, verified: int
    ) -> None:
        """Learn from a round; times in seconds."""
        self._tested = _FORGET * self._tested + tested
        self._kept = _FORGET * self._kept + kept
        self._steps = _FORGET * self._steps + steps
        self._draft_s = _FORGET * self._draft_s + draft_s
        new = (1.0, verified, verify_s, verified * verified, verified * verify_s)
        self._fit = [_FORGET * old + add for old, add in zip(self._fit, new, strict=True)]

    def _verify_line(self) -> tuple[float, float]:
        """Return fixed and per-token time of a verify call by least squares."""
        count, tokens, seconds, squares, products = self._fit
        spread = squares - tokens * tokens / count
        if spread < 0.5 * count:
            return seconds / count, 0.0
        slope = max(0.0, (products - tokens * seconds / count) / spread)
        return max(0.0, (seconds - slope * tokens) / count), slope
