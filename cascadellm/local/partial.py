"""What can be verified when a back end does not hand over full rows.

Pure functions for back ends that only sample from the target, or that return only the
likeliest tokens with their probabilities. p = target, q = draft.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cascadellm.errors import ConfigurationError

__all__ = ["distance_bounds", "matching_prefix", "opt_defers"]


def matching_prefix(drafted: Sequence[int], sampled: Sequence[int]) -> list[int]:
    """Return the tokens to emit when only samples y ~ p of the target are known.

    A draft is kept iff it equals the target's own sample; the target's sample is always
    emitted, so the law is p exactly. Acceptance falls to sum_v p(v) q(v).

    Args:
        drafted: Draft tokens. Shape (gamma,).
        sampled: Target samples at the same positions and one after. Shape (gamma + 1,).
    """
    if len(sampled) != len(drafted) + 1:
        raise ConfigurationError(
            f"{len(drafted)} drafts need {len(drafted) + 1} target samples, got {len(sampled)}"
        )
    kept = 0
    while kept < len(drafted) and drafted[kept] == sampled[kept]:
        kept += 1
    return list(sampled[: kept + 1])


def distance_bounds(
    target_top: Mapping[int, float], draft_row: Sequence[float]
) -> tuple[float, float]:
    """Return bounds on D(p, q) when only the target's likeliest tokens are known.

    With K = sum over listed tokens of max(0, p - q), t = mass of p outside the list and
    q_U = mass of q outside it: D lies in [K + max(0, t - q_U), K + t].

    Args:
        target_top: Target probabilities of the listed tokens.
        draft_row: The draft's full row.
    """
    listed = sum(max(0.0, prob - draft_row[token]) for token, prob in target_top.items())
    tail = max(0.0, 1.0 - sum(target_top.values()))
    outside = max(0.0, sum(draft_row) - sum(draft_row[token] for token in target_top))
    return listed + max(0.0, tail - outside), listed + tail


def opt_defers(
    alpha: float, target_top: Mapping[int, float], draft_row: Sequence[float]
) -> bool | None:
    """Decide `Opt(alpha)` from the target's likeliest tokens; None when they do not suffice.

    The decision is withheld when the two ends of the distance interval disagree.
    """
    gap = max(target_top.values()) - max(draft_row)
    decisions = {gap > alpha * bound for bound in distance_bounds(target_top, draft_row)}
    return decisions.pop() if len(decisions) == 1 else None
