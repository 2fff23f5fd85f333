"""The laws that deferral rules are made of: pure functions of two rows.

p = target, q = draft, pi = target distribution; rows have shape (..., vocab) and sum to 1.
Only methods of the given tensors are called, so importing this loads no tensor library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ROUNDING",
    "entropy",
    "keep_tokens",
    "lenient",
    "mentored",
    "point_mass",
    "surely_above_one",
    "total_variation",
]

ROUNDING = 1e-5
"""More than the rounding of a probability in float32."""


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Return D(p, q) = sum_v max(0, p(v) - q(v)). Shape (..., 1)."""
    return (p - q).clamp(min=0).sum(-1, keepdim=True)


def entropy(probs: Tensor) -> Tensor:
    """Return the entropy in nats, with 0 log 0 = 0. Shape (..., 1)."""
    return -probs.xlogy(probs).sum(-1, keepdim=True)


def keep_tokens(kept: Tensor, q: Tensor, p: Tensor) -> Tensor:
    """Return q 1[v in A] + eta p with eta = 1 - sum over the *kept* tokens of q.

    eta is summed over the other tokens, which is the same number and exactly 0 when A is
    everything.

    Args:
        kept: Mask of the tokens A that are not deferred. Shape (..., vocab).
        q: Rows the draft is sampled from. Shape (..., vocab).
        p: Target rows after the same processors. Shape (..., vocab).

    Source: arXiv 2405.19261, eqs. 13-15.
    """
    accepted = q * kept
    eta = (q - accepted).sum(-1, keepdim=True)
    return accepted + eta * p


def lenient(q: Tensor, p: Tensor, lenience: float) -> Tensor:
    """Return the law of "accept with min(1, p / (l q)), else draw from norm(max(0, p - q))".

    Source: arXiv 2211.17192, appendix A.5.
    """
    accepted = q.minimum(p / lenience)
    excess = (p - q).clamp(min=0)
    mass = excess.sum(-1, keepdim=True)
    rejected = (q - accepted).sum(-1, keepdim=True)
    # where p = q nothing is rejected, so the quotient's numerator is 0 there
    return accepted + rejected * excess / mass.clamp(min=_tiny(mass))


def mentored(q: Tensor, p: Tensor, alpha: float) -> Tensor:
    """Return max{min{q, p / (1 - alpha)}, s p} with the s = 1 / beta that makes it sum to 1.

    The sum is piecewise linear in s with breakpoints m / p, so s is found exactly instead of
    by bisection, beta = infinity included.

    Source: Tran-Thien 2023; arXiv 2405.19261, lemma 2.
    """
    capped = q.minimum(p / (1 - alpha))
    breaks = (capped / p.clamp(min=_tiny(p))).where(p > 0, p.new_full((), float("inf")))
    order = breaks.argsort(-1)
    sorted_breaks = breaks.gather(-1, order)
    below_p = p.gather(-1, order).cumsum(-1)
    below_m = capped.gather(-1, order).cumsum(-1)
    rest_m = below_m[..., -1:] - below_m
    # value of the sum at each breakpoint; an infinite one belongs to p(v) = 0, never reached
    finite = sorted_breaks.isfinite()
    at_break = rest_m + sorted_breaks.where(finite, sorted_breaks.new_zeros(())) * below_p
    passed = ((at_break <= 1) & finite).sum(-1, keepdim=True).clamp(min=1) - 1
    scale = (1 - rest_m.gather(-1, passed)) / below_p.gather(-1, passed)
    return capped.maximum(scale * p)


def point_mass(scores: Tensor) -> Tensor:
    """Return rows that hold 1 at the largest score (the first, on ties) and 0 elsewhere."""
    return scores.new_zeros(scores.shape).scatter(-1, scores.argmax(-1, keepdim=True), 1.0)


def surely_above_one(bound: Tensor) -> bool:
    """Whether every bound is above what any probability can be, rounding included."""
    return bool((bound > 1 + ROUNDING).all())


def _tiny(like: Tensor) -> float:
    """Smallest positive normal number of the tensor's type (no tensor library imported)."""
    return 2.2250738585072014e-308 if like.element_size() == 8 else 1.1754943508222875e-38
