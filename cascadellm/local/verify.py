"""The verification step: pure functions of rows, no models, no randomness of their own.

p = target, q = draft, pi = target distribution (what a rule made of p and q). The draft
proposes x ~ q; accepting it with min(1, pi(x) / q(x)) and otherwise drawing from the
residual norm(max(0, pi - q)) emits a token of law pi.

Source: arXiv 2211.17192 and 2302.01318 (token verification), 2403.10444 (block
verification), with pi in the place of p (2405.19261, algorithm 5).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "acceptance",
    "acceptance_ratios",
    "block_residual",
    "block_thresholds",
    "leading",
    "residual",
]


def acceptance(pi: Tensor, q: Tensor) -> Tensor:
    """Return the probability that a draft of law q is kept: sum_v min(pi, q) = 1 - D(pi, q).

    Shape: (..., vocab) twice -> (...).
    """
    return torch.minimum(pi, q).sum(-1)


def acceptance_ratios(tokens: Tensor, pi: Tensor, q: Tensor) -> Tensor:
    """Return pi(x) / q(x) of each drafted token; it is kept iff a uniform lies below.

    Args:
        tokens: Drafted tokens. Shape (gamma,), int64.
        pi: Target distributions at their positions. Shape (gamma, vocab).
        q: Laws the drafts were sampled from. Shape (gamma, vocab).

    Returns:
        Ratios; values above 1 mean certain acceptance. Shape (gamma,).
    """
    at = tokens.unsqueeze(-1)
    return (pi.gather(-1, at) / q.gather(-1, at)).squeeze(-1)


def leading(passed: list[bool]) -> int:
    """Return how many drafts are kept: those before the first that failed its test."""
    return passed.index(False) if False in passed else len(passed)


def residual(pi: Tensor, q: Tensor) -> Tensor:
    """Return the law of the token that replaces a rejected draft: norm(max(0, pi - q)).

    Where pi = q nothing is ever rejected and the excess is empty; pi itself is returned
    there, so that rounding cannot lead to a division by zero.

    Shape: (..., vocab) twice -> (..., vocab).
    """
    return _normalised((pi - q).clamp(min=0), pi)


def block_thresholds(ratios: Tensor, pi: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Return the thresholds h_1..h_gamma of block verification and the weights P_0..P_gamma.

    The LAST i with u_i <= h_i is the number of tokens kept (0 if there is none).

    Args:
        ratios: pi(x_i) / q(x_i) of the drafts. Shape (gamma,).
        pi: Target distributions of the drafts. Shape (gamma, vocab).
        q: Laws of the drafts. Shape (gamma, vocab).

    Source: arXiv 2403.10444. Row i of `pi` and `q` (0-based) is conditioned on x_<=i, so the
    mass Z_i of the residual after keeping i tokens reads row i.
    """
    weights = [ratios.new_ones(())]
    for ratio in ratios:
        weights.append((weights[-1] * ratio).clamp(max=1))
    prefix = torch.stack(weights)
    inner = prefix[1:-1]
    mass = (inner[:, None] * pi[1:] - q[1:]).clamp(min=0).sum(-1)
    total = mass + 1 - inner
    # 0 / 0 means that this prefix is certain and the next laws agree: keeping it is exact
    thresholds = torch.where(total > 0, mass / total, torch.ones_like(total))
    return torch.cat((thresholds, prefix[-1:])), prefix


def block_residual(weight: Tensor, pi: Tensor, q: Tensor) -> Tensor:
    """Return norm(max(0, P_j pi - q)), the law of the token after the j kept ones.

    The token rule's residual max(0, pi - q) would be wrong here unless P_j = 1.
    """
    return _normalised((weight * pi - q).clamp(min=0), pi)


def _normalised(excess: Tensor, fallback: Tensor) -> Tensor:
    mass = excess.sum(-1, keepdim=True)
    empty = mass <= 0
    return torch.where(empty, fallback, excess / torch.where(empty, 1.0, mass))
