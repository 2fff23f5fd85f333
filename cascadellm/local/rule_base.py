"""What every deferral rule is: a frozen value that turns two rows into one law.

p = target, q = draft, pi = target distribution, r = 1 means "defer to the target".
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cascadellm.errors import ConfigurationError
from cascadellm.local import rule_laws as laws

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AlphaRule", "BinaryRule", "Rule", "TokenRule", "check_number"]


@dataclass(frozen=True, slots=True)
class Rule:
    """What every deferral rule has in common."""

    _range: ClassVar[tuple[float, float]] = (float("-inf"), float("inf"))

    def target_distribution(
        self,
        draft_probs: Tensor,
        target_probs: Tensor,
        *,
        draft_scaled: Tensor | None = None,
        target_scaled: Tensor | None = None,
    ) -> Tensor:
        """Return the law that the next token must follow.

        Args:
            draft_probs: Draft rows at temperature 1; they decide. Shape (..., vocab).
            target_probs: Target rows at temperature 1; they decide. Shape (..., vocab).
            draft_scaled: Rows the draft is sampled from; they are mixed. Default: the same.
            target_scaled: Target rows after the same processors. Default: the same.

        Returns:
            Rows that sum to 1. Shape (..., vocab).
        """
        scaled_q = draft_probs if draft_scaled is None else draft_scaled
        scaled_p = target_probs if target_scaled is None else target_scaled
        if self.lossless:
            return scaled_p
        return self._mix(draft_probs, target_probs, scaled_q, scaled_p)

    def _mix(self, q: Tensor, p: Tensor, scaled_q: Tensor, scaled_p: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def lossless(self) -> bool:
        """Whether the law is the target's own for every pair of rows."""
        return False

    @property
    def reads_target(self) -> bool:
        """Whether the decision needs the target's row."""
        return True

    def ignores_draft(self, target_probs: Tensor) -> bool:
        """Whether at temperature 0 the target's likeliest token follows whatever the draft says.

        Where it does, a draft step need not be made. False is always right.

        Args:
            target_probs: The target's row at temperature 1. Shape (1, vocab).
        """
        return self.lossless

    @property
    def greedy_form(self) -> Rule:
        """The rule that this one becomes at temperature 0."""
        return self

    @property
    def parameter(self) -> float | None:
        """The rule's one number (alpha, lenience or weight); None for `Lossless`."""
        return next(iter(asdict(self).values()), None)

    def to_config(self) -> dict[str, Any]:
        """Return plain data from which `rule_from_config` builds an equal rule."""
        return {"type": type(self).__name__, **asdict(self)}


@dataclass(frozen=True, slots=True)
class AlphaRule(Rule):
    """A rule with a trade-off `alpha`: larger trusts the draft more."""

    alpha: float

    def __post_init__(self) -> None:
        check_number(type(self).__name__, "alpha", self.alpha, *self._range)


@dataclass(frozen=True, slots=True)
class BinaryRule(AlphaRule):
    """A rule that defers whole positions: pi = (1 - r) q + r p."""

    def _mix(self, q: Tensor, p: Tensor, scaled_q: Tensor, scaled_p: Tensor) -> Tensor:
        return scaled_p.where(self.defers(q, p, scaled_q, scaled_p), scaled_q)

    def defers(self, q: Tensor, p: Tensor, scaled_q: Tensor, scaled_p: Tensor) -> Tensor:
        """Return r as a mask of shape (..., 1); arguments as in `target_distribution`."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class TokenRule(AlphaRule):
    """A rule that keeps some tokens A of the draft: pi = q 1[A] + (1 - sum_A q) p."""

    def _mix(self, q: Tensor, p: Tensor, scaled_q: Tensor, scaled_p: Tensor) -> Tensor:
        return laws.keep_tokens(self.keeps(q, p), scaled_q, scaled_p)

    def keeps_mode_only(self, target_probs: Tensor) -> bool:
        """Whether A is the target's likeliest token alone, whatever the draft says.

        Then pi is "the draft's token if it is that one, else a token of p". False is always right.

        Args:
            target_probs: The target's row at temperature 1. Shape (1, vocab).
        """
        return False

    def ignores_draft(self, target_probs: Tensor) -> bool:
        """Where nothing but the target's likeliest token is kept."""
        return self.lossless or self.keeps_mode_only(target_probs)

    def keeps(self, q: Tensor, p: Tensor) -> Tensor:
        """Return the mask of tokens that are not deferred. Shape (..., vocab)."""
        raise NotImplementedError


def check_number(
    rule: str, name: str, value: Any, low: float, high: float,
    *, open_low: bool = False, open_high: bool = False,
) -> None:  # fmt: skip
    """Refuse anything but a finite number in range: inf * 0 would be NaN where p = q."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value - value == 0:
        above = value > low if open_low else value >= low
        below = value < high if open_high else value <= high
        if above and below:
            return
    left, right = "(" if open_low else "[", ")" if open_high else "]"
    expected = "finite" if low == float("-inf") else f"in {left}{low:g}, {high:g}{right}"
    raise ConfigurationError(f"{rule}({name}=...) must be a number {expected}, got {value!r}")
