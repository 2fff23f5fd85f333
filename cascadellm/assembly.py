"""What a cascade is built from: its tiers, one policy per boundary, pairs joined to units.

Everything here raises `ConfigurationError`, so that a cascade that exists can run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cascadellm.errors import ConfigurationError
from cascadellm.ledger import Unit
from cascadellm.policies.base import Policy, as_policy
from cascadellm.tier import Tier

__all__ = ["join_pairs", "listed", "one_of", "per_boundary"]


def listed(tiers: Any) -> list[Any]:
    """Return the tiers as a list of at least one."""
    if isinstance(tiers, (str, bytes)) or not isinstance(tiers, Sequence) or not tiers:
        raise ConfigurationError(f"tiers must be a list of at least one model, got {tiers!r}")
    return list(tiers)


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuse a choice that does not exist."""
    if value not in allowed:
        raise ConfigurationError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def per_boundary(policy: Any, count: int) -> tuple[Policy, ...]:
    """Return one policy for each of the count - 1 boundaries."""
    if isinstance(policy, (list, tuple)):
        if len(policy) != count - 1:
            raise ConfigurationError(
                f"{count} tiers have {count - 1} boundaries, so {count - 1} policies are "
                f"expected, got {len(policy)}"
            )
        return tuple(as_policy(one) for one in policy)
    if policy is None:
        if count > 1:
            raise ConfigurationError(
                f"{count} tiers need a policy that says when to defer, e.g. "
                "policy=Threshold(mean_logprob, -0.35)"
            )
        return ()
    return (as_policy(policy),) * (count - 1)


def join_pairs(
    tiers: tuple[Tier, ...], policies: tuple[Policy, ...]
) -> tuple[tuple[Unit, ...], tuple[Policy, ...]]:
    """Fold every token-level boundary: its two tiers become one unit, the pair."""
    units = [Unit(0, tiers[0])]
    boundaries: list[Policy] = []
    for index, policy in enumerate(policies):
        upper = tiers[index + 1]
        if policy.level == "answer":
            units.append(Unit(index + 1, upper))
            boundaries.append(policy)
            continue
        lower = units.pop()
        if lower.draft is not None:
            raise ConfigurationError(
                f"tier {lower.tier.label!r} is a pair already; two token-level boundaries "
                "cannot follow each other"
            )
        pair: Tier = policy.join(lower.tier, upper)  # type: ignore[attr-defined]
        units.append(Unit(index + 1, pair, draft=lower.tier.label))
    return tuple(units), tuple(boundaries)
