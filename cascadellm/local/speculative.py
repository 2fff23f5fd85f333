"""Token-level deferral as the policy of a boundary; importing this loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cascadellm.errors import ConfigurationError
from cascadellm.local.model import LocalModel
from cascadellm.local.rules import Rule, TokenV3
from cascadellm.policies.base import Policy
from cascadellm.tier import Price, Tier

if TYPE_CHECKING:
    from cascadellm.local.pair import SpeculativePair

__all__ = ["SpeculativeCascade", "TokenCascade", "check_gamma", "check_rule"]


@dataclass(frozen=True, slots=True)
class SpeculativeCascade(Policy):
    """Defer token by token: the lower tier drafts, the upper one verifies, a rule decides.

    Stands on a boundary of two local models with one vocabulary; they then answer together,
    as one tier named `lower+upper`. Every token follows the rule's target distribution, for
    every gamma and with or without block verification.

    Args:
        rule: Which law the tokens follow.
        gamma: Drafted tokens per verify call, or `adaptive` (from measured acceptance and
            cost).
        block_verification: Verify whole blocks: the same law, and on average never fewer
            accepted tokens; above temperature 0 only.

    Raises:
        ConfigurationError: `rule` is no rule, or `gamma` is below 1.

    Source: arXiv 2405.19261, algorithm 5; block verification: arXiv 2403.10444.
    """

    rule: Rule = field(default_factory=TokenV3)
    gamma: int | Literal["adaptive"] = 5
    block_verification: bool = False
    level: ClassVar[Literal["answer", "token"]] = "token"

    def __post_init__(self) -> None:
        check_rule(self.rule)
        check_gamma(self.gamma)

    def join(self, draft_tier: Tier, target_tier: Tier) -> Tier:
        """Return one tier that holds both models as a `SpeculativePair`.

        Its price is an estimate made of both tiers' prices: both read the prompt, and every
        emitted token counts as drafted once and verified once; the time is paid at the
        dearer rate. It is None where one of the two is unknown. Retries, time limit and call
        settings are the upper tier's.

        Raises:
            ConfigurationError: A tier is not a local model, or they cannot decode together.
            VocabularyMismatchError: Their vocabularies differ.
        """
        from cascadellm.local.pair import SpeculativePair

        def build(draft: LocalModel, target: LocalModel, names: tuple[str, str]) -> SpeculativePair:
            return SpeculativePair(
                draft, target, self.rule, self.gamma,
                block_verification=self.block_verification, names=names,
            )  # fmt: skip

        return _joined(self.name, draft_tier, target_tier, build)


@dataclass(frozen=True, slots=True)
class TokenCascade(Policy):
    """The same law as `SpeculativeCascade`, one token after the other: a baseline.

    Only `Chow` and `ChowLog` save target calls this way; every other rule reads the target's
    row at each token.

    Args:
        rule: Which law the tokens follow.

    Raises:
        ConfigurationError: `rule` is no rule.

    Source: arXiv 2405.19261, algorithm 2.
    """

    rule: Rule = field(default_factory=TokenV3)
    level: ClassVar[Literal["answer", "token"]] = "token"

    def __post_init__(self) -> None:
        check_rule(self.rule)

    def join(self, draft_tier: Tier, target_tier: Tier) -> Tier:
        """Return one tier that holds both models; as `SpeculativeCascade.join`."""
        from cascadellm.local.pair import SequentialPair

        def build(draft: LocalModel, target: LocalModel, names: tuple[str, str]) -> SequentialPair:
            return SequentialPair(draft, target, self.rule, names=names)

        return _joined(self.name, draft_tier, target_tier, build)


def check_rule(rule: Any) -> None:
    """Refuse anything but a rule.

    Raises:
        ConfigurationError: It is something else.
    """
    if not isinstance(rule, Rule):
        raise ConfigurationError(
            f"rule must be a deferral rule such as TokenV3(alpha=0.3), got {rule!r}"
        )


def check_gamma(gamma: Any) -> None:
    """Refuse a gamma that drafts nothing.

    Raises:
        ConfigurationError: It is neither a whole number >= 1 nor `adaptive`.
    """
    whole = isinstance(gamma, int) and not isinstance(gamma, bool) and gamma >= 1
    if not whole and gamma != "adaptive":
        raise ConfigurationError(
            f"gamma must be a whole number >= 1 (drafted tokens per verify call) or 'adaptive', "
            f"got {gamma!r}"
        )


def _joined(policy: str, lower: Tier, upper: Tier, build: Any) -> Tier:
    draft, target = (_local(policy, tier) for tier in (lower, upper))
    names = (lower.label, upper.label)
    return Tier(
        build(draft, target, names),
        name="+".join(names),
        price=_price(lower.price, upper.price),
        retry=upper.retry,
        timeout_s=upper.timeout_s,
        kwargs=upper.kwargs,
    )


def _local(policy: str, tier: Tier) -> LocalModel:
    # the adapters' classes for local models hold theirs as `model`
    for found in (tier.model, getattr(tier.model, "model", None)):
        if isinstance(found, LocalModel):
            return found
    raise ConfigurationError(
        f"{policy} needs two local models, but tier {tier.label!r} is a "
        f"{type(tier.model).__name__}; pass a LocalModel there, or give this boundary an "
        "answer-level policy such as Threshold(mean_logprob, -0.35)"
    )


def _price(lower: Price | None, upper: Price | None) -> Price | None:
    if lower is None or upper is None:
        return None
    return Price(
        input=lower.input + upper.input,
        output=lower.output + upper.output,
        per_second=max(lower.per_second, upper.per_second),
    )
